package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// How a cluster forms. expect nodes that list each other as seeds, or that
// discovery suggests to each other, say hello until all of them are there and
// none has state. The one with the lowest id draws the cluster id and asks each
// of the others to pledge: to write down,
// durably, that this is the only cluster it may ever form. When all have
// pledged, and not before, it tells them to form, and each writes the same
// first Raft configuration. A node pledges once, so of two overlapping sets of
// nodes at most one can form; nothing ever forms because time has passed; a
// node that meets a formed cluster joins it instead.

// genesis is the cluster that nodes pledge to form.
type genesis struct {
	ClusterID string   `json:"cluster_id"`
	Name      string   `json:"name"`
	Members   []member `json:"members"` // by id
}

// hello is what a node tells its peers about itself.
type hello struct {
	ID          uint64 `json:"id"`
	Incarnation string `json:"incarnation"`
	Name        string `json:"name"`
	ClusterID   string `json:"cluster_id,omitempty"` // "" while not formed
	Pledge      string `json:"pledge,omitempty"`     // cluster id it has pledged to form
	Expect      int    `json:"expect"`
	HTTP        string `json:"http"`
	Raft        string `json:"raft"`
	Region      string `json:"region,omitempty"`
	Version     string `json:"version"`
	Applied     uint64 `json:"applied"` // entries
	Index       uint64 `json:"index"`   // Raft index applied
	DiskFull    bool   `json:"disk_full,omitempty"`
	Slow        bool   `json:"slow,omitempty"`    // its disk is
	NodeKey     string `json:"node_key"`          // base64 of the public key this node cosigns with
	Leader      string `json:"leader,omitempty"`  // internal address of the leader it knows
	Doubt       bool   `json:"doubt,omitempty"`   // it does not know whether its bytes are right
	Learner     bool   `json:"learner,omitempty"` // it is not to vote
	Removed     bool   `json:"removed,omitempty"` // it was taken out of the cluster

	Silent []silentPeer `json:"silent,omitempty"` // what it knows of nodes that do not answer it
}

// silentPeer is what a node remembers of one that does not answer it.
type silentPeer struct {
	Server  string `json:"server"`
	HTTP    string `json:"http"`
	Region  string `json:"region,omitempty"`
	Version string `json:"version"`
	Applied uint64 `json:"applied"`
	Learner bool   `json:"learner,omitempty"`
}

// joinRequest asks for membership.
type joinRequest struct {
	ID          uint64 `json:"id"`
	Incarnation string `json:"incarnation"`
	Raft        string `json:"raft"`
}

// joinReply tells a newcomer the cluster, or where its leader is.
type joinReply struct {
	ClusterID string `json:"cluster_id,omitempty"`
	Leader    string `json:"leader,omitempty"`  // internal address to ask instead
	Learner   bool   `json:"learner,omitempty"` // its former self, without a disk now, did not vote
	Code      string `json:"code,omitempty"`    // why not, as in changeRefused
	Message   string `json:"message,omitempty"`
}

const formEvery = 200 * time.Millisecond

// formLoop works until this node belongs to a cluster.
func (n *node) formLoop() {
	told := ""
	for n.ctx.Err() == nil && !n.self.Load().formed() {
		if err := n.tryForm(); err != nil && err.Error() != told {
			told = err.Error()
			n.o.logger.Info("waiting for the cluster to form", "reason", err)
		}
		n.pause(formEvery)
	}
}

