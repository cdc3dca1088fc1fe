package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What the store knows of damage to its files, and how it is mended: a segment
// file comes again from another node, a run of the index is built again from
// its segments, a tile from the level below it (store_tree.go). The scrub finds
// damage (store_scrub.go), and so do reads, which start the repair and wait a
// little for it. What cannot be mended is told: a log line, a metric, /health;
// reads of it answer that it is corrupt, never anything else.

const (
	mendWait  = 5 * time.Second // for a reader to get a segment that is being fetched
	mendEvery = 5 * time.Second // between two tries to mend the same thing
	coldEvery = time.Minute     // as mendEvery, of what takes reading an object
	soundFor  = 5 * time.Second // for which a file that was read whole is taken as sound
)

// scrubState is what the store knows of its damages.
type scrubState struct {
	mu      sync.Mutex
	damages map[string]diskDamage // by what is damaged, for what is not mended yet
	mending map[uint64]*mending
	sound   map[uint64]soundFile // by first seq, of segments read whole a moment ago
	closed  bool                 // no more repairs start
}

// soundFile is a file that was what the manifest says.
type soundFile struct {
	os.FileInfo
	at time.Time
}

// wasSound tells whether the file of a segment, now st, was read whole and
// found sound a moment ago, and is still the same.
func (s *scrubState) wasSound(info segmentInfo, st os.FileInfo) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, ok := s.sound[info.first]
	return ok && os.SameFile(was.FileInfo, st) && was.ModTime().Equal(st.ModTime()) && was.Size() == st.Size() && time.Since(was.at) < soundFor
}

// noteSound remembers that a file was sound, and forgets those for which it is
// long ago.
func (s *scrubState) noteSound(info segmentInfo, st os.FileInfo, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sound == nil {
		s.sound = make(map[uint64]soundFile)
	}
	maps.DeleteFunc(s.sound, func(_ uint64, f soundFile) bool { return time.Since(f.at) >= soundFor })
	s.sound[info.first] = soundFile{st, at}
}

// diskDamage is something on the disk that is not what was written.
type diskDamage struct {
	err     error
	tried   time.Time    // when mending was last tried, of a segment
	segment *segmentInfo // nil: not a segment
	seen    time.Time    // when it was last found
}

// mending is a repair under way.
type mending struct {
	done chan struct{}
	err  error // once done is closed
}

// damagedFile tells whether err means that a file is not what was written, or
// cannot be read at all, or that an object in its place is so.
func damagedFile(err error) bool {
	return errors.Is(err, errCorrupt) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EIO) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errArchiveCorrupt)
}

// noteDamage remembers what is damaged until it is mended.
func (s *store) noteDamage(what string, d diskDamage) {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	if _, known := s.scrub.damages[what]; !known {
		s.o.logger.Error("damaged on disk", "what", what, "error", d.err)
		s.o.metrics.scrub.found.add(1)
	}
	if s.scrub.damages == nil {
		s.scrub.damages = make(map[string]diskDamage)
	}
	d.seen = time.Now()
	s.scrub.damages[what] = d
	if d.segment != nil {
		delete(s.scrub.sound, d.segment.first)
	}
	s.o.metrics.scrub.damaged.set(int64(len(s.scrub.damages)))
}

// noteMended forgets a damage.
func (s *store) noteMended(what string) {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	if _, known := s.scrub.damages[what]; known {
		s.o.logger.Warn("mended", "what", what)
		s.o.metrics.scrub.repaired.add(1)
	}
	delete(s.scrub.damages, what)
	s.o.metrics.scrub.damaged.set(int64(len(s.scrub.damages)))
}

// noteGone forgets what a pass that began at start has not found again: a run
// was merged away, a tile was built again by who read it.
func (s *store) noteGone(start time.Time) {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	maps.DeleteFunc(s.scrub.damages, func(_ string, d diskDamage) bool { return d.segment == nil && d.seen.Before(start) })
	s.o.metrics.scrub.damaged.set(int64(len(s.scrub.damages)))
}

// damaged returns what is damaged now, in order of name.
func (s *store) damaged() []string {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	return slices.Sorted(maps.Keys(s.scrub.damages))
}

// mend gets a damaged segment file again, once for all who ask, and waits a
// little for it. A try that failed is not repeated at once.
func (s *store) mend(info segmentInfo) error {
	s.scrub.mu.Lock()
	if d := s.scrub.damages[segmentName(info)]; !d.tried.IsZero() && time.Since(d.tried) < s.mendEvery(info) {
		s.scrub.mu.Unlock()
		return d.err
	}
	m := s.scrub.mending[info.first]
	if m == nil && s.scrub.closed {
		s.scrub.mu.Unlock()
		return errors.New("store is closed")
	}
	if m == nil {
		m = &mending{done: make(chan struct{})}
		if s.scrub.mending == nil {
			s.scrub.mending = make(map[uint64]*mending)
		}
		s.scrub.mending[info.first] = m
		s.done.Go(func() { s.mendNow(info, m) })
	}
	s.scrub.mu.Unlock()
	select {
	case <-m.done:
		return m.err
	case <-time.After(mendWait):
		return errors.New("it is still being fetched")
	}
}

// mendEvery returns how long to wait between two tries to mend a segment.
func (s *store) mendEvery(info segmentInfo) time.Duration {
	if s.isCold(info.first) {
		return coldEvery
	}
	return mendEvery
}

// mendNow is one repair.
func (s *store) mendNow(info segmentInfo, m *mending) {
	m.err = s.mendSegment(info)
	s.scrub.mu.Lock()
	delete(s.scrub.mending, info.first)
	s.scrub.mu.Unlock()
	close(m.done)
}

