package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

var (
	// errNotFound: no version of the key exists, or none that was asked for.
	errNotFound = errors.New("not found")
	// errDeleted: the version asked for is a tombstone.
	errDeleted = errors.New("deleted")
)

// entry is one entry of the ledger as readers get it.
type entry struct {
	header
	raw   []byte      // canonical header bytes
	leaf  hash        // leafHash(raw)
	value io.ReaderAt // size bytes, checked against their CRC; nil from history and list
}

// selector says which version of a key is wanted; the zero value is the newest.
type selector struct {
	version uint64  // >0: this version
	seq     *uint64 // this entry, which must be of the key
	atSeq   *uint64 // the newest version with seq <= atSeq
	atTime  *int64  // the newest version with time <= atTime (Unix ms)
}

// accepts returns the test a header must pass, nil for the newest version.
func (sel *selector) accepts() func(*header) bool {
	switch {
	case sel.version > 0:
		return func(h *header) bool { return h.version == sel.version }
	case sel.atSeq != nil:
		return func(h *header) bool { return h.seq <= *sel.atSeq }
	}
	return nil
}

// get returns the wanted version of key. A tombstone is returned together
// with errDeleted. Damaged bytes give an error that wraps errCorrupt.
func (s *store) get(key []byte, sel selector) (entry, error) {
	if sel.seq != nil {
		return s.getSeq(key, *sel.seq)
	}
	if sel.atTime != nil {
		end, err := s.firstAfter(*sel.atTime)
		if err != nil {
			return entry{}, err
		}
		if end == 0 {
			return entry{}, errNotFound
		}
		end--
		sel.atSeq = &end
	}
	if e, ok := s.findInMemory(key, sel.accepts()); ok {
		return e, e.fate()
	}
	p, ok, err := repaired(s, func() (position, bool, error) {
		switch {
		case sel.version > 0:
			return s.index.version(key, sel.version)
		case sel.atSeq != nil:
			return s.index.before(key, *sel.atSeq)
		}
		return s.index.latest(key)
	})
	if err != nil {
		return entry{}, err
	}
	if !ok {
		return entry{}, errNotFound
	}
	e, err := s.entryFrom(p.seq, &place{p.offset, p.length}, true)
	if err == nil && !bytes.Equal(e.key, key) {
		err = otherKey(p.seq)
	}
	if err != nil {
		return entry{}, err
	}
	return e, e.fate()
}

// otherKey is the error of an entry to which the key index led, and which is not of that key.
func otherKey(seq uint64) error {
	return fmt.Errorf("entry %d: %w: the key index says it is of another key", seq, errCorrupt)
}

// fate returns errDeleted for a tombstone.
func (e *entry) fate() error {
	if e.op == opDelete {
		return errDeleted
	}
	return nil
}

// getSeq returns entry seq if it is of key.
func (s *store) getSeq(key []byte, seq uint64) (entry, error) {
	if seq >= s.size() {
		return entry{}, errNotFound
	}
	e, err := s.entryAt(seq)
	if err != nil {
		return entry{}, err
	}
	if !bytes.Equal(e.key, key) {
		return entry{}, errNotFound
	}
	return e, e.fate()
}

// entryAt returns the entry with the given seq, which must be below size().
func (s *store) entryAt(seq uint64) (entry, error) { return s.entryFrom(seq, nil, true) }

// headerAt is entryAt without the value.
func (s *store) headerAt(seq uint64) (entry, error) { return s.entryFrom(seq, nil, false) }

// entryFrom returns the entry with the given seq from memory or from its
// segment file, where its record is at pl if that is known.
func (s *store) entryFrom(seq uint64, pl *place, value bool) (entry, error) {
	if e, ok := s.entryInMemory(seq); ok {
		return e.entry(), nil
	}
	return fromSegment(s, seq, func(f *segmentFile) (entry, error) { return f.entry(seq, pl, value) })
}

// headersFrom returns the canonical headers of entries seq to end-1, or of the
// first of them if they are not in one place.
func (s *store) headersFrom(seq, end uint64) ([][]byte, error) {
	if e, ok := s.entryInMemory(seq); ok {
		return [][]byte{e.raw}, nil
	}
	return fromSegment(s, seq, func(f *segmentFile) ([][]byte, error) { return f.headers(seq, min(end, f.first+f.count)) })
}

// entryInMemory returns the entry with the given seq if it is in memory.
func (s *store) entryInMemory(seq uint64) (pendingEntry, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, p := range s.inMemory() {
		if seq >= p.first && seq < p.end() {
			return p.entries[seq-p.first], true
		}
	}
	return pendingEntry{}, false
}

