package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// scrubbing are options of a node that reads its files all the time.
func scrubbing(o *nodeOptions) {
	o.scrubRate, o.scrubPause = 1<<30, 5*time.Millisecond
	o.metrics = newMetrics()
}

// flipBit changes one bit of a file in place.
func flipBit(t testing.TB, path string, at int64, bit uint) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << bit
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// read returns the bytes of a file.
func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// segmentsOf lists the segment files of a store.
func segmentsOf(s *store) (paths []string) {
	for _, info := range s.durable.Load().segments {
		paths = append(paths, s.segmentPath(info))
	}
	return paths
}

// runsOf lists the run files of a store.
func runsOf(s *store) (paths []string) {
	for _, info := range s.index.runs() {
		paths = append(paths, filepath.Join(s.o.dir, indexDir, info.name()))
	}
	return paths
}

// The scrub of a node finds any flipped bit in a segment or a run and mends it:
// the segment from another node, the run from its segments.
func TestScrubMends(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, scrubbing)
	lead := c.leader()
	for k := range 2 {
		c.fill(lead, fmt.Sprintf("k%d", k), 200, 40)
		c.sealAll()
	}
	s := c.nodes[(lead+1)%3].store
	eventually(t, "no segment", func() bool { return s.manifest.Load().confirmed >= 2 && len(s.durable.Load().segments) >= 2 })
	rng := rand.New(rand.NewPCG(1, 2))
	for _, paths := range [][]string{segmentsOf(s), runsOf(s)} {
		for i := range 16 {
			path := paths[i%len(paths)]
			good := readFile(t, path)
			at := rng.Int64N(int64(len(good)))
			flipBit(t, path, at, uint(rng.IntN(8)))
			eventually(t, fmt.Sprintf("%s, flipped at %d, is not mended", path, at), func() bool {
				return bytes.Equal(readFile(t, path), good)
			})
			eventually(t, "the damage is not forgotten", func() bool { return s.storageState() == "ok" })
		}
		if err := os.Remove(paths[0]); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a missing file does not come back", func() bool { _, err := os.Stat(paths[0]); return err == nil })
	}
	m := &s.o.metrics.scrub
	eventually(t, "no pass ends", func() bool { return m.passes.value() > 0 && m.damaged.value() == 0 })
	if m.found.value() < 34 || m.repaired.value() < 34 || m.bytes.value() == 0 || m.lastPass.value() == 0 {
		t.Errorf("found %d, repaired %d, %d bytes, last pass %d", m.found.value(), m.repaired.value(), m.bytes.value(), m.lastPass.value())
	}
}

// A read that meets a damaged segment waits for it to be mended and serves what
// was written; at the start of a node, too.
func TestReadMends(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	lead := c.leader()
	c.put(lead, "k", strings.Repeat("value ", 20))
	c.sealAll()
	i := (lead + 1) % 3
	s := c.nodes[i].store
	eventually(t, "no segment", func() bool { return s.manifest.Load().confirmed == 1 && len(segmentsOf(s)) == 1 })
	path := segmentsOf(s)[0]
	good := readFile(t, path)
	flipBit(t, path, segmentHeaderSize+3, 5) // in the value
	if v := c.get(i, "k"); v != strings.Repeat("value ", 20) {
		t.Errorf("read %q", v)
	}
	if !bytes.Equal(readFile(t, path), good) {
		t.Error("the file is still damaged")
	}
	for what, harm := range map[string]func(){
		"missing":   func() { os.Remove(path) },
		"footer":    func() { flipBit(t, path, int64(len(good))-10, 0) },
		"cut short": func() { os.Truncate(path, int64(len(good))-100) },
		"empty":     func() { os.Truncate(path, 0) },
	} {
		c.kill(i)
		harm()
		c.start(i)
		if v := c.get(i, "k"); v != strings.Repeat("value ", 20) {
			t.Errorf("%s: read %q", what, v)
		}
		eventually(t, what+" is not mended", func() bool {
			b, err := os.ReadFile(path)
			return err == nil && bytes.Equal(b, good) && c.nodes[i].store.storageState() == "ok"
		})
	}
}

// A node that stands alone says what is damaged and never serves it, and does
// not start on a damaged segment.
func TestScrubAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, scrubbing)
	c.put(0, "k", "a value")
	c.sealAll()
	s := c.nodes[0].store
	path := segmentsOf(s)[0]
	flipBit(t, path, segmentHeaderSize+3, 5)
	eventually(t, "the damage is not found", func() bool { return strings.Contains(s.storageState(), "damaged: segment ") })
	for range 2 {
		if _, err := s.get([]byte("k"), selector{}); !errors.Is(err, errCorrupt) {
			t.Errorf("read gives %v", err)
		}
	}
	if st := c.nodes[0].status(); !st.ready || st.storage == "ok" {
		t.Errorf("ready is %v, storage %q", st.ready, st.storage)
	}
	if m := &s.o.metrics.scrub; m.found.value() != 1 || m.repaired.value() != 0 || m.damaged.value() != 1 {
		t.Errorf("found %d, repaired %d, damaged %d", m.found.value(), m.repaired.value(), m.damaged.value())
	}
	flipBit(t, path, segmentHeaderSize+3, 5) // as it was
	eventually(t, "the damage is not forgotten", func() bool { return s.storageState() == "ok" })
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	s.files.drop(0)
	eventually(t, "the missing file is not told", func() bool { return s.storageState() != "ok" })
	for what, err := range map[string]error{
		"read":    func() error { _, err := s.get([]byte("k"), selector{}); return err }(),
		"segment": func() error { _, _, err := s.sealedFile(s.durable.Load().segments[0].id()); return err }(),
	} {
		if !errors.Is(err, errCorrupt) || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of a missing file gives %v", what, err)
		}
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	c.kill(0)
	flipBit(t, path, 2, 0)
	wantError(t, c.tryStart(0), errCorrupt, path)
	flipBit(t, path, 2, 0)
	c.start(0)
}

