package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// store is the node's disk and what is not on it yet. The apply goroutine
// grows the pending segment and seals it (store_append.go); a background
// goroutine writes sealed segments and moves the durable checkpoint D
// (store_seal.go); anybody reads (store_read.go).
//
// Below data_dir it owns
//
//	segments/   sealed segment files (segment_file.go)
//	index/      runs of the key index (store_index.go)
//	ledger.db   bbolt: D, the lists of segments and runs (store_ledger.go) and
//	            the tree over all entries (store_tree.go)
//
// What is in memory only, the pending and the sealing segments, comes back by
// replaying the Raft log from D.
type store struct {
	// immutable after open
	o      storeOptions
	ledger *ledgerFile
	index  *keyIndex

	manifest atomic.Pointer[manifest]     // as of the last applied log entry
	durable  atomic.Pointer[durableState] // what a restart would find

	// mu guards the entries that are in memory. Readers hold it to look
	// something up there, the apply goroutine to publish, never across disk or
	// network; so a reader sees all entries of a published batch or none.
	mu       sync.RWMutex
	pending  *pendingSegment
	sealing  []*sealedSegment // closed, not yet on disk; oldest first
	waiters  []sizeWaiter
	archived []uint64    // first entries of the segments archived since the last seal
	recent   recentTiles // tiles of the tree over all published entries

	tree     tileTree // grows recent; owned by the apply goroutine
	ahead    treeAhead
	tiles    tileCache
	files    fileCache
	cold     coldState
	scrub    scrubState
	repairs  sync.Mutex // held while a damaged run is built again
	lists    sync.Mutex // serialises changes of the list of runs, in ledger.db and in index
	flushing sync.Mutex // held while a part goes to the disk

	wake    chan struct{} // there is something for the seal goroutine
	drained *sync.Cond    // on mu: sealing became shorter, or the store stopped
	stopped bool          // guarded by mu
	closed  atomic.Bool
	quit    chan struct{}
	done    sync.WaitGroup
}

// storeOptions is what a store needs to know; sizes are bytes.
type storeOptions struct {
	dir     string
	cluster clusterID
	logger  *slog.Logger
	metrics *metrics

	// moved is called after D moved, from the seal goroutine.
	moved func(checkpoint)
	// fatal is called when disk and memory may differ: the process must end.
	fatal func(error)
	// refetch gets the file of a sealed segment from another node: it calls write
	// with a way to copy the file, once for each node, until that returns nil.
	refetch func(info segmentInfo, write func(body func(io.Writer) error) error) error
	// mayRefetch tells whether there are other nodes, as of D.
	mayRefetch func(checkpoint) bool
	scrubRate  int64         // bytes the scrub reads in a second; 0 = it does not
	scrubPause time.Duration // between its passes; 0 = scrubPause

	objects      objectStore   // where archived segments lie; nil = nothing is archived
	objectPrefix string        // before the cluster's folder in there: "" or with a slash at its end
	unreadable   func(error)   // called when the bucket answers readers no more
	cacheSize    int64         // bytes of memory for what was read from objects
	dropAge      time.Duration // after sealing, before the local copy of an archived segment may go
	localMax     int64         // bytes of segment files above which the oldest archived ones go; 0 = no limit
	tierEvery    time.Duration // between two looks for copies that may go; 0 = none ever goes

	// fault, when set, is asked before and after each step that changes the
	// disk; an error it returns is taken as that step's. For tests of crashes.
	fault func(step string) error
}

// objectStore is where archived segments lie: a bucket (s3.go) or a folder. Keys
// are whole keys, prefix and all (manifest_bucket.go). Everything may be called at
// the same time, tries again by itself where that may help, and gives up with ctx.
// Nothing that read returns is to be believed before it is compared with a hash.
type objectStore interface {
	// put stores the size bytes of body, which have that SHA-256, durably under
	// key, unless there is an object of that name: fs.ErrExist. After any other
	// error it may be there nevertheless, whole.
	put(ctx context.Context, key string, body io.ReaderAt, size int64, sum hash) error
	// replace is put of an object that may be there already: not of a segment.
	replace(ctx context.Context, key string, body []byte) error
	// read returns size bytes of an object from byte from on: all of them, or
	// fs.ErrNotExist if there is no object, io.ErrUnexpectedEOF if it ends before.
	read(ctx context.Context, key string, from, size int64) ([]byte, error)
	// size returns the size of an object, or fs.ErrNotExist.
	size(ctx context.Context, key string) (int64, error)
	// list calls each for the objects whose keys begin with prefix, in order of
	// key, until it returns an error, which list then returns.
	list(ctx context.Context, prefix string, each func(key string, size int64) error) error
	// remove removes an object; one that is not there is no error.
	remove(ctx context.Context, key string) error
	// probe finds out whether objects below prefix can be put and read, and says
	// what works, or in the error what an operator must change.
	probe(ctx context.Context, prefix string) (string, error)
	String() string // s3://bucket, or the folder: for messages
}

