package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// discovery finds the other nodes of a cluster: each node announces itself by
// UDP, to everybody on its network and to the endpoints it was told, and
// remembers whom it has heard. It only suggests addresses and says who was heard
// of late; whom to believe and who is a member is decided elsewhere, over
// connections that prove both sides. What an announcement looks like is in
// discovery_packet.go, how nodes on one host share a port in discovery_port_*.go.
type discovery struct {
	// immutable after start
	o      discoveryOptions
	own    func() (incarnation uint64, cluster [16]byte)
	conn   *net.UDPConn // hears
	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup

	endpoints atomic.Pointer[[]netip.AddrPort] // o.endpoints as they were last looked up
	soon      chan struct{}                    // announce without waiting for the next heartbeat

	// only the goroutine that announces
	sender   *net.UDPConn // nil: to be opened
	sequence uint64
	failing  string // the last error of sending, "" = none

	mu      sync.Mutex
	started time.Time
	peers   map[announcer]heardPeer
	told    [len(dropLabels)]bool // causes that were logged
}

// discoveryOptions is what discovery needs to know.
type discoveryOptions struct {
	name   string // of the cluster
	secret string
	node   uint64
	raft   string // host:port of the internal port, as others reach it
	http   string // URL of the client port, as others reach it

	host      string     // announcements leave from here if it is an address of this machine
	port      uint16     // UDP
	broadcast netip.Addr // IPv4
	endpoints []string   // hosts that get announcements of their own

	heartbeat time.Duration // between two announcements
	timeout   time.Duration // silence after which a peer is dead

	logger  *slog.Logger
	metrics *metrics
	now     func() time.Time
}

// announcer is one life of a node's disk.
type announcer struct{ node, incarnation uint64 }

// heardPeer is the newest announcement of a node.
type heardPeer struct {
	announcement
	heard time.Time
}

// dropCause says why an announcement was dropped; it indexes dropLabels.
type dropCause int

const (
	dropMalformed dropCause = iota // not an announcement
	dropVersion                    // of another version
	dropForeign                    // of a cluster of another name or id
	dropForged                     // of this name, but not made with this secret
	dropStale                      // its time is too far from this node's
	dropReplayed                   // its sequence is not above the last one: repeated or late
	dropCrowded                    // of one node more than are remembered
)

// The states of a peer, by silence.
const (
	peerAlive   = "alive"
	peerSuspect = "suspect"
	peerDead    = "dead"
)

const (
	announceMaxSkew = 30 * time.Second      // between the clocks of two nodes, delays included
	announcePause   = 50 * time.Millisecond // at least, between two announcements
	resolveEvery    = 30 * time.Second
	maxHeardPeers   = 512
)

// newDiscovery returns a discovery that has heard nobody and is not started.
func newDiscovery(o discoveryOptions) *discovery {
	d := &discovery{o: o, soon: make(chan struct{}, 1), peers: make(map[announcer]heardPeer), started: o.now()}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.endpoints.Store(new([]netip.AddrPort))
	return d
}

// start begins to listen and to announce this node, as own describes it.
func (d *discovery) start(own func() (incarnation uint64, cluster [16]byte)) error {
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		return errors.Join(c.Control(func(fd uintptr) { failed = sharePort(int(fd)) }), failed)
	}}
	// On all interfaces: a socket that is bound to one address gets no broadcasts.
	conn, err := listen.ListenPacket(d.ctx, "udp4", net.JoinHostPort("0.0.0.0", strconv.Itoa(int(d.o.port))))
	if err != nil {
		return fmt.Errorf("listening for announcements: %w", err)
	}
	d.own, d.conn = own, conn.(*net.UDPConn)
	d.mu.Lock()
	d.started = d.o.now() // addresses may be asked for already
	d.mu.Unlock()
	d.done.Go(d.hearLoop)
	d.done.Go(d.announceLoop)
	if len(d.o.endpoints) > 0 {
		d.done.Go(d.resolveLoop)
	}
	return nil
}

// close ends what start began.
func (d *discovery) close() {
	d.cancel()
	if d.conn != nil {
		d.conn.Close()
	}
	d.done.Wait()
}

