package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// How the bytes of a cold segment are read: member by member through the cache
// (store_cache.go), many members in order, or as a file for a client.

// coldBytes reads the bytes of a cold segment. It is safe for concurrent use.
type coldBytes struct {
	*coldRecord
	c   *coldState
	key string // of the object
}

// Close implements segmentBytes; there is nothing to close.
func (b *coldBytes) Close() error { return nil }

// ReadAt implements io.ReaderAt, through the cache.
func (b *coldBytes) ReadAt(p []byte, at int64) (int, error) {
	switch size, end := b.table.size, at+int64(len(p)); {
	case at < 0 || at >= size:
		return 0, io.EOF
	case end > size:
		n, err := b.ReadAt(p[:size-at], at)
		if err == nil {
			err = io.EOF
		}
		return n, err
	case end <= segmentHeaderSize:
		return copy(p, b.header[at:]), nil
	case at >= size-segmentFooterSize:
		return copy(p, b.footer[at-(size-segmentFooterSize):]), nil
	}
	if err := b.fill(p, at); err != nil {
		return 0, err
	}
	return len(p), nil
}

// fill fills p, at least one byte, with what is at that offset.
func (b *coldBytes) fill(p []byte, at int64) error {
	if len(p) == 0 {
		return nil
	}
	first, last := b.table.members(at, int64(len(p)))
	members, err := b.cached(first, last)
	if err != nil {
		return err
	}
	for i, raw := range members {
		from := max(0, at-int64(first+i)*b.table.member)
		p = p[copy(p, raw[from:]):]
	}
	return nil
}

// spanMembers is how many members one request reads at most.
const spanMembers = 8

// cached returns members first to last, from memory if they are there. What is not
// is read, several side by side with one request.
func (b *coldBytes) cached(first, last int) ([][]byte, error) {
	var reads sync.WaitGroup
	var mine []*cachedMember // claimed, and not being read yet; the last of them is before i
	load := func(i int) {
		if span := mine; len(span) > 0 {
			reads.Go(func() { b.load(i-len(span), span) })
		}
		mine = nil
	}
	wanted := make([]*cachedMember, 0, last-first+1)
	others := make([]bool, last-first+1)
	end := min(last+b.ahead(first), len(b.table.sums)-1) + 1
	for i := first; i < end; i++ {
		m, claimed := b.c.cache.claim(b.table.sums[i])
		if i <= last {
			wanted, others[i-first] = append(wanted, m), !claimed
			if !claimed {
				b.c.metrics.cold.hits.add(1)
			}
		}
		if !claimed || len(mine) == spanMembers {
			load(i)
		}
		if claimed {
			mine = append(mine, m)
		}
	}
	load(end)
	reads.Wait()
	raws := make([][]byte, len(wanted))
	for i, m := range wanted {
		<-m.done
		raw, err := m.raw, m.err
		if err != nil && others[i] { // of another reader, maybe of another object
			raw, err = b.readOne(first + i)
		}
		if err != nil {
			return nil, err
		}
		raws[i] = raw
	}
	return raws, nil
}

// ahead returns how many members to read beyond those that are wanted: none, or
// for who reads one after the other, as a listing does, as many as he had before.
func (b *coldBytes) ahead(first int) (n int) {
	for n < spanMembers && n < first && b.c.cache.has(b.table.sums[first-n-1]) {
		n++
	}
	if n < 2 {
		return 0
	}
	return n
}

// load reads claimed members from index from on, with one request, and settles them.
func (b *coldBytes) load(from int, span []*cachedMember) {
	raws, errs := b.read(from, from+len(span)-1)
	for i, m := range span {
		b.c.cache.settle(m, raws[i], errs[i])
	}
}

// read reads members first to last with one request; each is right or an error. One
// that is not right is read once more: it may have been hit on the way.
func (b *coldBytes) read(first, last int) (raws [][]byte, errs []error) {
	raws, errs = make([][]byte, last-first+1), make([]error, last-first+1)
	from, size := b.table.span(first, last)
	packed, err := b.c.objectReader.read(b.key, from, size)
	for i := range raws {
		if errs[i] = err; err != nil {
			continue
		}
		at, n := b.table.span(first+i, first+i)
		if raws[i], errs[i] = b.table.unpackMember(first+i, packed[at-from:][:n]); errs[i] != nil {
			raws[i], errs[i] = b.readOne(first + i)
		}
	}
	return raws, errs
}

// readOne reads one member.
func (b *coldBytes) readOne(i int) ([]byte, error) {
	at, n := b.table.span(i, i)
	packed, err := b.c.objectReader.read(b.key, at, n)
	if err != nil {
		return nil, err
	}
	raw, err := b.table.unpackMember(i, packed)
	if err != nil {
		return nil, b.c.damaged(b.key, err)
	}
	return raw, nil
}

