package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
	"unicode/utf8"
)

// One request to a bucket: signed, sent, given up when it is too slow, and tried
// again where that may help.

const (
	s3FirstPause = 200 * time.Millisecond // bound of the first wait before another try; then doubled
	s3LongPause  = 10 * time.Second
	s3SlowRate   = 256 << 10 // bytes a second below which a transfer is given up
	s3AskFirst   = 1 << 20   // bytes of a body from which the server is asked before it is sent
)

var (
	// errS3Slow is the cause of tries that were given up.
	errS3Slow = errors.New("too slow")
	// errS3Body is wrapped by errors of the body that is to be put.
	errS3Body = errors.New("reading what is to be put")
)

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
	absent, locked bool // it asks for put-if-absent, for retention

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
	within, pace := newPace(ctx, c.o.timeout, call.size)
	resp, err := c.http.Do(c.request(within, call, pace))
	if err != nil {
		pace.stop()
		return nil, c.networkError(ctx, call, pace.why(err))
	}
	if call.body == nil {
		pace.allow(resp.ContentLength)
	}
	body := resp.Body
	resp.Body = &s3Body{body, pace, &c.o.metrics.s3.received, func() error {
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
		r.Body = &s3Body{&uploadBody{from: call.body, size: call.size}, pace, &c.o.metrics.s3.sent, func() error { return nil }}
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
	begun   time.Time
	end     time.Time // for all bytes
}

// newPace returns a context for a try that moves so many bytes, and its pace.
func newPace(ctx context.Context, timeout time.Duration, size int64) (context.Context, *s3Pace) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &s3Pace{ctx: ctx, cancel: cancel, timeout: timeout, begun: time.Now()}
	p.allow(size)
	p.timer = time.AfterFunc(timeout, func() { cancel(errS3Slow) })
	return ctx, p
}

// allow gives the try time for so many bytes; none may be moving.
func (p *s3Pace) allow(size int64) {
	p.end = p.begun.Add(p.timeout + time.Duration(max(size, 0)/s3SlowRate)*time.Second)
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

// s3Body is a body, of a request or an answer, that keeps its try going.
type s3Body struct {
	io.Reader
	pace  *s3Pace
	bytes *counter
	close func() error
}

// Close of an answer's body ends the try.
func (b *s3Body) Close() error { return b.close() }

func (b *s3Body) Read(p []byte) (int, error) {
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
