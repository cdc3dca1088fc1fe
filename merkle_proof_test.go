package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
)

// memTree answers for the complete subtrees over its leaves: level 0 are the
// leaves themselves.
type memTree [][]hash

// newMemTree returns a tree of n different leaves.
func newMemTree(n int) memTree {
	level := make([]hash, n)
	for i := range level {
		level[i] = leafHash([]byte{byte(i), byte(i >> 8)})
	}
	return memTreeOf(level)
}

// memTreeOf returns the tree over leaves.
func memTreeOf(leaves []hash) memTree {
	tree := memTree{leaves}
	for level := leaves; len(level) > 1; {
		next := make([]hash, len(level)/2)
		for i := range next {
			next[i] = nodeHash(level[2*i], level[2*i+1])
		}
		tree, level = append(tree, next), next
	}
	return tree
}

// upTo returns the reader of the tree's first size leaves; it knows no other.
func (m memTree) upTo(size uint64) nodeReader {
	return func(level int, index uint64) (hash, error) {
		if (index+1)<<level > size {
			return hash{}, fmt.Errorf("read of node %d at level %d in a tree of %d", index, level, size)
		}
		return m[level][index], nil
	}
}

// referencePath is PATH(m, D[n]) of RFC 6962 §2.1.1.
func referencePath(m int, leaves []hash) []hash {
	if len(leaves) == 1 {
		return nil
	}
	k := 1
	for 2*k < len(leaves) {
		k *= 2
	}
	if m < k {
		return append(referencePath(m, leaves[:k]), referenceRoot(leaves[k:]))
	}
	return append(referencePath(m-k, leaves[k:]), referenceRoot(leaves[:k]))
}

// referenceSubproof is SUBPROOF(m, D[n], whole) of RFC 6962 §2.1.2.
func referenceSubproof(m int, leaves []hash, whole bool) []hash {
	if m == len(leaves) {
		if whole {
			return nil
		}
		return []hash{referenceRoot(leaves)}
	}
	k := 1
	for 2*k < len(leaves) {
		k *= 2
	}
	if m <= k {
		return append(referenceSubproof(m, leaves[:k], whole), referenceRoot(leaves[k:]))
	}
	return append(referenceSubproof(m-k, leaves[k:], false), referenceRoot(leaves[:k]))
}

// exhaustSize returns the size up to which all proofs are tried.
func exhaustSize() int {
	if testing.Short() || raceDetector {
		return 67
	}
	return 130
}

func TestInclusionExhaustive(t *testing.T) {
	t.Parallel()
	largest := exhaustSize()
	tree := newMemTree(largest)
	for size := 1; size <= largest; size++ {
		leaves, node := tree[0][:size], tree.upTo(uint64(size))
		root, err := rootAt(uint64(size), node)
		if err != nil || root != referenceRoot(leaves) {
			t.Fatalf("root at %d is %s, %v", size, root, err)
		}
		for seq := range size {
			proof, err := inclusionProof(uint64(seq), uint64(size), node)
			if err != nil || !slices.Equal(proof, referencePath(seq, leaves)) {
				t.Fatalf("proof of %d in %d is %s, %v", seq, size, proof, err)
			}
			if err := checkInclusion(leaves[seq], uint64(seq), uint64(size), proof, root); err != nil {
				t.Fatal(err)
			}
			checkInclusionMutants(t, leaves, seq, proof, root)
		}
	}
}

// checkInclusionMutants wants each damaged copy of a good proof refused.
func checkInclusionMutants(t *testing.T, leaves []hash, seq int, proof []hash, root hash) {
	t.Helper()
	size := uint64(len(leaves))
	refuse := func(what string, leaf hash, seq uint64, proof []hash, root hash) {
		if err := checkInclusion(leaf, seq, size, proof, root); !errors.Is(err, errProof) {
			t.Fatalf("%d in %d with %s: %v", seq, size, what, err)
		}
	}
	leaf, bit := leaves[seq], uint(seq*31+len(leaves))
	refuse("another leaf", flipped(leaf, bit), uint64(seq), proof, root)
	refuse("another root", leaf, uint64(seq), proof, flipped(root, bit))
	refuse("seq before", leaf, uint64(seq)-1, proof, root)
	refuse("seq after", leaf, uint64(seq)+1, proof, root)
	refuse("seq as size", leaf, size, proof, root)
	refuse("a hash more", leaf, uint64(seq), append(slices.Clone(proof), root), root)
	refuse("a hash before", leaf, uint64(seq), append([]hash{leaf}, proof...), root)
	for i := range proof {
		damaged := slices.Clone(proof)
		damaged[i] = flipped(proof[i], bit+uint(i))
		refuse("a flipped bit", leaf, uint64(seq), damaged, root)
	}
	if len(proof) > 0 {
		i := int(bit) % len(proof)
		refuse("a hash less", leaf, uint64(seq), slices.Delete(slices.Clone(proof), i, i+1), root)
	}
}

