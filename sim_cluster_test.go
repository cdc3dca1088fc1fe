package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// simCluster is a cluster under virtual time (testing/synctest) with a network
// and disks that fail, clients, and a nemesis that draws from the seed what goes
// wrong. Who does what:
//
//	sim_net_test.go      the network
//	sim_disk_test.go     the disks
//	sim_node_test.go     a node's life: start, crash, new disk
//	sim_client_test.go   clients and what they were told
//	sim_nemesis_test.go  what goes wrong
//	sim_oracle_test.go   what must be true all the same
//	sim_test.go          seeds, profiles, figures
type simCluster struct {
	t        testing.TB
	seed     uint64
	rng      *rand.Rand // of the nemesis
	net      *simNet
	nodes    []*simNode
	founders int
	dir      string
	logger   *slog.Logger
	log      lateLog
	count    *simCount
	told     simLedger
	began    time.Time

	again     string        // how to run it again
	scrub     time.Duration // between two passes of the scrub
	pace      time.Duration // between two operations of a client, on average
	sealAfter time.Duration
	disks     atomic.Int64  // that were ever there
	ending    chan struct{} // closed when nodes are to end
	broken    atomic.Bool   // a violation was found
	wakeUp    changeSignal  // a node started
	cluster   atomic.Pointer[clusterID]
	terms     sync.Map               // who led a term, by term
	discovers bool                   // nodes have no seeds
	kept      atomic.Pointer[[]byte] // a datagram somebody keeps, to send it again
	looks     *atomic.Int64          // counts up as long as virtual time goes on
}

const (
	simWriteTimeout = 10 * time.Second
	simReadTimeout  = 5 * time.Second
	simLinger       = 30 * time.Second // for what ends by its own deadline, such as a dial
	simElection     = 2 * time.Second
	simSettle       = 15 * time.Minute // within which a cluster without faults is well again
)

// simLife is how long a cluster lives and how hard.
type simLife struct {
	faults time.Duration // how long things go wrong
	every  time.Duration // between two faults, on average
	scrub  time.Duration // between two passes of the scrub
	again  string        // how to run it again
}

// simCount counts what happened.
type simCount struct {
	mu sync.Mutex
	m  map[string]int
}

// add counts one.
func (c *simCount) add(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = make(map[string]int)
	}
	c.m[what]++
}

// merge adds the counts of o.
func (c *simCount) merge(o *simCount) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = make(map[string]int)
	}
	for what, n := range o.m {
		c.m[what] += n
	}
}

// list names everything counted, in order, and returns the sum of what was done;
// what came of it begins with "then".
func (c *simCount) list() (text string, sum int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(c.m)) {
		fmt.Fprintf(&b, "  %8d %s\n", c.m[what], what)
		if !strings.HasPrefix(what, "then ") {
			sum += c.m[what]
		}
	}
	return b.String(), sum
}

