package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// All replicas apply the same log, so all must have the same bytes. They
// compare: when a segment is sealed, and every so often in between, the leader
// asks the other voters whether they have what it has.
//
//   - Most voters have what the leader has: it proposes a confirm or check
//     command, from which a replica that differs learns that it is the odd one
//     (fsm_check.go).
//   - Most have the same, but not what the leader has: the leader is the odd one.
//   - Some differ, and too few answer to tell who is right: those who see the
//     difference are in doubt. A node in doubt serves nothing but takes part in
//     Raft, so that the missing voters can come and decide.
//
// A node is the odd one, too, if its tree does not go on from what it signed
// itself, and the others are enough without it (raft_checkpoint.go).
//
// The odd one stops: no votes, no answers, exit. It first writes why into the
// file DIVERGED, which keeps it from starting until its state was set aside
// (raft_repair.go). A crash before that file is there leaves a node that finds
// the same difference again, or, if only its memory was wrong, none.

const (
	checkEvery   = time.Minute          // between two comparisons of a ledger that grows
	claimWait    = time.Second          // for a node to come to the size it is asked about
	claimPoll    = 5 * time.Millisecond // between two looks whether a segment file is there
	divergedName = "DIVERGED"
	howToRepair  = "it must not run on like this: `scribe-ledger repair` with its configuration sets its state aside, then it starts anew and fetches everything from the others"
)

// comparisons is what a node knows of its agreement with the others.
type comparisons struct {
	wake   chan struct{}             // there may be something to compare
	size   atomic.Uint64             // the last at which this node had what most have
	since  atomic.Pointer[time.Time] // the moment of that; nil = never
	doubt  atomic.Pointer[doubt]
	doomed atomic.Pointer[error] // this node is the odd one and ends
}

// doubt is a difference between this node and another.
type doubt struct {
	own, other treeClaim
	from       raft.ServerID
}

func (d *doubt) Error() string {
	return fmt.Sprintf("%s: %s has %s", errUndecided, d.from, difference(d.own, d.other))
}

func (d *doubt) Unwrap() error { return errUndecided }

// difference tells what another node has and this one.
func difference(own, other treeClaim) string {
	if own.root != other.root {
		return fmt.Sprintf("root %s over %d entries, here it is %s", other.root, own.size, own.root)
	}
	return fmt.Sprintf("a segment up to entry %d with SHA-256 %s, here it is %s", own.size-1, other.sum, own.sum)
}

// checkLoop has the leader compare.
func (n *node) checkLoop() {
	for tick := time.NewTicker(sealEvery); ; {
		select {
		case <-n.ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		case <-n.checks.wake:
		}
		if !n.leads() {
			continue
		}
		err := n.proposeChecks()
		switch {
		case err == nil || n.ctx.Err() != nil:
		case errors.Is(err, errDiverged):
			n.fail(err)
		case errors.Is(err, errUndecided):
			n.o.logger.Error("serving nothing until it is known who is right", "error", err)
		default:
			n.o.logger.Info("comparing with the other nodes", "error", err)
		}
	}
}

// wakeChecks makes checkLoop look at once.
func (n *node) wakeChecks() {
	select {
	case n.checks.wake <- struct{}{}:
	default:
	}
}

// proposeChecks compares what is due and proposes it: every sealed segment, and
// the whole tree when it has grown and some time has passed, or in doubt.
func (n *node) proposeChecks() error {
	for {
		info, ok := n.store.unconfirmed()
		if !ok {
			break
		}
		if err := n.proposeConfirm(info); err != nil {
			return err
		}
	}
	size := n.store.size()
	if size == 0 || !n.inDoubt() && (size <= n.checks.size.Load() || age(&n.checks.since) < n.o.checkEvery) {
		return nil
	}
	c, err := n.ownClaim(size, false)
	if err != nil {
		return err
	}
	if err := n.attest(c); err != nil {
		return err
	}
	return n.propose(appendCheck(nil, c.size, c.root))
}

// inDoubt tells whether this node is in doubt, or another voter that is there.
func (n *node) inDoubt() bool {
	return n.checks.doubt.Load() != nil || slices.ContainsFunc(n.voters(), func(s raft.Server) bool {
		p, ok := n.peers.get(s.ID)
		return ok && p.Doubt && p.state(time.Now()) == stateAlive
	})
}

