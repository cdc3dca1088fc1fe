package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestHistory(t *testing.T) {
	s := newTestServer(t, nil)
	for i := range 5 {
		s.do("PUT", "/a/b", fmt.Sprint(i))
		s.do("PUT", "/other", fmt.Sprint(i))
	}
	s.do("DELETE", "/a/b", "")
	var seqs []uint64
	next := ""
	for {
		a := s.do("GET", "/history/a%2Fb?limit=4"+next, "")
		var page struct {
			Key      string
			Versions []struct {
				Seq uint64
				Op  string
			}
			Next *uint64
		}
		if err := json.Unmarshal([]byte(a.body), &page); err != nil || a.status != 200 || page.Key != "a/b" || len(page.Versions) > 4 {
			t.Fatalf("%d %s: %v", a.status, a.body, err)
		}
		for _, v := range page.Versions {
			seqs = append(seqs, v.Seq)
		}
		if page.Next == nil {
			break
		}
		next = fmt.Sprintf("&before=%d", *page.Next)
	}
	if want := []uint64{10, 8, 6, 4, 2, 0}; !slices.Equal(seqs, want) {
		t.Errorf("history has %v, want %v", seqs, want)
	}
	s.do("PUT", "/%ff", "x")
	s.check([]apiRow{
		{method: "GET", target: "/history/%ff", status: 200, in: `{"key_base64":"/w==","versions":[{`},
		{method: "GET", target: "/history/a/b?before=0", status: 200, in: `"versions":[],"next":null`},
		{method: "GET", target: "/history/a/b?limit=100000", status: 200, in: `"next":null`},
		{method: "GET", target: "/history/none", status: 404, code: "not_found"},
		{method: "GET", target: "/history/", status: 400, code: "empty_key"},
		{method: "GET", target: "/history/a/b?limit=0", status: 400, code: "malformed"},
		{method: "GET", target: "/history/a/b?limit=x", status: 400, code: "malformed"},
		{method: "GET", target: "/history/a/b?before=-1", status: 400, code: "malformed"},
		{method: "GET", target: "/history/a/b?consistency=x", status: 400, code: "malformed"},
		{method: "HEAD", target: "/history/a/b", status: 200},
	})
}

func TestKeyList(t *testing.T) {
	s := newTestServer(t, nil)
	want := []string{"a", "a/1", "a/2", "b", "ключ", "\xfe", "\xff\x00"}
	for _, k := range want {
		s.do("PUT", "/"+url.PathEscape(k), "x")
	}
	s.do("PUT", "/gone", "x")
	s.do("DELETE", "/gone", "")
	var got []string
	next := ""
	for {
		a := s.do("GET", "/keys?limit=2"+next, "")
		var page struct {
			Keys []struct {
				Key       *string
				KeyBase64 []byte `json:"key_base64"`
				Size      int
				Time      string
			}
			Next       *string
			NextBase64 *string `json:"next_base64"`
		}
		if err := json.Unmarshal([]byte(a.body), &page); err != nil || a.status != 200 {
			t.Fatalf("%d %s: %v", a.status, a.body, err)
		}
		for _, k := range page.Keys {
			if k.Key != nil {
				got = append(got, *k.Key)
			} else {
				got = append(got, string(k.KeyBase64))
			}
			if k.Size != 1 || k.Time == "" {
				t.Errorf("key of size %d, time %q", k.Size, k.Time)
			}
		}
		if page.Next == nil && page.NextBase64 == nil {
			break
		} else if page.Next != nil {
			next = "&after=" + url.QueryEscape(*page.Next)
		} else {
			next = "&after_base64=" + *page.NextBase64 // with its / and + as they are
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("keys %q, want %q", got, want)
	}
	s.check([]apiRow{
		{method: "GET", target: "/keys?prefix=a/", status: 200, in: `{"keys":[{"key":"a/1","seq":1,"version":1,"size":1,"time":"2023-11-14T22:13:21.123Z"},{"key":"a/2",`},
		{method: "GET", target: "/keys?prefix=none", status: 200, in: `{"keys":[],"next":null}`},
		{method: "GET", target: "/keys?prefix_base64=" + base64.RawURLEncoding.EncodeToString([]byte{0xff}), status: 200, in: `{"keys":[{"key_base64":"/wA="`},
		{method: "GET", target: "/keys?after=a&after_base64=YQ", status: 400, code: "malformed"},
		{method: "GET", target: "/keys?after_base64=*", status: 400, code: "malformed"},
		{method: "GET", target: "/keys?limit=-1", status: 400, code: "malformed"},
		{method: "GET", target: "/keys?prefix=%zz", status: 400, code: "malformed"},
	})
}

func TestLedgerEntries(t *testing.T) {
	s := newTestServer(t, nil)
	s.do("PUT", "/a/1", "one\n")
	s.do("PUT", "/b/1", "\xff\x00")
	s.do("DELETE", "/a/1", "")
	s.do("PUT", "/a/2", "")
	lines := func(query string) []map[string]any {
		a := s.do("GET", "/ledger/entries"+query, "")
		if a.status != 200 || a.Get("Content-Type") != "application/x-ndjson" {
			t.Fatalf("%s: %d %s", query, a.status, a.body)
		}
		var out []map[string]any
		for _, line := range strings.Split(strings.TrimSuffix(a.body, "\n"), "\n") {
			if line == "" {
				continue
			}
			var e map[string]any
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%s: %q: %v", query, line, err)
			}
			out = append(out, e)
		}
		return out
	}
	all := lines("?values=true")
	if len(all) != 4 || all[0]["value"] != "one\n" || all[1]["value_base64"] != "/wA=" || all[2]["op"] != "delete" || all[2]["value"] != nil || all[3]["value"] != "" {
		t.Errorf("entries %v", all)
	}
	if e := lines("?from=2&limit=1"); len(e) != 1 || e[0]["seq"] != 2.0 || e[0]["value"] != nil {
		t.Errorf("from 2: %v", e)
	}
	if e := lines("?prefix=a/&limit=2"); len(e) != 2 || e[1]["seq"] != 2.0 {
		t.Errorf("prefix a/: %v", e)
	}
	if e := lines("?from=4"); len(e) != 0 {
		t.Errorf("from the end: %v", e)
	}
	s.check([]apiRow{
		{method: "GET", target: "/ledger/entries?follow=maybe", status: 400, code: "malformed"},
		{method: "GET", target: "/ledger/entries?limit=0", status: 400, code: "malformed"},
		{method: "GET", target: "/ledger/entries", headers: []string{"Accept: text/event-stream", "Last-Event-ID: x"}, status: 400, code: "malformed"},
		{method: "GET", target: "/ledger/entries", headers: []string{"Accept: text/event-stream", "Last-Event-ID: 18446744073709551615"}, status: 400, code: "malformed"},
		{method: "GET", target: "/ledger/entries?from=x", status: 400, code: "malformed"},
		{method: "GET", target: "/ledger/entries?values=maybe", status: 400, code: "malformed"},
		{method: "HEAD", target: "/ledger/entries", status: 200},
	})
}

