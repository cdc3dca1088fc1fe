package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"
)

// The keys of a node. The ledger key is the cluster's: the first leader makes
// it, all nodes have it (fsm_key.go). The node key is this node's own: with it
// the node cosigns what it computed from its own bytes. It lies in
// <data_dir>/node.key, 44 bytes, made when the node first starts:
//
//	offset  size  field
//	     0     8  magic "SCRNKEY1"
//	     8    32  Ed25519 seed
//	    40     4  CRC32C of everything before, big-endian
//
// Its name is <origin>/node-<id>. A node without its key must not get another
// one by itself: clients trust the old one.

const (
	nodeKeyName  = "node.key"
	nodeKeyMagic = "SCRNKEY1"
	nodeKeySize  = 8 + ed25519.SeedSize + 4
)

// appendNodeKey appends the contents of node.key.
func appendNodeKey(b, seed []byte) []byte {
	return append(b, appendCRC(append([]byte(nodeKeyMagic), seed...))...)
}

// parseNodeKey reads the contents of node.key and returns the seed.
func parseNodeKey(b []byte) ([]byte, error) {
	if len(b) != nodeKeySize || string(b[:8]) != nodeKeyMagic {
		return nil, fmt.Errorf("%w: %d bytes, want %d that begin with %s", errCorrupt, len(b), nodeKeySize, nodeKeyMagic)
	}
	body, err := cutCRC(b)
	if err != nil {
		return nil, err
	}
	return body[8:], nil
}

// loadNodeKey reads node.key, making it in a directory that has not cosigned
// anything yet, and returns the key. It opens the records of what was signed.
func (n *node) loadNodeKey() error {
	path := filepath.Join(n.o.dataDir, nodeKeyName)
	b, err := os.ReadFile(path)
	fresh := errors.Is(err, fs.ErrNotExist)
	if fresh {
		b, err = newNodeKey(path)
	}
	if err != nil {
		return err
	}
	seed, err := parseNodeKey(b)
	if err != nil {
		return fmt.Errorf("%s: the node's key is damaged, put back a copy of it: %w", path, err)
	}
	n.key = ed25519.NewKeyFromSeed(seed)
	if n.signer.file, err = openSigned(filepath.Join(n.o.dataDir, signedName)); err != nil {
		return err
	}
	if n.cosigner.file, err = openSigned(filepath.Join(n.o.dataDir, cosignedName)); err != nil {
		return err
	}
	n.signer.before, n.cosigner.before = n.signer.file.last.size, n.cosigner.file.last.size
	if k := n.cosigner.file.last.key; k != (publicKey{}) && k != n.publicKey() {
		return fmt.Errorf("%s: this node cosigned with another key than the one in %s", filepath.Join(n.o.dataDir, cosignedName), nodeKeyName)
	}
	return nil
}

