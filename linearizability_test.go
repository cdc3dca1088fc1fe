package main

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// Histories of concurrent clients are recorded while faults happen and judged
// by porcupine, which knows nothing of this program: is there one order of all
// operations that explains every answer and keeps the order of those that did
// not overlap?

// historyInput is an operation of a client on one key.
type historyInput struct {
	kind     string // get, put, delete
	key      string
	value    string // of a put; unique in the history
	ifSeq    uint64 // noSeq = no condition
	ifAbsent bool
}

// historyOutput is what the client was told.
type historyOutput struct {
	unknown bool // the operation may take effect at any time from its call on, or never
	outcome outcome
	live    bool   // get: there was a value
	value   string // get: which
	seq     uint64 // of the entry read or written
	current uint64 // of the live version that broke a condition
}

// history is a recorded history.
type history struct {
	start time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
	known atomic.Int64 // operations with a known outcome
}

// now is the time since the history began.
func (h *history) now() int64 { return int64(time.Since(h.start)) }

// add records an operation that has ended.
func (h *history) add(client int, in historyInput, call int64, out historyOutput) {
	op := porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: h.now()}
	if out.unknown {
		op.Return = math.MaxInt64
	} else {
		h.known.Add(1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
}

// check asks porcupine.
func (h *history) check() porcupine.CheckResult {
	h.mu.Lock()
	defer h.mu.Unlock()
	return porcupine.CheckOperationsTimeout(historyModel(h.ops), h.ops, waitLimit)
}

// historyModel is the ledger of one key: its state is the live value, "" for
// none. Values are unique, so a value stands for its entry; seqs says which
// entry that is, as far as any client was ever told.
func historyModel(all []porcupine.Operation) porcupine.Model {
	seqs := map[string]uint64{"": noSeq}
	for _, op := range all {
		switch in, out := op.Input.(historyInput), op.Output.(historyOutput); {
		case out.unknown:
		case in.kind == "get" && out.live:
			seqs[out.value] = out.seq
		case in.kind == "put" && out.outcome == outcomeApplied:
			seqs[in.value] = out.seq
		}
	}
	return porcupine.Model{
		Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
			byKey := make(map[string][]porcupine.Operation)
			for _, op := range ops {
				k := op.Input.(historyInput).key
				byKey[k] = append(byKey[k], op)
			}
			var parts [][]porcupine.Operation
			for _, p := range byKey {
				parts = append(parts, p)
			}
			return parts
		},
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			return historyStep(seqs, state.(string), input.(historyInput), output.(historyOutput))
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v: %+v", in, out) },
	}
}

// historyStep tells whether the ledger may answer so, and the state after it.
func historyStep(seqs map[string]uint64, live string, in historyInput, out historyOutput) (bool, string) {
	if in.kind == "get" {
		seq, told := seqs[live]
		return out.live == (live != "") && out.value == live && (live == "" || told && out.seq == seq), live
	}
	seq, told := seqs[live]
	holds := (!in.ifAbsent || live == "") && (in.ifSeq == noSeq || live != "" && told && seq == in.ifSeq)
	var want outcome
	switch {
	case !holds:
		want = outcomePrecondition
	case in.kind == "delete" && live == "":
		want = outcomeNotFound
	default:
		want = outcomeApplied
	}
	next := live
	if want == outcomeApplied {
		next = in.value
	}
	if out.unknown {
		return true, next
	}
	return out.outcome == want && (want != outcomePrecondition || !told || out.current == seq), next
}

// clients runs count clients on the cluster until stop; every operation they
// make is in the history.
func (h *history) clients(c *testCluster, count int) (stop func()) {
	h.start = time.Now()
	var wg sync.WaitGroup
	done := make(chan struct{})
	for id := range count {
		wg.Go(func() {
			cl := historyClient{h: h, c: c, id: id, rng: rand.New(rand.NewPCG(uint64(id), 1)), seen: make(map[string]uint64)}
			for {
				select {
				case <-done:
					return
				default:
					cl.step()
				}
			}
		})
	}
	return sync.OnceFunc(func() {
		close(done)
		wg.Wait()
	})
}