// fromSegment reads from the file of the segment that entry seq is in, which is
// mended if it turns out to be damaged.
func fromSegment[T any](s *store, seq uint64, read func(*segmentFile) (T, error)) (T, error) {
	var none T
	m := s.manifest.Load()
	k := m.find(seq)
	if k < 0 {
		return none, errNotFound
	}
	try := func() (T, error) {
		f, err := s.segment(m.segments[k])
		if err != nil {
			return none, err
		}
		f.read()
		return read(f)
	}
	v, err := try()
	if !damagedFile(err) {
		return v, err
	}
	if merr := s.mend(m.segments[k]); merr != nil {
		if errors.Is(err, errArchiveCorrupt) {
			return none, fmt.Errorf("entry %d: %w; %v", seq, err, merr)
		}
		return none, fmt.Errorf("entry %d: %w: %v; %v", seq, errCorrupt, err, merr) // a missing file is no missing entry
	}
	return try()
}

// entry returns e as readers get it.
func (e *pendingEntry) entry() entry {
	h, err := parseHeader(e.raw)
	if err != nil {
		panic("store: " + err.Error())
	}
	return entry{header: h, raw: e.raw, leaf: leafHash(e.raw), value: memoryValue(e.value)}
}

// entry reads the entry with the given seq, at pl if that is known.
func (f *segmentFile) entry(seq uint64, pl *place, value bool) (entry, error) {
	if pl == nil {
		at, err := f.placeOf(seq)
		if err != nil {
			return entry{}, err
		}
		pl = &at
	}
	r, err := f.recordAt(*pl, seq)
	if err != nil {
		return entry{}, err
	}
	e := entry{header: r.header, raw: r.raw, leaf: leafHash(r.raw)}
	if value {
		e.value, err = f.value(&r)
	}
	return e, err
}

// segment returns a sealed segment, open, wherever its bytes are.
func (s *store) segment(info segmentInfo) (*segmentFile, error) {
	if s.isCold(info.first) {
		return s.openCold(info)
	}
	f, err := s.files.get(info.first, func() (*segmentFile, error) { return s.openSegment(info) })
	if errors.Is(err, fs.ErrNotExist) && s.isCold(info.first) { // since a moment ago
		return s.openCold(info)
	}
	return f, err
}

// inMemory returns the segments in memory, newest first; mu must be held.
func (s *store) inMemory() []*pendingSegment {
	all := make([]*pendingSegment, 0, 1+maxSealing)
	all = append(all, s.pending)
	for i := len(s.sealing) - 1; i >= 0; i-- {
		all = append(all, s.sealing[i].pendingSegment)
	}
	return all
}

// findInMemory returns the key's newest accepted entry that is in memory.
func (s *store) findInMemory(key []byte, accept func(*header) bool) (entry, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, p := range s.inMemory() {
		if i, ok := p.newest(key, accept); ok {
			return p.entries[i].entry(), true
		}
	}
	return entry{}, false
}

// firstAfter returns the seq of the first entry with a time after t, which is
// the size of the ledger if there is none. Times never go back, and a segment was
// sealed between its last entry and the next: so one segment is searched at most.
func (s *store) firstAfter(t int64) (uint64, error) {
	size, m := s.size(), s.manifest.Load()
	from, to := min(m.end(), size), size
	if k := sort.Search(len(m.segments), func(k int) bool { return m.segments[k].time > t }); k < len(m.segments) {
		from, to = min(m.segments[k].first, size), min(m.segments[k].end(), size)
	}
	var err error
	n := sort.Search(int(to-from), func(i int) bool {
		if err != nil {
			return true
		}
		var e entry
		e, err = s.headerAt(from + uint64(i))
		return e.time > t
	})
	return from + uint64(n), err
}

// history returns the versions of key with seq < before, newest first, at
// most limit, and the seq to give as before for the next page (nil at the end).
func (s *store) history(key []byte, before uint64, limit int) ([]entry, *uint64, error) {
	if before == 0 {
		return nil, nil, errNotFound
	}
	last := before - 1
	newest, err := s.get(key, selector{atSeq: &last})
	if err != nil && !errors.Is(err, errDeleted) {
		return nil, nil, err
	}
	versions := []entry{newest}
	for len(versions) < limit && versions[len(versions)-1].prev != noSeq {
		e, err := s.headerAt(versions[len(versions)-1].prev)
		if err != nil {
			return nil, nil, err
		}
		versions = append(versions, e)
	}
	if oldest := &versions[len(versions)-1]; oldest.prev != noSeq {
		return versions, &oldest.seq, nil
	}
	return versions, nil, nil
}

