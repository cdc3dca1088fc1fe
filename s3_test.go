package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// s3TestOptions are those of a client of s that never really waits.
func s3TestOptions(s *s3Server) s3Options {
	return s3Options{bucket: s.bucket, region: s.region, endpoint: s.http.URL, timeout: 5 * time.Second, retries: 3, pool: 4,
		credentials: s3Credentials{id: "AKIDTEST", secret: "secret/with+signs"}, env: noEnv,
		pause: func(ctx context.Context, atMost time.Duration) error { return ctx.Err() }}
}

func noEnv(string) string { return "" }

// newS3Test returns a client of s, with options changed by each of change.
func newS3Test(t *testing.T, s *s3Server, change ...func(*s3Options)) *s3Client {
	t.Helper()
	o := s3TestOptions(s)
	for _, f := range change {
		f(&o)
	}
	c, err := newS3(o)
	if err != nil {
		t.Fatal(err)
	}
	// Whatever the host is called, it is the server.
	c.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, s.http.Listener.Addr().String())
	}
	t.Cleanup(c.close)
	return c
}

func absent(u s3Upload) s3Upload {
	u.absent = true
	return u
}

// s3Wants fails the test unless err is an *s3Error of that code that wraps cause
// (nil = neither of those two), whose text holds all of words.
func s3Wants(t *testing.T, err error, code string, cause error, words ...string) {
	t.Helper()
	var e *s3Error
	if !errors.As(err, &e) || e.code != code {
		t.Errorf("error is %v, want code %s", err, code)
		return
	}
	if errors.Is(err, fs.ErrNotExist) != (cause == fs.ErrNotExist) || errors.Is(err, fs.ErrExist) != (cause == fs.ErrExist) {
		t.Errorf("%v wraps %v, want %v", err, e.cause, cause)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error is %q, want it to say %q", err, w)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\r\x1b") || strings.Contains(err.Error(), "secret/with") {
		t.Errorf("error is %q", err)
	}
}

// TestS3Objects: the five requests, in both ways of addressing, with keys that
// every encoding gets wrong.
func TestS3Objects(t *testing.T) {
	for _, pathStyle := range []bool{true, false} {
		t.Run(fmt.Sprintf("path_style=%v", pathStyle), func(t *testing.T) {
			t.Parallel()
			s := newS3Server(t)
			s.page = 3
			c := newS3Test(t, s, func(o *s3Options) {
				o.pathStyle = pathStyle
				if !pathStyle {
					o.endpoint = "http://s3.test"
				}
			})
			s3Story(t, c, []string{"a", "a b+c", "a//b", "dir/$&+,:;=@!'()*[]", "dir/%41?#", "dir/ключ", "~z"})
		})
	}
}

// s3Story puts, reads, lists and deletes objects of those keys, in byte order.
func s3Story(t *testing.T, c *s3Client, keys []string) {
	t.Helper()
	ctx := t.Context()
	for i, key := range keys {
		body := bytes.Repeat([]byte{byte(i), 'x'}, 700*i)
		if _, err := c.head(ctx, key); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("head of %q before it is there: %v", key, err)
		}
		if _, err := c.put(ctx, absent(s3Bytes(key, body))); err != nil {
			t.Fatalf("put %q: %v", key, err)
		}
		if _, err := c.put(ctx, absent(s3Bytes(key, body))); !errors.Is(err, fs.ErrExist) {
			t.Errorf("put-if-absent of %q again: %v", key, err)
		}
		if _, err := c.put(ctx, s3Bytes(key, body)); err != nil {
			t.Errorf("put %q again: %v", key, err)
		}
		info, err := c.head(ctx, key)
		if sum := sha256.Sum256(body); err != nil || info.size != int64(len(body)) || info.sum != nil && !bytes.Equal(info.sum, sum[:]) {
			t.Errorf("head of %q: %+v, %v", key, info, err)
		}
		s3Ranges(t, c, key, body)
	}
	for after := range keys {
		var got []string
		err := c.list(ctx, "", keys[after], func(o s3Listed) error {
			got = append(got, o.key)
			return nil
		})
		if err != nil || !slices.Equal(got, keys[after+1:]) {
			t.Errorf("list after %q: %q, %v; want %q", keys[after], got, err, keys[after+1:])
		}
	}
	for _, key := range keys {
		if err := errors.Join(c.delete(ctx, key, ""), c.delete(ctx, key, "")); err != nil {
			t.Errorf("delete %q: %v", key, err)
		}
		if _, err := c.read(ctx, s3Read{key: key}, 10); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("get of %q after delete: %v", key, err)
		}
	}
}

