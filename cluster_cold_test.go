package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// coldCluster returns a cluster that archives in a strict S3 and drops nothing yet.
func coldCluster(t *testing.T, size int) (*testCluster, *s3Server) {
	t.Helper()
	s := newS3Server(t)
	s.mayChange = func(key string) bool { return strings.HasSuffix(key, liveName) }
	bucket := bucketStore{newS3Test(t, s, func(o *s3Options) { o.retries = 1 })}
	return newCluster(t, size, func(o *nodeOptions) {
		o.objects, o.objectPrefix, o.cacheSize = bucket, "cold/", 64<<20
		o.archiveEvery, o.dropAge = 20*time.Millisecond, time.Hour
	}), s
}

// goCold restarts all nodes so that they drop what they may, and waits until each
// has dropped all that is archived.
func (c *testCluster) goCold() {
	c.t.Helper()
	c.waitArchived()
	for i := range c.nodes {
		c.nodes[i].o.dropAge = 0
		c.restart(i)
	}
	c.leader()
	for i := range c.nodes {
		c.waitCold(i)
	}
}

// waitCold waits until node i has no file of what is archived.
func (c *testCluster) waitCold(i int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("node %d does not drop everything", i+1), func() bool {
		c.tend()
		n := c.nodes[i]
		if n.node == nil || n.raft.Load() == nil || len(n.store.durable.Load().segments) == 0 {
			return false
		}
		return !slices.ContainsFunc(n.store.durable.Load().segments, func(info segmentInfo) bool {
			_, err := os.Stat(n.store.segmentPath(info))
			return err == nil || !n.store.isCold(info.first)
		})
	})
}

// coldTargets are GETs that between them read everything of the ledger that
// writeAll writes, in every way there is.
func coldTargets(m *manifest) (targets [][]string) {
	for _, key := range []string{"/a", "/b%20c", "/%00%ff", "/dir/big", "/dir/small", "/gone", "/never"} {
		targets = append(targets, []string{key}, []string{key + "?version=1"}, []string{key + "?version=2"}, []string{"/history" + key},
			[]string{"/history" + key + "?limit=1"}, []string{key + "?at=20"}, []string{key, "Range: bytes=1-3"}, []string{key, `If-None-Match: "3"`})
	}
	for _, path := range []string{"/dir/big?seq=4", "/keys", "/keys?prefix=dir/", "/keys?limit=2&after=a", "/ledger/entries?limit=500", "/ledger/entries?from=7&limit=3&values=true",
		"/ledger/tile/0/000.p/30", "/ledger/tile/entries/000.p/30", "/ledger/proof?seq=3&size=20", "/ledger/consistency?from=3&to=25"} {
		targets = append(targets, []string{path})
	}
	for _, info := range m.shown() {
		for _, part := range []string{"bytes=0-9", "bytes=60-400000", "bytes=-100", "bytes=1000-", "bytes=99999999-"} {
			targets = append(targets, []string{"/ledger/segments/" + info.id(), "Range: " + part})
		}
		targets = append(targets, []string{"/ledger/segments/" + info.id()})
	}
	return targets
}

// writeAll writes entries of all kinds in segments of their own.
func (c *testCluster) writeAll(s *testServer) {
	c.t.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 5 {
		for i, key := range []string{"/a", "/b%20c", "/%00%ff", "/gone", "/dir/big", "/dir/small"} {
			body := randomText(r, 100+10*i+round)
			if key == "/dir/big" {
				body = randomText(r, 300_000+100_000*round)
			}
			if a := s.settle("PUT", key, body, "Content-Type: text/x-test"); a.status > 201 {
				c.t.Fatalf("PUT %s: %d %s", key, a.status, a.body)
			}
		}
		if a := s.settle("DELETE", "/gone", ""); a.status != 200 {
			c.t.Fatalf("DELETE: %d %s", a.status, a.body)
		}
		c.sealAll()
	}
}

// answersOf returns what a server says to all targets.
func answersOf(s *testServer, targets [][]string) (answers []string) {
	for _, target := range targets {
		a := s.settle("GET", target[0], "", target[1:]...)
		text := fmt.Sprintf("GET %s: %d\n", target, a.status)
		for _, h := range []string{"Content-Type", "Etag", "Repr-Digest", "Last-Modified", "Scribe-Seq", "Scribe-Version", "Scribe-Time", "Content-Range"} {
			text += h + ": " + a.Get(h) + "\n"
		}
		answers = append(answers, text+a.body)
	}
	return answers
}

