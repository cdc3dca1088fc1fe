package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

// How a segment becomes cold, and how its file comes back. Each is two steps, and
// a crash between them leaves the same thing: a record in ledger.db and a file
// that is whole. The next start keeps the file and removes the record: a copy at
// hand is worth more than room on the disk, which the next look at what may go
// makes again, and the bucket may be out of reach just then.
//
//	drop       the object is compared  as it was
//	           record in ledger.db     record and file
//	           the file is removed     cold
//	bring back file, under its name    record and file
//	           the record is removed   as it was

// settleCold makes up its mind about a segment of D when the store opens, and
// tells whether it is cold.
func (s *store) settleCold(info segmentInfo) (cold bool, err error) {
	if !s.isCold(info.first) {
		return false, nil
	}
	f, err := s.openSegment(info)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case damagedFile(err): // its bytes are in the bucket, and were checked there
		s.o.logger.Warn("removing the damaged file of a segment that is in the bucket", "segment", info.id(), "error", err)
		return true, os.Remove(s.segmentPath(info))
	case err != nil:
		return false, err
	}
	return false, errors.Join(f.close(), s.forgetCold(info))
}

// forgetCold removes the record of a segment whose file is here.
func (s *store) forgetCold(info segmentInfo) error {
	err := s.changeCold("remove cold record", func(t ledgerTx) error { return t.removeCold(info.first) })
	if err == nil {
		s.setCold(info, false)
	}
	return err
}

// changeCold is one transaction of ledger.db. If it fails otherwise than for want
// of space, nobody knows what the disk has, and the process must end.
func (s *store) changeCold(step string, do func(ledgerTx) error) error {
	err := s.step(step, func() error { return s.ledger.update(do) })
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		s.o.fatal(err)
	}
	return err
}

// errKept says that a segment's file stays here.
var errKept = errors.New("its file is to stay here")

// drop removes this node's file of an archived segment, once this node has seen
// that the bucket has what is in it: the object is what its name in the manifest
// commits to, and unpacks to this file. Each node looks for itself, whoever packed it.
func (s *store) drop(info segmentInfo) error {
	if s.isCold(info.first) {
		return nil
	}
	r, err := s.coldRecordOf(info)
	if errors.Is(err, errArchiveCorrupt) { // it may have been hit on the way
		r, err = s.coldRecordOf(info)
	}
	if errors.Is(err, errCorrupt) { // the file, probably
		err = errors.Join(err, s.mend(info))
	}
	if err != nil {
		return fmt.Errorf("segment %s: %w", info.id(), err)
	}
	s.cold.moving.Lock()
	defer s.cold.moving.Unlock()
	if s.isCold(info.first) {
		return nil
	}
	if s.isPinned(info.first) {
		return fmt.Errorf("segment %s: %w", info.id(), errKept)
	}
	if err := s.changeCold("write cold record", func(t ledgerTx) error { return t.putCold(info.first, r) }); err != nil {
		return err
	}
	// From here readers turn to the bucket; who has the file open keeps it.
	s.setCold(info, true)
	s.files.drop(info.first)
	err = s.step("remove segment", func() error { return os.Remove(s.segmentPath(info)) })
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		s.o.metrics.cold.dropped.add(1)
		s.o.logger.Info("local copy of a segment removed", "segment", info.id(), "bytes", info.size, "object", s.objectKey(info))
	}
	return err
}

// coldRecordOf returns the record of a segment whose file is here, once the whole
// object has been unpacked and is this file, byte by byte.
func (s *store) coldRecordOf(info segmentInfo) (*coldRecord, error) {
	p, err := s.openObject(info)
	if err != nil {
		return nil, err
	}
	f, err := s.openSegment(info)
	if err != nil {
		return nil, err
	}
	defer f.close()
	w := &compareWriter{ctx: s.cold.ctx, file: f.src.section(0, f.size, false), pacer: pacer{time.Now()}}
	if err := p.unpack(0, w); errors.Is(err, errPacked) {
		return nil, s.cold.damaged(s.objectKey(info), err)
	} else if err != nil {
		return nil, err
	}
	r := &coldRecord{header: make([]byte, segmentHeaderSize), footer: make([]byte, segmentFooterSize), object: info.object, table: p.table}
	_, err = f.src.ReadAt(r.header, 0)
	if err == nil {
		_, err = f.src.ReadAt(r.footer, f.size-segmentFooterSize)
	}
	return r, err
}

// compareWriter takes what a file has, and nothing else. It works half of the time.
type compareWriter struct {
	ctx   context.Context
	file  io.Reader
	at    int64
	have  []byte
	pacer pacer
}

func (w *compareWriter) Write(b []byte) (int, error) {
	w.have = slices.Grow(w.have[:0], len(b))[:len(b)]
	if _, err := io.ReadFull(w.file, w.have); err != nil {
		return 0, err
	}
	if !bytes.Equal(b, w.have) {
		return 0, fmt.Errorf("%w: this node's file is not what the object holds, in the %d bytes from byte %d", errCorrupt, len(b), w.at)
	}
	w.at += int64(len(b))
	return len(b), w.pacer.rest(w.ctx)
}

// bringBack makes the file of a cold segment again, from the bucket, or from
// another node if the bucket does not have it as it was.
func (s *store) bringBack(info segmentInfo) error {
	if !s.isCold(info.first) {
		return nil
	}
	err := s.step("bring segment back", func() error {
		return s.writeFetched(info, func(w io.Writer) error { return s.copyCold(info, w) })
	})
	if (errors.Is(err, errArchiveCorrupt) || errors.Is(err, errArchiveUnavailable)) && s.o.refetch != nil {
		if rerr := s.refetchCold(info, errors.Is(err, errArchiveCorrupt)); rerr == nil {
			return nil
		}
	}
	if err == nil {
		err = s.isBack(info)
	}
	return err
}

