package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// This file owns the format of the Raft log's files; raft_log.go writes them,
// raft_log_recover.go reads them back. All integers are big-endian, every
// checksum is CRC32C (Castagnoli). Frames and entries start at multiples of 8.
//
// # File: <file number, 20 digits>.log, numbers consecutive
//
//	offset  size  field
//	     0     8  "ScribeRL"
//	     8     4  format: 1
//	    12    16  log id: random, one for all files of a directory
//	    28     8  file number, from 1
//	    36     8  size of the file
//	    44     4  checksum of bytes 0-43
//	    48     .  frames, without holes; then zero bytes to the end of the file
//
// A file has its full size, all zero bytes on the disk, before its first
// frame: an append overwrites zeros and changes no metadata. The newest file
// may hold no frame yet.
//
// # Frame: one change of the log, durable before the next one begins
//
//	     0     4  checksum of bytes 4-39
//	     4     4  kind: 1 append, 2 truncate, 3 restart
//	     8     8  frame number, from 1, consecutive over all files
//	    16     8  first index
//	    24     4  count of entries
//	    28     4  length of the entries in bytes, a multiple of 8
//	    32     4  checksum in the trailer of the frame before; 0 for frame 1
//	    36     4  5c 71 be e5
//	    40     .  entries
//	     .     4  checksum of the header and the entries
//	     .     4  f1 a1 5e a1
//
//	append    adds the entries; first index is the last index + 1
//	truncate  removes the entries from first index on; count is 0
//	restart   removes all entries, then adds its own, if any, from first index on
//
// # Entry
//
//	     0     8  index
//	     8     8  term
//	    16     8  time the leader appended it, Unix nanoseconds; 0 = none
//	    24     4  length of the data
//	    28     4  length of the extensions
//	    32     4  type
//	    36     4  checksum of bytes 0-35, the data and the extensions
//	    40     .  data, extensions, zero bytes up to a multiple of 8
//
// The checksums of frames and entries start from the CRC32C of the log id,
// not from 0, so a client cannot write a value that passes for a frame.
//
// # Torn or corrupt
//
// A crash can tear only the last frame: the disk has some of its 512-byte
// sectors, the others are still zero. So bytes that are no valid frame are a
// torn write, which was never acknowledged and is removed, only if no valid
// frame follows them and a sector's share of the frame is zero (or its last
// byte is: a write cut short). Everything else is corruption.

// Part of the file format; never change, add a version.
const (
	logMagic        = "ScribeRL"
	logFormat       = 1
	logHeaderSize   = 48
	frameHeaderSize = 40
	frameEndSize    = 8
	entryHeaderSize = 40
	frameMark       = 0x5c71bee5
	frameEndMark    = 0xf1a15ea1
	sectorSize      = 512
	maxFrameSize    = 1 << 30 // bytes of one frame this program writes
)

// logFileHeader is the beginning of each file.
type logFileHeader struct {
	id     [16]byte
	number uint64
	size   int64
}

