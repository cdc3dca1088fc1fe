package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"
)

// The audit of one segment file (segment_file.go): every byte of it is derived
// again from its entries, in one pass over the values and one over the records,
// so that no bit can differ unnoticed.

// auditedSegment is what a sound segment file holds.
type auditedSegment struct {
	segmentInfo
	cluster  clusterID
	leaves   []hash
	links    []link
	lastTime int64 // of its last entry
	earliest int64 // of its first entry
}

// link is what the chain of versions needs of an entry.
type link struct {
	tag           uint64 // of the key, see chains
	version, prev uint64
}

// digest is a SHA-256 under way.
type digest interface {
	io.Writer
	Sum(b []byte) []byte
}

// segmentAudit is one audit of one file.
type segmentAudit struct {
	src  io.ReaderAt
	size int64
	name string // in differences
	tag  func(key []byte) uint64
	sum  bool          // also derive the SHA-256 of the file
	done *atomic.Int64 // bytes of values and records read

	found        auditedSegment
	footer       segmentFooter
	file         digest // of the bytes read so far, if sum
	values       *bufio.Reader
	records      *bufio.Reader
	directory    *bufio.Reader
	directorySum uint32
	valueAt      uint64 // where the next value begins
	recordAt     uint64 // where the next record begins
	tree         compactTree
}

// differs reports the first difference: file, offset and entry.
func (a *segmentAudit) differs(offset uint64, seq uint64, format string, args ...any) error {
	return fmt.Errorf("%w: %s: offset %d: entry %d: %w", errDifference, a.name, offset, seq, fmt.Errorf(format, args...))
}

// differsAt is differs for a part of the file that belongs to no entry.
func (a *segmentAudit) differsAt(offset uint64, format string, args ...any) error {
	return fmt.Errorf("%w: %s: offset %d: %w", errDifference, a.name, offset, fmt.Errorf(format, args...))
}

// run audits the whole file.
func (a *segmentAudit) run() (auditedSegment, error) {
	steps := [...]func() error{a.readHeader, a.readFooter, a.readEntries, a.checkEnds, a.sumFile}
	for _, step := range steps {
		if err := step(); err != nil {
			return auditedSegment{}, err
		}
	}
	return a.found, nil
}

// readHeader reads the first 64 bytes and checks that they are what their fields give.
func (a *segmentAudit) readHeader() error {
	if a.size < segmentHeaderSize+segmentFooterSize {
		return a.differsAt(0, "file has %d bytes, want at least %d", a.size, segmentHeaderSize+segmentFooterSize)
	}
	b := make([]byte, segmentHeaderSize)
	if _, err := a.src.ReadAt(b, 0); err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	copy(a.found.cluster[:], b[16:])
	a.found.first = binary.BigEndian.Uint64(b[32:])
	a.found.count = binary.BigEndian.Uint64(b[40:])
	a.found.time = int64(binary.BigEndian.Uint64(b[48:]))
	want := appendSegmentHeader(nil, a.found.cluster, a.found.first, a.found.count, a.found.time)
	if at := firstDifference(b, want); at >= 0 {
		return a.differsAt(uint64(at), "segment header is not sound")
	}
	return nil
}

// firstDifference returns where two texts of one length differ, or -1.
func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// readFooter reads where the sections are. That the footer is right is checked
// at the end, from what the sections give.
func (a *segmentAudit) readFooter() error {
	at := a.size - segmentFooterSize
	b := make([]byte, segmentFooterSize)
	if _, err := a.src.ReadAt(b, at); err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	var err error
	if a.footer, err = parseSegmentFooter(b, a.size); err != nil {
		return a.differsAt(uint64(at), "%w", err)
	}
	if a.footer.count != a.found.count || a.found.first+a.found.count < a.found.first {
		return a.differsAt(uint64(at)+16, "footer counts %d entries, header %d from %d", a.footer.count, a.found.count, a.found.first)
	}
	return nil
}

// section returns a buffered reader of the bytes from from to to.
func (a *segmentAudit) section(from, to uint64, most int) *bufio.Reader {
	return bufio.NewReaderSize(io.NewSectionReader(a.src, int64(from), int64(to-from)), int(min(to-from, uint64(most))))
}

