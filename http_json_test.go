package main

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
	"unicode/utf8"
)

// plainJSON is what encoding/json makes of v without HTML escapes.
func plainJSON(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte{'\n'}))
}

func FuzzAppendJSONString(f *testing.F) {
	for _, s := range []string{"", "plain", `"\/`, "\x00\x01\b\f\n\r\t\x1f\x7f", "ключ 😀", "\u2028\u2029", "\xff\xfea\xc0", "<&>", "\xed\xa0\x80", "a\xe2\x80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := plainJSON(t, s)
		if got := string(appendJSONString(nil, s)); got != want {
			t.Fatalf("%q gives %s, want %s", s, got, want)
		}
		if got := string(appendJSONString(nil, []byte(s))); got != want {
			t.Fatalf("bytes %q give %s, want %s", s, got, want)
		}
		// In pieces, as streamed values are.
		if utf8.ValidString(s) {
			b := []byte{'"'}
			for v := []byte(s); len(v) > 0; {
				n := cutRune(v, 4)
				b, v = appendEscaped(b, v[:n]), v[n:]
			}
			if got := string(append(b, '"')); got != want {
				t.Fatalf("%q in pieces gives %s, want %s", s, got, want)
			}
		}
	})
}

// FuzzAppendEntry compares the entry of API.md with encoding/json's.
func FuzzAppendEntry(f *testing.F) {
	f.Add([]byte("key"), "text/plain", "author", "region", uint64(42), uint64(17), int64(1_700_000_000_123))
	f.Add([]byte("\xff"), "\u2028\"", "", "\x00", uint64(0), noSeq, int64(0))
	f.Fuzz(func(t *testing.T, key []byte, contentType, author, region string, seq, prev uint64, ms int64) {
		ms &= 1<<47 - 1 // up to the year 6429
		h := header{op: opPut, seq: seq, version: 2, prev: prev, time: ms, size: 3, sum: hash{1, 2}, key: key, contentType: contentType, author: author, region: region}
		want := struct {
			Seq         uint64  `json:"seq"`
			Key         *string `json:"key,omitempty"`
			KeyBase64   []byte  `json:"key_base64,omitempty"`
			Op          string  `json:"op"`
			Version     uint64  `json:"version"`
			Prev        *uint64 `json:"prev"`
			Time        string  `json:"time"`
			Size        uint64  `json:"size"`
			SHA256      string  `json:"sha256"`
			ContentType string  `json:"content_type"`
			Author      string  `json:"author"`
			Region      string  `json:"region"`
			LeafHash    string  `json:"leaf_hash"`
		}{Seq: seq, Op: "put", Version: 2, Time: time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z"), Size: 3, SHA256: hash{1, 2}.String(),
			ContentType: contentType, Author: author, Region: region, LeafHash: hash{9}.String()}
		if text := string(key); utf8.Valid(key) {
			want.Key = &text
		} else {
			want.KeyBase64 = key
		}
		if prev != noSeq {
			want.Prev = &prev
		}
		leaf := hash{9}
		if got, want := string(appendEntry(nil, &h, &leaf)), plainJSON(t, want); got != want {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
	})
}

func TestErrorJSON(t *testing.T) {
	two := 2
	e := &apiError{code: "precondition_failed", message: "the \"value\"\n", failed: &two}
	if got, want := string(e.appendJSON(nil)), `{"error":{"code":"precondition_failed","message":"the \"value\"\n"},"failed_op":2}`+"\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