func TestConsistencyExhaustive(t *testing.T) {
	t.Parallel()
	largest := exhaustSize()
	tree := newMemTree(largest)
	roots := []hash{emptyRoot}
	for size := 1; size <= largest; size++ {
		roots = append(roots, referenceRoot(tree[0][:size]))
	}
	for to := range uint64(largest + 1) {
		for from := uint64(0); from <= to; from++ {
			proof, err := consistencyProof(from, to, tree.upTo(to))
			if err != nil {
				t.Fatal(err)
			}
			if from > 0 && !slices.Equal(proof, referenceSubproof(int(from), tree[0][:to], true)) {
				t.Fatalf("proof of %d to %d is %s", from, to, proof)
			}
			if err := checkConsistency(from, to, proof, roots[from], roots[to]); err != nil {
				t.Fatal(err)
			}
			checkConsistencyMutants(t, from, to, proof, roots)
		}
	}
}

// checkConsistencyMutants wants each damaged copy of a good proof refused. From
// the empty tree any root will do, so that one is not asked for.
func checkConsistencyMutants(t *testing.T, from, to uint64, proof, roots []hash) {
	t.Helper()
	refuse := func(what string, from, to uint64, proof []hash, fromRoot, toRoot hash) {
		if err := checkConsistency(from, to, proof, fromRoot, toRoot); !errors.Is(err, errProof) {
			t.Fatalf("%d to %d with %s: %v", from, to, what, err)
		}
	}
	bit := uint(from*31 + to)
	fromRoot, toRoot := roots[from], roots[to]
	refuse("another old root", from, to, proof, flipped(fromRoot, bit), toRoot)
	refuse("a hash more", from, to, append(slices.Clone(proof), toRoot), fromRoot, toRoot)
	refuse("a hash before", from, to, append([]hash{fromRoot}, proof...), fromRoot, toRoot)
	if from > 0 || to == 0 {
		refuse("another new root", from, to, proof, fromRoot, flipped(toRoot, bit))
	}
	if from != to {
		refuse("sizes swapped", to, from, proof, toRoot, fromRoot)
	}
	if from > 0 && from < to {
		refuse("roots swapped", from, to, proof, toRoot, fromRoot)
		refuse("the same sizes", to, to, proof, fromRoot, toRoot)
		refuse("no hashes", from, to, nil, fromRoot, toRoot)
	}
	for i := range proof {
		damaged := slices.Clone(proof)
		damaged[i] = flipped(proof[i], bit+uint(i))
		refuse("a flipped bit", from, to, damaged, fromRoot, toRoot)
	}
	if len(proof) > 0 {
		i := int(bit) % len(proof)
		refuse("a hash less", from, to, slices.Delete(slices.Clone(proof), i, i+1), fromRoot, toRoot)
	}
}

// flipped returns h with one bit changed.
func flipped(h hash, bit uint) hash {
	bit %= 8 * uint(len(h))
	h[bit/8] ^= 1 << (bit % 8)
	return h
}

// TestProofEveryBit flips each bit of each hash of some proofs.
func TestProofEveryBit(t *testing.T) {
	t.Parallel()
	tree := newMemTree(21)
	for _, size := range []uint64{2, 13, 21} {
		root, _ := rootAt(size, tree.upTo(size))
		for seq := range size {
			inclusion, _ := inclusionProof(seq, size, tree.upTo(size))
			consistency, _ := consistencyProof(seq+1, size, tree.upTo(size))
			old, _ := rootAt(seq+1, tree.upTo(size))
			for bit := range uint(256) {
				for i := range inclusion {
					damaged := slices.Clone(inclusion)
					damaged[i] = flipped(damaged[i], bit)
					if checkInclusion(tree[0][seq], seq, size, damaged, root) == nil {
						t.Fatalf("%d in %d: hash %d without bit %d is accepted", seq, size, i, bit)
					}
				}
				for i := range consistency {
					damaged := slices.Clone(consistency)
					damaged[i] = flipped(damaged[i], bit)
					if checkConsistency(seq+1, size, damaged, old, root) == nil {
						t.Fatalf("%d to %d: hash %d without bit %d is accepted", seq+1, size, i, bit)
					}
				}
			}
		}
	}
}

