package main

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// cosigners checks the cosignatures of a head with the keys node i knows and
// returns how many there are.
func (c *testCluster) cosigners(i int, h signedHead) int {
	c.t.Helper()
	n, err := parseNote(h.note)
	if err != nil {
		c.t.Fatal(err)
	}
	count := 0
	for id, vkey := range c.nodes[i].nodeVKeys() {
		v, err := parseVerifier(vkey)
		if err != nil {
			c.t.Fatal(err)
		}
		signed, unix, err := n.check(v)
		if err != nil || signed && time.Since(time.Unix(unix, 0)).Abs() > time.Minute {
			c.t.Errorf("cosignature of node %d at %d: %v", id, unix, err)
		}
		if signed {
			count++
		}
	}
	return count
}

// waitCosigners asks node i for a head until so many nodes have cosigned it.
func (c *testCluster) waitCosigners(i int, size uint64, want int) signedHead {
	c.t.Helper()
	var h signedHead
	eventually(c.t, "cosignatures are missing", func() bool {
		h = c.signed(i, size, true)
		return c.cosigners(i, h) == want
	})
	return h
}

func TestCosigned(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.put(0, "a", "1")
	lead := c.leader()
	h := c.waitCosigners(lead, 1, 3)
	if n, _ := parseNote(h.note); len(n.signatures) != 4 {
		t.Errorf("the note is %s", h.note)
	}
	c.put(lead, "a", "2")
	if h = c.signed(lead, 2, true); c.cosigners(lead, h) != 3 {
		t.Errorf("node keys are known, but the head has %s", h.note)
	}
	number := c.nodes[lead].cosigner.file.last.number
	for i := range 3 {
		eventually(t, "a node lags", func() bool { return c.nodes[i].store.size() == 2 })
		if got := c.signed(i, 2, true); got.note != h.note {
			t.Errorf("node %d serves %s, the leader %s", i+1, got.note, h.note)
		}
	}
	if got := c.nodes[lead].cosigner.file.last.number; got != number {
		t.Errorf("an unchanged ledger was cosigned again: %d, before %d", got, number)
	}
	c.restart((lead + 1) % 3)
	lead = c.leader()
	c.waitCosigners(lead, 2, 3)
}

// waitedFor returns when a node was last waited for in vain.
func (c *headCollector) waitedFor(id raft.ServerID) (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.hung[id]
	return at, ok
}

// TestCosignedWithOneDown stops and cuts off a node: the others' cosignatures
// come in bounded time, and its own when it is back.
func TestCosignedWithOneDown(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.put(0, "a", "1")
	lead := c.leader()
	c.waitCosigners(lead, 1, 3)
	for k, state := range []linkState{linkLoud, linkSilent} {
		down := (lead + 1) % 3
		c.isolate(down, state)
		c.put(lead, "a", "2")
		begin, waits := time.Now(), make(map[time.Time]bool)
		for range 20 {
			size := c.nodes[lead].store.size()
			if got := c.cosigners(lead, c.signed(lead, size, true)); got > 3 {
				t.Errorf("%d cosignatures", got)
			}
			if at, ok := c.nodes[lead].collector.waitedFor(serverID(c.nodes[down].identity())); ok && at.After(begin) {
				waits[at] = true
			}
			c.put(lead, "a", "more")
		}
		if most := 1 + int(time.Since(begin)/collectPause); len(waits) > most {
			t.Errorf("%d of 20 heads waited for the node that is away, want %d at most", len(waits), most)
		}
		c.waitCosigners(lead, 1, 2)
		c.links.heal()
		c.leader()
		lead = c.leader()
		c.waitCosigners(lead, uint64(k), 3)
	}
}

// TestCosignWithoutLeader: what is left of a cluster serves heads of its own.
func TestCosignWithoutLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.put(0, "a", "1")
	lead := c.leader()
	left := (lead + 1) % 3
	eventually(t, "a node lags", func() bool { return c.nodes[left].store.size() == 1 })
	c.waitCosigners(left, 1, 3)
	lead = c.leader()
	left = (lead + 1) % 3
	c.put(lead, "a", "2") // nobody has cosigned a tree with it
	eventually(t, "a node lags", func() bool { return c.nodes[left].store.size() == 2 })
	c.kill(lead)
	c.kill((lead + 2) % 3)
	eventually(t, "the node knows no leader", func() bool { addr, _ := c.nodes[left].leaderServer(); return addr == "" })
	h := c.signed(left, 2, true)
	if got := c.cosigners(left, h); got != 1 {
		t.Errorf("%d cosignatures of a node alone", got)
	}
}

// TestCosignRefused: a node that computes another root does not cosign, nor one
// that is asked for less than it cosigned, nor for what the ledger key did not sign.
func TestCosignRefused(t *testing.T) {
	t.Parallel()
	var wrong atomic.Uint64 // the node that takes its roots for others
	c := newCluster(t, 3, func(o *nodeOptions) {
		id := o.id
		o.treeFault = func(size uint64, root hash) hash {
			if wrong.Load() == id && size > 1 {
				root[5] ^= 1
			}
			return root
		}
	})
	c.put(0, "a", "1")
	lead := c.leader()
	old := c.waitCosigners(lead, 1, 3)
	bad := (lead + 1) % 3
	wrong.Store(c.nodes[bad].o.id)
	c.put(lead, "a", "2")
	h := c.signed(lead, 2, true)
	if got := c.cosigners(lead, h); got != 2 {
		t.Errorf("%d cosignatures, one node has another tree", got)
	}
	cosign := func(i int, note string) error {
		_, err := c.nodes[i].cosigner.cosign(t.Context(), note)
		return err
	}
	wantError(t, cosign(bad, h.note), errDiverged, "root over 2 entries here is", "signed is "+h.root.String())
	_, err := c.nodes[bad].signedHead(t.Context(), 2, true)
	wantError(t, err, errDiverged, "root over 2 entries here is")
	wrong.Store(0)
	wantError(t, cosign(lead, old.note), errOlderHead, "2 entries, asked for 1")

	foreign, err := newNoteSigner(c.nodes[0].origin(), sigEd25519, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	body := h.body()
	wantError(t, cosign(lead, note{body, []noteSignature{foreign.sign(body, 0)}}.String()), errSignature, "is not signed by")
	wantError(t, cosign(lead, "no note"), errNote)
	more := h.treeHead
	more.size++
	body = more.body()
	ahead := note{body, []noteSignature{c.nodes[lead].keys().signer.sign(body, 0)}}.String()
	wantError(t, cosign(lead, ahead), errNotYetApplied, "2 of 3 entries")
}

func TestOneSignature(t *testing.T) {
	s, err := newNoteSigner("a/node-1", sigCosignature, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	sig := s.sign("text\n", 5)
	bad := sig
	bad.data = append([]byte(nil), sig.data...)
	bad.data[20] ^= 1
	for text, ok := range map[string]bool{
		note{"text\n", []noteSignature{sig}}.String():      true,
		note{"text\n", []noteSignature{bad}}.String():      false,
		note{"text\n", []noteSignature{sig, sig}}.String(): false,
		note{"text\n", nil}.String():                       false,
		note{"other\n", []noteSignature{sig}}.String():     false,
		"": false,
	} {
		if _, err := oneSignature(text, "text\n", s.noteVerifier); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}
