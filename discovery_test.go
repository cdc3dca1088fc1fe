package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeDiscovery is a discovery of node 1 that is not on the network, with a
// clock that the test moves.
type fakeDiscovery struct {
	*discovery
	t       *testing.T
	clock   time.Time
	cluster [16]byte
}

func newFakeDiscovery(t *testing.T) *fakeDiscovery {
	f := &fakeDiscovery{t: t, clock: time.UnixMilli(1_700_000_000_000)}
	f.discovery = newDiscovery(discoveryOptions{
		name: "scribe", secret: "s3cret", node: 1, raft: "127.0.0.1:9001", http: "http://127.0.0.1:8001",
		heartbeat: 500 * time.Millisecond, timeout: 1500 * time.Millisecond,
		logger: testLogger(t), metrics: newMetrics(), now: func() time.Time { return f.clock },
	})
	f.own = func() (uint64, [16]byte) { return 11, f.cluster }
	return f
}

// hear receives a datagram and returns the cause under which it was dropped, "" if it was not.
func (f *fakeDiscovery) hear(b []byte) string {
	f.t.Helper()
	before := f.dropped()
	heard := f.o.metrics.discovery.heard.value()
	f.receive(b, netip.AddrPort{})
	for i, n := range f.dropped() {
		if n == before[i]+1 {
			return dropLabels[i]
		}
	}
	if f.o.metrics.discovery.heard.value() != heard+1 {
		f.t.Error("a datagram was not counted")
	}
	return ""
}

// dropped returns the counters by cause.
func (f *fakeDiscovery) dropped() (counts [len(dropLabels)]uint64) {
	for i := range counts {
		counts[i] = f.o.metrics.discovery.dropped[i].value()
	}
	return counts
}

// from returns an announcement that node 1 believes, sent now.
func (f *fakeDiscovery) from(node uint64) *announcement {
	a := anAnnouncement()
	a.node, a.raft, a.cluster = node, fmt.Sprintf("127.0.0.1:%d", 9000+node), [16]byte{}
	a.time, a.sequence = f.clock.UnixMilli(), uint64(f.clock.UnixMicro())
	return a
}

func datagram(a *announcement) []byte { return appendAnnouncement(nil, a, "s3cret") }

func TestDiscoveryDrops(t *testing.T) {
	ours := [16]byte{1}
	for name, test := range map[string]struct {
		make func(a *announcement) []byte
		want string
	}{
		"good":                {datagram, ""},
		"of this cluster":     {func(a *announcement) []byte { a.cluster = ours; return datagram(a) }, ""},
		"empty":               {func(a *announcement) []byte { return nil }, "malformed"},
		"another protocol":    {func(a *announcement) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }, "malformed"},
		"newer version":       {func(a *announcement) []byte { b := datagram(a); b[5] = 2; return b }, "version"},
		"other name":          {func(a *announcement) []byte { a.name = "other"; return datagram(a) }, "foreign"},
		"other cluster id":    {func(a *announcement) []byte { a.cluster = [16]byte{2}; return datagram(a) }, "foreign"},
		"other secret":        {func(a *announcement) []byte { return appendAnnouncement(nil, a, "guess") }, "forged"},
		"no secret":           {func(a *announcement) []byte { return appendAnnouncement(nil, a, "") }, "forged"},
		"other name + secret": {func(a *announcement) []byte { a.name = "other"; return appendAnnouncement(nil, a, "guess") }, "foreign"},
		"30 s old":            {func(a *announcement) []byte { a.time -= 30_000; return datagram(a) }, ""},
		"too old":             {func(a *announcement) []byte { a.time -= 30_001; return datagram(a) }, "stale"},
		"from the future":     {func(a *announcement) []byte { a.time += 30_001; return datagram(a) }, "stale"},
		"before all time":     {func(a *announcement) []byte { a.time = -1 << 63; return datagram(a) }, "stale"},
		"after all time":      {func(a *announcement) []byte { a.time = 1<<63 - 1; return datagram(a) }, "stale"},
	} {
		f := newFakeDiscovery(t)
		f.cluster = ours
		if got := f.hear(test.make(f.from(2))); got != test.want {
			t.Errorf("%s: dropped as %q, want %q", name, got, test.want)
		}
		if known := len(f.peers) == 1; known != (test.want == "") {
			t.Errorf("%s: %d peers are known", name, len(f.peers))
		}
	}
}

