package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
)

// segmentInfo is one sealed segment in the manifest. Its encoding, in log
// entries, snapshots and ledger.db, is
//
//	offset  size  field
//	     0     8  first
//	     8     8  count
//	    16     8  size
//	    24     8  time
//	    32    32  root
//	    64    32  sum
//	    96     2  length of object, then object
//
// all integers big-endian.
type segmentInfo struct {
	first  uint64 // seq of its first entry
	count  uint64 // entries
	size   uint64 // bytes of the segment file
	time   int64  // Unix ms at which it was sealed, by the leader's clock
	root   hash   // RFC 6962 root over its own leaves
	sum    hash   // SHA-256 of the segment file
	object string // name of the packed segment in the bucket (manifest_bucket.go); "" while there is none
}

const segmentInfoFixed = 98 // bytes of an encoded segmentInfo before object

// id names the segment: <first, 20 digits>-<merkle root>.
func (i segmentInfo) id() string { return fmt.Sprintf("%020d-%s", i.first, i.root) }

// end returns the seq after the last entry.
func (i segmentInfo) end() uint64 { return i.first + i.count }

// append appends the encoding of i.
func (i segmentInfo) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, i.first)
	b = binary.BigEndian.AppendUint64(b, i.count)
	b = binary.BigEndian.AppendUint64(b, i.size)
	b = binary.BigEndian.AppendUint64(b, uint64(i.time))
	b = append(b, i.root[:]...)
	b = append(b, i.sum[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(i.object)))
	return append(b, i.object...)
}

// parseSegmentInfo reads one encoded segmentInfo and returns what follows it.
func parseSegmentInfo(b []byte) (segmentInfo, []byte, error) {
	var i segmentInfo
	if len(b) < segmentInfoFixed || len(b)-segmentInfoFixed < int(binary.BigEndian.Uint16(b[96:])) {
		return i, nil, fmt.Errorf("%w: segment info is cut short at %d bytes", errCorrupt, len(b))
	}
	i.first = binary.BigEndian.Uint64(b)
	i.count = binary.BigEndian.Uint64(b[8:])
	i.size = binary.BigEndian.Uint64(b[16:])
	i.time = int64(binary.BigEndian.Uint64(b[24:]))
	copy(i.root[:], b[32:])
	copy(i.sum[:], b[64:])
	n := segmentInfoFixed + int(binary.BigEndian.Uint16(b[96:]))
	i.object = string(b[segmentInfoFixed:n])
	if i.count == 0 || i.first+i.count < i.first {
		return i, nil, fmt.Errorf("%w: segment info covers %d entries from %d", errCorrupt, i.count, i.first)
	}
	return i, b[n:], nil
}

// manifest is the replicated list of sealed segments, without gap or overlap
// from entry 0 on. Nobody edits a manifest: a change makes a new one, so that
// readers need no lock.
//
// A segment enters when it is sealed. It is confirmed, in order, by the
// leader's manifest entry, which carries the leader's root of it and which the
// leader proposes once most nodes have the same file (raft_diverge.go); only
// confirmed segments are shown to clients. When a confirmed one lies in the bucket,
// checked there, the leader proposes the name of its object, and that never changes.
type manifest struct {
	version   uint64 // changes by manifest entries so far: confirmed, archived
	confirmed int    // the first so many segments are confirmed
	segments  []segmentInfo
}

// errDiverged says that this node's bytes differ from what most nodes have.
var errDiverged = errors.New("this node has diverged from the others")

// end returns the seq after the last sealed entry.
func (m *manifest) end() uint64 {
	if len(m.segments) == 0 {
		return 0
	}
	return m.segments[len(m.segments)-1].end()
}

// confirmedEnd returns the seq after the last confirmed entry.
func (m *manifest) confirmedEnd() uint64 {
	if m.confirmed == 0 {
		return 0
	}
	return m.segments[m.confirmed-1].end()
}

// shown returns the confirmed segments.
func (m *manifest) shown() []segmentInfo { return m.segments[:m.confirmed] }

// find returns the index of the segment that holds seq, or -1.
func (m *manifest) find(seq uint64) int {
	i := sort.Search(len(m.segments), func(i int) bool { return m.segments[i].end() > seq })
	if i == len(m.segments) || m.segments[i].first > seq {
		return -1
	}
	return i
}

// withSealed returns a manifest that also has i, which must follow the last.
func (m *manifest) withSealed(i segmentInfo) (*manifest, error) {
	if i.first != m.end() {
		return nil, fmt.Errorf("%w: segment starts at %d, the manifest ends at %d", errCorrupt, i.first, m.end())
	}
	return &manifest{m.version, m.confirmed, append(slices.Clip(m.segments), i)}, nil
}

// withWritten returns a manifest in which the segment that starts at first has
// the size and sum of the file this node wrote.
func (m *manifest) withWritten(first, size uint64, sum hash) (*manifest, error) {
	k := m.find(first)
	if k < 0 {
		return nil, fmt.Errorf("%w: no segment starts at %d", errCorrupt, first)
	}
	i := m.segments[k]
	if i.size != 0 && (i.size != size || i.sum != sum) {
		return nil, fmt.Errorf("%w: segment %s: this node's file is %d bytes with SHA-256 %s, the leader's %d bytes with %s",
			errDiverged, i.id(), size, sum, i.size, i.sum)
	}
	i.size, i.sum = size, sum
	segments := slices.Clone(m.segments)
	segments[k] = i
	return &manifest{m.version, m.confirmed, segments}, nil
}

// withConfirmed returns a manifest in which the leader's description of the
// next unconfirmed segment is confirmed; changed is false when it is not the
// next one, as after a repeated proposal. A description that differs from what
// this node has gives errDiverged.
func (m *manifest) withConfirmed(leader segmentInfo) (next *manifest, changed bool, err error) {
	if m.confirmed >= len(m.segments) || m.segments[m.confirmed].first != leader.first {
		return m, false, nil
	}
	own := m.segments[m.confirmed]
	if own.count != leader.count || own.root != leader.root || own.time != leader.time {
		return nil, false, fmt.Errorf("%w: entries %d to %d: root here is %s over %d entries sealed at %d, the leader's is %s over %d sealed at %d",
			errDiverged, own.first, own.end()-1, own.root, own.count, own.time, leader.root, leader.count, leader.time)
	}
	if own.size != 0 && (own.size != leader.size || own.sum != leader.sum) {
		return nil, false, fmt.Errorf("%w: segment %s: this node's file is %d bytes with SHA-256 %s, the leader's %d bytes with %s",
			errDiverged, own.id(), own.size, own.sum, leader.size, leader.sum)
	}
	segments := slices.Clone(m.segments)
	segments[m.confirmed] = leader
	return &manifest{m.version + 1, m.confirmed + 1, segments}, true, nil
}

// withArchived returns a manifest in which the confirmed segment that starts at
// first lies in object; changed is false when it lies in one already, or is not
// confirmed.
func (m *manifest) withArchived(first uint64, object string) (next *manifest, changed bool) {
	k := m.find(first)
	if k < 0 || k >= m.confirmed || m.segments[k].first != first || m.segments[k].object != "" {
		return m, false
	}
	segments := slices.Clone(m.segments)
	segments[k].object = object
	return &manifest{m.version + 1, m.confirmed, segments}, true
}

// archived returns how many of the first segments lie in the bucket without a gap,
// and how many do in all.
func (m *manifest) archived() (prefix, total int) {
	for k, i := range m.segments {
		if i.object == "" {
			continue
		}
		if total == k {
			prefix++
		}
		total++
	}
	return prefix, total
}