// TestProofHuge proves in trees up to the largest number: all leaves are equal,
// so that every complete subtree of a level has the same root.
func TestProofHuge(t *testing.T) {
	levels := []hash{leafHash(nil)}
	for len(levels) < 64 {
		levels = append(levels, nodeHash(levels[len(levels)-1], levels[len(levels)-1]))
	}
	node := func(level int, _ uint64) (hash, error) { return levels[level], nil }
	sizes := []uint64{1<<32 + 1, 1<<63 - 1, 1 << 63, 1<<63 + 1, math.MaxUint64 - 1, math.MaxUint64}
	for _, size := range sizes {
		root, err := rootAt(size, node)
		if err != nil {
			t.Fatal(err)
		}
		for _, seq := range []uint64{0, 1, 12345, size / 2, size - 2, size - 1} {
			proof, err := inclusionProof(seq, size, node)
			if err != nil || checkInclusion(levels[0], seq, size, proof, root) != nil {
				t.Errorf("%d in %d: %d hashes, %v", seq, size, len(proof), err)
			}
			if len(proof) > 0 && checkInclusion(levels[0], seq, size, proof[:len(proof)-1], root) == nil ||
				checkInclusion(levels[0], seq, size, append(proof, root), root) == nil {
				t.Errorf("%d in %d is accepted with another number of hashes", seq, size)
			}
			old, _ := rootAt(seq+1, node)
			proof, err = consistencyProof(seq+1, size, node)
			if err != nil || checkConsistency(seq+1, size, proof, old, root) != nil {
				t.Errorf("%d to %d: %d hashes, %v", seq+1, size, len(proof), err)
			}
		}
		if checkInclusion(levels[0], size, size, nil, root) == nil || checkConsistency(size, size-1, nil, root, root) == nil {
			t.Errorf("beyond %d is accepted", size)
		}
	}
}

// TestProofVectors holds us to the proofs published for the eight leaves.
func TestProofVectors(t *testing.T) {
	tree := memTreeOf(publishedLeaves())
	inclusion := func(seq, size uint64) ([]hash, error) { return inclusionProof(seq, size, tree.upTo(size)) }
	consistency := func(from, to uint64) ([]hash, error) { return consistencyProof(from, to, tree.upTo(to)) }
	const (
		l0, l1, l4   = "6e340b9c", "96a296d224f2", "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
		l6           = "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f"
		n01          = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
		n23          = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
		n45          = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
		n67          = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
		n0123, n4567 = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7", "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
	)
	for _, c := range []struct {
		prove func(a, b uint64) ([]hash, error)
		a, b  uint64
		want  []string // a hash by its beginning
	}{
		{inclusion, 0, 1, nil},
		{inclusion, 0, 8, []string{l1, n23, n4567}},
		{inclusion, 5, 8, []string{l4, n67, n0123}},
		{inclusion, 2, 3, []string{n01}},
		{inclusion, 1, 5, []string{l0, n23, l4}},
		{consistency, 1, 1, nil},
		{consistency, 1, 8, []string{l1, n23, n4567}},
		{consistency, 6, 8, []string{n45, n67, n0123}},
		{consistency, 2, 5, []string{n23, l4}},
		{consistency, 6, 7, []string{n45, l6, n0123}},
	} {
		got, err := c.prove(c.a, c.b)
		same := slices.EqualFunc(got, c.want, func(h hash, want string) bool { return strings.HasPrefix(h.String(), want) })
		if err != nil || !same {
			t.Errorf("proof %d, %d is %s, %v; want %s", c.a, c.b, got, err, c.want)
		}
	}
}

// publishedLeaves returns the hashes of merkleLeaves.
func publishedLeaves() []hash {
	var leaves []hash
	for _, s := range merkleLeaves {
		data, _ := hex.DecodeString(s)
		leaves = append(leaves, leafHash(data))
	}
	return leaves
}

