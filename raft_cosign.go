package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Cosignatures (C2SP tlog-cosignature). Each node says with its own key, to
// whoever asks over the internal port, that its own bytes give the root of a
// tree head that the ledger key signed. A client that knows the node keys can
// so demand that several nodes agree. The leader gathers them; a follower gets
// the cosigned head from the leader, so that clients who go from node to node
// do not see the ledger shrink. Without a leader a node serves what it can get.

const (
	cosignWait    = 200 * time.Millisecond // for a node to apply what it is to cosign
	collectWait   = 250 * time.Millisecond // for the answers of all nodes
	leaderWait    = 500 * time.Millisecond // for the leader's cosigned head
	collectPause  = time.Second            // before a node that did not cosign is asked again
	leaderTimeout = time.Second            // before a leader that did not answer is asked again
)

// headCosigner cosigns tree heads with the node key.
type headCosigner struct {
	n      *node
	before uint64 // entries in the last head cosigned before the start; immutable after open

	mu   sync.Mutex // held for one cosignature: what is checked is what is remembered
	file *signedFile
}

// cosign signs a checkpoint with the node key if the ledger key signed it, this
// node has its entries or gets them soon, its own bytes give the same root, and
// it never cosigned a larger tree.
func (c *headCosigner) cosign(ctx context.Context, text string) (noteSignature, error) {
	var none noteSignature
	keys := c.n.keys()
	if keys == nil {
		return none, fmt.Errorf("%w: this node knows no ledger key yet", errNotYetApplied)
	}
	signed, err := parseNote(text)
	if err != nil {
		return none, err
	}
	h, err := openTreeHead(signed, keys.signer.noteVerifier)
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, cosignWait)
	defer cancel()
	if err := c.n.waitApplied(ctx, h.size); err != nil {
		return none, err
	}
	signer, err := c.n.nodeSigner()
	if err != nil {
		return none, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.agrees(h); err != nil {
		return none, err
	}
	if err := c.file.remember(signedRecord{size: h.size, root: h.root, key: c.n.publicKey()}); err != nil {
		err = fmt.Errorf("remembering what was cosigned: %w", err)
		c.n.fail(err)
		return none, err
	}
	return signer.sign(signed.body, c.n.o.now().Unix()), nil
}

// errOlderHead says that a node does not cosign a tree smaller than the last.
var errOlderHead = errors.New("a larger tree is cosigned already")

// agrees compares h with this node's own bytes and with what it cosigned before;
// mu must be held.
func (c *headCosigner) agrees(h treeHead) error {
	if err := c.n.refused(); err != nil {
		return err
	}
	if h.size < c.file.last.size {
		return fmt.Errorf("%w: %d entries, asked for %d", errOlderHead, c.file.last.size, h.size)
	}
	if err := c.n.refuse(c.file.extends(h.size, c.n.root)); err != nil {
		return err
	}
	return c.n.compareHead(h)
}

// check compares this node's tree with what it cosigned before its start.
func (c *headCosigner) check() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n.refuse(c.file.extends(c.n.store.size(), c.n.root))
}

// compareHead compares a head of another node with this node's own tree.
func (n *node) compareHead(h treeHead) error {
	root, err := n.root(h.size)
	if err == nil && root != h.root {
		err = fmt.Errorf("%w: root over %d entries here is %s, signed is %s", errDiverged, h.size, root, h.root)
	}
	return err
}

// cosignRequest asks a node to cosign.
type cosignRequest struct {
	Note string `json:"note"` // checkpoint signed with the ledger key
}

// cosignReply is a note with the same text and only the node's signature.
type cosignReply struct {
	Note string `json:"note"`
}

// serveCosign cosigns for another node; a refusal says how many entries this
// node has.
func (n *node) serveCosign(w http.ResponseWriter, r *http.Request) {
	var ask cosignRequest
	if !decode(w, r, &ask) {
		return
	}
	sig, err := n.cosigner.cosign(r.Context(), ask.Note)
	if err != nil {
		respond(w, nil, fmt.Errorf("node %d with %d entries does not cosign: %w", n.o.id, n.store.size(), err))
		return
	}
	signed, _ := parseNote(ask.Note) // cosign has read it
	respond(w, cosignReply{note{signed.body, []noteSignature{sig}}.String()}, nil)
}

