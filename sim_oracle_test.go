package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/raft"
)

// What must be true whatever goes wrong:
//
//	A  what was acknowledged is there for ever, with its value, at its position, on all nodes
//	L  reads and writes are linearizable
//	M  all roots and checkpoints that any node ever showed are of one ledger; its time never goes back
//	R  nodes of equal size have equal roots; one cluster; one leader a term
//	H  every call ends within its bound, the cluster recovers, nothing is left open
//
// and what was said not to be applied was not.

// watch looks at all nodes again and again while things go wrong.
func (c *simCluster) watch(stop <-chan struct{}) {
	rng := rand.New(rand.NewPCG(c.seed, 'w'))
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(rng.Int64N(int64(20 * time.Second)))):
		}
		c.looks.Add(1)
		c.lead()
		n := c.nodes[rng.IntN(len(c.nodes))]
		if up, _, end := n.use(time.Second); up != nil {
			c.look(n, up, rng)
			end()
		}
	}
}

// leads notes that a node leads a term; no other may have led it.
func (c *simCluster) leads(n *simNode, up *node) {
	r := up.raft.Load()
	term := r.CurrentTerm()
	if r.State() != raft.Leader || r.CurrentTerm() != term {
		return
	}
	if first, led := c.terms.LoadOrStore(term, up.identity()); led && first != up.identity() {
		c.violation("R: node %d leads term %d, which %s has led", n.i+1, term, serverID(first.(identity)))
	}
}

// look compares what one node has with what was seen before.
func (c *simCluster) look(n *simNode, up *node, rng *rand.Rand) {
	if id := up.self.Load().cluster; up.self.Load().formed() {
		if first := c.cluster.Load(); first == nil {
			c.cluster.CompareAndSwap(nil, &id)
		} else if *first != id {
			c.violation("R: node %d belongs to cluster %s, others to %s", n.i+1, id, first)
		}
	}
	size := up.store.size()
	root, err := up.store.root(size)
	if err != nil {
		if !n.damaged.Load() {
			c.violation("node %d: root of %d entries: %v", n.i+1, size, err)
		}
		return
	}
	c.told.showed(c, n.i, size, root)
	c.lookProofs(n, up, rng, size, root)
}

// lookProofs has a node prove that it goes on from what was seen before, and
// that an entry is in it; neither proof may hold with a bit changed.
func (c *simCluster) lookProofs(n *simNode, up *node, rng *rand.Rand, size uint64, root hash) {
	c.told.mu.Lock()
	var from uint64
	var older hash
	for s, h := range c.told.heads { // any of them
		if s > 0 && s < size {
			from, older = s, h.root
			break
		}
	}
	c.told.mu.Unlock()
	if from == 0 {
		return
	}
	proof, err := up.store.consistency(from, size)
	if err == nil {
		err = checkConsistency(from, size, proof, older, root)
	}
	if err != nil && !n.damaged.Load() {
		c.violation("M: node %d: %d entries after %d: %v", n.i+1, size, from, err)
	}
	if err == nil && len(proof) > 0 && checkConsistency(from, size, oddProof(rng, proof), older, root) == nil {
		c.violation("M: a proof with a bit changed was accepted, from %d to %d", from, size)
	}
	e, err := up.store.headerAt(from)
	if err != nil {
		return
	}
	proof, err = up.store.inclusion(from, size)
	if err == nil {
		err = checkInclusion(e.leaf, from, size, proof, root)
	}
	if err != nil && !n.damaged.Load() {
		c.violation("M: node %d: entry %d is not in %d: %v", n.i+1, from, size, err)
	}
	if err == nil && len(proof) > 0 && checkInclusion(e.leaf, from, size, oddProof(rng, proof), root) == nil {
		c.violation("M: a proof with a bit changed was accepted, of %d in %d", from, size)
	}
}

// oddProof returns a proof with something wrong with it.
func oddProof(rng *rand.Rand, proof []hash) []hash {
	odd := slices.Clone(proof)
	switch rng.IntN(3) {
	case 0:
		return append(odd, odd[len(odd)-1])
	case 1:
		return odd[:len(odd)-1]
	}
	odd[rng.IntN(len(odd))][rng.IntN(32)] ^= 1 << rng.IntN(8)
	return odd
}

// check is the whole truth, when everything is sealed on all nodes.
func (c *simCluster) check() {
	var first map[string][]byte
	for _, n := range c.nodes {
		up, _, end := n.use(time.Hour)
		if up == nil {
			c.violation("node %d is down at the end", n.i+1)
			return
		}
		var done sync.WaitGroup
		done.Go(func() { checkStore(simReport{c.t, c, n}, up.store) })
		done.Wait()
		files := segmentFiles(c.t, n.o.dataDir)
		if first == nil {
			first = files
		}
		for name, b := range files {
			if !bytes.Equal(first[name], b) {
				c.violation("R: segment %s differs between node 1 and node %d", name, n.i+1)
			}
		}
		if len(files) != len(first) {
			c.violation("R: node %d has %d segment files, node 1 has %d", n.i+1, len(files), len(first))
		}
		values := c.checkEntries(n, up)
		if n.i == 0 {
			c.checkHistory(values)
		}
		end()
	}
}

