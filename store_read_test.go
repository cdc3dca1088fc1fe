package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
)

func TestWaitSize(t *testing.T) {
	h := newHarness(t)
	h.put("a", "1")
	for n := range uint64(2) {
		if err := h.store.waitSize(t.Context(), n); err != nil {
			t.Errorf("waiting for %d: %v", n, err)
		}
	}
	var waiting sync.WaitGroup
	for n := range uint64(4) {
		waiting.Go(func() {
			if err := h.store.waitSize(t.Context(), n); err != nil || h.store.size() < n {
				t.Errorf("waited for %d, size is %d, %v", n, h.store.size(), err)
			}
		})
	}
	h.put("a", "2")
	h.sealNow()
	h.put("a", "3")
	waiting.Wait()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.store.waitSize(ctx, 4); !errors.Is(err, context.Canceled) || len(h.store.waiters) != 0 {
		t.Errorf("gave up with %v, %d still wait", err, len(h.store.waiters))
	}
	// An installed snapshot brings the size, too.
	behind := newHarness(t)
	waiting.Go(func() {
		if err := behind.store.waitSize(t.Context(), 2); err != nil {
			t.Error(err)
		}
	})
	if err := behind.restore(h.snapshot(), h); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
}

func TestPendingInfo(t *testing.T) {
	h := newHarness(t)
	if _, ok := h.store.pendingSince(); ok {
		t.Error("an empty segment is pending since some time")
	}
	first := h.put("a", "1")
	h.put("b", "2")
	if ms, ok := h.store.pendingSince(); !ok || ms != first.time {
		t.Errorf("pending since %d, %v; want %d", ms, ok, first.time)
	}
	_, count, size := h.store.pendingInfo()
	h.sealNow()
	info := h.store.durable.Load().segments[0]
	if count != info.count || size+segmentHeaderSize+segmentFooterSize != info.size {
		t.Errorf("%d entries with %d bytes were pending, the segment is %+v", count, size, info)
	}
	if first, count, size := h.store.pendingInfo(); first != 2 || count != 0 || size != 0 {
		t.Errorf("pending are %d entries from %d, %d bytes", count, first, size)
	}
}

// TestSegmentByID: clients see confirmed segments only.
func TestSegmentByID(t *testing.T) {
	h := newHarness(t)
	h.put("a", "1")
	h.sealNow()
	info := h.store.durable.Load().segments[0]
	if _, _, err := h.store.segmentByID(info.id()); !errors.Is(err, errNotFound) {
		t.Errorf("not confirmed: %v", err)
	}
	h.confirm()
	f, got, err := h.store.segmentByID(info.id())
	if err != nil || got != info || f.root != info.root {
		t.Errorf("segment is %+v, %v", got, err)
	}
	path := h.store.segmentPath(info)
	file, _, err := h.store.sealedFile(info.id())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if b, err := io.ReadAll(file); err != nil || uint64(len(b)) != info.size || sha256.Sum256(b) != info.sum {
		t.Errorf("file has %d bytes, %v", len(b), err)
	}
	sound := func() bool {
		st, err := os.Stat(path)
		return err == nil && h.store.scrub.wasSound(info, st)
	}
	if !sound() {
		t.Error("a file that was just read whole is read whole again")
	}
	flipBit(t, path, segmentHeaderSize, 1)
	if _, _, err := h.store.sealedFile(info.id()); !errors.Is(err, errCorrupt) || sound() {
		t.Errorf("a file that was written since is opened: %v", err)
	}
	flipBit(t, path, segmentHeaderSize, 1)
	again, _, err := h.store.sealedFile(info.id())
	if err != nil || !sound() {
		t.Fatal("as it was, the file is not opened", err)
	}
	again.Close()
	h.store.noteDamage(segmentName(info), diskDamage{err: errCorrupt, segment: &info})
	if sound() {
		t.Error("a file that was found damaged is sound")
	}
	if _, _, err := h.store.sealedFile("x"); !errors.Is(err, errNotFound) {
		t.Errorf("error is %v", err)
	}
	for at := range int64(info.size) {
		flipBit(t, path, at, uint(at%8))
		if f, _, err := h.store.sealedFile(info.id()); !errors.Is(err, errCorrupt) {
			f.Close()
			t.Errorf("file with a flipped bit in byte %d: %v", at, err)
		}
		flipBit(t, path, at, uint(at%8))
	}
}

// TestReadMeanwhile reads while entries are written, sealed and merged: a
// reader never goes back and never misses what was there when it began.
func TestReadMeanwhile(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.put("hot", "0")
	s := h.store
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for r := range 3 {
		readers.Go(func() {
			last := uint64(0)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				size := s.size()
				e, err := s.get([]byte("hot"), selector{})
				if err != nil || e.version <= last && last > 0 && e.version != last || valueOf(t, &e) != fmt.Sprint(e.version-1) {
					t.Errorf("after version %d: version %d, %v", last, e.version, err)
					return
				}
				last = e.version
				switch (n + r) % 3 {
				case 0:
					all, next, err := s.history([]byte("hot"), noSeq, 1<<20)
					if err != nil || next != nil || uint64(len(all)) < last || all[len(all)-1].version != 1 {
						t.Errorf("history of %d versions has %d, %v", last, len(all), err)
						return
					}
				case 1:
					found, _, err := s.list(nil, nil, 1<<20)
					if err != nil || uint64(len(found)) < size/2 {
						t.Errorf("list of %d keys, %d entries, %v", len(found), size, err)
						return
					}
				case 2:
					e, err := s.entryAt(size - 1)
					if err != nil || e.seq != size-1 {
						t.Errorf("entry %d is %d, %v", size-1, e.seq, err)
						return
					}
				}
			}
		})
	}
	for i := range 10 {
		for k := range 5 {
			h.do(putRequest(fmt.Sprintf("key-%d-%d", i, k), ""), putRequest("hot", fmt.Sprint(5*i+k+1)))
		}
		h.seal()
	}
	h.settle()
	close(stop)
	readers.Wait()
	checkStore(t, s)
}
