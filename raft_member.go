package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// The membership: who joins, leaves, votes. Only the leader changes it, one
// change at a time, each decided on the newest committed configuration and
// refused by Raft if that is not its latest (prevIndex). So a leader that dies
// in the middle leaves the cluster with the change or without it. Whoever asked
// asks the next leader again: each change is safe to repeat.
//
// A newcomer is a non-voter until it has what the log no longer has; a learner
// stays one. That a node is a learner is written in its own node.json, or in
// its configuration, and its hello says so to every leader.

var (
	// errRemoved is returned by a node that was taken out of the cluster.
	errRemoved = errors.New("this node was removed from the cluster")
	// errUnsettled is wrapped by what keeps a change from being decided now.
	errUnsettled = fmt.Errorf("%w: the membership is not settled", errNoLeader)
)

// changeRefused says why the membership was not changed.
type changeRefused struct{ code, message string }

func (e *changeRefused) Error() string { return e.message }

// The codes of changeRefused.
const (
	refusedQuorum      = "would_lose_quorum"
	refusedID          = "id_taken"
	refusedAddress     = "address_taken"
	refusedCluster     = "other_cluster"
	refusedRole        = "learner" // its own configuration says that it does not vote
	refusedUnknown     = "unknown_node"
	refusedWrong       = "wrong_node"
	refusedUnreachable = "unreachable"
	refusedConnection  = "refused"
)

// decline is a changeRefused.
func decline(code, format string, args ...any) error {
	return &changeRefused{code, fmt.Sprintf(format, args...)}
}

// memberChange is a change of the membership as it is asked for.
type memberChange struct {
	Leave bool   `json:"leave,omitempty"` // else it joins, moves or changes its role
	ID    uint64 `json:"id"`
	Raft  string `json:"raft,omitempty"`  // its internal address, to join
	Voter *bool  `json:"voter,omitempty"` // nil: as it was, a newcomer votes
}

// changeReply is the leader's answer; a code of its own is "" for done,
// codeNoLeader and codeUnknown.
type changeReply struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

const (
	codeNoLeader = "no_leader"
	codeUnknown  = "unknown_outcome"
	changeEvery  = 50 * time.Millisecond // between two tries
)

// changeMember makes a change of the membership, through whoever leads, and
// returns when it is committed. Its errors are a changeRefused, errNoLeader when
// nothing has changed, and errUnknownOutcome.
func (n *node) changeMember(ctx context.Context, c *memberChange) error {
	if n.self.Load().Removed {
		return errRemoved
	}
	ctx, cancel := context.WithTimeout(ctx, 2*n.patience())
	defer cancel()
	for unsure := error(nil); ; {
		changed := n.changing.next()
		err := n.tryChange(ctx, c)
		var refused *changeRefused
		switch {
		case err == nil:
			return nil
		case errors.As(err, &refused):
			if refused.code == refusedUnknown && unsure != nil {
				return nil // an earlier try has removed it
			}
			return err
		case errors.Is(err, errUnknownOutcome):
			unsure = err
		}
		select {
		case <-changed:
		case <-time.After(changeEvery):
		case <-ctx.Done():
			return cmp.Or(unsure, err)
		}
	}
}

// tryChange is one try of changeMember.
func (n *node) tryChange(ctx context.Context, c *memberChange) error {
	if n.leads() {
		return n.leadChange(ctx, c)
	}
	addr, _ := n.leaderServer()
	if addr == "" {
		return errNoLeader
	}
	var reply changeReply
	err := n.call(ctx, http.MethodPost, string(addr), "/member", c, &reply)
	switch {
	case errors.Is(err, errDial):
		return fmt.Errorf("%w: %w", errNoLeader, err)
	case err != nil:
		return fmt.Errorf("%w: %w", errUnknownOutcome, err)
	}
	switch reply.Code {
	case "":
		n.greetMember(ctx, c)
		return nil
	case codeNoLeader:
		return fmt.Errorf("%w: %s", errNoLeader, reply.Message)
	case codeUnknown:
		return fmt.Errorf("%w: %s", errUnknownOutcome, reply.Message)
	}
	return &changeRefused{reply.Code, reply.Message}
}

