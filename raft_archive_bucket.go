package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// What a node looks for in the bucket before it archives, and what the leader
// writes there beside segments: bucket manifests and live (manifest_bucket.go).

const (
	keptManifests     = 10      // bucket manifests; older ones go
	maxForeign        = 10_000  // objects looked at for another cluster
	maxBucketManifest = 1 << 30 // bytes
	liveEvery         = 20 * time.Second
)

// errForeignBucket says that the bucket holds another cluster of the same name.
var errForeignBucket = errors.New("the bucket holds another cluster of this name")

// probe finds out once whether the bucket can be used, and is this cluster's.
func (a *archiver) probe(ctx context.Context) error {
	if a.probed.Load() {
		return nil
	}
	does, err := a.n.o.objects.probe(ctx, a.n.o.objectPrefix)
	if err == nil {
		err = a.foreign(ctx)
	}
	if err != nil {
		return err
	}
	a.probed.Store(true)
	a.n.o.logger.Info("the archive is ready", "bucket", a.n.o.objects.String(), "folder", a.folder(), "check", does)
	return nil
}

// errEnough ends a listing.
var errEnough = errors.New("seen enough")

// foreign returns errForeignBucket if the bucket has nothing of this cluster but a
// manifest of another one of its name: who lost a cluster and started an empty one in
// its place should hear of it before both lie side by side. A bucket that cannot be
// listed, or has too much else in it, is believed.
func (a *archiver) foreign(ctx context.Context) error {
	prefix, folder, key := a.n.o.objectPrefix, "", ""
	own, err := a.firstKey(ctx, a.folder(), func(string) bool { return true })
	if err == nil && own == "" {
		key, err = a.firstKey(ctx, prefix, func(key string) bool {
			id, _, _ := strings.Cut(strings.TrimPrefix(key, prefix), "/")
			cluster, err := parseClusterID(id)
			folder = bucketFolder(prefix, cluster)
			return err == nil && strings.HasPrefix(key, folder+manifestsFolder)
		})
	}
	if err != nil || key == "" {
		return nil
	}
	m, err := a.readManifest(ctx, folder, key)
	if err != nil || m.name != a.n.self.Load().ClusterName {
		return nil
	}
	return fmt.Errorf("%w: %s/%s is of cluster %s, named %s, this is cluster %s: restore that one, or set another storage.s3.prefix",
		errForeignBucket, a.n.o.objects, key, m.cluster, m.name, a.n.self.Load().cluster)
}