// TestProofVerdicts compares our verdict on each case of
// testdata/rfc6962-proofs.txt with the other implementation's.
func TestProofVerdicts(t *testing.T) {
	data, err := os.ReadFile("testdata/rfc6962-proofs.txt")
	if err != nil {
		t.Fatal(err)
	}
	cases := make(map[string]int)
	for line := range bytes.Lines(data) {
		f := strings.Fields(string(line))
		if f[0] == "#" {
			continue
		}
		var a, b uint64
		if _, err := fmt.Sscan(f[2]+" "+f[3], &a, &b); err != nil {
			t.Fatal(err)
		}
		first, second := caseHash(t, f[4], 4), caseHash(t, f[5], 5)
		var proof []hash
		for i, s := range f[6:] {
			proof = append(proof, caseHash(t, s, 6+i))
		}
		if f[0] == "inclusion" {
			err = checkInclusion(first, a, b, proof, second)
		} else {
			err = checkConsistency(a, b, proof, first, second)
		}
		want := f[1]
		if b == 0 { // there any root will do for the empty tree, here only its own
			want = "refuse"
		}
		if got := decision(err); got != want {
			t.Errorf("%s: we %s: %v", line, got, err)
		}
		cases[f[0]+" "+f[1]]++
	}
	if want := map[string]int{"inclusion accept": 6, "inclusion refuse": 90, "consistency accept": 7, "consistency refuse": 90}; fmt.Sprint(cases) != fmt.Sprint(want) {
		t.Errorf("cases are %v, want %v", cases, want)
	}
}

// caseHash reads the hash in a field of a case. One that is not 32 bytes, which
// our types can not hold, becomes one that is equal only to itself, and garbage
// one that is equal to nothing.
func caseHash(t *testing.T, s string, field int) hash {
	if s == "garbage" {
		return leafHash([]byte{byte(field)})
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != len(hash{}) {
		return leafHash(b)
	}
	return hash(b)
}

// decision names what err decides.
func decision(err error) string {
	if err == nil {
		return "accept"
	}
	return "refuse"
}

func TestProofErrors(t *testing.T) {
	tree := newMemTree(8)
	if _, err := inclusionProof(8, 8, tree.upTo(8)); !errors.Is(err, errNoProof) {
		t.Error(err)
	}
	if _, err := inclusionProof(0, 0, tree.upTo(8)); !errors.Is(err, errNoProof) {
		t.Error(err)
	}
	if _, err := consistencyProof(8, 7, tree.upTo(8)); !errors.Is(err, errNoProof) {
		t.Error(err)
	}
	if got, err := rootAt(0, nil); err != nil || got != emptyRoot {
		t.Errorf("root at 0 is %s, %v", got, err)
	}
	// A node that can not be read is an error of all that need it.
	for size := uint64(1); size < 8; size++ {
		none := func(int, uint64) (hash, error) { return hash{}, os.ErrNotExist }
		if _, err := rootAt(size, none); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("root at %d: %v", size, err)
		}
		if _, err := inclusionProof(0, size+1, none); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("proof of 0 in %d: %v", size+1, err)
		}
		if _, err := consistencyProof(size, size+1, none); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("proof of %d to %d: %v", size, size+1, err)
		}
	}
}

func BenchmarkCheckInclusion(b *testing.B) {
	level := leafHash(nil)
	node := func(l int, i uint64) (hash, error) { return flipped(level, uint(l)+uint(i)<<6), nil }
	const size = 10_000_000
	leaf, _ := node(0, 1234567)
	proof, err := inclusionProof(1234567, size, node)
	if err != nil {
		b.Fatal(err)
	}
	root := leaf
	for way, i := (climb{1234567, size - 1}), 0; i < len(proof); i++ {
		if left, _ := way.up(); left {
			root = nodeHash(proof[i], root)
		} else {
			root = nodeHash(root, proof[i])
		}
	}
	b.ReportMetric(float64(len(proof)), "hashes")
	for b.Loop() {
		if err := checkInclusion(leaf, 1234567, size, proof, root); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkInclusionProof(b *testing.B) {
	tree := newMemTree(100_000)
	for b.Loop() {
		if _, err := inclusionProof(12345, 99_999, tree.upTo(99_999)); err != nil {
			b.Fatal(err)
		}
	}
}
