package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The key index maps every version of every key that was ever sealed to its
// place. It is a small LSM tree of positions: each sealed segment gives one
// run of level 0, and eight adjacent runs of a level merge into one of the
// next, so that a record is rewritten about log8(segments) times and a look-up
// asks at most about 7 runs a level, each behind its filter. Nothing is ever
// removed from it. Everything in it can be rebuilt from the segments.
//
// The list of runs belongs to the store, which commits it in ledger.db:
//
//	writeRun                          run durable, in no list
//	list committed in ledger.db       from here a restart knows it
//	add or replace                    from here readers see it
//	remove (the runs it replaced)     readers that hold them keep reading
//
// A crash between two steps leaves files no list names; see removeLeftovers.

// mergeWidth is how many runs of one level become one of the next.
const mergeWidth = 8

// keyIndex is the open index.
type keyIndex struct {
	dir     string
	log     *slog.Logger
	cursors sync.Pool // of *runCursor, for look-ups

	mu   sync.Mutex             // held while list is replaced
	list atomic.Pointer[[]*run] // oldest first, adjacent; never edited, so readers need no lock
}

// openIndex opens the given runs, oldest first, and removes what earlier
// crashes left in dir. If a run is damaged or missing the error is a *runError
// that wraps errCorrupt: rebuildRun, then open again.
func openIndex(dir string, runs []runInfo, log *slog.Logger) (*keyIndex, error) {
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = syncRunDir(filepath.Dir(dir))
	}
	if err != nil {
		return nil, fmt.Errorf("opening index: %w", err)
	}
	x := &keyIndex{dir: dir, log: log}
	x.cursors.New = func() any { return new(runCursor) }
	x.list.Store(new([]*run))
	for _, info := range runs {
		if err := x.add(info); err != nil {
			x.close()
			return nil, err
		}
	}
	if err := x.removeLeftovers(); err != nil {
		x.close()
		return nil, fmt.Errorf("opening index: %w", err)
	}
	return x, nil
}

// close closes all files; look-ups that need one fail from then on.
func (x *keyIndex) close() {
	for _, r := range *x.list.Load() {
		r.src.(*os.File).Close()
	}
}

