package main

import "context"

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
}

// nodeStatus is what a node says of itself.
type nodeStatus struct {
	clusterID string // 32 hex digits; "" before the cluster is formed
	name      string
	nodeID    uint64
	role      string // leader, follower, learner, candidate, forming
	term      uint64
	leader    *memberInfo // nil: none known
	size      uint64      // entries applied here
	manifest  *manifest
	contact   int64 // ms since the leader was heard; 0 on the leader; -1 = never
	ready     bool  // can serve reads and writes now
	diskFull  bool
	archive   string
}

// node is one running member of a cluster.
type node struct {
	store *store
}

// submit has one request agreed and returns the FSM's answer. It returns
// errNoLeader, errOverloaded or errDiskFull when the request was certainly not
// applied, errUnknownOutcome when nobody can tell, or ctx's error before
// anything was sent. It forwards to the leader by itself.
func (n *node) submit(ctx context.Context, r *request) (result, error) { panic("stub") }

// confirmRead returns once this node's store holds everything that was
// acknowledged anywhere before the call (linearizable read).
func (n *node) confirmRead(ctx context.Context) error { panic("stub") }

func (n *node) status() nodeStatus                            { panic("stub") }
func (n *node) members() []memberInfo                         { panic("stub") }
func (n *node) seal(ctx context.Context) error                { panic("stub") } // returns when the manifest covers everything written before the call
func (n *node) transfer(ctx context.Context, to uint64) error { panic("stub") }

// reserve takes size bytes of the node's budget for request bodies, waiting for room; release gives them back.
func (n *node) reserve(ctx context.Context, size int64) (release func(), err error) { panic("stub") }
