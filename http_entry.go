package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The calls on one key: PUT, GET, HEAD, DELETE.

// singleOp is a request of one operation, in one allocation.
type singleOp struct {
	request
	op [1]operation
}

// put appends a new version of a key.
func (s *server) put(c *call) (reply, error) {
	if err := checkKey(c); err != nil {
		return reply{}, err
	}
	receipt, err := s.wantsReceipt(c)
	if err != nil {
		return reply{}, err
	}
	r, err := s.change(c, opPut)
	if err != nil {
		return reply{}, err
	}
	op := &r.op[0]
	if op.contentType, err = contentType(c); err != nil {
		return reply{}, err
	}
	if op.digest, err = digestOf(c.r.Header); err != nil {
		return reply{}, err
	}
	value, room, err := s.readBody(c, s.o.maxValueSize)
	if err != nil {
		return reply{}, err
	}
	defer s.giveBack(room)
	op.value = value
	if op.digest != nil {
		if sum := hash(sha256.Sum256(value)); sum != *op.digest {
			return reply{}, digestMismatch(&sum, op.digest)
		}
	}
	return s.submit(c, &r.request, receipt)
}

// delete appends a tombstone.
func (s *server) delete(c *call) (reply, error) {
	if err := checkKey(c); err != nil {
		return reply{}, err
	}
	receipt, err := s.wantsReceipt(c)
	if err != nil {
		return reply{}, err
	}
	r, err := s.change(c, opDelete)
	if err != nil {
		return reply{}, err
	}
	if r.op[0].ifAbsent {
		return reply{}, badRequest("malformed", "If-None-Match: * never holds for DELETE")
	}
	return s.submit(c, &r.request, receipt)
}

func (s *server) deletesDisabled(c *call) (reply, error) {
	return reply{}, &apiError{status: 405, code: "deletes_disabled", message: "this ledger takes no deletes (allow_delete = false)", allow: s.entry.allow}
}

// checkKey reports a key that no entry can have.
func checkKey(c *call) error {
	switch {
	case len(c.key) == 0:
		return badRequest("empty_key", "the key is empty, want 1 to %d bytes", maxKeySize)
	case len(c.key) > maxKeySize:
		return badRequest("key_too_large", "the key has %d bytes, want 1 to %d", len(c.key), maxKeySize)
	}
	return nil
}

// change returns the request for c's key with the conditions of its headers.
func (s *server) change(c *call, kind opKind) (*singleOp, error) {
	r := &singleOp{}
	r.ops = r.op[:]
	op := &r.op[0]
	op.kind, op.key, op.ifSeq = kind, c.key, noSeq
	for _, name := range [...]string{"If-Unmodified-Since", "If-Modified-Since", "If-Range", "Content-Range"} {
		if len(c.r.Header[name]) > 0 {
			return nil, badRequest("malformed", "header %s means nothing for %s", name, kind)
		}
	}
	v, given, err := c.header("If-None-Match")
	if err == nil && given && v != "*" {
		err = badRequest("malformed", "If-None-Match is %q, want *", clip(v))
	}
	if err != nil {
		return nil, err
	}
	op.ifAbsent = given
	v, given, err = c.header("If-Match")
	if err == nil && given {
		op.ifSeq, err = parseETag(v)
	}
	if err == nil && given && op.ifAbsent {
		err = badRequest("malformed", "If-Match and If-None-Match contradict each other")
	}
	if err != nil {
		return nil, err
	}
	v, given, err = c.header("Idempotency-Key")
	if err == nil && given && (len(v) == 0 || len(v) > 64) {
		err = badRequest("malformed", "Idempotency-Key has %d bytes, want 1 to 64", len(v))
	}
	r.idempotencyKey = v
	return r, err
}

// parseETag reads the strong ETag of an entry, "<seq>".
func parseETag(v string) (uint64, error) {
	if len(v) > 2 && v[0] == '"' && v[len(v)-1] == '"' {
		if seq, ok := parseNumber([]byte(v[1 : len(v)-1])); ok && seq != noSeq {
			return seq, nil
		}
	}
	return 0, badRequest("malformed", `If-Match is %q, want one ETag "<seq>"`, clip(v))
}

