package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"
)

// leavesOf reads the leaf hash of every entry of a store.
func leavesOf(t testing.TB, s *store) []hash {
	t.Helper()
	var leaves []hash
	for seq := range s.size() {
		e, err := s.headerAt(seq)
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leafHash(e.raw))
	}
	return leaves
}

// checkTree compares roots and proofs of a store with the leaves they are of,
// at sizes that are step apart, and its tiles.
func checkTree(t testing.TB, s *store, step int) {
	t.Helper()
	leaves := leavesOf(t, s)
	var tree compactTree
	roots := []hash{tree.root()}
	for _, l := range leaves {
		tree.append(l)
		roots = append(roots, tree.root())
	}
	last := len(leaves)
	for size := last; size >= 0; size -= step {
		if got, err := s.root(uint64(size)); err != nil || got != roots[size] {
			t.Fatalf("root of %d is %s, want %s, error %v", size, got, roots[size], err)
		}
		for seq := size - 1; seq >= 0; seq -= step {
			proof, err := s.inclusion(uint64(seq), uint64(size))
			if err == nil {
				err = checkInclusion(leaves[seq], uint64(seq), uint64(size), proof, roots[size])
			}
			if err != nil {
				t.Fatalf("inclusion of %d in %d: %v", seq, size, err)
			}
		}
		proof, err := s.consistency(uint64(size), uint64(last))
		if err == nil {
			err = checkConsistency(uint64(size), uint64(last), proof, roots[size], roots[last])
		}
		if err != nil {
			t.Fatalf("consistency of %d with %d: %v", size, last, err)
		}
	}
	checkTiles(t, s, leaves)
}

// checkTiles compares every tile, at some widths, with the leaves.
func checkTiles(t testing.TB, s *store, leaves []hash) {
	t.Helper()
	for level, row := 0, leaves; len(row) > 0; level++ {
		var above []hash
		for index := range (len(row) + tileWidth - 1) / tileWidth {
			own := row[index*tileWidth : min((index+1)*tileWidth, len(row))]
			for _, width := range []int{1, (len(own) + 1) / 2, len(own)} {
				id := tileID{level, uint64(index), width}
				got, err := s.tile(id)
				var want []byte
				for _, h := range own[:width] {
					want = append(want, h[:]...)
				}
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("tile %s has %d bytes, %v", id.path(), len(got), err)
				}
			}
			if len(own) == tileWidth {
				above = append(above, rootOf(own))
			}
		}
		row = above
	}
}

// fillLedger appends count entries in one command.
func (h *harness) fillLedger(count int) {
	h.t.Helper()
	requests := make([]*request, count)
	for i := range requests {
		requests[i] = putRequest(fmt.Sprint("key-", i%1000), "")
	}
	h.do(requests...)
}

// TestStoreTree: every root, proof and tile, pending, sealing, sealed and after
// a restart.
func TestStoreTree(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if got, err := h.store.root(0); err != nil || got != emptyRoot {
		t.Errorf("root of nothing is %s, %v", got, err)
	}
	for _, count := range []int{1, 2, 252, 1, 1, 300, 3600} {
		h.fillLedger(count)
		checkTree(t, h.store, 197)
		h.reopen()
		checkTree(t, h.store, 197)
		h.sealNow()
		checkTree(t, h.store, 197)
		h.log = nil
		h.reopen()
		checkTree(t, h.store, 197)
	}
	checkStore(t, h.store)
}

