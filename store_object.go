package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"time"
)

// Reading of objects. What a bucket gives is right, or it is one of two errors:
// the object is not what it should be, or nobody can tell because the bucket
// does not answer.

var (
	// errArchiveCorrupt: an object is missing, cut short, or holds other bytes.
	errArchiveCorrupt = errors.New("archived object is damaged")
	// errArchiveUnavailable: the bucket does not answer, or refuses.
	errArchiveUnavailable = errors.New("the archive cannot be read now")
	// errObjectRefused is wrapped by what an objectStore returns in place of an object
	// that it has and does not give.
	errObjectRefused = errors.New("the object is refused")
	// errNoBucket: nothing can be archived, or read, because no bucket is configured.
	errNoBucket = errors.New("no bucket is configured: storage.s3.bucket is empty")
)

// archiveError is an object that could not be read. It wraps one of the two
// errors above and not its cause: a missing object is no missing entry.
type archiveError struct {
	kind   error
	object string // its key
	cause  error
}

func (e *archiveError) Error() string {
	return fmt.Sprintf("%v: object %s: %v", e.kind, e.object, e.cause)
}

func (e *archiveError) Unwrap() error { return e.kind }

// refused tells whether the bucket answers, and does not give this object: it lies in
// a storage class that cannot be read, or its key is encrypted or forbidden.
func (e *archiveError) refused() bool {
	return errors.Is(e.cause, errObjectRefused)
}

const (
	objectPatience = 15 * time.Second // for one read, and the time of its bytes at objectSlowRate
	objectSlowRate = 256 << 10        // bytes a second
	objectRest     = time.Second      // after a bucket did not answer, before it is asked again

	// wrongObjectWait is how long an object with wrong bytes is left alone by who
	// would have to read all of it again.
	wrongObjectWait = time.Hour
	// refusedWait is the same for one that the bucket does not give.
	refusedWait = 5 * time.Minute
)

// objectReader reads objects of this cluster.
type objectReader struct {
	objects objectStore // nil: none is configured
	ctx     context.Context
	metrics *metrics
	logger  *slog.Logger
	failed  func(error) // called when the bucket answers no more; nil = by nobody

	mu       sync.Mutex
	down     *archiveError // how the last read ended, if nothing was answered since it began
	until    time.Time     // nobody asks before
	asking   bool          // somebody finds out whether it is still so
	answered time.Time     // when a read was
}

// read returns size bytes of an object from offset from on.
func (o *objectReader) read(key string, from, size int64) ([]byte, error) {
	var b []byte
	err := o.ask(key, size, func(ctx context.Context) (err error) {
		b, err = o.objects.read(ctx, key, from, size)
		if err == nil && int64(len(b)) != size {
			err = fmt.Errorf("%w: got %d bytes from byte %d, want %d", errPacked, len(b), from, size)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) { // did the object end, or a connection?
			if n, serr := o.objects.size(ctx, key); serr != nil || n >= from+size {
				err = fmt.Errorf("%v; it has %d bytes, %v", err, n, serr)
			}
		}
		return err
	})
	o.metrics.cold.readBytes.add(uint64(len(b)))
	return b, err
}

// size returns the size of an object.
func (o *objectReader) size(key string) (n int64, err error) {
	err = o.ask(key, 0, func(ctx context.Context) (err error) {
		n, err = o.objects.size(ctx, key)
		return err
	})
	return n, err
}

// ask has do ask the bucket for so many bytes. While it answers nobody, one caller at a time finds out
// whether it does again, and the others are told at once.
func (o *objectReader) ask(key string, size int64, do func(context.Context) error) error {
	if o.objects == nil {
		return &archiveError{errArchiveUnavailable, key, errNoBucket}
	}
	probe, err := o.enter(key)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(o.ctx, objectPatience+time.Duration(size)*time.Second/objectSlowRate)
	defer cancel()
	o.metrics.cold.reads.add(1)
	begun := time.Now()
	err = do(ctx)
	var failed *archiveError
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errPacked):
		failed = o.damaged(key, err)
	default:
		failed = &archiveError{errArchiveUnavailable, key, err}
		o.metrics.cold.unavailable.add(1)
	}
	o.leave(probe, begun, failed)
	if failed == nil {
		return nil
	}
	return failed
}

// damaged counts an object that is not what it should be, and returns its error.
func (o *objectReader) damaged(key string, cause error) *archiveError {
	o.metrics.cold.corrupt.add(1)
	return &archiveError{errArchiveCorrupt, key, cause}
}

// enter lets a caller ask the bucket, or says at once that it does not answer.
func (o *objectReader) enter(key string) (probe bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.down == nil {
		return false, nil
	}
	if o.asking || time.Now().Before(o.until) {
		return false, &archiveError{errArchiveUnavailable, key, o.down.cause}
	}
	o.asking = true
	return true, nil
}

// leave notes whether the bucket answered a read, and tells when that changes.
// A read that it left alone while it answered others says nothing of those to come.
func (o *objectReader) leave(probe bool, begun time.Time, failed *archiveError) {
	o.mu.Lock()
	if probe {
		o.asking = false
	}
	before, now := o.down, time.Now()
	switch {
	case failed == nil || failed.kind != errArchiveUnavailable || failed.refused():
		o.down, o.answered = nil, now
	case !o.answered.After(begun):
		o.down, o.until = failed, now.Add(objectRest)
	}
	after := o.down
	o.mu.Unlock()
	switch {
	case before == nil && after != nil:
		o.logger.Warn("the archive cannot be read", "object", after.object, "error", after.cause)
		if o.failed != nil {
			o.failed(after)
		}
	case before != nil && after == nil:
		o.logger.Info("the archive can be read again")
	}
}
