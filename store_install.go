package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// fetchedSegment is a segment that came from another node, with its run.
type fetchedSegment struct {
	info segmentInfo
	run  runInfo
}

// fetchSegment brings one sealed segment to this node's disk: body gives the
// file's bytes, which are checked against the SHA-256 and the root of info
// before anything names them. A segment that is already there and good is
// kept. A crash leaves a file that nothing names.
func (s *store) fetchSegment(info segmentInfo, body func(io.Writer) error) (fetchedSegment, error) {
	path := s.segmentPath(info)
	if _, err := os.Stat(path); err != nil {
		err := writeDurably(path, func(w io.Writer) error {
			sum := sha256.New()
			if err := body(io.MultiWriter(w, sum)); err != nil {
				return err
			}
			if got := hash(sum.Sum(nil)); got != info.sum {
				return fmt.Errorf("%w: SHA-256 is %s, want %s", errCorrupt, got, info.sum)
			}
			return nil
		})
		if err != nil {
			return fetchedSegment{}, fmt.Errorf("fetching segment %s: %w", info.id(), err)
		}
	}
	run, err := writeRun(filepath.Join(s.o.dir, indexDir), 0, info.first, info.end()-1, s.segmentRecords(info)) // checks every record and the root
	if err != nil {
		if errors.Is(err, errCorrupt) { // a bad copy that nothing names yet: get another one
			os.Remove(path)
			s.files.drop(info.first)
		}
		return fetchedSegment{}, err
	}
	return fetchedSegment{info, run}, s.growAhead(info)
}

// install moves D to at, whose entries beyond this node's D are in fetched. It
// is called by the apply goroutine. The pending segment goes: its entries are
// in the new segments. A crash before the transaction leaves the old D.
func (s *store) install(at checkpoint, fetched []fetchedSegment, window []chunk) error {
	s.mu.Lock()
	for len(s.sealing) > 0 && !s.stopped {
		s.drained.Wait()
	}
	stopped := s.stopped
	s.mu.Unlock()
	if stopped {
		return errors.New("store is closed")
	}
	s.lists.Lock()
	defer s.lists.Unlock()
	old := s.durable.Load()
	segments, runs := slices.Clip(old.segments), []runInfo(nil)
	for _, f := range fetched {
		if f.info.first < old.at.size {
			continue // this node sealed it meanwhile
		}
		segments = append(segments, f.info)
		runs = append(runs, f.run)
	}
	state := &durableState{at: at, segments: segments}
	if end := state.manifest().end(); end != at.size {
		return fmt.Errorf("%w: segments end at entry %d, the checkpoint at %d", errCorrupt, end, at.size)
	}
	tree, err := s.treeFor(state)
	if err != nil {
		return err
	}
	err = s.step("install checkpoint", func() error {
		return s.ledger.update(func(t ledgerTx) error {
			err := errors.Join(t.replaceRuns(nil, runs), t.putWindow(window, at.windowOldest), t.putCheckpoint(at))
			for _, i := range segments[len(old.segments):] {
				err = errors.Join(err, t.putSegment(i))
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	for _, r := range runs {
		if err := s.index.add(r); err != nil {
			return err
		}
	}
	state.runs = s.index.runs()
	s.durable.Store(state)
	s.manifest.Store(state.manifest())
	s.tree = tree.tree
	s.mu.Lock()
	s.recent = tree.recent
	s.pending = newPendingSegment(at.size)
	s.wakeWaiters()
	s.mu.Unlock()
	if s.o.moved != nil {
		s.o.moved(at)
	}
	return nil
}