// segmentName names a segment among the damages.
func segmentName(info segmentInfo) string { return "segment " + info.id() }

// mendSegment makes the file of a segment what the manifest says. The damaged
// file stays until the new one, checked, takes its name in one step; who has
// the old one open keeps it, and sees its damage by its checksums.
func (s *store) mendSegment(info segmentInfo) error {
	if s.isCold(info.first) {
		return s.mendCold(info)
	}
	err := s.checkSum(info, func(int) error { return s.running() })
	if damagedFile(err) {
		s.noteDamage(segmentName(info), diskDamage{err: err, segment: &info})
		if rerr := s.fetchAgain(info); rerr != nil {
			err = fmt.Errorf("%w; fetching it again: %w", err, rerr)
			s.noteDamage(segmentName(info), diskDamage{err: err, segment: &info, tried: time.Now()})
			return err
		}
		err = nil
	}
	if err == nil {
		s.files.drop(info.first)
		s.noteMended(segmentName(info))
	}
	return err
}

// fetchAgain makes the file of a segment again, from another node or else from
// its object.
func (s *store) fetchAgain(info segmentInfo) error {
	err := errors.New("this node stands alone")
	if s.o.refetch != nil {
		err = s.o.refetch(info, func(body func(io.Writer) error) error { return s.writeFetched(info, body) })
	}
	if object := s.objectOf(info); err != nil && object != "" && s.o.objects != nil {
		info.object = object
		if oerr := s.writeFetched(info, func(w io.Writer) error { return s.copyObject(info, 0, w) }); oerr != nil {
			return fmt.Errorf("%w; from the bucket: %w", err, oerr)
		}
		return nil
	}
	return err
}

// mendCold finds the object of a cold segment packed in another way, gets the file
// from another node, or finds the object sound.
func (s *store) mendCold(info segmentInfo) error {
	if s.repacked(info) {
		s.noteMended(segmentName(info))
		return nil
	}
	err := s.refetchCold(info, true)
	if err != nil {
		cerr := s.copyCold(info, io.Discard)
		if errors.Is(cerr, errArchiveCorrupt) {
			err = fmt.Errorf("%w; fetching it from another node: %w", cerr, err)
			s.noteDamage(segmentName(info), diskDamage{err: err, segment: &info, tried: time.Now()})
		}
		if cerr != nil {
			return err
		}
	}
	s.noteMended(segmentName(info))
	return nil
}

// running returns an error once the store closes.
func (s *store) running() error {
	if s.closed.Load() {
		return context.Canceled
	}
	return nil
}

// checkSum reads the whole file of a segment and compares its SHA-256. read is
// told of all bytes, and may end it.
func (s *store) checkSum(info segmentInfo, read func(n int) error) error {
	f, err := os.Open(s.segmentPath(info))
	if err != nil {
		return err
	}
	defer f.Close()
	return checkSumOf(f, info, read)
}

// checkSumOf is checkSum of an open file.
func checkSumOf(f io.ReaderAt, info segmentInfo, read func(n int) error) error {
	sum, n := sha256.New(), uint64(0)
	for buf := make([]byte, 64<<10); ; {
		k, err := f.ReadAt(buf, int64(n))
		sum.Write(buf[:k])
		n += uint64(k)
		if err == io.EOF {
			break
		}
		if err = errors.Join(err, read(k)); err != nil {
			return fmt.Errorf("segment %s: %w", info.id(), err)
		}
	}
	if got := hash(sum.Sum(nil)); got != info.sum || n != info.size {
		return fmt.Errorf("segment %s: %w: file has %d bytes with SHA-256 %s, the manifest says %d with %s", info.id(), errCorrupt, n, got, info.size, info.sum)
	}
	return nil
}

// mendKnown tries again to mend the segments that are known to be damaged.
func (s *store) mendKnown() {
	s.scrub.mu.Lock()
	known := slices.Collect(maps.Values(s.scrub.damages))
	s.scrub.mu.Unlock()
	for _, d := range known {
		if d.segment != nil {
			s.mend(*d.segment)
		}
	}
}

// mendRun builds a damaged run again and tells whether it could.
func (s *store) mendRun(info runInfo, err error) bool {
	what := "run " + info.name()
	s.noteDamage(what, diskDamage{err: err})
	if rerr := s.repairRun(info); rerr != nil {
		s.o.logger.Error("building a run of the index again", "run", info.name(), "error", rerr)
		return false
	}
	s.noteMended(what)
	return true
}

// mendTile writes a damaged tile of ledger.db again and returns it.
func (s *store) mendTile(id tileID, cause error) (*tile, error) {
	if !errors.Is(cause, errCorrupt) {
		return nil, cause
	}
	s.lists.Lock() // D stays, and with it the width of the last tile
	defer s.lists.Unlock()
	if count := s.durable.Load().at.size >> (tileHeight * id.level); id.width != int(min(count-id.index*tileWidth, tileWidth)) {
		return nil, fmt.Errorf("tile %s has grown meanwhile", id.path())
	}
	what := "tile " + id.path()
	s.noteDamage(what, diskDamage{err: cause})
	t, err := s.rebuildTile(s.recentTiles(), id, cause)
	if err != nil {
		return nil, fmt.Errorf("building a tile again: %v", err)
	}
	s.noteMended(what)
	return t, nil
}

// storageState is what /health says of the disk's contents.
func (s *store) storageState() string {
	if bad := s.damaged(); len(bad) > 0 {
		return "damaged: " + strings.Join(bad, ", ")
	}
	return "ok"
}
