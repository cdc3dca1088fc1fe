package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// archivedCluster returns a cluster of nodes that archive to a folder, with three
// archived segments and entries that are in none, and stops all of it.
func archivedCluster(t *testing.T, size int) (*testCluster, *folderStore) {
	t.Helper()
	o := newFolder(t)
	c := newCluster(t, size, func(n *nodeOptions) { n.objects, n.objectPrefix, n.archiveEvery = o, "p/", time.Hour })
	for _, prefix := range []string{"a", "b", "c"} {
		c.fill(c.leader(), prefix, 40, 300)
		c.put(c.leader(), "same", prefix)
		c.sealAll()
	}
	if answer, err := c.archiveNow(); err != nil || answer.InBucket != 3 {
		t.Fatalf("archived %+v, %v", answer, err)
	}
	return c, o
}

// archiveNow archives what is sealed through the leader.
func (c *testCluster) archiveNow() (answer archiveResult, err error) {
	c.t.Helper()
	eventually(c.t, "no leader archives", func() bool {
		answer, err = c.nodes[c.leader()].archive(c.t.Context())
		return !unsettled(err)
	})
	return answer, err
}

// lose stops all nodes for good and forgets what was written behind size.
func (c *testCluster) lose(size uint64) {
	for i := range c.nodes {
		c.kill(i)
		c.wipe(i)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for seq := range c.acked {
		if seq >= size {
			delete(c.acked, seq)
		}
	}
}

// restoreFrom restores node i from what is archived in o.
func (c *testCluster) restoreFrom(i int, o objects, cold bool) (*archived, *restoredCut) {
	c.t.Helper()
	found, cut, err := c.tryRestore(i, o, cold)
	if err != nil {
		c.t.Fatal(err)
	}
	return found, cut
}

// tryRestore is restoreFrom of what may fail.
func (c *testCluster) tryRestore(i int, o objects, cold bool) (*archived, *restoredCut, error) {
	found, err := (&verifier{}).findArchive(c.t.Context(), o, "p/", "", "")
	if err != nil {
		return nil, nil, err
	}
	c.nodes[i].dead.Store(false)
	cut, err := restoreNode(c.t.Context(), c.nodes[i].o, found.restoration(cold, untold))
	return found, cut, err
}

// untold is a progress that nobody sees.
func untold(int64, float64) {}

// TestRestore loses a cluster and restores it from the bucket: every entry that was
// archived is there, and receipts hold; writes go on, and others join.
func TestRestore(t *testing.T) {
	t.Parallel()
	for name, cold := range map[string]bool{"whole": false, "cold": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, o := archivedCluster(t, 3)
			lead := c.nodes[c.leader()]
			size, old := lead.store.size(), lead.keys().signer
			root, err := lead.store.root(size)
			if err != nil {
				t.Fatal(err)
			}
			before, err := lead.signedHead(t.Context(), size, false)
			if err != nil {
				t.Fatal(err)
			}
			c.put(c.leader(), "lost", "1")
			c.lose(size)

			found, cut := c.restoreFrom(0, o, cold)
			if found.manifest.size() != size || cut.Root != root.String() || cut.SignedBy != old.String() || cut.Entries != size {
				t.Errorf("cut is %+v, want %d entries with root %s", cut, size, root)
			}
			c.start(0)
			if i := c.leader(); i != 0 {
				t.Fatalf("node %d leads", i+1)
			}
			if got, err := c.nodes[0].store.root(size); err != nil || got != root {
				t.Errorf("root is %s, %v", got, err)
			}
			c.checkAcked(0)
			if v := c.get(0, "a-7"); v != strings.Repeat("x", 300) {
				t.Errorf("a-7 is %q", v)
			}
			e, err := c.nodes[0].read("same")
			if err != nil || e.version != 3 || valueOf(t, &e) != "c" {
				t.Errorf("same is %+v, %v", e.header, err)
			}
			if _, err := c.nodes[0].read("lost"); !errors.Is(err, errNotFound) {
				t.Errorf("what was not archived: %v", err)
			}
			e, err = c.nodes[0].read(restoredKey)
			var told restoredCut
			if err != nil || e.seq != size || e.author != "scribe-ledger restore" || json.Unmarshal([]byte(valueOf(t, &e)), &told) != nil || told != *cut {
				t.Errorf("the cut is entry %+v, %+v, %v", e.header, told, err)
			}
			head, err := c.nodes[0].signedHead(t.Context(), size+1, false)
			if err != nil || head.origin != before.origin || c.nodes[0].keys().has(publicKey(old.key)) {
				t.Errorf("head is %+v, %v", head, err)
			}
			if _, err := openTreeHead(mustNote(t, before.note), old.noteVerifier); err != nil || before.root != root {
				t.Errorf("a checkpoint from before: %v", err)
			}
			for i := range 3 {
				c.put(0, "same", "again")
				if i < 2 {
					c.start(i + 1)
				}
			}
			c.wantVoters(3)
			c.checkAcked(2)
			if e, err := c.nodes[2].read("same"); err != nil || e.version != 6 {
				t.Errorf("same is %+v, %v", e.header, err)
			}
			if cold {
				c.wantCold(3)
				c.unformed = true // the whole-truth check wants files
			}
			c.restart(0)
			c.put(1, "more", "1")
			c.sealAll()
			if answer, err := c.archiveNow(); err != nil || answer.InBucket != 4 {
				t.Errorf("archived %+v, %v", answer, err)
			}
			found, err = (&verifier{}).findArchive(t.Context(), o, "p/", "", "")
			if err != nil || found.manifest.size() <= size || found.manifest.key.String() == old.String() {
				t.Errorf("the newest manifest is %+v, %v", found, err)
			}
		})
	}
}

