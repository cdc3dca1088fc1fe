package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"
)

// goldenHeader is the header of the first entry in testdata/segment-1.seg,
// written by hand from the table at the head of segment.go.
const goldenHeader = "01" + // format
	"01" + // put
	"00000000000003e8" + // seq 1000
	"0000000000000001" + // version
	"ffffffffffffffff" + // prev: none
	"0000018bcfe56800" + // time 1700000000000
	"0000000000000005" + // size
	"cd42404d52ad55ccfa9aca4adc828aa5800ad9d385a0671fbcbf724118320619" + // echo -n value | sha256sum
	"0001" + "61" + // key "a"
	"0a" + "746578742f706c61696e" + // content type "text/plain"
	"03" + "616461" + // author "ada"
	"04" + "65752d31" // region "eu-1"

func goldenHeaderValue() header {
	return header{
		op: opPut, seq: 1000, version: 1, prev: noSeq, time: 1_700_000_000_000, size: 5, sum: sha256.Sum256([]byte("value")),
		key: []byte("a"), contentType: "text/plain", author: "ada", region: "eu-1",
	}
}

func TestHeaderGolden(t *testing.T) {
	want, err := hex.DecodeString(goldenHeader)
	if err != nil {
		t.Fatal(err)
	}
	h := goldenHeaderValue()
	if got := appendHeader(nil, &h); !bytes.Equal(got, want) {
		t.Errorf("header is\n%x, want\n%x", got, want)
	}
	got, err := parseHeader(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(appendHeader(nil, &got), want) {
		t.Errorf("parsed %+v, want %+v", got, h)
	}
}

func TestHeaderLargest(t *testing.T) {
	label := strings.Repeat("é", 127) + "x"
	h := header{op: opPut, seq: 5, version: 2, prev: 4, key: bytes.Repeat([]byte{0xff}, maxKeySize), contentType: label, author: label, region: label}
	b := appendHeader(nil, &h)
	if len(b) != 1868 || maxHeaderSize != 1868 {
		t.Errorf("largest header has %d bytes, maxHeaderSize is %d", len(b), maxHeaderSize)
	}
	if got, err := parseHeader(b); err != nil || !bytes.Equal(appendHeader(nil, &got), b) {
		t.Errorf("largest header: %v", err)
	}
}

func TestHeaderRefuses(t *testing.T) {
	for name, change := range map[string]func(*header){
		"operation is 0":        func(h *header) { h.op = 0 },
		"operation is 3":        func(h *header) { h.op = 3 },
		"key has 0 bytes":       func(h *header) { h.key = nil },
		"key has 1025 bytes":    func(h *header) { h.key = make([]byte, maxKeySize+1) },
		"version is 0":          func(h *header) { h.version = 0 },
		"version is 2 but prev": func(h *header) { h.version = 2 },
		"version is 1 but prev": func(h *header) { h.prev = 7 },
		"not before seq 1000":   func(h *header) { h.version, h.prev = 2, 1000 },
		"prev is 1001":          func(h *header) { h.version, h.prev = 2, 1001 },
		"version is 1002":       func(h *header) { h.version, h.prev = 1002, 999 },
		"tombstone has a value": func(h *header) { h.op = opDelete },
		"of 0 bytes":            func(h *header) { h.op, h.size = opDelete, 0 },
		"time is -1":            func(h *header) { h.time = -1 },
		`label "\xff"`:          func(h *header) { h.contentType = "\xff" },
		`label "a\xc3"`:         func(h *header) { h.author = "a\xc3" },
		`label "\xed\xa0\x80"`:  func(h *header) { h.region = "\xed\xa0\x80" },
	} {
		h := goldenHeaderValue()
		change(&h)
		_, err := parseHeader(appendHeader(nil, &h))
		wantError(t, err, errCorrupt, name)
	}
}

func TestHeaderCutAndFlipped(t *testing.T) {
	b, _ := hex.DecodeString(goldenHeader)
	eachCut(b, func(cut []byte) {
		_, err := parseHeader(cut)
		wantError(t, err, errCorrupt)
	})
	_, err := parseHeader(append(bytes.Clone(b), 0))
	wantError(t, err, errCorrupt, "1 bytes follow")
	eachFlip(b, func(flipped []byte, at int) {
		h, err := parseHeader(flipped)
		checkHeader(t, flipped, h, err)
		if at == 0 {
			wantError(t, err, errCorrupt, "format")
		}
	})
}

// checkHeader fails unless parseHeader refused b or found the header whose
// only encoding is b.
func checkHeader(t *testing.T, b []byte, h header, err error) {
	t.Helper()
	if err != nil {
		if !errors.Is(err, errCorrupt) {
			t.Fatalf("error is %v, want one that wraps errCorrupt", err)
		}
		return
	}
	if err := h.validate(); err != nil {
		t.Fatalf("accepted %x: %v", b, err)
	}
	if got := appendHeader(nil, &h); !bytes.Equal(got, b) {
		t.Fatalf("accepted\n%x and encodes it as\n%x", b, got)
	}
}

func FuzzHeader(f *testing.F) {
	b, _ := hex.DecodeString(goldenHeader)
	f.Add(b)
	h := header{op: opDelete, seq: math.MaxUint64, version: 2, prev: 0, time: math.MaxInt64, sum: emptyRoot, key: []byte("k"), author: "é"}
	f.Add(appendHeader(nil, &h))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		checkHeader(t, b, h, err)
	})
}

func TestOpKindString(t *testing.T) {
	for o, want := range map[opKind]string{opPut: "put", opDelete: "delete", 7: "op(7)"} {
		if o.String() != want {
			t.Errorf("%d is %q, want %q", uint8(o), o, want)
		}
	}
}