// headCollector gathers cosignatures. One collection is under way at a time,
// shared by all who wait.
type headCollector struct {
	n      *node
	rounds sharedRounds[signedHead]

	mu   sync.Mutex
	best collected                   // what was gathered last
	hung map[raft.ServerID]time.Time // when a node was last waited for in vain

	// owned by the round under way
	leaderFailed time.Time // when a leader last did not answer
	differs      bool      // the leader's tree was not this node's: said aloud
}

// collected is a head and who cosigned it.
type collected struct {
	head   *ownHead // nil: nothing yet
	signed map[raft.ServerID]noteSignature
	asked  time.Time
}

// missing tells whether one of the servers, who may be new, has not cosigned.
func (b *collected) missing(servers []raft.Server) bool {
	return slices.ContainsFunc(servers, func(s raft.Server) bool {
		_, ok := b.signed[s.ID]
		return !ok
	})
}

// head returns a cosigned head of at least minSize entries.
func (c *headCollector) head(ctx context.Context, minSize uint64) (signedHead, error) {
	if err := c.n.waitApplied(ctx, minSize); err != nil {
		return signedHead{}, err
	}
	if h, ok := c.fresh(); ok && c.n.leads() && c.n.isReady() {
		return h, nil
	}
	return c.rounds.join(ctx, c.n, c.round)
}

// fresh returns what was gathered last if there is nothing to add to it now.
func (c *headCollector) fresh() (signedHead, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := &c.best
	stale := time.Since(b.asked) >= collectPause && b.missing(c.n.servers())
	if b.head == nil || b.head.size != c.n.store.size() || b.head.keys != c.n.keys() || stale {
		return signedHead{}, false
	}
	return b.note(c.n), true
}

// round gets the newest cosigned head: the leader's, or one gathered here.
func (c *headCollector) round() (signedHead, error) {
	if !c.n.leads() && time.Since(c.leaderFailed) > leaderTimeout {
		h, err := c.askLeader()
		c.sayDiffers(errors.Is(err, errDiverged), err)
		if err == nil || errors.Is(err, errDiverged) {
			return h, err
		}
		c.leaderFailed = time.Now()
		c.n.o.logger.Info("the leader gives no cosigned tree head", "error", err)
	}
	return c.collect()
}

// sayDiffers logs, once, that the leader signed another tree than this node's.
func (c *headCollector) sayDiffers(differs bool, err error) {
	if differs && !c.differs {
		c.n.o.logger.Error("the leader signed another tree than this node's", "error", err)
	}
	c.differs = differs
}

// headRequest asks the leader for a cosigned head of at least Size entries.
type headRequest struct {
	Size uint64 `json:"size"`
}

// headReply is the checkpoint.
type headReply struct {
	Note string `json:"note"`
}

// serveHead gives a follower the leader's cosigned head.
func (n *node) serveHead(w http.ResponseWriter, r *http.Request) {
	var ask headRequest
	if !decode(w, r, &ask) {
		return
	}
	if !n.leads() || !n.isReady() {
		respond(w, nil, errNoLeader)
		return
	}
	h, err := n.collector.head(r.Context(), ask.Size)
	respond(w, headReply{h.note}, err)
}

// askLeader gets the leader's cosigned head and waits until this node has
// applied the same entries, so that it can serve proofs for it.
func (c *headCollector) askLeader() (signedHead, error) {
	n := c.n
	ctx, cancel := context.WithTimeout(n.ctx, leaderWait)
	defer cancel()
	addr, leader := n.leaderServer()
	if addr == "" || leader == serverID(n.identity()) { // it would wait for the round that asks
		return signedHead{}, errNoLeader
	}
	var reply headReply
	if err := n.call(ctx, http.MethodPost, string(addr), "/head", headRequest{n.store.size()}, &reply); err != nil {
		return signedHead{}, err
	}
	signed, err := parseNote(reply.Note)
	if err != nil {
		return signedHead{}, err
	}
	h, err := n.openHead(ctx, signed)
	if err == nil {
		err = n.waitApplied(ctx, h.size)
	}
	if err == nil {
		err = n.compareHead(h)
	}
	return signedHead{h, reply.Note}, err
}