// maxBufferedValue is the size up to which a value is hashed in one piece.
const maxBufferedValue = 1 << 20

// readEntries checks every record, its place and its value.
func (a *segmentAudit) readEntries() error {
	a.records = a.section(a.footer.recordsAt, a.footer.directoryAt, 256<<10)
	a.directory = a.section(a.footer.directoryAt, uint64(a.size)-segmentFooterSize, 64<<10)
	values := a.section(segmentHeaderSize, a.footer.recordsAt, maxBufferedValue)
	if a.sum {
		a.file = sha256.New()
		if _, err := io.Copy(a.file, io.NewSectionReader(a.src, 0, segmentHeaderSize)); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		all := io.NewSectionReader(a.src, segmentHeaderSize, int64(a.footer.recordsAt-segmentHeaderSize))
		values = bufio.NewReaderSize(io.TeeReader(all, a.file), values.Size())
	}
	a.values = values
	a.valueAt, a.recordAt = segmentHeaderSize, a.footer.recordsAt
	a.found.leaves = make([]hash, 0, a.footer.count)
	a.found.links = make([]link, 0, a.footer.count)
	for seq := a.found.first; seq < a.found.first+a.footer.count; seq++ {
		if err := a.readEntry(seq); err != nil {
			return err
		}
	}
	return nil
}

// readEntry checks the entry that comes next in every section.
func (a *segmentAudit) readEntry(seq uint64) error {
	fixed, err := a.records.Peek(recordFixed)
	if err != nil {
		return a.differs(a.recordAt, seq, "the records end")
	}
	n := recordFixed + int(binary.BigEndian.Uint16(fixed[16:]))
	b, err := a.records.Peek(n)
	if err != nil {
		return a.differs(a.recordAt, seq, "the record of %d bytes goes beyond the records, or its length is damaged", n)
	}
	r, err := parseRecord(b)
	if err != nil {
		return a.differs(a.recordAt, seq, "%w", err)
	}
	switch {
	case r.header.seq != seq:
		err = fmt.Errorf("the record is of entry %d", r.header.seq)
	case r.header.time < a.found.lastTime:
		err = fmt.Errorf("time goes back from %d to %d", a.found.lastTime, r.header.time)
	case r.valueAt != a.valueAt || r.header.size > a.footer.recordsAt-a.valueAt:
		err = fmt.Errorf("value of %d bytes is at %d, want it at %d and before %d", r.header.size, r.valueAt, a.valueAt, a.footer.recordsAt)
	}
	if err != nil {
		return a.differs(a.recordAt, seq, "%w", err)
	}
	if err := a.readDirectory(seq); err != nil {
		return err
	}
	if err := a.readValue(&r); err != nil {
		return err
	}
	leaf := leafHash(r.raw)
	a.tree.append(leaf)
	a.found.leaves = append(a.found.leaves, leaf)
	a.found.links = append(a.found.links, link{a.tag(r.header.key), r.header.version, r.header.prev})
	if seq == a.found.first {
		a.found.earliest = r.header.time
	}
	a.found.lastTime = r.header.time
	a.valueAt += r.header.size
	a.recordAt += uint64(n)
	a.done.Add(int64(r.header.size) + int64(n))
	a.records.Discard(n)
	return nil
}

// readDirectory checks that the directory leads to the record of seq.
func (a *segmentAudit) readDirectory(seq uint64) error {
	at := a.footer.directoryAt + (seq-a.found.first)*directoryEntrySize
	var b [directoryEntrySize]byte
	if _, err := io.ReadFull(a.directory, b[:]); err != nil {
		return a.differs(at, seq, "the directory ends")
	}
	if got, want := uint64(binary.BigEndian.Uint32(b[:])), a.recordAt-a.footer.recordsAt; got != want {
		return a.differs(at, seq, "directory says record offset %d, want %d", got, want)
	}
	a.directorySum = crc32.Update(a.directorySum, castagnoli, b[:])
	return nil
}

