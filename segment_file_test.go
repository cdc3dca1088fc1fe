package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// goldenTime is when testdata/segment-1.seg was sealed.
const goldenTime = 1_700_000_000_009

// goldenPending is the segment in testdata/segment-1.seg: entries 1000 to 1005
// of cluster 000102…, with a tombstone, empty, large and repeated keys and
// values, and labels of the greatest length.
func goldenPending() *pendingSegment {
	long := strings.Repeat("é", 127) + "x"
	big := make([]byte, 70_000) // beyond smallValue
	for i := range big {
		big[i] = byte(i * i % 251)
	}
	const ms = 1_700_000_000_000
	entries := []struct {
		header
		value []byte
	}{
		{header{op: opPut, version: 1, prev: noSeq, time: ms, key: []byte("a"), contentType: "text/plain", author: "ada", region: "eu-1"}, []byte("value")},
		{header{op: opPut, version: 1, prev: noSeq, time: ms, key: []byte("\x00")}, nil},
		{header{op: opPut, version: 7, prev: 41, time: ms + 1, key: bytes.Repeat([]byte("k"), 1024), contentType: long, author: long, region: long}, bytes.Repeat([]byte{0xff}, 300)},
		{header{op: opDelete, version: 2, prev: 1000, time: ms + 2, key: []byte("a"), author: "eve"}, nil},
		{header{op: opPut, version: 1, prev: noSeq, time: ms + 2, key: []byte("dir/big"), contentType: "application/octet-stream"}, big},
		{header{op: opPut, version: 3, prev: 1003, time: ms + 3, key: []byte("a")}, []byte("again")},
	}
	p := newPendingSegment(1000)
	for _, e := range entries {
		h := e.header
		h.seq, h.size, h.sum = p.end(), uint64(len(e.value)), sha256.Sum256(e.value)
		p.stage(p.encode(&h, e.value))
		p.show()
	}
	return p
}

func TestSegmentFileGolden(t *testing.T) {
	p := goldenPending()
	var b bytes.Buffer
	size, sum, places, err := writeSegment(&b, testClusterID, p, goldenTime)
	if err != nil {
		t.Fatal(err)
	}
	wantGolden(t, b.Bytes(), "segment-1.seg")
	if size != int64(b.Len()) || sum != sha256.Sum256(b.Bytes()) || len(places) != 6 {
		t.Errorf("wrote %d bytes with SHA-256 %s and %d places", size, sum, len(places))
	}
	if want := segmentHeaderSize + segmentFooterSize + p.bytes; size != want {
		t.Errorf("file has %d bytes, the pending segment counted %d", size, want)
	}
	checkSegment(t, "testdata/segment-1.seg", p)
}

// checkSegment reads the file at path in every way and compares with p.
func checkSegment(t testing.TB, path string, p *pendingSegment) {
	t.Helper()
	f, err := openSegmentFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	if f.cluster != testClusterID || f.first != p.first || f.count != uint64(len(p.entries)) || f.time != goldenTime || f.root != p.tree.root() {
		t.Errorf("file is of cluster %s: %d entries from %d, sealed %d, root %s", f.cluster, f.count, f.first, f.time, f.root)
	}
	n := 0
	root, err := f.records(true, func(r *record, pl place) error {
		e := &p.entries[n]
		if !bytes.Equal(r.raw, e.raw) {
			t.Errorf("record %d has header %x, want %x", n, r.raw, e.raw)
		}
		if at, err := f.placeOf(r.header.seq); err != nil || at != pl {
			t.Errorf("record %d is at %+v, the directory says %+v, %v", n, pl, at, err)
		}
		for _, pl := range []*place{nil, &pl} {
			got, err := f.entry(r.header.seq, pl, true)
			if err != nil || !bytes.Equal(got.raw, e.raw) || got.leaf != leafHash(e.raw) || valueOf(t, &got) != string(e.value) {
				t.Errorf("entry %d at %v is %+v, %v", n, pl, got.header, err)
			}
		}
		n++
		return nil
	})
	if err != nil || root != p.tree.root() || n != len(p.entries) {
		t.Errorf("%d records, root %s, %v", n, root, err)
	}
	for i := range p.entries {
		raws, err := f.headers(p.first+uint64(i), p.end())
		if err != nil || len(raws) != len(p.entries)-i || !bytes.Equal(raws[0], p.entries[i].raw) || !bytes.Equal(raws[len(raws)-1], p.entries[len(p.entries)-1].raw) {
			t.Errorf("headers from entry %d on are %x, %v", i, raws, err)
		}
	}
	_, err = f.headers(p.first, p.end()+1)
	wantError(t, err, errCorrupt, path, "records end early")
	for _, seq := range []uint64{0, p.first - 1, p.end(), noSeq} {
		_, err := f.placeOf(seq)
		wantError(t, err, errCorrupt, path, "not in this segment")
		_, err = f.headers(seq, seq+1)
		wantError(t, err, errCorrupt, path, "not in this segment")
	}
}

