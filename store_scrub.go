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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

// The scrub reads everything on the disk again, round and round, so that what
// rots is found while others still have it: segment files (SHA-256, every
// checksum, every leaf, the root), the key index (every block; a sample of its
// positions against the records) and ledger.db (the checksum of every value).
// A damaged segment comes again from another node, a damaged run is built again
// from its segments. What cannot be mended is told: a log line, a metric,
// /health; reads of it answer that it is corrupt, never anything else.
//
// Reads that meet a damaged segment start the same repair and wait a little for it.

const (
	scrubPause  = time.Minute     // from the end of a pass to the next
	scrubSample = 64              // one entry in so many is looked up in the index
	mendWait    = 5 * time.Second // for a reader to get a segment that is being fetched
	mendEvery   = 5 * time.Second // between two tries to mend the same thing
)

// scrubState is what the store knows of its damages.
type scrubState struct {
	mu      sync.Mutex
	damages map[string]diskDamage // by what is damaged, for what is not mended yet
	mending map[uint64]*mending
	closed  bool // no more repairs start
}

// diskDamage is something on the disk that is not what was written.
type diskDamage struct {
	err     error
	tried   time.Time // when mending was last tried
	segment *segmentInfo
}

// mending is a repair under way.
type mending struct {
	done chan struct{}
	err  error // once done is closed
}