// TestStoreTreeLarge crosses a tile of level 1 and blocks of level 0, and keeps
// in memory what is behind D and no more. Another implementation reads the
// tiles and proves from them what we prove.
func TestStoreTreeLarge(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, count := range []int{4095, 1, 1, 61_438, 1, 1, 1, 4096} {
		h.fillLedger(count)
		h.sealNow()
	}
	h.fillLedger(300)
	leaves := leavesOf(t, h.store)
	for range 2 {
		for _, size := range []int{1, 255, 256, 257, 4096, 65_535, 65_536, 65_537, len(leaves)} {
			root := rootOf(leaves[:size])
			if got, err := h.store.root(uint64(size)); err != nil || got != root {
				t.Errorf("root of %d is %s, %v", size, got, err)
			}
			checkInterop(t, h.store, leaves, size, root)
		}
		checkTiles(t, h.store, leaves)
		r := h.store.recentTiles()
		if first := r.levels[0].first; first != 17*blockTiles || len(r.levels[0].tiles) != (len(leaves)+255)/256-int(first) {
			t.Errorf("in memory are %d tiles from %d on", len(r.levels[0].tiles), first)
		}
		if n := len(h.store.tiles.tiles); n == 0 || n > cachedTiles {
			t.Errorf("%d tiles are cached", n)
		}
		h.reopen()
	}
}

// TestTreeBeyond: sizes, entries and tiles that are not there yet or never will be.
func TestTreeBeyond(t *testing.T) {
	h := newHarness(t)
	h.fillLedger(300)
	mark := h.store.mark()
	h.store.stage(&header{op: opPut, version: 1, prev: noSeq, key: []byte("staged")}, nil)
	s := h.store
	for _, size := range []uint64{301, 1 << 40, 1<<64 - 1} {
		_, err := s.root(size)
		wantError(t, err, errBeyond, "it has 300 entries")
		_, err = s.inclusion(1, size)
		wantError(t, err, errBeyond)
		_, err = s.consistency(1, size)
		wantError(t, err, errBeyond)
	}
	_, err := s.inclusion(300, 300)
	wantError(t, err, errBeyond, "entry 300 is not in a tree of 300")
	_, err = s.consistency(5, 4)
	wantError(t, err, errNoProof)
	for _, id := range []tileID{
		{0, 0, 0}, {0, 0, -1}, {0, 0, 257}, {0, 1, 45}, {0, 1, 256}, {0, 2, 1}, {0, 1<<64 - 1, 256}, {0, 1 << 56, 1},
		{1, 0, 2}, {1, 1, 1}, {2, 0, 1}, {7, 0, 1}, {8, 0, 1}, {63, 0, 1}, {63, 1<<64 - 1, 256}, {entryTile, 1, 45}, {entryTile, 2, 1},
	} {
		_, err := s.tile(id)
		wantError(t, err, errBeyond)
	}
	h.store.unstage(mark)
	checkTree(t, s, 13)
}

// TestEntryBundle: uint16 length and canonical header, from memory and disk.
func TestEntryBundle(t *testing.T) {
	h := newHarness(t)
	h.fillLedger(100)
	h.sealNow() // a bundle may lie in two segments
	h.fillLedger(158)
	for range 2 {
		for _, id := range []tileID{{entryTile, 0, 256}, {entryTile, 0, 255}, {entryTile, 1, 1}, {entryTile, 1, 2}} {
			b, err := h.store.tile(id)
			if err != nil {
				t.Fatal(err)
			}
			for i := range uint64(id.width) {
				n := int(binary.BigEndian.Uint16(b))
				e, err := h.store.headerAt(id.index*tileWidth + i)
				if err != nil || !bytes.Equal(b[2:2+n], e.raw) || leafHash(b[2:2+n]) != e.leaf {
					t.Fatalf("bundle %s: entry %d is %x, %v", id.path(), i, b[2:2+n], err)
				}
				b = b[2+n:]
			}
			if len(b) > 0 {
				t.Errorf("bundle %s: %d bytes follow", id.path(), len(b))
			}
		}
		h.sealNow()
	}
}

