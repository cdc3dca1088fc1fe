package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// What is committed, for a follower that cannot wait. Raft's leader tells it
// with its next AppendEntries, which comes CommitTimeout after the last write
// if no other follows: 20 to 40 ms, in which a receipt or a linearizable read
// just after a write would stand still. Such a request asks the leader (askCommit,
// raft_stream.go) and passes the answer to its own Raft as the AppendEntries
// it might have been: of the same leader and term, without entries, which says
// that the leader's log has an entry of that term at index and that everything
// up to there is committed. An index beyond the end of our own log is cut to
// that end: an entry there that is of the leader's term came from its log. Raft
// compares the entry's term once more before it believes anything. Commit index
// and last index of the message are the same, as F8 asks.

// waitCommitted returns when this node has applied size entries, which the
// leader is known to have. It asks again, ever later, while they are on their
// way: an entry may come here after the question whether it is committed.
func (n *node) waitCommitted(ctx context.Context, size uint64) error {
	for pause := 250 * time.Microsecond; n.store.size() < size && !n.leads(); pause *= 2 {
		if _, err := n.commits.join(ctx, n, n.hearCommit); err != nil {
			break // Raft tells us later by itself
		}
		short, cancel := context.WithTimeout(ctx, pause)
		err := n.store.waitSize(short, size)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return n.store.waitSize(ctx, size)
}

// hearCommit asks the leader what is committed and tells Raft.
func (n *node) hearCommit() (struct{}, error) {
	var none struct{}
	ctx, cancel := context.WithTimeout(n.ctx, n.silence())
	defer cancel()
	addr, leader := n.leaderServer()
	if addr == "" || leader == serverID(n.identity()) { // Raft would step down from what it hears of itself
		return none, errNoLeader
	}
	b, err := n.ask(ctx, string(addr), askCommit, 16)
	if err != nil {
		return none, err
	}
	r, term, index := n.raft.Load(), binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	if own := r.CurrentTerm(); term != own { // then leader may be another one's
		return none, fmt.Errorf("%w: %s leads term %d, this is term %d", errNoLeader, addr, term, own)
	}
	index = min(index, r.LastIndex()) // the rest is on its way
	var last raft.Log
	if err := n.log.GetLog(index, &last); err != nil || last.Term != term {
		return none, nil // of an older leader, or on its way
	}
	return none, n.transport.hear(ctx, &raft.AppendEntriesRequest{
		RPCHeader:         raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(leader), Addr: []byte(addr)},
		Term:              term,
		PrevLogEntry:      index,
		PrevLogTerm:       term,
		LeaderCommitIndex: index,
	})
}

// serveCommit answers askCommit. A ready leader has committed an entry of its
// term, so the newest that is committed is of its term too. One whose disk
// hangs says nothing: an answer counts as a sign of life (F6).
func (n *node) serveCommit(out *frameWriter, f streamFrame) {
	r := n.raft.Load()
	if r == nil || !n.isReady() || n.log.stalled(n.silence()) {
		out.write(streamFrame{f.number, answerNotApplied, []byte("not the leader")})
		return
	}
	term, index := n.readyTerm.Load(), r.CommitIndex()
	if !n.isReady() || n.readyTerm.Load() != term {
		out.write(streamFrame{f.number, answerNotApplied, []byte("not the leader")})
		return
	}
	b := binary.BigEndian.AppendUint64(nil, term)
	out.write(streamFrame{f.number, answerOK, binary.BigEndian.AppendUint64(b, index)})
}

// hear passes a request to this node's Raft as if its leader had sent it, and
// returns when it is done.
func (t *raftTransport) hear(ctx context.Context, a *raft.AppendEntriesRequest) error {
	done := make(chan raft.RPCResponse, 1)
	select {
	case t.consume <- raft.RPC{Command: a, RespChan: done}:
	case <-t.done:
		return errors.New("transport is closed")
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case res := <-done:
		return res.Error
	case <-ctx.Done():
		return ctx.Err()
	}
}