// damagedFile tells whether err means that a file is not what was written, or
// cannot be read at all.
func damagedFile(err error) bool {
	return errors.Is(err, errCorrupt) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EIO) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
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
	s.scrub.damages[what] = d
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
	if d := s.scrub.damages[segmentName(info)]; !d.tried.IsZero() && time.Since(d.tried) < mendEvery {
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
	err := s.checkSum(info, func(int) error { return s.running() })
	if damagedFile(err) {
		s.noteDamage(segmentName(info), diskDamage{err: err, segment: &info})
		rerr := errors.New("this node stands alone")
		if s.o.refetch != nil {
			rerr = s.o.refetch(info, func(body func(io.Writer) error) error { return s.writeFetched(info, body) })
		}
		if rerr != nil {
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
	sum, n := sha256.New(), uint64(0)
	for buf := make([]byte, 64<<10); ; {
		k, err := f.Read(buf)
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

// scrubLoop mends what is known to be damaged and, at scrubRate, looks for more.
func (s *store) scrubLoop() {
	ctx, cancel := context.WithCancel(context.Background())
	s.done.Go(func() {
		<-s.quit
		cancel()
	})
	p := &pace{rate: s.o.scrubRate, read: &s.o.metrics.scrub.bytes}
	for next := time.Now(); ; {
		s.mendKnown()
		if s.o.scrubRate > 0 && !time.Now().Before(next) {
			if s.scrubPass(ctx, p) == nil {
				s.o.metrics.scrub.passes.add(1)
				s.o.metrics.scrub.lastPass.set(time.Now().Unix())
			}
			next = time.Now().Add(s.o.scrubPause)
		}
		select {
		case <-s.quit:
			return
		case <-time.After(min(time.Second, s.o.scrubPause)):
		}
	}
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

// scrubPass reads everything once, the oldest first. It returns an error only
// when ctx ends.
func (s *store) scrubPass(ctx context.Context, p *pace) error {
	for _, info := range s.durable.Load().segments {
		err := s.scrubSegment(ctx, p, info)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errNotInIndex): // told already
		case damagedFile(err):
			s.noteDamage(segmentName(info), diskDamage{err: err, segment: &info})
			s.mend(info)
		case err != nil: // such as too many open files
			s.o.logger.Warn("scrub", "segment", info.id(), "error", err)
		}
	}
	for _, info := range s.index.runs() {
		if s.scrubRun(ctx, p, info); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := s.scrubLedger(); err != nil {
		s.noteDamage(ledgerName, diskDamage{err: err})
	} else {
		s.noteMended(ledgerName)
	}
	return ctx.Err()
}

// errNotInIndex says that the key index does not have an entry where it is.
var errNotInIndex = errors.New("index does not match the segment")

// scrubSegment checks a segment file, and on the way that the index finds its entries.
func (s *store) scrubSegment(ctx context.Context, p *pace, info segmentInfo) error {
	if err := s.checkSum(info, func(n int) error { return p.take(ctx, n) }); err != nil {
		return err
	}
	f, err := s.openSegment(info)
	if err != nil {
		return err
	}
	defer f.close()
	root, err := f.records(true, func(r *record, pl place) error {
		if r.header.seq%scrubSample == 0 {
			if err := s.scrubPosition(&r.header, pl); err != nil {
				return err
			}
		}
		return p.take(ctx, len(r.raw)+int(r.header.size))
	})
	if err == nil && root != info.root {
		err = fmt.Errorf("segment %s: %w: its records give root %s", info.id(), errCorrupt, root)
	}
	if err == nil {
		s.noteMended(segmentName(info))
	}
	return err
}

// scrubPosition compares what the index says of an entry with where it is. A
// run that is wrong is built again.
func (s *store) scrubPosition(h *header, pl place) error {
	p, ok, err := s.index.version(h.key, h.version)
	if err == nil && ok && p.seq == h.seq && p.offset == pl.offset && p.length == pl.length {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%w: entry %d is found at %d+%d of entry %d, it is at %d+%d", errCorrupt, h.seq, p.offset, p.length, p.seq, pl.offset, pl.length)
	}
	runs := s.index.runs()
	k := slices.IndexFunc(runs, func(i runInfo) bool { return i.first <= h.seq && h.seq <= i.last })
	if k < 0 || !s.mendRun(runs[k], err) {
		return fmt.Errorf("%w: %w", errNotInIndex, err)
	}
	return nil
}

// scrubRun reads every block of a run from its file.
func (s *store) scrubRun(ctx context.Context, p *pace, info runInfo) {
	err := s.readRun(ctx, p, info)
	if ctx.Err() != nil || !slices.Contains(s.index.runs(), info) {
		return // merged meanwhile
	}
	switch {
	case errors.Is(err, errCorrupt):
		s.mendRun(info, err)
	case err != nil:
		s.o.logger.Warn("scrub", "run", info.name(), "error", err)
	default:
		s.noteMended("run " + info.name())
	}
}

// readRun reads all of a run's file.
func (s *store) readRun(ctx context.Context, p *pace, info runInfo) error {
	r, err := openRun(filepath.Join(s.o.dir, indexDir), info)
	if err != nil {
		return err
	}
	defer r.src.(*os.File).Close()
	each := int(uint64(info.size) / info.entries())
	for _, err := range mergedRecords(ctx, []*run{r}, context.Context.Err) {
		if err == nil {
			err = p.take(ctx, each)
		}
		if err != nil {
			return err
		}
	}
	return nil
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

// scrubLedger checks every value of ledger.db.
func (s *store) scrubLedger() (err error) {
	defer func() {
		if r := recover(); r != nil { // bbolt panics on pages that make no sense
			err = fmt.Errorf("%w: reading it: %v", errCorrupt, r)
		}
	}()
	return s.ledger.db.View(func(tx *bbolt.Tx) error { return new(durableState).read(tx) })
}

// storageState is what /health says of the disk's contents.
func (s *store) storageState() string {
	if bad := s.damaged(); len(bad) > 0 {
		return "damaged: " + strings.Join(bad, ", ")
	}
	return "ok"
}

// pace lets a reader have rate bytes a second. One goroutine uses it.
type pace struct {
	rate int64
	read *counter
	due  time.Time // when what was read so far may have been read
	owed int
}

// take waits until n more bytes may be read. It returns ctx's error when ctx ends.
func (p *pace) take(ctx context.Context, n int) error {
	if p.owed += n; p.owed < 64<<10 && int64(p.owed) < p.rate/10 {
		return nil
	}
	p.read.add(uint64(p.owed))
	now := time.Now()
	if p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(time.Duration(float64(p.owed) / float64(p.rate) * float64(time.Second)))
	p.owed = 0
	select {
	case <-ctx.Done():
	case <-time.After(p.due.Sub(now)):
	}
	return ctx.Err()
}
