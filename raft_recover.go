package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Recovery of a cluster that has lost most of its voters for good. The node that
// is left becomes a cluster of its own, which others then join. What it lacks of
// what was acknowledged is lost, and the lost nodes, should they come back, have
// another history: so the ledger itself says where the cut is. Nothing but a
// person's word starts this.

// errMembersAnswer says that a member is not lost.
var errMembersAnswer = errors.New("another member of the cluster answers")

// cutKey is the key of the entries that tell of recoveries, reached as /kv/….
const cutKey = "cluster/recovered"

// cut is the value of such an entry. What comes before the entry is what the
// node had; other histories of this ledger may part from it before there.
type cut struct {
	Node        uint64   `json:"node"`
	Incarnation string   `json:"incarnation"`
	Time        string   `json:"time"`
	Lost        []string `json:"lost"`      // Raft ids of the members that were given up
	Sealed      uint64   `json:"sealed"`    // entries in this node's sealed segments
	LogIndex    uint64   `json:"log_index"` // last Raft index and its term before the cut
	LogTerm     uint64   `json:"log_term"`
}

// recoverNode makes the stopped node in o.dataDir a cluster of its own and
// returns what was cut. It refuses while any other member answers.
func recoverNode(ctx context.Context, o nodeOptions) (*cut, error) {
	if o.metrics == nil {
		o.metrics = newMetrics()
	}
	n := &node{o: o, sealNow: make(chan struct{}, 1), failures: make(chan error, 1)}
	n.changing.init()
	n.checks.wake = make(chan struct{}, 1)
	n.ctx, n.cancel = context.WithTimeout(ctx, repairTimeout)
	defer n.release()
	if err := n.openStopped(); err != nil {
		return nil, err
	}
	lost, err := n.lostMembers()
	if err != nil {
		return nil, err
	}
	if err := n.wantSilence(lost); err != nil {
		return nil, err
	}
	return n.cutOff(lost)
}

// openStopped opens what is on the disk of a node that belongs to a cluster, and
// the port at which others would answer.
func (n *node) openStopped() (err error) {
	if err := n.lockStopped(); err != nil {
		return err
	}
	if err := n.openDisk(n.self.Load().Started); err != nil {
		return err
	}
	n.port, err = listenInternal(n.o.raftListen, portOptions{
		identity: n.identity, secret: n.o.secret, advertise: n.o.raftAddr, logger: n.o.logger, dial: n.o.dial,
	})
	return err
}

// lockStopped takes possession of the directory of a node that belongs to a cluster.
func (n *node) lockStopped() (err error) {
	if n.lock, err = lockDir(n.o.dataDir); err != nil {
		return err
	}
	if err := refuseDiverged(n.o.dataDir); err != nil {
		return err
	}
	self, err := n.loadIdentity()
	if err != nil {
		return err
	}
	n.self.Store(self)
	if !self.formed() || self.Removed {
		return fmt.Errorf("%s: this node belongs to no cluster", n.o.dataDir)
	}
	return nil
}

// lostMembers returns all members but this node, by the newest configuration on
// its disk, which may not be agreed yet.
func (n *node) lostMembers() ([]raft.Server, error) {
	last, err := n.lastConfiguration()
	if err != nil {
		return nil, err
	}
	servers := last.Servers
	self := n.self.Load().NodeID
	lost := slices.DeleteFunc(slices.Clone(servers), func(s raft.Server) bool {
		id, _, err := parseServerID(s.ID)
		return err == nil && id == self
	})
	if len(lost) == len(servers) {
		return nil, fmt.Errorf("%s: node %d is not a member of its cluster, or has not heard of it", n.o.dataDir, self)
	}
	if len(lost) == 0 {
		return nil, fmt.Errorf("%s: node %d is the only member already: start it", n.o.dataDir, self)
	}
	return lost, nil
}

// wantSilence returns an error if a member answers, at the address it had or at
// one of those this node is configured with.
func (n *node) wantSilence(lost []raft.Server) error {
	ask := n.places()
	for _, s := range lost {
		ask = append(ask, string(s.Address))
	}
	slices.Sort(ask)
	ask = slices.Compact(ask)
	errs := make([]error, len(ask))
	parallel(len(ask), func(i int) {
		h, err := n.helloAt(n.ctx, ask[i])
		if err == nil && h.ClusterID == n.self.Load().ClusterID && !h.Removed && h.Incarnation != n.self.Load().Incarnation {
			errs[i] = fmt.Errorf("%w: node %d at %s", errMembersAnswer, h.ID, ask[i])
		}
	})
	return errors.Join(errs...)
}

// cutOff writes the new cluster: this node as another incarnation, so that the
// former members take it for a stranger, and behind the end of the log, in a term
// of its own, a configuration with nobody else and the entry that tells of it.
// A crash between the steps leaves a node that is no member of anything; to
// recover it again goes on from there.
func (n *node) cutOff(lost []raft.Server) (*cut, error) {
	last, err := n.log.LastIndex()
	if err != nil {
		return nil, err
	}
	term, err := n.stable.GetUint64(termKey)
	if err != nil {
		return nil, err
	}
	at := n.store.durable.Load().at
	c := &cut{Node: n.o.id, Time: n.o.now().UTC().Format(time.RFC3339), Sealed: at.size, LogIndex: at.index, LogTerm: at.term}
	if last > at.index {
		var l raft.Log
		if err := n.log.GetLog(last, &l); err != nil {
			return nil, err
		}
		c.LogIndex, c.LogTerm = last, l.Term
	}
	for _, s := range lost {
		c.Lost = append(c.Lost, string(s.ID))
	}
	if err := n.become(func(f *nodeFile) { f.Incarnation, f.Raft = newIncarnation(), n.o.raftAddr }); err != nil {
		return nil, err
	}
	c.Incarnation = n.self.Load().Incarnation
	if err := n.stable.SetUint64(termKey, term+1); err != nil {
		return nil, err
	}
	return c, n.log.StoreLogs(n.cutEntries(c, term+1))
}

// cutEntries are what cutOff appends to the log.
func (n *node) cutEntries(c *cut, term uint64) []*raft.Log {
	alone := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: serverID(n.identity()), Address: raft.ServerAddress(n.o.raftAddr),
	}}}
	value, err := json.Marshal(c)
	if err != nil {
		panic("recover: " + err.Error())
	}
	tell := request{ops: []operation{{
		kind: opPut, key: []byte(cutKey), value: value, contentType: "application/json", author: "scribe-ledger recover", ifSeq: noSeq,
	}}}
	return []*raft.Log{
		{Index: c.LogIndex + 1, Term: term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(alone)},
		{Index: c.LogIndex + 2, Term: term, Type: raft.LogCommand, Data: appendRequest(appendPackHeader(nil, n.o.now().UnixMilli()), &tell)},
	}
}
