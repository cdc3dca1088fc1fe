package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// This file owns the format of a Raft log entry's data, a command. All
// integers are big-endian. A command starts with one byte, its kind:
//
//	1 pack      int64 time in Unix ms, then requests until the end
//	2 part      uint64 upload, uint32 offset, uint32 total, then bytes of a
//	            pack that is too large for one log entry
//	3 seal      int64 time, uint64 first: close the pending segment that
//	            starts at entry first
//	4 confirm   one segmentInfo (manifest.go): the leader's description of a
//	            sealed segment; then the 32 bytes of the root of the whole tree
//	            at its end, which logs of older programs do not have
//	5 key       32 public key it replaces (zero: none), 32 seed, uint16 length,
//	            then the origin: the key that signs the ledger (fsm_key.go)
//	6 check     uint64 size, the 32 bytes of the root of the tree over so many
//	            entries
//	7 archived  uint64 first, then the name of the object that holds the segment
//	            that starts there (segment_gzip.go)
//
// Request:
//
//	1  flags: 1 atomic batch
//	1  length of the idempotency key (0 to 64), then the key
//	4  number of operations; 1 unless atomic
//	.  the operations
//
// Operation:
//
//	1  kind: 1 put, 2 delete
//	1  flags: 1 if absent, 2 if seq, 4 digest
//	2  length of the key, then the key
//	1  length of the content type, then the content type
//	1  length of the author, then the author
//	1  length of the region, then the region; all three UTF-8
//	8  seq the live version must have        (flag 2)
//	32 SHA-256 the value must have           (flag 4)
//	4  length of the value, then the value
//
// Result of a request, as a follower's forwarded pack is answered:
//
//	1  outcome
//	4  index of the operation that failed
//	8  seq of the live version, 2^64-1 if none
//	4  number of entries, and for each: 2 length, canonical header

type commandKind uint8

// Part of the log format; never change, add a kind.
const (
	commandPack     commandKind = 1
	commandPart     commandKind = 2
	commandSeal     commandKind = 3
	commandConfirm  commandKind = 4
	commandKey      commandKind = 5
	commandCheck    commandKind = 6
	commandArchived commandKind = 7

	flagAtomic = 1

	flagIfAbsent = 1
	flagIfSeq    = 2
	flagDigest   = 4

	packHeaderSize = 1 + 8  // kind, time
	partHeaderSize = 1 + 16 // kind, upload, offset, total

	maxIdempotencyKey = 64
)

// operation is one change a client asks for.
type operation struct {
	kind        opKind
	key         []byte
	value       []byte
	contentType string
	author      string
	region      string
	ifAbsent    bool   // If-None-Match: *: the key must have no live version
	ifSeq       uint64 // If-Match: the key's live version must be this seq; noSeq = no condition
	digest      *hash  // SHA-256 the client says value has; nil = none given
}

// request is what a client submits as one unit: a single operation or an
// atomic batch. It is committed whole or not at all.
type request struct {
	ops            []operation
	atomic         bool   // POST /batch application/json; false: len(ops) == 1
	idempotencyKey string // at most 64 bytes; "" = none
}

// outcome is what the FSM decided about a request.
type outcome uint8

// Part of the internal protocol and of the idempotency window; never renumber.
const (
	outcomeApplied        outcome = 1 // entries were appended, one per operation
	outcomePrecondition   outcome = 2 // If-Match or If-None-Match does not hold; nothing appended
	outcomeNotFound       outcome = 3 // delete of a key without a live version; nothing appended
	outcomeDigestMismatch outcome = 4 // the value is not what the client hashed; nothing appended
	outcomeUnknown        outcome = 5 // between nodes only: a repeat whose first result cannot be read now
)

// result is the FSM's answer to one request.
type result struct {
	outcome outcome
	failed  int      // index of the operation that failed, when nothing was applied
	current uint64   // seq of the live version that broke the precondition, or noSeq
	headers [][]byte // canonical header of each appended entry, in order

	// A repeat of a request with an Idempotency-Key: its headers are those of
	// the count entries from first on, which the packer looks up.
	first, count uint64
}

