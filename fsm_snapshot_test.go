package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// goldenSnapshot is the snapshot in testdata/snapshot-1.bin.
func goldenSnapshot() *snapshot {
	fill := func(b byte) hash { return hash(bytes.Repeat([]byte{b}, 32)) }
	at := goldenCheckpoint()
	at.windowOldest = 4
	return &snapshot{
		cluster: testClusterID,
		at:      at,
		segments: []segmentInfo{
			{first: 0, count: 100, size: 5000, time: 1_700_000_000_005, root: fill(0x11), sum: fill(0x12), object: "ab/cd.gz"},
			{first: 100, count: 50, size: 2500, time: 1_700_000_000_009, root: fill(0x33), sum: fill(0x34)},
		},
		window: goldenWindow()[1:],
	}
}

func TestSnapshotGolden(t *testing.T) {
	want := goldenSnapshot()
	wantGolden(t, want.append(nil), "snapshot-1.bin")
	got, err := parseSnapshot(golden(t, "snapshot-1.bin"))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("parsed %+v, %v; want %+v", got, err, want)
	}
	if got := want.append([]byte("before")); !bytes.Equal(got[6:], golden(t, "snapshot-1.bin")) {
		t.Error("snapshot after other bytes differs")
	}
}

func TestSnapshotCutAndFlipped(t *testing.T) {
	b := golden(t, "snapshot-1.bin")
	eachCut(b, func(cut []byte) {
		_, err := parseSnapshot(cut)
		wantError(t, err, errCorrupt)
	})
	eachFlip(b, func(flipped []byte, at int) {
		_, err := parseSnapshot(flipped)
		wantError(t, err, errCorrupt)
	})
	// With the right SHA-256 the fields behind it are what is left to check.
	eachCut(b[:len(b)-32], func(cut []byte) { checkSnapshot(t, resealSnapshot(cut)) })
	eachFlip(b[:len(b)-32], func(flipped []byte, at int) { checkSnapshot(t, resealSnapshot(flipped)) })
}

// TestSnapshotOfNewerVersion: it is refused as such, by its version, and nothing changes.
func TestSnapshotOfNewerVersion(t *testing.T) {
	leader, h := grown(t), newHarness(t)
	b := leader.snapshot()
	b[7] = '3'
	b = resealSnapshot(b[:len(b)-sha256.Size])
	wantError(t, h.fsm.Restore(io.NopCloser(bytes.NewReader(b))), errFormat, "snapshot has version '3', this program reads 1 to 2")
	if m := &h.store.o.metrics.snapshot; h.fsm.index != 0 || h.failed != nil || m.refused[snapshotVersion].value() != 1 || m.installed.value() != 0 {
		t.Errorf("it changed something: index %d, %v", h.fsm.index, h.failed)
	}
}

