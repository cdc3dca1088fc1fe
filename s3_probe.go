package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// s3ProbeName is the object, behind the prefix, with which a node finds out what
// it may do. It stays: some buckets let nobody delete.
const s3ProbeName = "scribe-probe"

// s3ProbeText is what the object holds, for whoever finds it.
const s3ProbeText = "Scribe Ledger puts this object to find out what it may do in this bucket.\n"

// s3Probe is what works in a bucket.
type s3Probe struct {
	where       string // bucket and host
	list        bool   // listing is needed for a rebuild only
	conditional bool   // put-if-absent
	listError   error  // why list does not work
}

// String is the line about the bucket in /health.
func (p *s3Probe) String() string {
	does := []string{"read", "write"}
	if p.list {
		does = append(does, "list")
	}
	if p.conditional {
		does = append(does, "put-if-absent")
	}
	s := p.where + ": can " + strings.Join(does, ", ")
	if !p.conditional {
		s += "; the server knows no put-if-absent"
	}
	if !p.list {
		s += "; cannot list, which a rebuild needs: " + p.listError.Error()
	}
	return s
}

// probe finds out whether objects whose keys begin with prefix can be put, read
// and listed, and tells this client whether the server knows put-if-absent. The
// error says what an operator must change.
func (c *s3Client) probe(ctx context.Context, prefix string) (*s3Probe, error) {
	p := &s3Probe{where: "bucket " + c.o.bucket + " at " + c.base.Host}
	u := s3Bytes(prefix+s3ProbeName, []byte(s3ProbeText))
	u.absent = true
	c.plainPuts.Store(false)
	if _, err := c.put(ctx, u); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	// It is there now. A server that ignores the condition puts it once more.
	_, err := c.put(ctx, u)
	p.conditional = errors.Is(err, fs.ErrExist) && !c.plainPuts.Load()
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	c.plainPuts.Store(!p.conditional)

	// A part of it, as cold reads do. A server that ignores Range is no S3.
	part := s3Read{key: u.key, from: 7, size: 6}
	b, err := c.read(ctx, part, part.size)
	if err != nil {
		return nil, err
	}
	if want := s3ProbeText[part.from:][:part.size]; string(b) != want {
		return nil, c.newError(&s3Call{op: s3Get, key: u.key}, codeBadObject,
			fmt.Sprintf("bytes %d to %d are %q, want %q", part.from, part.from+part.size-1, b, want))
	}
	_, p.listError = c.listPage(ctx, prefix, "", "", 1)
	p.list = p.listError == nil
	return p, nil
}
