package main

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/hashicorp/raft"
)

// A snapshot is the durable checkpoint D and the list of segments up to it: it
// names the entries, it does not hold them. Whoever installs one gets the
// segments it lacks from other nodes. All integers are big-endian.
//
//	offset  size  field
//	     0     8  magic "SCRSNAP2", or "SCRSNAP1" while the ledger has no key
//	     8    16  cluster id
//	    24     .  checkpoint (store_ledger.go)
//	     .     4  number of segments, then each as segmentInfo (manifest.go)
//	     .     4  number of chunks of the idempotency window, then for each
//	              8 number, 4 length, data (fsm_window.go)
//	     .     4  length of the ledger's keys, then the keys (fsm_key.go); not in
//	              SCRSNAP1
//	     .    32  SHA-256 of everything before
//
// Every later version keeps the first seven bytes, a version in the eighth and
// the SHA-256 at the end, so that a flipped bit is not taken for another version.

const (
	snapshotMagic1 = "SCRSNAP1"
	snapshotMagic  = "SCRSNAP2"
)

// snapshotVersions is how many versions of snapshots this program reads.
const snapshotVersions = '2' - '0'

// snapshot is a parsed snapshot.
type snapshot struct {
	cluster  clusterID
	at       checkpoint
	segments []segmentInfo
	window   []chunk
}

// append appends the encoding of s.
func (s *snapshot) append(b []byte) []byte {
	start, magic := len(b), snapshotMagic
	if len(s.at.keys) == 0 {
		magic = snapshotMagic1
	}
	b = append(b, magic...)
	b = append(b, s.cluster[:]...)
	b = s.at.append(b)
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.segments)))
	for _, i := range s.segments {
		b = i.append(b)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.window)))
	for _, c := range s.window {
		b = binary.BigEndian.AppendUint64(b, c.number)
		b = binary.BigEndian.AppendUint32(b, uint32(len(c.data)))
		b = append(b, c.data...)
	}
	if len(s.at.keys) > 0 {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s.at.keys)))
		b = append(b, s.at.keys...)
	}
	sum := sha256.Sum256(b[start:])
	return append(b, sum[:]...)
}

// parseSnapshot reads a whole snapshot.
func parseSnapshot(b []byte) (*snapshot, error) {
	if len(b) < 24+sha256.Size || string(b[:7]) != snapshotMagic[:7] {
		return nil, fmt.Errorf("%w: snapshot of %d bytes lacks its magic", errCorrupt, len(b))
	}
	body, sum := b[:len(b)-sha256.Size], hash(b[len(b)-sha256.Size:])
	if got := hash(sha256.Sum256(body)); got != sum {
		return nil, fmt.Errorf("%w: snapshot has SHA-256 %s, its bytes give %s", errCorrupt, sum, got)
	}
	if v := b[7] - '0'; v < 1 || v > snapshotVersions {
		return nil, fmt.Errorf("%w: snapshot has version %q, this program reads 1 to %d", errFormat, b[7], snapshotVersions)
	}
	s := &snapshot{cluster: clusterID(body[8:24])}
	at, rest, err := parseCheckpoint(body[24:])
	if err != nil {
		return nil, err
	}
	s.at = at
	c := cursor{b: rest}
	for n := c.uint32(); n > 0 && !c.short; n-- {
		var i segmentInfo
		if i, c.b, err = parseSegmentInfo(c.b); err != nil {
			return nil, err
		}
		s.segments = append(s.segments, i)
	}
	for n := c.uint32(); n > 0 && !c.short; n-- {
		s.window = append(s.window, chunk{c.uint64(), c.take(int(c.uint32()))})
	}
	if keyed := string(b[:8]) == snapshotMagic; keyed {
		s.at.keys = c.take(int(c.uint32()))
		c.short = c.short || len(s.at.keys) == 0
	}
	if c.short || len(c.b) > 0 {
		return nil, fmt.Errorf("%w: snapshot has the wrong length", errCorrupt)
	}
	return s, s.validate()
}

// validate checks that the segments cover the ledger up to the checkpoint.
func (s *snapshot) validate() error {
	next := uint64(0)
	for _, i := range s.segments {
		if i.first != next {
			return fmt.Errorf("%w: snapshot has a segment from entry %d, want %d", errCorrupt, i.first, next)
		}
		next = i.end()
	}
	if next != s.at.size || s.at.confirmed > uint64(len(s.segments)) {
		return fmt.Errorf("%w: snapshot's segments end at entry %d, its checkpoint at %d", errCorrupt, next, s.at.size)
	}
	return nil
}