// proposeConfirm puts the description of a sealed segment into the manifest of
// all nodes, once most of them have the same file.
func (n *node) proposeConfirm(info segmentInfo) error {
	c, err := n.ownClaim(info.end(), true)
	if err != nil {
		return err
	}
	if err := n.attest(c); err != nil {
		return err
	}
	return n.propose(appendConfirm(nil, info, c.root))
}

// propose has a command applied that has no result.
func (n *node) propose(command []byte) error {
	response, err := n.apply(command)
	if rerr, ok := response.(error); ok {
		return rerr
	}
	return err
}

// ownClaim is what this node has at size, with the segment that ends there if
// that is asked for. errNotYetApplied: it does not have it yet.
func (n *node) ownClaim(size uint64, segment bool) (treeClaim, error) {
	c := treeClaim{size: size}
	if segment {
		m := n.store.manifest.Load()
		k := m.find(size - 1)
		if k < 0 || m.segments[k].end() != size || m.segments[k].size == 0 {
			return c, fmt.Errorf("%w: no segment file that ends at entry %d", errNotYetApplied, size)
		}
		c.sum = m.segments[k].sum
	}
	root, err := n.store.root(size)
	if errors.Is(err, errBeyond) {
		err = fmt.Errorf("%w: %w", errNotYetApplied, err)
	}
	c.root = root
	return c, err
}

// voterAnswer is what a voter has.
type voterAnswer struct {
	treeClaim
	from raft.ServerID
	err  error
}

// attest asks the other voters for what they have where this node has c: nil if
// most voters, this one included, have it; errDiverged if most have the same
// and this node does not; errUndecided if there is a difference and nobody has
// most; any other error if there is none but too few answer.
func (n *node) attest(c treeClaim) error {
	ctx, cancel := context.WithTimeout(n.ctx, 2*claimWait)
	defer cancel()
	voters := n.voters()
	quorum := len(voters)/2 + 1
	answers, left := n.askVoters(ctx, voters, c)
	votes := map[treeClaim]int{c: 1}
	var missing error
	var odd *doubt
	for ; votes[c] < quorum && left > 0; left-- {
		a := <-answers
		if a.err != nil {
			missing = errors.Join(missing, fmt.Errorf("server %s: %w", a.from, a.err))
			continue
		}
		votes[a.treeClaim]++
		if a.treeClaim != c {
			odd = &doubt{c, a.treeClaim, a.from}
		}
		if a.treeClaim != c && votes[a.treeClaim] >= quorum {
			return fmt.Errorf("%w: entries %d to %d: most nodes have %s", errDiverged, min(n.checks.size.Load(), c.size-1), c.size-1, difference(c, a.treeClaim))
		}
	}
	switch {
	case odd != nil && votes[c] >= quorum:
		n.o.logger.Error("a node has diverged", "error", odd)
		return nil
	case votes[c] >= quorum:
		return nil
	case odd != nil:
		n.checks.doubt.Store(odd)
		return errors.Join(odd, missing)
	}
	return fmt.Errorf("only %d of %d voters have answered for %d entries: %w", votes[c], len(voters), c.size, missing)
}

// askVoters asks all voters but this node and returns where so many answers come.
func (n *node) askVoters(ctx context.Context, voters []raft.Server, c treeClaim) (<-chan voterAnswer, int) {
	answers, asked := make(chan voterAnswer, len(voters)), 0
	own := serverID(n.identity())
	for _, v := range voters {
		if v.ID == own {
			continue
		}
		asked++
		go func() {
			got, err := n.askClaim(ctx, string(v.Address), c)
			answers <- voterAnswer{got, v.ID, err}
		}()
	}
	return answers, asked
}

// claimMessage is a treeClaim between nodes.
type claimMessage struct {
	Size uint64 `json:"size"`
	Root string `json:"root"`
	Sum  string `json:"sum,omitempty"` // of the segment that ends there, if that is meant
}

// message encodes c.
func (c *treeClaim) message() claimMessage {
	m := claimMessage{Size: c.size, Root: c.root.String()}
	if c.sum != (hash{}) {
		m.Sum = c.sum.String()
	}
	return m
}

// parse decodes m.
func (m *claimMessage) parse() (c treeClaim, err error) {
	c.size = m.Size
	if c.root, err = parseHash(m.Root); err == nil && m.Sum != "" {
		c.sum, err = parseHash(m.Sum)
	}
	return c, err
}

