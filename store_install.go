package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// fetchedSegment is a segment that came from another node, with its run.
type fetchedSegment struct {
	info segmentInfo
	run  runInfo
}

// fetchSegment brings one sealed segment to this node's disk, with its run and
// its part of the tree. A crash leaves a part (store_part.go), or files that
// nothing names yet: a segment that is found whole is kept.
func (s *store) fetchSegment(info segmentInfo, source segmentSource) (fetchedSegment, error) {
	c, err := s.wholeSegment(info)
	if err == nil && c == nil {
		c, err = s.receiveSegment(info, source)
	}
	if err != nil {
		return fetchedSegment{}, fmt.Errorf("fetching segment %s: %w", info.id(), err)
	}
	run, err := writeRun(filepath.Join(s.o.dir, indexDir), 0, info.first, info.end()-1, sortedRecords(c.records))
	if err != nil {
		return fetchedSegment{}, err
	}
	return fetchedSegment{info, run}, s.growAhead(info, c.leaves)
}

// wholeSegment reads a segment that is there already, nil if none is or it is damaged.
func (s *store) wholeSegment(info segmentInfo) (*segmentContents, error) {
	if err := s.checkSum(info, func(int) error { return s.running() }); err != nil {
		if damagedFile(err) {
			err = nil
		}
		return nil, err
	}
	f, err := s.openSegment(info)
	if err != nil {
		return nil, err
	}
	defer f.close()
	return contentsOf(f, info)
}

// receiveSegment makes the file of a segment from what source gives, if that is
// what info says.
func (s *store) receiveSegment(info segmentInfo, source segmentSource) (*segmentContents, error) {
	p, err := s.openPart(info)
	if err != nil {
		return nil, err
	}
	defer p.file.Close()
	if p.size > 0 {
		s.o.metrics.fetch.resumed.add(1)
		s.o.metrics.fetch.resumedBytes.add(p.size)
	}
	if err := source(p.size, p); err != nil {
		return nil, err
	}
	c, err := s.checkPart(p)
	if errors.Is(err, errCorrupt) {
		os.Remove(p.file.Name())
	}
	if err != nil {
		return nil, err
	}
	if err := p.publish(); err != nil {
		return nil, err
	}
	s.files.drop(info.first)
	if s.isCold(info.first) { // an earlier try adopted it
		err = s.forgetCold(info)
	}
	return c, err
}

// checkPart reads a part that is whole, if it is what the manifest says.
func (s *store) checkPart(p *segmentPart) (*segmentContents, error) {
	if err := checkSegmentSum(p.sum, p.info); err != nil {
		return nil, err
	}
	f, err := s.openSegmentAt(p.file.Name(), p.info)
	if err != nil {
		return nil, err
	}
	defer f.close()
	return contentsOf(f, p.info)
}

// segmentContents is what the key index and the tree take from a segment.
type segmentContents struct {
	records []indexRecord // in order of seq
	leaves  []hash
}

// contentsOf reads all records of a segment file and checks them and their root.
func contentsOf(f *segmentFile, info segmentInfo) (*segmentContents, error) {
	c := &segmentContents{make([]indexRecord, 0, info.count), make([]hash, 0, info.count)}
	keys := make([]byte, 0, keyArena)
	root, err := f.leaves(false, func(r *record, pl place, leaf hash) error {
		h := &r.header
		if len(h.key) > cap(keys)-len(keys) {
			keys = make([]byte, 0, keyArena)
		}
		keys = append(keys, h.key...)
		key := keys[len(keys)-len(h.key) : len(keys) : len(keys)]
		c.records = append(c.records, indexRecord{key, position{h.seq, h.version, pl.offset, pl.length, h.op == opDelete}})
		c.leaves = append(c.leaves, leaf)
		return nil
	})
	if err == nil && root != info.root {
		err = fmt.Errorf("segment %s: %w: its records give root %s", info.id(), errCorrupt, root)
	}
	return c, err
}

// keyArena is the size of the pieces of memory that hold keys.
const keyArena = 64 << 10

// writeFetched makes the file of a segment from what body gives, in the place of
// one that is damaged, if that is what info says.
func (s *store) writeFetched(info segmentInfo, body func(io.Writer) error) error {
	err := writeDurably(s.segmentPath(info), func(w io.Writer) error {
		sum := sha256.New()
		if err := body(io.MultiWriter(w, sum)); err != nil {
			return err
		}
		return checkSegmentSum(sum, info)
	})
	if err != nil {
		return fmt.Errorf("fetching segment %s: %w", info.id(), err)
	}
	return nil
}

// errFetching says that a snapshot cannot be installed yet because segments are
// still on their way to the disk; the leader will offer it again.
var errFetching = errors.New("still fetching segments")

// installPatience is how long install waits for segments that are being sealed.
const installPatience = 2 * time.Second

// install moves D to at, with the agreed segments, of which those beyond this node's
// D are in fetched. It is called by the apply goroutine. The pending segment goes: its entries are
// in the new segments. While the disk takes those that are being sealed it waits for
// them, but not for long: Raft waits with it. A crash before the transaction leaves
// the old D.
func (s *store) install(at checkpoint, agreed []segmentInfo, fetched []fetchedSegment, window []chunk) error {
	late := false // guarded by mu
	timer := time.AfterFunc(installPatience, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		late = true
		s.drained.Broadcast()
	})
	s.mu.Lock()
	for len(s.sealing) > 0 && !s.stopped && !late {
		s.drained.Wait()
	}
	stopped, sealing := s.stopped, len(s.sealing)
	s.mu.Unlock()
	timer.Stop()
	switch {
	case stopped:
		return errors.New("store is closed")
	case sealing > 0:
		return fmt.Errorf("%w: %d segments are still being sealed", errFetching, sealing)
	}
	s.lists.Lock()
	defer s.lists.Unlock()
	old := s.durable.Load()
	segments, runs := slices.Clone(old.segments), []runInfo(nil)
	for _, f := range fetched {
		if f.info.first < old.at.size {
			continue // this node sealed it meanwhile
		}
		segments = append(segments, f.info)
		runs = append(runs, f.run)
	}
	state := &durableState{at: at, segments: segments}
	if end := state.manifest().end(); end != at.size || len(segments) != len(agreed) {
		return fmt.Errorf("%w: segments end at entry %d, the checkpoint at %d", errCorrupt, end, at.size)
	}
	changed := takeObjects(segments, agreed, len(old.segments))
	tree, err := s.treeFor(state)
	if err != nil {
		return err
	}
	err = s.step("install checkpoint", func() error {
		return s.ledger.update(func(t ledgerTx) error {
			return errors.Join(t.putSegments(changed), t.replaceRuns(nil, runs), t.putWindow(window, at.windowOldest), t.putCheckpoint(at))
		})
	})
	if err != nil {
		return err
	}
	s.forgetAhead()
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
	s.archived = nil
	s.wakeWaiters()
	s.mu.Unlock()
	s.countLocal()
	if s.o.moved != nil {
		s.o.moved(at)
	}
	return nil
}

// takeObjects gives segments the objects that the agreed ones have: this node may
// have sealed or fetched them before they were archived. It returns those that this
// changed, and all after the first known ones.
func takeObjects(segments, agreed []segmentInfo, known int) (changed []segmentInfo) {
	for k := range segments {
		if k >= known || segments[k].object != agreed[k].object {
			segments[k].object = agreed[k].object
			changed = append(changed, segments[k])
		}
	}
	return changed
}
