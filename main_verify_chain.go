package main

import (
	"fmt"
	"hash/maphash"
	"sync"
)

// The chain of versions: an entry names the key's previous one, and counts one
// more. To check that, the audit remembers of each key its newest entry, in 16
// bytes and under 8 bytes that stand for the key (its tag): 32 to 64 bytes a key
// in all, whatever the length of the keys, 400 MB for 10 million.
//
// Two keys may have one tag. Every entry that does not go on from what its tag
// has is decided by the keys themselves, read again from the segments; a tag
// that two keys turn out to share goes by the whole keys from then on. So
// nothing sound is refused. What is wrong passes only if an entry names as its
// previous one the newest entry of another key, with the version that fits, and
// both keys have one tag: one chance in 2^64 for each, for the tags come from a
// random seed that is made when the audit starts.

// chainHead is the newest entry of a key.
type chainHead struct{ seq, version uint64 }

// chainParts is in how many parts the keys are checked side by side.
const chainParts = 64

// chains are the newest entries of all keys so far.
type chains struct {
	tag   func(key []byte) uint64
	parts [chainParts]chainPart // by the tag's remainder
	// find returns the header of an entry that was audited and, for people, where it is.
	find func(seq uint64) (h header, where string, err error)
}

// chainPart is chains for a part of the keys.
type chainPart struct {
	heads  headTable
	shared map[uint64]map[string]chainHead // tags of more than one key
}

// link is what the chain of versions needs of an entry.
type link struct {
	tag                uint64 // of the key
	seq, version, prev uint64
}

// linkRuns are links by part, each in runs, in order.
type linkRuns [chainParts][][]link

// newChains returns chains without any key.
func newChains() *chains {
	seed := maphash.MakeSeed()
	c := &chains{tag: func(key []byte) uint64 { return maphash.Bytes(seed, key) }}
	for i := range c.parts {
		c.parts[i] = chainPart{newHeadTable(), make(map[uint64]map[string]chainHead)}
	}
	return c
}

// follows reports whether an entry goes on from head, the key's newest if there is one.
func (l *link) follows(head chainHead, seen bool) bool {
	if !seen {
		return l.prev == noSeq && l.version == 1
	}
	return l.prev == head.seq && l.version == head.version+1
}

// addAll checks entries, the next of the ledger. at is the entry that err, the
// first difference, is about.
func (c *chains) addAll(all *linkRuns) (at uint64, err error) {
	var group sync.WaitGroup
	var found [chainParts]struct {
		at  uint64
		err error
	}
	for part, runs := range all {
		group.Go(func() { found[part].at, found[part].err = c.addRuns(runs) })
	}
	group.Wait()
	for _, f := range found {
		if f.err != nil && (err == nil || f.at < at) {
			at, err = f.at, f.err
		}
	}
	return at, err
}

// addRuns is addAll for one part.
func (c *chains) addRuns(runs [][]link) (at uint64, err error) {
	for _, run := range runs {
		for i := range run {
			if err := c.add(&run[i]); err != nil {
				return run[i].seq, err
			}
		}
	}
	return 0, nil
}

// add checks the next entry of its part.
func (c *chains) add(l *link) error {
	p := &c.parts[l.tag%chainParts]
	slot, seen := p.heads.find(l.tag)
	if l.follows(slot.chainHead, seen) && (len(p.shared) == 0 || p.shared[l.tag] == nil) {
		slot.chainHead = chainHead{l.seq, l.version}
		if !seen {
			p.heads.take(slot, l.tag)
		}
		return nil
	}
	return c.addByKey(p, l, slot.chainHead, seen)
}

// addByKey is add for an entry whose tag does not decide.
func (c *chains) addByKey(p *chainPart, l *link, head chainHead, seen bool) error {
	h, where, err := c.find(l.seq)
	if err != nil {
		return err
	}
	keys := p.shared[l.tag]
	if keys == nil {
		keys = make(map[string]chainHead)
		if seen {
			other, _, err := c.find(head.seq)
			if err != nil {
				return err
			}
			keys[string(other.key)] = head
		}
	}
	head, seen = keys[string(h.key)]
	if !l.follows(head, seen) {
		return chainDifference(&h, where, head, seen)
	}
	keys[string(h.key)] = chainHead{l.seq, l.version}
	p.shared[l.tag] = keys
	return nil
}

// chainDifference says how entry h does not follow its key's newest before it.
func chainDifference(h *header, where string, head chainHead, seen bool) error {
	before := "there is none"
	if seen {
		before = fmt.Sprintf("it is entry %d, version %d", head.seq, head.version)
	}
	prev := "none"
	if h.prev != noSeq {
		prev = fmt.Sprint("entry ", h.prev)
	}
	return fmt.Errorf("%w: %s: entry %d: version %d of key %q names %s as the one before, %s",
		errDifference, where, h.seq, h.version, h.key, prev, before)
}

// headTable has the newest entry of each tag: open addressing, by the upper bits
// of the tag, for the lower ones choose the part. It never holds more than 3/4
// of its slots, so that a search is short.
type headTable struct {
	slots []headSlot // 2^n
	shift int        // 64-n
	used  int
}

// headSlot is free as long as its version is 0, which no entry has.
type headSlot struct {
	tag uint64
	chainHead
}

// newHeadTable returns an empty table.
func newHeadTable() headTable { return headTable{slots: make([]headSlot, 1<<8), shift: 64 - 8} }

// find returns the slot of tag, the free one where it goes if it has none.
func (t *headTable) find(tag uint64) (slot *headSlot, seen bool) {
	for i := tag >> t.shift; ; i++ {
		slot = &t.slots[i&uint64(len(t.slots)-1)]
		if slot.version == 0 || slot.tag == tag {
			return slot, slot.version != 0
		}
	}
}

// take gives tag the slot that find returned and that has a head by now. The
// table may move then.
func (t *headTable) take(slot *headSlot, tag uint64) {
	slot.tag = tag
	if t.used++; t.used <= len(t.slots)/4*3 {
		return
	}
	old := t.slots
	t.slots = make([]headSlot, 2*len(old))
	t.shift--
	for i := range old {
		if old[i].version != 0 {
			free, _ := t.find(old[i].tag)
			*free = old[i]
		}
	}
}
