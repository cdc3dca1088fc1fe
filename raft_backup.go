package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// signedManifest returns a bucket manifest (manifest_bucket.go) over all confirmed
// segments, for who makes a backup of them. Objects that are in no bucket have no
// names in it.
func (n *node) signedManifest(ctx context.Context) ([]byte, error) {
	shown := n.store.manifest.Load().shown()
	if len(shown) == 0 {
		return nil, errBeyond
	}
	return n.archiver.signManifest(ctx, shown, shown[len(shown)-1].end())
}

// openStoppedLedger opens the store of a node that does not run, and returns it with
// a bucket manifest over its sealed segments: D knows of the last one that it was
// sealed, not yet that it was confirmed. What is in the Raft log only is not in them.
func openStoppedLedger(o nodeOptions) (signed []byte, s *store, closed func() error, err error) {
	if _, err := os.Stat(filepath.Join(o.dataDir, nodeFileName)); err != nil {
		return nil, nil, nil, fmt.Errorf("%s: no node to back up: %w", o.dataDir, err)
	}
	o.archiveEvery, o.scrubRate = 0, 0
	n := &node{o: o, offline: true}
	n.changing.init()
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err = n.lockStopped(); err == nil {
		err = n.openStore()
	}
	if err == nil {
		signed, err = n.signSealed()
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, n.release())
	}
	return signed, n.store, n.release, nil
}

// signSealed signs a bucket manifest over the segments of D, with the key as of D.
func (n *node) signSealed() ([]byte, error) {
	state := n.store.durable.Load()
	keys, err := parseLedgerKeys(state.at.keys)
	if err != nil {
		return nil, err
	}
	if keys == nil || len(state.segments) == 0 {
		return nil, errors.New("it has no sealed segment, or none since the ledger got its key: start it, and POST /cluster/seal")
	}
	m, err := n.bucketManifest(state.segments, keys)
	if err != nil {
		return nil, err
	}
	return m.sign(keys.signer), nil
}