// TestSegmentFileByHand reads the golden file with nothing but what the
// comments at the heads of segment_file.go and segment.go say.
func TestSegmentFileByHand(t *testing.T) {
	b := golden(t, "segment-1.seg")
	u16, u32, u64 := binary.BigEndian.Uint16, binary.BigEndian.Uint32, binary.BigEndian.Uint64
	crc := func(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
	check := func(what string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	check("magic", string(b[:8]), "SCRSEGMT")
	check("format", u32(b[8:]), uint32(1))
	check("cluster", fmt.Sprintf("%x", b[16:32]), "000102030405060708090a0b0c0d0e0f")
	check("first", u64(b[32:]), uint64(1000))
	check("count", u64(b[40:]), uint64(6))
	check("time", u64(b[48:]), uint64(1700000000009))
	check("CRC of header", u32(b[60:]), crc(b[:60]))
	f := b[len(b)-80:]
	recordsAt, directoryAt := u64(f), u64(f[8:])
	directory := b[directoryAt : len(b)-80]
	check("CRC of directory", u32(f[56:]), crc(directory))
	check("CRC of footer", u32(f[72:]), crc(f[:72]))
	check("end magic", string(f[76:]), "SEND")
	var leaves [][32]byte
	end := uint64(64)
	for i := range 6 {
		r := b[recordsAt+uint64(u32(directory[4*i:])):]
		n := u16(r[16:])
		check("CRC of record", u32(r), crc(r[4:18+n]))
		header := r[18 : 18+n]
		at, size := u64(r[4:]), u64(header[34:])
		check("place of value", at, end)
		check("CRC of value", u32(r[12:]), crc(b[at:at+size]))
		check("SHA-256 of value", [32]byte(header[42:]), sha256.Sum256(b[at:at+size]))
		check("seq", u64(header[2:]), uint64(1000+i))
		leaves = append(leaves, sha256.Sum256(append([]byte{0}, header...)))
		end += size
	}
	check("end of values", end, recordsAt)
	node := func(a, b [32]byte) [32]byte { return sha256.Sum256(slices.Concat([]byte{1}, a[:], b[:])) }
	root := node(node(node(leaves[0], leaves[1]), node(leaves[2], leaves[3])), node(leaves[4], leaves[5]))
	check("root", [32]byte(f[24:]), root)
}

// useSegment opens the file at path and reads all of it; it returns the first error.
func useSegment(path string) error {
	f, err := openSegmentFile(path)
	if err != nil {
		return err
	}
	defer f.close()
	root, err := f.records(true, func(*record, place) error { return nil })
	if err == nil && root != f.root {
		err = fmt.Errorf("%w: records give root %s", errCorrupt, root)
	}
	return err
}

// TestSegmentFileFlipped flips every byte of the golden file; of its one large
// value every 301st.
func TestSegmentFileFlipped(t *testing.T) {
	t.Parallel()
	b := golden(t, "segment-1.seg")
	const bigAt, bigEnd = 64 + 5 + 300, 64 + 5 + 300 + 70_000
	path := filepath.Join(t.TempDir(), "x.seg")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Write(b)
	for i := 0; i < len(b); i++ {
		if i > bigAt && i+301 < bigEnd {
			i += 300
		}
		flipped := [1]byte{b[i] ^ 1<<(i%8)}
		f.WriteAt(flipped[:], int64(i))
		err := useSegment(path)
		f.WriteAt(b[i:i+1], int64(i))
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Fatalf("byte %d flipped: error is %v, want one that names the file", i, err)
		}
		if !errors.Is(err, errCorrupt) && (i < 8 || i > 11) { // a format not known is no damage
			t.Fatalf("byte %d flipped: error %v does not wrap errCorrupt", i, err)
		}
	}
	if err := useSegment(path); err != nil {
		t.Fatal(err)
	}
}

func TestSegmentFileCut(t *testing.T) {
	t.Parallel()
	b := golden(t, "segment-1.seg")
	path := filepath.Join(t.TempDir(), "x.seg")
	if err := os.WriteFile(path, append(slices.Clone(b), 0), 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, useSegment(path), errCorrupt, path)
	for n := len(b) - 1; n >= 0; n-- {
		if n < len(b)-5000 && n > 800 { // within the large value
			n -= 300
		}
		if err := os.Truncate(path, int64(n)); err != nil {
			t.Fatal(err)
		}
		if err := useSegment(path); !errors.Is(err, errCorrupt) {
			t.Fatalf("cut at %d: error is %v", n, err)
		}
	}
}

// TestSegmentFileNames checks what a reader is told about damage.
func TestSegmentFileNames(t *testing.T) {
	b := golden(t, "segment-1.seg")
	recordsAt := int(binary.BigEndian.Uint64(b[len(b)-80:]))
	dir := t.TempDir()
	tests := map[string]struct {
		at   int // byte to flip
		seq  uint64
		want []string
	}{
		"small value": {64, 1000, []string{"entry 1000", "value at offset 64 has CRC"}},
		"large value": {64 + 305 + 500, 1004, []string{"entry 1004", "value at offset 369"}},
		"record":      {recordsAt + 20, 1000, []string{"entry 1000", "record has CRC"}},
		"directory":   {len(b) - 80 - 1, 1005, []string{"entry 1005"}},
	}
	for name, test := range tests {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".seg")
		bad := slices.Clone(b)
		bad[test.at] ^= 0x10
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := openSegmentFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.entry(test.seq, nil, true)
		wantError(t, err, errCorrupt, append(test.want, path)...)
		for seq := f.first; seq < f.first+f.count; seq++ {
			if _, err := f.entry(seq, nil, true); err != nil && seq != test.seq && (name != "directory" || seq != 1004) {
				t.Errorf("%s: entry %d cannot be read: %v", name, seq, err)
			}
		}
		f.close()
	}
}

