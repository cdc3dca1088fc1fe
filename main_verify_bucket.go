package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// What audit and restore believe of a bucket, or of a folder that is as good
// (manifest_bucket.go says what lies where): nothing but what the newest manifest
// with a good signature has the hash of. Manifests that are damaged, or signed by
// somebody else, are passed over and told; two that contradict each other end it.

// objects is a bucket or a folder, as main hands it in.
type objects interface {
	read(ctx context.Context, key string, from, size int64) ([]byte, error)
	size(ctx context.Context, key string) (int64, error)
	list(ctx context.Context, prefix string, each func(key string, size int64) error) error
	String() string
}

// errNoArchive says that there is nothing to audit or restore.
var errNoArchive = errors.New("no archived ledger")

// errForked says that two signed manifests tell different histories of a ledger.
var errForked = errors.New("two signed manifests contradict each other")

// archived is one ledger in a bucket or a folder.
type archived struct {
	objects  objects
	cluster  clusterID
	folder   string          // how its keys begin
	manifest *bucketManifest // the newest one that is believed
	key      string          // of the manifest
	passed   []string        // why newer manifests were passed over
	trusted  string          // why its signature is believed
	parts    []packedPart
}

// packedPart is where one segment of a manifest lies.
type packedPart struct {
	key    string
	packed int64 // bytes
}

// where names a place for messages.
func where(o objects, prefix string) string { return o.String() + "/" + prefix }

// findArchive returns the ledger below prefix, which is "" or has a slash at its
// end, that cluster names, "" for the only one. vkey is the key that must have
// signed it, or handed over to the one that did; "" for the pinned one.
func (v *verifier) findArchive(ctx context.Context, o objects, prefix, cluster, vkey string) (*archived, error) {
	if last := path.Base(prefix); cluster == "" { // the folder of a cluster itself
		if _, err := parseClusterHex(last); err == nil {
			cluster, prefix = last, strings.TrimSuffix(prefix, last+"/")
		}
	}
	if cluster == "" {
		found, err := clustersBelow(ctx, o, prefix)
		if err != nil {
			return nil, err
		}
		switch len(found) {
		case 0:
			return nil, fmt.Errorf("%w: %s has no manifest of any cluster", errNoArchive, where(o, prefix))
		case 1:
			cluster = found[0]
		default:
			return nil, fmt.Errorf("%w: %s has several clusters, name one with --cluster: %s", errBadArgument, where(o, prefix), strings.Join(found, ", "))
		}
	}
	id, err := parseClusterHex(cluster)
	if err != nil {
		return nil, fmt.Errorf("%w cluster: %w", errBadArgument, err)
	}
	a := &archived{objects: o, cluster: id, folder: bucketFolder(prefix, id)}
	if err := v.openNewest(ctx, a, vkey); err != nil {
		return nil, err
	}
	return a, a.locate(ctx)
}

// parseClusterHex reads the id of a cluster.
func parseClusterHex(s string) (clusterID, error) {
	id, err := parseClusterID(s)
	if err == nil && id.String() != s {
		err = fmt.Errorf("%q is not 32 lower-case hex digits", s)
	}
	return id, err
}

// clustersBelow returns the ids of the clusters that have a manifest below prefix.
func clustersBelow(ctx context.Context, o objects, prefix string) (found []string, err error) {
	err = o.list(ctx, prefix, func(key string, _ int64) error {
		name, rest, _ := strings.Cut(strings.TrimPrefix(key, prefix), "/")
		if _, err := parseClusterHex(name); err == nil && strings.HasPrefix(rest, manifestsFolder) && !slices.Contains(found, name) {
			found = append(found, name)
		}
		return nil
	})
	return found, err
}