// serveMember makes one try of a change for another node, on the leader.
func (n *node) serveMember(w http.ResponseWriter, r *http.Request) {
	var c memberChange
	if !decode(w, r, &c) {
		return
	}
	var reply changeReply
	if err := n.leadChange(r.Context(), &c); err != nil {
		reply = changeReply{codeNoLeader, err.Error()}
		var refused *changeRefused
		if errors.As(err, &refused) {
			reply.Code = refused.code
		} else if errors.Is(err, errUnknownOutcome) {
			reply.Code = codeUnknown
		}
	}
	respond(w, reply, nil)
}

// leadChange makes a change, on the leader.
func (n *node) leadChange(ctx context.Context, c *memberChange) error {
	if !n.leads() {
		return errNoLeader
	}
	n.changes.Lock()
	defer n.changes.Unlock()
	if err := ctx.Err(); err != nil { // who asked has gone meanwhile, and may have asked for something else since
		return fmt.Errorf("%w: %w", errUnsettled, err)
	}
	if c.Leave {
		return n.retire(ctx, c.ID)
	}
	err := n.takeIn(ctx, c)
	if err == nil {
		n.greetMember(ctx, c)
	}
	return err
}

// greetMember says hello to a node that has just been taken in, so that who asked for
// it is told of it at once.
func (n *node) greetMember(ctx context.Context, c *memberChange) {
	if s, ok := n.server(c.ID); ok && !c.Leave && s.ID != serverID(n.identity()) {
		n.greet(ctx, s)
	}
}

// membership is the newest committed configuration.
type membership struct {
	servers []raft.Server
	index   uint64
}

// membership returns the newest configuration this node knows to be committed.
func (n *node) membership() membership {
	f := n.fsm.Load()
	if f == nil {
		return membership{}
	}
	m := f.members.Load()
	if len(m.configuration) == 0 {
		return membership{}
	}
	return membership{raft.DecodeConfiguration(m.configuration).Servers, m.index}
}

// find returns the server of the node with the given id.
func (m *membership) find(id uint64) (raft.Server, bool) {
	for _, s := range m.servers {
		if node, _, err := parseServerID(s.ID); err == nil && node == id {
			return s, true
		}
	}
	return raft.Server{}, false
}

// address returns where a server is, "" if it is no member.
func (m *membership) address(id raft.ServerID) string {
	if i := slices.IndexFunc(m.servers, func(s raft.Server) bool { return s.ID == id }); i >= 0 {
		return string(m.servers[i].Address)
	}
	return ""
}

// change has Raft agree on one change of m and waits until it is committed.
func (n *node) change(ctx context.Context, m membership, propose func(r *raft.Raft, at uint64) raft.IndexFuture) error {
	if !n.isReady() || m.index == 0 || ctx.Err() != nil { // only a leader that has applied all before its term knows what is committed
		return errUnsettled
	}
	done := make(chan error, 1)
	go func() { done <- n.wait(propose(n.raft.Load(), m.index)) }()
	select {
	case err := <-done:
		if err == nil {
			return nil
		}
		if strings.HasPrefix(err.Error(), "configuration changed since") { // Raft has no better word for it
			return fmt.Errorf("%w: %w", errUnsettled, err)
		}
		if err = n.fate(err); errors.Is(err, errNotApplied) {
			return fmt.Errorf("%w: %w", errUnsettled, err)
		}
		return err
	case <-ctx.Done(): // Raft begins no other change before this one has its fate
		return fmt.Errorf("%w: %w", errUnknownOutcome, ctx.Err())
	}
}

// add makes a server a voter or a non-voter, or gives it another address.
func (n *node) add(ctx context.Context, m membership, s raft.Server) error {
	return n.change(ctx, m, func(r *raft.Raft, at uint64) raft.IndexFuture {
		if s.Suffrage == raft.Voter {
			return r.AddVoter(s.ID, s.Address, at, enqueueLimit)
		}
		return r.AddNonvoter(s.ID, s.Address, at, enqueueLimit)
	})
}

