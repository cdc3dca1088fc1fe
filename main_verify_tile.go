package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
)

// The tree over all entries as the audit derives it, and the tiles and roots
// that others have of it.

// tileReaders is how many tiles are asked for at once.
const tileReaders = 8

// derivedTree is the tree over the entries audited so far.
type derivedTree struct {
	tileTree
	heads []treeHead // roots to compare with, by rising size
	tiles *tileCheck // tiles to compare with; nil for none
}

// append adds one leaf and compares what it completes.
func (d *derivedTree) append(leaf hash) error {
	d.tileTree.append(leaf)
	return d.compareNew()
}

// appendAll adds leaves up to the first difference. roots are those of the tiles
// that lie whole in them; one within which nothing is to be compared is added
// as a whole.
func (d *derivedTree) appendAll(leaves, roots []hash) error {
	for len(leaves) > 0 {
		n := 1
		if d.size%tileWidth == 0 && len(leaves) >= tileWidth {
			if !d.stopsBefore(d.size + tileWidth) {
				n = tileWidth
				d.compareTile(0, d.size/tileWidth, leaves[:n])
				d.appendTile(roots[0])
			}
			roots = roots[1:]
		}
		if n == 1 {
			d.tileTree.append(leaves[0])
		}
		if err := d.compareNew(); err != nil {
			return err
		}
		leaves = leaves[n:]
	}
	return nil
}

// stopsBefore reports whether something is to be compared between the present
// size and that one.
func (d *derivedTree) stopsBefore(size uint64) bool {
	return len(d.heads) > 0 && d.heads[0].size < size || d.tiles != nil && d.size < d.tiles.size && d.tiles.size < size
}

// compareNew compares what the tree has become with what others have of it.
func (d *derivedTree) compareNew() error {
	for _, f := range d.full {
		d.compareTile(f.level, f.index, f.nodes[:f.width])
	}
	d.full = d.full[:0]
	if d.tiles != nil && d.size == d.tiles.size {
		for level, o := range d.open {
			if o != nil && o.width > 0 {
				d.compareTile(level, d.size>>(tileHeight*(level+1)), o.nodes[:o.width])
			}
		}
	}
	return d.compareHeads()
}

// compareTile takes a tile, or its beginning, to compare if others can have it.
func (d *derivedTree) compareTile(level int, index uint64, want []hash) {
	if t := d.tiles; t != nil && index*tileWidth+uint64(len(want)) <= t.size>>(tileHeight*level) {
		t.jobs <- tileJob{tileID{level, index, len(want)}, want}
	}
}

// root returns the root over all leaves. What it is made of is in open tiles.
func (d *derivedTree) root() hash {
	root, err := rootAt(d.size, func(level int, index uint64) (hash, error) {
		tileLevel, _, sub, i := tileOf(level, index)
		return d.open[tileLevel].node(sub, i), nil
	})
	if err != nil {
		panic("main_verify: " + err.Error())
	}
	return root
}

// compareHeads compares the root with the heads of this size.
func (d *derivedTree) compareHeads() error {
	for ; len(d.heads) > 0 && d.heads[0].size == d.size; d.heads = d.heads[1:] {
		if root := d.root(); root != d.heads[0].root {
			return fmt.Errorf("%w: the checkpoint of %d entries has root %s, the entries give %s",
				errDifference, d.size, d.heads[0].root, root)
		}
	}
	return nil
}

// tileCheck compares tiles with those that read gives, several at once.
type tileCheck struct {
	size  uint64 // entries of the tree whose tiles can be read
	read  func(tileID) ([]byte, error)
	jobs  chan tileJob
	group sync.WaitGroup

	mu    sync.Mutex // guards what follows
	count int        // tiles that agree
	err   error      // that of the first tile that differs
	at    uint64     // first entry of that tile
}

// tileJob is one tile to compare.
type tileJob struct {
	id   tileID
	want []hash // nobody changes them any more
}

// newTileCheck starts to compare the tiles of a tree of size entries; wait ends it.
func newTileCheck(size uint64, read func(tileID) ([]byte, error)) *tileCheck {
	c := &tileCheck{size: size, read: read, jobs: make(chan tileJob, tileReaders)}
	for range tileReaders {
		c.group.Go(c.work)
	}
	return c
}

// work compares tiles until there are no more.
func (c *tileCheck) work() {
	for job := range c.jobs {
		got, err := c.read(job.id)
		if at := differentHash(got, job.want); err == nil && at >= 0 {
			err = fmt.Errorf("%w: tile %s: offset %d: not what the entries give", errDifference, job.id.path(), at)
		}
		c.note(job.id, err)
	}
}

// differentHash returns the first offset at which got is not want, or -1.
func differentHash(got []byte, want []hash) int {
	for i := range want {
		at := i * sha256.Size
		if n := prefixLength(got[min(at, len(got)):], want[i][:]); n < sha256.Size {
			return at + n
		}
	}
	if n := len(want) * sha256.Size; len(got) > n {
		return n
	}
	return -1
}

// prefixLength returns how many bytes a and b have in common at their beginning.
func prefixLength(a, b []byte) int {
	n := min(len(a), len(b))
	if bytes.Equal(a[:n], b[:n]) {
		return n
	}
	return firstDifference(a[:n], b[:n])
}

// note keeps the result for one tile.
func (c *tileCheck) note(id tileID, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := id.index << (tileHeight * (id.level + 1))
	if err == nil {
		c.count++
	} else if c.err == nil || at < c.at {
		c.err, c.at = err, at
	}
}

// wait returns how many tiles agreed, and the first difference.
func (c *tileCheck) wait() (int, error) {
	close(c.jobs)
	c.group.Wait()
	return c.count, c.err
}

// readTile returns the tiles of a server.
func (c *ledgerClient) readTile(ctx context.Context) func(tileID) ([]byte, error) {
	return func(id tileID) ([]byte, error) {
		return c.get(ctx, "/ledger/tile/"+id.path(), tileSize)
	}
}

// derivedRoots returns the root over leaves, the first of which is that of entry
// first, and those of the tiles of the whole tree that lie in them. As far as
// first allows, both have their lowest nodes in common.
func derivedRoots(first uint64, leaves []hash) (root hash, tiles []hash) {
	skip := -first % tileWidth // leaves before the first whole tile
	count := (max(uint64(len(leaves)), skip) - skip) / tileWidth
	row, width := leaves, uint64(tileWidth)
	for ; skip%2 == 0 && width > 1; skip, width = skip/2, width/2 {
		row = parents(nil, row)
	}
	var group sync.WaitGroup
	group.Go(func() { root = topOf(slices.Clone(row)) })
	tiles = make([]hash, count)
	scratch := make([]hash, tileWidth)
	for i := range tiles {
		copy(scratch, row[skip+uint64(i)*width:][:width])
		tiles[i] = topOf(scratch[:width])
	}
	group.Wait()
	return root, tiles
}

// topOf returns the root over a row of nodes, at least one, which it overwrites.
func topOf(row []hash) hash {
	for len(row) > 1 {
		row = parents(row[:0], row)
	}
	return row[0]
}

// parents appends the parents of the nodes of a row to dst, which may be the
// beginning of the row. A lone last node goes up as it is: that is how RFC 6962
// splits a tree.
func parents(dst, row []hash) []hash {
	if dst == nil {
		dst = make([]hash, 0, len(row)/2+1)
	}
	i := 0
	for ; i+1 < len(row); i += 2 {
		dst = append(dst, nodeHash(row[i], row[i+1]))
	}
	return append(dst, row[i:]...)
}
