package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// testCluster is a cluster of nodes in this process, with real directories and
// real connections on the loopback interface (cluster_net_test.go). The test's
// goroutine starts and stops nodes; clients may run beside it.
type testCluster struct {
	t     testing.TB
	nodes []*testNode
	links linkTable
	puts  atomic.Uint64 // for Idempotency-Keys

	unformed bool // there is no cluster to check at the end

	mu    sync.Mutex
	acked map[uint64]ack // by seq
}

// ack is a write that was acknowledged: it must be there for ever.
type ack struct {
	key string
	sum hash
}

// testNode is one member.
type testNode struct {
	*node     // nil while it is down; only the test's goroutine changes it, holding mu
	mu        sync.RWMutex
	o         nodeOptions
	discovery *discovery  // nil: it has seeds
	gone      bool        // not a member, so nothing is expected of it at the end
	dead      atomic.Bool // the disk takes no more steps of the store: what a crash leaves
}

// waitLimit bounds every wait of the tests.
const waitLimit = 2 * time.Minute

// newCluster forms a cluster of size nodes and ends with the whole-truth check.
func newCluster(t testing.TB, size int, change ...func(*nodeOptions)) *testCluster {
	t.Helper()
	c := newNodes(t, size, change...)
	for i := size - 1; i >= 0; i-- { // the one that forms the cluster comes last
		c.start(i)
	}
	c.leader()
	return c
}

// newNodes prepares nodes that list each other, and starts none.
func newNodes(t testing.TB, size int, change ...func(*nodeOptions)) *testCluster {
	t.Helper()
	c := &testCluster{t: t, acked: make(map[uint64]ack)}
	c.links.init()
	logger := testLogger(t)
	addrs := freeAddrs(t, size)
	for i := range size {
		n := &testNode{o: testOptions(t, uint64(i+1))}
		n.o.raftAddr, n.o.raftListen, n.o.expect = addrs[i], addrs[i], size
		for k, a := range addrs {
			if k != i {
				n.o.seeds = append(n.o.seeds, a)
			}
		}
		n.o.logger = logger.With("on", i+1)
		n.o.dial = c.dialer(i)
		n.o.storeFault = n.crashed
		for _, f := range change {
			f(&n.o)
		}
		c.nodes = append(c.nodes, n)
	}
	t.Cleanup(func() {
		if !t.Failed() && !c.unformed {
			c.check()
		}
		for i := range c.nodes {
			c.kill(i)
		}
	})
	return c
}

// testOptions returns options for one node in a directory of its own.
func testOptions(t testing.TB, id uint64) nodeOptions {
	return nodeOptions{
		id: id, httpURL: fmt.Sprintf("http://node-%d", id), dataDir: t.TempDir(), clusterName: "test", expect: 1, version: "test",
		segmentSize: 1 << 20, maxValueSize: 8 << 20, sealAfter: time.Hour,
		electionMin: 250 * time.Millisecond, electionMax: 750 * time.Millisecond, heartbeat: 50 * time.Millisecond,
		writeTimeout: 10 * time.Second, readTimeout: 5 * time.Second,
		logger: testLogger(t), now: time.Now, logFileSize: 1 << 20, logLimits: logLimits{bytes: 1},
	}
}

