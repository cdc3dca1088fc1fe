package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// auditPart is a run of entries of a segment file. Parts are audited side by
// side, each from where the directory says that its first record is, and that
// record its value. That this is where the part before ends, join checks.
type auditPart struct {
	*segmentAudit
	from, to uint64        // seq of the first entry, and the one after the last
	leaves   []hash        // where they go
	values   *bufio.Reader // each read exactly once, from the front
	records  *bufio.Reader
	offsets  *bufio.Reader // the directory
	valueAt  uint64        // where the next value begins
	recordAt uint64        // where the next record begins
	buf      []byte        // of one leaf
	told     uint64        // bytes that done has been told of

	start struct { // as the first entry and its offset in the directory say
		valueAt, recordAt uint64
		time              int64
	}
	lastTime int64
	links    [chainParts][]link
	err      error
}

// sectionBuffer is how much of a section is read at once, and the largest value
// that is hashed in one piece.
const sectionBuffer = 256 << 10

// split returns the entries in so many parts, none of them empty.
func (a *segmentAudit) split(parts uint64) []*auditPart {
	count := a.footer.count
	parts = min(parts, count)
	list := make([]*auditPart, parts)
	for i := range list {
		from, to := count*uint64(i)/parts, count*uint64(i+1)/parts
		list[i] = &auditPart{segmentAudit: a, from: a.found.first + from, to: a.found.first + to, leaves: a.found.leaves[from:to]}
	}
	return list
}

// join checks that sound parts follow each other without a gap, and adds what
// they found; the first difference is that of the first part that has one.
func (a *segmentAudit) join(list []*auditPart) error {
	valueAt, recordAt, time := uint64(segmentHeaderSize), a.footer.recordsAt, int64(0)
	a.found.earliest = list[0].start.time
	for _, p := range list {
		if got, want := p.start.recordAt, recordAt; got != want {
			return p.badOffset(p.from, got, want)
		}
		if p.err == nil && p.start.valueAt != valueAt {
			p.err = p.badPlace(p.from, p.start.recordAt, p.start.valueAt, valueAt)
		}
		if p.err == nil && p.start.time < time {
			p.err = a.differs(recordAt, p.from, "time goes back from %d to %d", time, p.start.time)
		}
		if p.err != nil {
			return p.err
		}
		valueAt, recordAt, time = p.valueAt, p.recordAt, p.lastTime
		for i, run := range p.links {
			a.found.links[i] = append(a.found.links[i], run)
		}
	}
	a.found.lastTime = time
	if valueAt != a.footer.recordsAt {
		return a.differsAt(valueAt, "bytes up to %d belong to no value", a.footer.recordsAt)
	}
	if recordAt != a.footer.directoryAt {
		return a.differsAt(recordAt, "bytes up to %d belong to no record", a.footer.directoryAt)
	}
	return nil
}

// run audits the entries of the part.
func (p *auditPart) run() error {
	if err := p.open(); err != nil {
		return err
	}
	for i := range p.links {
		p.links[i] = make([]link, 0, (p.to-p.from)/chainParts*9/8)
	}
	for seq := p.from; seq < p.to; seq++ {
		if err := p.readEntry(seq); err != nil {
			return err
		}
		if done := p.valueAt + p.recordAt; done-p.told > 1<<20 || seq+1 == p.to {
			p.done.Add(int64(done - p.told))
			p.told = done
		}
	}
	return nil
}

// open finds the first record and value of the part.
func (p *auditPart) open() error {
	f := &p.footer
	p.offsets = p.section(f.directoryAt+(p.from-p.found.first)*directoryEntrySize, uint64(p.size)-segmentFooterSize)
	b, err := p.offsets.Peek(directoryEntrySize)
	if err != nil {
		return fmt.Errorf("%s: directory: %w", p.name, err)
	}
	p.recordAt = f.recordsAt + uint64(binary.BigEndian.Uint32(b))
	p.start.recordAt = p.recordAt
	p.records = p.section(p.recordAt, f.directoryAt)
	v, err := p.peekRecord(p.from)
	if err != nil {
		return err
	}
	p.valueAt = v.valueAt()
	p.start.valueAt, p.start.time = p.valueAt, v.time()
	if p.valueAt < segmentHeaderSize || p.valueAt > f.recordsAt {
		return p.badPlace(p.from, p.recordAt, p.valueAt, segmentHeaderSize)
	}
	p.values = p.section(p.valueAt, f.recordsAt)
	p.lastTime = v.time()
	p.told = p.valueAt + p.recordAt
	return nil
}

