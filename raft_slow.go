package main

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// What happens while the disk takes its time. Raft's main goroutine writes the
// log itself, and does nothing else meanwhile.
//
//   - A follower that waits for its disk would leave heartbeats unanswered, and
//     a leader whose followers all do would step down: the same again with the
//     next. So the transport answers a heartbeat that Raft has no time for. The
//     answer says nothing but that the node is there; nothing of Raft changes (F1).
//   - A leader that waits for its disk keeps its office by heartbeats, however
//     long that takes (F6). It is to lose it when another has a faster disk, and
//     when the disk hangs in any case.

const (
	slowWrite   = time.Second      // a write of the log that takes longer is slow
	slowFor     = time.Minute      // so long after a slow write the disk counts as slow
	hungWrite   = 10 * time.Second // a write that takes longer hangs
	waitsBefore = 20 * time.Millisecond
)

// stalled tells whether this node should not keep its office as leader.
func (n *node) stalled() bool {
	return n.log.stalled(slowWrite) && (n.log.stalled(hungWrite) || n.fasterElsewhere())
}

// fasterElsewhere tells whether another voter is there whose disk is not slow.
func (n *node) fasterElsewhere() bool {
	return slices.ContainsFunc(n.others(), func(s raft.Server) bool {
		p, ok := n.peers.get(s.ID)
		return s.Suffrage == raft.Voter && ok && !p.Slow && p.state(time.Now()) == stateAlive
	})
}

// waitsFor tells whether this node follows a leader in its term, and is writing
// what it got from it.
func (n *node) waitsFor(leader raft.ServerID, term uint64) bool {
	r := n.raft.Load()
	if r == nil || !n.log.stalled(waitsBefore) {
		return false
	}
	_, id := r.LeaderWithID()
	return id == leader && r.CurrentTerm() == term && r.State() == raft.Follower
}

// heartbeat returns the term of a request that does nothing but keep a leader in
// office; ok is false for any other.
func heartbeat(rpc raft.RPC) (term uint64, ok bool) {
	a, ok := rpc.Command.(*raft.AppendEntriesRequest)
	if !ok || len(a.Entries) > 0 || a.PrevLogEntry != 0 || a.PrevLogTerm != 0 || a.LeaderCommitIndex != 0 {
		return 0, false
	}
	return a.Term, true
}

// pass gives Raft a request of the server that a stream belongs to, or answers a
// heartbeat for it; it returns false when the transport closes.
func (t *raftTransport) pass(rpc raft.RPC, from raft.ServerID) bool {
	term, beat := heartbeat(rpc)
	if !beat || t.o.waits == nil {
		select {
		case t.consume <- rpc:
			return true
		case <-t.done:
			return false
		}
	}
	poll := time.NewTicker(waitsBefore)
	defer poll.Stop()
	for {
		select {
		case t.consume <- rpc:
			return true
		case <-t.done:
			return false
		case <-poll.C:
		}
		if t.o.waits(from, term) {
			rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, Term: term, Success: true}, nil)
			return true
		}
	}
}
