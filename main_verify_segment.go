package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// The audit of one segment file (segment_file.go): every byte of it is derived
// again from its entries, so that no bit can differ unnoticed. The entries are
// audited in parts side by side (main_verify_part.go), and beside them the whole
// file is hashed.

// auditedSegment is what a sound segment file holds.
type auditedSegment struct {
	segmentInfo
	cluster  clusterID
	leaves   []hash
	tiles    []hash // roots of the tiles of the whole tree that lie in it
	links    linkRuns
	lastTime int64 // of its last entry
	earliest int64 // of its first entry
}

// segmentAudit is one audit of one file.
type segmentAudit struct {
	src   io.ReaderAt
	size  int64
	name  string // in differences
	tag   func(key []byte) uint64
	sum   bool          // also derive the SHA-256 of the file
	parts int           // parts of the entries; 0: as the size and the processors suggest
	done  *atomic.Int64 // bytes of values and records read

	found  auditedSegment
	footer segmentFooter
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
	for _, step := range [...]func() error{a.readHeader, a.readFooter, a.readEntries, a.checkFooter} {
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

// smallPart is the least number of bytes worth a part of its own.
const smallPart = 8 << 20

// readEntries audits all entries, and derives what follows from all of them.
func (a *segmentAudit) readEntries() error {
	parts := a.parts
	if parts == 0 {
		parts = min(runtime.GOMAXPROCS(0), 1+int(a.size/smallPart))
	}
	a.found.leaves = make([]hash, a.footer.count)
	var group sync.WaitGroup
	var summed error
	if a.sum {
		group.Go(func() { a.found.sum, summed = a.sumFile() })
	}
	list := a.split(uint64(parts))
	for _, p := range list {
		group.Go(func() { p.err = p.run() })
	}
	group.Wait()
	if err := a.join(list); err != nil {
		return err
	}
	a.found.root, a.found.tiles = derivedRoots(a.found.first, a.found.leaves)
	a.found.size = uint64(a.size)
	return summed
}

// sumFile returns the SHA-256 of the file.
func (a *segmentAudit) sumFile() (hash, error) {
	sum := sha256.New()
	if _, err := io.CopyBuffer(sum, io.NewSectionReader(a.src, 0, a.size), make([]byte, sectionBuffer)); err != nil {
		return hash{}, fmt.Errorf("%s: %w", a.name, err)
	}
	return hash(sum.Sum(nil)), nil
}

// checkFooter checks that the footer is the one that the entries give.
func (a *segmentAudit) checkFooter() error {
	at := a.size - segmentFooterSize
	if a.found.root != a.footer.root {
		return a.differsAt(uint64(at)+24, "footer has merkle root %s, the entries give %s", a.footer.root, a.found.root)
	}
	crc := crc32.New(castagnoli) // each of its offsets has been compared
	if _, err := io.Copy(crc, io.NewSectionReader(a.src, int64(a.footer.directoryAt), at-int64(a.footer.directoryAt))); err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	want := segmentFooter{a.footer.recordsAt, a.footer.directoryAt, a.footer.count, a.found.root, crc.Sum32()}
	b := make([]byte, segmentFooterSize)
	if _, err := a.src.ReadAt(b, at); err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	if i := firstDifference(b, want.append(nil)); i >= 0 {
		return a.differsAt(uint64(at)+uint64(i), "footer is not the one the entries give")
	}
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
