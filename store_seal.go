package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// sealLoop writes sealed segments, oldest first, until the store closes.
func (s *store) sealLoop() {
	for {
		s.mu.RLock()
		var next *sealedSegment
		if len(s.sealing) > 0 {
			next = s.sealing[0]
		}
		s.mu.RUnlock()
		if next == nil {
			select {
			case <-s.wake:
				continue
			case <-s.quit:
				return
			}
		}
		if err := s.persist(next); err != nil && !s.retryable(err) {
			s.o.fatal(fmt.Errorf("sealing segment %s: %w", next.info.id(), err))
			return
		}
		select {
		case <-s.quit:
			return
		default:
		}
	}
}

// retryable tells whether persist may be tried again: only a full disk may,
// because persist then starts with new files. It waits a moment.
func (s *store) retryable(err error) bool {
	if !errors.Is(err, syscall.ENOSPC) {
		return false
	}
	s.o.logger.Error("no space to seal a segment, trying again", "error", err)
	select {
	case <-s.quit:
	case <-time.After(time.Second):
	}
	return true
}

// persist brings one sealed segment to disk and moves D to it.
func (s *store) persist(g *sealedSegment) error {
	start := time.Now()
	info := g.info

	// 1. The segment file. A crash before the rename leaves a .tmp file that
	// the next start removes; after it, a whole file that nothing names yet and
	// that the replayed seal writes again with the same bytes.
	var places []place
	err := s.step("write segment", func() error {
		return writeDurably(s.segmentPath(info), func(w io.Writer) error {
			size, sum, pl, err := writeSegment(w, s.o.cluster, g.pendingSegment, info.time)
			info.size, info.sum, places = uint64(size), sum, pl
			return err
		})
	})
	if err != nil {
		return err
	}
	file, err := s.openSegment(info)
	if err != nil {
		return err
	}

	// 2. The run of its keys. A crash here leaves a run that nothing names; it
	// is written again like the segment.
	var run runInfo
	err = s.step("write run", func() (err error) {
		run, err = writeRun(filepath.Join(s.o.dir, indexDir), 0, info.first, info.end()-1, g.records(places))
		return err
	})
	if err != nil {
		return err
	}

	// 3. D. Before this transaction is durable a restart opens at the old D and
	// replays the Raft log over it; after, at the new one.
	s.lists.Lock()
	defer s.lists.Unlock()
	tiles := s.recentTiles()
	err = s.step("move checkpoint", func() error {
		return s.ledger.update(func(t ledgerTx) error {
			return errors.Join(t.putSegments(append(slices.Clip(g.archived), info)), t.replaceRuns(nil, []runInfo{run}), t.putTiles(tiles, info.first, info.end()),
				t.putWindow(g.window, g.at.windowOldest), t.putCheckpoint(g.at), t.removeCold(info.first))
		})
	})
	if err != nil {
		return err
	}

	// 4. Memory follows: first the new way to the entries, then away with the
	// old, so that a reader always finds them.
	if err := s.index.add(run); err != nil {
		return err
	}
	s.setCold(info, false)
	s.files.put(info.first, file)
	old := s.durable.Load()
	segments := replaceSegments(append(slices.Clip(old.segments), info), g.archived)
	s.durable.Store(&durableState{at: g.at, segments: segments, runs: s.index.runs()})
	if err := s.release(g, info); err != nil {
		return err
	}
	s.o.logger.Info("segment sealed", "segment", info.id(), "entries", info.count, "bytes", info.size, "took", time.Since(start))
	s.countLocal()
	if s.o.moved != nil {
		s.o.moved(g.at)
	}
	return nil
}

// replaceSegments returns segments with those that are in newer instead, which
// must be among them.
func replaceSegments(segments, newer []segmentInfo) []segmentInfo {
	segments = slices.Clone(segments)
	for _, i := range newer {
		k := (&manifest{segments: segments}).find(i.first)
		segments[k] = i
	}
	return segments
}

// release lets go of the memory of a segment that is on disk.
func (s *store) release(g *sealedSegment, info segmentInfo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.manifest.Load().withWritten(info.first, info.size, info.sum)
	if err != nil {
		return err
	}
	s.manifest.Store(m)
	s.sealing = slices.Clone(s.sealing[1:])
	s.recent.drop(info.end())
	s.drained.Broadcast()
	return nil
}

// backlog returns how many closed segments are still in memory.
func (s *store) backlog() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.sealing)
}

// records yields what the run of p holds.
func (p *pendingSegment) records(places []place) iter.Seq2[indexRecord, error] {
	return func(yield func(indexRecord, error) bool) {
		for _, i := range p.byKey() {
			e := &p.entries[i]
			h := headOf(e.raw)
			if !yield(indexRecord{e.key(), position{h.seq, h.version, places[i].offset, places[i].length, h.deleted}}, nil) {
				return
			}
		}
	}
}

// segmentRecords yields what the run of a sealed segment holds, read from its
// file by read; every record and the root are checked on the way.
func (s *store) segmentRecords(info segmentInfo, read func(segmentInfo) ([]indexRecord, error)) iter.Seq2[indexRecord, error] {
	return func(yield func(indexRecord, error) bool) {
		all, err := read(info)
		if err != nil {
			yield(indexRecord{}, err)
			return
		}
		sortedRecords(all)(yield)
	}
}

