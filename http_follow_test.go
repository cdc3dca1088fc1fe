package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

// listener is a client that follows the ledger.
type listener struct {
	t    testing.TB
	conn net.Conn
	res  *http.Response
	in   *bufio.Reader
}

// follow opens a stream; it ends with the test.
func (s *testServer) follow(query string, headers ...string) *listener {
	s.t.Helper()
	l := &listener{t: s.t, conn: s.dial()}
	s.t.Cleanup(func() { l.conn.Close() })
	fmt.Fprintf(l.conn, "GET /ledger/entries?follow=true%s HTTP/1.1\r\nHost: x\r\n%s\r\n", query, strings.Join(append(headers, ""), "\r\n"))
	var err error
	if l.res, err = http.ReadResponse(bufio.NewReader(l.conn), nil); err != nil || l.res.StatusCode != 200 {
		s.t.Fatalf("no stream: %v %v", l.res, err)
	}
	l.in = bufio.NewReader(l.res.Body)
	return l
}

// line returns the next line without its end.
func (l *listener) line() string {
	l.t.Helper()
	text, err := l.in.ReadString('\n')
	if err != nil {
		l.t.Fatalf("stream ended after %q: %v", text, err)
	}
	return strings.TrimSuffix(text, "\n")
}

// entry reads a line as an entry.
func (l *listener) entry(text string) (e struct {
	Seq      uint64
	Key      string
	Op       string
	Value    *string
	LeafHash string `json:"leaf_hash"`
}) {
	l.t.Helper()
	if err := json.Unmarshal([]byte(text), &e); err != nil || len(e.LeafHash) != 64 {
		l.t.Fatalf("%q: %v", text, err)
	}
	return e
}

// event reads one SSE event.
func (l *listener) event() (id, data string) {
	l.t.Helper()
	id, data = l.line(), l.line()
	if end := l.line(); !strings.HasPrefix(id, "id: ") || !strings.HasPrefix(data, "data: ") || end != "" {
		l.t.Fatalf("event %q %q %q", id, data, end)
	}
	return id[4:], data[6:]
}

// ended returns what is left of the stream and how it ends.
func (l *listener) ended() (rest string, err error) {
	b, err := io.ReadAll(l.in)
	return string(b), err
}

func TestFollow(t *testing.T) {
	s := newTestServer(t, nil)
	s.do("PUT", "/old", "x")
	l := s.follow("&values=true")
	if l.res.Header.Get("Content-Type") != "application/x-ndjson" || l.res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", l.res.Header)
	}
	if e := l.entry(l.line()); e.Seq != 0 || *e.Value != "x" {
		t.Errorf("first entry %+v", e)
	}
	for i := range 20 {
		s.do("PUT", "/new", fmt.Sprint(i))
		if e := l.entry(l.line()); e.Seq != uint64(i)+1 || *e.Value != fmt.Sprint(i) {
			t.Fatalf("entry %+v after write %d", e, i)
		}
	}
	s.do("DELETE", "/new", "")
	if e := l.entry(l.line()); e.Op != "delete" || e.Value != nil {
		t.Errorf("tombstone %+v", e)
	}
	if n := s.o.metrics.follow.streams.value(); n != 1 {
		t.Errorf("%d streams are counted", n)
	}
	l.conn.Close()
	s.gone()
}

// gone waits until nobody follows.
func (s *testServer) gone() {
	s.t.Helper()
	eventually(s.t, "a stream goes on without its client", func() bool { return s.o.metrics.follow.streams.value() == 0 })
}

func TestFollowLimitAndPrefix(t *testing.T) {
	s := newTestServer(t, nil)
	s.do("PUT", "/a/1", "x")
	l := s.follow("&prefix=a/&limit=2&from=0")
	for i := range 3 {
		s.do("PUT", "/b", fmt.Sprint(i))
	}
	s.do("PUT", "/a/2", "x")
	if a, b := l.entry(l.line()), l.entry(l.line()); a.Seq != 0 || b.Seq != 4 || a.Value != nil {
		t.Errorf("entries %+v, %+v", a, b)
	}
	if rest, err := l.ended(); rest != "" || err != nil {
		t.Errorf("after the limit: %q %v", rest, err)
	}
	later := s.follow("&from=6&limit=1") // an entry that is still to come
	s.do("PUT", "/5", "x")
	s.do("PUT", "/6", "x")
	if e := later.entry(later.line()); e.Seq != 6 || e.Key != "6" {
		t.Errorf("entry %+v", e)
	}
	s.check([]apiRow{{method: "HEAD", target: "/ledger/entries?follow=true", status: 200, want: []string{"Content-Type: application/x-ndjson"}}})
	s.gone()
}

