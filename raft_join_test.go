package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// tries calls tryForm of every node that is up, a few rounds, beside what the
// nodes do by themselves, and returns the last errors.
func (c *testCluster) tries() (errs []error) {
	for range 3 {
		errs = errs[:0]
		for _, n := range c.nodes {
			if n.node != nil && !n.self.Load().formed() {
				errs = append(errs, n.tryForm())
			}
		}
	}
	return errs
}

// wantWaiting fails unless nobody has formed a cluster or can, for the given reason.
func (c *testCluster) wantWaiting(reasons ...string) {
	c.t.Helper()
	c.unformed = true
	for i, err := range c.tries() {
		if err == nil || !strings.Contains(err.Error(), reasons[min(i, len(reasons)-1)]) {
			c.t.Errorf("node %d waits because of %v, want %q", i+1, err, reasons[min(i, len(reasons)-1)])
		}
	}
	for i, n := range c.nodes {
		if n.node != nil && (n.self.Load().formed() || n.raft.Load() != nil) {
			c.t.Errorf("node %d has formed a cluster", i+1)
		}
	}
}

// wantOneCluster waits until all nodes belong to the same cluster and returns its id.
func (c *testCluster) wantOneCluster() string {
	c.t.Helper()
	for i, n := range c.nodes {
		eventually(c.t, fmt.Sprintf("node %d belongs to no cluster", i+1), func() bool { return n.self.Load().formed() })
	}
	id := c.nodes[0].self.Load().ClusterID
	for i, n := range c.nodes {
		if got := n.self.Load().ClusterID; got != id {
			c.t.Errorf("node %d is in cluster %s, node 1 in %s", i+1, got, id)
		}
	}
	return id
}

// wantVoters waits until the cluster has count voters and nobody else.
func (c *testCluster) wantVoters(count int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("there are not %d voters", count), func() bool {
		n := c.nodes[c.leader()]
		return len(n.voters()) == count && len(n.servers()) == count
	})
}

// Two of three never form a cluster; the third completes it.
func TestFormationWaitsForAll(t *testing.T) {
	t.Parallel()
	c := newNodes(t, 3)
	c.start(0)
	c.start(1)
	c.wantWaiting("2 of 3 nodes are here")
	c.restart(0)
	c.wantWaiting("2 of 3 nodes are here")
	if self := c.nodes[0].self.Load(); self.Pledge != nil {
		t.Errorf("node 1 has pledged to %+v", self.Pledge)
	}
	c.unformed = false
	c.start(2)
	c.wantOneCluster()
	c.put(c.leader(), "a", "1")
}

// Five nodes, of which 1, 2, 3 and 3, 4, 5 know each other, are one cluster in
// the end, whichever of the two node 3 has pledged to form.
func TestOverlappingSetsFormOneCluster(t *testing.T) {
	t.Parallel()
	for name, order := range map[string][]int{
		"one by one":   {0, 1, 3, 4, 2},
		"second first": {2, 3, 4, 0, 1},
		"first first":  {0, 1, 2, 3, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newNodes(t, 5, func(o *nodeOptions) { o.expect = 3 })
			for i, n := range c.nodes {
				n.o.seeds = nil
				for k, m := range c.nodes {
					if k != i && (i <= 2 && k <= 2 || i >= 2 && k >= 2) {
						n.o.seeds = append(n.o.seeds, m.o.raftAddr)
					}
				}
			}
			// Node 3 sees half of its seeds at first.
			c.nodes[2].o.seeds = c.nodes[2].o.seeds[2*(order[0]/2) : 2*(order[0]/2)+2]
			for _, i := range order {
				c.start(i)
			}
			c.wantOneCluster()
			c.wantVoters(5)
			c.put(4, "a", "1")
		})
	}
}

