package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// passTruncation writes and seals until the log of the leader no longer has
// what a node needs that stopped at index, nor the one message to it that it
// still tries to send.
func (c *testCluster) passTruncation(index uint64) {
	c.t.Helper()
	for i := 0; ; i++ {
		lead := c.leader()
		if first, _ := c.nodes[lead].log.FirstIndex(); first > index+1+2*16 {
			return
		}
		c.fill(lead, fmt.Sprint("fill-", index, "-", i), 3, 100)
		c.sealAll()
	}
}

// lastIndex returns the index of the newest entry in the log of node i.
func (c *testCluster) lastIndex(i int) uint64 {
	last, _ := c.nodes[i].log.LastIndex()
	return last
}

// A follower is down while uploads and requests with an Idempotency-Key are
// agreed and the log is shortened. It gets all of it with the segments, and as
// the leader it answers repeats as the first time.
func TestSnapshotHoldsUploadsAndIdempotency(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	lead := c.leader()
	down := (lead + 1) % 3
	c.put(lead, "before", "1")
	index := c.lastIndex(down)
	c.kill(down)
	var first []header
	for i, size := range []int{1, packSize + 1, 1 << 20, 8 << 20} {
		value := strings.Repeat(string(rune('a'+i)), size)
		first = append(first, c.putAs((lead+2*(i%2))%3, fmt.Sprint("key-", i), value, fmt.Sprint("idem-", i)))
	}
	_, err := c.nodes[lead].put("key-0", "again", "refused") // its outcome is remembered, too
	if err != nil {
		t.Fatal(err)
	}
	refused := request{ops: []operation{{kind: opPut, key: []byte("key-0"), ifAbsent: true, ifSeq: noSeq}}, idempotencyKey: "absent"}
	was, err := c.nodes[lead].submit(&refused)
	if err != nil || was.outcome != outcomePrecondition {
		t.Fatalf("%+v, %v", was, err)
	}
	c.passTruncation(index)
	c.comeBack(down)
	c.transfer(down)
	for i, want := range first {
		if got := c.putAs(down, fmt.Sprint("key-", i), "other", fmt.Sprint("idem-", i)); got.seq != want.seq || got.sum != want.sum {
			t.Errorf("repeat %d wrote entry %d, the first time %d", i, got.seq, want.seq)
		}
	}
	if again, err := c.nodes[down].submit(&refused); err != nil || again.outcome != was.outcome || again.current != was.current {
		t.Errorf("a repeat is answered %+v, %v, the first time %+v", again, err, was)
	}
	if v := c.get(down, "key-3"); v != strings.Repeat("d", 8<<20) {
		t.Errorf("the large value has %d other bytes", len(v))
	}
}

// A segment that one peer has in a damaged file is refused and fetched from
// another.
func TestDamagedSegmentIsFetchedElsewhere(t *testing.T) {
	t.Parallel()
	logger, refused := sawLine("fetching a segment", "SHA-256 is")
	c := newNodes(t, 3)
	c.nodes[2].o.logger = logger
	for _, i := range []int{2, 1, 0} {
		c.start(i)
	}
	lead := c.leader()
	if lead == 2 {
		c.transfer(0)
		lead = 0
	}
	c.put(lead, "a", strings.Repeat("x", 1000))
	eventually(t, "node 3 does not follow", func() bool { return c.nodes[2].store.size() == 1 })
	index := c.lastIndex(2)
	c.kill(2)
	c.wipe(2) // so that it needs the first segment
	c.passTruncation(index)

	m := c.nodes[0].store.manifest.Load()
	flip := func(i int) { flipByte(t, c.nodes[i].store.segmentPath(m.segments[0]), 100) }
	flip(0)
	flip(1)
	c.start(2)
	receive(t, refused, "the damaged segment is refused")
	if _, err := os.Stat(c.nodes[2].store.segmentPath(m.segments[0])); err == nil {
		t.Error("the damaged segment has its final name")
	}
	flip(1)
	if v := c.get(2, "a"); len(v) != 1000 {
		t.Errorf("node 3 reads %q", v)
	}
	flip(0)
}

// F4: a leader that was cut off comes back with a long tail of entries that
// nobody else has, of which the snapshot it must install is in the middle. Raft
// would refuse everything after that snapshot; the node opens itself again.
func TestF4DivergedTailBeyondSnapshot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(4))
	old := c.leader()
	c.put(old, "a", "1")
	c.sealAll()
	c.isolate(old, linkLoud)
	var pending []raft.ApplyFuture
	for i := range 300 {
		op := putOf(fmt.Sprint("lost-", i), "x")
		pack := appendRequest(appendPackHeader(nil, 0), &request{ops: []operation{op}})
		pending = append(pending, c.nodes[old].raft.Load().Apply(pack, 0))
	}
	for _, f := range pending {
		if f.Error() == nil {
			t.Error("a leader without followers has committed an entry")
		}
	}
	tail := c.lastIndex(old)
	c.leader(old)
	index := c.nodes[old].store.durable.Load().at.index
	for first := uint64(0); first <= index+5; {
		lead := c.leader(old)
		c.put(lead, "b", "2")
		if err := c.nodes[lead].seal(t.Context()); err != nil && !unsettled(err) {
			t.Fatal(err)
		}
		first, _ = c.nodes[lead].log.FirstIndex()
	}
	at := c.nodes[c.leader(old)].store.durable.Load().at.index
	if at >= tail {
		t.Fatalf("the snapshot at %d is not within the diverged tail, which ends at %d", at, tail)
	}
	c.links.heal()
	reopen := false // not if a message from before the snapshot comes first, and ends the tail
	eventually(t, "the node with the diverged tail neither follows nor asks to be opened again", func() bool {
		select {
		case err := <-c.nodes[old].failed():
			if !errors.Is(err, errRestart) {
				t.Errorf("the node with the diverged tail ends with %v", err)
			}
			reopen = true
		default:
		}
		return reopen || c.nodes[old].store.size() == c.nodes[c.leader(old)].store.size()
	})
	if reopen {
		c.restart(old)
	}
	c.transfer(old)
	if v := c.get(old, "b"); v != "2" {
		t.Errorf("the node reads %q", v)
	}
}

