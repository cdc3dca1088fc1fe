package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	stdhash "hash"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// A segment file that comes from another node grows from its first byte on in
// <its name>.part. A crash, of either node, leaves the part; whoever wants the
// segment next reads what is there and goes on behind it. Nothing says that
// those bytes are right but the SHA-256 of the whole: if that is wrong the part
// is removed, and the next try begins anew. Only a file that is right, in its
// records and their root too, and is on disk, gets the name of a segment.

const (
	segmentPartSuffix = ".part"
	partBuffer        = 256 << 10

	// partSyncEvery bytes of a part are brought to the disk at a time, and of one
	// part at a time: what the Raft log has to write waits behind no more.
	partSyncEvery = 2 << 20
)

// segmentSource gives the bytes of a segment file from an offset on to w.
type segmentSource func(from uint64, w io.Writer) error

// segmentPart is a segment file on its way, owned by one goroutine.
type segmentPart struct {
	s       *store
	info    segmentInfo
	file    *os.File
	sum     stdhash.Hash // of the bytes so far
	size    uint64       // of them
	flushed uint64       // bytes that were brought to the disk
}

// openPart opens the part of a segment and reads what is there of it.
func (s *store) openPart(info segmentInfo) (*segmentPart, error) {
	f, err := os.OpenFile(s.partPath(info), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	p := &segmentPart{s: s, info: info, file: f, sum: sha256.New()}
	n, err := io.CopyBuffer(onlyWriter{p.sum}, io.LimitReader(f, int64(info.size)), make([]byte, partBuffer))
	p.size, p.flushed = uint64(n), uint64(n)
	if err == nil {
		err = f.Truncate(n) // what is longer than the segment
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

// onlyWriter hides what else a writer can do.
type onlyWriter struct{ io.Writer }

// partPath returns where a segment grows that comes from another node.
func (s *store) partPath(info segmentInfo) string { return s.segmentPath(info) + segmentPartSuffix }

// Write appends what came next.
func (p *segmentPart) Write(b []byte) (int, error) {
	if uint64(len(b)) > p.info.size-p.size {
		return 0, fmt.Errorf("%w: more than %d bytes", errCorrupt, p.info.size)
	}
	var n int
	err := p.s.step("write part", func() (err error) {
		n, err = p.file.WriteAt(b, int64(p.size))
		return err
	})
	p.sum.Write(b[:n])
	p.size += uint64(n)
	if err == nil && p.size-p.flushed >= partSyncEvery {
		p.s.flushing.Lock()
		err = p.doubtful(writeBack(p.file, int64(p.flushed), int64(p.size-p.flushed)))
		p.s.flushing.Unlock()
		p.flushed = p.size
	}
	return n, err
}

// doubtful removes the part after an error of bringing it to the disk: the pages
// that were not written pass for clean now, and a sync would say that all is
// well. Unless it was for want of space the process must end, as after any sync
// that failed.
func (p *segmentPart) doubtful(err error) error {
	if err == nil {
		return nil
	}
	os.Remove(p.file.Name())
	if !errors.Is(err, syscall.ENOSPC) {
		p.s.o.fatal(err)
	}
	return err
}

// checkSegmentSum compares the sum of a whole segment file with the manifest's.
func checkSegmentSum(sum stdhash.Hash, info segmentInfo) error {
	if got := hash(sum.Sum(nil)); got != info.sum {
		return fmt.Errorf("%w: SHA-256 is %s, want %s", errCorrupt, got, info.sum)
	}
	return nil
}

// publish makes the part durable and gives it the segment's name.
func (p *segmentPart) publish() error {
	return p.s.step("name segment", func() error {
		if err := p.doubtful(p.file.Sync()); err != nil {
			return err
		}
		path := p.s.segmentPath(p.info)
		if err := os.Rename(p.file.Name(), path); err != nil {
			return err
		}
		return syncDir(filepath.Dir(path))
	})
}
