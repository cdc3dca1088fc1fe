package main

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"testing"
)

// goldenArchived is the command in testdata/archived-command-1.bin.
func goldenArchived() []byte {
	return appendArchived(nil, 1<<40, packedName(1<<40, hash(bytes.Repeat([]byte{0x31}, 32))))
}

func TestArchivedGolden(t *testing.T) {
	b := golden(t, "archived-command-1.bin")
	wantGolden(t, goldenArchived(), "archived-command-1.bin")
	first, object, err := parseArchived(b[1:])
	if err != nil || first != 1<<40 || !bytes.Equal(appendArchived(nil, first, object), b) {
		t.Errorf("parsed %d, %q, %v", first, object, err)
	}
	_, _, err = parseArchived(appendArchived(nil, 7, object)[1:])
	wantError(t, err, errCorrupt, "for entry 7 with object")
}

func TestManifestArchived(t *testing.T) {
	m := mustSeal(t, &manifest{}, 10, 10, 10)
	for range 2 {
		next, _, err := m.withConfirmed(m.segments[m.confirmed].written())
		if err != nil {
			t.Fatal(err)
		}
		m = next
	}
	before := slices.Clone(m.segments)
	next, changed := m.withArchived(10, "x")
	if !changed || next.version != 3 || next.confirmed != 2 || next.segments[1].object != "x" || !slices.Equal(m.segments, before) {
		t.Fatalf("manifest is %+v, %v", next, changed)
	}
	for name, first := range map[string]uint64{"again": 10, "not confirmed": 20, "no segment": 30, "no first entry": 5} {
		if same, changed := next.withArchived(first, "y"); same != next || changed {
			t.Errorf("%s: changed", name)
		}
	}
	if prefix, total := next.archived(); prefix != 0 || total != 1 {
		t.Errorf("archived are %d, %d", prefix, total)
	}
	next, _ = next.withArchived(0, "y")
	if prefix, total := next.archived(); prefix != 2 || total != 2 {
		t.Errorf("archived are %d, %d", prefix, total)
	}
}

// archive commits that a segment, confirmed or not, lies in an object.
func (h *harness) archive(k int) {
	first := h.store.manifest.Load().segments[k].first
	h.commit(appendArchived(nil, first, packedName(first, hash{byte(first)})))
}

// TestArchivedReplay: whenever the process ends, the manifest is that of a replica
// that never did, and so is the one that a snapshot brings.
func TestArchivedReplay(t *testing.T) {
	h, steady := newHarness(t), newHarness(t)
	r := newRand(t)
	for i := range 60 {
		h.put(fmt.Sprint("key-", i), "value")
		switch r.IntN(4) {
		case 0:
			h.sealNow()
		case 1:
			h.confirm()
		case 2:
			if n := len(h.store.manifest.Load().segments); n > 0 {
				h.archive(r.IntN(n))
			}
		case 3:
			h.reopen()
		}
		steady.fsm.ApplyBatch(h.log)
		sameManifest(t, h.store, steady.store)
	}
	h.sealNow()
	steady.fsm.ApplyBatch(h.log)
	waitUntil(t, "all is on disk", func() bool { return h.store.backlog()+steady.store.backlog() == 0 })
	if a, b := h.store.durable.Load(), steady.store.durable.Load(); a.at.version != b.at.version || !slices.Equal(a.segments, b.segments) {
		t.Errorf("D is at version %d with %+v, steadily %d with %+v", a.at.version, a.segments, b.at.version, b.segments)
	}
	before := h.store.durable.Load()
	h.reopen()
	if after := h.store.durable.Load(); !reflect.DeepEqual(after.segments, before.segments) {
		t.Errorf("memory has %+v, ledger.db %+v", before.segments, after.segments)
	}
}

// sameManifest fails the test unless both stores have the same manifest, but for
// what is not known of a segment before its file is written.
func sameManifest(t *testing.T, a, b *store) {
	t.Helper()
	waitUntil(t, "all is on disk", func() bool { return a.backlog()+b.backlog() == 0 })
	if m, want := a.manifest.Load(), b.manifest.Load(); m.version != want.version || m.confirmed != want.confirmed || !slices.Equal(m.segments, want.segments) {
		t.Fatalf("manifest is %+v, want %+v", m, want)
	}
}

// TestArchivedInstall: a snapshot brings the objects of segments that a node has
// sealed itself, too.
func TestArchivedInstall(t *testing.T) {
	t.Parallel()
	leader, h := grown(t), newHarness(t)
	h.fsm.ApplyBatch(leader.log)
	h.log, h.index = leader.log, leader.index
	h.settle()
	for k := range 3 {
		leader.archive(k)
	}
	leader.sealNow()
	if err := h.restore(leader.snapshot(), leader); err != nil {
		t.Fatal(err)
	}
	if m := h.store.manifest.Load(); m.segments[2].object == "" {
		t.Errorf("segments are %+v", m.segments)
	}
	for range 2 {
		a, b := h.store.durable.Load(), leader.store.durable.Load()
		if a.at.version != b.at.version || !slices.Equal(a.segments, b.segments) {
			t.Errorf("D is at version %d with %+v, the leader's at %d with %+v", a.at.version, a.segments, b.at.version, b.segments)
		}
		h.log = leader.log
		h.reopen()
	}
}
