package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// wrongNode is the id of the node that applies "wrong" where the others apply "right".
type wrongNode struct{ id atomic.Uint64 }

// into gives the node's options what makes it go wrong.
func (w *wrongNode) into(o *nodeOptions) {
	id := o.id
	o.alter = func(command []byte) []byte {
		if w.id.Load() != id {
			return command
		}
		return bytes.ReplaceAll(command, []byte("right"), []byte("wrong"))
	}
}

// newWrongCluster forms three nodes that compare every so often.
func newWrongCluster(t *testing.T, every time.Duration) (*testCluster, *wrongNode) {
	w := &wrongNode{}
	return newCluster(t, 3, w.into, func(o *nodeOptions) { o.checkEvery = every }), w
}

// putWrong writes what node w applies wrongly. Nothing is remembered of it: the
// answer may come from that node.
func (c *testCluster) putWrong(i int) {
	c.t.Helper()
	largest := func() (size uint64) {
		for _, n := range c.nodes {
			if n.node != nil {
				size = max(size, n.store.size())
			}
		}
		return size
	}
	before := largest()
	eventually(c.t, "it is not written", func() bool {
		_, err := c.nodes[i].put("k", "right", "once")
		if err != nil && !unsettled(err) {
			c.t.Fatal(err)
		}
		return err == nil || largest() > before
	})
}

// wantStopped waits until node i has stopped, takes it down and checks that it
// does not start again.
func (c *testCluster) wantStopped(i int, say ...string) {
	c.t.Helper()
	n := c.nodes[i]
	err := receive(c.t, n.failed(), "the diverged node stops")
	wantError(c.t, err, errDiverged, append(say, howToRepair)...)
	eventually(c.t, "Raft goes on", func() bool { // its State says nothing: a message that came meanwhile may have set it back
		return errors.Is(n.raft.Load().BootstrapCluster(raft.Configuration{}).Error(), raft.ErrRaftShutdown)
	})
	if err := n.confirmRead(c.t.Context()); !errors.Is(err, errNoLeader) {
		c.t.Errorf("a read is confirmed: %v", err)
	}
	if err := n.mayServe(); !errors.Is(err, errNoLeader) || n.status().ready {
		c.t.Errorf("it still serves: %v", err)
	}
	c.kill(i)
	again := c.tryStart(i)
	wantError(c.t, again, errDiverged, append(say, howToRepair)...)
}

// repair sets the state of node i aside and starts it.
func (c *testCluster) repair(i int) {
	c.t.Helper()
	var aside string
	eventually(c.t, "repairing", func() bool {
		var err error
		aside, err = repairNode(c.t.Context(), c.nodes[i].o)
		if err != nil && !errors.Is(err, errAlone) {
			c.t.Fatal(err)
		}
		return err == nil
	})
	for _, name := range []string{ledgerName, nodeFileName, nodeKeyName, signedName, cosignedName, divergedName} {
		if _, err := os.Stat(filepath.Join(aside, name)); err != nil {
			c.t.Error(err)
		}
	}
	c.start(i)
	c.wantVoters(3)
}

// A node that applied something else stops when the nodes compare, in the
// middle of a segment or at its end, whether it follows or leads; the others go
// on. It does not start again until it was repaired, and then has what they have.
func TestDivergedNode(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		leads, sealed bool
	}{
		"follower, pending": {false, false},
		"follower, sealed":  {false, true},
		"leader, pending":   {true, false},
		"leader, sealed":    {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			every := 10 * time.Millisecond
			if row.sealed {
				every = time.Hour
			}
			c, w := newWrongCluster(t, every)
			lead := c.leader()
			c.fill(lead, "before", 300, 10)
			if row.sealed {
				c.sealAll()
			}
			bad := (lead + 1) % 3
			if row.leads {
				bad = lead
			}
			w.id.Store(c.nodes[bad].o.id)
			c.putWrong((bad + 1) % 3)
			if row.sealed {
				eventually(t, "it is not sealed", func() bool {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					c.nodes[lead].seal(ctx) // no answer if it leads
					_, count, _ := c.nodes[lead].store.pendingInfo()
					return count == 0 || c.nodes[bad].mayServe() != nil
				})
			}
			c.wantStopped(bad, "entries ", " to ", " here")
			w.id.Store(0)
			c.put((bad+1)%3, "after", "1")
			if v := c.get((bad+2)%3, "k"); v != "right" {
				t.Errorf("the others read %q", v)
			}
			c.repair(bad)
			if v := c.get(bad, "k"); v != "right" {
				t.Errorf("repaired, it reads %q", v)
			}
		})
	}
}

