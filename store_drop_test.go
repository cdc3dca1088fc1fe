package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// local returns how many segments of D have their files here, and fails the test
// if one has neither a file nor a record.
func (h *harness) local() (n int) {
	h.t.Helper()
	for _, info := range h.store.durable.Load().segments {
		_, err := os.Stat(h.store.segmentPath(info))
		if err == nil {
			n++
		}
		if (err == nil) == h.store.isCold(info.first) {
			h.t.Errorf("segment %s: cold is %v, file: %v", info.id(), h.store.isCold(info.first), err)
		}
	}
	return n
}

// killedAt makes the next store die at a step: that one and all that follow fail.
// It returns where to look for the step's name, "" if it was never reached.
func (h *harness) killedAt(at int) *string {
	seen, name := 0, ""
	h.fault = func(step string) error {
		if seen++; seen == at+1 {
			name = step
		}
		if seen > at {
			return errors.New("killed")
		}
		return nil
	}
	return &name
}

// TestColdCrash: the process dies before and after each step of dropping, bringing
// back and pinning. A restart has everything, in one place or the other, and does it
// again.
func TestColdCrash(t *testing.T) {
	t.Parallel()
	h, warm, _ := coldHarness(t)
	info := h.store.durable.Load().segments[1]
	info.object = h.store.objectOf(info)
	here := []segmentInfo{info}
	dropped := func() error { return h.store.drop(info) }
	back := func() error { return h.store.bringBack(info) }
	steps := map[string]int{}
	for _, c := range []struct{ before, do func() error }{
		{back, dropped},
		{dropped, back},
		{dropped, func() error { return h.store.pin(here, pinAsked) }},
		{dropped, func() error { return h.store.unpin(here) }},
	} {
		for at := 0; ; at++ {
			if err := c.before(); err != nil {
				t.Fatal(err)
			}
			name := h.killedAt(at)
			h.reopen()
			err := c.do()
			h.fault = nil
			h.reopen()
			h.local()
			if *name == "" && err != nil {
				t.Fatal(err)
			}
			if *name == "" {
				break
			}
			steps[*name]++
			sameSegment(t, h.store, warm.store, info)
			if err := c.do(); err != nil {
				t.Fatalf("again after %q: %v", *name, err)
			}
		}
	}
	for _, name := range []string{"write cold record", "remove segment", "bring segment back", "remove cold record", "change pins"} {
		if steps["before "+name] == 0 || steps["after "+name] == 0 {
			t.Errorf("nobody died at %q: %v", name, steps)
		}
	}
	sameReads(t, h.store, warm.store)
}

// TestAdoptCrash: the process dies at each step of taking over a ledger that is in the bucket.
func TestAdoptCrash(t *testing.T) {
	t.Parallel()
	h, warm, _ := coldHarness(t)
	h.sealNow()
	warm.fsm.ApplyBatch(h.log)
	warm.settle()
	dense := 8
	if raceDetector {
		dense = 3
	}
	for at := 0; ; at += 1 + at/dense { // the later steps are the same for each segment
		newcomer := newHarness(t)
		name := newcomer.killedAt(at)
		newcomer.useObjects(h.store.o.objects, 64<<20)
		if err := newcomer.adopt(h); *name == "" && err != nil {
			t.Fatal(err)
		}
		newcomer.fault = nil
		newcomer.reopen()
		if err := newcomer.adopt(h); err != nil {
			t.Fatalf("again after %q: %v", *name, err)
		}
		newcomer.local()
		if at%6 == 0 || *name == "" {
			checkStore(t, newcomer.store)
			sameReads(t, newcomer.store, warm.store)
		}
		newcomer.close()
		if *name == "" {
			t.Logf("%d steps", at)
			return
		}
	}
}

