package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// gateDisk is the real disk, on which syncs of the Raft log can be made to hang
// or take their time, and new files to find no space.
type gateDisk struct {
	osDisk
	mu      sync.Mutex
	gate    chan struct{} // syncs wait until it is closed; nil = they do not
	waiting atomic.Int32
	largest atomic.Int64 // bytes of the largest write since it was last reset
	full    atomic.Bool  // there is no space for another file
	delay   atomic.Int64 // of each sync, in ns
}

// close makes syncs hang until open is called.
func (d *gateDisk) close() (open func()) {
	gate := make(chan struct{})
	d.mu.Lock()
	d.gate = gate
	d.mu.Unlock()
	return sync.OnceFunc(func() {
		d.mu.Lock()
		d.gate = nil
		d.mu.Unlock()
		close(gate)
	})
}

func (d *gateDisk) create(path string) (logHandle, error) {
	if d.full.Load() {
		return nil, syscall.ENOSPC
	}
	h, err := d.osDisk.create(path)
	return &gateHandle{h, d}, err
}

func (d *gateDisk) open(path string) (logHandle, error) {
	h, err := d.osDisk.open(path)
	return &gateHandle{h, d}, err
}

// gateHandle is a file of a gateDisk.
type gateHandle struct {
	logHandle
	d *gateDisk
}

func (h *gateHandle) WriteAt(b []byte, off int64) (int, error) {
	for size := int64(len(b)); ; {
		largest := h.d.largest.Load()
		if size <= largest || h.d.largest.CompareAndSwap(largest, size) {
			return h.logHandle.WriteAt(b, off)
		}
	}
}

func (h *gateHandle) sync() error {
	h.d.mu.Lock()
	gate := h.d.gate
	h.d.mu.Unlock()
	if gate != nil {
		h.d.waiting.Add(1)
		<-gate
		h.d.waiting.Add(-1)
	}
	time.Sleep(time.Duration(h.d.delay.Load()))
	return h.logHandle.sync()
}

// gates gives every node a gateDisk.
func gates() (disks map[uint64]*gateDisk, change func(*nodeOptions)) {
	disks = make(map[uint64]*gateDisk)
	return disks, func(o *nodeOptions) {
		disks[o.id] = new(gateDisk)
		o.logDisk = disks[o.id]
	}
}

// What was asked of a leader that hangs, with its connections open, holds up
// nothing once another one leads.
func TestLeaderThatHangs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	old := c.leader()
	follower := (old + 1) % 3
	c.put(follower, "a", "1")
	c.isolate(old, linkSilent)
	hung := c.nodes[follower].send(&request{ops: []operation{putOf("hung", "x")}})
	c.leader(old)
	start := time.Now()
	c.put(follower, "a", "2")
	if v := c.get(follower, "a"); v != "2" {
		t.Errorf("the follower reads %q", v)
	}
	if f := receive(t, hung, "the hung write is answered"); f.err != nil && !errors.Is(f.err, errUnknownOutcome) {
		t.Errorf("the hung write: %v", f.err)
	}
	if took, limit := time.Since(start), c.nodes[follower].o.readTimeout; took > limit {
		t.Errorf("that took %v, want less than any time-out, %v", took, limit)
	}
	c.links.heal()
}

