package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// short are limits that let a test see a timeout soon.
func short(o *serverOptions, f *fakeLedger) {
	o.limits = &serverLimits{head: 400 * time.Millisecond, body: 300 * time.Millisecond, write: 200 * time.Millisecond, idle: 500 * time.Millisecond, small: 1 << 20}
	o.readTimeout = 300 * time.Millisecond
}

func TestChunkedBody(t *testing.T) {
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) { o.maxValueSize = 300_000 })
	head := "PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, size := range []int{0, 1, 4096, freeBody - 1, freeBody, freeBody + 1, 299_999, 300_000, 300_001, 400_000} {
		value := strings.Repeat("v", size)
		body := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", size, value)
		if size == 0 {
			body = "0\r\n\r\n"
		}
		a := s.raw(head + body)
		if size > 300_000 {
			if a.status != 413 || codeOf(a.body) != "value_too_large" || !a.closed {
				t.Errorf("%d bytes: %d %s, closes %v", size, a.status, a.body, a.closed)
			}
			continue
		}
		if a.status/100 != 2 || !strings.Contains(a.body, fmt.Sprintf(`"size":%d,`, size)) {
			t.Errorf("%d bytes: %d %s", size, a.status, a.body)
		}
	}
	for _, body := range []string{"zz\r\n", "5\r\nabc", "3\r\nabcde\r\n0\r\n\r\n"} {
		conn := s.dial()
		io.WriteString(conn, head+body)
		conn.(*net.TCPConn).CloseWrite()
		if a := s.readAnswer(bufio.NewReader(conn), "PUT"); a.status != 400 || codeOf(a.body) != "malformed" {
			t.Errorf("%q: %d %s", body, a.status, a.body)
		}
		conn.Close()
	}
}

// TestLargeBodyRefusedUnread: the answer comes although no byte of the body did.
func TestLargeBodyRefusedUnread(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
		a := s.raw("PUT /a HTTP/1.1\r\nHost: x\r\n" + expect + "Content-Length: 99999999999\r\n\r\n")
		if a.status != 413 || codeOf(a.body) != "value_too_large" || !a.closed {
			t.Errorf("%d %s, closes %v", a.status, a.body, a.closed)
		}
	}
	conn := s.dial()
	defer conn.Close()
	io.WriteString(conn, "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabc")
	conn.(*net.TCPConn).CloseWrite()
	if a := s.readAnswer(bufio.NewReader(conn), "PUT"); a.status != 400 || codeOf(a.body) != "malformed" {
		t.Errorf("a body that ends early: %d %s", a.status, a.body)
	}
}

// TestSlowClients: one that is slow with its head is cut, one that is slow
// with its body gets 408, however it spreads its bytes.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, short)
	t.Run("head", func(t *testing.T) {
		conn := s.dial()
		defer conn.Close()
		start := time.Now()
		io.WriteString(conn, "PUT /a HTTP/1.1\r\nHo")
		if a := s.readAnswer(bufio.NewReader(conn), "PUT"); a.status != 408 || codeOf(a.body) != "request_timeout" || !a.closed {
			t.Errorf("%d %s, closes %v", a.status, a.body, a.closed)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("cut after %v", d)
		}
	})
	t.Run("idle", func(t *testing.T) {
		conn := s.dial()
		defer conn.Close()
		r := bufio.NewReader(conn)
		io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
		s.readAnswer(r, "GET")
		if b, err := io.ReadAll(r); len(b) > 0 || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	})
	for name, head := range map[string]string{
		"small":   "Content-Length: 100",
		"large":   "Content-Length: 1000000",
		"chunked": "Transfer-Encoding: chunked",
	} {
		t.Run(name, func(t *testing.T) {
			conn := s.dial()
			defer conn.Close()
			io.WriteString(conn, "PUT /a HTTP/1.1\r\nHost: x\r\n"+head+"\r\n\r\n")
			stop := make(chan struct{})
			defer close(stop)
			go func() {
				for { // one byte now and then does not help
					select {
					case <-stop:
						return
					case <-time.After(20 * time.Millisecond):
						io.WriteString(conn, map[bool]string{true: "1\r\nx\r\n", false: "x"}[name == "chunked"])
					}
				}
			}()
			a := s.readAnswer(bufio.NewReader(conn), "PUT")
			if a.status != 408 || codeOf(a.body) != "request_timeout" || !a.closed {
				t.Errorf("%d %s, closes %v", a.status, a.body, a.closed)
			}
		})
	}
}