// remove takes a server out.
func (n *node) remove(ctx context.Context, m membership, id raft.ServerID) error {
	return n.change(ctx, m, func(r *raft.Raft, at uint64) raft.IndexFuture {
		return r.RemoveServer(id, at, enqueueLimit)
	})
}

// retire takes a node out of the cluster. A leader that is to leave hands over
// first; its successor is asked next.
func (n *node) retire(ctx context.Context, id uint64) error {
	m := n.membership()
	s, ok := m.find(id)
	if !n.isReady() {
		return errUnsettled
	}
	if !ok {
		return decline(refusedUnknown, "node %d is not a member", id)
	}
	if err := n.sparesVote(m, s); err != nil {
		return err
	}
	if s.ID == serverID(n.identity()) {
		return n.stepAside(ctx)
	}
	if err := n.remove(ctx, m, s.ID); err != nil {
		return err
	}
	n.o.logger.Info("node has left the cluster", "server", s.ID)
	return nil
}

// stepAside hands leadership to another node and says that this one leads no more.
func (n *node) stepAside(ctx context.Context) error {
	if err := n.transfer(ctx, 0); err != nil {
		return fmt.Errorf("%w: handing over leadership: %w", errUnsettled, err)
	}
	return errUnsettled
}

// sparesVote refuses to do without the vote of s if those that are left and
// alive would be no quorum.
func (n *node) sparesVote(m membership, s raft.Server) error {
	if s.Suffrage != raft.Voter {
		return nil
	}
	left := slices.DeleteFunc(slices.Clone(m.servers), func(o raft.Server) bool { return o.ID == s.ID || o.Suffrage != raft.Voter })
	alive := make([]bool, len(left))
	parallel(len(left), func(i int) { alive[i] = n.isAlive(left[i]) })
	count := 0
	for _, a := range alive {
		if a {
			count++
		}
	}
	if need := len(left)/2 + 1; count < need {
		return decline(refusedQuorum, "without the vote of server %s at %s, %d of %d voters would be alive and %d are needed", s.ID, s.Address, count, len(left), need)
	}
	return nil
}

// isAlive tells whether a server is this node or was heard a moment ago; a new
// leader asks.
func (n *node) isAlive(s raft.Server) bool {
	if s.ID == serverID(n.identity()) {
		return true
	}
	p, ok := n.peers.get(s.ID)
	return ok && p.state(time.Now()) == stateAlive || n.greet(n.ctx, s)
}

// takeIn makes the node that answers at an address a member, or changes the
// role of one that is. A crash, of any node, at any step leaves at most a
// non-voter that does not know yet that it is one; the leader tells it
// (tendMembers).
func (n *node) takeIn(ctx context.Context, c *memberChange) error {
	m := n.membership()
	if former, found := m.find(c.ID); found && string(former.Address) != c.Raft { // before anybody else is asked
		if err := n.livesElsewhere(former, raft.Server{Address: raft.ServerAddress(c.Raft)}); err != nil {
			return err
		}
	}
	h, err := n.meet(ctx, c)
	if err != nil {
		return err
	}
	if c.Voter != nil { // first of all: it must not become a voter meanwhile
		if err := n.tellRole(ctx, c.Raft, !*c.Voter); err != nil {
			return err
		}
	}
	learner, err := n.admit(ctx, raft.Server{Suffrage: raft.Nonvoter, ID: h.server(), Address: raft.ServerAddress(c.Raft)})
	if err != nil {
		return err
	}
	m = n.membership()
	s, _ := m.find(c.ID)
	if c.Voter != nil && !*c.Voter && s.Suffrage == raft.Voter {
		return n.demote(ctx, m, s)
	}
	if err := n.tellEnter(ctx, s, learner && c.Voter == nil); err != nil {
		n.o.logger.Warn("telling a node that it is a member", "server", s.ID, "error", err)
	}
	return nil
}

