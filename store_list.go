package main

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Listing of live keys: a merge of those in memory with those in the key index,
// whose records are then read.

// list returns the live keys with the prefix that come after after (nil = from
// the start), in byte order, at most limit, and whether more follow.
func (s *store) list(prefix, after []byte, limit int) ([]entry, bool, error) {
	from := prefix
	if after != nil && bytes.Compare(after, prefix) >= 0 {
		from = append(slices.Clone(after), 0)
	}
	for tries := 0; ; tries++ {
		found, more, err := s.listFrom(prefix, from, limit)
		var broken *runError
		if !errors.As(err, &broken) || tries == 3 {
			return found, more, err
		}
		if rerr := s.repairRun(broken.info); rerr != nil {
			return nil, false, errors.Join(err, rerr)
		}
	}
}

// listFrom is one try of list, from the key from on: a merge of the keys in
// memory with those in the runs. A key that is in both is newer in memory.
func (s *store) listFrom(prefix, from []byte, limit int) ([]entry, bool, error) {
	memory := s.keysInMemory(from)
	disk := s.index.scan(from)
	mkey, mok := memory.next()
	dkey, p, dok := disk.next()
	var found []entry
	var onDisk []listedKey
	done := func(more bool) ([]entry, bool, error) {
		if err := disk.err(); err != nil {
			return nil, false, err
		}
		return found, more, s.readListed(found, onDisk)
	}
	for {
		var e entry
		var err error
		mok = mok && strings.HasPrefix(mkey, string(prefix))
		dok = dok && bytes.HasPrefix(dkey, prefix)
		switch {
		case !mok && !dok:
			return done(false)
		case mok && (!dok || mkey <= string(dkey)):
			if dok && mkey == string(dkey) {
				dkey, p, dok = disk.next()
			}
			e, err = s.get([]byte(mkey), selector{})
			mkey, mok = memory.next()
		case p.deleted:
			err = errDeleted
			dkey, p, dok = disk.next()
		default:
			if len(found) < limit {
				e.key = bytes.Clone(dkey)
				onDisk = append(onDisk, listedKey{len(found), p.seq, place{p.offset, p.length}})
			}
			dkey, p, dok = disk.next()
		}
		if errors.Is(err, errDeleted) {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		if len(found) == limit {
			return done(true)
		}
		found = append(found, e)
	}
}

// listedKey is a key of a list whose record is still to be read.
type listedKey struct {
	at  int // in the list
	seq uint64
	pl  place
}

// listReaders is how many records of a list are read at a time.
const listReaders = 8

// readListed fills in the records of keys. They are read in the order of the ledger,
// so that what lies together in a cold segment is fetched once, and several at a
// time, as a bucket is far away.
func (s *store) readListed(found []entry, keys []listedKey) error {
	slices.SortFunc(keys, func(a, b listedKey) int { return cmp.Compare(a.seq, b.seq) })
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var readers sync.WaitGroup
	for range min(listReaders, len(keys)) {
		readers.Go(func() {
			for failed.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(keys) {
					return
				}
				k := &keys[i]
				e, err := s.entryFrom(k.seq, &k.pl, false)
				if err == nil && !bytes.Equal(e.key, found[k.at].key) {
					err = otherKey(k.seq)
				}
				if err != nil {
					failed.CompareAndSwap(nil, &err)
				}
				found[k.at] = e
			}
		})
	}
	readers.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// keyCursor merges sorted lists of keys.
type keyCursor struct{ lists [][]string }

// next returns the smallest key left, which it takes from all lists.
func (c *keyCursor) next() (string, bool) {
	least, ok := "", false
	for _, l := range c.lists {
		if len(l) > 0 && (!ok || l[0] < least) {
			least, ok = l[0], true
		}
	}
	for i, l := range c.lists {
		if len(l) > 0 && l[0] == least {
			c.lists[i] = l[1:]
		}
	}
	return least, ok
}

// keysInMemory returns the keys in memory that are not before from.
func (s *store) keysInMemory(from []byte) *keyCursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	var c keyCursor
	for _, p := range s.inMemory() {
		p.sortKeys()
		i, _ := slices.BinarySearch(p.sorted, string(from))
		c.lists = append(c.lists, p.sorted[i:]) // a later sortKeys makes a new slice
	}
	return &c
}
