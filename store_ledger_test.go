package main

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

// goldenCheckpoint is the checkpoint in testdata/checkpoint-1.bin.
func goldenCheckpoint() checkpoint {
	return checkpoint{
		index: 900, term: 7, configIndex: 3, size: 150, time: 1_700_000_000_009, version: 2, confirmed: 1,
		windowOldest: 3, windowNext: 16386, configuration: []byte("\x81raft configuration"),
	}
}

func TestCheckpointGolden(t *testing.T) {
	want := goldenCheckpoint()
	wantGolden(t, want.append(nil), "checkpoint-1.bin")
	got, rest, err := parseCheckpoint(append(want.append(nil), "rest"...))
	if err != nil || !reflect.DeepEqual(got, want) || string(rest) != "rest" {
		t.Errorf("parsed %+v, %q, %v", got, rest, err)
	}
}

func TestCheckpointCutAndFlipped(t *testing.T) {
	b := golden(t, "checkpoint-1.bin")
	eachCut(b, func(cut []byte) {
		_, _, err := parseCheckpoint(cut)
		wantError(t, err, errCorrupt, "checkpoint is cut short")
	})
	eachFlip(b, func(flipped []byte, at int) { checkCheckpoint(t, flipped) })
}

// checkCheckpoint fails unless parseCheckpoint refused b or found what b encodes.
func checkCheckpoint(t *testing.T, b []byte) {
	t.Helper()
	c, rest, err := parseCheckpoint(b)
	if err != nil {
		if !errors.Is(err, errCorrupt) {
			t.Fatal(err)
		}
		return
	}
	if got := append(c.append(nil), rest...); !bytes.Equal(got, b) {
		t.Fatalf("accepted\n%x and encodes it as\n%x", b, got)
	}
}

// goldenRunInfo is the runInfo in testdata/run-info-1.bin.
func goldenRunInfo() runInfo {
	return runInfo{level: 2, first: 1000, last: 1199, keys: 63, size: 12345, sum: hash(bytes.Repeat([]byte{0x55}, 32))}
}

func TestRunInfoGolden(t *testing.T) {
	wantGolden(t, appendRunInfo(nil, goldenRunInfo()), "run-info-1.bin")
	if got, err := parseRunInfo(golden(t, "run-info-1.bin")); err != nil || got != goldenRunInfo() {
		t.Errorf("parsed %+v, %v", got, err)
	}
}

func TestRunInfoCutAndFlipped(t *testing.T) {
	b := golden(t, "run-info-1.bin")
	eachCut(b, func(cut []byte) {
		_, err := parseRunInfo(cut)
		wantError(t, err, errCorrupt, "description of")
	})
	_, err := parseRunInfo(append(bytes.Clone(b), 0))
	wantError(t, err, errCorrupt, "73 bytes")
	eachFlip(b, func(flipped []byte, at int) { checkRunInfo(t, flipped) })
}

// checkRunInfo fails unless parseRunInfo refused b or found what b encodes.
func checkRunInfo(t *testing.T, b []byte) {
	t.Helper()
	r, err := parseRunInfo(b)
	if err != nil {
		if !errors.Is(err, errCorrupt) {
			t.Fatal(err)
		}
		return
	}
	if r.level < 0 || r.last < r.first || r.keys == 0 || r.keys > r.entries() || r.size <= 0 {
		t.Fatalf("accepted %+v", r)
	}
	if got := appendRunInfo(nil, r); !bytes.Equal(got, b) {
		t.Fatalf("accepted\n%x and encodes it as\n%x", b, got)
	}
}

// FuzzLedgerValues reads any bytes as each of the values of ledger.db.
func FuzzLedgerValues(f *testing.F) {
	for _, name := range []string{"checkpoint-1.bin", "run-info-1.bin", "segment-info-1.bin"} {
		f.Add(golden(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		checkCheckpoint(t, b)
		checkRunInfo(t, b)
		i, rest, err := parseSegmentInfo(b)
		checkSegmentInfo(t, b, i, rest, err)
	})
}
