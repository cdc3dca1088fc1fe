package main

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Reading of request bodies, in bounded memory and time.
//
// A body reserves its size from the node's budget before its first byte is
// read. Bodies below freeBody do not wait for that: they are only counted. A
// body must bring bodyPiece bytes in each limits.body, so that nobody holds
// memory by sending slowly.

const (
	freeBody  = 64 << 10 // bytes below which a body reserves nothing
	bodyPiece = 32 << 10 // bytes that must come within limits.body
)

// bodyRoom is memory taken for a body.
type bodyRoom struct {
	small   int64  // bytes counted in server.small
	release func() // gives back what the node reserved; nil = nothing
}

// giveBack returns r, once.
func (s *server) giveBack(r bodyRoom) {
	if r.release != nil {
		r.release()
	}
	s.small.Add(-r.small)
}

// readBody returns the body of c, at most limit bytes, and the room it takes.
func (s *server) readBody(c *call, limit int64) (body []byte, r bodyRoom, err error) {
	size := c.r.ContentLength
	if size > limit {
		return nil, r, tooLarge(size, limit)
	}
	if size < 0 {
		return s.readChunked(c, limit)
	}
	if r, err = s.reserveBody(size); err != nil {
		return nil, r, err
	}
	body = make([]byte, size)
	if err := s.fill(c, body); err != nil {
		s.giveBack(r)
		return nil, bodyRoom{}, err
	}
	return body, r, nil
}

// reserveBody takes room for a body of size bytes.
func (s *server) reserveBody(size int64) (bodyRoom, error) {
	if size < freeBody {
		if s.small.Add(size) > s.limits.small {
			s.small.Add(-size)
			return bodyRoom{}, noRoom(size)
		}
		return bodyRoom{small: size}, nil
	}
	release, err := s.node.reserve(s.reads.context(), size)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errOverloaded) {
		return bodyRoom{}, noRoom(size)
	}
	return bodyRoom{release: release}, err
}

func noRoom(size int64) error {
	e := &apiError{status: 503, code: "overloaded", retry: true, close: true}
	e.message = "no memory for a body of " + decimal(size) + " bytes now; nothing was applied"
	return e
}

func tooLarge(size, limit int64) error {
	e := &apiError{status: 413, code: "value_too_large", close: true}
	e.message = "the body has " + decimal(size) + " bytes, at most " + decimal(limit) + " are taken"
	if size < 0 {
		e.message = "the body has more than " + decimal(limit) + " bytes"
	}
	return e
}

// fill reads exactly len(p) bytes of the body.
func (s *server) fill(c *call, p []byte) error {
	rolling := len(p) > bodyPiece // net/http has set the deadline of the first piece
	for len(p) > 0 {
		piece := p[:min(len(p), bodyPiece)]
		if rolling {
			s.patience(c, s.limits.body)
		}
		n, err := io.ReadFull(c.r.Body, piece)
		s.o.metrics.http.bodyBytes.add(uint64(n))
		if err != nil {
			return bodyError(err)
		}
		p = p[len(piece):]
	}
	if rolling {
		http.NewResponseController(c.w).SetWriteDeadline(time.Now().Add(s.limits.write + s.o.readTimeout + s.o.writeTimeout))
	}
	return nil
}

// patience lets the reads of c's body that follow take d.
func (s *server) patience(c *call, d time.Duration) {
	http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(d))
}

// readChunked reads a body whose size is not known. It begins as a small one
// and, once it is not, reserves the most it may become.
func (s *server) readChunked(c *call, limit int64) ([]byte, bodyRoom, error) {
	r, err := s.reserveBody(min(freeBody-1, limit))
	if err != nil {
		return nil, r, err
	}
	body := make([]byte, 0, 4<<10)
	for piece := 0; ; {
		n, err := c.r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		s.o.metrics.http.bodyBytes.add(uint64(n))
		if piece += n; piece > bodyPiece {
			s.patience(c, s.limits.body)
			piece = 0
		}
		if err == io.EOF && int64(len(body)) <= limit {
			http.NewResponseController(c.w).SetWriteDeadline(time.Now().Add(s.limits.write + s.o.readTimeout + s.o.writeTimeout))
			return slices.Clip(body), r, nil
		}
		switch {
		case int64(len(body)) > limit:
			err = tooLarge(-1, limit)
		case err != nil:
			err = bodyError(err)
		case len(body) == cap(body):
			if len(body) < freeBody && 2*len(body) >= freeBody {
				s.giveBack(r)
				r, err = s.reserveBody(max(limit, freeBody))
			}
			body = slices.Grow(body, min(len(body), int(limit)+1-len(body)))
		}
		if err != nil {
			s.giveBack(r)
			return nil, bodyRoom{}, err
		}
	}
}

// bodyError says why a body did not come.
func bodyError(err error) error {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return &apiError{status: 408, code: "request_timeout", message: "the body came too slowly", close: true}
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return &apiError{status: 400, code: "malformed", message: "the body ends before its length", close: true}
	}
	return &apiError{status: 400, code: "malformed", message: "the body is not readable: " + clip(err.Error()), close: true}
}

// digestOf returns the SHA-256 that Content-Digest or Repr-Digest (RFC 9530)
// claim for the body, nil if neither does. Our replies have no content coding,
// so both speak of the same bytes.
func digestOf(h http.Header) (*hash, error) {
	var found *hash
	for _, name := range [...]string{"Content-Digest", "Repr-Digest"} {
		for _, line := range h[name] {
			sum, err := parseDigest(line)
			if err != nil {
				return nil, err
			}
			if sum != nil && found != nil && *sum != *found {
				return nil, badRequest("malformed", "two different sha-256 digests are given")
			}
			if sum != nil {
				found = sum
			}
		}
	}
	return found, nil
}

// parseDigest reads the member sha-256 of a structured field dictionary, such
// as `sha-256=:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=:, sha-512=:…:`.
// Members for other algorithms are passed over.
func parseDigest(line string) (*hash, error) {
	var found *hash
	for line != "" {
		var member string
		member, line = cutMember(line)
		name, value, _ := strings.Cut(strings.Trim(member, " \t"), "=")
		if !strings.EqualFold(name, "sha-256") {
			continue
		}
		value, _, _ = strings.Cut(value, ";") // parameters
		sum, ok := parseByteSequence(value)
		if !ok || found != nil && *sum != *found {
			return nil, badRequest("malformed", "digest %q, want sha-256=:<base64 of 32 bytes>:", clip(member))
		}
		found = sum
	}
	return found, nil
}

// cutMember cuts s at the first comma that is not inside a quoted string.
func cutMember(s string) (member, rest string) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ',' && !quoted:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

// parseByteSequence reads :<base64>: of a hash; its padding may be missing.
func parseByteSequence(s string) (*hash, bool) {
	s = strings.TrimRight(s, " ")
	if len(s) < 2 || s[0] != ':' || s[len(s)-1] != ':' {
		return nil, false
	}
	var sum hash
	b, err := base64.RawStdEncoding.Strict().DecodeString(strings.TrimSuffix(s[1:len(s)-1], "="))
	if err != nil || copy(sum[:], b) != len(b) || len(b) != len(sum) {
		return nil, false
	}
	return &sum, true
}

// bodyPool holds buffers for the bodies of replies.
var bodyPool = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

// maxPooled is the capacity above which a buffer is left to the collector.
const maxPooled = 128 << 10

func getBody() *[]byte { return bodyPool.Get().(*[]byte) }

func putBody(b *[]byte) {
	if cap(*b) <= maxPooled {
		bodyPool.Put(b)
	}
}