// meet asks who is at the address of a node that shall join.
func (n *node) meet(ctx context.Context, c *memberChange) (*hello, error) {
	h, err := n.helloAt(ctx, c.Raft)
	self := n.self.Load()
	switch {
	case errors.Is(err, errRefused):
		return nil, decline(refusedConnection, "the node at %s and this cluster do not belong together: %v", c.Raft, err)
	case err != nil:
		return nil, decline(refusedUnreachable, "nobody answers at %s: %v", c.Raft, err)
	case h.ID != c.ID:
		return nil, decline(refusedWrong, "the node at %s is node %d, not node %d", c.Raft, h.ID, c.ID)
	case h.server() == "":
		return nil, decline(refusedWrong, "the node at %s says its incarnation is %q", c.Raft, h.Incarnation)
	case h.Raft != c.Raft:
		return nil, decline(refusedWrong, "the node at %s calls itself %s", c.Raft, h.Raft)
	case h.Pledge != "" && h.Pledge != self.ClusterID:
		return nil, decline(refusedCluster, "node %d has pledged to form cluster %s", h.ID, h.Pledge)
	}
	return h, nil
}

// admit adds a newcomer to the configuration, as a non-voter. A former
// incarnation of the same node, whose disk is gone, is retired first; learner
// tells that it was not to vote. One that nobody remembers as a learner was on its
// way to be a voter: to take it for a learner would cost the cluster a voter for
// good, and nobody would notice. A member that comes with another address keeps its role.
func (n *node) admit(ctx context.Context, s raft.Server) (learner bool, err error) {
	id, _, err := parseServerID(s.ID)
	if err != nil {
		return false, err
	}
	m := n.membership()
	for _, o := range m.servers {
		if node, _, _ := parseServerID(o.ID); o.Address == s.Address && node != id {
			return false, decline(refusedAddress, "node %d is a member with the address %s", node, o.Address)
		}
	}
	former, found := m.find(id)
	if found && former.ID == s.ID && former.Address == s.Address {
		return false, nil
	}
	if found {
		if err := n.livesElsewhere(former, s); err != nil {
			return false, err
		}
	}
	if found && former.ID == s.ID {
		s.Suffrage = former.Suffrage
		n.o.logger.Info("node has another address", "server", s.ID, "from", former.Address, "to", s.Address)
	} else if found {
		p, _ := n.peers.get(former.ID)
		learner = former.Suffrage != raft.Voter && p.Learner
		n.o.logger.Info("retiring a former incarnation", "server", former.ID)
		if err := n.remove(ctx, m, former.ID); err != nil {
			return false, err
		}
		m = n.membership()
	}
	n.peers.hearsay(silentPeer{Server: string(s.ID), Learner: learner}) // it may be gone before it was heard
	return learner, n.add(ctx, m, s)
}

// livesElsewhere refuses a newcomer that has the id of a member which is alive
// at another address.
func (n *node) livesElsewhere(former, now raft.Server) error {
	id, _, _ := parseServerID(former.ID)
	taken := decline(refusedID, "node %d is alive at %s", id, former.Address)
	switch {
	case former.ID == serverID(n.identity()):
		return taken
	case former.Address == now.Address: // where the newcomer is, the former one is not
		return nil
	case n.greet(n.ctx, former):
		return taken
	}
	if p, ok := n.peers.get(former.ID); ok && p.state(time.Now()) == stateAlive {
		return fmt.Errorf("%w: %s was heard a moment ago", errUnsettled, former.ID)
	}
	return nil
}

// serveJoin takes in a newcomer that comes by itself, on the leader.
func (n *node) serveJoin(w http.ResponseWriter, r *http.Request) {
	var ask joinRequest
	if !decode(w, r, &ask) {
		return
	}
	inc, err := parseIncarnation(ask.Incarnation)
	if err != nil {
		respond(w, nil, err)
		return
	}
	leader, _ := n.leaderServer()
	if !n.leads() {
		if leader == "" {
			respond(w, nil, errNoLeader)
			return
		}
		respond(w, joinReply{Leader: string(leader)}, nil)
		return
	}
	n.changes.Lock()
	defer n.changes.Unlock()
	learner, err := n.admit(r.Context(), raft.Server{
		Suffrage: raft.Nonvoter, ID: serverID(identity{node: ask.ID, incarnation: inc}), Address: raft.ServerAddress(ask.Raft),
	})
	var refused *changeRefused
	if errors.As(err, &refused) {
		respond(w, joinReply{Code: refused.code, Message: refused.message}, nil)
		return
	}
	respond(w, joinReply{ClusterID: n.self.Load().ClusterID, Learner: learner}, err)
}