// firstKey returns the first key below prefix that is wanted, "" if none of the
// first ones is.
func (a *archiver) firstKey(ctx context.Context, prefix string, wanted func(key string) bool) (found string, err error) {
	left := maxForeign
	err = a.n.o.objects.list(ctx, prefix, func(key string, _ int64) error {
		if wanted(key) {
			found = key
			return errEnough
		}
		if left--; left == 0 {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return found, err
}

// readManifest reads the bucket manifest of that key.
func (a *archiver) readManifest(ctx context.Context, folder, key string) (*bucketManifest, error) {
	_, sum, ok := parseBucketManifestKey(folder, key)
	if !ok {
		return nil, fmt.Errorf("%w: no manifest has the key %s", errBucketManifest, key)
	}
	size, err := a.n.o.objects.size(ctx, key)
	if err != nil || size > maxBucketManifest {
		return nil, fmt.Errorf("%s: %d bytes: %w", key, size, errors.Join(err, errBucketManifest))
	}
	b, err := a.n.o.objects.read(ctx, key, 0, size)
	if err != nil {
		return nil, err
	}
	if got := hash(sha256.Sum256(b)); got != sum {
		return nil, fmt.Errorf("%w: %s has SHA-256 %s", errBucketManifest, key, got)
	}
	return parseBucketManifest(b)
}

// liveObject is what live holds.
type liveObject struct {
	ClusterID string `json:"cluster_id"`
	NodeID    uint64 `json:"node_id"`
	HTTP      string `json:"http"`
	Time      int64  `json:"time"`  // Unix ms
	Every     int64  `json:"every"` // ms until it is written again
}

// liveLoop says in the bucket that this cluster has a leader, so that nobody rebuilds
// it elsewhere meanwhile, however long a round takes. Whether the bucket takes it
// does not matter here: a round tells.
func (a *archiver) liveLoop() {
	for every := min(liveEvery, a.n.o.archiveEvery); a.pause(every); {
		if !a.probed.Load() || !a.n.isReady() {
			continue
		}
		self := a.n.self.Load()
		b, err := json.Marshal(liveObject{self.ClusterID, self.NodeID, a.n.o.httpURL, a.n.o.now().UnixMilli(), every.Milliseconds()})
		if err == nil {
			err = a.n.o.objects.replace(a.n.ctx, a.folder()+liveName, append(b, '\n'))
		}
		if err != nil {
			a.n.o.logger.Debug("saying in the bucket who leads", "error", err)
		}
	}
}

// publishedManifest is the newest bucket manifest that this node has signed.
type publishedManifest struct {
	size  uint64 // entries
	key   publicKey
	bytes []byte // nil once they are in the bucket
	name  string // key of the object
}

// publish writes a bucket manifest over the segments that are archived without a
// gap, if there are more than in the last one or the ledger has another key. A crash
// leaves the older ones, or a new one whole.
func (a *archiver) publish(ctx context.Context) error {
	m, keys := a.n.store.manifest.Load(), a.n.keys()
	prefix, _ := m.archived()
	if prefix == 0 || keys == nil {
		return nil
	}
	size, p := m.segments[prefix-1].end(), &a.published
	if p.size != size || p.key != keys.public() {
		b, err := a.signManifest(ctx, m.segments[:prefix], size)
		if err != nil {
			return fmt.Errorf("bucket manifest over %d entries: %w", size, err)
		}
		*p = publishedManifest{size, keys.public(), b, bucketManifestKey(a.folder(), size, sha256.Sum256(b))}
	}
	if p.bytes == nil {
		return nil
	}
	if err := a.n.store.step("put manifest", func() error { return a.putManifest(ctx, p.name, p.bytes) }); err != nil {
		return err // the same bytes are put next time: no second manifest is left
	}
	p.bytes = nil
	a.n.o.metrics.archive.entries.set(int64(size))
	a.n.o.logger.Info("bucket manifest written", "entries", size, "segments", prefix, "object", p.name)
	a.prune(ctx, p.name)
	return nil
}

// signManifest makes the bucket manifest over size entries. It is signed after a
// checkpoint of this node that has at least as many: a node whose tree does not go on
// from what it signed signs no manifest either.
func (a *archiver) signManifest(ctx context.Context, segments []segmentInfo, size uint64) ([]byte, error) {
	head, err := a.n.signer.head(ctx, size)
	if err != nil {
		return nil, err
	}
	m, err := a.n.bucketManifest(segments, head.keys)
	if err != nil {
		return nil, err
	}
	return m.sign(head.keys.signer), nil
}

// bucketManifest returns the manifest over segments, of a ledger with these keys.
func (n *node) bucketManifest(segments []segmentInfo, keys *ledgerKeys) (*bucketManifest, error) {
	self := n.self.Load()
	m := &bucketManifest{cluster: self.cluster, name: self.ClusterName, time: n.o.now().UnixMilli(), segments: segments}
	for _, f := range keys.former {
		m.former = append(m.former, f.handOver)
	}
	var err error
	m.root, err = n.root(m.size())
	return m, err
}

// putManifest puts a bucket manifest and reads it back.
func (a *archiver) putManifest(ctx context.Context, key string, b []byte) error {
	err := a.n.o.objects.put(ctx, key, bytes.NewReader(b), int64(len(b)), sha256.Sum256(b))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	got, err := a.n.o.objects.read(ctx, key, 0, int64(len(b)))
	if err == nil && !bytes.Equal(got, b) {
		err = fmt.Errorf("%s/%s: what was read back differs from what was put: %w", a.n.o.objects, key, errBucketManifest)
	}
	return err
}

// prune removes old bucket manifests, but never the one of that key. A bucket that
// lets nobody remove anything keeps them.
func (a *archiver) prune(ctx context.Context, newest string) {
	var keys []string
	err := a.n.o.objects.list(ctx, a.folder()+manifestsFolder, func(key string, _ int64) error {
		if _, _, ok := parseBucketManifestKey(a.folder(), key); ok && key != newest {
			keys = append(keys, key)
		}
		return nil
	})
	for len(keys) >= keptManifests && err == nil {
		err = a.n.o.objects.remove(ctx, keys[0])
		keys = keys[1:]
	}
	if err != nil {
		a.n.o.logger.Debug("removing old bucket manifests", "error", err)
	}
}