// TestDiscoveryReplays: of what a node sends, only what is newer counts, also
// after the node's restart; and who was forgotten stays forgotten.
func TestDiscoveryReplays(t *testing.T) {
	f := newFakeDiscovery(t)
	first := f.from(2)
	second := *first
	second.sequence++
	third := second
	third.sequence++
	for i, step := range []struct {
		a    *announcement
		want string
	}{{first, ""}, {first, "replayed"}, {&third, ""}, {&second, "replayed"}, {first, "replayed"}, {&third, "replayed"}} {
		if got := f.hear(datagram(step.a)); got != step.want {
			t.Errorf("step %d, sequence %d: dropped as %q, want %q", i, step.a.sequence, got, step.want)
		}
	}
	wiped := *first // a new disk: another life, which counts for itself
	wiped.incarnation++
	if got := f.hear(datagram(&wiped)); got != "" {
		t.Errorf("another incarnation is dropped as %q", got)
	}
	f.clock = f.clock.Add(f.o.timeout + 2*announceMaxSkew + time.Millisecond)
	f.count()
	if len(f.peers) != 0 {
		t.Errorf("%d peers are remembered", len(f.peers))
	}
	if got := f.hear(datagram(&third)); got != "stale" {
		t.Errorf("a replay of one who is forgotten is dropped as %q", got)
	}
	if got := f.hear(datagram(f.from(2))); got != "" {
		t.Errorf("one who comes back is dropped as %q", got)
	}
}

// TestDiscoveryOwnSequence: each datagram is newer than the one before, over
// restarts and while the clock stands still or goes back.
func TestDiscoveryOwnSequence(t *testing.T) {
	last := uint64(0)
	for life := range 3 {
		f := newFakeDiscovery(t)
		f.clock = f.clock.Add(time.Duration(life) * time.Second)
		for _, step := range []time.Duration{0, 0, 0, time.Millisecond, -time.Hour, -time.Hour, time.Hour} {
			f.clock = f.clock.Add(step)
			a, err := parseAnnouncement(f.next())
			if err != nil || a.sequence <= last {
				t.Fatalf("life %d: sequence %d follows %d, error %v", life, a.sequence, last, err)
			}
			last = a.sequence
		}
	}
}

func TestDiscoveryIgnoresItself(t *testing.T) {
	f := newFakeDiscovery(t)
	for range 2 {
		if got := f.hear(f.next()); got != "" || len(f.peers) != 0 {
			t.Errorf("dropped as %q, %d peers", got, len(f.peers))
		}
	}
	a := f.from(1) // the same number with another disk is somebody else
	if got := f.hear(datagram(a)); got != "" || len(f.peers) != 1 {
		t.Errorf("dropped as %q, %d peers", got, len(f.peers))
	}
}

// TestDiscoveryCrowd: one who knows the secret cannot fill the memory, nor push
// out those who are known.
func TestDiscoveryCrowd(t *testing.T) {
	f := newFakeDiscovery(t)
	for i := range maxHeardPeers {
		a := f.from(2)
		a.incarnation = uint64(i)
		if got := f.hear(datagram(a)); got != "" {
			t.Fatalf("peer %d is dropped as %q", i, got)
		}
	}
	if got := f.hear(datagram(f.from(3))); got != "crowded" {
		t.Errorf("one more is dropped as %q", got)
	}
	f.clock = f.clock.Add(time.Second)
	known := f.from(2)
	known.incarnation = 0
	if got := f.hear(datagram(known)); got != "" {
		t.Errorf("one who is known is dropped as %q", got)
	}
}

// TestDiscoveryClockSetBack: a node that starts with a clock in the future finds the
// others once it is set right.
func TestDiscoveryClockSetBack(t *testing.T) {
	f := newFakeDiscovery(t)
	f.hear(datagram(f.from(2)))
	if got := f.addresses(); len(got) != 0 {
		t.Errorf("addresses are %q before all had the time to be heard", got)
	}
	f.clock = f.clock.Add(-365 * 24 * time.Hour)
	f.hear(datagram(f.from(3)))
	if got := f.addresses(); !slices.Contains(got, "127.0.0.1:9003") {
		t.Errorf("addresses are %q", got)
	}
}

