package main

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// nemesis makes things go wrong. Each seed picks some kinds of faults only
// (swarm testing): those left out cannot hide what the others would show.
type nemesis struct {
	c     *simCluster
	rng   *rand.Rand
	every time.Duration // between two faults, on average
	kinds []string
	over  chan struct{} // closed when faults end
	wg    sync.WaitGroup

	asking atomic.Int32 // changes of the membership and hand-overs under way

	mu   sync.Mutex
	busy map[string]bool // what only one fault at a time may do
}

// simFaults is every kind of fault; a kind that is named twice comes more often.
var simFaults = []string{
	"kill", "kill", "kill all", "power cut", "power cut", "power cut of all", "kill in an election", "stop", "pause", "pause",
	"partition", "partition", "partition", "slow links", "broken links", "clock",
	"power cut at an operation", "power cut at an operation", "power cut at a step", "EIO of write", "EIO of fsync", "EIO of a step",
	"disk full", "disk nearly full", "slow disk", "hung disk", "rot", "rot while up", "wipe", "transfer", "leave",
}

// newNemesis draws the kinds of faults of the seed.
func newNemesis(c *simCluster, every time.Duration) *nemesis {
	m := &nemesis{c: c, rng: c.rng, every: every, over: make(chan struct{}), busy: make(map[string]bool)}
	share := 0.3 + 0.7*m.rng.Float64()
	left := make(map[string]bool)
	for _, k := range simFaults {
		if _, drawn := left[k]; !drawn {
			left[k] = m.rng.Float64() >= share
		}
		if !left[k] {
			m.kinds = append(m.kinds, k)
		}
	}
	if len(m.kinds) == 0 {
		m.kinds = []string{"kill"}
	}
	return m
}

// run makes faults for so long. Sometimes they begin before the cluster formed.
func (m *nemesis) run(faults time.Duration) {
	end := time.Now().Add(faults)
	if m.rng.IntN(3) > 0 {
		time.Sleep(15 * time.Second)
	}
	for time.Now().Before(end) && !m.c.broken.Load() {
		kind := m.kinds[m.rng.IntN(len(m.kinds))]
		n := m.c.nodes[m.rng.IntN(len(m.c.nodes))]
		if m.rng.IntN(3) == 0 {
			if lead := m.c.lead(); lead != nil {
				n = lead
			}
		}
		m.fault(kind, n)
		time.Sleep(min(time.Until(end), time.Duration(m.rng.ExpFloat64()*float64(m.every))))
	}
}

// peace ends all faults.
func (m *nemesis) peace() {
	close(m.over)
	m.wg.Wait()
	m.c.net.heal()
	for _, n := range m.c.nodes {
		n.skew.Store(0)
		n.faults.crashIn.Store(0)
		n.faults.failIn.Store(0)
		n.disk.Load().set(func(d *simDisk) { d.crashIn, d.failWrite, d.failSync = 0, 0, 0 })
	}
}

// some draws a time around what faults take.
func (m *nemesis) some(most time.Duration) time.Duration {
	return 50*time.Millisecond + time.Duration(m.rng.Int64N(int64(most)))
}

// fault makes one fault at node n, or where it likes.
func (m *nemesis) fault(kind string, n *simNode) {
	m.c.logger.Info("SIM: fault", "kind", kind, "node", n.i+1)
	switch kind {
	case "kill", "power cut", "stop":
		m.order(n, map[string]string{"kill": "kill", "power cut": "power", "stop": "stop"}[kind], kind)
	case "kill all", "power cut of all":
		for _, n := range m.c.nodes {
			m.order(n, map[string]string{"kill all": "kill", "power cut of all": "power"}[kind], kind)
		}
	case "kill in an election":
		m.election()
	case "rot", "wipe":
		if m.mayLose(n) {
			m.order(n, kind, kind)
		}
	case "pause":
		m.during(kind, "pause", m.some(20*time.Second), func() { m.c.net.pause(n.i, true) }, func() { m.c.net.pause(n.i, false) })
	case "partition", "slow links", "broken links":
		m.during(kind, "net", m.some(40*time.Second), m.links(kind, n), m.c.net.heal)
	case "clock":
		m.c.happened(kind)
		n.skew.Store(int64(m.jump()))
	case "transfer", "leave":
		m.member(kind, n)
	default:
		m.disk(kind, n)
	}
}

// order has a node's keeper do something, if it has time.
func (m *nemesis) order(n *simNode, command, kind string) {
	select {
	case n.cmds <- simCommand{command, m.some(30 * time.Second)}:
		m.c.happened(kind)
	default:
	}
}