// addresses returns the internal addresses of the nodes that were heard of late,
// once each. Nodes that belong to no cluster count only after two heartbeats of
// listening: a cluster that is there was heard by then, and to join one comes
// before forming one.
func (d *discovery) addresses() []string {
	now := d.o.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	settled := now.Sub(d.started) >= 2*d.o.heartbeat || now.Before(d.started) // its clock was set back since
	var all []string
	for _, p := range d.peers {
		if d.judge(now.Sub(p.heard)) != peerDead && (settled || p.formed()) {
			all = append(all, p.raft)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// state says whether a node was heard of late, by announcements or, at the given
// time, in another way.
func (d *discovery) state(node, incarnation uint64, otherwise time.Time) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	heard := otherwise
	if p, ok := d.peers[announcer{node, incarnation}]; ok && p.heard.After(heard) {
		heard = p.heard
	}
	return d.judge(d.o.now().Sub(heard))
}

// judge says what silence means. The loss of one announcement means nothing.
func (d *discovery) judge(silence time.Duration) string {
	switch {
	case silence >= d.o.timeout:
		return peerDead
	case silence > (d.o.heartbeat+d.o.timeout)/2:
		return peerSuspect
	}
	return peerAlive
}

// hearLoop takes datagrams until the port is closed.
func (d *discovery) hearLoop() {
	b := make([]byte, announceMax+1)
	for {
		size, from, err := d.conn.ReadFromUDPAddrPort(b)
		if d.ctx.Err() != nil {
			return
		}
		if err != nil {
			d.pause(announcePause)
			continue
		}
		d.receive(b[:size], from)
	}
}

// receive notes one announcement, or counts why it does not and says so once.
func (d *discovery) receive(b []byte, from netip.AddrPort) {
	cause, err := d.take(b)
	if err == nil {
		d.o.metrics.discovery.heard.add(1)
		return
	}
	d.o.metrics.discovery.dropped[cause].add(1)
	d.mu.Lock()
	told := d.told[cause]
	d.told[cause] = true
	d.mu.Unlock()
	if !told {
		d.o.logger.Info("announcements are dropped; more for this cause are only counted", "cause", dropLabels[cause], "from", from, "reason", err)
	}
}

// take notes the announcement in b unless there is a reason not to. Before it is
// authentic nothing is believed; the name only decides under which cause it counts.
func (d *discovery) take(b []byte) (dropCause, error) {
	a, err := parseAnnouncement(b)
	switch {
	case errors.Is(err, errAnnouncementVersion):
		return dropVersion, err
	case err != nil:
		return dropMalformed, err
	case a.name != d.o.name:
		return dropForeign, fmt.Errorf("it is of cluster %q, this is %q", a.name, d.o.name)
	case !authentic(b, d.o.secret):
		return dropForged, errors.New("it was not made with cluster.secret")
	}
	now := d.o.now()
	incarnation, cluster := d.own()
	sent := time.UnixMilli(a.time)
	switch {
	case a.formed() && cluster != [16]byte{} && a.cluster != cluster:
		return dropForeign, fmt.Errorf("it is of cluster id %x, this is %x", a.cluster, cluster)
	case sent.Before(now.Add(-announceMaxSkew)) || sent.After(now.Add(announceMaxSkew)):
		return dropStale, fmt.Errorf("node %d sent it at %s, here it is %s", a.node, sent.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case a.node == d.o.node && a.incarnation == incarnation:
		return 0, nil // this node's own: broadcasts come back
	}
	return d.note(a, now)
}

// note remembers an authentic announcement that is newer than all of its sender.
func (d *discovery) note(a *announcement, now time.Time) (dropCause, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(now)
	key := announcer{a.node, a.incarnation}
	last, known := d.peers[key]
	switch {
	case known && a.sequence <= last.sequence:
		return dropReplayed, fmt.Errorf("sequence %d of node %d follows %d", a.sequence, a.node, last.sequence)
	case !known && len(d.peers) >= maxHeardPeers:
		return dropCrowded, fmt.Errorf("node %d: %d others are remembered", a.node, len(d.peers))
	}
	d.peers[key] = heardPeer{*a, now}
	if !known || d.judge(now.Sub(last.heard)) == peerDead {
		select { // it should not have to wait to hear of this node
		case d.soon <- struct{}{}:
		default:
		}
		d.o.logger.Info("another node announces itself", "node", a.node, "raft", a.raft, "http", a.http, "in_a_cluster", a.formed())
	}
	return 0, nil
}

// forget drops peers once each of their datagrams would be refused as too old:
// who is forgotten cannot be brought back by a replay.
func (d *discovery) forget(now time.Time) {
	maps.DeleteFunc(d.peers, func(_ announcer, p heardPeer) bool {
		return now.Sub(p.heard) > d.o.timeout+2*announceMaxSkew
	})
}

// announceLoop announces this node at every heartbeat, and at once when somebody
// new is heard.
func (d *discovery) announceLoop() {
	for d.ctx.Err() == nil {
		d.announce()
		d.count()
		d.pause(announcePause)
		select {
		case <-d.ctx.Done():
		case <-d.soon:
		case <-time.After(max(d.o.heartbeat-announcePause, 0)):
		}
	}
	if d.sender != nil {
		d.sender.Close()
	}
}

// announce sends one datagram to each place that is to hear of this node.
func (d *discovery) announce() {
	to := append([]netip.AddrPort{netip.AddrPortFrom(d.o.broadcast, d.o.port)}, *d.endpoints.Load()...)
	failed := ""
	for _, addr := range to {
		if err := d.send(addr); err != nil {
			d.o.metrics.discovery.failed.add(1)
			failed = cmp.Or(failed, err.Error())
			continue
		}
		d.o.metrics.discovery.sent.add(1)
	}
	if failed != d.failing && failed != "" && d.ctx.Err() == nil {
		d.o.logger.Warn("announcing this node", "error", failed)
	}
	d.failing = failed
}

// send sends the next announcement to one place. After an error it begins with a
// new socket: the network may have changed.
func (d *discovery) send(to netip.AddrPort) error {
	if d.sender == nil {
		conn, err := openSender(d.ctx, d.o.host)
		if err != nil {
			return err
		}
		d.sender = conn
	}
	d.sender.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := d.sender.WriteToUDPAddrPort(d.next(), to); err != nil {
		d.sender.Close()
		d.sender = nil
		return err
	}
	return nil
}

// openSender opens a socket on the interface that has host, which is then also
// the way that broadcasts take; on any if no interface of this machine has it.
func openSender(ctx context.Context, host string) (*net.UDPConn, error) {
	var any net.ListenConfig
	conn, err := any.ListenPacket(ctx, "udp4", net.JoinHostPort(host, "0"))
	if err != nil {
		conn, err = any.ListenPacket(ctx, "udp4", "0.0.0.0:0")
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// next returns the next datagram of this node. No two are the same, whatever
// they are sent to: who gets both would count a replay.
func (d *discovery) next() []byte {
	now := d.o.now()
	d.sequence = max(d.sequence+1, uint64(now.UnixMicro()))
	a := announcement{node: d.o.node, sequence: d.sequence, time: now.UnixMilli(), name: d.o.name, raft: d.o.raft, http: d.o.http}
	a.incarnation, a.cluster = d.own()
	return appendAnnouncement(nil, &a, d.o.secret)
}

// count brings the gauges of the metrics up to date.
func (d *discovery) count() {
	now := d.o.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(now)
	var peers [len(peerStateLabels)]int64
	for _, p := range d.peers {
		peers[slices.Index(peerStateLabels[:], d.judge(now.Sub(p.heard)))]++
	}
	for i, n := range peers {
		d.o.metrics.discovery.peers[i].set(n)
	}
}

// resolveLoop looks the endpoints up, again and again: names move. One that
// cannot be looked up is left out until it can.
func (d *discovery) resolveLoop() {
	for d.ctx.Err() == nil {
		var found []netip.AddrPort
		for _, host := range d.o.endpoints {
			ips, err := net.DefaultResolver.LookupNetIP(d.ctx, "ip4", host)
			if err != nil || len(ips) == 0 {
				d.o.logger.Debug("looking up an endpoint", "host", host, "error", err)
				continue
			}
			found = append(found, netip.AddrPortFrom(ips[0].Unmap(), d.o.port))
		}
		d.endpoints.Store(&found)
		d.pause(resolveEvery)
	}
}

// pause waits, but not beyond the end.
func (d *discovery) pause(wait time.Duration) {
	select {
	case <-d.ctx.Done():
	case <-time.After(wait):
	}
}
