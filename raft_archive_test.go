package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// archivedIn makes the nodes of a cluster archive in b without being asked, and keep
// their copies.
func archivedIn(b objectStore) func(*nodeOptions) {
	return func(o *nodeOptions) {
		o.objects, o.objectPrefix, o.archiveEvery, o.dropAge = b, "some/prefix/", 20*time.Millisecond, time.Hour
	}
}

// onlyAsked makes them archive when asked only.
func onlyAsked(o *nodeOptions) { o.archiveAsked = true }

// patrols makes them look at all objects all the time.
func patrols(o *nodeOptions) { o.patrolTime = time.Millisecond }

// segmentsOf makes n segments that nobody has archived before they are there.
func (c *testCluster) segmentsOf(n int) {
	c.t.Helper()
	for i := range n {
		c.fill(c.leader(), fmt.Sprintf("s%d-%d", c.puts.Load(), i), 20, 3000)
		c.sealAll()
	}
}

// waitArchived waits until all nodes have all that is sealed in the bucket.
func (c *testCluster) waitArchived() {
	c.t.Helper()
	eventually(c.t, "not everything is archived", func() bool {
		c.tend()
		for _, n := range c.nodes {
			if n.node != nil && !n.gone {
				if m := n.store.manifest.Load(); m.confirmed != len(m.segments) || slices.ContainsFunc(m.segments, func(i segmentInfo) bool { return i.object == "" }) {
					return false
				}
			}
		}
		return true
	})
}

// checkBucket fails the test unless the bucket holds each archived segment once and
// whole, nothing else, and a good manifest over all of them.
func (c *testCluster) checkBucket(b *memBucket) {
	c.t.Helper()
	n := c.nodes[c.leader()]
	folder, m := bucketFolder("some/prefix/", n.self.Load().cluster), n.store.manifest.Load()
	left := b.keys("/" + segmentsFolder)
	for _, i := range m.shown() {
		if i.object == "" {
			continue
		}
		key := segmentKey(folder, i.object)
		raw, err := os.ReadFile(n.store.segmentPath(i))
		if err != nil {
			c.t.Fatal(err)
		}
		var got bytes.Buffer
		if err := unpackSegment(&got, bytes.NewReader(b.object(key)), int64(i.size)); err != nil || !bytes.Equal(got.Bytes(), raw) {
			c.t.Errorf("object %s does not hold segment %s: %v", key, i.id(), err)
		}
		if b.mu.Lock(); b.puts[key] != 1 {
			c.t.Errorf("object %s was stored %d times", key, b.puts[key])
		}
		b.mu.Unlock()
		left = slices.DeleteFunc(left, func(k string) bool { return k == key })
	}
	if len(left) > 0 {
		c.t.Errorf("nothing names %v", left)
	}
	prefix, _ := m.archived()
	var newest *bucketManifest
	eventually(c.t, "no bucket manifest over all that is archived", func() bool {
		keys := b.keys("/" + manifestsFolder)
		if len(keys) == 0 {
			return prefix == 0
		}
		var err error
		if newest, err = parseBucketManifest(b.object(keys[len(keys)-1])); err != nil {
			c.t.Fatal(err)
		}
		return len(newest.segments) == prefix
	})
	if prefix > 0 && !slices.Equal(newest.segments, m.segments[:prefix]) {
		c.t.Errorf("bucket manifest has %+v, want %+v", newest.segments, m.segments[:prefix])
	}
	if prefix > 0 {
		root, err := n.store.root(newest.size())
		if keys := n.keys(); err != nil || root != newest.root || newest.key.String() != keys.signer.noteVerifier.String() || newest.name != "test" {
			c.t.Errorf("bucket manifest has root %s and key %s, want %s, %v", newest.root, newest.key, root, err)
		}
	}
	for _, n := range c.nodes {
		eventually(c.t, "a packed file is left", func() bool {
			left, err := filepath.Glob(filepath.Join(n.o.dataDir, "archive.*"))
			return err == nil && len(left) == 0
		})
	}
}

