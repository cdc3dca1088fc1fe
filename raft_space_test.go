package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// spaces gives every node a disk of 1 GiB of which the test says how much is free.
func spaces() (free map[uint64]*atomic.Uint64, change func(*nodeOptions)) {
	free = make(map[uint64]*atomic.Uint64)
	return free, func(o *nodeOptions) {
		left := new(atomic.Uint64)
		left.Store(plenty)
		free[o.id] = left
		o.space = func(string) (diskSpace, error) { return diskSpace{free: left.Load(), total: 1 << 30}, nil }
	}
}

const (
	plenty = 1 << 29
	scarce = 1 << 24
)

// The mark is 5 % between its bounds; a full disk needs a quarter more.
func TestSpaceMark(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		free, total uint64
		full, stays bool
	}{
		{free: 0, total: 0, full: true, stays: true},
		{free: 16<<20 - 1, total: 64 << 20, full: true, stays: true},
		{free: 16 << 20, total: 64 << 20, stays: true},
		{free: 20<<20 - 1, total: 64 << 20, stays: true},
		{free: 20 << 20, total: 64 << 20},
		{free: 50<<20 - 1, total: 1000 << 20, full: true, stays: true},
		{free: 50 << 20, total: 1000 << 20, stays: true},
		{free: 63 << 20, total: 1000 << 20},
		{free: 1<<30 - 1, total: 1 << 50, full: true, stays: true},
		{free: 5 << 28, total: 1 << 50},
	} {
		s := diskSpace{row.free, row.total}
		if s.full(false) != row.full || s.full(true) != row.stays {
			t.Errorf("%+v: becomes full %v, stays full %v", row, s.full(false), s.full(true))
		}
	}
	if s, err := statSpace(t.TempDir()); err != nil || s.total == 0 || s.free > s.total {
		t.Errorf("the disk has %+v, %v", s, err)
	}
	if _, err := statSpace(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a directory that is not there has space")
	}
}

// A node that is alone refuses writes while its disk is nearly full, reads go
// on, and once space is back so do writes, in the same process.
func TestDiskFullRefusesWrites(t *testing.T) {
	t.Parallel()
	free, change := spaces()
	c := newCluster(t, 1, change)
	n := c.nodes[0]
	c.put(0, "a", "1")
	free[1].Store(scarce)
	eventually(t, "the full disk is not noticed", func() bool { return n.diskFull.Load() })
	for _, size := range []int{1, 3 * packSize} {
		if _, err := n.put("b", string(make([]byte, size)), ""); !errors.Is(err, errDiskFull) || errors.Is(err, errUnknownOutcome) {
			t.Errorf("a write of %d bytes onto a full disk: %v", size, err)
		}
	}
	if v := c.get(0, "a"); v != "1" {
		t.Errorf("a full node reads %q", v)
	}
	m := &n.node.o.metrics.disk
	if st := n.status(); !st.diskFull || !st.noRoom || m.full.value() != 1 || m.free.value() != scarce {
		t.Errorf("status %+v, metrics: full %d, free %d", st, m.full.value(), m.free.value())
	}
	reserve := diskSpace{total: 1 << 30}.reserve()
	free[1].Store(reserve + 1)
	eventually(t, "the space is not looked at", func() bool { return m.free.value() == int64(reserve+1) })
	if _, err := n.put("b", "1", ""); !errors.Is(err, errDiskFull) {
		t.Errorf("a write when hardly any space came back: %v", err)
	}
	free[1].Store(plenty)
	eventually(t, "the mark stays although there is room", func() bool { return !n.diskFull.Load() })
	c.put(0, "b", "1")
	if m.full.value() != 0 || n.status().noRoom {
		t.Error("the node still says that its disk is full")
	}
}

// A leader whose disk fills up hands over to a node with room before anybody is
// refused. Only when all disks are full are writes, everywhere; one with room
// again is enough to go on, and then leads.
func TestFullDisksHandOver(t *testing.T) {
	t.Parallel()
	free, change := spaces()
	c := newCluster(t, 3, change, func(o *nodeOptions) { o.helloAfter = 50 * time.Millisecond })
	acked, stop := c.load(4) // fails the test when a write is refused
	defer stop()
	c.goOn(acked, 50)
	full := make([]int, 0, 3)
	for range 2 {
		lead := -1
		eventually(t, "a full node stays the leader", func() bool { lead = c.leader(); return !slices.Contains(full, lead) })
		full = append(full, lead)
		free[c.nodes[lead].o.id].Store(scarce)
		eventually(t, "the full leader stays", func() bool { return c.nodes[lead].diskFull.Load() && !c.nodes[lead].leads() })
		c.goOn(acked, 50)
	}
	last := 3 - full[0] - full[1]
	eventually(t, "the node that has room does not lead", func() bool { return c.leader() == last })
	stop()
	free[c.nodes[last].o.id].Store(scarce)
	eventually(t, "a write is not refused", func() bool {
		_, err := c.nodes[full[0]].put("refused", "1", "")
		return errors.Is(err, errDiskFull)
	})
	term := c.nodes[last].status().term
	c.wantFull(t)
	for i := range c.nodes {
		c.get(i, "load-0-0")
	}
	if now := c.nodes[last].status().term; now > term+1 {
		t.Errorf("with all disks full term %d became %d", term, now)
	}
	free[c.nodes[full[0]].o.id].Store(plenty)
	eventually(t, "writes are refused although a node has room", func() bool {
		_, err := c.nodes[full[1]].put("again", "1", "again")
		return err == nil
	})
	eventually(t, "the node that has room does not lead", func() bool { return c.leader() == full[0] })
}

// wantFull sees each node refuse a write because all disks are full.
func (c *testCluster) wantFull(t *testing.T) {
	t.Helper()
	for i, n := range c.nodes {
		eventually(t, fmt.Sprintf("node %d does not refuse a write", i+1), func() bool {
			_, err := n.put("refused", "1", "")
			return errors.Is(err, errDiskFull)
		})
		eventually(t, "a node does not know that writes are refused", func() bool { return n.status().noRoom })
	}
}

// A follower whose disk takes nothing any more holds up nobody, is not asked to
// lead, and has everything soon after it has space again.
func TestFullFollower(t *testing.T) {
	t.Parallel()
	free, change := spaces()
	disks, gated := gates()
	c := newCluster(t, 3, change, gated)
	lead := c.leader()
	full, other := (lead+1)%3, (lead+2)%3
	id := c.nodes[full].o.id
	free[id].Store(0)
	disks[id].full.Store(true)
	eventually(t, "the leader does not know of the full disk", func() bool { return c.nodes[lead].roomiest() == c.nodes[other].o.id })
	term := c.nodes[lead].status().term
	c.fill(lead, "key", 100, 30<<10) // more than the file in use takes
	if now := c.nodes[lead].status().term; now > term+1 {
		t.Errorf("term %d became %d", term, now)
	}
	eventually(t, "the node that has room does not lead", func() bool {
		now := c.leader()
		if now == lead {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			c.nodes[lead].transfer(ctx, 0)
		}
		return now == other
	})
	c.put(other, "key", "1")
	if got, want := c.nodes[full].store.size(), c.nodes[other].store.size(); got == want {
		t.Error("the full disk took everything")
	}
	free[id].Store(plenty)
	disks[id].full.Store(false)
	if v := c.get(full, "key"); v != "1" {
		t.Errorf("the node that was full reads %q", v)
	}
	eventually(t, "the mark stays although there is room", func() bool { return !c.nodes[full].diskFull.Load() })
}
