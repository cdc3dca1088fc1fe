package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"time"
)

// One segment on its way to the bucket; the steps are at the head of raft_archive.go.

// packedFile is a packed segment in a temporary file.
type packedFile struct {
	info  segmentInfo
	begun time.Time // when it was begun
	err   error     // why there is none, a failure of this node; nothing below is set then
	file  *os.File
	name  string // of the object, without the folder
	size  int64
	sum   hash // SHA-256 of the object
}

// close removes the file.
func (p *packedFile) close() {
	if p.file != nil {
		p.file.Close()
		os.Remove(p.file.Name())
	}
}

// packAhead packs segments in order and yields each: the next is packed while one is
// on its way to the bucket. What is yielded is closed afterwards.
func (a *archiver) packAhead(ctx context.Context, infos []segmentInfo) iter.Seq[*packedFile] {
	return func(yield func(*packedFile) bool) {
		ctx, cancel := context.WithCancel(ctx)
		packed := make(chan *packedFile)
		go func() {
			defer close(packed)
			for _, info := range infos {
				packed <- a.pack(ctx, info)
				if ctx.Err() != nil {
					return
				}
			}
		}()
		defer func() {
			cancel()
			for p := range packed {
				p.close()
			}
		}()
		for p := range packed {
			more := yield(p)
			p.close()
			if !more {
				return
			}
		}
	}
}

// archive takes a packed segment through the other steps.
func (a *archiver) archive(ctx context.Context, p *packedFile) error {
	err := a.put(ctx, p)
	if err == nil {
		err = a.n.store.step("record object", func() error { return a.n.propose(appendArchived(nil, p.info.first, p.name)) })
	}
	if err != nil {
		return fmt.Errorf("segment %s: %w", p.info.id(), err)
	}
	m, took := &a.n.o.metrics.archive, time.Since(p.begun)
	m.segments.add(1)
	m.bytes.add(p.info.size)
	m.packed.add(uint64(p.size))
	m.seconds.observe(took)
	a.n.o.logger.Info("segment archived", "segment", p.info.id(), "object", p.name, "bytes", p.info.size, "packed", p.size, "took", took)
	return nil
}

// put brings a packed segment to the bucket, or finds it there, and checks it.
func (a *archiver) put(ctx context.Context, p *packedFile) error {
	if p.err != nil {
		return p.err
	}
	key := segmentKey(a.folder(), p.name)
	err := a.n.store.step("put object", func() error { return a.n.o.objects.put(ctx, key, p.file, p.size, p.sum) })
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = a.n.store.step("check object", func() error { return a.check(ctx, p, key) })
	}
	if err == nil {
		delete(a.wrong, p.info.first)
	}
	return err
}

// pack packs the file of a segment, if that is what the manifest says. One that is
// damaged is mended first (store_mend.go).
func (a *archiver) pack(ctx context.Context, info segmentInfo) *packedFile {
	p := a.packOnce(ctx, info)
	if !damagedFile(p.err) {
		return p
	}
	if err := a.n.store.mend(info); err != nil {
		p.err = fmt.Errorf("%w; %w", p.err, err)
		return p
	}
	return a.packOnce(ctx, info)
}

// packOnce is one try of pack.
func (a *archiver) packOnce(ctx context.Context, info segmentInfo) *packedFile {
	p := &packedFile{info: info, begun: time.Now()}
	if p.err = a.packInto(ctx, p); p.err != nil {
		p.close()
		p.file = nil
	}
	return p
}

// packInto makes the file of p.
func (a *archiver) packInto(ctx context.Context, p *packedFile) error {
	in, err := os.Open(a.n.store.segmentPath(p.info))
	if err != nil {
		return err
	}
	defer in.Close()
	if p.file, err = os.CreateTemp(a.n.o.dataDir, "archive.*"+tmpSuffix); err != nil {
		return err
	}
	sum, packedSum := sha256.New(), sha256.New()
	raw := io.TeeReader(&politeReader{a, ctx, in, 0, pacer{time.Now()}}, sum)
	table, err := packSegment(io.MultiWriter(p.file, packedSum), raw, int64(p.info.size), a.level())
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", errCorrupt, err)
	}
	if err != nil {
		return err
	}
	p.name, p.size, p.sum = packedName(p.info.first, table.sum()), table.objectSize(), hash(packedSum.Sum(nil))
	return checkSegmentSum(sum, p.info)
}