// askClaim tells the node at addr what this node has and returns what that one has.
func (n *node) askClaim(ctx context.Context, addr string, c treeClaim) (treeClaim, error) {
	var reply claimMessage
	if err := n.call(ctx, http.MethodPost, addr, "/compare", c.message(), &reply); err != nil {
		return treeClaim{}, err
	}
	got, err := reply.parse()
	if err == nil && got.size != c.size {
		err = fmt.Errorf("%w: asked for %d entries, the answer is for %d", errCorrupt, c.size, got.size)
	}
	return got, err
}

// serveCompare tells what this node has where another has something. If that
// differs, one of them is wrong.
func (n *node) serveCompare(w http.ResponseWriter, r *http.Request) {
	var m claimMessage
	if !decode(w, r, &m) {
		return
	}
	theirs, err := m.parse()
	if err != nil || theirs.size == 0 {
		respond(w, nil, fmt.Errorf("no claim: %v", err))
		return
	}
	own, err := n.waitClaim(r.Context(), theirs.size, m.Sum != "")
	if err != nil {
		respond(w, nil, err)
		return
	}
	if from, ok := peerOf(r.Context()); ok && own != theirs {
		d := &doubt{own, theirs, serverID(from)}
		n.checks.doubt.Store(d)
		n.o.logger.Error("serving nothing until it is known who is right", "error", d)
	}
	respond(w, own.message(), nil)
}

// waitClaim is ownClaim that waits a while.
func (n *node) waitClaim(ctx context.Context, size uint64, segment bool) (treeClaim, error) {
	ctx, cancel := context.WithTimeout(ctx, claimWait)
	defer cancel()
	if err := n.store.waitSize(ctx, size); err != nil {
		return treeClaim{}, err
	}
	for {
		c, err := n.ownClaim(size, segment)
		if !errors.Is(err, errNotYetApplied) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return c, err
		case <-time.After(claimPoll):
		}
	}
}

// agreed notes that this node has what most have, which may end a doubt.
func (n *node) agreed(c treeClaim) {
	n.checks.size.Store(max(c.size, n.checks.size.Load())) // only the apply goroutine does
	n.checks.since.Store(new(time.Now()))
	d := n.checks.doubt.Load()
	if d != nil && c.size >= d.own.size && (d.own.sum == hash{} || c.sum != hash{}) && n.checks.doubt.CompareAndSwap(d, nil) {
		n.o.logger.Warn("most nodes have what this node has, it serves again", "entries", c.size, "was", d)
	}
}

// mayServe returns an error while this node does not know whether its bytes are right.
func (n *node) mayServe() error {
	if n.self.Load().Removed {
		return errRemoved
	}
	if err := n.checks.doomed.Load(); err != nil {
		return fmt.Errorf("%w: %w", errNoLeader, *err)
	}
	if d := n.checks.doubt.Load(); d != nil {
		return fmt.Errorf("%w: %w", errNoLeader, d)
	}
	return nil
}

// condemn ends this node's part in the cluster, durably, and returns the error
// to end with.
func (n *node) condemn(err error) error {
	err = fmt.Errorf("%w: %s", err, howToRepair)
	if !n.checks.doomed.CompareAndSwap(nil, &err) {
		return err
	}
	if n.raft.Load() != nil {
		n.stopRaft()
	}
	return errors.Join(err, markDiverged(n.o.dataDir, err.Error()))
}

// spared tells whether the other voters can go on, and take this node in again,
// without it.
func (n *node) spared() bool {
	own, voters := serverID(n.identity()), n.voters()
	others := slices.DeleteFunc(slices.Clone(voters), func(s raft.Server) bool { return s.ID == own })
	return len(others) > len(voters)/2
}

// markDiverged keeps the node in dir from starting.
func markDiverged(dir, why string) error {
	return writeDurably(filepath.Join(dir, divergedName), func(w io.Writer) error {
		_, err := io.WriteString(w, strings.ReplaceAll(why, "\n", " ")+"\n")
		return err
	})
}

// refuseDiverged returns why the node in dir must not start.
func refuseDiverged(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, divergedName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w: %s", dir, errDiverged, strings.TrimPrefix(strings.TrimSpace(string(b)), errDiverged.Error()+": "))
}

// raftEnd ends Raft once.
type raftEnd struct {
	once   sync.Once
	future raft.Future
}

// stopRaft tells Raft to end, at once, and returns how to wait for it.
func (n *node) stopRaft() raft.Future {
	n.ending.once.Do(func() { n.ending.future = n.raft.Load().Shutdown() })
	return n.ending.future
}
