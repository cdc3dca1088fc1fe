package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"go.etcd.io/bbolt"
)

// A cold segment is one whose file is not on this node's disk: its bytes are read
// from the bucket, member by member. That a segment is cold is nobody's business
// but this node's; ledger.db has a record of it in bucket cold:
//
//	first (uint64)  64 bytes, the header of the segment file
//	                80 bytes, its footer
//	                uint16, length of the object's name, then the name
//	                the table as it stands at the end of the object (segment_gzip.go)
//
// With it a segment is opened without the bucket, and a value of a few bytes is
// read with one request for its record and one for itself. The table's hashes
// are those the object's name commits to, so every byte that is read is one that
// Raft agreed on.

var bucketCold = []byte("cold")

// coldFixed is the size of a record before the name.
const coldFixed = segmentHeaderSize + segmentFooterSize + 2

// coldRecord is what a node keeps of a segment whose file it does not have.
type coldRecord struct {
	header, footer []byte // of the segment file
	object         string // its name
	table          *gzipTable
}

// append appends the encoding of r.
func (r *coldRecord) append(b []byte) []byte {
	b = append(append(b, r.header...), r.footer...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.object)))
	return appendGzipTable(append(b, r.object...), r.table)
}

// parseColdRecord reads the record of the segment that info describes.
func parseColdRecord(b []byte, info segmentInfo) (*coldRecord, error) {
	if len(b) < coldFixed || len(b)-coldFixed < int(binary.BigEndian.Uint16(b[coldFixed-2:])) {
		return nil, fmt.Errorf("%w: record of a cold segment is cut short at %d bytes", errCorrupt, len(b))
	}
	n := coldFixed + int(binary.BigEndian.Uint16(b[coldFixed-2:]))
	r := &coldRecord{b[:segmentHeaderSize], b[segmentHeaderSize : coldFixed-2], string(b[coldFixed:n]), nil}
	var err error
	if r.table, err = parseGzipTable(b[n:], int64(info.size)); err == nil {
		err = r.checkName(info)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: record of cold segment %s: %w", errCorrupt, info.id(), err)
	}
	return r, nil
}

// checkName returns an error unless the object's name is that of the table.
func (r *coldRecord) checkName(info segmentInfo) error {
	if first, sum, ok := parsePackedName(r.object); !ok || first != info.first || sum != r.table.sum() {
		return fmt.Errorf("%w: its table gives the name %s, it is %s", errPacked, packedName(info.first, r.table.sum()), r.object)
	}
	return nil
}

// putCold stores the record of a cold segment.
func (t ledgerTx) putCold(first uint64, r *coldRecord) error {
	return t.put(bucketCold, binary.BigEndian.AppendUint64(nil, first), r.append(nil))
}

// removeCold removes the record of a segment, if there is one.
func (t ledgerTx) removeCold(first uint64) error {
	return t.tx.Bucket(bucketCold).Delete(binary.BigEndian.AppendUint64(nil, first))
}

// coldRecord returns the record of a cold segment.
func (l *ledgerFile) coldRecord(info segmentInfo) (r *coldRecord, err error) {
	err = l.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketCold)
		if b == nil {
			return fmt.Errorf("%w: bucket %q is missing", errCorrupt, bucketCold)
		}
		v, err := getChecked(b, binary.BigEndian.AppendUint64(nil, info.first))
		if err == nil {
			r, err = parseColdRecord(slices.Clone(v), info)
		}
		return err
	})
	return r, err
}

// readCold fills d.cold with the keys of the records, which are not read: they
// are checked when they are used.
func (d *durableState) readCold(tx *bbolt.Tx) error {
	b := tx.Bucket(bucketCold)
	if b == nil {
		return nil // of a version before the bucket
	}
	return b.ForEach(func(k, _ []byte) error {
		if len(k) != 8 {
			return fmt.Errorf("%w: key %x in bucket %q", errCorrupt, k, bucketCold)
		}
		d.cold = append(d.cold, binary.BigEndian.Uint64(k))
		return nil
	})
}

// coldState is what the store knows of its cold segments.
type coldState struct {
	objectReader
	cancel context.CancelFunc // of all reads
	cache  memberCache

	// moving is held while a segment becomes cold, or ceases to be.
	moving sync.Mutex

	mu     sync.Mutex
	firsts map[uint64]bool         // which segments are cold
	open   map[uint64]*segmentFile // of them
	pinned map[uint64]bool         // which are to stay on the disk
	kept   map[uint64]bool         // which were to go and could not
}

// maxColdOpen bounds the cold segments whose tables are in memory: 10 KiB each.
const maxColdOpen = 2048

