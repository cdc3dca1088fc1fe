package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// A bucket over the S3 REST API: get, put, head, list, delete, and nothing else.
//
//	GET    /bucket/key          Range: bytes=0-9, If-Match: "etag"
//	PUT    /bucket/key          x-amz-checksum-sha256, If-None-Match: *
//	HEAD   /bucket/key
//	DELETE /bucket/key
//	GET    /bucket?list-type=2&prefix=…&continuation-token=…
//
// or with the bucket in the host name, s3_sign.go in the Authorization header.
//
// Nothing a server says is believed beyond what a caller can check: an object's
// bytes are compared with a hash by whoever asked for them, so names must be
// content-addressed or the content signed. An ETag is compared with itself only.
//
// A request is tried again where that may help (s3Error.temporary). A PUT that
// was answered with an error, or not at all, may have been stored: it is repeated
// with the same bytes under the same name. Redirects are errors. What comes out
// is nil or an *s3Error (s3_error.go), from everything below.

const (
	s3FirstPause = 200 * time.Millisecond // bound of the first wait before another try; then doubled
	s3LongPause  = 10 * time.Second
	s3SlowRate   = 256 << 10 // bytes a second below which a transfer is given up
	s3AskFirst   = 1 << 20   // bytes of a body from which the server is asked before it is sent
	maxS3Key     = 1024      // bytes
	s3Type       = "application/octet-stream"
)

var (
	// errS3Slow is the cause of tries that were given up.
	errS3Slow = errors.New("too slow")
	// errS3Body is wrapped by errors of the body that is to be put.
	errS3Body = errors.New("reading what is to be put")
)

// s3Options say which bucket, as whom, and how patiently.
type s3Options struct {
	bucket      string
	region      string
	endpoint    string // http:// or https:// URL; "" = AWS, by region
	pathStyle   bool   // bucket in the path; always so where it cannot be a host name
	credentials s3Credentials
	timeout     time.Duration // of silence within a try; a transfer may go on at s3SlowRate
	retries     int           // tries after the first
	pool        int           // connections kept open
	lockMode    string        // "" or GOVERNANCE or COMPLIANCE: Object Lock of everything that is put
	lockFor     time.Duration
	metrics     *metrics

	// Of the world; nil = the real one.
	env   func(string) string
	now   func() time.Time
	pause func(ctx context.Context, atMost time.Duration) error // waits a random part of atMost
}

// s3Client is one bucket. All methods may be called at the same time.
type s3Client struct {
	// immutable
	o    s3Options
	base *url.URL // scheme, host with the bucket if it belongs there, path
	http *http.Client
	keys *s3Keychain

	plainPuts atomic.Bool // the server has no put-if-absent
}

// newS3 returns a client; it asks nothing yet: that is probe.
func newS3(o s3Options) (*s3Client, error) {
	o.setDefaults()
	c := &s3Client{o: o, keys: &s3Keychain{fixed: o.credentials, env: o.env, now: o.now}}
	if err := c.setBase(); err != nil {
		return nil, err
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: o.timeout, KeepAlive: 15 * time.Second}).DialContext,
			DisableCompression:     true, // else gzip is undone behind our back
			MaxIdleConns:           o.pool,
			MaxIdleConnsPerHost:    o.pool,
			IdleConnTimeout:        time.Minute,
			TLSHandshakeTimeout:    o.timeout,
			ExpectContinueTimeout:  time.Second,
			MaxResponseHeaderBytes: maxErrorBody,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// setDefaults fills in what was left out.
func (o *s3Options) setDefaults() {
	if o.region == "" {
		o.region = "us-east-1"
	}
	if o.timeout == 0 {
		o.timeout = 30 * time.Second
	}
	if o.metrics == nil {
		o.metrics = newMetrics()
	}
	if o.env == nil {
		o.env = os.Getenv
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.pause == nil {
		o.pause = pauseRandom
	}
}

// pauseRandom waits for a random part of atMost ("full jitter"): clients that
// failed together do not come back together.
func pauseRandom(ctx context.Context, atMost time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(rand.N(atMost)):
		return nil
	}
}

// setBase works out where the bucket is.
func (c *s3Client) setBase() error {
	endpoint := c.o.endpoint
	if endpoint == "" {
		endpoint = "https://s3." + c.o.region + ".amazonaws.com"
		if strings.HasPrefix(c.o.region, "cn-") {
			endpoint += ".cn"
		}
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" {
		return fmt.Errorf("s3: endpoint is %q, want a URL such as https://host:port", endpoint)
	}
	if c.o.bucket == "" || strings.ContainsAny(c.o.bucket, "/?#%\\ ") {
		return fmt.Errorf("s3: bucket is %q", c.o.bucket)
	}
	c.base = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(u.Path, "/")}
	// A certificate for *.host covers no bucket with a dot; an address takes no name in front.
	dotted := strings.Contains(c.o.bucket, ".") && u.Scheme == "https"
	if c.o.pathStyle || dotted || net.ParseIP(u.Hostname()) != nil {
		c.base.Path += "/" + c.o.bucket
	} else {
		c.base.Host = c.o.bucket + "." + u.Host
	}
	return nil
}

