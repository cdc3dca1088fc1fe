package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"
)

// apiRow is one request and what API.md says about its reply.
type apiRow struct {
	name    string
	method  string
	target  string
	body    string
	headers []string
	status  int
	code    string   // of the error
	want    []string // "Name: value" of the reply, or "Name:" for absent
	in      string   // part of the body
	closed  bool     // the connection ends after the reply
}

func (s *testServer) check(rows []apiRow) {
	s.t.Helper()
	for _, r := range rows {
		send := s.do
		if s.f == nil { // a node of a cluster, which may be without a leader for a moment
			send = s.settle
		}
		a := send(r.method, r.target, r.body, r.headers...)
		name := r.name
		if name == "" {
			name = r.method + " " + clip(r.target)
		}
		if a.status != r.status {
			s.t.Errorf("%s: status %d, want %d: %s", name, a.status, r.status, clip(a.body))
			continue
		}
		if got := codeOf(a.body); r.method != "HEAD" && got != r.code {
			s.t.Errorf("%s: code %q, want %q: %s", name, got, r.code, clip(a.body))
		}
		if a.status >= 400 && a.Get("Content-Type") != "application/json" {
			s.t.Errorf("%s: an error of type %q", name, a.Get("Content-Type"))
		}
		for _, w := range r.want {
			k, v, _ := strings.Cut(w, ":")
			if got := a.Get(k); got != strings.TrimSpace(v) {
				s.t.Errorf("%s: %s is %q, want %q", name, k, got, strings.TrimSpace(v))
			}
		}
		if r.closed && !a.closed {
			s.t.Errorf("%s: the connection stays open", name)
		}
		if !strings.Contains(a.body, r.in) {
			s.t.Errorf("%s: body %s, want %s in it", name, a.body, r.in)
		}
	}
}

// codeOf returns the code of an error reply, "" for another one.
func codeOf(body string) string {
	var e struct {
		Error *struct{ Code, Message string }
	}
	if json.Unmarshal([]byte(body), &e) != nil || e.Error == nil {
		return ""
	}
	return e.Error.Code
}

// abc is the SHA-256 of "abc", as digest headers give it.
const abc = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:"

