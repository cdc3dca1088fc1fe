package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"
)

// A run is an immutable, sorted file of the key index (store_index.go). It
// says where each version of each key lies whose seq is in first..last, so it
// has exactly last-first+1 records. Reading is in store_cursor.go, the
// filter in store_filter.go. Sections, in this order, with nothing between them:
//
//	header    32 bytes
//	blocks    at least one, about 4 KiB each
//	index     one entry a block
//	filter    a Bloom filter over the keys
//	footer    56 bytes
//
// All integers are big-endian; CRC32C is Castagnoli; a uvarint is that of
// protobuf: 7 bits a byte, lowest first, the high bit set on all but the last.
//
// Header:
//
//	offset  size  field
//	     0     8  magic "SCRINDEX"
//	     8     4  format: 1
//	    12     4  level: how often these records were merged
//	    16     8  first: lowest seq
//	    24     8  last: highest seq
//
// Block, its records in ascending order of key and, within a key, newest
// (highest seq and version) first. A key may go on in the next block.
//
//	     0     .  records
//	     .    2r  offset in the block of each restart: a record with shared 0.
//	              The first record is one, then each 16th
//	     .     2  r
//
// Record:
//
//	uvarint  shared: leading bytes this key has in common with the record before
//	uvarint  n: bytes of the key that follow
//	n        the rest of the key; a whole key has 1 to 1024 bytes
//	uvarint  seq - first
//	uvarint  version, from 1
//	uvarint  offset of the entry's record in its segment file, below 2^32
//	uvarint  2 * length of that record, plus 1 if the entry is a tombstone
//
// Index entry:
//
//	     0     2  length of the key, then the key of the block's first record
//	     .     8  seq of that record
//	     .     8  version of that record
//	     .     8  offset of the block in the file
//	     .     4  length of the block, at most 65535
//	     .     4  CRC32C of the block
//
// Filter: g groups of 64 bytes, g = max(1, ceil(keys * 12 / 512)). Bit b of a
// group is bit b%8, counted from the lowest, of its byte b/8. With
//
//	h = mix(FNV-1a64(key)), mix being the finaliser of splitmix64,
//
// a key sets, in group (h >> 32) * g >> 32, the seven bits
// (mix(h) >> 9i) & 511, i = 0..6.
//
// Footer:
//
//	     0     8  keys: number of distinct keys
//	     8     8  records: last-first+1
//	    16     8  offset of the index
//	    24     8  offset of the filter
//	    32     4  number of blocks
//	    36     4  CRC32C of the index
//	    40     4  CRC32C of the filter
//	    44     4  CRC32C of the header
//	    48     4  CRC32C of bytes 0 to 47
//	    52     4  magic "REND"
//
// The checksums form a chain: whoever knows the SHA-256 of the footer
// (runInfo.sum, kept in ledger.db) knows the CRC of every section and through
// the index that of every block at its place, so that a block or a whole file
// in the place of another is seen as well as a flipped bit.
//
// The same records give the same bytes, whether written from segments or
// merged from smaller runs.
//
// The file's name is <level>-<first, 20 digits>-<last, 20 digits>.run. It is
// written under a name that ends in .tmp, fsynced, renamed, and its directory
// fsynced: under its final name a file is always whole.

// Part of the file format; never change, add a version.
const (
	runMagic        = "SCRINDEX"
	runEndMagic     = "REND"
	runFormat       = 1
	runHeaderSize   = 32
	runFooterSize   = 56
	runRestartEvery = 16 // records
	runMaxBlock     = 1<<16 - 1
	indexEntryFixed = 34 // bytes of an index entry without its key
)

