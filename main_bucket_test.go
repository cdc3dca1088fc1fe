package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestBucketStore: a bucket is what the store calls an objectStore.
func TestBucketStore(t *testing.T) {
	t.Parallel()
	s := newS3Server(t)
	s.mayChange = func(key string) bool { return strings.HasSuffix(key, liveName) }
	var b objectStore = bucketStore{newS3Test(t, s)}
	ctx, body := t.Context(), []byte("0123456789")
	put := func(body []byte) error {
		return b.put(ctx, "p/k", bytes.NewReader(body), int64(len(body)), sha256.Sum256(body))
	}
	if err := put(body); err != nil {
		t.Fatal(err)
	}
	if err := put([]byte("other")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("put of a name that is taken: %v", err)
	}
	for _, x := range []struct {
		key        string
		from, size int64
		want       string
		err        error
	}{{"p/k", 0, 10, "0123456789", nil}, {"p/k", 3, 4, "3456", nil}, {"p/k", 5, 0, "", nil},
		{"p/k", 5, 6, "", io.ErrUnexpectedEOF}, {"p/k", 10, 1, "", io.ErrUnexpectedEOF}, {"p/none", 0, 1, "", fs.ErrNotExist}} {
		got, err := b.read(ctx, x.key, x.from, x.size)
		if string(got) != x.want || !errors.Is(err, x.err) {
			t.Errorf("%d bytes of %s from %d: %q, %v", x.size, x.key, x.from, got, err)
		}
	}
	for range 2 {
		if err := b.replace(ctx, "p/"+liveName, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := b.size(ctx, "p/k"); n != 10 || err != nil {
		t.Errorf("size is %d, %v", n, err)
	}
	if _, err := b.size(ctx, "p/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("size of what is not there: %v", err)
	}
	var keys []string
	err := b.list(ctx, "p/", func(key string, _ int64) error { keys = append(keys, key); return nil })
	if err != nil || !slices.Equal(keys, []string{"p/k", "p/live"}) {
		t.Errorf("listing is %v, %v", keys, err)
	}
	if err := errors.Join(b.remove(ctx, "p/k"), b.remove(ctx, "p/k")); err != nil {
		t.Error(err)
	}
	if b.String() != "s3://ledger-test" {
		t.Errorf("it is called %s", b)
	}
}

// TestBucketLocked: retention is for what stays, not for what is replaced.
func TestBucketLocked(t *testing.T) {
	t.Parallel()
	s := newS3Server(t)
	s.versioned, s.locked = true, true
	s.mayChange = func(key string) bool { return key == liveName }
	b := bucketStore{newS3Test(t, s, func(o *s3Options) { o.lockMode, o.lockFor = "GOVERNANCE", time.Hour })}
	err := b.put(t.Context(), "k", strings.NewReader("x"), 1, sha256.Sum256([]byte("x")))
	if err := errors.Join(err, b.replace(t.Context(), liveName, []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newest("k", "").until.IsZero() || !s.newest(liveName, "").until.IsZero() {
		t.Errorf("segment is locked until %v, live until %v", s.newest("k", "").until, s.newest(liveName, "").until)
	}
}

func TestBucketFromConfig(t *testing.T) {
	if b, err := bucketFrom(s3Config{}, newMetrics()); b != nil || err != nil {
		t.Errorf("without a bucket: %v, %v", b, err)
	}
	c := defaultConfig().Storage.S3
	c.Bucket, c.Endpoint, c.PathStyle, c.AccessKeyID, c.SecretAccessKey = "b", "http://127.0.0.1:9", true, "id", "secret"
	c.ObjectLockMode, c.ObjectLockDays = "COMPLIANCE", 2
	b, err := bucketFrom(c, newMetrics())
	if err != nil || b.String() != "s3://b" {
		t.Fatalf("bucket is %v, %v", b, err)
	}
	if o := b.(bucketStore).c.o; o.credentials.id != "id" || o.lockFor != 48*time.Hour || o.timeout != 30*time.Second || o.retries != 3 || o.pool != 10 {
		t.Errorf("options are %+v", o)
	}
	for prefix, want := range map[string]string{"": "", "/": "", "a": "a/", "/a/b/": "a/b/"} {
		if got := prefixFrom(s3Config{Prefix: prefix}); got != want {
			t.Errorf("prefix %q is %q, want %q", prefix, got, want)
		}
	}
}

// lineLog keeps the lines that are logged.
type lineLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *lineLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	return len(b), nil
}

// with returns how many lines hold text.
func (l *lineLog) with(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// TestBucketProbeNames: what is wrong with the configuration is named at the start,
// in /health and in one line of the log however often it is found, and writes go on;
// when it is put right the archive works without a restart.
func TestBucketProbeNames(t *testing.T) {
	t.Parallel()
	key := s3ServerKey{secret: "secret/with+signs"}
	var behind atomic.Int64
	behind.Store(int64(time.Hour))
	clock := func() time.Time { return time.Now().Add(-time.Duration(behind.Load())) }
	for _, x := range []struct {
		name, words string
		server      func(*s3Server)
		options     func(*s3Options)
		right       func(*s3Server)
	}{
		{"wrong region", "the bucket is in region eu-test-1 and not in us-west-9: set storage.s3.region", nil, func(o *s3Options) { o.region = "us-west-9" }, nil},
		{"wrong secret", "the secret does not belong to access key AKIDTEST",
			func(s *s3Server) { s.keys["AKIDTEST"] = s3ServerKey{secret: "new"} }, nil, func(s *s3Server) { s.keys["AKIDTEST"] = key }},
		{"missing bucket", "has no bucket other: check storage.s3.bucket and endpoint, or make it", nil, func(o *s3Options) { o.bucket, o.pathStyle = "other", true }, nil},
		{"endpoint", "cannot be resolved: check storage.s3.endpoint", nil, func(o *s3Options) { o.endpoint = "http://no-such-host.invalid" }, nil},
		{"read only", "access key AKIDTEST from the configuration may not put here",
			func(s *s3Server) { s.keys["AKIDTEST"] = s3ServerKey{secret: key.secret, readOnly: true} }, nil, func(s *s3Server) { s.keys["AKIDTEST"] = key }},
		{"clock", "a difference of 1h0m", func(s *s3Server) { s.clock = clock }, nil, func(*s3Server) { behind.Store(0) }},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			s := newS3Server(t)
			s.mayChange = func(key string) bool { return strings.HasSuffix(key, "/"+liveName) }
			if x.server != nil {
				x.server(s)
			}
			o := s3TestOptions(s)
			o.pathStyle = true
			if x.options != nil {
				x.options(&o)
			}
			client, err := newS3(o)
			if err != nil {
				t.Fatal(err)
			}
			defer client.close()
			var lines lineLog
			c := newCluster(t, 1, archivedIn(bucketStore{client}), func(o *nodeOptions) { o.logger = slog.New(slog.NewTextHandler(&lines, nil)) })
			n := c.nodes[0]
			c.segmentsOf(1)
			eventually(t, "nobody tells", func() bool { return strings.Contains(n.status().archive, x.words) })
			begun := len(s.requests())
			eventually(t, "it is not tried again", func() bool { begun += len(s.requests()); return begun > 3 || x.name == "endpoint" })
			eventually(t, "nobody logs it", func() bool { return lines.with("the archive does not work") > 0 })
			if n := lines.with("the archive does not work"); n != 1 {
				t.Errorf("%d lines say so", n)
			}
			if !n.status().ready {
				t.Error("the node says that it cannot serve")
			}
			if x.right == nil {
				return
			}
			s.mu.Lock()
			x.right(s)
			s.mu.Unlock()
			c.waitArchived()
			eventually(t, "the archive works", func() bool { return n.status().archive == "ok" })
			eventually(t, "nobody logs that it works", func() bool { return lines.with("the archive works again") > 0 })
			if n := lines.with("the archive works again"); n != 1 {
				t.Errorf("%d lines say that it works", n)
			}
		})
	}
}

// TestBucketArchive archives over HTTP, with faults of every kind on the way, and on
// servers that know no put-if-absent or keep no checksums.
func TestBucketArchive(t *testing.T) {
	t.Parallel()
	for _, conditions := range []string{"", "ignored", "501"} {
		t.Run(fmt.Sprintf("%q", conditions), func(t *testing.T) {
			t.Parallel()
			s := newS3Server(t)
			s.conditions, s.noSums, s.page = conditions, conditions != "", 2
			s.mayChange = func(key string) bool {
				return strings.HasSuffix(key, "/"+liveName) || strings.HasSuffix(key, s3ProbeName)
			}
			c := newCluster(t, 3, archivedIn(bucketStore{newS3Test(t, s)}))
			for _, fault := range []string{"503", "drop", "lost", "error200", "noetag", "html"} {
				s.fault(s3Put, segmentsFolder, fault, 1)
			}
			for _, fault := range []string{"truncate", "flip", "empty", "503", "drop"} {
				s.fault(s3Get, segmentsFolder, fault, 1)
			}
			c.segmentsOf(4)
			c.waitArchived()
			c.sameVersions()
			n := c.nodes[c.leader()]
			for _, i := range n.store.manifest.Load().segments {
				var raw bytes.Buffer
				object := s.object(segmentKey(n.archiver.folder(), i.object))
				if err := unpackSegment(&raw, bytes.NewReader(object), int64(i.size)); err != nil || hash(sha256.Sum256(raw.Bytes())) != i.sum {
					t.Errorf("object of segment %s: %v", i.id(), err)
				}
			}
		})
	}
}
