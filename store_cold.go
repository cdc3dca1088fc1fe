package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

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
	kept   map[uint64]time.Time    // which were to go and could not, and when that is tried again
}

// maxColdOpen bounds the cold segments whose tables are in memory: 10 KiB each.
const maxColdOpen = 2048

// openColdState prepares the reading of cold segments.
func (s *store) openColdState(state *durableState) {
	c := &s.cold
	c.objects, c.metrics, c.logger, c.failed = s.o.objects, s.o.metrics, s.o.logger, s.o.unreadable
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.cache.limit, c.cache.bytes = s.o.cacheSize, &s.o.metrics.cold.cacheBytes
	c.firsts, c.pinned, c.open = make(map[uint64]bool), make(map[uint64]bool), make(map[uint64]*segmentFile)
	c.kept = make(map[uint64]time.Time)
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

// repacked tells whether the object of a cold segment was put again by another packer:
// its name says what is in it, and not how long its members are. Then the record is
// of the new one.
func (s *store) repacked(info segmentInfo) bool {
	old, err := s.ledger.coldRecord(info)
	if err != nil {
		return false // openCold makes it again
	}
	info.object = old.object
	r, err := s.readColdRecord(info)
	if err != nil || slices.Equal(r.table.ends, old.table.ends) {
		return false
	}
	s.cold.moving.Lock()
	defer s.cold.moving.Unlock()
	if !s.isCold(info.first) {
		return false
	}
	if err := s.changeCold("write cold record", func(t ledgerTx) error { return t.putCold(info.first, r) }); err != nil {
		return false
	}
	s.setCold(info, true)
	s.o.logger.Warn("the object of a cold segment was packed again", "segment", info.id(), "object", s.objectKey(info))
	return true
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
	p, err := s.openObject(info)
	if err != nil {
		return err
	}
	src := &coldBytes{&coldRecord{object: info.object, table: p.table}, &s.cold, s.objectKey(info)}
	_, err = io.CopyBuffer(w, src.section(from, p.table.size-from, false), make([]byte, 256<<10))
	return err
}

// openObject opens the object of a segment, whose table it checks against the
// object's name and size: two requests.
func (s *store) openObject(info segmentInfo) (*packedObject, error) {
	key := s.objectKey(info)
	size, err := s.cold.size(key)
	if err != nil {
		return nil, err
	}
	p, err := openPacked(info.object, int64(info.size), size, func(from, size int64) ([]byte, error) { return s.cold.read(key, from, size) })
	if errors.Is(err, errPacked) {
		err = s.cold.damaged(key, err)
	}
	if err != nil {
		return nil, err
	}
	return p, (&coldRecord{object: info.object, table: p.table}).checkName(info)
}

// readColdRecord makes the record of a segment from its object.
func (s *store) readColdRecord(info segmentInfo) (*coldRecord, error) {
	p, err := s.openObject(info)
	if err != nil {
		return nil, err
	}
	r := &coldRecord{header: make([]byte, segmentHeaderSize), footer: make([]byte, segmentFooterSize), object: info.object, table: p.table}
	src := &coldBytes{r, &s.cold, s.objectKey(info)}
	if err := src.fill(r.footer, p.table.size-segmentFooterSize); err != nil {
		return nil, err
	}
	return r, src.fill(r.header, 0)
}