// sameVersions fails the test unless all nodes have the same manifest.
func (c *testCluster) sameVersions() {
	c.t.Helper()
	want := c.nodes[c.leader()].store.manifest.Load()
	for i, n := range c.nodes {
		eventually(c.t, fmt.Sprintf("node %d has another manifest", i+1), func() bool {
			m := n.store.manifest.Load()
			return m.version == want.version && slices.Equal(m.segments, want.segments)
		})
	}
}

// TestArchive: what is sealed is archived, by itself and when asked through any
// node, is known to all, and still is after a restart of all.
func TestArchive(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			b := newMemBucket(t)
			c := newCluster(t, size, archivedIn(b))
			c.segmentsOf(3)
			c.waitArchived()
			c.checkBucket(b)
			c.sameVersions()
			var live liveObject
			keys := b.keys("/" + liveName)
			if len(keys) != 1 || json.Unmarshal(b.object(keys[0]), &live) != nil || live.ClusterID != c.nodes[0].self.Load().ClusterID || live.HTTP == "" {
				t.Errorf("live is %v: %+v", keys, live)
			}
			for i := range c.nodes {
				c.kill(i)
			}
			for i := range c.nodes {
				c.start(i)
			}
			c.leader()
			c.sameVersions()
			c.segmentsOf(12)
			c.waitArchived()
			c.checkBucket(b)
			eventually(t, "old bucket manifests stay", func() bool { return len(b.keys("/"+manifestsFolder)) <= keptManifests })
			for i, n := range c.nodes {
				eventually(t, fmt.Sprintf("node %d does not say that the archive works", i+1), func() bool { return n.status().archive == "ok" })
			}
		})
	}
}

// TestArchiveAsked: nothing is archived before somebody asks, whoever that is.
func TestArchiveAsked(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	c := newCluster(t, 3, electing(4), archivedIn(b), onlyAsked)
	c.segmentsOf(2)
	eventually(t, "nobody leads in the bucket", func() bool { return len(b.keys("/"+liveName)) == 1 })
	if keys := b.keys("/" + segmentsFolder); len(keys) > 0 {
		t.Fatalf("archived unasked: %v", keys)
	}
	lead := c.leader()
	for i, want := range []int{2, 0, 0} {
		n := c.nodes[(lead+1+i)%3] // a follower first
		got, err := n.archive(t.Context())
		m := n.store.manifest.Load()
		if err != nil || got != (archiveResult{want, 2, 2, m.end(), m.version}) {
			t.Errorf("call %d is answered %+v, %v", i, got, err)
		}
		if _, total := m.archived(); total != 2 {
			t.Errorf("call %d: the node that was asked shows %d", i, total)
		}
	}
	c.checkBucket(b)
	b.down(true)
	c.segmentsOf(1)
	for i := range 3 {
		if _, err := c.nodes[i].archive(t.Context()); !errors.Is(err, errArchive) || !strings.Contains(err.Error(), errBucketDown.Error()) {
			t.Errorf("the bucket is down, node %d says %v", i+1, err)
		}
	}
	none := newCluster(t, 1)
	if _, err := none.nodes[0].archive(t.Context()); !errors.Is(err, errNoBucket) {
		t.Errorf("without a bucket: %v", err)
	}
	if s := none.nodes[0].status().archive; s != "" {
		t.Errorf("without a bucket the check says %q", s)
	}
}

// archiveCrash ends the leader at a step of the archive, once.
type archiveCrash struct {
	step string
	hit  chan uint64 // id of the node that is to be killed
	seen atomic.Bool
	stay chan struct{} // closed when it is dead
}

// hook makes the nodes of a cluster ask h at each step.
func (h *archiveCrash) hook(o *nodeOptions) {
	id, next := o.id, o.storeFault
	o.storeFault = func(step string) error {
		if step == h.step && h.seen.CompareAndSwap(false, true) {
			h.hit <- id
			<-h.stay
			return errors.New("killed")
		}
		return next(step)
	}
}

