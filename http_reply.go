package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// Replies: errors and their statuses, headers, request ids, and the deadlines
// of the calls behind them.

// apiError is an error a client sees.
type apiError struct {
	status       int
	code         string
	message      string
	allow        string // 405: the Allow header
	retry        bool   // Retry-After: 1
	close        bool   // the connection cannot be used again
	etag         string // 412: that of the live version
	failed       *int   // index of the operation of an atomic batch that failed
	contentRange string // 416
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

// explain turns any error into one a client may see. The text of an error
// that is not ours stays here: it may name paths.
func (s *server) explain(c *call, err error) *apiError {
	var e *apiError
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, errUnknownOutcome): // before all that says that nothing was applied
		return &apiError{status: 504, code: "unknown_outcome", message: "the request may be applied later; repeat it with the same Idempotency-Key"}
	case errors.Is(err, errArchiveCorrupt), errors.Is(err, errArchiveUnavailable):
		return s.explainArchive(err)
	case errors.Is(err, errNotFound):
		return &apiError{status: 404, code: "not_found", message: "no such version of key " + clip(c.raw)}
	case errors.Is(err, errDeleted):
		return &apiError{status: 404, code: "deleted", message: "key " + clip(c.raw) + " is deleted in this version; /history/ has the others"}
	case errors.Is(err, fs.ErrNotExist):
		return &apiError{status: 404, code: "not_found", message: "no segment " + clip(c.raw)}
	case errors.Is(err, errBeyond):
		return &apiError{status: 404, code: "not_found", message: "the ledger does not reach so far yet"}
	case errors.Is(err, errCorrupt):
		s.o.metrics.store.corrupt.add(1)
		s.o.logger.Error("corrupt data read", "err", err)
		return &apiError{status: 409, code: "corrupt", message: whatDiffers(err)}
	case errors.Is(err, errRemoved):
		return &apiError{status: 503, code: "removed", message: "this node was removed from the cluster and serves nothing until it is joined again"}
	case errors.Is(err, errNoLeader):
		return &apiError{status: 503, code: "no_leader", message: s.whoLeads() + "; nothing was applied", retry: true}
	case errors.Is(err, errTransfer):
		return &apiError{status: 503, code: "transfer_failed", message: oneLine(err), retry: true}
	case errors.Is(err, errNoBucket):
		return &apiError{status: 409, code: "no_bucket", message: err.Error()}
	case errors.Is(err, errArchive):
		return &apiError{status: 503, code: "archive_unavailable", message: err.Error(), retry: true}
	case errors.Is(err, errOverloaded):
		return &apiError{status: 429, code: "overloaded", message: "this node has no room for the request now; nothing was applied", retry: true}
	case errors.Is(err, errDiskFull):
		return &apiError{status: 507, code: "disk_full", message: "the disk is full; nothing was applied"}
	case errors.Is(err, errNotYetApplied):
		return &apiError{status: 504, code: "not_yet_applied", message: "this node did not reach the wanted entry in time"}
	case errors.Is(err, errDiverged):
		return &apiError{status: 409, code: "corrupt", message: whyUnproven(err)}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &apiError{status: 503, code: "timeout", message: "the node did not get to the request in time; nothing was applied", retry: true}
	}
	s.o.logger.Error("request failed", "err", err)
	return &apiError{status: 500, code: "internal", message: "internal error; the log of the node has more"}
}

// explainArchive turns an error of reading what is in the bucket only.
func (s *server) explainArchive(err error) *apiError {
	object := "of the segment"
	if e := (*archiveError)(nil); errors.As(err, &e) {
		object = e.object
	}
	if errors.Is(err, errArchiveCorrupt) {
		s.o.metrics.store.corrupt.add(1)
		s.o.logger.Error("corrupt data in the archive", "err", err)
		return &apiError{status: 502, code: "archive_corrupt", message: "the archived object " + object + " is missing or damaged, and no other node has its segment"}
	}
	s.o.logger.Debug("the archive cannot be read", "err", err) // one for each reader; the store tells when it begins
	return &apiError{status: 503, code: "archive_unavailable", message: "the archive cannot be read now, the entry is in object " + object, retry: true}
}

// whoLeads says why there is no leader to answer a request, and where one may be.
func (s *server) whoLeads() string {
	st := s.node.status()
	if st.leader == nil || st.leader.id == st.nodeID {
		return "no leader is known"
	}
	return fmt.Sprintf("the leader, node %d at %s, did not answer this node", st.leader.id, st.leader.http)
}

// addContact says to who reads without asking the leader how old the answer may be.
func (s *server) addContact(c *call) {
	c.lines.buf = strconv.AppendInt(c.lines.buf, s.node.lastContact(), 10)
	c.lines.end("Scribe-Last-Contact")
}