// TestTreeMeanwhile asks for proofs while entries are written and sealed.
func TestTreeMeanwhile(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.fillLedger(100)
	s := h.store
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for r := range uint64(3) {
		readers.Go(func() {
			old, oldRoot := uint64(0), emptyRoot
			for n := r; ; n += 7919 {
				select {
				case <-stop:
					return
				default:
				}
				size := s.size()
				root, err := s.root(size)
				proof, perr := s.inclusion(n%size, size)
				e, eerr := s.headerAt(n % size)
				grown, gerr := s.consistency(old, size)
				err = errors.Join(err, perr, eerr, gerr)
				if err == nil {
					err = errors.Join(checkInclusion(e.leaf, n%size, size, proof, root), checkConsistency(old, size, grown, oldRoot, root))
				}
				if err != nil {
					t.Error(err)
					return
				}
				old, oldRoot = size, root
			}
		})
	}
	for i := range 30 {
		h.fillLedger(301)
		if i%3 == 0 {
			h.seal()
		}
	}
	h.settle()
	close(stop)
	readers.Wait()
	checkTree(t, s, 997)
}

// withoutTree makes the ledger.db in dir one of a version before the tree.
func withoutTree(t *testing.T, dir string) {
	t.Helper()
	changeTiles(t, dir, func(tx ledgerTx) error {
		return errors.Join(tx.tx.DeleteBucket(bucketTiles), tx.tx.Bucket(bucketMeta).Delete(keyTree))
	})
}

// changeTiles changes the ledger.db in dir, whose store is closed.
func changeTiles(t *testing.T, dir string, f func(ledgerTx) error) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, ledgerName), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := (&ledgerFile{db}).update(f); err != nil {
		t.Fatal(err)
	}
}

// TestTreeOfOldLedger builds the tiles of a ledger.db that has none, also when
// the first try ends half-way.
func TestTreeOfOldLedger(t *testing.T) {
	t.Parallel()
	want := newHarness(t)
	for _, count := range []int{100, 200, 5000} {
		want.fillLedger(count)
		want.sealNow()
	}
	want.close()
	for _, step := range []string{"", "before write tiles", "after write tiles"} {
		for n := range int32(3) {
			if n > 0 && step == "" {
				continue
			}
			h := newHarness(t)
			h.close()
			h.dir = copyDir(t, want.dir)
			withoutTree(t, h.dir)
			h.fault = failAt(step, n+1, errCrash)
			if err := h.tryOpen(); step != "" {
				wantError(t, err, errCrash, "write tiles")
				h.fault = nil
				h.open()
			} else if err != nil {
				t.Fatal(err)
			}
			checkTree(t, h.store, 997)
			h.reopen()
			if size, err := h.store.ledger.treeSize(); err != nil || size != 5300 {
				t.Errorf("ledger.db has the tree of %d, %v", size, err)
			}
			checkTree(t, h.store, 997)
		}
	}
}

// TestTreeCrash ends the process around the transaction of D and at others.
func TestTreeCrash(t *testing.T) {
	t.Parallel()
	want := newHarness(t)
	for range 5 {
		want.fillLedger(1000)
		want.sealNow()
	}
	want.fillLedger(10)
	for _, step := range []string{"after write segment", "after write run", "before move checkpoint", "after move checkpoint"} {
		h := newHarness(t)
		for _, n := range []int32{1, 2} {
			wantError(t, h.crash(want, failAt(step, n, errCrash)), errCrash)
		}
		h.open()
		h.settle()
		checkTree(t, h.store, 997)
		h.reopen()
		checkTree(t, h.store, 997)
	}
}