// close closes the connections that wait for use.
func (c *s3Client) close() { c.http.CloseIdleConnections() }

// s3Op is a kind of request. It indexes the metrics.
type s3Op uint8

const (
	s3Get s3Op = iota
	s3Put
	s3Head
	s3List
	s3Delete
)

func (op s3Op) String() string { return s3OpLabels[op] }

// s3Info is what a server says of an object.
type s3Info struct {
	size     int64
	etag     string
	version  string    // "" unless the bucket keeps versions
	sum      []byte    // SHA-256 it was put with; nil if the server does not say
	modified time.Time // zero if the server does not say
}

// s3Upload is an object to put. The body is read once a try.
type s3Upload struct {
	key    string
	body   io.ReaderAt
	size   int64
	sum    [sha256.Size]byte // SHA-256 of the body: the server refuses any other bytes
	absent bool              // fail with fs.ErrExist if there is an object of that name
}

// s3Bytes returns the upload of b.
func s3Bytes(key string, b []byte) s3Upload {
	return s3Upload{key: key, body: bytes.NewReader(b), size: int64(len(b)), sum: sha256.Sum256(b)}
}

// put stores an object, durably when it returns nil. With absent on a server that
// knows no put-if-absent, two puts at the same time may both succeed.
func (c *s3Client) put(ctx context.Context, u s3Upload) (s3Info, error) {
	call := &s3Call{op: s3Put, method: http.MethodPut, key: u.key, body: u.body, size: u.size, sum: u.sum, header: http.Header{}}
	call.header.Set("Content-Type", s3Type)
	call.header.Set("X-Amz-Checksum-Sha256", base64.StdEncoding.EncodeToString(u.sum[:]))
	if c.o.lockMode != "" {
		call.locked = true
		call.header.Set("X-Amz-Object-Lock-Mode", c.o.lockMode)
		call.header.Set("X-Amz-Object-Lock-Retain-Until-Date", c.o.now().Add(c.o.lockFor).UTC().Format(time.RFC3339))
	}
	if u.absent && c.plainPuts.Load() {
		if _, err := c.head(ctx, u.key); !errors.Is(err, fs.ErrNotExist) {
			return s3Info{}, c.existing(call, err)
		}
	} else if u.absent {
		call.absent = true
		call.header.Set("If-None-Match", "*")
	}
	var info s3Info
	call.accept = func(resp *http.Response) (err error) {
		info, err = c.stored(call, resp)
		return err
	}
	resp, err := c.do(ctx, call)
	if err == nil {
		return info, resp.Body.Close()
	}
	return c.putFailed(ctx, u, call, err)
}

// existing returns the error of a put-if-absent whose name is taken, or err.
func (c *s3Client) existing(call *s3Call, err error) error {
	if err != nil {
		return err
	}
	e := c.newError(call, "PreconditionFailed", "the object is there already")
	e.cause = fs.ErrExist
	return e
}

// putFailed decides what an error of a put means.
func (c *s3Client) putFailed(ctx context.Context, u s3Upload, call *s3Call, err error) (s3Info, error) {
	var e *s3Error
	switch {
	case call.absent && errors.As(err, &e) && e.status == http.StatusNotImplemented:
		c.plainPuts.Store(true)
		return c.put(ctx, u)
	case call.tries > 1 && errors.Is(err, fs.ErrExist):
		// An earlier try may have been stored although it failed here. What has
		// our bytes is what we wanted, whoever stored it.
		info, headErr := c.head(ctx, u.key)
		if headErr == nil && info.size == u.size && bytes.Equal(info.sum, u.sum[:]) {
			return info, nil
		}
	}
	return s3Info{}, err
}

// stored checks the answer to a put: S3 names the ETag, and may send an error
// with status 200.
func (c *s3Client) stored(call *s3Call, resp *http.Response) (s3Info, error) {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return s3Info{}, err
	}
	if _, err := parseErrorBody(b); err == nil {
		resp.Body = io.NopCloser(bytes.NewReader(b))
		return s3Info{}, c.answerError(call, resp)
	}
	info := infoOf(resp)
	info.size = call.size
	switch {
	case info.etag == "":
		return info, c.notS3(call, resp, "it has no ETag: "+firstLine(b))
	case info.sum != nil && !bytes.Equal(info.sum, call.sum[:]):
		return info, c.notS3(call, resp, fmt.Sprintf("it stored bytes with SHA-256 %x, sent were %x", info.sum, call.sum))
	}
	return info, nil
}

