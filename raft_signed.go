package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// What a node has signed, so that it never signs anything else. The file signed
// holds the newest tree head this node signed with the ledger key, the file
// cosigned the newest one it cosigned with its own key. Each has 8192 bytes,
// two slots of 4096 with one record each; integers are big-endian:
//
//	offset  size  field
//	     0     8  magic "SCRSIGN1"
//	     8     8  number: 0, 1, 2, … one more for each record written
//	    16     8  entries in the tree
//	    24    32  root over them
//	    56    32  public key that signed, zero if nothing was signed yet
//	    88     8  Raft index of the command that brought this key, 0 in cosigned
//	    96     4  CRC32C of everything before
//	   100  3996  zero
//
// Record n is written to slot n mod 2, in place, and is durable before the
// signature leaves the node; so a crash leaves the new record or the one
// before it, whose successor nobody has seen. The file is made with the records
// 0 and 1, of the empty tree. A record lies within one sector, which a disk
// writes whole or not at all: a slot that does not check out is damage, and
// the node refuses to start, for it no longer knows what it signed.

const (
	signedName   = "signed"
	cosignedName = "cosigned"

	signedMagic = "SCRSIGN1"
	signedSlot  = 4096
	signedSize  = 100
)

// signedRecord is one record of the file.
type signedRecord struct {
	number uint64
	size   uint64 // entries
	root   hash
	key    publicKey
	index  uint64 // Raft index that brought key
}

// append appends the encoding of r, without the zeros behind it.
func (r *signedRecord) append(b []byte) []byte {
	start := len(b)
	b = append(b, signedMagic...)
	b = binary.BigEndian.AppendUint64(b, r.number)
	b = binary.BigEndian.AppendUint64(b, r.size)
	b = append(b, r.root[:]...)
	b = append(b, r.key[:]...)
	b = binary.BigEndian.AppendUint64(b, r.index)
	return append(b, appendCRC(b[start:])[len(b)-start:]...)
}

// parseSignedRecord reads one slot.
func parseSignedRecord(b []byte) (signedRecord, error) {
	var r signedRecord
	if len(b) != signedSlot || string(b[:8]) != signedMagic {
		return r, fmt.Errorf("%w: slot of %d bytes lacks its magic", errCorrupt, len(b))
	}
	for i, v := range b[signedSize:] {
		if v != 0 {
			return r, fmt.Errorf("%w: byte %d of a slot is %#x, want 0", errCorrupt, signedSize+i, v)
		}
	}
	body, err := cutCRC(b[:signedSize])
	if err != nil {
		return r, err
	}
	c := &cursor{b: body[8:]}
	r.number, r.size = c.uint64(), c.uint64()
	copy(r.root[:], c.take(len(r.root)))
	copy(r.key[:], c.take(len(r.key)))
	r.index = c.uint64()
	return r, nil
}

// parseSigned reads the whole file and returns its newest record.
func parseSigned(b []byte) (signedRecord, error) {
	if len(b) != 2*signedSlot {
		return signedRecord{}, fmt.Errorf("%w: %d bytes, want %d", errCorrupt, len(b), 2*signedSlot)
	}
	var slots [2]signedRecord
	for i := range slots {
		r, err := parseSignedRecord(b[i*signedSlot : (i+1)*signedSlot])
		if err != nil {
			return r, fmt.Errorf("slot %d: %w", i, err)
		}
		if r.number%2 != uint64(i) {
			return r, fmt.Errorf("%w: slot %d has record %d", errCorrupt, i, r.number)
		}
		slots[i] = r
	}
	old, last := slots[0], slots[1]
	if old.number > last.number {
		old, last = last, old
	}
	if last.number != old.number+1 || last.size < old.size {
		return last, fmt.Errorf("%w: record %d over %d entries follows record %d over %d", errCorrupt, last.number, last.size, old.number, old.size)
	}
	return last, nil
}

// signedFile is an open file of this kind. One goroutine at a time uses it.
type signedFile struct {
	f    *os.File
	last signedRecord // durable
}

// openSigned opens the file, making it if this node has never signed.
func openSigned(path string) (*signedFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := writeDurably(path, writeUnsigned); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, 2*signedSlot+1))
	s := &signedFile{f: f}
	if err == nil {
		s.last, err = parseSigned(b)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: what this node signed is not known any more: %w", path, err)
	}
	return s, nil
}

// writeUnsigned writes a file that says that nothing was signed.
func writeUnsigned(w io.Writer) error {
	b := make([]byte, 2*signedSlot)
	for i := range 2 {
		r := signedRecord{number: uint64(i), root: emptyRoot}
		copy(b[i*signedSlot:], r.append(nil))
	}
	_, err := w.Write(b)
	return err
}

// extends checks that the tree whose roots root gives, of size entries, goes on
// from the one last signed.
func (s *signedFile) extends(size uint64, root func(uint64) (hash, error)) error {
	if size < s.last.size {
		return fmt.Errorf("%w: this node has %d entries and signed %d", errNotYetApplied, size, s.last.size)
	}
	got, err := root(s.last.size)
	if err == nil && got != s.last.root {
		err = fmt.Errorf("%w: entries 0 to %d: the tree has root %s, this node signed %s", errDiverged, s.last.size-1, got, s.last.root)
	}
	return err
}

// remember makes r durable; it must go on from what was signed before. A failed
// write leaves the file in doubt: the node must end.
func (s *signedFile) remember(r signedRecord) error {
	if r.size == s.last.size && r.root == s.last.root && r.key == s.last.key {
		return nil
	}
	r.number = s.last.number + 1
	if _, err := s.f.WriteAt(r.append(nil), int64(r.number%2)*signedSlot); err != nil {
		return err
	}
	if err := fdatasync(s.f); err != nil {
		return err
	}
	s.last = r
	return nil
}

// close releases the file.
func (s *signedFile) close() error { return s.f.Close() }
