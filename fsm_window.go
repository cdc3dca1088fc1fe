package main

import (
	"encoding/binary"
	"fmt"
)

// window remembers the outcome of the last requests that carried an
// Idempotency-Key, so that a repeat gets the first answer. It is part of the
// replicated state: its content depends on the log alone.
//
// Requests are numbered from 0. The window is kept in chunks of 4,096 requests
// so that D rewrites only those that changed. A chunk's number is that of its
// first request divided by 4,096, and its encoding is, for each request,
//
//	1  length of the idempotency key, then the key
//	1  outcome
//	4  index of the operation that failed
//	8  seq of the live version, 2^64-1 if none
//	8  seq of the first appended entry
//	4  number of appended entries
type window struct {
	chunks map[uint64][]remembered // by number
	oldest uint64                  // number of the oldest chunk
	next   uint64                  // number of the next request
	byKey  map[string]uint64       // idempotency key to request number
	saved  uint64                  // requests before it are in an earlier D
}

const (
	windowChunk = 4096
	// windowSize is how many requests are remembered at least: 100,000 and up
	// to a chunk more.
	windowSize = 100_000
)

// remembered is the outcome of one request.
type remembered struct {
	key     string
	outcome outcome
	failed  uint32
	current uint64
	first   uint64 // seq of the first entry it appended
	count   uint32 // entries it appended
}

// newWindow returns the window of the checkpoint at, which the chunks describe.
func newWindow(chunks []chunk, at *checkpoint) (*window, error) {
	w := &window{chunks: make(map[uint64][]remembered), byKey: make(map[string]uint64)}
	w.oldest = min(at.windowOldest, at.windowNext/windowChunk)
	w.next = w.oldest * windowChunk
	for _, c := range chunks {
		if c.number != w.next/windowChunk || w.next%windowChunk != 0 {
			return nil, fmt.Errorf("%w: idempotency window has a gap before chunk %d", errCorrupt, c.number)
		}
		for cur := (cursor{b: c.data}); len(cur.b) > 0; {
			r, err := parseRemembered(&cur)
			if err != nil {
				return nil, fmt.Errorf("chunk %d of the idempotency window: %w", c.number, err)
			}
			w.add(r)
		}
	}
	if w.oldest != at.windowOldest || w.next != at.windowNext {
		return nil, fmt.Errorf("%w: idempotency window has requests %d to %d, the checkpoint says chunk %d to request %d",
			errCorrupt, w.oldest*windowChunk, w.next, at.windowOldest, at.windowNext)
	}
	w.saved = w.next
	return w, nil
}

// find returns the outcome of an earlier request with the key.
func (w *window) find(key string) (remembered, bool) {
	n, ok := w.byKey[key]
	if !ok {
		return remembered{}, false
	}
	return w.chunks[n/windowChunk][n%windowChunk], true
}

// add remembers one request and forgets the oldest chunk once that leaves enough.
func (w *window) add(r remembered) {
	n := w.next / windowChunk
	w.chunks[n] = append(w.chunks[n], r)
	w.byKey[r.key] = w.next
	w.next++
	for w.next-(w.oldest+1)*windowChunk >= windowSize && w.oldest < n {
		for i, old := range w.chunks[w.oldest] {
			if w.byKey[old.key] == w.oldest*windowChunk+uint64(i) {
				delete(w.byKey, old.key)
			}
		}
		delete(w.chunks, w.oldest)
		w.oldest++
	}
}

// changed returns the chunks that changed since the last call, encoded.
func (w *window) changed() []chunk {
	var out []chunk
	if w.next == w.saved {
		return nil
	}
	for n := max(w.saved/windowChunk, w.oldest); n <= (w.next-1)/windowChunk; n++ {
		out = append(out, w.encode(n))
	}
	w.saved = w.next
	return out
}

// encode returns chunk n as it is stored.
func (w *window) encode(n uint64) chunk {
	var b []byte
	for i := range w.chunks[n] {
		b = appendRemembered(b, &w.chunks[n][i])
	}
	return chunk{n, b}
}

// appendRemembered appends the encoding of r.
func appendRemembered(b []byte, r *remembered) []byte {
	b = append(b, byte(len(r.key)))
	b = append(b, r.key...)
	b = append(b, byte(r.outcome))
	b = binary.BigEndian.AppendUint32(b, r.failed)
	b = binary.BigEndian.AppendUint64(b, r.current)
	b = binary.BigEndian.AppendUint64(b, r.first)
	return binary.BigEndian.AppendUint32(b, r.count)
}

// parseRemembered reads one remembered request off c.
func parseRemembered(c *cursor) (remembered, error) {
	r := remembered{
		key:     string(c.take(int(c.uint8()))),
		outcome: outcome(c.uint8()),
		failed:  c.uint32(),
		current: c.uint64(),
		first:   c.uint64(),
		count:   c.uint32(),
	}
	if c.short || len(r.key) == 0 || len(r.key) > maxIdempotencyKey || r.outcome < outcomeApplied || r.outcome > outcomeDigestMismatch {
		return r, fmt.Errorf("%w: remembered request with a key of %d bytes and outcome %d", errCorrupt, len(r.key), r.outcome)
	}
	return r, nil
}
