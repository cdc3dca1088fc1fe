package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// newGrowing forms a cluster of the first nodes; extra ones are prepared that
// wait to be taken in once they are started.
func newGrowing(t testing.TB, first, extra int, change ...func(*nodeOptions)) *testCluster {
	t.Helper()
	waits := func(o *nodeOptions) {
		o.expect, o.seeds = first, o.seeds[:first-1]
		if o.id > uint64(first) {
			o.expect, o.seeds = 2, nil
		}
	}
	c := newNodes(t, first+extra, append([]func(*nodeOptions){waits}, change...)...)
	for i := range c.nodes {
		c.nodes[i].gone = i >= first
	}
	for i := first - 1; i >= 0; i-- {
		c.start(i)
	}
	c.leader()
	return c
}

// ask has node i change the membership.
func (c *testCluster) ask(i int, m *memberChange) error {
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	return c.nodes[i].changeMember(ctx, m)
}

// join takes node k in through node i, until it works.
func (c *testCluster) join(i, k int, voter bool) {
	c.t.Helper()
	o := &c.nodes[k].o
	c.settle(i, &memberChange{ID: o.id, Raft: o.raftAddr, Voter: &voter})
	c.nodes[k].gone = false
	want := raft.Voter
	if !voter {
		want = raft.Nonvoter
	}
	eventually(c.t, fmt.Sprintf("node %d has not the role it was given", k+1), func() bool {
		c.tend()
		s, ok := c.nodes[i].server(o.id)
		return ok && s.Suffrage == want
	})
}

// leave takes node k out through node i.
func (c *testCluster) leave(i, k int) {
	c.t.Helper()
	c.settle(i, &memberChange{Leave: true, ID: c.nodes[k].o.id})
	c.nodes[k].gone = true
}

// settle asks for a change until it is made.
func (c *testCluster) settle(i int, m *memberChange) {
	c.t.Helper()
	var err error
	eventually(c.t, fmt.Sprintf("%+v through node %d", *m, i+1), func() bool {
		c.tend()
		err = c.ask(i, m)
		var refused *changeRefused
		if errors.As(err, &refused) {
			c.t.Fatalf("%+v through node %d: %s: %v", *m, i+1, refused.code, err)
		}
		return err == nil
	})
}

// wantRefused asks for a change that must be refused with a code and change nothing.
func (c *testCluster) wantRefused(i int, m *memberChange, code string) {
	c.t.Helper()
	before := c.nodes[c.leader()].membership()
	var refused *changeRefused
	eventually(c.t, "no answer", func() bool {
		err := c.ask(i, m)
		if err == nil || errors.As(err, &refused) {
			return true
		}
		return false
	})
	if refused == nil || refused.code != code || refused.message == "" {
		c.t.Errorf("%+v: %+v, want %s", *m, refused, code)
	}
	if after := c.nodes[c.leader()].membership(); after.index != before.index {
		c.t.Errorf("%+v changed the membership from %+v to %+v", *m, before, after)
	}
}

// wantRemoved waits until node i says that it was removed.
func (c *testCluster) wantRemoved(i int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("node %d does not know that it was removed", i+1), func() bool {
		c.tend()
		return c.nodes[i].status().role == "removed"
	})
	n := c.nodes[i]
	if _, err := n.put("x", "x", ""); !errors.Is(err, errRemoved) || n.status().ready {
		c.t.Errorf("a removed node writes: %v", err)
	}
	if err := n.confirmRead(context.Background()); !errors.Is(err, errRemoved) {
		c.t.Errorf("a removed node reads: %v", err)
	}
	if err := c.ask(i, &memberChange{Leave: true, ID: 1}); !errors.Is(err, errRemoved) {
		c.t.Errorf("a removed node changes the membership: %v", err)
	}
}

// waitHellos waits until node i has said hello to node k a few times more.
func (c *testCluster) waitHellos(i, k int) {
	c.t.Helper()
	id := serverID(c.nodes[k].identity())
	for range 3 {
		before, _ := c.nodes[i].peers.get(id)
		eventually(c.t, "no hello", func() bool {
			p, _ := c.nodes[i].peers.get(id)
			return p.heard.After(before.heard)
		})
	}
}

// otherVersion listens as a node of a later protocol version does.
func otherVersion(t testing.TB) string {
	l, err := net.Listen("tcp", freeAddrs(t, 1)[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, preambleHead)
			io.ReadFull(conn, b)
			binary.BigEndian.PutUint16(b[4:], preambleVersion+1)
			binary.BigEndian.PutUint16(b[6:], preambleFixed+4)
			conn.Write(append(b, make([]byte, preambleFixed+4-preambleHead)...))
			conn.Close()
		}
	}()
	return l.Addr().String()
}

