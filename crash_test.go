package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
)

// errCrash is what a fault hook answers where the process is to end.
var errCrash = errors.New("power is gone")

// crashSteps are all steps of store*.go that change the disk. Before one of
// them the process ends and it did not happen; after one it did, and the
// process ends before it knows.
var crashSteps = []string{"write segment", "write run", "move checkpoint", "replace runs", "install checkpoint", "write tiles"}

// failAt returns a hook that answers err at the nth time of the given step.
func failAt(step string, n int32, err error) func(string) error {
	var seen atomic.Int32
	return func(s string) error {
		if s == step && seen.Add(1) == n {
			return err
		}
		return nil
	}
}

// uncrashed returns a settled store that never crashed, with so many segments
// (eight are merged), confirmed ones, some archived, tombstones, idempotency keys and entries
// behind D. Its log is what the crashed ones get.
func uncrashed(t *testing.T, segments int) *harness {
	h := newHarness(t)
	for i := range segments {
		r := putRequest(fmt.Sprint("key-", i), "value")
		r.idempotencyKey = fmt.Sprint("id-", i)
		h.do(r, putRequest("hot", fmt.Sprint(i)))
		h.do(deleteRequest(fmt.Sprint("key-", i-2)))
		h.sealNow()
		h.confirm()
		if i%2 == 0 {
			h.archive(i / 2)
		}
	}
	h.put("pending", "x")
	h.settle()
	return h
}

// crash gives an empty store, or what an earlier crash left, the log of want
// until a fault ends the process, and returns what it ended with. It leaves h
// closed and without fault.
func (h *harness) crash(want *harness, fault func(string) error) error {
	h.t.Helper()
	h.close()
	h.fault, h.log = fault, nil
	h.open()
	applied := make(chan struct{})
	go func() {
		defer close(applied)
		for _, l := range want.log {
			h.fsm.ApplyBatch([]*raft.Log{l}) // waits when segments cannot be written
		}
	}()
	eventually(h.t, "the process goes on", func() bool { return h.fatal.Load() != nil })
	err := *h.fatal.Load()
	h.store.close()
	<-applied
	h.close()
	h.fault, h.log, h.index = nil, want.log, want.index
	return err
}

