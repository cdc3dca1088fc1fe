package main

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// memberInfo is one node of the cluster as this node knows it.
type memberInfo struct {
	id      uint64
	http    string // URL of its client port
	raft    string // host:port of its internal port
	region  string
	version string
	role    string // leader, follower or learner
	state   string // alive, suspect or dead
	applied uint64 // entries it has applied
	full    bool   // its disk
}

// nodeStatus is what a node says of itself.
type nodeStatus struct {
	clusterID string // 32 hex digits; "" before the cluster is formed
	name      string
	nodeID    uint64
	role      string // leader, follower, learner, candidate, forming, removed
	term      uint64
	leader    *memberInfo // nil: none known
	size      uint64      // entries applied here
	manifest  *manifest
	contact   int64 // ms since the leader was heard; 0 on the leader; -1 = never
	ready     bool  // can serve reads and writes now
	diskFull  bool
	diskHangs bool // a write of the Raft log does not come back
	noRoom    bool // the leader's disk is full: writes are refused
	archive   string
	storage   string // "ok", or what is damaged on this node's disk
	signing   string // "ok", or why this node signs no tree head
	segments  string // "", or what is missing and comes from other nodes
}

const (
	stateAlive   = "alive"
	stateSuspect = "suspect"
	stateDead    = "dead"

	helloEvery   = 500 * time.Millisecond
	suspectAfter = 1500 * time.Millisecond // of silence
	deadAfter    = 5 * time.Second
	hangsAfter   = 10 * time.Second // in one write of the Raft log; Raft itself waits with it, whatever it was
)

// peer is what this node last heard from another.
type peer struct {
	hello
	heard time.Time
}

// state says how long ago the peer was heard.
func (p *peer) state(now time.Time) string {
	switch silence := now.Sub(p.heard); {
	case silence < suspectAfter:
		return stateAlive
	case silence < deadAfter:
		return stateSuspect
	}
	return stateDead
}

// shownState is what others are told of a peer. With discovery, whichever of
// announcements and hellos came last counts; what this node decides rests on
// hellos alone.
func (n *node) shownState(id raft.ServerID, p peer) string {
	node, incarnation, err := parseServerID(id)
	if n.o.peerState == nil || err != nil {
		return p.state(time.Now())
	}
	return n.o.peerState(node, incarnation, p.heard)
}

// peerTable remembers the last hello of every Raft server.
type peerTable struct {
	mu   sync.Mutex
	last map[raft.ServerID]peer
}

// get returns what the server last said.
func (t *peerTable) get(id raft.ServerID) (peer, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.last[id]
	return p, ok
}

// put notes a hello.
func (t *peerTable) put(id raft.ServerID, p peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = maps.Clone(t.last)
	if t.last == nil {
		t.last = make(map[raft.ServerID]peer)
	}
	t.last[id] = p
}

// hearsay notes what another node remembers of one this node never heard.
func (t *peerTable) hearsay(s silentPeer) {
	id := raft.ServerID(s.Server)
	if _, ok := t.get(id); !ok {
		t.put(id, peer{hello: hello{HTTP: s.HTTP, Region: s.Region, Version: s.Version, Applied: s.Applied, Learner: s.Learner}})
	}
}

// peerLoop says hello to every other server and, on the leader, does what
// members need (raft_member.go).
func (n *node) peerLoop() {
	for n.ctx.Err() == nil {
		others := n.others()
		parallel(len(others), func(i int) { n.greet(n.ctx, others[i]) })
		n.tendMembers()
		n.checkBelonging()
		if n.raft.Load() != nil {
			n.forming.Lock()
			err := n.markStarted()
			n.forming.Unlock()
			if err != nil {
				n.fail(err)
			}
		}
		n.pause(cmp.Or(n.o.helloAfter, helloEvery))
	}
}

// greet says hello to one server and tells whether it answered.
func (n *node) greet(ctx context.Context, s raft.Server) bool {
	h, err := n.helloAt(ctx, string(s.Address))
	if err != nil || h.server() != s.ID {
		return false
	}
	for _, other := range h.Silent {
		n.peers.hearsay(other)
	}
	h.Silent = nil
	n.peers.put(s.ID, peer{*h, time.Now()})
	return true
}

// helloAt asks the node at an internal address who it is.
func (n *node) helloAt(ctx context.Context, addr string) (*hello, error) {
	ctx, cancel := context.WithTimeout(ctx, suspectAfter)
	defer cancel()
	var h hello
	err := n.call(ctx, http.MethodGet, addr, "/hello", nil, &h)
	return &h, err
}

// server is the Raft id of the node that says h, "" if it makes no sense.
func (h *hello) server() raft.ServerID {
	inc, err := parseIncarnation(h.Incarnation)
	if err != nil {
		return ""
	}
	return serverID(identity{node: h.ID, incarnation: inc})
}

// silentPeers tells what this node knows of members that do not answer it, for
// those that have started since.
func (n *node) silentPeers() (all []silentPeer) {
	for _, s := range n.others() {
		if p, ok := n.peers.get(s.ID); ok && p.state(time.Now()) != stateAlive {
			all = append(all, silentPeer{string(s.ID), p.HTTP, p.Region, p.Version, p.Applied, p.Learner})
		}
	}
	return all
}

