package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// bucketManifest returns the manifest over the first n segments of h, whose
// objects it names if named.
func (h *honest) bucketManifest(n int, named bool) *bucketManifest {
	m := &bucketManifest{cluster: h.cluster, name: "test", time: 1_700_000_009_000, former: h.former}
	for _, s := range h.segments[:n] {
		i := s.info
		if named {
			i.object, _ = h.packed(s)
		}
		m.segments = append(m.segments, i)
	}
	m.root = h.head(m.size()).root
	return m
}

// packed returns a segment as it lies in a bucket, and its name.
func (h *honest) packed(s sealedBytes) (name string, object []byte) {
	var b bytes.Buffer
	table, err := packSegment(&b, bytes.NewReader(s.data), int64(len(s.data)), 1)
	if err != nil {
		h.t.Fatal(err)
	}
	return packedName(s.info.first, table.sum()), b.Bytes()
}

// putManifest puts a manifest signed by h and returns its key.
func (h *honest) putManifest(o *folderStore, prefix string, m *bucketManifest) string {
	b := m.sign(h.signer)
	key := bucketManifestKey(bucketFolder(prefix, h.cluster), m.size(), sha256.Sum256(b))
	h.putObject(o, key, b)
	return key
}

// putObject puts an object that may be there already.
func (h *honest) putObject(o *folderStore, key string, b []byte) {
	err := o.put(h.t.Context(), key, bytes.NewReader(b), int64(len(b)), sha256.Sum256(b))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		h.t.Fatal(err)
	}
}

// archiveTo puts all segments of h, and a manifest of each beginning of them.
func (h *honest) archiveTo(o *folderStore, prefix string) {
	for n, s := range h.segments {
		name, object := h.packed(s)
		h.putObject(o, segmentKey(bucketFolder(prefix, h.cluster), name), object)
		h.putManifest(o, prefix, h.bucketManifest(n+1, true))
	}
}

// backupOf returns a folder with the archive of h.
func backupOf(t *testing.T, h *honest) *folderStore {
	t.Helper()
	o := newFolder(t)
	h.archiveTo(o, "")
	return o
}

// lastFile returns the last of the files that match a pattern below dir.
func lastFile(t *testing.T, parts ...string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(parts...))
	if err != nil || len(found) == 0 {
		t.Fatalf("%v: %q, %v", parts, found, err)
	}
	return found[len(found)-1]
}

