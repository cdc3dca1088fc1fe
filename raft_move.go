package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// What a member does that is told of its role, was removed, or comes back at
// another address.

// roleRequest tells a node whether it is to vote.
type roleRequest struct {
	Learner bool `json:"learner"`
}

// enterRequest tells a node that it is a member of a cluster.
type enterRequest struct {
	ClusterID string `json:"cluster_id"`
	Learner   bool   `json:"learner,omitempty"`
}

// tellRole has the node at addr write down whether it is to vote.
func (n *node) tellRole(ctx context.Context, addr string, learner bool) error {
	var reply changeReply
	if err := n.call(ctx, http.MethodPost, addr, "/role", roleRequest{learner}, &reply); err != nil {
		return decline(refusedUnreachable, "telling the node at %s its role: %v", addr, err)
	}
	if reply.Code != "" {
		return &changeRefused{reply.Code, reply.Message}
	}
	return nil
}

// serveRole writes down what tellRole says.
func (n *node) serveRole(w http.ResponseWriter, r *http.Request) {
	var ask roleRequest
	if !decode(w, r, &ask) {
		return
	}
	if !ask.Learner && n.o.learner {
		respond(w, changeReply{refusedRole, fmt.Sprintf("the configuration of node %d says that it does not vote", n.o.id)}, nil)
		return
	}
	n.forming.Lock()
	defer n.forming.Unlock()
	if n.self.Load().Learner != ask.Learner {
		if err := n.become(func(f *nodeFile) { f.Learner = ask.Learner }); err != nil {
			respond(w, nil, err)
			return
		}
	}
	respond(w, changeReply{}, nil)
}

// tellEnter tells a member that it is one.
func (n *node) tellEnter(ctx context.Context, s raft.Server, learner bool) error {
	if s.ID == serverID(n.identity()) {
		return nil
	}
	return n.call(ctx, http.MethodPost, string(s.Address), "/enter", enterRequest{n.self.Load().ClusterID, learner}, nil)
}

// serveEnter makes this node part of the cluster whose leader says so.
func (n *node) serveEnter(w http.ResponseWriter, r *http.Request) {
	var ask enterRequest
	if !decode(w, r, &ask) {
		return
	}
	respond(w, nil, n.enter(ask.ClusterID, ask.Learner))
}

// belongsRequest asks whether a server is a member. It says whose it is, for a
// connection from before the cluster formed does not.
type belongsRequest struct {
	ClusterID string        `json:"cluster_id"`
	Server    raft.ServerID `json:"server"`
	Raft      string        `json:"raft"` // internal address of who asks
}

// belongsReply says whether a server is a member.
type belongsReply struct {
	Leader  string `json:"leader,omitempty"` // internal address to ask instead
	Removed bool   `json:"removed"`
	Raft    string `json:"raft,omitempty"` // where the member is, if that is not where it was asked from
}

// serveBelongs answers a node that hears no leader: is it still a member, with its
// address? Only a leader that is confirmed by a quorum after it looked may say no.
func (n *node) serveBelongs(w http.ResponseWriter, r *http.Request) {
	var ask belongsRequest
	if !decode(w, r, &ask) {
		return
	}
	if !n.leads() {
		leader, _ := n.leaderServer()
		respond(w, belongsReply{Leader: string(leader)}, nil)
		return
	}
	m := n.membership()
	at := m.address(ask.Server)
	if !n.isReady() || m.index == 0 || at == ask.Raft || ask.ClusterID != n.self.Load().ClusterID {
		respond(w, belongsReply{}, nil)
		return
	}
	if err := n.confirmTerm(r.Context()); err != nil {
		respond(w, nil, err)
		return
	}
	respond(w, belongsReply{Removed: at == "", Raft: at}, nil)
}

// checkBelonging asks, when this node hears no leader, whether it is a member
// still, at this address. One that was removed while it was away is not told by
// Raft, nor is one whose directory was copied, and the copy runs in its place.
func (n *node) checkBelonging() {
	if n.raft.Load() == nil || n.leaderless() < suspectAfter/2 {
		return
	}
	ask := n.places()
	for _, s := range n.others() {
		ask = append(ask, string(s.Address))
	}
	leaders, removed, elsewhere := n.askBelonging(ask)
	if !removed && elsewhere == "" {
		_, removed, elsewhere = n.askBelonging(leaders)
	}
	switch {
	case removed:
		n.leaveCluster()
	case elsewhere != "" && n.runsAt(elsewhere):
		n.fail(fmt.Errorf("%w: node %d runs at %s", errCopied, n.self.Load().NodeID, elsewhere))
	}
}

// runsAt tells whether a node that says it is this one answers at an address.
func (n *node) runsAt(addr string) bool {
	h, err := n.helloAt(n.ctx, addr)
	return err == nil && h.server() == serverID(n.identity())
}

