package main

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// Inclusion and consistency proofs after RFC 6962 §2.1, checked as RFC 9162
// §2.1.3.2 and §2.1.4.2 spell it out. A proof is a list of hashes, the one
// nearest to the leaves first:
//
//	inclusion of leaf 5 in 8       leaf 4, node 6..7, node 0..3
//	consistency of 6 with 8        node 4..5, node 6..7, node 0..3
//
// Where a complete tree has its right half a growing tree may have less; that
// hash then is the root over what there is.

// errProof is returned when a proof does not lead to the root it is for.
var errProof = errors.New("proof does not hold")

// errNoProof is returned when a proof is asked for that no tree of that size has.
var errNoProof = errors.New("no such proof")

// nodeReader returns the root of the complete subtree over leaves
// [index<<level, (index+1)<<level).
type nodeReader func(level int, index uint64) (hash, error)

// rootAt returns the root of the first size leaves.
func rootAt(size uint64, node nodeReader) (hash, error) {
	if size == 0 {
		return emptyRoot, nil
	}
	return rangeRoot(0, size, node)
}

// splitSize returns the leaves in the left half of a tree of n > 1 leaves: the
// largest power of two below n.
func splitSize(n uint64) uint64 { return 1 << (bits.Len64(n-1) - 1) }

// rangeRoot returns MTH(D[lo:hi]) of RFC 6962: lo must be a multiple of the
// smallest power of two that hi-lo fits in, and less than hi.
func rangeRoot(lo, hi uint64, node nodeReader) (hash, error) {
	n := hi - lo
	if n&(n-1) == 0 {
		level := bits.TrailingZeros64(n)
		h, err := node(level, lo>>level)
		if err != nil {
			return hash{}, fmt.Errorf("subtree %d..%d: %w", lo, hi-1, err)
		}
		return h, nil
	}
	mid := lo + splitSize(n)
	left, err := rangeRoot(lo, mid, node)
	if err != nil {
		return hash{}, err
	}
	right, err := rangeRoot(mid, hi, node)
	return nodeHash(left, right), err
}

// inclusionProof proves that leaf seq is in the tree of size leaves:
// PATH(seq, D[size]) of RFC 6962, walked from the root down.
func inclusionProof(seq, size uint64, node nodeReader) ([]hash, error) {
	if seq >= size {
		return nil, fmt.Errorf("%w: entry %d is not in a tree of %d", errNoProof, seq, size)
	}
	var proof []hash
	for lo, hi := uint64(0), size; hi-lo > 1; {
		mid := lo + splitSize(hi-lo)
		from, to := mid, hi // the half without the leaf
		if seq < mid {
			hi = mid
		} else {
			from, to, lo = lo, mid, mid
		}
		h, err := rangeRoot(from, to, node)
		if err != nil {
			return nil, fmt.Errorf("inclusion of %d in %d: %w", seq, size, err)
		}
		proof = append(proof, h)
	}
	slices.Reverse(proof)
	return proof, nil
}

// consistencyProof proves that the tree of from leaves is the beginning of the
// tree of to leaves: PROOF(from, D[to]) of RFC 6962, walked from the root down.
// The proof from 0 is empty.
func consistencyProof(from, to uint64, node nodeReader) ([]hash, error) {
	if from > to {
		return nil, fmt.Errorf("%w: a tree of %d does not begin with %d", errNoProof, to, from)
	}
	if from == 0 {
		return nil, nil
	}
	var proof []hash
	add := func(lo, hi uint64) error {
		h, err := rangeRoot(lo, hi, node)
		if err != nil {
			return fmt.Errorf("consistency of %d with %d: %w", from, to, err)
		}
		proof = append(proof, h)
		return nil
	}
	lo, hi := uint64(0), to // the subtree in which the old tree ends
	for hi != from {
		mid := lo + splitSize(hi-lo)
		other, end := mid, hi // its half that the old tree does not end in
		if from <= mid {
			hi = mid
		} else {
			other, end, lo = lo, mid, mid
		}
		if err := add(other, end); err != nil {
			return nil, err
		}
	}
	if lo > 0 { // else it is the old root, which the verifier has
		if err := add(lo, hi); err != nil {
			return nil, err
		}
	}
	slices.Reverse(proof)
	return proof, nil
}

