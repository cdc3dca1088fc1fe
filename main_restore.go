package main

import (
	"bytes"
	"cmp"
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
		if err := found.wantDead(ctx, p.now(), func(what string) { fmt.Fprintln(p.stdout, what) }); err != nil {
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

// silence is for how long nobody may have written live before the cluster is restored.
func (l *liveObject) silence() time.Duration {
	return max(3*time.Duration(cmp.Or(l.Every, time.Minute.Milliseconds()))*time.Millisecond, minSilence)
}

const minSilence = 5 * time.Second

// wantDead returns errAlive if the cluster of the archive has a leader: who wrote live
// a moment ago answers, or writes it again when that is due; tell says what is waited for.
func (a *archived) wantDead(ctx context.Context, now time.Time, tell func(string)) error {
	key := a.folder + liveName
	b, err := a.readLive(ctx, key)
	if b == nil || err != nil {
		return err // a backup has none
	}
	var live liveObject
	if err := json.Unmarshal(b, &live); err != nil {
		return fmt.Errorf("%w: %s/%s cannot be read, so nobody knows whether it does; --force if you do: %w", errAlive, a.objects, key, err)
	}
	ago := now.Sub(time.UnixMilli(live.Time)).Round(time.Second)
	if ago >= live.silence() {
		return nil
	}
	if live.answers(ctx) {
		return fmt.Errorf("%w: %s/%s says that node %d leads it, and that answers at %s; stop it, or --force if you know better",
			errAlive, a.objects, key, live.NodeID, live.HTTP)
	}
	tell(fmt.Sprintf("node %d (%s) led the cluster %s ago: waiting %s to see whether it does not any more", live.NodeID, live.HTTP, max(ago, 0), live.silence()))
	for end := time.Now().Add(live.silence()); time.Now().Before(end); {
		select {
		case <-time.After(live.silence() / 10):
		case <-ctx.Done():
			return ctx.Err()
		}
		again, err := a.readLive(ctx, key)
		if err != nil {
			return err
		}
		if !bytes.Equal(again, b) {
			return fmt.Errorf("%w: %s/%s was written again, there is a leader; stop it, or --force if you know better", errAlive, a.objects, key)
		}
	}
	return nil
}

// readLive reads the object that says who leads, nil if there is none.
func (a *archived) readLive(ctx context.Context, key string) ([]byte, error) {
	size, err := a.objects.size(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return a.objects.read(ctx, key, 0, min(size, maxReply))
}

// answers tells whether a node of the cluster answers where its leader was.
func (l *liveObject) answers(ctx context.Context) bool {
	c, err := newLedgerClient(l.HTTP)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var status struct {
		ClusterID string `json:"cluster_id"`
	}
	return c.getJSON(ctx, "/cluster/status", maxReply, &status) == nil && status.ClusterID == l.ClusterID
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