// wantSame compares h, once it settled, with a store that never crashed:
// entries, files, D, idempotency window and whole directories.
func wantSame(t *testing.T, h, want *harness) {
	t.Helper()
	h.settle()
	sameFiles(t, h.dir, want.dir)
	checkStore(t, h.store)
	a, b := h.store.durable.Load(), want.store.durable.Load()
	if string(a.at.append(nil)) != string(b.at.append(nil)) || !slices.Equal(a.segments, b.segments) || h.store.size() != want.store.size() {
		t.Fatalf("D is %+v of %d entries, want %+v of %d", a.at, h.store.size(), b.at, want.store.size())
	}
	if a, b := h.store.index.runs(), want.store.index.runs(); !slices.Equal(a, b) {
		t.Fatalf("runs are %+v, want %+v", a, b)
	}
	for seq := range want.store.size() {
		e, err := h.store.entryAt(seq)
		w, werr := want.store.entryAt(seq)
		if err != nil || werr != nil || string(e.raw) != string(w.raw) || valueOf(t, &e) != valueOf(t, &w) {
			t.Fatalf("entry %d: %v, %v", seq, err, werr)
		}
		p, err := h.store.get(e.key, selector{seq: &seq})
		if (err != nil && !errors.Is(err, errDeleted)) || p.seq != seq {
			t.Fatalf("entry %d by its key: %v", seq, err)
		}
	}
	for key, n := range want.fsm.window.byKey {
		if got, ok := h.fsm.window.byKey[key]; !ok || got != n {
			t.Fatalf("idempotency key %q is request %d, %v; want %d", key, got, ok, n)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(h.dir, "*", "*"+tmpSuffix)); len(names) > 0 {
		t.Errorf("left %v", names)
	}
	rest, err := os.ReadDir(h.dir)
	if err != nil || len(rest) != 3 {
		t.Errorf("directory has %v, %v", rest, err)
	}
}

// TestCrash ends the process at every step around seal, D and merge, the first
// time and a later one, once before the step happened and once after; a restart
// that replays the log is as if nothing had been.
func TestCrash(t *testing.T) {
	t.Parallel()
	few, eight := uncrashed(t, 5), uncrashed(t, 8)
	for _, step := range crashSteps[:4] {
		for _, when := range []string{"before ", "after "} {
			for _, n := range []int32{1, 5} {
				want := few
				if step == "replace runs" {
					if want = eight; n > 1 {
						continue
					}
				}
				t.Run(fmt.Sprintf("%s%s %d", when, step, n), func(t *testing.T) {
					t.Parallel()
					h := newHarness(t)
					wantError(t, h.crash(want, failAt(when+step, n, errCrash)), errCrash, step)
					h.open()
					wantSame(t, h, want)
					h.reopen()
					wantSame(t, h, want)
				})
			}
		}
	}
}

// TestCrashTwice ends the process again and again while it repairs what the
// crash before left.
func TestCrashTwice(t *testing.T) {
	t.Parallel()
	want, h := uncrashed(t, 5), newHarness(t)
	for _, step := range []string{"after write segment", "before write run", "after write run", "before move checkpoint", "after move checkpoint", "before write segment"} {
		wantError(t, h.crash(want, failAt(step, 1, errCrash)), errCrash)
	}
	h.open()
	wantSame(t, h, want)
}

// TestCrashInstall ends the process around the installation of a snapshot.
func TestCrashInstall(t *testing.T) {
	t.Parallel()
	want := uncrashed(t, 5)
	snap := want.snapshot()
	for _, when := range []string{"before ", "after "} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			h.fault = failAt(when+"install checkpoint", 1, errCrash)
			h.reopen()
			err := h.restore(snap, want)
			wantError(t, err, errCrash, "install checkpoint")
			if h.failed != err || h.restore(snap, want) != err {
				t.Errorf("the node goes on after %v", err)
			}
			h.fault = nil
			h.reopen()
			installed := uint64(0)
			if when == "after " {
				installed = want.store.durable.Load().at.index
			}
			if h.fsm.index != installed {
				t.Errorf("D is at %d, want %d", h.fsm.index, installed)
			}
			if err := h.restore(snap, want); err != nil {
				t.Fatal(err)
			}
			h.log, h.index = want.log, want.index
			h.fsm.ApplyBatch(h.log)
			wantSame(t, h, want)
		})
	}
}

