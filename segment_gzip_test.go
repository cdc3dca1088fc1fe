package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// goldenRaw is what testdata/packed-1.seg.gz holds.
func goldenRaw() []byte {
	var b []byte
	for i := range 600 {
		b = append(b, bytes.Repeat([]byte{byte(i)}, 1000)...)
	}
	return b
}

// noise returns bytes that cannot be packed.
func noise(size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

// checkPacked fails the test unless object is raw, as a whole, member by member
// and for any gunzip.
func checkPacked(t *testing.T, object, raw []byte) *gzipTable {
	t.Helper()
	size := int64(len(raw))
	table, err := parseGzipTable(object[max(0, int64(len(object))-gzipTableSize(size)):], size)
	if err != nil {
		t.Fatal(err)
	}
	if n := table.objectSize(); n != int64(len(object)) {
		t.Fatalf("object has %d bytes, its table says %d", len(object), n)
	}
	var whole bytes.Buffer
	if err := unpackSegment(&whole, bytes.NewReader(object), size); err != nil || !bytes.Equal(whole.Bytes(), raw) {
		t.Errorf("unpacked %d bytes of %d, %v", whole.Len(), size, err)
	}
	var parts []byte
	for i := range table.ends {
		from, n := table.span(i, i)
		b, err := table.unpackMember(i, object[from:from+n])
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, b...)
	}
	if !bytes.Equal(parts, raw) {
		t.Errorf("the members hold %d bytes that are not the file's %d", len(parts), size)
	}
	plain, err := gzip.NewReader(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(plain); err != nil || !bytes.Equal(b, raw) {
		t.Errorf("gunzip gives %d bytes, %v", len(b), err)
	}
	return table
}

func TestGzipGolden(t *testing.T) {
	object := golden(t, "packed-1.seg.gz")
	table := checkPacked(t, object, goldenRaw())
	if len(table.ends) != 3 {
		t.Errorf("%d members", len(table.ends))
	}
	tail := object[len(object)-int(gzipTableSize(600_000)):]
	if b := appendGzipTable(nil, table); !bytes.Equal(b, tail) {
		t.Errorf("table is\n%x, want\n%x", b, tail)
	}
}

func TestGzipSizes(t *testing.T) {
	t.Parallel()
	random := noise(3*gzipMemberSize + 5)
	for _, size := range []int{1, gzipMemberSize - 1, gzipMemberSize, gzipMemberSize + 1, len(random)} {
		for _, raw := range [][]byte{random[:size], make([]byte, size)} {
			for _, level := range []int{gzip.BestSpeed, 6} {
				var b bytes.Buffer
				table, err := packSegment(&b, bytes.NewReader(raw), int64(size), level)
				if err != nil {
					t.Fatal(err)
				}
				again := checkPacked(t, b.Bytes(), raw)
				if !bytes.Equal(appendGzipTable(nil, table), appendGzipTable(nil, again)) {
					t.Errorf("size %d: two tables", size)
				}
			}
		}
	}
	if _, err := packSegment(io.Discard, bytes.NewReader(random), int64(len(random)+1), 1); !errors.Is(err, io.EOF) {
		t.Errorf("a file that is shorter than it was: %v", err)
	}
}

// TestGzipParts: any few bytes lie in at most two members, which with the table
// have at most 512 KiB even of a file that cannot be packed.
func TestGzipParts(t *testing.T) {
	t.Parallel()
	raw := noise(5 * gzipMemberSize)
	var b bytes.Buffer
	table, err := packSegment(&b, bytes.NewReader(raw), int64(len(raw)), 6)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		n := 1 + r.Int64N(gzipMemberSize)
		from := r.Int64N(int64(len(raw)) - n + 1)
		first, last := table.members(from, n)
		at, size := table.span(first, last)
		if last > first+1 || size+gzipTableSize(64<<20) > 512<<10 {
			t.Fatalf("%d bytes from %d: members %d to %d, %d bytes", n, from, first, last, size)
		}
		var got []byte
		for i := first; i <= last; i++ {
			from, n := table.span(i, i)
			part, err := table.unpackMember(i, b.Bytes()[at:][from-at:][:n])
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, part...)
		}
		if skip := from - int64(first)*table.member; !bytes.Equal(got[skip:skip+n], raw[from:from+n]) {
			t.Fatalf("%d bytes from %d are wrong", n, from)
		}
	}
}

// TestGzipHuge: a file of any size has a table that fits.
func TestGzipHuge(t *testing.T) {
	for _, x := range []struct {
		size, member int64
		n            int
	}{{1, 240 << 10, 1}, {64 << 20, 240 << 10, 274}, {1_800 * 240 << 10, 240 << 10, 1_800}, {1_800*240<<10 + 1, 480 << 10, 901}, {1 << 40, 960 << 20, 1093}} {
		member, n := gzipMembers(x.size)
		if member != x.member || n != x.n || gzipTableSize(x.size) > 64<<10 {
			t.Errorf("size %d: %d members of %d, want %d of %d", x.size, n, member, x.n, x.member)
		}
	}
}