// TestSegmentFileImpossible gives files whose checksums are right and whose
// numbers cannot be.
func TestSegmentFileImpossible(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.seg")
	good := golden(t, "segment-1.seg")
	for name, change := range map[string]func(head, foot []byte){
		"count 0":            func(h, f []byte) { put64(h[40:], 0); put64(f[16:], 0) },
		"count 7":            func(h, f []byte) { put64(h[40:], 7); put64(f[16:], 7) },
		"counts differ":      func(h, f []byte) { put64(h[40:], 5) },
		"seqs wrap":          func(h, f []byte) { put64(h[32:], noSeq-2) },
		"first differs":      func(h, f []byte) { put64(h[32:], 999) },
		"records in header":  func(h, f []byte) { put64(f, 63) },
		"records after end":  func(h, f []byte) { put64(f, 1<<40) },
		"directory too far":  func(h, f []byte) { put64(f[8:], 1<<40) },
		"directory wraps":    func(h, f []byte) { put64(f[8:], noSeq-3) },
		"records before end": func(h, f []byte) { put64(f, binary.BigEndian.Uint64(f)-1) },
	} {
		b := slices.Clone(good)
		change(b, b[len(b)-80:])
		resealSegment(b)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := useSegment(path); !errors.Is(err, errCorrupt) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	newer := slices.Clone(good)
	newer[11] = 2
	os.WriteFile(path, newer, 0o600)
	if err := useSegment(path); !errors.Is(err, errCorrupt) {
		t.Errorf("flipped bits of the format: %v", err)
	}
	resealSegment(newer)
	os.WriteFile(path, newer, 0o600)
	if err := useSegment(path); err == nil || !strings.Contains(err.Error(), "format 2, this program reads 1") {
		t.Errorf("newer format: %v", err)
	}
}

func put64(b []byte, v uint64) { binary.BigEndian.PutUint64(b, v) }

// resealSegment makes all checksums of a segment file right, as far as its
// offsets make sense, so that changed bytes reach the checks behind them.
func resealSegment(b []byte) {
	if len(b) < segmentHeaderSize+segmentFooterSize {
		return
	}
	crc := func(to, of []byte) { binary.BigEndian.PutUint32(to, crc32.Checksum(of, castagnoli)) }
	end := uint64(len(b) - segmentFooterSize)
	f := b[end:]
	recordsAt, directoryAt := binary.BigEndian.Uint64(f), binary.BigEndian.Uint64(f[8:])
	if recordsAt <= directoryAt && directoryAt <= end {
		crc(f[56:], b[directoryAt:end])
		r := b[recordsAt:directoryAt]
		for i := 0; i < 16 && len(r) >= recordFixed; i++ {
			n := min(recordFixed+int(binary.BigEndian.Uint16(r[16:])), len(r))
			at := binary.BigEndian.Uint64(r[4:])
			if n >= recordFixed+42 && at <= recordsAt {
				size := binary.BigEndian.Uint64(r[recordFixed+34:])
				crc(r[12:], b[at:at+min(size, recordsAt-at)])
			}
			crc(r, r[4:n])
			r = r[n:]
		}
	}
	crc(b[60:], b[:60])
	crc(f[72:], f[:72])
}

// FuzzSegmentFile opens any bytes as a segment file and reads all of it: there
// may be errors, but no panic, no entry that cannot be, and none that is not
// where the directory says unless its place is refused.
func FuzzSegmentFile(f *testing.F) {
	p := newPendingSegment(7)
	for i, value := range []string{"x", "", "yz"} {
		h := header{op: opPut, seq: p.end(), version: 1, prev: noSeq, size: uint64(len(value)), sum: sha256.Sum256([]byte(value)), key: []byte{byte(i)}}
		p.stage(p.encode(&h, []byte(value)))
		p.show()
	}
	var small bytes.Buffer
	if _, _, _, err := writeSegment(&small, testClusterID, p, 1); err != nil {
		f.Fatal(err)
	}
	f.Add(small.Bytes(), false)
	f.Add(small.Bytes(), true)
	f.Add(golden(f, "segment-1.seg"), false)
	path := filepath.Join(f.TempDir(), "x.seg")
	file, err := os.Create(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { file.Close() })
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) < 1<<14 {
			resealSegment(b)
		}
		// Not os.WriteFile: ext4 flushes a file that was cut to nothing and written again.
		if _, err := file.WriteAt(append(b, 0), 0); err != nil {
			t.Fatal(err)
		}
		if err := file.Truncate(int64(len(b))); err != nil {
			t.Fatal(err)
		}
		s, err := openSegmentFile(path)
		if err != nil {
			return
		}
		defer s.close()
		n := uint64(0)
		_, err = s.records(true, func(r *record, pl place) error {
			if r.header.validate() != nil || r.header.seq != s.first+n {
				t.Fatalf("record %d is %+v", n, r.header)
			}
			n++
			return nil
		})
		if err != nil && !errors.Is(err, errCorrupt) {
			t.Fatal(err)
		}
		if err == nil && n != s.count {
			t.Fatalf("read %d of %d records without an error", n, s.count)
		}
		for seq := s.first; seq < s.first+min(s.count, 64); seq++ {
			if e, err := s.entry(seq, nil, true); err == nil && e.seq != seq {
				t.Fatalf("entry %d is entry %d", seq, e.seq)
			}
			if raws, err := s.headers(seq, seq+2); err == nil {
				if h, err := parseHeader(raws[1]); err != nil || h.seq != seq+1 {
					t.Fatalf("after entry %d comes %+v, %v", seq, h, err)
				}
			}
		}
	})
}