// TestColdFileAndRecord: what a start makes of both.
func TestColdFileAndRecord(t *testing.T) {
	t.Parallel()
	h, warm, _ := coldHarness(t)
	info := h.store.durable.Load().segments[0]
	path := h.store.segmentPath(info)
	good := readFile(t, warm.store.segmentPath(info))
	for name, b := range map[string][]byte{"whole": good, "cut short": good[:len(good)-1], "no header": make([]byte, len(good))} {
		h.close()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		h.open()
		if n := h.local(); n != map[bool]int{true: 1}[name == "whole"] {
			t.Errorf("%s: %d files are here", name, n)
		}
		sameReads(t, h.store, warm.store)
		info.object = h.store.objectOf(info)
		if err := h.store.drop(info); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDropRefuses: nothing is dropped that is not certainly in the bucket.
func TestDropRefuses(t *testing.T) {
	t.Parallel()
	h, _, s := coldHarness(t)
	info := h.store.durable.Load().segments[0]
	info.object = h.store.objectOf(info)
	if err := h.store.bringBack(info); err != nil {
		t.Fatal(err)
	}
	key := h.store.objectKey(info)
	good := s.object(key)
	other := h.store.durable.Load().segments[1]
	other.object = h.store.objectOf(other)
	table := int(gzipTableSize(int64(info.size)))
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)-table/2] ^= 1
	member := append([]byte(nil), good...)
	member[len(member)/3] ^= 1
	for name, b := range map[string][]byte{
		"missing": nil, "member flipped": member, "empty": {}, "cut short": good[:len(good)-1], "longer": append([]byte("x"), good...),
		"another segment": s.object(h.store.objectKey(other)), "table flipped": flipped,
	} {
		if s.set(key, b); b == nil {
			s.remove(key)
		}
		err := h.store.drop(info)
		wantError(t, err, errArchiveCorrupt, key)
		if h.local() != 1 {
			t.Errorf("%s: the file is gone", name)
		}
	}
	s.set(key, member)
	s.requests()
	h.store.tierOnce(time.Now())
	if n := h.local(); n != 1 || len(s.requests()) == 0 {
		t.Errorf("%d files are here behind a look at a damaged object", n)
	}
	h.store.tierOnce(time.Now())
	if asked := s.requests(); len(asked) > 0 {
		t.Errorf("a damaged object is looked at again at once: %v", asked)
	}
	if due := h.store.droppable(time.Now().Add(2 * wrongObjectWait)); len(due) != 1 {
		t.Errorf("%d segments may go two hours later, want 1", len(due))
	}
	s.set(key, good)
	s.fault(s3Head, key, "503", 1)
	wantError(t, h.store.drop(info), errArchiveUnavailable, key)
	eventually(t, "the bucket is not asked again", func() bool { _, err := h.store.cold.size(key); return err == nil })
	whole := readFile(t, h.store.segmentPath(info))
	flipBit(t, h.store.segmentPath(info), 1000, 1)
	wantError(t, h.store.drop(info), errCorrupt)
	if !bytes.Equal(readFile(t, h.store.segmentPath(info)), whole) {
		t.Error("a damaged file that was to go is not mended")
	}
	if err := h.store.pin([]segmentInfo{info}, pinAsked); err != nil {
		t.Fatal(err)
	}
	wantError(t, h.store.drop(info), errKept)
	h.reopen()
	wantError(t, h.store.drop(info), errKept)
	if err := errors.Join(h.store.unpin([]segmentInfo{info}), h.store.drop(info)); err != nil || h.local() != 0 {
		t.Error(err)
	}
}