// errFormat says that a directory was written by a newer program.
var errFormat = errors.New("newer format")

const (
	segmentDir = "segments"
	indexDir   = "index"
	ledgerName = "ledger.db"
)

// openStore opens the store below o.dir at its durable checkpoint D. Files that
// a crash left half-made are removed, runs that are missing or damaged are
// built again from the segments; a damaged ledger.db is an error, and so is a
// damaged segment unless other nodes may have it.
func openStore(o storeOptions) (*store, error) {
	if o.metrics == nil {
		o.metrics = newMetrics()
	}
	if o.scrubPause == 0 {
		o.scrubPause = scrubPause
	}
	for _, d := range []string{segmentDir, indexDir} {
		if err := os.MkdirAll(filepath.Join(o.dir, d), 0o700); err != nil {
			return nil, err
		}
		if err := removeTmp(filepath.Join(o.dir, d)); err != nil {
			return nil, err
		}
	}
	if err := syncDir(o.dir); err != nil {
		return nil, err
	}
	ledger, state, err := openLedger(filepath.Join(o.dir, ledgerName))
	if err != nil {
		return nil, err
	}
	s := &store{
		o:       o,
		ledger:  ledger,
		pending: newPendingSegment(state.at.size),
		wake:    make(chan struct{}, 1),
		quit:    make(chan struct{}),
	}
	s.drained = sync.NewCond(&s.mu)
	s.durable.Store(state)
	s.manifest.Store(state.manifest())
	s.openColdState(state)
	err = s.recover(state)
	if err == nil {
		err = s.openTree(state)
	}
	if err == nil {
		err = s.sweep()
	}
	if err != nil {
		s.cold.cancel()
		ledger.close()
		return nil, err
	}
	s.countLocal()
	s.done.Go(s.sealLoop)
	s.done.Go(s.mergeLoop)
	s.done.Go(s.scrubLoop)
	s.done.Go(s.tierLoop)
	return s, nil
}

// recover checks the segments that D names and opens the key index.
func (s *store) recover(state *durableState) error {
	for _, info := range state.segments {
		if cold, err := s.settleCold(info); cold || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		f, err := s.openSegment(info)
		if damagedFile(err) && s.mayMend(state, info) {
			s.noteDamage(segmentName(info), diskDamage{err: err, segment: &info})
			continue
		}
		if err != nil {
			return err
		}
		s.files.put(info.first, f)
	}
	for {
		var err error
		s.index, err = openIndex(filepath.Join(s.o.dir, indexDir), state.runs, s.o.logger)
		var broken *runError
		if !errors.As(err, &broken) {
			return err
		}
		built, rerr := s.rebuild(broken.info, state.segments)
		if rerr == nil {
			rerr = s.noteRebuilt(broken.info, built)
		}
		if rerr != nil {
			return errors.Join(err, rerr)
		}
		state.runs = slices.Clone(state.runs)
		state.runs[slices.Index(state.runs, broken.info)] = built
	}
}

// mayMend tells whether the file of a segment can be fetched again.
func (s *store) mayMend(state *durableState, info segmentInfo) bool {
	return s.o.mayRefetch != nil && s.o.mayRefetch(state.at) || s.o.objects != nil && info.object != ""
}

// openSegment opens the file of a sealed segment and checks that it is the one
// the manifest means.
func (s *store) openSegment(info segmentInfo) (*segmentFile, error) {
	return s.openSegmentAt(s.segmentPath(info), info)
}