// sizeWaiter waits until the ledger has size entries.
type sizeWaiter struct {
	size  uint64
	ready chan struct{}
}

// size returns how many entries this node has applied.
func (s *store) size() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pending.end()
}

// pendingInfo returns the first seq, the entries and the bytes of the segment
// that still grows.
func (s *store) pendingInfo() (first, count, size uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pending.first, uint64(s.pending.shown), uint64(s.pending.bytes)
}

// pendingSince returns the time of the oldest pending entry in Unix ms; ok is
// false when there is none.
func (s *store) pendingSince() (ms int64, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.pending.shown == 0 {
		return 0, false
	}
	h := s.pending.header(0)
	return h.time, true
}

// waitSize waits until size() >= n.
func (s *store) waitSize(ctx context.Context, n uint64) error {
	s.mu.Lock()
	if s.pending.end() >= n {
		s.mu.Unlock()
		return nil
	}
	w := sizeWaiter{n, make(chan struct{})}
	s.waiters = append(s.waiters, w)
	s.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		s.mu.Lock()
		s.waiters = slices.DeleteFunc(s.waiters, func(o sizeWaiter) bool { return o.ready == w.ready })
		s.mu.Unlock()
		return ctx.Err()
	}
}

// segmentByID returns the open file of a confirmed segment.
func (s *store) segmentByID(id string) (*segmentFile, segmentInfo, error) {
	info, err := s.shownSegment(id)
	if err != nil {
		return nil, info, err
	}
	f, err := s.segment(info)
	return f, info, err
}

// shownSegment returns the confirmed segment with the given id.
func (s *store) shownSegment(id string) (segmentInfo, error) {
	for _, info := range s.manifest.Load().shown() {
		if info.id() == id {
			return info, nil
		}
	}
	return segmentInfo{}, fmt.Errorf("segment %q: %w", id, errNotFound)
}

// sealedByID returns the segment on this node's disk with the given id.
func (s *store) sealedByID(id string) (segmentInfo, bool) {
	m := s.durable.Load().manifest()
	first, _, _ := strings.Cut(id, "-")
	seq, err := strconv.ParseUint(first, 10, 64)
	k := m.find(seq)
	if err != nil || k < 0 || m.segments[k].id() != id {
		return segmentInfo{}, false
	}
	return m.segments[k], true
}

// sealedFile opens a confirmed segment for the caller to close. All of its file
// is what was written; if it is not, it is mended first. A cold one is checked
// as it is read.
func (s *store) sealedFile(id string) (io.ReadSeekCloser, segmentInfo, error) {
	info, err := s.shownSegment(id)
	if err != nil {
		return nil, info, err
	}
	f, err := s.openSound(info)
	if !damagedFile(err) {
		return f, info, err
	}
	if merr := s.mend(info); merr != nil {
		if errors.Is(err, errArchiveCorrupt) {
			return nil, info, fmt.Errorf("%w; %v", err, merr)
		}
		return nil, info, fmt.Errorf("segment %s: %w: %v; %v", id, errCorrupt, err, merr)
	}
	f, err = s.openSound(info)
	return f, info, err
}

// openSound opens the file of a segment and reads all of it, unless that was
// done a moment ago: who fetches a file in parts does not have it read anew for
// each. Of a cold segment nothing is read yet.
func (s *store) openSound(info segmentInfo) (io.ReadSeekCloser, error) {
	if !s.isCold(info.first) {
		f, err := s.openSoundFile(info)
		if !errors.Is(err, fs.ErrNotExist) || !s.isCold(info.first) {
			return f, err
		}
	}
	return s.openFar(info)
}

// openSoundFile is openSound of a segment whose file is here.
func (s *store) openSoundFile(info segmentInfo) (io.ReadSeekCloser, error) {
	f, err := os.Open(s.segmentPath(info))
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !s.scrub.wasSound(info, st) {
		begin := time.Now()
		if err = checkSumOf(f, info, func(int) error { return s.running() }); err == nil {
			s.scrub.noteSound(info, st, begin)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// currentManifest returns the manifest as clients see it: confirmed segments only.
func (s *store) currentManifest() *manifest {
	m := s.manifest.Load()
	return &manifest{m.version, m.confirmed, m.shown()}
}

// checkpoint returns D with everything that belongs to it.
func (s *store) checkpoint() (*durableState, error) {
	s.lists.Lock()
	defer s.lists.Unlock()
	state := *s.durable.Load()
	var err error
	state.window, err = s.ledger.window()
	return &state, err
}