// readValue checks SHA-256 and CRC of the next value.
func (a *segmentAudit) readValue(r *record) error {
	var sum hash
	var crc uint32
	if n := int64(r.header.size); n <= int64(a.values.Size()) {
		b, err := a.values.Peek(int(n))
		if err != nil {
			return fmt.Errorf("%s: value at %d: %w", a.name, r.valueAt, err)
		}
		sum, crc = sha256.Sum256(b), crc32.Checksum(b, castagnoli)
		a.values.Discard(len(b))
	} else {
		long, check := sha256.New(), crc32.New(castagnoli)
		if _, err := io.CopyN(io.MultiWriter(long, check), a.values, n); err != nil {
			return fmt.Errorf("%s: value at %d: %w", a.name, r.valueAt, err)
		}
		sum, crc = hash(long.Sum(nil)), check.Sum32()
	}
	if sum != r.header.sum {
		return a.differs(r.valueAt, r.header.seq, "value of %d bytes has SHA-256 %x, its entry says %s", r.header.size, sum, r.header.sum)
	}
	if crc != r.valueCRC {
		return a.differs(a.recordAt+12, r.header.seq, "value has CRC %08x, its record says %08x", crc, r.valueCRC)
	}
	return nil
}

// checkEnds checks that the sections end where the entries do, and that the
// footer is the one they give.
func (a *segmentAudit) checkEnds() error {
	if a.valueAt != a.footer.recordsAt {
		return a.differsAt(a.valueAt, "bytes up to %d belong to no value", a.footer.recordsAt)
	}
	if a.recordAt != a.footer.directoryAt {
		return a.differsAt(a.recordAt, "bytes up to %d belong to no record", a.footer.directoryAt)
	}
	a.found.root, a.found.size = a.tree.root(), uint64(a.size)
	at := a.size - segmentFooterSize
	if a.found.root != a.footer.root {
		return a.differsAt(uint64(at)+24, "footer has merkle root %s, the entries give %s", a.footer.root, a.found.root)
	}
	want := segmentFooter{a.footer.recordsAt, a.footer.directoryAt, a.footer.count, a.found.root, a.directorySum}
	b := make([]byte, segmentFooterSize)
	if _, err := a.src.ReadAt(b, at); err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	if i := firstDifference(b, want.append(nil)); i >= 0 {
		return a.differsAt(uint64(at)+uint64(i), "footer is not the one the entries give")
	}
	return nil
}

// sumFile finishes the SHA-256 of the file.
func (a *segmentAudit) sumFile() error {
	if !a.sum {
		return nil
	}
	if _, err := io.Copy(a.file, io.NewSectionReader(a.src, int64(a.footer.recordsAt), a.size-int64(a.footer.recordsAt))); err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	a.found.sum = hash(a.file.Sum(nil))
	return nil
}

// findEntry returns the header of entry seq of a segment file that was sound
// when it was audited, and where its record begins.
func findEntry(src io.ReaderAt, size int64, first, seq uint64) (header, uint64, error) {
	b := make([]byte, segmentFooterSize)
	if _, err := src.ReadAt(b, size-segmentFooterSize); err != nil {
		return header{}, 0, err
	}
	f, err := parseSegmentFooter(b, size)
	if err != nil {
		return header{}, 0, err
	}
	if _, err := src.ReadAt(b[:directoryEntrySize], int64(f.directoryAt+(seq-first)*directoryEntrySize)); err != nil {
		return header{}, 0, err
	}
	at := f.recordsAt + uint64(binary.BigEndian.Uint32(b))
	rest := f.directoryAt - at
	raw := make([]byte, min(rest, uint64(recordSize(maxHeaderSize))))
	if _, err := src.ReadAt(raw, int64(at)); err != nil {
		return header{}, 0, err
	}
	if n := recordFixed + int(binary.BigEndian.Uint16(raw[16:])); n <= len(raw) {
		raw = raw[:n]
	}
	r, err := parseRecord(raw)
	if err == nil && r.header.seq != seq {
		err = fmt.Errorf("%w: found the record of entry %d, want %d", errCorrupt, r.header.seq, seq)
	}
	r.header.key = bytes.Clone(r.header.key)
	return r.header, at, err
}
