package main

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestF9PipelineStopsForEver: Raft takes no more answers from a pipeline once
// its follower refuses an entry, but may be sending at that moment. In the plain
// library the sender then waits for ever, and with it the replication to that
// follower and Raft's own end; with the transport it does not.
func TestF9PipelineStopsForEver(t *testing.T) {
	a := newRaftTransport(openPort(t, nodeA, portOptions{}), transportOptions{logger: portLog(t)})
	b := newRaftTransport(openPort(t, nodeB, portOptions{}), transportOptions{logger: portLog(t)})
	defer a.Close()
	defer b.Close()
	id, addr, head := serverID(nodeB), b.LocalAddr(), headerOf(nodeA, a)
	go func() {
		for {
			select {
			case rpc := <-b.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{}, nil) // refuses
			case <-b.done:
				return
			}
		}
	}()
	// send sends ten messages, whose answers nobody takes, and is closed when all are sent.
	send := func(p raft.AppendPipeline) <-chan struct{} {
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for range 10 {
				if _, err := p.AppendEntries(&raft.AppendEntriesRequest{RPCHeader: head}, new(raft.AppendEntriesResponse)); err != nil {
					return // closed below
				}
			}
		}()
		return sent
	}
	needDefect(t, "F9", func(t *testing.T) bool {
		p, err := a.NetworkTransport.AppendEntriesPipeline(id, target(id, addr))
		if err != nil {
			t.Fatal(err)
		}
		sent := send(p)
		defer func() { <-sent }()
		defer p.Close()
		select {
		case <-sent:
			return false
		case <-time.After(200 * time.Millisecond):
			return true
		}
	})
	p, err := a.AppendEntriesPipeline(id, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	receive(t, send(p), "all messages are sent")
	for range 10 {
		receive(t, p.Consumer(), "an answer")
	}
}