// TestDropRefused: one object that the bucket does not give keeps its file for a
// while, and holds up no other and no reader.
func TestDropRefused(t *testing.T) {
	t.Parallel()
	h, _, s := coldHarness(t)
	segments := h.store.durable.Load().segments
	for _, info := range segments {
		if err := h.store.bringBack(info); err != nil {
			t.Fatal(err)
		}
	}
	h.reopen()
	info := segments[0] // the one to go first
	info.object = h.store.objectOf(info)
	for _, op := range []s3Op{s3Head, s3Get} { // a HEAD says so little that the client asks again with GET
		s.fault(op, info.object, "403", -1)
	}
	h.store.o.dropAge = 0
	h.store.tierOnce(time.Now())
	if n := h.local(); n != 1 || h.store.isCold(info.first) {
		t.Errorf("%d files are here, want that of the refused object only", n)
	}
	wantError(t, h.store.drop(info), errArchiveUnavailable, info.object)
	if _, err := h.store.cold.size(h.store.objectKey(segmentInfo{first: segments[1].first, object: h.store.objectOf(segments[1])})); err != nil {
		t.Errorf("another object, at once: %v", err)
	}
	s.heal()
	if due := h.store.droppable(time.Now()); len(due) != 0 {
		t.Errorf("%d segments are to go at once", len(due))
	}
	if due := h.store.droppable(time.Now().Add(2 * refusedWait)); len(due) != 1 {
		t.Errorf("%d segments are to go later, want 1", len(due))
	}
}

// TestPinWhileDropped: a segment that is pinned while it is dropped is brought back.
func TestPinWhileDropped(t *testing.T) {
	t.Parallel()
	h, _, _ := coldHarness(t)
	info := h.store.durable.Load().segments[1]
	info.object = h.store.objectOf(info)
	if err := h.store.bringBack(info); err != nil {
		t.Fatal(err)
	}
	yes, pinned := true, make(chan error, 1)
	h.fault = func(step string) error {
		if step == "before write cold record" {
			h.fault = nil
			go func() {
				_, err := h.store.prefetch(context.Background(), info.first, info.first, &yes)
				pinned <- err
			}()
			select {
			case err := <-pinned: // before the drop, which does not know
				pinned <- err
			case <-time.After(100 * time.Millisecond): // it waits for the drop
			}
		}
		return nil
	}
	h.reopen()
	if err := h.store.drop(info); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, pinned, "the prefetch ends"); err != nil || h.local() != 1 || !h.store.isPinned(info.first) {
		t.Errorf("%d files are here, pinned is %v: %v", h.local(), h.store.isPinned(info.first), err)
	}
}

// TestRepacked: an object that was gone is put again by a packer with another level.
// Who knows the old one reads the new one, and asks no other node.
func TestRepacked(t *testing.T) {
	t.Parallel()
	h, warm, s := coldHarness(t)
	tune := h.tune
	h.tune = func(o *storeOptions) {
		tune(o)
		o.refetch = func(segmentInfo, func(func(io.Writer) error) error) error {
			t.Error("another node is asked for the file")
			return errors.New("nobody has it")
		}
	}
	h.reopen()
	for _, info := range h.store.durable.Load().segments {
		info.object = h.store.objectOf(info)
		key, again := h.store.objectKey(info), packed(t, info, warm.store.segmentPath(info), 1)
		if again.name != info.object || bytes.Equal(again.b, s.object(key)) {
			t.Fatalf("level 1 gives the object %s, or the same bytes as level 6; want %s", again.name, info.object)
		}
		s.set(key, again.b)
	}
	for range 2 {
		sameReads(t, h.store, warm.store)
		if state := h.store.storageState(); state != "ok" || h.local() != 0 || h.store.o.metrics.cold.pinned.value() != 0 {
			t.Errorf("state is %q, %d files are here, %d pinned", state, h.local(), h.store.o.metrics.cold.pinned.value())
		}
		h.reopen()
	}
}

