package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// onlyPart fails unless the directory of segments holds nothing but the part of
// info with these bytes; nil: nothing at all.
func (h *harness) onlyPart(info segmentInfo, want []byte) {
	h.t.Helper()
	files, err := filepath.Glob(filepath.Join(h.dir, segmentDir, "*"))
	if err != nil {
		h.t.Fatal(err)
	}
	if want == nil {
		if len(files) != 0 {
			h.t.Fatalf("left is %v", files)
		}
		return
	}
	if len(files) != 1 || files[0] != h.store.partPath(info) {
		h.t.Fatalf("left is %v, want the part alone", files)
	}
	if got, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(got, want) {
		h.t.Fatalf("the part has %d bytes (%v), want the %d that came", len(got), err, len(want))
	}
}

// TestPartResumes cuts the transfer of a segment all along, and the process
// after it or not: the next try gets only what is missing.
func TestPartResumes(t *testing.T) {
	t.Parallel()
	leader, h := grown(t), newHarness(t)
	info := leader.store.durable.Load().segments[0]
	good := readFile(t, leader.store.segmentPath(info))
	lost := errors.New("connection reset")
	for cut := 0; cut < len(good); cut += 9 {
		_, err := h.store.fetchSegment(info, func(from uint64, w io.Writer) error {
			if from != 0 {
				t.Errorf("the first try begins at %d", from)
			}
			w.Write(good[:cut])
			return lost
		})
		wantError(t, err, lost)
		h.onlyPart(info, good[:cut])
		if cut%5 == 0 {
			h.reopen()
			h.onlyPart(info, good[:cut])
		}
		_, err = h.store.fetchSegment(info, func(from uint64, w io.Writer) error {
			if from != uint64(cut) {
				t.Errorf("the second try begins at %d, want %d", from, cut)
			}
			_, err := w.Write(good[from:])
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := readFile(t, h.store.segmentPath(info)); !bytes.Equal(got, good) {
			t.Fatalf("cut at %d: the segment has other bytes", cut)
		}
		if err := os.Remove(h.store.segmentPath(info)); err != nil {
			t.Fatal(err)
		}
		h.onlyPart(info, nil)
	}
	if m := &h.store.o.metrics.fetch; m.resumed.value() == 0 || m.resumedBytes.value() == 0 {
		t.Error("nothing was counted as resumed")
	}
}

// TestPartDamaged flips each byte of a part that a crash left: it never becomes
// a segment, and the try after that begins anew. Bytes behind the end of the
// segment, and a part that is whole, are no trouble.
func TestPartDamaged(t *testing.T) {
	t.Parallel()
	leader, h := grown(t), newHarness(t)
	info := leader.store.durable.Load().segments[0]
	path := leader.store.segmentPath(info)
	good := readFile(t, path)
	try := func(left []byte) error {
		if err := os.WriteFile(h.store.partPath(info), left, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := h.store.fetchSegment(info, copyFile(path))
		return err
	}
	for at := range good {
		left := slices.Clone(good[:max(at+1, len(good)/2)])
		left[at] ^= 1
		wantError(t, try(left), errCorrupt, "SHA-256 is")
		h.onlyPart(info, nil)
	}
	for name, left := range map[string][]byte{"nothing": nil, "whole": good, "longer": append(slices.Clone(good), "tail"...)} {
		if err := try(left); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.Remove(h.store.segmentPath(info)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := h.store.fetchSegment(info, func(_ uint64, w io.Writer) error {
		_, err := w.Write(append(slices.Clone(good), 0))
		return err
	})
	wantError(t, err, errCorrupt, fmt.Sprintf("more than %d bytes", len(good)))
}

// TestPartOfOtherSegment: the bytes of one segment under the name of another,
// and those of a segment that are right but not what the manifest's root says.
func TestPartOfOtherSegment(t *testing.T) {
	t.Parallel()
	leader, h := grown(t), newHarness(t)
	segments := leader.store.durable.Load().segments
	other := readFile(t, leader.store.segmentPath(segments[1]))
	_, err := h.store.fetchSegment(segments[0], func(_ uint64, w io.Writer) error {
		_, err := w.Write(other[:segments[0].size])
		return err
	})
	wantError(t, err, errCorrupt)
	h.onlyPart(segments[0], nil)
	lie := segments[0]
	lie.root[3] ^= 1
	_, err = h.store.fetchSegment(lie, copyFile(leader.store.segmentPath(segments[0])))
	wantError(t, err, errCorrupt, "root")
	h.onlyPart(lie, nil)
}

// TestTakeoverAtEachStep fails a takeover before and after each step that
// changes the disk, as a crash and as a full disk, at its first and a later
// time: a crash leaves what the next start goes on from, a full disk a node
// that goes on by itself.
func TestTakeoverAtEachStep(t *testing.T) {
	t.Parallel()
	leader := grown(t)
	snap := leader.snapshot()
	for _, step := range []string{"write part", "name segment", "write tiles", "install checkpoint"} {
		for _, when := range []string{"before ", "after "} {
			for nth := range int32(2) {
				for _, fault := range []error{errCrash, syscall.ENOSPC} {
					if step == "install checkpoint" && nth == 1 || when == "after " && fault == syscall.ENOSPC {
						continue
					}
					h := newHarness(t)
					h.fault = failAt(when+step, nth+1, fault)
					h.reopen()
					err := h.restore(snap, leader)
					if err == nil && (fault == errCrash || step != "write tiles") {
						t.Fatalf("%s%s, time %d: nothing failed", when, step, nth+1)
					}
					if at := h.store.durable.Load().at.index; err != nil && at != 0 && when+step != "after install checkpoint" {
						t.Fatalf("%s%s: D is at %d after %v", when, step, at, err)
					}
					if fault == errCrash {
						h.fault = nil
						h.reopen()
					} else if h.failed != nil || h.fatal.Load() != nil {
						t.Fatalf("%s%s: a full disk ends the node: %v", when, step, h.failed)
					}
					if err := h.restore(snap, leader); err != nil {
						t.Fatalf("%s%s, time %d: again: %v", when, step, nth+1, err)
					}
					sameFiles(t, h.dir, leader.dir)
					checkStore(t, h.store)
					h.close()
				}
			}
		}
	}
}
