package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"unicode/utf8"
)

// This file owns the canonical header of an entry, which is the leaf of the
// Merkle tree. The segment file is in segment_file.go, the segment that is
// still growing in segment_pending.go. All integers are big-endian.
//
// # Canonical entry header (version 1)
//
//	offset  size  field
//	     0     1  format: 1
//	     1     1  operation: 1 put, 2 delete (tombstone)
//	     2     8  seq: position in the ledger, from 0
//	    10     8  version: position among the entries of this key, from 1
//	    18     8  prev: seq of the key's previous entry; 2^64-1 if there is none
//	    26     8  time: Unix milliseconds, not negative, never less than that of seq-1
//	    34     8  size of the value in bytes
//	    42    32  SHA-256 of the value
//	    74     2  length of the key (1 to 1024), then the key
//	     .     1  length of the content type (0 to 255), then the content type, UTF-8
//	     .     1  length of the author, then the author, UTF-8
//	     .     1  length of the region, then the region, UTF-8
//
// Nothing follows. version is 1 exactly when prev is 2^64-1, else at most
// prev+2. A tombstone has size 0 and the SHA-256 of nothing. There is one
// encoding of each header: a parser that accepts bytes and encodes them again
// gets the same bytes.
//
// leaf hash = SHA-256(0x00 ‖ canonical header), RFC 6962 §2.1. The value
// is bound by its SHA-256; a header is at most 1,868 bytes, so that
// it fits a C2SP tlog-tiles entry bundle (uint16 lengths).

// opKind says what an entry does to its key. Part of the file format.
type opKind uint8

const (
	opPut    opKind = 1
	opDelete opKind = 2
)

func (o opKind) String() string {
	switch o {
	case opPut:
		return "put"
	case opDelete:
		return "delete"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Part of the file format; never change, add a version.
const (
	headerFormat  = 1
	headerFixed   = 74         // bytes before the length of the key
	maxKeySize    = 1024       // bytes
	maxLabelSize  = 255        // bytes of content type, author, region
	noSeq         = ^uint64(0) // prev of a key's first entry
	maxHeaderSize = headerFixed + 2 + maxKeySize + 3*(1+maxLabelSize)
)

// errCorrupt is wrapped by every error that says stored bytes are not what was written.
var errCorrupt = errors.New("corrupt")

// castagnoli is the polynomial of every CRC32C in our files.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is one entry of the ledger without its value.
type header struct {
	op          opKind
	seq         uint64 // position in the ledger, from 0
	version     uint64 // position among the entries of the key, from 1
	prev        uint64 // seq of the key's previous entry, or noSeq
	time        int64  // Unix milliseconds
	size        uint64 // bytes of value
	sum         hash   // SHA-256 of the value
	key         []byte
	contentType string
	author      string
	region      string
}

// validate reports the first field that no entry can have.
func (h *header) validate() error {
	switch {
	case h.op != opPut && h.op != opDelete:
		return fmt.Errorf("entry header: operation is %d, want 1 or 2", h.op)
	case len(h.key) == 0 || len(h.key) > maxKeySize:
		return fmt.Errorf("entry header: key has %d bytes, want 1 to %d", len(h.key), maxKeySize)
	case h.version == 0 || (h.version == 1) != (h.prev == noSeq):
		return fmt.Errorf("entry header: version is %d but prev is %d", h.version, int64(h.prev))
	case h.prev != noSeq && h.prev >= h.seq:
		return fmt.Errorf("entry header: prev is %d, not before seq %d", h.prev, h.seq)
	case h.prev != noSeq && h.version-2 > h.prev:
		return fmt.Errorf("entry header: version is %d, more than fit before seq %d", h.version, h.seq)
	case h.time < 0:
		return fmt.Errorf("entry header: time is %d", h.time)
	case h.op == opDelete && (h.size != 0 || h.sum != emptyRoot):
		return fmt.Errorf("entry header: a tombstone has a value of %d bytes", h.size)
	}
	for _, s := range [...]string{h.contentType, h.author, h.region} {
		if len(s) > maxLabelSize || !utf8.ValidString(s) {
			return fmt.Errorf("entry header: label %.40q is not UTF-8 of at most %d bytes", s, maxLabelSize)
		}
	}
	return nil
}

// appendHeader appends the canonical bytes of h, which must be valid.
func appendHeader(b []byte, h *header) []byte {
	b = append(b, headerFormat, byte(h.op))
	b = binary.BigEndian.AppendUint64(b, h.seq)
	b = binary.BigEndian.AppendUint64(b, h.version)
	b = binary.BigEndian.AppendUint64(b, h.prev)
	b = binary.BigEndian.AppendUint64(b, uint64(h.time))
	b = binary.BigEndian.AppendUint64(b, h.size)
	b = append(b, h.sum[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.key)))
	b = append(b, h.key...)
	for _, s := range [...]string{h.contentType, h.author, h.region} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	return b
}

// parseHeader reads canonical bytes; the key of the result shares b.
func parseHeader(b []byte) (header, error) {
	var h header
	if len(b) < headerFixed+2 {
		return h, fmt.Errorf("%w: entry header has %d bytes, want at least %d", errCorrupt, len(b), headerFixed+2)
	}
	if b[0] != headerFormat {
		return h, fmt.Errorf("%w: entry header has format %d, this program reads %d", errCorrupt, b[0], headerFormat)
	}
	h.op = opKind(b[1])
	h.seq = binary.BigEndian.Uint64(b[2:])
	h.version = binary.BigEndian.Uint64(b[10:])
	h.prev = binary.BigEndian.Uint64(b[18:])
	h.time = int64(binary.BigEndian.Uint64(b[26:]))
	h.size = binary.BigEndian.Uint64(b[34:])
	copy(h.sum[:], b[42:])
	n := int(binary.BigEndian.Uint16(b[headerFixed:]))
	rest := b[headerFixed+2:]
	if n > len(rest) {
		return h, fmt.Errorf("%w: entry header ends inside its key", errCorrupt)
	}
	h.key, rest = rest[:n:n], rest[n:]
	for _, s := range [...]*string{&h.contentType, &h.author, &h.region} {
		if len(rest) == 0 || int(rest[0]) > len(rest)-1 {
			return h, fmt.Errorf("%w: entry header ends inside a label", errCorrupt)
		}
		n := int(rest[0])
		*s, rest = string(rest[1:1+n]), rest[1+n:]
	}
	if len(rest) != 0 {
		return h, fmt.Errorf("%w: %d bytes follow the entry header", errCorrupt, len(rest))
	}
	if err := h.validate(); err != nil {
		return h, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return h, nil
}
