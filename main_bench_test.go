package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestBench(t *testing.T) {
	f, env := newCLIServer(t)
	for _, test := range []struct {
		args     string
		requests int
		entries  int
	}{
		{"--op put --count 40", 40, 40},
		{"--op put --count 4 --batch 25", 4, 100},
		{"--op get --count 40 --keys 50 --consistency stale", 40, 40},
		{"--op mixed --count 40 --keys 50 --key-size 40", 40, 40},
		{"--op put --duration 500ms --size 0", -1, -1},
	} {
		code, stdout, stderr := runText(t, "", env, strings.Fields("bench --json --connections 4 "+test.args)...)
		var got struct {
			Requests, Entries int
			P50               float64 `json:"p50_ms"`
			Max               float64 `json:"max_ms"`
			Errors            map[string]int
		}
		if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 0 {
			t.Errorf("%s: exit code %d, %v: %s%s", test.args, code, err, stdout, stderr)
			continue
		}
		if test.requests >= 0 && (got.Requests != test.requests || got.Entries != test.entries) || got.P50 <= 0 || got.P50 > got.Max || len(got.Errors) > 0 {
			t.Errorf("%s: got %+v", test.args, got)
		}
	}
	keys := make(map[string]bool)
	for _, e := range f.list[:140] {
		if len(e.key) != 32 || len(e.value) != 100 || keys[e.key] {
			t.Fatalf("entry is %+v", e)
		}
		keys[e.key] = true
	}
	code, stdout, _ := runText(t, "", env, "bench", "--count", "10", "--connections", "2")
	if code != 0 || !strings.HasPrefix(stdout, "put on 2 connections for ") || !strings.Contains(stdout, "\nlatency   p50 ") {
		t.Errorf("%d, %s", code, stdout)
	}
}

// TestBenchErrors: failures are counted by code, and a connection that the server ends is opened again.
func TestBenchErrors(t *testing.T) {
	turn := make(chan int, 4)
	for i := range 4 {
		turn <- i
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch <-turn {
		case 0:
			w.WriteHeader(503)
			w.Write([]byte(`{"error":{"code":"no_leader","message":"x"}}`))
		case 1:
			w.Header().Set("Connection", "close")
			w.WriteHeader(500)
		case 2:
			panic(http.ErrAbortHandler)
		}
	}))
	defer s.Close()
	code, stdout, stderr := runText(t, "", nil, "bench", "--json", "--url", s.URL, "--count", "4", "--connections", "1")
	var got struct {
		Requests, Entries int
		Errors            map[string]int
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	if code != 1 || stderr != "scribe-ledger: some requests failed\n" || got.Requests != 4 || got.Entries != 1 ||
		got.Errors["no_leader"] != 1 || got.Errors["http_500"] != 1 || got.Errors["connection"] != 1 {
		t.Errorf("%d, %s%s", code, stdout, stderr)
	}
	code, stdout, _ = runText(t, "", nil, "bench", "--url", "http://127.0.0.1:1", "--count", "2", "--connections", "1")
	if code != 1 || !strings.Contains(stdout, "errors    2 connect\n") {
		t.Errorf("%d, %s", code, stdout)
	}
}

func TestLatencies(t *testing.T) {
	for us := range uint64(1 << 17) {
		top := bucketTop(latencyBucket(us))
		if top < us || top > us+us/64 {
			t.Fatalf("%d µs are counted up to %d", us, top)
		}
	}
	if b := latencyBucket(1<<64 - 1); b >= len(latencies{}.buckets) || bucketTop(b) != 1<<64-1 {
		t.Errorf("the last bucket is %d, up to %d", b, bucketTop(b))
	}
	var l, other latencies
	for i := range 1000 {
		l.add(time.Duration(i) * time.Millisecond)
	}
	other.add(-time.Second)
	l.merge(&other)
	if p50 := l.quantile(0.5); p50 < 499*time.Millisecond || p50 > 508*time.Millisecond || l.quantile(1) != 999*time.Millisecond {
		t.Errorf("p50 is %v, p100 %v", p50, l.quantile(1))
	}
}
