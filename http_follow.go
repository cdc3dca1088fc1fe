package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// GET /ledger/entries: the ledger as a stream, to its end or for as long as the
// client stays. It goes out in one of two forms:
//
//	NDJSON              SSE (Accept: text/event-stream)
//	{entry}\n           id: <seq>\ndata: {entry}\n\n
//	{"error":{…}}\n     event: error\ndata: {"error":{…}}\n\n    then it breaks off
//	                    :\n\n                                     a sign of life
//
// One goroutine, that of the request, reads an entry and writes it; it keeps
// nothing between two entries but a buffer, so a slow client holds up itself
// alone. It ends when the client is gone, when a piece cannot be written within
// limits.write, or when the node stops.

// entryRange is what a stream of entries holds.
type entryRange struct {
	from   uint64 // seq
	limit  uint64 // entries
	prefix string
	values bool
	follow bool // go on with what is written later
	events bool // SSE
}

// entries streams the ledger.
func (s *server) entries(c *call) (reply, error) {
	want, err := c.entryRange()
	if err != nil {
		return reply{}, err
	}
	if err := s.prepareRead(c); err != nil {
		return reply{}, err
	}
	if want.follow {
		c.route = routeFollow
	} else if want.from < s.store.size() {
		if _, err := s.readEntry(&want, want.from); err != nil {
			return reply{}, err // damage where it begins has a status of its own
		}
	}
	return reply{stream: func() error { return s.streamEntries(c, want) }}, nil
}

// readEntry reads entry seq, with its value if that is wanted.
func (s *server) readEntry(want *entryRange, seq uint64) (entry, error) {
	if want.values {
		return s.store.entryAt(seq)
	}
	return s.store.headerAt(seq)
}

// entryRange reads the query and the headers that say what to stream.
func (c *call) entryRange() (want entryRange, err error) {
	if want.follow, err = c.flag("follow"); err != nil {
		return want, err
	}
	if want.values, err = c.flag("values"); err != nil {
		return want, err
	}
	if want.from, _, err = c.number("from", 0, noSeq); err != nil {
		return want, err
	}
	limit, limited, err := c.number("limit", 1, noSeq)
	if err != nil {
		return want, err
	}
	if want.limit = limit; !limited {
		want.limit = noSeq
	}
	prefix, _, err := c.bytes("prefix")
	if err != nil {
		return want, err
	}
	want.prefix = string(prefix)
	want.events = wantsEvents(c.r.Header["Accept"])
	last, given, err := c.header("Last-Event-Id")
	if err != nil || !given || last == "" || !want.events {
		return want, err
	}
	seq, ok := parseNumber([]byte(last))
	if !ok || seq == noSeq {
		return want, badRequest("malformed", "Last-Event-ID is %q, want the id of an event", clip(last))
	}
	want.from = seq + 1
	return want, nil
}

// wantsEvents reports whether Accept names SSE.
func wantsEvents(accept []string) bool {
	for _, one := range strings.Split(strings.Join(accept, ","), ",") {
		kind, _, _ := strings.Cut(one, ";")
		if strings.EqualFold(strings.TrimSpace(kind), "text/event-stream") {
			return true
		}
	}
	return false
}

// entryStream is one GET /ledger/entries under way.
type entryStream struct {
	s    *server
	c    *call
	want entryRange
	ctx  context.Context // ends with the client or the node
	w    *bufio.Writer
	out  *patientWriter // behind w
	sent time.Time      // when the client last got something
}

// streamEntries writes the entries of want.
func (s *server) streamEntries(c *call, want entryRange) error {
	http.NewResponseController(c.w).SetReadDeadline(time.Time{}) // a timeout would end r's context
	kind := "application/x-ndjson"
	if want.events {
		kind = "text/event-stream"
	}
	c.lines.add("Content-Type", kind)
	c.lines.add("Cache-Control", "no-store")
	c.lines.addNumber("Scribe-Ledger-Size", s.store.size())
	c.lines.moveTo(c.w.Header())
	c.w.WriteHeader(http.StatusOK)
	if c.r.Method == "HEAD" {
		return nil
	}
	if c.conn != nil {
		c.conn.watch(true)
		defer c.conn.watch(false)
	}
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	out := &patientWriter{ResponseWriter: c.w, patience: s.limits.write}
	t := &entryStream{s, c, want, ctx, bufio.NewWriterSize(out, freeBody), out, time.Now()}
	if want.follow {
		s.o.metrics.follow.streams.add(1)
		defer s.o.metrics.follow.streams.add(-1)
	}
	seq, err := t.run()
	if err == nil && t.flush() == nil {
		return nil
	}
	return t.breakOff(seq, err)
}