func TestFollowEvents(t *testing.T) {
	s := newTestServer(t, func(o *serverOptions, _ *fakeLedger) {
		limits := defaultLimits
		limits.ping = 10 * time.Millisecond
		o.limits = &limits
	})
	for i := range 3 {
		s.do("PUT", "/a", fmt.Sprint("line\n", i))
	}
	l := s.follow("&values=true&from=1", "Accept: text/event-stream")
	if l.res.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("headers %v", l.res.Header)
	}
	for _, want := range []uint64{1, 2} {
		if id, data := l.event(); id != fmt.Sprint(want) || l.entry(data).Seq != want || *l.entry(data).Value != fmt.Sprint("line\n", want) {
			t.Errorf("event %s: %s", id, data)
		}
	}
	for range 2 {
		if a, b := l.line(), l.line(); a != ":" || b != "" {
			t.Errorf("sign of life %q %q", a, b)
		}
	}
	again := s.follow("&limit=1&from=0", "Accept: text/html, text/event-stream;q=0.9", "Last-Event-ID: 1")
	if id, _ := again.event(); id != "2" {
		t.Errorf("resumed at %s", id)
	}
	if rest, err := again.ended(); rest != "" || err != nil {
		t.Errorf("after the limit: %q %v", rest, err)
	}
	whole := s.do("GET", "/ledger/entries", "", "Accept: text/event-stream", "Last-Event-ID:")
	if strings.Count(whole.body, "\nid: ") != 2 || !strings.HasPrefix(whole.body, "id: 0\ndata: {") || !strings.HasSuffix(whole.body, "}\n\n") {
		t.Errorf("without follow: %s", whole.body)
	}
}

// TestFollowQuiet: a stream outlives every time-out of HTTP.
func TestFollowQuiet(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(o *serverOptions, _ *fakeLedger) {
		const limit = 5 * time.Second // more than a busy machine stands still
		o.limits = &serverLimits{head: limit, body: limit, write: limit, idle: limit, ping: 100 * time.Millisecond, small: 1 << 20}
		o.readTimeout, o.writeTimeout = limit, limit
	})
	l, events := s.follow(""), s.follow("", "Accept: text/event-stream")
	for range 70 { // at least 7 s
		events.line()
		events.line()
	}
	s.do("PUT", "/a", "x")
	if e := l.entry(l.line()); e.Seq != 0 {
		t.Errorf("entry %+v", e)
	}
}

// TestFollowShutdown: streams that follow end as whole replies, others say so.
func TestFollowShutdown(t *testing.T) {
	s := newTestServer(t, nil)
	s.do("PUT", "/a", "x")
	l, events := s.follow(""), s.follow("", "Accept: text/event-stream")
	l.line()
	events.event()
	s.close()
	for _, l := range []*listener{l, events} {
		if rest, err := l.ended(); rest != "" || err != nil {
			t.Errorf("at shutdown: %q %v", rest, err)
		}
	}
	s.gone()
}

// TestFollowSlow: a client that does not read holds up nobody and is dropped.
func TestFollowSlow(t *testing.T) {
	s := newTestServer(t, func(o *serverOptions, _ *fakeLedger) {
		o.limits = &serverLimits{head: time.Second, body: time.Second, write: 50 * time.Millisecond, idle: time.Second, small: 64 << 20}
	})
	l := s.follow("&values=true")
	value := strings.Repeat("x", 1<<20)
	before := runtime.NumGoroutine()
	eventually(t, "a client that does not read is kept", func() bool {
		if a := s.do("PUT", "/a", value); a.status >= 300 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		return s.o.metrics.follow.streams.value() == 0
	})
	eventually(t, "its goroutines stay", func() bool { return runtime.NumGoroutine() <= before+2 })
	if _, err := l.ended(); err == nil {
		t.Error("a reply that was cut off looks whole")
	}
}

// TestFollowDamage: an entry that cannot be read ends the stream with its reason.
func TestFollowDamage(t *testing.T) {
	s := newTestServer(t, nil)
	s.do("PUT", "/a", "x")
	s.f.entries[0].value = failingValue{fmt.Errorf("/x: %w: CRC differs", errCorrupt)}
	for accept, want := range map[string]string{"*/*": `{"error":{"code":"corrupt"`, "text/event-stream": "event: error\ndata: {\"error\":{\"code\":\"corrupt\""} {
		rest, err := s.follow("&values=true", "Accept: "+accept).ended()
		if !strings.HasPrefix(rest, want) || err == nil || strings.Contains(rest, "/x") {
			t.Errorf("%s: %q %v", accept, rest, err)
		}
	}
}
