package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"syscall"
)

// The tree over all entries, of which any root and any proof can be had at any
// time, at any size that ever was, from its hash tiles (merkle_tile.go). Those
// up to D are in ledger.db, the others in memory: the apply goroutine grows
// them with one node hash an entry, D's transaction writes what it passes. A
// restart reads the right edge back and reads no entry.
//
// # Bucket tiles
//
// Level l of the tree is the row of the hashes over 256^l entries each. A value
// is a block of a level: the hashes from 4096b on, as 16 tiles, the last block
// of a level up to where D is. Integers are big-endian.
//
//	key       1 level, 8 number b of the block
//	value     up to 16 tiles of 256 hashes, 8,196 bytes each; the last may have fewer
//	tile      32 a hash, then 4 CRC32C over 1 level, 8 number of the tile
//	          (16b + position), and the hashes
//
// meta "tree" (uint64) is the number of entries whose tiles are all there: D or
// more, for tiles of segments that are fetched are written before D moves.
// A block only gets longer, and its hashes never change, so every D finds its
// tree in the first hashes of each level, whatever follows them.
//
// One tile a value would waste a fifth: bbolt puts at least two values on a
// leaf page, which is a multiple of 4 KiB. Two blocks waste one part in 65,
// and 10 million entries are 1,230 pages to look at when the file is opened.

const (
	blockTiles    = 16
	blockHashes   = blockTiles * tileWidth
	tileValueSize = tileSize + 4
)

var (
	bucketTiles = []byte("tiles")
	keyTree     = []byte("tree")
)

// errBeyond says that a size, an entry or a tile is beyond the ledger.
var errBeyond = errors.New("beyond the ledger")

// root returns the root over the first size entries.
func (s *store) root(size uint64) (hash, error) {
	node, err := s.treeOf(size)
	if err != nil {
		return hash{}, err
	}
	return rootAt(size, node)
}

// inclusion returns the proof that entry seq is in the tree of the first size entries.
func (s *store) inclusion(seq, size uint64) ([]hash, error) {
	if seq >= size {
		return nil, fmt.Errorf("entry %d is not in a tree of %d: %w", seq, size, errBeyond)
	}
	node, err := s.treeOf(size)
	if err != nil {
		return nil, err
	}
	return inclusionProof(seq, size, node)
}

// consistency returns the proof that the tree of the first from entries grew
// into that of the first to.
func (s *store) consistency(from, to uint64) ([]hash, error) {
	node, err := s.treeOf(to)
	if err != nil {
		return nil, err
	}
	return consistencyProof(from, to, node)
}

// tile returns the bytes of a hash tile or an entry bundle. It may be partial
// although the full one exists: its width is that of an earlier size.
func (s *store) tile(id tileID) ([]byte, error) {
	recent := s.recentTiles()
	count := recent.size >> (tileHeight * max(id.level, 0))
	if id.width < 1 || id.width > tileWidth || id.index > count/tileWidth || id.index*tileWidth+uint64(id.width) > count {
		return nil, fmt.Errorf("tile %s: %w: the level has %d hashes", id.path(), errBeyond, count)
	}
	if id.level == entryTile {
		return s.bundle(id)
	}
	t, err := s.tileFrom(recent, id.level, id.index)
	if err != nil {
		return nil, err
	}
	return t.appendHashes(make([]byte, 0, tileSize), id.width), nil
}

// bundle returns the bytes of an entry bundle that is not beyond the ledger.
func (s *store) bundle(id tileID) ([]byte, error) {
	b := make([]byte, 0, 128*id.width) // most headers are shorter
	for seq, end := id.index*tileWidth, id.index*tileWidth+uint64(id.width); seq < end; {
		raws, err := s.headersFrom(seq, end)
		if err != nil {
			return nil, err
		}
		for _, raw := range raws {
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(raw))), raw...)
		}
		seq += uint64(len(raws))
	}
	return b, nil
}

// treeOf returns a reader of the tree of the first size entries.
func (s *store) treeOf(size uint64) (nodeReader, error) {
	recent := s.recentTiles()
	if size > recent.size {
		return nil, fmt.Errorf("size %d: %w: it has %d entries", size, errBeyond, recent.size)
	}
	return func(level int, index uint64) (hash, error) {
		tileLevel, tileIndex, sub, i := tileOf(level, index)
		t, err := s.tileFrom(recent, tileLevel, tileIndex)
		if err != nil {
			return hash{}, err
		}
		return t.node(sub, i), nil
	}, nil
}

// recentTiles returns the tiles in memory as of now; later ones do not change it.
func (s *store) recentTiles() *recentTiles {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.recent
	return &r
}

