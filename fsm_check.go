package main

import (
	"errors"
	"fmt"
)

// Every replica derives the ledger from the same log, so at every size all must
// have the same tree. What a confirm or a check command says is what most
// voters answered before the leader proposed it (raft_diverge.go): a replica
// that differs is the odd one, and nothing it has can be trusted.

// treeClaim is what a replica says of its ledger.
type treeClaim struct {
	size uint64
	root hash // of the tree over so many entries
	sum  hash // SHA-256 of the file of the segment that ends there; zero = not asked
}

// applyConfirm compares a sealed segment, and the tree at its end, with what
// most nodes have.
func (f *fsm) applyConfirm(b []byte) error {
	info, root, err := parseConfirm(b)
	if err != nil {
		return err
	}
	if err := f.store.confirm(info); err != nil {
		return err
	}
	return f.compare(treeClaim{info.end(), root, info.sum})
}

// applyCheck compares the tree with what most nodes have.
func (f *fsm) applyCheck(b []byte) error {
	size, root, err := parseCheck(b)
	if err != nil {
		return err
	}
	return f.compare(treeClaim{size: size, root: root})
}

// compare returns an error that wraps errDiverged, and names the entries among
// which the difference is, unless this replica's tree is as c says.
func (f *fsm) compare(c treeClaim) error {
	if c.root == (hash{}) {
		return nil // an older program's confirm command
	}
	f.store.publish()
	own, err := f.store.root(c.size)
	if errors.Is(err, errBeyond) {
		err = fmt.Errorf("%w: %w", errCorrupt, err) // no leader compares what it has not applied
	}
	if err != nil {
		return fmt.Errorf("root over %d entries: %w", c.size, err)
	}
	if own != c.root {
		from := f.compared
		if from >= c.size {
			from = 0
		}
		return fmt.Errorf("%w: entries %d to %d: the root over %d entries is %s here, %s on most nodes", errDiverged, from, c.size-1, c.size, own, c.root)
	}
	f.compared = max(f.compared, c.size)
	if f.agreed != nil {
		f.agreed(c)
	}
	return nil
}