// Each way to be refused has its code and changes nothing, on the leader and
// through a follower.
func TestMemberRefusals(t *testing.T) {
	t.Parallel()
	c := newGrowing(t, 3, 4, func(o *nodeOptions) {
		switch o.id {
		case 5:
			o.id = 1 // as one that is alive
		case 6:
			o.secret = "other"
		case 7:
			o.expect = 1 // a cluster of its own
		}
	})
	for i := 3; i < 7; i++ {
		c.start(i)
	}
	eventually(t, "node 7 is alone", func() bool { return c.nodes[6].self.Load().formed() })
	addr := func(i int) string { return c.nodes[i].o.raftAddr }
	for _, i := range []int{c.leader(), (c.leader() + 1) % 3} {
		for _, row := range []struct {
			change memberChange
			code   string
		}{
			{memberChange{ID: 4, Raft: freeAddrs(t, 1)[0]}, refusedUnreachable},
			{memberChange{ID: 5, Raft: addr(3)}, refusedWrong},
			{memberChange{ID: 1, Raft: addr(4)}, refusedID},
			{memberChange{ID: 2, Raft: freeAddrs(t, 1)[0]}, refusedID},
			{memberChange{ID: 3, Raft: addr(0)}, refusedID},
			{memberChange{ID: 6, Raft: addr(5)}, refusedConnection},
			{memberChange{ID: 7, Raft: addr(6)}, refusedConnection},
			{memberChange{ID: 8, Raft: otherVersion(t)}, refusedConnection},
			{memberChange{ID: 4, Leave: true}, refusedUnknown},
		} {
			c.wantRefused(i, &row.change, row.code)
		}
	}
	down := (c.leader() + 1) % 3
	other := (c.leader() + 2) % 3
	c.kill(down)
	eventually(t, "the dead node seems alive", func() bool {
		s, _ := c.nodes[other].server(uint64(down + 1))
		return !c.nodes[c.leader()].isAlive(s)
	})
	c.wantRefused(other, &memberChange{Leave: true, ID: uint64(other + 1)}, refusedQuorum)
	c.wantRefused(other, &memberChange{Leave: true, ID: uint64(c.leader() + 1)}, refusedQuorum)
	c.leave(other, down) // a dead one may go
	c.wantVoters(2)
}

// A cluster grows from one node to three, each change asked of another node,
// and shrinks to one again; the last voter cannot leave.
func TestGrowAndShrink(t *testing.T) {
	t.Parallel()
	c := newGrowing(t, 1, 2)
	c.fill(0, "before", 50, 1000)
	c.sealAll()
	c.start(1)
	c.start(2)
	c.join(0, 1, true)
	c.join(1, 2, true)
	c.settle(2, &memberChange{ID: 2, Raft: c.nodes[1].o.raftAddr}) // again, without harm
	c.wantVoters(3)
	c.put(2, "three", "1")
	c.leave(1, 2)
	c.put(0, "two", "1")
	c.leave(1, 0)
	c.put(1, "one", "1")
	c.wantRefused(1, &memberChange{Leave: true, ID: 2}, refusedQuorum)
	c.wantRemoved(0)
	c.wantRemoved(2)
}

// The leader leaves through itself: another leads, and it knows that it is out,
// also after a restart, until it is joined again.
func TestLeaderLeaves(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	lead := c.leader()
	next := (lead + 1) % 3
	c.put(lead, "a", "1")
	c.leave(lead, lead)
	c.wantRemoved(lead)
	c.restart(lead)
	c.wantRemoved(lead)
	c.put(next, "b", "2")
	c.waitHellos(next, (lead+2)%3)
	if _, ok := c.nodes[c.leader()].server(uint64(lead + 1)); ok {
		t.Errorf("the removed node came back by itself: %+v", c.nodes[next].servers())
	}
	c.join(next, lead, true)
	if b := c.get(lead, "b"); b != "2" {
		t.Errorf("the node that came back reads b = %q", b)
	}
	c.kill((lead + 2) % 3) // now its vote counts
	c.put(lead, "c", "3")
}

// writers keeps writing through node i until stop; it repeats what has
// no leader or an unknown outcome.
func (c *testCluster) writers(i int) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for k := 0; ; k++ {
			h, err := c.nodes[i].put(fmt.Sprint("during-", k), "x", fmt.Sprint("during-", k))
			switch {
			case err == nil:
				c.note(h)
			case errors.Is(err, errUnknownOutcome), errors.Is(err, errNoLeader):
				k--
				<-time.After(time.Millisecond)
			default:
				c.t.Errorf("write %d through node %d: %v", k, i+1, err)
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(done)
		<-ended
	})
	c.t.Cleanup(stop)
	return stop
}