// TestTiering: which files go, and in which order.
func TestTiering(t *testing.T) {
	t.Parallel()
	h, _, _ := coldHarness(t)
	segments := h.store.durable.Load().segments
	all, size := true, int64(0)
	for _, info := range segments {
		size += int64(info.size)
	}
	if r, err := h.store.prefetch(context.Background(), 0, noSeq, &all); err != nil || r.Fetched != 4 || r.Pinned != 4 || r.Segments != 4 {
		t.Fatalf("prefetch: %+v, %v", r, err)
	}
	h.reopen() // nothing was read yet
	sealed := time.UnixMilli(segments[0].time)
	drops := func(age time.Duration, most int64, at time.Time) (firsts []int) {
		h.store.o.dropAge, h.store.o.localMax = age, most
		for _, info := range h.store.droppable(at) {
			for i, g := range segments {
				if g.first == info.first {
					firsts = append(firsts, i)
				}
			}
		}
		return firsts
	}
	check := func(what string, got []int, want ...int) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v go, want %v", what, got, want)
		}
	}
	late := sealed.Add(1000 * time.Hour)
	check("pinned", drops(0, 1, late))
	none := false
	if r, err := h.store.prefetch(context.Background(), segments[1].first, noSeq, &none); err != nil || r.Segments != 3 || r.Pinned != 0 {
		t.Fatalf("unpin: %+v, %v", r, err)
	}
	check("old", drops(time.Hour, 0, late), 1, 2, 3)
	check("not old enough", drops(1001*time.Hour, 0, late))
	check("too many bytes", drops(1001*time.Hour, size-1, late), 1)
	check("many too many bytes", drops(1001*time.Hour, size-int64(segments[1].size)-1, late), 1, 2)
	if _, err := h.store.entryAt(segments[1].first); err != nil {
		t.Fatal(err)
	}
	check("read lately", drops(1001*time.Hour, size-1, late), 2)
	check("old but read", drops(time.Hour, 0, time.Now()), 2, 3)
	h.store.tierOnce(time.Now())
	if n := h.local(); n != 2 {
		t.Errorf("%d files are here, want that which is pinned and that which was read", n)
	}
	if m := &h.store.o.metrics.cold; m.segments.value() != 2 || m.dropped.value() != 2 || m.pinned.value() != 1 {
		t.Errorf("metrics: %d cold, %d dropped, %d pinned", m.segments.value(), m.dropped.value(), m.pinned.value())
	}
	h.close()
	exits(t, t.TempDir(), 1, "is not here but in the bucket", "audit", "--data", h.dir)
}

// TestColdFromPeer: an object that is damaged or gone is replaced by what a peer
// has, which stays; without one the error says which object it is.
func TestColdFromPeer(t *testing.T) {
	t.Parallel()
	h, warm, s := coldHarness(t)
	info := h.store.durable.Load().segments[2]
	info.object = h.store.objectOf(info)
	key := h.store.objectKey(info)
	good := s.object(key)
	bad := append([]byte(nil), good...)
	for i := range 20 {
		bad[len(bad)*i/20+100] ^= 1
	}
	var peer atomic.Bool
	tune := h.tune
	h.tune = func(o *storeOptions) {
		tune(o)
		o.refetch = func(info segmentInfo, write func(func(io.Writer) error) error) error {
			if !peer.Load() {
				return errors.New("nobody has it")
			}
			return write(func(w io.Writer) error { return copyFile(warm.store.segmentPath(info))(0, w) })
		}
	}
	h.reopen()
	for name, b := range map[string][]byte{"damaged": bad, "missing": nil} {
		s.set(key, b)
		if b == nil {
			s.remove(key)
		}
		peer.Store(false)
		for range 2 {
			_, err := h.store.entryAt(info.first + 3)
			wantError(t, err, errArchiveCorrupt, key)
		}
		if state := h.store.storageState(); state != "damaged: "+segmentName(info) {
			t.Errorf("%s: state is %q", name, state)
		}
		peer.Store(true)
		h.store.scrub.mu.Lock()
		clear(h.store.scrub.damages)
		h.store.scrub.mu.Unlock()
		sameReads(t, h.store, warm.store)
		if h.local() != 1 || !h.store.isPinned(info.first) || h.store.storageState() != "ok" {
			t.Errorf("%s: %d files are here, pinned %v, state %q", name, h.local(), h.store.isPinned(info.first), h.store.storageState())
		}
		s.set(key, good)
		if err := errors.Join(h.store.unpin([]segmentInfo{info}), h.store.drop(info)); err != nil {
			t.Fatal(err)
		}
		h.reopen()
	}
}

