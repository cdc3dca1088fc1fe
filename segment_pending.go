package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"unsafe"
)

// pendingEntry is one entry of a segment that is not on disk yet.
type pendingEntry struct {
	raw   []byte // canonical header
	value []byte
	older int32 // index of the key's previous entry in this segment, or -1
}

// key returns the key of e, from its canonical header (segment.go).
func (e *pendingEntry) key() []byte {
	n := int(binary.BigEndian.Uint16(e.raw[headerFixed:]))
	return e.raw[headerFixed+2:][:n:n]
}

// pendingSegment is a segment in memory: the one that grows, or one that was
// sealed and is on its way to disk. The Raft log makes it durable. Only the
// apply goroutine changes it: it stages entries, then shows them, all at once,
// or forgets them. After it is sealed nobody does.
type pendingSegment struct {
	first   uint64 // seq of entries[0]
	entries []pendingEntry
	shown   int              // so many of entries count; the others are staged
	leaves  []hash           // of the staged entries
	bytes   int64            // bytes the shown entries take in the segment file
	heads   map[string]int32 // key to the index of its newest entry, staged ones included
	tree    compactTree      // of the shown entries
	arena   []byte           // room for canonical headers and small values, used up from the front
	sorted  []string         // keys of entries[:inOrder], in byte order
	inOrder int
}

// newPendingSegment returns an empty segment whose first entry will be first.
func newPendingSegment(first uint64) *pendingSegment {
	return &pendingSegment{first: first, heads: make(map[string]int32)}
}

// successor returns the empty segment that follows p. It has room for as much
// as p holds: segments mostly come in one size, and to grow there step by step
// costs a fifth of what apply does.
func (p *pendingSegment) successor() *pendingSegment {
	return &pendingSegment{
		first:   p.end(),
		entries: make([]pendingEntry, 0, len(p.entries)),
		heads:   make(map[string]int32, len(p.heads)),
	}
}

// end returns the seq after the last entry shown.
func (p *pendingSegment) end() uint64 { return p.first + uint64(p.shown) }

// next returns the seq the next staged entry gets.
func (p *pendingSegment) next() uint64 { return p.first + uint64(len(p.entries)) }

// copiedValue is the largest value that is copied into memory of the segment,
// bytes. A slice of it would keep alive the whole pack it came in.
const copiedValue = 1 << 10

// encode makes an entry of h and value, which are valid, in memory of the
// segment, and its leaf hash.
func (p *pendingSegment) encode(h *header, value []byte) (pendingEntry, hash) {
	if cap(p.arena)-len(p.arena) < maxHeaderSize+copiedValue {
		p.arena = make([]byte, 0, 64<<10)
	}
	start := len(p.arena)
	p.arena = appendHeader(p.arena, h)
	raw := p.arena[start:len(p.arena):len(p.arena)]
	if len(value) <= copiedValue {
		start = len(p.arena)
		p.arena = append(p.arena, value...)
		value = p.arena[start:len(p.arena):len(p.arena)]
	}
	return pendingEntry{raw: raw, value: value}, leafHash(raw)
}

// stage adds e, whose leaf hash is leaf, not to be seen yet.
func (p *pendingSegment) stage(e pendingEntry, leaf hash) {
	e.older = -1
	key := e.key()
	name := unsafe.String(&key[0], len(key)) // raw never changes: no second copy of every key
	if head, ok := p.heads[name]; ok {
		e.older = head
	}
	p.heads[name] = int32(len(p.entries))
	p.entries = append(p.entries, e)
	p.leaves = append(p.leaves, leaf)
}

// forget removes the staged entries from index mark on.
func (p *pendingSegment) forget(mark int) {
	for i := len(p.entries) - 1; i >= mark; i-- {
		if e := &p.entries[i]; e.older >= 0 {
			p.heads[string(e.key())] = e.older
		} else {
			delete(p.heads, string(e.key()))
		}
	}
	clear(p.entries[mark:])
	p.entries = p.entries[:mark]
	p.leaves = p.leaves[:mark-p.shown]
}

// show makes the staged entries count.
func (p *pendingSegment) show() {
	for _, leaf := range p.leaves {
		p.tree.append(leaf)
	}
	p.leaves = p.leaves[:0]
	for ; p.shown < len(p.entries); p.shown++ {
		e := &p.entries[p.shown]
		p.bytes += recordSize(len(e.raw)) + int64(len(e.value)) + directoryEntrySize
	}
}

// newest returns the index of the key's newest entry shown for which accept is true.
func (p *pendingSegment) newest(key []byte, accept func(*header) bool) (int, bool) {
	i, ok := p.heads[string(key)]
	if !ok {
		return 0, false
	}
	for ; i >= 0; i = p.entries[i].older {
		if int(i) >= p.shown {
			continue
		}
		if accept == nil {
			return int(i), true
		}
		if h := p.header(int(i)); accept(&h) {
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

// sortKeys brings sorted up to date; the caller excludes every other use. It
// makes a new slice, so that those who hold the old one are not disturbed.
func (p *pendingSegment) sortKeys() {
	var fresh []string
	for ; p.inOrder < p.shown; p.inOrder++ {
		if e := &p.entries[p.inOrder]; e.older < 0 {
			fresh = append(fresh, string(e.key()))
		}
	}
	if len(fresh) == 0 {
		return
	}
	slices.Sort(fresh)
	merged := make([]string, 0, len(p.sorted)+len(fresh))
	a, b := p.sorted, fresh
	for len(a) > 0 && len(b) > 0 {
		if a[0] < b[0] {
			merged, a = append(merged, a[0]), a[1:]
		} else {
			merged, b = append(merged, b[0]), b[1:]
		}
	}
	p.sorted = append(append(merged, a...), b...)
}

// byKey returns the indexes of all entries in the order of a run: keys
// ascending, each key's versions newest first.
func (p *pendingSegment) byKey() []int32 {
	type ref struct {
		prefix uint64 // first bytes of the key: most comparisons need no more
		i      int32
	}
	refs := make([]ref, len(p.entries))
	for i := range p.entries {
		var b [8]byte
		copy(b[:], p.entries[i].key())
		refs[i] = ref{binary.BigEndian.Uint64(b[:]), int32(i)}
	}
	slices.SortFunc(refs, func(a, b ref) int {
		if a.prefix != b.prefix {
			return cmp.Compare(a.prefix, b.prefix)
		}
		return cmp.Or(bytes.Compare(p.entries[a.i].key(), p.entries[b.i].key()), cmp.Compare(b.i, a.i))
	})
	order := make([]int32, len(refs))
	for k := range refs {
		order[k] = refs[k].i
	}
	return order
}