// tileFrom returns a tile from memory or from ledger.db.
func (s *store) tileFrom(recent *recentTiles, level int, index uint64) (*tile, error) {
	if t := recent.tile(level, index); t != nil {
		return t, nil
	}
	id := tileID{level, index, tileWidth}
	if t := s.tiles.get(id); t != nil {
		return t, nil
	}
	t, err := s.loadTile(recent, id)
	if err == nil {
		s.tiles.put(id, t)
	}
	return t, err
}

// loadTile returns a tile of ledger.db, built again if it is damaged.
func (s *store) loadTile(recent *recentTiles, id tileID) (*tile, error) {
	t, err := s.ledger.tile(id)
	if errors.Is(err, errCorrupt) {
		return s.rebuildTile(recent, id, err)
	}
	return t, err
}

// rebuildTile builds a damaged tile again from the level below it, or from the
// records of the segments, and stores it.
func (s *store) rebuildTile(recent *recentTiles, id tileID, cause error) (*tile, error) {
	s.o.logger.Warn("tile is damaged, building it again", "tile", id.path(), "error", cause)
	t := &tile{}
	for i := range uint64(id.width) {
		h, err := s.tileHash(recent, id.level, id.index*tileWidth+i)
		if err != nil {
			return nil, errors.Join(cause, err)
		}
		t.append(h)
	}
	return t, s.writeTiles(func(tx ledgerTx) error { return tx.replaceTile(id, t) })
}

// tileHash derives one hash of a level from what is below it.
func (s *store) tileHash(recent *recentTiles, level int, i uint64) (hash, error) {
	if level == 0 {
		e, err := s.headerAt(i)
		return e.leaf, err
	}
	t, err := s.tileFrom(recent, level-1, i)
	if err != nil {
		return hash{}, err
	}
	return t.root(), nil
}

// writeTiles changes bucket tiles in a transaction of its own. A crash before
// it leaves the old tiles, which are right or built again.
func (s *store) writeTiles(f func(ledgerTx) error) error {
	err := s.step("write tiles", func() error { return s.ledger.update(f) })
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		s.o.fatal(err)
	}
	return err
}

// openTree reads the tree at D. Entries whose tiles are not in ledger.db, all
// of them when an earlier version wrote it, are read from their segments once.
func (s *store) openTree(state *durableState) error {
	have, err := s.ledger.treeSize()
	if err != nil {
		return err
	}
	b, err := s.loadTree(min(have, state.at.size))
	if err == nil && b.tree.size < state.at.size {
		s.o.logger.Info("building the tiles of the tree", "from", b.tree.size, "to", state.at.size)
		err = s.growTo(b, state)
	}
	if err != nil {
		return err
	}
	s.tree, s.recent = b.tree, b.recent
	return nil
}

// loadTree reads the right edge of the tree of the first size entries.
func (s *store) loadTree(size uint64) (*treeBuilder, error) {
	b := &treeBuilder{written: size}
	b.tree.size, b.recent.size = size, size
	for level := range b.recent.levels {
		count := size >> (tileHeight * level)
		l := &b.recent.levels[level]
		l.first = firstOfBlock(count)
		for index := l.first; index*tileWidth < count; index++ {
			width := int(min(count-index*tileWidth, tileWidth))
			t, err := s.loadTile(&b.recent, tileID{level, index, width})
			if err != nil {
				return nil, err
			}
			l.tiles = append(l.tiles, t)
			if width < tileWidth {
				b.tree.open[level] = t
			}
		}
	}
	return b, nil
}

// recentTiles are the tiles in memory: of each level those of the block D ends
// in, and all behind it. The last may be open: nobody may read nodes beyond
// what size implies.
type recentTiles struct {
	size   uint64 // entries
	levels [tileLevels]struct {
		first uint64 // index of tiles[0]
		tiles []*tile
	}
}

// firstOfBlock returns the first tile of the block that hash count of a level is in.
func firstOfBlock(count uint64) uint64 { return count / blockHashes * blockTiles }

// tile returns a tile, nil if it is not in memory.
func (r *recentTiles) tile(level int, index uint64) *tile {
	l := &r.levels[level]
	if index < l.first || index-l.first >= uint64(len(l.tiles)) {
		return nil
	}
	return l.tiles[index-l.first]
}

// add takes over what t has grown.
func (r *recentTiles) add(t *tileTree) {
	for _, f := range t.full {
		r.put(f.level, f.index, f.tile)
	}
	t.full = nil
	for level, o := range t.open {
		if o != nil {
			r.put(level, t.size>>(tileHeight*(level+1)), o)
		}
	}
	r.size = t.size
}

