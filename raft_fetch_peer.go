package main

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Which peer is asked for the next piece of a segment: the one that will
// probably send it first, after what it sent so far. Who fails is left alone for
// a while, who is much slower than another is left in the middle of a piece, and
// who may have sent wrong bytes of a segment is asked for it last.
//
// Pieces come compressed only over links so slow that it pays: measured here,
// DEFLATE at its fastest takes a core of the sender for 99 MB/s of text (and
// gives a quarter of it) and one of the receiver for 115 MB/s, so a LAN would
// become slower, and the sender's clients with it. A link whose streams carry
// less than packBelow each is tried both ways, and the faster one is kept.

const (
	packBelow   = 8 << 20         // bytes a second of one stream
	packRetry   = 16              // every so many pieces the other way is tried
	stallAfter  = 5 * time.Second // without a byte
	slowAfter   = 2 * time.Second // of a piece, before its peer may be found too slow
	slowFactor  = 4               // so much faster must another peer be
	peerPause   = fetchPause      // after the first failure; twice as long after each next
	peerPauseTo = 5 * time.Second // at most
	doubtAlone  = 4               // of a peer that alone sent a segment that is wrong
	rateSample  = 256 << 10       // bytes that say something of a peer's speed
)

// fetchPeers is what this node knows of those it fetches from.
type fetchPeers struct {
	mu     sync.Mutex
	known  map[raft.ServerID]*fetchPeer
	doubts map[fetchDoubt]int
}

// fetchDoubt is a peer and a segment of which it may have sent wrong bytes.
type fetchDoubt struct {
	id    string
	first uint64
}

// fetchPeer is one of them; all is guarded by fetchPeers.mu.
type fetchPeer struct {
	streams       int       // pieces it sends now
	plain, packed float64   // bytes a second of one stream, 0 = not known
	pieces        int       // asked of it
	failures      int       // in a row
	until         time.Time // it is not asked before
}

// rate is what one stream of the peer carries.
func (p *fetchPeer) rate() float64 { return max(p.plain, p.packed) }

// choose returns the peer to ask for the next piece, nil if there is none now.
// Its stream counts until release.
func (f *fetchPeers) choose(all []raft.Server, t *fetchTry) (raft.Server, *fetchPeer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fastest := 1.0 // whose speed is not known is taken for as fast as the fastest
	for _, p := range f.known {
		fastest = max(fastest, p.rate())
	}
	var best *fetchPeer
	var server raft.Server
	var bestDoubt int
	var bestCost float64
	for _, s := range all {
		p := f.get(s.ID)
		if t.gone[s.ID] || time.Now().Before(p.until) {
			continue
		}
		rate := p.rate()
		if rate == 0 {
			rate = fastest
		}
		doubt, cost := f.doubts[fetchDoubt{string(s.ID), t.info.first}], float64(p.streams+1)/rate
		if best == nil || doubt < bestDoubt || doubt == bestDoubt && cost < bestCost {
			best, server, bestDoubt, bestCost = p, s, doubt, cost
		}
	}
	if best != nil {
		best.streams++
		best.pieces++
	}
	return server, best
}

// get returns what is known of a server; mu must be held.
func (f *fetchPeers) get(id raft.ServerID) *fetchPeer {
	if f.known == nil {
		f.known = make(map[raft.ServerID]*fetchPeer)
	}
	if f.known[id] == nil {
		f.known[id] = &fetchPeer{}
	}
	return f.known[id]
}

// pack tells whether the next piece of a peer is to come compressed.
func (f *fetchPeers) pack(p *fetchPeer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case p.plain == 0 || p.plain >= packBelow:
		return false
	case p.packed == 0:
		return true
	case p.pieces%packRetry == 0:
		return p.packed <= p.plain
	}
	return p.packed > p.plain
}

// release notes how a piece went.
func (f *fetchPeers) release(p *fetchPeer, got pulled, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.streams--
	if got.bytes >= rateSample || errors.Is(err, errPeerSlow) || errors.Is(err, errPeerStalled) {
		rate := &p.plain
		if got.packed {
			rate = &p.packed
		}
		now := float64(got.bytes+1) / max(got.took, time.Microsecond).Seconds()
		if *rate != 0 {
			now = (*rate + now) / 2
		}
		*rate = now
	}
	switch {
	case err == nil:
		p.failures = 0
	case errors.Is(err, errPeerBusy):
		p.until = time.Now().Add(peerPause)
	case errors.Is(err, errPeerBroken) || errors.Is(err, errPeerStalled) || errors.Is(err, errCorrupt):
		p.until = time.Now().Add(min(peerPause<<min(p.failures, 10), peerPauseTo))
		p.failures++
	}
}

// tooSlow tells whether a peer is to be left in the middle of a piece, because
// another one would send the rest much sooner.
func (f *fetchPeers) tooSlow(p *fetchPeer, so pulled) bool {
	if so.took < slowAfter {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	rate := float64(so.bytes) / so.took.Seconds()
	for _, other := range f.known {
		if other != p && other.failures == 0 && other.streams < fetchStreams && other.rate() > slowFactor*rate {
			return true
		}
	}
	return false
}

// blame notes who may have sent bytes of a segment that turned out to be wrong:
// for certain only who sent all of it.
func (f *fetchPeers) blame(t *fetchTry, m *metrics) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.doubts == nil {
		f.doubts = make(map[fetchDoubt]int)
	}
	weight := 1
	if len(t.givers) == 1 && t.givers[0] != earlier {
		weight = doubtAlone
		m.fetch.refused[refusalOf(errCorrupt)].add(1)
	}
	for _, id := range t.givers {
		f.doubts[fetchDoubt{id, t.info.first}] += weight
	}
}

// forget ends all doubts.
func (f *fetchPeers) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.doubts)
}

// sending returns how many peers send now and how many bytes a second.
func (f *fetchPeers) sending() (peers int, rate float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.known {
		if p.streams > 0 {
			peers++
			rate += float64(p.streams) * p.rate()
		}
	}
	return peers, rate
}

// refusalOf returns the place of a failure among fetchLabels, -1 for none of a peer's.
func refusalOf(err error) int {
	for i, one := range []error{errPeerLacks, errPeerBusy, errPeerStalled, errPeerSlow, errPeerBroken, errCorrupt, errPeerCold} {
		if errors.Is(err, one) {
			return i
		}
	}
	return -1
}