// TestWriteSegmentFails has the disk refuse at every write.
func TestWriteSegmentFails(t *testing.T) {
	broken := errors.New("disk is gone")
	for room := 0; room < 60_000; room += 20_000 {
		w := &fullWriter{room: room, err: broken}
		if _, _, _, err := writeSegment(w, testClusterID, goldenPending(), goldenTime); !errors.Is(err, broken) {
			t.Errorf("with room for %d bytes the error is %v", room, err)
		}
	}
}

// fullWriter fails once room bytes were written.
type fullWriter struct {
	room int
	err  error
}

func (w *fullWriter) Write(b []byte) (int, error) {
	n := min(len(b), w.room)
	w.room -= n
	if n < len(b) {
		return n, w.err
	}
	return n, nil
}

func TestMemoryValue(t *testing.T) {
	v := memoryValue("abc")
	for at, want := range map[int64]string{0: "abc", 1: "bc", 3: ""} {
		if b, err := io.ReadAll(io.NewSectionReader(v, at, 10)); err != nil || string(b) != want {
			t.Errorf("from %d: %q, %v", at, b, err)
		}
	}
	for _, at := range []int64{-1, 4} {
		if n, err := v.ReadAt(make([]byte, 1), at); n != 0 || err != io.EOF {
			t.Errorf("at %d: %d, %v", at, n, err)
		}
	}
	if n, err := v.ReadAt(make([]byte, 2), 1); n != 2 || err != nil {
		t.Errorf("within: %d, %v", n, err)
	}
}
