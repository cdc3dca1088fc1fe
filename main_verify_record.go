package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"unicode/utf8"
)

// recordView is one whole record of a segment (segment_file.go), of which the
// fields are read where they lie: an audit looks at millions of them, and a
// parsed record costs as much as hashing a small value.
type recordView []byte

// The canonical header begins at recordFixed (segment.go).

func (v recordView) valueAt() uint64   { return binary.BigEndian.Uint64(v[4:]) }
func (v recordView) valueCRC() uint32  { return binary.BigEndian.Uint32(v[12:]) }
func (v recordView) raw() []byte       { return v[recordFixed:] }
func (v recordView) op() opKind        { return opKind(v[recordFixed+1]) }
func (v recordView) seq() uint64       { return binary.BigEndian.Uint64(v[recordFixed+2:]) }
func (v recordView) version() uint64   { return binary.BigEndian.Uint64(v[recordFixed+10:]) }
func (v recordView) prev() uint64      { return binary.BigEndian.Uint64(v[recordFixed+18:]) }
func (v recordView) time() int64       { return int64(binary.BigEndian.Uint64(v[recordFixed+26:])) }
func (v recordView) size() uint64      { return binary.BigEndian.Uint64(v[recordFixed+34:]) }
func (v recordView) sum() hash         { return hash(v[recordFixed+42:]) }
func (v recordView) key() []byte       { return v[recordFixed+headerFixed+2:][:v.keySize()] }
func (v recordView) keySize() int      { return int(binary.BigEndian.Uint16(v[recordFixed+headerFixed:])) }
func (v recordView) headerLength() int { return int(binary.BigEndian.Uint16(v[16:])) }

// viewRecord returns the view of one whole record, if parseRecord accepts it.
func viewRecord(b []byte) (recordView, error) {
	v := recordView(b)
	if v.sound() {
		return v, nil
	}
	if _, err := parseRecord(b); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w: record", errCorrupt)
}

// sound reports what parseRecord and header.validate check.
func (v recordView) sound() bool {
	if len(v) < recordFixed+headerFixed+2 || v.headerLength() != len(v)-recordFixed ||
		crc32.Checksum(v[4:], castagnoli) != binary.BigEndian.Uint32(v) {
		return false
	}
	n := v.keySize()
	if v[recordFixed] != headerFormat || n == 0 || n > maxKeySize || n > len(v)-recordFixed-headerFixed-2 || v.time() < 0 {
		return false
	}
	first, version, prev := v.prev() == noSeq, v.version(), v.prev()
	if version == 0 || (version == 1) != first || !first && (prev >= v.seq() || version-2 > prev) {
		return false
	}
	if v.op() != opPut && (v.op() != opDelete || v.size() != 0 || v.sum() != emptyRoot) {
		return false
	}
	return soundLabels(v[recordFixed+headerFixed+2+n:])
}

// soundLabels reports whether b is the three labels that end a header.
func soundLabels(b []byte) bool {
	for range 3 {
		if len(b) == 0 || int(b[0]) > len(b)-1 || !utf8.Valid(b[1:1+int(b[0])]) {
			return false
		}
		b = b[1+int(b[0]):]
	}
	return len(b) == 0
}
