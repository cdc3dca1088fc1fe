package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
)

// A packed segment is a segment file as it lies in a bucket or a backup: an
// ordinary .gz of it, of which a part can be read alone.
//
//	members  gzip members (RFC 1952) of 240 KiB of the file each, the last of what
//	         is left; a file of more than 1,800 such members has members of
//	         twice that, or four times, and so on
//	table    one more member, of no bytes, that says where the others are
//
// A value of a few bytes needs one member, or two where it begins in one and
// ends in the next: at most 512 KiB either way, even if nothing can be packed.
//
// Table:
//
//	offset  size  field
//	     0    10  header of a gzip member with an extra field: 1f 8b 08 04, then
//	              four bytes 0 (no time), 00, ff (no system)
//	    10     2  length of the extra field, little-endian
//	    12     2  "SL"
//	    14     2  length of what is in the field, little-endian
//	    16  36*n  of each member: its size, and SHA-256 of what it holds
//	     .     8  size of the segment file
//	     .     4  bytes of the file in each member but the last
//	     .     4  CRC32C of everything in the field before
//	     .     4  "SGZT"
//	     .    10  03 00 and eight bytes 0: nothing, packed; its CRC and size
//
// Integers are big-endian but for the two lengths, which are gzip's. The table
// has 46 + 36n bytes, and n follows from the size of the segment file: who knows
// that (the manifest says it) reads exactly the table from the end of the
// object.
//
// The name is <first, 20 digits>-<sum, 64 hex digits>.seg.gz. sum is SHA-256 of
// the size of the segment file (uint64), the bytes in each member (uint32) and
// the hashes of all members, in order. So the manifest, which Raft agreed on and
// which has the name, tells the table's hashes from made-up ones, and those each
// byte of each member: nothing that a bucket gives has to be believed. The name
// depends on no packer: there is one object a segment whoever made it.

// Part of the format; never change, add a version.
const (
	gzipMemberSize = 240 << 10
	gzipMaxMembers = 1_800
	gzipTableFixed = 46
	gzipTableEntry = 36
	gzipTableMagic = "SGZT"
	gzipTableHead  = "\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"
	gzipTableEnd   = "\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	packedSuffix   = ".seg.gz"
)

// errPacked is wrapped by every error about bytes that are no packed segment.
var errPacked = errors.New("packed segment is damaged")

// packedName returns the name of the segment that begins with entry first and
// whose table has that sum.
func packedName(first uint64, sum hash) string {
	return fmt.Sprintf("%020d-%x%s", first, sum[:], packedSuffix)
}

// parsePackedName is the inverse of packedName.
func parsePackedName(name string) (first uint64, sum hash, ok bool) {
	number, rest, _ := strings.Cut(strings.TrimSuffix(name, packedSuffix), "-")
	first, err := strconv.ParseUint(number, 10, 64)
	b, hexErr := hex.DecodeString(rest)
	if err != nil || hexErr != nil || len(b) != len(sum) {
		return 0, hash{}, false
	}
	copy(sum[:], b)
	return first, sum, packedName(first, sum) == name
}

// gzipTable says where the members of a packed segment are.
type gzipTable struct {
	size   int64   // of the segment file
	member int64   // bytes of the file in each member but the last
	ends   []int64 // where each member ends in the object
	sums   []hash  // SHA-256 of what each member holds
}

// sum returns what the name of the object says of the segment file.
func (t *gzipTable) sum() hash {
	b := binary.BigEndian.AppendUint64(nil, uint64(t.size))
	b = binary.BigEndian.AppendUint32(b, uint32(t.member))
	for i := range t.sums {
		b = append(b, t.sums[i][:]...)
	}
	return sha256.Sum256(b)
}

// gzipMembers returns how many bytes of a file of that size are in each member,
// and how many members it has.
func gzipMembers(size int64) (member int64, n int) {
	member = gzipMemberSize
	for (size+member-1)/member > gzipMaxMembers {
		member *= 2
	}
	return member, int((size + member - 1) / member)
}

// gzipTableSize returns the size of the table of a segment file of that size.
func gzipTableSize(size int64) int64 {
	_, n := gzipMembers(size)
	return gzipTableFixed + gzipTableEntry*int64(n)
}

// packSegment writes the segment file r, which has that size, to w, packed at a
// level of compress/gzip.
func packSegment(w io.Writer, r io.Reader, size int64, level int) (*gzipTable, error) {
	t := &gzipTable{size: size}
	var n int
	t.member, n = gzipMembers(size)
	out := &countingWriter{w: bufio.NewWriterSize(w, 256<<10)}
	pack, err := gzip.NewWriterLevel(out, level)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	for i := range n {
		pack.Reset(out)
		sum.Reset()
		if _, err := io.CopyN(io.MultiWriter(pack, sum), r, t.rawSize(i)); err != nil {
			return nil, fmt.Errorf("packing member %d of %d: %w", i, n, err)
		}
		if err := errors.Join(pack.Close(), out.err); err != nil {
			return nil, fmt.Errorf("packing member %d of %d: %w", i, n, err)
		}
		t.ends, t.sums = append(t.ends, out.n), append(t.sums, hash(sum.Sum(nil)))
	}
	out.Write(appendGzipTable(nil, t))
	return t, out.flush()
}

// rawSize returns how many bytes of the file are in member i.
func (t *gzipTable) rawSize(i int) int64 { return min(t.member, t.size-int64(i)*t.member) }

// objectSize returns the size of the packed segment.
func (t *gzipTable) objectSize() int64 { return t.ends[len(t.ends)-1] + gzipTableSize(t.size) }

