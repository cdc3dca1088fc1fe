package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
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
//
// It also carries the headers of small replies past net/http, whose map of
// headers is made, copied, sorted and written for 6 µs a reply. See splice.

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
	lazy := newLazyConn(c)
	l.s.sweeper.add(lazy)
	return &clientConn{lazyConn: lazy, s: l.s}, nil
}

// clientConn is one connection of a client. HTTP/1 has one request under way
// at a time, so the scratch space of the handler lives here too.
type clientConn struct {
	*lazyConn
	s      *server
	closed atomic.Bool
	heads  headWatch     // owned by Read, which net/http never calls twice at once
	fault  atomic.Uint64 // number of the request whose head is unusable, from 1; 0 = none
	ours   atomic.Bool   // the reply under way is a handler's
	late   atomic.Bool   // a read ran into its deadline since the last reply
	served uint64        // requests that reached the handler; owned by the handler
	call   call          // owned by the handler

	// A reply that waits for net/http to end the request; see splice. Written by
	// the handler, taken by the Write that follows it.
	head   []byte // status line and our headers; empty = none
	spared reply
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
	own, ok := c.(*clientConn)
	if !ok || state != http.StateActive && state != http.StateIdle {
		return
	}
	own.ours.Store(false)
	if state == http.StateIdle {
		own.late.Store(false) // net/http ends its own reads by a deadline
	}
}

func (c *clientConn) Read(p []byte) (int, error) {
	n, err := c.lazyConn.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.late.Store(true)
	}
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
	c.head = c.head[:0]
	c.served++
	if c.fault.Load() == c.served {
		return c.heads.fault
	}
	return ""
}

func (c *clientConn) Write(p []byte) (int, error) {
	if len(c.head) > 0 {
		return c.writeSpliced(p)
	}
	if c.ours.Load() || !bytes.HasPrefix(p, []byte("HTTP/1.1 ")) || len(p) < 12 {
		return c.Conn.Write(p)
	}
	status, err := strconv.Atoi(string(p[9:12]))
	if err != nil || status < 400 {
		return c.Conn.Write(p)
	}
	if c.late.Load() {
		status = http.StatusRequestTimeout
	}
	c.s.o.metrics.http.refused.add(1)
	if _, err := c.Conn.Write(c.s.refusal(status)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// maxSpliced is the largest body whose reply is spliced: a larger one would
// have to be kept for each connection.
const maxSpliced = 4 << 10

// splice keeps a whole reply until the handler has returned without one. Then
// net/http writes that of an empty 200, at once, since it has nothing else:
//
//	HTTP/1.1 200 OK
//	Date: Sun, 22 Nov 2026 15:00:00 GMT
//	Content-Length: 0
//	Connection: close          only if it will close
//
// writeSpliced puts ours in its place, with its Date and Connection.
func (c *clientConn) splice(call *call, rep reply) {
	b := append(c.head[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(rep.status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(rep.status)...)
	b = append(b, '\r', '\n')
	c.head, c.spared = call.lines.appendTo(b), rep
	call.lines.reset()
}

// errSplice ends a connection on which net/http wrote something else than the
// reply splice waits for; it can only come from a newer net/http.
var errSplice = errors.New("http: the empty reply has an unknown form")

func (c *clientConn) writeSpliced(p []byte) (int, error) {
	b, rep := c.head, c.spared
	c.head, c.spared = c.head[:0], reply{}
	defer rep.free()
	status, rest, ok := bytes.Cut(p, []byte("\r\n"))
	before, after, ok2 := bytes.Cut(rest, []byte("Content-Length: 0\r\n"))
	if !ok || !ok2 || !bytes.HasSuffix(after, []byte("\r\n")) || !bytes.HasSuffix(status, []byte(" 200 OK")) {
		return 0, errSplice
	}
	copy(b, p[:len("HTTP/1.1")]) // 1.0 to a client of that
	b = append(append(b, before...), after...)
	b = append(b, rep.body...)
	c.head = b[:0]
	if _, err := c.Conn.Write(b); err != nil {
		return 0, err
	}
	return len(p), nil
}

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
		c.s.sweeper.remove(c.lazyConn)
	}
	return c.lazyConn.Close()
}

// refusal is the whole reply to a request that net/http could not parse.
func (s *server) refusal(status int) []byte {
	e := &apiError{status: status, code: "malformed", message: "the request is not valid HTTP/1.1"}
	switch status {
	case http.StatusRequestTimeout:
		e.code, e.message = "request_timeout", "the head of the request came too slowly"
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