// openColdState prepares the reading of cold segments.
func (s *store) openColdState(state *durableState) {
	c := &s.cold
	c.objects, c.metrics, c.logger = s.o.objects, s.o.metrics, s.o.logger
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.cache.limit, c.cache.bytes = s.o.cacheSize, &s.o.metrics.cold.cacheBytes
	c.firsts, c.pinned, c.open = make(map[uint64]bool), make(map[uint64]bool), make(map[uint64]*segmentFile)
	c.kept = make(map[uint64]bool)
	for _, first := range state.cold {
		c.firsts[first] = true
	}
	for _, first := range state.pinned {
		c.pinned[first] = true
	}
	s.o.metrics.cold.pinned.set(int64(len(c.pinned)))
}

// isCold tells whether the segment that starts at first is cold.
func (s *store) isCold(first uint64) bool {
	s.cold.mu.Lock()
	defer s.cold.mu.Unlock()
	return s.cold.firsts[first]
}

// setCold notes that a segment is cold, or that it is not any more.
func (s *store) setCold(info segmentInfo, cold bool) {
	s.cold.mu.Lock()
	delete(s.cold.open, info.first)
	if cold {
		s.cold.firsts[info.first] = true
	} else {
		delete(s.cold.firsts, info.first)
	}
	s.cold.mu.Unlock()
	s.countLocal()
}

// openCold opens a cold segment. A damaged record is made anew from the bucket.
func (s *store) openCold(info segmentInfo) (*segmentFile, error) {
	s.cold.mu.Lock()
	f := s.cold.open[info.first]
	s.cold.mu.Unlock()
	if f != nil && f.root == info.root {
		return f, nil
	}
	r, err := s.ledger.coldRecord(info)
	if errors.Is(err, errCorrupt) {
		r, err = s.remakeCold(info, err)
	}
	if err == nil {
		f, err = s.openRecord(info, r)
	}
	if err != nil {
		return nil, err
	}
	s.cold.mu.Lock()
	defer s.cold.mu.Unlock()
	for first := range s.cold.open {
		if len(s.cold.open) < maxColdOpen {
			break
		}
		delete(s.cold.open, first)
	}
	s.cold.open[info.first] = f
	return f, nil
}

// openRecord opens the cold segment that r is the record of.
func (s *store) openRecord(info segmentInfo, r *coldRecord) (*segmentFile, error) {
	info.object = r.object
	key := s.objectKey(info)
	src := &coldBytes{r, &s.cold, key}
	f, err := openSegmentBytes(src, key, int64(info.size))
	if err != nil {
		return nil, err
	}
	return f, s.checkIdentity(f, info)
}

// remakeCold makes the record of a cold segment again, which is damaged.
func (s *store) remakeCold(info segmentInfo, cause error) (*coldRecord, error) {
	if info.object = s.objectOf(info); info.object == "" {
		return nil, fmt.Errorf("%w; the manifest names no object", cause)
	}
	s.o.logger.Error("record of a cold segment is damaged, making it again", "segment", info.id(), "error", cause)
	r, err := s.readColdRecord(info)
	if err != nil {
		return nil, err
	}
	return r, s.ledger.update(func(t ledgerTx) error { return t.putCold(info.first, r) })
}

// objectOf returns the name of a segment's object as the manifest has it now, ""
// while it is not archived.
func (s *store) objectOf(info segmentInfo) string {
	m := s.manifest.Load()
	if k := m.find(info.first); k >= 0 && m.segments[k].root == info.root {
		return m.segments[k].object
	}
	return ""
}

// copyObject copies the bytes of a segment, from an offset on, from its object.
func (s *store) copyObject(info segmentInfo, from int64, w io.Writer) error {
	t, err := s.readTable(info)
	if err != nil {
		return err
	}
	src := &coldBytes{&coldRecord{object: info.object, table: t}, &s.cold, s.objectKey(info)}
	_, err = io.CopyBuffer(w, src.section(from, t.size-from, false), make([]byte, 256<<10))
	return err
}

// readTable reads the table of the object of a segment and checks it against the
// object's name and size: two requests.
func (s *store) readTable(info segmentInfo) (*gzipTable, error) {
	key := s.objectKey(info)
	size, err := s.cold.size(key)
	if err != nil {
		return nil, err
	}
	p, err := openPacked(info.object, int64(info.size), size, func(from, size int64) ([]byte, error) { return s.cold.read(key, from, size) })
	if errors.Is(err, errPacked) {
		err = damagedObject(key, err)
	}
	if err != nil {
		return nil, err
	}
	return p.table, (&coldRecord{object: info.object, table: p.table}).checkName(info)
}

// readColdRecord makes the record of a segment from its object.
func (s *store) readColdRecord(info segmentInfo) (*coldRecord, error) {
	t, err := s.readTable(info)
	if err != nil {
		return nil, err
	}
	r := &coldRecord{header: make([]byte, segmentHeaderSize), footer: make([]byte, segmentFooterSize), object: info.object, table: t}
	src := &coldBytes{r, &s.cold, s.objectKey(info)}
	if err := src.fill(r.footer, t.size-segmentFooterSize); err != nil {
		return nil, err
	}
	return r, src.fill(r.header, 0)
}