// newNodeKey draws a key and writes it to path.
func newNodeKey(path string) ([]byte, error) {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	b := appendNodeKey(nil, seed)
	return b, writeDurably(path, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

// publicKey returns the public half of the node key.
func (n *node) publicKey() publicKey { return publicKey(n.key.Public().(ed25519.PublicKey)) }

// origin returns the name of the ledger: <cluster name>/<cluster id>, with "-"
// for what the name of a key cannot have.
func (n *node) origin() string {
	self := n.self.Load()
	name := strings.Map(func(r rune) rune {
		if r == '+' || r < ' ' || r == unicode.ReplacementChar || unicode.IsSpace(r) {
			return '-'
		}
		return r
	}, self.ClusterName)
	return name + "/" + self.ClusterID
}

// nodeVerifier returns the cosigning key of the node with that id.
func (n *node) nodeVerifier(id uint64, key []byte) (noteVerifier, error) {
	return newNoteVerifier(fmt.Sprintf("%s/node-%d", n.origin(), id), sigCosignature, key)
}

// nodeSigner returns this node's cosigning key.
func (n *node) nodeSigner() (noteSigner, error) {
	v, err := n.nodeVerifier(n.o.id, n.key.Public().(ed25519.PublicKey))
	return noteSigner{v, n.key}, err
}

// verifier returns the cosigning key a peer told.
func (n *node) verifier(h *hello) (noteVerifier, error) {
	key, err := base64.StdEncoding.DecodeString(h.NodeKey)
	if err != nil {
		return noteVerifier{}, fmt.Errorf("%w: key of node %d: %w", errNote, h.ID, err)
	}
	return n.nodeVerifier(h.ID, key)
}

// nodeVKeys returns the cosigning keys of all members that are known, by id.
func (n *node) nodeVKeys() map[uint64]string {
	all := make(map[uint64]string)
	if !n.self.Load().formed() {
		return all
	}
	if s, err := n.nodeSigner(); err == nil {
		all[n.o.id] = s.noteVerifier.String()
	}
	for _, s := range n.others() {
		if p, ok := n.peers.get(s.ID); ok {
			if v, err := n.verifier(&p.hello); err == nil {
				all[p.ID] = v.String()
			}
		}
	}
	return all
}

// keys returns the keys of the ledger, nil while it has none.
func (n *node) keys() *ledgerKeys {
	if f := n.fsm.Load(); f != nil {
		return f.keys.Load()
	}
	return nil
}

// waitKeys returns the keys of the ledger once it has some.
func (n *node) waitKeys(ctx context.Context) (*ledgerKeys, error) {
	for {
		changed := n.changing.next()
		if k := n.keys(); k != nil {
			return k, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: the ledger has no key yet: %w", errNoLeader, ctx.Err())
		case <-n.ctx.Done():
			return nil, fmt.Errorf("%w: the node closes", errNoLeader)
		}
	}
}

// ledgerVKeys returns the key that signs the ledger and the notes that handed
// over from each former key to the next, oldest first.
func (n *node) ledgerVKeys() (current string, former []string, err error) {
	k := n.keys()
	if k == nil {
		return "", nil, fmt.Errorf("%w: the ledger has no key yet", errNoLeader)
	}
	for _, f := range k.former {
		former = append(former, f.handOver)
	}
	return k.signer.noteVerifier.String(), former, nil
}

// makeKey gives the ledger its first key, on the leader.
func (n *node) makeKey() {
	for n.ctx.Err() == nil && n.isReady() && n.keys() == nil {
		if err := n.proposeKey(publicKey{}); err != nil && !errors.Is(err, errStaleKey) {
			n.o.logger.Info("proposing the ledger key", "error", err)
			n.pause(20 * time.Millisecond)
		}
	}
}

// proposeKey draws a ledger key and has it replace the given one.
func (n *node) proposeKey(replaces publicKey) error {
	cmd := keyCommand{origin: n.origin(), replaces: replaces}
	rand.Read(cmd.seed[:])
	if k := n.keys(); k != nil {
		cmd.origin = k.origin()
	}
	response, err := n.apply(appendKey(nil, &cmd))
	if rerr, ok := response.(error); ok {
		return rerr
	}
	return err
}

// rotateLedgerKey gives the ledger a new key; this node has it on return. The
// new key signs from then on, and a note signed by both hands over. A rotation
// that this node had not heard of yet, or one at the same time, goes before: each
// call makes a key of its own.
func (n *node) rotateLedgerKey(ctx context.Context) error {
	for {
		old, err := n.waitKeys(ctx)
		if err != nil {
			return err
		}
		stale, err := n.rotate(ctx, old.public())
		if err == nil {
			err = n.waitReplaced(ctx, old)
		}
		if err != nil || !stale {
			return err
		}
	}
}

// waitReplaced waits until this node knows the key that came after old.
func (n *node) waitReplaced(ctx context.Context, old *ledgerKeys) error {
	for {
		changed := n.changing.next()
		if n.keys().public() != old.public() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: rotating the ledger key: %w", errUnknownOutcome, ctx.Err())
		}
	}
}

// rotateRequest asks the leader to replace a ledger key.
type rotateRequest struct {
	Replaces []byte `json:"replaces"` // public key
}

// rotateReply says that the key is replaced.
type rotateReply struct {
	Stale bool `json:"stale"` // it was before
}

// rotate has the leader replace a ledger key; stale tells that it was replaced
// already.
func (n *node) rotate(ctx context.Context, replaces publicKey) (stale bool, err error) {
	if n.leads() {
		return n.replaceKey(replaces)
	}
	addr, _ := n.leaderServer()
	if addr == "" {
		return false, errNoLeader
	}
	ctx, cancel := n.whileLeads(ctx, string(addr))
	defer cancel()
	var reply rotateReply
	if err := n.call(ctx, http.MethodPost, string(addr), "/rotate-key", rotateRequest{replaces[:]}, &reply); err != nil {
		return false, fmt.Errorf("%w: rotating the ledger key: %w", errUnknownOutcome, err)
	}
	return reply.Stale, nil
}

// replaceKey is rotate on the leader.
func (n *node) replaceKey(replaces publicKey) (stale bool, err error) {
	err = n.proposeKey(replaces)
	switch {
	case errors.Is(err, errStaleKey):
		return true, nil
	case errors.Is(err, errNotApplied):
		err = fmt.Errorf("%w: %w", errNoLeader, err)
	}
	return false, err
}

// serveRotate replaces the ledger key for a follower.
func (n *node) serveRotate(w http.ResponseWriter, r *http.Request) {
	var ask rotateRequest
	if !decode(w, r, &ask) {
		return
	}
	if !n.leads() || len(ask.Replaces) != len(publicKey{}) {
		respond(w, nil, errNoLeader)
		return
	}
	stale, err := n.replaceKey(publicKey(ask.Replaces))
	respond(w, rotateReply{stale}, err)
}
