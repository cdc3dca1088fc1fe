package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// The scrub reads everything on the disk again, round and round, so that what
// rots is found while others still have it: segment files (SHA-256, every
// checksum, every leaf, the root), the tiles (against the leaves, and each level
// against the one below), the key index (every block; a sample of its positions
// against the records) and ledger.db (the checksum of every value). What is in the
// bucket only is not here.

const (
	scrubPause  = time.Minute // from the end of a pass to the next
	scrubSample = 64          // one entry in so many is looked up in the index
)

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

// scrubPass reads everything once, the oldest first. It returns an error only
// when ctx ends.
func (s *store) scrubPass(ctx context.Context, p *pace) error {
	start := time.Now()
	for _, info := range s.durable.Load().segments {
		if s.isCold(info.first) {
			s.scrubCold(info)
			continue
		}
		err := s.scrubSegment(ctx, p, info)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case s.isCold(info.first): // since a moment ago
		case errors.Is(err, errNotInIndex): // told already
		case errors.Is(err, errAsWritten):
			s.noteDamage("contents of "+segmentName(info), diskDamage{err: err})
		case damagedFile(err):
			s.noteDamage(segmentName(info), diskDamage{err: err, segment: &info})
			s.mend(info)
		case err != nil: // such as too many open files
			s.o.logger.Warn("scrub", "segment", info.id(), "error", err)
		}
	}
	if err := s.scrubTiles(ctx, p); err != nil {
		return err
	}
	for _, info := range s.index.runs() {
		if s.scrubRun(ctx, p, info); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := s.scrubLedger(); err != nil {
		s.noteDamage(ledgerName, diskDamage{err: err})
	}
	s.noteGone(start)
	return ctx.Err()
}

// scrubCold checks what is here of a cold segment; each byte that is in the bucket
// is checked when it is read.
func (s *store) scrubCold(info segmentInfo) {
	_, err := s.ledger.coldRecord(info)
	if !errors.Is(err, errCorrupt) || !s.isCold(info.first) {
		return
	}
	what := "record of cold " + segmentName(info)
	s.noteDamage(what, diskDamage{err: err})
	if _, err := s.remakeCold(info, err); err != nil {
		s.o.logger.Warn("scrub", "segment", info.id(), "error", err)
		return
	}
	s.noteMended(what)
}

var (
	// errNotInIndex says that the key index does not have an entry where it is.
	errNotInIndex = errors.New("index does not match the segment")
	// errAsWritten says that a file is wrong although it is what was written:
	// no other node has a better one.
	errAsWritten = errors.New("the file is wrong as it was written")
)

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
	var leaves tileChecker
	root, err := f.records(true, func(r *record, pl place) error {
		if err := leaves.check(s, 0, r.header.seq, leafHash(r.raw)); err != nil {
			return err
		}
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
	if errors.Is(err, errCorrupt) && !errors.Is(err, errNotInIndex) {
		// Was it so when its sum was right, or did it change since?
		if changed := checkSumOf(f.src, info, func(n int) error { return p.take(ctx, n) }); changed != nil {
			return changed
		}
		return fmt.Errorf("%w: %w", errAsWritten, err)
	}
	if err == nil {
		s.noteMended(segmentName(info))
	}
	return err
}

// tileChecker compares the hashes of one level, in order, with the tiles in ledger.db.
type tileChecker struct {
	id   tileID
	tile *tile // nil before the first
}

// check compares hash i of a level. A tile that is wrong is built again; it
// returns an error only when that cannot be done for now.
func (c *tileChecker) check(s *store, level int, i uint64, want hash) error {
	if c.tile == nil || c.id.index != i/tileWidth {
		count := s.durable.Load().at.size >> (tileHeight * level)
		c.id = tileID{level, i / tileWidth, int(min(count-i/tileWidth*tileWidth, tileWidth))}
		var err error
		if c.tile, err = s.ledger.tile(c.id); err != nil {
			c.tile, err = s.mendTile(c.id, err)
		}
		if err != nil {
			return err
		}
	}
	if got := c.tile.node(0, i%tileWidth); got != want {
		var err error
		c.tile, err = s.mendTile(c.id, fmt.Errorf("tile %s: %w: hash %d is %s, want %s", c.id.path(), errCorrupt, i, got, want))
		return err
	}
	return nil
}

// scrubTiles compares each level of tiles with the one below, level 0 excepted.
func (s *store) scrubTiles(ctx context.Context, p *pace) error {
	size := s.durable.Load().at.size
	for level := 1; size>>(tileHeight*level) > 0; level++ {
		var c tileChecker
		for i := range size >> (tileHeight * level) {
			below := tileID{level - 1, i, tileWidth}
			t, err := s.ledger.tile(below)
			if err != nil {
				t, err = s.mendTile(below, err)
			}
			if err == nil {
				err = c.check(s, level, i, t.root())
			}
			if err != nil {
				s.o.logger.Warn("scrub", "level", level, "error", err)
			}
			if err := p.take(ctx, tileSize); err != nil {
				return err
			}
		}
	}
	return nil
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

// scrubLedger checks every value of ledger.db.
func (s *store) scrubLedger() (err error) {
	defer func() {
		if r := recover(); r != nil { // bbolt panics on pages that make no sense
			err = fmt.Errorf("%w: reading it: %v", errCorrupt, r)
		}
	}()
	return s.ledger.db.View(func(tx *bbolt.Tx) error { return new(durableState).read(tx) })
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
