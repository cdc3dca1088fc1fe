package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestLogBack: so many of the newest entries take so many bytes, over several
// files, after a truncation and when nothing is there.
func TestLogBack(t *testing.T) {
	t.Parallel()
	l, err := openLogStore(t.TempDir(), logOptions{fileSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if got := l.back(1, 100); got != 1 {
		t.Errorf("of an empty log %d", got)
	}
	store := func(from, to uint64) {
		for i := from; i <= to; i++ {
			if err := l.StoreLog(&raft.Log{Index: i, Term: 1, Type: raft.LogCommand, Data: make([]byte, 100<<10)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	store(1, 40)
	size := int64(entrySize(&raft.Log{Data: make([]byte, 100<<10)}))
	check := func(end uint64, bytes int64, want uint64) {
		t.Helper()
		if got := l.back(end, bytes); got != want {
			t.Errorf("%d bytes before %d begin at %d, want %d", bytes, end, got, want)
		}
	}
	for n := range uint64(40) {
		check(41, int64(n)*size, 41-n)
		check(41, int64(n)*size+size-1, 41-n)
	}
	check(41, 1<<40, 1)
	check(99, 1<<40, 1)
	check(20, 5*size, 15)
	if err := l.DeleteRange(1, 10); err != nil {
		t.Fatal(err)
	}
	check(41, 1<<40, 11)
	check(5, 1<<40, 11)
	if err := l.DeleteRange(31, 40); err != nil {
		t.Fatal(err)
	}
	check(41, 2*size, 29)
	store(31, 33)
	check(34, 4*size, 30)
	if err := l.reset(100); err != nil {
		t.Fatal(err)
	}
	check(101, 1<<40, 101)
}

// TestKeepFrom: what is kept of the log when D moves, by size, age and floor;
// nothing that D does not cover ever goes.
func TestKeepFrom(t *testing.T) {
	t.Parallel()
	l, err := openLogStore(t.TempDir(), logOptions{fileSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for i := range uint64(100) {
		if err := l.StoreLog(&raft.Log{Index: i + 1, Term: 1, Type: raft.LogCommand, Data: make([]byte, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	size := int64(entrySize(&raft.Log{Data: make([]byte, 1000)}))
	start := time.Now()
	n := &node{log: l}
	for name, row := range map[string]struct {
		limits     logLimits
		at, before uint64
		passed     time.Duration // since D was at 30
		want       uint64
	}{
		"size":                      {logLimits{bytes: 20 * size, age: time.Hour}, 80, 70, 0, 61},
		"size beyond the D before":  {logLimits{bytes: 5 * size, age: time.Hour}, 80, 70, 0, 70},
		"all of it fits":            {logLimits{bytes: 1 << 30, age: time.Hour}, 80, 70, 0, 1},
		"age":                       {logLimits{bytes: 1 << 30, age: time.Hour}, 80, 70, time.Hour, 30},
		"younger":                   {logLimits{bytes: 1 << 30, age: time.Hour}, 80, 70, time.Hour - 1, 1},
		"floor against age":         {logLimits{bytes: 1 << 30, age: time.Hour, floor: 90 * size}, 80, 70, 2 * time.Hour, 11},
		"floor against size":        {logLimits{bytes: size, age: time.Hour, floor: 50 * size}, 80, 70, 0, 51},
		"floor behind the D before": {logLimits{bytes: size, age: time.Hour, floor: 10 * size}, 80, 70, 0, 70},
		"D did not move":            {logLimits{bytes: 1, age: time.Hour}, 70, 70, 0, 70},
		"nothing is to be kept":     {logLimits{bytes: 1}, 100, 100, 0, 100},
	} {
		n.o.logLimits, n.ages = row.limits, logAges{}
		n.keepFrom(start, 30, 30, 100)
		if got := n.keepFrom(start.Add(row.passed), row.at, row.before, 100); got != row.want {
			t.Errorf("%s: the log is kept from %d, want %d", name, got, row.want)
		}
	}
}

// TestBriefAbsenceNeedsNoSnapshot: with the limits of production a follower that
// missed many seals gets what it lacks from the log.
func TestBriefAbsenceNeedsNoSnapshot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(o *nodeOptions) { o.logLimits = defaultLogLimits })
	lead := c.leader()
	down := (lead + 1) % 3
	c.put(lead, "before", "1")
	c.kill(down)
	for i := range 5 {
		c.fill(lead, fmt.Sprint("key-", i), 20, 1000)
		c.sealAll()
	}
	c.start(down)
	if v := c.get(down, "key-4-19"); len(v) != 1000 {
		t.Errorf("value has %d bytes", len(v))
	}
	if got := c.nodes[down].node.o.metrics.snapshot.installed.value(); got != 0 {
		t.Errorf("it installed %d snapshots", got)
	}
	if first, _ := c.nodes[lead].log.FirstIndex(); first != 1 {
		t.Errorf("the log begins at %d", first)
	}
}
