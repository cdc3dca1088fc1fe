package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// simTotals is what all seeds of a run come to.
type simTotals struct {
	simCount
	virtual atomic.Int64 // ns
	ops     atomic.Int64
	seeds   atomic.Int64
}

// TestSim runs simulated clusters (sim_cluster_test.go) under virtual time, one
// for each seed. What goes wrong is the seed's, in which order goroutines run is
// not: a seed that found something finds it again in most runs, if not in all.
//
//	go test -run 'TestSim$' .                               a few minutes of each of five seeds
//	SCRIBE_SEED=17 go test -run 'TestSim$' -v .             one seed, an hour of it
//	SCRIBE_SIM_HOURS=100 go test -run 'TestSim$' -v .       100 virtual hours, an hour a seed
//	SCRIBE_SIM_HOURS=8760 go test -run 'TestSim$' -timeout 0 -v .   a year
//
// SCRIBE_SIM_EVERY is the time between two faults in seconds: clients keep pace, and
// lives are as much shorter. SCRIBE_SEED with SCRIBE_SIM_HOURS is the first seed
// of a longer run, with SCRIBE_SIM_SHORT=1 it is run as in the plain test.
// SCRIBE_SIM_LOG is the directory for the logs of seeds that found something.
func TestSim(t *testing.T) {
	first, hours := envUint(t, "SCRIBE_SEED"), envUint(t, "SCRIBE_SIM_HOURS")
	short := hours == 0 && (first == 0 || os.Getenv("SCRIBE_SIM_SHORT") != "")
	count := max(hours, 1)
	if first == 0 {
		first = 1
		if short {
			count = 5
		}
	}
	life := simLife{faults: time.Hour, every: 20 * time.Second, scrub: 4 * time.Minute, again: "go test -run 'TestSim$' ."}
	if short {
		life = simLife{4 * time.Minute, 6 * time.Second, 30 * time.Second, "SCRIBE_SIM_SHORT=1 " + life.again}
	}
	if s := envUint(t, "SCRIBE_SIM_EVERY"); s > 0 {
		life.every = time.Duration(s) * time.Second
		life.faults = min(life.faults, 180*life.every)
		life.again = fmt.Sprintf("SCRIBE_SIM_EVERY=%d %s", s, life.again)
	}
	var totals simTotals
	if hours > 0 {
		defer debug.SetGCPercent(debug.SetGCPercent(400))
	}
	began := coreTime()
	t.Run("seeds", func(t *testing.T) {
		for seed := first; seed < first+count; seed++ {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				totals.run(t, seed, life)
			})
		}
	})
	text, events := totals.list()
	spent := (coreTime() - began).Minutes()
	virtual := time.Duration(totals.virtual.Load())
	t.Logf("%d seeds, %.2f virtual hours, %d operations checked, %d events:\n%s%.1f virtual hours a core-minute",
		totals.seeds.Load(), virtual.Hours(), totals.ops.Load(), events, text, virtual.Hours()/spent)
}

// coreTime is the time of all cores that this process has used.
func coreTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// run simulates one seed.
func (s *simTotals) run(t *testing.T, seed uint64, life simLife) {
	began, dir := time.Now(), simTempDir(t)
	var looks atomic.Int64
	defer watchdog(seed, &looks)()
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, seed, dir, life)
		c.looks = &looks
		c.run(life)
		virtual := time.Duration(c.elapsed())
		s.virtual.Add(int64(virtual))
		s.seeds.Add(1)
		s.merge(c.count)
		_, events := c.count.list()
		s.ops.Add(int64(len(c.told.ops)))
		t.Logf("seed %d: %d nodes, %v, %d operations, %d acknowledged, %d events",
			seed, len(c.nodes), virtual.Round(time.Second), len(c.told.ops), len(c.told.acked), events)
	})
	checkFiles(t, seed, dir)
	t.Logf("seed %d took %v", seed, time.Since(began).Round(time.Millisecond))
}

// envUint reads a number from the environment, 0 if there is none.
func envUint(t testing.TB, name string) uint64 {
	s := os.Getenv(name)
	if s == "" {
		return 0
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// watchdog ends the process, with all stacks, when virtual time stands still:
// something in the bubble waits where synctest cannot see it, or for ever.
func watchdog(seed uint64, looks *atomic.Int64) (stop func()) {
	const limit = 5 * time.Minute // of real time
	done := make(chan struct{})
	go func() {
		for last := int64(-1); ; {
			select {
			case <-done:
				return
			case <-time.After(limit):
			}
			if now := looks.Load(); now == last {
				debug.SetTraceback("all")
				panic(fmt.Sprintf("seed %d: H: virtual time stands still for %v", seed, limit))
			} else {
				last = now
			}
		}
	}()
	return func() { close(done) }
}
