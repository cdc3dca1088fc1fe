package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// simDisk is the disk of a simulated node's Raft log: in memory, it knows what
// is durable and what a power cut may take, and it fails as it is told. It
// remembers what unsynced writes replaced, not the whole of each file as
// memDisk does: a sync costs what was written.
type simDisk struct {
	mu      sync.Mutex // never held over a wait
	rng     *rand.Rand
	names   map[string]*simFile // as the running process sees them
	durable map[string]*simFile // as of the last syncDir
	changes []func(map[string]*simFile)
	dead    bool          // the process or the power is gone: nothing is changed any more
	ended   chan struct{} // closed when it is dead
	tripped chan struct{} // gets a token when the power went at an operation of the disk's choice
	count   *simCount

	// What is to go wrong. Counters count operations down to the one that fails.
	crashIn   int // any change
	failWrite int
	failSync  int
	full      bool
	copies    bool          // a full disk takes no writes in place either
	slow      time.Duration // of each sync, at most
	hung      chan struct{} // not nil: syncs wait until it is closed
}

// simFile is a file of a simDisk.
type simFile struct {
	data  []byte
	sized int        // length that is durable
	dirty []simWrite // since the last sync, oldest first
	lost  []simWrite // of syncs that failed: never durable, whatever is synced later
}

// simWrite is what an unsynced write replaced.
type simWrite struct {
	at  int
	old []byte
}

var (
	errSimPower = errors.New("simulated: the power is gone")
	errSimIO    = fmt.Errorf("simulated: %w", syscall.EIO)
	errSimFull  = fmt.Errorf("simulated: %w", syscall.ENOSPC)
)

// newSimDisk returns an empty disk.
func newSimDisk(seed uint64, count *simCount) *simDisk {
	return &simDisk{
		rng: rand.New(rand.NewPCG(seed, 'd')), names: map[string]*simFile{}, durable: map[string]*simFile{},
		ended: make(chan struct{}), tripped: make(chan struct{}, 1), count: count,
	}
}

// stop ends the process or the power: what it has under way fails.
func (d *simDisk) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopLocked()
}

func (d *simDisk) stopLocked() {
	if !d.dead {
		d.dead = true
		close(d.ended)
	}
}

// next returns the disk as the next process finds it. After a power cut, of
// each sector and each name that was changed and not synced, it has either
// version; else the system still has all.
func (d *simDisk) next(power bool) *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := newSimDisk(d.rng.Uint64(), d.count)
	n.full, n.copies, n.slow, n.hung = d.full, d.copies, d.slow, d.hung
	if !power {
		n.names, n.durable, n.changes = d.names, d.durable, d.changes
		return n
	}
	keep := d.rng.Float64() // how much of it survives: sometimes all, sometimes nothing
	names := make(map[string]*simFile)
	for path, f := range d.durable {
		names[path] = f
	}
	for _, change := range d.changes {
		if d.rng.Float64() < keep {
			change(names)
		}
	}
	for path, f := range names {
		survivor := &simFile{data: f.survivor(d.rng, keep)}
		survivor.sized = len(survivor.data)
		n.names[path], n.durable[path] = survivor, survivor
	}
	return n
}

// survivor returns contents the file may have after a power cut.
func (f *simFile) survivor(rng *rand.Rand, keep float64) []byte {
	data := slices.Clone(f.data)
	undo := func(w simWrite, keep float64) {
		for at := 0; at < len(w.old); {
			end := min(len(w.old), at+sectorSize-(w.at+at)%sectorSize)
			if rng.Float64() >= keep {
				copy(data[w.at+at:], w.old[at:end])
			}
			at = end
		}
	}
	for _, w := range slices.Backward(f.dirty) {
		undo(w, keep)
	}
	for _, w := range slices.Backward(f.lost) {
		undo(w, -1)
	}
	if len(data) > f.sized && rng.Float64() >= keep {
		data = data[:f.sized]
	}
	return data
}

// set changes what is to go wrong.
func (d *simDisk) set(f func(d *simDisk)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}

// due counts a fault down and tells whether it is its turn. mu must be held.
func (d *simDisk) due(counter *int, what string) bool {
	if *counter == 0 {
		return false
	}
	if *counter--; *counter > 0 {
		return false
	}
	d.count.add(what)
	return true
}