// openSegmentAt is openSegment of a file under another name.
func (s *store) openSegmentAt(path string, info segmentInfo) (*segmentFile, error) {
	f, err := openSegmentFile(path)
	if err != nil {
		return nil, err
	}
	if err := s.checkIdentity(f, info); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// checkIdentity returns an error unless f is the segment that info describes.
func (s *store) checkIdentity(f *segmentFile, info segmentInfo) error {
	if f.root != info.root || f.size != int64(info.size) || f.first != info.first || f.count != info.count {
		return fmt.Errorf("segment %s: %w: file has root %s and %d bytes, the manifest says %s and %d", f.name, errCorrupt, f.root, f.size, info.root, info.size)
	}
	if f.cluster != s.o.cluster {
		return fmt.Errorf("segment %s: belongs to cluster %s, this is cluster %s", f.name, f.cluster, s.o.cluster)
	}
	return nil
}

// read notes that somebody reads f.
func (f *segmentFile) read() { f.used.Store(time.Now().UnixMilli()) }

// segmentPath returns where the file of a segment is.
func (s *store) segmentPath(info segmentInfo) string {
	return filepath.Join(s.o.dir, segmentDir, info.id()+segmentSuffix)
}

// objectKey returns the key of the object that holds an archived segment.
func (s *store) objectKey(info segmentInfo) string {
	return segmentKey(bucketFolder(s.o.objectPrefix, s.o.cluster), info.object)
}

// stop lets the apply goroutine go that waits for the disk: what it seals from
// now on stays in memory, and in the Raft log.
func (s *store) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.drained.Broadcast()
}

// close stops the background work and releases the files. What was not sealed
// stays in the Raft log.
func (s *store) close() error {
	s.stop()
	if s.closed.Swap(true) {
		return nil
	}
	s.scrub.mu.Lock()
	s.scrub.closed = true
	s.scrub.mu.Unlock()
	close(s.quit)
	s.cold.cancel()
	s.done.Wait()
	s.index.close()
	return s.ledger.close()
}

// step runs one change of the disk and lets the fault hook fail it, before it
// happens or after.
func (s *store) step(name string, do func() error) error { return tryStep(s.o.fault, name, do) }

// tryStep is step with that fault hook, or none.
func tryStep(fault func(step string) error, name string, do func() error) error {
	if fault != nil {
		if err := fault("before " + name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if fault != nil {
		if err := fault("after " + name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// writeDurably makes the file path with what fill writes. On return the file
// and its name are on disk; a crash before leaves a .tmp file or nothing. A
// segment may be written twice at once, when it is sealed here and fetched.
func writeDurably(path string, fill func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*"+tmpSuffix)
	if err != nil {
		return err
	}
	tmp := f.Name()
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

// makeDir makes dir, and what is missing of the path to it, durably: all that
// is ever synced below would go with the name. A parent that must not be read
// was there before and so was dir.
func makeDir(dir string) error {
	parent := filepath.Dir(dir)
	if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := syncDir(parent); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// removeTmp removes what a crash left half-written in dir.
func removeTmp(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasSuffix(n.Name(), tmpSuffix) {
			if err := os.RemoveAll(filepath.Join(dir, n.Name())); err != nil { // a rebuild of a run leaves a directory
				return err
			}
		}
	}
	return nil
}

// fileCache keeps the open segment files by their first seq. A file is opened
// once; its os.File closes itself when the last reader has let go of it.
type fileCache struct {
	mu    sync.Mutex
	files map[uint64]*segmentFile
}

// get returns the open file of a segment, calling open if there is none.
func (c *fileCache) get(first uint64, open func() (*segmentFile, error)) (*segmentFile, error) {
	if f := c.peek(first); f != nil {
		return f, nil
	}
	f, err := open()
	if err == nil {
		c.put(first, f)
	}
	return f, err
}

// peek returns the open file of a segment, nil if there is none.
func (c *fileCache) peek(first uint64) *segmentFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.files[first]
}

// put keeps f for the segment that starts at first.
func (c *fileCache) put(first uint64, f *segmentFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.files == nil {
		c.files = make(map[uint64]*segmentFile)
	}
	c.files[first] = f
}

// drop forgets the file of the segment that starts at first.
func (c *fileCache) drop(first uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.files, first)
}

// appendCRC appends the CRC32C of b to it.
func appendCRC(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// cutCRC checks and removes what appendCRC added.
func cutCRC(b []byte) ([]byte, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%w: %d bytes, too few for a CRC", errCorrupt, len(b))
	}
	body, tail := b[:len(b)-4], b[len(b)-4:]
	if got, want := crc32.Checksum(body, castagnoli), binary.BigEndian.Uint32(tail); got != want {
		return nil, fmt.Errorf("%w: CRC is %08x, the bytes give %08x", errCorrupt, want, got)
	}
	return body, nil
}