// section implements segmentBytes: several requests are under way at a time. Only
// what will be read again goes through the cache.
func (b *coldBytes) section(from, size int64, again bool) io.Reader {
	s := &coldSection{b: b, at: from, end: from + size, again: again, width: 1}
	if size > 0 {
		s.next, s.last = b.table.members(from, size)
	}
	return s
}

// sectionAhead is how many requests for a section are under way at a time.
const sectionAhead = 4

// coldSection reads a part of a cold segment in order, owned by one goroutine.
type coldSection struct {
	b          *coldBytes
	at, end    int64 // what is still to be read
	again      bool
	next, last int // members that are not asked for yet
	width      int // of the next request
	ahead      []chan coldPiece
	rest       []byte // of the piece that came last
	err        error
}

// coldPiece is what a request brought: members side by side.
type coldPiece struct {
	from int64 // in the file
	raws [][]byte
	err  error
}

// Read implements io.Reader.
func (s *coldSection) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.at == s.end {
			return 0, io.EOF
		}
		if s.err == nil {
			s.err = s.advance()
		}
		if s.err != nil {
			return 0, s.err
		}
	}
	n := copy(p, s.rest)
	s.rest, s.at = s.rest[n:], s.at+int64(n)
	return n, nil
}

// advance asks for more, twice as much each time, and takes the next piece.
func (s *coldSection) advance() error {
	for len(s.ahead) < sectionAhead && s.next <= s.last {
		first, last := s.next, min(s.next+s.width-1, s.last)
		ch := make(chan coldPiece, 1)
		go func() { ch <- s.b.piece(first, last, s.again) }()
		s.ahead = append(s.ahead, ch)
		s.next, s.width = last+1, min(2*s.width, spanMembers)
	}
	p := <-s.ahead[0]
	s.ahead = s.ahead[1:]
	if p.err != nil {
		return p.err
	}
	s.rest = slices.Concat(p.raws...)
	s.rest = s.rest[s.at-p.from:]
	s.rest = s.rest[:min(int64(len(s.rest)), s.end-s.at)]
	return nil
}

// piece reads members first to last.
func (b *coldBytes) piece(first, last int, again bool) coldPiece {
	p := coldPiece{from: int64(first) * b.table.member}
	if again {
		p.raws, p.err = b.cached(first, last)
		return p
	}
	raws, errs := b.read(first, last)
	for _, err := range errs {
		if err != nil {
			p.err = err
		}
	}
	p.raws = raws
	return p
}

// farSegment is a cold segment as a file that is read from some place on.
type farSegment struct {
	s    *store
	info segmentInfo
	f    *segmentFile
	at   int64
	in   io.Reader // from at on; nil: not opened yet
}

// openFar opens a cold segment as a file. The object is there, with its size:
// who reads all of it is not to hear in the middle that it ends.
func (s *store) openFar(info segmentInfo) (io.ReadSeekCloser, error) {
	f, err := s.openCold(info)
	if err != nil {
		return nil, err
	}
	if b, ok := f.src.(*coldBytes); ok {
		size, err := s.cold.size(b.key)
		if want := b.table.objectSize(); err == nil && size != want {
			err = s.cold.damaged(b.key, fmt.Errorf("it has %d bytes, want %d", size, want))
		}
		if err != nil {
			return nil, err
		}
	}
	return &farSegment{s: s, info: info, f: f}, nil
}

// Seek implements io.Seeker.
func (r *farSegment) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.f.size
	}
	if offset < 0 {
		return r.at, fmt.Errorf("segment %s: byte %d", r.f.name, offset)
	}
	if offset != r.at {
		r.in = nil
	}
	r.at = offset
	return offset, nil
}

// Read implements io.Reader. If an object turns out to be damaged the segment
// comes from another node, and the reader goes on.
func (r *farSegment) Read(p []byte) (int, error) {
	if r.at >= r.f.size {
		return 0, io.EOF
	}
	n, err := r.read(p)
	if errors.Is(err, errArchiveCorrupt) {
		if merr := r.s.mend(r.info); merr != nil {
			return 0, fmt.Errorf("%w; %v", err, merr)
		}
		if r.f, err = r.s.segment(r.info); err != nil {
			return 0, err
		}
		r.in = nil
		n, err = r.read(p)
	}
	r.at += int64(n)
	return n, err
}

// read reads what comes next.
func (r *farSegment) read(p []byte) (int, error) {
	if r.in == nil {
		r.in = r.f.src.section(r.at, r.f.size-r.at, false)
	}
	return r.in.Read(p)
}

// Close implements io.Closer.
func (r *farSegment) Close() error { return nil }
