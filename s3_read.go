package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// s3Read says what to read of an object.
type s3Read struct {
	key     string
	version string // "" = the newest
	from    int64  // first byte
	size    int64  // number of bytes; 0 = to the end
}

// byteRange returns the Range header of r, or "" for the whole object.
func (r s3Read) byteRange() string {
	switch {
	case r.size > 0:
		return fmt.Sprintf("bytes=%d-%d", r.from, r.from+r.size-1)
	case r.from > 0:
		return fmt.Sprintf("bytes=%d-", r.from)
	}
	return ""
}

// s3Reader reads a part of an object, to its last byte or an error: a connection
// that breaks is made again where it broke, for the same object (If-Match).
type s3Reader struct {
	info s3Info // size is that of the whole object

	c    *s3Client
	ctx  context.Context
	r    s3Read // what is yet to be read; size is never 0 but at the end
	body io.ReadCloser
	left int // tries
}

// get opens a part of an object. The reader must be closed. A part that begins
// behind the object's end is an error; one that only ends there is cut.
func (c *s3Client) get(ctx context.Context, r s3Read) (*s3Reader, error) {
	resp, info, err := c.open(ctx, r, "")
	if err != nil {
		return nil, err
	}
	r.size = resp.ContentLength
	return &s3Reader{info: info, c: c, ctx: ctx, r: r, body: resp.Body, left: c.o.retries}, nil
}

// read returns a part of an object, of at most limit bytes.
func (c *s3Client) read(ctx context.Context, r s3Read, limit int64) ([]byte, error) {
	s, err := c.get(ctx, r)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if s.r.size > limit {
		return nil, c.newError(&s3Call{op: s3Get, key: r.key}, codeBadObject, fmt.Sprintf("it has %d bytes, want at most %d", s.r.size, limit))
	}
	b := make([]byte, s.r.size)
	if _, err := io.ReadFull(s, b); err != nil {
		return nil, err
	}
	return b, nil
}

// open asks for r of the object with that ETag, or any if it is "".
func (c *s3Client) open(ctx context.Context, r s3Read, etag string) (*http.Response, s3Info, error) {
	call := &s3Call{op: s3Get, method: http.MethodGet, key: r.key, header: http.Header{}}
	if r.version != "" {
		call.query = url.Values{"versionId": {r.version}}
	}
	if part := r.byteRange(); part != "" {
		call.header.Set("Range", part)
	} else {
		call.header.Set("X-Amz-Checksum-Mode", "ENABLED")
	}
	if etag != "" {
		call.header.Set("If-Match", etag)
	}
	if r.from < 0 || r.size < 0 {
		return nil, s3Info{}, c.newError(call, codeBadCall, fmt.Sprintf("%d bytes from byte %d", r.size, r.from))
	}
	var info s3Info
	call.accept = func(resp *http.Response) (err error) {
		info, err = c.opened(call, r, resp)
		return err
	}
	resp, err := c.do(ctx, call)
	return resp, info, err
}

// opened checks the headers of an answer to get: it must be the bytes asked for,
// as they were put, and their number must be known.
func (c *s3Client) opened(call *s3Call, r s3Read, resp *http.Response) (s3Info, error) {
	info, h := infoOf(resp), resp.Header
	switch {
	case info.etag == "" || resp.ContentLength < 0:
		return info, c.notS3(call, resp, "it lacks ETag or Content-Length")
	case strings.HasPrefix(h.Get("Content-Type"), "text/html"):
		return info, c.notS3(call, resp, "it is a page for people: Content-Type "+clipped(h.Get("Content-Type")))
	case h.Get("Content-Encoding") != "":
		return info, c.notS3(call, resp, "it is packed: Content-Encoding "+clipped(h.Get("Content-Encoding")))
	case r.byteRange() == "" && resp.StatusCode == http.StatusOK:
		return info, nil
	}
	from, to, size, err := parseContentRange(h.Get("Content-Range"))
	end := size
	if r.size > 0 {
		end = min(size, r.from+r.size)
	}
	if resp.StatusCode != http.StatusPartialContent || err != nil || from != r.from || to+1 != end || to+1-from != resp.ContentLength {
		return info, c.notS3(call, resp, fmt.Sprintf("asked for %q, it has %d bytes and Content-Range %.80q",
			r.byteRange(), resp.ContentLength, h.Get("Content-Range")))
	}
	info.size = size
	info.sum = nil // a server may name the checksum of the part
	return info, nil
}

// parseContentRange reads "bytes 0-9/443": first and last byte, and the size of
// the object.
func parseContentRange(s string) (from, to, size int64, err error) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	span, total, ok2 := strings.Cut(rest, "/")
	first, last, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, fmt.Errorf("Content-Range is %.80q", s)
	}
	for _, f := range []struct {
		text string
		to   *int64
	}{{first, &from}, {last, &to}, {total, &size}} {
		n, err := strconv.ParseUint(f.text, 10, 63)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("Content-Range is %.80q: %w", s, err)
		}
		*f.to = int64(n)
	}
	if from > to || to >= size {
		return 0, 0, 0, fmt.Errorf("Content-Range is %.80q", s)
	}
	return from, to, size, nil
}

// Read returns io.EOF behind the last byte only, and *s3Error otherwise.
func (s *s3Reader) Read(p []byte) (int, error) {
	for {
		if s.r.size == 0 {
			return 0, io.EOF
		}
		n, err := s.body.Read(p[:min(int64(len(p)), s.r.size)])
		s.r.from += int64(n)
		s.r.size -= int64(n)
		if n > 0 || err == nil {
			return n, nil
		}
		if err := s.resume(err); err != nil {
			return 0, err
		}
	}
}

// resume opens what is yet to be read, after the body broke off with err.
func (s *s3Reader) resume(err error) error {
	s.body.Close()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	e := s.c.networkError(s.ctx, &s3Call{op: s3Get, key: s.r.key}, err)
	e.tries = s.c.o.retries - s.left + 1
	if s.left == 0 || !e.temporary() {
		return e
	}
	s.left--
	s.c.o.metrics.s3.retries.add(1)
	if s.c.o.pause(s.ctx, s3FirstPause) != nil {
		return e
	}
	resp, info, err := s.c.open(s.ctx, s.r, s.info.etag)
	if err != nil {
		return err
	}
	s.body = resp.Body
	if info.size != s.info.size || info.etag != s.info.etag {
		return s.c.newError(&s3Call{op: s3Get, key: s.r.key}, codeBadObject, "the object was replaced while it was read")
	}
	return nil
}

// Close gives the connection back if all was read, and else closes it.
func (s *s3Reader) Close() error { return s.body.Close() }