// TestTreeInstall: a follower that fetches segments has the tiles when D moves,
// whatever it had before, in which order they came and where a crash was.
func TestTreeInstall(t *testing.T) {
	t.Parallel()
	leader := newHarness(t)
	for range 4 {
		leader.fillLedger(1100)
		leader.sealNow()
	}
	snap := leader.snapshot()
	for own, steps := range [][]string{
		{""},
		{"", "before write tiles", "after write tiles", "before install checkpoint", "after install checkpoint"},
		{"", "before install checkpoint"},
	} {
		for _, step := range steps {
			h := newHarness(t)
			h.log = slices.Clone(leader.log[:2*own])
			h.reopen()
			h.settle()
			h.fault = failAt(step, 1, errCrash)
			h.reopen()
			if err := h.restore(snap, leader); step != "" {
				wantError(t, err, errCrash)
				h.fault, h.log = nil, nil
				h.reopen()
				if err := h.restore(snap, leader); err != nil {
					t.Fatal(err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			checkTree(t, h.store, 997)
			h.log, h.index = nil, leader.index
			h.fillLedger(300)
			h.sealNow()
			h.log = nil
			h.reopen()
			checkTree(t, h.store, 997)
			checkStore(t, h.store)
		}
	}
}

// TestTreeInstallUnprepared: a segment that was fetched before its turn waits for
// it, or is read when D moves, and tiles written ahead of D are of use to a node that
// goes on by itself.
func TestTreeInstallUnprepared(t *testing.T) {
	t.Parallel()
	leader := newHarness(t)
	for range 4 {
		leader.fillLedger(1500)
		leader.sealNow()
	}
	segments := leader.store.durable.Load().segments
	h := newHarness(t)
	fetched := make(map[uint64]fetchedSegment)
	for _, i := range []int{1, 0, 3} {
		f, err := h.store.fetchSegment(segments[i], copyFile(leader.store.segmentPath(segments[i])))
		if err != nil {
			t.Fatal(err)
		}
		fetched[f.info.first] = f
	}
	if size, err := h.store.ledger.treeSize(); err != nil || size != 3000 {
		t.Errorf("tiles of %d entries are there, %v", size, err)
	}
	h.log, h.index, h.clock = leader.log[:1], 1, leader.clock
	h.reopen()
	h.sealNow() // writes less than is there
	checkTree(t, h.store, 997)
	if err := h.restore(leader.snapshot(), leader); err != nil {
		t.Fatal(err)
	}
	checkTree(t, h.store, 997)
	h.log = nil
	h.reopen()
	checkTree(t, h.store, 997)
}

// TestTreeDamaged flips a byte of each tile in ledger.db, cuts blocks and
// removes them: what is damaged is built again and is right, and stays so.
func TestTreeDamaged(t *testing.T) {
	t.Parallel()
	small, large := newHarness(t), newHarness(t)
	leaves := make(map[*harness][]hash)
	many := 66_000
	if raceDetector {
		many = 10_000
	}
	for h, count := range map[*harness]int{small: 9_000, large: many} {
		h.fillLedger(count)
		h.sealNow()
		leaves[h] = leavesOf(t, h.store)
		h.close()
	}
	harm := map[string]func(k, v []byte) []byte{
		"flipped": func(k, v []byte) []byte {
			for at := 0; at < len(v); at += tileValueSize {
				v[at+int(k[8])%100] ^= 4
			}
			return v
		},
		"checksum flipped": func(k, v []byte) []byte { v[len(v)-1] ^= 1; return v },
		"cut":              func(k, v []byte) []byte { return v[:len(v)/2] },
		"empty":            func(k, v []byte) []byte { return v[:0] },
		"missing":          func(k, v []byte) []byte { return nil },
	}
	for what, f := range harm {
		for _, levels := range [][]byte{{0}, {1}, {0, 1, 2}} {
			good := small
			if what == "missing" && len(levels) == 3 {
				good = large
			}
			t.Run(fmt.Sprint(what, levels), func(t *testing.T) {
				h := newHarness(t)
				h.close()
				h.dir, h.index = copyDir(t, good.dir), good.index
				changeTiles(t, h.dir, func(tx ledgerTx) error { return damageBlocks(tx.tx.Bucket(bucketTiles), levels, f) })
				h.open()
				checkTiles(t, h.store, leaves[good])
				h.reopen()
				checkTiles(t, h.store, leaves[good])
				h.fillLedger(10)
				h.sealNow()
				h.log = nil
				h.reopen()
				wantTiles(t, h.store)
			})
		}
	}
}

// damageBlocks changes the blocks of some levels, half of those of level 0.
func damageBlocks(b *bbolt.Bucket, levels []byte, f func(k, v []byte) []byte) error {
	changed := make(map[string][]byte)
	b.ForEach(func(k, v []byte) error {
		if n := binary.BigEndian.Uint64(k[1:]); slices.Contains(levels, k[0]) && (k[0] > 0 || n%2 == 1) {
			changed[string(k)] = f(k, slices.Clone(v))
		}
		return nil
	})
	var err error
	for k, v := range changed {
		if v == nil {
			err = errors.Join(err, b.Delete([]byte(k)))
		} else {
			err = errors.Join(err, b.Put([]byte(k), v))
		}
	}
	return err
}

// wantTiles fails unless every tile at D is sound in ledger.db.
func wantTiles(t *testing.T, s *store) {
	t.Helper()
	for level := range tileLevels {
		count := s.durable.Load().at.size >> (tileHeight * level)
		for index := uint64(0); index*tileWidth < count; index++ {
			if _, err := s.ledger.tile(tileID{level, index, int(min(count-index*tileWidth, tileWidth))}); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestTreeDamagedEntry: a tile that needs a damaged entry cannot be built.
func TestTreeDamagedEntry(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.fillLedger(5000)
	h.sealNow()
	info := h.store.durable.Load().segments[0]
	path := h.store.segmentPath(info)
	f, err := h.store.segment(info)
	if err != nil {
		t.Fatal(err)
	}
	pl, err := f.placeOf(300)
	if err != nil {
		t.Fatal(err)
	}
	damage(t, path, int64(f.recordsAt)+int64(pl.offset)+30)
	h.close()
	changeTiles(t, h.dir, func(tx ledgerTx) error {
		return damageBlocks(tx.tx.Bucket(bucketTiles), []byte{0}, func(k, v []byte) []byte { return nil })
	})
	h.open()
	if _, err := h.store.tile(tileID{0, 1, 256}); err != nil { // block 0 is sound
		t.Fatal(err)
	}
	h.close()
	changeTiles(t, h.dir, func(tx ledgerTx) error {
		key, _ := tileKey(0, 0)
		return tx.tx.Bucket(bucketTiles).Delete(key)
	})
	h.open()
	_, err = h.store.tile(tileID{0, 1, 256})
	wantError(t, err, errCorrupt, "tile 0/001", "entry 300")
	if _, err := h.store.tile(tileID{0, 2, 256}); err != nil {
		t.Error(err)
	}
}

// goldenBlock is the block in testdata/tiles-1.bin: level 1, block 2, one full
// tile and one of three hashes, SHA-256 of the numbers from 0 as uint32.
func goldenBlock() (value []byte, tiles [2]*tile) {
	for n, width := range []int{tileWidth, 3} {
		tiles[n] = &tile{}
		for i := range width {
			tiles[n].append(sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(n*tileWidth+i))))
		}
		value = appendTile(value, 1, uint64(2*blockTiles+n), tiles[n], width)
	}
	return value, tiles
}

func TestTileValueGolden(t *testing.T) {
	value, tiles := goldenBlock()
	wantGolden(t, value, "tiles-1.bin")
	for n, want := range tiles {
		if got, err := parseTile(value, tileID{1, uint64(2*blockTiles + n), want.width}); err != nil || *got != *want {
			t.Errorf("tile %d: %v", n, err)
		}
	}
	if key, at := tileKey(1, 33); !bytes.Equal(key, []byte{1, 0, 0, 0, 0, 0, 0, 0, 2}) || at != 8196 {
		t.Errorf("key is %x, place %d", key, at)
	}
	if _, err := parseTile(value, tileID{1, 33, 2}); err != nil {
		t.Errorf("narrower than it is: %v", err)
	}
	for _, id := range []tileID{{1, 33, 4}, {1, 34, 1}, {1, 31, 256}, {1, 16, 256}, {0, 32, 256}, {1, 47, 1}} {
		_, err := parseTile(value, id)
		wantError(t, err, errCorrupt, "tile "+id.path())
	}
}

func TestTileValueCutAndFlipped(t *testing.T) {
	t.Parallel()
	b := golden(t, "tiles-1.bin")
	at := len(b) - 100 // the last tile
	eachCut(b[at:], func(cut []byte) {
		_, err := parseTile(slices.Concat(b[:at], cut), tileID{1, 33, 3})
		wantError(t, err, errCorrupt, "tile 1/033.p/3")
	})
	eachFlip(b, func(flipped []byte, i int) {
		_, first := parseTile(flipped, tileID{1, 32, 256})
		_, second := parseTile(flipped, tileID{1, 33, 3})
		if i >= at {
			first, second = second, first
		}
		wantError(t, first, errCorrupt, "CRC")
		if second != nil {
			t.Fatalf("byte %d flipped: the other tile: %v", i, second)
		}
	})
}

func FuzzTileValue(f *testing.F) {
	value, _ := goldenBlock()
	f.Add(value, uint8(1), uint64(33), 3)
	f.Add(value[tileValueSize:], uint8(1), uint64(32), 1)
	f.Fuzz(func(t *testing.T, b []byte, level uint8, index uint64, width int) {
		id := tileID{int(level % tileLevels), index, 1 + int(uint(width)%tileWidth)}
		tile, err := parseTile(b, id)
		if err != nil {
			wantError(t, err, errCorrupt)
			return
		}
		if tile.width != id.width {
			t.Fatalf("tile %s has %d hashes", id.path(), tile.width)
		}
	})
}

// TestTileCache: the cache is bounded and keeps what is used.
func TestTileCache(t *testing.T) {
	var c tileCache
	hot := tileID{1, 0, tileWidth}
	c.put(hot, &tile{})
	for i := range uint64(3 * cachedTiles) {
		c.put(tileID{0, i, tileWidth}, &tile{width: int(i)})
		if c.get(hot) == nil {
			t.Fatalf("lost the tile in use after %d others", i)
		}
		if i%2 == 0 {
			continue
		}
		if got := c.get(tileID{0, i, tileWidth}); got == nil || got.width != int(i) {
			t.Fatalf("tile %d is not the one put", i)
		}
	}
	if len(c.tiles) != cachedTiles || len(c.ring) != cachedTiles {
		t.Errorf("%d tiles in %d places", len(c.tiles), len(c.ring))
	}
}

// sumdbTiles lets golang.org/x/mod/sumdb/tlog read the tiles of a store.
type sumdbTiles struct{ *store }

func (s sumdbTiles) Height() int                     { return tileHeight }
func (s sumdbTiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (s sumdbTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, t := range tiles {
		id, err := parseTilePath(strings.TrimPrefix(t.Path(), fmt.Sprintf("tile/%d/", tileHeight)))
		if err != nil {
			return nil, err
		}
		b, err := s.tile(id)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// checkInterop compares inclusion proofs in the first size entries, whose root
// is root, with those that tlog takes from our tiles.
func checkInterop(t *testing.T, s *store, leaves []hash, size int, root hash) {
	t.Helper()
	n := int64(size)
	theirs := tlog.TileHashReader(tlog.Tree{N: n, Hash: tlog.Hash(root)}, sumdbTiles{s}) // checks every tile against the root
	for _, seq := range []int64{0, n / 3, n - 1} {
		proof, err := tlog.ProveRecord(n, seq, theirs)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := s.inclusion(uint64(seq), uint64(size))
		if err != nil || !slices.EqualFunc(proof, ours, func(a tlog.Hash, b hash) bool { return hash(a) == b }) {
			t.Errorf("inclusion of %d in %d: %v, theirs has %d hashes, ours %d", seq, size, err, len(proof), len(ours))
		}
		if err := checkInclusion(leaves[seq], uint64(seq), uint64(size), ours, root); err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkBundle reads a full entry bundle from a segment file.
func BenchmarkBundle(b *testing.B) {
	h := newHarness(b)
	for i := range 3 * tileWidth {
		h.put(fmt.Sprintf("some-key-%d", i), "v")
	}
	h.sealNow()
	h.settle()
	for b.Loop() {
		if _, err := h.store.tile(tileID{entryTile, 1, tileWidth}); err != nil {
			b.Fatal(err)
		}
	}
}
