package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// One segment on its way to the bucket; the steps are at the head of raft_archive.go.

// archivePiece is how many bytes of an object are read back at a time.
const archivePiece = 4 << 20

// packError is a failure of this node, not of the bucket.
type packError struct{ err error }

func (e *packError) Error() string { return e.err.Error() }
func (e *packError) Unwrap() error { return e.err }

// archive takes one segment through all steps.
func (a *archiver) archive(ctx context.Context, info segmentInfo) error {
	begun := time.Now()
	name, packed, err := a.upload(ctx, info)
	if err == nil {
		err = a.n.store.step("record object", func() error { return a.n.propose(appendArchived(nil, info.first, name)) })
	}
	if err != nil {
		return fmt.Errorf("segment %s: %w", info.id(), err)
	}
	m, took := &a.n.o.metrics.archive, time.Since(begun)
	m.segments.add(1)
	m.bytes.add(info.size)
	m.packed.add(uint64(packed))
	m.seconds.observe(took)
	a.n.o.logger.Info("segment archived", "segment", info.id(), "object", name, "bytes", info.size, "packed", packed, "took", took)
	return nil
}

// upload brings the object of a segment to the bucket, or finds it there, and checks
// it. It returns the object's name and size.
func (a *archiver) upload(ctx context.Context, info segmentInfo) (name string, size int64, err error) {
	p, err := a.pack(ctx, info)
	if err != nil {
		return "", 0, &packError{err}
	}
	defer os.Remove(p.file.Name())
	defer p.file.Close()
	name = packedName(info.first, p.table.sum())
	key := segmentKey(a.folder(), name)
	err = a.n.store.step("put object", func() error { return a.n.o.objects.put(ctx, key, p.file, p.size, p.sum) })
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = a.n.store.step("check object", func() error { return a.check(ctx, info, key, p.table.sum()) })
	}
	if err == nil {
		delete(a.wrong, info.first)
	}
	return name, p.size, err
}

// packedFile is a packed segment in a temporary file.
type packedFile struct {
	file  *os.File
	table *gzipTable
	size  int64
	sum   hash // SHA-256 of the object
}

// pack packs the file of a segment, if that is what the manifest says. One that is
// damaged is mended first (store_mend.go).
func (a *archiver) pack(ctx context.Context, info segmentInfo) (*packedFile, error) {
	p, err := a.packOnce(ctx, info)
	if !damagedFile(err) {
		return p, err
	}
	if merr := a.n.store.mend(info); merr != nil {
		return nil, fmt.Errorf("%w; %w", err, merr)
	}
	return a.packOnce(ctx, info)
}

// packOnce is one try of pack.
func (a *archiver) packOnce(ctx context.Context, info segmentInfo) (p *packedFile, err error) {
	in, err := os.Open(a.n.store.segmentPath(info))
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, err := os.CreateTemp(a.n.o.dataDir, "archive.*"+tmpSuffix)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			out.Close()
			os.Remove(out.Name())
		}
	}()
	p = &packedFile{file: out}
	sum, packedSum := sha256.New(), sha256.New()
	raw := io.TeeReader(&politeReader{a, ctx, in, 0, pacer{time.Now()}}, sum)
	p.table, err = packSegment(io.MultiWriter(out, packedSum), raw, int64(info.size), a.level())
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", errCorrupt, err)
	}
	if err != nil {
		return nil, err
	}
	if err := checkSegmentSum(sum, info); err != nil {
		return nil, err
	}
	p.size, p.sum = p.table.objectSize(), hash(packedSum.Sum(nil))
	return p, nil
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

// politeReader reads a file for work in the background: while clients ask, it rests
// after each block as long as the work took.
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
		return p.rest(ctx)
	}
	p.turn = time.Now()
	return ctx.Err()
}

// check reads the whole object back and compares it with its name, which has that
// sum, and with the manifest. What is wrong twice is wrong: a *wrongObject.
func (a *archiver) check(ctx context.Context, info segmentInfo, key string, sum hash) error {
	err := a.checkOnce(ctx, info, key, sum)
	if wrongBytes(err) {
		err = a.checkOnce(ctx, info, key, sum)
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
func (a *archiver) checkOnce(ctx context.Context, info segmentInfo, key string, sum hash) error {
	t, err := a.readTable(ctx, info, key, sum)
	if err != nil {
		return err
	}
	return a.checkMembers(ctx, info, key, t)
}

// readTable reads the table of an object, which must have that sum, and compares it
// with the size of the object.
func (a *archiver) readTable(ctx context.Context, info segmentInfo, key string, sum hash) (*gzipTable, error) {
	size, err := a.n.o.objects.size(ctx, key)
	if err != nil {
		return nil, err
	}
	tail := gzipTableSize(int64(info.size))
	if size < tail {
		return nil, fmt.Errorf("%w: it has %d bytes, its table alone has %d", errPacked, size, tail)
	}
	b, err := a.n.o.objects.read(ctx, key, size-tail, tail)
	if err != nil {
		return nil, err
	}
	t, err := parseGzipTable(b, int64(info.size))
	if err == nil && (t.sum() != sum || t.objectSize() != size) {
		err = fmt.Errorf("%w: its table has sum %s and is of an object of %d bytes, want %s and %d", errPacked, t.sum(), t.objectSize(), sum, size)
	}
	return t, err
}

// checkMembers reads all members that t names.
func (a *archiver) checkMembers(ctx context.Context, info segmentInfo, key string, t *gzipTable) error {
	whole, p := sha256.New(), pacer{time.Now()}
	for i := 0; i < len(t.ends); {
		last := i
		for last+1 < len(t.ends) && t.ends[last+1]-t.ends[i] < archivePiece {
			last++
		}
		from, n := t.span(i, last)
		b, err := a.n.o.objects.read(ctx, key, from, n)
		if err != nil {
			return err
		}
		for ; i <= last; i++ {
			at, size := t.span(i, i)
			raw, err := t.unpackMember(i, b[at-from:][:size])
			if err != nil {
				return err
			}
			whole.Write(raw)
			if err := a.rest(ctx, &p); err != nil {
				return err
			}
		}
	}
	return checkSegmentSum(whole, info)
}
