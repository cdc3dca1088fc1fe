package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// Leadership goes from node to node under writers at all of them, and none of
// them notices: every write is acknowledged.
func TestHandOverUnderWriters(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(10)) // an election of its own fails a write
	c.leader()
	ctx, cancel := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	for i := range c.nodes {
		for w := range 3 {
			writers.Go(func() {
				for k := 0; ctx.Err() == nil; k++ {
					h, err := c.nodes[i].put(fmt.Sprintf("%d/%d", i, w), fmt.Sprint(k), "")
					if err != nil {
						t.Errorf("write %d of writer %d at node %d: %v", k, w, i+1, err)
						return
					}
					c.note(h)
				}
			})
		}
	}
	for range rounds(t, 6) {
		c.transfer((c.leader() + 1) % 3)
	}
	cancel()
	writers.Wait()
	c.check()
}

// A door that is shut lets nobody in and tells when the last one has left.
func TestDoorway(t *testing.T) {
	var d doorway
	for range 2 {
		if !d.enter() {
			t.Fatal("an open door lets nobody in")
		}
	}
	empty := d.close()
	if d.enter() || !d.isShut() {
		t.Error("a door that is shut lets somebody in")
	}
	d.leave()
	select {
	case <-empty:
		t.Error("it is empty with somebody inside")
	default:
	}
	d.leave()
	receive(t, empty, "the last one to leave")
	d.open()
	if !d.enter() {
		t.Error("a door that was opened again lets nobody in")
	}
	d.leave()
	receive(t, d.close(), "an empty room")
}

// A node that stops ends connections with the reply, not under a request.
func TestRetire(t *testing.T) {
	s := newTestServer(t, nil)
	get := "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
	if r := s.raw(get); r.closed {
		t.Error("a connection ends although nobody stops the node")
	}
	busy := s.dial()
	defer busy.Close()
	eventually(t, "the connection is counted", func() bool { return s.o.metrics.http.connections.n.Load() > 0 })
	s.retire()
	if r := s.raw(get); !r.closed || r.status != 200 {
		t.Errorf("a reply of a node that stops: %d, connection closed: %v", r.status, r.closed)
	}
	start := time.Now()
	s.awaitRetired()
	if took := time.Since(start); took < farewell {
		t.Errorf("an open connection was waited for %v, want %v", took, farewell)
	}
	busy.Close()
	eventually(t, "nobody is connected", func() bool { return s.o.metrics.http.connections.n.Load() == 0 })
}

// TestTransferWaitsWithDeadline: behind a hand-over that does not end nobody
// waits longer than it said it would.
func TestTransferWaitsWithDeadline(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, electing(10))
	lead := c.nodes[c.leader()].node
	lead.transfers <- struct{}{}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := lead.transfer(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second hand-over gives %v", err)
	}
	<-lead.transfers
	if err := lead.transfer(t.Context(), 0); err != nil {
		t.Errorf("the next one gives %v", err)
	}
}

// TestTransferTo: leadership that is where it is asked to be stays there, and one that
// cannot be handed over stays with a reason; through any node.
func TestTransferTo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, electing(4))
	servers := serveCluster(t, c)
	lead := c.leader()
	other := (lead + 1) % 3
	for i := range 3 {
		servers[i].check([]apiRow{{method: "POST", target: "/cluster/transfer", body: fmt.Sprintf(`{"to":%d}`, lead+1), status: 200, in: fmt.Sprintf(`{"leader":%d}`, lead+1)}})
	}
	if c.leader() != lead {
		t.Fatalf("node %d leads, it was %d", c.leader()+1, lead+1)
	}
	c.kill(other)
	for i := range 3 {
		if i != other {
			servers[i].check([]apiRow{{method: "POST", target: "/cluster/transfer", body: fmt.Sprintf(`{"to":%d}`, other+1), status: 503, code: "transfer_failed"}})
		}
	}
	c.start(other)
	c.put(lead, "a", "1")
}