// appendLogHeader appends the bytes of h.
func appendLogHeader(b []byte, h logFileHeader) []byte {
	start := len(b)
	b = append(b, logMagic...)
	b = binary.BigEndian.AppendUint32(b, logFormat)
	b = append(b, h.id[:]...)
	b = binary.BigEndian.AppendUint64(b, h.number)
	b = binary.BigEndian.AppendUint64(b, uint64(h.size))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseLogHeader reads what appendLogHeader wrote.
func parseLogHeader(b []byte) (logFileHeader, error) {
	var h logFileHeader
	if len(b) < logHeaderSize {
		return h, fmt.Errorf("file has %d bytes, its header alone has %d", len(b), logHeaderSize)
	}
	if string(b[:8]) != logMagic {
		return h, fmt.Errorf("file starts with %q, want %q", b[:8], logMagic)
	}
	if got := binary.BigEndian.Uint32(b[8:]); got != logFormat {
		return h, fmt.Errorf("file has format %d, this program reads %d", got, logFormat)
	}
	if got, want := crc32.Checksum(b[:44], castagnoli), binary.BigEndian.Uint32(b[44:]); got != want {
		return h, fmt.Errorf("file header has checksum %08x, says %08x", got, want)
	}
	copy(h.id[:], b[12:])
	h.number = binary.BigEndian.Uint64(b[28:])
	h.size = int64(binary.BigEndian.Uint64(b[36:]))
	return h, nil
}

// frameKind says what a frame does to the log. Part of the file format.
type frameKind uint32

const (
	frameAppend   frameKind = 1
	frameTruncate frameKind = 2
	frameRestart  frameKind = 3
)

// logFrame is the header of a frame, and the checksum in its trailer.
type logFrame struct {
	kind   frameKind
	number uint64 // from 1
	first  uint64 // index
	count  uint32 // entries
	length uint32 // bytes of entries
	prev   uint32 // sum of the frame before
	sum    uint32
}

// size returns how many bytes the whole frame takes.
func (f *logFrame) size() int { return frameHeaderSize + int(f.length) + frameEndSize }

// validate reports the first field that no frame can have.
func (f *logFrame) validate() error {
	switch {
	case f.kind < frameAppend || f.kind > frameRestart:
		return fmt.Errorf("frame has kind %d", f.kind)
	case f.number == 0 || f.first == 0 || f.first+uint64(f.count) < f.first:
		return fmt.Errorf("frame %d starts at index %d with %d entries", f.number, f.first, f.count)
	case f.length%8 != 0 || uint64(f.length) < uint64(f.count)*entryHeaderSize:
		return fmt.Errorf("frame %d has %d entries in %d bytes", f.number, f.count, f.length)
	case f.count == 0 && (f.kind == frameAppend || f.length != 0):
		return fmt.Errorf("frame %d of kind %d has no entries, but %d bytes", f.number, f.kind, f.length)
	case f.count != 0 && f.kind == frameTruncate:
		return fmt.Errorf("frame %d truncates, but has %d entries", f.number, f.count)
	}
	return nil
}

// appendFrame appends the frame with logs as its entries, and fills in f's
// count, length and sum.
func appendFrame(b []byte, seed uint32, f *logFrame, logs []*raft.Log) []byte {
	start := len(b)
	b = append(b, make([]byte, frameHeaderSize)...)
	for _, l := range logs {
		b = appendLogEntry(b, seed, l)
	}
	f.count, f.length = uint32(len(logs)), uint32(len(b)-start-frameHeaderSize)
	h := b[start:]
	binary.BigEndian.PutUint32(h[4:], uint32(f.kind))
	binary.BigEndian.PutUint64(h[8:], f.number)
	binary.BigEndian.PutUint64(h[16:], f.first)
	binary.BigEndian.PutUint32(h[24:], f.count)
	binary.BigEndian.PutUint32(h[28:], f.length)
	binary.BigEndian.PutUint32(h[32:], f.prev)
	binary.BigEndian.PutUint32(h[36:], frameMark)
	binary.BigEndian.PutUint32(h, crc32.Update(seed, castagnoli, h[4:frameHeaderSize]))
	f.sum = crc32.Update(seed, castagnoli, h)
	b = binary.BigEndian.AppendUint32(b, f.sum)
	return binary.BigEndian.AppendUint32(b, frameEndMark)
}

// parseFrameHeader reads the header of a frame; the sum is left at 0.
func parseFrameHeader(b []byte, seed uint32) (logFrame, error) {
	var f logFrame
	if len(b) < frameHeaderSize {
		return f, fmt.Errorf("%d bytes are left, a frame header has %d", len(b), frameHeaderSize)
	}
	if got := binary.BigEndian.Uint32(b[36:]); got != frameMark {
		return f, fmt.Errorf("frame header ends in %08x, want %08x", got, uint32(frameMark))
	}
	if got, want := crc32.Update(seed, castagnoli, b[4:frameHeaderSize]), binary.BigEndian.Uint32(b); got != want {
		return f, fmt.Errorf("frame header has checksum %08x, says %08x", got, want)
	}
	f.kind = frameKind(binary.BigEndian.Uint32(b[4:]))
	f.number = binary.BigEndian.Uint64(b[8:])
	f.first = binary.BigEndian.Uint64(b[16:])
	f.count = binary.BigEndian.Uint32(b[24:])
	f.length = binary.BigEndian.Uint32(b[28:])
	f.prev = binary.BigEndian.Uint32(b[32:])
	return f, f.validate()
}

// parseFrame reads the frame that b starts with and checks its checksum.
func parseFrame(b []byte, seed uint32) (logFrame, error) {
	f, err := parseFrameHeader(b, seed)
	if err != nil {
		return f, err
	}
	if f.size() > len(b) {
		return f, fmt.Errorf("frame has %d bytes, %d are left", f.size(), len(b))
	}
	end := frameHeaderSize + int(f.length)
	f.sum = binary.BigEndian.Uint32(b[end:])
	if got := crc32.Update(seed, castagnoli, b[:end]); got != f.sum {
		return f, fmt.Errorf("frame has checksum %08x, says %08x", got, f.sum)
	}
	if got := binary.BigEndian.Uint32(b[end+4:]); got != frameEndMark {
		return f, fmt.Errorf("frame ends in %08x, want %08x", got, uint32(frameEndMark))
	}
	return f, nil
}

// span is where an entry lies in its file, padding not counted.
type span struct {
	offset uint32
	size   uint32
}

// entrySize returns the bytes of the entry without padding.
func entrySize(l *raft.Log) int { return entryHeaderSize + len(l.Data) + len(l.Extensions) }

// align8 rounds n up to a multiple of 8.
func align8(n int) int { return (n + 7) &^ 7 }

// frameSpans returns where the entries of a frame written at offset lie.
func frameSpans(offset int64, logs []*raft.Log) []span {
	spans := make([]span, len(logs))
	pos := int(offset) + frameHeaderSize
	for i, l := range logs {
		spans[i] = span{uint32(pos), uint32(entrySize(l))}
		pos += align8(entrySize(l))
	}
	return spans
}

// parseSpans returns where the entries of the valid frame f, read into b from
// offset of its file, lie. It trusts the frame's checksum for their contents.
func parseSpans(b []byte, f *logFrame, offset int64) ([]span, error) {
	spans := make([]span, 0, f.count)
	pos, end := frameHeaderSize, frameHeaderSize+int(f.length)
	for i := range uint64(f.count) {
		if end-pos < entryHeaderSize {
			return nil, fmt.Errorf("frame %d ends inside entry %d of %d", f.number, i+1, f.count)
		}
		if got := binary.BigEndian.Uint64(b[pos:]); got != f.first+i {
			return nil, fmt.Errorf("frame %d: entry has index %d, want %d", f.number, got, f.first+i)
		}
		size := entryHeaderSize + uint64(binary.BigEndian.Uint32(b[pos+24:])) + uint64(binary.BigEndian.Uint32(b[pos+28:]))
		if size > uint64(end-pos) {
			return nil, fmt.Errorf("frame %d ends inside entry %d of %d", f.number, i+1, f.count)
		}
		spans = append(spans, span{uint32(offset) + uint32(pos), uint32(size)})
		pos += align8(int(size))
	}
	if pos != end {
		return nil, fmt.Errorf("frame %d: %d bytes follow its entries", f.number, end-pos)
	}
	return spans, nil
}

// appendLogEntry appends l, padded.
func appendLogEntry(b []byte, seed uint32, l *raft.Log) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(b, l.Index)
	b = binary.BigEndian.AppendUint64(b, l.Term)
	b = binary.BigEndian.AppendUint64(b, uint64(appendedNanos(l.AppendedAt)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Data)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Extensions)))
	b = binary.BigEndian.AppendUint32(b, uint32(l.Type))
	sum := crc32.Update(seed, castagnoli, b[start:])
	sum = crc32.Update(sum, castagnoli, l.Data)
	sum = crc32.Update(sum, castagnoli, l.Extensions)
	b = binary.BigEndian.AppendUint32(b, sum)
	b = append(b, l.Data...)
	b = append(b, l.Extensions...)
	return append(b, make([]byte, align8(entrySize(l))-entrySize(l))...)
}