// tendMembers does, on the leader, what members need: those that do not know
// that they are hear of it, those that have caught up vote, learners do not,
// and those that are dead for long are removed.
func (n *node) tendMembers() {
	if r := n.raft.Load(); r == nil || !n.isReady() || !n.changes.TryLock() {
		return
	}
	defer n.changes.Unlock()
	ctx, cancel := context.WithTimeout(n.ctx, 2*n.patience())
	defer cancel()
	for _, s := range n.membership().servers {
		if err := n.tend(ctx, n.membership(), s); err != nil && n.leads() {
			n.o.logger.Warn("tending a member", "server", s.ID, "error", err)
		}
	}
}

// tend does what one member needs.
func (n *node) tend(ctx context.Context, m membership, s raft.Server) error {
	own := n.hello()
	if s.ID == own.server() {
		if moved := raft.ServerAddress(n.o.raftAddr); s.Address != moved {
			s.Address = moved
			return n.add(ctx, m, s)
		}
		if s.Suffrage == raft.Voter && own.Learner && len(n.voters()) > 1 {
			return n.demote(ctx, m, s)
		}
		return nil
	}
	p, ok := n.peers.get(s.ID)
	alive := ok && p.state(time.Now()) == stateAlive
	switch {
	case !alive:
		return n.removeDead(ctx, m, s, p.heard)
	case p.ClusterID == "" || p.Removed:
		return n.tellEnter(ctx, s, false)
	case p.Learner && s.Suffrage == raft.Voter:
		return n.demote(ctx, m, s)
	case !p.Learner && s.Suffrage != raft.Voter && n.hasCaughtUp(&p):
		s.Suffrage = raft.Voter
		if err := n.add(ctx, m, s); err != nil {
			return err
		}
		n.o.logger.Info("newcomer has caught up and votes now", "server", s.ID)
	}
	return nil
}

// hasCaughtUp tells whether what a newcomer has and what the log has meet.
func (n *node) hasCaughtUp(p *peer) bool {
	first, err := n.log.FirstIndex()
	applied := n.raft.Load().AppliedIndex()
	return err == nil && p.Index+1 >= max(first, 1+applied-min(promoteLag, applied))
}

// promoteLag is how many log entries a newcomer may be behind when it becomes a voter.
const promoteLag = 64

// demote makes a voter a non-voter, if its vote can be spared.
func (n *node) demote(ctx context.Context, m membership, s raft.Server) error {
	if err := n.sparesVote(m, s); err != nil {
		return err
	}
	if s.ID == serverID(n.identity()) {
		return n.stepAside(ctx)
	}
	err := n.change(ctx, m, func(r *raft.Raft, at uint64) raft.IndexFuture { return r.DemoteVoter(s.ID, at, enqueueLimit) })
	if err == nil {
		n.o.logger.Info("node does not vote any more", "server", s.ID)
	}
	return err
}

// removeDead takes out a member that was not heard for remove_dead_after, if
// that is set and a quorum of those left is alive. Silence counts from when this
// node began to lead: before, others may have heard it.
func (n *node) removeDead(ctx context.Context, m membership, s raft.Server, heard time.Time) error {
	silence := min(age(&n.ledSince), time.Since(heard))
	if n.o.removeDeadAfter == 0 || silence < n.o.removeDeadAfter {
		return nil
	}
	if err := n.sparesVote(m, s); err != nil {
		return err
	}
	if n.greet(ctx, s) { // it came since all were asked, or this process stood still meanwhile
		return nil
	}
	if err := n.remove(ctx, m, s.ID); err != nil {
		return err
	}
	n.o.logger.Warn("dead node removed from the cluster", "server", s.ID, "last_heard", heard)
	return nil
}