// The fates of a request that brought no result; http.go maps them to codes.
var (
	// errNoLeader: no leader is known or reachable; the request was not applied.
	errNoLeader = errors.New("no leader")
	// errUnknownOutcome: the request may or may not be applied later.
	errUnknownOutcome = errors.New("outcome unknown")
	// errOverloaded: the node has no room for the request now; it was not applied.
	errOverloaded = errors.New("overloaded")
	// errDiskFull: the disk is above its high-water mark; the request was not applied.
	errDiskFull = errors.New("disk full")
	// errNotYetApplied: this node did not reach the wanted seq in time.
	errNotYetApplied = errors.New("not yet applied")
)

// requestSize returns the bytes appendRequest will append.
func requestSize(r *request) int {
	n := 6 + len(r.idempotencyKey)
	for i := range r.ops {
		op := &r.ops[i]
		n += 11 + len(op.key) + len(op.contentType) + len(op.author) + len(op.region) + len(op.value) + 8 + len(hash{})
	}
	return n
}

// appendRequest appends the encoding of r.
func appendRequest(b []byte, r *request) []byte {
	var flags byte
	if r.atomic {
		flags = flagAtomic
	}
	b = append(b, flags, byte(len(r.idempotencyKey)))
	b = append(b, r.idempotencyKey...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.ops)))
	for i := range r.ops {
		b = appendOperation(b, &r.ops[i])
	}
	return b
}

// appendOperation appends the encoding of op.
func appendOperation(b []byte, op *operation) []byte {
	var flags byte
	if op.ifAbsent {
		flags |= flagIfAbsent
	}
	if op.ifSeq != noSeq {
		flags |= flagIfSeq
	}
	if op.digest != nil {
		flags |= flagDigest
	}
	b = append(b, byte(op.kind), flags)
	b = binary.BigEndian.AppendUint16(b, uint16(len(op.key)))
	b = append(b, op.key...)
	for _, s := range [...]string{op.contentType, op.author, op.region} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	if flags&flagIfSeq != 0 {
		b = binary.BigEndian.AppendUint64(b, op.ifSeq)
	}
	if flags&flagDigest != 0 {
		b = append(b, op.digest[:]...)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(op.value)))
	return append(b, op.value...)
}

// cursor reads fields off the front of b. After a field that is not there all
// further reads give zero and short is set, so callers check once at the end.
type cursor struct {
	b     []byte
	short bool
}

