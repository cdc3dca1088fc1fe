package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// testLeaf is leaf i of the tests' trees.
func testLeaf(i uint64) hash { return leafHash(fmt.Append(nil, "leaf ", i)) }

func TestTilePath(t *testing.T) {
	for path, id := range map[string]tileID{
		"0/000":                               {0, 0, 256},
		"0/x001/067":                          {0, 1067, 256},
		"0/x001/067.p/3":                      {0, 1067, 3},
		"0/x001/x234/067":                     {0, 1234067, 256},
		"63/999.p/255":                        {63, 999, 255},
		"entries/000.p/8":                     {entryTile, 0, 8},
		"entries/x273/000":                    {entryTile, 273000, 256},
		"7/x018/x446/x744/x073/x709/x551/615": {7, 1<<64 - 1, 256},
	} {
		if got := id.path(); got != path {
			t.Errorf("path of %+v is %s, want %s", id, got, path)
		}
		if got, err := parseTilePath(path); err != nil || got != id {
			t.Errorf("%s: parsed %+v, %v", path, got, err)
		}
	}
	for _, bad := range []string{
		"", "0", "0/", "/000", "0/0", "0/00", "0/0000", "0/001/002", "0/x001", "0/x000/001", "0/x001/x002", "0/000.p/0", "0/000.p/256",
		"0/000.p/", "0/000.p/01", "0/000.p/+1", "0/000.p/-1", "0/000.p/1.p/1", "00/000", "+0/000", "-1/000", "-2/000", "64/000", "x/000", "0/-01", "0/+01",
		"entries/", "entries", "Entries/000", "0/000/", "/0/000", "0//000", "0/x018/x446/x744/x073/x709/x551/616", "0/ 00", "0/000.P/1", "0/x1/000",
		"0/" + strings.Repeat("x999/", 1000) + "999",
	} {
		if id, err := parseTilePath(bad); err == nil {
			t.Errorf("%.50q: parsed %+v", bad, id)
		} else {
			wantError(t, err, errTilePath)
		}
	}
}

func FuzzTilePath(f *testing.F) {
	for _, s := range []string{"0/000", "entries/x001/067.p/3", "7/x018/x446/x744/x073/x709/x551/615", "0/x000/000", "1/x0x1/00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := parseTilePath(s)
		if err == nil && (id.path() != s || id.width < 1 || id.width > tileWidth || id.level < entryTile || id.level > 63) {
			t.Fatalf("%q: parsed %+v", s, id)
		}
	})
}

// TestTileTree compares roots, tiles and their nodes with rootOf.
func TestTileTree(t *testing.T) {
	t.Parallel()
	var tree tileTree
	var whole compactTree
	var leaves []hash
	full := make(map[tileID]*tile)
	node := func(level int, index uint64) (hash, error) {
		l, n, sub, i := tileOf(level, index)
		if n == tree.size>>(tileHeight*(l+1)) {
			return tree.open[l].node(sub, i), nil
		}
		return full[tileID{l, n, tileWidth}].node(sub, i), nil
	}
	for n := uint64(0); n <= 66_100; n++ {
		if n <= 1100 || n >= 65_500 && n <= 65_600 || n%1009 == 0 {
			if got, err := rootAt(n, node); err != nil || got != whole.root() {
				t.Fatalf("root of %d leaves is %s, want %s, error %v", n, got, whole.root(), err)
			}
		}
		leaf := testLeaf(n)
		tree.append(leaf)
		whole.append(leaf)
		leaves = append(leaves, leaf)
		for _, f := range tree.full {
			checkTile(t, f, leaves)
			full[tileID{f.level, f.index, tileWidth}] = f.tile
		}
		tree.full = nil
	}
	tree.append(testLeaf(0))
	if len(full) != 258+1 || tree.open[0].width != 54 || tree.open[1].width != 2 || tree.open[2].width != 1 || tree.open[3] != nil {
		t.Errorf("%d full tiles, open ones are %+v", len(full), tree.open)
	}
}

// checkTile compares every node of a full tile with rootOf.
func checkTile(t *testing.T, f fullTile, leaves []hash) {
	t.Helper()
	each := 1 << (tileHeight * f.level) // leaves below a hash
	own := leaves[int(f.index)*tileWidth*each:]
	if len(own) != tileWidth*each {
		t.Fatalf("tile %d of level %d came after %d leaves", f.index, f.level, len(leaves))
	}
	for sub := 0; sub <= tileHeight; sub++ {
		for i := range uint64(tileWidth >> sub) {
			want := rootOf(own[int(i)*each<<sub:][:each<<sub])
			if f.node(sub, i) != want {
				t.Fatalf("tile %d of level %d: node %d of row %d is wrong", f.index, f.level, i, sub)
			}
			if sub == tileHeight {
				continue
			}
			level, index, gotSub, gotI := tileOf(f.level*tileHeight+sub, f.index*tileWidth>>sub+i)
			if level != f.level || index != f.index || gotSub != sub || gotI != i {
				t.Fatalf("node %d of row %d of tile %d of level %d is looked for at %d %d %d %d", i, sub, f.index, f.level, level, index, gotSub, gotI)
			}
		}
	}
}

// TestTilePrefix: the first hashes of a tile are a tile.
func TestTilePrefix(t *testing.T) {
	whole := &tile{}
	for i := range uint64(tileWidth) {
		whole.append(testLeaf(i))
	}
	grown := &tile{}
	for w := range tileWidth + 1 {
		if *whole.prefix(w) != *grown || *newTile(whole.appendHashes(nil, w)) != *grown {
			t.Fatalf("the first %d hashes are not the tile of %d", w, w)
		}
		if w < tileWidth {
			grown.append(testLeaf(uint64(w)))
		}
	}
}

// TestTileVector is the tile of eight leaves in reliability.md 3.5.
func TestTileVector(t *testing.T) {
	var tree tileTree
	for _, s := range []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"} {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		tree.append(leafHash(b))
	}
	b := tree.open[0].appendHashes(nil, 8)
	if got := hash(sha256.Sum256(b)).String(); len(b) != 256 || got != "aea2f1bbb5140fd5f8eacb503fdf54c00c3d860c72588e40233addd416bc8f10" {
		t.Errorf("%d bytes with SHA-256 %s", len(b), got)
	}
	if !bytes.Equal(b[:32], tree.open[0].nodes[0][:]) {
		t.Error("hashes are not in order")
	}
}

func BenchmarkTileTreeAppend(b *testing.B) {
	var tree tileTree
	leaf := testLeaf(0)
	for b.Loop() {
		tree.append(leaf)
		if len(tree.full) > 0 {
			tree.full = tree.full[:0]
		}
	}
}

func BenchmarkNewTile(b *testing.B) {
	t := &tile{}
	for i := range uint64(tileWidth) {
		t.append(testLeaf(i))
	}
	hashes := t.appendHashes(nil, tileWidth)
	for b.Loop() {
		newTile(hashes)
	}
}
