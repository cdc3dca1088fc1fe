package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
)

// TestListDamagedIndex: a run that cannot be read makes no list that leaves out its
// keys, also where those in memory would do to fill it.
func TestListDamagedIndex(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for i := range 10 {
		h.put(fmt.Sprint("disk-", i), "value")
	}
	h.sealNow()
	h.settle()
	for i := range 10 {
		h.put(fmt.Sprint("memory-", i), "value")
	}
	runs := h.store.index.runs()
	if len(runs) != 1 {
		t.Fatalf("%d runs", len(runs))
	}
	flipByte(t, filepath.Join(h.store.index.dir, runs[0].name()), runHeaderSize+7)
	found, more, err := h.store.list(nil, nil, 5)
	if err != nil || len(found) != 5 || !more {
		t.Fatalf("%d keys, %v, %v", len(found), more, err)
	}
	for i := range found {
		if want := fmt.Sprint("disk-", i); string(found[i].key) != want {
			t.Errorf("key %d is %q, want %q", i, found[i].key, want)
		}
	}
}

// TestListCold: however far apart the keys of a page lie in the ledger, each member
// is read once, with room for a few of them.
func TestListCold(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	s, objects := testBucket(t)
	h.useObjects(objects, 600<<10)
	r := newRand(t)
	order := r.Perm(1600)
	for half := range slices.Chunk(order, 800) {
		for batch := range slices.Chunk(half, 50) {
			var all []*request
			for _, i := range batch {
				all = append(all, putRequest(fmt.Sprintf("%s-%04d", bytes.Repeat([]byte("k"), 500), i), randomText(r, 8<<10)))
			}
			h.do(all...)
		}
		h.sealNow()
	}
	h.archiveAll(s, 6)
	h.dropAll()
	h.reopen()
	most := 0
	for _, info := range h.store.manifest.Load().shown() {
		f, err := h.store.segment(info)
		if err != nil {
			t.Fatal(err)
		}
		most += len(f.src.(*coldBytes).table.sums)
	}
	s.requests()
	found, more, err := h.store.list(nil, nil, 10_000)
	if err != nil || more || len(found) != len(order) {
		t.Fatalf("%d keys, %v, %v", len(found), more, err)
	}
	for i := range found {
		want := fmt.Sprintf("-%04d", i)
		if !bytes.HasSuffix(found[i].key, []byte(want)) || found[i].size != 8<<10 || found[i].raw == nil {
			t.Fatalf("element %d is %q of %d bytes", i, found[i].key, found[i].size)
		}
	}
	if n := len(s.requests()); n == 0 || n > most {
		t.Errorf("%d requests for %d keys, all segments have %d members", n, len(found), most)
	}
	s.fault(s3Get, "segments/", "503", -1)
	h.reopen()
	_, _, err = h.store.list(nil, nil, 10)
	wantError(t, err, errArchiveUnavailable)
}