// The one that forms the cluster dies when only a part of the others, or all of
// them, have pledged, or when it alone has formed it; when it is back, the same
// cluster forms.
func TestCoordinatorCrash(t *testing.T) {
	t.Parallel()
	t.Run("some pledged", func(t *testing.T) {
		t.Parallel()
		c := newNodes(t, 3)
		c.links.refuse(0, 2, true) // after node 3 was heard
		c.nodes[0].o.seeds = nil
		c.start(2)
		c.start(1)
		c.start(0)
		third := c.nodes[2].hello()
		c.unformed = true
		first, second := c.nodes[0].asMember(), c.nodes[1].asMember()
		members := []member{first, second, {ID: 3, Incarnation: third.Incarnation, HTTP: third.HTTP, Raft: third.Raft}}
		g := &genesis{newClusterID().String(), "test", members}
		if err := c.nodes[0].finish(g); err == nil || !strings.Contains(err.Error(), "node 3 has not pledged") {
			t.Fatalf("forming without node 3: %v", err)
		}
		if p := c.nodes[1].self.Load().Pledge; p == nil || p.ClusterID != g.ClusterID {
			t.Fatalf("node 2 has pledged to %+v", p)
		}
		c.kill(0)
		c.wantWaiting("pledged to form cluster "+g.ClusterID, "2 of 3 nodes are here")
		c.links.heal()
		c.unformed = false
		c.start(0)
		if id := c.wantOneCluster(); id != g.ClusterID {
			t.Errorf("formed %s, pledged to %s", id, g.ClusterID)
		}
	})
	for name, formed := range map[string]bool{"all pledged": false, "formed alone": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newNodes(t, 3)
			g := c.pledgeAll()
			if formed {
				f := readNodeFile(t, c.nodes[0].o.dataDir)
				f.ClusterID, f.Members, f.Pledge = g.ClusterID, g.Members, nil
				if err := f.save(c.nodes[0].o.dataDir); err != nil {
					t.Fatal(err)
				}
			}
			c.start(1)
			c.start(2)
			c.wantWaiting("pledged to form cluster " + g.ClusterID)
			c.unformed = false
			c.start(0)
			if id := c.wantOneCluster(); id != g.ClusterID {
				t.Errorf("formed %s, pledged to %s", id, g.ClusterID)
			}
			c.put(1, "a", "1")
		})
	}
}

// pledgeAll leaves the directories of all nodes as a crash does after everybody
// has pledged to form the cluster that it returns.
func (c *testCluster) pledgeAll() *genesis {
	c.t.Helper()
	g := &genesis{ClusterID: newClusterID().String(), Name: "test"}
	var files []*nodeFile
	for _, t := range c.nodes {
		n := &node{o: t.o}
		f, err := n.loadIdentity()
		if err != nil {
			c.t.Fatal(err)
		}
		n.self.Store(f)
		files, g.Members = append(files, f), append(g.Members, n.asMember())
	}
	for i, f := range files {
		f.Pledge = g
		if err := f.save(c.nodes[i].o.dataDir); err != nil {
			c.t.Fatal(err)
		}
	}
	return g
}

// readNodeFile reads node.json.
func readNodeFile(t testing.TB, dir string) *nodeFile {
	t.Helper()
	n := &node{o: nodeOptions{dataDir: dir, clusterName: "test"}}
	for n.o.id = 1; n.o.id < 10; n.o.id++ {
		if f, err := n.loadIdentity(); err == nil {
			return f
		}
	}
	t.Fatalf("%s is of no node", dir)
	return nil
}

// A node pledges to the lowest of its founders only, once, and forms nothing
// it has not pledged to.
func TestPledgeRefusals(t *testing.T) {
	t.Parallel()
	c := newNodes(t, 2, func(o *nodeOptions) { o.expect = 3 })
	c.unformed = true
	c.start(0)
	c.start(1)
	two := c.nodes[1]
	good := func() *genesis {
		m := c.nodes[0].asMember()
		return &genesis{newClusterID().String(), "test", []member{m, two.asMember(), {ID: 3, Incarnation: m.Incarnation}}}
	}
	ask := func(path string, g *genesis) error {
		return c.nodes[0].callMember(two.asMember(), path, g)
	}
	for _, row := range []struct {
		path   string
		change func(*genesis)
		want   string
	}{
		{"/form", func(*genesis) {}, "has not pledged"},
		{"/pledge", func(g *genesis) { g.Members = g.Members[1:] }, "lowest of 3"},
		{"/pledge", func(g *genesis) { g.Members[0].ID = 9 }, "lowest of 3"},
		{"/pledge", func(g *genesis) { g.Name = "other" }, "not a founder"},
		{"/pledge", func(g *genesis) { g.Members[1].Incarnation = g.Members[0].Incarnation }, "not a founder"},
	} {
		g := good()
		row.change(g)
		if err := ask(row.path, g); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s %+v: %v, want %q", row.path, g, err, row.want)
		}
	}
}