// A node that signed or cosigned another tree than it has stops when it is
// opened, if the others are enough without it. Repaired, it has a new key, and
// nothing it signed before binds it. One of two nodes must go on.
func TestSignedOtherTree(t *testing.T) {
	for name, row := range map[string]struct {
		size int
		file string
	}{
		"signed":     {3, signedName},
		"cosigned":   {3, cosignedName},
		"one of two": {2, cosignedName},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, row.size)
			lead := c.leader()
			c.put(lead, "k", "v")
			bad := (lead + 1) % row.size
			c.waitCosigners(bad, 1, row.size)
			c.signed(bad, 1, false)
			key := c.nodes[bad].publicKey()
			r := c.nodes[bad].signer.file.last
			if row.file == cosignedName {
				r = c.nodes[bad].cosigner.file.last
			}
			r.root[7] ^= 1
			c.kill(bad)
			if err := os.WriteFile(filepath.Join(c.nodes[bad].o.dataDir, row.file), forgeSigned(r), 0o600); err != nil {
				t.Fatal(err)
			}
			c.start(bad)
			if row.size == 2 {
				eventually(t, "it still signs", func() bool { return c.nodes[bad].refused() != nil })
				c.put(bad, "k", "more")
				_, err := c.nodes[bad].signedHead(t.Context(), 1, false)
				wantError(t, err, errDiverged, "entries 0 to 0: the tree has root")
				return
			}
			c.wantStopped(bad, "entries 0 to 0: the tree has root")
			c.repair(bad)
			if c.nodes[bad].publicKey() == key {
				t.Error("it has its old key")
			}
			c.waitCosigners(bad, 1, row.size)
		})
	}
}

// With one node down, two that differ cannot tell who is right: both serve
// nothing until the third decides.
func TestDivergenceUndecided(t *testing.T) {
	t.Parallel()
	c, w := newWrongCluster(t, 10*time.Millisecond)
	lead := c.leader()
	down, other := (lead+1)%3, (lead+2)%3
	c.put(lead, "a", "1")
	c.kill(down)
	w.id.Store(c.nodes[lead].o.id)
	c.putWrong(other)
	for _, i := range []int{lead, other} {
		n := c.nodes[i]
		eventually(t, "no doubt", func() bool { return errors.Is(n.mayServe(), errUndecided) })
		if err := n.confirmRead(t.Context()); !errors.Is(err, errUndecided) || !errors.Is(err, errNoLeader) {
			t.Errorf("node %d confirms a read: %v", i+1, err)
		}
		if n.status().ready {
			t.Errorf("node %d is ready", i+1)
		}
	}
	if err := c.nodes[lead].mayPropose(); !errors.Is(err, errNotApplied) {
		t.Errorf("a write is proposed: %v", err)
	}
	_, err := repairNode(t.Context(), c.nodes[down].o)
	wantError(t, err, errAlone, "does not know whether its own is right") // its vote is what is missing
	c.start(down)
	c.wantStopped(lead, "entries 0 to ")
	w.id.Store(0)
	if v := c.get(other, "k"); v != "right" {
		t.Errorf("the one that was right reads %q", v)
	}
	c.repair(lead)
}

// Repair refuses while the others have no leader without the node, or when
// there is nothing to repair.
func TestRepairRefuses(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	lead := c.leader()
	c.put(lead, "a", "1")
	_, err := repairNode(t.Context(), c.nodes[lead].o)
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("repairing a node that runs: %v", err)
	}
	c.kill(lead)
	_, err = repairNode(t.Context(), c.nodes[lead].o)
	wantError(t, err, errAlone, c.nodes[1-lead].o.raftAddr)
	c.kill(1 - lead)
	_, err = repairNode(t.Context(), c.nodes[lead].o)
	wantError(t, err, errAlone, c.nodes[1-lead].o.raftAddr)
	o := c.nodes[lead].o
	o.dataDir = t.TempDir()
	if _, err = repairNode(t.Context(), o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("repairing nothing: %v", err)
	}
	c.start(0)
	c.start(1)
	if v := c.get(0, "a"); v != "1" {
		t.Errorf("a refused repair changed something: %q", v)
	}
}

// A repair that was cut off goes on when it is asked for again.
func TestSetAsideTwice(t *testing.T) {
	dir := t.TempDir()
	at := time.Unix(1_700_000_000, 0)
	for _, name := range []string{ledgerName, lockName} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := markDiverged(dir, "a line\nand more"); err != nil {
		t.Fatal(err)
	}
	wantError(t, refuseDiverged(dir), errDiverged, "a line and more")
	for range 2 {
		aside, err := setAside(dir, at)
		if err != nil || aside != filepath.Join(dir, "set-aside-1700000000") {
			t.Fatal(aside, err)
		}
		if err := refuseDiverged(dir); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(aside, ledgerName)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, lockName)); err != nil {
		t.Error(err)
	}
}

// Messages between nodes that make no sense are refused.
func TestClaimMessages(t *testing.T) {
	c := treeClaim{5, leafHash([]byte("a")), leafHash([]byte("b"))}
	m := c.message()
	if got, err := m.parse(); err != nil || got != c {
		t.Errorf("parsed %+v, %v", got, err)
	}
	for _, bad := range []claimMessage{{}, {Size: 5, Root: "00"}, {Size: 5, Root: m.Root, Sum: "zz"}, {Size: 5, Root: strings.ToUpper(m.Root)}} {
		if _, err := bad.parse(); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