// historyClient makes random operations, one at a time.
type historyClient struct {
	h    *history
	c    *testCluster
	id   int
	made int
	rng  *rand.Rand
	seen map[string]uint64 // the newest entry it was told of each key
	bad  *testNode         // that failed last
}

// pick returns a random node, rarely one that failed a moment ago: most of the
// time would go by with waiting for it.
func (cl *historyClient) pick() *testNode {
	n := cl.c.nodes[cl.rng.IntN(len(cl.c.nodes))]
	if n == cl.bad && cl.rng.IntN(10) > 0 {
		return cl.pick()
	}
	return n
}

// step makes one operation on a random node.
func (cl *historyClient) step() {
	cl.made++
	n := cl.pick()
	in := historyInput{kind: "put", key: fmt.Sprint("key-", cl.rng.IntN(4)), value: fmt.Sprintf("%d-%d", cl.id, cl.made), ifSeq: noSeq}
	idem := ""
	switch p := cl.rng.IntN(20); {
	case p < 9:
		in.kind, in.value = "get", ""
		cl.get(n, in)
		return
	case p == 9:
		in.kind, in.value = "delete", ""
	case p == 10:
		in.ifAbsent = true
	case p < 14:
		if seq, ok := cl.seen[in.key]; ok {
			in.ifSeq = seq
		}
	case p < 16:
		idem = in.value // and tried until the outcome is known
	}
	cl.write(n, in, idem)
}

// get makes a linearizable read.
func (cl *historyClient) get(n *testNode, in historyInput) {
	call := cl.h.now()
	e, err := n.read(in.key)
	switch {
	case errors.Is(err, errNotFound), errors.Is(err, errDeleted):
		cl.h.add(cl.id, in, call, historyOutput{})
	case err == nil:
		cl.seen[in.key] = e.seq
		cl.h.add(cl.id, in, call, historyOutput{live: true, value: valueOf(cl.c.t, &e), seq: e.seq})
	default:
		cl.bad = n
	}
}

// write makes a put or a delete. One that was certainly not applied is not part
// of the history: if it shows all the same, no order explains who reads it.
func (cl *historyClient) write(n *testNode, in historyInput, idem string) {
	op := operation{kind: opPut, key: []byte(in.key), value: []byte(in.value), ifSeq: in.ifSeq, ifAbsent: in.ifAbsent}
	if in.kind == "delete" {
		op.kind = opDelete
	}
	call, unsure := cl.h.now(), false
	for tries := 0; ; tries++ {
		res, err := n.submit(&request{ops: []operation{op}, idempotencyKey: idem})
		switch {
		case err == nil:
			out := historyOutput{outcome: res.outcome, current: res.current}
			if res.outcome == outcomeApplied {
				h, err := parseHeader(res.headers[0])
				if err != nil {
					cl.c.t.Error(err)
				}
				cl.c.note(h)
				out.seq, cl.seen[in.key] = h.seq, h.seq
			}
			cl.h.add(cl.id, in, call, out)
			return
		case errors.Is(err, errUnknownOutcome):
			unsure = true
		case !errors.Is(err, errNoLeader):
			cl.c.t.Errorf("%s %s: %v", in.kind, in.key, err)
		}
		cl.bad = n
		if idem == "" || tries == 5 {
			break
		}
		n = cl.pick()
	}
	if unsure {
		cl.h.add(cl.id, in, call, historyOutput{unknown: true})
	}
}

// progress waits until clients had count more answers.
func (h *history) progress(c *testCluster, count int64) {
	c.t.Helper()
	want := h.known.Load() + count
	eventually(c.t, "the clients get no answers", func() bool {
		c.tend()
		return h.known.Load() >= want
	})
}

