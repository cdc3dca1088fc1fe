package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// bucketStore is a bucket as the store knows it: s3Client knows nothing of
// segments, the store nothing of S3.
type bucketStore struct{ c *s3Client }

var _ objectStore = bucketStore{}

func (b bucketStore) put(ctx context.Context, key string, body io.ReaderAt, size int64, sum hash) error {
	_, err := b.c.put(ctx, s3Upload{key: key, body: body, size: size, sum: sum, absent: true})
	return err
}

// replace puts without retention: what is replaced every minute would pile up as
// versions that nobody may delete.
func (b bucketStore) replace(ctx context.Context, key string, body []byte) error {
	u := s3Bytes(key, body)
	u.free = true
	_, err := b.c.put(ctx, u)
	return err
}

func (b bucketStore) read(ctx context.Context, key string, from, size int64) ([]byte, error) {
	if size == 0 {
		return nil, nil
	}
	got, err := b.c.read(ctx, s3Read{key: key, from: from, size: size}, size)
	var e *s3Error
	if errors.As(err, &e) && e.status == http.StatusRequestedRangeNotSatisfiable {
		return nil, fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
	}
	if err == nil && int64(len(got)) != size {
		return nil, fmt.Errorf("%s/%s: %d bytes from byte %d, want %d: %w", b, key, len(got), from, size, io.ErrUnexpectedEOF)
	}
	return got, refusedObject(err)
}

// refusedObject says it if err is about one object, and not about the bucket: it lies
// in a storage class that cannot be read, or is forbidden, as its key may be.
func refusedObject(err error) error {
	var e *s3Error
	if errors.As(err, &e) && e.status == http.StatusForbidden && !e.refusedKeys() && e.code != "RequestTimeTooSkewed" {
		return fmt.Errorf("%w: %w", errObjectRefused, err)
	}
	return err
}

func (b bucketStore) size(ctx context.Context, key string) (int64, error) {
	info, err := b.c.head(ctx, key)
	return info.size, refusedObject(err)
}

func (b bucketStore) list(ctx context.Context, prefix string, each func(key string, size int64) error) error {
	return b.c.list(ctx, prefix, "", func(o s3Listed) error { return each(o.key, o.size) })
}

func (b bucketStore) remove(ctx context.Context, key string) error { return b.c.delete(ctx, key, "") }

func (b bucketStore) probe(ctx context.Context, prefix string) (string, error) {
	p, err := b.c.probe(ctx, prefix)
	if err != nil {
		return "", err
	}
	return p.String(), nil
}

func (b bucketStore) String() string { return "s3://" + b.c.o.bucket }

// bucketFrom returns the bucket that the configuration names, or nil if it names
// none.
func bucketFrom(c s3Config, m *metrics) (objectStore, error) {
	if c.Bucket == "" {
		return nil, nil
	}
	client, err := newS3(s3Options{
		bucket: c.Bucket, region: c.Region, endpoint: c.Endpoint, pathStyle: c.PathStyle,
		credentials: s3Credentials{id: c.AccessKeyID, secret: c.SecretAccessKey, source: "the configuration"},
		timeout:     time.Duration(c.TimeoutSecs) * time.Second, retries: int(c.MaxRetries), pool: int(c.PoolSize),
		lockMode: c.ObjectLockMode, lockFor: time.Duration(c.ObjectLockDays) * 24 * time.Hour,
		metrics: m,
	})
	if err != nil {
		return nil, err
	}
	return bucketStore{client}, nil
}

// prefixFrom returns the configured prefix as keys begin with it.
func prefixFrom(c s3Config) string {
	if p := strings.Trim(c.Prefix, "/"); p != "" {
		return p + "/"
	}
	return ""
}