// contentType returns the content type to store.
func contentType(c *call) (string, error) {
	v, _, err := c.header("Content-Type")
	if err == nil && (len(v) > maxLabelSize || !utf8.ValidString(v)) {
		err = badRequest("malformed", "Content-Type %.40q is not UTF-8 of at most %d bytes", v, maxLabelSize)
	}
	return v, err
}

func digestMismatch(got, want *hash) error {
	return badRequest("digest_mismatch", "the value has SHA-256 %s, its digest header says %s", got, want)
}

// submit has a request of one operation agreed and answers with its entry, and
// with its receipt if one is wanted.
func (s *server) submit(c *call, r *request, receipt *proofs) (reply, error) {
	res, err := s.node.submit(s.writes.context(), r)
	if err == nil {
		err = s.judge(r, &res)
	}
	if err != nil {
		return reply{}, err
	}
	h, err := parseHeader(res.headers[0])
	if err != nil {
		return reply{}, err
	}
	leaf := leafHash(res.headers[0])
	rep := reply{status: http.StatusOK, pooled: getBody()}
	if h.version == 1 && h.op == opPut {
		rep.status = http.StatusCreated
	}
	c.lines.addETag(h.seq)
	c.lines.add("Content-Type", "application/json")
	rep.body = append(receipt.receipt(appendEntry(*rep.pooled, &h, &leaf), h.seq), '\n')
	return rep, nil
}

// judge counts the outcome of r and turns one that is not applied into the
// error a client sees.
func (s *server) judge(r *request, res *result) error {
	m := &s.o.metrics.ledger
	if res.outcome == outcomeApplied && len(res.headers) == len(r.ops) {
		m.writes.add(uint64(len(r.ops)))
		return nil
	}
	var e *apiError
	switch {
	case res.outcome == outcomePrecondition:
		m.conflicts.add(1)
		e = &apiError{status: 412, code: "precondition_failed"}
		e.message = "the key has no live version"
		if res.current != noSeq {
			e.etag = `"` + strconv.FormatUint(res.current, 10) + `"`
			e.message = "the live version of the key is " + e.etag
		}
	case res.outcome == outcomeNotFound:
		e = &apiError{status: 404, code: "not_found", message: "there is nothing to delete: the key has no live version"}
	case res.outcome == outcomeDigestMismatch:
		e = badRequest("digest_mismatch", "the value does not have the SHA-256 that its digest header says")
	default:
		return errors.New("the node answered a request of " + strconv.Itoa(len(r.ops)) + " operations with outcome " +
			strconv.Itoa(int(res.outcome)) + " and " + strconv.Itoa(len(res.headers)) + " headers")
	}
	if r.atomic {
		e.failed = &res.failed
	}
	return e
}

// prepareGet returns which version of its key c asks for, once this node may answer.
func (s *server) prepareGet(c *call) (selector, error) {
	if err := checkKey(c); err != nil {
		return selector{}, err
	}
	sel, err := c.selector()
	if err != nil {
		return selector{}, err
	}
	return sel, s.prepareRead(c)
}

// get answers with a value.
func (s *server) get(c *call) (reply, error) {
	sel, err := s.prepareGet(c)
	if err != nil {
		return reply{}, err
	}
	e, err := s.store.get(c.key, sel)
	if err != nil {
		return reply{}, err
	}
	s.o.metrics.ledger.reads.add(1)
	s.describe(c, &e)
	if wantsPart(c.r.Header) {
		return reply{stream: func() error { return s.servePart(c, &e) }}, nil
	}
	if c.r.Method == "HEAD" {
		return reply{status: http.StatusOK, size: int64(e.size)}, nil
	}
	if e.size > maxPooled {
		return reply{stream: func() error { return s.serveWhole(c, &e) }}, nil
	}
	return readValue(&e)
}

// selector reads which version the query asks for; at most one of its
// parameters may be given.
func (c *call) selector() (selector, error) {
	var sel selector
	if len(c.query) == 0 {
		return sel, nil
	}
	version, byVersion, err := c.number("version", 1, noSeq)
	if err != nil {
		return sel, err
	}
	sel.version = version
	seq, bySeq, err := c.number("seq", 0, noSeq-1)
	if err != nil {
		return sel, err
	}
	if bySeq {
		sel.seq = &seq
	}
	at, byTime, err := c.param("at")
	if err != nil {
		return sel, err
	}
	if byTime {
		err = sel.setAt(at)
	}
	if byVersion && bySeq || byVersion && byTime || bySeq && byTime {
		err = badRequest("malformed", "version, seq and at exclude each other")
	}
	return sel, err
}