// put adds a tile unless it is there already, as an open one was.
func (r *recentTiles) put(level int, index uint64, t *tile) {
	if l := &r.levels[level]; index == l.first+uint64(len(l.tiles)) {
		l.tiles = append(l.tiles, t)
	}
}

// drop forgets the tiles before the blocks that size ends in.
func (r *recentTiles) drop(size uint64) {
	for level := range r.levels {
		l := &r.levels[level]
		if first := firstOfBlock(size >> (tileHeight * level)); first > l.first {
			l.tiles, l.first = slices.Clone(l.tiles[first-l.first:]), first
		}
	}
}

// fork returns a builder that goes on from the first size entries, and leaves
// r as it is. D is not after size.
func (r *recentTiles) fork(size uint64) *treeBuilder {
	b := &treeBuilder{written: size}
	b.tree.size, b.recent.size = size, size
	for level := range r.levels {
		count := size >> (tileHeight * level)
		from, to := &r.levels[level], &b.recent.levels[level]
		to.first = from.first
		to.tiles = slices.Clone(from.tiles[:(count+tileWidth-1)/tileWidth-from.first])
		if width := int(count % tileWidth); width > 0 {
			last := to.tiles[len(to.tiles)-1].prefix(width)
			to.tiles[len(to.tiles)-1], b.tree.open[level] = last, last
		}
	}
	b.recent.drop(size)
	return b
}

// treeBuilder is a tree that grows apart from that of the apply goroutine.
type treeBuilder struct {
	tree    tileTree
	recent  recentTiles
	written uint64 // entries whose tiles are in ledger.db
}

// growTo appends the entries of the segments of state that b lacks.
func (s *store) growTo(b *treeBuilder, state *durableState) error {
	for _, info := range state.segments {
		if info.end() > b.tree.size {
			if err := s.growFrom(b, info); err != nil {
				return err
			}
		}
	}
	return s.flushTree(b)
}

// growFrom appends the entries of a segment file to b.
func (s *store) growFrom(b *treeBuilder, info segmentInfo) error {
	file, err := s.segment(info)
	if err != nil {
		return err
	}
	c, err := contentsOf(file, info)
	if err != nil {
		return err
	}
	return s.grow(b, c.leaves[b.tree.size-info.first:])
}

// grow appends leaves to b and writes the tiles. A crash leaves tiles beyond D,
// which are right, or the tree as it was; an error leaves them to be written
// with the next.
func (s *store) grow(b *treeBuilder, leaves []hash) error {
	for _, l := range leaves {
		b.tree.append(l)
	}
	b.recent.add(&b.tree)
	return s.flushTree(b)
}

// flushTree writes the tiles of b that are not in ledger.db.
func (s *store) flushTree(b *treeBuilder) error {
	if b.written == b.tree.size {
		return nil
	}
	err := s.writeTiles(func(t ledgerTx) error { return t.putTiles(&b.recent, b.written, b.tree.size) })
	if err == nil {
		b.written = b.tree.size
		b.recent.drop(b.written)
	}
	return err
}

// treeAhead is the tree over this node's D and the segments behind it that were
// fetched so far, without a gap.
type treeAhead struct {
	mu      sync.Mutex
	b       *treeBuilder
	waiting map[uint64]waitingSegment // that came before their turn, by first seq
	held    int                       // leaves in waiting
}

// waitingSegment is a fetched segment that is not in the tree yet.
type waitingSegment struct {
	info   segmentInfo
	leaves []hash // nil: to be read again, for want of room
}

// maxLeavesHeld bounds the leaves in waiting: 32 MiB.
const maxLeavesHeld = 1 << 20

// growAhead adds a fetched segment to the tree that install will need, once
// those before it are there, so that install has nothing left to read. For want
// of space nothing is written, and install tries again.
func (s *store) growAhead(info segmentInfo, leaves []hash) error {
	a := &s.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.b == nil || a.b.tree.size < s.durable.Load().at.size { // it goes on from an older D
		a.b = s.forkAtD()
	}
	if info.first != a.b.tree.size && a.held+len(leaves) > maxLeavesHeld {
		leaves = nil
	}
	a.add(waitingSegment{info, leaves})
	for next, ok := a.next(); ok; next, ok = a.next() {
		if err := s.growNext(a.b, next); err != nil && !errors.Is(err, syscall.ENOSPC) {
			a.add(next) // it could not be read, and takes its turn with what comes next
			return err
		}
	}
	return nil
}

// add lets a segment wait for its turn. a.mu must be held, as for next.
func (a *treeAhead) add(w waitingSegment) {
	if a.waiting == nil {
		a.waiting = make(map[uint64]waitingSegment)
	}
	a.held += len(w.leaves) - len(a.waiting[w.info.first].leaves)
	a.waiting[w.info.first] = w
}

