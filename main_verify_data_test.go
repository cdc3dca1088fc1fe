package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// nodeFolder writes h as a node would leave it.
func nodeFolder(t *testing.T, h *honest) string {
	dir := t.TempDir()
	if err := os.Rename(auditFolder(t, h.segments...), filepath.Join(dir, "segments")); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(dir, "ledger.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	size := h.sealed()
	err = db.Update(func(tx *bbolt.Tx) error {
		put := func(bucket string, key, value []byte) {
			b, err := tx.CreateBucketIfNotExists([]byte(bucket))
			if err == nil {
				err = b.Put(key, value)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		summed := func(key, value []byte) []byte {
			return binary.BigEndian.AppendUint32(value, crc32.Checksum(append(key[:len(key):len(key)], value...), castagnoli))
		}
		put("meta", []byte("tree"), summed([]byte("tree"), binary.BigEndian.AppendUint64(nil, size)))
		for _, s := range h.segments {
			key := binary.BigEndian.AppendUint64(nil, s.info.first)
			put("segments", key, summed(key, s.info.append(nil)))
		}
		for level := range 2 {
			var value []byte
			for index, count := uint64(0), size>>(tileHeight*level); index*tileWidth < count; index++ {
				id := tileID{level, index, int(min(count-index*tileWidth, tileWidth))}
				value = append(append(value, h.tile(id.path())...), 0, 0, 0, 0) // a checksum of the node's
			}
			put("tiles", binary.BigEndian.AppendUint64([]byte{byte(level)}, 0), value)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// change flips a bit where text stands in a file.
func change(t *testing.T, path string, text []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	at := bytes.Index(b, text)
	if err != nil || at < 0 {
		t.Fatalf("%s: %x is at %d, %v", path, text, at, err)
	}
	b[at+len(text)-1] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAuditNode(t *testing.T) {
	h := sealedLedger(t)
	folder := func() (dir, ledger string) {
		dir = nodeFolder(t, h)
		return dir, filepath.Join(dir, "ledger.db")
	}
	dir, path := folder()
	exits(t, "", 0, "3 segments agree, and 4 tiles of 640 entries", "audit", "--data", dir)

	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	exits(t, "", 0, "a running node holds the lock", "audit", "--data", dir)
	first := filepath.Join(dir, "segments", h.segments[0].info.id()+segmentSuffix) // it may be cold
	if err := os.Rename(first, first+".away"); err != nil {
		t.Fatal(err)
	}
	exits(t, "", 1, "entries 0 to 29 are not here, but maybe in the bucket", "audit", "--data", dir)
	if err := os.Rename(first+".away", first); err != nil {
		t.Fatal(err)
	}
	first = filepath.Join(dir, "segments", h.segments[2].info.id()+segmentSuffix)
	if err := os.Rename(first, first+".away"); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, indexDir, runInfo{first: h.segments[2].info.first, last: h.segments[2].info.end() - 1}.name())
	if err := errors.Join(os.MkdirAll(filepath.Dir(run), 0o700), os.WriteFile(run, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	exits(t, "", 1, "to 639 are not here, but maybe in the bucket", "audit", "--data", dir)
	if err := os.Rename(first+".away", first); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	leaf := leafHash(h.entries[300].raw)
	change(t, path, leaf[:])
	exits(t, "", 1, "tile 0/001: offset 1439", "audit", "--data", dir)
	dir, path = folder()
	change(t, path, h.segments[1].info.sum[:])
	exits(t, "", 1, "wrong CRC", "audit", "--data", dir)
	dir, _ = folder()
	os.Remove(filepath.Join(dir, "segments", h.segments[2].info.id()+segmentSuffix))
	exits(t, "", 1, "the file of entries 630 to 639 is missing", "audit", "--data", dir)
	dir, path = folder()
	os.Remove(path)
	exits(t, "", 0, "there is no ledger.db", "audit", "--data", dir)
	os.WriteFile(path, []byte("not a database"), 0o600)
	exits(t, "", 1, "ledger.db", "audit", "--data", dir)
}

// No damage of ledger.db ends the process or is taken for other data.
func TestAuditDamagedLedger(t *testing.T) {
	t.Parallel()
	h := newHonest(t, 1)
	h.fill(600)
	h.seal()
	dir := nodeFolder(t, h)
	path := filepath.Join(dir, "ledger.db")
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		b := bytes.Clone(sound)
		at := r.IntN(8 * len(b))
		b[at/8] ^= 1 << (at % 8)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		code, out, errs := runHere(t, "", "audit", "--data", dir)
		if code == 0 && !strings.Contains(out, "agree") || code > 1 {
			t.Fatalf("bit %d of byte %d: exit %d: %s%s", at%8, at/8, code, out, errs)
		}
	}
}

// The trees a node signed last are compared with its segments.
func TestAuditSigned(t *testing.T) {
	h := sealedLedger(t)
	record := func(number, size uint64, root hash) []byte {
		b := append([]byte("SCRSIGN1"), binary.BigEndian.AppendUint64(nil, number)...)
		b = append(binary.BigEndian.AppendUint64(b, size), root[:]...)
		b = append(b, make([]byte, 40)...)
		b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
		return append(b, make([]byte, 4096-len(b))...)
	}
	for _, c := range []struct {
		code int
		said string
		file []byte
	}{
		{0, "signed     640 entries", append(record(2, 640, h.head(640).root), record(1, 7, hash{})...)},
		{0, "signed     7 entries", append(record(2, 640, hash{}), record(3, 7, h.head(7).root)...)},
		{0, "not compared: signed", append(record(2, 641, hash{}), record(1, 7, hash{})...)},
		{1, "of 0 entries has root", append(record(2, 0, hash{}), record(1, 7, hash{})...)},
		{1, "of 640 entries has root", append(record(2, 640, hash{}), record(1, 7, hash{})...)},
		{1, "offset 4096: damaged record", append(record(2, 640, h.head(640).root), make([]byte, 4096)...)},
		{1, "want 8192", record(2, 640, h.head(640).root)},
	} {
		dir := nodeFolder(t, h)
		if err := os.WriteFile(filepath.Join(dir, "signed"), c.file, 0o600); err != nil {
			t.Fatal(err)
		}
		never := append(record(1, 0, emptyRoot), record(0, 0, emptyRoot)...) // must not hide the other one
		if err := os.WriteFile(filepath.Join(dir, "cosigned"), never, 0o600); err != nil {
			t.Fatal(err)
		}
		exits(t, "", c.code, c.said, "audit", "--data", dir)
	}
}
