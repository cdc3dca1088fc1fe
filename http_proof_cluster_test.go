package main

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// serveCluster puts a server in front of each node of c.
func serveCluster(t *testing.T, c *testCluster) []*testServer {
	t.Helper()
	var servers []*testServer
	for i := range c.nodes {
		s := newServer(c.nodes[i].node, serverOptions{maxValueSize: 1 << 20, readTimeout: 5 * time.Second, writeTimeout: 10 * time.Second, allowDelete: true,
			consistency: "linearizable", version: "test", metrics: newMetrics(), logger: testLogger(t)})
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go s.serve(ln)
		t.Cleanup(func() { s.http.Close() })
		servers = append(servers, &testServer{server: s, t: t, addr: ln.Addr().String()})
	}
	return servers
}

// settle sends a request, and repeats it, under one Idempotency-Key if it is a
// write, while the outcome is unknown or there is no leader.
func (s *testServer) settle(method, target, body string, headers ...string) (r httpReply) {
	s.t.Helper()
	if method != "GET" {
		headers = append(slices.Clone(headers), fmt.Sprintf("Idempotency-Key: write-%d", writes.Add(1)))
	}
	eventually(s.t, method+" "+target, func() bool {
		r = s.do(method, target, body, headers...)
		code := codeOf(r.body)
		return code != "no_leader" && code != "unknown_outcome"
	})
	return r
}

var writes atomic.Uint64 // for Idempotency-Keys

// TestProofsOfCluster: what any node answers convinces a client that knows the
// ledger's key alone, at any time: right after the write, after a seal, after a
// new key.
func TestProofsOfCluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.key(0)
	servers := serveCluster(t, c)
	key := servers[0].key()
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() {
			for k := range 20 {
				value := fmt.Sprint("value ", k)
				checkProven(t, s.settle("PUT", fmt.Sprintf("/n%d/%d?receipt=true", i, k%5), value).body, key, value)
			}
		})
	}
	wg.Wait()
	var line httpReply
	eventually(t, "a line of a batch", func() bool { // a second version of the same does no harm
		line = servers[1].do("POST", "/batch?receipt=true", `{"op":"put","key":"line","value":"1"}`, "Content-Type: application/x-ndjson")
		return !strings.Contains(line.body, `"no_leader"`) && !strings.Contains(line.body, `"unknown_outcome"`)
	})
	checkProven(t, line.body, key, "1")
	checkProven(t, servers[2].settle("DELETE", "/line?receipt=true", "").body, key, "")
	check := func(key string) {
		for i, s := range servers {
			if s.key() != key {
				t.Errorf("node %d has key %s, want %s", i+1, s.key(), key)
			}
			for from := range servers {
				eventually(t, "the ledger and 3 nodes have not signed", func() bool { // who is busy does so later
					p := checkProven(t, s.settle("GET", fmt.Sprintf("/verify/n%d/4", from), "").body, key, "value 19")
					return strings.Count(p.Checkpoint, "— ") == 4
				})
			}
			checkWholeTree(t, s, key)
		}
	}
	check(key)
	c.sealAll()
	for i := range servers {
		eventually(t, "the segment is confirmed", func() bool { return len(c.nodes[i].store.currentManifest().segments) > 0 })
	}
	if p := checkProven(t, servers[0].settle("GET", "/verify/line?version=1", "").body, key, "1"); p.Segment == nil {
		t.Error("a sealed entry has no segment")
	}
	check(key)
	a := servers[1].settle("POST", "/cluster/rotate-key", "")
	if second := servers[1].key(); second == key || a.body != `{"key":"`+second+"\"}\n" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	key = servers[1].key()
	for i := range servers {
		eventually(t, "the new key is everywhere", func() bool { return servers[i].key() == key })
	}
	check(key)
}

// checkWholeTree rebuilds the ledger of s from its bundles and compares it with
// its tiles, its checkpoint and its stream.
func checkWholeTree(t *testing.T, s *testServer, vkey string) {
	t.Helper()
	key, err := parseVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	n, err := parseNote(s.settle("GET", "/ledger/checkpoint", "").body)
	if err != nil {
		t.Fatal(err)
	}
	head, err := openTreeHead(n, key)
	if err != nil {
		t.Fatal(err)
	}
	var leaves []hash
	for size := head.size; uint64(len(leaves)) < size; {
		id := tileID{entryTile, uint64(len(leaves) / tileWidth), int(min(tileWidth, size-uint64(len(leaves))))}
		bundle, hashes := s.settle("GET", "/ledger/tile/"+id.path(), ""), ""
		for b := bundle.body; b != ""; {
			n := int(b[0])<<8 | int(b[1])
			leaf := leafHash([]byte(b[2 : 2+n]))
			leaves, hashes, b = append(leaves, leaf), hashes+string(leaf[:]), b[2+n:]
		}
		id.level = 0
		if tile := s.settle("GET", "/ledger/tile/"+id.path(), ""); tile.status != 200 || tile.body != hashes {
			t.Fatalf("tile %s and its bundle differ: %d", id.path(), tile.status)
		}
	}
	if rootOf(leaves) != head.root {
		t.Errorf("the bundles give root %s, the checkpoint says %s", rootOf(leaves), head.root)
	}
	l := s.follow(fmt.Sprintf("&limit=%d", len(leaves)))
	for _, leaf := range leaves {
		if e := l.entry(l.line()); e.LeafHash != leaf.String() {
			t.Errorf("entry %d has leaf hash %s, the tree %s", e.Seq, e.LeafHash, leaf)
		}
	}
}

// TestSegmentDamaged: a damaged segment file is never sent, whole or in part:
// a node of a cluster gets it again first, one that stands alone says so.
func TestSegmentDamaged(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3} {
		c := newCluster(t, size)
		servers := serveCluster(t, c)
		i := (c.leader() + 1) % size
		c.put(i, "k", "a value")
		c.sealAll()
		s := c.nodes[i].store
		eventually(t, "no segment", func() bool { return s.manifest.Load().confirmed == 1 && len(s.durable.Load().segments) == 1 })
		path, target := segmentsOf(s)[0], "/ledger/segments/"+s.durable.Load().segments[0].id()
		good := string(readFile(t, path))
		for _, part := range [][]string{nil, {"Range: bytes=0-9"}} {
			want := good
			if part != nil {
				want = good[:10]
			}
			if a := servers[i].do("GET", target, "", part...); a.status/100 != 2 || a.body != want {
				t.Errorf("%d %q", a.status, a.body)
			}
			flipBit(t, path, segmentHeaderSize+3, 5)
			a := servers[i].do("GET", target, "", part...)
			if size == 1 && (a.status != 409 || !strings.Contains(a.body, `"corrupt"`) || strings.Contains(a.body, path)) {
				t.Errorf("damaged, alone: %d %q", a.status, a.body)
			}
			if size == 3 && a.body != want {
				t.Errorf("damaged, in a cluster: %d %q", a.status, a.body)
			}
			if size == 1 {
				flipBit(t, path, segmentHeaderSize+3, 5) // as it was
			}
		}
	}
}