// resealSnapshot appends the SHA-256 of b.
func resealSnapshot(b []byte) []byte {
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// checkSnapshot fails unless parseSnapshot refused b or found what b encodes.
func checkSnapshot(t *testing.T, b []byte) {
	t.Helper()
	s, err := parseSnapshot(b)
	if err != nil {
		if newer := b[7] != '1' && b[7] != '2'; !errors.Is(err, errCorrupt) && !(newer && errors.Is(err, errFormat)) {
			t.Fatal(err)
		}
		return
	}
	if got := s.append(nil); !bytes.Equal(got, b) {
		t.Fatalf("accepted\n%x and encodes it as\n%x", b, got)
	}
	next := uint64(0)
	for _, i := range s.segments {
		if i.first != next || i.count == 0 {
			t.Fatalf("accepted segments %+v", s.segments)
		}
		next = i.end()
	}
	if next != s.at.size || s.at.confirmed > uint64(len(s.segments)) {
		t.Fatalf("accepted a checkpoint at %d with segments to %d", s.at.size, next)
	}
	newWindow(s.window, &s.at)
}

func TestSnapshotRefuses(t *testing.T) {
	for want, change := range map[string]func(*snapshot){
		"segment from entry 101, want 100":   func(s *snapshot) { s.segments[1].first++ },
		"segment from entry 99, want 100":    func(s *snapshot) { s.segments[1].first-- },
		"segment from entry 1, want 0":       func(s *snapshot) { s.segments[0].first++ },
		"end at entry 151, its checkpoint":   func(s *snapshot) { s.segments[1].count++ },
		"its checkpoint at 149":              func(s *snapshot) { s.at.size-- },
		"end at entry 100, its checkpoint":   func(s *snapshot) { s.segments = s.segments[:1] },
		"end at entry 150, its checkpoint":   func(s *snapshot) { s.at.confirmed = 3 },
		"segment info covers 0 entries":      func(s *snapshot) { s.segments[1].count = 0 },
		"entries from 100":                   func(s *snapshot) { s.segments[1].count = noSeq },
		"segments end at entry 0, its check": func(s *snapshot) { s.segments = nil; s.at.confirmed = 0 },
	} {
		s := goldenSnapshot()
		change(s)
		_, err := parseSnapshot(s.append(nil))
		wantError(t, err, errCorrupt, want)
	}
	b := golden(t, "snapshot-1.bin")
	_, err := parseSnapshot(resealSnapshot(append(slices.Clone(b[:len(b)-32]), 0)))
	wantError(t, err, errCorrupt, "wrong length")
}

func FuzzSnapshot(f *testing.F) {
	b := golden(f, "snapshot-1.bin")
	f.Add(b[:len(b)-32])
	f.Add((&snapshot{}).append(nil)[:24+76+8])
	f.Fuzz(func(t *testing.T, b []byte) {
		parseSnapshot(b)
		checkSnapshot(t, resealSnapshot(b))
	})
}

// grown returns a harness with segments, an open window and entries behind D.
func grown(t *testing.T) *harness {
	h := newHarness(t)
	for i := range 3 {
		for k := range 4 {
			h.put(string(rune('a'+(i+k)%5)), strings.Repeat("v", i*k))
		}
		keyed := putRequest("keyed", "x")
		keyed.idempotencyKey = string(rune('A' + i))
		h.do(keyed)
		h.sealNow()
		h.confirm()
		h.archive(i / 2)
	}
	h.do(deleteRequest("a"))
	return h
}

// TestInstall brings an empty node to the leader's D, gives it the log behind
// and has both answer alike from then on, over restarts.
func TestInstall(t *testing.T) {
	t.Parallel()
	leader, h := grown(t), newHarness(t)
	var installed *snapshot
	h.fsm.installed = func(s *snapshot) { installed = s }
	if err := h.restore(leader.snapshot(), leader); err != nil {
		t.Fatal(err)
	}
	d := leader.store.durable.Load().at
	if installed == nil || h.fsm.index != d.index || h.fsm.term != d.term || h.fsm.appliedIndex.Load() != d.index || h.store.size() != d.size {
		t.Fatalf("installed %+v: index %d, %d entries; want %d, %d", installed, h.fsm.index, h.store.size(), d.index, d.size)
	}
	h.log = leader.log
	h.index, h.clock = leader.index, leader.clock
	h.fsm.ApplyBatch(h.log)
	for round := range 3 {
		leader.settle()
		h.settle()
		sameFiles(t, h.dir, leader.dir)
		checkStore(t, h.store)
		if a, b := h.store.size(), leader.store.size(); a != b {
			t.Fatalf("%d entries, the leader has %d", a, b)
		}
		if round == 0 {
			h.reopen()
		}
		keyed := putRequest("keyed", "again")
		keyed.idempotencyKey = "B"
		for _, n := range []*harness{h, leader} {
			res := n.do(keyed, putRequest("new", "y"), deleteRequest("a"))
			if r := res[0]; r.headers != nil || r.count != 1 || r.first != 9 {
				t.Fatalf("a repeat is answered %+v", r)
			}
			if res[2].outcome != outcomeNotFound {
				t.Fatalf("deleting what is deleted: %+v", res[2])
			}
			n.sealNow()
		}
	}
}

// TestInstallSeenLate: a snapshot of what this node has changes nothing, one
// that goes on from it brings only what is new.
func TestInstallSeenLate(t *testing.T) {
	t.Parallel()
	leader, h := grown(t), newHarness(t)
	old := leader.snapshot()
	h.log, h.index, h.clock = slices.Clone(leader.log), leader.index, leader.clock
	h.fsm.ApplyBatch(h.log)
	h.settle()
	if err := h.restore(old, leader); err != nil || h.fsm.index != leader.index {
		t.Fatalf("an old snapshot: %v, index %d", err, h.fsm.index)
	}
	h.put("of a term that lost", "x") // pending only: gone after the install
	h.log, h.index = h.log[:len(h.log)-1], h.index-1

	leader.put("z", "1")
	leader.sealNow()
	h.fsm.fetch = func(s *snapshot) (got []fetchedSegment, err error) { // began before this node had sealed any
		for _, info := range s.segments {
			f, ferr := h.store.fetchSegment(info, copyFile(leader.store.segmentPath(info)))
			got, err = append(got, f), errors.Join(err, ferr)
		}
		return got, err
	}
	if err := h.fsm.Restore(io.NopCloser(bytes.NewReader(leader.snapshot()))); err != nil {
		t.Fatal(err)
	}
	sameFiles(t, h.dir, leader.dir)
	checkStore(t, h.store)
	if _, err := h.store.get([]byte("of a term that lost"), selector{}); !errors.Is(err, errNotFound) {
		t.Errorf("an entry from before the install is there: %v", err)
	}
	if e, err := h.store.get([]byte("z"), selector{}); err != nil || valueOf(t, &e) != "1" {
		t.Errorf("the new entry is not: %v", err)
	}
}

// TestInstallRefused: nothing changes, and the node goes on unless it has diverged.
func TestInstallRefused(t *testing.T) {
	leader, h := grown(t), newHarness(t)
	snap := leader.snapshot()
	h.fsm.fetch = func(*snapshot) ([]fetchedSegment, error) { return nil, errFetching }
	restore := func(b []byte) error { return h.fsm.Restore(io.NopCloser(bytes.NewReader(b))) }

	wantError(t, restore(snap), errFetching)
	wantError(t, restore(snap[:len(snap)-1]), errCorrupt)
	foreign, _ := parseSnapshot(snap)
	foreign.cluster = clusterID{9}
	if err := restore(foreign.append(nil)); err == nil || !strings.Contains(err.Error(), "snapshot is of cluster 0900") {
		t.Errorf("foreign snapshot: %v", err)
	}
	broken, _ := parseSnapshot(snap)
	broken.window = nil
	wantError(t, h.restore(broken.append(nil), leader), errCorrupt, "idempotency window")
	if h.failed != nil || h.fsm.index != 0 || h.store.size() != 0 || h.store.durable.Load().at.index != 0 {
		t.Fatalf("a refused snapshot changed something: %v", h.failed)
	}
	unreadable := errors.New("connection reset")
	if err := h.fsm.Restore(io.NopCloser(&failingReader{unreadable})); !errors.Is(err, unreadable) {
		t.Errorf("error is %v", err)
	}

	h.put("a", "this node's own")
	h.sealNow()
	err := h.restore(snap, leader)
	wantError(t, err, errDiverged, "entries 0 to 0: root here is", "in the leader's snapshot")
	if h.failed != err || restore(snap) != err {
		t.Errorf("failed with %v", h.failed)
	}
}

// failingReader fails at once.
type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) { return 0, r.err }