// copyCold copies the bytes of a cold segment.
func (s *store) copyCold(info segmentInfo, w io.Writer) error {
	f, err := s.openCold(info)
	if err == nil {
		_, err = io.CopyBuffer(w, f.src.section(0, f.size, false), make([]byte, 256<<10))
	}
	return err
}

// isBack ends the coldness of a segment whose file has been made again.
func (s *store) isBack(info segmentInfo) error {
	s.cold.moving.Lock()
	defer s.cold.moving.Unlock()
	f, err := s.openSegment(info)
	if err != nil {
		return err
	}
	f.read()
	s.files.put(info.first, f)
	if err := s.forgetCold(info); err != nil {
		return err
	}
	s.o.metrics.cold.prefetched.add(1)
	s.o.logger.Info("segment brought back", "segment", info.id(), "bytes", info.size)
	return nil
}

// refetchCold makes the file of a cold segment again from another node. If that
// is because the object is damaged, it stays here: there may be no other copy.
func (s *store) refetchCold(info segmentInfo, damaged bool) error {
	if s.o.refetch == nil {
		return errors.New("this node stands alone")
	}
	if err := s.o.refetch(info, func(body func(io.Writer) error) error { return s.writeFetched(info, body) }); err != nil {
		return err
	}
	if damaged {
		if err := s.pin([]segmentInfo{info}, pinDamaged); err != nil {
			return err
		}
		s.o.logger.Error("the object of a segment is damaged; this node has the segment from another one, and keeps it",
			"segment", info.id(), "object", s.objectKey(info))
	}
	return s.isBack(info)
}

// adoptCold takes over a segment of which nobody has the file: it reads and
// checks the records in the bucket, builds the run of their keys, and leaves the
// values where they are. info has the name of the object. A crash leaves a record
// of a segment behind D, which the next try writes again, or a run that nothing names.
func (s *store) adoptCold(ctx context.Context, info segmentInfo) (fetchedSegment, error) {
	if err := ctx.Err(); err != nil {
		return fetchedSegment{}, err
	}
	r, c, err := s.readAdopted(info)
	if err != nil {
		return fetchedSegment{}, fmt.Errorf("adopting segment %s: %w", info.id(), err)
	}
	if err := s.changeCold("write cold record", func(t ledgerTx) error { return t.putCold(info.first, r) }); err != nil {
		return fetchedSegment{}, err
	}
	s.setCold(info, true)
	run, err := writeRun(filepath.Join(s.o.dir, indexDir), 0, info.first, info.end()-1, sortedRecords(c.records))
	if err != nil {
		return fetchedSegment{}, err
	}
	s.o.metrics.cold.adopted.add(1)
	return fetchedSegment{info, run}, s.growAhead(info, c.leaves)
}

// readAdopted reads what a node keeps of a segment that is in the bucket only.
func (s *store) readAdopted(info segmentInfo) (*coldRecord, *segmentContents, error) {
	r, err := s.readColdRecord(info)
	if err != nil {
		return nil, nil, err
	}
	f, err := s.openRecord(info, r)
	if err != nil {
		return nil, nil, err
	}
	c, err := contentsOf(f, info)
	if errors.Is(err, errCorrupt) { // what the name commits to is not this segment
		err = s.cold.damaged(f.name, err)
	}
	return r, c, err
}

// Why a segment is pinned. Part of the format of ledger.db.
const (
	pinAsked   = 0 // by an operator
	pinDamaged = 1 // its object is damaged
)

var bucketPins = []byte("pins")

// pin has segments stay on this node.
func (s *store) pin(infos []segmentInfo, why byte) error {
	return s.changePins(infos, func(t ledgerTx, key []byte) error { return t.put(bucketPins, key, []byte{why}) }, true)
}

// unpin lets segments go that were to stay.
func (s *store) unpin(infos []segmentInfo) error {
	return s.changePins(infos, func(t ledgerTx, key []byte) error { return t.tx.Bucket(bucketPins).Delete(key) }, false)
}

// changePins changes the pins of segments, in ledger.db and then in memory.
func (s *store) changePins(infos []segmentInfo, change func(t ledgerTx, key []byte) error, pinned bool) error {
	s.cold.moving.Lock() // a drop under way has gone before, or sees the pin
	defer s.cold.moving.Unlock()
	err := s.changeCold("change pins", func(t ledgerTx) error {
		for _, info := range infos {
			if err := change(t, binary.BigEndian.AppendUint64(nil, info.first)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.cold.mu.Lock()
	defer s.cold.mu.Unlock()
	for _, info := range infos {
		if pinned {
			s.cold.pinned[info.first] = true
		} else {
			delete(s.cold.pinned, info.first)
		}
	}
	s.o.metrics.cold.pinned.set(int64(len(s.cold.pinned)))
	return nil
}

// readPins fills d.pinned.
func (d *durableState) readPins(tx *bbolt.Tx) error {
	b := tx.Bucket(bucketPins)
	if b == nil {
		return nil
	}
	return eachChecked(b, func(k, _ []byte) error {
		if len(k) != 8 {
			return fmt.Errorf("%w: key %x in bucket %q", errCorrupt, k, bucketPins)
		}
		d.pinned = append(d.pinned, binary.BigEndian.Uint64(k))
		return nil
	})
}

// isPinned tells whether the segment that starts at first is to stay here.
func (s *store) isPinned(first uint64) bool {
	s.cold.mu.Lock()
	defer s.cold.mu.Unlock()
	return s.cold.pinned[first]
}
