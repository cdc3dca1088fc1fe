package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestAtomicBatch(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) { o.maxValueSize = 100 })
	batch := func(body string, status int, code, in string, headers ...string) apiRow {
		return apiRow{name: "batch " + clip(body), method: "POST", target: "/batch", body: body, headers: append(headers, "Content-Type: application/json; charset=utf-8"), status: status, code: code, in: in}
	}
	a := s.do("POST", "/batch", `{"ops":[{"op":"put","key":"a","value":"1","content_type":"t"},{"op":"put","key":"a","value":"2","if_seq":0},{"op":"delete","key":"a"},{"op":"put","key_base64":"/w==","value_base64":"AA=="}]}`,
		"Content-Type: application/json")
	var got struct {
		Results []struct {
			Seq         uint64
			Op          string
			Prev        *uint64
			KeyBase64   string `json:"key_base64"`
			ContentType string `json:"content_type"`
		}
	}
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 || len(got.Results) != 4 {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	if r := got.Results; r[0].ContentType != "t" || *r[1].Prev != 0 || r[2].Op != "delete" || r[3].KeyBase64 != "/w==" || r[3].Seq != 3 {
		t.Errorf("results %s", a.body)
	}
	big := strings.Repeat("x", 60)
	s.check([]apiRow{
		batch(`{"ops":[{"op":"put","key":"b","value":"1"},{"op":"put","key":"c","value":"1","if_seq":9}]}`, 412, "precondition_failed", `"failed_op":1`),
		batch(`{"ops":[{"op":"put","key":"b","value":"1"},{"op":"delete","key":"none"}]}`, 404, "not_found", `"failed_op":1`),
		batch(`{"ops":[{"op":"put","key":"b","value":"1"},{"op":"put","key":"c","vlaue":"1"}]}`, 400, "malformed", `"failed_op":1`),
		batch(`{"ops":[{"op":"put","key":"","value":"1"}]}`, 400, "empty_key", `"failed_op":0`),
		batch(`{"ops":[{"op":"put","key":"b","value":"`+big+`"},{"op":"put","key":"c","value":"`+big+`"}]}`, 413, "value_too_large", `"failed_op":1`),
		batch(`{"ops":[]}`, 400, "malformed", "no operations"),
		batch(`{"ops":`, 400, "malformed", "ends at byte"),
		batch(``, 400, "malformed", "ends at byte"),
		batch(`{"ops":[`+strings.Repeat(`{"op":"delete","key":"a"},`, maxBatchOps)+`{"op":"delete","key":"a"}]}`, 400, "too_many_ops", ""),
		batch(`{"ops":[{"op":"put","key":"i","value":"1"}]}`, 200, "", `"seq":4`, "Idempotency-Key: same"),
		batch(`{"ops":[{"op":"put","key":"i","value":"1"}]}`, 200, "", `"seq":4`, "Idempotency-Key: same"),
		batch(`{"ops":[]}`, 400, "malformed", "", "Idempotency-Key: "+strings.Repeat("k", 65)),
		{method: "POST", target: "/batch", body: "x", headers: []string{"Content-Type: text/plain"}, status: 415, code: "unsupported_media_type"},
		{method: "POST", target: "/batch", body: "x", status: 415, code: "unsupported_media_type"},
		{method: "POST", target: "/batch", body: "x", headers: []string{"Content-Type: application/x-ndjson", "Idempotency-Key: k"}, status: 400, code: "malformed"},
	})
	if n := len(s.f.entries); n != 5 {
		t.Errorf("the ledger has %d entries, want 5", n)
	}
}

func TestStreamBatch(t *testing.T) {
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) { o.maxValueSize = 300 << 10 })
	huge := strings.Repeat("y", 300<<10)
	body := strings.Join([]string{
		`{"op":"put","key":"a","value":"1"}`,
		``,
		` `,
		`{"op":"put","key":"a","value":"2","if_absent":true}`,
		`nonsense`,
		`{"op":"put","key":"b","value":"` + huge + `"}` + "\r",
		`{"op":"put","key":"b","value":"` + huge + `y"}`,
		`{"op":"put","key":"c","value":"` + huge + huge + `"}`,
		`{"op":"put","key":"d","value":"1","x":1}`,
		`{"op":"delete","key":"none"}`,
		`{"op":"delete","key":"a"}`, // no newline at the end
	}, "\n")
	// One at a time, so that the fake applies them in order.
	s.f.asyncs = make(chan func(), 100)
	go func() {
		for run := range s.f.asyncs {
			run()
		}
	}()
	defer close(s.f.asyncs)
	a := s.do("POST", "/batch", body, "Content-Type: application/x-ndjson")
	lines := strings.Split(strings.TrimSuffix(a.body, "\n"), "\n")
	want := []string{`{"seq":0,`, "precondition_failed", "malformed", `{"seq":1,`, "value_too_large", "value_too_large", `unknown field \"x\"`, "not_found", `{"seq":2,`}
	if a.status != 200 || a.Get("Content-Type") != "application/x-ndjson" || len(lines) != len(want) {
		t.Fatalf("%d with %d lines, want %d: %s", a.status, len(lines), len(want), clip(a.body))
	}
	for i, w := range want {
		if !strings.Contains(lines[i], w) || !json.Valid([]byte(lines[i])) {
			t.Errorf("line %d is %s, want %s", i, lines[i], w)
		}
	}
	if n := s.o.metrics.batch.failed.value(); n != 6 {
		t.Errorf("%d lines counted as failed, want 6", n)
	}
}

