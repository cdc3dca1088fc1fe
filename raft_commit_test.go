package main

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
)

// TestHearCommit: a follower learns at once what is committed, not with the
// next message of an idle leader, which is far away here.
func TestHearCommit(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(4))
	lead := c.leader()
	follower := c.nodes[(lead+1)%3]
	for i := range 50 {
		h := c.put(lead, "k", string(rune('a'+i%26)))
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		if err := follower.waitCommitted(ctx, h.seq+1); err != nil {
			t.Fatal(err)
		}
		cancel()
		if size := follower.store.size(); size <= h.seq {
			t.Fatalf("size %d after waiting for entry %d", size, h.seq)
		}
	}
	if term := follower.raft.Load().CurrentTerm(); term != c.nodes[c.leader()].raft.Load().CurrentTerm() {
		t.Errorf("the follower is in term %d", term)
	}
}

// TestHearCommitLeading: a node that has come to lead meanwhile hears nothing
// of itself, which would end its leadership.
func TestHearCommitLeading(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(4))
	lead := c.leader()
	n := c.nodes[lead]
	h := c.put(lead, "k", "v")
	term := n.readyTerm.Load()
	if _, err := n.hearCommit(); !errors.Is(err, errNoLeader) {
		t.Errorf("the leader hears %v", err)
	}
	if err := n.waitCommitted(t.Context(), h.seq+1); err != nil {
		t.Error(err)
	}
	if !n.leads() || n.raft.Load().CurrentTerm() != term {
		t.Errorf("it led term %d, now it is %s in term %d", term, n.raft.Load().State(), n.raft.Load().CurrentTerm())
	}
}

// TestCommitAnswers: only a leader says what is committed.
func TestCommitAnswers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(4))
	lead := c.leader()
	c.key(lead)
	c.put(lead, "k", "v")
	for i, n := range c.nodes {
		var b []byte
		var err error
		var term, index uint64
		eventually(t, "something is committed all the time", func() bool {
			term, index = n.readyTerm.Load(), n.raft.Load().CommitIndex()
			ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
			defer cancel()
			b, err = c.nodes[(i+1)%3].ask(ctx, n.o.raftAddr, askCommit, 16)
			return term == n.readyTerm.Load() && index == n.raft.Load().CommitIndex()
		})
		if i == lead && (err != nil || binary.BigEndian.Uint64(b) != term || binary.BigEndian.Uint64(b[8:]) != index) {
			t.Errorf("the leader answers %x, %v", b, err)
		}
		if i != lead && err == nil {
			t.Errorf("node %d, which does not lead, answers %x", i+1, b)
		}
	}
}
