package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func TestServerID(t *testing.T) {
	id := identity{node: 12, incarnation: 0xab}
	if got := serverID(id); got != "12-00000000000000ab" {
		t.Errorf("serverID = %q", got)
	}
	node, incarnation, err := parseServerID(serverID(id))
	if node != 12 || incarnation != 0xab || err != nil {
		t.Errorf("parseServerID = %d, %x, %v", node, incarnation, err)
	}
	for _, bad := range []raft.ServerID{"", "12", "12-", "-00000000000000ab", "12-ab", "012-00000000000000ab", "12-00000000000000AB", "12-00000000000000ab ", "+1-00000000000000ab"} {
		if _, _, err := parseServerID(bad); err == nil {
			t.Errorf("parseServerID(%q) has no error", bad)
		}
	}
}

// entriesOf returns entries of term 1 from index first, with data of these sizes.
func entriesOf(first uint64, sizes ...int) []*raft.Log {
	var logs []*raft.Log
	for i, n := range sizes {
		logs = append(logs, &raft.Log{Index: first + uint64(i), Term: 1, Type: raft.LogCommand, Data: make([]byte, n)})
	}
	return logs
}

func TestFitting(t *testing.T) {
	for _, c := range []struct {
		sizes []int
		want  int
	}{
		{nil, 0},
		{[]int{10}, 1},
		{[]int{5000}, 1}, // at least one, however large
		{[]int{5000, 1}, 1},
		{[]int{1, 5000}, 1},
		{[]int{1000 - 2*entryOverhead - 1, 1}, 2},
		{[]int{1000 - 2*entryOverhead, 1}, 1},
	} {
		if got := fitting(entriesOf(1, c.sizes...), 1000); got != c.want {
			t.Errorf("fitting(%v) = %d, want %d", c.sizes, got, c.want)
		}
	}
}

// recordedPipeline keeps the messages it is given.
type recordedPipeline struct {
	raft.AppendPipeline
	sent []raft.AppendEntriesRequest
	err  error
}

func (p *recordedPipeline) AppendEntries(a *raft.AppendEntriesRequest, _ *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.sent = append(p.sent, *a)
	return nil, p.err
}

func TestPipelineSplits(t *testing.T) {
	stalled := false
	inner := new(recordedPipeline)
	p := &raftPipeline{AppendPipeline: inner, t: &raftTransport{o: transportOptions{stalled: func() bool { return stalled }, budget: 1000}}}
	logs := entriesOf(10, 500, 300, 400, 2000, 1)
	logs[2].Term, logs[3].Term = 2, 3
	request := func() *raft.AppendEntriesRequest {
		return &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 9, PrevLogTerm: 1, Entries: logs, LeaderCommitIndex: 12}
	}
	a := request()
	if _, err := p.AppendEntries(a, new(raft.AppendEntriesResponse)); err != nil {
		t.Fatal(err)
	}
	if len(a.Entries) != len(logs) || a.LeaderCommitIndex != 12 {
		t.Error("the caller's request was changed: pipelineSend would send entries twice")
	}
	want := []raft.AppendEntriesRequest{
		{Term: 3, PrevLogEntry: 9, PrevLogTerm: 1, Entries: logs[:2], LeaderCommitIndex: 11},
		{Term: 3, PrevLogEntry: 11, PrevLogTerm: 1, Entries: logs[2:3], LeaderCommitIndex: 12},
		{Term: 3, PrevLogEntry: 12, PrevLogTerm: 2, Entries: logs[3:4], LeaderCommitIndex: 12},
		{Term: 3, PrevLogEntry: 13, PrevLogTerm: 3, Entries: logs[4:], LeaderCommitIndex: 12},
	}
	same := func(a, b raft.AppendEntriesRequest) bool {
		return a.PrevLogEntry == b.PrevLogEntry && a.PrevLogTerm == b.PrevLogTerm && a.LeaderCommitIndex == b.LeaderCommitIndex && slices.Equal(a.Entries, b.Entries)
	}
	if !slices.EqualFunc(inner.sent, want, same) {
		t.Errorf("sent %+v\nwant %+v", inner.sent, want)
	}

	inner.sent, inner.err = nil, io.ErrClosedPipe
	if _, err := p.AppendEntries(request(), nil); !errors.Is(err, io.ErrClosedPipe) || len(inner.sent) != 1 {
		t.Errorf("a broken pipeline: error is %v after %d messages", err, len(inner.sent))
	}
	inner.sent, inner.err, stalled = nil, nil, true
	if _, err := p.AppendEntries(request(), nil); !errors.Is(err, errStalled) || len(inner.sent) != 0 {
		t.Errorf("stalled: error is %v after %d messages", err, len(inner.sent))
	}
}

