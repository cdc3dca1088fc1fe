package main

import (
	"encoding/json"
	"strings"
	"testing"
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
}

func (s *testServer) check(rows []apiRow) {
	s.t.Helper()
	for _, r := range rows {
		a := s.do(r.method, r.target, r.body, r.headers...)
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

func TestEntryRows(t *testing.T) {
	s := newTestServer(t, nil)
	s.check([]apiRow{
		{method: "PUT", target: "/a", body: "one", headers: []string{"Content-Type: text/x"}, status: 201, want: []string{`ETag: "0"`, "Content-Type: application/json"},
			in: `{"seq":0,"key":"a","op":"put","version":1,"prev":null,"time":"2023-11-14T22:13:20.123Z","size":3,"sha256":"7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed","content_type":"text/x","author":"","region":"","leaf_hash":"`},
		{method: "PUT", target: "/a", body: "two!", status: 200, want: []string{`ETag: "1"`}, in: `"version":2,"prev":0,`},
		{method: "GET", target: "/a", status: 200, in: "two!", want: []string{`ETag: "1"`, "Content-Type: application/octet-stream", "Scribe-Seq: 1", "Scribe-Version: 2",
			"Scribe-Time: 2023-11-14T22:13:21.123Z", "Last-Modified: Tue, 14 Nov 2023 22:13:21 GMT", "Scribe-Ledger-Size: 2", "Content-Length: 4", "Accept-Ranges: bytes", "Scribe-Last-Contact:"}},
		{method: "GET", target: "/a?version=1", status: 200, in: "one", want: []string{"Content-Type: text/x", "Repr-Digest: sha-256=:dpLDrTVAu4A8Ags67mbNiIcSMjTqDG5xQ8Ct1z/0Me0=:"}},
	})
}
