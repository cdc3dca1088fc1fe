package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync/atomic"
)

// A segment file holds a run of entries that will never change. It is written
// once, whole, and is byte-identical on every node. Sections, in this order:
//
//	header     64 bytes
//	values     the values in order of seq, nothing between them; an empty one
//	           lies where the next one begins
//	records    one record an entry, in order of seq
//	directory  one uint32 an entry: offset of its record within the records
//	footer     80 bytes
//
// Header:
//
//	offset  size  field
//	     0     8  magic "SCRSEGMT"
//	     8     4  format: 1
//	    12     4  0
//	    16    16  cluster id
//	    32     8  first: seq of the first entry
//	    40     8  count: number of entries, at least 1
//	    48     8  time: Unix milliseconds at which the leader sealed it
//	    56     4  0
//	    60     4  CRC32C of bytes 0 to 59
//
// Every later format keeps the magic, the format and this CRC where they are,
// so that a flipped bit is not taken for another format.
//
// Record:
//
//	     0     4  CRC32C of the rest of the record
//	     4     8  offset of the value in the file
//	    12     4  CRC32C of the value
//	    16     2  length of the canonical header (segment.go)
//	    18     .  canonical header
//
// Footer:
//
//	     0     8  offset of the records
//	     8     8  offset of the directory
//	    16     8  count
//	    24    32  merkle root: RFC 6962 root over the leaf hashes of the records
//	    56     4  CRC32C of the directory
//	    60    12  0
//	    72     4  CRC32C of bytes 0 to 71
//	    76     4  magic "SEND"
//
// All integers are big-endian; CRC32C is Castagnoli. Every byte is covered by
// a checksum, and a record carries its seq, so that a misplaced one is seen.
// Values stand apart from the records so that leaves, keys and history can be
// read from the tail of the file without moving a value.
//
// The file's name is <first, 20 digits>-<merkle root, 64 hex digits>.seg. It is
// written under a name that ends in .tmp, fsynced, renamed, and its directory
// fsynced: under its final name a file is always whole.

// Part of the file format; never change, add a version.
const (
	segmentMagic       = "SCRSEGMT"
	segmentEndMagic    = "SEND"
	segmentFormat      = 1
	segmentHeaderSize  = 64
	segmentFooterSize  = 80
	recordFixed        = 18 // bytes of a record before the canonical header
	directoryEntrySize = 4
	segmentSuffix      = ".seg"
)

// recordSize returns the bytes of a record whose canonical header has n bytes.
func recordSize(n int) int64 { return recordFixed + int64(n) }

// clusterID names a cluster for ever; it is made at its formation.
type clusterID [16]byte

func (c clusterID) String() string { return fmt.Sprintf("%x", c[:]) }

// parseClusterID reads 32 hex digits.
func parseClusterID(s string) (clusterID, error) {
	var c clusterID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(c) {
		return c, fmt.Errorf("%w: cluster id %q is not 32 hex digits", errCorrupt, s)
	}
	return clusterID(b), nil
}

// place says where a record lies within the records section of its segment.
type place struct {
	offset uint32
	length uint16
}

// writeSegment writes p, sealed at time, as a segment file to w and returns
// its size, its SHA-256 and the place of each record.
func writeSegment(w io.Writer, cluster clusterID, p *pendingSegment, time int64) (int64, hash, []place, error) {
	sum := sha256.New()
	out := &countingWriter{w: bufio.NewWriterSize(io.MultiWriter(w, sum), 256<<10)}
	out.Write(appendSegmentHeader(nil, cluster, p.first, uint64(len(p.entries)), time))

	for i := range p.entries {
		out.Write(p.entries[i].value)
	}

	recordsAt := out.n
	places := make([]place, len(p.entries))
	valueAt := int64(segmentHeaderSize)
	var buf []byte
	for i := range p.entries {
		e := &p.entries[i]
		places[i] = place{uint32(out.n - recordsAt), uint16(recordSize(len(e.raw)))}
		buf = appendRecord(buf[:0], uint64(valueAt), e)
		out.Write(buf)
		valueAt += int64(len(e.value))
	}

	directoryAt := out.n
	var crc uint32
	for _, pl := range places {
		buf = binary.BigEndian.AppendUint32(buf[:0], pl.offset)
		crc = crc32.Update(crc, castagnoli, buf)
		out.Write(buf)
	}

	f := segmentFooter{uint64(recordsAt), uint64(directoryAt), uint64(len(p.entries)), p.tree.root(), crc}
	out.Write(f.append(nil))
	if err := out.flush(); err != nil {
		return 0, hash{}, nil, err
	}
	return out.n, hash(sum.Sum(nil)), places, nil
}

