package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
)

// simLedger is what clients of a simulated cluster were told. What they did is a
// history for porcupine, whose clock counts calls and returns: of two
// operations that did not overlap it always knows which came first.
type simLedger struct {
	tick  atomic.Int64
	mu    sync.Mutex
	ops   []porcupine.Operation
	acked map[uint64]ack     // by seq: must be there for ever
	never map[string]string  // values that were certainly not applied, and the error that said so
	stale []simSeen          // reads that may be old, but not wrong
	heads map[uint64]simHead // checkpoints and roots that any node showed, by size
	done  map[string]int     // operations by kind
}

// simSeen is an entry as a node showed it.
type simSeen struct {
	node  int
	key   string
	value string
	seq   uint64
}

// simHead is a root that a node showed.
type simHead struct {
	node int
	root hash
}

// simClient makes operations one at a time until the cluster says stop.
type simClient struct {
	c    *simCluster
	id   int
	made int
	rng  *rand.Rand
	seen map[string]uint64 // the newest entry it was told of each key
}

// simEpoch is how long a set of keys is used: histories of a key stay short.
const simEpoch = 2 * time.Minute

// run makes operations until stop is closed.
func (cl *simClient) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(cl.rng.ExpFloat64() * float64(cl.c.pace))):
			cl.step()
		}
	}
}

// step makes one operation on a random node.
func (cl *simClient) step() {
	cl.made++
	n := cl.c.nodes[cl.rng.IntN(len(cl.c.nodes))]
	key := fmt.Sprintf("%d-%d", cl.c.elapsed()/int64(simEpoch), cl.rng.IntN(3))
	in := historyInput{kind: "put", key: key, value: fmt.Sprintf("%d-%d", cl.id, cl.made), ifSeq: noSeq}
	idem := ""
	switch p := cl.rng.IntN(20); {
	case p < 6:
		in.kind, in.value = "get", ""
		cl.get(n, in)
		return
	case p == 6:
		cl.staleGet(n, key)
		return
	case p == 7:
		cl.head(n)
		return
	case p == 8:
		idem = "delete " + in.value
		in.kind, in.value = "delete", ""
	case p == 9:
		in.ifAbsent = true
	case p < 13:
		if seq, ok := cl.seen[key]; ok {
			in.ifSeq = seq
		}
	case p < 18:
		idem = in.value
	}
	cl.write(n, in, idem)
}

// bound is told how long a call took and objects to one that was too long.
func (cl *simClient) bound(what string, n *simNode, began time.Time, limit time.Duration) {
	if took := time.Since(began); took > limit {
		cl.c.violation("H: %s through node %d took %v, its bound is %v", what, n.i+1, took, limit)
	}
}

// add records an operation that has ended.
func (l *simLedger) add(client int, in historyInput, call int64, out historyOutput) {
	l.mu.Lock()
	defer l.mu.Unlock()
	op := porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: l.tick.Add(1)}
	if out.unknown {
		op.Return = math.MaxInt64
	}
	l.ops = append(l.ops, op)
	l.done[in.kind]++
}

// get makes a linearizable read.
func (cl *simClient) get(n *simNode, in historyInput) {
	l, began := &cl.c.told, time.Now()
	limit := simReadTimeout + 10*time.Second
	up, ctx, end := n.use(limit)
	if up == nil {
		return
	}
	call := l.tick.Add(1)
	err := up.confirmRead(ctx)
	var e entry
	if err == nil {
		e, err = up.store.get([]byte(in.key), selector{})
	}
	var value string
	if err == nil {
		value, err = simValue(&e)
	}
	end()
	cl.bound("a read", n, began, limit)
	switch {
	case errors.Is(err, errNotFound), errors.Is(err, errDeleted):
		l.add(cl.id, in, call, historyOutput{})
	case err == nil:
		cl.seen[in.key] = e.seq
		l.add(cl.id, in, call, historyOutput{live: true, value: value, seq: e.seq})
	case errors.Is(err, errCorrupt) && !n.damaged.Load():
		cl.c.violation("node %d: reading %s: %v", n.i+1, in.key, err)
	}
}

// simValue reads all of an entry's value.
func simValue(e *entry) (string, error) {
	b, err := io.ReadAll(io.NewSectionReader(e.value, 0, int64(e.size)))
	return string(b), err
}

// staleGet reads what the node has, however old.
func (cl *simClient) staleGet(n *simNode, key string) {
	up, _, end := n.use(time.Second)
	if up == nil {
		return
	}
	defer end()
	e, err := up.store.get([]byte(key), selector{})
	if err != nil {
		return
	}
	if value, err := simValue(&e); err == nil {
		cl.c.told.mu.Lock()
		cl.c.told.stale = append(cl.c.told.stale, simSeen{n.i, key, value, e.seq})
		cl.c.told.done["stale get"]++
		cl.c.told.mu.Unlock()
	}
}

