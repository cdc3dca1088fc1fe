package main

import (
	"bytes"
	"context"
	"fmt"
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
	if len(d.full) > 0 {
		if d.tiles != nil {
			for _, f := range d.full {
				d.tiles.compare(f.level, f.index, f.tile, f.width)
			}
		}
		d.full = d.full[:0]
	}
	if d.tiles != nil && d.size == d.tiles.size {
		d.tiles.compareEdge(&d.tileTree)
	}
	return d.compareHeads()
}

// appendAll adds leaves up to the first difference.
func (d *derivedTree) appendAll(leaves []hash) error {
	for _, leaf := range leaves {
		if err := d.append(leaf); err != nil {
			return err
		}
	}
	return nil
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
	want []byte
}

// newTileCheck starts to compare the tiles of a tree of size entries; wait ends it.
func newTileCheck(size uint64, read func(tileID) ([]byte, error)) *tileCheck {
	c := &tileCheck{size: size, read: read, jobs: make(chan tileJob, tileReaders)}
	for range tileReaders {
		c.group.Go(c.work)
	}
	return c
}

// compare takes a tile whose first width hashes are known, if others can have it.
func (c *tileCheck) compare(level int, index uint64, t *tile, width int) {
	if width > 0 && index*tileWidth+uint64(width) <= c.size>>(tileHeight*level) {
		c.jobs <- tileJob{tileID{level, index, width}, t.appendHashes(nil, width)}
	}
}

// compareEdge takes the partial tiles of the whole tree.
func (c *tileCheck) compareEdge(t *tileTree) {
	for level, o := range t.open {
		if o != nil {
			c.compare(level, t.size>>(tileHeight*(level+1)), o, o.width)
		}
	}
}

// work compares tiles until there are no more.
func (c *tileCheck) work() {
	for job := range c.jobs {
		got, err := c.read(job.id)
		if err == nil && !bytes.Equal(got, job.want) {
			err = fmt.Errorf("%w: tile %s: offset %d: not what the entries give", errDifference, job.id.path(), prefixLength(got, job.want))
		}
		c.note(job.id, err)
	}
}

// prefixLength returns how many bytes a and b have in common at their beginning.
func prefixLength(a, b []byte) int {
	n := min(len(a), len(b))
	if at := firstDifference(a[:n], b[:n]); at >= 0 {
		return at
	}
	return n
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
