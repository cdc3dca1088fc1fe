package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// storm is how long a cut lasts here: some elections, had nobody a pre-vote.
func storm(t testing.TB) time.Duration { return time.Duration(rounds(t, 2)) * time.Second }

// healWithin is what a node may take to serve again once all links are open.
const healWithin = 5 * time.Second

// cut loses whatever travels from any node of one group to any of another.
func (c *testCluster) cut(from, to []int, s linkState) {
	for _, a := range from {
		for _, b := range to {
			if a != b {
				c.links.set(a, b, s)
			}
		}
	}
}

// term is the highest term of any node.
func (c *testCluster) term() (highest uint64) {
	for _, n := range c.nodes {
		if n.node != nil {
			highest = max(highest, n.status().term)
		}
	}
	return highest
}

// endure lets clients go on for so long; at least count writes are acknowledged
// in its last third.
func (c *testCluster) endure(acked *atomic.Int64, d time.Duration, count int64) {
	c.t.Helper()
	for end := time.Now().Add(d * 2 / 3); time.Now().Before(end); {
		c.tend()
		<-time.After(5 * time.Millisecond)
	}
	before, end := acked.Load(), time.Now().Add(d/3)
	eventually(c.t, "no write is acknowledged during the fault", func() bool {
		c.tend()
		return acked.Load() >= before+count && time.Now().After(end)
	})
}

// calmly tries what a machine that is too busy can spoil again with slower nodes:
// by so many times are their elections and the test to take longer. A defect shows
// each time.
func calmly(t *testing.T, try func(slower int) (*testCluster, error)) {
	t.Helper()
	var err error
	for _, slower := range []int{1, 3, 10} {
		var c *testCluster
		if c, err = try(slower); err == nil {
			return
		}
		t.Logf("once more: %v", err)
		c.check()
		c.unformed = true
		for i := range c.nodes {
			c.kill(i)
		}
	}
	t.Fatal(err)
}

// electing makes elections take so many times longer.
func electing(slower int) func(*nodeOptions) {
	return func(o *nodeOptions) {
		o.electionMin *= time.Duration(slower)
		o.electionMax *= time.Duration(slower)
		o.heartbeat *= time.Duration(slower)
	}
}

// wantLeader returns an error unless a node leads in a term still.
func (c *testCluster) wantLeader(lead int, term uint64) error {
	c.t.Helper()
	if now := c.leader(); now != lead || c.term() != term {
		return fmt.Errorf("node %d led in term %d, now node %d leads in term %d", lead+1, term, now+1, c.term())
	}
	return nil
}

// healed opens all links and tells how long it takes until every node reads what
// is written then.
func (c *testCluster) healed() time.Duration {
	c.t.Helper()
	start := time.Now()
	c.links.heal()
	var wg sync.WaitGroup
	c.put(c.leader(), "healed", "1")
	for i := range c.nodes {
		wg.Go(func() {
			for time.Since(start) < waitLimit {
				if _, err := c.nodes[i].read("healed"); err == nil {
					return
				}
			}
			c.t.Errorf("node %d reads nothing", i+1)
		})
	}
	wg.Wait()
	return time.Since(start)
}

