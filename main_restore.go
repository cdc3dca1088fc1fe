package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"
)

// The command restore: a new node, a cluster of one, from what a lost cluster
// archived in its bucket or what backup made of it. docs/disaster-recovery.md is
// what an operator reads.

// restore makes an empty data directory a node that goes on from an archive.
func (p *program) restore(ctx context.Context, args []string) error {
	flags, file := nodeFlags("restore")
	from := flags.String("from", "", "backup `folder`, or s3://bucket/prefix (default the configured bucket)")
	cluster := flags.String("cluster", "", "`id` of the cluster, where there are several")
	key := flags.String("key", "", "the ledger's verifier key: `vkey`, or a file that holds it")
	force := flags.Bool("force", false, "although the bucket says that the cluster had a leader a moment ago")
	c, err := p.nodeConfig(flags, file, args)
	if err != nil {
		return err
	}
	own, at, err := restorePlaces(c, *from)
	if err != nil {
		return err
	}
	defer at.close()
	v := p.verifier()
	found, err := v.findArchive(ctx, at.objects, at.prefix, *cluster, *key)
	if err != nil {
		return withExitCode(err)
	}
	found.tellPassed(p.stdout)
	if err := found.restorable(c.Cluster.Name); err != nil {
		return err
	}
	if !*force {
		silence := 3 * time.Duration(c.Storage.Tiering.ArchivalCheckIntervalSecs) * time.Second
		if err := found.wantDead(ctx, p.now(), silence); err != nil {
			return err
		}
	}
	o := nodeOptionsFrom(c, "", p.newLogger(c.Log), newMetrics())
	o.objects, o.scrubRate, o.archiveEvery = own, 0, 0
	bar := p.newProgress("restored")
	cut, err := restoreNode(ctx, o, found.restoration(found.isOwn(c), bar.update))
	bar.clear()
	if err != nil {
		return fmt.Errorf("restoring node %d: %w", c.Node.ID, err)
	}
	p.tellRestored(c, found, cut, v)
	return nil
}

// restorePlaces returns the node's own bucket, nil if it has none, and where to
// restore from, if the configuration is one to restore into.
func restorePlaces(c *config, from string) (own objectStore, at *location, err error) {
	if !c.Cluster.Voter {
		return nil, nil, unusable("restore: cluster.voter is false, and a cluster of one needs a voter")
	}
	if err := wantRestorable(c.Node.DataDir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("restoring node %d: %w", c.Node.ID, err)
	}
	if own, err = bucketFrom(c.Storage.S3, newMetrics()); err != nil {
		return nil, nil, &exitError{exitUnusable, err}
	}
	if from == "" && own == nil {
		return nil, nil, unusable("restore: no bucket is configured (storage.s3.bucket); name a backup with --from")
	}
	if from == "" {
		from = "s3://" + c.Storage.S3.Bucket + "/" + c.Storage.S3.Prefix
	}
	at, err = openLocation(from, c)
	return own, at, err
}

// isOwn tells whether the archive is where the configured node will look for its
// archived segments.
func (a *archived) isOwn(c *config) bool {
	b, ok := a.objects.(bucketStore)
	return ok && b.c.o.bucket == c.Storage.S3.Bucket && a.folder == bucketFolder(prefixFrom(c.Storage.S3), a.cluster)
}

// restorable returns why no cluster of that name can go on from the archive.
func (a *archived) restorable(name string) error {
	m := a.manifest
	switch {
	case len(m.segments) == 0:
		return fmt.Errorf("%w: manifest %s has no entries", errNoArchive, a.key)
	case m.name != name:
		return unusable("the ledger is that of a cluster named %q, the configuration says %q: set cluster.name", m.name, name)
	}
	return nil
}

// restoration returns how a node goes on from the archive: with segments that stay
// where they are, if that is its own bucket, else with their files. What the signer
// did not name is read whole, for nothing else commits to its values.
func (a *archived) restoration(own bool, told func(entries int64, part float64)) *restoration {
	m := a.manifest
	r := &restoration{cluster: m.cluster, segments: slices.Clone(m.segments), root: m.root, key: m.key.String(), manifest: a.key,
		told: func(entries uint64) { told(int64(entries), float64(entries)/float64(m.size())) }}
	for k := range r.segments {
		if !own {
			r.segments[k].object = ""
		}
	}
	r.adopt = func(ctx context.Context, s *store, k int) (fetchedSegment, error) {
		if info := r.segments[k]; info.object != "" {
			return s.adoptCold(ctx, info)
		}
		return s.fetchSegment(r.segments[k], func(from uint64, w io.Writer) error { return a.unpack(ctx, k, int64(from), w) })
	}
	return r
}

// errAlive says that the cluster of an archive may not be lost.
var errAlive = errors.New("the cluster lives")

// minSilence is for how long nobody may have led a cluster that is restored.
const minSilence = 3 * time.Minute

// wantDead returns an error if the archive says that the cluster had a leader less
// than silence ago, or minSilence.
func (a *archived) wantDead(ctx context.Context, now time.Time, silence time.Duration) error {
	silence = max(silence, minSilence)
	key := a.folder + liveName
	size, err := a.objects.size(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a backup has none
	}
	var b []byte
	if err == nil {
		b, err = a.objects.read(ctx, key, 0, min(size, maxReply))
	}
	if err != nil {
		return err
	}
	var live struct {
		Node uint64 `json:"node_id"`
		HTTP string `json:"http"`
		Time int64  `json:"time"`
	}
	if err := json.Unmarshal(b, &live); err != nil {
		return fmt.Errorf("%w: %s/%s cannot be read, so nobody knows whether it does; --force if you do: %w", errAlive, a.objects, key, err)
	}
	if ago := now.Sub(time.UnixMilli(live.Time)); ago < silence {
		return fmt.Errorf("%w: %s/%s says that node %d (%s) led it %s ago; stop it, and wait until nobody has led for %s, or --force if you know better",
			errAlive, a.objects, key, live.Node, live.HTTP, ago.Round(time.Second), silence)
	}
	return nil
}

// tellRestored says what there is now, and what is not.
func (p *program) tellRestored(c *config, a *archived, cut *restoredCut, v *verifier) {
	m := a.manifest
	fmt.Fprintf(p.stdout, "restored   %d entries in %d segments, sealed until %s\n", m.size(), len(m.segments), cut.LastSealed)
	fmt.Fprintf(p.stdout, "from       %s/%s\n", a.objects, a.key)
	fmt.Fprintf(p.stdout, "cluster    %s, named %s\n", m.cluster, m.name)
	fmt.Fprintf(p.stdout, "root       %s\n", m.root)
	fmt.Fprintf(p.stdout, "signed by  %s\n", m.key)
	fmt.Fprintf(p.stdout, "trusted    %s\n", a.trusted)
	if known, err := v.pinned(m.origin); err == nil && known != nil && known.head.size > m.size() {
		fmt.Fprintf(p.stdout, "lost       entries %d to %d, which a checkpoint seen by an earlier verify or audit had\n", m.size(), known.head.size-1)
	}
	fmt.Fprintf(p.stdout, "Node %d is a cluster of its own; start it, and let others with empty data directories join. What was written after %s\n"+
		"was not archived and is lost; the entry %q tells of it. The ledger gets a new key: receipts issued before verify with the old one.\n"+
		"Never start the lost nodes on their old data: they would go on with another history.\n", c.Node.ID, cut.LastSealed, restoredKey)
}