// election has those who vote for the next leader forget what they did not make
// durable, if there is such a thing, at any moment of the election.
func (m *nemesis) election() {
	if lead := m.c.lead(); lead != nil {
		m.order(lead, "kill", "kill in an election")
	}
	time.Sleep(m.some(3 * simElection))
	for range 3 {
		time.Sleep(m.some(500 * time.Millisecond))
		select {
		case m.c.nodes[m.rng.IntN(len(m.c.nodes))].cmds <- simCommand{"power", 0}:
		default:
		}
	}
}

// during makes a fault for a while, unless another holds the same.
func (m *nemesis) during(kind, what string, how time.Duration, do, undo func()) {
	m.mu.Lock()
	busy := m.busy[what]
	m.busy[what] = true
	m.mu.Unlock()
	if busy {
		return
	}
	m.c.happened(kind)
	do()
	m.wg.Go(func() {
		select {
		case <-time.After(how):
		case <-m.over:
		}
		undo()
		m.mu.Lock()
		delete(m.busy, what)
		m.mu.Unlock()
	})
}

// jump draws how wrong a clock is.
func (m *nemesis) jump() time.Duration {
	most := []time.Duration{100 * time.Millisecond, 5 * time.Second, time.Hour, 10 * 365 * 24 * time.Hour}[m.rng.IntN(4)]
	return time.Duration(m.rng.Int64N(int64(2*most))) - most
}

// links returns a fault of the network.
func (m *nemesis) links(kind string, n *simNode) func() {
	count := len(m.c.nodes)
	way := simWay{state: []linkState{linkSilent, linkSilent, linkLoud}[m.rng.IntN(3)]}
	var bad func(a, b int) bool
	switch p := m.rng.IntN(6); {
	case kind != "partition":
		way = simWay{delay: m.some(400 * time.Millisecond), stall: 0.05 * m.rng.Float64()}
		if kind == "broken links" {
			way = simWay{reset: 0.05 * m.rng.Float64()}
		} else if m.rng.IntN(3) == 0 {
			way.rate = 2000 + 50000*m.rng.Float64()
		}
		all, one := m.rng.IntN(2) == 0, n.i
		bad = func(a, b int) bool { return all || a == one || b == one }
	case p == 0: // two halves
		side := m.rng.Perm(count)
		bad = func(a, b int) bool { return side[a] < count/2 != (side[b] < count/2) }
	case p == 1: // n is not heard
		bad = func(a, b int) bool { return a == n.i }
	case p == 2: // n is deaf
		bad = func(a, b int) bool { return b == n.i }
	case p == 3: // n is alone
		bad = func(a, b int) bool { return a == n.i || b == n.i }
	case p == 4: // n is the bridge between two halves
		side := m.rng.Perm(count)
		bad = func(a, b int) bool { return a != n.i && b != n.i && side[a] < count/2 != (side[b] < count/2) }
	default: // each hears its neighbours
		bad = func(a, b int) bool {
			d := (a - b + count) % count
			return d != 1 && d != count-1 || count < 4 && d == 1
		}
	}
	return func() {
		for a := range count {
			for b := range count {
				if a != b && bad(a, b) {
					m.c.net.set(a, b, way)
				}
			}
		}
	}
}

// disk makes a fault of a disk.
func (m *nemesis) disk(kind string, n *simNode) {
	d := n.disk.Load()
	arm := func(f func(d *simDisk)) {
		n.failing.Store(true)
		d.set(f)
	}
	nth := 1 + m.rng.IntN(40)
	switch kind {
	case "power cut at an operation":
		arm(func(d *simDisk) { d.crashIn = nth })
	case "power cut at a step":
		n.failing.Store(true)
		n.faults.crashIn.Store(int32(1 + nth%10))
	case "EIO of write":
		arm(func(d *simDisk) { d.failWrite = nth })
	case "EIO of fsync":
		arm(func(d *simDisk) { d.failSync = nth })
	case "EIO of a step":
		n.failing.Store(true)
		n.faults.failIn.Store(int32(1 + nth%10))
	case "disk full":
		copies := m.rng.IntN(3) == 0
		full := func(full bool) func() {
			return func() {
				n.failing.Store(true)
				n.faults.full.Store(full)
				n.disk.Load().set(func(d *simDisk) { d.full, d.copies = full, copies })
			}
		}
		m.during(kind, "disk", m.some(time.Minute), full(true), full(false))
	case "disk nearly full":
		m.during(kind, "disk", m.some(time.Minute), func() { n.faults.scarce.Store(true) }, func() { n.faults.scarce.Store(false) })
	case "slow disk":
		slow := m.some(2 * time.Second)
		m.during(kind, "disk", m.some(time.Minute), func() { d.set(func(d *simDisk) { d.slow = slow }) },
			func() { n.disk.Load().set(func(d *simDisk) { d.slow = 0 }) })
	case "hung disk":
		hung := make(chan struct{})
		m.during(kind, "disk", m.some(time.Minute), func() { d.set(func(d *simDisk) { d.hung = hung }) }, func() {
			n.disk.Load().set(func(d *simDisk) { d.hung = nil })
			close(hung)
		})
	case "rot while up":
		m.rotUp(n)
	}
}