const (
	runSuffix = ".run"
	tmpSuffix = ".tmp"

	// runBlockSize is where the writer ends a block; readers take any size.
	// Measured with 10 M keys of 32 bytes in 20 runs in page cache, 4, 8 and
	// 16 KiB: a found key costs 7.2, 7.6 and 8.7 us, an absent one 1.7, 2.0 and
	// 2.1, and the index holds 0.7, 0.4 and 0.2 bytes a key beside the filter's 1.5.
	runBlockSize = 4 << 10

	// runSyncEvery bounds the dirty pages of a run being written, so that its
	// final fsync does not hold up the Raft log on the same disk.
	runSyncEvery = 8 << 20
)

// position locates one version of a key.
type position struct {
	seq     uint64
	version uint64 // from 1 within the key
	offset  uint32 // of the entry's record within its segment file
	length  uint16 // bytes of that record
	deleted bool   // tombstone
}

// indexRecord is the position of one version of key.
type indexRecord struct {
	key []byte
	position
}

// runInfo describes one run; the list of them in ledger.db is the index.
type runInfo struct {
	level       int
	first, last uint64 // seqs covered, inclusive
	keys        uint64 // distinct keys
	size        int64  // bytes of the file
	sum         hash   // SHA-256 of the footer, which binds every byte of the file
}

// name is the run's file name.
func (i runInfo) name() string {
	return fmt.Sprintf("%d-%020d-%020d%s", i.level, i.first, i.last, runSuffix)
}

// entries returns the number of records: each seq is one version of one key.
func (i runInfo) entries() uint64 { return i.last - i.first + 1 }

// sameRange reports whether i and o name the same file.
func (i runInfo) sameRange(o runInfo) bool {
	return i.level == o.level && i.first == o.first && i.last == o.last
}

// parseRunName reads what name writes.
func parseRunName(s string) (runInfo, bool) {
	var i runInfo
	_, err := fmt.Sscanf(s, "%d-%d-%d"+runSuffix, &i.level, &i.first, &i.last)
	return i, err == nil && i.name() == s
}

// runError is returned when a run cannot be read. It wraps errCorrupt when the
// file is damaged or missing: then rebuildRun gives it back.
type runError struct {
	info runInfo
	err  error
}

func (e *runError) Error() string { return "index run " + e.info.name() + ": " + e.err.Error() }
func (e *runError) Unwrap() error { return e.err }

// damagedRun makes the error that says info's file is missing or not what was
// written. Other errors, such as too many open files, pass without errCorrupt.
func damagedRun(info runInfo, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return &runError{info, err}
}

// appendHeader appends the 32 bytes i's file starts with.
func (i runInfo) appendHeader(b []byte) []byte {
	b = append(b, runMagic...)
	b = binary.BigEndian.AppendUint32(b, runFormat)
	b = binary.BigEndian.AppendUint32(b, uint32(i.level))
	b = binary.BigEndian.AppendUint64(b, i.first)
	return binary.BigEndian.AppendUint64(b, i.last)
}

// appendIndexRecord appends r to a block; its key has shared bytes in common
// with the one before, its run starts at seq first.
func appendIndexRecord(b []byte, r *indexRecord, shared int, first uint64) []byte {
	b = binary.AppendUvarint(b, uint64(shared))
	b = binary.AppendUvarint(b, uint64(len(r.key)-shared))
	b = append(b, r.key[shared:]...)
	b = binary.AppendUvarint(b, r.seq-first)
	b = binary.AppendUvarint(b, r.version)
	b = binary.AppendUvarint(b, uint64(r.offset))
	last := uint64(r.length) << 1
	if r.deleted {
		last |= 1
	}
	return binary.AppendUvarint(b, last)
}