// transportPair returns connected transports of nodeA and nodeB.
func transportPair(t *testing.T, o transportOptions) (a, b *raftTransport) {
	t.Helper()
	var two []*raftTransport
	for _, id := range []identity{nodeA, nodeB} {
		o.logger = portLog(t)
		tr := newRaftTransport(openPort(t, id, portOptions{}), o)
		t.Cleanup(func() { tr.Close() })
		two = append(two, tr)
	}
	return two[0], two[1]
}

// headerOf is what Raft puts into requests of a node.
func headerOf(id identity, tr *raftTransport) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(serverID(id)), Addr: []byte(tr.LocalAddr())}
}

// answer lets a transport answer each request with what f returns, until it closes.
func answer(tr *raftTransport, f func(command any) any) {
	go func() {
		for {
			select {
			case rpc := <-tr.Consumer():
				if rpc.Reader != nil {
					io.Copy(io.Discard, rpc.Reader)
				}
				rpc.Respond(f(rpc.Command), nil)
			case <-tr.done:
				return
			}
		}
	}()
}

func TestTransportChecksSender(t *testing.T) {
	a, b := transportPair(t, transportOptions{})
	var seen atomic.Int32
	answer(b, func(any) any {
		seen.Add(1)
		return &raft.RequestVoteResponse{Term: 3, Granted: true}
	})
	ask := func(from identity) (raft.RequestVoteResponse, error) {
		var r raft.RequestVoteResponse
		err := a.RequestVote(serverID(nodeB), b.LocalAddr(), &raft.RequestVoteRequest{RPCHeader: headerOf(from, a), Term: 3}, &r)
		return r, err
	}
	if r, err := ask(nodeA); err != nil || !r.Granted || seen.Load() != 1 {
		t.Fatalf("honest sender: %+v, %v", r, err)
	}
	if _, err := ask(nodeB); err == nil || seen.Load() != 1 {
		t.Errorf("a request in another's name was answered (error %v, %d seen)", err, seen.Load())
	}
	if _, err := ask(nodeA); err != nil {
		t.Errorf("honest sender on a new stream: %v", err)
	}
}

func TestTransportDialsTheVeryServer(t *testing.T) {
	a, b := transportPair(t, transportOptions{})
	former := nodeB
	former.incarnation++
	id, addr := serverID(former), b.LocalAddr()
	_, pipeline := a.AppendEntriesPipeline(id, addr)
	for name, err := range map[string]error{
		"AppendEntries":         a.AppendEntries(id, addr, &raft.AppendEntriesRequest{}, new(raft.AppendEntriesResponse)),
		"AppendEntriesPipeline": pipeline,
		"RequestVote":           a.RequestVote(id, addr, &raft.RequestVoteRequest{}, new(raft.RequestVoteResponse)),
		"RequestPreVote":        a.RequestPreVote(id, addr, &raft.RequestPreVoteRequest{}, new(raft.RequestPreVoteResponse)),
		"InstallSnapshot":       a.InstallSnapshot(id, addr, &raft.InstallSnapshotRequest{}, new(raft.InstallSnapshotResponse), strings.NewReader("")),
		"TimeoutNow":            a.TimeoutNow(id, addr, &raft.TimeoutNowRequest{}, new(raft.TimeoutNowResponse)),
	} {
		if !errors.Is(err, errRefused) {
			t.Errorf("%s to a former incarnation: error is %v, want errRefused", name, err)
		}
	}
}

