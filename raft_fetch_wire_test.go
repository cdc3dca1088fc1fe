package main

import (
	"bytes"
	"compress/flate"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// packedOf returns the frames of b, in pieces of the given size.
func packedOf(t testing.TB, b []byte, size int, pack bool) []byte {
	t.Helper()
	var z *flate.Writer
	if pack {
		z, _ = flate.NewWriter(nil, flate.BestSpeed)
	}
	var frames []byte
	var err error
	for piece := range slices.Chunk(b, size) {
		if frames, err = appendPacked(frames, piece, z); err != nil {
			t.Fatal(err)
		}
	}
	return frames
}

// unpacked reads frames to their end.
func unpacked(frames []byte) ([]byte, uint64, error) {
	var wire uint64
	b, err := io.ReadAll(&packedReader{in: bytes.NewReader(frames), wire: &wire})
	return b, wire, err
}

func TestPackedFrames(t *testing.T) {
	text := bytes.Repeat([]byte("a ledger of entries, "), 40_000)
	noise := make([]byte, 600_000)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	for name, b := range map[string][]byte{"text": text, "noise": noise, "both": append(slices.Clone(text), noise...), "one": {7}, "none": nil} {
		for _, pack := range []bool{true, false} {
			frames := packedOf(t, b, packedFrame, pack)
			got, wire, err := unpacked(frames)
			if err != nil || !bytes.Equal(got, b) || wire != uint64(len(frames)) {
				t.Errorf("%s: %d bytes of %d came, %d travelled of %d, %v", name, len(got), len(b), wire, len(frames), err)
			}
			if name == "text" && pack != (len(frames) < len(b)/8) || len(frames) > len(b)+packedHeader*(len(b)/packedFrame+1) {
				t.Errorf("%s: %d bytes became %d", name, len(b), len(frames))
			}
		}
	}
}

// TestPackedGolden: these are frames, whoever made them.
func TestPackedGolden(t *testing.T) {
	const plain, packed = "0000000300000003616263", "00000040000000064b4ca40c0000"
	if got := hex.EncodeToString(packedOf(t, []byte("abc"), packedFrame, true)); got != plain {
		t.Errorf("a frame that does not shrink is %s, want %s", got, plain)
	}
	frames, _ := hex.DecodeString(plain + packed + plain)
	if got, _, err := unpacked(frames); err != nil || string(got) != "abc"+strings.Repeat("a", 64)+"abc" {
		t.Errorf("the frames are read as %q, %v", got, err)
	}
}

// TestPackedDamaged cuts frames at every length and flips every byte: the
// result is an error, or as many bytes as the frames say, of which the SHA-256
// of the segment will not be right.
func TestPackedDamaged(t *testing.T) {
	text := bytes.Repeat([]byte("entry "), 100)
	frames := packedOf(t, text, 250, true)
	eachCut(frames, func(cut []byte) {
		got, _, err := unpacked(cut)
		if !bytes.HasPrefix(text, got) || err == nil && len(got)%250 != 0 {
			t.Errorf("cut at %d: %d bytes, %v", len(cut), len(got), err)
		}
	})
	eachFlip(frames, func(flipped []byte, at int) {
		got, _, err := unpacked(flipped)
		if err != nil && !errors.Is(err, errCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("byte %d: %v", at, err)
		}
		if len(got) > 3*packedFrame {
			t.Errorf("byte %d: %d bytes came", at, len(got))
		}
	})
	for _, b := range []string{"0000000000000000", "0004000100000001ff", "000000020000000361", "0000000200000000"} {
		raw, _ := hex.DecodeString(b)
		_, _, err := unpacked(raw)
		wantError(t, err, errCorrupt, "frame of")
	}
}

func FuzzPackedReader(f *testing.F) {
	f.Add(packedOf(f, bytes.Repeat([]byte("entry "), 100), 250, true))
	f.Add(packedOf(f, []byte("abc"), packedFrame, false))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, wire, err := unpacked(b)
		if wire > uint64(len(b)) || err == nil && wire != uint64(len(b)) || uint64(len(got)) > uint64(len(b))*packedFrame {
			t.Errorf("%d bytes of %d travelled, %d came, %v", wire, len(b), len(got), err)
		}
	})
}

func TestByteRange(t *testing.T) {
	for text, want := range map[string][2]uint64{"bytes=0-9": {0, 10}, "bytes=3-3": {3, 4}, "bytes=5-99": {5, 100}} {
		if from, to, ok := parseByteRange(text, 100); !ok || from != want[0] || to != want[1] {
			t.Errorf("%q is %d to %d, %v", text, from, to, ok)
		}
	}
	for _, text := range []string{"", "bytes=", "bytes=1-", "bytes=-5", "bytes=5-4", "bytes=0-100", "bytes=a-b", "bytes=0-1,3-4", "bytes=18446744073709551615-18446744073709551615"} {
		if from, to, ok := parseByteRange(text, 100); ok || from != 0 || to != 100 {
			t.Errorf("%q is %d to %d, %v", text, from, to, ok)
		}
	}
}