// TestDiscoveryStates: alive, suspect, dead and alive again, by silence.
func TestDiscoveryStates(t *testing.T) {
	f := newFakeDiscovery(t)
	never := f.clock.Add(-time.Hour)
	state := func() string { return f.state(2, anAnnouncement().incarnation, never) }
	if got := state(); got != peerDead {
		t.Errorf("one who was never heard is %s", got)
	}
	f.hear(datagram(f.from(2)))
	for _, step := range []struct {
		silence time.Duration
		want    string
	}{
		{0, peerAlive}, {1000 * time.Millisecond, peerAlive}, {1001 * time.Millisecond, peerSuspect},
		{1499 * time.Millisecond, peerSuspect}, {1500 * time.Millisecond, peerDead}, {time.Hour, peerDead},
	} {
		start := f.clock
		f.clock = start.Add(step.silence)
		if got := state(); got != step.want {
			t.Errorf("after %v it is %s, want %s", step.silence, got, step.want)
		}
		if listed := len(f.addresses()) == 1; f.clock.Sub(f.started) >= 2*f.o.heartbeat && listed != (step.want != peerDead) {
			t.Errorf("after %v its address is given: %v", step.silence, listed)
		}
		if got := f.state(2, anAnnouncement().incarnation, f.clock); got != peerAlive {
			t.Errorf("after %v, but in touch otherwise, it is %s", step.silence, got)
		}
		f.clock = start
	}
	f.clock = f.clock.Add(1200 * time.Millisecond)
	f.count()
	if n := f.o.metrics.discovery.peers[1].value(); n != 1 {
		t.Errorf("%d peers are counted as suspect", n)
	}
	f.hear(datagram(f.from(2)))
	if got := state(); got != peerAlive {
		t.Errorf("heard again it is %s", got)
	}
}

// TestDiscoveryListensFirst: a cluster that is there is suggested at once, others
// who have none only when a cluster would have been heard.
func TestDiscoveryListensFirst(t *testing.T) {
	f := newFakeDiscovery(t)
	member, loose := f.from(3), f.from(2)
	member.cluster = [16]byte{7}
	again := *member // another life at the same place
	again.incarnation++
	for _, a := range []*announcement{member, loose, &again} {
		f.hear(datagram(a))
	}
	if got := f.addresses(); !slices.Equal(got, []string{member.raft}) {
		t.Errorf("at first %v", got)
	}
	f.clock = f.clock.Add(2 * f.o.heartbeat)
	if got := f.addresses(); !slices.Equal(got, []string{loose.raft, member.raft}) {
		t.Errorf("later %v", got)
	}
}

// freeUDPPort returns a UDP port that nobody listens on, below those that the
// system gives to sockets that ask for any.
func freeUDPPort(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		port := 10000 + rand.IntN(20000)
		if c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port}); err == nil {
			c.Close()
			return uint16(port)
		}
	}
	t.Fatal("no free UDP port")
	return 0
}

// loopbackBroadcast reaches every socket of this machine.
var loopbackBroadcast = netip.AddrFrom4([4]byte{127, 255, 255, 255})

// discovered prepares nodes that have no seeds and find each other on a UDP port.
func discovered(t *testing.T, size int, port uint16, name, secret string) *testCluster {
	c := newNodes(t, size, func(o *nodeOptions) {
		o.clusterName, o.secret, o.seeds, o.metrics = name, secret, nil, newMetrics()
	})
	for _, n := range c.nodes {
		d := newDiscovery(discoveryOptions{
			name: name, secret: secret, node: n.o.id, raft: n.o.raftAddr, http: n.o.httpURL,
			host: "127.0.0.1", port: port, broadcast: loopbackBroadcast,
			heartbeat: 50 * time.Millisecond, timeout: 5 * time.Second,
			logger: n.o.logger, metrics: n.o.metrics, now: time.Now,
		})
		t.Cleanup(d.close)
		n.o.suggest, n.o.peerState = d.addresses, d.state
		n.discovery = d
	}
	return c
}

// appear opens node i and announces it.
func (c *testCluster) appear(i int) {
	c.t.Helper()
	c.start(i)
	if err := c.nodes[i].discovery.start(c.nodes[i].announced); err != nil {
		c.t.Fatal(err)
	}
}

