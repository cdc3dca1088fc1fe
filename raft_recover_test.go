package main

import (
	"errors"
	"strings"
	"testing"
)

// When most members are lost, the node that is left becomes a cluster of its own:
// with all it had, and an entry that says so. Nodes with new disks join it, one
// with its old disk learns that it is out.
func TestRecover(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(4))
	left := c.leader()
	c.put(left, "a", "1")
	c.sealAll()
	c.put(left, "a", "2")
	c.get(left, "a") // it need not lead any more
	size := c.nodes[left].store.size()
	first, second := (left+1)%3, (left+2)%3
	_, err := recoverNode(t.Context(), c.nodes[left].o)
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("recovering a node that runs: %v", err)
	}
	c.kill(first)
	c.kill(left)
	_, err = recoverNode(t.Context(), c.nodes[left].o)
	wantError(t, err, errMembersAnswer, c.nodes[second].o.raftAddr)
	c.kill(second)
	cut, err := recoverNode(t.Context(), c.nodes[left].o)
	if err != nil {
		t.Fatal(err)
	}
	if len(cut.Lost) != 2 || cut.Sealed != 1 || size != 2 {
		t.Errorf("cut is %+v", cut)
	}
	if _, err = recoverNode(t.Context(), c.nodes[left].o); err == nil || !strings.Contains(err.Error(), "only member") {
		t.Errorf("recovering twice: %v", err)
	}
	c.start(left)
	if v := c.get(left, "a"); v != "2" {
		t.Errorf("the node reads %q", v)
	}
	e, err := c.nodes[left].read(cutKey)
	if err != nil || e.seq != size || e.author != "scribe-ledger recover" || !strings.Contains(valueOf(t, &e), cut.Lost[0]) {
		t.Errorf("the cut is entry %+v, %v", e.header, err)
	}
	c.put(left, "b", "1")
	c.start(first)
	eventually(t, "a former member does not learn that it is out", func() bool {
		c.tend()
		return c.nodes[first].status().role == "removed"
	})
	if _, err := c.nodes[first].put("c", "1", ""); !errors.Is(err, errRemoved) {
		t.Errorf("a former member takes a write: %v", err)
	}
	c.kill(first)
	for _, i := range []int{first, second} {
		c.wipe(i)
		c.start(i)
	}
	c.wantVoters(3)
	c.restart(left)
	c.put(second, "b", "2")
}

// Two former members that come back together are the old cluster, with another
// history; they and the recovered node have nothing to do with each other.
func TestRecoverBesideOldMajority(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.unformed = true // two histories cannot be one truth
	left := c.leader()
	c.put(left, "a", "1")
	for i := range c.nodes {
		c.kill(i)
	}
	if _, err := recoverNode(t.Context(), c.nodes[left].o); err != nil {
		t.Fatal(err)
	}
	c.start(left)
	c.put(left, "own", "1")
	first, second := (left+1)%3, (left+2)%3
	c.isolate(left, linkLoud) // else each would learn that it is out
	c.start(first)
	c.start(second)
	next := c.leader(left)
	c.links.heal()
	c.put(next, "other", "1")
	for range 50 {
		c.put(next, "a", "2")
		if _, err := c.nodes[left].put("own", "2", ""); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(c.nodes[left].servers()); n != 1 {
		t.Errorf("the recovered cluster has %d members", n)
	}
	if _, err := c.nodes[left].read("other"); !errors.Is(err, errNotFound) {
		t.Errorf("the recovered node reads what the others wrote: %v", err)
	}
}