// take returns the next n bytes.
func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.short, c.b = true, nil
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) uint8() uint8 {
	if v := c.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if v := c.take(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if v := c.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if v := c.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// parseRequest reads one request off c; its keys and values share c's bytes.
// The operations are appended to ops[:0].
func parseRequest(c *cursor, ops []operation) (request, error) {
	flags := c.uint8()
	r := request{ops: ops[:0], atomic: flags&flagAtomic != 0}
	r.idempotencyKey = string(c.take(int(c.uint8())))
	n := int(c.uint32())
	if c.short || flags&^flagAtomic != 0 || n == 0 || !r.atomic && n != 1 || len(r.idempotencyKey) > maxIdempotencyKey {
		return r, fmt.Errorf("%w: request with flags %d and %d operations", errCorrupt, flags, n)
	}
	for range n {
		op, err := parseOperation(c)
		if err != nil {
			return r, err
		}
		r.ops = append(r.ops, op)
	}
	return r, nil
}

// parseOperation reads one operation off c.
func parseOperation(c *cursor) (operation, error) {
	op := operation{kind: opKind(c.uint8()), ifSeq: noSeq}
	flags := c.uint8()
	op.key = c.take(int(c.uint16()))
	for _, s := range [...]*string{&op.contentType, &op.author, &op.region} {
		*s = string(c.take(int(c.uint8())))
	}
	op.ifAbsent = flags&flagIfAbsent != 0
	if flags&flagIfSeq != 0 {
		op.ifSeq = c.uint64()
	}
	if flags&flagDigest != 0 {
		op.digest = new(hash)
		copy(op.digest[:], c.take(len(hash{})))
	}
	op.value = c.take(int(c.uint32()))
	switch {
	case c.short:
		return op, fmt.Errorf("%w: operation is cut short", errCorrupt)
	case op.kind != opPut && op.kind != opDelete, flags&^(flagIfAbsent|flagIfSeq|flagDigest) != 0,
		flags&flagIfSeq != 0 && op.ifSeq == noSeq,
		len(op.key) == 0, len(op.key) > maxKeySize, op.kind == opDelete && len(op.value) > 0,
		!utf8.ValidString(op.contentType), !utf8.ValidString(op.author), !utf8.ValidString(op.region):
		return op, fmt.Errorf("%w: operation of kind %d with flags %d, key of %d and value of %d bytes", errCorrupt, op.kind, flags, len(op.key), len(op.value))
	}
	return op, nil
}

// appendPackHeader starts a pack.
func appendPackHeader(b []byte, time int64) []byte {
	b = append(b, byte(commandPack))
	return binary.BigEndian.AppendUint64(b, uint64(time))
}

// appendPartHeader starts a part whose bytes begin at offset of total.
func appendPartHeader(b []byte, upload uint64, offset, total uint32) []byte {
	b = append(b, byte(commandPart))
	b = binary.BigEndian.AppendUint64(b, upload)
	b = binary.BigEndian.AppendUint32(b, offset)
	return binary.BigEndian.AppendUint32(b, total)
}

// appendSeal appends a seal command.
func appendSeal(b []byte, time int64, first uint64) []byte {
	b = append(b, byte(commandSeal))
	b = binary.BigEndian.AppendUint64(b, uint64(time))
	return binary.BigEndian.AppendUint64(b, first)
}

// appendConfirm appends a confirm command; root is that of the whole tree at
// the segment's end.
func appendConfirm(b []byte, i segmentInfo, root hash) []byte {
	return append(i.append(append(b, byte(commandConfirm))), root[:]...)
}

// parseConfirm reads a confirm command without its kind; root is zero when an
// older program wrote it.
func parseConfirm(b []byte) (i segmentInfo, root hash, err error) {
	i, rest, err := parseSegmentInfo(b)
	if err == nil && len(rest) != 0 && len(rest) != len(root) {
		err = fmt.Errorf("%w: %d bytes follow the segment of a confirm command", errCorrupt, len(rest))
	}
	copy(root[:], rest)
	return i, root, err
}

// appendCheck appends a check command.
func appendCheck(b []byte, size uint64, root hash) []byte {
	b = binary.BigEndian.AppendUint64(append(b, byte(commandCheck)), size)
	return append(b, root[:]...)
}

// parseCheck reads a check command without its kind.
func parseCheck(b []byte) (size uint64, root hash, err error) {
	if len(b) != 8+len(root) {
		return 0, root, fmt.Errorf("%w: check command of %d bytes", errCorrupt, len(b))
	}
	copy(root[:], b[8:])
	return binary.BigEndian.Uint64(b), root, nil
}

// appendArchived appends an archived command.
func appendArchived(b []byte, first uint64, object string) []byte {
	b = binary.BigEndian.AppendUint64(append(b, byte(commandArchived)), first)
	return append(b, object...)
}

// parseArchived reads an archived command without its kind.
func parseArchived(b []byte) (first uint64, object string, err error) {
	c := cursor{b: b}
	first = c.uint64()
	if named, _, ok := parsePackedName(string(c.b)); c.short || !ok || named != first {
		return 0, "", fmt.Errorf("%w: archived command of %d bytes for entry %d with object %.120q", errCorrupt, len(b), first, c.b)
	}
	return first, string(c.b), nil
}

// appendResult appends the encoding of r.
func appendResult(b []byte, r *result) []byte {
	b = append(b, byte(r.outcome))
	b = binary.BigEndian.AppendUint32(b, uint32(r.failed))
	b = binary.BigEndian.AppendUint64(b, r.current)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.headers)))
	for _, h := range r.headers {
		b = binary.BigEndian.AppendUint16(b, uint16(len(h)))
		b = append(b, h...)
	}
	return b
}

// parseResult reads one result off c; its headers share c's bytes.
func parseResult(c *cursor) (result, error) {
	r := result{outcome: outcome(c.uint8()), failed: int(c.uint32()), current: c.uint64()}
	n := int(c.uint32())
	if c.short || n > len(c.b)/2 {
		return r, fmt.Errorf("%w: result is cut short", errCorrupt)
	}
	if n > 0 {
		r.headers = make([][]byte, n)
	}
	for i := range r.headers {
		r.headers[i] = c.take(int(c.uint16()))
	}
	if c.short || r.outcome < outcomeApplied || r.outcome > outcomeUnknown || n > 0 && r.outcome != outcomeApplied {
		return r, fmt.Errorf("%w: result with outcome %d and %d entries, or cut short", errCorrupt, r.outcome, n)
	}
	return r, nil
}
