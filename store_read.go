package main

import (
	"context"
	"errors"
	"io"
)

var (
	// errNotFound: no version of the key exists, or none that was asked for.
	errNotFound = errors.New("not found")
	// errDeleted: the version asked for is a tombstone.
	errDeleted = errors.New("deleted")
)

// entry is one entry of the ledger as readers get it.
type entry struct {
	header
	raw   []byte      // canonical header bytes
	leaf  hash        // leafHash(raw)
	value io.ReaderAt // size bytes, already checked against their CRC
}

// selector says which version of a key is wanted; the zero value is the newest.
type selector struct {
	version uint64  // >0: this version
	seq     *uint64 // this entry, which must be of the key
	atSeq   *uint64 // the newest version with seq <= atSeq
	atTime  *int64  // the newest version with time <= atTime (Unix ms)
}

// get returns the wanted version of key. A tombstone is returned together
// with errDeleted. Damaged bytes give an error that wraps errCorrupt.
func (s *store) get(key []byte, sel selector) (entry, error) { panic("stub") }

// entryAt returns the entry with the given seq.
func (s *store) entryAt(seq uint64) (entry, error) { panic("stub") }

// history returns the versions of key with seq < before, newest first, at
// most limit, and the seq to give as before for the next page (nil at the end).
func (s *store) history(key []byte, before uint64, limit int) ([]entry, *uint64, error) {
	panic("stub")
}

// list returns the live keys with the prefix that come after after (nil = from
// the start), in byte order, at most limit, and whether more follow.
func (s *store) list(prefix, after []byte, limit int) ([]entry, bool, error) { panic("stub") }

// size returns how many entries this node has applied.
func (s *store) size() uint64 { panic("stub") }

// waitSize waits until size() >= n.
func (s *store) waitSize(ctx context.Context, n uint64) error { panic("stub") }
