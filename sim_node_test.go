package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// simNode is a node of a simulated cluster with its disk. One goroutine, keep,
// starts and stops it, as a supervisor and an operator would: a node that ended
// itself is started again, one that refuses its damaged disk gets a new one.
type simNode struct {
	c    *simCluster
	i    int
	o    nodeOptions
	rng  *rand.Rand // of keep
	skew atomic.Int64
	cmds chan simCommand

	mu    sync.RWMutex
	up    *node         // nil while it is down
	gone  chan struct{} // closed when up goes down
	users *sync.WaitGroup

	disk   atomic.Pointer[simDisk]
	faults simStoreFaults
	dead   atomic.Bool // the store takes no more steps

	// owned by keep
	power   bool          // went off: the disk loses what was not synced
	downFor time.Duration // until it is started

	hears   atomic.Pointer[discovery]
	failing atomic.Bool  // something was done to it that may end it
	damaged atomic.Bool  // its disk was damaged at rest: it may refuse to start
	lost    atomic.Bool  // what it had may go, or is gone, and it was not seen as a member since
	since   atomic.Int64 // when it was damaged or started last, whichever is later, as elapsed says
}

// simStoreFaults is what is to go wrong with the steps of the store.
type simStoreFaults struct {
	crashIn atomic.Int32 // steps until the power goes
	failIn  atomic.Int32 // steps until one fails
	full    atomic.Bool
	scarce  atomic.Bool // space is below the high-water mark
}

// space is what the node's disk says of itself.
func (n *simNode) space(string) (diskSpace, error) {
	if n.faults.scarce.Load() || n.faults.full.Load() {
		return diskSpace{free: 1 << 20, total: 100 << 30}, nil
	}
	return diskSpace{free: 50 << 30, total: 100 << 30}, nil
}

// simCommand is something an operator, or fate, does to a node.
type simCommand struct {
	kind string // kill, power, stop, wipe, rot
	down time.Duration
}

// newSimNode prepares node i of a cluster.
func newSimNode(c *simCluster, i int, addrs []string) *simNode {
	n := &simNode{c: c, i: i, rng: rand.New(rand.NewPCG(c.seed, uint64(i+100))), cmds: make(chan simCommand, 1)}
	n.o = nodeOptions{
		id: uint64(i + 1), httpURL: fmt.Sprintf("http://node-%d", i+1), raftAddr: addrs[i], raftListen: addrs[i],
		clusterName: "sim", secret: "sim", expect: c.founders, version: "sim", learner: i >= c.founders,
		segmentSize: 64 << 10, maxValueSize: 1 << 20, sealAfter: c.sealAfter, scrubRate: 1 << 30, scrubPause: c.scrub,
		electionMin: simElection, electionMax: 3 * simElection, heartbeat: simElection / 2,
		writeTimeout: simWriteTimeout, readTimeout: simReadTimeout, commitAfter: simElection / 2, helloAfter: time.Second,
		logger: c.logger.With("on", i+1), now: func() time.Time { return time.Now().Add(time.Duration(n.skew.Load())) },
		dial:        func(ctx context.Context, addr string) (net.Conn, error) { return c.net.dial(ctx, i, addr) },
		listen:      func(addr string) (net.Listener, error) { return c.net.listen(i, addr) },
		storeFault:  n.storeFault,
		space:       n.space,
		logFileSize: 64 << 10,
	}
	for k, a := range addrs {
		if k != i {
			n.o.seeds = append(n.o.seeds, a)
		}
	}
	n.newDisk()
	return n
}

// newDisk gives the node an empty disk.
func (n *simNode) newDisk() {
	n.o.dataDir = filepath.Join(n.c.dir, fmt.Sprintf("node-%d-%d", n.i+1, n.c.disks.Add(1)))
	n.disk.Store(newSimDisk(n.rng.Uint64(), n.c.count))
	n.power = false
}

// use returns the running node, a context that ends with it, and what to call
// when the call is over; nil if the node is down. Whoever is served when a
// process ends gets no answer.
func (n *simNode) use(limit time.Duration) (*node, context.Context, func()) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.up == nil {
		return nil, nil, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	users, gone := n.users, n.gone
	users.Add(1)
	stop := make(chan struct{})
	go func() {
		select {
		case <-gone:
			cancel()
		case <-stop:
		}
	}()
	return n.up, ctx, sync.OnceFunc(func() {
		close(stop)
		cancel()
		users.Done()
	})
}

// running returns the node if it runs; only keep may use it without use.
func (n *simNode) running() *node {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.up
}

// leave takes the node away from its clients and returns it.
func (n *simNode) leave() *node {
	n.mu.Lock()
	up, users := n.up, n.users
	n.up = nil
	if up != nil {
		close(n.gone)
	}
	n.mu.Unlock()
	if up != nil {
		users.Wait()
	}
	return up
}

// storeFault decides about a step of the store.
func (n *simNode) storeFault(step string) error {
	f := &n.faults
	switch {
	case n.dead.Load():
		return errSimPower
	case f.crashIn.Load() > 0 && f.crashIn.Add(-1) == 0:
		n.dead.Store(true)
		n.c.happened("power cut " + step)
		d := n.disk.Load()
		d.set(func(d *simDisk) {
			if !d.dead {
				d.stopLocked()
				d.tripped <- struct{}{}
			}
		})
		return errSimPower
	case f.failIn.Load() > 0 && f.failIn.Add(-1) == 0:
		n.c.happened("EIO " + step)
		return errSimIO
	case f.full.Load():
		n.c.happened("no space " + step)
		return errSimFull
	}
	return nil
}