// simReport has failures of checkStore be violations.
type simReport struct {
	testing.TB
	c *simCluster
	n *simNode
}

// Fatal ends the goroutine of the check, not of the cluster.
func (r simReport) Fatal(args ...any) {
	r.Errorf("%s", fmt.Sprint(args...))
	runtime.Goexit()
}

func (r simReport) Errorf(format string, args ...any) {
	r.c.violation("R: node %d: "+format, append([]any{r.n.i + 1}, args...)...)
}

// simEntry says where a value is in the ledger.
type simEntry struct {
	seq uint64
	key string
}

// checkEntries reads the whole ledger of a node: times, acknowledged writes, and
// roots at every size that was ever shown. It returns the values.
func (c *simCluster) checkEntries(n *simNode, up *node) map[string]simEntry {
	values := make(map[string]simEntry)
	var tree compactTree
	var last int64
	acked := 0
	for seq := range up.store.size() {
		e, err := up.store.entryAt(seq)
		value := ""
		if err == nil && e.op == opPut {
			value, err = simValue(&e)
		}
		if err != nil {
			c.violation("A: node %d: entry %d: %v", n.i+1, seq, err)
			return values
		}
		if e.time < last {
			c.violation("M: node %d: entry %d is of %d, the one before of %d", n.i+1, seq, e.time, last)
		}
		last = e.time
		if a, ok := c.told.acked[seq]; ok {
			if acked++; a.key != string(e.key) || a.sum != e.sum {
				c.violation("A: node %d: entry %d is %q, acknowledged was %q", n.i+1, seq, e.key, a.key)
			}
		}
		if e.op == opPut {
			if before, ok := values[value]; ok {
				c.violation("value %q was applied twice, at %d and %d", value, before.seq, seq)
			}
			values[value] = simEntry{seq, string(e.key)}
			if why, ok := c.told.never[value]; ok {
				c.violation("entry %d was applied though its client was told: %s", seq, why)
			}
		}
		tree.append(leafHash(e.raw))
		if h, ok := c.told.heads[seq+1]; ok && h.root != tree.root() {
			c.violation("M: node %d had root %s of %d entries, the entries give %s", h.node+1, h.root, seq+1, tree.root())
		}
	}
	if acked != len(c.told.acked) {
		c.violation("A: node %d has %d entries, %d of %d acknowledged ones", n.i+1, up.store.size(), acked, len(c.told.acked))
	}
	return values
}

// checkHistory asks porcupine for each key and compares reads that may be old
// with the ledger. Puts of unknown outcome are known now: the ledger has them or not.
func (c *simCluster) checkHistory(values map[string]simEntry) {
	l := &c.told
	for _, s := range l.stale {
		if e, ok := values[s.value]; !ok || e != (simEntry{s.seq, s.key}) {
			c.violation("A: node %d had %q at %d under %s; the ledger has it at %+v, %v", s.node+1, s.value, s.seq, s.key, e, ok)
		}
	}
	var ops []porcupine.Operation
	for _, op := range l.ops {
		in, out := op.Input.(historyInput), op.Output.(historyOutput)
		if out.unknown && in.kind == "put" {
			e, ok := values[in.value]
			if !ok {
				continue
			}
			op.Output = historyOutput{outcome: outcomeApplied, seq: e.seq}
		}
		ops = append(ops, op)
	}
	model := historyModel(ops)
	for _, part := range model.Partition(ops) {
		if got := porcupine.CheckOperationsTimeout(model, part, 0); got != porcupine.Ok {
			c.violation("L: porcupine says %s to %d operations on %s", got, len(part), part[0].Input.(historyInput).key)
			for _, op := range part {
				c.logger.Error("SIM: history", "client", op.ClientId, "call", op.Call, "return", op.Return, "in", op.Input, "out", op.Output)
			}
		}
	}
}

// checkFiles objects to files of the cluster that are open after its end. Those
// of segments close themselves when nobody has them any more.
func checkFiles(t testing.TB, seed uint64, dir string) {
	open := func() (all []string) {
		entries, _ := os.ReadDir("/proc/self/fd")
		for _, e := range entries {
			if to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil && strings.HasPrefix(to, dir+"/") {
				all = append(all, to)
			}
		}
		return all
	}
	var left []string
	for range 10 {
		if left = open(); len(left) == 0 {
			return
		}
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("seed %d: H: open at the end: %q", seed, left)
}