// openHead checks the ledger key's signature, waiting for a new key that this
// node has not applied yet.
func (n *node) openHead(ctx context.Context, signed note) (treeHead, error) {
	for {
		changed := n.changing.next()
		keys, err := n.waitKeys(ctx)
		if err != nil {
			return treeHead{}, err
		}
		h, err := openTreeHead(signed, keys.signer.noteVerifier)
		if err == nil {
			return h, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return treeHead{}, err
		}
	}
}

// collect signs the newest head and asks those for a cosignature who have not
// given one for it.
func (c *headCollector) collect() (signedHead, error) {
	n := c.n
	ctx, cancel := context.WithTimeout(n.ctx, n.o.readTimeout)
	defer cancel()
	h, err := n.signer.head(ctx, n.store.size())
	if err != nil {
		return signedHead{}, err
	}
	c.mu.Lock()
	next := c.best
	c.mu.Unlock()
	if next.head == nil || next.head.size != h.size || next.head.keys != h.keys {
		next = collected{head: h}
	} else if time.Since(next.asked) < collectPause {
		return next.note(n), nil
	}
	c.ask(&next)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.best = next
	return next.note(n), nil
}

// ask gathers the cosignatures that are missing, this node's own among them.
func (c *headCollector) ask(next *collected) {
	ctx, cancel := context.WithTimeout(c.n.ctx, collectWait)
	defer cancel()
	servers := c.n.servers()
	sigs := make([]*noteSignature, len(servers))
	parallel(len(servers), func(i int) {
		if sig, ok := next.signed[servers[i].ID]; ok {
			sigs[i] = &sig
		} else if sig, err := c.cosignature(ctx, servers[i], next.head); err == nil {
			sigs[i] = &sig
		} else {
			c.n.o.logger.Debug("no cosignature", "server", servers[i].ID, "error", err)
		}
	})
	next.asked, next.signed = time.Now(), make(map[raft.ServerID]noteSignature)
	for i, s := range servers {
		if sigs[i] != nil {
			next.signed[s.ID] = *sigs[i]
		}
	}
}

// cosignature gets one server's cosignature of h and checks it.
func (c *headCollector) cosignature(ctx context.Context, s raft.Server, h *ownHead) (noteSignature, error) {
	n := c.n
	if s.ID == serverID(n.identity()) {
		return n.cosigner.cosign(ctx, h.note)
	}
	p, ok := n.peers.get(s.ID)
	if ok && p.state(time.Now()) != stateAlive || c.hangs(s.ID) {
		return noteSignature{}, fmt.Errorf("not heard since %v", p.heard)
	}
	if !ok {
		n.greet(ctx, s) // its key is not known yet
		p, _ = n.peers.get(s.ID)
	}
	v, err := n.verifier(&p.hello)
	if err != nil {
		return noteSignature{}, err
	}
	var reply cosignReply
	if err := n.call(ctx, http.MethodPost, string(s.Address), "/cosign", cosignRequest{h.note}, &reply); err != nil {
		c.noteHung(ctx, s.ID)
		return noteSignature{}, err
	}
	return oneSignature(reply.Note, h.body(), v)
}

// hangs tells whether a node was waited for in vain a moment ago.
func (c *headCollector) hangs(id raft.ServerID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.hung[id]) < collectPause
}

// noteHung remembers that a node did not answer before ctx ended, if so.
func (c *headCollector) noteHung(ctx context.Context, id raft.ServerID) {
	if ctx.Err() == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hung == nil {
		c.hung = make(map[raft.ServerID]time.Time)
	}
	c.hung[id] = time.Now()
}

// oneSignature returns the only signature of a note, which must be v's over body.
func oneSignature(text, body string, v noteVerifier) (noteSignature, error) {
	signed, err := parseNote(text)
	if err != nil {
		return noteSignature{}, err
	}
	if ok, _, err := signed.check(v); err != nil || !ok || len(signed.signatures) != 1 || signed.body != body {
		return noteSignature{}, fmt.Errorf("%w: %q is not a cosignature of %s: %w", errSignature, text, v, err)
	}
	return signed.signatures[0], nil
}

// note returns the head with all cosignatures, by server.
func (b *collected) note(n *node) signedHead {
	h := b.head.signedHead
	for _, s := range n.servers() {
		if sig, ok := b.signed[s.ID]; ok {
			h.note += sig.line()
		}
	}
	return h
}
