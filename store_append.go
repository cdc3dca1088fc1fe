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

// sealedSegment is a closed segment on its way to disk.
type sealedSegment struct {
	*pendingSegment
	info   segmentInfo // without size and sum, which the file gives
	at     checkpoint
	window []chunk // chunks of the idempotency window that changed

	archived []segmentInfo // older segments, as far as they were archived since the seal before
}

// head returns the newest version of key as the apply goroutine sees it:
// staged entries count. Only the apply goroutine calls it.
func (s *store) head(key []byte) (head, bool, error) {
	if i, ok := s.pending.heads[string(key)]; ok {
		return headOf(s.pending.entries[i].raw), true, nil
	}
	s.mu.RLock()
	sealing := s.sealing
	s.mu.RUnlock()
	for k := len(sealing) - 1; k >= 0; k-- {
		if i, ok := sealing[k].heads[string(key)]; ok {
			return headOf(sealing[k].entries[i].raw), true, nil
		}
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
func (s *store) nextSeq() uint64 { return s.pending.next() }

// stage adds an entry after those staged before; the caller knows its version
// and prev from head. It returns the canonical header. Readers see it after
// publish. A large value is kept, not copied.
func (s *store) stage(h *header, value []byte) []byte {
	h.seq = s.nextSeq()
	h.size = uint64(len(value))
	h.sum = sha256.Sum256(value)
	e, leaf := s.pending.encode(h, value)
	s.mu.Lock()
	s.pending.stage(e, leaf)
	s.mu.Unlock()
	return e.raw
}

// mark is where unstage goes back to.
func (s *store) mark() int { return len(s.pending.entries) }

// unstage forgets the entries staged after the mark: an atomic batch failed.
func (s *store) unstage(mark int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.forget(mark)
}

// publish makes the staged entries visible, all at once.
func (s *store) publish() {
	if s.pending.shown == len(s.pending.entries) {
		return
	}
	for _, leaf := range s.pending.leaves {
		s.tree.append(leaf)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.show()
	s.recent.add(&s.tree)
	s.wakeWaiters()
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
	s.sealing = append(slices.Clip(s.sealing), &sealedSegment{s.pending, info, at, window, s.takeArchived(m)})
	s.pending = s.pending.successor()
	s.manifest.Store(m)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// maxSealing bounds the closed segments in memory.
const maxSealing = 2

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

// setArchived notes that the segment that starts at first lies in object. D learns of
// it with the next seal: a restart replays the command until then.
func (s *store) setArchived(first uint64, object string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, changed := s.manifest.Load().withArchived(first, object)
	if changed {
		s.manifest.Store(m)
		s.archived = append(s.archived, first)
	}
}

// takeArchived returns the segments that were archived since it was called before,
// as m has them; mu must be held.
func (s *store) takeArchived(m *manifest) []segmentInfo {
	infos := make([]segmentInfo, len(s.archived))
	for i, first := range s.archived {
		infos[i] = m.segments[m.find(first)]
	}
	s.archived = nil
	return infos
}
