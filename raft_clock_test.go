package main

import (
	"sync/atomic"
	"testing"
	"time"
)

// wallClock is a clock that a test sets; what it tells has no monotonic reading.
type wallClock struct{ ahead atomic.Int64 }

func (w *wallClock) now() time.Time {
	return time.Now().Round(0).Add(time.Duration(w.ahead.Load()))
}

// jumps are what wall clocks do, ahead of the true time.
var jumps = []time.Duration{time.Hour, -time.Hour, 10 * 365 * 24 * time.Hour, -10 * 365 * 24 * time.Hour, 0}

// Wall clocks jump on one node after the other and on all, while clients write:
// no leader changes, nobody is taken for dead, the time of entries never goes
// back, a repeated request gets its first answer, heads are cosigned by all, and
// segments are sealed when they are old.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	const sealAfter = 2 * time.Second
	calmly(t, func(slower int) (*testCluster, error) {
		clocks := make(map[uint64]*wallClock)
		c := newCluster(t, 3, electing(slower), func(o *nodeOptions) {
			clocks[o.id] = new(wallClock)
			o.now, o.sealAfter, o.removeDeadAfter = clocks[o.id].now, sealAfter, 10*time.Minute
		})
		lead, term := c.leader(), c.term()
		first := c.putAs(lead, "once", "1", "once")
		acked, stop := c.load(3)
		defer stop()
		for _, ahead := range jumps {
			for _, who := range [][]int{{lead}, {(lead + 1) % 3}, {0, 1, 2}} {
				for _, i := range who {
					clocks[c.nodes[i].o.id].ahead.Store(int64(ahead))
				}
				c.goOn(acked, 20)
				if again := c.putAs((lead+1)%3, "once", "1", "once"); again.seq != first.seq {
					t.Errorf("clocks ahead by %v: the repeated request is entry %d, was %d", ahead, again.seq, first.seq)
				}
				c.get((lead+2)%3, "once")
			}
		}
		stop()
		segments := func() int { return len(c.nodes[lead].store.manifest.Load().shown()) }
		before := segments()
		c.put(lead, "last", "1")
		eventually(t, "nothing is sealed although it is old", func() bool {
			_, count, _ := c.nodes[lead].store.pendingInfo()
			return segments() > before && count == 0
		})
		if n := len(c.nodes[lead].voters()); n != 3 {
			t.Errorf("%d voters are left", n)
		}
		for i := range c.nodes {
			c.wantTimesInOrder(t, i)
			c.waitCosigners(i, c.nodes[i].store.size(), 3)
		}
		return c, c.wantLeader(lead, term)
	})
}

// wantTimesInOrder looks at the times of all entries of node i.
func (c *testCluster) wantTimesInOrder(t *testing.T, i int) {
	t.Helper()
	var last int64
	for seq := range c.nodes[i].store.size() {
		e, err := c.nodes[i].store.headerAt(seq)
		if err != nil {
			t.Fatal(err)
		}
		if e.time < last {
			t.Fatalf("node %d: entry %d is of %d, the one before of %d", i+1, seq, e.time, last)
		}
		last = e.time
	}
}

// A member that is silent is removed when it was silent for so long, not when a
// clock says so.
func TestClockJumpRemovesNobody(t *testing.T) {
	t.Parallel()
	clocks := make(map[uint64]*wallClock)
	c := newCluster(t, 4, func(o *nodeOptions) {
		clocks[o.id] = new(wallClock)
		o.now, o.removeDeadAfter = clocks[o.id].now, time.Hour
	})
	lead := c.leader()
	down := (lead + 1) % 4
	c.put(lead, "a", "1")
	server := serverID(c.nodes[down].identity())
	state := func() string {
		p, _ := c.nodes[lead].peers.get(server)
		return p.state(time.Now())
	}
	eventually(t, "the node is not heard", func() bool { return state() == stateAlive })
	c.kill(down)
	eventually(t, "the node is heard although it is down", func() bool { return state() != stateAlive })
	for _, ahead := range jumps {
		clocks[c.nodes[lead].o.id].ahead.Store(int64(ahead))
		c.nodes[lead].tendMembers()
		if n := len(c.nodes[lead].voters()); n != 4 {
			t.Fatalf("clock ahead by %v: %d voters", ahead, n)
		}
	}
	c.start(down)
}