func TestManifestAndSegments(t *testing.T) {
	s := newTestServer(t, nil)
	s.do("PUT", "/a", "x")
	s.check([]apiRow{
		{method: "GET", target: "/ledger/manifest", status: 200, in: `{"ledger_size":1,"pending":{"first_seq":0,"count":1,"size":17},"segments":[],"version":0}`},
		{method: "POST", target: "/cluster/seal", status: 200, in: `{"ledger_size":1,"manifest_version":1,"segments":1}`},
		{method: "GET", target: "/ledger/manifest?signed=true", status: 200, in: "a manifest\n", want: []string{"Content-Type: text/plain; charset=utf-8"}},
		{method: "GET", target: "/ledger/manifest?signed=perhaps", status: 400, code: "malformed"},
		{method: "GET", target: "/ledger/segments/none", status: 404, code: "not_found"},
		{method: "GET", target: "/ledger/segments/", status: 404, code: "not_found"},
		{method: "GET", target: "/ledger/segments/..%2F..%2Fetc%2Fpasswd", status: 404, code: "not_found"},
		{method: "PUT", target: "/ledger/segments/x", status: 400, code: "reserved_key"},
	})
	if err := os.WriteFile(filepath.Join(s.f.dir, "seg-1"), []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.f.segments["seg-1"] = segmentInfo{count: 3, sum: hash{1}, time: 1_700_000_000_000}
	etag := `ETag: "` + hash{1}.String() + `"`
	s.check([]apiRow{
		{method: "GET", target: "/ledger/segments/seg-1", status: 200, in: "0123456789", want: []string{etag, "Content-Type: application/octet-stream", "Content-Length: 10"}},
		{method: "GET", target: "/ledger/segments/seg-1", headers: []string{"Range: bytes=3-"}, status: 206, in: "3456789", want: []string{etag}},
		{method: "GET", target: "/ledger/segments/seg-1", headers: []string{"Range: bytes=10-"}, status: 416, code: "range_not_satisfiable", want: []string{etag}},
		{method: "GET", target: "/ledger/segments/seg-1", headers: []string{"If-None-Match: " + etag[6:]}, status: 304},
		{method: "HEAD", target: "/ledger/segments/seg-1", status: 200, want: []string{"Content-Length: 10"}},
	})
}
