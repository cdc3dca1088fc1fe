package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// partsOf cuts a pack with one put into commands as applyInParts does.
func partsOf(id uint64, size int, op operation) (parts [][]byte) {
	body := appendRequest(appendPackHeader(nil, 0), &request{ops: []operation{op}})
	for at := 0; at < len(body); at += size {
		end := min(at+size, len(body))
		parts = append(parts, append(appendPartHeader(nil, id, uint32(at), uint32(len(body))), body[at:end]...))
	}
	return parts
}

// An upload is whole or absent, whatever comes between its parts.
func TestUploadInterrupted(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		event func(c *testCluster)
		lost  bool
	}{
		"nothing": {func(c *testCluster) {}, false},
		"a write": {func(c *testCluster) { c.put(c.leader(), "other", "x") }, false},
		"a seal":  {func(c *testCluster) { c.sealAll() }, true},
		"another": {func(c *testCluster) { c.put(c.leader(), "other", strings.Repeat("y", 3*packSize)) }, true},
		"a new leader": {func(c *testCluster) {
			c.transfer((c.leader() + 1) % 3)
		}, true},
		"a new term of the same leader": {func(c *testCluster) {
			lead := c.leader()
			c.transfer((lead + 1) % 3)
			c.transfer(lead)
		}, true},
		"a restart of a follower": {func(c *testCluster) { c.restart((c.leader() + 1) % 3) }, false},
		"a follower that was down": {func(c *testCluster) {
			down := (c.leader() + 1) % 3
			index := c.lastIndex(down)
			c.kill(down)
			c.passTruncation(index)
			c.comeBack(down)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3, electing(4))
			value := strings.Repeat("v", 2000)
			c.put(0, "before", "x")
			parts := partsOf(7, 500, putOf("large", value))
			apply := func(part []byte) any {
				t.Helper()
				var response any
				eventually(t, "a part is not agreed", func() bool {
					var err error
					response, err = c.nodes[c.leader()].apply(part)
					if err != nil && !errors.Is(err, errNotApplied) {
						t.Fatal(err)
					}
					return err == nil
				})
				return response
			}
			for _, p := range parts[:2] {
				if r := apply(p); r != nil {
					t.Fatalf("a part is answered %v", r)
				}
			}
			row.event(c)
			var last any
			for _, p := range parts[2:] {
				last = apply(p)
			}
			if row.lost {
				if err, ok := last.(error); !ok || !errors.Is(err, errUploadLost) {
					t.Errorf("the last part is answered %v, want errUploadLost", last)
				}
			} else if res, ok := last.([]result); !ok || len(res) != 1 || res[0].outcome != outcomeApplied {
				t.Errorf("the last part is answered %v", last)
			}
			for i := range c.nodes {
				var e entry
				var err error
				eventually(t, "no leader to read from", func() bool {
					e, err = c.nodes[i].read("large")
					return !errors.Is(err, errNoLeader)
				})
				if row.lost != errors.Is(err, errNotFound) || err == nil && valueOf(t, &e) != value {
					t.Errorf("node %d has a value of %d bytes, %v", i+1, e.size, err)
				}
			}
		})
	}
}

// Large values are written through all nodes while the leader is killed, hands
// over or a follower restarts: each is whole or absent, as its answer said.
func TestUploadsUnderFaults(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(o *nodeOptions) { o.writeTimeout = 3 * time.Second })
	const rounds, uploads, size = 4, 3, 1 << 20
	faults := []func(){
		func() { c.restart(c.leader()) },
		func() { c.transfer((c.leader() + 1) % 3) },
		func() { c.restart((c.leader() + 1) % 3) },
		func() { c.sealAll() },
	}
	fates := make(map[string]error)
	var mu sync.Mutex
	for round := range rounds {
		lead := c.leader()
		index := c.lastIndex(lead)
		var wg sync.WaitGroup
		var answered atomic.Int64
		for u := range uploads {
			key := fmt.Sprintf("large-%d-%d", round, u)
			wg.Go(func() {
				h, err := c.nodes[u].put(key, key+strings.Repeat("x", size), "")
				if err == nil {
					c.note(h)
				}
				mu.Lock()
				fates[key] = err
				mu.Unlock()
				answered.Add(1)
			})
		}
		parts := 1 + rand.Uint64N(size/packSize)
		eventually(t, "no upload is under way", func() bool { return c.lastIndex(lead) >= index+parts || answered.Load() == uploads })
		faults[round]()
		wg.Wait()
	}
	for key, fate := range fates {
		var e entry
		var err error
		eventually(t, key+" is neither there nor absent", func() bool {
			e, err = c.nodes[c.leader()].read(key)
			return err == nil || errors.Is(err, errNotFound)
		})
		there := err == nil
		switch {
		case there && valueOf(t, &e) != key+strings.Repeat("x", size):
			t.Errorf("%s has %d bytes and is not what was written", key, e.size)
		case fate == nil && !there:
			t.Errorf("%s was acknowledged: %v", key, err)
		case errors.Is(fate, errNoLeader) && there:
			t.Errorf("%s was certainly not applied, but is there", key)
		case fate != nil && !errors.Is(fate, errNoLeader) && !errors.Is(fate, errUnknownOutcome):
			t.Errorf("%s: %v", key, fate)
		}
	}
}