// TestGzipTableCutAndFlipped: no table with a bit changed, cut anywhere, or of
// a file of another size is taken.
func TestGzipTableCutAndFlipped(t *testing.T) {
	object := golden(t, "packed-1.seg.gz")
	table := object[len(object)-int(gzipTableSize(600_000)):]
	for size := range len(table) {
		if _, err := parseGzipTable(table[:size], 600_000); !errors.Is(err, errPacked) {
			t.Errorf("cut to %d bytes: %v", size, err)
		}
	}
	for bit := range 8 * len(table) {
		b := bytes.Clone(table)
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := parseGzipTable(b, 600_000); !errors.Is(err, errPacked) {
			t.Errorf("bit %d flipped: %v", bit, err)
		}
	}
	for _, size := range []int64{-1, 0, 1, 599_999, 600_001, 700_000, 1 << 62} {
		if _, err := parseGzipTable(table, size); !errors.Is(err, errPacked) {
			t.Errorf("taken for a file of %d bytes: %v", size, err)
		}
	}
	// Sizes that no member has, with a CRC that is right.
	for _, size := range []uint32{0, 1 << 31} {
		made := &gzipTable{size: 600_000, member: gzipMemberSize, ends: []int64{100, 100 + int64(size), 200 + int64(size)}, sums: make([]hash, 3)}
		if _, err := parseGzipTable(appendGzipTable(nil, made), 600_000); !errors.Is(err, errPacked) {
			t.Errorf("a member of %d bytes: %v", size, err)
		}
	}
}

// TestGzipMemberCutAndFlipped: what is unpacked is what was packed, or an error.
func TestGzipMemberCutAndFlipped(t *testing.T) {
	t.Parallel()
	want := bytes.Repeat([]byte("some text, "), 100)
	var object bytes.Buffer
	table, err := packSegment(&object, bytes.NewReader(want), int64(len(want)), 6)
	if err != nil {
		t.Fatal(err)
	}
	member := object.Bytes()[:table.ends[0]]
	for size := range len(member) {
		if _, err := table.unpackMember(0, member[:size]); !errors.Is(err, errPacked) {
			t.Errorf("cut to %d bytes: %v", size, err)
		}
	}
	for bit := range 8 * len(member) {
		b := bytes.Clone(member)
		b[bit/8] ^= 1 << (bit % 8)
		if got, err := table.unpackMember(0, b); err == nil && !bytes.Equal(got, want) || err != nil && !errors.Is(err, errPacked) {
			t.Errorf("bit %d flipped: %d bytes, %v", bit, len(got), err)
		}
	}
	for name, b := range map[string][]byte{"longer": append(bytes.Clone(member), 0), "twice": append(bytes.Clone(member), member...), "another": golden(t, "packed-1.seg.gz")} {
		if _, err := table.unpackMember(0, b); !errors.Is(err, errPacked) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGzipWholeDamaged: an object cut anywhere, or longer than it is to be.
func TestGzipWholeDamaged(t *testing.T) {
	t.Parallel()
	want := bytes.Repeat([]byte("some text, "), 100)
	var object bytes.Buffer
	if _, err := packSegment(&object, bytes.NewReader(want), int64(len(want)), 6); err != nil {
		t.Fatal(err)
	}
	for size := range object.Len() {
		var b bytes.Buffer
		err := unpackSegment(&b, bytes.NewReader(object.Bytes()[:size]), int64(len(want)))
		if err == nil && !bytes.Equal(b.Bytes(), want) {
			t.Errorf("cut to %d bytes: %d bytes and no error", size, b.Len())
		}
	}
	for _, size := range []int{0, len(want) - 1, len(want) + 1} {
		var b bytes.Buffer
		if err := unpackSegment(&b, bytes.NewReader(object.Bytes()), int64(size)); !errors.Is(err, errPacked) || b.Len() > size+1 {
			t.Errorf("size %d: %d bytes, %v", size, b.Len(), err)
		}
	}
}

func TestGzipName(t *testing.T) {
	sum := hash(sha256.Sum256(nil))
	name := packedName(42, sum)
	if want := "00000000000000000042-" + emptySHA256 + ".seg.gz"; name != want {
		t.Errorf("name is %s, want %s", name, want)
	}
	if first, got, ok := parsePackedName(name); first != 42 || got != sum || !ok {
		t.Errorf("parsed %d, %x, %v", first, got, ok)
	}
	for _, bad := range []string{"", "x", name[1:], name + "x", "+" + name[1:], name[:len(name)-3], "00000000000000000042-" + "E3" + emptySHA256[2:] + ".seg.gz"} {
		if _, _, ok := parsePackedName(bad); ok {
			t.Errorf("%q is taken for a name", bad)
		}
	}
}

func FuzzGzipTable(f *testing.F) {
	object := golden(f, "packed-1.seg.gz")
	f.Add(object[len(object)-int(gzipTableSize(600_000)):], int64(600_000))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		table, err := parseGzipTable(b, size)
		if err == nil && (table.size != size || table.objectSize() < int64(len(b)) || !bytes.Equal(appendGzipTable(nil, table), b)) {
			t.Errorf("table is %+v", table)
		}
	})
}

func FuzzGzipMember(f *testing.F) {
	object := golden(f, "packed-1.seg.gz")
	f.Add(object[:binary.BigEndian.Uint32(object[len(object)-30-3*gzipTableEntry:])])
	f.Fuzz(func(t *testing.T, b []byte) {
		table := &gzipTable{size: 1000, member: gzipMemberSize, ends: []int64{int64(len(b))}, sums: []hash{sha256.Sum256(goldenRaw()[:1000])}}
		if raw, err := table.unpackMember(0, b); err == nil && !bytes.Equal(raw, goldenRaw()[:1000]) {
			t.Errorf("%d bytes that were not packed", len(raw))
		}
	})
}

// BenchmarkPackSegment packs a file of which half is noise.
func BenchmarkPackSegment(b *testing.B) {
	raw := noise(16 << 20)
	for i := 0; i < len(raw); i += 200 {
		clear(raw[i:min(i+100, len(raw))])
	}
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := packSegment(io.Discard, bytes.NewReader(raw), int64(len(raw)), 6); err != nil {
			b.Fatal(err)
		}
	}
}