// next takes the segment whose turn it is, and forgets those that are passed.
func (a *treeAhead) next() (waitingSegment, bool) {
	for first, w := range a.waiting {
		if first <= a.b.tree.size {
			a.held -= len(w.leaves)
			delete(a.waiting, first)
		}
		if first == a.b.tree.size {
			return w, true
		}
	}
	return waitingSegment{}, false
}

// growNext appends the entries of a segment whose turn it is.
func (s *store) growNext(b *treeBuilder, w waitingSegment) error {
	if w.leaves == nil {
		return s.growFrom(b, w.info)
	}
	return s.grow(b, w.leaves)
}

// treeFor returns the tree over the segments of state, whose files are here.
func (s *store) treeFor(state *durableState) (*treeBuilder, error) {
	a := &s.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.b
	if b == nil || b.tree.size > state.at.size || b.tree.size < s.durable.Load().at.size {
		b = s.forkAtD()
	}
	a.b, a.waiting, a.held = b, nil, 0 // who fails is asked again, and goes on
	return b, s.growTo(b, state)
}

// forgetAhead lets go of the tree that install has taken over.
func (s *store) forgetAhead() {
	s.ahead.mu.Lock()
	defer s.ahead.mu.Unlock()
	s.ahead.b = nil
}

// forkAtD returns a builder that goes on from D.
func (s *store) forkAtD() *treeBuilder {
	s.mu.RLock() // D's edge stays in memory meanwhile
	defer s.mu.RUnlock()
	return s.recent.fork(s.durable.Load().at.size)
}

// tileKey returns the key of the block a tile is in, and where in its value the
// tile begins.
func tileKey(level int, index uint64) (key []byte, at int) {
	return binary.BigEndian.AppendUint64([]byte{byte(level)}, index/blockTiles), int(index%blockTiles) * tileValueSize
}

// appendTile appends the first width hashes of a tile and their checksum.
func appendTile(b []byte, level int, index uint64, t *tile, width int) []byte {
	start := len(b)
	b = t.appendHashes(b, width)
	return binary.BigEndian.AppendUint32(b, tileCRC(level, index, b[start:]))
}

// tileCRC binds the bytes of a tile to its place.
func tileCRC(level int, index uint64, hashes []byte) uint32 {
	place := binary.BigEndian.AppendUint64([]byte{byte(level)}, index)
	return crc32.Update(crc32.Checksum(place, castagnoli), castagnoli, hashes)
}

// parseTile reads the tile id, which may be wider than that, from the value of its block.
func parseTile(value []byte, id tileID) (*tile, error) {
	_, at := tileKey(id.level, id.index)
	b := value[min(at, len(value)):]
	b = b[:min(tileValueSize, len(b))]
	n := len(b) - 4
	if n < len(hash{})*id.width || n%len(hash{}) != 0 {
		return nil, fmt.Errorf("tile %s: %w: found %d bytes in a block of %d", id.path(), errCorrupt, len(b), len(value))
	}
	if got, want := tileCRC(id.level, id.index, b[:n]), binary.BigEndian.Uint32(b[n:]); got != want {
		return nil, fmt.Errorf("tile %s: %w: CRC is %08x, the bytes give %08x", id.path(), errCorrupt, want, got)
	}
	return newTile(b[:len(hash{})*id.width]), nil
}

// tileCache keeps tiles of ledger.db that were read lately.
type tileCache struct {
	mu    sync.Mutex
	tiles map[tileID]*cachedTile
	ring  []*cachedTile
	hand  int // the next of ring to go, unless it was used
}

// cachedTile is a tile in the cache.
type cachedTile struct {
	id   tileID
	tile *tile
	used bool // since the hand passed
}

// cachedTiles bounds the cache: 16 KiB each.
const cachedTiles = 512

// get returns a tile that is in the cache, or nil.
func (c *tileCache) get(id tileID) *tile {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.tiles[id]
	if e == nil {
		return nil
	}
	e.used = true
	return e.tile
}

// put adds a tile, in the place of one that was not used for long.
func (c *tileCache) put(id tileID, t *tile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tiles == nil {
		c.tiles = make(map[tileID]*cachedTile, cachedTiles)
	}
	if c.tiles[id] != nil {
		return
	}
	e := &cachedTile{id: id, tile: t}
	c.tiles[id] = e
	if len(c.ring) < cachedTiles {
		c.ring = append(c.ring, e)
		return
	}
	for ; c.ring[c.hand].used; c.hand = (c.hand + 1) % cachedTiles {
		c.ring[c.hand].used = false
	}
	delete(c.tiles, c.ring[c.hand].id)
	c.ring[c.hand] = e
	c.hand = (c.hand + 1) % cachedTiles
}
