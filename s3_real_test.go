package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The client against real servers, for which the environment names the binaries:
//
//	SCRIBE_S3_MINIO=…/minio SCRIBE_S3_VERSITYGW=…/versitygw go test -run TestS3Real .

// s3RealServer is a server in a process of its own.
type s3RealServer struct {
	name     string
	args     func(dir, addr string) []string
	env      []string
	oddKeys  []string // that it takes, in byte order
	noKey    string   // its code for an access key it does not know
	endpoint string
}

const realID, realSecret = "scribe-test", "secret/with+signs"

var s3RealServers = []*s3RealServer{
	{name: "MINIO", env: []string{"MINIO_ROOT_USER=" + realID, "MINIO_ROOT_PASSWORD=" + realSecret, "MINIO_SITE_REGION=us-east-1", "MINIO_DOMAIN=s3.test", "MINIO_BROWSER=off", "MINIO_UPDATE=off"},
		args:    func(dir, addr string) []string { return []string{"server", "--quiet", "--address", addr, dir} },
		oddKeys: []string{"a", "a b+c", "dir/$&+,:;=@!'()*[]", "dir/%41?#", "dir/ключ", "~z"}, noKey: "InvalidAccessKeyId"},
	{name: "VERSITYGW", env: []string{"ROOT_ACCESS_KEY=" + realID, "ROOT_SECRET_KEY=" + realSecret, "VGW_VIRTUAL_DOMAIN=s3.test"},
		args: func(dir, addr string) []string {
			return []string{"--keep-alive", "--quiet", "--port", addr, "posix", "--versioning-dir", filepath.Join(filepath.Dir(dir), "versions"), dir}
		},
		oddKeys: []string{"a", "a b+c", "dir/$&+,:;=@!'()*[]", "dir/%41?#", "dir/ключ", "~z"}, noKey: "XAdminUserNotFound"},
}

func TestS3Real(t *testing.T) {
	ran := false
	for _, s := range s3RealServers {
		binary := os.Getenv("SCRIBE_S3_" + s.name)
		if binary == "" {
			continue
		}
		ran = true
		t.Run(s.name, func(t *testing.T) {
			s.start(t, binary)
			s.makeBucket(t, "plain", false)
			t.Run("story", func(t *testing.T) { s3Story(t, s.client(t, "plain"), s.oddKeys) })
			t.Run("host", func(t *testing.T) { s3Story(t, s.hostClient(t, "plain"), s.oddKeys) })
			t.Run("large", s.large)
			t.Run("race", s.race)
			t.Run("pages", s.pages)
			t.Run("probe", s.probe)
			t.Run("refusals", s.refusals)
			s.makeBucket(t, "locked", true)
			t.Run("locks", s.lockedBucket)
		})
	}
	if !ran {
		t.Skip("no SCRIBE_S3_MINIO or SCRIBE_S3_VERSITYGW")
	}
}

// start runs the server until the end of the test.
func (s *s3RealServer) start(t *testing.T, binary string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	for _, d := range []string{dir, filepath.Join(filepath.Dir(dir), "versions")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.Command(binary, s.args(dir, addr)...)
	cmd.Env = append(os.Environ(), s.env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
		if t.Failed() {
			t.Logf("%s said:\n%s", s.name, out.String())
		}
	})
	s.endpoint = "http://" + addr
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := s.client(t, "none").head(t.Context(), "k")
		if e := (*s3Error)(nil); errors.As(err, &e) && e.code == "NoSuchBucket" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come up: %v\n%s", s.name, err, out.String())
		}
		pauseRandom(t.Context(), 200*time.Millisecond)
	}
}

// client returns a client of a bucket.
func (s *s3RealServer) client(t *testing.T, bucket string, change ...func(*s3Options)) *s3Client {
	t.Helper()
	o := s3Options{bucket: bucket, endpoint: s.endpoint, pathStyle: true, timeout: 10 * time.Second, retries: 2, pool: 8,
		credentials: s3Credentials{id: realID, secret: realSecret}, env: noEnv}
	for _, f := range change {
		f(&o)
	}
	c, err := newS3(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

// hostClient returns a client that names the bucket in the host name.
func (s *s3RealServer) hostClient(t *testing.T, bucket string) *s3Client {
	t.Helper()
	c := s.client(t, bucket, func(o *s3Options) { o.pathStyle, o.endpoint = false, "http://s3.test" })
	c.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, strings.TrimPrefix(s.endpoint, "http://"))
	}
	return c
}

// makeBucket makes a bucket, with Object Lock if asked.
func (s *s3RealServer) makeBucket(t *testing.T, name string, lock bool) {
	t.Helper()
	c := s.client(t, name)
	r, err := http.NewRequest(http.MethodPut, s.endpoint+"/"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if lock {
		r.Header.Set("X-Amz-Bucket-Object-Lock-Enabled", "true")
	}
	signRequest(r, c.o.credentials, c.o.region, emptySHA256, time.Now())
	resp, err := c.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("making bucket %s: %s %s %v", name, resp.Status, b, err)
	}
}