// Links are lost in every shape a network has to offer, under load. A part with
// a quorum goes on, terms stay where they are but for the change of leaders that
// the cut demands, and all is well soon after it is mended.
func TestPartitions(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		size  int
		cut   func(c *testCluster, lead int)
		terms uint64 // elections that may be won or lost by it
		stays bool   // the leader is the same after it is mended
	}{
		"a follower cut off":        {3, func(c *testCluster, lead int) { c.isolate((lead+1)%3, linkSilent) }, 0, true},
		"a follower cut off loudly": {3, func(c *testCluster, lead int) { c.isolate((lead+1)%3, linkLoud) }, 0, true},
		"a follower that is deaf": {3, func(c *testCluster, lead int) {
			c.cut([]int{0, 1, 2}, []int{(lead + 1) % 3}, linkSilent)
		}, 0, true},
		"a follower that is not heard": {3, func(c *testCluster, lead int) {
			c.cut([]int{(lead + 1) % 3}, []int{0, 1, 2}, linkSilent)
		}, 0, true},
		"a follower that does not hear the leader": {3, func(c *testCluster, lead int) { c.links.set(lead, (lead+1)%3, linkSilent) }, 0, true},
		"a follower the leader does not hear":      {3, func(c *testCluster, lead int) { c.links.set((lead+1)%3, lead, linkSilent) }, 0, true},
		"the leader cut off":                       {3, func(c *testCluster, lead int) { c.isolate(lead, linkSilent) }, 2, false},
		"the leader deaf":                          {3, func(c *testCluster, lead int) { c.cut([]int{0, 1, 2}, []int{lead}, linkSilent) }, 2, false},
		"the leader not heard":                     {3, func(c *testCluster, lead int) { c.cut([]int{lead}, []int{0, 1, 2}, linkSilent) }, 2, false},
		"two and three, leader with two": {5, func(c *testCluster, lead int) {
			a, b := []int{lead, (lead + 1) % 5}, []int{(lead + 2) % 5, (lead + 3) % 5, (lead + 4) % 5}
			c.cut(a, b, linkSilent)
			c.cut(b, a, linkSilent)
		}, 2, false},
		"a bridge": {5, func(c *testCluster, lead int) { // one node has links to all, the leader is at one end
			a, b := []int{lead, (lead + 1) % 5}, []int{(lead + 3) % 5, (lead + 4) % 5}
			c.cut(a, b, linkSilent)
			c.cut(b, a, linkSilent)
		}, 0, true},
		"a bridge that leads": {5, func(c *testCluster, lead int) {
			a, b := []int{(lead + 1) % 5, (lead + 2) % 5}, []int{(lead + 3) % 5, (lead + 4) % 5}
			c.cut(a, b, linkSilent)
			c.cut(b, a, linkSilent)
		}, 0, true},
		"a ring": {5, func(c *testCluster, lead int) { // each has links to its two neighbours
			for i := range 5 {
				c.cut([]int{i}, []int{(i + 2) % 5, (i + 3) % 5}, linkSilent)
			}
		}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calmly(t, func(slower int) (*testCluster, error) {
				c := newCluster(t, row.size, electing(slower), func(o *nodeOptions) { o.writeTimeout, o.readTimeout = time.Second, time.Second })
				acked, stop := c.load(2 * row.size)
				defer stop()
				c.goOn(acked, 20)
				lead, term := c.leader(), c.term()
				row.cut(c, lead)
				c.endure(acked, time.Duration(slower)*storm(t), 20)
				during := c.term()
				took := c.healed()
				t.Logf("terms %d, healed in %v", during-term, took)
				c.goOn(acked, 20)
				switch {
				case during > term+row.terms:
					return c, fmt.Errorf("term %d became %d during the cut, want at most %d more", term, during, row.terms)
				case took > healWithin*time.Duration(slower):
					return c, fmt.Errorf("healing took %v, want at most %v", took, healWithin)
				case row.stays:
					return c, c.wantLeader(lead, term)
				}
				return c, nil
			})
		})
	}
}

// A leader that is cut off from the others but not from its clients tells them
// so within its lease and their patience: nothing is acknowledged, no read is
// linearizable, stale ones go on and say how old they may be. Nobody waits for ever.
func TestCutOffLeaderAnswers(t *testing.T) {
	t.Parallel()
	for name, state := range map[string]linkState{"silent": linkSilent, "loud": linkLoud} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calmly(t, func(slower int) (*testCluster, error) {
				timeout := time.Duration(3*slower) * time.Second
				c := newCluster(t, 3, electing(slower), func(o *nodeOptions) { o.writeTimeout, o.readTimeout = timeout, timeout })
				old := c.leader()
				n := c.nodes[old]
				c.put(old, "a", "1")
				c.isolate(old, state)
				start := time.Now()
				flying := n.send(&request{ops: []operation{putOf("a", "2")}})
				eventually(t, "the leader stays in office", func() bool { return !n.leads() })
				inOffice := time.Since(start)
				if f := receive(t, flying, "the write under way is answered"); !errors.Is(f.err, errUnknownOutcome) && !errors.Is(f.err, errNoLeader) {
					t.Errorf("the write under way: %v", f.err)
				}
				answered := time.Now()
				if _, err := n.put("b", "1", ""); !errors.Is(err, errNoLeader) {
					t.Errorf("a write: %v", err)
				}
				if _, err := n.read("a"); !errors.Is(err, errNoLeader) {
					t.Errorf("a linearizable read: %v", err)
				}
				refusing := time.Since(answered)
				if e, err := n.store.get([]byte("a"), selector{}); err != nil || e.seq > 1 {
					t.Errorf("a stale read: %+v, %v", e.header, err)
				}
				if st := n.status(); st.ready || st.contact < 0 || st.contact > time.Since(start).Milliseconds() {
					t.Errorf("status is %+v", st)
				}
				took := c.healed()
				for _, step := range []struct {
					what        string
					took, limit time.Duration
				}{
					{"stepping down", inOffice, 1500 * time.Millisecond},
					{"the refusals", refusing, 2*n.patience() + time.Second},
					{"healing", took, healWithin},
				} {
					if limit := step.limit * time.Duration(slower); step.took > limit {
						return c, fmt.Errorf("%s took %v, want at most %v", step.what, step.took, limit)
					}
				}
				return c, nil
			})
		})
	}
}

