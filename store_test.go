package main

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

var updateStore = flag.Bool("update-store", false, "write testdata/store-1 again")

const goldenStore = "testdata/store-1"

// goldenLog does what the store in testdata/store-1 has seen: the golden pack,
// a second segment, the first one confirmed.
func goldenLog(h *harness) {
	h.commit(golden(h.t, "pack-1.bin"))
	h.sealNow()
	h.confirm()
	h.put("second", "segment")
	h.do(deleteRequest("b"))
	h.sealNow()
}

// TestStoreGolden opens a data directory that an earlier version wrote.
func TestStoreGolden(t *testing.T) {
	fresh := newHarness(t)
	goldenLog(fresh)
	fresh.close()
	if *updateStore {
		if err := os.RemoveAll(goldenStore); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(goldenStore, os.DirFS(fresh.dir)); err != nil {
			t.Fatal(err)
		}
	}
	if !maps.Equal(diskFiles(t, goldenStore), diskFiles(t, fresh.dir)) {
		t.Error("this version writes other segments or runs")
	}

	h := newHarness(t)
	h.close()
	h.dir = copyDir(t, goldenStore)
	h.open()
	checkStore(t, h.store)
	at := h.store.durable.Load().at
	if at.index != 6 || at.term != 1 || at.size != 7 || at.confirmed != 1 || at.version != 1 || at.windowNext != 3 {
		t.Errorf("D is %+v", at)
	}
	m := h.store.currentManifest()
	if want := "00000000000000000000-29b604cb7729637df49bedf5db9fc2a50bf2040ec00e17426f5507eb4c0a373f"; len(m.segments) != 1 || m.segments[0].id() != want {
		t.Errorf("manifest is %+v, want %s", m, want)
	}
	for key, want := range map[string]string{"second": "segment", "a": "deleted", "b": "deleted", "c": "not found"} {
		e, err := h.store.get([]byte(key), selector{})
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = valueOf(t, &e)
		}
		if got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if r, ok := h.fsm.window.find("batch"); !ok || r.outcome != outcomeApplied || r.first != 2 || r.count != 3 {
		t.Errorf("idempotency key is %+v, %v", r, ok)
	}
	h.index = at.index
	h.put("a", "goes on")
	h.sealNow()
	h.log = nil
	h.reopen()
	if e, err := h.store.get([]byte("a"), selector{}); err != nil || e.version != 3 || valueOf(t, &e) != "goes on" {
		t.Errorf("a is %+v, %v", e.header, err)
	}
}

// TestStoreFresh: a new directory is made, one that cannot be is refused.
func TestStoreFresh(t *testing.T) {
	h := newHarness(t)
	if err := h.store.close(); err != nil {
		t.Error(err)
	}
	if err := h.store.close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	h.dir = filepath.Join(h.dir, ledgerName, "below a file")
	if err := h.tryOpen(); err == nil {
		t.Error("opened a store below a file")
	}
}
