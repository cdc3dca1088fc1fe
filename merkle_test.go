package main

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"
)

// The leaves and roots that transparency-dev/merkle publishes
// (testonly/constants.go: LeafInputs, RootHashes).
var (
	merkleLeaves = []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"}
	merkleRoots  = []string{
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
)

func TestMerkleVectors(t *testing.T) {
	var tree compactTree
	var leaves []hash
	for size, want := range merkleRoots {
		if got := tree.root().String(); got != want {
			t.Errorf("root of size %d is %s, want %s", size, got, want)
		}
		if got := rootOf(leaves).String(); got != want {
			t.Errorf("rootOf %d leaves is %s, want %s", size, got, want)
		}
		if size < len(merkleLeaves) {
			data, _ := hex.DecodeString(merkleLeaves[size])
			leaves = append(leaves, leafHash(data))
			tree.append(leaves[size])
		}
	}
	if got, want := leafHash([]byte("L123456")).String(), "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"; got != want {
		t.Errorf("leaf hash is %s, want %s", got, want)
	}
	// nodeHash takes hashes only; 0x01 ‖ left ‖ right is a leaf with another prefix.
	want, _ := parseHash("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125")
	if got := nodeHash(leaves[0], leaves[1]); got != want {
		t.Errorf("node hash is %s, want %s", got, want)
	}
}

// referenceRoot is MTH of RFC 6962 §2.1, written as it stands there.
func referenceRoot(leaves []hash) hash {
	switch n := len(leaves); n {
	case 0:
		return emptyRoot
	case 1:
		return leaves[0]
	default:
		k := 1
		for 2*k < n {
			k *= 2
		}
		return nodeHash(referenceRoot(leaves[:k]), referenceRoot(leaves[k:]))
	}
}

func TestCompactTree(t *testing.T) {
	var tree compactTree
	var leaves []hash
	for size := range 131 {
		want := referenceRoot(leaves)
		if got := tree.root(); got != want {
			t.Fatalf("root of size %d is %s, the reference's %s", size, got, want)
		}
		if tree.size != uint64(size) || rootOf(leaves) != want {
			t.Fatalf("tree of %d leaves has size %d", size, tree.size)
		}
		leaf := leafHash([]byte{byte(size)})
		leaves = append(leaves, leaf)
		tree.append(leaf)
	}
}

// TestCompactTreeClone grows a clone and its original differently: each must
// have the root of its own leaves.
func TestCompactTreeClone(t *testing.T) {
	var tree compactTree
	var leaves []hash
	for size := range 40 {
		clone := tree.clone()
		before := tree.root()
		for i := range 5 {
			clone.append(leafHash([]byte{0xff, byte(i)}))
		}
		if tree.root() != before || tree.size != uint64(size) {
			t.Fatalf("growing a clone of size %d changed the original", size)
		}
		clone = tree.clone()
		leaf := leafHash([]byte{byte(size)})
		tree.append(leaf)
		if clone.root() != before || clone.size != uint64(size) {
			t.Fatalf("growing the original of size %d changed the clone", size)
		}
		leaves = append(leaves, leaf)
		if tree.root() != referenceRoot(leaves) {
			t.Fatalf("tree of size %d is damaged", size+1)
		}
	}
}

// TestLeafHashSizes crosses the size up to which leafHash needs no memory.
func TestLeafHashSizes(t *testing.T) {
	for _, n := range []int{0, 1, 510, 511, 512, 513, maxHeaderSize} {
		data := []byte(strings.Repeat("x", n))
		if got, want := leafHash(data), hash(sha256.Sum256([]byte("\x00"+string(data)))); got != want {
			t.Errorf("leaf hash of %d bytes is %s, want %s", n, got, want)
		}
	}
}

func TestParseHash(t *testing.T) {
	want := leafHash(nil)
	if got, err := parseHash(want.String()); err != nil || got != want {
		t.Errorf("parsed %s, %v", got, err)
	}
	for _, s := range []string{"", "00", want.String()[1:], want.String() + "00", strings.Repeat("x", 64), strings.ToUpper(want.String())} {
		if _, err := parseHash(s); err == nil {
			t.Errorf("parsed %q", s)
		}
	}
}