// TestAuditBackup audits a backup as a whole, by the folder of its cluster, and
// what a signer without names of objects signed.
func TestAuditBackup(t *testing.T) {
	t.Parallel()
	h := sealedLedger(t)
	o := backupOf(t, h)
	key := h.signer.String()
	out := exits(t, "", 0, "audited    3 segments, 640 entries", "audit", "--data", o.dir)
	for _, want := range []string{"root " + h.head(640).root.String(), "signed by  " + key, "the key that the manifest names was believed", "00000000000000000640-"} {
		want = strings.Replace(want, "the key that the manifest names", "the one that the manifest names", 1)
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	exits(t, "", 0, "trusted    the key that was given", "audit", "--data", filepath.Join(o.dir, h.cluster.String()), "--key", key)
	exits(t, "", 0, "agrees", "audit", "--data", o.dir, "--key", key, "--checkpoint", write(t, h.checkpoint(h.head(333))))
	forked := h.head(333)
	forked.root[0] ^= 1
	exits(t, "", 1, "the checkpoint of 333 entries has root", "audit", "--data", o.dir, "--key", key, "--checkpoint", write(t, h.checkpoint(forked)))
	exits(t, "", 2, "several clusters, name one with --cluster", "audit", "--data", withCluster(t, o, 2).dir)
	exits(t, "", 0, "640 entries", "audit", "--data", o.dir, "--cluster", h.cluster.String())
	exits(t, "", 2, "32 hex digits", "audit", "--data", o.dir, "--cluster", "scribe")
	exits(t, "", 2, "no archived ledger: "+o.dir, "audit", "--data", o.dir, "--cluster", clusterID{9}.String())

	unnamed := newFolder(t)
	h.archiveTo(unnamed, "")
	for _, name := range []string{"00000000000000000030-", "00000000000000000630-", "00000000000000000640-"} {
		os.Remove(lastFile(t, unnamed.dir, h.cluster.String(), manifestsFolder, name+"*"))
	}
	h.putManifest(unnamed, "", h.bucketManifest(3, false))
	other := newHonest(t, 1) // whose objects have the same beginnings of names
	other.fill(700)
	other.seal()
	name, object := other.packed(other.segments[0])
	h.putObject(unnamed, segmentKey(bucketFolder("", h.cluster), name), object)
	exits(t, "", 0, "640 entries", "audit", "--data", unnamed.dir)
}

// withCluster adds an archive of another ledger to o.
func withCluster(t *testing.T, o *folderStore, seed byte) *folderStore {
	other := newHonest(t, seed)
	other.fill(5)
	other.seal()
	other.archiveTo(o, "")
	return o
}

// TestAuditBackupKeys: the key is given, pinned or handed over; another one leads
// to an older manifest, or to none.
func TestAuditBackupKeys(t *testing.T) {
	t.Parallel()
	h := sealedLedger(t)
	folder := t.TempDir()
	exits(t, folder, 0, "pinned", "audit", "--url", h.url)
	first := h.signer.String()
	h.rotate(77)
	o := backupOf(t, h)
	exits(t, folder, 0, "trusted    the key pinned", "audit", "--data", o.dir)
	exits(t, "", 0, "trusted    the key that was given", "audit", "--data", o.dir, "--key", first)
	exits(t, "", 1, "signed by another key: test/", "audit", "--data", o.dir, "--key", signerOf(t, h.signer.name, sigEd25519, 9).String())

	thief := signerOf(t, h.signer.name, sigEd25519, 9)
	b := h.bucketManifest(3, true).sign(thief)
	h.putObject(o, bucketManifestKey(bucketFolder("", h.cluster), 640, sha256.Sum256(b)), b)
	exits(t, "", 0, "640 entries", "audit", "--data", o.dir, "--key", first)
	more := h.bucketManifest(3, true)
	more.segments = append(more.segments, segmentInfo{first: 640, count: 1, size: 100, object: packedName(640, hash{})})
	b = more.sign(thief)
	h.putObject(o, bucketManifestKey(bucketFolder("", h.cluster), 641, sha256.Sum256(b)), b)
	exits(t, folder, 1, "if the ledger was restored under that key, say so with --key", "audit", "--data", o.dir)
	exits(t, "", 0, "warning    passed over: manifest 0100", "audit", "--data", o.dir, "--key", first)
	exits(t, "", 1, h.cluster.String()+"/segments/00000000000000000640-", "audit", "--data", o.dir, "--key", thief.String())
}

// TestAuditBackupManifests: what is wrong with the newest manifest is told, and
// the next older one is taken; two histories are none.
func TestAuditBackupManifests(t *testing.T) {
	t.Parallel()
	h := sealedLedger(t)
	for name, damage := range map[string]func(path string) error{
		"flipped": func(path string) error { return flipFile(path, 300) },
		"cut":     func(path string) error { return os.Truncate(path, 700) },
		"renamed": func(path string) error { return os.Rename(path, filepath.Dir(path)+"/99999999999999999999-x") },
		"gone":    os.Remove,
	} {
		o := backupOf(t, h)
		if err := damage(lastFile(t, o.dir, h.cluster.String(), manifestsFolder, "00000000000000000640-*")); err != nil {
			t.Fatal(err)
		}
		out := exits(t, "", 0, "audited    2 segments, 630 entries", "audit", "--data", o.dir)
		if name != "gone" && (!strings.Contains(out, "warning    passed over: manifest ") || !strings.Contains(out, "an older one")) {
			t.Errorf("%s: no warning in %s", name, out)
		}
	}
	o := backupOf(t, h)
	fork := h.bucketManifest(2, true)
	fork.segments[1].root[0] ^= 1
	h.putManifest(o, "", fork)
	exits(t, "", 1, "contradict each other: 600 entries from 30", "audit", "--data", o.dir)
	exits(t, "", 2, "no archived ledger", "audit", "--data", newBackupFolder(t))
}

// newBackupFolder returns the folder of a backup that has no manifest yet.
func newBackupFolder(t *testing.T) string {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, clusterID{1}.String(), manifestsFolder), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// flipFile flips a bit of a file.
func flipFile(path string, at int64) error {
	b, err := os.ReadFile(path)
	if err == nil {
		b[at%int64(len(b))] ^= 4
		err = os.WriteFile(path, b, 0o600)
	}
	return err
}

// TestAuditBackupObjects: an object that is missing, damaged, cut, or another
// one's is named.
func TestAuditBackupObjects(t *testing.T) {
	t.Parallel()
	h := sealedLedger(t)
	name, _ := h.packed(h.segments[1])
	_, other := h.packed(h.segments[2])
	for want, damage := range map[string]func(path string) error{
		"object is missing":         os.Remove,
		"not verified":              func(path string) error { return flipFile(path, 100) },
		"packed segment is damaged": func(path string) error { return os.Truncate(path, 1000) },
		"its table is of a file of": func(path string) error { return os.WriteFile(path, other, 0o600) },
	} {
		o := backupOf(t, h)
		path := filepath.Join(o.dir, segmentKey(bucketFolder("", h.cluster), name))
		if err := damage(path); err != nil {
			t.Fatal(err)
		}
		exits(t, "", 1, want, "audit", "--data", o.dir)
		exits(t, "", 1, o.dir+"/"+segmentKey(bucketFolder("", h.cluster), name), "audit", "--data", o.dir)
	}
}

// TestPackedFlips flips bits of a packed segment: each is found, or is one of gzip's
// that changes nothing of what is unpacked.
func TestPackedFlips(t *testing.T) {
	t.Parallel()
	h := sealedLedger(t)
	name, object := h.packed(h.segments[0])
	data := h.segments[0].data
	find := func(b []byte) error {
		p, err := openPacked(name, int64(len(data)), int64(len(b)), func(from, size int64) ([]byte, error) { return b[from:][:size], nil })
		if err != nil {
			return err
		}
		var raw bytes.Buffer
		if err := p.unpack(0, &raw); err != nil {
			return err
		}
		if !bytes.Equal(raw.Bytes(), data) {
			t.Fatal("other bytes were taken for good")
		}
		return nil
	}
	if err := find(object); err != nil {
		t.Fatal(err)
	}
	found, tried := 0, 0
	eachFlip(object, func(b []byte, at int) {
		tried++
		if find(b) != nil {
			found++
		}
	})
	eachCut(object, func(b []byte) {
		if err := find(b); !errors.Is(err, errPacked) {
			t.Fatalf("%d of %d bytes: %v", len(b), len(object), err)
		}
	})
	if found < tried*9/10 { // the others are of what gzip does not need
		t.Errorf("%d of %d flips found", found, tried)
	}
}

// TestPackedPieces unpacks a segment of many members, also from within one.
func TestPackedPieces(t *testing.T) {
	t.Parallel()
	raw := noise(40 * gzipMemberSize)
	var b bytes.Buffer
	table, err := packSegment(&b, bytes.NewReader(raw), int64(len(raw)), 1)
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int64
	p, err := openPacked(packedName(0, table.sum()), int64(len(raw)), int64(b.Len()), func(from, size int64) ([]byte, error) {
		sizes = append(sizes, size)
		return b.Bytes()[from:][:size], nil
	})
	for _, from := range []int64{0, 1, gzipMemberSize - 1, gzipMemberSize, 39*gzipMemberSize + 5, int64(len(raw)), int64(len(raw)) - 1} {
		var got bytes.Buffer
		if err == nil {
			err = p.unpack(from, &got)
		}
		if err != nil || !bytes.Equal(got.Bytes(), raw[from:]) {
			t.Fatalf("from %d: %d bytes, %v", from, got.Len(), err)
		}
	}
	if most := slices.Max(sizes); most > packedPiece || most < packedPiece-gzipMemberSize-1000 {
		t.Errorf("a piece has %d bytes", most)
	}
}

// TestSilentServer: a server that stops in the middle of a segment ends the command.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	quiet := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "the beginning")
		w.(http.Flusher).Flush()
		<-quiet
	}))
	defer s.Close()
	defer close(quiet)
	c, err := newLedgerClient(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	c.patience = 100 * time.Millisecond
	var got bytes.Buffer
	err = c.copySegment(t.Context(), segmentInfo{size: 1000}, &got)
	if wantError(t, err, errSilent); got.String() != "the beginning" {
		t.Errorf("got %q", got.String())
	}
}