// TestLinearizable records histories under one kind of fault each.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(c *testCluster, h *history){
		"leader killed": func(c *testCluster, h *history) {
			lead := c.leader()
			c.kill(lead)
			h.progress(c, 30)
			c.start(lead)
		},
		"all killed": func(c *testCluster, h *history) {
			for i := range c.nodes {
				c.kill(i)
			}
			for i := range c.nodes {
				c.start(i)
			}
		},
		"leader cut off": func(c *testCluster, h *history) {
			lead := c.leader()
			c.isolate(lead, linkLoud)
			c.leader(lead)
			h.progress(c, 30)
			c.isolate(lead, linkOpen)
		},
		"leader not heard": func(c *testCluster, h *history) {
			lead := c.leader()
			for i := range c.nodes {
				c.links.set(lead, i, linkSilent)
			}
			c.leader(lead)
			h.progress(c, 30)
			c.links.heal()
		},
		"leader deaf": func(c *testCluster, h *history) {
			lead := c.leader()
			for i := range c.nodes {
				c.links.set(i, lead, linkSilent)
			}
			c.leader(lead)
			h.progress(c, 30)
			c.links.heal()
		},
		"leadership handed over": func(c *testCluster, h *history) {
			c.transfer((c.leader() + 1) % 3)
		},
		"rolling restart and seals": func(c *testCluster, h *history) {
			for i := range c.nodes {
				c.sealAll()
				c.stop(i)
				c.start(i)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3, func(o *nodeOptions) { o.writeTimeout, o.readTimeout = time.Second, time.Second })
			var h history
			stop := h.clients(c, 5)
			defer stop()
			for range rounds(t, 1) {
				h.progress(c, 60)
				fault(c, &h)
			}
			h.progress(c, 60)
			stop()
			if got := h.check(); got != porcupine.Ok {
				t.Errorf("porcupine says %s to %d operations", got, len(h.ops))
			}
		})
	}
}

// The checker must be able to say no: a leader that is cut off answers a read
// from its own memory, without asking anybody.
func TestStaleReadIsNotLinearizable(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	h := history{start: time.Now()}
	write := func(i int, value string) {
		in := historyInput{kind: "put", key: "a", value: value, ifSeq: noSeq}
		call := h.now()
		h.add(i, in, call, historyOutput{outcome: outcomeApplied, seq: c.put(i, "a", value).seq})
	}
	read := func(i int, confirm bool) {
		t.Helper()
		var call int64
		var e entry
		eventually(t, "no leader to read from", func() bool {
			var err error
			call = h.now()
			if confirm {
				e, err = c.nodes[i].read("a")
			} else {
				e, err = c.nodes[i].store.get([]byte("a"), selector{})
			}
			if err != nil && !errors.Is(err, errNoLeader) {
				t.Fatal(err)
			}
			return err == nil
		})
		h.add(i, historyInput{kind: "get", key: "a", ifSeq: noSeq}, call, historyOutput{live: true, value: valueOf(t, &e), seq: e.seq})
	}
	old := c.leader()
	write(old, "1")
	c.isolate(old, linkSilent)
	next := c.leader(old)
	write(next, "2")
	read(next, true)
	if got := h.check(); got != porcupine.Ok {
		t.Errorf("porcupine says %s to a correct history", got)
	}
	honest := slices.Clone(h.ops)
	read(old, false)
	if got := h.check(); got != porcupine.Illegal {
		t.Errorf("porcupine says %s to a stale read", got)
	}

	h.ops = honest
	h.add(9, historyInput{kind: "put", key: "a", value: "3", ifSeq: noSeq}, h.now(), historyOutput{unknown: true})
	c.links.heal()
	read(old, true)
	if got := h.check(); got != porcupine.Ok {
		t.Errorf("porcupine says %s to a write that never takes effect", got)
	}
}