// TestArchiveCrash kills the leader before and after each step: another one, or it
// itself after a restart, goes on, and all is there once.
func TestArchiveCrash(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3} {
		for _, step := range []string{"before put object", "after put object", "before check object", "after check object",
			"before record object", "after record object", "before put manifest", "after put manifest"} {
			t.Run(fmt.Sprintf("%d %s", size, step), func(t *testing.T) {
				t.Parallel()
				b, h := newMemBucket(t), &archiveCrash{step: step, hit: make(chan uint64, 1), stay: make(chan struct{})}
				c := newCluster(t, size, archivedIn(b), h.hook)
				c.segmentsOf(2)
				var id uint64
				select {
				case id = <-h.hit:
				case <-time.After(waitLimit):
					t.Fatal("the step is never taken")
				}
				i := int(id - 1)
				c.nodes[i].dead.Store(true)
				n := c.down(i)
				n.cancel()
				close(h.stay)
				n.release()
				if size > 1 {
					c.segmentsOf(1) // the others go on
				}
				c.start(i)
				c.waitArchived()
				c.checkBucket(b)
				c.sameVersions()
				if names, _ := filepath.Glob(filepath.Join(c.nodes[i].o.dataDir, "*"+tmpSuffix)); len(names) > 0 {
					t.Errorf("left %v", names)
				}
			})
		}
	}
}

// TestArchiveFaults answers each kind of request wrongly a few times, when it
// happened and when it did not: all is archived once.
func TestArchiveFaults(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"put", "read", "size", "list", "remove", "replace", "probe"} {
		for _, happens := range []bool{true, false} {
			t.Run(fmt.Sprint(op, " ", happens), func(t *testing.T) {
				t.Parallel()
				b := newMemBucket(t)
				var mu sync.Mutex
				left := map[string]int{}
				b.set(func(got, key string) (bool, error) {
					mu.Lock()
					defer mu.Unlock()
					if left[got+key]++; got == op && left[got+key] < 4 {
						return happens, errors.New("reset by peer")
					}
					return true, nil
				})
				c := newCluster(t, 1, archivedIn(b))
				c.segmentsOf(2)
				c.waitArchived()
				c.checkBucket(b)
				eventually(t, "the archive works", func() bool { return c.nodes[0].status().archive == "ok" })
			})
		}
	}
}

// TestArchiveWrongObject: an object with other bytes than its name says is not
// recorded and not overwritten, is told once, and holds up no other segment; when
// somebody removes it all is well.
func TestArchiveWrongObject(t *testing.T) {
	t.Parallel()
	for name, twist := range map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return []byte{} },
		"cut":       func(b []byte) []byte { return b[:len(b)-1] },
		"no table":  func(b []byte) []byte { return b[:len(b)/2] },
		"flipped":   func(b []byte) []byte { b[len(b)/4] ^= 1; return b },
		"other":     func([]byte) []byte { return golden(t, "packed-1.seg.gz") },
		"longer":    func(b []byte) []byte { return append(b, 0) },
		"its table": func(b []byte) []byte { b[len(b)-40] ^= 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newMemBucket(t)
			c := newCluster(t, 1, archivedIn(b), onlyAsked)
			n := c.nodes[0]
			c.segmentsOf(3)
			first := n.store.manifest.Load().segments[0]
			key := c.plant(b, first, twist)
			planted := b.object(key)
			for range 3 {
				_, err := n.archive(t.Context())
				if !errors.Is(err, errArchive) || !strings.Contains(err.Error(), key+" holds other bytes than its name says") {
					t.Fatalf("the answer is %v", err)
				}
				if s := n.status().archive; !strings.Contains(s, key) {
					t.Errorf("the check says %q", s)
				}
			}
			if m := n.store.manifest.Load(); m.segments[0].object != "" || m.segments[1].object == "" || m.segments[2].object == "" {
				t.Errorf("segments are %+v", m.segments)
			}
			if w := n.node.o.metrics.archive.wrong.value(); w != 1 || !bytes.Equal(b.object(key), planted) {
				t.Errorf("%d wrong objects, %d bytes where %d were", w, len(b.object(key)), len(planted))
			}
			b.change(key, nil)
			if got, err := n.archive(t.Context()); err != nil || got.Archived != 1 || got.InBucket != 3 {
				t.Errorf("the answer is %+v, %v", got, err)
			}
			if s := n.status().archive; s != "ok" || n.node.o.metrics.archive.wrong.value() != 0 {
				t.Errorf("the check says %q", s)
			}
			c.checkBucket(b)
		})
	}
}

