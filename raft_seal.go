package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// The leader decides when a segment is sealed, by size or age or because
// somebody asks, and proposes it; every node then closes the same segment at
// the same log position and writes the same file (store_seal.go). When the
// leader's file is on disk, and most nodes have the same (raft_diverge.go), it
// proposes the manifest entry with the segment's root and SHA-256: a node whose
// own differ stops.

const sealEvery = time.Second

// sealLoop proposes seals as long as this node leads.
func (n *node) sealLoop() {
	for tick := time.NewTicker(sealEvery); ; {
		select {
		case <-n.ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		case <-n.sealNow:
		}
		if !n.leads() {
			continue
		}
		if err := n.proposeDue(); err != nil && n.ctx.Err() == nil {
			n.o.logger.Info("proposing a seal", "error", err)
		}
	}
}

// wakeSeal makes sealLoop and checkLoop look at once.
func (n *node) wakeSeal() {
	n.wakeChecks()
	select {
	case n.sealNow <- struct{}{}:
	default:
	}
}

// proposeDue proposes what is due now.
func (n *node) proposeDue() error {
	first, _, size := n.store.pendingInfo()
	since, ok := n.store.pendingSince()
	if ok && (n.oldest == nil || n.oldest.first != first) {
		n.oldest = &pendingAge{first, time.Now()}
	}
	old := ok && (n.o.now().Sub(time.UnixMilli(since)) >= n.o.sealAfter || time.Since(n.oldest.seen) >= n.o.sealAfter)
	if size >= uint64(n.o.segmentSize) || old {
		return n.proposeSeal()
	}
	return nil
}

// pendingAge is when this leader first saw a pending segment. The time in its
// first entry is known over restarts, but may be ahead of the clock for years,
// if the clock was when that was written.
type pendingAge struct {
	first uint64
	seen  time.Time
}

// proposeSeal closes the pending segment on all nodes. It waits for an upload
// under way, which a seal would drop.
func (n *node) proposeSeal() error {
	n.uploads.Lock()
	defer n.uploads.Unlock()
	first, count, _ := n.store.pendingInfo()
	if count == 0 {
		return nil
	}
	_, err := n.apply(appendSeal(nil, n.o.now().UnixMilli(), first))
	return err
}

// seal returns when the manifest covers everything written before the call, on
// all nodes that can be reached.
func (n *node) seal(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.o.writeTimeout)
	defer cancel()
	if err := n.confirmRead(ctx); err != nil {
		return err
	}
	size := n.store.size()
	for {
		changed := n.changing.next()
		if n.store.manifest.Load().confirmedEnd() >= size {
			n.showEverywhere(ctx, size)
			return nil
		}
		if err := n.requestSeal(ctx, size); err != nil && !errors.Is(err, errNotApplied) && !errors.Is(err, errNoLeader) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: sealing: %w", errUnknownOutcome, ctx.Err())
		case <-changed:
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// requestSeal has the leader seal if entries before size are still pending.
func (n *node) requestSeal(ctx context.Context, size uint64) error {
	if first, _, _ := n.store.pendingInfo(); first >= size {
		n.wakeSeal() // only the manifest entry is missing
		return nil
	}
	if n.leads() {
		return n.proposeSeal()
	}
	addr, _ := n.leaderServer()
	if addr == "" {
		return errNoLeader
	}
	ctx, cancel := n.whileLeads(ctx, string(addr))
	defer cancel()
	if err := n.call(ctx, http.MethodPost, string(addr), "/seal", nil, nil); err != nil {
		return fmt.Errorf("%w: %w", errNoLeader, err) // or it just was
	}
	return nil
}

// serveSeal seals for a follower.
func (n *node) serveSeal(w http.ResponseWriter, r *http.Request) {
	if !n.leads() {
		respond(w, nil, errNoLeader)
		return
	}
	respond(w, struct{}{}, n.proposeSeal())
}

// shownRequest asks a node to answer once its manifest shows the segments of
// the first Size entries.
type shownRequest struct {
	Size uint64 `json:"size"`
}

// showEverywhere waits until the others show the segments of size entries,
// but not for one that is away: it learns of them before it serves again.
func (n *node) showEverywhere(ctx context.Context, size uint64) {
	ctx, cancel := context.WithTimeout(ctx, n.silence())
	defer cancel()
	var all sync.WaitGroup
	for _, s := range n.others() {
		all.Go(func() { n.call(ctx, http.MethodPost, string(s.Address), "/shown", shownRequest{size}, nil) })
	}
	all.Wait()
}

// serveShown answers a shownRequest.
func (n *node) serveShown(w http.ResponseWriter, r *http.Request) {
	var ask shownRequest
	if !decode(w, r, &ask) {
		return
	}
	for n.store.manifest.Load().confirmedEnd() < ask.Size {
		n.commits.join(r.Context(), n, n.hearCommit) // else Raft tells us up to 40 ms later
		select {
		case <-r.Context().Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
	respond(w, struct{}{}, nil)
}

// serveTransfer hands over leadership for a follower that was asked to.
func (n *node) serveTransfer(w http.ResponseWriter, r *http.Request) {
	var ask transferRequest
	if !decode(w, r, &ask) {
		return
	}
	if !n.leads() {
		respond(w, nil, errNoLeader)
		return
	}
	respond(w, struct{}{}, n.transfer(r.Context(), ask.To))
}