// head returns what the server says of an object.
func (c *s3Client) head(ctx context.Context, key string) (s3Info, error) {
	call := &s3Call{op: s3Head, method: http.MethodHead, key: key, header: http.Header{"X-Amz-Checksum-Mode": {"ENABLED"}}}
	var info s3Info
	call.accept = func(resp *http.Response) error {
		info = infoOf(resp)
		if info.etag == "" || resp.ContentLength < 0 {
			return c.notS3(call, resp, "it lacks ETag or Content-Length")
		}
		return nil
	}
	resp, err := c.do(ctx, call)
	if err == nil {
		return info, resp.Body.Close()
	}
	// An answer to HEAD has no body to tell a missing object from a missing
	// bucket, or why it is refused: the answer to GET has.
	if e := (*s3Error)(nil); errors.As(err, &e) && e.status >= 300 && e.status < 500 && e.code == codeBare {
		r, getErr := c.get(ctx, s3Read{key: key, size: 1})
		if getErr == nil {
			return r.info, r.Close()
		}
		err = getErr
	}
	return s3Info{}, err
}

// delete removes an object; one that is not there is no error. In a bucket that
// keeps versions it hides the object unless version says which one shall go.
func (c *s3Client) delete(ctx context.Context, key, version string) error {
	call := &s3Call{op: s3Delete, method: http.MethodDelete, key: key, header: http.Header{}}
	if version != "" {
		call.query = url.Values{"versionId": {version}}
	}
	call.accept = func(resp *http.Response) error {
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		if err == nil && len(b) > 0 {
			return c.notS3(call, resp, firstLine(b))
		}
		return err
	}
	resp, err := c.do(ctx, call)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = resp.Body.Close()
	}
	return err
}

// infoOf reads the headers of an answer about an object.
func infoOf(resp *http.Response) s3Info {
	h := resp.Header
	info := s3Info{size: resp.ContentLength, etag: h.Get("ETag"), version: h.Get("X-Amz-Version-Id")}
	if b, err := base64.StdEncoding.DecodeString(h.Get("X-Amz-Checksum-Sha256")); err == nil && len(b) == sha256.Size {
		info.sum = b
	}
	info.modified, _ = http.ParseTime(h.Get("Last-Modified"))
	return info
}

// notS3 returns the error of an answer that says success and is none.
func (c *s3Client) notS3(call *s3Call, resp *http.Response, why string) error {
	e := c.newError(call, codeNotS3, "this answer is not of S3: "+why)
	e.status = resp.StatusCode
	e.hint = "something else answers at " + c.base.Host + ", or in between"
	return e
}

// s3Call is one request, however often it is tried.
type s3Call struct {
	op             s3Op
	method         string
	key            string
	query          url.Values
	header         http.Header
	body           io.ReaderAt
	size           int64 // of the body
	sum            [sha256.Size]byte
	reply          int64 // bytes the answer may have
	absent, locked bool  // it asks for put-if-absent, for retention

	// accept checks an answer that says success, and reads all of its body that
	// the caller of do does not. An error of it is an error of the try.
	accept func(*http.Response) error

	keys    s3Credentials // of the last try
	rekeyed bool
	tries   int
}

// do tries call until it succeeds, cannot, or was tried often enough. The caller
// closes the body of the answer.
func (c *s3Client) do(ctx context.Context, call *s3Call) (*http.Response, error) {
	if n := len(call.key); n > maxS3Key || !utf8.ValidString(call.key) || n == 0 && call.op != s3List {
		return nil, c.newError(call, codeBadCall, fmt.Sprintf("a key of %d bytes, want 1 to %d of UTF-8", n, maxS3Key))
	}
	for {
		call.tries++
		begun := time.Now()
		resp, e := c.try(ctx, call)
		c.count(call, e, time.Since(begun))
		if e == nil {
			return resp, nil
		}
		e.tries = call.tries
		if !c.again(ctx, call, e) {
			return nil, e
		}
		c.o.metrics.s3.retries.add(1)
	}
}

// again reports whether call is to be tried again after e, when it has waited.
func (c *s3Client) again(ctx context.Context, call *s3Call, e *s3Error) bool {
	if e.refusedKeys() && !call.rekeyed {
		call.rekeyed = true
		if c.keys.refused(call.keys) {
			return true
		}
	}
	if !e.temporary() || call.tries > c.o.retries {
		return false
	}
	return c.o.pause(ctx, min(s3FirstPause<<min(call.tries-1, 10), s3LongPause)) == nil
}