// countingWriter counts bytes and keeps the first error for flush.
type countingWriter struct {
	w   *bufio.Writer
	n   int64
	err error
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	if c.err == nil {
		c.err = err
	}
	return n, err
}

func (c *countingWriter) flush() error {
	if c.err != nil {
		return c.err
	}
	return c.w.Flush()
}

// appendSegmentHeader appends the 64 bytes a segment file starts with.
func appendSegmentHeader(b []byte, cluster clusterID, first, count uint64, time int64) []byte {
	start := len(b)
	b = append(b, segmentMagic...)
	b = binary.BigEndian.AppendUint32(b, segmentFormat)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = append(b, cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, first)
	b = binary.BigEndian.AppendUint64(b, count)
	b = binary.BigEndian.AppendUint64(b, uint64(time))
	b = binary.BigEndian.AppendUint32(b, 0)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// appendRecord appends the record of e, whose value lies at valueAt.
func appendRecord(b []byte, valueAt uint64, e *pendingEntry) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, valueAt)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(e.value, castagnoli))
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.raw)))
	b = append(b, e.raw...)
	binary.BigEndian.PutUint32(b[start:], crc32.Checksum(b[start+4:], castagnoli))
	return b
}

// record is one parsed record.
type record struct {
	valueAt  uint64 // offset of the value in the file
	valueCRC uint32
	raw      []byte // canonical header
	header   header
}

// parseRecord reads one whole record.
func parseRecord(b []byte) (record, error) {
	var r record
	if len(b) < recordFixed {
		return r, fmt.Errorf("%w: record has %d bytes, want at least %d", errCorrupt, len(b), recordFixed)
	}
	if got, want := crc32.Checksum(b[4:], castagnoli), binary.BigEndian.Uint32(b); got != want {
		return r, fmt.Errorf("%w: record has CRC %08x, its bytes give %08x", errCorrupt, want, got)
	}
	if n := int(binary.BigEndian.Uint16(b[16:])); n != len(b)-recordFixed {
		return r, fmt.Errorf("%w: record says %d header bytes and has %d", errCorrupt, n, len(b)-recordFixed)
	}
	r.valueAt = binary.BigEndian.Uint64(b[4:])
	r.valueCRC = binary.BigEndian.Uint32(b[12:])
	r.raw = b[recordFixed:]
	var err error
	r.header, err = parseHeader(r.raw)
	return r, err
}

// segmentFooter is the last 80 bytes of a segment file.
type segmentFooter struct {
	recordsAt    uint64
	directoryAt  uint64
	count        uint64
	root         hash
	directoryCRC uint32
}