// setAt reads a seq, or a time as RFC 3339.
func (sel *selector) setAt(at string) error {
	if seq, ok := parseNumber([]byte(at)); ok {
		sel.atSeq = &seq
		return nil
	}
	// The + of a time zone arrives as a space when the client did not escape it.
	t, err := time.Parse(time.RFC3339, strings.Replace(at, " ", "+", 1))
	if err != nil {
		return badRequest("malformed", "at is %q, want a seq or an RFC 3339 time", clip(at))
	}
	ms := t.UnixMilli()
	sel.atTime = &ms
	return nil
}

// prepareRead returns when this node may answer the read c: it holds what the
// wanted consistency asks for.
func (s *server) prepareRead(c *call) error {
	consistency, err := s.consistencyOf(c)
	if err != nil {
		return err
	}
	minSeq, wait := uint64(0), false
	if len(c.query) > 0 {
		if minSeq, wait, err = c.number("min_seq", 0, 1<<63-1); err != nil {
			return err
		}
	}
	if consistency == "linearizable" {
		if err = s.node.confirmRead(s.reads.context()); err != nil {
			return readTimeout(err)
		}
	} else {
		if err = s.node.mayServe(); err != nil {
			return err
		}
		c.stale = true
		s.addContact(c)
	}
	if wait && s.store.size() <= minSeq {
		err = s.store.waitSize(s.reads.context(), minSeq+1)
		if errors.Is(err, context.DeadlineExceeded) {
			err = errNotYetApplied
		}
	}
	return err
}

// consistencyOf returns the consistency a read asks for: linearizable or stale.
func (s *server) consistencyOf(c *call) (string, error) {
	v, given, err := c.param("consistency")
	switch {
	case err != nil:
		return "", err
	case !given:
		return s.o.consistency, nil
	case v != "linearizable" && v != "stale":
		return "", badRequest("malformed", "consistency is %q, want linearizable or stale", clip(v))
	}
	return v, nil
}

// readTimeout is what a client sees when a read could not be confirmed in time.
func readTimeout(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return &apiError{status: 504, code: "timeout", message: "the leader did not confirm the read in time", retry: true}
	}
	return err
}

// describe adds the headers of an entry.
func (s *server) describe(c *call, e *entry) {
	l := &c.lines
	l.addETag(e.seq)
	l.buf = append(l.buf, "sha-256=:"...)
	l.buf = base64.StdEncoding.AppendEncode(l.buf, e.sum[:])
	l.buf = append(l.buf, ':')
	l.end("Repr-Digest")
	l.buf = time.UnixMilli(e.time).UTC().AppendFormat(l.buf, http.TimeFormat)
	l.end("Last-Modified")
	l.addNumber("Scribe-Seq", e.seq)
	l.addNumber("Scribe-Version", e.version)
	l.buf = appendTime(l.buf, e.time)
	l.end("Scribe-Time")
	l.addNumber("Scribe-Ledger-Size", s.store.size())
	l.add("Accept-Ranges", "bytes")
	if e.contentType != "" {
		l.add("Content-Type", e.contentType)
	} else {
		l.add("Content-Type", "application/octet-stream")
	}
}

// readValue answers with a value that is read in one go.
func readValue(e *entry) (reply, error) {
	rep := reply{status: http.StatusOK, pooled: getBody()}
	b := *rep.pooled
	if uint64(cap(b)) < e.size {
		b = make([]byte, e.size)
	}
	rep.body = b[:e.size]
	if err := readAtFull(e.value, rep.body, 0); err != nil {
		return reply{}, err
	}
	return rep, nil
}

// readAtFull fills p from offset of r, a stored value, which may answer io.EOF
// with the last byte.
func readAtFull(r io.ReaderAt, p []byte, offset int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := r.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	return unreadable(err)
}