// Nodes that do not want the same do not form a cluster.
func TestFormationRefusals(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		change func(*nodeOptions)
		want   string
	}{
		"expect":        {func(o *nodeOptions) { o.expect = 3 }, "expects"},
		"name":          {func(o *nodeOptions) { o.clusterName = "other" }, "refused"},
		"secret":        {func(o *nodeOptions) { o.secret = "other" }, "authentication failed"},
		"same id":       {func(o *nodeOptions) { o.id = 1 }, "two nodes say they are node 1"},
		"secret on one": {func(o *nodeOptions) { o.secret = "" }, "authentication failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newNodes(t, 2, func(o *nodeOptions) { o.secret = "secret" })
			row.change(&c.nodes[1].o)
			c.start(0)
			c.start(1)
			c.wantWaiting(row.want)
		})
	}
}

// With the right secret on all, a cluster forms.
func TestFormationWithSecret(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, func(o *nodeOptions) { o.secret = "secret" })
	c.put(1, "a", "1")
}

// --bootstrap never touches a cluster that is there: over state it does
// nothing, beside a formed seed it joins.
func TestBootstrapForms(t *testing.T) {
	t.Parallel()
	c := newNodes(t, 2, func(o *nodeOptions) { o.bootstrap = true })
	c.start(0)
	c.leader()
	id := c.nodes[0].self.Load().ClusterID
	c.put(0, "a", "1")
	c.sealAll()
	c.put(0, "b", "2")
	c.restart(0)
	if a, b := c.get(0, "a"), c.get(0, "b"); a != "1" || b != "2" {
		t.Errorf("after a restart with --bootstrap a = %q, b = %q", a, b)
	}
	c.start(1)
	if got := c.wantOneCluster(); got != id {
		t.Errorf("cluster id is %s, was %s", got, id)
	}
	c.wantVoters(2)
	if a := c.get(1, "a"); a != "1" {
		t.Errorf("the joined node reads a = %q", a)
	}
}