// Most of the nodes are gone for good, as far as the one that is left knows: it
// acknowledges nothing and confirms no read, but shows and proves what it has.
func TestMajorityLost(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, impatient)
	left := c.leader()
	c.put(left, "a", "1")
	c.sealAll()
	c.put(left, "a", "2")
	c.get(left, "a") // it has that too, though another may lead by now
	for i := range c.nodes {
		if i != left {
			c.kill(i)
		}
	}
	look := func() {
		t.Helper()
		n := c.nodes[left]
		eventually(t, "the node alone leads on", func() bool { return !n.leads() })
		if _, err := n.put("b", "1", ""); !errors.Is(err, errNoLeader) && !errors.Is(err, errUnknownOutcome) {
			t.Errorf("a write: %v", err)
		}
		if _, err := n.read("a"); !errors.Is(err, errNoLeader) {
			t.Errorf("a linearizable read: %v", err)
		}
		if e, err := n.store.get([]byte("a"), selector{}); err != nil || valueOf(t, &e) == "" {
			t.Errorf("a stale read: %v", err)
		}
		if n.status().ready {
			t.Error("the node says that it is ready")
		}
		e, err := n.store.headerAt(0)
		root, rerr := n.store.root(n.store.size())
		proof, perr := n.store.inclusion(0, n.store.size())
		if err := errors.Join(err, rerr, perr, checkInclusion(leafHash(e.raw), 0, n.store.size(), proof, root)); err != nil {
			t.Errorf("a proof of entry 0: %v", err)
		}
	}
	look()
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	if h, err := c.nodes[left].signer.head(ctx, 2); err != nil || h.size != 2 {
		t.Errorf("a signed head: %v", err)
	}
	c.restart(left) // it does not come to think it is enough, and has what was sealed
	look()
}

// Messages are slow, and connections break at random moments: whoever asks is
// answered in time, and what is acknowledged is there.
func TestPoorNetwork(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	const timeout = 2 * time.Second
	c := newCluster(t, 3, func(o *nodeOptions) { o.writeTimeout, o.readTimeout = timeout, timeout })
	var slowest atomic.Int64
	done := make(chan struct{})
	var acked atomic.Int64
	var wg sync.WaitGroup
	for id := range 6 {
		wg.Go(func() {
			for k := 0; ; k++ {
				select {
				case <-done:
					return
				default:
				}
				start := time.Now()
				h, err := c.nodes[id%3].put(fmt.Sprint("key-", id), fmt.Sprint(k), fmt.Sprintf("%d-%d", id, k))
				if err == nil {
					c.note(h)
					acked.Add(1)
				}
				c.nodes[id%3].read(fmt.Sprint("key-", id))
				slowest.Store(max(slowest.Load(), int64(time.Since(start))))
			}
		})
	}
	stop := sync.OnceFunc(func() { close(done); wg.Wait() })
	defer stop()
	for range rounds(t, 40) {
		from, to := rng.IntN(3), rng.IntN(3)
		for _, s := range []linkState{linkSlow, linkLoud, linkSlow, linkSilent, linkSlow}[rng.IntN(3):] {
			c.links.set(from, to, s)
			<-time.After(time.Duration(rng.IntN(40)) * time.Millisecond)
		}
	}
	c.healed()
	c.goOn(&acked, 50)
	stop()
	if took, limit := time.Duration(slowest.Load()), 3*timeout+time.Second; took > limit {
		t.Errorf("a write and a read took %v, want at most %v", took, limit)
	}
}