func TestPut(t *testing.T) {
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) { o.maxValueSize = 100; f.author = `a"b` })
	put := func(target, body string, status int, code string, headers ...string) apiRow {
		return apiRow{method: "PUT", target: target, body: body, headers: headers, status: status, code: code}
	}
	first := put("/a", "one", 201, "", "Content-Type: text/x")
	first.want = []string{`ETag: "0"`, "Content-Type: application/json"}
	first.in = `{"seq":0,"key":"a","op":"put","version":1,"prev":null,"time":"2023-11-14T22:13:20.123Z","size":3,"sha256":"7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed","content_type":"text/x","author":"a\"b","region":"","leaf_hash":"`
	second := put("/a", "", 200, "")
	second.want, second.in = []string{`ETag: "1"`}, `"version":2,"prev":0,`
	stale := put("/a", "x", 412, "precondition_failed", `If-Match: "0"`)
	stale.want = []string{`ETag: "1"`}
	taken := put("/a", "x", 412, "precondition_failed", `If-None-Match: *`)
	taken.want = []string{`ETag: "1"`}
	absent := put("/none", "x", 412, "precondition_failed", `If-Match: "0"`)
	absent.want = []string{"ETag:"}
	again := put("/idem", "v", 201, "", "Idempotency-Key: k1")
	again.want = []string{`ETag: "3"`}
	large := put("/big", strings.Repeat("x", 101), 413, "value_too_large")
	large.closed = true
	odd := put("/%ff", "x", 201, "")
	odd.in = `"key_base64":"/w=="`
	s.check([]apiRow{
		first, second, stale, taken, absent,
		put("/a", "x", 200, "", `If-Match: "1"`),
		again, again, // the first answer, twice
		put("/new", "x", 201, "", `If-None-Match: *`),
		put("/d", "abc", 201, "", "Content-Digest: "+abc),
		put("/d", "abc", 200, "", "Repr-Digest: md5=:AA==:, "+abc+";x=1"),
		put("/d", "abc", 200, "", "Content-Digest: sha-512=:AA==:"),
		put("/d", "abd", 400, "digest_mismatch", "Content-Digest: "+abc),
		put("/d", "abd", 400, "digest_mismatch", "Repr-Digest: "+abc),
		put("/d", "abc", 400, "malformed", "Content-Digest: sha-256=abc"),
		put("/d", "abc", 400, "malformed", "Content-Digest: sha-256=:AAAA:"),
		put("/a", "x", 400, "malformed", `If-None-Match: "1"`),
		put("/a", "x", 400, "malformed", `If-Match: *`),
		put("/a", "x", 400, "malformed", `If-Match: W/"1"`),
		put("/a", "x", 400, "malformed", `If-Match: 1`),
		put("/a", "x", 400, "malformed", `If-Match: "01"`),
		put("/a", "x", 400, "malformed", `If-Match: ""`),
		put("/a", "x", 400, "malformed", `If-Match: "1", "2"`),
		put("/a", "x", 400, "malformed", `If-Match: "1"`, `If-Match: "1"`),
		put("/a", "x", 400, "malformed", `If-Match: "1"`, `If-None-Match: *`),
		put("/a", "x", 400, "malformed", "Idempotency-Key: "+strings.Repeat("k", 65)),
		put("/a", "x", 400, "malformed", "Idempotency-Key:"),
		put("/a", "x", 400, "malformed", "Content-Type: "+strings.Repeat("t", 256)),
		put("/a", "x", 400, "malformed", "Content-Type: \xff"),
		put("/a", "x", 400, "malformed", "Content-Range: bytes 0-0/1"),
		put("/a?receipt=true&receipt=true", "x", 400, "malformed"),
		put("/a?receipt=maybe", "x", 400, "malformed"),
		put("/a?receipt=false&other=%20", "x", 200, ""),
		put("/a?x=%zz", "x", 400, "malformed"),
		large,
		put("/fits", strings.Repeat("x", 100), 201, ""),
		put("/", "x", 400, "empty_key"),
		put("/kv/", "x", 400, "empty_key"),
		put("/"+strings.Repeat("k", 1025), "x", 400, "key_too_large"),
		put("/"+strings.Repeat("k", 1024), "x", 201, ""),
		put("/"+strings.Repeat("%6B", 1024), "x", 200, ""),
		odd,
	})
}

