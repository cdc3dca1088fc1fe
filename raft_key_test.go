package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestNodeKeyGolden(t *testing.T) {
	seed := bytes.Repeat([]byte{0x77}, 32)
	wantGolden(t, appendNodeKey(nil, seed), "node-key-1.bin")
	b := golden(t, "node-key-1.bin")
	if got, err := parseNodeKey(b); err != nil || !bytes.Equal(got, seed) {
		t.Errorf("parsed %x, %v", got, err)
	}
	eachCut(b, func(cut []byte) {
		_, err := parseNodeKey(cut)
		wantError(t, err, errCorrupt)
	})
	eachFlip(b, func(flipped []byte, at int) {
		_, err := parseNodeKey(flipped)
		wantError(t, err, errCorrupt)
	})
}

func FuzzNodeKey(f *testing.F) {
	f.Add(golden(f, "node-key-1.bin"))
	f.Fuzz(func(t *testing.T, b []byte) {
		seed, err := parseNodeKey(b)
		if err != nil {
			wantError(t, err, errCorrupt)
		} else if got := appendNodeKey(nil, seed); !bytes.Equal(got, b) {
			t.Errorf("accepted %x and encodes it as %x", b, got)
		}
	})
}

func TestOrigin(t *testing.T) {
	n := &node{}
	for name, want := range map[string]string{
		"scribe":       "scribe/c1",
		"a b+c\td\n":   "a-b-c-d-/c1",
		"\xff\u00a0é/": "--é//c1",
		"\x1b\x00":     "--/c1",
	} {
		n.self.Store(&nodeFile{ClusterName: name, ClusterID: "c1"})
		if got := n.origin(); got != want || !validKeyName(got) {
			t.Errorf("origin of %q is %q, want %q", name, got, want)
		}
	}
}

// key waits until node i has a ledger key and returns it.
func (c *testCluster) key(i int) string {
	c.t.Helper()
	var current string
	eventually(c.t, "no ledger key", func() bool {
		c.tend()
		var err error
		current, _, err = c.nodes[i].ledgerVKeys()
		return err == nil
	})
	return current
}

// TestLedgerKeySurvives makes a key with the cluster and looks for it after
// restarts, seals, a lost disk and a log that was dropped.
func TestLedgerKeySurvives(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	lead := c.leader()
	want := c.key(lead)
	if !strings.HasPrefix(want, c.nodes[lead].origin()+"+") {
		t.Errorf("key is %q", want)
	}
	check := func(what string) {
		t.Helper()
		for i := range 3 {
			if got := c.key(i); got != want {
				t.Errorf("%s: node %d has key %s, want %s", what, i+1, got, want)
			}
		}
	}
	check("at first")
	for i := range 3 {
		c.restart(i)
	}
	check("after restarts")
	lead = c.leader()
	down := (lead + 1) % 3
	c.kill(down)
	c.wipe(down)
	for range 3 {
		c.fill(lead, "k", 20, 1000)
		c.sealAll()
	}
	eventually(t, "the log was not truncated", func() bool {
		first, _ := c.nodes[lead].log.FirstIndex()
		return first > 10
	})
	c.comeBack(down)
	check("after an install")
	c.wantVoters(3)
	c.transfer(down)
	c.restart(down)
	check("after a restart from D")
	for i := range 3 {
		noSeedOnDisk(t, c.nodes[i].node)
	}
}

// noSeedOnDisk fails if the ledger key's seed is in a segment or may be read by others.
func noSeedOnDisk(t *testing.T, n *node) {
	t.Helper()
	seed := n.keys().seed
	found := 0
	err := filepath.WalkDir(n.o.dataDir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(b, seed[:]) {
			return nil
		}
		info, err := d.Info()
		if found++; err != nil || info.Mode().Perm() != 0o600 || strings.Contains(path, segmentDir) || strings.Contains(path, indexDir) {
			t.Errorf("%s holds the seed of the ledger key, mode %v, %v", path, info.Mode(), err)
		}
		return nil
	})
	if err != nil || found == 0 {
		t.Errorf("%d files hold the seed, %v", found, err)
	}
}

func TestRotateLedgerKey(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(4))
	lead := c.leader()
	follower := (lead + 1) % 3
	c.put(lead, "a", "1")
	keys := []string{c.key(lead)}
	for k, i := range []int{follower, lead} {
		if err := c.nodes[i].rotateLedgerKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		current, former, err := c.nodes[i].ledgerVKeys()
		if err != nil || len(former) != k+1 || current == keys[k] {
			t.Fatalf("after a rotation: %s, %q, %v", current, former, err)
		}
		keys = append(keys, current)
		c.checkHandOver(former[k], keys[k], current)
		h := c.signed(i, 1, false)
		c.checkSignedBy(h.note, current)
	}
	for i := range 3 {
		c.restart(i)
	}
	for i := range 3 {
		eventually(t, "the node has the last key", func() bool { return c.key(i) == keys[2] })
		h := c.signed(i, 1, false)
		c.checkSignedBy(h.note, keys[2])
	}
}

