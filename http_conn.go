package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
)

// What stands between net/http and the socket of a client. net/http settles
// three things in a way the contract does not allow, and tells nobody:
//
//   - Content-Length beside Transfer-Encoding: the first is dropped and the
//     request is served. A proxy in front may choose the other one, and then
//     the two disagree about where the next request begins.
//   - A header line that ends in a bare LF, or goes on in the next line: the
//     same danger.
//   - A request it cannot parse gets a reply of its own, as plain text without
//     an X-Request-Id.
//
// So a clientConn follows the framing of the bytes it passes on, and its Write
// replaces replies that no handler made.

// clientListener wraps the connections it accepts.
type clientListener struct {
	net.Listener
	s *server
}

func (l clientListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.s.o.metrics.http.connections.add(1)
	return &clientConn{Conn: c, s: l.s}, nil
}

// clientConn is one connection of a client. HTTP/1 has one request under way
// at a time, so the scratch space of the handler lives here too.
type clientConn struct {
	net.Conn
	s      *server
	closed atomic.Bool
	heads  headWatch     // owned by Read, which net/http never calls twice at once
	fault  atomic.Uint64 // number of the request whose head is unusable, from 1; 0 = none
	ours   atomic.Bool   // the reply under way is a handler's
	served uint64        // requests that reached the handler; owned by the handler
	call   call          // owned by the handler
}

type connKey struct{}

// connOf returns the connection r came on, nil in tests without one.
func connOf(r *http.Request) *clientConn {
	c, _ := r.Context().Value(connKey{}).(*clientConn)
	return c
}

// connContext lets connOf find the connection.
func connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// connState is net/http's hook between two requests: from here on a reply is
// net/http's own, until a handler says otherwise.
func connState(c net.Conn, state http.ConnState) {
	if c, ok := c.(*clientConn); ok && (state == http.StateActive || state == http.StateIdle) {
		c.ours.Store(false)
	}
}

func (c *clientConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.heads.stopped {
		c.heads.feed(p[:n])
		if c.heads.fault != "" {
			c.fault.Store(c.heads.seen)
		}
	}
	return n, err
}

// begin marks the reply to the next request as the handler's, and returns what
// is wrong with the request's head, or "".
func (c *clientConn) begin() string {
	c.ours.Store(true)
	c.served++
	if c.fault.Load() == c.served {
		return c.heads.fault
	}
	return ""
}