// A node that is removed while it is down learns it when it is back, and stays
// out.
func TestRemovedWhileDown(t *testing.T) {
	t.Parallel()
	for _, moves := range []bool{false, true} {
		t.Run(fmt.Sprint("moves ", moves), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3)
			down := (c.leader() + 1) % 3
			eventually(t, "node.json has no address", func() bool { return c.nodes[down].self.Load().Started })
			c.kill(down)
			c.settle(c.leader(), &memberChange{Leave: true, ID: uint64(down + 1)})
			c.nodes[down].gone = true
			if moves {
				c.move(down)
			}
			c.start(down)
			c.wantRemoved(down)
			if n := len(c.nodes[c.leader()].servers()); n != 2 {
				t.Errorf("%d members", n)
			}
			c.put(c.leader(), "a", "1")
			c.join(c.leader(), down, true)
			if a := c.get(down, "a"); a != "1" {
				t.Errorf("a = %q", a)
			}
		})
	}
}

// A node that was removed and is taken in again before it was opened anew gets no
// second Raft.
func TestEnterWhileRaftRuns(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	i := (c.leader() + 1) % 3
	c.put(i, "a", "1")
	n := c.nodes[i].node
	r := n.raft.Load()
	n.leaveCluster()
	if err := n.enter(n.self.Load().ClusterID, false); err != nil || n.raft.Load() != r || n.self.Load().Removed {
		t.Errorf("another Raft: %v, removed: %v: %v", n.raft.Load() != r, n.self.Load().Removed, err)
	}
	c.tend() // it asks to be opened again
	c.put(i, "b", "1")
	n = c.nodes[i].node
	c.stop(i)
	if err := n.enter(n.self.Load().ClusterID, false); err != nil { // it is a member
		t.Error(err)
	}
	n.self.Store(&nodeFile{ClusterID: n.self.Load().ClusterID, Removed: true})
	if err := n.enter(n.self.Load().ClusterID, false); !errors.Is(err, errClosed) {
		t.Errorf("a closed node enters: %v", err)
	}
	c.start(i)
}

// A learner reads and never votes, until it is told to; a voter can be made one.
func TestLearner(t *testing.T) {
	t.Parallel()
	c := newGrowing(t, 3, 2, func(o *nodeOptions) {
		if o.id == 5 { // by its configuration, and comes by itself
			o.learner, o.seeds = true, nil
		}
	})
	lead := c.leader()
	c.put(lead, "a", "1")
	c.nodes[4].o.seeds = []string{c.nodes[lead].o.raftAddr}
	c.start(3)
	c.start(4)
	c.nodes[4].gone = false
	c.join((lead+1)%3, 3, false)
	for _, k := range []int{3, 4} {
		if a := c.get(k, "a"); a != "1" {
			t.Errorf("learner %d reads %q", k+1, a)
		}
		c.waitHellos(c.leader(), k)
		if s, _ := c.nodes[k].server(uint64(k + 1)); s.Suffrage != raft.Nonvoter || c.nodes[k].status().role != "learner" {
			t.Errorf("learner %d is %v", k+1, s.Suffrage)
		}
	}
	c.restart(3)
	yes := true
	c.wantRefused(lead, &memberChange{ID: 5, Raft: c.nodes[4].o.raftAddr, Voter: &yes}, refusedRole)
	c.join(3, 3, true)
	c.join(0, 3, false)
	c.join(3, c.leader(), false) // the leader hands over first
	c.put(3, "b", "1")
}

// A wiped learner comes back as a learner by itself.
func TestWipedLearner(t *testing.T) {
	t.Parallel()
	c := newGrowing(t, 1, 1)
	c.start(1)
	c.join(0, 1, false)
	former := serverID(c.nodes[1].identity())
	c.waitHellos(0, 1)
	c.kill(1)
	c.wipe(1)
	c.nodes[1].o.seeds = []string{c.nodes[0].o.raftAddr}
	c.put(0, "a", "1")
	c.start(1)
	if a := c.get(1, "a"); a != "1" {
		t.Errorf("a = %q", a)
	}
	c.waitHellos(0, 1)
	s, _ := c.nodes[0].server(2)
	if s.ID == former || s.Suffrage != raft.Nonvoter || len(c.nodes[0].servers()) != 2 {
		t.Errorf("the learner came back as %+v", c.nodes[0].servers())
	}
}