// TestRotationsAtOnce has nodes rotate that do not know of each other's rotations.
func TestRotationsAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.leader()
	for i := range 3 {
		c.key(i)
	}
	const each = 5
	var unknown atomic.Int64 // a slow machine may have an election in between
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for left := each; left > 0 && t.Context().Err() == nil; {
				err := c.nodes[i].rotateLedgerKey(t.Context())
				switch {
				case errors.Is(err, errNoLeader):
					c.nodes[i].pause(10 * time.Millisecond)
					continue
				case errors.Is(err, errUnknownOutcome):
					unknown.Add(1)
				case err != nil:
					t.Error(err)
				}
				left--
			}
		})
	}
	wg.Wait()
	for i := range 3 {
		eventually(t, "the node has all keys", func() bool {
			_, former, err := c.nodes[i].ledgerVKeys()
			return err == nil && len(former) <= 3*each && len(former) >= 3*each-int(unknown.Load())
		})
	}
}

// checkHandOver fails unless both keys signed the note, which names the second.
func (c *testCluster) checkHandOver(text, from, to string) {
	c.t.Helper()
	n := c.checkSignedBy(text, from)
	c.checkSignedBy(text, to)
	if !strings.HasPrefix(n.body, rotationTitle) || !strings.HasSuffix(n.body, "\n"+to+"\n") {
		c.t.Errorf("hand-over is %q", n.body)
	}
}

// checkSignedBy fails unless the key signed the note.
func (c *testCluster) checkSignedBy(text, vkey string) note {
	c.t.Helper()
	n, err := parseNote(text)
	if err != nil {
		c.t.Fatal(err)
	}
	v, err := parseVerifier(vkey)
	if err != nil {
		c.t.Fatal(err)
	}
	if ok, _, err := n.check(v); !ok || err != nil {
		c.t.Errorf("%q is not signed by %s: %v", text, vkey, err)
	}
	return n
}

// TestNodeKeyDamaged opens nodes whose keys or records are damaged or another's.
func TestNodeKeyDamaged(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.unformed = true
	c.put(0, "a", "1")
	c.signed(0, 1, true)
	c.kill(0)
	dir := c.nodes[0].o.dataDir
	for _, row := range []struct {
		name, want string
		change     func([]byte) []byte
	}{
		{nodeKeyName, "node.key: the node's key is damaged", func(b []byte) []byte { b[20] ^= 4; return b }},
		{nodeKeyName, "cosigned with another key than the one in node.key", func([]byte) []byte { return appendNodeKey(nil, make([]byte, 32)) }},
		{signedName, "signed: what this node signed is not known any more", func(b []byte) []byte { b[20] ^= 4; return b }},
		{cosignedName, "cosigned: what this node signed is not known any more", func(b []byte) []byte { return b[:100] }},
	} {
		path := filepath.Join(dir, row.name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(path, row.change(bytes.Clone(good)), 0o600)
		if err := c.tryStart(0); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("damaged %s: %v, want %q", row.name, err, row.want)
		}
		os.WriteFile(path, good, 0o600)
	}
	os.Remove(filepath.Join(dir, nodeKeyName))
	if err := c.tryStart(0); err == nil || !strings.Contains(err.Error(), "cosigned with another key") {
		t.Errorf("without node.key: %v", err)
	}
}

// TestNodeVKeys: all nodes know all cosigning keys, which stay.
func TestNodeVKeys(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	var want map[uint64]string
	check := func() {
		t.Helper()
		for i := range 3 {
			eventually(t, "a node does not know all keys", func() bool { return len(c.nodes[i].nodeVKeys()) == 3 })
			got := c.nodes[i].nodeVKeys()
			if want == nil {
				want = got
			}
			for id, vkey := range want {
				if v, err := parseVerifier(vkey); got[id] != vkey || err != nil || v.kind != sigCosignature {
					t.Errorf("node %d: key of node %d is %s, want %s, %v", i+1, id, got[id], vkey, err)
				}
			}
		}
	}
	check()
	c.restart(c.leader())
	check()
	if want[1] == want[2] {
		t.Error("two nodes have the same key")
	}
}