// Three nodes that know nobody form one cluster; a fourth joins it.
func TestDiscoveryForms(t *testing.T) {
	t.Parallel()
	c := discovered(t, 4, freeUDPPort(t), "test", "s3cret")
	for i := range 4 {
		c.nodes[i].o.expect = 3
	}
	c.appear(0)
	c.appear(1)
	eventually(t, "two do not hear each other", func() bool {
		return len(c.nodes[0].discovery.addresses()) == 1 && len(c.nodes[1].discovery.addresses()) == 1
	})
	c.wantWaiting("2 of 3 nodes are here")
	c.unformed = false
	c.appear(2)
	eventually(t, "three form no cluster", func() bool { return c.nodes[2].self.Load().formed() })
	c.put(c.leader(), "a", "1")
	c.appear(3)
	c.wantOneCluster()
	c.wantVoters(4)
	eventually(t, "not all are alive", func() bool {
		return !slices.ContainsFunc(c.nodes[3].members(), func(m memberInfo) bool { return m.state != stateAlive })
	})
}

// Clusters of other names or secrets on the same port never mix.
func TestDiscoveryClustersDoNotMix(t *testing.T) {
	t.Parallel()
	port := freeUDPPort(t)
	all := []*testCluster{
		discovered(t, 2, port, "one", "a"), discovered(t, 2, port, "one", "b"),
		discovered(t, 2, port, "one", ""), discovered(t, 2, port, "two", "a"),
	}
	for i := range 2 {
		for _, c := range all {
			c.appear(i)
		}
	}
	ids := make(map[string]bool)
	for _, c := range all {
		ids[c.wantOneCluster()] = true
		c.wantVoters(2)
		c.put(c.leader(), "a", "1")
	}
	if len(ids) != len(all) {
		t.Errorf("%d clusters have %d ids", len(all), len(ids))
	}
	dropped := &all[0].nodes[0].o.metrics.discovery.dropped
	eventually(t, "the others are not counted", func() bool {
		return dropped[dropForged].value() > 0 && dropped[dropForeign].value() > 0
	})
	for _, n := range all[0].nodes {
		if got := n.discovery.addresses(); len(got) != 1 {
			t.Errorf("node %d is given %v", n.o.id, got)
		}
	}
}

// A newcomer that hears two clusters of its name joins neither.
func TestDiscoveryTwoClustersOfOneName(t *testing.T) {
	t.Parallel()
	port := freeUDPPort(t)
	one, two := discovered(t, 1, port, "test", "s3cret"), discovered(t, 1, port, "test", "s3cret")
	two.nodes[0].o.id = 2
	for _, c := range []*testCluster{one, two} {
		c.start(0) // alone; announced only when both are formed
		c.leader()
	}
	for _, c := range []*testCluster{one, two} {
		if err := c.nodes[0].discovery.start(c.nodes[0].announced); err != nil {
			t.Fatal(err)
		}
	}
	late := discovered(t, 1, port, "test", "s3cret")
	late.unformed = true
	late.nodes[0].o.id, late.nodes[0].o.expect = 3, 3
	d := late.nodes[0].discovery
	if err := d.start(func() (uint64, [16]byte) { return 3, [16]byte{} }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "not both are heard", func() bool { return len(d.addresses()) == 2 })
	late.start(0)
	if err := late.nodes[0].tryForm(); err == nil || !strings.Contains(err.Error(), "two clusters have this name") {
		t.Errorf("it tries and gets %v", err)
	}
	if late.nodes[0].self.Load().formed() {
		t.Error("it has joined one of them")
	}
}

// TestDiscoveryUnicast: an endpoint that no broadcast reaches hears what is sent
// to it alone.
func TestDiscoveryUnicast(t *testing.T) {
	t.Parallel()
	port := freeUDPPort(t)
	start := func(node uint64, endpoints ...string) *discovery {
		d := newDiscovery(discoveryOptions{
			name: "test", secret: "s3cret", node: node, raft: fmt.Sprintf("127.0.0.1:%d", 9000+node), http: "http://h",
			host: "127.0.0.1", port: port, broadcast: netip.AddrFrom4([4]byte{127, 0, 0, 9}), endpoints: endpoints,
			heartbeat: 20 * time.Millisecond, timeout: time.Second, logger: testLogger(t), metrics: newMetrics(), now: time.Now,
		})
		t.Cleanup(d.close)
		if err := d.start(func() (uint64, [16]byte) { return node, [16]byte{} }); err != nil {
			t.Fatal(err)
		}
		return d
	}
	start(1, "no.such.host.invalid", "localhost")
	hears := start(2) // the last on the port gets what is sent to the host alone
	eventually(t, "the endpoint hears nothing", func() bool { return slices.Equal(hears.addresses(), []string{"127.0.0.1:9001"}) })
}
