package main

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// F2: a leader that the voters have left never confirms a read once another
// leader has acknowledged something, although it does not know of it.
func TestF2CutOffLeaderConfirmsNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	old := c.leader()
	c.put(old, "a", "1")
	for _, way := range []string{"cut off", "heard but deaf", "hears but unheard"} {
		c.links.heal()
		old = c.leader()
		for i := range c.nodes {
			if way != "heard but deaf" {
				c.links.set(old, i, linkSilent)
			}
			if way != "hears but unheard" {
				c.links.set(i, old, linkSilent)
			}
		}
		next := c.leader(old)
		want := c.put(next, "a", way)
		for range 5 {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			if err := c.nodes[old].confirmTerm(ctx); err == nil {
				t.Errorf("%s: the old leader confirmed a read", way)
			}
			cancel()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		err := c.nodes[old].confirmRead(ctx)
		cancel()
		if e, gerr := c.nodes[old].store.get([]byte("a"), selector{}); err == nil && (gerr != nil || e.seq < want.seq) {
			t.Errorf("%s: the old leader answers a read with entry %d, %v; entry %d was acknowledged", way, e.seq, gerr, want.seq)
		}
	}
	c.links.heal()
	if v := c.get(old, "a"); v != "hears but unheard" {
		t.Errorf("the old leader reads %q when it is back", v)
	}
}

// F2: an answer of a non-voter does not count.
func TestF2NonvoterDoesNotConfirm(t *testing.T) {
	t.Parallel()
	c := newNodes(t, 4, electing(4), func(o *nodeOptions) { o.expect, o.learner = 3, o.id == 4 })
	for i := range 3 {
		c.nodes[i].o.seeds = slices.DeleteFunc(slices.Clone(c.nodes[i].o.seeds), func(a string) bool { return a == c.nodes[3].o.raftAddr })
	}
	for _, i := range []int{2, 1, 0} {
		c.start(i)
	}
	lead := c.leader()
	c.start(3)
	c.put(lead, "a", "1")
	if v := c.get(3, "a"); v != "1" {
		t.Errorf("the non-voter reads %q", v)
	}
	n := c.nodes[lead]
	if len(n.voters()) != 3 || len(n.servers()) != 4 {
		t.Fatalf("servers are %+v", n.servers())
	}
	for i := range 3 {
		c.links.set(i, lead, linkSilent)
		c.links.set(lead, i, linkSilent)
	}
	if term := n.voterTerm(context.Background(), c.nodes[3].o.raftAddr); term != n.raft.Load().CurrentTerm() {
		t.Fatalf("the non-voter is in term %d", term)
	}
	start := time.Now()
	if err := n.confirmTerm(context.Background()); !errors.Is(err, errNoLeader) {
		t.Errorf("with a non-voter only, a read is confirmed: %v", err)
	}
	if d := time.Since(start); d > streamDeadline/2 {
		t.Errorf("the refusal took %v: it waited for connections that take nothing", d)
	}
	next := c.leader(lead, 3)
	c.put(next, "a", "2")
	if err := n.confirmTerm(context.Background()); !errors.Is(err, errNoLeader) {
		t.Errorf("after another has acknowledged a write, a read is confirmed: %v", err)
	}
}

// Reads that wait share a round; one that comes while a round is under way
// waits for the next, which begins after it came.
func TestReadRounds(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	lead := c.leader()
	follower := (lead + 1) % 3
	c.put(lead, "a", "1")
	eventually(t, "the follower does not catch up", func() bool { return c.nodes[follower].caughtUp.Load() }) // it waits for rounds too
	rounds := &c.nodes[follower].reads
	c.cut([]int{follower}, []int{0, 1, 2}, linkSilent) // the next round hangs, whoever leads
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	results := make(chan error, 20)
	joined := 0
	join := func() {
		joined++
		go func() { results <- rounds.join(ctx) }()
	}
	waiting := func(running bool, count int) func() bool {
		return func() bool {
			rounds.mu.Lock()
			defer rounds.mu.Unlock()
			return rounds.running == running && len(rounds.waiting) == count
		}
	}
	drain := func() {
		for ; joined > 0; joined-- {
			if err := <-results; err != nil && !errors.Is(err, errNoLeader) {
				t.Errorf("a read: %v", err)
			}
		}
	}
	gather := func() bool { // false if the round ended before all had come, on a busy machine
		join()
		if !soon(time.Second, waiting(true, 0)) {
			return false
		}
		for range 10 {
			join()
		}
		return soon(time.Second, waiting(true, 10))
	}
	for tries := 0; !gather(); tries++ {
		if tries == 20 {
			t.Fatal("ten reads do not wait for the next round")
		}
		drain()
	}
	short, stop := context.WithCancel(ctx)
	gone := make(chan error)
	go func() { gone <- rounds.join(short) }()
	stop()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("a read whose client left: %v", err)
	}
	c.links.heal()
	drain()
	eventually(t, "rounds go on although nobody waits", waiting(false, 0))
}

