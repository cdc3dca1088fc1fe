package main

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"
)

// harness drives an FSM over a real store as Raft would, and keeps the log.
type harness struct {
	t     testing.TB
	dir   string
	fault func(step string) error // for the next open
	tune  func(*storeOptions)     // the same

	store  *store
	fsm    *fsm
	failed error                 // what fsm.fail got
	fatal  atomic.Pointer[error] // what store.fatal got

	log   []*raft.Log // everything committed
	index uint64      // of the last entry of the log
	term  uint64
	clock int64
	ids   uint64 // of uploads
}

var testClusterID = clusterID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

const testUploadLimit = 1 << 20

// newHarness opens an empty store in a directory of its own.
func newHarness(t testing.TB) *harness {
	t.Helper()
	h := &harness{t: t, dir: t.TempDir(), term: 1, clock: 1_700_000_000_000}
	t.Cleanup(h.close)
	h.open()
	return h
}

// options are those with which open opens the store.
func (h *harness) options() storeOptions {
	o := storeOptions{
		dir: h.dir, cluster: testClusterID, logger: testLogger(h.t), metrics: newMetrics(), fault: h.fault,
		fatal: func(err error) { h.fatal.CompareAndSwap(nil, &err) },
	}
	if h.tune != nil {
		h.tune(&o)
	}
	return o
}

// open opens the store at D and replays the log behind it.
func (h *harness) open() {
	h.t.Helper()
	if err := h.tryOpen(); err != nil {
		h.t.Fatal(err)
	}
}

// tryOpen is open where it may fail.
func (h *harness) tryOpen() error {
	s, err := openStore(h.options())
	if err != nil {
		return err
	}
	h.failed = nil
	h.fatal.Store(nil)
	f, err := newFSM(s, testUploadLimit, func(err error) { h.failed = err })
	if err != nil {
		s.close()
		return err
	}
	h.store, h.fsm = s, f
	f.installed = func(*snapshot) {}
	f.ApplyBatch(h.log)
	return nil
}

// close closes the store as a process that ends.
func (h *harness) close() {
	if h.store != nil {
		h.store.close()
		h.store = nil
	}
}

// reopen ends and starts the process.
func (h *harness) reopen() {
	h.t.Helper()
	h.close()
	h.open()
}

// commit appends commands to the log and applies them as one batch.
func (h *harness) commit(commands ...[]byte) []any {
	logs := make([]*raft.Log, len(commands))
	for i, c := range commands {
		h.index++
		logs[i] = &raft.Log{Index: h.index, Term: h.term, Type: raft.LogCommand, Data: c}
	}
	h.log = append(h.log, logs...)
	return h.fsm.ApplyBatch(logs)
}

// newTerm elects another leader.
func (h *harness) newTerm() { h.term++ }

// pack encodes requests as a command.
func (h *harness) pack(requests ...*request) []byte {
	h.clock++
	b := appendPackHeader(nil, h.clock)
	for _, r := range requests {
		b = appendRequest(b, r)
	}
	return b
}

// do commits requests as one pack and returns their results.
func (h *harness) do(requests ...*request) []result {
	h.t.Helper()
	return h.results(h.commit(h.pack(requests...))[0])
}

// results checks that a response to a pack brings results.
func (h *harness) results(response any) []result {
	h.t.Helper()
	res, ok := response.([]result)
	if !ok {
		h.t.Fatalf("response is %v", response)
	}
	return res
}

// put commits one unconditional put and returns its header.
func (h *harness) put(key, value string) header {
	h.t.Helper()
	res := h.do(putRequest(key, value))
	if res[0].outcome != outcomeApplied {
		h.t.Fatalf("put of %q: %+v", key, res[0])
	}
	return mustHeader(h.t, res[0].headers[0])
}

// seal closes the pending segment without waiting for the disk.
func (h *harness) seal() {
	h.t.Helper()
	h.clock++
	if err, ok := h.commit(appendSeal(nil, h.clock, h.store.pending.first))[0].(error); ok {
		h.t.Fatal(err)
	}
}

// confirm commits the leader's description of every segment on this disk.
func (h *harness) confirm() {
	h.t.Helper()
	for info, ok := h.store.unconfirmed(); ok; info, ok = h.store.unconfirmed() {
		if err, ok := h.commit(appendConfirm(nil, info, hash{}))[0].(error); ok {
			h.t.Fatal(err)
		}
	}
}

// settle waits until all closed segments are on disk and all runs are merged.
func (h *harness) settle() {
	h.t.Helper()
	eventually(h.t, "the disk does not settle", func() bool {
		if err := h.fatal.Load(); err != nil {
			h.t.Fatal(*err)
		}
		h.store.lists.Lock() // a merge removes the old files before it lets go
		_, _, full := h.store.index.nextMerge()
		h.store.lists.Unlock()
		return !full && h.sealed()
	})
}

// sealed tells whether all closed segments are on disk.
func (h *harness) sealed() bool {
	return h.store.backlog() == 0 && h.store.durable.Load().at.size == h.store.manifest.Load().end()
}

// sealNow seals and waits until the segment is on disk.
func (h *harness) sealNow() {
	h.t.Helper()
	h.seal()
	h.waitSealed()
}