// climb is a place on the way from a leaf to the root: index is the node's place
// in its level and last that of the level's last node.
type climb struct{ index, last uint64 }

// up goes to the next node that has a sibling's hash in the proof, and reports
// whether that sibling stands left of the way. At the root ok is false.
func (c *climb) up() (left, ok bool) {
	if c.last == 0 {
		return false, false
	}
	left = c.index&1 == 1 || c.index == c.last
	if left {
		// A last node without a sibling is its own parent.
		for c.index&1 == 0 && c.index != 0 {
			c.index, c.last = c.index>>1, c.last>>1
		}
	}
	c.index, c.last = c.index>>1, c.last>>1
	return left, true
}

// checkInclusion returns nil only if proof shows that leaf is entry seq of the
// tree with size entries and that root.
func checkInclusion(leaf hash, seq, size uint64, proof []hash, root hash) error {
	if seq >= size {
		return fmt.Errorf("%w: entry %d is not in a tree of %d", errProof, seq, size)
	}
	way := climb{seq, size - 1}
	h := leaf
	for i, sibling := range proof {
		left, ok := way.up()
		switch {
		case !ok:
			return fmt.Errorf("%w: entry %d of %d: %d hashes, want %d", errProof, seq, size, len(proof), i)
		case left:
			h = nodeHash(sibling, h)
		default:
			h = nodeHash(h, sibling)
		}
	}
	if way.last != 0 {
		return fmt.Errorf("%w: entry %d of %d: %d hashes are too few", errProof, seq, size, len(proof))
	}
	if h != root {
		return fmt.Errorf("%w: entry %d of %d leads to root %s, want %s", errProof, seq, size, h, root)
	}
	return nil
}

// checkConsistency returns nil only if proof shows that the tree of from entries
// with fromRoot is the beginning of the tree of to entries with toRoot.
// Everything begins with the empty tree; its proof is empty.
func checkConsistency(from, to uint64, proof []hash, fromRoot, toRoot hash) error {
	if from > to {
		return fmt.Errorf("%w: a tree of %d does not begin with %d", errProof, to, from)
	}
	if from == 0 || from == to {
		return checkTrivial(from, to, proof, fromRoot, toRoot)
	}
	if from&(from-1) == 0 { // the old tree is one node of the new one: the proof leaves it out
		proof = slices.Insert(slices.Clone(proof), 0, fromRoot)
	}
	if len(proof) == 0 {
		return fmt.Errorf("%w: %d to %d without hashes", errProof, from, to)
	}
	way := climb{from - 1, to - 1}
	for way.index&1 == 1 {
		way.index, way.last = way.index>>1, way.last>>1
	}
	older, newer := proof[0], proof[0]
	for _, sibling := range proof[1:] {
		left, ok := way.up()
		switch {
		case !ok:
			return fmt.Errorf("%w: %d to %d has hashes to spare", errProof, from, to)
		case left:
			older, newer = nodeHash(sibling, older), nodeHash(sibling, newer)
		default:
			newer = nodeHash(newer, sibling)
		}
	}
	if way.last != 0 {
		return fmt.Errorf("%w: %d to %d lacks hashes", errProof, from, to)
	}
	return checkRoots(from, to, older, newer, fromRoot, toRoot)
}

// checkTrivial checks the proofs that need no hashes: from the empty tree, and
// from a tree to itself.
func checkTrivial(from, to uint64, proof []hash, fromRoot, toRoot hash) error {
	if len(proof) != 0 {
		return fmt.Errorf("%w: %d to %d has %d hashes, want none", errProof, from, to, len(proof))
	}
	older, newer := fromRoot, toRoot
	if from == 0 {
		older = emptyRoot
	}
	if from == to {
		newer = older
	}
	return checkRoots(from, to, older, newer, fromRoot, toRoot)
}

// checkRoots compares the roots a proof leads to with those it is for.
func checkRoots(from, to uint64, older, newer, fromRoot, toRoot hash) error {
	if older != fromRoot {
		return fmt.Errorf("%w: %d to %d leads to old root %s, want %s", errProof, from, to, older, fromRoot)
	}
	if newer != toRoot {
		return fmt.Errorf("%w: %d to %d leads to new root %s, want %s", errProof, from, to, newer, toRoot)
	}
	return nil
}
