package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// goldenSigned is the newest record in testdata/signed-1.bin.
func goldenSigned() signedRecord {
	fill := func(b byte) [32]byte { return [32]byte(bytes.Repeat([]byte{b}, 32)) }
	return signedRecord{number: 8, size: 1000, root: fill(0x31), key: fill(0x32), index: 5}
}

func TestSignedGolden(t *testing.T) {
	t.Parallel()
	b := golden(t, "signed-1.bin")
	want := goldenSigned()
	if got := want.append([]byte("before")); !bytes.Equal(got[6:], b[:signedSize]) {
		t.Errorf("encoded %x", got)
	}
	if got, err := parseSigned(b); err != nil || got != want {
		t.Errorf("parsed %+v, %v", got, err)
	}
	eachCut(b, func(cut []byte) {
		_, err := parseSigned(cut)
		wantError(t, err, errCorrupt)
	})
	eachFlip(b, func(flipped []byte, at int) {
		_, err := parseSigned(flipped)
		wantError(t, err, errCorrupt)
	})
	for want, slots := range map[string][2]signedRecord{
		"slot 0 has record 7":                {{number: 7}, {number: 8}},
		"record 9 over 0 entries follows":    {{number: 6}, {number: 9}},
		"over 3 entries follows record 6 ov": {{number: 6, size: 4}, {number: 7, size: 3}},
	} {
		b := make([]byte, 2*signedSlot)
		for i, r := range slots {
			copy(b[i*signedSlot:], r.append(nil))
		}
		_, err := parseSigned(b)
		wantError(t, err, errCorrupt, want)
	}
}

func FuzzSigned(f *testing.F) {
	b := golden(f, "signed-1.bin")
	f.Add(b[:signedSize], b[signedSlot:signedSlot+signedSize])
	f.Fuzz(func(t *testing.T, a, b []byte) {
		file := make([]byte, 2*signedSlot)
		copy(file, a)
		copy(file[signedSlot:], b)
		r, err := parseSigned(file)
		if err != nil {
			wantError(t, err, errCorrupt)
		} else if at := r.number % 2 * signedSlot; !bytes.Equal(r.append(nil), file[at:at+signedSize]) {
			t.Errorf("accepted %x as %+v", file[at:at+signedSize], r)
		}
	})
}

func TestSignedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), signedName)
	open := func() *signedFile {
		t.Helper()
		s, err := openSigned(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.close() })
		return s
	}
	s := open()
	if s.last != (signedRecord{number: 1, root: emptyRoot}) {
		t.Errorf("a new file has %+v", s.last)
	}
	for size := range uint64(5) {
		r := signedRecord{size: size / 2 * 2, root: hash{byte(size / 2)}, key: publicKey{1}}
		for range 2 { // the second time it is there already
			if err := s.remember(r); err != nil {
				t.Fatal(err)
			}
		}
		if again := open(); again.last != s.last || again.last.size != r.size {
			t.Errorf("opened again it has %+v, want %+v", again.last, s.last)
		}
	}
	if s.last.number != 4 {
		t.Errorf("last record is %+v", s.last)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := os.Stat(path)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v", info.Mode())
	}
	b[signedSlot+20] ^= 1
	os.WriteFile(path, b, 0o600)
	_, err = openSigned(path)
	wantError(t, err, errCorrupt, "what this node signed is not known any more", "slot 1")
}