func TestGet(t *testing.T) {
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) { o.readTimeout = 50 * time.Millisecond; f.state.contact = 42 })
	for _, v := range []string{"one", "twice", "0123456789"} {
		s.do("PUT", "/a", v, "Content-Type: text/x")
	}
	s.do("PUT", "/plain", "p")
	s.do("DELETE", "/a", "")
	s.do("PUT", "/a", "0123456789") // seq 5, version 5
	get := func(query string, status int, code string, in string, headers ...string) apiRow {
		return apiRow{method: "GET", target: "/a" + query, headers: headers, status: status, code: code, in: in}
	}
	whole := get("", 200, "", "0123456789")
	whole.want = []string{`ETag: "5"`, "Content-Type: application/octet-stream", "Repr-Digest: sha-256=:hNiYd/DUBB77a/kaFvAkjy/Vc+avBcGflr7bn4gveII=:",
		"Last-Modified: Tue, 14 Nov 2023 22:13:25 GMT", "Scribe-Seq: 5", "Scribe-Version: 5", "Scribe-Time: 2023-11-14T22:13:25.123Z", "Scribe-Ledger-Size: 6",
		"Content-Length: 10", "Accept-Ranges: bytes", "Scribe-Last-Contact:"}
	head := whole
	head.method, head.in = "HEAD", ""
	part := get("", 206, "", "234", "Range: bytes=2-4")
	part.want = []string{"Content-Range: bytes 2-4/10", "Content-Length: 3", `ETag: "5"`}
	noRange := get("", 416, "range_not_satisfiable", "", "Range: bytes=10-")
	noRange.want = []string{"Content-Range: bytes */10"}
	same := get("", 304, "", "", `If-None-Match: "5"`)
	same.want = []string{`ETag: "5"`}
	failed := get("", 412, "precondition_failed", "", `If-Match: "4"`)
	failed.want = []string{`ETag: "5"`}
	stale := get("?consistency=stale", 200, "", "0123456789")
	stale.want = []string{"Scribe-Last-Contact: 42"}
	noStale := get("?version=6&consistency=stale", 404, "not_found", "")
	noStale.want = stale.want
	old := get("?version=1", 200, "", "one")
	old.want = []string{`ETag: "0"`, "Content-Type: text/x"}
	s.check([]apiRow{
		whole, head, part, noRange, same, failed, stale, noStale, old,
		get("?version=4", 404, "deleted", ""),
		get("?version=6", 404, "not_found", ""),
		get("?seq=1", 200, "", "twice"),
		get("?seq=3", 404, "not_found", ""), // of another key
		get("?seq=4", 404, "deleted", ""),
		get("?seq=99", 404, "not_found", ""),
		get("?at=0", 200, "", "one"),
		get("?at=3", 200, "", "0123456789"),
		get("?at=4", 404, "deleted", ""),
		get("?at=2023-11-14T22:13:21.5Z", 200, "", "twice"),
		get("?at=2023-11-14T23:13:21.5%2B01:00", 200, "", "twice"),
		get("?at=2023-11-14T23:13:21.5+01:00", 200, "", "twice"),
		get("?at=2020-01-01T00:00:00Z", 404, "not_found", ""),
		get("?consistency=linearizable", 200, "", "0123456789"),
		get("?min_seq=5", 200, "", "0123456789"),
		get("?min_seq=6", 504, "not_yet_applied", ""),
		get("?min_seq=6&consistency=stale", 504, "not_yet_applied", ""),
		get("", 200, "", "multipart", "Range: bytes=0-"+strings.Repeat(",0-", 20)).withName("more ranges than bytes"),
		get("", 206, "", "Content-Range: bytes 8-9/10", "Range: bytes=0-1,8-9"),
		get("", 206, "", "89", "Range: bytes=-2"),
		get("", 206, "", "9", "Range: bytes=9-", `If-Range: "5"`),
		get("", 200, "", "0123456789", "Range: bytes=9-", `If-Range: "4"`),
		get("", 304, "", "", "If-Modified-Since: Tue, 14 Nov 2023 22:13:25 GMT"),
		get("", 200, "", "0123456789", "If-Modified-Since: Tue, 14 Nov 2023 22:13:24 GMT"),
		get("", 412, "precondition_failed", "", "If-Unmodified-Since: Tue, 14 Nov 2023 22:13:24 GMT"),
		get("", 200, "", "0123456789", `If-Match: "5"`),
		get("", 400, "malformed", "", "Range: bytes=0-", "Range: bytes=1-"),
		{method: "GET", target: "/none", status: 404, code: "not_found", in: "none"},
		{method: "HEAD", target: "/none", status: 404},
		{method: "GET", target: "/", status: 400, code: "empty_key"},
		{method: "GET", target: "/plain", status: 200, in: "p", want: []string{"Content-Type: application/octet-stream"}},
	})
	for _, query := range []string{"version=0", "version=-1", "version=x", "version=", "version=1&seq=0", "version=1&version=1", "seq=1&at=1", "seq=1.0", "seq=+1", "seq=01",
		"at=yesterday", "at=", "at=2023-11-14", "consistency=maybe", "consistency=", "min_seq=x", "min_seq=-1", "min_seq=18446744073709551615", "version=18446744073709551616", "a=%"} {
		s.check([]apiRow{get("?"+query, 400, "malformed", "")})
	}
}

func (r apiRow) withName(name string) apiRow {
	r.name, r.in = name, ""
	return r
}

func TestGetLarge(t *testing.T) {
	s := newTestServer(t, func(o *serverOptions, f *fakeLedger) { o.maxValueSize = 8 << 20 })
	value := strings.Repeat("0123456789abcdef", 3<<20/16) + "end"
	if a := s.do("PUT", "/a", value); a.status != 201 {
		t.Fatal(a)
	}
	if a := s.do("GET", "/a", ""); a.body != value || a.Get("Content-Length") != strconv.Itoa(len(value)) {
		t.Errorf("a large value came back with %d bytes", len(a.body))
	}
	s.check([]apiRow{
		{method: "GET", target: "/a", headers: []string{"Range: bytes=-3"}, status: 206, in: "end"},
		{method: "HEAD", target: "/a", status: 200, want: []string{"Content-Length: " + strconv.Itoa(len(value))}},
		{method: "GET", target: "/ledger/entries?values=true", status: 200, in: `abcdefend"}`},
	})
}

