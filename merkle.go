package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Merkle tree hashing after RFC 6962 §2.1; TestMerkleVectors holds us to the
// published vectors. This file knows nothing of files, Raft or time.

// hash is a SHA-256 value: a leaf, an inner node or a root of a tree.
type hash [sha256.Size]byte

func (h hash) String() string { return hex.EncodeToString(h[:]) }

// parseHash reads the 64 lower-case hex digits that String writes.
func parseHash(s string) (hash, error) {
	var h hash
	b, err := hex.DecodeString(s)
	copy(h[:], b)
	if err != nil || h.String() != s {
		return hash{}, fmt.Errorf("hash %q: want %d lower-case hex digits", s, 2*len(h))
	}
	return h, nil
}

// emptyRoot is the root of the tree without leaves: SHA-256 of nothing.
var emptyRoot = hash(sha256.Sum256(nil))

// leafHash returns SHA-256(0x00 ‖ data), the hash of one leaf.
func leafHash(data []byte) hash {
	var room [512]byte // most leaves fit: no allocation
	buf := append(room[:0], 0x00)
	return sha256.Sum256(append(buf, data...))
}

// nodeHash returns SHA-256(0x01 ‖ left ‖ right), the hash of an inner node.
func nodeHash(left, right hash) hash {
	var buf [1 + 2*sha256.Size]byte
	buf[0] = 0x01
	copy(buf[1:], left[:])
	copy(buf[1+sha256.Size:], right[:])
	return sha256.Sum256(buf[:])
}

// compactTree is a tree that remembers only the roots of its complete
// subtrees, largest first: enough to append leaves and to know the root. Its
// zero value is the empty tree.
type compactTree struct {
	size  uint64 // leaves
	roots []hash // one for each set bit of size, highest bit first
}

// append adds one leaf; it costs one node hash on average.
func (t *compactTree) append(leaf hash) {
	h := leaf
	for n := t.size; n&1 == 1; n >>= 1 {
		last := len(t.roots) - 1
		h = nodeHash(t.roots[last], h)
		t.roots = t.roots[:last]
	}
	t.roots = append(t.roots, h)
	t.size++
}

// root returns the Merkle tree hash over all leaves.
func (t *compactTree) root() hash {
	if t.size == 0 {
		return emptyRoot
	}
	last := len(t.roots) - 1
	h := t.roots[last]
	for i := last - 1; i >= 0; i-- {
		h = nodeHash(t.roots[i], h)
	}
	return h
}

// clone returns a copy that later appends to t do not change.
func (t *compactTree) clone() compactTree {
	return compactTree{size: t.size, roots: append([]hash(nil), t.roots...)}
}

// rootOf returns the Merkle tree hash over leaves.
func rootOf(leaves []hash) hash {
	var t compactTree
	for _, l := range leaves {
		t.append(l)
	}
	return t.root()
}