// F6: a leader whose log disk hangs loses its office, and the others go on.
func TestF6HungDisk(t *testing.T) {
	t.Parallel()
	disks, change := gates()
	c := newCluster(t, 3, change, func(o *nodeOptions) { o.writeTimeout = time.Second })
	old := c.leader()
	c.put(old, "a", "1")
	open := disks[c.nodes[old].o.id].close()
	defer open()
	hung := c.nodes[old].send(&request{ops: []operation{putOf("hung", "x")}})
	next := c.leader(old)
	c.put(next, "a", "2")
	if v := c.get(3-old-next, "a"); v != "2" {
		t.Errorf("a follower reads %q", v)
	}
	if f := receive(t, hung, "the hung write is answered"); !errors.Is(f.err, errUnknownOutcome) {
		t.Errorf("the hung write: %v", f.err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := c.nodes[old].confirmTerm(ctx); err == nil {
		t.Error("the leader with the hung disk confirmed a read")
	}
	open()
	if v := c.get(old, "a"); v != "2" {
		t.Errorf("the old leader reads %q when its disk works again", v)
	}
}

// A node whose write of the Raft log does not come back is not ready, whatever
// Raft, which waits with it, takes it for.
func TestHangingDiskIsNotReady(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	n := c.nodes[c.leader()]
	c.key(0) // its entry is the last that a leader writes by itself
	eventually(t, "the node is ready", func() bool { return n.status().ready })
	n.log.busy.Store(-int64(2 * hangsAfter)) // since before it was opened
	if st := n.status(); st.ready || !st.diskHangs {
		t.Errorf("with a write that hangs: %+v", st)
	}
	n.log.busy.Store(0)
	if st := n.status(); !st.ready || st.diskHangs {
		t.Errorf("after it: %+v", st)
	}
}

// F5: a transfer that never ends makes Raft refuse every entry; the node asks
// to be opened again, but not while a transfer takes its time.
func TestF5TransferStuck(t *testing.T) {
	t.Parallel()
	n := &node{failures: make(chan error, 1), o: testOptions(t, 1)}
	n.o.electionMin, n.o.electionMax = 20*time.Second, 60*time.Second
	after := func(stuck time.Duration, want bool) {
		t.Helper()
		n.transferStuck.Store(nil)
		if stuck > 0 {
			n.transferStuck.Store(new(time.Now().Add(-stuck)))
		}
		if err := n.fate(raft.ErrLeadershipTransferInProgress); !errors.Is(err, errNotApplied) {
			t.Errorf("after %v: the entry's fate is %v", stuck, err)
		}
		select {
		case err := <-n.failed():
			if !want || !errors.Is(err, errRestart) {
				t.Errorf("after %v: the node ends with %v", stuck, err)
			}
		default:
			if want {
				t.Errorf("after %v: the node goes on", stuck)
			}
		}
	}
	after(0, false)
	if n.transferStuck.Load() == nil {
		t.Error("the first refusal is not noted")
	}
	after(100*time.Second, false)
	after(121*time.Second, true)
}

// A transfer long ago says nothing about the next: what is left of it goes when
// the node leads anew.
func TestTransfersFarApart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	lead := c.leader()
	c.nodes[lead].transferStuck.Store(new(time.Now().Add(-time.Hour))) // an entry was refused during a transfer then
	c.transfer(1 - lead)
	c.transfer(lead)
	if since := c.nodes[lead].transferStuck.Load(); since != nil {
		t.Errorf("a transfer is under way since %v", since)
	}
}

// Fates of entries: what was certainly not accepted may be tried again.
func TestFate(t *testing.T) {
	n := &node{failures: make(chan error, 1), o: testOptions(t, 1)}
	for _, err := range []error{raft.ErrNotLeader, raft.ErrEnqueueTimeout, raft.ErrLeadershipTransferInProgress} {
		if got := n.fate(err); !errors.Is(got, errNotApplied) || errors.Is(got, errUnknownOutcome) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
	for _, err := range []error{raft.ErrLeadershipLost, raft.ErrRaftShutdown, raft.ErrAbortedByRestore, errors.New("disk")} {
		if got := n.fate(err); errors.Is(got, errNotApplied) || !errors.Is(got, errUnknownOutcome) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// A follower whose memory holds something else than was agreed finds out when
// the segment is sealed, and stops; the others go on. It comes back with a new disk.
func TestDivergenceStopsNode(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		change func(p *pendingSegment)
		want   string
	}{
		"leaf":  {func(p *pendingSegment) { p.tree = compactTree{}; p.tree.append(hash{1}); p.tree.append(hash{2}) }, "entries 0 to 2"},
		"value": {func(p *pendingSegment) { p.entries[0].value = []byte("y") }, "segment 00000000000000000000-"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3, electing(4))
			lead := c.leader()
			bad := (lead + 1) % 3
			c.put(lead, "a", "1")
			c.put(lead, "a", "2")
			n := c.nodes[bad]
			eventually(t, "the follower lags", func() bool { return n.store.size() == 2 })
			n.store.mu.Lock()
			row.change(n.store.pending)
			n.store.mu.Unlock()
			c.put(lead, "b", "3")
			eventually(t, "the follower lags", func() bool { return n.store.size() == 3 })
			eventually(t, "it is not sealed", func() bool {
				err := c.nodes[lead].seal(t.Context())
				if err != nil && !unsettled(err) {
					t.Fatal(err)
				}
				return err == nil
			})
			err := receive(t, n.failed(), "the diverged follower stops")
			if !errors.Is(err, errDiverged) || errors.Is(err, errRestart) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("the node ends with %v, want errDiverged with %q", err, row.want)
			}
			c.kill(bad)
			c.put(lead, "c", "4")
			if c.tryStart(bad) == nil { // it has the bad segment on its disk
				if err := receive(t, n.failed(), "the diverged follower stops again"); !errors.Is(err, errDiverged) {
					t.Errorf("opened again, the node ends with %v", err)
				}
				c.kill(bad)
			}
			c.wipe(bad)
			c.start(bad)
			c.wantVoters(3)
			if v := c.get(bad, "c"); v != "4" {
				t.Errorf("the node reads %q", v)
			}
		})
	}
}

// load writes through random nodes until stop; what is acknowledged is noted.
func (c *testCluster) load(clients int) (acked *atomic.Int64, stop func()) {
	all := make([]int, len(c.nodes))
	for i := range all {
		all[i] = i
	}
	return c.loadOn(clients, all...)
}

