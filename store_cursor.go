package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"sort"
)

// Reading of runs; the format is in store_run.go. An open run holds its block
// index and its filter in memory; blocks are read and checked at each use.

// run is one open run. It is immutable and safe for concurrent use.
type run struct {
	info   runInfo
	src    io.ReaderAt // *os.File; closed when nobody holds the run any more
	index  blockIndex
	filter keyFilter
}

// openRun opens info's file in dir and checks all but its blocks.
func openRun(dir string, info runInfo) (*run, error) {
	f, err := os.Open(filepath.Join(dir, info.name()))
	if err != nil {
		return nil, damagedRun(info, err)
	}
	st, err := f.Stat()
	if err == nil && st.Size() != info.size {
		err = fmt.Errorf("%w: file has %d bytes, want %d", errCorrupt, st.Size(), info.size)
	}
	var r *run
	if err == nil {
		r, err = loadRun(f, info)
	}
	if err != nil {
		f.Close()
		return nil, damagedRun(info, err)
	}
	return r, nil
}

// loadRun reads header, footer, index and filter of the run in src.
func loadRun(src io.ReaderAt, info runInfo) (*run, error) {
	f, err := loadRunEnds(src, info)
	if err != nil {
		return nil, err
	}
	raw, err := readSection(src, "index", f.indexAt, f.filterAt, f.indexCRC)
	if err != nil {
		return nil, err
	}
	filter, err := readSection(src, "filter", f.filterAt, uint64(info.size)-runFooterSize, f.filterCRC)
	if err != nil {
		return nil, err
	}
	index, err := parseBlockIndex(raw, &f)
	if err != nil {
		return nil, err
	}
	return &run{info, src, index, filter}, nil
}

// loadRunEnds checks header and footer against info.
func loadRunEnds(src io.ReaderAt, info runInfo) (runFooter, error) {
	if info.size < runHeaderSize+runFooterSize {
		return runFooter{}, fmt.Errorf("%w: file has only %d bytes", errCorrupt, info.size)
	}
	var header [runHeaderSize]byte
	if _, err := src.ReadAt(header[:], 0); err != nil {
		return runFooter{}, fmt.Errorf("reading header: %w", err)
	}
	if got := binary.BigEndian.Uint32(header[8:]); got != runFormat {
		return runFooter{}, fmt.Errorf("%w: format is %d, this program reads %d", errCorrupt, got, runFormat)
	}
	var footer [runFooterSize]byte
	if _, err := src.ReadAt(footer[:], info.size-runFooterSize); err != nil {
		return runFooter{}, fmt.Errorf("reading footer: %w", err)
	}
	f, err := parseRunFooter(footer[:], info.size)
	if err != nil {
		return f, err
	}
	switch {
	case !bytes.Equal(header[:], info.appendHeader(nil)) || f.headerCRC != crc32.Checksum(header[:], castagnoli):
		return f, fmt.Errorf("%w: header is of another run", errCorrupt)
	case f.keys != info.keys || f.records != info.entries():
		return f, fmt.Errorf("%w: footer counts %d keys and %d records, want %d and %d",
			errCorrupt, f.keys, f.records, info.keys, info.entries())
	case sha256.Sum256(footer[:]) != info.sum:
		return f, fmt.Errorf("%w: footer is of another file: SHA-256 %x, want %s", errCorrupt, sha256.Sum256(footer[:]), info.sum)
	}
	return f, nil
}

// readSection reads and checks the bytes from start to end, which lie within the file.
func readSection(src io.ReaderAt, name string, start, end uint64, crc uint32) ([]byte, error) {
	b := make([]byte, end-start)
	if _, err := src.ReadAt(b, int64(start)); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if got := crc32.Checksum(b, castagnoli); got != crc {
		return nil, fmt.Errorf("%w: %s has CRC %08x, its bytes give %08x", errCorrupt, name, crc, got)
	}
	return b, nil
}