// waitSealed waits until all closed segments are on disk.
func (h *harness) waitSealed() {
	h.t.Helper()
	eventually(h.t, "the segment is not on disk", func() bool {
		if err := h.fatal.Load(); err != nil {
			h.t.Fatal(*err)
		}
		return h.sealed()
	})
}

// upload cuts a command into n parts.
func (h *harness) upload(command []byte, n int) [][]byte {
	h.ids++
	var parts [][]byte
	size := (len(command) + n - 1) / n
	for at := 0; at < len(command); at += size {
		b := appendPartHeader(nil, h.ids, uint32(at), uint32(len(command)))
		parts = append(parts, append(b, command[at:min(at+size, len(command))]...))
	}
	return parts
}

// snapshot returns the bytes of D as a leader sends them.
func (h *harness) snapshot() []byte {
	h.t.Helper()
	state, err := h.store.checkpoint()
	if err != nil {
		h.t.Fatal(err)
	}
	return (&snapshot{testClusterID, state.at, state.segments, state.window}).append(nil)
}

// restore installs a snapshot, taking segments from the directory of another.
func (h *harness) restore(snap []byte, from *harness) error {
	h.fsm.fetch = func(s *snapshot) ([]fetchedSegment, error) {
		var got []fetchedSegment
		for _, info := range s.segments {
			if info.first < h.store.durable.Load().at.size {
				continue
			}
			f, err := h.store.fetchSegment(info, copyFile(from.store.segmentPath(info)))
			if err != nil {
				return nil, err
			}
			got = append(got, f)
		}
		return got, nil
	}
	return h.fsm.Restore(io.NopCloser(bytes.NewReader(snap)))
}

// copyFile returns a source for fetchSegment: the bytes of a file.
func copyFile(path string) segmentSource {
	return func(from uint64, w io.Writer) error {
		b, err := os.ReadFile(path)
		if err == nil {
			_, err = w.Write(b[from:])
		}
		return err
	}
}

// diskFiles reads the files a store has in segments/ and index/.
func diskFiles(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	for _, sub := range []string{segmentDir, indexDir} {
		names, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			b, err := os.ReadFile(filepath.Join(dir, sub, n.Name()))
			if err != nil {
				t.Fatal(err)
			}
			files[filepath.Join(sub, n.Name())] = string(b)
		}
	}
	return files
}

// sameFiles fails unless both directories have the same files with the same bytes.
func sameFiles(t testing.TB, got, want string) {
	t.Helper()
	g, w := diskFiles(t, got), diskFiles(t, want)
	if !maps.Equal(g, w) {
		for _, name := range slices.Sorted(maps.Keys(g)) {
			if v, ok := w[name]; !ok {
				t.Errorf("file %s should not be there", name)
			} else if v != g[name] {
				t.Errorf("file %s has other bytes", name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(w)) {
			if _, ok := g[name]; !ok {
				t.Errorf("file %s is missing", name)
			}
		}
		t.FailNow()
	}
}

// copyDir copies a store's directory, whose store must be closed.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// putRequest returns a request for one unconditional put.
func putRequest(key, value string) *request {
	return &request{ops: []operation{{kind: opPut, key: []byte(key), value: []byte(value), ifSeq: noSeq}}}
}

// deleteRequest returns a request for one unconditional delete.
func deleteRequest(key string) *request {
	return &request{ops: []operation{{kind: opDelete, key: []byte(key), ifSeq: noSeq}}}
}

// mustHeader parses a canonical header.
func mustHeader(t testing.TB, raw []byte) header {
	t.Helper()
	h, err := parseHeader(raw)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// wantError fails unless err wraps target and its text has all words.
func wantError(t testing.TB, err, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error is %v, want one that wraps %q", err, target)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error is %q, want %q in it", err, w)
		}
	}
}

// caught calls f and returns what it panics with, or nil.
func caught(f func()) (p any) {
	defer func() { p = recover() }()
	f()
	return nil
}

// golden reads a file that testdata/formats.py wrote.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// wantGolden fails unless got has the bytes of the golden file.
func wantGolden(t testing.TB, got []byte, name string) {
	t.Helper()
	if want := golden(t, name); !bytes.Equal(got, want) {
		t.Errorf("%d bytes that differ from the %d of testdata/%s:\n%.200x\n%.200x", len(got), len(want), name, got, want)
	}
}

// eachCut calls f with b cut at every length but its own.
func eachCut(b []byte, f func(cut []byte)) {
	for n := range b {
		f(slices.Clone(b[:n]))
	}
}

// eachFlip calls f with b, every byte of it flipped in turn, and its place; under
// the race detector some bytes.
func eachFlip(b []byte, f func(flipped []byte, at int)) {
	step := 1
	if raceDetector {
		step = 5
	}
	for i := 0; i < len(b); i += step {
		c := slices.Clone(b)
		c[i] ^= 1 << (i % 8)
		f(c, i)
		c = slices.Clone(b)
		c[i] ^= 0xff
		f(c, i)
	}
}

// newRand returns random numbers whose seed is in the test's output; the
// environment's SEED gives them again.
func newRand(t testing.TB) *rand.Rand {
	seed, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