// head gets a checkpoint, cosigned or not.
func (cl *simClient) head(n *simNode) {
	began, limit := time.Now(), 10*time.Second
	up, ctx, end := n.use(limit)
	if up == nil {
		return
	}
	h, err := up.signedHead(ctx, 0, cl.rng.IntN(2) == 0)
	end()
	cl.bound("a checkpoint", n, began, limit+time.Second)
	if err == nil {
		cl.c.told.showed(cl.c, n.i, h.size, h.root)
	}
}

// showed compares a root with what any node showed for the same size.
func (l *simLedger) showed(c *simCluster, node int, size uint64, root hash) {
	l.mu.Lock()
	before, ok := l.heads[size]
	if !ok {
		l.heads[size] = simHead{node, root}
	}
	l.done["root"]++
	l.mu.Unlock()
	if ok && before.root != root {
		c.violation("M: node %d has root %s of %d entries, node %d had %s", node+1, root, size, before.node+1, before.root)
	}
}

// write makes a put or a delete. One with an Idempotency-Key is tried again,
// anywhere, until its outcome is known.
func (cl *simClient) write(n *simNode, in historyInput, idem string) {
	op := operation{kind: opPut, key: []byte(in.key), value: []byte(in.value), ifSeq: in.ifSeq, ifAbsent: in.ifAbsent}
	if in.kind == "delete" {
		op.kind = opDelete
	}
	l := &cl.c.told
	call, unsure := l.tick.Add(1), false
	var last error
	for tries := 0; tries == 0 || idem != "" && tries < 30; tries++ {
		res, err := cl.submit(n, &request{ops: []operation{op}, idempotencyKey: idem})
		switch {
		case err == nil:
			cl.answered(in, call, res)
			return
		case errors.Is(err, errSimGone):
		case errors.Is(err, errUnknownOutcome):
			unsure = true
			last = err
		case errors.Is(err, errNoLeader), errors.Is(err, errDiskFull), errors.Is(err, errOverloaded), errors.Is(err, errRemoved), errors.Is(err, errNotApplied):
			last = err
		default:
			cl.c.violation("%s %s: %v", in.kind, in.key, err)
		}
		if !unsure && idem == "" {
			break
		}
		time.Sleep(time.Duration(cl.rng.Int64N(int64(time.Second))))
		n = cl.c.nodes[cl.rng.IntN(len(cl.c.nodes))]
	}
	if unsure {
		l.add(cl.id, in, call, historyOutput{unknown: true})
	} else if last != nil && in.kind == "put" {
		l.mu.Lock()
		l.never[in.value] = last.Error()
		l.mu.Unlock()
	}
}

// answered records the answer to a write.
func (cl *simClient) answered(in historyInput, call int64, res result) {
	l := &cl.c.told
	out := historyOutput{outcome: res.outcome, current: res.current}
	if res.outcome == outcomeApplied {
		h, err := parseHeader(res.headers[0])
		if err != nil || string(h.key) != in.key {
			cl.c.violation("the answer to %s %s has a header of %q: %v", in.kind, in.key, h.key, err)
			return
		}
		out.seq, cl.seen[in.key] = h.seq, h.seq
		l.mu.Lock()
		if before, ok := l.acked[h.seq]; ok && before != (ack{string(h.key), h.sum}) {
			cl.c.violation("A: entry %d was acknowledged as %q and as %q", h.seq, before.key, h.key)
		}
		l.acked[h.seq] = ack{string(h.key), h.sum}
		l.mu.Unlock()
	}
	l.add(cl.id, in, call, out)
}

// errSimGone says that the node was not there: nothing was sent.
var errSimGone = errors.New("simulated: connection refused")

// submit has a request agreed through a node. A node whose process ends
// meanwhile gives no answer.
func (cl *simClient) submit(n *simNode, r *request) (result, error) {
	limit := simWriteTimeout + 10*time.Second
	up, ctx, end := n.use(limit)
	if up == nil {
		return result{}, errSimGone
	}
	defer end()
	began, answer := time.Now(), make(chan fate, 1)
	err := up.submitAsync(r, func(res result, err error) {
		answer <- fate{res, err}
		close(answer) // panics if it is called twice
	})
	if err != nil {
		return result{}, err
	}
	select {
	case a := <-answer:
		cl.bound("a write", n, began, limit)
		return a.result, a.err
	case <-ctx.Done():
		if ctx.Err() != nil && time.Since(began) >= limit {
			cl.c.violation("H: a write through node %d was never answered", n.i+1)
		}
		return result{}, errUnknownOutcome
	}
}