// TestLeftovers puts what crashes leave in the directories: halves of files,
// whole files nothing names, runs that a merge replaced.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	want, h := uncrashed(t, 8), newHarness(t)
	wantError(t, h.crash(want, failAt("before replace runs", 1, errCrash)), errCrash)
	var merged []string // runs of level 0 that are in the list still
	for name := range diskFiles(t, h.dir) {
		if strings.HasPrefix(name, indexDir+"/0-") {
			merged = append(merged, filepath.Join(h.dir, name))
		}
	}
	if len(merged) != 8 {
		t.Fatalf("%d runs of level 0", len(merged))
	}
	segment := strings.Replace(filepath.Base(merged[3]), runSuffix, segmentSuffix, 1)
	scratch := merged[2] + ".rebuild" + tmpSuffix
	for _, dir := range []string{scratch, filepath.Join(scratch, "deeper")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{
		filepath.Join(h.dir, segmentDir, segment+".123"+tmpSuffix), filepath.Join(h.dir, segmentDir, tmpSuffix),
		merged[0] + tmpSuffix, filepath.Join(scratch, filepath.Base(merged[2])),
	} {
		if err := os.WriteFile(path, []byte("half of a fi"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.open()
	wantSame(t, h, want)
	h.close()

	// The merged run is in the list now; what it replaced comes back.
	for _, path := range merged {
		if err := os.WriteFile(path, []byte("a run that was"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.open()
	wantSame(t, h, want)
}

// TestDiskFull: a seal or a merge that finds no space is tried again until
// there is some; meanwhile entries are taken and read.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	few, eight := uncrashed(t, 5), uncrashed(t, 8)
	for _, step := range crashSteps[:4] {
		for _, when := range []string{"before ", "after "} {
			want, hot := few, "4"
			if step == "replace runs" {
				want, hot = eight, "7"
			}
			t.Run(when+step, func(t *testing.T) {
				t.Parallel()
				h := newHarness(t)
				h.close()
				h.fault = failAt(when+step, 1, syscall.ENOSPC)
				h.open()
				h.log, h.index = want.log, want.index
				h.fsm.ApplyBatch(h.log)
				if e, err := h.store.get([]byte("hot"), selector{}); err != nil || valueOf(t, &e) != hot {
					t.Errorf("while the disk is full: %v", err)
				}
				wantSame(t, h, want)
				h.fault = nil
				h.reopen()
				wantSame(t, h, want)
			})
		}
	}
}

// TestDiskFullAtEnd: a store that waits for space can be closed.
func TestDiskFullAtEnd(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	waiting := make(chan struct{}, 100)
	h.fault = func(step string) error {
		if step != "before write segment" {
			return nil
		}
		waiting <- struct{}{}
		return syscall.ENOSPC
	}
	h.reopen()
	h.put("a", "1")
	h.seal()
	<-waiting
	h.close()
	h.fault = nil
	h.open()
	h.settle()
	checkStore(t, h.store)
}

// TestSealBacklog: when the disk hangs, apply waits once too many segments are
// on their way, and everything is readable meanwhile.
func TestSealBacklog(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	hold := make(chan struct{})
	h.fault = func(step string) error {
		if step == "before write segment" {
			<-hold
		}
		return nil
	}
	h.reopen()
	for i := range maxSealing {
		h.put("hot", fmt.Sprint(i))
		h.put(fmt.Sprint("key-", i), "")
		h.seal()
	}
	h.put("hot", "last")
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.commit(appendSeal(nil, h.clock, h.store.pending.first), h.pack(putRequest("after", "")))
	}()
	eventually(t, "apply does not come to wait", func() bool { return h.store.backlog() == maxSealing })
	s := h.store
	for i := range maxSealing {
		last := uint64(2 * i)
		e, err := s.get([]byte("hot"), selector{atSeq: &last})
		if err != nil || valueOf(t, &e) != fmt.Sprint(i) {
			t.Errorf("version %d is %+v, %v", i, e.header, err)
		}
	}
	if found, _, err := s.list(nil, nil, 100); err != nil || len(found) != 1+maxSealing {
		t.Errorf("%d keys, %v", len(found), err)
	}
	if versions, _, err := s.history([]byte("hot"), noSeq, 100); err != nil || len(versions) != 1+maxSealing {
		t.Errorf("%d versions, %v", len(versions), err)
	}
	select {
	case <-done:
		t.Error("apply did not wait for the disk")
	default:
	}
	close(hold)
	<-done
	h.settle()
	checkStore(t, h.store)
	h.reopen()
	if _, err := h.store.get([]byte("after"), selector{}); err != nil {
		t.Error(err)
	}
}

// damage flips a byte of a file where it stands.
func damage(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if at < 0 {
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		at += st.Size()
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x20
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedRunAtOpen: a run that is damaged, cut or missing at a start is
// built again from the segments, byte by byte the same.
func TestDamagedRunAtOpen(t *testing.T) {
	t.Parallel()
	want := uncrashed(t, 8)
	want.sealNow() // a run of level 0 beside the merged one
	want.close()
	for what, harm := range map[string]func(string) error{
		"header":  func(p string) error { damage(t, p, 9); return nil },
		"footer":  func(p string) error { damage(t, p, -10); return nil },
		"cut":     func(p string) error { return os.Truncate(p, 100) },
		"empty":   func(p string) error { return os.Truncate(p, 0) },
		"missing": os.Remove,
	} {
		t.Run(what, func(t *testing.T) {
			dir := copyDir(t, want.dir)
			runs, _ := filepath.Glob(filepath.Join(dir, indexDir, "*"+runSuffix))
			if len(runs) != 2 {
				t.Fatalf("runs are %v", runs)
			}
			for _, path := range runs {
				if err := harm(path); err != nil {
					t.Fatal(err)
				}
			}
			h := newHarness(t)
			h.close()
			h.dir, h.log, h.index = dir, want.log, want.index
			h.open()
			checkStore(t, h.store)
			sameFiles(t, dir, want.dir)
			h.reopen()
			checkStore(t, h.store)
		})
	}
}

// TestDamagedRunInUse damages blocks while the store has the run open: whoever
// meets the damage first has the run built again and gets the right answer.
func TestDamagedRunInUse(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for i := range 3 {
		h.put(fmt.Sprint("key-", i), fmt.Sprint(i))
		h.put("hot", fmt.Sprint(i))
		h.sealNow()
	}
	want := diskFiles(t, h.dir)
	first := uint64(0)
	for what, ask := range map[string]func() error{
		"get":     func() error { _, err := h.store.get([]byte("key-0"), selector{}); return err },
		"version": func() error { _, err := h.store.get([]byte("hot"), selector{version: 1}); return err },
		"at seq":  func() error { _, err := h.store.get([]byte("hot"), selector{atSeq: &[]uint64{2}[0]}); return err },
		"history": func() error { _, _, err := h.store.history([]byte("key-0"), noSeq, 10); return err },
		"list": func() error {
			found, _, err := h.store.list(nil, nil, 10)
			if len(found) != 4 {
				t.Errorf("listed %d keys", len(found))
			}
			return err
		},
		"apply": func() error {
			r := deleteRequest("key-0")
			r.ops[0].ifSeq = 99
			if res := h.do(r)[0]; res.outcome != outcomePrecondition || res.current != first {
				t.Errorf("result is %+v", res)
			}
			return h.failed
		},
	} {
		runs, _ := filepath.Glob(filepath.Join(h.dir, indexDir, "*"+runSuffix))
		for _, path := range runs {
			damage(t, path, runHeaderSize+3)
		}
		if err := ask(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for _, path := range runs { // those it did not need
			name := filepath.Join(indexDir, filepath.Base(path))
			if b, _ := os.ReadFile(path); string(b) != want[name] {
				damage(t, path, runHeaderSize+3)
			}
		}
		checkStore(t, h.store)
	}
	for name, data := range diskFiles(t, h.dir) {
		if want[name] != data {
			t.Errorf("file %s differs", name)
		}
	}
}

// TestDamagedRunAtMerge: a merge that meets damage repairs it and goes on.
func TestDamagedRunAtMerge(t *testing.T) {
	t.Parallel()
	want, h := uncrashed(t, 8), newHarness(t)
	h.close()
	h.fault = func(step string) error {
		runs, _ := filepath.Glob(filepath.Join(h.dir, indexDir, "0-*"+runSuffix))
		if step == "after move checkpoint" && len(runs) == 2 {
			damage(t, runs[0], runHeaderSize+3)
		}
		return nil
	}
	h.open()
	h.log, h.index = want.log, want.index
	h.fsm.ApplyBatch(h.log)
	wantSame(t, h, want)
}

// TestDamagedSegment: bytes of one entry are damaged; who asks for it is told
// the file and the entry, the others are served.
func TestDamagedSegment(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for i := range 4 {
		h.put(fmt.Sprint("key-", i), strings.Repeat(fmt.Sprint(i), 100))
	}
	h.sealNow()
	info := h.store.durable.Load().segments[0]
	path := h.store.segmentPath(info)
	f, err := h.store.segment(info)
	if err != nil {
		t.Fatal(err)
	}
	pl, err := f.placeOf(2)
	if err != nil {
		t.Fatal(err)
	}
	for what, at := range map[string]int64{"value": segmentHeaderSize + 250, "record": int64(f.recordsAt) + int64(pl.offset) + 30} {
		damage(t, path, at)
		for range 2 {
			_, err := h.store.get([]byte("key-2"), selector{})
			wantError(t, err, errCorrupt, path, "entry 2: ", "CRC")
			_, err = h.store.entryAt(2)
			wantError(t, err, errCorrupt, path, "entry 2: ")
			for _, i := range []int{0, 1, 3} {
				e, err := h.store.get(fmt.Append(nil, "key-", i), selector{})
				if err != nil || valueOf(t, &e) != strings.Repeat(fmt.Sprint(i), 100) {
					t.Errorf("%s damaged: key-%d: %v", what, i, err)
				}
			}
			_, _, err = h.store.list(nil, nil, 10)
			if (err != nil) != (what == "record") {
				t.Errorf("%s damaged: listing gives %v", what, err)
			}
			h.reopen()
		}
		damage(t, path, at) // and back
	}
	if e, err := h.store.get([]byte("key-2"), selector{}); err != nil || valueOf(t, &e) != strings.Repeat("2", 100) {
		t.Errorf("repaired: %v", err)
	}
	damage(t, path, segmentHeaderSize+250)
	if e := h.put("key-2", "new"); e.version != 2 || e.prev != 2 {
		t.Errorf("a put on a damaged version gives %+v", e)
	}
}

// TestSegmentsAtOpen: a segment that is not the one D names is refused, by name.
func TestSegmentsAtOpen(t *testing.T) {
	t.Parallel()
	good := newHarness(t)
	for i := range 3 {
		good.put(fmt.Sprint("key-", i), "value")
		good.sealNow()
	}
	path := good.store.segmentPath(good.store.durable.Load().segments[1])
	other := good.store.segmentPath(good.store.durable.Load().segments[2])
	good.close()
	name := func(path, dir string) string { return filepath.Join(dir, segmentDir, filepath.Base(path)) }
	for want, harm := range map[string]func(path, dir string) error{
		"no such file":            func(p, dir string) error { return os.Remove(p) },
		"file has 100 bytes":      func(p, dir string) error { return os.Truncate(p, 100) },
		"footer lacks its magic":  func(p, dir string) error { return os.Truncate(p, 200) },
		"not a segment file":      func(p, dir string) error { damage(t, p, 0); return nil },
		"segment header has CRC":  func(p, dir string) error { damage(t, p, 40); return nil },
		"segment footer has CRC":  func(p, dir string) error { damage(t, p, -30); return nil },
		"the manifest says":       func(p, dir string) error { return copyOver(name(other, dir), p) },
		"belongs to cluster 0900": func(p, dir string) error { return foreignSegment(p) },
	} {
		t.Run(want, func(t *testing.T) {
			dir := copyDir(t, good.dir)
			path := name(path, dir)
			if err := harm(path, dir); err != nil {
				t.Fatal(err)
			}
			h := newHarness(t)
			h.close()
			h.dir = dir
			err := h.tryOpen()
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error is %v, want %q", err, want)
			}
			if err := h.tryOpen(); err == nil { // nothing was repaired or is held open
				t.Error("the second try succeeds")
			}
			if err := copyOver(name(filepath.Base(path), good.dir), path); err != nil {
				t.Fatal(err)
			}
			h.open()
			checkStore(t, h.store)
		})
	}
}

// copyOver copies a file over another.
func copyOver(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// foreignSegment makes a segment file one of another cluster.
func foreignSegment(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	copy(b[16:], append([]byte{9}, make([]byte, 15)...))
	resealSegment(b)
	return os.WriteFile(path, b, 0o600)
}

// TestWriteDurably: a writer that fails leaves nothing, and not a changed file.
func TestWriteDurably(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	write := func(text string, err error) error {
		return writeDurably(path, func(w io.Writer) error {
			if _, err := io.WriteString(w, text); err != nil {
				return err
			}
			return err
		})
	}
	if err := write("one", nil); err != nil {
		t.Fatal(err)
	}
	if err := write("two", errCrash); !errors.Is(err, errCrash) {
		t.Errorf("error is %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "one" {
		t.Errorf("file holds %q, %v", b, err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("left %v", names)
	}
	if err := writeDurably(filepath.Join(dir, "none", "x"), func(io.Writer) error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}

// TestMakeDir: a data directory is made with what is missing above it, and one
// that is there stays as it is.
func TestMakeDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "c")
	for range 2 {
		if err := makeDir(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := makeDir(filepath.Join(dir, "x")); err == nil {
		t.Error("a file passed for a directory")
	}
	if err := makeDir(filepath.Join(dir, "x", "y")); err == nil {
		t.Error("a directory was made below a file")
	}
}
