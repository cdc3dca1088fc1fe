package main

import (
	"bytes"
	"fmt"
	"io"
)

// packedObject is a packed segment where it lies, read in pieces. Nothing of it
// is believed that the name of the object does not commit to.
type packedObject struct {
	table *gzipTable
	read  func(from, size int64) ([]byte, error)
}

// packedPiece is how many bytes of an object are read at a time, or one member
// if that has more.
const packedPiece = 4 << 20

// openPacked reads the table of the packed segment of that name, which has packed
// bytes and holds a file of size bytes.
func openPacked(name string, size, packed int64, read func(from, size int64) ([]byte, error)) (*packedObject, error) {
	_, sum, ok := parsePackedName(name)
	n := gzipTableSize(size)
	if !ok || size <= 0 || packed < n {
		return nil, fmt.Errorf("%w: %.120q with %d bytes, for a file of %d", errPacked, name, packed, size)
	}
	b, err := read(packed-n, n)
	if err != nil {
		return nil, err
	}
	table, err := parseGzipTable(b, size)
	if err != nil {
		return nil, err
	}
	if table.objectSize() != packed || table.sum() != sum {
		return nil, fmt.Errorf("%w: its table is of an object of %d bytes named for %s, it has %d and is named for %s",
			errPacked, table.objectSize(), table.sum(), packed, sum)
	}
	return &packedObject{table, read}, nil
}

// unpack writes the bytes of the segment file from an offset on to w.
func (p *packedObject) unpack(from int64, w io.Writer) error {
	var unpack unpacker
	for from < p.table.size {
		first, _ := p.table.members(from, 1)
		last := p.lastOfPiece(first)
		at, n := p.table.span(first, last)
		b, err := p.read(at, n)
		if err != nil {
			return err
		}
		for i := first; i <= last; i++ {
			memberAt, n := p.table.span(i, i)
			raw, err := unpack.member(p.table, i, b[memberAt-at:][:n])
			if err != nil {
				return err
			}
			if _, err := w.Write(raw[from-int64(i)*p.table.member:]); err != nil {
				return err
			}
			from = int64(i)*p.table.member + int64(len(raw))
		}
	}
	return nil
}

// lastOfPiece returns the last member of the piece that begins with member first.
func (p *packedObject) lastOfPiece(first int) int {
	last := first
	for last+1 < len(p.table.ends) {
		if _, n := p.table.span(first, last+1); n > packedPiece {
			break
		}
		last++
	}
	return last
}

// footer returns the footer of the segment file.
func (p *packedObject) footer() (segmentFooter, error) {
	var tail bytes.Buffer
	if err := p.unpack(max(p.table.size-segmentFooterSize, 0), &tail); err != nil {
		return segmentFooter{}, err
	}
	return parseSegmentFooter(tail.Bytes(), p.table.size)
}
