package main

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// ledger.db is a bbolt file with seven buckets. bbolt does not checksum its data
// pages, so every value ends in a CRC32C over the key and the value before it,
// and store_bolt.go checks the pages when the file is opened.
// Integers are big-endian.
//
//	meta      "format"      uint32: 1
//	          "checkpoint"  the durable checkpoint D (see checkpoint.append)
//	          "keys"        the keys that sign the ledger as of D (fsm_key.go);
//	                        absent while there is none
//	          "tree"        uint64: entries whose tiles are here (store_tree.go)
//	segments  first (uint64)         segmentInfo (manifest.go)
//	runs      name of the run        five uint64: level, first, last, keys, size;
//	                                 then sum (see runInfo, store_run.go)
//	window    chunk number (uint64)  a chunk of the idempotency window (fsm_window.go)
//	tiles     level, block           hashes of the tree, each tile with a checksum
//	                                 of its own in place of the value's (store_tree.go)
//	cold      first (uint64)         what is known of a segment that is only in the
//	                                 bucket (store_cold.go)
//	pins      first (uint64)         why the segment's file is to stay here (store_drop.go)
//
// An object in a segmentInfo is as of D, too: which segments were archived behind D
// comes back with the log, so that the manifest's version is that of the other nodes.
//
// All of it changes in one transaction per sealed segment, so D, the list of
// segments, the list of runs, the window and the tree always belong together.
// Only a merge of runs, which changes no answer, tiles that are repaired or come
// before D, and what becomes cold or ceases to be have transactions of their own.
// Versions before the tree wrote neither "tree" nor bucket tiles, those before the
// archive no bucket cold.

const ledgerFormat = 1

var (
	bucketMeta     = []byte("meta")
	bucketSegments = []byte("segments")
	bucketRuns     = []byte("runs")
	bucketWindow   = []byte("window")
	keyFormat      = []byte("format")
	keyCheckpoint  = []byte("checkpoint")
	keyKeys        = []byte("keys")
)

// checkpoint is D: a position of the Raft log at which a segment was sealed,
// and what the FSM knew there. Everything before it is in segment files.
type checkpoint struct {
	index         uint64 // Raft index of the seal
	term          uint64 // Raft term of the seal
	configuration []byte // Raft configuration in force, as Raft encodes it
	configIndex   uint64 // Raft index of that configuration
	size          uint64 // entries in the ledger
	time          int64  // time of the last command, Unix ms
	version       uint64 // manifest version
	confirmed     uint64 // confirmed segments
	windowOldest  uint64 // oldest chunk of the idempotency window still in use
	windowNext    uint64 // number of the next request the window will remember
	keys          []byte // the ledger's keys as fsm_key.go encodes them; stored beside the rest
}

// append appends the encoding of c: nine uint64 in the order index, term,
// configIndex, size, time, version, confirmed, windowOldest, windowNext, then a
// uint32 length and the configuration. The keys are stored apart: an old
// checkpoint has none.
func (c *checkpoint) append(b []byte) []byte {
	for _, v := range []uint64{c.index, c.term, c.configIndex, c.size, uint64(c.time), c.version, c.confirmed, c.windowOldest, c.windowNext} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.configuration)))
	return append(b, c.configuration...)
}

// parseCheckpoint reads one encoded checkpoint and returns what follows it.
func parseCheckpoint(b []byte) (checkpoint, []byte, error) {
	var c checkpoint
	if len(b) < 76 || uint64(binary.BigEndian.Uint32(b[72:])) > uint64(len(b)-76) {
		return c, nil, fmt.Errorf("%w: checkpoint is cut short at %d bytes", errCorrupt, len(b))
	}
	var t uint64
	for i, v := range []*uint64{&c.index, &c.term, &c.configIndex, &c.size, &t, &c.version, &c.confirmed, &c.windowOldest, &c.windowNext} {
		*v = binary.BigEndian.Uint64(b[8*i:])
	}
	c.time = int64(t)
	n := 76 + int(binary.BigEndian.Uint32(b[72:]))
	c.configuration = slices.Clone(b[76:n])
	return c, b[n:], nil
}

