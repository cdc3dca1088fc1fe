package main

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// head is the newest version of a key.
type head struct {
	seq     uint64
	version uint64
	deleted bool // it is a tombstone
}

// stagedEntry is an entry decided by the apply goroutine and not yet visible.
type stagedEntry struct {
	pendingEntry
	key   string
	head  head
	below int32 // the key's staged entry before this one, or -1
}

// sealedSegment is a closed segment on its way to disk.
type sealedSegment struct {
	*pendingSegment
	info   segmentInfo // without size and sum, which the file gives
	at     checkpoint
	window []chunk // chunks of the idempotency window that changed
}

// head returns the newest version of key as the apply goroutine sees it:
// staged entries count. Only the apply goroutine calls it.
func (s *store) head(key []byte) (head, bool, error) {
	if i, ok := s.overlay[string(key)]; ok {
		return s.staged[i].head, true, nil
	}
	if raw := s.newestInMemory(key, nil); raw != nil {
		return headOf(raw), true, nil
	}
	p, ok, err := repaired(s, func() (position, bool, error) { return s.index.latest(key) })
	return head{p.seq, p.version, p.deleted}, ok, err
}

// headOf reads a head from canonical header bytes (segment.go).
func headOf(raw []byte) head {
	return head{
		seq:     binary.BigEndian.Uint64(raw[2:]),
		version: binary.BigEndian.Uint64(raw[10:]),
		deleted: opKind(raw[1]) == opDelete,
	}
}

// nextSeq returns the seq the next staged entry gets.
func (s *store) nextSeq() uint64 { return s.pending.end() + uint64(len(s.staged)) }

// stage adds an entry after those staged before; the caller knows its version
// and prev from head. It returns the canonical header. Readers see it after
// publish. The value is kept, not copied.
func (s *store) stage(h *header, value []byte) []byte {
	h.seq = s.nextSeq()
	h.size = uint64(len(value))
	h.sum = sha256.Sum256(value)
	e := stagedEntry{
		pendingEntry: s.pending.stage(h, value),
		key:          string(h.key),
		head:         head{h.seq, h.version, h.op == opDelete},
		below:        -1,
	}
	if i, ok := s.overlay[e.key]; ok {
		e.below = i
	}
	s.overlay[e.key] = int32(len(s.staged))
	s.staged = append(s.staged, e)
	return e.raw
}

// stagedCount is a mark for unstage.
func (s *store) stagedCount() int { return len(s.staged) }

// unstage forgets the entries staged after the mark: an atomic batch failed.
func (s *store) unstage(mark int) {
	for i := len(s.staged) - 1; i >= mark; i-- {
		if e := &s.staged[i]; e.below >= 0 {
			s.overlay[e.key] = e.below
		} else {
			delete(s.overlay, e.key)
		}
	}
	s.staged = s.staged[:mark]
}

// publish makes the staged entries visible, all at once.
func (s *store) publish() {
	if len(s.staged) == 0 {
		return
	}
	s.mu.Lock()
	for i := range s.staged {
		s.pending.append(s.staged[i].key, s.staged[i].pendingEntry)
	}
	s.wakeWaiters()
	s.mu.Unlock()
	clear(s.staged)
	s.staged = s.staged[:0]
	clear(s.overlay)
}

// wakeWaiters tells those who wait for a size that was reached; mu must be held.
func (s *store) wakeWaiters() {
	end := s.pending.end()
	s.waiters = slices.DeleteFunc(s.waiters, func(w sizeWaiter) bool {
		if w.size <= end {
			close(w.ready)
		}
		return w.size <= end
	})
}

// seal closes the pending segment at the log position at and hands it to the
// seal goroutine; at.size, version and confirmed are filled in here. An empty
// pending segment is left as it is. It waits while too many segments are on
// their way to disk, which bounds memory when the disk cannot keep up.
func (s *store) seal(time int64, at checkpoint, window []chunk) error {
	s.publish()
	if len(s.pending.entries) == 0 {
		return nil
	}
	info := segmentInfo{
		first: s.pending.first,
		count: uint64(len(s.pending.entries)),
		time:  time,
		root:  s.pending.tree.root(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.sealing) >= maxSealing && !s.stopped {
		s.drained.Wait()
	}
	m, err := s.manifest.Load().withSealed(info) // under mu: the seal goroutine changes the manifest, too
	if err != nil {
		return err
	}
	at.size, at.version, at.confirmed = info.end(), m.version, uint64(m.confirmed)
	s.sealing = append(slices.Clip(s.sealing), &sealedSegment{s.pending, info, at, window})
	s.pending = newPendingSegment(info.end())
	s.manifest.Store(m)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// maxSealing bounds the closed segments in memory.
const maxSealing = 4

// confirm takes the leader's description of a sealed segment into the
// manifest. It wraps errDiverged if this node's bytes differ.
func (s *store) confirm(leader segmentInfo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, changed, err := s.manifest.Load().withConfirmed(leader)
	if err == nil && changed {
		s.manifest.Store(m)
	}
	return err
}

// unconfirmed returns the oldest segment that is on this node's disk and not
// confirmed yet: what the leader has to propose.
func (s *store) unconfirmed() (segmentInfo, bool) {
	m := s.manifest.Load()
	if m.confirmed == len(m.segments) || m.segments[m.confirmed].size == 0 {
		return segmentInfo{}, false
	}
	return m.segments[m.confirmed], true
}