// openNewest makes a the ledger of the newest manifest that is sound and signed as
// it must be, if no other contradicts it.
func (v *verifier) openNewest(ctx context.Context, a *archived, vkey string) error {
	var keys []string
	err := a.objects.list(ctx, a.folder+manifestsFolder, func(key string, _ int64) error {
		keys = append(keys, key)
		return nil
	})
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		return fmt.Errorf("%w: %s has no manifest", errNoArchive, where(a.objects, a.folder))
	}
	slices.Reverse(keys) // names begin with the number of entries
	var wrong []error
	for _, key := range keys {
		m, trusted, err := v.openBucketManifest(ctx, a, key, vkey)
		switch {
		case errors.Is(err, errOtherKey) && vkey == "" && a.manifest == nil:
			return fmt.Errorf("%w; if the ledger was restored under that key, say so with --key", err)
		case errors.Is(err, errPassed):
			wrong = append(wrong, err)
		case err != nil:
			return err
		case a.manifest == nil:
			a.manifest, a.key, a.trusted = m, key, trusted
			for _, w := range wrong {
				a.passed = append(a.passed, w.Error())
			}
		default:
			if err := agree(m, a.manifest); err != nil {
				return fmt.Errorf("%w: %s and %s: %w", errDifference, key, a.key, err)
			}
		}
	}
	if a.manifest == nil {
		return fmt.Errorf("%w: %s has %d manifests, none that can be believed: %w", errDifference, where(a.objects, a.folder), len(wrong), wrong[0])
	}
	return nil
}

// errPassed is wrapped by the errors of a manifest in whose place an older one is
// looked for.
var errPassed = errors.New("passed over")

// errOtherKey is wrapped by the error about a manifest that somebody else signed.
var errOtherKey = fmt.Errorf("%w: signed by another key", errDifference)

// openBucketManifest reads a manifest and says why its signature is believed.
func (v *verifier) openBucketManifest(ctx context.Context, a *archived, key, vkey string) (*bucketManifest, string, error) {
	m, err := a.readManifest(ctx, key)
	trusted := ""
	if err == nil {
		trusted, err = v.trustManifest(m, vkey)
	}
	if errors.Is(err, errBucketManifest) || errors.Is(err, errDifference) || errors.Is(err, fs.ErrNotExist) { // removed meanwhile
		err = fmt.Errorf("%w: manifest %s: %w", errPassed, key, err)
	}
	return m, trusted, err
}

// readManifest reads a manifest, which must be what its name says.
func (a *archived) readManifest(ctx context.Context, key string) (*bucketManifest, error) {
	entries, sum, ok := parseBucketManifestKey(a.folder, key)
	if !ok {
		return nil, fmt.Errorf("%w: not the name of a manifest", errBucketManifest)
	}
	size, err := a.objects.size(ctx, key)
	if err != nil {
		return nil, err
	}
	if size > maxManifest {
		return nil, fmt.Errorf("%w: it has %d bytes, more than %d", errBucketManifest, size, maxManifest)
	}
	b, err := a.objects.read(ctx, key, 0, size)
	if err != nil {
		return nil, err
	}
	if got := hash(sha256.Sum256(b)); got != sum {
		return nil, fmt.Errorf("%w: its bytes have SHA-256 %s", errBucketManifest, got)
	}
	m, err := parseBucketManifest(b)
	if err == nil && (m.size() != entries || m.cluster != a.cluster) {
		err = fmt.Errorf("%w: it is of %d entries of cluster %s", errBucketManifest, m.size(), m.cluster)
	}
	return m, err
}

// trustManifest says why the key that signed m is believed to be the ledger's: it
// is vkey, or the pinned one, or one that it was handed over to; or nothing is known.
func (v *verifier) trustManifest(m *bucketManifest, vkey string) (string, error) {
	if vkey != "" {
		given, err := readKey(vkey, sigEd25519)
		if err != nil {
			return "", err
		}
		return "the key that was given", signedBy(m, given)
	}
	known, err := v.pinned(m.origin)
	if err != nil {
		return "", err
	}
	if known == nil {
		return "nobody: no key was given or pinned, so the one that the manifest names was believed", nil
	}
	return "the key pinned by an earlier verify or audit", signedBy(m, known.key)
}

