package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// configFor writes the configuration of a node with these options, and more.
func configFor(t *testing.T, o *nodeOptions, more string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(o.raftAddr)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, fmt.Sprintf("[node]\nid = %d\naddress = %q\ndata_dir = %q\n[network]\nraft_port = %s\nclient_port = %d\n[cluster]\nname = %q\n[discovery]\nenabled = false\n%s",
		o.id, host, o.dataDir, port, freePort(t), o.clusterName, more))
}

// bytesBelow returns the files of a folder with their bytes.
func bytesBelow(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			b, rerr := os.ReadFile(path)
			files[strings.TrimPrefix(path, dir)], err = string(b), rerr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestBackup makes backups of a node that runs and of the same one stopped, and
// restores one: the ledger is the same, and its old receipts hold.
func TestBackup(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	s := serveCluster(t, c)[0]
	url, to, pins := "http://"+s.addr, filepath.Join(t.TempDir(), "deep", "backup"), t.TempDir()
	config := configFor(t, &c.nodes[0].o, "")
	exits(t, pins, 1, "status 404", "backup", "--url", url, "--to", to)
	c.fill(0, "a", 40, 300)
	exits(t, pins, 0, "40 entries in 1 segments, 1 of them new", "backup", "--url", url, "--to", to)
	first := bytesBelow(t, to)
	exits(t, pins, 0, "40 entries in 1 segments, 0 of them new", "backup", "--url", url, "--to", to)
	if again := bytesBelow(t, to); len(again) != len(first) || len(first) != 3 {
		t.Errorf("twice the same gives %d files, %d before", len(again), len(first))
	}
	c.put(0, "same", "1")
	exits(t, pins, 0, "40 entries in 1 segments, 0 of them new", "backup", "--url", url, "--to", to, "--no-seal")
	c.put(0, "same", "2")
	exits(t, pins, 0, "42 entries in 2 segments, 1 of them new", "backup", "--url", url, "--to", to)
	exits(t, pins, 0, "audited    2 segments, 42 entries", "audit", "--data", to)
	exits(t, pins, 1, "in use by another process", "backup", "--config", config, "--to", to)
	key := s.key()
	receipt := write(t, checkProven(t, s.do("GET", "/verify/same", "").body, key, "2").Receipt)

	root, err := c.nodes[0].store.root(42)
	if err != nil {
		t.Fatal(err)
	}
	c.put(0, "same", "3")
	c.sealAll()
	c.kill(0)
	offline := filepath.Join(t.TempDir(), "offline")
	exits(t, pins, 0, "43 entries in 3 segments, 1 of them new", "backup", "--config", config, "--to", to)
	out := exits(t, pins, 0, "43 entries in 3 segments, 3 of them new", "backup", "--config", config, "--to", offline)
	if !strings.Contains(out, "signed by  "+key) {
		t.Errorf("no key in %s", out)
	}
	exits(t, pins, 0, "trusted    the key pinned", "audit", "--data", offline)
	online, alone := bytesBelow(t, to), bytesBelow(t, offline)
	for name, b := range alone {
		if strings.Contains(name, segmentsFolder) && online[name] != b {
			t.Errorf("%s is not the same in both backups", name)
		}
	}

	c.wipe(0)
	config = configFor(t, &c.nodes[0].o, "")
	exits(t, "", 1, "signed by another key", "restore", "--config", config, "--from", offline, "--key", signerOf(t, strings.Split(key, "+")[0], sigEd25519, 7).String())
	out = exits(t, pins, 0, "restored   43 entries in 3 segments", "restore", "--config", config, "--from", offline)
	if !strings.Contains(out, "trusted    the key pinned") || !strings.Contains(out, "the entry \"cluster/restored\"") {
		t.Errorf("it says %s", out)
	}
	exits(t, pins, 1, "not empty: it has ", "restore", "--config", config, "--from", offline)
	c.start(0)
	c.leader()
	c.checkAcked(0)
	if v := c.get(0, "same"); v != "3" {
		t.Errorf("same is %q", v)
	}
	if got, err := c.nodes[0].store.root(42); err != nil || got != root {
		t.Errorf("root of 42 entries is %s, %v, was %s", got, err, root)
	}
	exits(t, "", 0, `key "same", version 2`, "verify", "--receipt", receipt, "--key", key)
}

// TestBackupResumes cuts a backup off after each file that it makes: the next one
// goes on.
func TestBackupResumes(t *testing.T) {
	t.Parallel()
	h := sealedLedger(t)
	source := h.source(nil)
	for stop := 1; ; stop++ {
		b := h.backup(t, t.TempDir())
		b.store.fault = failAt("after sync folder", int32(stop), errStop)
		err := b.take(t.Context(), &verifier{}, source)
		if err == nil {
			if stop != 5 { // three segments and the manifest
				t.Errorf("it took %d files", stop-1)
			}
			break
		}
		wantError(t, err, errStop)
		b.close()
		b = h.backup(t, b.store.dir)
		if err := b.take(t.Context(), &verifier{}, source); err != nil || b.made > 4-stop {
			t.Errorf("after %d files: %d made, %v", stop, b.made, err)
		}
		exits(t, "", 0, "640 entries", "audit", "--data", b.store.dir)
	}
}

// source returns the ledger of h, named or not, whose files lie changes.
func (h *honest) source(lie func(k int, b []byte) []byte) *backupSource {
	m := h.bucketManifest(len(h.segments), false)
	return &backupSource{manifest: m.sign(h.signer), copy: func(_ context.Context, info segmentInfo, w io.Writer) error {
		k := slices.IndexFunc(h.segments, func(s sealedBytes) bool { return s.info.first == info.first })
		b := h.segments[k].data
		if lie != nil {
			b = lie(k, slices.Clone(b))
		}
		_, err := w.Write(b)
		return err
	}}
}

// backup begins a backup in dir.
func (h *honest) backup(t *testing.T, dir string) *folderBackup {
	t.Helper()
	b, err := newBackup(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	b.told = untold
	t.Cleanup(b.close)
	return b
}

// TestBackupRefuses: a segment that is not what was signed, another history of the
// same ledger, an object that is damaged, a second backup beside the first.
func TestBackupRefuses(t *testing.T) {
	t.Parallel()
	h := sealedLedger(t)
	b := h.backup(t, t.TempDir())
	if _, err := newBackup(b.store.dir, 1); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("two at a time: %v", err)
	}
	err := b.take(t.Context(), &verifier{}, h.source(func(k int, b []byte) []byte {
		if k == 1 {
			b[100] ^= 1
		}
		return b
	}))
	wantError(t, err, errDifference, "its file has SHA-256", h.segments[1].info.id())
	if len(keysOf(t, b.store, bucketFolder("", h.cluster)+manifestsFolder)) != 0 {
		t.Error("there is a manifest")
	}
	if err := b.take(t.Context(), &verifier{}, h.source(nil)); err != nil {
		t.Fatal(err)
	}
	older := sealedLedger(t)
	older.segments = older.segments[:2]
	if err := b.take(t.Context(), &verifier{}, older.source(nil)); err == nil || !strings.Contains(err.Error(), "640 entries already, the node 630") {
		t.Errorf("an older state: %v", err)
	}
	other := newHonest(t, 1)
	other.fill(700)
	other.seal()
	wantError(t, b.take(t.Context(), &verifier{}, other.source(nil)), errForked)

	name, _ := h.packed(h.segments[1])
	path := filepath.Join(b.store.dir, segmentKey(bucketFolder("", h.cluster), name))
	if err := os.Truncate(path, 500); err != nil {
		t.Fatal(err)
	}
	err = b.take(t.Context(), &verifier{}, h.source(nil))
	wantError(t, err, errDifference, path)
	for _, args := range [][]string{{}, {"--to", "x"}, {"--url", "http://x:1"}, {"--url", "http://x:1", "--config", write(t, ""), "--to", "x"}, {"--config", write(t, ""), "--to", "x", "--key", "k"}} {
		exits(t, "", 2, "backup: ", append([]string{"backup"}, args...)...)
	}
}