// A node that is wiped again and again before anybody has heard it keeps its role,
// whoever leads.
func TestWipedTwice(t *testing.T) {
	t.Parallel()
	for _, learner := range []bool{false, true} {
		t.Run(fmt.Sprint(learner), func(t *testing.T) {
			t.Parallel()
			c := newGrowing(t, 2, 1)
			c.start(2)
			c.join(0, 2, !learner)
			c.waitHellos(0, 2)
			c.waitHellos(1, 2)
			gone := c.nodes[2].o.raftAddr
			c.kill(2)
			for range 3 {
				lead := c.nodes[c.leader(2)].node
				inc, err := parseIncarnation(newIncarnation())
				if err != nil {
					t.Fatal(err)
				}
				now := serverID(identity{node: 3, incarnation: inc})
				eventually(t, "the newcomer is not admitted", func() bool {
					lead.changes.Lock()
					defer lead.changes.Unlock()
					got, err := lead.admit(t.Context(), raft.Server{Suffrage: raft.Nonvoter,
						ID: now, Address: raft.ServerAddress(gone)})
					if err == nil && got != learner {
						t.Errorf("it is told that it is a learner: %v", got)
					}
					return err == nil
				})
				eventually(t, "the other node does not know its role", func() bool {
					p0, ok0 := c.nodes[0].peers.get(now)
					p1, ok1 := c.nodes[1].peers.get(now)
					return ok0 && ok1 && p0.Learner == learner && p1.Learner == learner
				})
				c.transfer(1 - c.leader(2))
			}
		})
	}
}

// Leaders die and are cut off while nodes come and go: each change that was
// said to be made is, nodes agree on the members, and no write is lost.
func TestMembersUnderFaults(t *testing.T) {
	t.Parallel()
	c := newGrowing(t, 3, 1)
	c.start(3)
	stop := c.writers(3)
	defer stop()
	c.join(0, 3, true)
	for range rounds(t, 1) {
		lead := c.leader()
		if lead == 3 {
			c.transfer(0)
			lead = 0
		}
		through := (lead + 1) % 3
		made := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
			defer cancel()
			no := false
			made <- c.nodes[through].changeMember(ctx, &memberChange{ID: 4, Raft: c.nodes[3].o.raftAddr, Voter: &no})
		}()
		c.kill(lead)
		if err := <-made; err != nil && !errors.Is(err, errNoLeader) && !errors.Is(err, errUnknownOutcome) {
			var refused *changeRefused // with the leader dead, 3 of 4 are left: one more may be too many
			if !errors.As(err, &refused) || refused.code != refusedQuorum {
				t.Errorf("demoting while the leader dies: %v", err)
			}
		}
		c.start(lead)
		c.join(through, 3, false)
		cut := c.leader()
		c.isolate(cut, linkSilent)
		err := c.ask(cut, &memberChange{Leave: true, ID: uint64(through + 1)})
		if err == nil {
			t.Errorf("a leader without a quorum has removed node %d", through+1)
		}
		c.leader(cut)
		c.links.heal()
		c.join(through, 3, true)
		c.wantVoters(4)
	}
	eventually(t, "the nodes do not agree on the members", func() bool {
		m := c.nodes[0].membership()
		for _, n := range c.nodes {
			if o := n.membership(); o.index != m.index || !slices.Equal(o.servers, m.servers) {
				return false
			}
		}
		return true
	})
}

// A node that is silent for long is taken out if it may be, never below a quorum.
func TestRemoveDead(t *testing.T) {
	t.Parallel()
	c := newGrowing(t, 3, 0, func(o *nodeOptions) { o.removeDeadAfter = 3 * time.Second })
	first, second := (c.leader()+1)%3, (c.leader()+2)%3
	c.kill(first)
	eventually(t, "the dead node was not removed", func() bool {
		return len(c.nodes[second].servers()) == 2
	})
	c.nodes[first].gone = true
	c.start(first)
	c.wantRemoved(first)
	c.kill(second) // never below a quorum
	<-time.After(4 * time.Second)
	c.start(second)
	c.put(second, "a", "1")
	if got := len(c.nodes[second].servers()); got != 2 {
		t.Errorf("%d members are left", got)
	}
}

// move gives node i, which is down, another internal address.
func (c *testCluster) move(i int) {
	addr := freeAddrs(c.t, 1)[0]
	c.links.mu.Lock() // which those who dial hold when they look for it
	defer c.links.mu.Unlock()
	c.nodes[i].o.raftAddr, c.nodes[i].o.raftListen = addr, addr
}