// bound marks a place in the order of records: before the newest version of
// key whose seq and version are not above those given.
type bound struct {
	key     []byte
	seq     uint64
	version uint64
}

// newestOf is the bound before all versions of key.
func newestOf(key []byte) bound { return bound{key, math.MaxUint64, math.MaxUint64} }

// before reports whether b stands before a record of key with seq and version.
func (b *bound) before(key []byte, seq, version uint64) bool {
	if c := bytes.Compare(b.key, key); c != 0 {
		return c < 0
	}
	return seq <= b.seq && version <= b.version
}

// blockIndex is the index section as it lies in the file, and where in it each
// entry starts: two pointers, however many blocks.
type blockIndex struct {
	raw []byte
	at  []uint32
}

// blockRef is one parsed index entry.
type blockRef struct {
	key     []byte // of the first record, as seq and version
	seq     uint64
	version uint64
	offset  uint64
	length  uint32
	crc     uint32
}

// parseBlockIndex checks that raw describes f.blocks blocks in order that fill
// the space between header and index.
func parseBlockIndex(raw []byte, f *runFooter) (blockIndex, error) {
	if uint64(len(raw)) > math.MaxUint32 || uint64(f.blocks)*(indexEntryFixed+1) > uint64(len(raw)) {
		return blockIndex{}, fmt.Errorf("%w: index of %d blocks has %d bytes", errCorrupt, f.blocks, len(raw))
	}
	x := blockIndex{raw, make([]uint32, 0, f.blocks)}
	at, end := 0, uint64(runHeaderSize)
	var last bound
	for i := range f.blocks {
		if len(raw)-at < 2 || len(raw)-at-int(binary.BigEndian.Uint16(raw[at:])) < indexEntryFixed {
			return x, fmt.Errorf("%w: index ends inside entry %d of %d", errCorrupt, i, f.blocks)
		}
		x.at = append(x.at, uint32(at))
		ref := x.ref(int(i))
		if len(ref.key) == 0 || len(ref.key) > maxKeySize || i > 0 && !last.before(ref.key, ref.seq, ref.version) {
			return x, fmt.Errorf("%w: index entry %d is out of order", errCorrupt, i)
		}
		if ref.offset != end || ref.length > runMaxBlock {
			return x, fmt.Errorf("%w: index puts block %d at %d with %d bytes, want it at %d", errCorrupt, i, ref.offset, ref.length, end)
		}
		end += uint64(ref.length)
		at += indexEntryFixed + len(ref.key)
		last = bound{ref.key, ref.seq, ref.version}
	}
	if at != len(raw) || end != f.indexAt {
		return x, fmt.Errorf("%w: index covers %d bytes with %d, want %d with %d", errCorrupt, end, at, f.indexAt, len(raw))
	}
	return x, nil
}

// ref returns entry i.
func (x *blockIndex) ref(i int) blockRef {
	b := x.raw[x.at[i]:]
	n := int(binary.BigEndian.Uint16(b))
	key, b := b[2:2+n:2+n], b[2+n:]
	return blockRef{
		key:     key,
		seq:     binary.BigEndian.Uint64(b),
		version: binary.BigEndian.Uint64(b[8:]),
		offset:  binary.BigEndian.Uint64(b[16:]),
		length:  binary.BigEndian.Uint32(b[24:]),
		crc:     binary.BigEndian.Uint32(b[28:]),
	}
}

// search returns the block with which to look for the first record after b:
// the last one that starts before it, or the first.
func (x *blockIndex) search(b *bound) int {
	n := sort.Search(len(x.at), func(i int) bool {
		ref := x.ref(i)
		return b.before(ref.key, ref.seq, ref.version)
	})
	return max(0, n-1)
}

// runCursor walks over the records of a run. The record it stands on is the
// embedded one; its key is overwritten when the cursor moves.
type runCursor struct {
	indexRecord
	run      *run
	block    int    // the block in records
	records  []byte // rest of the block, without restarts
	restarts []byte
	room     []byte // what records and restarts lie in
}

