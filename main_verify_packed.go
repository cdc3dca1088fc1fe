package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
)

// audit --url s3://… and audit --data of a backup: each packed segment is unpacked
// into a temporary file and audited like one of a node's, and compared with the
// signed manifest.

// archive audits the ledger in a bucket or a backup.
func (a *audit) archive(ctx context.Context, o auditOptions) error {
	if err := a.readCheckpoint(o); err != nil {
		return err
	}
	found, err := a.findArchive(ctx, o.archive, o.prefix, o.cluster, o.key)
	if err != nil {
		return err
	}
	found.tellPassed(a.out)
	m := found.manifest
	for k := range m.segments {
		i := &m.segments[k]
		a.sources = append(a.sources, auditSource{
			name: found.parts[k].key + "/" + i.id() + segmentSuffix, size: i.size, info: i, open: found.openFile(k),
		})
	}
	a.begin()
	a.tree.heads = append(a.tree.heads, treeHead{origin: m.origin, size: m.size(), root: m.root})
	slices.SortStableFunc(a.tree.heads, func(x, y treeHead) int { return cmp.Compare(x.size, y.size) })
	if err := a.tree.compareHeads(); err != nil { // those of the empty tree
		return err
	}
	if err := a.segments(ctx); err != nil {
		return err
	}
	if err := a.unseen(); err != nil {
		return err
	}
	lines := []string{"manifest   " + found.key + ": agrees", "signed by  " + m.key.String(), "trusted    " + found.trusted}
	if o.checkpoint != "" {
		lines = append(lines, "checkpoint "+o.checkpoint+" agrees")
	}
	a.report(lines...)
	return nil
}

// tellPassed prints why newer manifests were passed over.
func (a *archived) tellPassed(w io.Writer) {
	for _, why := range a.passed {
		fmt.Fprintf(w, "warning    %s\n", why)
	}
	if len(a.passed) > 0 {
		fmt.Fprintf(w, "           so what follows is of an older one, %s\n", a.key)
	}
}

// openFile returns the open of a source that is the kth segment: it unpacks it
// whole, for its values come before what says where they are.
func (a *archived) openFile(k int) func(context.Context) (io.ReaderAt, int64, func(), error) {
	return func(ctx context.Context) (io.ReaderAt, int64, func(), error) {
		f, err := os.CreateTemp("", "scribe-ledger-audit-*"+segmentSuffix)
		if err != nil {
			return nil, 0, nil, err
		}
		os.Remove(f.Name()) // the space is free again when the file is closed
		if err := a.unpack(ctx, k, 0, f); err != nil {
			f.Close()
			return nil, 0, nil, err
		}
		return f, int64(a.manifest.segments[k].size), func() { f.Close() }, nil
	}
}

// remoteManifest returns the signed manifest of a server, which must be trusted and
// the beginning of the tree that the server shows, and what writes the file of one
// of its segments.
func (v *verifier) remoteManifest(ctx context.Context, url, key string) ([]byte, func(context.Context, segmentInfo, io.Writer) error, error) {
	t, err := v.newVisitor(url, key)
	if err != nil {
		return nil, nil, err
	}
	signed, err := t.client.get(ctx, "/ledger/manifest?signed=true", maxManifest)
	if err != nil {
		return nil, nil, err
	}
	m, err := parseBucketManifest(signed)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errReply, err)
	}
	trusted, err := t.checkpoint(ctx)
	if err != nil {
		return nil, nil, err
	}
	if m.key.String() != trusted.key.String() {
		return nil, nil, fmt.Errorf("%w: manifest: %s, the checkpoint by %s", errOtherKey, m.key, trusted.key)
	}
	if _, err := t.extends(ctx, treeHead{origin: m.origin, size: m.size(), root: m.root}, trusted.head); err != nil {
		return nil, nil, err
	}
	return signed, t.client.copySegment, nil
}

// copySegment writes the file of a segment of the server.
func (c *ledgerClient) copySegment(ctx context.Context, info segmentInfo, w io.Writer) error {
	body, err := c.open(ctx, "/ledger/segments/"+info.id())
	if err != nil {
		return err
	}
	defer body.Close()
	n, err := io.Copy(w, io.LimitReader(body, int64(min(info.size, 1<<62))+1))
	if err == nil && uint64(n) != info.size {
		err = fmt.Errorf("%w: %s%s: the server sent %d bytes or more, the manifest says %d", errDifference, info.id(), segmentSuffix, n, info.size)
	}
	return err
}