// A directory that is not this node's, or not whole, is refused in one line.
func TestOpenRefusals(t *testing.T) {
	t.Parallel()
	started := func(t *testing.T, sealed bool) *testCluster {
		c := newCluster(t, 1)
		c.put(0, "a", "1")
		if sealed {
			c.sealAll()
		}
		eventually(t, "node.json does not say that Raft has started", func() bool { return c.nodes[0].self.Load().Started })
		c.kill(0)
		c.unformed = true
		return c
	}
	replace := func(old, new string) func(*testing.T, *nodeOptions) {
		return func(t *testing.T, o *nodeOptions) {
			path := filepath.Join(o.dataDir, nodeFileName)
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, []byte(strings.Replace(string(b), old, new, 1)), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(name string) func(*testing.T, *nodeOptions) {
		return func(t *testing.T, o *nodeOptions) {
			if err := os.RemoveAll(filepath.Join(o.dataDir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	removeLog := func(t *testing.T, o *nodeOptions) { // as *.log goes, and stable.db stays
		files, err := filepath.Glob(filepath.Join(o.dataDir, raftDir, "*.log"))
		if err != nil || len(files) == 0 {
			t.Fatalf("log files: %q, %v", files, err)
		}
		for _, f := range files {
			os.Remove(f)
		}
	}
	for name, row := range map[string]struct {
		change func(*testing.T, *nodeOptions)
		want   string
	}{
		"other node":    {func(_ *testing.T, o *nodeOptions) { o.id = 2 }, "belongs to node 1, this is node 2"},
		"other name":    {func(_ *testing.T, o *nodeOptions) { o.clusterName = "x" }, `belongs to cluster "test"`},
		"newer format":  {replace(`"format": 1`, `"format": 2`), "format is 2"},
		"not JSON":      {replace(`{`, `[`), nodeFileName},
		"bad cluster":   {replace(`"cluster_id": "`, `"cluster_id": "z`), "32 hex digits"},
		"bad node":      {replace(`"incarnation": "`, `"incarnation": "0`), "16 hex digits"},
		"no node.json":  {remove(nodeFileName), "this is not a new directory"},
		"no raft":       {remove(raftDir), "the Raft log and its state are gone"},
		"no log files":  {removeLog, "the Raft log and its state are gone"},
		"no stable.db":  {remove(filepath.Join(raftDir, stableDB)), "the Raft log and its state are gone"},
		"no ledger.db":  {remove(ledgerName), "entries between are missing"},
		"other cluster": {func(t *testing.T, o *nodeOptions) { otherCluster(t, o.dataDir) }, "belongs to cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := started(t, true)
			if name == "no ledger.db" { // the files of the log before D must have gone
				c.start(0)
				for i := range 3 {
					c.fill(0, fmt.Sprint("key-", i), 8, 200<<10)
					c.sealAll()
				}
				c.kill(0)
			}
			row.change(t, &c.nodes[0].o)
			for range 2 { // the first try changes nothing
				err := c.tryStart(0)
				if err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("opening gives %v, want %q", err, row.want)
				}
			}
		})
	}
	t.Run("no raft, nothing sealed", func(t *testing.T) {
		t.Parallel()
		c := started(t, false)
		remove(raftDir)(t, &c.nodes[0].o)
		if err := c.tryStart(0); err == nil || !strings.Contains(err.Error(), "the Raft log and its state are gone") {
			t.Errorf("opening gives %v", err)
		}
	})
	t.Run("in use", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, 1)
		o := c.nodes[0].o
		o.raftListen = freeAddrs(t, 1)[0]
		if n, err := openNode(o); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("a second open gives %v", err)
			n.release()
		}
		c.put(0, "a", "1")
	})
}

// otherCluster changes the cluster id in node.json of dir.
func otherCluster(t testing.TB, dir string) {
	t.Helper()
	f := readNodeFile(t, dir)
	f.ClusterID = newClusterID().String()
	if err := f.save(dir); err != nil {
		t.Fatal(err)
	}
}

// A node forms a cluster alone, two others join one after the other and vote;
// then it dies and they go on.
func TestJoin(t *testing.T) {
	t.Parallel()
	c := newNodes(t, 3)
	c.nodes[0].o.bootstrap = true
	c.start(0)
	c.leader()
	c.fill(0, "before", 100, 100)
	c.sealAll()
	c.start(1)
	c.wantVoters(2)
	c.start(2)
	c.wantVoters(3)
	c.wantOneCluster()
	for i := range c.nodes {
		if v := c.get(i, "before-99"); len(v) != 100 {
			t.Errorf("node %d reads %q", i+1, v)
		}
	}
	c.kill(0)
	c.put(1, "after", "1")
	if v := c.get(2, "after"); v != "1" {
		t.Errorf("node 3 reads %q", v)
	}
}

// A node with an empty disk comes back as another server that joins as a
// non-voter, votes when it has caught up, and its former self is gone. The
// others take writes all the time.
func TestWipedNodeJoinsAnew(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	lead := c.leader()
	lost := (lead + 1) % 3
	former := serverID(c.nodes[lost].identity())
	for k := range 3 {
		c.fill(lead, fmt.Sprint("before-", k), 40, 100)
		c.sealAll()
	}
	c.kill(lost)
	c.wipe(lost)
	stop := c.writers(lead)
	defer stop()
	c.start(lost)
	now := serverID(c.nodes[lost].identity())
	if now == former {
		t.Fatalf("the wiped node is still %s", now)
	}
	eventually(t, "the wiped node does not vote", func() bool {
		c.tend()
		return slices.ContainsFunc(c.nodes[lost].voters(), func(s raft.Server) bool { return s.ID == now })
	})
	stop()
	if v := c.get(lost, "before-2-39"); len(v) != 100 {
		t.Errorf("the wiped node reads %q", v)
	}
	var voted bool
	for i, conf := range c.configurations(c.leader()) {
		k := slices.IndexFunc(conf.Servers, func(s raft.Server) bool { return s.ID == now })
		if k < 0 {
			continue
		}
		votes := conf.Servers[k].Suffrage == raft.Voter
		if votes && !voted && i == 0 || slices.ContainsFunc(conf.Servers, func(s raft.Server) bool { return s.ID == former }) {
			t.Errorf("configuration %d is %+v: %s joins beside its former self %s, or as a voter", i, conf.Servers, now, former)
		}
		if votes && !voted {
			before := c.configurations(c.leader())[i-1].Servers
			if !slices.Contains(before, raft.Server{Suffrage: raft.Nonvoter, ID: now, Address: conf.Servers[k].Address}) {
				t.Errorf("%s votes without having been a non-voter in %+v", now, before)
			}
		}
		voted = voted || votes
	}
	if !voted {
		t.Errorf("the log of the leader has no configuration in which %s votes", now)
	}
	c.kill(3 - lead - lost) // now the newcomer's vote counts
	c.put(lost, "after", "1")
}

// configurations returns the Raft configurations in the log of node i, oldest first.
func (c *testCluster) configurations(i int) (all []raft.Configuration) {
	c.t.Helper()
	first, last := c.nodes[i].log.bounds()
	for index := first; index <= last; index++ {
		var l raft.Log
		if err := c.nodes[i].log.GetLog(index, &l); err != nil {
			c.t.Fatal(err)
		}
		if l.Type == raft.LogConfiguration {
			all = append(all, raft.DecodeConfiguration(l.Data))
		}
	}
	return all
}

// A newcomer with the id of a node that is alive elsewhere is turned away,
// also when that is the leader itself.
func TestJoinRefusesTakenID(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	o := c.nodes[1].o
	o.dataDir, o.raftAddr = t.TempDir(), freeAddrs(t, 1)[0]
	o.raftListen = o.raftAddr
	n, err := openNode(o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.release()
	for lead := range 2 {
		c.transfer(lead)
		err := n.join(c.nodes[lead].o.raftAddr)
		if err == nil || !strings.Contains(err.Error(), "node 2 is alive at "+c.nodes[1].o.raftAddr) {
			t.Errorf("joining as node 2 while node %d leads: %v", lead+1, err)
		}
		if n.self.Load().formed() || len(c.nodes[lead].servers()) != 2 {
			t.Errorf("the newcomer was taken in: %+v", c.nodes[lead].servers())
		}
	}
}

// A crash while a founder writes its first configuration leaves a term and no
// entry; the node writes both again.
func TestBootstrapCrash(t *testing.T) {
	t.Parallel()
	c := newNodes(t, 1)
	c.start(0)
	c.leader()
	c.kill(0)
	dir := c.nodes[0].o.dataDir
	f := readNodeFile(t, dir)
	f.Started = false
	if err := f.save(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, raftDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, raftDir), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := openStableStore(filepath.Join(dir, raftDir, stableDB))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.SetUint64(termKey, 1), s.close()); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	c.leader()
	c.put(0, "a", "1")
}

// TestLeftoverIdentity: what a crash left half-written beside node.json and
// node.key is removed at the next start.
func TestLeftoverIdentity(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.kill(0)
	dir := c.nodes[0].o.dataDir
	for _, name := range []string{nodeFileName, nodeKeyName, signedName} {
		if err := os.WriteFile(filepath.Join(dir, name+".123"+tmpSuffix), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.start(0)
	c.leader()
	if left, _ := filepath.Glob(filepath.Join(dir, "*"+tmpSuffix)); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// A file of a cluster that has formed is not a pledge: node.json keeps what it said.
func TestIdentitySurvives(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	before := *c.nodes[0].self.Load()
	c.restart(0)
	after := *c.nodes[0].self.Load()
	if before.Incarnation != after.Incarnation || before.ClusterID != after.ClusterID || len(after.Members) != 1 || after.Pledge != nil {
		t.Errorf("node.json was %+v, is %+v", before, after)
	}
	if _, err := parseIncarnation("xyz"); !errors.Is(err, errCorrupt) {
		t.Errorf("an incarnation that is none: %v", err)
	}
}