// TestColdRecordDamaged: a record that rots is made again from the bucket, and
// keeps nobody from starting.
func TestColdRecordDamaged(t *testing.T) {
	t.Parallel()
	h, warm, _ := coldHarness(t)
	h.sealNow() // D has the names of the objects
	warm.fsm.ApplyBatch(h.log)
	warm.settle()
	for _, scrub := range []bool{false, true} {
		err := h.store.ledger.db.Update(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketCold).ForEach(func(k, v []byte) error {
				bad := append([]byte(nil), v...)
				bad[len(bad)/2] ^= 1
				return tx.Bucket(bucketCold).Put(k, bad)
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		h.reopen()
		if scrub {
			if err := h.store.scrubPass(context.Background(), &pace{rate: 1 << 30, read: &counter{}}); err != nil {
				t.Fatal(err)
			}
		}
		sameReads(t, h.store, warm.store)
		for _, info := range h.store.durable.Load().segments[:4] {
			if _, err := h.store.ledger.coldRecord(info); err != nil {
				t.Error(err)
			}
		}
		if state := h.store.storageState(); state != "ok" {
			t.Errorf("state is %q", state)
		}
	}
}

// TestRotMended: a file that rots beside its object is made again from the object.
func TestRotMended(t *testing.T) {
	t.Parallel()
	h, warm, _ := coldHarness(t)
	info := h.store.durable.Load().segments[0]
	if err := h.store.bringBack(info); err != nil {
		t.Fatal(err)
	}
	flipBit(t, h.store.segmentPath(info), segmentHeaderSize+5, 1)
	sameReads(t, h.store, warm.store)
	if h.store.storageState() != "ok" || h.local() != 1 {
		t.Errorf("state is %q, %d files", h.store.storageState(), h.local())
	}
	h.close()
	if err := os.Remove(filepath.Join(h.dir, segmentDir, info.id()+segmentSuffix)); err != nil {
		t.Fatal(err)
	}
	if err := h.tryOpen(); err == nil {
		t.Error("a store opens whose segment is gone and whose D names no object")
	}
}

// TestColdIndexRepair: a run of the index that is damaged is built again from
// segments that are in the bucket only, at the start and in use.
func TestColdIndexRepair(t *testing.T) {
	t.Parallel()
	h, warm, _ := coldHarness(t)
	for _, inUse := range []bool{false, true} {
		for _, info := range h.store.index.runs() {
			path := filepath.Join(h.dir, indexDir, info.name())
			if inUse {
				flipBit(t, path, runHeaderSize+10, 1)
			} else if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		if !inUse {
			h.reopen()
		}
		sameReads(t, h.store, warm.store)
		checkStore(t, h.store)
	}
}

// TestIndexRepairHoldsUpNobody: while a damaged run is built again from a bucket that
// takes its time, writes are sealed.
func TestIndexRepairHoldsUpNobody(t *testing.T) {
	t.Parallel()
	h, warm, _ := coldHarness(t)
	asked, answer := make(chan struct{}, 1000), make(chan struct{})
	h.useObjects(&brokenObjects{objectStore: h.store.o.objects, alter: func(_ string, _ int64, b []byte) ([]byte, error) {
		asked <- struct{}{}
		<-answer
		return b, nil
	}}, 64<<20)
	for _, info := range h.store.index.runs() {
		flipBit(t, filepath.Join(h.dir, indexDir, info.name()), runHeaderSize+10, 1)
	}
	read := make(chan error, 1)
	go func() {
		_, err := h.store.get([]byte("key-1"), selector{version: 1})
		read <- err
	}()
	receive(t, asked, "the bucket is asked for records")
	for i := range 3 {
		h.put(fmt.Sprint("meanwhile-", i), "value")
		h.sealNow()
	}
	close(answer)
	if err := receive(t, read, "the read ends"); err != nil && !errors.Is(err, errNotFound) && !errors.Is(err, errDeleted) {
		t.Error(err)
	}
	warm.fsm.ApplyBatch(h.log)
	warm.settle()
	sameReads(t, h.store, warm.store)
	checkStore(t, h.store)
}
