package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"sync/atomic"
	"time"
)

// POST /batch: an atomic batch as JSON, or a stream of operations as NDJSON.

// batch answers by the content type of its body.
func (s *server) batch(c *call) (reply, error) {
	v, _, err := c.header("Content-Type")
	if err != nil {
		return reply{}, err
	}
	receipt, err := s.wantsReceipt(c)
	if err != nil {
		return reply{}, err
	}
	kind, _, _ := mime.ParseMediaType(v)
	switch kind {
	case "application/json":
		return s.atomicBatch(c, receipt)
	case "application/x-ndjson", "application/ndjson", "application/jsonl":
		if len(c.r.Header["Idempotency-Key"]) > 0 {
			return reply{}, badRequest("malformed", "Idempotency-Key means nothing for a stream of operations")
		}
		return reply{stream: func() error { return s.streamBatch(c, receipt) }}, nil
	}
	return reply{}, &apiError{status: 415, code: "unsupported_media_type", message: "Content-Type is " + clip(v) + ", want application/json or application/x-ndjson"}
}

// atomicBatch applies all operations of the body or none.
func (s *server) atomicBatch(c *call, receipt *proofs) (reply, error) {
	r := &request{atomic: true}
	key, given, err := c.header("Idempotency-Key")
	if err == nil && given && (len(key) == 0 || len(key) > 64) {
		err = badRequest("malformed", "Idempotency-Key has %d bytes, want 1 to 64", len(key))
	}
	if err != nil {
		return reply{}, err
	}
	r.idempotencyKey = key
	body, room, err := s.readBody(c, 2*s.o.maxValueSize+1<<20) // base64 and escapes take room
	if err != nil {
		return reply{}, err
	}
	defer s.giveBack(room)
	scan, failed := opScanner{b: body}, 0
	if r.ops, failed, err = scan.ops(); err == nil {
		failed, err = s.checkOps(r.ops)
	}
	var e *apiError
	if errors.As(err, &e) && failed >= 0 {
		e.failed = &failed
	}
	if err != nil {
		return reply{}, err
	}
	res, err := s.node.submit(s.writes.context(), r)
	if err == nil {
		err = s.judge(r, &res)
	}
	if err != nil {
		return reply{}, err
	}
	return s.batchReply(c, &res, receipt)
}

// checkOps reports the first operation this server does not take.
func (s *server) checkOps(ops []operation) (failed int, err error) {
	if len(ops) == 0 {
		return -1, badRequest("malformed", "the batch has no operations")
	}
	total := int64(0)
	for i := range ops {
		if err := s.checkAllowed(&ops[i]); err != nil {
			return i, err
		}
		if total += int64(len(ops[i].value)); total > s.o.maxValueSize {
			e := &apiError{status: 413, code: "value_too_large"}
			e.message = "the values of the batch are together larger than " + decimal(s.o.maxValueSize) + " bytes"
			return i, e
		}
	}
	return -1, nil
}

// checkAllowed reports an operation that the configuration forbids.
func (s *server) checkAllowed(o *operation) error {
	if o.kind == opDelete && !s.o.allowDelete {
		return &apiError{status: 405, code: "deletes_disabled", message: "this ledger takes no deletes (allow_delete = false)", allow: "POST"}
	}
	if size := int64(len(o.value)); size > s.o.maxValueSize {
		return &apiError{status: 413, code: "value_too_large", message: "the value has " + decimal(size) + " bytes, at most " + decimal(s.o.maxValueSize) + " are taken"}
	}
	return nil
}

// batchReply answers with the entries of an atomic batch. With receipts they
// may be many times what was sent, so they go out as they are made.
func (s *server) batchReply(c *call, res *result, receipt *proofs) (reply, error) {
	if receipt != nil {
		return reply{stream: func() error { return s.streamResults(c, res, receipt) }}, nil
	}
	b := []byte(`{"results":[`)
	for i, raw := range res.headers {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendRaw(b, raw, nil); err != nil {
			return reply{}, err
		}
	}
	return jsonReply(c, append(b, "]}\n"...)), nil
}

// streamResults writes the entries of an atomic batch with their receipts.
func (s *server) streamResults(c *call, res *result, receipt *proofs) error {
	c.lines.add("Content-Type", "application/json")
	c.lines.moveTo(c.w.Header())
	c.w.WriteHeader(http.StatusOK)
	w := bufio.NewWriterSize(&patientWriter{ResponseWriter: c.w, patience: s.limits.write}, lineChunkSize)
	w.WriteString(`{"results":[`)
	for i, raw := range res.headers {
		if i > 0 {
			w.WriteByte(',')
		}
		b, err := appendRaw(w.AvailableBuffer(), raw, receipt)
		if err != nil {
			return errCutOff
		}
		if _, err := w.Write(b); err != nil {
			return errCutOff
		}
	}
	w.WriteString("]}\n")
	if w.Flush() != nil {
		return errCutOff
	}
	return nil
}