// sortedRecords yields all records of a segment as its run holds them.
func sortedRecords(all []indexRecord) iter.Seq2[indexRecord, error] {
	slices.SortFunc(all, func(a, b indexRecord) int {
		return cmp.Or(bytes.Compare(a.key, b.key), cmp.Compare(b.seq, a.seq))
	})
	return func(yield func(indexRecord, error) bool) {
		for _, r := range all {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// readRecords reads all records of a segment file.
func (s *store) readRecords(info segmentInfo) ([]indexRecord, error) {
	file, err := s.segment(info)
	if err != nil {
		return nil, err
	}
	c, err := contentsOf(file, info)
	return c.records, err
}

// readMended is readRecords of a segment that may have to be mended first.
func (s *store) readMended(info segmentInfo) ([]indexRecord, error) {
	all, err := s.readRecords(info)
	if damagedFile(err) {
		if merr := s.mend(info); merr != nil {
			return nil, fmt.Errorf("%w; %w", err, merr)
		}
		return s.readRecords(info)
	}
	return all, err
}

// rebuild writes the file of a damaged run again from the segments it covers.
func (s *store) rebuild(broken runInfo, segments []segmentInfo) (runInfo, error) {
	s.o.logger.Warn("key index run is damaged, building it again from its segments", "run", broken.name())
	parts := func(yield func(runPart, error) bool) {
		for _, info := range segments {
			if info.first >= broken.first && info.first <= broken.last && !yield(runPart{info.first, info.end() - 1, s.segmentRecords(info, s.readMended)}, nil) {
				return
			}
		}
	}
	return rebuildRun(context.Background(), filepath.Join(s.o.dir, indexDir), broken, parts, s.o.logger)
}

// noteRebuilt tells ledger.db of a run whose new file differs from the old one, as
// when a newer program writes it.
func (s *store) noteRebuilt(broken, built runInfo) error {
	if built == broken {
		return nil
	}
	return s.ledger.update(func(t ledgerTx) error { return t.replaceRuns([]runInfo{broken}, []runInfo{built}) })
}

// repaired calls look and, when it meets a damaged run, builds that run again
// from its segments and calls once more.
func repaired[T any](s *store, look func() (T, bool, error)) (T, bool, error) {
	v, ok, err := look()
	var broken *runError
	for tries := 0; errors.As(err, &broken) && tries < 3; tries++ {
		if rerr := s.repairRun(broken.info); rerr != nil {
			return v, false, errors.Join(err, rerr)
		}
		v, ok, err = look()
	}
	return v, ok, err
}

// repairRun builds a run again that turned out to be damaged while in use. That may
// take long, for its segments may be in the bucket, and nothing else waits for it.
func (s *store) repairRun(broken runInfo) error {
	s.repairs.Lock()
	defer s.repairs.Unlock()
	if !slices.Contains(s.index.runs(), broken) {
		return nil // somebody else repaired or merged it meanwhile
	}
	built, err := s.rebuild(broken, s.durable.Load().segments)
	if err != nil {
		return err
	}
	s.lists.Lock()
	defer s.lists.Unlock()
	if !slices.Contains(s.index.runs(), broken) {
		return nil // as above, and the next start removes the file
	}
	if err := s.noteRebuilt(broken, built); err != nil {
		return err
	}
	return s.index.swap(built)
}

// mergeLoop merges runs in the background whenever a tier is full.
func (s *store) mergeLoop() {
	ctx, cancel := context.WithCancel(context.Background())
	s.done.Go(func() {
		<-s.quit
		cancel()
	})
	for tick := time.NewTicker(time.Second); ; {
		select {
		case <-s.quit:
			tick.Stop()
			return
		case <-tick.C:
		}
		for s.mergeOnce(ctx) {
		}
	}
}

// mergeOnce merges one full tier and tells whether there was one. A merge that
// fails is tried again later: the runs it reads stay in use.
func (s *store) mergeOnce(ctx context.Context) bool {
	old, level, ok := s.index.nextMerge()
	if !ok || ctx.Err() != nil {
		return false
	}
	merged, err := s.index.merge(ctx, level, old)
	if err != nil {
		if ctx.Err() == nil {
			s.o.logger.Error("merging key index runs", "error", err)
			var broken *runError
			if errors.As(err, &broken) {
				return s.repairRun(broken.info) == nil
			}
		}
		return false
	}
	s.lists.Lock()
	defer s.lists.Unlock()
	if now := s.index.runs(); slices.ContainsFunc(old, func(r runInfo) bool { return !slices.Contains(now, r) }) {
		return true // a run was repaired meanwhile: merge what is there now
	}
	// A crash before this transaction leaves the merged file unnamed, after it
	// the old files; openStore does not care for either.
	err = s.step("replace runs", func() error {
		return s.ledger.update(func(t ledgerTx) error { return t.replaceRuns(old, []runInfo{merged}) })
	})
	if errors.Is(err, syscall.ENOSPC) { // as with persist: nothing happened that another try does not repeat
		s.o.logger.Error("merging key index runs", "error", err)
		return false
	}
	if err != nil {
		s.o.fatal(err)
		return false
	}
	if err := s.index.replace(old, merged); err != nil {
		s.o.fatal(err)
		return false
	}
	if err := s.index.remove(old); err != nil { // the next start removes them
		s.o.logger.Warn("removing merged runs", "error", err)
	}
	return true
}