// s3Ranges reads body in parts.
func s3Ranges(t *testing.T, c *s3Client, key string, body []byte) {
	t.Helper()
	size := int64(len(body))
	for _, r := range []s3Read{{}, {from: 1}, {from: size - 1, size: 1}, {from: 0, size: size}, {from: size / 2, size: size}} {
		r.key = key
		if r.byteRange() != "" && size == 0 {
			continue
		}
		want := body[r.from:]
		if r.size > 0 {
			want = want[:min(r.size, int64(len(want)))]
		}
		b, err := c.read(t.Context(), r, size)
		if err != nil || !bytes.Equal(b, want) {
			t.Errorf("get %q from %d size %d: %d bytes, %v", key, r.from, r.size, len(b), err)
		}
	}
	_, err := c.read(t.Context(), s3Read{key: key, from: size}, size)
	if size > 0 {
		s3Wants(t, err, "InvalidRange", nil)
	}
}

// TestS3Refusals: each cause is named, with what to do about it, at the first
// request, and nothing is tried again that cannot get better.
func TestS3Refusals(t *testing.T) {
	for _, x := range []struct {
		name, code string
		server     func(*s3Server)
		options    func(*s3Options)
		words      []string
	}{
		{"wrong region", "AuthorizationHeaderMalformed", nil, func(o *s3Options) { o.region = "us-east-1" },
			[]string{"in region eu-test-1 and not in us-east-1"}},
		{"wrong secret", "SignatureDoesNotMatch", nil, func(o *s3Options) { o.credentials.secret = "other" },
			[]string{"secret does not belong to access key AKIDTEST from the configuration"}},
		{"unknown key", "InvalidAccessKeyId", nil, func(o *s3Options) { o.credentials.id = "AKIDNONE" }, []string{"AKIDNONE"}},
		{"no bucket", "NoSuchBucket", nil, func(o *s3Options) { o.bucket = "other" }, []string{"has no bucket other"}},
		{"clock", "RequestTimeTooSkewed", func(s *s3Server) { s.clock = func() time.Time { return time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC) } },
			func(o *s3Options) { o.now = func() time.Time { return time.Date(2030, 1, 1, 11, 0, 0, 0, time.UTC) } },
			[]string{"here says 2030-01-01T11:00:00Z", "server's 2030-01-01T12:00:00Z", "1h0m0s"}},
		{"read only", "AccessDenied", func(s *s3Server) { s.keys["AKIDTEST"] = s3ServerKey{secret: "secret/with+signs", readOnly: true} }, nil,
			[]string{"access key AKIDTEST from the configuration may not put here"}},
		{"expired", "ExpiredToken", func(s *s3Server) { s.keys["AKIDTEST"] = s3ServerKey{secret: "secret/with+signs", expired: true} }, nil,
			[]string{"renew it"}},
		{"no token", "InvalidToken", func(s *s3Server) { s.keys["AKIDTEST"] = s3ServerKey{secret: "secret/with+signs", token: "t"} }, nil, nil},
		{"no lock", "InvalidRequest", nil, func(o *s3Options) { o.lockMode, o.lockFor = "COMPLIANCE", time.Hour }, []string{"may lack Object Lock"}},
		{"redirect", "PermanentRedirect", func(s *s3Server) { s.fault(s3Put, "", "301", -1) }, nil,
			[]string{"at ledger-test.s3.us-far-9.example.com (storage.s3.endpoint), in region us-far-9 (storage.s3.region)"}},
		{"bare redirect", "Redirect", func(s *s3Server) { s.fault(s3Put, "", "307", -1) }, nil, []string{"to be asked at http://"}},
		{"no keys", "NoKeys", nil, func(o *s3Options) { o.credentials = s3Credentials{} }, []string{"no S3 credentials", "AWS_ACCESS_KEY_ID"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			s := newS3Server(t)
			if x.server != nil {
				x.server(s)
			}
			o := func(o *s3Options) {}
			if x.options != nil {
				o = x.options
			}
			c := newS3Test(t, s, func(o *s3Options) { o.pathStyle = true }, o)
			_, err := c.probe(t.Context(), "p/")
			s3Wants(t, err, x.code, nil, x.words...)
			if seen := s.requests(); len(seen) > 1 {
				t.Errorf("%d requests: %v", len(seen), seen)
			}
			if x.name == "read only" {
				return
			}
			// HEAD says as much, though its answers have no body.
			if kind := map[string]string{"redirect": "301", "bare redirect": "307"}[x.name]; kind != "" {
				s.fault(s3Head, "", kind, -1)
				s.fault(s3Get, "", kind, -1)
			}
			if x.name != "no lock" {
				_, err = c.head(t.Context(), "k")
				s3Wants(t, err, x.code, nil)
			}
		})
	}
}

