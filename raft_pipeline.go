package main

import (
	"sync"

	"github.com/hashicorp/raft"
)

// AppendEntriesPipeline opens a pipeline under the transport's rules.
func (t *raftTransport) AppendEntriesPipeline(id raft.ServerID, addr raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target(id, addr))
	if err != nil {
		return nil, err
	}
	p := &raftPipeline{AppendPipeline: inner, t: t, answers: make(chan raft.AppendFuture), closed: make(chan struct{})}
	go p.pass()
	return p, nil
}

// raftPipeline is a pipeline under the transport's rules. One goroutine of Raft
// sends, another takes the answers.
type raftPipeline struct {
	raft.AppendPipeline
	t       *raftTransport
	answers chan raft.AppendFuture
	closed  chan struct{}
	once    sync.Once
}

// Consumer returns the answers in the order of the messages.
func (p *raftPipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// Close ends the pipeline and its stream; AppendEntries fails from now on.
func (p *raftPipeline) Close() (err error) {
	p.once.Do(func() {
		close(p.closed)
		err = p.AppendPipeline.Close()
	})
	return err
}

// pass passes the answers on. Raft takes none after one that is no success, and
// then its sender may wait for ever in AppendEntries for room in the pipeline,
// with a follower that gets nothing any more and a Shutdown that does not
// return (F9). So this pipeline is closed behind such an answer.
func (p *raftPipeline) pass() {
	for {
		select {
		case f := <-p.AppendPipeline.Consumer():
			last := !f.Response().Success || f.Response().Term > f.Request().Term
			select {
			case p.answers <- f:
			case <-p.closed:
				return
			}
			if last {
				p.Close()
				return
			}
		case <-p.closed:
			return
		}
	}
}

// AppendEntries sends a as several messages when it is too large for one. To
// shorten it would be correct too, but pipelineSend sends the rest only with
// the next entry or after CommitTimeout. Raft learns what was stored from each
// message's own future (pipelineDecode), and only those: the returned future is
// not used. After an error it drops the pipeline and begins again behind the
// last message that was answered.
func (p *raftPipeline) AppendEntries(a *raft.AppendEntriesRequest, r *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	rest := a.Entries
	for part := *a; ; {
		if p.t.o.stalled() {
			return nil, errStalled
		}
		n := fitting(rest, p.t.o.budget)
		part.Entries, rest = rest[:n], rest[n:]
		boundCommit(&part)
		message := part
		f, err := p.AppendPipeline.AppendEntries(&message, r)
		if err != nil || len(rest) == 0 {
			return f, err
		}
		last := part.Entries[n-1]
		part.PrevLogEntry, part.PrevLogTerm = last.Index, last.Term
		part.LeaderCommitIndex = a.LeaderCommitIndex
		r = new(raft.AppendEntriesResponse) // the one just used is filled in later
	}
}
