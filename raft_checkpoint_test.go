package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// signed returns a head of at least size entries from node i, with the root of
// its tree and the ledger key's signature.
func (c *testCluster) signed(i int, size uint64, cosigned bool) signedHead {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), waitLimit)
	defer cancel()
	h, err := c.nodes[i].signedHead(ctx, size, cosigned)
	if err != nil {
		c.t.Fatalf("head of %d entries from node %d: %v", size, i+1, err)
	}
	c.checkHead(i, h, size)
	return h
}

// checkHead fails unless h is a head of at least size entries of node i's ledger.
func (c *testCluster) checkHead(i int, h signedHead, size uint64) {
	c.t.Helper()
	n := c.checkSignedBy(h.note, c.key(i))
	head, err := parseTreeHead(n.body)
	if err != nil || head.origin != c.nodes[i].origin() || head.size != h.size || head.root != h.root || head.size < size {
		c.t.Errorf("head is %+v, %+v, %v", h, head, err)
	}
	if root, err := c.nodes[i].store.root(h.size); err != nil || root != h.root {
		c.t.Errorf("root over %d entries is %s in the head, %s in the tree, %v", h.size, h.root, root, err)
	}
}

// TestFirstHead asks for a head of the first entry while the cluster forms.
func TestFirstHead(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			c := newNodes(t, size)
			for i := size - 1; i >= 0; i-- {
				c.start(i)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
				defer cancel()
				h, err := c.nodes[0].signedHead(ctx, 1, false)
				if err != nil || h.size < 1 {
					t.Errorf("head of the first entry: %+v, %v", h, err)
				}
			})
			c.put(0, "a", "1")
			wg.Wait()
			for i := range size {
				c.signed(i, 1, false)
			}
		})
	}
}

func TestHeadIsShared(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.put(0, "a", "1")
	first := c.signed(0, 1, false)
	number := c.nodes[0].signer.file.last.number
	c.put(0, "a", "2")
	if h := c.signed(0, 1, false); h.note != first.note {
		t.Errorf("a head that covers the size was there: %+v", h)
	}
	if h := c.signed(0, 2, false); h.size != 2 {
		t.Errorf("head has %d entries", h.size)
	}
	if got := c.nodes[0].signer.file.last.number; got != number+1 {
		t.Errorf("record %d follows %d", got, number)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := c.nodes[0].signedHead(ctx, 3, false)
	wantError(t, err, errNotYetApplied, "2 of 3 entries")
}

// TestHeadsAgree takes heads from all nodes under load: a size has one root.
func TestHeadsAgree(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.key(0)
	acked, stop := c.load(4)
	var mu sync.Mutex
	roots := make(map[uint64]hash)
	var wg sync.WaitGroup
	for k := range 12 {
		wg.Go(func() {
			last := uint64(0)
			for range 10 {
				n := c.nodes[k%3]
				size := n.store.size()
				h, err := n.signedHead(t.Context(), size, k%2 == 0)
				if err != nil || h.size < size || h.size < last {
					t.Errorf("head of %d entries after one of %d: %+v, %v", size, last, h, err)
					return
				}
				last = h.size
				mu.Lock()
				if r, ok := roots[h.size]; ok && r != h.root {
					t.Errorf("two roots over %d entries: %s and %s", h.size, r, h.root)
				}
				roots[h.size] = h.root
				mu.Unlock()
				n.store.waitSize(t.Context(), last+1)
			}
		})
	}
	wg.Wait()
	stop()
	if acked.Load() == 0 || len(roots) == 0 {
		t.Errorf("%d writes, %d heads", acked.Load(), len(roots))
	}
	for size, r := range roots {
		if root, err := c.nodes[c.leader()].store.root(size); err != nil || root != r {
			t.Errorf("root over %d entries was %s, now %s, %v", size, r, root, err)
		}
	}
}

// TestHeadAfterRestart: a node goes on from what it signed, also when what came
// last was a new key.
func TestHeadAfterRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(4))
	lead := c.leader()
	for k := range 3 {
		c.put(lead, "a", fmt.Sprint(k))
		if k == 1 {
			c.sealAll()
		}
		if err := c.nodes[lead].rotateLedgerKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := c.key(lead)
		for i := range 3 {
			eventually(t, "all nodes have the key", func() bool { return c.key(i) == want })
			c.signed(i, uint64(k+1), true)
			c.signed(i, uint64(k+1), false)
			c.restart(i)
		}
		lead = c.leader()
	}
	for i := range 3 {
		c.signed(i, 3, false)
		if last := c.nodes[i].signer.file.last; last.size != 3 || last.number < 4 {
			t.Errorf("node %d signed %+v", i+1, last)
		}
	}
}

// forgeSigned is the file of a node that signed r, twice.
func forgeSigned(r signedRecord) []byte {
	b := make([]byte, 2*signedSlot)
	for i := range uint64(2) {
		r.number = i
		copy(b[i*signedSlot:], r.append(nil))
	}
	return b
}