// refuse answers err and returns the status.
func (s *server) refuse(c *call, err error) int {
	e := s.explain(c, err)
	c.lines.reset()
	s.addRequestID(c)
	if c.stale {
		s.addContact(c)
	}
	c.lines.add("Content-Type", "application/json")
	if e.allow != "" {
		c.lines.add("Allow", e.allow)
	}
	if e.retry {
		c.lines.add("Retry-After", "1")
	}
	if e.close {
		c.conn = nil // only net/http can end the connection
		c.lines.add("Connection", "close")
	}
	if e.etag != "" {
		c.lines.add("Etag", e.etag)
	}
	if e.contentRange != "" {
		c.lines.add("Content-Range", e.contentRange)
	}
	c.answer(reply{status: e.status, body: e.appendJSON(nil)})
	return e.status
}

// errCutOff is returned by a stream whose reply broke off after its head.
var errCutOff = errors.New("reply cut off")

// answer writes a reply whose body is in memory.
func (c *call) answer(rep reply) {
	c.lines.addNumber("Content-Length", uint64(max(rep.size, int64(len(rep.body)))))
	if c.conn != nil && c.r.Method != "HEAD" && len(rep.body) <= maxSpliced {
		c.conn.splice(c, rep)
		return
	}
	c.lines.moveTo(c.w.Header())
	c.w.WriteHeader(rep.status)
	if c.r.Method != "HEAD" {
		c.w.Write(rep.body) // an error means the client is gone
	}
	rep.free()
}

// free gives back the memory of the body.
func (rep *reply) free() {
	if rep.pooled != nil {
		*rep.pooled = rep.body[:0]
		putBody(rep.pooled)
	}
}

// deadlines gives out contexts that end after a time, one for all calls of the
// same moment: a context of its own costs each call five allocations.
type deadlines struct {
	after   time.Duration
	current atomic.Pointer[sharedDeadline]
}

type sharedDeadline struct {
	context.Context
	until time.Time // given out before
}

// context returns a context that ends in d.after, or up to 1/8 later.
func (d *deadlines) context() context.Context {
	now := time.Now()
	if c := d.current.Load(); c != nil && now.Before(c.until) {
		return c.Context
	}
	spread := d.after / 8
	ctx, cancel := context.WithDeadline(context.Background(), now.Add(d.after+spread))
	context.AfterFunc(ctx, cancel)
	d.current.Store(&sharedDeadline{ctx, now.Add(spread)})
	return ctx
}

// headerLines collects the headers of a reply: one string backs all values.
type headerLines struct {
	n      int
	names  [maxLines]string
	ends   [maxLines]int
	buf    []byte
	values [maxLines]string
}

const maxLines = 16

func (l *headerLines) reset() { l.n, l.buf = 0, l.buf[:0] }

// end makes what was appended to buf since the last line the value of name.
func (l *headerLines) end(name string) {
	l.names[l.n], l.ends[l.n] = name, len(l.buf)
	l.n++
}

func (l *headerLines) add(name, value string) {
	l.buf = append(l.buf, value...)
	l.end(name)
}

func (l *headerLines) addNumber(name string, n uint64) {
	l.buf = strconv.AppendUint(l.buf, n, 10)
	l.end(name)
}

func (l *headerLines) addETag(seq uint64) {
	l.buf = append(l.buf, '"')
	l.buf = strconv.AppendUint(l.buf, seq, 10)
	l.buf = append(l.buf, '"')
	l.end("Etag")
}

// moveTo puts the lines into h. The slices in h share l until the next reset.
func (l *headerLines) moveTo(h http.Header) {
	all, start := string(l.buf), 0
	for i := range l.n {
		l.values[i] = all[start:l.ends[i]]
		start = l.ends[i]
		h[l.names[i]] = l.values[i : i+1 : i+1]
	}
	l.reset()
}

// appendTo appends the lines as they go over the wire. What a client stored may
// not become a line of its own.
func (l *headerLines) appendTo(b []byte) []byte {
	start := 0
	for i := range l.n {
		b = append(append(b, l.names[i]...), ':', ' ')
		for _, c := range l.buf[start:l.ends[i]] {
			if c < ' ' || c == 0x7f {
				c = ' '
			}
			b = append(b, c)
		}
		b = append(b, '\r', '\n')
		start = l.ends[i]
	}
	return b
}

// addRequestID adds the X-Request-Id: the client's, if it is sane.
func (s *server) addRequestID(c *call) {
	if ids := c.r.Header["X-Request-Id"]; len(ids) == 1 && saneID(ids[0]) {
		c.lines.add("X-Request-Id", ids[0])
		return
	}
	c.lines.buf = s.appendRequestID(c.lines.buf)
	c.lines.end("X-Request-Id")
}

// appendRequestID appends an id no other request of this process has.
func (s *server) appendRequestID(b []byte) []byte {
	return strconv.AppendUint(append(b, s.idPrefix...), s.ids.Add(1), 10)
}

// saneID accepts 1 to 64 of A-Z a-z 0-9 . _ -
func saneID(id string) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
		if !ok {
			return false
		}
	}
	return true
}