// change makes one change of the disk, unless something goes wrong. some does
// a part of it.
func (d *simDisk) change(op string, do, some func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errSimPower
	}
	if d.due(&d.crashIn, "power cut at "+op) {
		switch d.rng.IntN(3) {
		case 0:
			some()
		case 1:
			do()
		}
		d.stopLocked()
		d.tripped <- struct{}{}
		return errSimPower
	}
	writes := op == "write" || op == "write at the end"
	if d.full && (writes && d.copies || op == "write at the end" || op == "create") {
		d.count.add("no space")
		some()
		return errSimFull
	}
	if writes && d.due(&d.failWrite, "EIO on write") {
		some()
		return errSimIO
	}
	do()
	return nil
}

// rename, create, remove and syncDir are those of logDisk.
func (d *simDisk) rename(from, to string) error {
	return d.change("rename", func() {
		f := d.names[from]
		d.nameLocked(func(m map[string]*simFile) {
			delete(m, from)
			m[to] = f
		})
	}, func() {})
}

func (d *simDisk) create(path string) (logHandle, error) {
	f := &simFile{}
	err := d.change("create", func() {
		d.nameLocked(func(m map[string]*simFile) { m[path] = f })
	}, func() {})
	return &simHandle{d, f}, err
}

func (d *simDisk) remove(path string) error {
	return d.change("remove", func() {
		d.nameLocked(func(m map[string]*simFile) { delete(m, path) })
	}, func() {})
}

func (d *simDisk) syncDir(string) error {
	if err := d.waitSync(); err != nil {
		return err
	}
	return d.change("sync of a directory", func() {
		for _, f := range d.changes {
			f(d.durable)
		}
		d.changes = nil
	}, func() {})
}

// nameLocked applies a change of names that is not durable yet.
func (d *simDisk) nameLocked(f func(map[string]*simFile)) {
	f(d.names)
	d.changes = append(d.changes, f)
}