// tryForm takes one look at the other nodes and does what can be done. Its
// error says what is missing.
func (n *node) tryForm() error {
	met, err := n.helloSeeds()
	g := n.self.Load().Pledge
	formed := slices.DeleteFunc(slices.Clone(met), func(h hello) bool { return h.ClusterID == "" })
	for _, h := range formed {
		if g != nil && g.ClusterID == h.ClusterID {
			return n.form(g)
		}
		if first := formed[0]; h.ClusterID != first.ClusterID {
			return fmt.Errorf("two clusters have this name: %s with node %d at %s, and %s with node %d at %s",
				first.ClusterID, first.ID, first.Raft, h.ClusterID, h.ID, h.Raft)
		}
	}
	if len(formed) > 0 {
		return n.join(formed[0].Raft)
	}
	if g != nil {
		return n.finish(g)
	}
	if n.o.learner {
		return errors.Join(errors.New("a learner forms no cluster, it waits for one to join"), err)
	}
	if n.o.bootstrap || n.o.expect <= 1 {
		return n.finish(&genesis{newClusterID().String(), n.o.clusterName, []member{n.asMember()}})
	}
	members, merr := n.gather(met)
	if merr != nil {
		return errors.Join(merr, err)
	}
	if members[0].ID != n.o.id {
		return fmt.Errorf("node %d, the lowest of %d, is to form the cluster", members[0].ID, n.o.expect)
	}
	return n.finish(&genesis{newClusterID().String(), n.o.clusterName, members})
}