// signedBy returns an error unless key signed m, or handed over to the one that did.
func signedBy(m *bucketManifest, key noteVerifier) error {
	last, err := followNotes(m.former, key)
	if err != nil {
		return fmt.Errorf("%w: %w", errOtherKey, err)
	}
	if last.String() != m.key.String() {
		return fmt.Errorf("%w: %s, not %s", errOtherKey, m.key, key)
	}
	return nil
}

// agree returns an error unless the segments of the older manifest are the first
// ones of the newer.
func agree(older, newer *bucketManifest) error {
	for k, i := range older.segments {
		if k >= len(newer.segments) {
			return fmt.Errorf("%w: entry %d is in the one, which is older, alone", errForked, i.first)
		}
		if j := newer.segments[k]; j.count != i.count || j.root != i.root || j.sum != i.sum {
			return fmt.Errorf("%w: %d entries from %d have root %s in the one, %d entries have %s in the other", errForked, i.count, i.first, i.root, j.count, j.root)
		}
	}
	return nil
}

// pinned returns what this user has seen of a ledger, nil for nothing.
func (v *verifier) pinned(origin string) (*pin, error) {
	if _, err := os.Stat(v.folder); err != nil {
		return nil, nil // and none is made for a look
	}
	folder, err := openPins(v.folder)
	if err != nil {
		return nil, err
	}
	defer folder.close()
	return folder.ledger(origin)
}

// errMissing is wrapped by the error about a segment whose object is not there.
var errMissing = fmt.Errorf("%w: object is missing", errDifference)

// locate finds the objects of all segments.
func (a *archived) locate(ctx context.Context) error {
	have, err := a.listPacked(ctx)
	if err != nil {
		return err
	}
	for _, i := range a.manifest.segments {
		part, err := a.find(ctx, have, i)
		if err != nil {
			return err
		}
		a.parts = append(a.parts, part)
	}
	return nil
}

// listPacked returns the objects of segments, by their first entries.
func (a *archived) listPacked(ctx context.Context) (map[uint64][]packedPart, error) {
	have := make(map[uint64][]packedPart)
	err := a.objects.list(ctx, a.folder+segmentsFolder, func(key string, size int64) error {
		if first, _, ok := parsePackedName(path.Base(key)); ok {
			have[first] = append(have[first], packedPart{key, size})
		}
		return nil
	})
	return have, err
}

// find returns the object of a segment. One that the signer did not name is known
// by the root in its footer.
func (a *archived) find(ctx context.Context, have map[uint64][]packedPart, i segmentInfo) (packedPart, error) {
	wanted := segmentKey(a.folder, i.object)
	missing := errMissing
	for _, part := range have[i.first] {
		if i.object != "" {
			if part.key == wanted {
				return part, nil
			}
			continue
		}
		p, err := a.open(ctx, i, part)
		if err == nil {
			var f segmentFooter
			if f, err = p.footer(); err == nil && f.root == i.root {
				return part, nil
			}
		}
		if err != nil {
			missing = fmt.Errorf("%w, or damaged: %w", errMissing, err)
		}
	}
	if i.object == "" {
		wanted += fmt.Sprintf("%020d-…", i.first)
	}
	return packedPart{}, fmt.Errorf("%w: %s/%s: entries %d to %d", missing, a.objects, wanted, i.first, i.end()-1)
}

// open opens the object of a segment.
func (a *archived) open(ctx context.Context, i segmentInfo, part packedPart) (*packedObject, error) {
	p, err := openPacked(path.Base(part.key), int64(i.size), part.packed, func(from, size int64) ([]byte, error) {
		return a.objects.read(ctx, part.key, from, size)
	})
	return p, a.blame(part.key, err)
}

// blame names the object in an error about its bytes; others name it themselves.
func (a *archived) blame(key string, err error) error {
	if errors.Is(err, errPacked) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s/%s: %w", errDifference, a.objects, key, err)
	}
	return err
}

// unpack writes the file of the kth segment from an offset on to w.
func (a *archived) unpack(ctx context.Context, k int, from int64, w io.Writer) error {
	p, err := a.open(ctx, a.manifest.segments[k], a.parts[k])
	if err != nil {
		return err
	}
	return a.blame(a.parts[k].key, p.unpack(from, w))
}
