package main

import (
	"fmt"
	"hash/maphash"
	"sync"
)

// The chain of versions: an entry names the key's previous one, and counts one
// more. To check that, the audit remembers of each key its newest entry, in 16
// bytes and under 8 bytes that stand for the key (its tag): some 40 bytes a key
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
const chainParts = 4

// chains are the newest entries of all keys so far.
type chains struct {
	tag   func(key []byte) uint64
	parts [chainParts]chainPart // by the tag's remainder
	// find returns the header of an entry that was audited and, for people, where it is.
	find func(seq uint64) (h header, where string, err error)
}

// chainPart is chains for a part of the keys.
type chainPart struct {
	heads  map[uint64]chainHead            // by tag
	shared map[uint64]map[string]chainHead // tags of more than one key
}

// newChains returns chains without any key.
func newChains() *chains {
	seed := maphash.MakeSeed()
	c := &chains{tag: func(key []byte) uint64 { return maphash.Bytes(seed, key) }}
	for i := range c.parts {
		c.parts[i] = chainPart{make(map[uint64]chainHead), make(map[uint64]map[string]chainHead)}
	}
	return c
}

// follows reports whether an entry goes on from head, the key's newest if there is one.
func (l link) follows(head chainHead, seen bool) bool {
	if !seen {
		return l.prev == noSeq && l.version == 1
	}
	return l.prev == head.seq && l.version == head.version+1
}

// addAll checks the entries from first on, the next of the ledger. at is the
// entry that err, the first difference, is about.
func (c *chains) addAll(first uint64, links []link) (at uint64, err error) {
	var group sync.WaitGroup
	var found [chainParts]struct {
		at  uint64
		err error
	}
	for part := range c.parts {
		group.Go(func() {
			for i, l := range links {
				if l.tag%chainParts != uint64(part) {
					continue
				}
				if err := c.add(first+uint64(i), l); err != nil {
					found[part].at, found[part].err = first+uint64(i), err
					return
				}
			}
		})
	}
	group.Wait()
	for _, f := range found {
		if f.err != nil && (err == nil || f.at < at) {
			at, err = f.at, f.err
		}
	}
	return at, err
}

// add checks entry seq, the next of its part.
func (c *chains) add(seq uint64, l link) error {
	p := &c.parts[l.tag%chainParts]
	head, seen := p.heads[l.tag]
	if l.follows(head, seen) && (len(p.shared) == 0 || p.shared[l.tag] == nil) {
		p.heads[l.tag] = chainHead{seq, l.version}
		return nil
	}
	return c.addByKey(p, seq, l, head, seen)
}

// addByKey is add for an entry whose tag does not decide.
func (c *chains) addByKey(p *chainPart, seq uint64, l link, head chainHead, seen bool) error {
	h, where, err := c.find(seq)
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
	keys[string(h.key)] = chainHead{seq, l.version}
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