func TestTransportStalled(t *testing.T) {
	var stalled atomic.Bool
	a, b := transportPair(t, transportOptions{stalled: stalled.Load})
	answer(b, func(command any) any {
		switch command.(type) {
		case *raft.AppendEntriesRequest:
			return &raft.AppendEntriesResponse{Success: true}
		case *raft.InstallSnapshotRequest:
			return &raft.InstallSnapshotResponse{Success: true}
		}
		return &raft.TimeoutNowResponse{}
	})
	id, addr, head := serverID(nodeB), b.LocalAddr(), headerOf(nodeA, a)
	pipeline, err := a.AppendEntriesPipeline(id, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer pipeline.Close()
	for _, want := range []error{nil, errStalled, nil} {
		stalled.Store(want != nil)
		err := a.AppendEntries(id, addr, &raft.AppendEntriesRequest{RPCHeader: head}, new(raft.AppendEntriesResponse))
		if !errors.Is(err, want) {
			t.Errorf("AppendEntries: error is %v, want %v", err, want)
		}
		f, err := pipeline.AppendEntries(&raft.AppendEntriesRequest{RPCHeader: head}, new(raft.AppendEntriesResponse))
		if !errors.Is(err, want) {
			t.Errorf("pipeline: error is %v, want %v", err, want)
		}
		if want == nil {
			if receive(t, pipeline.Consumer(), "an answer") != f || f.Error() != nil {
				t.Errorf("pipeline: answer is %v", f.Error())
			}
		}
		err = a.InstallSnapshot(id, addr, &raft.InstallSnapshotRequest{RPCHeader: head, Size: 4}, new(raft.InstallSnapshotResponse), strings.NewReader("snap"))
		if !errors.Is(err, want) {
			t.Errorf("InstallSnapshot: error is %v, want %v", err, want)
		}
		if err := a.TimeoutNow(id, addr, &raft.TimeoutNowRequest{RPCHeader: head}, new(raft.TimeoutNowResponse)); err != nil {
			t.Errorf("TimeoutNow, the way out of a stalled node: %v", err)
		}
	}
}

// TestTransportRetries has a follower that is away at first and then fetches
// segments for a while: neither reaches Raft as an error.
func TestTransportRetries(t *testing.T) {
	var leads atomic.Bool
	leads.Store(true)
	dials, away := 0, 3
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		if dials++; dials <= away {
			return nil, syscall.ECONNREFUSED
		}
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	a := newRaftTransport(openPort(t, nodeA, portOptions{dial: dial}), transportOptions{sendsTo: func(raft.ServerID, raft.ServerAddress) bool { return leads.Load() }, logger: portLog(t)})
	b := newRaftTransport(openPort(t, nodeB, portOptions{}), transportOptions{logger: portLog(t)})
	defer a.Close()
	defer b.Close()
	id, addr, head := serverID(nodeB), b.LocalAddr(), headerOf(nodeA, a)
	var fetching atomic.Int32
	go func() {
		for {
			select {
			case rpc := <-b.Consumer():
				if rpc.Reader == nil {
					rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
					continue
				}
				var err error
				if body, _ := io.ReadAll(rpc.Reader); string(body) != "snap" {
					err = fmt.Errorf("snapshot is %q", body)
				} else if fetching.Add(-1) >= 0 {
					err = fmt.Errorf("failed to restore snapshot 1-2: %w: 1 of 2 are missing", errFetching)
				}
				rpc.Respond(&raft.InstallSnapshotResponse{Success: err == nil}, err)
			case <-b.done:
				return
			}
		}
	}()
	entries := func() error {
		return a.AppendEntries(id, addr, &raft.AppendEntriesRequest{RPCHeader: head, PrevLogEntry: 1}, new(raft.AppendEntriesResponse))
	}
	snapshot := func() error {
		fetching.Store(2)
		return a.InstallSnapshot(id, addr, &raft.InstallSnapshotRequest{RPCHeader: head, Size: 4}, new(raft.InstallSnapshotResponse), strings.NewReader("snap"))
	}
	heartbeat := a.AppendEntries(id, addr, &raft.AppendEntriesRequest{RPCHeader: head}, new(raft.AppendEntriesResponse))
	if !errors.Is(heartbeat, errDial) || dials != 1 {
		t.Errorf("heartbeat: error is %v after %d dials, want errDial after one", heartbeat, dials)
	}
	if err := entries(); err != nil || dials != away+1 {
		t.Errorf("AppendEntries: error is %v after %d dials, want %d", err, dials, away+1)
	}
	if err := snapshot(); err != nil {
		t.Errorf("InstallSnapshot: %v", err)
	}
	leads.Store(false)
	if err := snapshot(); err == nil || !strings.Contains(err.Error(), "1 of 2 are missing") {
		t.Errorf("InstallSnapshot of a node that does not lead any more: error is %v", err)
	}
}

// Raft can be stopped and started again on a port that stays open.
func TestTransportAgainOnOnePort(t *testing.T) {
	pa, pb := openPort(t, nodeA, portOptions{}), openPort(t, nodeB, portOptions{})
	a := newRaftTransport(pa, transportOptions{logger: portLog(t)})
	defer a.Close()
	for range 3 {
		b := newRaftTransport(pb, transportOptions{logger: portLog(t)})
		answer(b, func(any) any { return &raft.RequestPreVoteResponse{Granted: true} })
		waitUntil(t, "the new transport answers", func() bool {
			var r raft.RequestPreVoteResponse
			err := a.RequestPreVote(serverID(nodeB), b.LocalAddr(), &raft.RequestPreVoteRequest{RPCHeader: headerOf(nodeA, a)}, &r)
			return err == nil && r.Granted
		})
		b.Close()
		b.Close()
	}
}

// batchStore records how many bytes each StoreLogs was given.
type batchStore struct {
	*raft.InmemStore
	mu      sync.Mutex
	largest int
	blocked chan struct{} // when not nil, StoreLogs waits until it is closed
	entered chan struct{} // gets a value when StoreLogs has to wait
}

func newBatchStore() *batchStore {
	return &batchStore{InmemStore: raft.NewInmemStore(), entered: make(chan struct{}, 1)}
}

func (s *batchStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *batchStore) StoreLogs(logs []*raft.Log) error {
	size := 0
	for _, l := range logs {
		size += len(l.Data)
	}
	s.mu.Lock()
	s.largest = max(s.largest, size)
	blocked := s.blocked
	s.mu.Unlock()
	if blocked != nil {
		tell(s.entered)
		<-blocked
	}
	return s.InmemStore.StoreLogs(logs)
}

// block makes StoreLogs hang until the returned function is called.
func (s *batchStore) block() (release func()) {
	c := make(chan struct{})
	s.mu.Lock()
	s.blocked = c
	s.mu.Unlock()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		s.blocked = nil
		s.mu.Unlock()
		close(c)
	})
}