func (d *simDisk) list(dir string) (names []string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil { // stable.db lies there, on the real disk
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for path := range d.names {
		if filepath.Dir(path) == dir {
			names = append(names, filepath.Base(path))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (d *simDisk) open(path string) (logHandle, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[path]
	if f == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return &simHandle{d, f}, nil
}

// waitSync lets a sync take the time it takes.
func (d *simDisk) waitSync() error {
	d.mu.Lock()
	slow, hung := d.slow, d.hung
	if slow > 0 {
		slow = time.Duration(d.rng.Int64N(int64(slow)))
	}
	d.mu.Unlock()
	if hung != nil {
		select {
		case <-hung:
		case <-d.ended:
			return errSimPower
		}
	}
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-d.ended:
			return errSimPower
		}
	}
	return nil
}

// simHandle is an open simFile.
type simHandle struct {
	d *simDisk
	f *simFile
}

func (h *simHandle) ReadAt(b []byte, off int64) (n int, err error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if off < int64(len(h.f.data)) {
		n = copy(b, h.f.data[off:])
	}
	if n < len(b) {
		err = io.EOF
	}
	return n, err
}

func (h *simHandle) WriteAt(b []byte, off int64) (int, error) {
	op := "write"
	if int(off)+len(b) > len(h.f.data) {
		op = "write at the end"
	}
	err := h.d.change(op, func() { h.f.writeLocked(b, int(off)) }, func() { // up to the end of some sector
		end := int(off) + h.d.rng.IntN(len(b)+1)
		if n := end - end%sectorSize - int(off); n > 0 {
			h.f.writeLocked(b[:n], int(off))
		}
	})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// writeLocked writes b, which is not durable yet.
func (f *simFile) writeLocked(b []byte, off int) {
	if end := off + len(b); end > len(f.data) {
		f.data = append(f.data, make([]byte, end-len(f.data))...)
	}
	f.dirty = append(f.dirty, simWrite{off, slices.Clone(f.data[off : off+len(b)])})
	for _, w := range f.lost { // is made good by this write, once that is synced
		from, to := max(w.at, off), min(w.at+len(w.old), off+len(b))
		if from < to {
			copy(w.old[from-w.at:to-w.at], b[from-off:])
		}
	}
	copy(f.data[off:], b)
}

func (h *simHandle) sync() error {
	if err := h.d.waitSync(); err != nil {
		return err
	}
	d, f := h.d, h.f
	d.mu.Lock()
	if !d.dead && d.due(&d.failSync, "EIO on fsync") { // the system takes the pages for clean from now on
		f.lost, f.dirty = append(f.lost, f.dirty...), nil
		d.mu.Unlock()
		return errSimIO
	}
	d.mu.Unlock()
	return d.change("fsync", func() { f.dirty, f.sized = nil, len(f.data) }, func() {})
}

func (h *simHandle) size() (int64, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	return int64(len(h.f.data)), nil
}

func (h *simHandle) Close() error { return nil }

// rot damages what lies on the disk: a bit flips, or bytes lie where others
// should. It tells where, "" if there is nothing to damage.
func (d *simDisk) rot() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var paths []string
	for path := range d.durable {
		paths = append(paths, path)
	}
	if len(paths) == 0 {
		return ""
	}
	slices.Sort(paths)
	path := paths[d.rng.IntN(len(paths))]
	f := d.names[path]
	if f == nil {
		return ""
	}
	return path + " " + rotBytes(d.rng, f.data)
}

// rotBytes damages b somewhere before the zeros at its end and tells how.
func rotBytes(rng *rand.Rand, b []byte) string {
	used := len(b)
	for used > 0 && b[used-1] == 0 {
		used--
	}
	if used == 0 {
		return ""
	}
	at := rng.IntN(used)
	if rng.IntN(4) > 0 {
		b[at] ^= 1 << rng.IntN(8)
		return fmt.Sprintf("bit flipped at %d", at)
	}
	from := rng.IntN(used)
	n := copy(b[at:used], slices.Clone(b[from:min(used, from+1+rng.IntN(600))]))
	return fmt.Sprintf("%d bytes of %d written to %d", n, from, at)
}

// rotFile damages a file of the real disk and tells how.
func rotFile(rng *rand.Rand, path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return ""
	}
	how := rotBytes(rng, b)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	f.WriteAt(b, 0) // in place: the node may have it open
	return filepath.Base(path) + " " + how
}

// filesBelow lists the files of a data directory that match one of the patterns.
func filesBelow(dir string, patterns ...string) (all []string) {
	for _, p := range patterns {
		found, _ := filepath.Glob(filepath.Join(dir, p))
		all = append(all, found...)
	}
	return slices.DeleteFunc(all, func(p string) bool { return strings.HasSuffix(p, tmpSuffix) })
}

// simTempDir returns a directory, in memory if there is such a place, and
// removes it at the end.
func simTempDir(t testing.TB) string {
	base := cmp.Or(os.Getenv("SCRIBE_SIM_DIR"), "/dev/shm")
	if info, err := os.Stat(base); err != nil || !info.IsDir() {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(base, "scribe-sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestSimDiskLosesWhatIsNotSynced: what a power cut leaves.
func TestSimDiskLosesWhatIsNotSynced(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		d := newSimDisk(seed, new(simCount))
		h, _ := d.create("/a")
		h.WriteAt([]byte("durable"), 0)
		h.sync()
		d.syncDir("/")
		h.WriteAt([]byte("DURABLE"), 0)
		d.set(func(d *simDisk) { d.failSync = 1 })
		if err := h.sync(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("sync: %v", err)
		}
		if err := h.sync(); err != nil { // a lie: the pages are clean
			t.Fatal(err)
		}
		d.create("/b")
		d.stop()
		if _, err := h.WriteAt([]byte("x"), 0); err == nil {
			t.Fatal("a disk without power was written")
		}
		after := d.next(true)
		got := make([]byte, 7)
		h, err := after.open("/a")
		if err != nil {
			t.Fatal(err)
		}
		h.ReadAt(got, 0)
		if string(got) != "durable" {
			t.Errorf("seed %d: %q after a failed sync and a power cut", seed, got)
		}
	}
}

// TestLogEndIsSecuredAtStart: a sync fails and the process ends; what the system
// shows the next one may not be on the disk, though it can be read and synced.
func TestLogEndIsSecuredAtStart(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		d := newSimDisk(seed, new(simCount))
		store := func(l *logStore, index uint64) error { return l.StoreLogs(testLogs(index, 1, "x", 100)) }
		dir := t.TempDir()
		open := func(d *simDisk) *logStore {
			t.Helper()
			l, err := openLogStore(dir, logOptions{fileSize: 64 << 10, disk: d})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			return l
		}
		l := open(d)
		if err := store(l, 1); err != nil {
			t.Fatal(err)
		}
		d.set(func(d *simDisk) { d.failSync = 1 })
		if err := store(l, 2); !errors.Is(err, errLogPoisoned) {
			t.Fatalf("storing beside a failed sync: %v", err)
		}
		l.close()
		d.stop()
		d = d.next(false)
		l = open(d)
		if err := store(l, 3); err != nil {
			t.Fatal(err)
		}
		l.close()
		d.stop()
		l = open(d.next(true))
		if _, last := l.bounds(); last != 3 {
			t.Errorf("seed %d: the log ends at %d after a power cut, want 3", seed, last)
		}
		l.close()
	}
}