// TestStreamBatchOrder: results come in the order of the lines although the
// node finishes them in any order, and their number is not bounded by the queue.
func TestStreamBatchOrder(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.f.asyncs = make(chan func(), 64)
	seed := rand.Uint64()
	go func() {
		r := rand.New(rand.NewPCG(seed, 0))
		var held []func()
		for run := range s.f.asyncs {
			held = append(held, run)
			for len(held) > 0 && (len(s.f.asyncs) == 0 || len(held) > 50) {
				i := r.IntN(len(held))
				held[i]()
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
			}
		}
	}()
	defer close(s.f.asyncs)
	const n = 3 * maxQueuedLines
	var body strings.Builder
	for i := range n {
		fmt.Fprintf(&body, "{\"op\":\"put\",\"key\":\"k%d\",\"value\":\"%s\"}\n", i, strings.Repeat("v", i%2000))
	}
	a := s.do("POST", "/batch", body.String(), "Content-Type: application/x-ndjson")
	for i, line := range strings.Split(strings.TrimSuffix(a.body, "\n"), "\n") {
		if !strings.Contains(line, fmt.Sprintf(`"key":"k%d"`, i)) {
			t.Fatalf("seed %d: line %d is %s", seed, i, line)
		}
	}
	if got := strings.Count(a.body, "\n"); got != n {
		t.Errorf("seed %d: %d results, want %d", seed, got, n)
	}
}

// TestStreamBatchDuplex: a result comes before the next line is sent.
func TestStreamBatchDuplex(t *testing.T) {
	s := newTestServer(t, nil)
	r, w := io.Pipe()
	req, err := http.NewRequest("POST", "http://"+s.addr+"/batch", r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	first := `{"op":"put","key":"k","value":"0"}` + "\n"
	go io.WriteString(w, first)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	in := bufio.NewReader(res.Body)
	for i := range 10 {
		line, err := in.ReadString('\n')
		if err != nil || !strings.Contains(line, fmt.Sprintf(`"seq":%d,`, i)) {
			t.Fatalf("line %d: %q, %v", i, line, err)
		}
		if i < 9 {
			fmt.Fprintf(w, "{\"op\":\"put\",\"key\":\"k\",\"value\":\"%d\"}\n", i+1)
		}
	}
	w.Close()
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("the stream ends with %q, %v", rest, err)
	}
}

// TestStreamBatchEnds: a stream that stalls or breaks ends with a line saying so.
func TestStreamBatchEnds(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) {
		o.limits = &serverLimits{head: time.Second, body: 100 * time.Millisecond, write: time.Second, idle: 150 * time.Millisecond, small: 1 << 20}
	})
	head := "POST /batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000\r\n\r\n"
	for text, want := range map[string]string{
		`{"op":"put","key":"k","value":"0"}` + "\n":        "request_timeout", // idle
		`{"op":"put","key":"k","value":"0"}` + "\n" + `{"`: "request_timeout",
	} {
		a := s.raw(head + text)
		lines := strings.Split(a.body, "\n")
		if a.status != 200 || len(lines) != 3 || codeOf(lines[1]) != want || !strings.Contains(lines[0], `"seq":`) {
			t.Errorf("%q: %d %s, want %s", text, a.status, a.body, want)
		}
	}
	chunked := "POST /batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
	if a := s.raw(chunked); codeOf(a.body) != "malformed" {
		t.Errorf("a bad chunk: %d %s", a.status, a.body)
	}
}

// TestStreamBatchShutdown: shutdown does not wait for a client that goes on.
func TestStreamBatchShutdown(t *testing.T) {
	s := newTestServer(t, nil)
	conn := s.dial()
	defer conn.Close()
	io.WriteString(conn, "POST /batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000\r\n\r\n"+`{"op":"put","key":"k","value":"0"}`+"\n")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.f.waitSize(ctx, 1); err != nil {
		t.Fatalf("the line was not applied: %v", err)
	}
	s.close() // what Shutdown does first
	a := s.readAnswer(bufio.NewReader(conn), "POST")
	lines := strings.Split(a.body, "\n")
	if len(lines) != 3 || codeOf(lines[1]) != "shutting_down" {
		t.Errorf("the stream ended with %s", a.body)
	}
}

// TestStreamBatchMemory: what a stream holds is reserved, and bounded.
func TestStreamBatchMemory(t *testing.T) {
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) { o.maxValueSize = 2 << 20; f.budget = 8 << 20 })
	line := fmt.Sprintf("{\"op\":\"put\",\"key\":\"k\",\"value\":%q}\n", strings.Repeat("v", 1<<19))
	a := s.do("POST", "/batch", strings.Repeat(line, 40), "Content-Type: application/x-ndjson")
	if n := strings.Count(a.body, `"seq":`); n != 40 {
		t.Errorf("%d of 40 lines were applied: %s", n, clip(a.body))
	}
	if s.f.most > s.f.budget || s.f.most == 0 {
		t.Errorf("%d bytes were reserved at most, the budget is %d", s.f.most, s.f.budget)
	}
}