// recordFSM keeps what it applied.
type recordFSM struct {
	mu      sync.Mutex
	applied []*raft.Log
	restore func() error // nil = do nothing
}

func (f *recordFSM) Apply(l *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = append(f.applied, l)
	return nil
}

func (f *recordFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.ErrUnsupported }

func (f *recordFSM) Restore(r io.ReadCloser) error {
	r.Close()
	if f.restore == nil {
		return nil
	}
	return f.restore()
}

// data returns what was applied, in order.
func (f *recordFSM) data() [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	var d [][]byte
	for _, l := range f.applied {
		d = append(d, l.Data)
	}
	return d
}

// raftPeer is one node of a real Raft cluster on our transport.
type raftPeer struct {
	id      identity
	tr      *raftTransport
	raft    *raft.Raft
	store   *batchStore
	fsm     *recordFSM
	stalled atomic.Bool
}

// raftConfig returns a configuration for tests.
func raftConfig(t testing.TB, id raft.ServerID) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = id
	c.LogOutput, c.LogLevel = raftLogger{portLog(t)}, "ERROR"
	c.NoLegacyTelemetry = true
	return c
}

// startPeers starts a cluster of n voters, of which the first leads.
func startPeers(t testing.TB, n int, l *links, change func(*raft.Config)) []*raftPeer {
	t.Helper()
	var peers []*raftPeer
	var conf raft.Configuration
	for i := range n {
		name := fmt.Sprint(i)
		p := &raftPeer{id: identity{cluster: prodID, name: "prod", node: uint64(i), incarnation: uint64(100 + i)}, store: newBatchStore(), fsm: new(recordFSM)}
		port := openPort(t, p.id, portOptions{dial: l.dialer(name)})
		l.at(name, port.addr())
		p.tr = newRaftTransport(port, transportOptions{stalled: p.stalled.Load, logger: portLog(t)})
		conf.Servers = append(conf.Servers, raft.Server{ID: serverID(p.id), Address: p.tr.LocalAddr()})
		peers = append(peers, p)
	}
	for _, p := range peers {
		c := raftConfig(t, serverID(p.id))
		change(c)
		snaps := raft.NewInmemSnapshotStore()
		if err := raft.BootstrapCluster(c, p.store, p.store, snaps, p.tr, conf); err != nil {
			t.Fatal(err)
		}
		r, err := raft.NewRaft(c, p.fsm, p.store, p.store, snaps, p.tr)
		if err != nil {
			t.Fatal(err)
		}
		p.raft = r
		t.Cleanup(func() { r.Shutdown().Error() })
	}
	takeOver(t, peers, 0)
	return peers
}