func TestDelete(t *testing.T) {
	s := newTestServer(t, nil)
	s.do("PUT", "/a", "1")
	s.check([]apiRow{
		{method: "DELETE", target: "/none", status: 404, code: "not_found"},
		{method: "DELETE", target: "/a", headers: []string{`If-Match: "7"`}, status: 412, code: "precondition_failed", want: []string{`ETag: "0"`}},
		{method: "DELETE", target: "/a", headers: []string{`If-None-Match: *`}, status: 400, code: "malformed"},
		{method: "DELETE", target: "/a", status: 200, in: `"op":"delete","version":2,"prev":0,`, want: []string{`ETag: "1"`}},
		{method: "DELETE", target: "/a", status: 404, code: "not_found"},
		{method: "GET", target: "/a", status: 404, code: "deleted"},
		{method: "PUT", target: "/a", headers: []string{"If-None-Match: *"}, body: "back", status: 200, in: `"version":3,"prev":1,`},
		{method: "DELETE", target: "/", status: 400, code: "empty_key"},
	})
	s = newTestServer(t, func(o *serverOptions, f *fakeLedger) { o.allowDelete = false })
	s.check([]apiRow{
		{method: "DELETE", target: "/a", status: 405, code: "deletes_disabled", want: []string{"Allow: GET, HEAD, PUT"}},
		{method: "PATCH", target: "/a", status: 405, code: "method_not_allowed", want: []string{"Allow: GET, HEAD, PUT"}},
		{method: "POST", target: "/batch", body: `{"ops":[{"op":"delete","key":"a"}]}`, headers: []string{"Content-Type: application/json"}, status: 405, code: "deletes_disabled", in: `"failed_op":0`},
	})
}

// TestKeys: everything after the first slash, decoded once, never cleaned.
func TestKeys(t *testing.T) {
	s := newTestServer(t, nil)
	for target, key := range map[string]string{
		"/a//b": "a//b", "/a/../b": "a/../b", "/../a": "../a", "/a/": "a/", "/.": ".", "/%00": "\x00", "//a": "/a", "///": "//",
		"/%D0%BA": "к", "/ключ": "ключ", "/\xff\xfe": "\xff\xfe", "/%2e%2e%2Fa": "../a", "/a%2Fb": "a/b", "/%2541": "%41", "/a+b": "a+b", "/a#b": "a#b", "/a;b": "a;b",
		"/kv/health": "health", "/kv//a": "/a", "/kv/kv/x": "kv/x", "/%6bv/b": "b", "/kv/health/live?x=1": "health/live", "/healthy": "healthy", "/Health": "Health",
		"http://other/abs//k": "abs//k", "/a?b": "a", "/a%3Fb": "a?b", "/x/health": "x/health", "/%20": " ", "/a\\b": "a\\b",
	} {
		a := s.do("PUT", target, "v-"+key)
		if a.status != 201 && a.status != 200 {
			t.Errorf("PUT %q: %d %s", target, a.status, a.body)
			continue
		}
		if last := s.f.entries[len(s.f.entries)-1]; string(last.key) != key {
			t.Errorf("PUT %q: key %q, want %q", target, last.key, key)
		}
		if a := s.do("GET", target, ""); a.body != "v-"+key {
			t.Errorf("GET %q: %d %q", target, a.status, a.body)
		}
	}
}