// appendRaw appends the JSON entry of a canonical header, with its receipt if
// one is wanted.
func appendRaw(b, raw []byte, receipt *proofs) ([]byte, error) {
	h, err := parseHeader(raw)
	if err != nil {
		return b, err
	}
	leaf := leafHash(raw)
	return receipt.receipt(appendEntry(b, &h, &leaf), h.seq), nil
}

// A stream of operations has two goroutines: the handler's reads lines and
// submits them, a second one writes their results in order. Between them is a
// queue of lines, whose bounds are the stream's share of the node:
const (
	maxQueuedLines = 4096
	maxQueuedBytes = 8 << 20
	lineChunkSize  = 64 << 10 // of the memory that lines are read into
	flushDelay     = 2 * time.Millisecond
)

// lineStream is one POST /batch of application/x-ndjson.
type lineStream struct {
	s *server
	c *call

	receipt *proofs // owned by the writer; nil = none wanted

	queue   chan *batchLine           // in the order of the input; closed after the last
	waited  atomic.Pointer[batchLine] // the line the writer waits for
	arrived chan struct{}             // wakes the writer, once the waited line is done
	queued  atomic.Int64              // bytes of lines that have no result yet
	drained chan struct{}             // wakes the reader, when queued fell
	broken  atomic.Bool               // the client no longer reads

	// owned by the reader
	chunk *lineChunk
	slab  []batchLine // lines not used yet
}

// batchLine is one operation of a stream on its way.
type batchLine struct {
	singleOp
	stream *lineStream
	chunk  *lineChunk
	size   int64
	res    result
	err    error
	done   atomic.Bool // res and err are there
}

// finish is called once, from any goroutine, with the fate of the line.
func (l *batchLine) finish(res result, err error) {
	l.res, l.err = res, err
	l.done.Store(true)
	if l.stream.waited.Load() == l {
		wakeUp(l.stream.arrived)
	}
}