// section returns a buffered reader of the bytes from from to to.
func (p *auditPart) section(from, to uint64) *bufio.Reader {
	n := max(to, from) - from
	return bufio.NewReaderSize(io.NewSectionReader(p.src, int64(from), int64(n)), int(min(n, sectionBuffer)))
}

// peekRecord returns the next record, which is sound by itself.
func (p *auditPart) peekRecord(seq uint64) (recordView, error) {
	fixed, err := p.records.Peek(recordFixed)
	if err != nil {
		return nil, p.differs(p.recordAt, seq, "the records end")
	}
	n := recordFixed + recordView(fixed).headerLength()
	b, err := p.records.Peek(n)
	if err != nil {
		return nil, p.differs(p.recordAt, seq, "the record of %d bytes goes beyond the records, or its length is damaged", n)
	}
	v, err := viewRecord(b)
	if err != nil {
		return nil, p.differs(p.recordAt, seq, "%w", err)
	}
	return v, nil
}

// readEntry checks the entry that comes next in every section.
func (p *auditPart) readEntry(seq uint64) error {
	if err := p.readOffset(seq); err != nil {
		return err
	}
	v, err := p.peekRecord(seq)
	if err != nil {
		return err
	}
	switch {
	case v.seq() != seq:
		return p.differs(p.recordAt, seq, "the record is of entry %d", v.seq())
	case v.time() < p.lastTime:
		return p.differs(p.recordAt, seq, "time goes back from %d to %d", p.lastTime, v.time())
	case v.valueAt() != p.valueAt || v.size() > p.footer.recordsAt-p.valueAt:
		return p.badPlace(seq, p.recordAt, v.valueAt(), p.valueAt)
	}
	if err := p.readValue(v); err != nil {
		return err
	}
	p.buf = append(append(p.buf[:0], 0x00), v.raw()...) // leafHash, with room that is there
	p.leaves[seq-p.from] = sha256.Sum256(p.buf)
	tag := p.tag(v.key())
	run := &p.links[tag%chainParts]
	*run = append(*run, link{tag, seq, v.version(), v.prev()})
	p.lastTime = v.time()
	p.valueAt += v.size()
	p.recordAt += uint64(len(v))
	_, err = p.records.Discard(len(v))
	return err
}

// readOffset checks that the directory leads to the record of seq.
func (p *auditPart) readOffset(seq uint64) error {
	b, err := p.offsets.Peek(directoryEntrySize)
	if err != nil {
		return fmt.Errorf("%s: directory: %w", p.name, err)
	}
	if got := p.footer.recordsAt + uint64(binary.BigEndian.Uint32(b)); got != p.recordAt {
		return p.badOffset(seq, got, p.recordAt)
	}
	_, err = p.offsets.Discard(directoryEntrySize)
	return err
}

// badOffset says that the directory leads to another place than the record of seq.
func (p *auditPart) badOffset(seq, got, want uint64) error {
	return p.differs(p.footer.directoryAt+(seq-p.found.first)*directoryEntrySize, seq,
		"directory says record offset %d, want %d", got-p.footer.recordsAt, want-p.footer.recordsAt)
}

// badPlace says that the record at recordAt has its value where it can not be.
func (p *auditPart) badPlace(seq, recordAt, got, want uint64) error {
	return p.differs(recordAt, seq, "value is at %d, want it at %d, all of it before %d", got, want, p.footer.recordsAt)
}

// readValue checks SHA-256 and CRC of the next value.
func (p *auditPart) readValue(v recordView) error {
	var sum hash
	var crc uint32
	if n := v.size(); n <= uint64(p.values.Size()) {
		b, err := p.values.Peek(int(n))
		if err != nil {
			return fmt.Errorf("%s: value at %d: %w", p.name, p.valueAt, err)
		}
		sum, crc = sha256.Sum256(b), crc32.Checksum(b, castagnoli)
		p.values.Discard(len(b))
	} else {
		long, check := sha256.New(), crc32.New(castagnoli)
		if _, err := io.CopyN(io.MultiWriter(long, check), p.values, int64(n)); err != nil {
			return fmt.Errorf("%s: value at %d: %w", p.name, p.valueAt, err)
		}
		sum, crc = hash(long.Sum(nil)), check.Sum32()
	}
	if want := v.sum(); sum != want {
		return p.differs(p.valueAt, v.seq(), "value of %d bytes has SHA-256 %s, its entry says %s", v.size(), sum, want)
	}
	if crc != v.valueCRC() {
		return p.differs(p.recordAt+12, v.seq(), "value has CRC %08x, its record says %08x", crc, v.valueCRC())
	}
	return nil
}