// A node that comes back at another address keeps its place and its vote; so
// does one that was needed for a quorum, and one that is alone.
func TestMovedNode(t *testing.T) {
	for size := 1; size <= 3; size++ {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, size)
			c.put(0, "a", "1")
			i := c.leader()
			before := serverID(c.nodes[i].identity())
			c.kill(i)
			c.move(i)
			c.start(i)
			eventually(t, "the address was not taken over", func() bool {
				c.tend()
				for _, n := range c.nodes {
					if s, _ := n.server(c.nodes[i].o.id); string(s.Address) != c.nodes[i].o.raftAddr || s.ID != before || s.Suffrage != raft.Voter {
						return false
					}
				}
				return true
			})
			if a := c.get(i, "a"); a != "1" {
				t.Errorf("a = %q", a)
			}
			c.put(i, "b", "1")
			c.restart(i)
			c.put(i, "c", "1")
		})
	}
}

// A copy of a data directory is refused while its original runs.
func TestCopiedDirectory(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.put(0, "a", "1")
	for _, i := range []int{c.leader(), (c.leader() + 1) % 3} {
		eventually(t, "node.json has no address", func() bool { return c.nodes[i].self.Load().Started })
		o := c.nodes[i].o
		c.kill(i)
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(o.dataDir)); err != nil {
			t.Fatal(err)
		}
		c.start(i)
		c.put(i, "b", "1")
		o.dataDir, o.storeFault = dir, nil
		o.raftAddr = freeAddrs(t, 1)[0]
		o.raftListen = o.raftAddr
		n, err := openNode(o)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case err = <-n.failed():
		case <-time.After(waitLimit):
		}
		if !errors.Is(err, errCopied) || !strings.Contains(err.Error(), "runs at "+c.nodes[i].o.raftAddr) || n.raft.Load() != nil {
			t.Errorf("opening a copy gives %v", err)
		}
		n.release()
	}
}

// The original of a copied directory that has taken its place is refused, too.
func TestOriginalOfCopy(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.put(0, "a", "1")
	for _, i := range []int{c.leader(), (c.leader() + 1) % 3} {
		eventually(t, "node.json has no address", func() bool { return c.nodes[i].self.Load().Started })
		c.kill(i)
		original := c.nodes[i].o
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(original.dataDir)); err != nil {
			t.Fatal(err)
		}
		c.nodes[i].o.dataDir = dir
		c.move(i)
		c.start(i)
		c.put(i, "b", "1")
		n, err := openNode(original)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case err = <-n.failed():
		case <-time.After(waitLimit):
		}
		if !errors.Is(err, errCopied) || !strings.Contains(err.Error(), "runs at "+c.nodes[i].o.raftAddr) {
			t.Errorf("opening the original gives %v", err)
		}
		n.release()
		c.put(i, "c", "1")
	}
}

// Every node tells all of every member: the leader, followers, a learner, one
// that is dead and that the node asked has never heard.
func TestMembersFromAnyNode(t *testing.T) {
	t.Parallel()
	c := newGrowing(t, 3, 2, func(o *nodeOptions) { o.region = fmt.Sprint("region-", o.id) })
	c.start(3)
	c.start(4)
	c.join(0, 3, false)
	c.join(0, 4, false)
	c.put(0, "a", "1")
	c.sealAll()
	c.waitHellos(c.leader(), 4)
	for i := range 4 {
		eventually(t, "not everything was applied", func() bool {
			p, _ := c.nodes[i].peers.get(serverID(c.nodes[4].identity()))
			return p.Applied == 1
		})
	}
	c.kill(4)
	fresh := (c.leader() + 1) % 3
	c.restart(fresh)
	for i := range 4 {
		var got []memberInfo
		eventually(t, fmt.Sprintf("node %d does not know all", i+1), func() bool {
			c.tend()
			got = c.nodes[i].members()
			ok := len(got) == 5
			leaders := 0
			for k, m := range got {
				role, state := "follower", stateAlive
				if k > 2 {
					role = "learner"
				}
				if m.role == "leader" {
					leaders++
					role = "leader"
				}
				if k == 4 {
					state = stateDead
				}
				ok = ok && m.id == uint64(k+1) && m.role == role && m.state == state && m.region == fmt.Sprint("region-", k+1) &&
					m.http == c.nodes[k].o.httpURL && m.raft == c.nodes[k].o.raftAddr && m.version == "test" && m.applied == 1
			}
			return ok && leaders == 1
		})
	}
}