// parse reads the record that b starts with into r, which holds the record
// before it, and returns how many bytes it has. It writes r.key in place.
func (r *indexRecord) parse(b []byte, info *runInfo) (int, error) {
	f := uvarints{b: b}
	shared, n := f.next(), f.next()
	if shared > uint64(len(r.key)) || n > maxKeySize || shared+n > maxKeySize || shared+n == 0 || n > uint64(len(f.b)) {
		return 0, fmt.Errorf("%w: record shares %d of %d bytes and has %d more", errCorrupt, shared, len(r.key), n)
	}
	r.key = append(r.key[:shared], f.b[:n]...)
	f.b = f.b[n:]
	seq, version, offset, last := f.next(), f.next(), f.next(), f.next()
	if f.bad || seq > info.last-info.first || version == 0 || offset > math.MaxUint32 || last>>1 > math.MaxUint16 {
		return 0, fmt.Errorf("%w: record of key %.40q has no possible position", errCorrupt, r.key)
	}
	r.position = position{info.first + seq, version, uint32(offset), uint16(last >> 1), last&1 == 1}
	return len(b) - len(f.b), nil
}

// uvarints takes uvarints off b; bad is set, and stays, when there is none.
type uvarints struct {
	b   []byte
	bad bool
}

func (u *uvarints) next() uint64 {
	if len(u.b) > 0 && u.b[0] < 0x80 { // most are
		v := u.b[0]
		u.b = u.b[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(u.b)
	if n <= 0 {
		u.b, u.bad = nil, true
		return 0
	}
	u.b = u.b[n:]
	return v
}

// runFooter is the last 56 bytes of a run.
type runFooter struct {
	keys      uint64
	records   uint64
	indexAt   uint64
	filterAt  uint64
	blocks    uint32
	indexCRC  uint32
	filterCRC uint32
	headerCRC uint32
}

// append appends the 56 bytes of f.
func (f *runFooter) append(b []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(b, f.keys)
	b = binary.BigEndian.AppendUint64(b, f.records)
	b = binary.BigEndian.AppendUint64(b, f.indexAt)
	b = binary.BigEndian.AppendUint64(b, f.filterAt)
	b = binary.BigEndian.AppendUint32(b, f.blocks)
	b = binary.BigEndian.AppendUint32(b, f.indexCRC)
	b = binary.BigEndian.AppendUint32(b, f.filterCRC)
	b = binary.BigEndian.AppendUint32(b, f.headerCRC)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
	return append(b, runEndMagic...)
}

// parseRunFooter reads the last 56 bytes of a file of the given size.
func parseRunFooter(b []byte, size int64) (runFooter, error) {
	var f runFooter
	if len(b) != runFooterSize || string(b[52:]) != runEndMagic {
		return f, fmt.Errorf("%w: footer lacks its magic", errCorrupt)
	}
	if got, want := crc32.Checksum(b[:48], castagnoli), binary.BigEndian.Uint32(b[48:]); got != want {
		return f, fmt.Errorf("%w: footer has CRC %08x, its bytes give %08x", errCorrupt, want, got)
	}
	f.keys = binary.BigEndian.Uint64(b)
	f.records = binary.BigEndian.Uint64(b[8:])
	f.indexAt = binary.BigEndian.Uint64(b[16:])
	f.filterAt = binary.BigEndian.Uint64(b[24:])
	f.blocks = binary.BigEndian.Uint32(b[32:])
	f.indexCRC = binary.BigEndian.Uint32(b[36:])
	f.filterCRC = binary.BigEndian.Uint32(b[40:])
	f.headerCRC = binary.BigEndian.Uint32(b[44:])
	end := uint64(size) - runFooterSize
	if f.keys == 0 || f.keys > f.records || f.records > end || f.blocks == 0 ||
		f.indexAt < runHeaderSize || f.indexAt > f.filterAt || f.filterAt > end ||
		end-f.filterAt != filterSize(f.keys) {
		return f, fmt.Errorf("%w: footer does not fit a file of %d bytes", errCorrupt, size)
	}
	return f, nil
}

// writeRun writes the run of seqs first..last from records, which come in the
// order of the format: key ascending, within a key newest first, each seq
// once. The run is durable when writeRun returns. If records yields an error,
// or ends early, nothing is left under the run's name and the error returned.
func writeRun(dir string, level int, first, last uint64, records iter.Seq2[indexRecord, error]) (runInfo, error) {
	w, err := createRun(dir, runInfo{level: level, first: first, last: last})
	if err != nil {
		return runInfo{}, err
	}
	err = w.writeRecords(records)
	if err == nil {
		err = w.finish()
	}
	if err == nil {
		err = w.publish(dir)
	}
	if err != nil {
		w.file.Close()
		os.Remove(w.file.Name())
		return runInfo{}, fmt.Errorf("writing index run %s: %w", w.info.name(), err)
	}
	return w.info, nil
}

// runWriter writes one run. All is owned by the goroutine in writeRun.
type runWriter struct {
	info     runInfo
	file     *os.File
	out      *bufio.Writer // keeps the first error for Flush
	size     int64         // bytes given to out
	synced   int64         // of which this many are on disk
	previous indexRecord
	records  uint64
	block    []byte // records of the block being filled
	restarts []byte // their offsets
	count    int    // records in block
	index    []byte
	blocks   uint32
	hashes   []uint64 // of the keys so far, as long as they are at most limit
	limit    uint64
}

// maxHashes bounds the hashes a runWriter keeps in memory: 32 MiB. A run of more
// keys fills its filter by reading its blocks again.
const maxHashes = 4 << 20

// createRun opens info's temporary file and writes the header. A crash from
// here to the rename leaves a file that ends in .tmp, which openIndex removes.
func createRun(dir string, info runInfo) (*runWriter, error) {
	f, err := os.CreateTemp(dir, info.name()+".*"+tmpSuffix) // a run may be written twice at once: sealed and fetched
	if err != nil {
		return nil, fmt.Errorf("writing index run: %w", err)
	}
	w := &runWriter{info: info, file: f, out: bufio.NewWriterSize(f, 256<<10), limit: maxHashes}
	w.write(info.appendHeader(nil))
	return w, nil
}

// write adds b to the file; an error appears at the next flush.
func (w *runWriter) write(b []byte) {
	w.out.Write(b)
	w.size += int64(len(b))
}

// writeRecords fills the blocks and w.index.
func (w *runWriter) writeRecords(records iter.Seq2[indexRecord, error]) error {
	for r, err := range records {
		if err == nil {
			err = w.add(&r)
		}
		if err != nil {
			return err
		}
	}
	if w.records != w.info.entries() {
		return fmt.Errorf("got %d records, want %d", w.records, w.info.entries())
	}
	return w.endBlock()
}

// add puts r into the block being filled, after ending a full one.
func (w *runWriter) add(r *indexRecord) error {
	order := bytes.Compare(w.previous.key, r.key)
	if err := w.check(r, order); err != nil {
		return err
	}
	if order < 0 {
		if w.info.keys++; w.info.keys <= w.limit {
			w.hashes = append(w.hashes, hash64(r.key))
		} else {
			w.hashes = nil
		}
	}
	if len(w.block)+len(w.restarts) >= runBlockSize {
		if err := w.endBlock(); err != nil {
			return err
		}
	}
	if w.count == 0 {
		w.index = binary.BigEndian.AppendUint16(w.index, uint16(len(r.key)))
		w.index = append(w.index, r.key...)
		w.index = binary.BigEndian.AppendUint64(w.index, r.seq)
		w.index = binary.BigEndian.AppendUint64(w.index, r.version)
	}
	shared := 0
	if w.count%runRestartEvery == 0 {
		w.restarts = binary.BigEndian.AppendUint16(w.restarts, uint16(len(w.block)))
	} else {
		shared = commonPrefix(w.previous.key, r.key)
	}
	w.block = appendIndexRecord(w.block, r, shared, w.info.first)
	w.previous.key = append(w.previous.key[:0], r.key...)
	w.previous.position = r.position
	w.records++
	w.count++
	return nil
}

// commonPrefix returns how many leading bytes a and b have in common.
func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// check reports whether r may follow the record before it in this run; order
// is how their keys compare.
func (w *runWriter) check(r *indexRecord, order int) error {
	switch p := &w.previous; {
	case len(r.key) == 0 || len(r.key) > maxKeySize:
		return fmt.Errorf("key has %d bytes, want 1 to %d", len(r.key), maxKeySize)
	case r.seq < w.info.first || r.seq > w.info.last || r.version == 0:
		return fmt.Errorf("key %.40q: version %d with seq %d does not belong here", r.key, r.version, r.seq)
	case order > 0:
		return fmt.Errorf("key %.40q comes after %.40q", r.key, p.key)
	case order == 0 && (r.seq >= p.seq || r.version >= p.version):
		return fmt.Errorf("key %.40q: version %d with seq %d comes after version %d with seq %d",
			r.key, r.version, r.seq, p.version, p.seq)
	}
	return nil
}

// endBlock writes the block and completes its index entry.
func (w *runWriter) endBlock() error {
	b := append(w.block, w.restarts...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(w.restarts)/2))
	w.index = binary.BigEndian.AppendUint64(w.index, uint64(w.size))
	w.index = binary.BigEndian.AppendUint32(w.index, uint32(len(b)))
	w.index = binary.BigEndian.AppendUint32(w.index, crc32.Checksum(b, castagnoli))
	w.write(b)
	w.blocks++
	w.block, w.restarts, w.count = b[:0], w.restarts[:0], 0
	if w.size-w.synced < runSyncEvery {
		return nil
	}
	return w.sync()
}

// sync puts on disk what was written so far.
func (w *runWriter) sync() error {
	w.synced = w.size
	if err := w.out.Flush(); err != nil {
		return err
	}
	return w.file.Sync()
}

// finish writes what follows the blocks. The filter is filled from the blocks
// just written: its size needs the number of keys, and holding their hashes
// until then would cost 8 bytes a key of memory. It also reads every block
// back once, with all checks, before anybody depends on it.
func (w *runWriter) finish() error {
	f := runFooter{
		keys:      w.info.keys,
		records:   w.records,
		indexAt:   uint64(w.size),
		filterAt:  uint64(w.size) + uint64(len(w.index)),
		blocks:    w.blocks,
		indexCRC:  crc32.Checksum(w.index, castagnoli),
		headerCRC: crc32.Checksum(w.info.appendHeader(nil), castagnoli),
	}
	w.write(w.index)
	if err := w.out.Flush(); err != nil {
		return err
	}
	filter, err := w.fillFilter(&f)
	if err != nil {
		return err
	}
	f.filterCRC = crc32.Checksum(filter, castagnoli)
	w.write(filter)
	footer := f.append(nil)
	w.write(footer)
	w.info.size, w.info.sum = w.size, sha256.Sum256(footer)
	return w.sync()
}

// fillFilter returns the filter over all keys.
func (w *runWriter) fillFilter(f *runFooter) (keyFilter, error) {
	filter := make(keyFilter, filterSize(f.keys))
	if uint64(len(w.hashes)) == f.keys {
		for _, h := range w.hashes {
			filter.add(spreadHash(h))
		}
		return filter, nil
	}
	index, err := parseBlockIndex(w.index, f)
	if err != nil {
		return nil, err
	}
	c := newRunCursor(&run{info: w.info, src: w.file, index: index})
	for {
		ok, err := c.next()
		if !ok || err != nil {
			return filter, err
		}
		filter.add(hashKey(c.key))
	}
}

// publish gives the file, whole and on disk, its final name. A crash after
// the rename leaves a run that no list names: openIndex removes it, or the
// same run is written over it.
func (w *runWriter) publish(dir string) error {
	if err := w.file.Close(); err != nil {
		return err
	}
	if err := os.Rename(w.file.Name(), filepath.Join(dir, w.info.name())); err != nil {
		return err
	}
	return syncRunDir(dir)
}

// syncRunDir makes the names in dir durable.
func syncRunDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