// coldBytes reads the bytes of a cold segment. It is safe for concurrent use.
type coldBytes struct {
	*coldRecord
	c   *coldState
	key string // of the object
}

// Close implements segmentBytes; there is nothing to close.
func (b *coldBytes) Close() error { return nil }

// ReadAt implements io.ReaderAt, through the cache.
func (b *coldBytes) ReadAt(p []byte, at int64) (int, error) {
	switch size, end := b.table.size, at+int64(len(p)); {
	case at < 0 || at >= size:
		return 0, io.EOF
	case end > size:
		n, err := b.ReadAt(p[:size-at], at)
		if err == nil {
			err = io.EOF
		}
		return n, err
	case end <= segmentHeaderSize:
		return copy(p, b.header[at:]), nil
	case at >= size-segmentFooterSize:
		return copy(p, b.footer[at-(size-segmentFooterSize):]), nil
	}
	if err := b.fill(p, at); err != nil {
		return 0, err
	}
	return len(p), nil
}

// fill fills p, at least one byte, with what is at that offset.
func (b *coldBytes) fill(p []byte, at int64) error {
	if len(p) == 0 {
		return nil
	}
	first, last := b.table.members(at, int64(len(p)))
	members, err := b.cached(first, last)
	if err != nil {
		return err
	}
	for i, raw := range members {
		from := max(0, at-int64(first+i)*b.table.member)
		p = p[copy(p, raw[from:]):]
	}
	return nil
}

// spanMembers is how many members one request reads at most.
const spanMembers = 8

// cached returns members first to last, from memory if they are there. What is not
// is read, several side by side with one request.
func (b *coldBytes) cached(first, last int) ([][]byte, error) {
	var reads sync.WaitGroup
	var mine []*cachedMember // claimed, and not being read yet; the last of them is before i
	load := func(i int) {
		if span := mine; len(span) > 0 {
			reads.Go(func() { b.load(i-len(span), span) })
		}
		mine = nil
	}
	wanted := make([]*cachedMember, 0, last-first+1)
	others := make([]bool, last-first+1)
	end := min(last+b.ahead(first), len(b.table.sums)-1) + 1
	for i := first; i < end; i++ {
		m, claimed := b.c.cache.claim(b.table.sums[i])
		if i <= last {
			wanted, others[i-first] = append(wanted, m), !claimed
			if !claimed {
				b.c.metrics.cold.hits.add(1)
			}
		}
		if !claimed || len(mine) == spanMembers {
			load(i)
		}
		if claimed {
			mine = append(mine, m)
		}
	}
	load(end)
	reads.Wait()
	raws := make([][]byte, len(wanted))
	for i, m := range wanted {
		<-m.done
		raw, err := m.raw, m.err
		if err != nil && others[i] { // of another reader, maybe of another object
			raw, err = b.readOne(first + i)
		}
		if err != nil {
			return nil, err
		}
		raws[i] = raw
	}
	return raws, nil
}

// ahead returns how many members to read beyond those that are wanted: none, or
// for who reads one after the other, as a listing does, as many as he had before.
func (b *coldBytes) ahead(first int) (n int) {
	for n < spanMembers && n < first && b.c.cache.has(b.table.sums[first-n-1]) {
		n++
	}
	if n < 2 {
		return 0
	}
	return n
}

// load reads claimed members from index from on, with one request, and settles them.
func (b *coldBytes) load(from int, span []*cachedMember) {
	raws, errs := b.read(from, from+len(span)-1)
	for i, m := range span {
		b.c.cache.settle(m, raws[i], errs[i])
	}
}

// read reads members first to last with one request; each is right or an error. One
// that is not right is read once more: it may have been hit on the way.
func (b *coldBytes) read(first, last int) (raws [][]byte, errs []error) {
	raws, errs = make([][]byte, last-first+1), make([]error, last-first+1)
	from, size := b.table.span(first, last)
	packed, err := b.c.objectReader.read(b.key, from, size)
	for i := range raws {
		if errs[i] = err; err != nil {
			continue
		}
		at, n := b.table.span(first+i, first+i)
		if raws[i], errs[i] = b.table.unpackMember(first+i, packed[at-from:][:n]); errs[i] != nil {
			raws[i], errs[i] = b.readOne(first + i)
		}
	}
	return raws, errs
}

// readOne reads one member.
func (b *coldBytes) readOne(i int) ([]byte, error) {
	at, n := b.table.span(i, i)
	packed, err := b.c.objectReader.read(b.key, at, n)
	if err != nil {
		return nil, err
	}
	raw, err := b.table.unpackMember(i, packed)
	if err != nil {
		b.c.metrics.cold.corrupt.add(1)
		return nil, damagedObject(b.key, err)
	}
	return raw, nil
}

