package main

import "context"

type signedHead struct {
	treeHead
	note string
}

func (n *node) signedHead(ctx context.Context, minSize uint64, cosigned bool) (signedHead, error) {
	return signedHead{}, errNoLeader
}
func (n *node) ledgerVKeys() (current string, former []string, err error) {
	return "", nil, errNoLeader
}
func (n *node) nodeVKeys() map[uint64]string              { return nil }
func (n *node) rotateLedgerKey(ctx context.Context) error { return errNoLeader }
