package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// BenchmarkApply applies packs of 16 puts of 100 bytes, without Raft and
// without sealing: the time of one entry on the apply goroutine.
func BenchmarkApply(b *testing.B) {
	const each, packs = 16, 8192
	h := newHarness(b)
	logs := make([]*raft.Log, packs)
	for p := range logs {
		var requests []*request
		for i := range each {
			requests = append(requests, putRequest(fmt.Sprintf("key-%08d", p*each+i), string(make([]byte, 100))))
		}
		logs[p] = &raft.Log{Type: raft.LogCommand, Data: h.pack(requests...)}
	}
	n := 0
	for b.Loop() {
		if n%packs == 0 && n > 0 {
			b.StopTimer()
			h.close()
			h = newHarness(b)
			b.StartTimer()
		}
		l := *logs[n%packs]
		n++
		l.Index = uint64(n)
		h.fsm.ApplyBatch([]*raft.Log{&l})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*each), "ns/entry")
}

// treeLeaves asks for the benchmark of a large tree: go test -run xxx -bench
// LargeTree -tree-leaves 10000000.
var treeLeaves = flag.Uint64("tree-leaves", 0, "entries of the tree of BenchmarkLargeTree")

// BenchmarkLargeTree takes proofs from a ledger.db with the tree of so many
// entries, of which the last 100,000 are not sealed.
func BenchmarkLargeTree(b *testing.B) {
	size := *treeLeaves
	if size == 0 {
		b.Skip("-tree-leaves is not given")
	}
	path := filepath.Join(b.TempDir(), ledgerName)
	writeLargeTree(b, path, size-100_000)
	start := time.Now()
	if err := checkBolt(path); err != nil {
		b.Fatal(err)
	}
	b.Logf("checked in %v", time.Since(start))
	ledger, _, err := openLedger(path)
	if err != nil {
		b.Fatal(err)
	}
	defer ledger.close()
	s := &store{ledger: ledger}
	t, err := s.loadTree(size - 100_000)
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("opened in %v", time.Since(start))
	for i := size - 100_000; i < size; i++ {
		t.tree.append(testLeaf(i))
	}
	t.recent.add(&t.tree)
	s.recent = t.recent
	rnd := newRand(b)
	run := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			var worst time.Duration
			for b.Loop() {
				start := time.Now()
				if err := f(); err != nil {
					b.Fatal(err)
				}
				worst = max(worst, time.Since(start))
			}
			b.ReportMetric(float64(worst.Microseconds()), "us-worst")
		})
	}
	run("root", func() error { _, err := s.root(size); return err })
	run("old-root", func() error { _, err := s.root(rnd.Uint64N(size)); return err })
	run("recent-proof", func() error { _, err := s.inclusion(size-1-rnd.Uint64N(1000), size); return err })
	run("proof", func() error { _, err := s.inclusion(rnd.Uint64N(size), size); return err })
	run("consistency", func() error { _, err := s.consistency(rnd.Uint64N(size), size); return err })
	run("tile", func() error { _, err := s.tile(tileID{0, rnd.Uint64N(size / tileWidth), tileWidth}); return err })
}

// writeLargeTree makes a ledger.db with the tree of size entries, in
// transactions as those of segments of 250,000.
func writeLargeTree(b *testing.B, path string, size uint64) {
	ledger, _, err := openLedger(path)
	if err != nil {
		b.Fatal(err)
	}
	defer ledger.close()
	var t treeBuilder
	var build, write time.Duration
	for t.tree.size < size {
		from, start := t.tree.size, time.Now()
		for range min(250_000, size-from) {
			t.tree.append(testLeaf(t.tree.size))
		}
		t.recent.add(&t.tree)
		build += time.Since(start)
		start = time.Now()
		if err := ledger.update(func(tx ledgerTx) error { return tx.putTiles(&t.recent, from, t.tree.size) }); err != nil {
			b.Fatal(err)
		}
		write += time.Since(start)
		t.recent.drop(t.tree.size)
	}
	st, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d entries: tree built in %v, written in %v, file of %d MiB", size, build, write, st.Size()>>20)
}