// TestSteadyLargeBody: a body that takes longer than limits.body passes as
// long as each piece of it comes in time.
func TestSteadyLargeBody(t *testing.T) {
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) {
		o.limits = &serverLimits{head: 5 * time.Second, body: 3 * time.Second, write: 5 * time.Second, idle: 5 * time.Second, small: 1 << 20}
	})
	for _, chunked := range []bool{false, true} {
		t.Run(fmt.Sprintf("chunked %v", chunked), func(t *testing.T) {
			t.Parallel()
			conn := s.dial()
			defer conn.Close()
			head, piece := "Content-Length: 786432", strings.Repeat("v", 65536)
			if chunked {
				head, piece = "Transfer-Encoding: chunked", "10000\r\n"+piece+"\r\n"
			}
			io.WriteString(conn, "PUT /a HTTP/1.1\r\nHost: x\r\n"+head+"\r\n\r\n")
			for range 12 {
				io.WriteString(conn, piece)
				time.Sleep(330 * time.Millisecond) // the pace of the client is what is tested
			}
			if chunked {
				io.WriteString(conn, "0\r\n\r\n")
			}
			if a := s.readAnswer(bufio.NewReader(conn), "PUT"); a.status/100 != 2 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}

// TestSlowReader: a client that does not read its reply is cut.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) { short(o, f); o.maxValueSize = 64 << 20; f.budget = 1 << 30 })
	s.f.apply(&request{ops: []operation{{kind: opPut, key: []byte("a"), value: make([]byte, 60<<20), ifSeq: noSeq}}})
	conn := s.dial()
	defer conn.Close()
	io.WriteString(conn, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
	for deadline := time.Now().Add(10 * time.Second); ; {
		if m := &s.o.metrics.http; m.requests[routeEntry][1].value() == 1 && m.inFlight.value() == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the reply to a client that does not read is still under way")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n, err := io.Copy(io.Discard, conn); n > 60<<20 {
		t.Errorf("the whole value came, %d bytes, %v", n, err)
	}
}

// TestBodyBudget: many clients with large values take turns, and one that
// waits too long is told so.
func TestBodyBudget(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) {
		f.budget, o.readTimeout, o.writeTimeout = 4<<20, time.Minute, time.Minute
	})
	var clients sync.WaitGroup
	for i := range 32 {
		clients.Go(func() {
			head := fmt.Sprintf("Content-Length: %d\r\n\r\n%s", 1<<20, strings.Repeat("v", 1<<20))
			if i%2 == 1 {
				head = fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", 1<<20, strings.Repeat("v", 1<<20))
			}
			if a := s.raw(fmt.Sprintf("PUT /%d HTTP/1.1\r\nHost: x\r\n", i) + head); a.status != 201 {
				t.Errorf("client %d: %d %s", i, a.status, a.body)
			}
		})
	}
	clients.Wait()
	if s.f.most < 1<<20 {
		t.Errorf("%d bytes were reserved at most: the bodies were read without room", s.f.most)
	}

	s = newTestServer(t, func(o *serverOptions, f *fakeLedger) { short(o, f); f.budget = 0; o.limits.small = 10 })
	for _, size := range []int{11, 1 << 20} {
		a := s.raw(fmt.Sprintf("PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size))
		if a.status != 503 || codeOf(a.body) != "overloaded" || a.Get("Retry-After") != "1" || !a.closed {
			t.Errorf("%d bytes without room: %d %s", size, a.status, a.body)
		}
	}
}

// TestWriteTimeout: a write that the node does not finish is unknown.
func TestWriteTimeout(t *testing.T) {
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) {
		o.writeTimeout, o.readTimeout, f.hold = 50*time.Millisecond, 50*time.Millisecond, make(chan struct{})
	})
	s.check([]apiRow{
		{method: "PUT", target: "/a", body: "x", status: 504, code: "unknown_outcome"},
		{method: "GET", target: "/a", status: 504, code: "timeout"},
		{method: "GET", target: "/a?consistency=stale", status: 404, code: "not_found"},
	})
}