// newRunCursor returns a cursor before the first record of r.
func newRunCursor(r *run) *runCursor {
	c := new(runCursor)
	c.reset(r)
	return c
}

// reset puts c before the first record of r, which may be another run than before.
func (c *runCursor) reset(r *run) {
	*c = runCursor{indexRecord: indexRecord{key: c.key[:0]}, run: r, block: -1, room: c.room}
}

// next moves to the next record; false means there is none.
func (c *runCursor) next() (bool, error) {
	for len(c.records) == 0 {
		if c.block+1 >= len(c.run.index.at) {
			return false, nil
		}
		if err := c.load(c.block + 1); err != nil {
			return false, err
		}
	}
	n, err := c.parse(c.records, &c.run.info)
	if err != nil {
		return false, c.damaged(err)
	}
	c.records = c.records[n:]
	return true, nil
}

// load reads block i and stands before its first record.
func (c *runCursor) load(i int) error {
	c.block, c.records, c.restarts, c.key = i, nil, nil, c.key[:0]
	ref := c.run.index.ref(i)
	if cap(c.room) < int(ref.length) {
		c.room = make([]byte, max(int(ref.length), runBlockSize+maxKeySize))
	}
	b := c.room[:ref.length]
	if _, err := c.run.src.ReadAt(b, int64(ref.offset)); err != nil {
		return c.damaged(err)
	}
	if got := crc32.Checksum(b, castagnoli); got != ref.crc {
		return c.damaged(fmt.Errorf("%w: CRC is %08x, want %08x", errCorrupt, got, ref.crc))
	}
	if len(b) < 2 || 2*int(binary.BigEndian.Uint16(b[len(b)-2:]))+2 > len(b) {
		return c.damaged(fmt.Errorf("%w: %d bytes do not hold its restarts", errCorrupt, len(b)))
	}
	end := len(b) - 2 - 2*int(binary.BigEndian.Uint16(b[len(b)-2:]))
	c.records, c.restarts = b[:end], b[end:len(b)-2]
	return nil
}

// damaged names run and block in err.
func (c *runCursor) damaged(err error) error {
	return damagedRun(c.run.info, fmt.Errorf("block %d: %w", c.block, err))
}

// seek moves to the first record after b; false means there is none.
func (c *runCursor) seek(b bound) (bool, error) {
	if err := c.load(c.run.index.search(&b)); err != nil {
		return false, err
	}
	if err := c.skipRestarts(&b); err != nil {
		return false, err
	}
	for {
		ok, err := c.next()
		if !ok || err != nil || b.before(c.key, c.seq, c.version) {
			return ok, err
		}
	}
}

// skipRestarts moves, within the block just loaded, before the last restart
// that stands before b.
func (c *runCursor) skipRestarts(b *bound) error {
	block := c.records
	low, high := 0, len(c.restarts)/2 // restart low is before b or 0, restart high is not
	for high-low > 1 {
		mid := int(uint(low+high) / 2)
		at := int(binary.BigEndian.Uint16(c.restarts[2*mid:]))
		if at >= len(block) {
			return c.damaged(fmt.Errorf("%w: restart %d at %d of %d bytes", errCorrupt, mid, at, len(block)))
		}
		c.key = c.key[:0]
		if _, err := c.parse(block[at:], &c.run.info); err != nil {
			return c.damaged(err)
		}
		if b.before(c.key, c.seq, c.version) {
			high = mid
			continue
		}
		low, c.records = mid, block[at:]
	}
	c.key = c.key[:0]
	return nil
}

// skipKey moves past all versions of key, which c stands on. Few are stepped
// over, more are jumped over: a key may have millions.
func (c *runCursor) skipKey(key []byte) (bool, error) {
	for range runRestartEvery {
		ok, err := c.next()
		if !ok || err != nil || !bytes.Equal(c.key, key) {
			return ok, err
		}
	}
	successor := append(bytes.Clone(key), 0)
	return c.seek(newestOf(successor))
}
