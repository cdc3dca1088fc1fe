package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Linearizable reads. Raft's VerifyLeader is not enough: it counts answers to
// messages sent before the read arrived, and answers of non-voters (raft.md
// F2). Instead the leader asks the voters for their terms after the read
// arrived; a quorum that still has its term means that nobody else can have
// acknowledged anything newer. One round serves all reads that wait for it.

// readRounds gathers reads into rounds: one round is under way, those who come
// meanwhile wait for the next.
type readRounds struct {
	n       *node
	mu      sync.Mutex
	waiting []chan error
	running bool
}

// confirmRead returns once this node's store holds everything that was
// acknowledged anywhere before the call (linearizable read).
func (n *node) confirmRead(ctx context.Context) error {
	if err := n.mayServe(); err != nil {
		return err
	}
	if n.leads() && len(n.voters()) == 1 && n.isReady() {
		return nil // its own voice is the quorum
	}
	if err := n.reads.join(ctx); err != nil {
		return err
	}
	return n.mayServe()
}

// join waits for a round that starts after the call.
func (r *readRounds) join(ctx context.Context) error {
	ch := make(chan error, 1)
	r.mu.Lock()
	r.waiting = append(r.waiting, ch)
	if !r.running {
		r.running = true
		go r.run()
	}
	r.mu.Unlock()
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run does rounds as long as somebody waits.
func (r *readRounds) run() {
	for {
		r.mu.Lock()
		batch := r.waiting
		r.waiting = nil
		r.running = len(batch) > 0
		r.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(r.n.ctx, r.n.o.readTimeout)
		err := r.n.readRound(ctx)
		cancel()
		for _, ch := range batch {
			ch <- err
		}
	}
}

// readRound brings this node up to everything acknowledged before the call. It
// tries again while there is no leader, for as long as an election may take.
func (n *node) readRound(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, n.patience())
	defer cancel()
	for {
		changed := n.changing.next()
		err := n.tryReadRound(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		case <-wait.Done():
			return fmt.Errorf("%w: %w", errNoLeader, err)
		}
	}
}

// patience is how long a request waits for a leader: two elections.
func (n *node) patience() time.Duration { return 2 * max(2*n.o.electionMin, n.o.electionMax) }

// tryReadRound is one try of readRound.
func (n *node) tryReadRound(ctx context.Context) error {
	if n.leads() {
		return n.confirmTerm(ctx)
	}
	addr, _ := n.leaderServer()
	if addr == "" {
		return errNoLeader
	}
	ctx, cancel := n.whileLeads(ctx, string(addr))
	defer cancel()
	size, err := n.askNumber(ctx, string(addr), askConfirm)
	if err != nil {
		return err
	}
	return n.waitCommitted(ctx, size) // from this leader
}

// isReady tells whether this leader has applied everything before its term.
func (n *node) isReady() bool {
	r := n.raft.Load()
	return r.State() == raft.Leader && n.readyTerm.Load() == r.CurrentTerm()
}

// confirmTerm returns nil if a quorum of voters, asked now, is still in this
// leader's term.
func (n *node) confirmTerm(ctx context.Context) error {
	if !n.isReady() {
		return errNoLeader
	}
	term := n.readyTerm.Load()
	voters := n.voters()
	own := serverID(n.identity())
	agree := make(chan bool, len(voters))
	ctx, cancel := context.WithTimeout(ctx, n.silence())
	defer cancel()
	votes, left := 0, 0
	for _, v := range voters {
		if v.ID == own {
			votes++
			continue
		}
		left++
		go func() { agree <- n.voterTerm(ctx, string(v.Address)) == term }()
	}
	quorum := len(voters)/2 + 1
	for ; votes < quorum && left > 0; left-- {
		select {
		case ok := <-agree:
			if ok {
				votes++
			}
		case <-ctx.Done(): // a question can wait longer than that for room in its connection
			left = 1
		}
	}
	if votes < quorum || !n.isReady() || n.readyTerm.Load() != term {
		return fmt.Errorf("%w: only %d of %d voters confirm term %d", errNoLeader, votes, len(voters), term)
	}
	return nil
}

// voterTerm asks a voter for its term; 0 if it does not answer.
func (n *node) voterTerm(ctx context.Context, addr string) uint64 {
	term, err := n.askNumber(ctx, addr, askTerm)
	if err != nil {
		return 0
	}
	return term
}
