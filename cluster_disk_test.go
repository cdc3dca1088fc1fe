package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A disk that takes its time makes the cluster slower and nothing else: no
// leader changes, unless another one has a faster disk, and nothing is
// acknowledged before it is on the disks of most.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	const (
		delay = 300 * time.Millisecond  // more than a leader lets its followers be silent
		long  = 1500 * time.Millisecond // more than a leader may have that is slower than others
	)
	for name, row := range map[string]struct {
		delay time.Duration
		slow  []int         // from the leader on
		wait  time.Duration // of each write
		terms uint64        // elections that may be had
	}{
		"leader":             {delay, []int{0}, 0, 0},
		"follower":           {delay, []int{1}, 0, 0},
		"all":                {delay, []int{0, 1, 2}, delay, 0},
		"all followers":      {delay, []int{1, 2}, delay, 0},
		"slow leader":        {long, []int{0}, 0, 2},
		"slow follower":      {long, []int{1}, 0, 0},
		"all slow followers": {long, []int{1, 2}, long, 0},
		"all slow":           {long, []int{0, 1, 2}, long, 6}, // until they know it of each other
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calmly(t, func(slower int) (*testCluster, error) {
				disks, change := gates()
				c := newCluster(t, 3, change, electing(slower))
				lead := c.leader()
				c.put(lead, "a", "0")
				term := c.term()
				writes, pause, wait := 2, row.delay, row.wait
				if pause == delay {
					writes, pause, wait = 5, pause*time.Duration(slower), wait*time.Duration(slower)
				}
				for _, k := range row.slow {
					disks[c.nodes[(lead+k)%3].o.id].delay.Store(int64(pause))
				}
				start := time.Now()
				for k := range writes {
					c.put(lead, "a", fmt.Sprint(k))
				}
				if took := time.Since(start); took < time.Duration(writes)*wait {
					t.Errorf("%d writes took %v: one was acknowledged before it was on disk", writes, took)
				}
				now := c.term()
				for _, d := range disks {
					d.delay.Store(0)
				}
				for i := range c.nodes {
					if v := c.get(i, "a"); v != fmt.Sprint(writes-1) {
						t.Errorf("node %d reads %q", i+1, v)
					}
				}
				if now > term+row.terms {
					return c, fmt.Errorf("term %d became %d, want at most %d more", term, now, row.terms)
				}
				return c, nil
			})
		})
	}
}

// A follower whose disk hangs holds up nobody, and gets everything soon after it
// works again.
func TestHungDiskOfFollower(t *testing.T) {
	t.Parallel()
	calmly(t, func(slower int) (*testCluster, error) {
		disks, change := gates()
		c := newCluster(t, 3, change, electing(slower), func(o *nodeOptions) { o.writeTimeout = 2 * time.Second })
		lead := c.leader()
		hung, other := (lead+1)%3, (lead+2)%3
		term := c.term()
		open := disks[c.nodes[hung].o.id].close()
		defer open()
		acked, stop := c.loadOn(4, lead, other)
		defer stop()
		c.goOn(acked, 200)
		eventually(t, "the disk does not hang", func() bool { return disks[c.nodes[hung].o.id].waiting.Load() > 0 })
		c.endure(acked, time.Duration(slower)*storm(t), 50)
		err := c.wantLeader(lead, term)
		stop()
		c.put(other, "a", "1")
		open()
		start := time.Now()
		if v := c.get(hung, "a"); v != "1" {
			t.Errorf("the node reads %q", v)
		}
		if took := time.Since(start); took > healWithin*time.Duration(slower) {
			err = fmt.Errorf("the node has everything after %v, want at most %v", took, healWithin)
		}
		return c, err
	})
}

// A disk that says that it has synced, and has not, makes its node forget when
// the power fails. The others have what was acknowledged, and it gets it again.
func TestLyingDisk(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	lead := c.leader()
	liar := (lead + 1) % 3
	c.put(lead, "before", "1")
	c.get(liar, "before")
	c.kill(liar)
	logs := filepath.Join(c.nodes[liar].o.dataDir, raftDir)
	synced := readFiles(t, filepath.Join(logs, "*.log"))
	c.start(liar)
	c.fill(lead, "key", 50, 1000)
	c.put(lead, "after", "1")
	c.get(liar, "after") // it has acknowledged it
	c.kill(liar)
	for path, b := range synced {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for path := range readFiles(t, filepath.Join(logs, "*.log")) {
		if _, ok := synced[path]; !ok {
			os.Remove(path)
		}
	}
	c.comeBack(liar)
	if v := c.get(liar, "after"); v != "1" {
		t.Errorf("the node reads %q", v)
	}
	c.put(liar, "again", "1")
}

// readFiles reads all files that match a pattern.
func readFiles(t testing.TB, pattern string) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string][]byte)
	for _, path := range paths {
		if files[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return files
}
