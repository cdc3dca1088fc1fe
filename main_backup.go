package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"runtime"
	"sync"
)

// The command backup: a folder gets what a bucket would have (manifest_bucket.go):
// packed segments, and the signed manifest over them. What is there already is not
// made again, so a backup that was cut off goes on where it was, and the next one
// brings what is new. The manifest comes last: a crash before leaves the older one.

// backupSource is a ledger to make a backup of.
type backupSource struct {
	manifest []byte // signed
	// copy writes the file of a segment.
	copy  func(ctx context.Context, info segmentInfo, w io.Writer) error
	close func() error
}

// backup makes a backup of a node that runs, or of one that does not.
func (p *program) backup(ctx context.Context, args []string) error {
	flags, file := nodeFlags("backup")
	url := flags.String("url", "", "`URL` of a node that runs; without it the node of --config, which must not run")
	to := flags.String("to", "", "`folder` of the backup, made if it is not there")
	key := flags.String("key", "", "with --url: the ledger's verifier key, `vkey` or a file that holds it")
	noSeal := flags.Bool("no-seal", false, "with --url: leave out the entries that are in no segment yet")
	c, err := p.nodeConfig(flags, file, args)
	if err != nil {
		return err
	}
	if err := backupUsage(givenFlags(flags)); err != nil {
		return err
	}
	source, err := p.backupSource(ctx, c, *url, *key, !*noSeal)
	if err != nil {
		return withExitCode(err)
	}
	defer source.close()
	b, err := newBackup(*to, int(c.Storage.Tiering.CompressionLevel))
	if err != nil {
		return &exitError{exitUnusable, err}
	}
	defer b.close()
	bar := p.newProgress("backed up")
	b.told = bar.update
	err = b.take(ctx, p.verifier(), source)
	bar.clear()
	if err != nil {
		return withExitCode(fmt.Errorf("backup in %s: %w", *to, err))
	}
	m := b.manifest
	fmt.Fprintf(p.stdout, "backup     %d entries in %d segments, %d of them new\nfolder     %s/%s\nroot       %s\nsigned by  %s\n",
		m.size(), len(m.segments), b.made, b.objects, b.folder, m.root, m.key)
	return nil
}

// backupUsage returns what is wrong with the flags.
func backupUsage(given map[string]bool) error {
	switch {
	case !given["to"]:
		return unusable("backup: name a folder with --to; usage: scribe-ledger %s", usageOf("backup"))
	case given["url"] == given["config"]:
		return unusable("backup: give either --url or --config")
	case !given["url"] && (given["key"] || given["no-seal"]):
		return unusable("backup: --key and --no-seal belong to --url")
	}
	return nil
}

// folderBackup is a backup in the making.
type folderBackup struct {
	archived
	store *folderStore
	lock  *os.File
	level int // of compress/gzip
	told  func(entries int64, part float64)
	made  int // segments that were not there yet
}

// newBackup takes possession of a folder, made if it is not there: of one backup
// at a time.
func newBackup(dir string, level int) (*folderBackup, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	store, err := makeFolder(dir)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &folderBackup{archived: archived{objects: store}, store: store, lock: lock, level: level}, nil
}

// close lets go of the folder.
func (b *folderBackup) close() { errors.Join(b.store.close(), b.lock.Close()) }

// take brings the folder to where source is.
func (b *folderBackup) take(ctx context.Context, v *verifier, source *backupSource) (err error) {
	if b.manifest, err = parseBucketManifest(source.manifest); err != nil {
		return fmt.Errorf("%w: %w", errDifference, err)
	}
	b.cluster, b.folder = b.manifest.cluster, bucketFolder("", b.manifest.cluster)
	before := &archived{objects: b.objects, cluster: b.cluster, folder: b.folder}
	err = v.openNewest(ctx, before, b.manifest.key.String())
	switch {
	case errors.Is(err, errForked):
		return err
	case err != nil: // there is none, or none that is worth anything
	case before.manifest.size() > b.manifest.size():
		return fmt.Errorf("it has %d entries already, the node %d", before.manifest.size(), b.manifest.size())
	default:
		if err := agree(before.manifest, b.manifest); err != nil {
			return fmt.Errorf("%w: manifest %s and the node: %w", errDifference, before.key, err)
		}
	}
	have, err := b.listPacked(ctx)
	if err != nil {
		return err
	}
	if err := b.putSegments(ctx, source, have); err != nil {
		return err
	}
	if before.manifest != nil && len(before.manifest.segments) == len(b.manifest.segments) {
		return nil // the older manifest says the same
	}
	return b.putManifest(ctx, source.manifest)
}

// putSegments puts all segments that are not there, several at a time.
func (b *folderBackup) putSegments(ctx context.Context, source *backupSource, have map[uint64][]packedPart) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := b.manifest.segments
	var mu sync.Mutex // guards next, done and b.made
	next, done := 0, uint64(0)
	parallel(min(runtime.GOMAXPROCS(0), len(all)), func(int) {
		for ctx.Err() == nil {
			mu.Lock()
			k := next
			next++
			mu.Unlock()
			if k >= len(all) {
				return
			}
			made, err := b.putSegment(ctx, source, have, all[k])
			if err != nil {
				cancel(err)
				return
			}
			mu.Lock()
			if done += all[k].count; made {
				b.made++
			}
			b.told(int64(done), float64(done)/float64(b.manifest.size()))
			mu.Unlock()
		}
	})
	return context.Cause(ctx)
}