// The scrub finds tiles and other values of ledger.db that are not what was
// written, and writes the tiles again.
func TestScrubLedger(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for range 3 {
		for i := range 200 {
			h.put(fmt.Sprintf("key-%d", i), "v")
		}
		h.sealNow()
	}
	h.settle()
	s := h.store
	s.ledger.db.NoSync = true // hundreds of passes, and no power to lose
	p := &pace{rate: 1 << 40}
	tiles := func() map[string][]byte {
		all := make(map[string][]byte)
		s.ledger.db.View(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketTiles).ForEach(func(k, v []byte) error { all[string(k)] = bytes.Clone(v); return nil })
		})
		return all
	}
	want := tiles()
	if len(want) < 2 {
		t.Fatalf("%d blocks of tiles", len(want))
	}
	for key, value := range want {
		for at := 0; at < len(value); at += 97 {
			bad := bytes.Clone(value)
			bad[at] ^= 4
			s.ledger.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketTiles).Put([]byte(key), bad) })
			if err := s.scrubPass(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			if got := tiles(); !bytes.Equal(got[key], value) || s.storageState() != "ok" {
				t.Fatalf("block %x flipped at %d is not mended: %s", key, at, s.storageState())
			}
		}
	}
	// A tile whose checksum is right and whose hashes are not.
	level0 := tileID{0, 0, tileWidth}
	wrong := &tile{}
	for range tileWidth {
		wrong.append(hash{1})
	}
	s.ledger.update(func(tx ledgerTx) error { return tx.replaceTile(level0, wrong) })
	if err := s.scrubPass(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if got := tiles(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Error("a wrong tile stays")
	}
	// Anything else cannot be mended.
	var at, key []byte
	s.ledger.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketWindow)
		if key, at = b.Cursor().First(); key == nil {
			b = tx.Bucket(bucketSegments)
			key, at = b.Cursor().First()
		}
		bad := bytes.Clone(at)
		bad[len(bad)-1] ^= 1
		return b.Put(bytes.Clone(key), bad)
	})
	if err := s.scrubPass(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if got := s.storageState(); got != "damaged: "+ledgerName {
		t.Errorf("storage is %q", got)
	}
}

// hookedContext calls hook whenever it is asked whether it has ended.
type hookedContext struct {
	context.Context
	hook func()
}

func (c *hookedContext) Err() error {
	c.hook()
	return c.Context.Err()
}

// A file that is damaged while the scrub reads it is damaged, not wrong as it
// was written: another node has a better one.
func TestScrubMeanwhile(t *testing.T) {
	h := newHarness(t)
	h.put("k", strings.Repeat("v", 100<<10)) // more than is read at once
	h.sealNow()
	h.settle()
	s := h.store
	var once sync.Once
	ctx := &hookedContext{t.Context(), func() {
		once.Do(func() { flipBit(t, segmentsOf(s)[0], segmentHeaderSize, 1) })
	}}
	err := s.scrubSegment(ctx, &pace{rate: 1 << 40}, s.durable.Load().segments[0])
	if !errors.Is(err, errCorrupt) || errors.Is(err, errAsWritten) {
		t.Errorf("the scrub says %v", err)
	}
}

// A run that is not what its segments say, though every checksum is right, is
// built again.
func TestScrubWrongRun(t *testing.T) {
	h := newHarness(t)
	for i := range 100 {
		h.put(fmt.Sprintf("key-%d", i), "v")
	}
	h.sealNow()
	h.settle()
	s := h.store
	old := s.index.runs()[0]
	good := readFile(t, runsOf(s)[0])
	records := func(yield func(indexRecord, error) bool) {
		for r, err := range s.segmentRecords(s.durable.Load().segments[0], s.readRecords) {
			r.offset++
			if !yield(r, err) {
				return
			}
		}
	}
	bad, err := writeRun(filepath.Join(s.o.dir, indexDir), old.level, old.first, old.last, records)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ledger.update(func(tx ledgerTx) error { return tx.replaceRuns([]runInfo{old}, []runInfo{bad}) }); err != nil {
		t.Fatal(err)
	}
	if err := s.index.swap(bad); err != nil {
		t.Fatal(err)
	}
	if err := s.scrubPass(t.Context(), &pace{rate: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readFile(t, runsOf(s)[0]), good) || s.storageState() != "ok" {
		t.Errorf("the run is not built again: %s", s.storageState())
	}
}

// The scrub reads no faster than it may.
func TestPace(t *testing.T) {
	p := &pace{rate: 1 << 20}
	start := time.Now()
	for range 10 {
		if err := p.take(t.Context(), 20<<10); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took < 100*time.Millisecond {
		t.Errorf("200 KiB at 1 MiB/s took %v", took)
	}
}
