package main

import (
	"fmt"
	"hash/maphash"
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

// chains are the newest entries of all keys so far.
type chains struct {
	tag    func(key []byte) uint64
	heads  map[uint64]chainHead            // by tag
	shared map[uint64]map[string]chainHead // tags of more than one key
	// find returns the header of an entry that was audited and, for people, where it is.
	find func(seq uint64) (h header, where string, err error)
}

// newChains returns chains without any key.
func newChains() *chains {
	seed := maphash.MakeSeed()
	return &chains{
		tag:    func(key []byte) uint64 { return maphash.Bytes(seed, key) },
		heads:  make(map[uint64]chainHead),
		shared: make(map[uint64]map[string]chainHead),
	}
}

// follows reports whether an entry goes on from head, the key's newest if there is one.
func (l link) follows(head chainHead, seen bool) bool {
	if !seen {
		return l.prev == noSeq && l.version == 1
	}
	return l.prev == head.seq && l.version == head.version+1
}

// add checks entry seq, the next of the ledger.
func (c *chains) add(seq uint64, l link) error {
	head, seen := c.heads[l.tag]
	if l.follows(head, seen) && (len(c.shared) == 0 || c.shared[l.tag] == nil) {
		c.heads[l.tag] = chainHead{seq, l.version}
		return nil
	}
	return c.addByKey(seq, l, head, seen)
}

// addByKey is add for an entry whose tag does not decide.
func (c *chains) addByKey(seq uint64, l link, head chainHead, seen bool) error {
	h, where, err := c.find(seq)
	if err != nil {
		return err
	}
	keys := c.shared[l.tag]
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
	c.shared[l.tag] = keys
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