// F7: while segments cannot be fetched, Restore says so at once, again and
// again, and the node votes.
func TestF7NodeVotesWhileItFetches(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	lead := c.leader()
	down, third := (lead+1)%3, (lead+2)%3
	c.put(lead, "a", "1")
	index := c.lastIndex(down)
	c.kill(down)
	c.wipeSegments(down)
	c.passTruncation(index)
	for i := range c.nodes {
		c.links.refuse(down, i, true)
	}
	c.start(down)
	n := c.nodes[down]
	eventually(t, "no segment is wanted", func() bool {
		n.fetches.mu.Lock()
		defer n.fetches.mu.Unlock()
		return n.fetches.workers > 0
	})
	term := n.raft.Load().CurrentTerm()
	c.kill(lead)
	eventually(t, "the third node is not elected", func() bool {
		r := c.nodes[third].raft.Load()
		return r.State() == raft.Leader && r.CurrentTerm() > term
	})

	// Offered again, the snapshot is turned down at once.
	state, err := c.nodes[third].store.checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	snap := snapshot{n.self.Load().cluster, state.at, state.segments, state.window}
	for range 3 {
		if _, err := n.fetches.fetch(&snap); !errors.Is(err, errFetching) {
			t.Errorf("fetching: %v", err)
		}
	}
	c.links.heal()
	c.start(lead)
	if v := c.get(down, "a"); v != "1" {
		t.Errorf("the node reads %q", v)
	}
}

// wipeSegments gives node i, which is down, its disk as it was before its first seal.
func (c *testCluster) wipeSegments(i int) {
	c.t.Helper()
	if files := segmentFiles(c.t, c.nodes[i].o.dataDir); len(files) > 0 {
		c.t.Fatalf("node %d has %d segments", i+1, len(files))
	}
}

// A snapshot that is not for this node is refused, one that it has already
// changes nothing.
func TestRestoreRefusals(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.put(0, "a", "1")
	c.sealAll()
	n := c.nodes[0]
	state, err := n.store.checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	good := snapshot{n.self.Load().cluster, state.at, state.segments, state.window}
	f, err := newFSM(n.store, 1<<20, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	restore := func(s snapshot) error { return f.Restore(io.NopCloser(bytes.NewReader(s.append(nil)))) }
	if err := restore(good); err != nil {
		t.Errorf("the node's own checkpoint: %v", err)
	}
	other := good
	other.cluster = newClusterID()
	if err := restore(other); err == nil || !strings.Contains(err.Error(), "snapshot is of cluster") {
		t.Errorf("a snapshot of another cluster: %v", err)
	}
	if err := f.Restore(io.NopCloser(strings.NewReader("no snapshot"))); !errors.Is(err, errCorrupt) {
		t.Errorf("a snapshot that is none: %v", err)
	}
	if v := c.get(0, "a"); v != "1" {
		t.Errorf("a is %q", v)
	}
}

// What a leader sends is not listed before it is installed: D is the only
// snapshot Raft may start from.
func TestReceivedSnapshotIsNotListed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	s := &snapshotStore{n: c.nodes[0].node}
	list := func() int {
		l, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	if got := list(); got != 0 {
		t.Errorf("%d snapshots before the first seal", got)
	}
	c.put(0, "a", "1")
	c.sealAll()
	sink, err := s.Create(raft.SnapshotVersionMax, 1000, 7, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(sink, "bytes"); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := s.List()
	at := c.nodes[0].store.durable.Load().at
	if err != nil || len(l) != 1 || l[0].Index != at.index || l[0].Term != at.term || len(l[0].Configuration.Servers) != 1 {
		t.Errorf("listed are %+v, %v", l, err)
	}
	meta, r, err := s.Open(sink.ID())
	if err != nil || meta.Index != 1000 || meta.Term != 7 || meta.Size != 5 {
		t.Fatalf("the received snapshot is %+v, %v", meta, err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "bytes" {
		t.Errorf("its bytes are %q, %v", b, err)
	}
	meta, r, err = s.Open(snapshotID)
	if err != nil || meta.Index != at.index {
		t.Fatalf("the node's own snapshot is %+v, %v", meta, err)
	}
	if b, err := io.ReadAll(r); err != nil || int64(len(b)) != meta.Size {
		t.Errorf("it has %d bytes, says %d: %v", len(b), meta.Size, err)
	}
	if m, err := filepath.Glob(filepath.Join(c.nodes[0].o.dataDir, segmentDir, "*")); err != nil || len(m) != 1 {
		t.Errorf("files are %v, %v", m, err)
	}
}