// level returns the level of compress/gzip.
func (a *archiver) level() int {
	if a.n.o.packLevel == 0 {
		return -1
	}
	return a.n.o.packLevel
}

// politeBlock is what is read between two rests.
const politeBlock = 256 << 10

// archiveRest is how long the archive rests while clients ask, in times of its work.
// On 4 cores that clients keep busy it then archives half as fast as one idle core
// packs. e2e/bench.py --only archive tells what clients have left, and what a bare
// gzip would leave them.
const archiveRest = 0.35

// politeReader reads a file for work in the background: while clients ask, it rests
// after each block.
type politeReader struct {
	a     *archiver
	ctx   context.Context
	in    io.Reader
	since int // bytes since the last rest
	pacer pacer
}

func (r *politeReader) Read(b []byte) (int, error) {
	if r.since >= politeBlock {
		r.since = 0
		if err := r.a.rest(r.ctx, &r.pacer); err != nil {
			return 0, err
		}
	}
	k, err := r.in.Read(b)
	r.since += k
	return k, err
}

// rest lets clients go first, and returns ctx's error when it ends.
func (a *archiver) rest(ctx context.Context, p *pacer) error {
	if a.n.o.metrics.http.inFlight.value() > int64(a.asked.Load()) || a.n.door.busy() {
		return p.restFor(ctx, archiveRest)
	}
	p.turn = time.Now()
	return ctx.Err()
}

// check reads the whole object back: it is what was packed, to the byte, or, where
// another packer has put it, what its name says. What is wrong twice is wrong: a
// *wrongObject.
func (a *archiver) check(ctx context.Context, p *packedFile, key string) error {
	err := a.checkOnce(ctx, p, key)
	if wrongBytes(err) {
		err = a.checkOnce(ctx, p, key)
	}
	if wrongBytes(err) {
		return &wrongObject{a.n.o.objects.String() + "/" + key, otherBytes, err, time.Now()}
	}
	return err
}

// wrongBytes tells whether err is about what an object holds.
func wrongBytes(err error) bool {
	return errors.Is(err, errPacked) || errors.Is(err, errCorrupt) || errors.Is(err, io.ErrUnexpectedEOF)
}

// checkOnce is one try of check.
func (a *archiver) checkOnce(ctx context.Context, p *packedFile, key string) error {
	same, err := a.holds(ctx, key, p.size, p.sum)
	if same || err != nil {
		return err
	}
	object, err := a.open(ctx, p.info, p.name, key)
	if err != nil {
		return err
	}
	return object.unpack(0, io.Discard)
}

// holds tells whether an object has that size and SHA-256.
func (a *archiver) holds(ctx context.Context, key string, size int64, sum hash) (bool, error) {
	if n, err := a.n.o.objects.size(ctx, key); n != size || err != nil {
		return false, err
	}
	read := sha256.New()
	for at := int64(0); at < size; at += packedPiece {
		b, err := a.n.o.objects.read(ctx, key, at, min(packedPiece, size-at))
		if err != nil {
			return false, err
		}
		read.Write(b)
	}
	return hash(read.Sum(nil)) == sum, nil
}

// open opens the object of a segment, which has that name.
func (a *archiver) open(ctx context.Context, info segmentInfo, name, key string) (*packedObject, error) {
	size, err := a.n.o.objects.size(ctx, key)
	if err != nil {
		return nil, err
	}
	return openPacked(name, int64(info.size), size, func(from, n int64) ([]byte, error) { return a.n.o.objects.read(ctx, key, from, n) })
}