// unreadable says of a stored value that cannot be read, or not to its end,
// that it is damaged.
func unreadable(err error) error {
	if damagedFile(err) && !errors.Is(err, errCorrupt) && !errors.Is(err, errArchiveCorrupt) {
		return fmt.Errorf("%w: the value cannot be read to its end: %v", errCorrupt, err)
	}
	return err
}

// wantsPart reports whether the reply depends on headers that http.ServeContent
// knows all about.
func wantsPart(h http.Header) bool {
	return len(h["Range"]) > 0 || len(h["If-None-Match"]) > 0 || len(h["If-Modified-Since"]) > 0 ||
		len(h["If-Match"]) > 0 || len(h["If-Unmodified-Since"]) > 0
}

// servePart answers a conditional GET or one with a Range.
func (s *server) servePart(c *call, e *entry) error {
	return s.serveContent(c, io.NewSectionReader(e.value, 0, int64(e.size)), time.UnixMilli(e.time))
}

// serveWhole streams a large value.
func (s *server) serveWhole(c *call, e *entry) error {
	c.lines.addNumber("Content-Length", e.size)
	c.lines.moveTo(c.w.Header())
	c.w.WriteHeader(http.StatusOK)
	w := &patientWriter{ResponseWriter: c.w, patience: s.limits.write}
	if _, err := io.CopyBuffer(w, io.NewSectionReader(e.value, 0, int64(e.size)), make([]byte, bodyPiece)); err != nil {
		s.o.logger.Debug("value cut off", "key", c.raw, "err", err)
		return errCutOff
	}
	return nil
}

// serveContent lets net/http answer with content, whose headers are in
// c.lines, as the request's conditions and Range ask. Its errors become ours.
func (s *server) serveContent(c *call, content io.ReadSeeker, changed time.Time) error {
	for _, name := range [...]string{"Range", "If-Range"} {
		if _, _, err := c.header(name); err != nil {
			return err
		}
	}
	c.lines.moveTo(c.w.Header())
	h := c.w.Header()
	etag := h.Get("Etag")
	w := &patientWriter{ResponseWriter: c.w, patience: s.limits.write, guard: true}
	watched := &watchedContent{ReadSeeker: content}
	http.ServeContent(w, c.r, "", changed, watched)
	switch {
	case w.refused != 0:
	case w.held != 0 && watched.err != nil: // nothing was sent yet
		clear(h)
		return watched.err
	case w.err != nil, watched.err != nil:
		s.o.logger.Debug("content cut off", "key", c.raw, "err", errors.Join(w.err, watched.err))
		return errCutOff
	default:
		w.release()
		return nil
	}
	e := &apiError{status: w.refused, etag: etag, contentRange: h.Get("Content-Range")}
	clear(h) // its values share the memory of c.lines, which the error will use
	switch w.refused {
	case http.StatusRequestedRangeNotSatisfiable:
		e.code, e.message = "range_not_satisfiable", "Range is "+clip(c.r.Header.Get("Range"))
	case http.StatusPreconditionFailed:
		e.code, e.message = "precondition_failed", "the entry does not meet the conditions of the request"
	default:
		return errors.New("ServeContent answered " + strconv.Itoa(w.refused))
	}
	return e
}

// watchedContent keeps the error that ended the reading of it.
type watchedContent struct {
	io.ReadSeeker
	err error
}

func (c *watchedContent) Read(p []byte) (int, error) {
	n, err := c.ReadSeeker.Read(p)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

// patientWriter gives each write its own time, so that a reply may take as long
// as it likes while the client reads.
type patientWriter struct {
	http.ResponseWriter
	patience time.Duration
	guard    bool // keep statuses from 400 back, in refused, and others in held until there is something to send
	refused  int
	held     int
	err      error // of the first write that was not whole
}

func (w *patientWriter) WriteHeader(status int) {
	switch {
	case w.guard && status >= 400:
		w.refused = status
	case w.guard:
		w.held = status
	default:
		w.ResponseWriter.WriteHeader(status)
	}
}

// release sends the status that is held.
func (w *patientWriter) release() {
	if w.held != 0 {
		w.ResponseWriter.WriteHeader(w.held)
		w.held = 0
	}
}

func (w *patientWriter) Write(p []byte) (int, error) {
	if w.refused != 0 {
		return len(p), nil
	}
	w.release()
	http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(w.patience))
	n, err := w.ResponseWriter.Write(p)
	if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}