// plant puts an object where that of a segment will be, made of the right one.
func (c *testCluster) plant(b *memBucket, info segmentInfo, twist func([]byte) []byte) (key string) {
	c.t.Helper()
	n := c.nodes[0]
	raw, err := os.ReadFile(n.store.segmentPath(info))
	if err != nil {
		c.t.Fatal(err)
	}
	var packed bytes.Buffer
	table, err := packSegment(&packed, bytes.NewReader(raw), int64(len(raw)), 1)
	if err != nil {
		c.t.Fatal(err)
	}
	key = segmentKey(n.archiver.folder(), packedName(info.first, table.sum()))
	b.change(key, twist(packed.Bytes()))
	return key
}

// TestArchiveSameObject: an object that is there already, packed at another level, is
// read and recorded, not put again.
func TestArchiveSameObject(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	c := newCluster(t, 1, archivedIn(b), onlyAsked)
	c.segmentsOf(1)
	key := c.plant(b, c.nodes[0].store.manifest.Load().segments[0], func(b []byte) []byte { return b })
	b.puts[key] = 1
	before := b.object(key)
	if got, err := c.nodes[0].archive(t.Context()); err != nil || got.Archived != 1 {
		t.Fatalf("the answer is %+v, %v", got, err)
	}
	if !bytes.Equal(b.object(key), before) {
		t.Error("the object was replaced")
	}
	c.checkBucket(b)
}

// TestArchiveReadTwisted: what comes back wrong once is read again, and an object that
// reads wrong for a while is left alone until it reads right.
func TestArchiveReadTwisted(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	c := newCluster(t, 1, archivedIn(b), onlyAsked)
	c.segmentsOf(1)
	reads := 0
	b.twist = func(key string, object []byte) []byte {
		if reads++; strings.Contains(key, segmentsFolder) && reads < 3 {
			object[len(object)/2] ^= 0x40
		}
		return object
	}
	if got, err := c.nodes[0].archive(t.Context()); err != nil || got.Archived != 1 {
		t.Errorf("the answer is %+v, %v", got, err)
	}
	c.checkBucket(b)
}

// TestArchiveDown: a bucket that is down for a while holds up no write, /health
// tells, one line a change is logged, and then everything is archived.
func TestArchiveDown(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	c := newCluster(t, 3, archivedIn(b))
	c.segmentsOf(1)
	c.waitArchived()
	b.down(true)
	for _, n := range c.nodes {
		eventually(t, "nobody tells", func() bool { return strings.Contains(n.status().archive, errBucketDown.Error()) })
		if st := n.status(); !st.ready {
			t.Error("the node says that it cannot serve")
		}
	}
	c.segmentsOf(3)
	if _, total := c.nodes[c.leader()].store.manifest.Load().archived(); total != 1 {
		t.Errorf("%d segments are archived", total)
	}
	b.down(false)
	c.waitArchived()
	c.checkBucket(b)
}

// TestArchiveMends: a damaged file is fetched from another node before it is packed;
// what is archived is what was sealed.
func TestArchiveMends(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	c := newCluster(t, 3, archivedIn(b), onlyAsked)
	c.segmentsOf(2)
	n := c.nodes[c.leader()]
	flipByte(t, n.store.segmentPath(n.store.manifest.Load().segments[0]), 5000)
	eventually(t, "the damaged segment is not archived", func() bool {
		got, _ := n.archive(t.Context())
		return got.InBucket == 2
	})
	c.checkBucket(b)
}

