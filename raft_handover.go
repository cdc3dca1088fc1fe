package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Handing over leadership. What this leader has let in lands first and nothing
// new gets in, otherwise its outcome would be unknown. Who asks meanwhile is
// told that nothing was applied and tries the next leader.

// doorway counts the packs that are on their way through this leader.
type doorway struct {
	mu     sync.Mutex
	shut   bool
	inside int
	empty  chan struct{} // while it is shut: closed when nobody is inside any more
}

// enter lets a pack in, unless the door is shut.
func (d *doorway) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut {
		return false
	}
	d.inside++
	return true
}

// leave notes that a pack that was let in has landed.
func (d *doorway) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inside--
	if d.shut && d.inside == 0 {
		close(d.empty)
	}
}

// close shuts the door; it returns what tells that nobody is inside any more.
func (d *doorway) close() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut, d.empty = true, make(chan struct{})
	if d.inside == 0 {
		close(d.empty)
	}
	return d.empty
}

// open lets packs in again.
func (d *doorway) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = false
}

// isShut tells whether leadership is being handed over.
func (d *doorway) isShut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shut
}

// busy tells whether a pack is on its way.
func (d *doorway) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.inside > 0
}

// handOver hands leadership to another node before this one stops, if it leads
// and another can.
func (n *node) handOver(ctx context.Context) {
	if !n.leads() || len(n.voters()) < 2 {
		return
	}
	if err := n.transfer(ctx, 0); err != nil {
		n.o.logger.Warn("stopping as the leader", "error", err)
	}
}

// errTransfer is wrapped by the reason why leadership stays where it is.
var errTransfer = errors.New("leadership was not handed over")

// transfer hands leadership to the node with the given id, 0 = to the most
// advanced one, and returns when it is gone: at once if that node leads. A follower
// passes it on.
func (n *node) transfer(ctx context.Context, to uint64) error {
	addr, _ := n.leaderServer()
	if addr == "" {
		return errNoLeader
	}
	r := n.raft.Load()
	var err error
	switch {
	case r.State() != raft.Leader:
		err = n.call(ctx, http.MethodPost, string(addr), "/transfer", transferRequest{to}, nil)
	case to != n.o.id:
		err = n.yieldTo(ctx, r, to)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errTransfer, err)
	}
	return nil
}

// yieldTo has another node lead, on the leader. What Raft is asked for may be answered
// late or never (raft.md F5), as when this node's disk hangs: then it stays behind.
func (n *node) yieldTo(ctx context.Context, r *raft.Raft, to uint64) error {
	select {
	case n.transfers <- struct{}{}:
		defer func() { <-n.transfers }()
	case <-ctx.Done():
		return fmt.Errorf("another hand-over is under way: %w", ctx.Err())
	}
	empty := n.door.close()
	defer n.door.open()
	select {
	case <-empty:
	case <-time.After(n.silence()): // a disk that slow is why leadership goes: the others need not wait for it
	case <-ctx.Done():
		return ctx.Err()
	}
	done := make(chan error, 1)
	go func() {
		err := n.wait(r.Barrier(time.Second)) // there are more entries than those of packs
		if err == nil && ctx.Err() == nil {
			err = n.transferTo(r, cmp.Or(to, n.roomiest()))
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// transferTo has Raft hand over leadership.
func (n *node) transferTo(r *raft.Raft, to uint64) error {
	if to == 0 {
		return r.LeadershipTransfer().Error()
	}
	s, ok := n.server(to)
	if !ok {
		return fmt.Errorf("%w: no node has id %d", errNotFound, to)
	}
	if s.Suffrage != raft.Voter { // Raft would make it a candidate for ever
		return fmt.Errorf("node %d does not vote and cannot lead", to)
	}
	return r.LeadershipTransferToServer(s.ID, s.Address).Error()
}

// transferRequest asks the leader to hand over leadership.
type transferRequest struct {
	To uint64 `json:"to"`
}