// appendRunInfo appends the encoding of r.
func appendRunInfo(b []byte, r runInfo) []byte {
	for _, v := range []uint64{uint64(r.level), r.first, r.last, r.keys, uint64(r.size)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return append(b, r.sum[:]...)
}

// parseRunInfo reads one encoded runInfo.
func parseRunInfo(b []byte) (runInfo, error) {
	var r runInfo
	if len(b) != 40+len(r.sum) {
		return r, fmt.Errorf("%w: run has a description of %d bytes", errCorrupt, len(b))
	}
	r.level = int(binary.BigEndian.Uint64(b))
	r.first = binary.BigEndian.Uint64(b[8:])
	r.last = binary.BigEndian.Uint64(b[16:])
	r.keys = binary.BigEndian.Uint64(b[24:])
	r.size = int64(binary.BigEndian.Uint64(b[32:]))
	copy(r.sum[:], b[40:])
	if r.level < 0 || r.last < r.first || r.keys == 0 || r.keys > r.entries() || r.size <= 0 {
		return r, fmt.Errorf("%w: run %s has %d keys in %d bytes", errCorrupt, r.name(), r.keys, r.size)
	}
	return r, nil
}

// chunk is a part of the idempotency window as fsm_window.go encodes it.
type chunk struct {
	number uint64
	data   []byte
}

// durableState is what ledger.db holds.
type durableState struct {
	at       checkpoint
	segments []segmentInfo
	runs     []runInfo
	window   []chunk  // as found at open; not kept up to date
	cold     []uint64 // as window: first of the segments that are in the bucket only
	pinned   []uint64 // as window: first of the segments that are to stay here
}

// manifest returns the manifest as of D.
func (d *durableState) manifest() *manifest {
	return &manifest{d.at.version, int(d.at.confirmed), d.segments}
}

// ledgerFile is an open ledger.db.
type ledgerFile struct{ db *bbolt.DB }

// openLedger opens or makes ledger.db and reads all of it.
func openLedger(path string) (*ledgerFile, *durableState, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := makeLedger(path); err != nil {
			return nil, nil, fmt.Errorf("making %s: %w", path, err)
		}
	}
	return loadLedger(path)
}