// testLogger keeps the end of what is logged and shows it if the test fails.
func testLogger(t testing.TB) *slog.Logger {
	var l lateLog
	t.Cleanup(func() {
		if t.Failed() {
			l.mu.Lock()
			defer l.mu.Unlock()
			t.Output().Write(l.b)
		}
	})
	return slog.New(slog.NewTextHandler(&l, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// lateLog keeps the last bytes written to it.
type lateLog struct {
	mu sync.Mutex
	b  []byte
}

func (l *lateLog) Write(b []byte) (int, error) {
	const keep = 128 << 10
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b = append(l.b, b...); len(l.b) > 2*keep {
		l.b = append([]byte(nil), l.b[len(l.b)-keep:]...)
	}
	return len(b), nil
}

// start opens node i.
func (c *testCluster) start(i int) {
	c.t.Helper()
	if err := c.tryStart(i); err != nil {
		c.t.Fatalf("opening node %d: %v", i+1, err)
	}
}

// tryStart opens node i if it can.
func (c *testCluster) tryStart(i int) error {
	t := c.nodes[i]
	t.dead.Store(false)
	n, err := openNode(t.o)
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.node = n
	t.mu.Unlock()
	return nil
}

// crashed fails every step of the store while the node is being killed.
func (n *testNode) crashed(step string) error {
	if n.dead.Load() {
		return errors.New("killed")
	}
	return nil
}

// down takes node i away from its clients and returns it.
func (c *testCluster) down(i int) *node {
	t := c.nodes[i]
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.node
	t.node = nil
	return n
}

// kill stops node i where it stands, without handing anything over.
func (c *testCluster) kill(i int) {
	if n := c.down(i); n != nil {
		c.nodes[i].dead.Store(true)
		n.release()
	}
}

// stop closes node i in order.
func (c *testCluster) stop(i int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	if err := c.down(i).close(ctx); err != nil {
		c.t.Fatalf("closing node %d: %v", i+1, err)
	}
}

// restart kills and starts node i.
func (c *testCluster) restart(i int) {
	c.t.Helper()
	c.kill(i)
	c.start(i)
}

// wipe replaces the disk of node i, which is down, with an empty one.
func (c *testCluster) wipe(i int) { c.nodes[i].o.dataDir = c.t.TempDir() }

// tend opens nodes again that ask for it, as the command serve does; any other
// failure of a node fails the test.
func (c *testCluster) tend() {
	c.t.Helper()
	for i, n := range c.nodes {
		if n.node == nil {
			continue
		}
		select {
		case err := <-n.failed():
			if !errors.Is(err, errRestart) {
				c.t.Fatalf("node %d cannot go on: %v", i+1, err)
			}
			c.restart(i)
		default:
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

// leader waits for a leader that may serve and returns its number. not are
// nodes that do not count, for they do not know yet that another leads.
func (c *testCluster) leader(not ...int) int {
	c.t.Helper()
	found := -1
	eventually(c.t, "no leader", func() bool {
		c.tend()
		for i, n := range c.nodes {
			if n.node != nil && n.raft.Load() != nil && n.isReady() && !slices.Contains(not, i) {
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
	return c.putAs(i, key, value, fmt.Sprintf("put-%d", c.puts.Add(1)))
}

// putAs is put under a given Idempotency-Key.
func (c *testCluster) putAs(i int, key, value, id string) header {
	c.t.Helper()
	var h header
	var err error
	eventually(c.t, fmt.Sprintf("put %q through node %d", key, i+1), func() bool {
		c.tend()
		h, err = c.nodes[i].put(key, value, id)
		if err != nil && !errors.Is(err, errUnknownOutcome) && !errors.Is(err, errNoLeader) {
			c.t.Fatalf("put %q through node %d: %v", key, i+1, err)
		}
		return err == nil
	})
	c.note(h)
	return h
}

// fill writes count values of the given size through node i, all at a time.
func (c *testCluster) fill(i int, prefix string, count, size int) {
	c.t.Helper()
	var wg sync.WaitGroup
	for k := range count {
		key, id := fmt.Sprintf("%s-%d", prefix, k), fmt.Sprintf("put-%d", c.puts.Add(1))
		wg.Go(func() {
			for {
				h, err := c.nodes[i].put(key, strings.Repeat("x", size), id)
				if err == nil {
					c.note(h)
					return
				}
				if !errors.Is(err, errUnknownOutcome) && !errors.Is(err, errNoLeader) {
					c.t.Errorf("put %q through node %d: %v", key, i+1, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// unsettled tells whether who asked asks again: there was no leader, or the
// outcome is unknown.
func unsettled(err error) bool {
	return errors.Is(err, errNoLeader) || errors.Is(err, errUnknownOutcome)
}

// note remembers an acknowledged write for the check.
func (c *testCluster) note(h header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked[h.seq] = ack{string(h.key), h.sum}
}

// put writes one value and returns the entry's header.
func (n *testNode) put(key, value, id string) (header, error) {
	res, err := n.submit(&request{ops: []operation{putOf(key, value)}, idempotencyKey: id})
	if err != nil {
		return header{}, err
	}
	if res.outcome != outcomeApplied {
		return header{}, fmt.Errorf("outcome %d", res.outcome)
	}
	return parseHeader(res.headers[0])
}

// putOf returns an unconditional put.
func putOf(key, value string) operation {
	return operation{kind: opPut, key: []byte(key), value: []byte(value), ifSeq: noSeq}
}

// fate is what a request comes to.
type fate struct {
	result
	err error
}

// submit has one request agreed through the node. A node that is down has no
// leader. Unlike node.submit it may be called while the node is killed.
func (n *testNode) submit(r *request) (result, error) {
	select {
	case a := <-n.send(r):
		return a.result, a.err
	case <-time.After(n.o.writeTimeout + waitLimit):
		return result{}, errors.New("a request was never answered")
	}
}

// send is submit without waiting.
func (n *testNode) send(r *request) <-chan fate {
	ch := make(chan fate, 1)
	n.mu.RLock()
	defer n.mu.RUnlock()
	err := errNoLeader
	if n.node != nil {
		err = n.submitAsync(r, func(r result, err error) {
			ch <- fate{r, err}
			close(ch) // panics if it is called twice
		})
	}
	if err != nil {
		ch <- fate{err: err}
	}
	return ch
}

// read reads key from the node, linearizable. It may be called while the node
// is killed.
func (n *testNode) read(key string) (entry, error) {
	n.mu.RLock()
	up := n.node
	n.mu.RUnlock()
	if up == nil {
		return entry{}, errNoLeader
	}
	if err := up.confirmRead(context.Background()); err != nil {
		return entry{}, err
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.node != up {
		return entry{}, errNoLeader
	}
	return up.store.get([]byte(key), selector{})
}

// get reads the value of key from node i, linearizable.
func (c *testCluster) get(i int, key string) string {
	c.t.Helper()
	var e entry
	eventually(c.t, fmt.Sprintf("get %q from node %d", key, i+1), func() bool {
		c.tend()
		var err error
		e, err = c.nodes[i].read(key)
		if err != nil && !errors.Is(err, errNoLeader) {
			c.t.Fatalf("get %q from node %d: %v", key, i+1, err)
		}
		return err == nil
	})
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

// transfer hands leadership to node i.
func (c *testCluster) transfer(i int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("transfer to node %d", i+1), func() bool {
		c.tend()
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		c.nodes[c.leader()].transfer(ctx, c.nodes[i].o.id)
		return c.leader() == i
	})
}

// comeBack starts node i after a while in which the leader has given up on it,
// for up to ten seconds; a new leader has not.
func (c *testCluster) comeBack(i int) {
	c.t.Helper()
	c.start(i)
	for k := range c.nodes {
		if k != i && k != c.leader(i) {
			c.transfer(k)
			return
		}
	}
}

// rounds is how often a test of random faults repeats them: count times, or so
// many times more as SCRIBE_ROUNDS says.
func rounds(t testing.TB, count int) int {
	t.Helper()
	if s := os.Getenv("SCRIBE_ROUNDS"); s != "" {
		more, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return count * more
	}
	return count
}

// check is the whole truth: with everything sealed, all nodes have the same
// segments, wherever they are, every root derived from their bytes is the one the manifest
// names, the root over all entries is the one the node gives, every key's chain of versions is whole, and every acknowledged write
// is where it was said to be.
func (c *testCluster) check() {
	c.t.Helper()
	c.links.heal()
	for i := range c.nodes {
		if c.nodes[i].node == nil && !c.nodes[i].gone {
			c.start(i)
		}
	}
	size := c.sealAll()
	var first map[string][]byte
	for i, n := range c.nodes {
		if n.gone {
			continue
		}
		eventually(c.t, fmt.Sprintf("node %d has not all of %d entries confirmed", i+1, size), func() bool {
			c.tend()
			shown := n.store.manifest.Load().shown()
			return size == 0 || len(shown) > 0 && shown[len(shown)-1].end() >= size && n.store.durable.Load().at.size >= size
		})
		checkStore(c.t, n.store)
		c.checkAcked(i)
		files := segmentBytesOf(c.t, n.store)
		if first == nil {
			first = files
		}
		for name, b := range files {
			if !bytes.Equal(first[name], b) {
				c.t.Errorf("segment %s differs between node 1 and node %d", name, i+1)
			}
		}
		if len(files) != len(first) {
			c.t.Errorf("node %d has %d segments, node 1 has %d", i+1, len(files), len(first))
		}
	}
}

// sealAll seals what is pending and returns the size of the ledger.
func (c *testCluster) sealAll() (size uint64) {
	c.t.Helper()
	eventually(c.t, "sealing everything", func() bool {
		lead := c.nodes[c.leader()]
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		err := lead.seal(ctx)
		size = lead.store.size()
		return err == nil
	})
	return size
}

// checkAcked looks on node i for every write that was acknowledged.
func (c *testCluster) checkAcked(i int) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for seq, a := range c.acked {
		e, err := c.nodes[i].store.headerAt(seq)
		if err != nil || string(e.key) != a.key || e.sum != a.sum {
			c.t.Errorf("node %d: entry %d is %q (%v), acknowledged was %q", i+1, seq, e.key, err, a.key)
		}
	}
}

// checkStore derives every root of a store from the bytes on its disk.
func checkStore(t testing.TB, s *store) {
	t.Helper()
	newest := make(map[string]header)
	var tree compactTree
	for _, info := range s.durable.Load().segments {
		f, err := s.openAnew(info)
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
			tree.append(leafHash(r.raw))
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
		if root, err := s.root(tree.size); err != nil || root != tree.root() {
			t.Errorf("root of %d entries is %s, the files give %s, error %v", tree.size, root, tree.root(), err)
		}
	}
}

// openAnew opens a segment where its bytes are: its file, unless it is cold.
func (s *store) openAnew(info segmentInfo) (*segmentFile, error) {
	f, err := s.openSegment(info)
	if errors.Is(err, fs.ErrNotExist) {
		return s.openCold(info)
	}
	return f, err
}

// segmentBytesOf reads all segments of a store, by name, wherever they are.
func segmentBytesOf(t testing.TB, s *store) map[string][]byte {
	t.Helper()
	all := make(map[string][]byte)
	for _, info := range s.durable.Load().segments {
		f, err := s.openAnew(info)
		if err != nil {
			t.Fatal(err)
		}
		if all[info.id()], err = io.ReadAll(f.src.section(0, f.size, false)); err != nil {
			t.Fatal(err)
		}
		f.close()
	}
	return all
}

// segmentFiles reads all segment files below dir, by name.
func segmentFiles(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for path, b := range readFiles(t, filepath.Join(dir, segmentDir, "*"+segmentSuffix)) {
		files[filepath.Base(path)] = b
	}
	return files
}

func TestOneNode(t *testing.T) {
	t.Parallel()
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
	c.sealAll()
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
	t.Parallel()
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
	t.Parallel()
	c := newCluster(t, 3)
	lead := c.leader()
	down := (lead + 1) % 3
	c.put(lead, "before", "1")
	c.kill(down)
	for i := range 6 {
		c.fill(lead, fmt.Sprint("key-", i), 50, 1000)
		c.sealAll()
	}
	eventually(t, "the log was not truncated", func() bool {
		first, _ := c.nodes[lead].log.FirstIndex()
		return first > 10
	})
	c.comeBack(down)
	if v := c.get(down, "key-5-49"); len(v) != 1000 {
		t.Errorf("value has %d bytes", len(v))
	}
	first, _ := c.nodes[lead].log.FirstIndex()
	var l raft.Log
	if err := c.nodes[down].log.GetLog(first-1, &l); err != raft.ErrLogNotFound {
		t.Errorf("the follower got a log entry the leader does not have: %v", err)
	}
}
