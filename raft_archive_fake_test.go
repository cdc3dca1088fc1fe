package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// memBucket is a bucket in memory that is strict: it fails the test when other bytes
// are put than were announced, or when something but live is replaced.
type memBucket struct {
	t testing.TB

	mu      sync.Mutex // guards the rest
	objects map[string][]byte
	puts    map[string]int // that stored something, by key
	reads   int
	// fault is asked before each operation: whether it happens, and what it is
	// answered all the same; nil: it happens.
	fault func(op, key string) (happens bool, err error)
	// twist changes what is read.
	twist func(key string, b []byte) []byte
}

func newMemBucket(t testing.TB) *memBucket {
	return &memBucket{t: t, objects: make(map[string][]byte), puts: make(map[string]int)}
}

var _ objectStore = (*memBucket)(nil)

// do is one operation, under the lock.
func (b *memBucket) do(ctx context.Context, op, key string, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	fault := b.fault
	b.mu.Unlock()
	happens, err := true, error(nil)
	if fault != nil {
		happens, err = fault(op, key)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if happens {
		if done := f(); done != nil {
			return done
		}
	}
	if !happens && err == nil {
		err = errors.New("it did not happen")
	}
	return err
}

func (b *memBucket) put(ctx context.Context, key string, body io.ReaderAt, size int64, sum hash) error {
	object := make([]byte, size)
	if _, err := body.ReadAt(object, 0); err != nil && err != io.EOF {
		return err
	}
	if n, err := body.ReadAt(make([]byte, 1), size); n != 0 || err != io.EOF {
		b.t.Errorf("put of %s: more than %d bytes", key, size)
	}
	if got := hash(sha256.Sum256(object)); got != sum {
		b.t.Errorf("put of %s: SHA-256 is %s, announced was %s", key, got, sum)
	}
	return b.do(ctx, "put", key, func() error {
		if _, taken := b.objects[key]; taken {
			return fmt.Errorf("put %s: %w", key, fs.ErrExist)
		}
		b.objects[key] = object
		b.puts[key]++
		return nil
	})
}

func (b *memBucket) replace(ctx context.Context, key string, body []byte) error {
	if !strings.HasSuffix(key, "/"+liveName) {
		b.t.Errorf("%s is replaced", key)
	}
	return b.do(ctx, "replace", key, func() error {
		b.objects[key] = bytes.Clone(body)
		return nil
	})
}

func (b *memBucket) read(ctx context.Context, key string, from, size int64) (got []byte, err error) {
	err = b.do(ctx, "read", key, func() error {
		b.reads++
		object, ok := b.objects[key]
		if b.twist != nil {
			object = b.twist(key, bytes.Clone(object))
		}
		if !ok {
			return fmt.Errorf("read %s: %w", key, fs.ErrNotExist)
		}
		if from < 0 || size < 0 || from+size > int64(len(object)) {
			return fmt.Errorf("read %s: %w", key, io.ErrUnexpectedEOF)
		}
		got = bytes.Clone(object[from:][:size])
		return nil
	})
	return got, err
}

func (b *memBucket) size(ctx context.Context, key string) (n int64, err error) {
	err = b.do(ctx, "size", key, func() error {
		object, ok := b.objects[key]
		if !ok {
			return fmt.Errorf("size of %s: %w", key, fs.ErrNotExist)
		}
		n = int64(len(object))
		return nil
	})
	return n, err
}

func (b *memBucket) list(ctx context.Context, prefix string, each func(string, int64) error) error {
	sizes := make(map[string]int64)
	err := b.do(ctx, "list", prefix, func() error {
		for key, object := range b.objects {
			if strings.HasPrefix(key, prefix) {
				sizes[key] = int64(len(object))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(sizes)) {
		if err := each(key, sizes[key]); err != nil {
			return err
		}
	}
	return nil
}

func (b *memBucket) remove(ctx context.Context, key string) error {
	return b.do(ctx, "remove", key, func() error {
		delete(b.objects, key)
		return nil
	})
}

func (b *memBucket) probe(ctx context.Context, prefix string) (string, error) {
	err := b.do(ctx, "probe", prefix, func() error { return nil })
	return "memory: can all", err
}

func (b *memBucket) String() string { return "mem://bucket" }

// set scripts what goes wrong.
func (b *memBucket) set(fault func(op, key string) (bool, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = fault
}

// errBucketDown is what a bucket answers that is down.
var errBucketDown = errors.New("bucket does not answer")

// down makes the bucket answer nothing, or all again.
func (b *memBucket) down(yes bool) {
	if yes {
		b.set(func(string, string) (bool, error) { return false, errBucketDown })
	} else {
		b.set(nil)
	}
}

// keys returns the keys that hold text, in order.
func (b *memBucket) keys(text string) (keys []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key := range b.objects {
		if strings.Contains(key, text) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// object returns a copy of an object.
func (b *memBucket) object(key string) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.objects[key])
}

// change replaces an object behind everybody's back; nil removes it.
func (b *memBucket) change(key string, object []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if object == nil {
		delete(b.objects, key)
	} else {
		b.objects[key] = object
	}
}