// rotUp damages a file that the node may have open.
func (m *nemesis) rotUp(n *simNode) {
	all := filesBelow(n.o.dataDir, "segments/*", "index/*")
	if len(all) == 0 || !m.mayLose(n) {
		return
	}
	n.damaged.Store(true)
	n.since.Store(m.c.elapsed())
	what := rotFile(m.rng, all[m.rng.IntN(len(all))])
	m.c.happened("rot while up")
	m.c.logger.Warn("SIM: damage while up", "node", n.i+1, "what", what)
}

// mayLose tells whether the cluster can do without what node n has, and notes
// that it may go: all others are members in their roles, run, have sound disks,
// and no change of the membership is under way: a node that leaves and one that
// is lost would be two of three.
func (m *nemesis) mayLose(n *simNode) bool {
	now, ok := m.c.membership()
	if !ok || m.asking.Load() > 0 {
		return false
	}
	voters := 0
	for _, s := range now.servers {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	may := voters == m.c.founders && !slices.ContainsFunc(m.c.nodes, func(o *simNode) bool {
		return o != n && (!o.isMember(now) || o.damaged.Load())
	})
	if may {
		n.lost.Store(true)
	}
	return may
}

// membership is what the leader knows to be committed, if there is one.
func (c *simCluster) membership() (membership, bool) {
	lead := c.lead()
	if lead == nil {
		return membership{}, false
	}
	up, _, end := lead.use(time.Second)
	if up == nil {
		return membership{}, false
	}
	defer end()
	return up.membership(), true
}

// isMember tells whether a node runs, is a member of m in its role, and has no
// other membership in its log.
func (n *simNode) isMember(m membership) bool {
	up, _, end := n.use(time.Second)
	if up == nil {
		return false
	}
	defer end()
	r := up.raft.Load()
	s, ok := m.find(uint64(n.i + 1))
	if r == nil || !ok || s.ID != serverID(up.identity()) || (s.Suffrage == raft.Voter) == n.o.learner {
		return false
	}
	newest := r.GetConfiguration()
	return newest.Error() == nil && slices.Equal(newest.Configuration().Servers, m.servers)
}

// mayLeave tells whether no node has lost what it had and is not back yet.
func (m *nemesis) mayLeave() bool {
	now, ok := m.c.membership()
	return ok && !slices.ContainsFunc(m.c.nodes, func(o *simNode) bool {
		if o.lost.Load() && !o.damaged.Load() && o.isMember(now) {
			o.lost.Store(false)
		}
		return o.lost.Load() || o.damaged.Load()
	})
}

// member hands over leadership or has a node leave, and join again.
func (m *nemesis) member(kind string, n *simNode) {
	if kind == "transfer" {
		m.ask(n, kind, func(ctx context.Context, up *node) error { return up.transfer(ctx, n.o.id) })
		return
	}
	if !m.mayLeave() { // one that stays may have to go
		return
	}
	through := m.c.nodes[m.rng.IntN(len(m.c.nodes))]
	m.during(kind, "member", m.some(time.Minute), func() {
		m.ask(through, "", func(ctx context.Context, up *node) error {
			return up.changeMember(ctx, &memberChange{Leave: true, ID: n.o.id})
		})
	}, m.takeBack)
}

// ask has a node do something, beside everything else.
func (m *nemesis) ask(n *simNode, kind string, do func(context.Context, *node) error) {
	m.asking.Add(1)
	m.wg.Go(func() {
		defer m.asking.Add(-1)
		up, ctx, end := n.use(30 * time.Second)
		if up == nil || up.raft.Load() == nil {
			if end != nil {
				end()
			}
			return
		}
		defer end()
		if kind != "" {
			m.c.happened(kind)
		}
		m.c.logger.Info("SIM: asked", "node", n.i+1, "kind", kind, "error", do(ctx, up))
	})
}

// takeBack has the leader take in the nodes that left or were removed.
func (m *nemesis) takeBack() {
	for _, n := range m.c.nodes {
		up, _, end := n.use(time.Second)
		if up == nil {
			continue
		}
		removed := up.self.Load().Removed
		end()
		lead := m.c.lead()
		if !removed || lead == nil {
			continue
		}
		boss, ctx, end := lead.use(30 * time.Second)
		if boss == nil {
			continue
		}
		err := boss.changeMember(ctx, &memberChange{ID: n.o.id, Raft: n.o.raftAddr})
		end()
		m.c.logger.Info("SIM: joins again", "node", n.i+1, "error", err)
	}
}