// appendedNanos is the time as stored; the zero time is 0.
func appendedNanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

var errEntryDamaged = errors.New("entry has lengths that do not fit its place")

// parseEntry reads exactly one entry without its padding into l, which
// afterwards shares b.
func parseEntry(b []byte, seed uint32, l *raft.Log) error {
	if len(b) < entryHeaderSize {
		return errEntryDamaged
	}
	data, ext := uint64(binary.BigEndian.Uint32(b[24:])), uint64(binary.BigEndian.Uint32(b[28:]))
	if entryHeaderSize+data+ext != uint64(len(b)) {
		return errEntryDamaged
	}
	sum := crc32.Update(seed, castagnoli, b[:36])
	sum = crc32.Update(sum, castagnoli, b[entryHeaderSize:])
	if want := binary.BigEndian.Uint32(b[36:]); sum != want {
		return fmt.Errorf("entry has checksum %08x, says %08x", sum, want)
	}
	*l = raft.Log{
		Index: binary.BigEndian.Uint64(b),
		Term:  binary.BigEndian.Uint64(b[8:]),
		Type:  raft.LogType(binary.BigEndian.Uint32(b[32:])),
	}
	if at := int64(binary.BigEndian.Uint64(b[16:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	if mid := entryHeaderSize + int(data); data > 0 {
		l.Data = b[entryHeaderSize:mid:mid]
	}
	if ext > 0 {
		l.Extensions = b[entryHeaderSize+int(data):]
	}
	return nil
}