// loadOn is load through some of the nodes only.
func (c *testCluster) loadOn(clients int, nodes ...int) (acked *atomic.Int64, stop func()) {
	acked = new(atomic.Int64)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for id := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(id), 2))
			for k := 0; ; k++ {
				select {
				case <-done:
					return
				default:
				}
				key := fmt.Sprintf("load-%d-%d", id, k%50)
				h, err := c.nodes[nodes[rng.IntN(len(nodes))]].put(key, strings.Repeat("v", rng.IntN(3000)), fmt.Sprintf("load-%d-%d", id, k))
				switch {
				case err == nil:
					c.note(h)
					acked.Add(1)
				case !errors.Is(err, errNoLeader) && !errors.Is(err, errUnknownOutcome):
					c.t.Error(err)
					return
				}
			}
		})
	}
	return acked, sync.OnceFunc(func() {
		close(done)
		wg.Wait()
	})
}

// goOn waits until count more writes were acknowledged.
func (c *testCluster) goOn(acked *atomic.Int64, count int64) {
	c.t.Helper()
	want := acked.Load() + count
	eventually(c.t, "no write is acknowledged", func() bool {
		c.tend()
		return acked.Load() >= want
	})
}

// Each node in turn is closed in order and opened again while clients write.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprint(size, " nodes"), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, size, func(o *nodeOptions) { o.writeTimeout, o.segmentSize = 2*time.Second, 100<<10 })
			acked, stop := c.load(4)
			defer stop()
			for i := range size {
				c.goOn(acked, 200)
				c.stop(i)
				if size > 1 {
					c.goOn(acked, 50)
				}
				c.start(i)
			}
			c.goOn(acked, 200)
			stop()
		})
	}
}

// Nodes are killed at random moments under load, and sometimes all of them:
// no acknowledged write is lost and sequence numbers have no gap.
func TestRandomKills(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	c := newCluster(t, 3, func(o *nodeOptions) { o.writeTimeout, o.segmentSize = 2*time.Second, 50<<10 })
	acked, stop := c.load(4)
	defer stop()
	for range rounds(t, 4) {
		c.goOn(acked, rng.Int64N(150))
		first, all := rng.IntN(3), rng.IntN(3) == 0
		for i := range c.nodes {
			if i == first || all {
				c.kill(i)
			}
		}
		if !all && rng.IntN(2) == 0 {
			c.goOn(acked, rng.Int64N(100))
		}
		for i := range c.nodes {
			if c.nodes[i].node == nil {
				c.start(i)
			}
		}
	}
	c.goOn(acked, 100)
	stop()
}

// A node whose disk is full cannot seal. It can still be closed.
func TestCloseWithFullDisk(t *testing.T) {
	t.Parallel()
	var full atomic.Bool
	c := newNodes(t, 2, electing(4))
	c.nodes[1].o.storeFault = func(step string) error {
		if full.Load() && step == "before write segment" {
			return syscall.ENOSPC
		}
		return nil
	}
	c.nodes[0].o.expect, c.nodes[0].o.bootstrap = 1, true
	c.start(0)
	c.leader()
	c.start(1)
	c.wantVoters(2)
	full.Store(true)
	c.transfer(0)
	for i := range 2 * maxSealing { // the leader's disk works, so it goes on sealing
		r := c.nodes[0].raft.Load()
		op := request{ops: []operation{putOf("a", fmt.Sprint(i))}}
		first := c.nodes[0].store.size()
		if err := r.Apply(appendRequest(appendPackHeader(nil, 0), &op), 0).Error(); err != nil {
			t.Fatal(err)
		}
		if err := r.Apply(appendSeal(nil, 0, first), 0).Error(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the follower does not wait for its disk", func() bool { return c.nodes[1].store.backlog() == maxSealing })
	n := c.down(1)
	closed := make(chan error)
	go func() { closed <- n.release() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(waitLimit):
		t.Fatal("the node with the full disk does not close")
	}
	full.Store(false)
	c.start(1)
}

// What handlers of requests start while a node closes is waited for, or does not
// start: the store and the log are closed then.
func TestNothingStartsAfterClose(t *testing.T) {
	t.Parallel()
	var g goroutines
	var started, ran atomic.Int64
	var handlers sync.WaitGroup
	for range 4 {
		handlers.Go(func() {
			for g.Go(func() { ran.Add(1) }) {
				started.Add(1)
			}
		})
	}
	eventually(t, "some have started", func() bool { return started.Load() > 100 })
	g.Wait()
	atWait := ran.Load()
	handlers.Wait()
	if ran.Load() != atWait || started.Load() != atWait {
		t.Errorf("%d ran, %d of them before the end of Wait, and %d started", ran.Load(), atWait, started.Load())
	}
	g.Wait() // again

	c := newCluster(t, 1)
	c.put(0, "a", "1")
	n := c.nodes[0].node
	c.stop(0)
	defer c.start(0)
	var rounds sharedRounds[int]
	_, err := rounds.join(t.Context(), n, func() (int, error) { return 0, errors.New("a round after the node closed") })
	if !errors.Is(err, errClosed) {
		t.Errorf("a round ends with %v, want errClosed", err)
	}
	large := &request{ops: []operation{{kind: opPut, key: []byte("a"), value: make([]byte, packSize)}}}
	if err := n.submitAsync(large, nil); !errors.Is(err, errNotApplied) {
		t.Errorf("a large write ends with %v, want errNotApplied", err)
	}
}