// TestColdCluster: with everything in the bucket, one and three nodes answer as
// they did before, take writes, verify and audit; without the bucket they say so.
func TestColdCluster(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			c, bucket := coldCluster(t, size)
			c.writeAll(serveCluster(t, c)[0])
			c.waitArchived()
			targets := coldTargets(c.nodes[0].store.manifest.Load())
			want := answersOf(serveCluster(t, c)[c.leader()], targets)
			c.goCold()
			servers := serveCluster(t, c)
			for i, s := range servers {
				for k, got := range answersOf(s, targets) {
					if got != want[k] {
						t.Errorf("node %d: %.300q, was %.300q", i+1, got, want[k])
					}
				}
				checkWholeTree(t, s, s.key())
				var m struct {
					Segments []struct{ State, Object string }
				}
				s.decode("/ledger/manifest", &m)
				for _, g := range m.Segments {
					if g.State != "cold" || !strings.HasPrefix(g.Object, "cold/") || bucket.object(g.Object) == nil {
						t.Errorf("node %d: segment is %+v", i+1, g)
					}
				}
			}
			c.writeCold(servers)
			for _, s := range servers {
				folder := t.TempDir()
				exits(t, folder, 0, "verified", "verify", "dir/big", "--version", "2", "--url", "http://"+s.addr)
				exits(t, folder, 0, "", "audit", "--url", "http://"+s.addr)
			}
			c.withoutBucket(t, bucket)
		})
	}
}

// writeCold writes to keys whose last version is in the bucket.
func (c *testCluster) writeCold(servers []*testServer) {
	c.t.Helper()
	for i, s := range servers {
		key := fmt.Sprint("/of-", i)
		tag := s.settle("GET", "/dir/small", "").Get("Etag")
		s.check([]apiRow{
			{method: "PUT", target: "/dir/small", body: "x", headers: []string{`If-Match: "1"`}, status: 412, code: "precondition_failed"},
			{method: "PUT", target: "/dir/small", body: "x", headers: []string{"If-None-Match: *"}, status: 412, code: "precondition_failed"},
			{method: "PUT", target: "/dir/small?receipt=true", body: "new", headers: []string{"If-Match: " + tag}, status: 200, in: `"receipt"`},
			{method: "GET", target: "/dir/small", status: 200, in: "new"},
			{method: "PUT", target: key, body: "1", status: 201},
			{method: "DELETE", target: key, status: 200},
			{method: "GET", target: "/verify/a", status: 200, in: `"verified":true`},
			{method: "GET", target: "/verify/gone", status: 200, in: `"op":"delete"`},
			{method: "POST", target: "/batch", headers: []string{"Content-Type: application/json"},
				body: `{"ops":[{"op":"put","key":"batch","value":"1"},{"op":"delete","key":"a"}]}`, status: 200, in: `"results"`},
			{method: "PUT", target: "/a", body: "again", status: 200},
		})
	}
}

// withoutBucket has the bucket fall silent, damages it, and mends it.
func (c *testCluster) withoutBucket(t *testing.T, bucket *s3Server) {
	t.Helper()
	for i := range c.nodes { // so that nobody has anything in memory
		c.restart(i)
	}
	c.leader()
	servers := serveCluster(t, c)
	for _, op := range []s3Op{s3Get, s3Head, s3Put} {
		bucket.fault(op, "", "503", -1)
	}
	for i, s := range servers {
		eventually(t, "no answer", func() bool { return codeOf(s.do("GET", "/dir/small?version=1", "").body) == "archive_unavailable" })
		eventually(t, "reads fail and /health does not say so", func() bool { return strings.Contains(c.nodes[i].status().archive, "503") })
		s.check([]apiRow{
			{method: "GET", target: "/b%20c?version=1", status: 503, code: "archive_unavailable", want: []string{"Retry-After: 1"}},
			{method: "GET", target: "/history/b%20c", status: 503, code: "archive_unavailable"},
			{method: "GET", target: "/ledger/entries?from=0&limit=1", status: 503, code: "archive_unavailable"},
			{method: "GET", target: "/ledger/tile/entries/000.p/3", status: 503, code: "archive_unavailable"},
			{method: "GET", target: "/verify/b%20c", status: 503, code: "archive_unavailable"},
			{method: "GET", target: "/ledger/segments/" + c.nodes[0].store.manifest.Load().segments[0].id(), status: 503, code: "archive_unavailable"},
			{method: "POST", target: "/cluster/prefetch", body: `{"from":0,"to":1}`, status: 503, code: "archive_unavailable"},
			{method: "PUT", target: fmt.Sprint("/while-it-is-down-", i), body: "x", status: 201},
			{method: "GET", target: fmt.Sprint("/while-it-is-down-", i), status: 200, in: "x"},
			{method: "GET", target: "/health", status: 200},
		})
	}
	bucket.heal()
	for _, s := range servers {
		eventually(t, "the bucket is not asked again", func() bool { return s.do("GET", "/b%20c?version=1", "").status == 200 })
	}
}