// section implements segmentBytes: several requests are under way at a time. Only
// what will be read again goes through the cache.
func (b *coldBytes) section(from, size int64, again bool) io.Reader {
	s := &coldSection{b: b, at: from, end: from + size, again: again, width: 1}
	if size > 0 {
		s.next, s.last = b.table.members(from, size)
	}
	return s
}

// sectionAhead is how many requests for a section are under way at a time.
const sectionAhead = 4

// coldSection reads a part of a cold segment in order, owned by one goroutine.
type coldSection struct {
	b          *coldBytes
	at, end    int64 // what is still to be read
	again      bool
	next, last int // members that are not asked for yet
	width      int // of the next request
	ahead      []chan coldPiece
	rest       []byte // of the piece that came last
	err        error
}

// coldPiece is what a request brought: members side by side.
type coldPiece struct {
	from int64 // in the file
	raws [][]byte
	err  error
}

// Read implements io.Reader.
func (s *coldSection) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.at == s.end {
			return 0, io.EOF
		}
		if s.err == nil {
			s.err = s.advance()
		}
		if s.err != nil {
			return 0, s.err
		}
	}
	n := copy(p, s.rest)
	s.rest, s.at = s.rest[n:], s.at+int64(n)
	return n, nil
}

// advance asks for more, twice as much each time, and takes the next piece.
func (s *coldSection) advance() error {
	for len(s.ahead) < sectionAhead && s.next <= s.last {
		first, last := s.next, min(s.next+s.width-1, s.last)
		ch := make(chan coldPiece, 1)
		go func() { ch <- s.b.piece(first, last, s.again) }()
		s.ahead = append(s.ahead, ch)
		s.next, s.width = last+1, min(2*s.width, spanMembers)
	}
	p := <-s.ahead[0]
	s.ahead = s.ahead[1:]
	if p.err != nil {
		return p.err
	}
	s.rest = slices.Concat(p.raws...)
	s.rest = s.rest[s.at-p.from:]
	s.rest = s.rest[:min(int64(len(s.rest)), s.end-s.at)]
	return nil
}

// piece reads members first to last.
func (b *coldBytes) piece(first, last int, again bool) coldPiece {
	p := coldPiece{from: int64(first) * b.table.member}
	if again {
		p.raws, p.err = b.cached(first, last)
		return p
	}
	raws, errs := b.read(first, last)
	for _, err := range errs {
		if err != nil {
			p.err = err
		}
	}
	p.raws = raws
	return p
}

// farSegment is a cold segment as a file that is read from some place on.
type farSegment struct {
	s    *store
	info segmentInfo
	f    *segmentFile
	at   int64
	in   io.Reader // from at on; nil: not opened yet
}

// openFar opens a cold segment as a file. The object is there, with its size:
// who reads all of it is not to hear in the middle that it ends.
func (s *store) openFar(info segmentInfo) (io.ReadSeekCloser, error) {
	f, err := s.openCold(info)
	if err != nil {
		return nil, err
	}
	if b, ok := f.src.(*coldBytes); ok {
		size, err := s.cold.size(b.key)
		if want := b.table.objectSize(); err == nil && size != want {
			err = damagedObject(b.key, fmt.Errorf("it has %d bytes, want %d", size, want))
		}
		if err != nil {
			return nil, err
		}
	}
	return &farSegment{s: s, info: info, f: f}, nil
}

// Seek implements io.Seeker.
func (r *farSegment) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.f.size
	}
	if offset < 0 {
		return r.at, fmt.Errorf("segment %s: byte %d", r.f.name, offset)
	}
	if offset != r.at {
		r.in = nil
	}
	r.at = offset
	return offset, nil
}

// Read implements io.Reader. If an object turns out to be damaged the segment
// comes from another node, and the reader goes on.
func (r *farSegment) Read(p []byte) (int, error) {
	if r.at >= r.f.size {
		return 0, io.EOF
	}
	n, err := r.read(p)
	if errors.Is(err, errArchiveCorrupt) {
		if merr := r.s.mend(r.info); merr != nil {
			return 0, fmt.Errorf("%w; %v", err, merr)
		}
		if r.f, err = r.s.segment(r.info); err != nil {
			return 0, err
		}
		r.in = nil
		n, err = r.read(p)
	}
	r.at += int64(n)
	return n, err
}

// read reads what comes next.
func (r *farSegment) read(p []byte) (int, error) {
	if r.in == nil {
		r.in = r.f.src.section(r.at, r.f.size-r.at, false)
	}
	return r.in.Read(p)
}

// Close implements io.Closer.
func (r *farSegment) Close() error { return nil }