// places returns the internal addresses at which other nodes may be: the seeds,
// and what discovery suggests. Who is there, and whether it belongs to this
// cluster, the connection shows.
func (n *node) places() []string {
	all := slices.Clone(n.o.seeds)
	if n.o.suggest != nil {
		all = append(all, n.o.suggest()...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// helloSeeds asks who is at each of the places.
func (n *node) helloSeeds() (met []hello, err error) {
	places := n.places()
	type answer struct {
		h   hello
		err error
	}
	answers := make([]answer, len(places))
	parallel(len(places), func(i int) {
		ctx, cancel := context.WithTimeout(n.ctx, 2*time.Second)
		defer cancel()
		answers[i].err = n.call(ctx, http.MethodGet, places[i], "/hello", nil, &answers[i].h)
	})
	for i, a := range answers {
		if a.err != nil {
			err = errors.Join(err, fmt.Errorf("node at %s: %w", places[i], a.err))
			continue
		}
		met = append(met, a.h)
	}
	return met, err
}

// asMember describes this node as a founder.
func (n *node) asMember() member {
	return member{ID: n.o.id, Incarnation: n.self.Load().Incarnation, HTTP: n.o.httpURL, Raft: n.o.raftAddr, Region: n.o.region}
}

// gather returns the founders, lowest id first, if all that are expected are
// there and want the same.
func (n *node) gather(met []hello) ([]member, error) {
	members := []member{n.asMember()}
	for _, h := range met {
		if h.Learner {
			continue
		}
		if h.Expect != n.o.expect {
			return nil, fmt.Errorf("node %d at %s expects %d nodes, this node expects %d", h.ID, h.Raft, h.Expect, n.o.expect)
		}
		i := slices.IndexFunc(members, func(m member) bool { return m.ID == h.ID })
		if i >= 0 && members[i].Incarnation != h.Incarnation {
			return nil, fmt.Errorf("two nodes say they are node %d: %s and %s", h.ID, members[i].Raft, h.Raft)
		}
		if i < 0 {
			members = append(members, member{ID: h.ID, Incarnation: h.Incarnation, HTTP: h.HTTP, Raft: h.Raft, Region: h.Region})
		}
	}
	slices.SortFunc(members, func(a, b member) int { return int(int64(a.ID - b.ID)) })
	if len(members) < n.o.expect {
		return nil, fmt.Errorf("%d of %d nodes are here", len(members), n.o.expect)
	}
	return members[:n.o.expect], nil
}

// finish has every member pledge to form g and then form it. A crash at any
// point leaves pledges; whoever restarts goes on with the same g.
func (n *node) finish(g *genesis) error {
	if err := n.pledge(g); err != nil {
		return err
	}
	if g.Members[0].ID != n.o.id {
		return fmt.Errorf("pledged to form cluster %s with node %d, which has not said that all have", g.ClusterID, g.Members[0].ID)
	}
	for _, m := range g.Members {
		if m.ID != n.o.id {
			if err := n.callMember(m, "/pledge", g); err != nil {
				return fmt.Errorf("node %d has not pledged: %w", m.ID, err)
			}
		}
	}
	if err := n.form(g); err != nil {
		return err
	}
	for _, m := range g.Members {
		if m.ID != n.o.id { // one that misses it learns of the cluster by saying hello
			if err := n.callMember(m, "/form", g); err != nil {
				n.o.logger.Warn("telling a founder to form", "node", m.ID, "error", err)
			}
		}
	}
	return nil
}

// pledge writes down that g is the only cluster this node may form.
func (n *node) pledge(g *genesis) error {
	n.forming.Lock()
	defer n.forming.Unlock()
	self := n.self.Load()
	own := slices.IndexFunc(g.Members, func(m member) bool {
		return m.ID == self.NodeID && m.Incarnation == self.Incarnation
	})
	switch {
	case self.formed() && self.ClusterID != g.ClusterID:
		return fmt.Errorf("node %d already belongs to cluster %s", self.NodeID, self.ClusterID)
	case self.formed():
		return nil
	case self.Pledge != nil && self.Pledge.ClusterID != g.ClusterID:
		return fmt.Errorf("node %d has pledged to form cluster %s", self.NodeID, self.Pledge.ClusterID)
	case g.Name != self.ClusterName || own < 0:
		return fmt.Errorf("node %d, incarnation %s, is not a founder of cluster %s", self.NodeID, self.Incarnation, g.ClusterID)
	case self.Pledge != nil:
		return nil
	}
	return n.become(func(f *nodeFile) { f.Pledge = g })
}

// form makes this node a founder of g, to which it has pledged.
func (n *node) form(g *genesis) error {
	n.forming.Lock()
	defer n.forming.Unlock()
	self := n.self.Load()
	if self.formed() {
		return nil
	}
	if n.ctx.Err() != nil {
		return errClosed
	}
	if self.Pledge == nil || self.Pledge.ClusterID != g.ClusterID {
		return fmt.Errorf("node %d has not pledged to form cluster %s", self.NodeID, g.ClusterID)
	}
	err := n.become(func(f *nodeFile) {
		f.ClusterID, f.Members, f.Pledge = g.ClusterID, self.Pledge.Members, nil
	})
	if err != nil {
		return err
	}
	n.o.logger.Info("cluster formed", "cluster_id", g.ClusterID, "founders", len(g.Members))
	return n.started(n.startRaft())
}

// started ends the node if Raft could not be started.
func (n *node) started(err error) error {
	if err != nil {
		n.fail(fmt.Errorf("starting Raft: %w", err))
	}
	return err
}

// bootstrap writes the founders' first Raft configuration, the same on all of
// them. It is tried again after a crash until node.json says that Raft has
// state; state that is there already is left alone.
func (n *node) bootstrap(conf *raft.Config, snaps raft.SnapshotStore) error {
	self := n.self.Load()
	if len(self.Members) > 0 {
		var first raft.Configuration
		for _, m := range self.Members {
			s, err := m.server(self.cluster)
			if err != nil {
				return err
			}
			first.Servers = append(first.Servers, s)
		}
		// BootstrapCluster writes a term, then the entry, and refuses to go on after a crash between the two.
		if last, err := n.log.LastIndex(); err != nil || last == 0 {
			if err = errors.Join(err, n.stable.SetUint64(termKey, 0)); err != nil {
				return err
			}
		}
		err := raft.BootstrapCluster(conf, n.log, n.stable, snaps, n.transport, first)
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			return err
		}
	}
	return n.markStarted()
}

// markStarted notes in node.json that Raft has state on this disk, once it has.
func (n *node) markStarted() error {
	if n.self.Load().Started {
		return nil
	}
	if has, err := n.hasTerm(); err != nil || !has {
		return err
	}
	return n.become(func(f *nodeFile) { f.Started = true })
}

// join asks the formed cluster that the node at addr belongs to for membership.
func (n *node) join(addr string) error {
	ask := joinRequest{ID: n.o.id, Incarnation: n.self.Load().Incarnation, Raft: n.o.raftAddr}
	for range 3 {
		var reply joinReply
		ctx, cancel := context.WithTimeout(n.ctx, 10*time.Second)
		err := n.call(ctx, http.MethodPost, addr, "/join", ask, &reply)
		cancel()
		if err != nil {
			return fmt.Errorf("joining through %s: %w", addr, err)
		}
		if reply.Code != "" {
			return &changeRefused{reply.Code, reply.Message}
		}
		if reply.ClusterID != "" {
			return n.enter(reply.ClusterID, reply.Learner)
		}
		addr = reply.Leader
	}
	return fmt.Errorf("joining: nobody leads the cluster yet")
}

// enter makes this node part of a cluster that took it in; one that is part of
// it already, and was not removed, stays as it is.
func (n *node) enter(cluster string, learner bool) error {
	n.forming.Lock()
	defer n.forming.Unlock()
	self := n.self.Load()
	switch {
	case self.formed() && self.ClusterID != cluster:
		return fmt.Errorf("node %d already belongs to cluster %s", self.NodeID, self.ClusterID)
	case self.formed() && !self.Removed:
		return nil
	case n.ctx.Err() != nil:
		return errClosed
	}
	err := n.become(func(f *nodeFile) {
		f.ClusterID, f.Pledge, f.Removed, f.Learner = cluster, nil, false, f.Learner || learner
	})
	if err != nil {
		return err
	}
	n.o.logger.Info("joined", "cluster_id", cluster)
	if n.raft.Load() != nil { // removed a moment ago: it is about to be opened again, with Raft
		return nil
	}
	return n.started(n.startRaft())
}

func (n *node) servePledge(w http.ResponseWriter, r *http.Request) {
	var g genesis
	if !decode(w, r, &g) {
		return
	}
	if from, ok := peerOf(r.Context()); !ok || len(g.Members) != n.o.expect || from.node != g.Members[0].ID {
		respond(w, nil, fmt.Errorf("only the lowest of %d founders may ask for a pledge", n.o.expect))
		return
	}
	respond(w, nil, n.pledge(&g))
}

func (n *node) serveForm(w http.ResponseWriter, r *http.Request) {
	var g genesis
	if decode(w, r, &g) {
		respond(w, nil, n.form(&g))
	}
}

func (n *node) serveHello(w http.ResponseWriter, r *http.Request) { respond(w, n.hello(), nil) }

// hello describes this node.
func (n *node) hello() hello {
	self := n.self.Load()
	h := hello{
		ID: self.NodeID, Incarnation: self.Incarnation, Name: self.ClusterName, ClusterID: self.ClusterID,
		Expect: n.o.expect, HTTP: n.o.httpURL, Raft: n.o.raftAddr, Region: n.o.region, Version: n.o.version,
		Applied: n.store.size(), DiskFull: n.diskFull.Load(), Slow: n.log.slowLately(), NodeKey: base64.StdEncoding.EncodeToString(n.key.Public().(ed25519.PublicKey)),
	}
	if self.Pledge != nil {
		h.Pledge = self.Pledge.ClusterID
	}
	leader, _ := n.leaderServer()
	h.Leader, h.Doubt = string(leader), n.mayServe() != nil
	h.Learner, h.Removed, h.Silent = n.o.learner || self.Learner, self.Removed, n.silentPeers()
	if f := n.fsm.Load(); f != nil {
		h.Index = f.appliedIndex.Load()
	}
	return h
}

// callMember sends body to a founder.
func (n *node) callMember(m member, path string, body any) error {
	ctx, cancel := context.WithTimeout(n.ctx, 2*time.Second)
	defer cancel()
	return n.call(ctx, http.MethodPost, m.Raft, path, body, nil)
}

// call makes one small internal request; body and reply are JSON, nil for none.
func (n *node) call(ctx context.Context, method, addr, path string, body, reply any) error {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, in)
	if err != nil {
		return err
	}
	res, err := n.port.client().Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return errors.New(string(bytes.TrimSpace(b)))
	}
	if reply == nil {
		return nil
	}
	return json.Unmarshal(b, reply)
}

// decode reads the JSON body of an internal request, answering 400 if it cannot.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return err == nil
}

// respond writes the reply of an internal request.
func respond(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	json.NewEncoder(w).Encode(v)
}