// large puts an object for which the server is asked first, and reads it back.
func (s *s3RealServer) large(t *testing.T) {
	c := s.client(t, "plain")
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	if _, err := c.put(t.Context(), absent(s3Bytes("large", body))); err != nil {
		t.Fatal(err)
	}
	b, err := c.read(t.Context(), s3Read{key: "large"}, 1<<30)
	if err != nil || sha256.Sum256(b) != sha256.Sum256(body) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	info, err := c.head(t.Context(), "large")
	if sum := sha256.Sum256(body); err != nil || !bytes.Equal(info.sum, sum[:]) || info.size != int64(len(body)) {
		t.Errorf("head: %+v, %v", info, err)
	}
	bad := s3Bytes("bad", body)
	bad.sum[0] ^= 1
	_, err = c.put(t.Context(), bad)
	if e := (*s3Error)(nil); !errors.As(err, &e) || e.status/100 != 4 {
		t.Errorf("put with a wrong hash: %v", err)
	}
	if _, err := c.head(t.Context(), "bad"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("head after it: %v", err)
	}
}

// race lets many put different bytes under one name: one succeeds.
func (s *s3RealServer) race(t *testing.T) {
	c := s.client(t, "plain", func(o *s3Options) { o.retries = 20 })
	for round := range 5 {
		key := fmt.Sprintf("race/%d", round)
		errs := make([]error, 8)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { _, errs[i] = c.put(t.Context(), absent(s3Bytes(key, []byte{byte(i)}))) })
		}
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner < 0:
				winner = i
			case err == nil:
				t.Errorf("%s: both %d and %d won", key, winner, i)
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		}
		if b, err := c.read(t.Context(), s3Read{key: key}, 1); err != nil || int(b[0]) != winner {
			t.Errorf("%s holds %v, %v; %d won", key, b, err, winner)
		}
	}
}

// pages lists more keys than a page has.
func (s *s3RealServer) pages(t *testing.T) {
	c := s.client(t, "plain")
	for i := range 25 {
		if _, err := c.put(t.Context(), s3Bytes(fmt.Sprintf("pages/%03d", i), nil)); err != nil {
			t.Fatal(err)
		}
	}
	n, token := 0, ""
	for {
		page, err := c.listPage(t.Context(), "pages/", "", token, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.objects {
			if want := fmt.Sprintf("pages/%03d", n); o.key != want || o.modified.IsZero() || o.etag == "" {
				t.Errorf("object %d is %+v", n, o)
			}
			n++
		}
		if token = page.next; token == "" {
			break
		}
	}
	if n != 25 {
		t.Errorf("%d objects listed", n)
	}
}

// probe finds that both servers know put-if-absent.
func (s *s3RealServer) probe(t *testing.T) {
	for range 2 {
		p, err := s.client(t, "plain").probe(t.Context(), "cluster/")
		if err != nil || !strings.HasSuffix(p.String(), "can read, write, list, put-if-absent") {
			t.Errorf("probe: %v, %v", p, err)
		}
	}
}

// refusals are named by the codes and words that an operator sees.
func (s *s3RealServer) refusals(t *testing.T) {
	for _, x := range []struct {
		name, bucket string
		change       func(*s3Options)
		code, words  string
	}{
		{"secret", "plain", func(o *s3Options) { o.credentials.secret = "other" }, "SignatureDoesNotMatch", "secret does not belong"},
		{"key", "plain", func(o *s3Options) { o.credentials.id = "nobody" }, s.noKey, "does not know access key nobody"},
		{"bucket", "absent", func(o *s3Options) {}, "NoSuchBucket", "has no bucket absent"},
		{"slow clock", "plain", func(o *s3Options) { o.now = func() time.Time { return time.Now().Add(-time.Hour) } }, "RequestTimeTooSkewed", "a difference of"},
		{"fast clock", "plain", func(o *s3Options) { o.now = func() time.Time { return time.Now().Add(time.Hour) } }, "RequestTimeTooSkewed", "a difference of"},
		{"region", "plain", func(o *s3Options) { o.region = "mars-1" }, "AuthorizationHeaderMalformed", "in region us-east-1 and not in mars-1"},
	} {
		c := s.client(t, x.bucket, x.change)
		_, err := c.probe(t.Context(), "p/")
		t.Log(err)
		s3Wants(t, err, x.code, nil, x.words)
		_, err = c.head(t.Context(), "k")
		s3Wants(t, err, x.code, nil, x.words)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.client(t, "plain").head(ctx, "k")
	s3Wants(t, err, codeCanceled, nil)
}

// lockedBucket puts an object that cannot be deleted.
func (s *s3RealServer) lockedBucket(t *testing.T) {
	plain := s.client(t, "plain", func(o *s3Options) { o.lockMode, o.lockFor = "COMPLIANCE", time.Hour })
	_, err := plain.put(t.Context(), s3Bytes("k", []byte("x")))
	t.Log(err)
	s3Wants(t, err, "InvalidRequest", nil, "may lack Object Lock")

	c := s.client(t, "locked", func(o *s3Options) { o.lockMode, o.lockFor = "COMPLIANCE", time.Minute })
	info, err := c.put(t.Context(), absent(s3Bytes("k", []byte("x"))))
	if err != nil || info.version == "" {
		t.Fatalf("put: %+v, %v", info, err)
	}
	if err := c.delete(t.Context(), "k", info.version); err == nil {
		t.Error("a locked version was deleted")
	} else {
		t.Log(err)
	}
	if err := c.delete(t.Context(), "k", ""); err != nil {
		t.Errorf("hiding a locked object: %v", err)
	}
	if _, err := c.head(t.Context(), "k"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("head of a hidden object: %v", err)
	}
	if b, err := c.read(t.Context(), s3Read{key: "k", version: info.version}, 1); err != nil || string(b) != "x" {
		t.Errorf("the version itself: %q, %v", b, err)
	}
}
