package main

import (
	"container/list"
	"sync"
)

// memberCache keeps members of packed segments that were read lately, unpacked
// and checked, up to limit bytes; who was not asked for longest goes first. A
// member that is being read is there already: who wants it waits for it.
type memberCache struct {
	limit int64 // bytes; 0 keeps nothing
	bytes *gauge

	mu      sync.Mutex
	members map[hash]*cachedMember
	used    list.List // of *cachedMember that are kept, lately used first
	size    int64     // of them
}

// cachedMember is one of them. raw and err are there once done is closed.
type cachedMember struct {
	sum  hash // of raw: where it came from does not matter
	done chan struct{}
	raw  []byte
	err  error
	at   *list.Element // in used, nil: not there
}

// claim returns the member with that SHA-256. If mine, nobody reads it yet: the caller
// must, and settle it.
func (c *memberCache) claim(sum hash) (m *cachedMember, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.members[sum]; m != nil {
		if m.at != nil {
			c.used.MoveToFront(m.at)
		}
		return m, false
	}
	m = &cachedMember{sum: sum, done: make(chan struct{})}
	if c.members == nil {
		c.members = make(map[hash]*cachedMember)
	}
	c.members[sum] = m
	return m, true
}

// settle hands a claimed member to all who wait for it, and keeps it unless it
// could not be read.
func (c *memberCache) settle(m *cachedMember, raw []byte, err error) {
	m.raw, m.err = raw, err
	close(m.done)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || int64(len(raw)) > c.limit {
		delete(c.members, m.sum)
		return
	}
	m.at = c.used.PushFront(m)
	for c.size += int64(len(raw)); c.size > c.limit; {
		old := c.used.Remove(c.used.Back()).(*cachedMember)
		c.size -= int64(len(old.raw))
		delete(c.members, old.sum)
	}
	c.bytes.set(c.size)
}

// has tells whether a member is there, or about to be.
func (c *memberCache) has(sum hash) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members[sum] != nil
}