func TestReserved(t *testing.T) {
	s := newTestServer(t, nil)
	for _, name := range []string{"health", "metrics", "cluster", "verify", "history", "keys", "batch", "ledger", "region", "ui", "kv"} {
		for _, target := range []string{"/" + name, "/" + name + "/x", "/%" + fmt.Sprintf("%x", name[0]) + name[1:] + "/y", "/" + name + "%2Fz", "/" + name + "?q=1"} {
			if name == "kv" && !strings.Contains(target, "%2F") && strings.Count(target, "/") > 1 {
				continue // a key
			}
			for _, method := range []string{"PUT", "DELETE"} {
				s.check([]apiRow{{method: method, target: target, status: 400, code: "reserved_key", in: "/kv/" + target[1:3]}})
			}
		}
	}
	if n := len(s.f.entries); n != 0 {
		t.Errorf("%d entries were written under reserved names", n)
	}
	for _, target := range []string{"/verify", "/ledger/checkpoint/", "/ledger/key/1", "/ledger/tile", "/region", "/ui", "/ui/x", "/cluster", "/cluster/", "/ledger/", "/health/x", "/health/",
		"/health%2Flive", "/kv", "/kv%2Fa", "/metrics/", "/history", "/keys/a"} {
		s.check([]apiRow{{method: "GET", target: target, status: 404, code: "not_found"}})
	}
	s.check([]apiRow{
		{method: "PUT", target: "/health", status: 400, code: "reserved_key", in: "/kv/health"},
		{method: "POST", target: "/cluster/join", body: "{}", status: 400, code: "malformed"},
		{method: "POST", target: "/a", status: 405, code: "method_not_allowed", want: []string{"Allow: DELETE, GET, HEAD, PUT"}},
		{method: "OPTIONS", target: "/a", status: 405, code: "method_not_allowed", want: []string{"Allow: DELETE, GET, HEAD, PUT"}},
		{method: "BREW", target: "/kv/a", status: 405, code: "method_not_allowed", want: []string{"Allow: DELETE, GET, HEAD, PUT"}},
		{method: "POST", target: "/health", status: 405, code: "method_not_allowed", want: []string{"Allow: GET, HEAD"}},
		{method: "GET", target: "/batch", status: 405, code: "method_not_allowed", want: []string{"Allow: POST"}},
		{method: "GET", target: "/cluster/seal", status: 405, code: "method_not_allowed", want: []string{"Allow: POST"}},
		{method: "OPTIONS", target: "*", status: 400, code: "malformed"},
		{method: "GET", target: "*", status: 400, code: "malformed"},
		{method: "GET", target: "mailto:a", status: 400, code: "malformed"},
		{method: "GET", target: "http://host", status: 400, code: "empty_key"},
		{method: "CONNECT", target: "host:1", status: 400, code: "malformed"},
	})
}