func wakeUp(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// lineChunk is memory that several lines were read into.
type lineChunk struct {
	b     []byte
	room  bodyRoom
	lines atomic.Int32 // that still use it, and one for the reader
}

func (s *server) dropLineChunk(k *lineChunk) {
	if k.lines.Add(-1) == 0 {
		s.giveBack(k.room)
	}
}

// streamBatch runs a stream of operations to its end.
func (s *server) streamBatch(c *call, receipt *proofs) error {
	rc := http.NewResponseController(c.w)
	if err := rc.EnableFullDuplex(); err != nil {
		return err
	}
	c.lines.add("Content-Type", "application/x-ndjson")
	c.lines.moveTo(c.w.Header())
	t := &lineStream{s: s, c: c, receipt: receipt,
		queue:   make(chan *batchLine, maxQueuedLines),
		arrived: make(chan struct{}, 1),
		drained: make(chan struct{}, 1),
	}
	m := &s.o.metrics.batch
	m.streams.add(1)
	defer m.streams.add(-1)
	stop := context.AfterFunc(s.closing, func() { rc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t.writeResults()
	}()
	if err := t.readLines(); err != nil {
		t.enqueue(&batchLine{stream: t, err: err}, true)
	}
	close(t.queue)
	<-ended
	if t.broken.Load() {
		return errCutOff
	}
	return nil
}

// readLines submits each line of the body. It returns an error that ends the
// stream, to be its last line.
func (t *lineStream) readLines() error {
	limit := int(t.s.o.maxValueSize/3*4) + 8*maxKeySize // of a line
	first, err := t.newLineChunk(freeBody / 2)
	if err != nil {
		return err
	}
	t.chunk = first
	defer func() { t.s.dropLineChunk(t.chunk) }()
	start, end, skip := 0, 0, false // of the bytes that are no whole line yet
	for !t.broken.Load() {
		if end == len(t.chunk.b) || start == end && end > lineChunkSize {
			if start == 0 && end >= limit {
				t.lineError(&apiError{status: 413, code: "value_too_large", message: "the line has more than " + decimal(int64(limit)) + " bytes"}, !skip)
				skip, end = true, 0
			} else if start, end, err = t.moveOn(start, end, limit); err != nil {
				return err
			}
		}
		t.patience(start < end)
		n, err := t.c.r.Body.Read(t.chunk.b[end:])
		t.s.o.metrics.http.bodyBytes.add(uint64(n))
		scan := end
		for end += n; ; {
			i := bytes.IndexByte(t.chunk.b[scan:end], '\n')
			if i < 0 {
				break
			}
			if !skip {
				t.submit(t.chunk.b[start : scan+i])
			}
			skip, start, scan = false, scan+i+1, scan+i+1
		}
		if err == io.EOF {
			if !skip {
				t.submit(t.chunk.b[start:end])
			}
			return nil
		}
		if err != nil && t.s.closing.Err() != nil {
			return &apiError{status: 503, code: "shutting_down", message: "the node stops; lines after this one were not read"}
		}
		if err != nil {
			return bodyError(err)
		}
	}
	return nil
}

// patience sets the time for the next read: less while a line is under way.
func (t *lineStream) patience(inLine bool) {
	d := t.s.limits.idle
	if inLine {
		d = t.s.limits.body
	}
	t.s.patience(t.c, d)
	if t.s.closing.Err() != nil { // shutdown may have set its own before we did
		t.s.patience(t.c, -time.Hour)
	}
}

// moveOn takes the bytes of an unfinished line into a new chunk, which is much
// larger if the line filled the old one.
func (t *lineStream) moveOn(start, end, limit int) (int, int, error) {
	size := 2 * (end - start)
	if start == 0 {
		size = 8 * end
	}
	size = max(lineChunkSize, min(size, limit))
	k, err := t.newLineChunk(size)
	if err != nil {
		return 0, 0, err
	}
	n := copy(k.b, t.chunk.b[start:end])
	t.s.dropLineChunk(t.chunk)
	t.chunk = k
	return 0, n, nil
}

func (t *lineStream) newLineChunk(size int) (*lineChunk, error) {
	room, err := t.s.reserveBody(int64(size))
	if err != nil {
		return nil, err
	}
	k := &lineChunk{b: make([]byte, size), room: room}
	k.lines.Store(1)
	return k, nil
}

// lineError answers a line with an error, if fresh.
func (t *lineStream) lineError(err error, fresh bool) {
	if fresh {
		t.enqueue(&batchLine{stream: t, err: err}, true)
	}
}

// submit hands one line to the node and queues it for the writer.
func (t *lineStream) submit(text []byte) {
	scan := opScanner{b: text}
	if scan.peek(); scan.i == len(text) {
		return // nothing but white space
	}
	if len(t.slab) == 0 {
		t.slab = make([]batchLine, 64)
	}
	l := &t.slab[0]
	t.slab = t.slab[1:]
	l.stream, l.chunk, l.size = t, t.chunk, int64(len(text))
	l.ops = l.op[:]
	err := scan.op(&l.op[0])
	if err == nil {
		err = scan.end()
	}
	if err == nil {
		err = t.s.checkAllowed(&l.op[0])
	}
	l.err = err
	t.chunk.lines.Add(1)
	large := err == nil && requestSize(&l.request) > packSize
	if large { // submitAsync keeps the order of smaller ones only
		t.settle()
	}
	t.enqueue(l, err != nil)
	if err != nil {
		return
	}
	if err := t.s.node.submitAsync(&l.request, l.finish); err != nil {
		l.finish(result{}, err)
	}
	if large {
		t.settle()
	}
}

// settle waits until every line so far has its result.
func (t *lineStream) settle() {
	for t.queued.Load() > 0 {
		<-t.drained
	}
}

// enqueue gives l to the writer, waiting for room. A line that is not sent to
// the node is done.
func (t *lineStream) enqueue(l *batchLine, done bool) {
	t.s.o.metrics.batch.lines.add(1)
	for t.queued.Load() > 0 && t.queued.Load()+l.size > maxQueuedBytes {
		<-t.drained
	}
	t.queued.Add(l.size)
	if done {
		l.done.Store(true)
	}
	t.queue <- l
}

// writeResults writes the results in the order of the lines until the queue is
// closed. It flushes before it waits longer than flushDelay.
func (t *lineStream) writeResults() {
	w := &patientWriter{ResponseWriter: t.c.w, patience: t.s.limits.write}
	b := make([]byte, 0, lineChunkSize)
	flush := func() {
		if len(b) > 0 && !t.broken.Load() {
			_, err := w.Write(b)
			if err == nil {
				err = http.NewResponseController(t.c.w).Flush()
			}
			t.broken.Store(err != nil)
		}
		b = b[:0]
	}
	timer := time.NewTimer(time.Hour)
	for {
		var l *batchLine
		select {
		case l = <-t.queue:
		default:
			flush()
			l = <-t.queue
		}
		if l == nil {
			flush()
			return
		}
		for t.waited.Store(l); !l.done.Load(); {
			timer.Reset(flushDelay)
			select {
			case <-t.arrived:
			case <-timer.C:
				flush()
				<-t.arrived
			}
		}
		if b = t.appendResult(b, l); len(b) > lineChunkSize*3/4 {
			flush()
		}
	}
}

// appendResult appends the line of l and gives back what l held.
func (t *lineStream) appendResult(b []byte, l *batchLine) []byte {
	err := l.err
	if err == nil {
		err = t.s.judge(&l.request, &l.res)
	}
	if err == nil {
		if b, err = appendRaw(b, l.res.headers[0], t.receipt); err == nil {
			b = append(b, '\n')
		}
	}
	if err != nil {
		t.s.o.metrics.batch.failed.add(1)
		b = t.s.explain(t.c, err).appendJSON(b)
	}
	if l.chunk != nil {
		t.s.dropLineChunk(l.chunk)
	}
	t.queued.Add(-l.size)
	wakeUp(t.drained)
	return b
}