// TestFetchDamaged: a bad copy is not kept, whether it came over the network or
// was left on the disk, and the next try gets a good one.
func TestFetchDamaged(t *testing.T) {
	t.Parallel()
	leader, h := grown(t), newHarness(t)
	info := leader.store.durable.Load().segments[0]
	good, err := os.ReadFile(leader.store.segmentPath(info))
	if err != nil {
		t.Fatal(err)
	}
	damaged := func(at int) []byte {
		b := slices.Clone(good)
		b[at] ^= 1
		return b
	}
	body := func(b []byte) segmentSource {
		return func(from uint64, w io.Writer) error { _, err := w.Write(b[from:]); return err }
	}
	for name, b := range map[string][]byte{"value": damaged(70), "end": damaged(len(good) - 1), "cut": good[:len(good)-1], "nothing": nil} {
		_, err := h.store.fetchSegment(info, body(b))
		wantError(t, err, errCorrupt, "fetching segment "+info.id(), "SHA-256 is")
		if files := diskFiles(t, h.dir); len(files) != 0 {
			t.Errorf("%s: left %d files", name, len(files))
		}
	}
	lost := errors.New("connection reset")
	if _, err := h.store.fetchSegment(info, func(_ uint64, w io.Writer) error { w.Write(good[:50]); return lost }); !errors.Is(err, lost) {
		t.Errorf("error is %v", err)
	}

	for _, at := range []int{len(good) - 100, len(good) - 1, 3} { // in a record, in the footer, in the header
		if err := os.WriteFile(h.store.segmentPath(info), damaged(at), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := h.store.fetchSegment(info, body(good))
		if err != nil {
			wantError(t, err, errCorrupt, info.id())
			_, err = h.store.fetchSegment(info, body(good))
		}
		if err != nil {
			t.Errorf("byte %d: the second try gives %v", at, err)
		}
		if err := h.restore(leader.snapshot(), leader); err != nil {
			t.Errorf("byte %d: %v", at, err)
		}
		h.close()
		h.dir = t.TempDir()
		h.open()
	}
}

// TestSealedWhileFetched: a slow follower gets a segment from the leader and,
// meanwhile, seals the same one from its log. Both write the same files.
func TestSealedWhileFetched(t *testing.T) {
	leader, h := grown(t), newHarness(t)
	info := leader.store.durable.Load().segments[0]
	body := copyFile(leader.store.segmentPath(info))
	_, err := h.store.fetchSegment(info, func(_ uint64, w io.Writer) error {
		h.log, h.index, h.clock = slices.Clone(leader.log), leader.index, leader.clock
		h.fsm.ApplyBatch(h.log)
		h.settle()
		return body(0, w)
	})
	if err != nil {
		t.Error(err)
	}
	if err := h.restore(leader.snapshot(), leader); err != nil {
		t.Error(err)
	}
	sameFiles(t, h.dir, leader.dir)
	h.reopen()
	checkStore(t, h.store)
}