// TestRefusedHeads: what net/http would settle in silence, or answer by itself.
func TestRefusedHeads(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	for _, c := range []struct {
		head   string
		status int
		code   string
	}{
		{"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed"},
		{"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\ncontent-LENGTH: 3\r\n\r\n0\r\n\r\n", 400, "malformed"},
		{"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, "malformed"},
		{"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400, "malformed"},
		{"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "malformed"},
		{"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na", 400, "malformed"},
		{"PUT /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed"},
		{"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "not_implemented"},
		{"GET /a HTTP/1.1\nHost: x\n\n", 400, "malformed"},
		{"GET /a HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n", 400, "malformed"},
		{"GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400, "malformed"},
		{"GET /a HTTP/1.1\r\n\r\n", 400, "malformed"},
		{"GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "malformed"},
		{"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"},
		{"GET /% HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"},
		{"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"},
		{"GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"},
		{"GET /a\x01 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"},
		{"GET /a HTTP/2.0\r\nHost: x\r\n\r\n", 505, "http_version"},
		{"nonsense\r\n\r\n", 400, "malformed"},
		{"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: miracles\r\n\r\na", 417, "expectation_failed"},
		{"GET /a HTTP/1.1\r\nHost: x\r\nBig: " + strings.Repeat("x", 40<<10) + "\r\n\r\n", 431, "headers_too_large"},
	} {
		a := s.raw(c.head)
		if a.status != c.status || codeOf(a.body) != c.code || !a.closed {
			t.Errorf("%.70q: %d %s, closes %v; want %d %s and close", c.head, a.status, a.body, a.closed, c.status, c.code)
		}
	}
	if n := len(s.f.entries); n != 0 {
		t.Errorf("%d entries were written", n)
	}
}

// TestPipelining: the guard of one request does not disturb those around it.
func TestPipelining(t *testing.T) {
	s := newTestServer(t, nil)
	chunked := "PUT /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n"
	inner := "PUT /x HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
	text := fmt.Sprintf("PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(inner), inner) +
		chunked + "GET /b HTTP/1.1\r\nHost: x\r\n\r\n" + "PUT /c HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
	for _, step := range []int{1, 7, len(text)} {
		conn := s.dial()
		go func() {
			for rest := text; rest != ""; {
				n := min(step, len(rest))
				if _, err := io.WriteString(conn, rest[:n]); err != nil {
					return // the last request is refused before its body is read
				}
				rest = rest[n:]
			}
		}()
		r := bufio.NewReader(conn)
		for i, want := range []int{201, 201, 200, 400} {
			a := s.readAnswer(r, "")
			if a.status/100 != want/100 || i == 2 && a.body != "abcde" {
				t.Errorf("in steps of %d: reply %d is %d %s, want %d", step, i, a.status, a.body, want)
			}
		}
		conn.Close()
	}
}

func TestRequestID(t *testing.T) {
	s := newTestServer(t, nil)
	if a := s.do("GET", "/health/live", "", "X-Request-Id: my-ID_1.2"); a.Get("X-Request-Id") != "my-ID_1.2" {
		t.Errorf("the id of the client became %q", a.Get("X-Request-Id"))
	}
	seen := map[string]bool{}
	for _, bad := range []string{"a b", "", strings.Repeat("x", 65), "é", "a\"b", "a,b"} {
		a := s.do("GET", "/none", "", "X-Request-Id: "+bad)
		if id := a.Get("X-Request-Id"); id == bad || seen[id] {
			t.Errorf("id %q for %q", id, bad)
		} else {
			seen[id] = true
		}
	}
}

// TestNodeErrors: what the node says, and what a client reads.
func TestNodeErrors(t *testing.T) {
	s := newTestServer(t, nil)
	s.do("PUT", "/a", "x")
	for _, c := range []struct {
		err    error
		status int
		code   string
		retry  string
	}{
		{errNoLeader, 503, "no_leader", "1"},
		{errOverloaded, 429, "overloaded", "1"},
		{errDiskFull, 507, "disk_full", ""},
		{errUnknownOutcome, 504, "unknown_outcome", ""},
		{errNotYetApplied, 504, "not_yet_applied", ""},
		{fmt.Errorf("segment 7: %w", errCorrupt), 409, "corrupt", ""},
		{context.DeadlineExceeded, 503, "timeout", "1"},
		{errors.New("open /secret/path: no"), 500, "internal", ""},
	} {
		s.f.fail = c.err
		want := []string{"Retry-After: " + c.retry}
		line := fmt.Sprintf(`{"error":{"code":%q`, c.code)
		s.check([]apiRow{
			{method: "PUT", target: "/a", status: c.status, code: c.code, want: want},
			{method: "DELETE", target: "/a", status: c.status, code: c.code, want: want},
			{method: "POST", target: "/batch", body: `{"ops":[{"op":"put","key":"a","value":"b"}]}`, headers: []string{"Content-Type: application/json"}, status: c.status, code: c.code, want: want},
			{method: "POST", target: "/batch", body: `{"op":"put","key":"a","value":"b"}`, headers: []string{"Content-Type: application/x-ndjson"}, status: 200, code: c.code, in: line},
		})
		if c.err == errNoLeader { // the hint names a leader that is somebody else
			for id, hint := range map[uint64]string{1: "no leader is known", 2: "the leader, node 1 at http://127.0.0.1:8001, did not answer"} {
				s.f.state.nodeID = id
				s.check([]apiRow{{method: "PUT", target: "/a", status: 503, code: c.code, in: hint}})
			}
			s.f.state.nodeID = 1
		}
		if c.err == context.DeadlineExceeded {
			c.status = 504
		}
		a := s.do("GET", "/a", "")
		if a.status != c.status || codeOf(a.body) != c.code || strings.Contains(a.body, "secret") {
			t.Errorf("GET with %v: %d %s", c.err, a.status, a.body)
		}
		s.f.fail = nil
	}
}