// TestColdNewcomer: a node with an empty disk takes over a ledger of which no node
// has a file, from the bucket, and so does one that was away.
func TestColdNewcomer(t *testing.T) {
	t.Parallel()
	c, bucket := coldCluster(t, 3)
	c.writeAll(serveCluster(t, c)[0])
	c.goCold()
	away := (c.leader() + 1) % 3
	c.kill(away)
	c.wipe(away)
	if n := c.leader(away); n == away {
		t.Fatal("a node leads that is down")
	}
	c.put(c.leader(away), "meanwhile", "value")
	bucket.requests()
	c.start(away)
	if v := c.get(away, "meanwhile"); v != "value" {
		t.Errorf("value is %q", v)
	}
	adopted := c.nodes[away].store.o.metrics.cold.adopted.value()
	if adopted == 0 {
		t.Error("nothing was adopted")
	}
	sent, total := 0, uint64(0)
	for _, q := range bucket.requests() {
		sent += q.sent
	}
	for _, info := range c.nodes[0].store.durable.Load().segments {
		total += info.size
	}
	t.Logf("%d segments adopted, %d bytes moved for %d", adopted, sent, total)
	c.waitCold(away)
	s := serveCluster(t, c)[away]
	checkWholeTree(t, s, s.key())
}

// TestColdDamagedObject: an object that is damaged, exchanged or gone is named in a
// 502 while nobody has its segment, and is no matter while somebody has.
func TestColdDamagedObject(t *testing.T) {
	t.Parallel()
	c, bucket := coldCluster(t, 3)
	c.writeAll(serveCluster(t, c)[0])
	keep := c.leader()
	c.waitArchived()
	for i := range c.nodes {
		if i != keep {
			c.nodes[i].o.dropAge = 0
			c.restart(i)
		}
	}
	c.leader()
	one, other := (keep+1)%3, (keep+2)%3
	c.waitCold(one)
	c.waitCold(other)
	bucket.mu.Lock() // the nodes use it all the time
	bucket.mayChange = func(string) bool { return true }
	bucket.mu.Unlock()
	segments := c.nodes[keep].store.manifest.Load().segments
	keys := make([]string, len(segments))
	for i, info := range segments {
		keys[i] = c.nodes[keep].store.objectKey(info)
	}
	good := make([][]byte, len(keys))
	for i, key := range keys {
		good[i] = bucket.object(key)
	}
	bad := append([]byte(nil), good[0]...)
	for i := range len(bad) / 100 {
		bad[100*i] ^= 1
	}
	bucket.set(keys[0], bad)
	bucket.set(keys[1], good[2])
	bucket.fault(s3Put, keys[2], "503", -1) // or the leader puts it there again
	bucket.remove(keys[2])
	bucket.set(keys[3], good[3][:len(good[3])/2])

	servers := serveCluster(t, c)
	for version := range 4 { // node one gets all of them from the one that kept its files
		target := fmt.Sprintf("/dir/big?version=%d", version+1)
		if a, b := servers[one].settle("GET", target, ""), servers[keep].settle("GET", target, ""); a.status != 200 || a.body != b.body {
			t.Errorf("GET %s: %d %.300s", target, a.status, a.body)
		}
		if n := c.nodes[one].store; n.isCold(segments[version].first) || !n.isPinned(segments[version].first) {
			t.Errorf("segment %d is not kept", version)
		}
	}
	c.kill(keep)
	c.nodes[one].store.unpin(segments[:4])
	c.isolate(one, linkLoud)
	s := servers[other]
	for version := range 4 {
		for _, target := range []string{fmt.Sprintf("/b%%20c?version=%d&consistency=stale", version+1), "/ledger/segments/" + segments[version].id()} {
			a := s.do("GET", target, "")
			if a.status != 502 || codeOf(a.body) != "archive_corrupt" || !strings.Contains(a.body, keys[version]) {
				t.Errorf("GET %s: %d %.300s", target, a.status, a.body)
			}
		}
	}
	for i, key := range keys[:4] {
		bucket.set(key, good[i])
	}
	if a := s.do("GET", "/b%20c?version=2&consistency=stale", ""); a.status != 200 {
		t.Errorf("after it was put right: %d %s", a.status, a.body)
	}
	c.links.heal()
	c.start(keep)
}
