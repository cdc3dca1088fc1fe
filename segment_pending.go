package main

import (
	"cmp"
	"slices"
)

// pendingEntry is one entry of a segment that is not on disk yet.
type pendingEntry struct {
	raw   []byte // canonical header
	value []byte
	leaf  hash  // leafHash(raw)
	older int32 // index of the key's previous entry in this segment, or -1
}

// pendingSegment is a segment in memory: the one that grows, or one that was
// sealed and is on its way to disk. The Raft log makes it durable. It is
// changed by the apply goroutine only and never after seal.
type pendingSegment struct {
	first   uint64 // seq of entries[0]
	entries []pendingEntry
	bytes   int64            // bytes the entries take in the segment file
	heads   map[string]int32 // key to the index of its newest entry
	tree    compactTree
	arena   []byte   // room for canonical headers, used up from the front
	sorted  []string // keys in byte order, as of the last sortedKeys
	fresh   []string // keys added since
}

// newPendingSegment returns an empty segment whose first entry will be first.
func newPendingSegment(first uint64) *pendingSegment {
	return &pendingSegment{first: first, heads: make(map[string]int32)}
}

// end returns the seq after the last entry.
func (p *pendingSegment) end() uint64 { return p.first + uint64(len(p.entries)) }

// stage encodes h into memory of the segment without adding it.
func (p *pendingSegment) stage(h *header, value []byte) pendingEntry {
	if cap(p.arena)-len(p.arena) < maxHeaderSize {
		p.arena = make([]byte, 0, 64<<10)
	}
	start := len(p.arena)
	p.arena = appendHeader(p.arena, h)
	raw := p.arena[start:len(p.arena):len(p.arena)]
	return pendingEntry{raw: raw, value: value, leaf: leafHash(raw), older: -1}
}

// append adds the staged entry e of the given key.
func (p *pendingSegment) append(key string, e pendingEntry) {
	i := int32(len(p.entries))
	head, ok := p.heads[key]
	if ok {
		e.older = head
	} else {
		p.fresh = append(p.fresh, key)
	}
	p.heads[key] = i
	p.entries = append(p.entries, e)
	p.tree.append(e.leaf)
	p.bytes += recordSize(len(e.raw)) + int64(len(e.value)) + directoryEntrySize
}

// newest returns the index of the key's newest entry for which accept is true.
func (p *pendingSegment) newest(key []byte, accept func(*header) bool) (int, bool) {
	i, ok := p.heads[string(key)]
	if !ok {
		return 0, false
	}
	for ; i >= 0; i = p.entries[i].older {
		h := p.header(int(i))
		if accept == nil || accept(&h) {
			return int(i), true
		}
	}
	return 0, false
}

// header parses the header of entry i, which this program wrote.
func (p *pendingSegment) header(i int) header {
	h, err := parseHeader(p.entries[i].raw)
	if err != nil {
		panic("segment: " + err.Error())
	}
	return h
}

// sortKeys brings sorted up to date; the caller excludes every other use.
func (p *pendingSegment) sortKeys() {
	if len(p.fresh) == 0 {
		return
	}
	slices.Sort(p.fresh)
	merged := make([]string, 0, len(p.sorted)+len(p.fresh))
	a, b := p.sorted, p.fresh
	for len(a) > 0 && len(b) > 0 {
		if cmp.Less(a[0], b[0]) {
			merged, a = append(merged, a[0]), a[1:]
		} else {
			merged, b = append(merged, b[0]), b[1:]
		}
	}
	p.sorted = append(append(merged, a...), b...)
	p.fresh = nil
}
