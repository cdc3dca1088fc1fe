package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// testCluster is a cluster of nodes in this process, with real directories and
// real connections on the loopback interface.
type testCluster struct {
	t     testing.TB
	nodes []*testNode
	links linkTable
	puts  atomic.Uint64 // for Idempotency-Keys
}

// testNode is one member; node is nil while it is down.
type testNode struct {
	*node
	o nodeOptions
}

// linkTable says which links are cut.
type linkTable struct {
	mu  sync.Mutex
	cut map[[2]int]bool // from, to
}

func (l *linkTable) isCut(from, to int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut[[2]int{from, to}]
}

func (l *linkTable) set(from, to int, cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut == nil {
		l.cut = make(map[[2]int]bool)
	}
	l.cut[[2]int{from, to}] = cut
}

// waitLimit bounds every wait of the tests.
const waitLimit = 30 * time.Second

// newCluster forms a cluster of size nodes and ends with the whole-truth check.
func newCluster(t testing.TB, size int, change ...func(*nodeOptions)) *testCluster {
	t.Helper()
	c := &testCluster{t: t}
	addrs := freeAddrs(t, size)
	for i := range size {
		o := testOptions(t, uint64(i+1))
		o.raftAddr, o.raftListen, o.expect = addrs[i], addrs[i], size
		for k, a := range addrs {
			if k != i {
				o.seeds = append(o.seeds, a)
			}
		}
		o.dial = c.dialer(i, addrs)
		for _, f := range change {
			f(&o)
		}
		c.nodes = append(c.nodes, &testNode{o: o})
	}
	for i := range c.nodes {
		c.start(i)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			c.check()
		}
		for i := range c.nodes {
			c.kill(i)
		}
	})
	c.leader()
	return c
}

// testOptions returns options for one node in a directory of its own.
func testOptions(t testing.TB, id uint64) nodeOptions {
	return nodeOptions{
		id: id, httpURL: fmt.Sprintf("http://node-%d", id), dataDir: t.TempDir(), clusterName: "test", expect: 1, version: "test",
		segmentSize: 1 << 20, maxValueSize: 8 << 20, sealAfter: time.Hour,
		electionMin: 250 * time.Millisecond, electionMax: 500 * time.Millisecond, heartbeat: 50 * time.Millisecond,
		writeTimeout: 10 * time.Second, readTimeout: 5 * time.Second,
		logger: testLogger(t), now: time.Now, logFileSize: 1 << 20,
	}
}