// Snapshot is never used: this program moves D and shortens the Raft log by
// itself (store_seal.go), and Raft is told never to take a snapshot.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return nil, raft.ErrNothingNewToSnapshot }

// Restore installs a snapshot the leader sent. It never blocks for long and may
// be called again and again (raft.md F7): while segments are missing it returns
// errFetching at once. What this node has already is left as it is.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	before := f.index
	err := f.restore(r)
	m := &f.store.o.metrics.snapshot
	switch {
	case err == nil && f.index > before:
		m.installed.add(1)
	case errors.Is(err, errFetching):
		m.refused[snapshotFetching].add(1)
	case errors.Is(err, errFormat):
		m.refused[snapshotVersion].add(1)
	case errors.Is(err, errCorrupt):
		m.refused[snapshotCorrupt].add(1)
	case errors.Is(err, errDiverged):
		m.refused[snapshotDiverged].add(1)
	case err != nil:
		m.refused[snapshotOther].add(1)
	}
	return err
}

// restore is one try to install a snapshot.
func (f *fsm) restore(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	snap, err := parseSnapshot(b)
	if err != nil {
		return err
	}
	if f.broken != nil {
		return f.broken
	}
	if snap.cluster != f.store.o.cluster {
		return fmt.Errorf("snapshot is of cluster %s, this is cluster %s", snap.cluster, f.store.o.cluster)
	}
	if err := f.agrees(snap); errors.Is(err, errUndecided) {
		return err
	} else if err != nil {
		f.broken = err
		f.fail(err)
		return err
	}
	if snap.at.index <= f.index {
		return nil
	}
	fetched, err := f.fetch(snap)
	if err != nil {
		return err
	}
	return f.install(snap, fetched)
}

// errUndecided says that two nodes have different bytes and it is not known yet
// which of them most nodes have.
var errUndecided = errors.New("not known yet which of two nodes has diverged")

// agrees compares the segments this node has sealed with those of a snapshot.
// Those that the snapshot says are confirmed are what most nodes have.
func (f *fsm) agrees(snap *snapshot) error {
	own := f.store.manifest.Load().segments
	for k := range min(len(own), len(snap.segments)) {
		if a, b := own[k], snap.segments[k]; a.first != b.first || a.count != b.count || a.root != b.root {
			if uint64(k) >= snap.at.confirmed {
				return fmt.Errorf("%w: entries %d to %d: root here is %s, in the leader's snapshot %s", errUndecided, a.first, a.end()-1, a.root, b.root)
			}
			return fmt.Errorf("%w: entries %d to %d: root here is %s, in the leader's snapshot %s", errDiverged, a.first, a.end()-1, a.root, b.root)
		}
	}
	return nil
}

// keysOf returns the ledger's keys as of snap, which must go on from this node's.
func (f *fsm) keysOf(snap *snapshot) (*ledgerKeys, error) {
	keys, err := parseLedgerKeys(snap.at.keys)
	own := f.keys.Load()
	if err == nil && own != nil && !keys.has(own.public()) {
		err = fmt.Errorf("%w: the leader's snapshot does not know the ledger key %s", errDiverged, own.signer.noteVerifier)
		f.broken = err
		f.fail(err)
	}
	return keys, err
}

// install moves this node to the checkpoint of snap, all of whose segments are
// on its disk.
func (f *fsm) install(snap *snapshot, fetched []fetchedSegment) error {
	w, err := newWindow(snap.window, &snap.at)
	if err != nil {
		return err
	}
	keys, err := f.keysOf(snap)
	if err != nil {
		return err
	}
	err = f.store.install(snap.at, snap.segments, fetched, snap.window)
	for _, passing := range []error{errFetching, syscall.ENOSPC, errArchiveUnavailable, errArchiveCorrupt} {
		if errors.Is(err, passing) {
			return err // nothing has changed, and the leader offers it again
		}
	}
	if err != nil {
		f.broken = err
		f.fail(err)
		return err
	}
	f.window = w
	f.keys.Store(keys)
	f.moveTo(&snap.at)
	f.rekeyed()
	f.installed(snap)
	return nil
}