// Uploads through all nodes and seals by all nodes at the same time: a seal
// waits for an upload, no upload is lost.
func TestUploadsAndSeals(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(10), func(o *nodeOptions) { o.writeTimeout = waitLimit })
	ctx, cancel := context.WithTimeout(t.Context(), 2*waitLimit)
	defer cancel()
	var uploads, seals sync.WaitGroup
	done := make(chan struct{})
	for i, n := range c.nodes {
		seals.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if err := n.seal(ctx); err != nil {
						t.Errorf("sealing through node %d: %v", i+1, err)
						return
					}
				}
			}
		})
		uploads.Go(func() {
			for k := range 3 {
				h, err := n.put(fmt.Sprintf("large-%d-%d", i, k), strings.Repeat(fmt.Sprint(i), 700<<10), "")
				if err != nil {
					t.Errorf("an upload through node %d: %v", i+1, err)
					continue
				}
				c.note(h)
			}
		})
	}
	uploads.Wait()
	close(done)
	seals.Wait()
	for i := range c.nodes {
		if v := c.get(i, "large-1-2"); v != strings.Repeat("1", 700<<10) {
			t.Errorf("node %d reads %d bytes", i+1, len(v))
		}
	}
}

// A segment is sealed when it is large or old enough, without anybody asking.
func TestSealBySizeAndAge(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*nodeOptions){
		"size": func(o *nodeOptions) { o.segmentSize = 1000 },
		"age":  func(o *nodeOptions) { o.sealAfter = 10 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2, change)
			c.put(0, "a", strings.Repeat("x", 1000))
			for i, n := range c.nodes {
				eventually(t, fmt.Sprintf("node %d shows no segment", i+1), func() bool { return n.store.manifest.Load().confirmed == 1 })
			}
		})
	}
}

// Segments that are sealed while others are still written to disk are all
// confirmed in the end.
func TestSealWhileWriting(t *testing.T) {
	t.Parallel()
	c := newNodes(t, 1)
	gate := make(chan struct{})
	c.nodes[0].o.storeFault = func(step string) error {
		if step == "before write segment" {
			<-gate
		}
		return nil
	}
	c.start(0)
	n := c.nodes[c.leader()]
	for i := range maxSealing + 1 {
		pack := appendRequest(appendPackHeader(nil, 0), &request{ops: []operation{putOf("a", fmt.Sprint(i))}})
		put, seal := n.raft.Load().Apply(pack, 0), n.raft.Load().Apply(appendSeal(nil, 0, uint64(i)), 0)
		if i == maxSealing {
			break // this seal waits for the disk
		}
		if err := errors.Join(put.Error(), seal.Error()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the disk is not behind", func() bool { return n.store.backlog() == maxSealing && n.store.size() == maxSealing+1 })
	close(gate)
	c.put(0, "a", "last")
	c.sealAll()
	if m := n.store.currentManifest(); m.confirmed < maxSealing+1 {
		t.Errorf("%d segments are confirmed", m.confirmed)
	}
}

// seal says when it cannot, and has nothing to do when there is nothing.
func TestSealAnswers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	lead := c.leader()
	for _, n := range c.nodes {
		if err := n.seal(t.Context()); err != nil {
			t.Errorf("sealing nothing: %v", err)
		}
	}
	c.put(lead, "a", "1")
	for _, n := range c.nodes {
		if err := n.seal(t.Context()); err != nil {
			t.Errorf("sealing: %v", err)
		}
		if m := n.store.currentManifest(); len(m.segments) != 1 || m.confirmed != 1 || m.end() != 1 {
			t.Errorf("after that the manifest is %+v", m)
		}
	}
	if err := c.nodes[1-lead].transfer(t.Context(), 9); err == nil || !strings.Contains(err.Error(), "no node has id 9") {
		t.Errorf("a transfer to nobody: %v", err)
	}
	c.kill(1 - lead)
	if err := c.nodes[lead].seal(t.Context()); !errors.Is(err, errNoLeader) && !errors.Is(err, errUnknownOutcome) {
		t.Errorf("sealing without a quorum: %v", err)
	}
}

// After a seal every node shows the segments, whichever was asked.
func TestSealIsSeenEverywhere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(10)) // for so long a seal waits for the others
	for i := range 12 {
		c.put(i%3, fmt.Sprint("key-", i), "v")
		if err := c.nodes[i%3].seal(t.Context()); err != nil {
			t.Fatal(err)
		}
		for k, n := range c.nodes {
			if got := n.store.currentManifest().confirmedEnd(); got <= uint64(i) {
				t.Errorf("seal %d through node %d: node %d shows %d entries", i, i%3+1, k+1, got)
			}
		}
	}
}

// A follower whose leader dies while it asks for a seal goes on with the next one.
func TestSealWhileTheLeaderDies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(4))
	lead := c.leader()
	n := c.nodes[(lead+1)%3]
	c.put(lead, "a", "1")
	c.kill(lead)
	if err := n.requestSeal(t.Context(), 1); !errors.Is(err, errNoLeader) {
		t.Errorf("asking a dead leader: %v, want errNoLeader", err)
	}
	if err := n.seal(t.Context()); err != nil {
		t.Errorf("sealing with the next leader: %v", err)
	}
}