// run writes entries until nothing more is wanted. It returns an error with
// the seq it came to.
func (t *entryStream) run() (seq uint64, err error) {
	end := t.s.store.size()
	for seq = t.want.from; t.want.limit > 0; seq++ {
		if seq >= end {
			if !t.want.follow {
				return seq, nil
			}
			if end, err = t.await(seq); err != nil {
				return seq, err
			}
		}
		if t.ctx.Err() != nil {
			return seq, t.ctx.Err()
		}
		if err := t.write(seq); err != nil {
			return seq, err
		}
	}
	return seq, nil
}

// await sends what is buffered, and signs of life, until there is entry seq,
// and returns the size of the ledger then.
func (t *entryStream) await(seq uint64) (size uint64, err error) {
	if err := t.flush(); err != nil {
		return 0, err
	}
	for {
		if size = t.s.store.size(); size > seq {
			return size, nil
		}
		ctx, cancel := context.WithTimeout(t.ctx, t.s.limits.ping)
		err := t.s.store.waitSize(ctx, seq+1)
		cancel()
		if err == nil {
			continue
		}
		if t.ctx.Err() != nil {
			return 0, t.ctx.Err()
		}
		if err := t.ping(); err != nil {
			return 0, err
		}
	}
}

// ping sends a sign of life; NDJSON has none.
func (t *entryStream) ping() error {
	if t.want.events && t.want.follow {
		t.w.WriteString(":\n\n")
	}
	return t.flush()
}

// flush sends what is buffered.
func (t *entryStream) flush() error {
	t.sent = time.Now()
	if err := t.w.Flush(); err != nil {
		return err
	}
	rc := http.NewResponseController(t.c.w)
	rc.SetWriteDeadline(t.sent.Add(t.s.limits.write)) // the last write may be long ago
	err := rc.Flush()
	if err != nil {
		t.out.err = err
	}
	return err
}

// write sends entry seq if it is wanted.
func (t *entryStream) write(seq uint64) error {
	e, err := t.s.readEntry(&t.want, seq)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(e.key), t.want.prefix) {
		if seq%1024 == 0 && time.Since(t.sent) > t.s.limits.ping {
			return t.ping()
		}
		return nil
	}
	t.want.limit--
	if t.want.follow {
		t.s.o.metrics.follow.entries.add(1)
	}
	if err := t.writeEntry(&e); err != nil || !t.want.events {
		return err
	}
	return t.w.WriteByte('\n')
}

// breakOff ends a stream that came to seq and no further. One that follows
// ends there when the node stops: its client goes on elsewhere. Everything else
// the client must see as an error in the stream and as a reply cut off.
func (t *entryStream) breakOff(seq uint64, err error) error {
	if t.s.closing.Err() != nil {
		err = &apiError{code: "shutting_down", message: "the node stops; go on from seq " + strconv.FormatUint(seq, 10)}
		if t.want.follow && t.flush() == nil {
			return nil
		}
	}
	if t.c.r.Context().Err() != nil || t.out.err != nil {
		return errCutOff
	}
	line := t.s.explain(t.c, err).appendJSON(nil)
	if t.want.events {
		t.w.WriteString("event: error\ndata: ")
		line = append(line, '\n')
	}
	t.w.Write(line)
	t.flush()
	return errCutOff
}

// writeEntry writes the line of e, which may be large, so its value is escaped
// in pieces. Nothing is written before it is read.
func (t *entryStream) writeEntry(e *entry) error {
	s, w, b := t.s, t.w, t.w.AvailableBuffer()
	if t.want.events {
		b = strconv.AppendUint(append(b, "id: "...), e.seq, 10)
		b = append(b, "\ndata: "...)
	}
	b = appendEntry(b, &e.header, &e.leaf)
	if !t.want.values || e.op != opPut {
		_, err := w.Write(append(b, '\n'))
		return err
	}
	room, err := s.reserveBody(int64(e.size))
	if err != nil {
		return err
	}
	defer s.giveBack(room)
	v := make([]byte, e.size)
	if err := readAtFull(e.value, v, 0); err != nil {
		return err
	}
	w.Write(b[:len(b)-1])
	if utf8.Valid(v) {
		w.WriteString(`,"value":"`)
		for len(v) > 0 {
			n := cutRune(v, 4<<10)
			w.Write(appendEscaped(w.AvailableBuffer(), v[:n]))
			v = v[n:]
		}
	} else {
		w.WriteString(`,"value_base64":"`)
		for len(v) > 0 {
			n := min(len(v), 3<<10) // a multiple of 3: no padding inside
			w.Write(base64.StdEncoding.AppendEncode(w.AvailableBuffer(), v[:n]))
			v = v[n:]
		}
	}
	_, err = w.WriteString("\"}\n")
	return err
}

// cutRune returns the largest length up to n at which the UTF-8 v can be cut.
func cutRune(v []byte, n int) int {
	if len(v) <= n {
		return len(v)
	}
	for !utf8.RuneStart(v[n]) {
		n--
	}
	return n
}
