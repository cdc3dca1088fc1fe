package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
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
	maxS3Key = 1024 // bytes
	s3Type   = "application/octet-stream"
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
	free   bool              // no Object Lock, whatever the options say
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
	if c.o.lockMode != "" && !u.free {
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