func (c *clientConn) Write(p []byte) (int, error) {
	if c.ours.Load() || !bytes.HasPrefix(p, []byte("HTTP/1.1 ")) || len(p) < 12 {
		return c.Conn.Write(p)
	}
	status, err := strconv.Atoi(string(p[9:12]))
	if err != nil || status < 400 {
		return c.Conn.Write(p)
	}
	c.s.o.metrics.http.refused.add(1)
	if _, err := c.Conn.Write(c.s.refusal(status)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ReadFrom keeps sendfile: net/http looks for it.
func (c *clientConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// CloseWrite lets a client read the reply to a request we did not read whole.
func (c *clientConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

func (c *clientConn) Close() error {
	if !c.closed.Swap(true) {
		c.s.o.metrics.http.connections.add(-1)
	}
	return c.Conn.Close()
}

// refusal is the whole reply to a request that net/http could not parse.
func (s *server) refusal(status int) []byte {
	e := &apiError{status: status, code: "malformed", message: "the request is not valid HTTP/1.1"}
	switch status {
	case http.StatusRequestHeaderFieldsTooLarge:
		e.code, e.message = "headers_too_large", "the request line and headers are larger than 32 KiB"
	case http.StatusNotImplemented:
		e.code, e.message = "not_implemented", "the only transfer coding served is chunked"
	case http.StatusExpectationFailed:
		e.code, e.message = "expectation_failed", "the only expectation served is 100-continue"
	case http.StatusHTTPVersionNotSupported:
		e.code, e.message = "http_version", "the only protocols served are HTTP/1.0 and HTTP/1.1"
	}
	body := e.appendJSON(nil)
	b := []byte("HTTP/1.1 " + strconv.Itoa(status) + " " + http.StatusText(status) + "\r\n")
	b = append(b, "Content-Type: application/json\r\nConnection: close\r\nX-Request-Id: "...)
	b = s.appendRequestID(b)
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, "\r\n\r\n"...)
	return append(b, body...)
}

// headWatch follows the framing of the requests in a stream of bytes and finds
// the first head that two readers could frame differently. It only watches: a
// stream that net/http refuses may leave it lost, since nothing follows.
type headWatch struct {
	seen    uint64 // whole heads so far
	fault   string // what is wrong with head number seen; "" = nothing
	stopped bool   // nothing to look for any more

	state   watchState
	rest    uint64 // watchBody, watchChunk: bytes to pass over
	partial []byte // the line under way, when it began in an earlier read

	// Of the head under way.
	http10  bool
	lengths int // Content-Length lines
	codings int // Transfer-Encoding lines
	length  uint64
	odd     string // other fault
}

// watchState says what the next byte belongs to.
type watchState uint8

const (
	watchRequestLine watchState = iota
	watchHeader
	watchBody
	watchChunkSize
	watchChunk
	watchTrailer
)

// maxWatchedLine is more than net/http accepts of a whole head.
const maxWatchedLine = 64 << 10

// feed passes over p.
func (h *headWatch) feed(p []byte) {
	for len(p) > 0 && !h.stopped {
		if h.state == watchBody || h.state == watchChunk {
			n := min(h.rest, uint64(len(p)))
			p, h.rest = p[n:], h.rest-n
			h.endSkip()
			continue
		}
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			h.partial = append(h.partial, p...)
			h.stopped = len(h.partial) > maxWatchedLine
			return
		}
		line := p[:i]
		if len(h.partial) > 0 {
			line = append(h.partial, line...)
			h.partial = nil
		}
		h.line(line)
		p = p[i+1:]
	}
}

// endSkip moves on when a body or a chunk is over.
func (h *headWatch) endSkip() {
	switch {
	case h.rest > 0:
	case h.state == watchBody:
		h.state = watchRequestLine
	default:
		h.state = watchChunkSize
	}
}

// line takes one line, which still has its CR.
func (h *headWatch) line(raw []byte) {
	line := bytes.TrimSuffix(raw, []byte{'\r'})
	bare := len(line) == len(raw)
	switch h.state {
	case watchRequestLine:
		if len(line) == 0 {
			return // net/http forgives empty lines after a POST
		}
		h.http10 = bytes.HasSuffix(line, []byte("HTTP/1.0"))
		h.lengths, h.codings, h.length, h.odd = 0, 0, 0, ""
		h.state = watchHeader
	case watchHeader:
		if len(line) == 0 {
			h.noteBare(bare)
			h.endHead()
			return
		}
		h.header(line)
	case watchChunkSize:
		h.chunkSize(line)
		return
	case watchTrailer:
		if len(line) == 0 {
			h.state = watchRequestLine
		}
		return
	}
	h.noteBare(bare)
}

func (h *headWatch) noteBare(bare bool) {
	if bare {
		h.odd = "a header line ends in LF without CR"
	}
}

// header takes one header line.
func (h *headWatch) header(line []byte) {
	switch line[0] | 0x20 {
	case 'c':
		if v, ok := headerValue(line, "content-length"); ok {
			h.lengths++
			n, ok := parseNumber(v)
			h.length = n
			h.stopped = h.stopped || !ok // net/http refuses it
		}
	case 't':
		if _, ok := headerValue(line, "transfer-encoding"); ok {
			h.codings++
		}
	case ' ', '\t' | 0x20:
		h.odd = "a header goes on in a second line"
	}
}

// headerValue returns the value of line if its field has the lower-case name.
func headerValue(line []byte, name string) ([]byte, bool) {
	if len(line) <= len(name) || line[len(name)] != ':' || !bytes.EqualFold(line[:len(name)], []byte(name)) {
		return nil, false
	}
	return bytes.TrimSpace(line[len(name)+1:]), true
}

// endHead judges the head that just ended and finds out where its body ends.
func (h *headWatch) endHead() {
	h.seen++
	switch {
	case h.codings > 0 && h.lengths > 0:
		h.fault = "Content-Length together with Transfer-Encoding"
	case h.lengths > 1:
		h.fault = "more than one Content-Length"
	case h.codings > 0 && h.http10:
		h.fault = "Transfer-Encoding in HTTP/1.0"
	default:
		h.fault = h.odd
	}
	h.stopped = h.stopped || h.fault != ""
	switch {
	case h.codings > 0:
		h.state = watchChunkSize
	case h.length > 0:
		h.state, h.rest = watchBody, h.length
	default:
		h.state = watchRequestLine
	}
}

// chunkSize takes the line before a chunk: hexadecimal digits, perhaps ;extensions.
func (h *headWatch) chunkSize(line []byte) {
	size, _, _ := bytes.Cut(line, []byte{';'})
	n, err := strconv.ParseUint(string(bytes.TrimSpace(size)), 16, 63)
	switch {
	case err != nil:
		h.stopped = true // net/http refuses it
	case n == 0:
		h.state = watchTrailer
	default:
		h.state, h.rest = watchChunk, n+2 // the chunk ends in CR LF
	}
}