// members returns the first and the last member that hold the n bytes of the
// file from the given one; they must be in the file, and at least one.
func (t *gzipTable) members(from, n int64) (first, last int) {
	return int(from / t.member), int((from + n - 1) / t.member)
}

// span returns where members first to last lie in the object.
func (t *gzipTable) span(first, last int) (from, size int64) {
	if first > 0 {
		from = t.ends[first-1]
	}
	return from, t.ends[last] - from
}

// appendGzipTable appends the table t.
func appendGzipTable(b []byte, t *gzipTable) []byte {
	payload := gzipTableEntry*len(t.ends) + 20
	b = append(b, gzipTableHead...)
	b = binary.LittleEndian.AppendUint16(b, uint16(4+payload))
	b = append(b, "SL"...)
	b = binary.LittleEndian.AppendUint16(b, uint16(payload))
	start, end := len(b), int64(0)
	for i, e := range t.ends {
		b = binary.BigEndian.AppendUint32(b, uint32(e-end))
		b = append(b, t.sums[i][:]...)
		end = e
	}
	b = binary.BigEndian.AppendUint64(b, uint64(t.size))
	b = binary.BigEndian.AppendUint32(b, uint32(t.member))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
	b = append(b, gzipTableMagic...)
	return append(b, gzipTableEnd...)
}

// parseGzipTable reads the table b of a segment file of that size. Its hashes are
// worth something once its sum is that of the name.
func parseGzipTable(b []byte, size int64) (*gzipTable, error) {
	if size <= 0 || int64(len(b)) != gzipTableSize(size) {
		return nil, fmt.Errorf("%w: table has %d bytes for a file of %d", errPacked, len(b), size)
	}
	field, end := b[16:len(b)-18], b[len(b)-18:]
	if string(end[4:]) != gzipTableMagic+gzipTableEnd {
		return nil, fmt.Errorf("%w: table ends with % x", errPacked, end[4:])
	}
	if crc, want := crc32.Checksum(field, castagnoli), binary.BigEndian.Uint32(end); crc != want {
		return nil, fmt.Errorf("%w: CRC of its table is %08x, it says %08x", errPacked, crc, want)
	}
	sizes, tail := field[:len(field)-12], field[len(field)-12:]
	t := &gzipTable{size: int64(binary.BigEndian.Uint64(tail)), member: int64(binary.BigEndian.Uint32(tail[8:]))}
	if member, _ := gzipMembers(size); t.size != size || t.member != member {
		return nil, fmt.Errorf("%w: its table is of a file of %d bytes in members of %d, want %d in %d", errPacked, t.size, t.member, size, member)
	}
	at := int64(0)
	for ; len(sizes) > 0; sizes = sizes[gzipTableEntry:] {
		n := int64(binary.BigEndian.Uint32(sizes))
		if n == 0 || n > t.member+t.member/16+64 {
			return nil, fmt.Errorf("%w: member %d has %d bytes", errPacked, len(t.ends), n)
		}
		at += n
		t.ends, t.sums = append(t.ends, at), append(t.sums, hash(sizes[4:gzipTableEntry]))
	}
	if !bytes.Equal(b, appendGzipTable(nil, t)) {
		return nil, fmt.Errorf("%w: the head of its table is % x", errPacked, b[:16])
	}
	return t, nil
}

// unpackMember returns the bytes of the file that are in member i, which is b:
// those that the table has the hash of, or an error.
func (t *gzipTable) unpackMember(i int, b []byte) ([]byte, error) {
	return new(unpacker).member(t, i, b)
}

// unpacker unpacks one member after the other in the same memory.
type unpacker struct {
	zip gzip.Reader
	raw []byte
	end [1]byte
}

// member is t.unpackMember, whose result is good until the next call.
func (u *unpacker) member(t *gzipTable, i int, b []byte) ([]byte, error) {
	in := bytes.NewReader(b)
	if err := u.zip.Reset(in); err != nil {
		return nil, fmt.Errorf("%w: member %d: %w", errPacked, i, err)
	}
	u.zip.Multistream(false)
	size := int(t.rawSize(i))
	if cap(u.raw) < size {
		u.raw = make([]byte, size)
	}
	raw := u.raw[:size]
	if n, err := io.ReadFull(&u.zip, raw); err != nil {
		return nil, fmt.Errorf("%w: member %d: byte %d of %d: %w", errPacked, i, n, len(raw), err)
	}
	// The CRC is checked where the member ends, and only there.
	if _, err := io.ReadFull(&u.zip, u.end[:]); err != io.EOF || in.Len() > 0 {
		return nil, fmt.Errorf("%w: member %d does not end behind %d bytes: %v, %d more", errPacked, i, len(raw), err, in.Len())
	}
	if sum := hash(sha256.Sum256(raw)); sum != t.sums[i] {
		return nil, fmt.Errorf("%w: member %d holds bytes with SHA-256 %s, its table says %s", errPacked, i, sum, t.sums[i])
	}
	return raw, nil
}

// unpackSegment writes the segment file of that size, packed in r, to w. Who
// calls it compares the bytes with a hash.
func unpackSegment(w io.Writer, r io.Reader, size int64) error {
	unpack, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("%w: %w", errPacked, err)
	}
	n, err := io.Copy(w, io.LimitReader(unpack, size+1))
	if err != nil {
		return fmt.Errorf("%w: byte %d of %d: %w", errPacked, n, size, err)
	}
	if n != size {
		return fmt.Errorf("%w: it holds %d bytes or more, want %d", errPacked, n, size)
	}
	return nil
}