// TestS3NoServer: what is not there is told apart.
func TestS3NoServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + l.Addr().String()
	l.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	for _, x := range []struct{ endpoint, code, words string }{
		{closed, codeNetwork, "connection refused"},
		{"http://no-such-host.invalid", codeNetwork, "cannot be resolved"},
		{strings.Replace(plain.URL, "http:", "https:", 1), codeNetwork, "speaks no TLS"},
		{secure.URL, codeNetwork, "certificate is not trusted here"},
		{plain.URL, codeBare, `a body that is no S3 error: "404 page not found"`},
	} {
		c, err := newS3(s3Options{bucket: "b", endpoint: x.endpoint, pathStyle: true, env: noEnv, credentials: s3Credentials{id: "a", secret: "b"}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.probe(t.Context(), "")
		s3Wants(t, err, x.code, nil, x.words)
		c.close()
	}
}

// TestS3Retries: what passes is tried again and succeeds; what does not pass is
// given up, with its cause.
func TestS3Retries(t *testing.T) {
	for _, x := range []struct {
		kind, code string
		ops        []s3Op
	}{
		{"503", "SlowDown", []s3Op{s3Put, s3Get, s3List, s3Delete}},
		{"500", "InternalError", []s3Op{s3Put, s3Get, s3List, s3Delete}},
		{"409", "ConditionalRequestConflict", []s3Op{s3Put}},
		{"html503", codeBare, []s3Op{s3Put, s3Get, s3Head, s3List, s3Delete}},
		{"html", codeNotS3, []s3Op{s3Get, s3List, s3Delete}},
		{"noetag", codeNotS3, []s3Op{s3Put, s3Get, s3Head, s3List}},
		{"error200", "InternalError", []s3Op{s3Put}},
		{"error200", codeNotS3, []s3Op{s3Get, s3List, s3Delete}},
		{"drop", codeNetwork, []s3Op{s3Put, s3Get, s3Head, s3List, s3Delete}},
		{"lost", codeNetwork, []s3Op{s3Delete}}, // of a put: TestS3LostReply
		{"hang", codeTimeout, []s3Op{s3Put, s3Get}},
		{"stall", codeTimeout, []s3Op{s3Get}},
		{"truncate", codeNetwork, []s3Op{s3Get}},
		{"encoded", codeNotS3, []s3Op{s3Get}},
	} {
		for _, op := range x.ops {
			t.Run(x.kind+" "+op.String(), func(t *testing.T) {
				t.Parallel()
				s := newS3Server(t)
				slow := x.code == codeTimeout
				c := newS3Test(t, s, func(o *s3Options) {
					if slow {
						o.timeout = time.Second
					}
				})
				s.fault(op, "", x.kind, 1)
				if err := s3Do(s, c, op); err != nil {
					t.Errorf("once: %v", err)
				}
				c = newS3Test(t, s, func(o *s3Options) {
					o.retries = 1
					if slow {
						o.timeout = 100 * time.Millisecond
					}
				})
				s.fault(op, "", x.kind, -1)
				s3Wants(t, s3Do(s, c, op), x.code, nil, "tried 2 times")
			})
		}
	}
}

// s3Do has one request of op, which would succeed.
func s3Do(s *s3Server, c *s3Client, op s3Op) error {
	ctx := context.Background()
	s.mu.Lock()
	delete(s.objects, "key")
	s.mu.Unlock()
	if op != s3Put {
		s.set("key", []byte("value"))
	}
	switch op {
	case s3Put:
		_, err := c.put(ctx, absent(s3Bytes("key", []byte("value"))))
		return err
	case s3Get:
		b, err := c.read(ctx, s3Read{key: "key"}, 100)
		if err == nil && string(b) != "value" {
			return fmt.Errorf("value is %q", b)
		}
		return err
	case s3Head:
		_, err := c.head(ctx, "key")
		return err
	case s3List:
		return c.list(ctx, "", "", func(s3Listed) error { return nil })
	}
	return c.delete(ctx, "key", "")
}

// TestS3LostReply: a put whose answer was lost is found to have succeeded; if
// somebody else's bytes are there, it is not.
func TestS3LostReply(t *testing.T) {
	t.Parallel()
	s := newS3Server(t)
	c := newS3Test(t, s)
	s.fault(s3Put, "mine", "lost", 1)
	if _, err := c.put(t.Context(), absent(s3Bytes("mine", []byte("x")))); err != nil {
		t.Errorf("put whose answer was lost: %v", err)
	}
	s.set("theirs", []byte("y"))
	s.fault(s3Put, "theirs", "drop", 1)
	_, err := c.put(t.Context(), absent(s3Bytes("theirs", []byte("x"))))
	s3Wants(t, err, "PreconditionFailed", fs.ErrExist)

	// Without checksums the server cannot tell; the caller reads it back.
	s.noSums = true
	s.fault(s3Put, "unsure", "lost", 1)
	_, err = c.put(t.Context(), absent(s3Bytes("unsure", []byte("x"))))
	s3Wants(t, err, "PreconditionFailed", fs.ErrExist)

	s.fault(s3Put, "never", "lost", -1)
	_, err = c.put(t.Context(), s3Bytes("never", []byte("x")))
	s3Wants(t, err, codeNetwork, nil, "tried 4 times")
	if string(s.object("never")) != "x" {
		t.Error("the lost put was not stored")
	}
}

// TestS3Probe: what the server cannot do is found out, and done without.
func TestS3Probe(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ conditions, line string }{
		{"", "can read, write, list, put-if-absent"},
		{"ignored", "can read, write, list; the server knows no put-if-absent"},
		{"501", "can read, write, list; the server knows no put-if-absent"},
	} {
		s := newS3Server(t)
		s.conditions = x.conditions
		c := newS3Test(t, s)
		for range 2 { // the object of the first is there
			p, err := c.probe(t.Context(), "p/")
			if err != nil || !strings.HasSuffix(p.String(), x.line) {
				t.Fatalf("probe with put-if-absent %q: %v, %v", x.conditions, p, err)
			}
		}
		if string(s.object("p/"+s3ProbeName)) != s3ProbeText {
			t.Error("the probe's object is not there")
		}
		if _, err := c.put(t.Context(), absent(s3Bytes("k", []byte("a")))); err != nil {
			t.Errorf("put-if-absent %q: %v", x.conditions, err)
		}
		_, err := c.put(t.Context(), absent(s3Bytes("k", []byte("b"))))
		s3Wants(t, err, "PreconditionFailed", fs.ErrExist)
	}
}

