package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
)

// memDisk is a logDisk in memory that knows what is durable. After a crash,
// image gives one of the disks that a power cut may leave.
type memDisk struct {
	mu      sync.Mutex
	names   map[string]*memFile                 // as the running process sees them
	durable map[string]*memFile                 // as of the last syncDir
	changes []func(map[string]*memFile)         // of names since then
	ops     int                                 // operations that change something
	fault   func(op, path string) (bool, error) // whether to do it, and what to answer
}

// memFile is a file of a memDisk.
type memFile struct {
	path    string
	data    []byte
	durable []byte
}

func newMemDisk() *memDisk {
	return &memDisk{names: map[string]*memFile{}, durable: map[string]*memFile{}}
}

// setFault makes f decide about each operation from now on; nil = all succeed.
func (d *memDisk) setFault(f func(op, path string) (bool, error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// count returns how many operations that change something there were.
func (d *memDisk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops
}

// do runs one operation unless the fault forbids it. A fault may block, so it
// runs without the lock.
func (d *memDisk) do(op, path string, f func()) error {
	d.mu.Lock()
	if op != "read" && op != "list" && op != "open" {
		d.ops++
	}
	fault := d.fault
	d.mu.Unlock()
	apply, err := true, error(nil)
	if fault != nil {
		apply, err = fault(op, path)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if apply {
		f()
	}
	return err
}

// changeLocked applies a change of names that is not durable yet.
func (d *memDisk) changeLocked(f func(map[string]*memFile)) {
	f(d.names)
	d.changes = append(d.changes, f)
}

func (d *memDisk) list(dir string) (names []string, err error) {
	err = d.do("list", dir, func() {
		for path := range d.names {
			if filepath.Dir(path) == dir {
				names = append(names, filepath.Base(path))
			}
		}
	})
	return names, err
}

func (d *memDisk) create(path string) (logHandle, error) {
	file := &memFile{path: path}
	err := d.do("create", path, func() {
		d.changeLocked(func(m map[string]*memFile) { m[path] = file })
	})
	return &memHandle{d, file}, err
}

func (d *memDisk) open(path string) (logHandle, error) {
	var file *memFile
	err := d.do("open", path, func() { file = d.names[path] })
	if err == nil && file == nil {
		err = &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return &memHandle{d, file}, err
}

func (d *memDisk) rename(from, to string) error {
	return d.do("rename", to, func() {
		file := d.names[from]
		file.path = to
		d.changeLocked(func(m map[string]*memFile) {
			delete(m, from)
			m[to] = file
		})
	})
}

func (d *memDisk) remove(path string) error {
	return d.do("remove", path, func() {
		d.changeLocked(func(m map[string]*memFile) { delete(m, path) })
	})
}

func (d *memDisk) syncDir(dir string) error {
	return d.do("syncDir", dir, func() {
		for _, f := range d.changes {
			f(d.durable)
		}
		d.changes = nil
	})
}

// memHandle is an open memFile.
type memHandle struct {
	d *memDisk
	*memFile
}

func (h *memHandle) ReadAt(b []byte, off int64) (n int, err error) {
	err = h.d.do("read", h.path, func() {
		if off < int64(len(h.data)) {
			n = copy(b, h.data[off:])
		}
	})
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return n, err
}

func (h *memHandle) WriteAt(b []byte, off int64) (int, error) {
	err := h.d.do("write", h.path, func() {
		if end := int(off) + len(b); end > len(h.data) {
			h.data = append(h.data, make([]byte, end-len(h.data))...)
		}
		copy(h.data[off:], b)
	})
	return len(b), err
}

func (h *memHandle) sync() error {
	return h.d.do("sync", h.path, func() { h.durable = slices.Clone(h.data) })
}

func (h *memHandle) size() (int64, error) { return int64(len(h.data)), nil }
func (h *memHandle) Close() error         { return nil }

// keep decides whether something that was not synced survived.
type keep func() bool

func keepAll() bool  { return true }
func keepNone() bool { return false }

// image returns a disk as the next start may find it: of each sector and each
// name that was changed and not synced, either version.
func (d *memDisk) image(k keep) *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	image := newMemDisk()
	names := map[string]*memFile{}
	for path, f := range d.durable {
		names[path] = f
	}
	for _, change := range d.changes {
		if k() {
			change(names)
		}
	}
	for path, f := range names {
		data := f.survivor(k)
		file := &memFile{path: path, data: data, durable: slices.Clone(data)}
		image.names[path], image.durable[path] = file, file
	}
	return image
}

// survivor returns contents the file may have after a crash.
func (f *memFile) survivor(k keep) []byte {
	data := slices.Clone(f.durable)
	if len(f.data) > len(data) && k() {
		data = append(data, make([]byte, len(f.data)-len(data))...)
	}
	for at := 0; at < len(data); at += sectorSize {
		end := min(at+sectorSize, len(data))
		if k() {
			copy(data[at:end], f.data[at:])
		}
	}
	return data
}

// logModel is what the log must hold.
type logModel struct {
	first, next uint64
	logs        map[uint64]*raft.Log // also those a prefix removal took: a crash may bring them back
}

// clone returns a copy that shares nothing that changes.
func (m logModel) clone() logModel {
	logs := map[uint64]*raft.Log{}
	for i, l := range m.logs {
		logs[i] = l
	}
	m.logs = logs
	return m
}

// logStep changes a log and its model.
type logStep struct {
	name  string
	store func(l *logStore) error
	model func(m *logModel)
}

// storeStep appends n entries from m.next+gap on.
func storeStep(m *logModel, gap uint64, n, size int, tag string) logStep {
	logs := testLogs(m.next+gap, n, tag, size)
	return logStep{
		fmt.Sprintf("store %d+%d", logs[0].Index, n),
		func(l *logStore) error { return l.StoreLogs(logs) },
		func(m *logModel) {
			if gap > 0 {
				*m = logModel{logs[0].Index, logs[0].Index, map[uint64]*raft.Log{}}
			}
			for _, log := range logs {
				m.logs[log.Index] = log
			}
			m.next += uint64(n)
		},
	}
}

// cutStep removes the entries from index on.
func cutStep(index, last uint64) logStep {
	return logStep{
		fmt.Sprintf("cut %d-%d", index, last),
		func(l *logStore) error { return l.DeleteRange(index, last) },
		func(m *logModel) {
			for ; m.next > index; m.next-- {
				delete(m.logs, m.next-1)
			}
		},
	}
}

// trimStep removes the entries up to index.
func trimStep(index uint64) logStep {
	return logStep{
		fmt.Sprintf("trim %d", index),
		func(l *logStore) error { return l.DeleteRange(0, index) },
		func(m *logModel) { m.first = index + 1 },
	}
}

// resetStep empties the log.
func resetStep(base uint64) logStep {
	return logStep{
		fmt.Sprintf("reset %d", base),
		func(l *logStore) error { return l.reset(base) },
		func(m *logModel) { *m = logModel{base + 1, base + 1, map[uint64]*raft.Log{}} },
	}
}

// randomStep returns a step that fits the model.
func randomStep(rng *rand.Rand, m *logModel, n int) logStep {
	tag := fmt.Sprint("step ", n)
	size := 1 + rng.IntN(400)
	if rng.IntN(10) == 0 {
		size = 3000
	}
	held := m.next - m.first
	switch p := rng.IntN(20); {
	case p < 3 && held > 1:
		return cutStep(m.first+1+rng.Uint64N(held-1), m.next-1)
	case p < 7 && held > 1:
		return trimStep(m.first + rng.Uint64N(held-1))
	case p == 7:
		return resetStep(m.next + rng.Uint64N(10))
	case p == 8:
		return storeStep(m, 1+rng.Uint64N(5), 1+rng.IntN(3), size, tag)
	}
	return storeStep(m, 0, 1+rng.IntN(6), size, tag)
}

// checkModel returns how the log differs from the model. The log may begin
// earlier, if exact is not asked for, with entries that a prefix removal took.
func checkModel(l *logStore, m logModel, exact bool) error {
	if l.next != m.next || l.first > m.first || exact && l.first != m.first {
		return fmt.Errorf("log is %d to %d, want %d to %d", l.first, l.next-1, m.first, m.next-1)
	}
	for index := l.first; index < l.next; index++ {
		var got raft.Log
		if err := l.GetLog(index, &got); err != nil {
			return err
		}
		if want := m.logs[index]; want == nil || !sameLog(&got, want) {
			return fmt.Errorf("entry %d is %.60q, want %+v", index, got.Data, want)
		}
	}
	return nil
}

var errCrashed = errors.New("crashed")

// crashAt is a fault: operation n and all after it fail; n itself may still
// have had its effect.
func crashAt(n int, apply bool) func(op, path string) (bool, error) {
	var mu sync.Mutex
	return func(op, path string) (bool, error) {
		if op == "read" || op == "list" || op == "open" {
			return true, nil
		}
		mu.Lock()
		defer mu.Unlock()
		n--
		if n > 0 {
			return true, nil
		}
		return apply && n == 0, errCrashed
	}
}

// TestLogCrash runs random changes, crashes at every disk operation, with what
// was not synced kept, lost or mixed, and opens what is left: the log must be
// as it was before the change that was cut off, or as after it.
func TestLogCrash(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	images := 0
	for range 6 {
		script := rng.Uint64()
		for n := 1; ; n++ {
			crashed := false
			for _, apply := range []bool{false, true} {
				disk := newMemDisk()
				before, after := runScript(t, disk, script, n, apply)
				crashed = crashed || after != nil
				for _, k := range []keep{keepAll, keepNone, func() bool { return rng.IntN(2) == 0 }, func() bool { return rng.IntN(5) > 0 }} {
					images++
					checkCrash(t, disk.image(k), before, after, rng)
				}
			}
			if !crashed {
				break
			}
		}
	}
	t.Logf("%d disk images", images)
}

// runScript applies the random steps of the script until disk operation n
// crashes. It returns the states that the log may be in; after is nil if the
// script came to its end.
func runScript(t *testing.T, disk *memDisk, script uint64, n int, apply bool) (before logModel, after *logModel) {
	t.Helper()
	rng := rand.New(rand.NewPCG(script, 1))
	disk.setFault(crashAt(n, apply))
	m := logModel{1, 1, map[uint64]*raft.Log{}}
	o := crashOptions(t, disk)
	l, err := openLogStore("raft", o)
	if err != nil {
		return m, &m
	}
	defer func() { l.close() }()
	for i := range 25 {
		s := randomStep(rng, &m, i)
		next := m.clone()
		s.model(&next)
		if err := s.store(l); err != nil {
			if !errors.Is(err, errCrashed) {
				t.Fatalf("%s: %v", s.name, err)
			}
			return m, &next
		}
		m = next
		if err := checkModel(l, m, true); err != nil {
			t.Fatalf("after %s: %v", s.name, err)
		}
	}
	return m, nil
}

// crashOptions are for a log that is going to crash.
func crashOptions(t *testing.T, disk *memDisk) logOptions {
	o := testLogOptions(t)
	o.disk, o.fatal, o.logger, o.fileSize = disk, nil, nil, 2048
	o.gapAllowed = func(uint64) bool { return true }
	return o
}

// checkCrash opens the image, crashing at times while it does, and checks the log.
func checkCrash(t *testing.T, disk *memDisk, before logModel, after *logModel, rng *rand.Rand) {
	t.Helper()
	for again := rng.IntN(3); again > 0; again-- {
		disk.setFault(crashAt(1+rng.IntN(3), rng.IntN(2) == 0))
		if l, err := openLogStore("raft", crashOptions(t, disk)); err == nil {
			l.close()
		}
		disk = disk.image(func() bool { return rng.IntN(2) == 0 })
	}
	l, err := openLogStore("raft", crashOptions(t, disk))
	if err != nil {
		t.Fatalf("open after a crash: %v", err)
	}
	m := before
	if err = checkModel(l, m, false); err != nil && after != nil {
		m = *after
		if other := checkModel(l, m, false); other != nil {
			t.Fatalf("after a crash the log is neither as before (%v) nor as after (%v)", err, other)
		}
	} else if err != nil {
		t.Fatalf("after a crash: %v", err)
	}
	m = m.clone()
	m.first = l.first
	s := storeStep(&m, 0, 3, 500, "after the crash")
	if err := s.store(l); err != nil {
		t.Fatalf("append after a crash: %v", err)
	}
	s.model(&m)
	l.close()
	l, err = openLogStore("raft", crashOptions(t, disk))
	if err != nil {
		t.Fatalf("second open after a crash: %v", err)
	}
	if err := checkModel(l, m, true); err != nil {
		t.Fatalf("second open after a crash: %v", err)
	}
	l.close()
}

// TestLogDiskFullAnywhere lets every single disk write of a script fail for lack
// of space. The step is refused and leaves no trace, or fails for good; tried
// again, it succeeds.
func TestLogDiskFullAnywhere(t *testing.T) {
	for script := range uint64(4) {
		for n := 1; ; n++ {
			disk := newMemDisk()
			if !runFull(t, disk, script, n) {
				break
			}
		}
	}
}

// runFull runs the script with the n-th write failing; it reports whether it came to that.
func runFull(t *testing.T, disk *memDisk, script uint64, n int) (failed bool) {
	rng := rand.New(rand.NewPCG(script, 1))
	var mu sync.Mutex
	disk.setFault(func(op, path string) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		if op == "write" {
			if n--; n == 0 {
				failed = true
				return script%2 == 0, syscall.ENOSPC
			}
		}
		return true, nil
	})
	m := logModel{1, 1, map[uint64]*raft.Log{}}
	l, err := openLogStore("raft", crashOptions(t, disk))
	if err != nil {
		return errors.Is(err, syscall.ENOSPC)
	}
	defer l.close()
	for i := range 25 {
		s := randomStep(rng, &m, i)
		err := s.store(l)
		if err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("%s: %v", s.name, err)
			}
			if err := checkModel(l, m, true); err != nil {
				t.Fatalf("%s on a full disk: %v", s.name, err)
			}
			if errors.Is(err, errLogPoisoned) {
				return true
			}
			if err := s.store(l); err != nil {
				t.Fatalf("%s, tried again: %v", s.name, err)
			}
		}
		s.model(&m)
		if err := checkModel(l, m, true); err != nil {
			t.Fatalf("after %s: %v", s.name, err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	return failed
}