// A node that is alone reads without asking anybody, one that has no leader
// says so in time.
func TestReadWithoutLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, impatient)
	lead := c.leader()
	c.put(lead, "a", "1")
	c.kill(1 - lead)
	if _, err := c.nodes[lead].read("a"); !errors.Is(err, errNoLeader) {
		t.Errorf("a leader without its only follower reads: %v", err)
	}
	start := time.Now()
	if _, err := c.nodes[lead].put("b", "1", ""); !errors.Is(err, errNoLeader) && !errors.Is(err, errUnknownOutcome) {
		t.Errorf("a leader without its only follower writes: %v", err)
	}
	if took := time.Since(start); took > c.nodes[lead].o.writeTimeout {
		t.Errorf("a write without a leader took %v", took)
	}
}

// A follower that is cut off without a word does not wait for its half-open
// connections: reads, and writes that were under way, learn that there is no
// leader long before they would time out.
func TestFollowerCutOff(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, impatient)
	lead := c.leader()
	cut := (lead + 1) % 3
	c.put(cut, "a", "1")
	n := c.nodes[cut]
	c.isolate(cut, linkSilent)
	start := time.Now()
	writes := make(chan error)
	go func() {
		_, err := n.put("b", "1", "")
		writes <- err
	}()
	for range 2 {
		if _, err := n.read("a"); !errors.Is(err, errNoLeader) {
			t.Errorf("a follower that is cut off reads: %v", err)
		}
	}
	if err := <-writes; !errors.Is(err, errUnknownOutcome) && !errors.Is(err, errNoLeader) {
		t.Errorf("a follower that is cut off writes: %v", err)
	}
	if took, limit := time.Since(start), n.o.readTimeout; took > limit {
		t.Errorf("it took %v, longer than a read may: %v", took, limit)
	}
	c.links.heal()
	eventually(t, "no write through the node that was cut off", func() bool {
		_, err := n.put("c", "1", "")
		return err == nil
	})
}

// impatient shortens the wait for a leader.
func impatient(o *nodeOptions) {
	o.electionMin, o.electionMax = 100*time.Millisecond, 300*time.Millisecond
}

// Before a node belongs to a cluster it says so.
func TestReadBeforeFormation(t *testing.T) {
	t.Parallel()
	c := newNodes(t, 2)
	c.unformed = true
	c.start(0)
	c.start(1) // forms, but the first may have asked before
	c.unformed = false
	c.leader()
	c.put(0, "a", "1")

	alone := newNodes(t, 2, impatient)
	alone.unformed = true
	alone.start(0)
	n := alone.nodes[0]
	if _, err := n.read("a"); !errors.Is(err, errNoLeader) {
		t.Errorf("read: %v", err)
	}
	if _, err := n.put("a", "1", ""); !errors.Is(err, errNoLeader) {
		t.Errorf("write: %v", err)
	}
	if err := n.seal(context.Background()); !errors.Is(err, errNoLeader) {
		t.Errorf("seal: %v", err)
	}
	if err := n.transfer(context.Background(), 0); !errors.Is(err, errNoLeader) {
		t.Errorf("transfer: %v", err)
	}
	if s := n.status(); s.role != "forming" || s.ready || len(n.members()) != 0 {
		t.Errorf("status is %+v, members %+v", s, n.members())
	}
	if term := c.nodes[0].voterTerm(context.Background(), n.o.raftAddr); term != 0 {
		t.Errorf("a node without a cluster says it is in term %d", term)
	}
}