// TestS3ProbeFinds: a server that ignores ranges or serves other bytes, and one
// that lets nobody list.
func TestS3ProbeFinds(t *testing.T) {
	t.Parallel()
	s := newS3Server(t)
	c := newS3Test(t, s)
	s.fault(s3Get, "", "whole", -1)
	_, err := c.probe(t.Context(), "p/")
	s3Wants(t, err, codeNotS3, nil, `asked for "bytes=7-12", it has 74 bytes`)
	s.faults = nil
	s.fault(s3Get, "", "flip", -1)
	_, err = c.probe(t.Context(), "p/")
	s3Wants(t, err, codeBadObject, nil, `want "Ledger"`)
	s.faults = nil
	s.fault(s3List, "", "500", -1)
	p, err := c.probe(t.Context(), "p/")
	if err != nil || p.list || !strings.Contains(p.String(), "cannot list, which a rebuild needs: s3: list ledger-test: InternalError") {
		t.Errorf("probe without listing: %v, %v", p, err)
	}
}

// TestS3Resume: a body that breaks off in the middle goes on where it was, with
// the same object, or not at all.
func TestS3Resume(t *testing.T) {
	t.Parallel()
	s := newS3Server(t)
	s.mayChange = func(string) bool { return true }
	c := newS3Test(t, s)
	body := bytes.Repeat([]byte("0123456789"), 10_000)
	s.set("k", body)
	s.fault(s3Get, "k", "truncate", 3)
	b, err := c.read(t.Context(), s3Read{key: "k", from: 5}, 1<<20)
	if err != nil || !bytes.Equal(b, body[5:]) {
		t.Errorf("read %d bytes over three breaks: %v", len(b), err)
	}
	var parts []string
	for _, r := range s.requests() {
		parts = append(parts, r.part)
	}
	if want := []string{"bytes=5-", "bytes=50002-99999", "bytes=75001-99999", "bytes=87500-99999"}; !slices.Equal(parts, want) {
		t.Errorf("parts are %q, want %q", parts, want)
	}

	s.fault(s3Get, "k", "truncate", 100) // which says nothing of where the object ends
	_, err = (bucketStore{c}).read(t.Context(), "k", 0, int64(len(body)))
	if s3Wants(t, err, codeNetwork, nil, "k"); errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a connection that broke passes for an object that ends: %v", err)
	}
	s.heal()

	s.fault(s3Get, "k", "truncate", 1)
	r, err := c.get(t.Context(), s3Read{key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s.set("k", bytes.Repeat([]byte("x"), len(body)))
	_, err = io.ReadAll(r)
	s3Wants(t, err, codeBadObject, nil, "replaced while it was read")
}

// TestS3Patience: a body that trickles is given up, one that is slow and moves
// goes on for longer than the time-out, and the caller's context ends all.
func TestS3Patience(t *testing.T) {
	t.Parallel()
	s := newS3Server(t)
	s.set("long", bytes.Repeat([]byte("x"), 1000))
	s.set("short", bytes.Repeat([]byte("x"), 20))
	c := newS3Test(t, s, func(o *s3Options) { o.timeout, o.retries = 2*time.Second, 0 })
	s.fault(s3Get, "", "trickle", -1)
	if _, err := c.read(t.Context(), s3Read{key: "short"}, 100); err != nil {
		t.Errorf("a short body that trickles: %v", err)
	}
	_, err := c.read(t.Context(), s3Read{key: "long"}, 1000)
	s3Wants(t, err, codeTimeout, nil, "stopped in the middle, for 2s (storage.s3.timeout_secs)")

	ctx, cancel := context.WithCancel(t.Context())
	s.fault(s3Put, "", "hang", -1)
	done := make(chan error, 1)
	go func() {
		_, err := c.put(ctx, s3Bytes("k", make([]byte, 3<<20)))
		done <- err
	}()
	cancel()
	err = <-done
	s3Wants(t, err, codeCanceled, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not wrap context.Canceled", err)
	}
}

// TestS3UnreadableBody: a file that cannot be read is not called a bad network.
func TestS3UnreadableBody(t *testing.T) {
	t.Parallel()
	s := newS3Server(t)
	c := newS3Test(t, s)
	u := s3Bytes("k", []byte("short"))
	u.size = 100
	_, err := c.put(t.Context(), u)
	s3Wants(t, err, codeBadCall, nil, "reading what is to be put: byte 5 of 100: EOF")
	if s.object("k") != nil {
		t.Error("half an object was stored")
	}
}

// TestS3Pauses: the bounds of the waits double up to the longest.
func TestS3Pauses(t *testing.T) {
	t.Parallel()
	s := newS3Server(t)
	var waits []time.Duration
	c := newS3Test(t, s, func(o *s3Options) {
		o.retries = 8
		o.pause = func(ctx context.Context, atMost time.Duration) error {
			waits = append(waits, atMost)
			return nil
		}
	})
	s.fault(s3Get, "", "503", -1)
	_, err := c.read(t.Context(), s3Read{key: "k"}, 1)
	s3Wants(t, err, "SlowDown", nil, "tried 9 times", "request REQ1")
	ms := time.Millisecond
	if want := []time.Duration{200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 10_000 * ms, 10_000 * ms}; !slices.Equal(waits, want) {
		t.Errorf("waits are %v, want %v", waits, want)
	}
	if n := c.o.metrics.s3.requests[s3Get][s3Failed].value(); n != 9 {
		t.Errorf("%d requests counted as failed", n)
	}
}

// TestS3Pool: connections are used again, also after answers that are errors.
func TestS3Pool(t *testing.T) {
	t.Parallel()
	s := newS3Server(t)
	c := newS3Test(t, s)
	s.set("k", []byte("value"))
	for range 5 {
		s.fault(s3Get, "k", "503", 1)
		if _, err := c.read(t.Context(), s3Read{key: "k", from: 1, size: 3}, 3); err != nil {
			t.Fatal(err)
		}
		if _, err := c.head(t.Context(), "none"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	from := map[string]bool{}
	for _, r := range s.requests() {
		from[r.connection] = true
	}
	if len(from) != 1 {
		t.Errorf("%d connections", len(from))
	}
}

// TestS3VersionsAndLocks: nobody deletes a locked version; a hidden object is
// absent, and its versions can be read.
func TestS3VersionsAndLocks(t *testing.T) {
	t.Parallel()
	s := newS3Server(t)
	s.versioned, s.locked = true, true
	c := newS3Test(t, s, func(o *s3Options) { o.lockMode, o.lockFor = "GOVERNANCE", time.Hour })
	info, err := c.put(t.Context(), absent(s3Bytes("k", []byte("x"))))
	if err != nil || info.version == "" {
		t.Fatalf("put: %+v, %v", info, err)
	}
	s3Wants(t, c.delete(t.Context(), "k", info.version), "AccessDenied", nil, "may not delete here")
	if err := c.delete(t.Context(), "k", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := c.head(t.Context(), "k"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("head of a hidden object: %v", err)
	}
	if b, err := c.read(t.Context(), s3Read{key: "k", version: info.version}, 1); err != nil || string(b) != "x" {
		t.Errorf("version %s: %q, %v", info.version, b, err)
	}
}

// TestS3NewKeys: a session that is over is replaced from the file, once.
func TestS3NewKeys(t *testing.T) {
	t.Parallel()
	s := newS3Server(t)
	s.set("k", []byte("x"))
	file := filepath.Join(t.TempDir(), "credentials")
	write := func(secret, token string) {
		t.Helper()
		text := "[work]\naws_access_key_id=AKIDTEST\naws_secret_access_key=" + secret + "\naws_session_token=" + token + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := newS3Test(t, s, func(o *s3Options) {
		o.credentials = s3Credentials{}
		o.env = func(name string) string {
			return map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "work"}[name]
		}
	})
	read := func() error {
		_, err := c.read(t.Context(), s3Read{key: "k"}, 1)
		return err
	}
	s.keys["AKIDTEST"] = s3ServerKey{secret: "one", token: "t1"}
	write("one", "t1")
	if err := read(); err != nil {
		t.Fatal(err)
	}
	s.keys["AKIDTEST"] = s3ServerKey{secret: "two", token: "t2"}
	s3Wants(t, read(), "InvalidToken", nil, "AKIDTEST from "+file)
	write("two", "t2")
	if err := read(); err != nil {
		t.Errorf("after the file was renewed: %v", err)
	}
	if n := len(s.requests()); n != 4 {
		t.Errorf("%d requests, want 4", n)
	}
}

// TestS3Options: what cannot be a bucket is refused, and buckets are addressed so
// that certificates and addresses work.
func TestS3Options(t *testing.T) {
	for _, x := range []struct {
		o    s3Options
		want string
	}{
		{s3Options{bucket: "b"}, "https://b.s3.us-east-1.amazonaws.com/k"},
		{s3Options{bucket: "b", region: "cn-north-1"}, "https://b.s3.cn-north-1.amazonaws.com.cn/k"},
		{s3Options{bucket: "a.b"}, "https://s3.us-east-1.amazonaws.com/a.b/k"},
		{s3Options{bucket: "a.b", endpoint: "http://host:1"}, "http://a.b.host:1/k"},
		{s3Options{bucket: "b", endpoint: "http://host:1/", pathStyle: true}, "http://host:1/b/k"},
		{s3Options{bucket: "b", endpoint: "https://host/s3/", pathStyle: true}, "https://host/s3/b/k"},
		{s3Options{bucket: "b", endpoint: "http://127.0.0.1:9000"}, "http://127.0.0.1:9000/b/k"},
		{s3Options{bucket: "b", endpoint: "http://[::1]:9000"}, "http://[::1]:9000/b/k"},
		{s3Options{}, `s3: bucket is ""`},
		{s3Options{bucket: "a/b"}, `s3: bucket is "a/b"`},
		{s3Options{bucket: "b", endpoint: "host:9000"}, `s3: endpoint is "host:9000", want a URL such as https://host:port`},
		{s3Options{bucket: "b", endpoint: "http://u:p@host"}, `s3: endpoint is "http://u:p@host", want a URL such as https://host:port`},
	} {
		c, err := newS3(x.o)
		got := fmt.Sprint(err)
		if err == nil {
			got = c.url(&s3Call{key: "k"}).String()
		}
		if got != x.want {
			t.Errorf("%+v: %s, want %s", x.o, got, x.want)
		}
	}
	c, err := newS3(s3Options{bucket: "b"})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", "\xff", strings.Repeat("k", 1025)} {
		_, err := c.put(t.Context(), s3Bytes(key, nil))
		s3Wants(t, err, codeBadCall, nil)
	}
}