// TestArchiveFileGone: what is wrong with this node's disk is told without its paths.
func TestArchiveFileGone(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	c := newCluster(t, 1, archivedIn(b), onlyAsked)
	c.segmentsOf(1)
	n := c.nodes[0]
	path := n.store.segmentPath(n.store.manifest.Load().segments[0])
	kept := readFile(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, err := n.archive(t.Context())
	if text := fmt.Sprint(err); !errors.Is(err, errArchive) || !strings.Contains(text, "no such file") || strings.Contains(text, n.o.dataDir) {
		t.Errorf("error is %v", err)
	}
	if text := n.status().archive; !strings.Contains(text, "no such file") || strings.Contains(text, n.o.dataDir) {
		t.Errorf("/health says %q", text)
	}
	if err := os.WriteFile(path, kept, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestArchiveForeign: a cluster that begins where another one of its name has a
// manifest says so and archives nothing; one of another name, or one that has
// archived here before, does not mind.
func TestArchiveForeign(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	old := newCluster(t, 1, archivedIn(b))
	old.segmentsOf(1)
	old.waitArchived()
	old.checkBucket(b)
	before := b.keys("/" + segmentsFolder)
	was := old.nodes[0].self.Load().ClusterID

	c := newCluster(t, 1, archivedIn(b))
	c.segmentsOf(1)
	eventually(t, "nobody tells", func() bool { return strings.Contains(c.nodes[0].status().archive, was) })
	if s := c.nodes[0].status().archive; !strings.Contains(s, errForeignBucket.Error()) || !c.nodes[0].status().ready {
		t.Errorf("the check says %q", s)
	}
	if after := b.keys("/" + segmentsFolder); !slices.Equal(before, after) {
		t.Errorf("objects are %v, were %v", after, before)
	}
	old.restart(0)
	old.segmentsOf(1)
	old.waitArchived()
	other := newCluster(t, 1, archivedIn(b), func(o *nodeOptions) { o.clusterName = "other" })
	other.segmentsOf(1)
	other.waitArchived()
}

// TestArchiveLeadersChange hands leadership around while much is archived.
func TestArchiveLeadersChange(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	c := newCluster(t, 3, archivedIn(b))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for range 5 {
		c.segmentsOf(2)
		c.nodes[c.leader()].transfer(ctx, 0)
	}
	c.waitArchived()
	c.checkBucket(b)
	c.sameVersions()
}

// TestArchivePatrol: an object that somebody removed is put again, from a copy here or
// of another node; one that somebody replaced is told; so is one that nobody has.
func TestArchivePatrol(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	c := newCluster(t, 3, archivedIn(b), patrols)
	c.segmentsOf(3)
	c.waitArchived()
	c.checkBucket(b)
	lead := c.leader()
	n := c.nodes[lead]
	all := n.store.manifest.Load().segments
	manifests := b.keys("/" + manifestsFolder)
	for _, key := range append(manifests, n.store.objectKey(all[0])) {
		b.change(key, nil)
	}
	if err := n.store.drop(all[1]); err != nil {
		t.Fatal(err)
	}
	b.change(n.store.objectKey(all[1]), nil)
	eventually(t, "the objects do not come back", func() bool {
		return len(b.keys("/"+segmentsFolder)) == 3 && len(b.keys("/"+manifestsFolder)) > 0
	})
	right := b.object(n.store.objectKey(all[2]))
	b.change(n.store.objectKey(all[2]), right[:len(right)-1])
	eventually(t, "nobody tells of the object that was replaced", func() bool {
		return slices.ContainsFunc(c.nodes, func(n *testNode) bool { // another may lead by now
			return strings.Contains(n.status().archive, all[2].object+" "+otherBytes) && n.node.o.metrics.archive.wrong.value() == 1
		})
	})
	b.change(n.store.objectKey(all[2]), right)
	eventually(t, "the archive works", func() bool { return n.status().archive == "ok" })
	b.mu.Lock()
	for _, i := range all[:2] {
		b.puts[n.store.objectKey(i)]--
	}
	b.mu.Unlock()
	c.checkBucket(b)
}

// TestArchiveEmptied: a bucket that somebody empties has all again when a client wants
// all archived, and by itself as soon as its manifest is missed.
func TestArchiveEmptied(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	c := newCluster(t, 3, archivedIn(b), func(o *nodeOptions) { o.patrolTime = 1000 * time.Hour })
	c.segmentsOf(3)
	c.waitArchived()
	c.checkBucket(b)
	kept := make(map[string][]byte)
	empty := func(folders ...string) {
		for _, folder := range folders {
			for _, key := range b.keys("/" + folder) {
				kept[key] = b.object(key)
				b.change(key, nil)
				b.mu.Lock()
				b.puts[key]--
				b.mu.Unlock()
			}
		}
	}
	empty(segmentsFolder)
	eventually(t, "not everything is archived", func() bool {
		told, err := c.nodes[c.leader()].archive(t.Context())
		return err == nil && told.InBucket == 3
	})
	c.checkBucket(b)
	empty(segmentsFolder, manifestsFolder)
	eventually(t, "the objects do not come back", func() bool {
		return len(b.keys("/"+segmentsFolder)) == 3 && len(b.keys("/"+manifestsFolder)) > 0
	})
	c.checkBucket(b)

	for _, n := range c.nodes { // gone for good: that is no answer but a reason
		for _, info := range n.store.manifest.Load().segments {
			if err := n.store.drop(info); err != nil {
				t.Fatal(err)
			}
		}
	}
	empty(segmentsFolder)
	eventually(t, "nobody tells", func() bool {
		_, err := c.nodes[c.leader()].archive(t.Context())
		return errors.Is(err, errArchive) && strings.Contains(err.Error(), goneObject)
	})
	for key, body := range kept {
		b.change(key, body)
	}
	eventually(t, "the archive works", func() bool {
		_, err := c.nodes[c.leader()].archive(t.Context())
		return err == nil
	})
}

// TestArchiveLost: an object that is gone, and no node has the segment: nothing can be
// done but to say which one.
func TestArchiveLost(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	c := newCluster(t, 1, archivedIn(b), patrols)
	c.segmentsOf(2)
	c.waitArchived()
	n := c.nodes[0]
	first := n.store.manifest.Load().segments[0]
	key := n.store.objectKey(first)
	kept := b.object(key)
	if err := n.store.drop(first); err != nil {
		t.Fatal(err)
	}
	b.change(key, nil)
	eventually(t, "nobody tells", func() bool { return strings.Contains(n.status().archive, first.object+" "+goneObject) })
	c.segmentsOf(1)
	c.waitArchived()
	b.change(key, kept)
	eventually(t, "the archive works", func() bool { return n.status().archive == "ok" })
}

// TestArchiveNewKey: when the ledger has a new key, a manifest says so, with the note
// that hands over from the old one.
func TestArchiveNewKey(t *testing.T) {
	t.Parallel()
	b := newMemBucket(t)
	c := newCluster(t, 1, archivedIn(b))
	c.segmentsOf(1)
	c.waitArchived()
	n := c.nodes[0]
	if err := n.rotateLedgerKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	current, former, err := n.ledgerVKeys()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "no manifest has the new key", func() bool {
		return slices.ContainsFunc(b.keys("/"+manifestsFolder), func(key string) bool {
			m, err := parseBucketManifest(b.object(key))
			return err == nil && m.key.String() == current && slices.Equal(m.former, former) && m.size() == n.store.manifest.Load().end()
		})
	})
}

// TestPatrolDue: each object has its turn once a day, however often it is asked which.
func TestPatrolDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &archiver{n: &node{o: nodeOptions{patrolTime: patrolTime}}}
		visits := 0
		for range int(patrolTime / archiveEvery) {
			visits += a.due(1000)
			time.Sleep(archiveEvery)
		}
		if visits < 998 || visits > 1000 {
			t.Errorf("%d visits to 1000 objects in %v", visits, patrolTime)
		}
		time.Sleep(10 * patrolTime)
		if n := a.due(1000); n != 1000 {
			t.Errorf("%d visits after a long time, want 1000", n)
		}
	})
}
