package main

import (
	"bufio"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The calls on many entries: the history of a key, the live keys, and the
// ledger as a stream.

// history answers with the versions of a key, newest first.
func (s *server) history(c *call) (reply, error) {
	if err := checkKey(c); err != nil {
		return reply{}, err
	}
	limit, err := c.limit(100, 1000)
	if err != nil {
		return reply{}, err
	}
	before, paged, err := c.number("before", 0, noSeq)
	if err != nil {
		return reply{}, err
	}
	if !paged {
		before = noSeq
	}
	if err := s.prepareRead(c); err != nil {
		return reply{}, err
	}
	versions, next, err := s.store.history(c.key, before, limit)
	if err != nil {
		return reply{}, err
	}
	if len(versions) == 0 && !paged {
		return reply{}, errNotFound
	}
	b := appendBytes([]byte{'{'}, "key", c.key)
	b = append(b, `,"versions":[`...)
	for i := range versions {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendEntry(b, &versions[i].header, &versions[i].leaf)
	}
	b = append(b, `],"next":`...)
	if next == nil {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendUint(b, *next, 10)
	}
	return jsonReply(c, append(b, "}\n"...)), nil
}

// jsonReply is a 200 whose body is JSON.
func jsonReply(c *call, body []byte) reply {
	c.lines.add("Content-Type", "application/json")
	return reply{status: http.StatusOK, body: body}
}

// keys answers with the live keys in byte order.
func (s *server) keys(c *call) (reply, error) {
	limit, err := c.limit(1000, 10000)
	if err != nil {
		return reply{}, err
	}
	prefix, _, err := c.bytes("prefix")
	if err != nil {
		return reply{}, err
	}
	after, given, err := c.bytes("after")
	if err != nil {
		return reply{}, err
	}
	if !given {
		after = nil
	}
	if err := s.prepareRead(c); err != nil {
		return reply{}, err
	}
	found, more, err := s.store.list(prefix, after, limit)
	if err != nil {
		return reply{}, err
	}
	b := []byte(`{"keys":[`)
	for i := range found {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendListed(b, &found[i].header)
	}
	b = append(b, ']', ',')
	if more && len(found) > 0 {
		b = appendBytes(b, "next", found[len(found)-1].key)
	} else {
		b = append(b, `"next":null`...)
	}
	return jsonReply(c, append(b, "}\n"...)), nil
}

// appendListed appends one element of /keys.
func appendListed(b []byte, h *header) []byte {
	b = appendBytes(append(b, '{'), "key", h.key)
	b = append(b, `,"seq":`...)
	b = strconv.AppendUint(b, h.seq, 10)
	b = append(b, `,"version":`...)
	b = strconv.AppendUint(b, h.version, 10)
	b = append(b, `,"size":`...)
	b = strconv.AppendUint(b, h.size, 10)
	b = append(b, `,"time":"`...)
	b = appendTime(b, h.time)
	return append(b, '"', '}')
}

// bytes returns the query parameter name, or name_base64 decoded.
func (c *call) bytes(name string) (v []byte, given bool, err error) {
	plain, hasPlain, err := c.param(name)
	if err != nil {
		return nil, false, err
	}
	coded, hasCoded, err := c.param(name + "_base64")
	switch {
	case err != nil:
		return nil, false, err
	case hasPlain && hasCoded:
		return nil, false, badRequest("malformed", "%s and %s_base64 exclude each other", name, name)
	case !hasCoded:
		return []byte(plain), hasPlain, nil
	}
	v, ok := parseBase64(coded)
	if !ok {
		return nil, false, badRequest("malformed", "%s_base64 is %q, want base64", name, clip(coded))
	}
	return v, true, nil
}

// parseBase64 reads base64 of a query in either alphabet, with or without padding.
func parseBase64(s string) ([]byte, bool) {
	// A + that the client did not escape arrives as a space.
	s = strings.NewReplacer(" ", "+", "-", "+", "_", "/").Replace(strings.TrimRight(s, "="))
	v, err := base64.RawStdEncoding.DecodeString(s)
	return v, err == nil
}

// entries streams the ledger, one entry a line.
func (s *server) entries(c *call) (reply, error) {
	follow, err := c.flag("follow")
	if err == nil && follow {
		err = badRequest("not_supported", "follow=true is not supported yet")
	}
	if err != nil {
		return reply{}, err
	}
	var want entryRange
	if want.values, err = c.flag("values"); err != nil {
		return reply{}, err
	}
	if want.from, _, err = c.number("from", 0, noSeq); err != nil {
		return reply{}, err
	}
	limit, limited, err := c.number("limit", 1, noSeq)
	if err != nil {
		return reply{}, err
	}
	if want.limit = limit; !limited {
		want.limit = noSeq
	}
	prefix, _, err := c.bytes("prefix")
	if err != nil {
		return reply{}, err
	}
	want.prefix = string(prefix)
	if err := s.prepareRead(c); err != nil {
		return reply{}, err
	}
	want.end = s.store.size()
	c.lines.addNumber("Scribe-Ledger-Size", want.end)
	return reply{stream: func() error { return s.streamEntries(c, want) }}, nil
}

// entryRange is what a stream of entries holds.
type entryRange struct {
	from, end uint64 // seq
	limit     uint64 // lines
	prefix    string
	values    bool
}

// streamEntries writes the lines of want. An error after the first byte is a
// line of its own, and then the reply is cut off.
func (s *server) streamEntries(c *call, want entryRange) error {
	http.NewResponseController(c.w).SetReadDeadline(time.Time{}) // a timeout would end r's context
	c.lines.add("Content-Type", "application/x-ndjson")
	c.lines.moveTo(c.w.Header())
	c.w.WriteHeader(http.StatusOK)
	if c.r.Method == "HEAD" {
		return nil
	}
	w := bufio.NewWriterSize(&patientWriter{ResponseWriter: c.w, patience: s.limits.write}, freeBody)
	for seq := want.from; seq < want.end && want.limit > 0; seq++ {
		e, err := s.store.entryAt(seq)
		if err == nil && !strings.HasPrefix(string(e.key), want.prefix) {
			continue
		}
		if err == nil {
			err = s.writeEntry(w, &e, want.values)
		}
		if s.closing.Err() != nil {
			err = &apiError{code: "shutting_down", message: "the node stops; go on from seq " + strconv.FormatUint(seq+1, 10)}
		}
		if err != nil {
			w.Write(s.explain(c, err).appendJSON(nil))
			w.Flush()
			http.NewResponseController(c.w).Flush()
			return errCutOff
		}
		want.limit--
	}
	if w.Flush() != nil {
		return errCutOff
	}
	return nil
}

// writeEntry writes one line; e may be large, so its value is escaped in pieces.
func (s *server) writeEntry(w *bufio.Writer, e *entry, value bool) error {
	b := appendEntry(w.AvailableBuffer(), &e.header, &e.leaf)
	if !value || e.op != opPut {
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