// askBelonging asks the nodes at some addresses; leaders are those they name,
// elsewhere is where this node is a member.
func (n *node) askBelonging(addrs []string) (leaders []string, removed bool, elsewhere string) {
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	ask := belongsRequest{n.self.Load().ClusterID, serverID(n.identity()), n.o.raftAddr}
	replies := make([]belongsReply, len(addrs))
	parallel(len(addrs), func(i int) {
		ctx, cancel := context.WithTimeout(n.ctx, suspectAfter)
		defer cancel()
		n.call(ctx, http.MethodPost, addrs[i], "/belongs", ask, &replies[i]) // no answer says nothing
	})
	for _, r := range replies {
		removed, elsewhere = removed || r.Removed, cmp.Or(elsewhere, r.Raft)
		if r.Leader != "" {
			leaders = append(leaders, r.Leader)
		}
	}
	return leaders, removed, elsewhere
}

// leaveCluster ends this node's part in the cluster, durably: it is opened again
// without Raft and waits to be told to enter.
func (n *node) leaveCluster() {
	n.forming.Lock()
	defer n.forming.Unlock()
	if err := n.become(func(f *nodeFile) { f.Removed = true }); err != nil {
		n.fail(err)
		return
	}
	n.fail(fmt.Errorf("%w: %w", errRestart, errRemoved))
}

// quietRounds is how often in a row nobody knows a leader before a moved node
// takes it that there is none.
const quietRounds = 10

// errCopied is returned by a node whose original runs elsewhere.
var errCopied = errors.New("the data directory is a copy of one that is in use")

// moved tells whether Raft last ran at another address.
func (f *nodeFile) moved(addr string) bool { return f.Raft != "" && f.Raft != addr }

// moveLoop starts Raft at this node's new address. Two nodes with one identity
// could vote twice in a term, so it waits until the leader has taken over the
// address, which it does not while the node answers at the old one; or, if
// there is no leader for a while, until nobody can lead without this node.
func (n *node) moveLoop() {
	told := ""
	for quiet := 0; n.ctx.Err() == nil; {
		err := n.tryMove()
		if quiet++; !errors.Is(err, errNoLeader) {
			quiet = 0
		}
		if err == nil || quiet == quietRounds {
			n.forming.Lock()
			defer n.forming.Unlock()
			n.started(n.startRaft())
			return
		}
		switch {
		case errors.Is(err, errCopied):
			n.fail(err)
			return
		case errors.Is(err, errRemoved):
			n.leaveCluster()
			return
		}
		if err.Error() != told {
			told = err.Error()
			n.o.logger.Info("waiting to go on at another address", "from", n.self.Load().Raft, "to", n.o.raftAddr, "reason", err)
		}
		n.pause(formEvery)
	}
}

// tryMove is one try to move. errNoLeader says that nobody can lead without this
// node; other errors what is missing.
func (n *node) tryMove() error {
	self := n.self.Load()
	own := serverID(n.identity())
	if n.runsAt(self.Raft) {
		return fmt.Errorf("%w: node %d runs at %s", errCopied, self.NodeID, self.Raft)
	}
	last, err := n.lastConfiguration()
	if err != nil {
		return err
	}
	voters, silent := 1, 1 // those that may be with the one at the old address, if there is one
	for _, s := range last.Servers {
		if s.ID == own {
			continue
		}
		err := n.announceMove(string(s.Address))
		if err == nil || errors.Is(err, errCopied) || errors.Is(err, errRemoved) {
			return err
		}
		if s.Suffrage != raft.Voter {
			continue
		}
		if voters++; !errors.Is(err, errNoLeader) {
			silent++
		}
	}
	if voters > 1 && silent >= voters/2+1 {
		return fmt.Errorf("%d of %d voters may have a leader that this node cannot ask", silent, voters)
	}
	if voters > 1 {
		return errNoLeader
	}
	return nil
}

// announceMove has the leader take over this node's address, asking the node at
// addr; errNoLeader means that it knows none.
func (n *node) announceMove(addr string) error {
	h, err := n.helloAt(n.ctx, addr)
	if err != nil {
		return err
	}
	if h.Leader == "" {
		return errNoLeader
	}
	if _, removed, _ := n.askBelonging([]string{h.Leader}); removed { // else it would take itself in again
		return errRemoved
	}
	ask := joinRequest{ID: n.o.id, Incarnation: n.self.Load().Incarnation, Raft: n.o.raftAddr}
	ctx, cancel := context.WithTimeout(n.ctx, 10*time.Second)
	defer cancel()
	var reply joinReply
	if err := n.call(ctx, http.MethodPost, h.Leader, "/join", ask, &reply); err != nil {
		return err
	}
	switch reply.Code {
	case "":
	case refusedID:
		return fmt.Errorf("%w: %s", errCopied, reply.Message)
	default:
		return &changeRefused{reply.Code, reply.Message}
	}
	if reply.ClusterID == "" {
		return errors.New("the leader has changed")
	}
	return nil
}

// lastConfiguration returns Raft's newest configuration on this disk.
func (n *node) lastConfiguration() (raft.Configuration, error) {
	var c raft.Configuration
	if at := n.store.durable.Load().at; len(at.configuration) > 0 {
		c = raft.DecodeConfiguration(at.configuration)
	}
	first, last := n.log.bounds()
	for index := first; index > 0 && index <= last; index++ {
		var l raft.Log
		if err := n.log.GetLog(index, &l); err != nil {
			return c, fmt.Errorf("reading log entry %d: %w", index, err)
		}
		if l.Type == raft.LogConfiguration {
			c = raft.DecodeConfiguration(l.Data)
		}
	}
	return c, nil
}