// keep is the node's life until the cluster ends.
func (n *simNode) keep() {
	defer n.down(false)
	for {
		up := n.running()
		if up == nil {
			select {
			case <-time.After(n.downFor):
				n.boot()
			case <-n.c.ending:
				return
			}
			continue
		}
		select {
		case err := <-up.failed():
			n.ended(err)
		case <-n.disk.Load().tripped:
			n.down(true)
			n.downFor = n.some(20 * time.Second)
		case cmd := <-n.cmds:
			n.obey(cmd)
		case <-n.c.ending:
			return
		}
	}
}

// some draws a time up to most.
func (n *simNode) some(most time.Duration) time.Duration {
	return 100*time.Millisecond + time.Duration(n.rng.Int64N(int64(most)))
}

// boot starts the node on the disk as the last process left it.
func (n *simNode) boot() {
	n.disk.Store(n.disk.Load().next(n.power))
	n.power = false
	n.dead.Store(false)
	n.o.logDisk = n.disk.Load()
	n.c.net.powerOn(n.i)
	var found *simDiscovery
	if n.c.discovers {
		found = newSimDiscovery(n)
		n.o.seeds, n.o.suggest, n.o.peerState = nil, found.addresses, found.state
	}
	up, err := openNode(n.o)
	if err == nil {
		gone := make(chan struct{})
		n.mu.Lock()
		n.up, n.gone, n.users = up, gone, new(sync.WaitGroup)
		n.mu.Unlock()
		if found != nil {
			found.own = up.announced
			n.hears.Store(found.discovery)
			go found.announceLoop(gone)
		}
		n.since.Store(n.c.elapsed())
		n.c.wakeUp.fire()
		return
	}
	n.downFor = time.Second
	switch {
	case errors.Is(err, errSimPower):
		n.power = true
		select {
		case <-n.disk.Load().tripped:
		default:
		}
	case n.damaged.Load():
		n.c.logger.Warn("SIM: a node refuses its damaged disk and gets a new one", "node", n.i+1, "error", err)
		n.c.happened("then a node refused its disk and got a new one")
		n.damaged.Store(false)
		n.newDisk()
	case n.failing.Load() || n.faults.full.Load() || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EIO):
		n.c.happened("then a node failed to start")
	default:
		n.c.violation("node %d does not start: %v", n.i+1, err)
		n.newDisk() // go on with what there is
	}
}

// ended deals with a node that ended itself.
func (n *simNode) ended(err error) {
	n.c.logger.Warn("SIM: node ended itself", "node", n.i+1, "error", err)
	n.downFor = 100 * time.Millisecond
	switch {
	case errors.Is(err, errRestart):
		n.c.happened("then a node opened itself again")
	case errors.Is(err, errDiverged):
		n.c.violation("node %d says that it has diverged: %v", n.i+1, err)
	case errors.Is(err, errSimPower), errors.Is(err, errSimIO), errors.Is(err, errSimFull), n.failing.Load(), n.faults.full.Load(), n.damaged.Load():
		n.c.happened("then a node ended itself")
		n.downFor = n.some(5 * time.Second)
	default:
		n.c.violation("node %d ended itself though nothing was done to it: %v", n.i+1, err)
	}
	n.down(n.rng.IntN(3) == 0)
}

// down ends the process where it stands, or takes its power as well.
func (n *simNode) down(power bool) {
	up := n.leave()
	if up == nil {
		return
	}
	n.dead.Store(true)
	n.disk.Load().stop()
	n.power = n.power || power
	if power {
		n.c.net.powerOff(n.i)
	} else {
		n.c.net.kill(n.i)
	}
	up.release()
	n.buried(up)
	n.failing.Store(false)
}

// obey does what an operator or fate does.
func (n *simNode) obey(cmd simCommand) {
	n.downFor = cmd.down
	switch cmd.kind {
	case "stop":
		n.stop()
	case "kill":
		n.down(false)
	case "power":
		n.down(true)
	case "wipe":
		n.down(true)
		os.RemoveAll(n.o.dataDir)
		n.newDisk()
	case "rot":
		n.down(false)
		n.rot()
	}
}

// stop ends the node in order.
func (n *simNode) stop() {
	up := n.leave()
	if up == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	if err := up.close(ctx); err != nil && !n.failing.Load() && !n.damaged.Load() {
		n.c.logger.Warn("SIM: closing", "node", n.i+1, "error", err)
	}
	n.disk.Load().stop()
	n.buried(up)
}

// buried ends what a closed node leaves behind in this process.
func (n *simNode) buried(up *node) {
	if r := up.raft.Load(); r != nil {
		drainRaft(r)
	}
}

// rot damages one file of the node, which is down.
func (n *simNode) rot() {
	what := ""
	if n.rng.IntN(3) == 0 {
		what = n.disk.Load().rot()
	} else {
		all := filesBelow(n.o.dataDir, "segments/*", "index/*", "ledger.db", "raft/stable.db", "node.json", "signed", "cosigned", "node.key")
		if len(all) > 0 {
			what = rotFile(n.rng, all[n.rng.IntN(len(all))])
		}
	}
	if what != "" {
		n.damaged.Store(true)
		n.c.happened("damage at rest")
		n.c.logger.Warn("SIM: damage at rest", "node", n.i+1, "what", what)
	}
}