// wantCold fails unless the first n segments are cold on all nodes.
func (c *testCluster) wantCold(n int) {
	c.t.Helper()
	for i, node := range c.nodes {
		for _, info := range node.store.durable.Load().segments[:n] {
			if !node.store.isCold(info.first) {
				c.t.Errorf("node %d has the file of segment %s", i+1, info.id())
			}
		}
	}
}

// TestRestoreRefuses: a restore into what is not empty, or beside a node that lives,
// changes nothing.
func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	c, o := archivedCluster(t, 3)
	c.kill(0)
	_, _, err := c.tryRestore(0, o, false)
	wantError(t, err, errNotEmpty, c.nodes[0].o.dataDir, "it has ")
	c.wipe(0)
	_, _, err = c.tryRestore(0, o, false)
	wantError(t, err, errMembersAnswer, c.nodes[1].o.raftAddr)
	if files, err := os.ReadDir(c.nodes[0].o.dataDir); err != nil || len(files) != 1 || files[0].Name() != lockName {
		t.Errorf("left is %v, %v", files, err)
	}
	c.start(0) // so it comes back from the others
}

// errStop ends a restore where it stands.
var errStop = errors.New("stop")

// TestRestoreCrash looks at the directory as a crash at each step of a restore
// leaves it: no node starts on it, or a restored one; and restoring again ends it.
func TestRestoreCrash(t *testing.T) {
	t.Parallel()
	for name, cold := range map[string]bool{"whole": false, "cold": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, o := archivedCluster(t, 1)
			c.unformed = true
			size := c.nodes[0].store.size()
			c.lose(size)
			options := c.nodes[0].o
			var left []string
			snapshot := func(step string) error {
				if strings.HasPrefix(step, "before ") && len(left) > 0 && step != "before adopt" {
					return nil // as after the step before
				}
				dir := t.TempDir()
				if err := os.CopyFS(dir, os.DirFS(options.dataDir)); err != nil {
					t.Error(err)
				}
				left = append(left, dir)
				return nil
			}
			options.storeFault = snapshot
			found, err := (&verifier{}).findArchive(t.Context(), o, "p/", "", "")
			if err != nil {
				t.Fatal(err)
			}
			r := found.restoration(cold, untold)
			adopt := r.adopt
			var one sync.Mutex // at a time: the directory must hold still to be copied
			r.adopt = func(ctx context.Context, s *store, k int) (fetchedSegment, error) {
				one.Lock()
				defer one.Unlock()
				snapshot("before adopt")
				return adopt(ctx, s, k)
			}
			if _, err := restoreNode(t.Context(), options, r); err != nil {
				t.Fatal(err)
			}
			snapshot("at the end")
			options.storeFault = nil
			if len(left) < 8 {
				t.Fatalf("%d steps", len(left))
			}
			for i, dir := range left {
				c.nodes[0].o = options
				c.nodes[0].o.dataDir = dir
				if i < len(left)-2 { // the last ones are behind the last step
					if err := c.tryStart(0); !errors.Is(err, errHalfRestored) {
						t.Fatalf("step %d: starting a node: %v", i, err)
					}
					c.restoreFrom(0, o, cold)
				}
				c.start(0)
				c.checkAcked(c.leader())
				if e, err := c.nodes[0].read(restoredKey); err != nil || e.seq != size || e.version != 1 {
					t.Errorf("step %d: the cut is %+v, %v", i, e.header, err)
				}
				c.kill(0)
			}
		})
	}
}

// TestRestoreOther: what a restore from another manifest left goes; the segment that
// is damaged is named, and no node starts.
func TestRestoreOther(t *testing.T) {
	t.Parallel()
	c, o := archivedCluster(t, 1)
	c.unformed = true
	c.lose(c.nodes[0].store.size())
	found, err := (&verifier{}).findArchive(t.Context(), o, "p/", "", "")
	if err != nil {
		t.Fatal(err)
	}
	r := found.restoration(false, untold)
	adopt := r.adopt
	r.adopt = func(ctx context.Context, s *store, k int) (fetchedSegment, error) {
		if k == 2 {
			return fetchedSegment{}, errStop
		}
		return adopt(ctx, s, k)
	}
	c.nodes[0].dead.Store(false)
	_, err = restoreNode(t.Context(), c.nodes[0].o, r)
	wantError(t, err, errStop)
	r = found.restoration(false, untold)
	r.manifest = "another"
	if err := flipFile(filepath.Join(o.dir, found.parts[1].key), 200); err != nil {
		t.Fatal(err)
	}
	_, err = restoreNode(t.Context(), c.nodes[0].o, r)
	wantError(t, err, errDifference, found.parts[1].key)
	if err := c.tryStart(0); !errors.Is(err, errHalfRestored) {
		t.Errorf("starting a node: %v", err)
	}
}