// takeOver makes a node the leader without waiting for an election timeout.
func takeOver(t testing.TB, peers []*raftPeer, i int) {
	t.Helper()
	to, from := peers[i], peers[(i+1)%len(peers)]
	err := from.tr.TimeoutNow(serverID(to.id), to.tr.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: headerOf(from.id, from.tr)}, new(raft.TimeoutNowResponse))
	if err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the node leads", func() bool { return to.raft.State() == raft.Leader })
}

// Large entries travel in messages near the budget, both while a follower
// catches up (replicateTo) and in the pipeline, and arrive whole and in order.
func TestLargeEntries(t *testing.T) {
	t.Parallel()
	const entries, size = 30, 300 << 10
	l := newLinks()
	peers := startPeers(t, 3, l, func(c *raft.Config) {
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 10*time.Second, 10*time.Second, 10*time.Second
		c.MaxAppendEntries = 64
		c.BatchApplyCh = true
		c.CommitTimeout = 100 * time.Millisecond
	})
	var want [][]byte
	write := func() {
		var futures []raft.ApplyFuture
		release := peers[0].store.block()
		defer release()
		for i := range entries {
			if i == 1 { // the rest gathers behind the first and becomes one batch
				receive(t, peers[0].store.entered, "the leader stores the first")
			}
			d := bytes.Repeat([]byte{byte(len(want))}, size)
			want = append(want, d)
			futures = append(futures, peers[0].raft.Apply(d, 0))
		}
		release()
		for _, f := range futures {
			if err := f.Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	caughtUp := func() {
		t.Helper()
		start := time.Now()
		for _, p := range peers {
			waitUntil(t, "everything is applied", func() bool {
				return p.raft.AppliedIndex() == peers[0].raft.AppliedIndex() && len(p.fsm.data()) == len(want)
			})
			if !slices.EqualFunc(p.fsm.data(), want, bytes.Equal) {
				t.Error("a node applied something else")
			}
		}
		t.Logf("followers were there %v after the leader", time.Since(start).Round(time.Millisecond))
	}
	l.partition("0", "2")
	write()
	l.heal()
	caughtUp()
	write()
	caughtUp()
	for i, p := range peers[1:] {
		if p.store.largest > appendBudget {
			t.Errorf("follower %d stored %d bytes at once, want at most %d", i+1, p.store.largest, appendBudget)
		}
	}
	if peers[0].store.largest <= appendBudget {
		t.Errorf("the leader stored only %d bytes at once: the test shows nothing", peers[0].store.largest)
	}
}

func TestRaftLogger(t *testing.T) {
	var b bytes.Buffer
	l := raftLogger{slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{
		Level: slog.LevelDebug - 4,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))}
	for _, line := range []string{
		"2026-11-22T15:28:57.160Z [TRACE] raft: t\n",
		"2026-11-22T15:28:57.160Z [INFO]  raft: i: a=1\n",
		"2026-11-22T15:28:57.160Z [WARN]  raft: w: servers=\"2 of 3\"\n",
		"2026-11-22T15:28:57.160Z [ERROR] raft-net: e\n",
		"2026-11-22T15:28:57.160Z [ERROR] raft: failed to commit logs: error=\"raft log is poisoned: sync\"\n",
		"something else\n",
	} {
		if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("Write = %d, %v", n, err)
		}
	}
	want := `level=DEBUG-4 msg="raft: t"
level=INFO msg="raft: i: a=1"
level=WARN msg="raft: w: servers=\"2 of 3\""
level=ERROR msg="raft-net: e"
level=DEBUG msg="raft: failed to commit logs: error=\"raft log is poisoned: sync\""
level=WARN msg="something else"
`
	if b.String() != want {
		t.Errorf("logged\n%swant\n%s", b.String(), want)
	}
}