// try sends call once.
func (c *s3Client) try(ctx context.Context, call *s3Call) (*http.Response, *s3Error) {
	keys, err := c.keys.get()
	if err != nil {
		e := c.newError(call, codeNoKeys, err.Error())
		e.cause = err
		return nil, e
	}
	call.keys = keys
	within, pace := newPace(ctx, c.o.timeout, call.size+call.reply)
	resp, err := c.http.Do(c.request(within, call, pace))
	if err != nil {
		pace.stop()
		return nil, c.networkError(ctx, call, pace.why(err))
	}
	body := resp.Body
	resp.Body = &pacedBody{body, pace, &c.o.metrics.s3.received, func() error {
		defer pace.stop()
		return body.Close()
	}}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, c.answerError(call, resp)
	}
	if err = call.accept(resp); err == nil {
		return resp, nil
	}
	resp.Body.Close()
	var e *s3Error
	if !errors.As(err, &e) {
		e = c.networkError(ctx, call, err)
	}
	return nil, e
}

// request returns call as a signed request.
func (c *s3Client) request(ctx context.Context, call *s3Call, pace *s3Pace) *http.Request {
	u := c.url(call)
	r := (&http.Request{Method: call.method, URL: u, Host: u.Host, Header: call.header.Clone(), Body: http.NoBody}).WithContext(ctx)
	bodyHash := emptySHA256
	if call.body != nil {
		bodyHash = hex.EncodeToString(call.sum[:])
	}
	signRequest(r, call.keys, c.o.region, bodyHash, c.o.now())
	// What follows is not signed: something on the way may rightly change it.
	r.Header.Set("User-Agent", "scribe-ledger")
	if call.size > 0 {
		r.ContentLength = call.size
		r.Body = &pacedBody{&uploadBody{from: call.body, size: call.size}, pace, &c.o.metrics.s3.sent, func() error { return nil }}
	}
	if call.size >= s3AskFirst {
		r.Header.Set("Expect", "100-continue")
	}
	return r
}

// uploadBody reads what is put; its errors are of this node, not of the network.
type uploadBody struct {
	from     io.ReaderAt
	at, size int64
}

func (b *uploadBody) Read(p []byte) (int, error) {
	if b.at == b.size {
		return 0, io.EOF
	}
	n, err := b.from.ReadAt(p[:min(int64(len(p)), b.size-b.at)], b.at)
	b.at += int64(n)
	if n > 0 || err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("%w: byte %d of %d: %v", errS3Body, b.at, b.size, err)
}

// emptySHA256 is the SHA-256 of nothing.
const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// url returns where call goes, in canonical form.
func (c *s3Client) url(call *s3Call) *url.URL {
	u := *c.base
	if call.key != "" || u.Path == "" {
		u.Path += "/" + call.key
	}
	u.RawPath = canonicalPath(u.Path[1:])
	u.RawQuery = canonicalQuery(call.query)
	return &u
}

// count counts a try and how it ended.
func (c *s3Client) count(call *s3Call, e *s3Error, took time.Duration) {
	m := &c.o.metrics.s3
	m.seconds[call.op].observe(took)
	m.requests[call.op][e.result()].add(1)
}

// s3Pace gives up a try in which nothing moves for timeout, or in which bytes
// only trickle.
type s3Pace struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	timeout time.Duration
	end     time.Time // for so many bytes
}

// newPace returns a context for a try that moves so many bytes, and its pace.
func newPace(ctx context.Context, timeout time.Duration, size int64) (context.Context, *s3Pace) {
	ctx, cancel := context.WithCancelCause(ctx)
	allowed := timeout + time.Duration(size/s3SlowRate)*time.Second
	p := &s3Pace{ctx: ctx, cancel: cancel, timeout: timeout, end: time.Now().Add(allowed)}
	p.timer = time.AfterFunc(timeout, func() { cancel(errS3Slow) })
	return ctx, p
}

// moved notes that bytes moved.
func (p *s3Pace) moved() { p.timer.Reset(min(p.timeout, time.Until(p.end))) }

// stop ends the try.
func (p *s3Pace) stop() {
	p.timer.Stop()
	p.cancel(nil)
}

// why returns why the try ended: err, or that it was too slow.
func (p *s3Pace) why(err error) error {
	if errors.Is(context.Cause(p.ctx), errS3Slow) {
		return errS3Slow
	}
	return err
}

// pacedBody is a body, of a request or an answer, that keeps its try going.
type pacedBody struct {
	io.Reader
	pace  *s3Pace
	bytes *counter
	close func() error
}

// Close of an answer's body ends the try.
func (b *pacedBody) Close() error { return b.close() }

func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if n > 0 {
		b.pace.moved()
		b.bytes.add(uint64(n))
	}
	if err != nil && err != io.EOF {
		err = b.pace.why(err)
	}
	return n, err
}