// putSegment puts a segment and reads it back, unless it is there.
func (b *folderBackup) putSegment(ctx context.Context, source *backupSource, have map[uint64][]packedPart, info segmentInfo) (made bool, err error) {
	part, err := b.find(ctx, have, info)
	if err == nil {
		_, err = b.open(ctx, info, part)
		return false, err
	}
	if !errors.Is(err, errMissing) {
		return false, err
	}
	raw, err := b.temporary()
	if err != nil {
		return false, err
	}
	defer raw.Close()
	sum := sha256.New()
	if err := source.copy(ctx, info, io.MultiWriter(raw, sum)); err != nil {
		return false, fmt.Errorf("segment %s: %w", info.id(), err)
	}
	if got := hash(sum.Sum(nil)); got != info.sum {
		return false, fmt.Errorf("%w: segment %s: its file has SHA-256 %s, the manifest says %s", errDifference, info.id(), got, info.sum)
	}
	part, err = b.putPacked(ctx, info, io.NewSectionReader(raw, 0, int64(info.size)))
	if err != nil {
		return false, fmt.Errorf("segment %s: %w", info.id(), err)
	}
	return true, b.verify(ctx, info, part)
}

// temporary makes a file that is gone when it is closed.
func (b *folderBackup) temporary() (*os.File, error) {
	f, err := os.CreateTemp(b.store.dir, "backup-*"+tmpSuffix)
	if err == nil {
		err = os.Remove(f.Name())
	}
	return f, err
}

// putPacked packs the file of a segment and puts it.
func (b *folderBackup) putPacked(ctx context.Context, info segmentInfo, raw io.Reader) (packedPart, error) {
	f, err := b.temporary()
	if err != nil {
		return packedPart{}, err
	}
	defer f.Close()
	sum := sha256.New()
	table, err := packSegment(io.MultiWriter(f, sum), raw, int64(info.size), b.level)
	if err != nil {
		return packedPart{}, err
	}
	part := packedPart{segmentKey(b.folder, packedName(info.first, table.sum())), table.objectSize()}
	err = b.store.put(ctx, part.key, f, part.packed, hash(sum.Sum(nil)))
	if errors.Is(err, fs.ErrExist) { // of the same name, so it ought to hold the same
		part.packed, err = b.store.size(ctx, part.key)
	}
	return part, err
}

// verify reads a segment back.
func (b *folderBackup) verify(ctx context.Context, info segmentInfo, part packedPart) error {
	p, err := b.open(ctx, info, part)
	if err != nil {
		return err
	}
	sum := sha256.New()
	if err := p.unpack(0, sum); err != nil {
		return b.blame(part.key, err)
	}
	if got := hash(sum.Sum(nil)); got != info.sum {
		return fmt.Errorf("%w: %s/%s holds a file with SHA-256 %s, the manifest says %s", errDifference, b.objects, part.key, got, info.sum)
	}
	return nil
}

// putManifest puts the manifest and reads it back; the oldest ones go.
func (b *folderBackup) putManifest(ctx context.Context, signed []byte) error {
	key := bucketManifestKey(b.folder, b.manifest.size(), sha256.Sum256(signed))
	err := b.store.put(ctx, key, bytes.NewReader(signed), int64(len(signed)), sha256.Sum256(signed))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	got, err := b.store.read(ctx, key, 0, int64(len(signed)))
	if err == nil && !bytes.Equal(got, signed) {
		err = fmt.Errorf("%w: %s/%s: what was read back differs from what was put", errDifference, b.objects, key)
	}
	if err != nil {
		return err
	}
	var old []string
	err = b.store.list(ctx, b.folder+manifestsFolder, func(key string, _ int64) error {
		old = append(old, key)
		return nil
	})
	for ; err == nil && len(old) > keptManifests; old = old[1:] {
		err = b.store.remove(ctx, old[0])
	}
	return err
}

// backupSource returns the ledger of the server at url, or of the configured node if
// that is empty.
func (p *program) backupSource(ctx context.Context, c *config, url, key string, seal bool) (*backupSource, error) {
	if url != "" {
		return p.liveSource(ctx, url, key, seal)
	}
	return p.stoppedSource(c)
}

// stoppedSource returns the ledger of a node that does not run, up to its last
// sealed segment.
func (p *program) stoppedSource(c *config) (*backupSource, error) {
	o := nodeOptionsFrom(c, "", p.newLogger(c.Log), newMetrics())
	var err error
	if o.objects, err = bucketFrom(c.Storage.S3, o.metrics); err != nil {
		return nil, &exitError{exitUnusable, err}
	}
	signed, s, closed, err := openStoppedLedger(o)
	if err != nil {
		return nil, fmt.Errorf("node %d: %w", c.Node.ID, err)
	}
	return &backupSource{signed, func(_ context.Context, info segmentInfo, w io.Writer) error {
		f, err := s.openSound(info)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, f)
		return errors.Join(err, f.Close())
	}, closed}, nil
}

// liveSource returns the ledger of a node that runs, once its manifest has proven to
// be the beginning of a tree whose head is trusted.
func (p *program) liveSource(ctx context.Context, url, key string, seal bool) (*backupSource, error) {
	if seal {
		c, err := newClient(url)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, replyTimeout)
		defer cancel()
		resp, err := c.do(ctx, http.MethodPost, "/cluster/seal", nil, nil, 0)
		if err != nil {
			return nil, fmt.Errorf("sealing: %w", err)
		}
		resp.Body.Close()
	}
	signed, download, err := p.verifier().remoteManifest(ctx, url, key)
	if err != nil {
		return nil, err
	}
	return &backupSource{signed, download, func() error { return nil }}, nil
}