// testLogger logs warnings to the test's output, -v shows them.
func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// freeAddrs returns loopback addresses nobody listens on.
func freeAddrs(t testing.TB, count int) []string {
	t.Helper()
	var addrs []string
	for range count {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// dialer connects node from to the others unless the link is cut, and cuts
// connections when their link is.
func (c *testCluster) dialer(from int, addrs []string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		to := -1
		for i, a := range addrs {
			if a == addr {
				to = i
			}
		}
		if c.links.isCut(from, to) {
			return nil, errors.New("link is cut")
		}
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return &cutConn{conn, func() bool { return c.links.isCut(from, to) || c.links.isCut(to, from) }}, nil
	}
}

// cutConn fails once its link is cut.
type cutConn struct {
	net.Conn
	cut func() bool
}

func (c *cutConn) Write(b []byte) (int, error) {
	if c.cut() {
		c.Close()
		return 0, errors.New("link is cut")
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.cut() {
		c.Close()
		return 0, errors.New("link is cut")
	}
	return n, err
}

// start opens node i.
func (c *testCluster) start(i int) {
	c.t.Helper()
	n, err := openNode(c.nodes[i].o)
	if err != nil {
		c.t.Fatalf("opening node %d: %v", i+1, err)
	}
	c.nodes[i].node = n
}

// kill stops node i without handing anything over.
func (c *testCluster) kill(i int) {
	if n := c.nodes[i].node; n != nil {
		c.nodes[i].node = nil
		n.release()
	}
}

// restart kills and starts node i.
func (c *testCluster) restart(i int) {
	c.t.Helper()
	c.kill(i)
	c.start(i)
}

// isolate cuts or heals all links of node i.
func (c *testCluster) isolate(i int, cut bool) {
	for k := range c.nodes {
		if k != i {
			c.links.set(i, k, cut)
			c.links.set(k, i, cut)
		}
	}
}

// eventually waits until ok, failing the test with what.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitLimit); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v: %s", waitLimit, what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// leader waits for a leader that may serve and returns its number.
func (c *testCluster) leader() int {
	c.t.Helper()
	found := -1
	eventually(c.t, "no leader", func() bool {
		for i, n := range c.nodes {
			if n.node != nil && n.raft.Load() != nil && n.isReady() {
				found = i
				return true
			}
		}
		return false
	})
	return found
}

// put writes through node i and returns the entry's header. It repeats the
// request under one Idempotency-Key while the outcome is unknown or there is no leader.
func (c *testCluster) put(i int, key, value string) header {
	c.t.Helper()
	var h header
	var err error
	id := fmt.Sprintf("put-%d", c.puts.Add(1))
	op := operation{kind: opPut, key: []byte(key), value: []byte(value), ifSeq: noSeq}
	eventually(c.t, fmt.Sprintf("put %q through node %d: %v", key, i+1, err), func() bool {
		h, err = submitOne(c.nodes[i].node, op, id)
		if err != nil && !errors.Is(err, errUnknownOutcome) && !errors.Is(err, errNoLeader) {
			c.t.Fatalf("put %q through node %d: %v", key, i+1, err)
		}
		return err == nil
	})
	return h
}

// putOn writes one value and returns the entry's header.
func putOn(n *node, key, value string) (header, error) {
	return submitOne(n, operation{kind: opPut, key: []byte(key), value: []byte(value), ifSeq: noSeq}, "")
}

// submitOne submits one operation that is expected to be applied.
func submitOne(n *node, op operation, idem string) (header, error) {
	res, err := n.submit(context.Background(), &request{ops: []operation{op}, idempotencyKey: idem})
	if err != nil {
		return header{}, err
	}
	if res.outcome != outcomeApplied {
		return header{}, fmt.Errorf("outcome %d", res.outcome)
	}
	return parseHeader(res.headers[0])
}

// get reads key from node i, linearizable.
func (c *testCluster) get(i int, key string) string {
	c.t.Helper()
	if err := c.nodes[i].confirmRead(context.Background()); err != nil {
		c.t.Fatalf("confirming a read on node %d: %v", i+1, err)
	}
	e, err := c.nodes[i].store.get([]byte(key), selector{})
	if err != nil {
		c.t.Fatalf("get %q from node %d: %v", key, i+1, err)
	}
	return valueOf(c.t, &e)
}

// valueOf reads all of an entry's value.
func valueOf(t testing.TB, e *entry) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(e.value, 0, int64(e.header.size)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// check is the whole truth: with everything sealed, all nodes have the same
// segment files, every root derived from their bytes is the one the manifest
// names, and every key's chain of versions is whole.
func (c *testCluster) check() {
	c.t.Helper()
	for i := range c.nodes {
		if c.nodes[i].node == nil {
			c.start(i)
		}
		c.isolate(i, false)
	}
	lead := c.nodes[c.leader()]
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	if err := lead.seal(ctx); err != nil {
		c.t.Fatalf("sealing for the check: %v", err)
	}
	size := lead.store.size()
	var first map[string][]byte
	for i, n := range c.nodes {
		eventually(c.t, fmt.Sprintf("node %d has %d of %d entries confirmed", i+1, n.store.size(), size), func() bool {
			shown := n.store.manifest.Load().shown()
			return size == 0 || len(shown) > 0 && shown[len(shown)-1].end() == size && n.store.durable.Load().at.size == size
		})
		checkStore(c.t, n.store)
		files := segmentFiles(c.t, n.o.dataDir)
		if first == nil {
			first = files
		}
		for name, b := range files {
			if !bytes.Equal(first[name], b) {
				c.t.Errorf("segment %s differs between node 1 and node %d", name, i+1)
			}
		}
		if len(files) != len(first) {
			c.t.Errorf("node %d has %d segment files, node 1 has %d", i+1, len(files), len(first))
		}
	}
}

// checkStore derives every root of a store from the bytes on its disk.
func checkStore(t testing.TB, s *store) {
	t.Helper()
	newest := make(map[string]header)
	for _, info := range s.durable.Load().segments {
		f, err := openSegmentFile(s.segmentPath(info))
		if err != nil {
			t.Fatal(err)
		}
		root, err := f.records(true, func(r *record, pl place) error {
			h := r.header
			before, ok := newest[string(h.key)]
			if ok != (h.prev != noSeq) || ok && (h.prev != before.seq || h.version != before.version+1) {
				return fmt.Errorf("entry %d: version %d with prev %d follows version %d at %d", h.seq, h.version, h.prev, before.version, before.seq)
			}
			newest[string(h.key)] = h
			p, found, err := s.index.version(h.key, h.version)
			if err != nil || !found || p.seq != h.seq || p.offset != pl.offset || p.length != pl.length {
				return fmt.Errorf("entry %d: the index says %+v, %v, %v", h.seq, p, found, err)
			}
			return nil
		})
		if err != nil || root != info.root {
			t.Errorf("segment %s: records give root %s, error %v", info.id(), root, err)
		}
		f.close()
	}
}

// segmentFiles reads all segment files below dir.
func segmentFiles(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	paths, err := filepath.Glob(filepath.Join(dir, segmentDir, "*"+segmentSuffix))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(p)] = b
	}
	return files
}

// sealAll seals what is pending, through node i.
func (c *testCluster) sealAll(i int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	if err := c.nodes[i].seal(ctx); err != nil {
		c.t.Fatalf("sealing through node %d: %v", i+1, err)
	}
}

func TestOneNode(t *testing.T) {
	c := newCluster(t, 1)
	if h := c.put(0, "a", "1"); h.seq != 0 || h.version != 1 || h.prev != noSeq {
		t.Errorf("first entry is %+v", h)
	}
	if h := c.put(0, "a", "2"); h.seq != 1 || h.version != 2 || h.prev != 0 {
		t.Errorf("second entry is %+v", h)
	}
	if v := c.get(0, "a"); v != "2" {
		t.Errorf("get a = %q", v)
	}
	c.sealAll(0)
	if v := c.get(0, "a"); v != "2" {
		t.Errorf("get a from the segment = %q", v)
	}
	c.put(0, "b", "3")
	c.restart(0)
	c.leader()
	if a, b := c.get(0, "a"), c.get(0, "b"); a != "2" || b != "3" {
		t.Errorf("after a restart a = %q, b = %q", a, b)
	}
}

func TestThreeNodes(t *testing.T) {
	c := newCluster(t, 3)
	for i := range 3 {
		c.put(i, fmt.Sprint("key-", i), strings.Repeat("v", i))
	}
	for i := range 3 {
		for k := range 3 {
			if v := c.get(k, fmt.Sprint("key-", i)); v != strings.Repeat("v", i) {
				t.Errorf("key-%d on node %d is %q", i, k+1, v)
			}
		}
	}
	lead := c.leader()
	c.kill(lead)
	c.put((lead+1)%3, "after", "x")
	c.start(lead)
	if v := c.get(lead, "after"); v != "x" {
		t.Errorf("the old leader reads %q", v)
	}
}

// TestCatchUpPastTruncation keeps a follower down until the others have dropped
// the log it would need; it comes back by pulling segments.
func TestCatchUpPastTruncation(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader()
	down := (lead + 1) % 3
	c.put(lead, "before", "1")
	c.kill(down)
	for i := range 6 {
		for k := range 50 {
			c.put(lead, fmt.Sprintf("key-%d-%d", i, k), strings.Repeat("x", 1000))
		}
		c.sealAll(lead)
	}
	eventually(t, "the log was not truncated", func() bool {
		first, _ := c.nodes[lead].log.FirstIndex()
		return first > 10
	})
	c.start(down)
	if v := c.get(down, "key-5-49"); len(v) != 1000 {
		t.Errorf("value has %d bytes", len(v))
	}
	first, _ := c.nodes[lead].log.FirstIndex()
	var l raft.Log
	if err := c.nodes[down].log.GetLog(first-1, &l); err != raft.ErrLogNotFound {
		t.Errorf("the follower got a log entry the leader does not have: %v", err)
	}
}
