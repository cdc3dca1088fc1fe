package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Which segments have their files here. A segment is local until the archive has
// it, then archived: in the bucket and here. Then its file may go, and it is cold:
// when nobody has read it for dropAge, counted from its sealing, or when all
// files together are larger than localMax: those go first that were not read for
// longest. What is pinned stays. When a segment was read is known until the node
// stops; at the next start it counts from its sealing again.

// tierLoop drops what may go, every tierEvery.
func (s *store) tierLoop() {
	if s.o.objects == nil || s.o.tierEvery == 0 {
		return
	}
	for tick := time.NewTicker(s.o.tierEvery); ; {
		select {
		case <-s.quit:
			tick.Stop()
			return
		case <-tick.C:
			s.tierOnce(time.Now())
		}
	}
}

// tierOnce drops what may go at a time, and leaves the rest for later when the
// bucket does not answer.
func (s *store) tierOnce(now time.Time) {
	for _, info := range s.droppable(now) {
		err := s.drop(info)
		if s.running() != nil {
			return
		}
		wait := keptFor(err)
		s.tellKept(info, err, now.Add(wait))
		if errors.Is(err, errArchiveUnavailable) && wait == 0 {
			return
		}
	}
}

// keptFor returns for how long to leave alone what could not be dropped. To find out
// that its object and its file differ takes reading all of both.
func keptFor(err error) time.Duration {
	var e *archiveError
	switch {
	case errors.Is(err, errArchiveCorrupt), errors.Is(err, errCorrupt):
		return wrongObjectWait
	case errors.As(err, &e) && e.refused():
		return refusedWait
	}
	return 0
}

// tellKept notes until when a file that was to go is left alone, and logs why, once.
func (s *store) tellKept(info segmentInfo, err error, until time.Time) {
	c := &s.cold
	c.mu.Lock()
	_, known := c.kept[info.first]
	delete(c.kept, info.first)
	if err != nil {
		c.kept[info.first] = until
	}
	c.mu.Unlock()
	if err != nil && !known {
		s.o.logger.Warn("the local copy of a segment stays", "segment", info.id(), "error", err)
	}
}

// isKept tells whether the file of a segment is not to be dropped yet.
func (s *store) isKept(first uint64, now time.Time) bool {
	s.cold.mu.Lock()
	defer s.cold.mu.Unlock()
	return now.Before(s.cold.kept[first])
}

// droppable returns the segments whose files are to go, those first that were
// not used for longest.
func (s *store) droppable(now time.Time) []segmentInfo {
	type candidate struct {
		segmentInfo
		used int64
	}
	var all []candidate
	local := int64(0)
	for _, info := range s.durable.Load().segments {
		if s.isCold(info.first) {
			continue
		}
		local += int64(info.size)
		if info.object = s.objectOf(info); info.object != "" && !s.isPinned(info.first) && !s.isKept(info.first, now) {
			all = append(all, candidate{info, s.lastUsed(info)})
		}
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.used, b.used), cmp.Compare(a.first, b.first))
	})
	var drop []segmentInfo
	for _, c := range all {
		if now.UnixMilli()-c.used < s.o.dropAge.Milliseconds() && (s.o.localMax == 0 || local <= s.o.localMax) {
			break
		}
		local -= int64(c.size)
		drop = append(drop, c.segmentInfo)
	}
	return drop
}

// lastUsed returns when a segment was sealed, or read since the node started.
func (s *store) lastUsed(info segmentInfo) int64 {
	used := info.time
	if f := s.files.peek(info.first); f != nil {
		used = max(used, f.used.Load())
	}
	return used
}

// countLocal brings the metrics of what is where up to date.
func (s *store) countLocal() {
	local, cold := int64(0), int64(0)
	for _, info := range s.durable.Load().segments {
		if s.isCold(info.first) {
			cold++
		} else {
			local += int64(info.size)
		}
	}
	s.o.metrics.cold.segments.set(cold)
	s.o.metrics.cold.localBytes.set(local)
}

// prefetchResult is the answer to POST /cluster/prefetch.
type prefetchResult struct {
	Segments int    `json:"segments"`   // that hold the entries asked for
	Fetched  int    `json:"prefetched"` // whose files were brought back by this call
	Bytes    uint64 `json:"bytes"`      // of them
	Pinned   int    `json:"pinned"`     // that stay until they are unpinned
}

// prefetch brings back the files of the segments that hold entries from to to,
// and pins or unpins them if pin says so.
func (s *store) prefetch(ctx context.Context, from, to uint64, pin *bool) (r prefetchResult, err error) {
	var infos []segmentInfo
	for _, info := range s.durable.Load().segments {
		if info.first <= to && info.end() > from {
			infos = append(infos, info)
		}
	}
	switch {
	case pin != nil && *pin:
		err = s.pin(infos, pinAsked)
	case pin != nil:
		err = s.unpin(infos)
	}
	if err != nil {
		return r, err
	}
	for _, info := range infos {
		if err := errors.Join(ctx.Err(), s.running()); err != nil {
			return r, err
		}
		if s.isCold(info.first) {
			if err := s.bringBack(info); err != nil {
				return r, fmt.Errorf("segment %s: %w", info.id(), err)
			}
			r.Fetched++
			r.Bytes += info.size
		}
		if s.isPinned(info.first) {
			r.Pinned++
		}
	}
	r.Segments = len(infos)
	return r, nil
}
