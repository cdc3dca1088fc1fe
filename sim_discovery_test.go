package main

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// simDiscovery is a node's discovery with a network of datagrams in place of
// sockets: they are lost, come twice, late or in another order, are forged, or
// are those of long ago. The node has no seeds: it finds the others by them.
type simDiscovery struct {
	*discovery
	n   *simNode
	rng *rand.Rand
}

const simAnnounce = 2 * time.Second

// newSimDiscovery makes a discovery for one life of the node.
func newSimDiscovery(n *simNode) *simDiscovery {
	rng := rand.New(rand.NewPCG(n.rng.Uint64(), 'u'))
	return &simDiscovery{n: n, rng: rng, discovery: newDiscovery(discoveryOptions{
		name: n.o.clusterName, secret: n.o.secret, node: n.o.id, raft: n.o.raftAddr, http: n.o.httpURL,
		heartbeat: simAnnounce, timeout: 4 * simAnnounce, logger: n.o.logger, metrics: newMetrics(), now: n.o.now,
	})}
}

// announceLoop sends the node's announcements until the node ends.
func (d *simDiscovery) announceLoop(gone <-chan struct{}) {
	for {
		for _, to := range d.n.c.nodes {
			if to != d.n && d.n.c.net.reaches(d.n.i, to.i) {
				d.send(to, d.next())
			}
		}
		select {
		case <-gone:
			return
		case <-time.After(simAnnounce):
		}
	}
}

// send has one datagram arrive at a node, or what the network makes of it.
func (d *simDiscovery) send(to *simNode, b []byte) {
	switch d.rng.IntN(20) {
	case 0, 1: // lost
		return
	case 2: // twice
		d.arrive(to, b)
	case 3: // changed by somebody
		b[d.rng.IntN(len(b))] ^= 1 << d.rng.IntN(8) // it is this datagram's alone
	case 4: // kept, to be sent again
		d.n.c.kept.Store(&b)
	case 5:
		if old := d.n.c.kept.Load(); old != nil {
			d.arrive(to, *old)
		}
	}
	d.arrive(to, b)
}

// arrive delivers a datagram after a while; a later one may come before it.
func (d *simDiscovery) arrive(to *simNode, b []byte) {
	time.AfterFunc(time.Duration(d.rng.Int64N(int64(3*simAnnounce/2))), func() {
		if hears := to.hears.Load(); hears != nil {
			hears.receive(b, netip.AddrPort{})
		}
	})
}

// reaches tells whether a datagram may get from one node to another.
func (s *simNet) reaches(from, to int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.off[from] && !s.off[to] && s.ways[[2]int{from, to}].state == linkOpen
}