// servers returns Raft's latest configuration, as a copy: Raft gives everybody
// the same slice.
func (n *node) servers() []raft.Server {
	r := n.raft.Load()
	if r == nil {
		return nil
	}
	return slices.Clone(r.GetConfiguration().Configuration().Servers)
}

// others returns all servers but this one.
func (n *node) others() []raft.Server {
	own := serverID(n.identity())
	return slices.DeleteFunc(n.servers(), func(s raft.Server) bool { return s.ID == own })
}

// voters returns the servers that vote.
func (n *node) voters() []raft.Server {
	return slices.DeleteFunc(n.servers(), func(s raft.Server) bool { return s.Suffrage != raft.Voter })
}

// sendsTo tells whether this node leads and a server is a member at an address.
func (n *node) sendsTo(id raft.ServerID, addr raft.ServerAddress) bool {
	return n.leads() && slices.ContainsFunc(n.servers(), func(s raft.Server) bool { return s.ID == id && s.Address == addr })
}

// server returns the server of the node with the given id.
func (n *node) server(id uint64) (raft.Server, bool) {
	for _, s := range n.servers() {
		if node, _, err := parseServerID(s.ID); err == nil && node == id {
			return s, true
		}
	}
	return raft.Server{}, false
}

// leaderServer returns the leader's internal address and id, "" if none is known.
func (n *node) leaderServer() (raft.ServerAddress, raft.ServerID) {
	r := n.raft.Load()
	if r == nil {
		return "", ""
	}
	return r.LeaderWithID()
}

// members lists all nodes of the cluster, by id.
func (n *node) members() []memberInfo {
	var all []memberInfo
	_, leader := n.leaderServer()
	for _, s := range n.servers() {
		all = append(all, n.describe(s, leader))
	}
	slices.SortFunc(all, func(a, b memberInfo) int { return int(int64(a.id - b.id)) })
	return all
}

// describe tells what is known of one server.
func (n *node) describe(s raft.Server, leader raft.ServerID) memberInfo {
	id, _, _ := parseServerID(s.ID)
	m := memberInfo{id: id, raft: string(s.Address), role: "follower", state: stateDead}
	switch {
	case s.ID == leader:
		m.role = "leader"
	case s.Suffrage != raft.Voter:
		m.role = "learner"
	}
	h, state := hello{}, stateDead
	if s.ID == serverID(n.identity()) {
		h, state = n.hello(), stateAlive
	} else {
		p, ok := n.peers.get(s.ID)
		h, state = p.hello, n.shownState(s.ID, p)
		for _, f := range n.self.Load().Members { // not heard yet: what the founders wrote down
			if f.ID == id && !ok {
				h.HTTP, h.Region = f.HTTP, f.Region
			}
		}
	}
	if contact := n.lastContact(); s.ID == leader && contact >= 0 && contact < suspectAfter.Milliseconds() {
		state = stateAlive // whatever becomes of hellos
	}
	m.http, m.region, m.version, m.applied, m.state, m.full = h.HTTP, h.Region, h.Version, h.Applied, state, h.DiskFull
	return m
}

// status describes this node.
func (n *node) status() nodeStatus {
	self := n.self.Load()
	s := nodeStatus{
		clusterID: self.ClusterID, name: self.ClusterName, nodeID: self.NodeID, role: "forming", contact: -1,
		size: n.store.size(), manifest: n.store.currentManifest(), diskFull: n.diskFull.Load(), noRoom: n.leaderFull(),
		archive:   n.archiver.health(),
		diskHangs: n.log.stalled(hangsAfter), storage: n.store.storageState(), signing: "ok", segments: n.fetches.state(),
	}
	if err := n.refused(); err != nil {
		s.signing = err.Error()
	}
	if self.Removed {
		s.role = "removed"
	}
	r := n.raft.Load()
	if r == nil {
		return s
	}
	s.term = r.CurrentTerm()
	own := serverID(n.identity())
	_, leader := r.LeaderWithID()
	for _, server := range n.servers() {
		if server.ID == leader {
			m := n.describe(server, leader)
			s.leader = &m
		}
		if server.ID == own && server.Suffrage != raft.Voter {
			s.role = "learner"
		}
	}
	switch r.State() {
	case raft.Leader:
		s.role, s.contact, s.ready = "leader", 0, n.readyTerm.Load() == s.term && n.mayServe() == nil && !s.diskHangs
		return s
	case raft.Candidate:
		s.role = "candidate"
	case raft.Follower:
		if s.role != "learner" {
			s.role = "follower"
		}
	}
	s.contact, s.ready = n.lastContact(), s.leader != nil && n.caughtUp.Load() && n.mayServe() == nil && !s.diskHangs
	return s
}

// lastContact returns how many ms ago the leader was heard: 0 on the leader
// itself, -1 if never.
func (n *node) lastContact() int64 {
	r := n.raft.Load()
	if r == nil {
		return -1
	}
	if r.State() == raft.Leader {
		return 0
	}
	t := r.LastContact()
	if t.IsZero() {
		return -1
	}
	return time.Since(t).Milliseconds()
}

// parallel runs f(0) to f(count-1) at the same time and waits for all.
func parallel(count int, f func(int)) {
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}