// removeLeftovers removes unfinished files, and runs in the range of the list
// that the list does not name: a crash came before a merged run was committed,
// or before the runs it replaced were removed. A run beyond the list stays: its
// segment is about to be sealed again, which writes the same bytes.
func (x *keyIndex) removeLeftovers() error {
	files, err := os.ReadDir(x.dir)
	if err != nil {
		return err
	}
	listed := make(map[string]bool)
	var first, last uint64
	if runs := x.runs(); len(runs) > 0 {
		first, last = runs[0].first, runs[len(runs)-1].last
		for _, info := range runs {
			listed[info.name()] = true
		}
	}
	for _, f := range files {
		info, isRun := parseRunName(f.Name())
		superseded := isRun && len(listed) > 0 && !listed[f.Name()] && info.first >= first && info.last <= last
		if !superseded && !strings.HasSuffix(f.Name(), tmpSuffix) {
			continue
		}
		x.log.Info("removing leftover of the index", "file", f.Name())
		if err := os.RemoveAll(filepath.Join(x.dir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}

// runs returns the runs in use, oldest first.
func (x *keyIndex) runs() []runInfo {
	list := *x.list.Load()
	infos := make([]runInfo, len(list))
	for i, r := range list {
		infos[i] = r.info
	}
	return infos
}

// add opens info's run and makes it the newest.
func (x *keyIndex) add(info runInfo) error {
	r, err := openRun(x.dir, info)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	list := *x.list.Load()
	if n := len(list); n > 0 && list[n-1].info.last+1 != info.first {
		return fmt.Errorf("index run %s does not follow %s", info.name(), list[n-1].info.name())
	}
	x.publish(list, []*run{r}, nil)
	return nil
}

// publish makes head, middle and tail the list. x.mu must be held.
func (x *keyIndex) publish(head, middle, tail []*run) {
	list := make([]*run, 0, len(head)+len(middle)+len(tail))
	list = append(append(append(list, head...), middle...), tail...)
	x.list.Store(&list)
}

// replace opens merged and puts it in the place of old, whose seqs it covers.
// The files of old are closed when the last reader has let go of them.
func (x *keyIndex) replace(old []runInfo, merged runInfo) error {
	r, err := openRun(x.dir, merged)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	list := *x.list.Load()
	at, err := findRuns(list, old)
	if err != nil {
		return err
	}
	end := at + len(old)
	if merged.first != list[at].info.first || merged.last != list[end-1].info.last {
		return fmt.Errorf("index run %s does not cover the %d runs it replaces", merged.name(), len(old))
	}
	x.publish(list[:at], []*run{r}, list[end:])
	return nil
}

// swap puts a run that was rebuilt in the place of the damaged one.
func (x *keyIndex) swap(rebuilt runInfo) error { return x.replace([]runInfo{rebuilt}, rebuilt) }

// findRuns returns where in list the given runs stand, one after the other.
func findRuns(list []*run, infos []runInfo) (int, error) {
	for at := range len(list) - len(infos) + 1 {
		n := 0
		for n < len(infos) && list[at+n].info.sameRange(infos[n]) {
			n++
		}
		if n > 0 && n == len(infos) {
			return at, nil
		}
	}
	return 0, fmt.Errorf("index has no such %d adjacent runs", len(infos))
}

// remove removes the files of runs that are in no list any more.
func (x *keyIndex) remove(old []runInfo) error {
	for _, info := range old {
		if err := os.Remove(filepath.Join(x.dir, info.name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing merged run: %w", err)
		}
	}
	return nil
}

// latest returns the newest version of key.
func (x *keyIndex) latest(key []byte) (position, bool, error) {
	return x.find(newestOf(key))
}

// version returns version v of key.
func (x *keyIndex) version(key []byte, v uint64) (position, bool, error) {
	p, ok, err := x.find(bound{key, math.MaxUint64, v})
	return p, ok && p.version == v, err
}

// before returns the newest version of key whose seq is at most seq.
func (x *keyIndex) before(key []byte, seq uint64) (position, bool, error) {
	return x.find(bound{key, seq, math.MaxUint64})
}

// find returns the newest version of b.key after b. The first run that has one
// has the newest, because all seqs and versions of older runs are lower.
func (x *keyIndex) find(b bound) (position, bool, error) {
	c := x.cursors.Get().(*runCursor)
	defer x.release(c)
	h := hashKey(b.key)
	list := *x.list.Load()
	for i := len(list) - 1; i >= 0; i-- {
		r := list[i]
		if r.info.first > b.seq || !r.filter.has(h) {
			continue
		}
		c.reset(r)
		ok, err := c.seek(b)
		if err != nil {
			return position{}, false, err
		}
		if ok && bytes.Equal(c.key, b.key) {
			return c.position, true, nil
		}
	}
	return position{}, false, nil
}

// release gives a cursor back, without the run it would keep open.
func (x *keyIndex) release(c *runCursor) {
	c.reset(nil)
	x.cursors.Put(c)
}

// versions returns the versions of key whose seq is below before, newest
// first, at most limit.
func (x *keyIndex) versions(key []byte, before uint64, limit int) ([]position, error) {
	c := x.cursors.Get().(*runCursor)
	defer x.release(c)
	h := hashKey(key)
	list := *x.list.Load()
	var found []position
	for i := len(list) - 1; i >= 0 && len(found) < limit; i-- {
		r := list[i]
		if r.info.first >= before || !r.filter.has(h) {
			continue
		}
		c.reset(r)
		ok, err := c.seek(bound{key, before - 1, math.MaxUint64})
		for ; ok && err == nil && bytes.Equal(c.key, key) && len(found) < limit; ok, err = c.next() {
			found = append(found, c.position)
		}
		if err != nil {
			return nil, err
		}
		if n := len(found); n > 0 && found[n-1].version == 1 {
			break // older runs cannot have it
		}
	}
	return found, nil
}

// runMerge walks over the records of several runs in the order of the format.
type runMerge struct {
	heap []*runCursor // those that stand on a record; the first one's comes first
}

// newRunMerge returns a merge that stands on the first record after b.
func newRunMerge(runs []*run, b bound) (*runMerge, error) {
	m := new(runMerge)
	for _, r := range runs {
		c := newRunCursor(r)
		ok, err := c.seek(b)
		if err != nil {
			return nil, err
		}
		if ok {
			m.heap = append(m.heap, c)
		}
	}
	for i := len(m.heap)/2 - 1; i >= 0; i-- {
		m.down(i)
	}
	return m, nil
}

// down restores the order of the heap below i.
func (m *runMerge) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(m.heap); child++ {
			if m.heap[child].comesBefore(m.heap[least]) {
				least = child
			}
		}
		if least == i {
			return
		}
		m.heap[i], m.heap[least] = m.heap[least], m.heap[i]
		i = least
	}
}

// comesBefore reports whether c's record comes before o's.
func (c *runCursor) comesBefore(o *runCursor) bool {
	d := bytes.Compare(c.key, o.key)
	return d < 0 || d == 0 && c.seq > o.seq
}

// moved puts the first cursor, which was moved with this result, in its place.
func (m *runMerge) moved(ok bool, err error) error {
	if err != nil {
		return err
	}
	if !ok {
		last := len(m.heap) - 1
		m.heap[0], m.heap[last] = m.heap[last], nil
		m.heap = m.heap[:last]
	}
	m.down(0)
	return nil
}

// indexIterator walks over keys in order. It sees the runs that were in use
// when it was made, and needs no closing.
type indexIterator struct {
	merge   *runMerge
	key     []byte // the last one returned
	started bool
	failed  error
}

// scan returns an iterator over the keys not less than from.
func (x *keyIndex) scan(from []byte) *indexIterator {
	m, err := newRunMerge(*x.list.Load(), newestOf(from))
	return &indexIterator{merge: m, failed: err}
}

// next returns the next key and its newest version, tombstone or not; false
// means the end, or err. The key is valid until the next call.
func (it *indexIterator) next() ([]byte, position, bool) {
	if it.started && it.failed == nil {
		it.failed = it.skipKey()
	}
	if it.failed != nil || len(it.merge.heap) == 0 {
		return nil, position{}, false
	}
	top := it.merge.heap[0]
	it.started = true
	it.key = append(it.key[:0], top.key...)
	return it.key, top.position, true
}

// skipKey moves past all versions of the key last returned.
func (it *indexIterator) skipKey() error {
	m := it.merge
	for len(m.heap) > 0 && bytes.Equal(m.heap[0].key, it.key) {
		if err := m.moved(m.heap[0].skipKey(it.key)); err != nil {
			return err
		}
	}
	return nil
}

// err returns what ended the iteration early.
func (it *indexIterator) err() error { return it.failed }

// nextMerge returns the oldest eight runs of the lowest level that has so
// many, and the level of the run they are to become.
func (x *keyIndex) nextMerge() (runs []runInfo, level int, ok bool) {
	all := x.runs()
	for end := len(all); end > 0; {
		start := end - 1
		for start > 0 && all[start-1].level == all[end-1].level {
			start--
		}
		if end-start >= mergeWidth {
			return all[start : start+mergeWidth], all[start].level + 1, true
		}
		end = start
	}
	return nil, 0, false
}

// merge writes the given adjacent runs as one of the given level, durably,
// and leaves the list as it is. It works at most half of the time. If ctx ends
// nothing is left.
func (x *keyIndex) merge(ctx context.Context, level int, runs []runInfo) (runInfo, error) {
	p := pacer{turn: time.Now()}
	return x.mergeInto(ctx, x.dir, level, runs, p.rest)
}

// mergeInto writes the given adjacent runs as one into dir, and calls pause
// every few records.
func (x *keyIndex) mergeInto(ctx context.Context, dir string, level int, infos []runInfo, pause func(context.Context) error) (runInfo, error) {
	list := *x.list.Load()
	at, err := findRuns(list, infos)
	if err != nil {
		return runInfo{}, err
	}
	runs := list[at : at+len(infos)]
	first, last := runs[0].info.first, runs[len(runs)-1].info.last
	return writeRun(dir, level, first, last, mergedRecords(ctx, runs, pause))
}

// mergedRecords yields all records of runs in the order of the format.
func mergedRecords(ctx context.Context, runs []*run, pause func(context.Context) error) iter.Seq2[indexRecord, error] {
	return func(yield func(indexRecord, error) bool) {
		m, err := newRunMerge(runs, bound{})
		for n := 0; err == nil && len(m.heap) > 0; n++ {
			if n%1024 == 0 {
				if err = pause(ctx); err != nil {
					break
				}
			}
			top := m.heap[0]
			if !yield(top.indexRecord, nil) {
				return
			}
			err = m.moved(top.next())
		}
		if err != nil {
			yield(indexRecord{}, err)
		}
	}
}

// all yields every record of the index in the order of the format, for a scrub.
// It reads and checks every block, and works at most half of the time.
func (x *keyIndex) all(ctx context.Context) iter.Seq2[indexRecord, error] {
	p := pacer{turn: time.Now()}
	return mergedRecords(ctx, *x.list.Load(), p.rest)
}

// pacer makes background work rest as long as it worked, in turns of about a
// millisecond, so that on few cores requests do not queue behind a merge.
type pacer struct{ turn time.Time }

// pacerLongest is the longest rest: a turn that took longer waited for the disk.
const pacerLongest = 50 * time.Millisecond

// rest returns ctx's error when ctx ends.
func (p *pacer) rest(ctx context.Context) error { return p.restFor(ctx, 1) }

// restFor rests for so many times as long as the work took.
func (p *pacer) restFor(ctx context.Context, times float64) error {
	worked := time.Since(p.turn)
	if worked >= time.Millisecond {
		select {
		case <-ctx.Done():
		case <-time.After(min(time.Duration(times*float64(worked)), pacerLongest)):
		}
		p.turn = time.Now()
	}
	return ctx.Err()
}

// runPart is the part of a run that comes from one segment.
type runPart struct {
	first, last uint64
	records     iter.Seq2[indexRecord, error] // as for writeRun
}

// rebuildRun writes the damaged run again, from its parts, oldest first, and
// returns its new description: the same, unless this program writes other
// bytes than the one that wrote it. The parts pass through an index of their
// own in a scratch directory, merged as always, so that memory and open files
// do not grow with the run. The new file takes the place of the damaged one
// when it is whole; a crash leaves the damaged one and a leftover.
func rebuildRun(ctx context.Context, dir string, damaged runInfo, parts iter.Seq2[runPart, error], log *slog.Logger) (runInfo, error) {
	scratch := filepath.Join(dir, damaged.name()+".rebuild"+tmpSuffix)
	if err := os.RemoveAll(scratch); err != nil {
		return runInfo{}, fmt.Errorf("rebuilding index run: %w", err)
	}
	defer os.RemoveAll(scratch)
	x, err := openIndex(scratch, nil, log)
	if err != nil {
		return runInfo{}, err
	}
	defer x.close()
	for p, err := range parts {
		if err == nil {
			err = x.grow(ctx, p)
		}
		if err != nil {
			return runInfo{}, fmt.Errorf("rebuilding index run %s: %w", damaged.name(), err)
		}
	}
	runs := x.runs()
	if n := len(runs); n == 0 || runs[0].first != damaged.first || runs[n-1].last != damaged.last {
		return runInfo{}, fmt.Errorf("rebuilding index run %s: %d segments do not cover it", damaged.name(), n)
	}
	return x.mergeInto(ctx, dir, damaged.level, runs, context.Context.Err)
}

// grow adds p to the scratch index and merges until no level is full.
func (x *keyIndex) grow(ctx context.Context, p runPart) error {
	info, err := writeRun(x.dir, 0, p.first, p.last, p.records)
	if err != nil {
		return err
	}
	if err := x.add(info); err != nil {
		return err
	}
	for old, level, ok := x.nextMerge(); ok; old, level, ok = x.nextMerge() {
		merged, err := x.mergeInto(ctx, x.dir, level, old, context.Context.Err)
		if err != nil {
			return err
		}
		if err := x.replace(old, merged); err != nil {
			return err
		}
		if err := x.remove(old); err != nil {
			return err
		}
	}
	return nil
}
