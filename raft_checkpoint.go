package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// A checkpoint is the ledger's tree head, signed with the ledger key
// (merkle_head.go). Any node may sign, for all of them have the key: it signs
// what its own tree says, and never anything that does not go on from what it
// signed before (raft_signed.go). A node whose tree does not is the odd one, and
// stops as such if the others can go on without it (raft_diverge.go); else it
// goes on serving and tells, but proves nothing any more. One round signs for all who wait: it takes
// the newest applied entry, makes the new head durable as the last one signed,
// signs once and wakes everybody. A storm of receipts costs one fdatasync and
// one signature a round. Cosignatures of the nodes are in raft_cosign.go.

// signedHead is a checkpoint: the tree head and the signed note that says so.
type signedHead struct {
	treeHead
	note string // as served
}

// signedHead returns a checkpoint of at least minSize entries, which this node
// waits to have applied; it need not be the newest: ask for what must be in it.
// Cosigned ones carry the cosignatures of the nodes that agree and answer soon,
// and never get smaller from one call to the next on any node while there is a
// leader.
func (n *node) signedHead(ctx context.Context, minSize uint64, cosigned bool) (signedHead, error) {
	if cosigned {
		return n.collector.head(ctx, minSize)
	}
	h, err := n.signer.head(ctx, minSize)
	if err != nil {
		return signedHead{}, err
	}
	return h.signedHead, nil
}

// headSigner signs the ledger's tree heads with the ledger key.
type headSigner struct {
	n      *node
	before uint64                  // entries in the last head signed before the start; immutable after open
	last   atomic.Pointer[ownHead] // the newest one signed since the start
	rounds sharedRounds[*ownHead]

	// owned by the round under way
	file *signedFile
}

// ownHead is a checkpoint this node signed.
type ownHead struct {
	signedHead
	keys *ledgerKeys // then in force
}

// head returns a head of at least minSize entries signed with the key in force.
func (s *headSigner) head(ctx context.Context, minSize uint64) (*ownHead, error) {
	if err := s.n.refused(); err != nil {
		return nil, err
	}
	keys, err := s.n.waitKeys(ctx)
	if err != nil {
		return nil, err
	}
	if h := s.last.Load(); h != nil && h.size >= minSize && h.keys == keys {
		return h, nil
	}
	if err := s.n.waitApplied(ctx, max(minSize, s.before)); err != nil {
		return nil, err
	}
	for {
		changed := s.n.changing.next()
		h, err := s.rounds.join(ctx, s.n, s.sign)
		if !errors.Is(err, errNotYetApplied) {
			return h, err
		}
		select { // after a restart the ledger's new key may come behind its last entry
		case <-changed:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// waitApplied waits until this node has applied size entries.
func (n *node) waitApplied(ctx context.Context, size uint64) error {
	if err := n.store.waitSize(ctx, size); err != nil {
		return fmt.Errorf("%w: %d of %d entries: %w", errNotYetApplied, n.store.size(), size, err)
	}
	return nil
}

// sign is one round. A crash before the record is durable leaves nothing; after
// it, a record of a head that nobody has seen, which the next one extends.
func (s *headSigner) sign() (*ownHead, error) {
	applied, size := s.n.fsm.Load().appliedIndex.Load(), s.n.store.size() // before the keys: they include every change up to here
	keys := s.n.keys()
	if err := s.agrees(size, applied, keys); err != nil {
		return nil, err
	}
	root, err := s.n.root(size)
	if err != nil {
		return nil, err
	}
	if err := s.file.remember(signedRecord{size: size, root: root, key: keys.public(), index: keys.index}); err != nil {
		err = fmt.Errorf("remembering what was signed: %w", err)
		s.n.fail(err)
		return nil, err
	}
	head := treeHead{origin: keys.origin(), size: size, root: root}
	body := head.body()
	signed := note{body, []noteSignature{keys.signer.sign(body, 0)}}
	h := &ownHead{signedHead{head, signed.String()}, keys}
	s.last.Store(h)
	return h, nil
}

// agrees checks that this node's tree and key go on from those last signed. If
// they do not, the node has diverged, or has files of another. keys are as of
// the Raft index applied or later.
func (s *headSigner) agrees(size, applied uint64, keys *ledgerKeys) error {
	if err := s.n.refused(); err != nil {
		return err
	}
	err := s.file.extends(size, s.n.root)
	last := &s.file.last
	if err == nil && last.key != (publicKey{}) && !keys.has(last.key) {
		if applied < last.index {
			return fmt.Errorf("%w: the ledger key this node signed with", errNotYetApplied)
		}
		err = fmt.Errorf("%w: this node signed %d entries with the ledger key %x, which the ledger never had", errDiverged, last.size, last.key)
	}
	return s.n.refuse(err)
}

// refuse returns err. If it says that this node's tree does not go on from what
// the node signed, none signs any more: the node stops if the others can go on
// without it, else it says so until it is opened again.
func (n *node) refuse(err error) error {
	if !errors.Is(err, errDiverged) || !n.refusal.CompareAndSwap(nil, &err) {
		return err
	}
	if n.spared() {
		n.fail(err)
	} else {
		n.o.logger.Error("this node signs no tree head any more", "error", err)
	}
	return err
}

// refused returns why this node signs nothing, nil if it does.
func (n *node) refused() error {
	if err := n.refusal.Load(); err != nil {
		return *err
	}
	return nil
}

// checkSigned compares the tree with what this node signed and cosigned before
// its start as soon as it has as many entries, so that a difference is seen
// without anybody asking for a head.
func (n *node) checkSigned() {
	n.signer.head(n.ctx, 0)
	if n.waitApplied(n.ctx, n.cosigner.before) == nil {
		n.cosigner.check()
	}
}

// root returns the root of this node's tree at an earlier size.
func (n *node) root(size uint64) (hash, error) {
	root, err := n.store.root(size)
	if n.o.treeFault != nil {
		root = n.o.treeFault(size, root)
	}
	return root, err
}

// sharedRounds gathers callers who want the same done: one round is under way, those
// who come meanwhile share the next, which starts after they came.
type sharedRounds[T any] struct {
	mu      sync.Mutex
	waiting []chan roundResult[T]
	running bool
}

// roundResult is what a round came to.
type roundResult[T any] struct {
	value T
	err   error
}

// join waits for a round of do that starts after the call; errClosed if none does
// because n closes.
func (r *sharedRounds[T]) join(ctx context.Context, n *node, do func() (T, error)) (T, error) {
	ch := make(chan roundResult[T], 1)
	r.mu.Lock()
	if !r.running && !n.done.Go(func() { r.run(do) }) {
		r.mu.Unlock()
		var none T
		return none, errClosed
	}
	r.running = true
	r.waiting = append(r.waiting, ch)
	r.mu.Unlock()
	select {
	case res := <-ch:
		return res.value, res.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// run does rounds as long as somebody waits.
func (r *sharedRounds[T]) run(do func() (T, error)) {
	for {
		r.mu.Lock()
		batch := r.waiting
		r.waiting = nil
		r.running = len(batch) > 0
		r.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		var res roundResult[T]
		res.value, res.err = do()
		for _, ch := range batch {
			ch <- res
		}
	}
}
