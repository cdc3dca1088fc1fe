package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Hash tiles of height 8 after C2SP tlog-tiles. Hash i of tile n of level l is
// the root over the 256^l entries from (256n+i) * 256^l on; a tile is up to 256
// such hashes, 32 bytes each, one after the other. A tile is full or, at the
// right edge of the tree, partial; only full tiles have a hash in the level
// above. A tree of 70,000 entries has 273 full tiles and one of 112 hashes in
// level 0, 1 and one of 17 in level 1, one of 1 hash in level 2.
//
// An entry bundle holds the leaves of a tile of level 0: for each a uint16
// length, big-endian, and its bytes (the canonical header, segment.go).
//
// The path of a tile is <level>/<index>[.p/<width>], that of a bundle
// entries/<index>[.p/<width>]; the index stands in groups of three digits, all
// but the last with an x before: 0/x001/x234/067, entries/000.p/8.

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight         // hashes of a full tile
	tileSize   = tileWidth * sha256.Size // bytes of a full tile
	tileLevels = 64 / tileHeight         // 2^64 entries need no more
	entryTile  = -1                      // level of an entry bundle
)

// tileID names a tile or an entry bundle.
type tileID struct {
	level int    // from 0, or entryTile
	index uint64 // within the level
	width int    // hashes or entries: tileWidth if it is full
}

// errTilePath says that a text is not the path of a tile.
var errTilePath = errors.New("not the path of a tile")

// path returns the path of a tile.
func (id tileID) path() string {
	level, index, part := "entries", fmt.Sprintf("%03d", id.index%1000), ""
	if id.level != entryTile {
		level = strconv.Itoa(id.level)
	}
	for n := id.index / 1000; n > 0; n /= 1000 {
		index = fmt.Sprintf("x%03d/%s", n%1000, index)
	}
	if id.width < tileWidth {
		part = ".p/" + strconv.Itoa(id.width)
	}
	return level + "/" + index + part
}

// parseTilePath reads what path writes, nothing else.
func parseTilePath(s string) (tileID, error) {
	id := tileID{level: entryTile, width: tileWidth}
	level, rest, _ := strings.Cut(s, "/")
	index, width, partial := strings.Cut(rest, ".p/")
	digits := strings.NewReplacer("x", "", "/", "").Replace(index)
	var errs [3]error
	if level != "entries" {
		id.level, errs[0] = strconv.Atoi(level)
	}
	id.index, errs[1] = strconv.ParseUint(digits, 10, 64)
	if partial {
		id.width, errs[2] = strconv.Atoi(width)
	}
	if errors.Join(errs[:]...) != nil || id.level < entryTile || id.level > 63 || id.width < 1 || id.path() != s {
		return tileID{}, fmt.Errorf("%w: %.80q", errTilePath, s)
	}
	return id, nil
}

// tile is a tile with its inner nodes. They are appended and never change, so
// whoever knows from elsewhere that a node is there may read it while others
// are appended; width is for the one who appends.
type tile struct {
	width int
	nodes [2*tileWidth - 1]hash // row by row: the hashes, their parents, ..., the root
}

// tileRow returns where in nodes the row begins that is sub levels above the hashes.
func tileRow(sub int) int { return 2*tileWidth - 2*tileWidth>>sub }

// newTile returns a tile of the hashes in b, a multiple of 32 bytes.
func newTile(b []byte) *tile {
	t := &tile{}
	for ; len(b) > 0; b = b[sha256.Size:] {
		t.append(hash(b))
	}
	return t
}

// append adds one hash; it costs one node hash on average.
func (t *tile) append(h hash) {
	i := t.width
	t.width++
	t.nodes[i] = h
	for sub := 0; i&1 == 1; sub++ {
		row := tileRow(sub)
		h = nodeHash(t.nodes[row+i-1], t.nodes[row+i])
		i >>= 1
		t.nodes[tileRow(sub+1)+i] = h
	}
}

// node returns node i of those sub levels above the hashes.
func (t *tile) node(sub int, i uint64) hash { return t.nodes[tileRow(sub)+int(i)] }

// root returns the root of a full tile, its hash in the level above.
func (t *tile) root() hash { return t.nodes[tileRow(tileHeight)] }

// appendHashes appends the bytes of the first width hashes.
func (t *tile) appendHashes(b []byte, width int) []byte {
	for i := range t.nodes[:width] {
		b = append(b, t.nodes[i][:]...)
	}
	return b
}

// prefix returns a copy of the first width hashes with their nodes.
func (t *tile) prefix(width int) *tile {
	c := &tile{width: width}
	for sub := 0; width>>sub > 0; sub++ {
		copy(c.nodes[tileRow(sub):], t.nodes[tileRow(sub):][:width>>sub])
	}
	return c
}

// tileOf returns the tile that has the root of the complete subtree over the
// leaves [index<<level, (index+1)<<level), and where in it: node i of those sub
// levels above its hashes.
func tileOf(level int, index uint64) (tileLevel int, tileIndex uint64, sub int, i uint64) {
	sub = level % tileHeight
	return level / tileHeight, index >> (tileHeight - sub), sub, index & (tileWidth>>sub - 1)
}

// tileTree grows a tree: it has the open tile of each level and gives those
// that are full to its owner. Its zero value is the empty tree.
type tileTree struct {
	size uint64 // leaves
	open [tileLevels]*tile
	full []fullTile // full tiles the owner has not taken yet, in order within each level
}

// fullTile is a tile that will not change any more.
type fullTile struct {
	level int
	index uint64
	*tile
}

// append adds one leaf; it costs one node hash on average.
func (t *tileTree) append(leaf hash) {
	t.size++
	t.add(0, leaf)
}

// appendTile adds the leaves of a whole tile, of which root is the root; the
// tree must have whole tiles only. That tile does not get into full.
func (t *tileTree) appendTile(root hash) {
	t.size += tileWidth
	t.add(1, root)
}

// add puts h, the last node of its level, into the open tile of that level, and
// its root into the one above if it is full then.
func (t *tileTree) add(level int, h hash) {
	for ; ; level++ {
		if t.open[level] == nil {
			t.open[level] = &tile{}
		}
		o := t.open[level]
		o.append(h)
		if o.width < tileWidth {
			return
		}
		t.full = append(t.full, fullTile{level, t.size>>(tileHeight*(level+1)) - 1, o})
		t.open[level] = nil
		h = o.root()
	}
}