// newSimCluster prepares a cluster as the seed wants it.
func newSimCluster(t testing.TB, seed uint64, dir string, life simLife) *simCluster {
	rng := rand.New(rand.NewPCG(seed, 'c'))
	c := &simCluster{t: t, seed: seed, rng: rng, dir: dir, count: new(simCount), ending: make(chan struct{}), began: time.Now()}
	c.told = simLedger{acked: make(map[uint64]ack), never: make(map[string]string), heads: make(map[uint64]simHead), done: make(map[string]int)}
	c.logger = slog.New(slog.NewTextHandler(&c.log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	c.net = newSimNet(seed, c.count)
	c.wakeUp.init()
	c.pace, c.scrub = min(4*time.Second, life.every/5), life.scrub
	c.again = fmt.Sprintf("SCRIBE_SEED=%d %s", seed, life.again)
	c.sealAfter = 10*time.Second + time.Duration(rng.Int64N(int64(2*time.Minute)))
	c.founders = 3
	size := 3
	switch rng.IntN(6) {
	case 0:
		c.founders, size = 5, 5
	case 1:
		size = 4 // with a learner
	}
	c.discovers = rng.IntN(4) == 0
	var addrs []string
	for i := range size {
		addrs = append(addrs, addrOf(i)+":9000")
	}
	for i := range size {
		c.nodes = append(c.nodes, newSimNode(c, i, addrs))
	}
	return c
}

// elapsed is the virtual time since the beginning, in ns.
func (c *simCluster) elapsed() int64 { return int64(time.Since(c.began)) }

// happened counts something that went wrong as it was meant to.
func (c *simCluster) happened(what string) { c.count.add(what) }

// violation is what must never be.
func (c *simCluster) violation(format string, args ...any) {
	c.broken.Store(true)
	text := fmt.Sprintf(format, args...)
	c.logger.Error("SIM: VIOLATION", "what", text)
	c.t.Errorf("seed %d after %v: %s\nrun it again: %s", c.seed, time.Duration(c.elapsed()).Round(time.Millisecond), text, c.again)
}

// run is the whole life of the cluster: faults for so long, then peace, in which
// it has to recover, and the whole truth at the end.
func (c *simCluster) run(life simLife) {
	var nodes, clients, watch sync.WaitGroup
	for _, n := range c.nodes {
		nodes.Go(n.keep)
	}
	stop, unwatch := make(chan struct{}), make(chan struct{})
	for id := range 4 {
		cl := &simClient{c: c, id: id, rng: rand.New(rand.NewPCG(c.seed, uint64(1000+id))), seen: make(map[string]uint64)}
		clients.Go(func() { cl.run(stop) })
	}
	watch.Go(func() { c.watch(unwatch) })

	nemesis := newNemesis(c, life.every)
	nemesis.run(life.faults)
	nemesis.peace()
	ok := c.eventually("the cluster recovers", simSettle, func() string { return c.unwell(nemesis) })
	if ok {
		close(stop)
		clients.Wait()
		c.settle()
		close(unwatch)
		watch.Wait()
		if !c.broken.Load() {
			c.check()
		}
	} else {
		close(stop)
		close(unwatch)
		clients.Wait()
		watch.Wait()
	}
	close(c.ending)
	nodes.Wait()
	time.Sleep(simLinger) // the bubble panics if a goroutine is left then
	if c.broken.Load() {
		c.keepLog()
	}
}

// eventually waits until what says "" within a bound.
func (c *simCluster) eventually(name string, bound time.Duration, what func() string) bool {
	last := ""
	for began := time.Now(); time.Since(began) < bound; time.Sleep(250 * time.Millisecond) {
		if c.broken.Load() {
			return false
		}
		if last = what(); last == "" {
			return true
		}
	}
	c.violation("H: %s: not within %v: %s", name, bound, last)
	return false
}

// lead returns the leader that may serve, nil if there is none now.
func (c *simCluster) lead() *simNode {
	for _, n := range c.nodes {
		up, _, end := n.use(time.Second)
		if up == nil {
			continue
		}
		if up.raft.Load() != nil {
			c.leads(n, up)
		}
		leads := up.raft.Load() != nil && up.isReady() && up.mayServe() == nil
		end()
		if leads {
			return n
		}
	}
	return nil
}

// unwell says what is missing until everything is as it should be without
// faults, "" if nothing is.
func (c *simCluster) unwell(m *nemesis) string {
	m.takeBack()
	lead := c.lead()
	if lead == nil {
		return "no leader"
	}
	for _, n := range c.nodes {
		if why := c.unwellNode(lead, n); why != "" {
			return fmt.Sprintf("node %d: %s", n.i+1, why)
		}
	}
	return ""
}

// unwellNode says what is missing at one node: it must be a member in its role,
// sound, and serve.
func (c *simCluster) unwellNode(lead, n *simNode) string {
	up, ctx, end := n.use(5 * time.Second)
	if up == nil {
		return "is down"
	}
	defer end()
	boss, _, endBoss := lead.use(5 * time.Second)
	if boss == nil {
		return "no leader"
	}
	m := boss.membership()
	endBoss()
	s, ok := m.find(uint64(n.i + 1))
	switch {
	case !ok || s.ID != serverID(up.identity()):
		return "is not a member"
	case (s.Suffrage == raft.Voter) == n.o.learner:
		return fmt.Sprintf("is %v", s.Suffrage)
	case up.raft.Load() == nil:
		return "has no Raft"
	case n.damaged.Load() && c.elapsed()-n.since.Load() < int64(c.scrub+time.Minute):
		return "is not scrubbed yet"
	}
	if err := up.confirmRead(ctx); err != nil {
		return err.Error()
	}
	if state := up.store.storageState(); state != "ok" {
		return state
	}
	h, err := up.signedHead(ctx, up.store.size(), false)
	if err != nil {
		return err.Error()
	}
	c.told.showed(c, n.i, h.size, h.root)
	cl := &simClient{c: c, id: 100 + n.i, rng: c.rng, made: int(c.told.tick.Add(1))}
	if _, err := cl.submit(n, &request{ops: []operation{putOf("peace", fmt.Sprint(cl.id, "-", cl.made))}}); err != nil {
		return err.Error()
	}
	return ""
}

// settle seals everything, on all nodes.
func (c *simCluster) settle() {
	var size uint64
	c.eventually("everything is sealed", simSettle, func() string {
		lead := c.lead()
		if lead == nil {
			return "no leader"
		}
		up, ctx, end := lead.use(simWriteTimeout)
		if up == nil {
			return "no leader"
		}
		defer end()
		size = up.store.size()
		if err := up.seal(ctx); err != nil {
			return err.Error()
		}
		return ""
	})
	c.eventually("all nodes have all", simSettle, func() string {
		for _, n := range c.nodes {
			up, _, end := n.use(time.Second)
			if up == nil {
				return fmt.Sprintf("node %d is down", n.i+1)
			}
			shown, d := up.store.manifest.Load().confirmedEnd(), up.store.durable.Load().at.size
			end()
			if shown < size || d < size {
				return fmt.Sprintf("node %d shows %d and has sealed %d of %d entries", n.i+1, shown, d, size)
			}
		}
		return ""
	})
}

// keepLog shows the end of what the nodes said.
func (c *simCluster) keepLog() {
	path := cmp.Or(os.Getenv("SCRIBE_SIM_LOG"), os.TempDir()) + fmt.Sprintf("/scribe-sim-%d.log", c.seed)
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	if err := os.WriteFile(path, c.log.b, 0o600); err == nil {
		c.t.Logf("seed %d: the end of the log is in %s", c.seed, path)
	}
}