// makeLedger makes the file, with its buckets and nothing in them. bbolt writes
// its first pages in one write that a crash may tear, so it does that under
// another name; a crash before the rename leaves nothing under path.
func makeLedger(path string) error {
	temp := path + tmpSuffix
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := openBolt(temp)
	if err != nil {
		return err
	}
	l := &ledgerFile{db}
	err = l.update(func(t ledgerTx) error {
		return t.put(bucketMeta, keyFormat, binary.BigEndian.AppendUint32(nil, ledgerFormat))
	})
	if err := cmp.Or(err, l.close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// loadLedger opens the file and reads all of it. One that holds nothing is
// damaged: it was made with its buckets.
func loadLedger(path string) (*ledgerFile, *durableState, error) {
	db, err := openBolt(path)
	if err != nil {
		return nil, nil, err
	}
	l := &ledgerFile{db}
	state := &durableState{}
	if err := db.View(state.read); err != nil {
		db.Close()
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, state, nil
}

// openBolt opens a bbolt file after checking it (store_bolt.go).
func openBolt(path string) (db *bbolt.DB, err error) {
	if err := checkBolt(path); err != nil {
		return nil, err
	}
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return db, nil
}

// read fills d from all buckets.
func (d *durableState) read(tx *bbolt.Tx) error {
	for _, b := range [][]byte{bucketMeta, bucketSegments, bucketRuns, bucketWindow} {
		if tx.Bucket(b) == nil {
			return fmt.Errorf("%w: bucket %q is missing", errCorrupt, b)
		}
	}
	format, err := getChecked(tx.Bucket(bucketMeta), keyFormat)
	if err == nil && len(format) != 4 {
		err = fmt.Errorf("%w: %q is missing", errCorrupt, keyFormat)
	}
	if err != nil {
		return err
	}
	if v := binary.BigEndian.Uint32(format); v != ledgerFormat {
		return fmt.Errorf("%w: ledger.db has format %d, this program reads %d", errFormat, v, ledgerFormat)
	}
	b, err := getChecked(tx.Bucket(bucketMeta), keyCheckpoint)
	if err == nil && b != nil { // nil before the first segment: validate sees that there is none
		d.at, _, err = parseCheckpoint(b)
	}
	if err != nil {
		return err
	}
	keys, err := getChecked(tx.Bucket(bucketMeta), keyKeys)
	if err != nil {
		return err
	}
	d.at.keys = keys
	err = eachChecked(tx.Bucket(bucketSegments), func(_, v []byte) error {
		info, _, err := parseSegmentInfo(v)
		d.segments = append(d.segments, info)
		return err
	})
	if err != nil {
		return err
	}
	err = eachChecked(tx.Bucket(bucketRuns), func(_, v []byte) error {
		info, err := parseRunInfo(v)
		d.runs = append(d.runs, info)
		return err
	})
	if err != nil {
		return err
	}
	slices.SortFunc(d.runs, func(a, b runInfo) int { return int(int64(a.first - b.first)) })
	if err := errors.Join(d.readWindow(tx), d.readCold(tx), d.readPins(tx)); err != nil {
		return err
	}
	return d.validate()
}

// validate checks that what was read covers the ledger without gap.
func (d *durableState) validate() error {
	if end := d.manifest().end(); end != d.at.size || d.at.confirmed > uint64(len(d.segments)) {
		return fmt.Errorf("%w: segments end at entry %d, the checkpoint at %d", errCorrupt, end, d.at.size)
	}
	next := uint64(0)
	for _, s := range d.segments {
		if s.first != next {
			return fmt.Errorf("%w: segment starts at entry %d, want %d", errCorrupt, s.first, next)
		}
		next = s.end()
	}
	next = 0
	for _, r := range d.runs {
		if r.first != next {
			return fmt.Errorf("%w: run starts at entry %d, want %d", errCorrupt, r.first, next)
		}
		next = r.last + 1
	}
	if next != d.at.size {
		return fmt.Errorf("%w: runs end at entry %d, the checkpoint at %d", errCorrupt, next, d.at.size)
	}
	return nil
}

// window reads the idempotency window.
func (l *ledgerFile) window() ([]chunk, error) {
	var d durableState
	err := l.db.View(d.readWindow)
	return d.window, err
}

// readWindow fills d.window.
func (d *durableState) readWindow(tx *bbolt.Tx) error {
	return eachChecked(tx.Bucket(bucketWindow), func(k, v []byte) error {
		d.window = append(d.window, chunk{binary.BigEndian.Uint64(k), slices.Clone(v)})
		return nil
	})
}

// ledgerTx is one transaction that changes ledger.db.
type ledgerTx struct{ tx *bbolt.Tx }

// update runs f in one durable transaction: all of it or nothing.
func (l *ledgerFile) update(f func(ledgerTx) error) error {
	return l.db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{bucketMeta, bucketSegments, bucketRuns, bucketWindow, bucketTiles, bucketCold, bucketPins} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return f(ledgerTx{tx})
	})
}

// put stores a value with its checksum.
func (t ledgerTx) put(bucket, key, value []byte) error {
	sealed := appendCRC(slices.Concat(key, value))
	return t.tx.Bucket(bucket).Put(key, sealed[len(key):])
}

// putCheckpoint moves D. Keys once made are never taken away.
func (t ledgerTx) putCheckpoint(c checkpoint) error {
	err := t.put(bucketMeta, keyCheckpoint, c.append(nil))
	if err == nil && len(c.keys) > 0 {
		err = t.put(bucketMeta, keyKeys, c.keys)
	}
	return err
}

// putSegment adds or replaces one segment of the manifest.
func (t ledgerTx) putSegment(i segmentInfo) error {
	return t.put(bucketSegments, binary.BigEndian.AppendUint64(nil, i.first), i.append(nil))
}

// putSegments adds or replaces segments of the manifest.
func (t ledgerTx) putSegments(infos []segmentInfo) (err error) {
	for _, i := range infos {
		err = errors.Join(err, t.putSegment(i))
	}
	return err
}

// replaceRuns removes and adds runs.
func (t ledgerTx) replaceRuns(old, added []runInfo) error {
	for _, r := range old {
		if err := t.tx.Bucket(bucketRuns).Delete([]byte(r.name())); err != nil {
			return err
		}
	}
	for _, r := range added {
		if err := t.put(bucketRuns, []byte(r.name()), appendRunInfo(nil, r)); err != nil {
			return err
		}
	}
	return nil
}

// putWindow stores chunks of the idempotency window and drops those before oldest.
func (t ledgerTx) putWindow(chunks []chunk, oldest uint64) error {
	b := t.tx.Bucket(bucketWindow)
	for _, c := range chunks {
		if err := t.put(bucketWindow, binary.BigEndian.AppendUint64(nil, c.number), c.data); err != nil {
			return err
		}
	}
	c := b.Cursor()
	for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) < oldest; k, _ = c.First() {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// putTiles stores the tiles of the entries from from to to, which are in r with
// the whole blocks they are in, and says that they are there.
func (t ledgerTx) putTiles(r *recentTiles, from, to uint64) error {
	for level := range r.levels {
		shift := tileHeight * level
		if from>>shift == to>>shift {
			return t.putTreeSize(to) // nothing new here nor above
		}
		for first := firstOfBlock(from >> shift); first*tileWidth < to>>shift; first += blockTiles {
			if err := t.putBlock(r, level, first, to>>shift); err != nil {
				return err
			}
		}
	}
	return t.putTreeSize(to)
}

// putBlock stores the block of a level that begins with tile first, of which
// count hashes exist, unless it has more already.
func (t ledgerTx) putBlock(r *recentTiles, level int, first, count uint64) error {
	var value []byte
	for index := first; index < first+blockTiles && index*tileWidth < count; index++ {
		value = appendTile(value, level, index, r.tile(level, index), int(min(count-index*tileWidth, tileWidth)))
	}
	key, _ := tileKey(level, first)
	b := t.tx.Bucket(bucketTiles)
	if len(b.Get(key)) >= len(value) {
		return nil
	}
	return b.Put(key, value)
}

// replaceTile stores a tile within its block. What is missing before it has a
// wrong checksum until it is built again, too; a partial tile is the last one.
func (t ledgerTx) replaceTile(id tileID, tile *tile) error {
	key, at := tileKey(id.level, id.index)
	b := t.tx.Bucket(bucketTiles)
	old := b.Get(key)
	value := make([]byte, at, at+tileValueSize)
	copy(value, old)
	value = appendTile(value, id.level, id.index, tile, id.width)
	if id.width == tileWidth && len(old) > len(value) {
		value = append(value, old[len(value):]...)
	}
	return b.Put(key, value)
}

// putTreeSize says that the tiles of the first size entries are there.
func (t ledgerTx) putTreeSize(size uint64) error {
	if have, err := treeSize(t.tx); err != nil || have >= size {
		return err
	}
	return t.put(bucketMeta, keyTree, binary.BigEndian.AppendUint64(nil, size))
}

// treeSize returns of how many entries the tiles are there.
func (l *ledgerFile) treeSize() (size uint64, err error) {
	err = l.db.View(func(tx *bbolt.Tx) error {
		size, err = treeSize(tx)
		return err
	})
	return size, err
}

// treeSize returns of how many entries the tiles are there, none in the file of
// a version before the tree.
func treeSize(tx *bbolt.Tx) (uint64, error) {
	b, err := getChecked(tx.Bucket(bucketMeta), keyTree)
	if err != nil || b == nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("%w: %q has %d bytes", errCorrupt, keyTree, len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}

// tile reads a tile; a missing or damaged one gives an error that wraps errCorrupt.
func (l *ledgerFile) tile(id tileID) (t *tile, err error) {
	err = l.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketTiles)
		if b == nil {
			return fmt.Errorf("%w: bucket %q is missing", errCorrupt, bucketTiles)
		}
		key, _ := tileKey(id.level, id.index)
		t, err = parseTile(b.Get(key), id)
		return err
	})
	return t, err
}

// getChecked returns a value without its checksum; nil if the key is absent.
func getChecked(b *bbolt.Bucket, key []byte) ([]byte, error) {
	v := b.Get(key)
	if v == nil {
		return nil, nil
	}
	return checked(key, v)
}

// eachChecked calls f with every key of b and its value without checksum.
func eachChecked(b *bbolt.Bucket, f func(k, v []byte) error) error {
	return b.ForEach(func(k, v []byte) error {
		v, err := checked(k, v)
		if err != nil {
			return err
		}
		return f(k, v)
	})
}

// checked cuts the checksum off a value.
func checked(key, value []byte) ([]byte, error) {
	body, err := cutCRC(slices.Concat(key, value))
	if err != nil || len(body) < len(key) {
		return nil, fmt.Errorf("value of %.40q: %w", key, err)
	}
	return body[len(key):], nil
}

// close releases the file.
func (l *ledgerFile) close() error { return l.db.Close() }