// append appends the 80 bytes of f.
func (f *segmentFooter) append(b []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(b, f.recordsAt)
	b = binary.BigEndian.AppendUint64(b, f.directoryAt)
	b = binary.BigEndian.AppendUint64(b, f.count)
	b = append(b, f.root[:]...)
	b = binary.BigEndian.AppendUint32(b, f.directoryCRC)
	b = append(b, make([]byte, 12)...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
	return append(b, segmentEndMagic...)
}

// parseSegmentFooter reads the last 80 bytes of a file of the given size.
func parseSegmentFooter(b []byte, size int64) (segmentFooter, error) {
	var f segmentFooter
	if len(b) != segmentFooterSize || string(b[76:]) != segmentEndMagic {
		return f, fmt.Errorf("%w: segment footer lacks its magic", errCorrupt)
	}
	if got, want := crc32.Checksum(b[:72], castagnoli), binary.BigEndian.Uint32(b[72:]); got != want {
		return f, fmt.Errorf("%w: segment footer has CRC %08x, its bytes give %08x", errCorrupt, want, got)
	}
	f.recordsAt = binary.BigEndian.Uint64(b)
	f.directoryAt = binary.BigEndian.Uint64(b[8:])
	f.count = binary.BigEndian.Uint64(b[16:])
	copy(f.root[:], b[24:])
	f.directoryCRC = binary.BigEndian.Uint32(b[56:])
	end := uint64(size) - segmentFooterSize
	if f.recordsAt < segmentHeaderSize || f.recordsAt > f.directoryAt || f.directoryAt > end ||
		f.count == 0 || f.count != (end-f.directoryAt)/directoryEntrySize || (end-f.directoryAt)%directoryEntrySize != 0 {
		return f, fmt.Errorf("%w: segment footer does not fit a file of %d bytes", errCorrupt, size)
	}
	return f, nil
}

// segmentFile reads one sealed segment. It is safe for concurrent use.
type segmentFile struct {
	segmentFooter
	src     segmentBytes
	name    string // where it is, for messages
	size    int64
	cluster clusterID
	first   uint64
	time    int64
	used    atomic.Int64 // when a reader last asked for it, as the store counts
}

// segmentBytes is where the bytes of a segment file are: a file, or a bucket.
type segmentBytes interface {
	io.ReaderAt
	// section reads size bytes from offset from on, in order; again tells that
	// they will be read once more, soon.
	section(from, size int64, again bool) io.Reader
	Close() error
}

// segmentOnDisk is a segment that is a file.
type segmentOnDisk struct{ *os.File }

func (f segmentOnDisk) section(from, size int64, again bool) io.Reader {
	return io.NewSectionReader(f.File, from, size)
}

// openSegmentFile opens the segment file at path and checks its header and
// footer; the rest is checked as it is read.
func openSegmentFile(path string) (*segmentFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return openSegmentBytes(segmentOnDisk{f}, path, st.Size())
}

// openSegmentBytes is openSegmentFile of a segment file of that size wherever it
// is. It closes src if it fails.
func openSegmentBytes(src segmentBytes, name string, size int64) (*segmentFile, error) {
	s := &segmentFile{src: src, name: name, size: size}
	if err := s.readEnds(); err != nil {
		src.Close()
		return nil, fmt.Errorf("segment %s: %w", name, err)
	}
	return s, nil
}

// readEnds fills s from the header and the footer.
func (s *segmentFile) readEnds() (err error) {
	if s.size < segmentHeaderSize+segmentFooterSize {
		return fmt.Errorf("%w: file has %d bytes, want at least %d", errCorrupt, s.size, segmentHeaderSize+segmentFooterSize)
	}
	var b [segmentFooterSize]byte
	if _, err := s.src.ReadAt(b[:segmentHeaderSize], 0); err != nil {
		return err
	}
	if string(b[:8]) != segmentMagic {
		return fmt.Errorf("%w: not a segment file: magic is %q", errCorrupt, b[:8])
	}
	if got, want := crc32.Checksum(b[:60], castagnoli), binary.BigEndian.Uint32(b[60:]); got != want {
		return fmt.Errorf("%w: segment header has CRC %08x, its bytes give %08x", errCorrupt, want, got)
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != segmentFormat {
		return fmt.Errorf("segment has format %d, this program reads %d", v, segmentFormat)
	}
	copy(s.cluster[:], b[16:])
	s.first = binary.BigEndian.Uint64(b[32:])
	count := binary.BigEndian.Uint64(b[40:])
	s.time = int64(binary.BigEndian.Uint64(b[48:]))
	if _, err := s.src.ReadAt(b[:], s.size-segmentFooterSize); err != nil {
		return err
	}
	if s.segmentFooter, err = parseSegmentFooter(b[:], s.size); err != nil {
		return err
	}
	if s.count != count || s.first+count < s.first {
		return fmt.Errorf("%w: segment header counts %d entries from %d, footer %d", errCorrupt, count, s.first, s.count)
	}
	return nil
}

// close releases the file; nobody may read any more.
func (s *segmentFile) close() error { return s.src.Close() }

// recordAt reads the record at pl and checks that it is that of seq.
func (s *segmentFile) recordAt(pl place, seq uint64) (record, error) {
	buf := make([]byte, pl.length)
	at := int64(s.recordsAt) + int64(pl.offset)
	if at+int64(pl.length) > int64(s.directoryAt) {
		return record{}, s.bad(seq, fmt.Errorf("%w: place %d+%d is outside the records", errCorrupt, pl.offset, pl.length))
	}
	if _, err := s.src.ReadAt(buf, at); err != nil {
		return record{}, s.bad(seq, err)
	}
	r, err := parseRecord(buf)
	if err != nil {
		return record{}, s.bad(seq, err)
	}
	if r.header.seq != seq {
		return record{}, s.bad(seq, fmt.Errorf("%w: record at offset %d is of entry %d", errCorrupt, at, r.header.seq))
	}
	if r.valueAt < segmentHeaderSize || r.valueAt > s.recordsAt || r.header.size > s.recordsAt-r.valueAt {
		return record{}, s.bad(seq, fmt.Errorf("%w: value at %d of %d bytes is outside the values", errCorrupt, r.valueAt, r.header.size))
	}
	return r, nil
}

// bad names the segment and the entry in an error.
func (s *segmentFile) bad(seq uint64, err error) error {
	return fmt.Errorf("segment %s: entry %d: %w", s.name, seq, err)
}

// placeOf reads the place of the record of seq from the directory. The
// directory's CRC is not checked here: a wrong place gives a record with a
// wrong CRC or a wrong seq.
func (s *segmentFile) placeOf(seq uint64) (place, error) {
	i := seq - s.first
	if seq < s.first || i >= s.count {
		return place{}, s.bad(seq, fmt.Errorf("%w: not in this segment", errCorrupt))
	}
	var b [2 * directoryEntrySize]byte
	n := 2 * directoryEntrySize
	next := s.directoryAt - s.recordsAt // where the last record ends
	if i == s.count-1 {
		n = directoryEntrySize
	}
	if _, err := s.src.ReadAt(b[:n], int64(s.directoryAt+i*directoryEntrySize)); err != nil {
		return place{}, s.bad(seq, err)
	}
	offset := uint64(binary.BigEndian.Uint32(b[:]))
	if i < s.count-1 {
		next = uint64(binary.BigEndian.Uint32(b[directoryEntrySize:]))
	}
	if next <= offset || next-offset > uint64(recordSize(maxHeaderSize)) {
		return place{}, s.bad(seq, fmt.Errorf("%w: directory gives a record of %d bytes", errCorrupt, int64(next-offset)))
	}
	return place{uint32(offset), uint16(next - offset)}, nil
}

// smallValue is the size up to which a value is read into memory at once.
const smallValue = 64 << 10

// value returns the value of r after checking its CRC: small values from
// memory, large ones as a reader of the file.
func (s *segmentFile) value(r *record) (io.ReaderAt, error) {
	if r.header.size <= smallValue {
		buf := make([]byte, r.header.size)
		if _, err := s.src.ReadAt(buf, int64(r.valueAt)); err != nil && len(buf) > 0 {
			return nil, s.bad(r.header.seq, err)
		}
		if got := crc32.Checksum(buf, castagnoli); got != r.valueCRC {
			return nil, s.badValue(r, got)
		}
		return memoryValue(buf), nil
	}
	crc := crc32.New(castagnoli)
	if _, err := io.Copy(crc, s.src.section(int64(r.valueAt), int64(r.header.size), true)); err != nil {
		return nil, s.bad(r.header.seq, err)
	}
	if got := crc.Sum32(); got != r.valueCRC {
		return nil, s.badValue(r, got)
	}
	return io.NewSectionReader(s.src, int64(r.valueAt), int64(r.header.size)), nil
}

// badValue says that the value of r is not what was written.
func (s *segmentFile) badValue(r *record, got uint32) error {
	return s.bad(r.header.seq, fmt.Errorf("%w: value at offset %d has CRC %08x, its bytes give %08x", errCorrupt, r.valueAt, r.valueCRC, got))
}

// memoryValue is a value in memory, readable at any offset.
type memoryValue []byte

func (m memoryValue) ReadAt(b []byte, at int64) (int, error) {
	if at < 0 || at > int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(b, m[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// records calls f with each record in order and its place; it checks the
// directory, every record and, with values, every value. It returns the root
// over the leaves it saw. A record is valid until f returns.
func (s *segmentFile) records(values bool, f func(*record, place) error) (hash, error) {
	return s.leaves(values, func(r *record, pl place, _ hash) error { return f(r, pl) })
}

// leaves is records that also gives f each leaf.
func (s *segmentFile) leaves(values bool, f func(*record, place, hash) error) (hash, error) {
	crc := crc32.New(castagnoli)
	if _, err := io.Copy(crc, s.src.section(int64(s.directoryAt), int64(s.count*directoryEntrySize), false)); err != nil {
		return hash{}, err
	}
	if crc.Sum32() != s.directoryCRC {
		return hash{}, fmt.Errorf("segment %s: %w: directory has CRC %08x, its bytes give %08x", s.name, errCorrupt, s.directoryCRC, crc.Sum32())
	}
	in := bufio.NewReaderSize(s.src.section(int64(s.recordsAt), int64(s.directoryAt-s.recordsAt), false), 256<<10)
	var tree compactTree
	var offset int64
	for seq := s.first; seq < s.first+s.count; seq++ {
		r, n, err := s.nextRecord(in, seq)
		if err != nil {
			return hash{}, err
		}
		if values {
			if _, err := s.value(&r); err != nil {
				return hash{}, err
			}
		}
		leaf := leafHash(r.raw)
		tree.append(leaf)
		if err := f(&r, place{uint32(offset), uint16(n)}, leaf); err != nil {
			return hash{}, err
		}
		offset += int64(n)
		in.Discard(n)
	}
	return tree.root(), nil
}

// headers returns the canonical headers of the entries from seq to end-1, whose
// records lie side by side.
func (s *segmentFile) headers(seq, end uint64) ([][]byte, error) {
	pl, err := s.placeOf(seq)
	if err != nil {
		return nil, err
	}
	at := int64(s.recordsAt) + int64(pl.offset)
	in := bufio.NewReaderSize(io.NewSectionReader(s.src, at, int64(s.directoryAt)-at), 32<<10)
	raws := make([][]byte, 0, end-seq)
	for ; seq < end; seq++ {
		r, n, err := s.nextRecord(in, seq)
		if err != nil {
			return nil, err
		}
		raws = append(raws, bytes.Clone(r.raw))
		in.Discard(n)
	}
	return raws, nil
}

// nextRecord returns the record of seq that in begins with, and its size. It is
// in the memory of in, which the caller discards.
func (s *segmentFile) nextRecord(in *bufio.Reader, seq uint64) (record, int, error) {
	fixed, err := in.Peek(recordFixed)
	if err != nil {
		return record{}, 0, s.bad(seq, early(err))
	}
	n := int(binary.BigEndian.Uint16(fixed[16:]))
	if n > maxHeaderSize {
		return record{}, 0, s.bad(seq, fmt.Errorf("%w: record says its header has %d bytes", errCorrupt, n))
	}
	buf, err := in.Peek(recordFixed + n)
	if err != nil {
		return record{}, 0, s.bad(seq, early(err))
	}
	r, err := parseRecord(buf)
	if err != nil {
		return record{}, 0, s.bad(seq, err)
	}
	if r.header.seq != seq {
		return record{}, 0, s.bad(seq, fmt.Errorf("%w: found the record of entry %d", errCorrupt, r.header.seq))
	}
	if r.valueAt < segmentHeaderSize || r.valueAt > s.recordsAt || r.header.size > s.recordsAt-r.valueAt {
		return record{}, 0, s.bad(seq, fmt.Errorf("%w: value at %d of %d bytes is outside the values", errCorrupt, r.valueAt, r.header.size))
	}
	return r, len(buf), nil
}

// early says of records that end where another should begin that they are damaged.
func early(err error) error {
	if err == io.EOF {
		return fmt.Errorf("%w: records end early", errCorrupt)
	}
	return err
}