func TestParseDigest(t *testing.T) {
	sum := hash(sha256.Sum256([]byte("abc")))
	for line, want := range map[string]*hash{
		abc: &sum, " " + abc + " ": &sum, strings.TrimSuffix(abc, "=:") + ":": &sum, abc + ", " + abc: &sum,
		"": nil, "md5=:AA==:": nil, `x="a,sha-256=b", ` + abc: &sum, `x="\",` + abc: nil, "junk": nil, "a;b=c," + abc: &sum,
	} {
		got, err := parseDigest(line)
		if err != nil || (got == nil) != (want == nil) || got != nil && *got != *want {
			t.Errorf("%q: %v, %v", line, got, err)
		}
	}
	for _, line := range []string{"sha-256", "sha-256=", "sha-256=abc", "sha-256=::", "sha-256=:AAAA:", "SHA-256=0", "sha-256=:!:", abc + ",sha-256=:AAAA:",
		abc + ", sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"} {
		var e *apiError
		if _, err := parseDigest(line); !errors.As(err, &e) || e.status != 400 {
			t.Errorf("%q: %v, want 400", line, err)
		}
	}
}

func FuzzParseDigest(f *testing.F) {
	f.Add(abc)
	f.Add(`a="b,\"c", sha-512=:AA==:, sha-256=:AA==:;p`)
	f.Fuzz(func(t *testing.T, line string) {
		sum, err := parseDigest(line)
		if err == nil && sum != nil && !strings.Contains(line, base64.RawStdEncoding.EncodeToString(sum[:])) {
			t.Fatalf("%q gives %v, which it does not hold", line, sum)
		}
		// Members before ours, whatever they are, must not hide it or change it.
		if member, rest := cutMember(line); err == nil && sum == nil && rest == "" && !strings.ContainsAny(member, `"`) {
			if got, err := parseDigest(line + "," + abc); err != nil || got == nil {
				t.Fatalf("%q hides the digest after it: %v", line, err)
			}
		}
	})
}

// FuzzUnescapePath: a path is decoded once, or refused.
func FuzzUnescapePath(f *testing.F) {
	for _, s := range []string{"a", "%00", "%2541", "%", "%f", "%zz", "a+b", "ключ", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var escaped bytes.Buffer
		for _, c := range []byte(s) {
			fmt.Fprintf(&escaped, "%%%02x", c)
		}
		if got, err := unescapePath(escaped.String()); err != nil || string(got) != s {
			t.Fatalf("%q escaped comes back as %q, %v", s, got, err)
		}
		got, err := unescapePath(s)
		want, ok := referenceUnescape(s)
		if (err == nil) != ok || err == nil && string(got) != want {
			t.Fatalf("%q gives %q, %v; want %q", s, got, err, want)
		}
		path, _, ok := splitTarget("/" + s)
		if before, _, _ := strings.Cut(s, "?"); !ok || path != before {
			t.Fatalf("target /%q has path %q, %v", s, path, ok)
		}
	})
}

// referenceUnescape is the slow way to do what unescapePath does.
func referenceUnescape(s string) (string, bool) {
	parts := strings.Split(s, "%")
	out := parts[0]
	for _, p := range parts[1:] {
		var c byte
		if len(p) < 2 || strings.ContainsAny(p[:2], "+-") {
			return "", false
		}
		if _, err := fmt.Sscanf(p[:2], "%02x", &c); err != nil || !strings.EqualFold(fmt.Sprintf("%02x", c), p[:2]) {
			return "", false
		}
		out += string([]byte{c}) + p[2:]
	}
	return out, true
}