// TestHeadRefused gives a node that stands alone the file of another ledger,
// and one that says it signed another tree: it says so, proves nothing and goes
// on serving.
func TestHeadRefused(t *testing.T) {
	t.Parallel()
	other := newCluster(t, 1)
	other.put(0, "other", "ledger")
	other.signed(0, 1, false)
	other.stop(0)
	foreign, err := os.ReadFile(filepath.Join(other.nodes[0].o.dataDir, signedName))
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, 1)
	c.put(0, "a", "1")
	c.signed(0, 1, false)
	own := c.nodes[0].signer.file.last
	forged := func(change func(r *signedRecord)) []byte {
		r := own
		change(&r)
		return forgeSigned(r)
	}
	path := filepath.Join(c.nodes[0].o.dataDir, signedName)
	for name, row := range map[string]struct {
		file []byte
		want string
	}{
		"another ledger": {foreign, "entries 0 to 0: the tree has root"},
		"another root":   {forged(func(r *signedRecord) { r.root[3] ^= 1 }), "this node signed"},
		"another key":    {forged(func(r *signedRecord) { r.key[3] ^= 1 }), "which the ledger never had"},
	} {
		c.kill(0)
		if err := os.WriteFile(path, row.file, 0o600); err != nil {
			t.Fatal(err)
		}
		c.start(0)
		c.leader()
		for _, cosigned := range []bool{false, true} {
			_, err = c.nodes[0].signedHead(t.Context(), 1, cosigned)
			wantError(t, err, errDiverged, row.want)
		}
		checkUnproven(t, serveCluster(t, c)[0], row.want)
		if got := c.nodes[0].signer.file.last.size; got != 1 {
			t.Errorf("%s: signed %d entries", name, got)
		}
	}
	c.kill(0)
	os.WriteFile(path, forged(func(r *signedRecord) { r.size = 100 }), 0o600)
	c.start(0)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = c.nodes[0].signedHead(ctx, 1, false)
	wantError(t, err, errNotYetApplied, "of 100 entries")
}

// TestHeadBeforeItsKey: after a restart the keys may be looked at just before
// the one is replayed that signed last. That is no divergence.
func TestHeadBeforeItsKey(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	n := c.nodes[0]
	c.put(0, "a", "1")
	c.signed(0, 1, false)
	before := n.keys()
	if err := n.rotateLedgerKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.put(0, "b", "2")
	c.signed(0, 2, false)
	if n.signer.file.last.key == before.public() {
		t.Fatal("the new key does not sign")
	}
	at := n.signer.file.last.index
	wantError(t, n.signer.agrees(2, at-1, before), errNotYetApplied, "key this node signed with")
	if err := n.refused(); err != nil {
		t.Fatal(err)
	}
	wantError(t, n.signer.agrees(2, at, before), errDiverged, "which the ledger never had")
}

// checkUnproven checks that a server whose node signs nothing reads and writes,
// and says why it proves nothing.
func checkUnproven(t *testing.T, s *testServer, why string) {
	t.Helper()
	s.do("PUT", "/b", "1")
	s.check([]apiRow{
		{method: "GET", target: "/a", status: 200, in: "1"},
		{method: "PUT", target: "/b?receipt=true", body: "2", status: 200, in: `"receipt_error":{"code":"corrupt"`},
		{method: "PUT", target: "/b?receipt=true", body: "2", status: 200, in: why},
		{method: "GET", target: "/verify/a", status: 409, code: "corrupt", in: why},
		{method: "GET", target: "/ledger/checkpoint", status: 409, code: "corrupt", in: why},
		{method: "GET", target: "/health", status: 200, in: `"status":"degraded"`},
		{method: "GET", target: "/health", status: 200, in: why},
	})
}

// TestHeadStorm has many callers ask for ever larger heads: they share them.
func TestHeadStorm(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.put(0, "a", "1")
	c.signed(0, 1, false)
	before := c.nodes[0].signer.file.last.number
	const callers, each = 32, 20
	var wg sync.WaitGroup
	for k := range callers {
		wg.Go(func() {
			for i := range each {
				h, err := c.nodes[0].put(fmt.Sprintf("k-%d", k), "v", fmt.Sprintf("storm-%d-%d", k, i))
				if err != nil {
					t.Error(err)
					return
				}
				head, err := c.nodes[0].signedHead(t.Context(), h.seq+1, false)
				if err != nil || head.size <= h.seq {
					t.Errorf("head of entry %d: %+v, %v", h.seq, head, err)
				}
			}
		})
	}
	wg.Wait()
	if got := c.nodes[0].signer.file.last.number - before; got > callers*each/2 {
		t.Errorf("%d signatures for %d callers", got, callers*each)
	}
}

// BenchmarkSignedHead: 64 callers write an entry each and ask for a head that
// covers it, as receipts do; "writes" leaves out the heads.
func BenchmarkSignedHead(b *testing.B) {
	b.Run("writes", func(b *testing.B) { benchmarkHeads(b, false) })
	b.Run("heads", func(b *testing.B) { benchmarkHeads(b, true) })
}

// benchmarkHeads has 64 callers write, with or without a head of each entry.
func benchmarkHeads(b *testing.B, heads bool) {
	c := newCluster(b, 1)
	c.put(0, "a", "1")
	c.signed(0, 1, false)
	n := c.nodes[0]
	before := n.signer.file.last.number
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var callers sync.WaitGroup
	for range 64 {
		callers.Go(func() {
			for k := left.Add(-1); k >= 0; k = left.Add(-1) {
				h, err := n.put("k", "v", fmt.Sprint("grow-", k))
				if err == nil && heads {
					_, err = n.signedHead(b.Context(), h.seq+1, false)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	callers.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(float64(n.signer.file.last.number-before)/b.Elapsed().Seconds(), "signatures/s")
}
