package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// The transport Raft gets: hashicorp/raft's own NetworkTransport on the
// internal port, wrapped so that defects of v1.8.0 cannot be reached
// (raft_defects_test.go shows each of them):
//
//   - F1: heartbeats never take the short cut past Raft's main goroutine.
//   - F6: a node whose own log write hangs stops sending AppendEntries, so that
//     the others elect a leader with a working disk.
//   - F8: a follower never hears of a commit index beyond the entries that the
//     same message shows it to have.
//   - F9: a pipeline is closed behind the answer after which Raft reads no other
//     (raft_pipeline.go).
//   - AppendEntries stay near 1 MiB; Raft bounds them by count only.
//   - A follower that is away, or still fetches the segments of a snapshot, is
//     tried again soon, however often it was before: Raft would wait up to 10 s
//     and not see that it is back (retry).
//   - Both ends of a stream check that the server is the one Raft means.

const (
	appendBudget     = 1 << 20 // bytes of entries in one AppendEntries
	entryOverhead    = 80      // bytes that msgpack adds to an entry, about
	raftTimeout      = 10 * time.Second
	raftPool         = 3                     // idle streams per peer
	raftTimeoutScale = 1024                  // bytes of snapshot for each timeout: restoring follows the sending
	retryPause       = 20 * time.Millisecond // before the second try; each later one is twice as long
	retryPauseMax    = 500 * time.Millisecond
	retryFor         = time.Minute // then Raft sees the error: the server may have left
)

// errStalled is returned instead of sending anything that would keep a leader in office whose disk hangs.
var errStalled = errors.New("own log write hangs")

// serverID returns the Raft id of a node: a new incarnation is a new server.
func serverID(i identity) raft.ServerID {
	return raft.ServerID(fmt.Sprintf("%d-%016x", i.node, i.incarnation))
}

// parseServerID reads what serverID wrote.
func parseServerID(id raft.ServerID) (node, incarnation uint64, err error) {
	n, inc, _ := strings.Cut(string(id), "-")
	node, err1 := strconv.ParseUint(n, 10, 64)
	incarnation, err2 := strconv.ParseUint(inc, 16, 64)
	if err1 != nil || err2 != nil || serverID(identity{node: node, incarnation: incarnation}) != id {
		return 0, 0, fmt.Errorf("server id %q: want <node id>-<16 hex digits>", id)
	}
	return node, incarnation, nil
}

// transportOptions is what a transport needs; zero fields take the values of production.
type transportOptions struct {
	stalled func() bool                                  // this node's own StoreLogs hangs; nil = never
	waits   func(leader raft.ServerID, term uint64) bool // this node is writing what it got from that leader; nil = never
	sendsTo func(raft.ServerID, raft.ServerAddress) bool // this node leads and the server is a member at the address; nil = it sends once
	timeout time.Duration                                // of one call; 0 = raftTimeout
	budget  int                                          // bytes of entries in one AppendEntries; 0 = appendBudget
	logger  *slog.Logger
}

// raftTransport is a raft.Transport that also offers pre-votes and Close.
type raftTransport struct {
	*raft.NetworkTransport // sends only: its Accept never returns a connection
	o                      transportOptions
	streams                raft.StreamLayer
	consume                chan raft.RPC
	done                   chan struct{} // closed by Close
	once                   sync.Once
	wg                     sync.WaitGroup
}

// newRaftTransport returns a transport for one Raft instance, which closes it
// when it shuts down. Then another one may be made on the same port.
func newRaftTransport(p *internalPort, o transportOptions) *raftTransport {
	if o.stalled == nil {
		o.stalled = func() bool { return false }
	}
	if o.timeout == 0 {
		o.timeout = raftTimeout
	}
	if o.budget == 0 {
		o.budget = appendBudget
	}
	streams := p.raftLayer()
	t := &raftTransport{
		o:       o,
		streams: streams,
		consume: make(chan raft.RPC),
		done:    make(chan struct{}),
	}
	t.NetworkTransport = t.newNetwork(&singleStream{StreamLayer: streams, done: make(chan struct{})}, raftLogger{o.logger})
	t.wg.Go(t.acceptLoop)
	return t
}

// newNetwork returns hashicorp/raft's transport on a stream layer.
func (t *raftTransport) newNetwork(s raft.StreamLayer, log io.Writer) *raft.NetworkTransport {
	n := raft.NewNetworkTransport(s, raftPool, t.o.timeout, log)
	n.TimeoutScale = raftTimeoutScale
	return n
}

// Close ends the transport and its streams and waits for its goroutines.
func (t *raftTransport) Close() error {
	t.once.Do(func() {
		close(t.done)
		t.NetworkTransport.Close()
		t.streams.Close()
	})
	t.wg.Wait()
	return nil
}

// Consumer returns the requests of peers.
func (t *raftTransport) Consumer() <-chan raft.RPC { return t.consume }

// SetHeartbeatHandler does nothing, so that heartbeats go through Consumer
// like everything else. The handler would run beside Raft's main goroutine and
// could make one node leader of a term that another has won (F1).
func (t *raftTransport) SetHeartbeatHandler(func(raft.RPC)) {}

// lead makes this node, the only server there is, stand for election at once
// instead of after a silence: it passes itself the request with which a leader
// hands over.
func (t *raftTransport) lead(own raft.ServerID) {
	rpc := raft.RPC{
		Command:  &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(own)}},
		RespChan: make(chan raft.RPCResponse, 1),
	}
	select {
	case t.consume <- rpc:
	case <-t.done:
	}
}

// acceptLoop serves each incoming stream until the transport closes.
func (t *raftTransport) acceptLoop() {
	for {
		c, err := t.streams.Accept()
		if err != nil {
			return
		}
		t.wg.Go(func() { t.serve(c.(*peerConn)) })
	}
}

// serve passes on the requests of one stream. The stream has a NetworkTransport
// of its own, which costs two goroutines, because that is the only way to know
// which peer sent a request without a copy of hashicorp/raft's code. It logs
// nothing: it would call the end of a stream an error, and the peer logs that.
func (t *raftTransport) serve(c *peerConn) {
	defer c.Close()
	in := t.newNetwork(&singleStream{StreamLayer: t.streams, conn: c, done: make(chan struct{})}, io.Discard)
	defer in.Close()
	for {
		select {
		case rpc := <-in.Consumer():
			if err := checkSender(rpc, serverID(c.peer)); err != nil {
				t.o.logger.Error("raft stream closed", "from", c.RemoteAddr(), "error", err)
				return
			}
			if !t.pass(rpc, serverID(c.peer)) {
				return
			}
		case <-c.gone:
			return
		case <-t.done:
			return
		}
	}
}

// checkSender returns an error when a request is not from the server its stream belongs to.
func checkSender(rpc raft.RPC, peer raft.ServerID) error {
	r, ok := rpc.Command.(raft.WithRPCHeader)
	if !ok {
		return fmt.Errorf("%T has no header", rpc.Command)
	}
	if id := raft.ServerID(r.GetRPCHeader().ID); id != peer {
		return fmt.Errorf("%T says it is from server %q, the stream is from %q", rpc.Command, id, peer)
	}
	return nil
}

// singleStream is a stream layer whose Accept returns conn once, if there is
// one, then waits for Close, which leaves the layer below open. One goroutine
// calls Accept, and NetworkTransport.Close calls Close once.
type singleStream struct {
	raft.StreamLayer
	conn net.Conn
	done chan struct{}
}

func (s *singleStream) Accept() (net.Conn, error) {
	if c := s.conn; c != nil {
		s.conn = nil
		return c, nil
	}
	<-s.done
	return nil, net.ErrClosed
}

func (s *singleStream) Close() error {
	close(s.done)
	return nil
}

// target is the address under which raftStreams.Dial expects this very server.
func target(id raft.ServerID, addr raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(id) + "@" + addr
}

// AppendEntries sends what fits into one message. Raft takes what is left in
// a.Entries for what was sent (updateLastAppended) and goes on from there until
// all is sent (replicateTo, CHECK_MORE), so shortening it in place is all.
func (t *raftTransport) AppendEntries(id raft.ServerID, addr raft.ServerAddress, a *raft.AppendEntriesRequest, r *raft.AppendEntriesResponse) error {
	if t.o.stalled() {
		return errStalled
	}
	a.Entries = a.Entries[:fitting(a.Entries, t.o.budget)]
	boundCommit(a)
	send := func() error { return t.NetworkTransport.AppendEntries(id, target(id, addr), a, r) }
	if a.PrevLogEntry == 0 && len(a.Entries) == 0 { // a heartbeat: Raft's own pauses are short
		return send()
	}
	return t.retry(id, addr, send)
}

// retry makes a call until it has reached a follower that can take it. Raft
// doubles its pause with each failure, those of a time when the follower was
// down included, up to 10 s, in which a node that came back gets nothing. A
// follower that moved or left is not waited for: Raft sends to one address at a
// time.
func (t *raftTransport) retry(id raft.ServerID, addr raft.ServerAddress, call func() error) error {
	end := time.Now().Add(retryFor)
	for pause := retryPause; ; pause = min(2*pause, retryPauseMax) {
		err := call()
		if err == nil || !passes(err) || t.o.sendsTo == nil || time.Now().After(end) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-t.done:
			return err
		}
		if !t.o.sendsTo(id, addr) || t.o.stalled() {
			return err
		}
	}
}

// passes tells whether the same call may soon succeed. What a follower answers
// comes as text.
func passes(err error) bool {
	return errors.Is(err, errDial) && !errors.Is(err, errRefused) || strings.Contains(err.Error(), errFetching.Error())
}

// fitting returns how many entries fit into budget bytes, at least one if there is one.
func fitting(entries []*raft.Log, budget int) int {
	size := 0
	for i, e := range entries {
		size += len(e.Data) + len(e.Extensions) + entryOverhead
		if size > budget && i > 0 {
			return i
		}
	}
	return len(entries)
}

// boundCommit lowers the commit index to the last entry that the follower has
// for certain once it accepts a. A follower commits up to min(LeaderCommitIndex,
// its own last index), and what it has beyond a's entries may be a stale
// tail (F8). The paper says min(leaderCommit, index of last new entry).
func boundCommit(a *raft.AppendEntriesRequest) {
	last := a.PrevLogEntry
	if n := len(a.Entries); n > 0 {
		last = a.Entries[n-1].Index
	}
	a.LeaderCommitIndex = min(a.LeaderCommitIndex, last)
}

// InstallSnapshot counts as a leader's sign of life like AppendEntries. A
// snapshot is small: the segments travel another way.
func (t *raftTransport) InstallSnapshot(id raft.ServerID, addr raft.ServerAddress, a *raft.InstallSnapshotRequest, r *raft.InstallSnapshotResponse, data io.Reader) error {
	if t.o.stalled() {
		return errStalled
	}
	b, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	return t.retry(id, addr, func() error {
		return t.NetworkTransport.InstallSnapshot(id, target(id, addr), a, r, bytes.NewReader(b))
	})
}

// RequestVote sends a vote request to the very server.
func (t *raftTransport) RequestVote(id raft.ServerID, addr raft.ServerAddress, a *raft.RequestVoteRequest, r *raft.RequestVoteResponse) error {
	return t.NetworkTransport.RequestVote(id, target(id, addr), a, r)
}

// RequestPreVote sends a pre-vote request to the very server.
func (t *raftTransport) RequestPreVote(id raft.ServerID, addr raft.ServerAddress, a *raft.RequestPreVoteRequest, r *raft.RequestPreVoteResponse) error {
	return t.NetworkTransport.RequestPreVote(id, target(id, addr), a, r)
}

// TimeoutNow asks the very server to take over. A node whose disk hangs may and should.
func (t *raftTransport) TimeoutNow(id raft.ServerID, addr raft.ServerAddress, a *raft.TimeoutNowRequest, r *raft.TimeoutNowResponse) error {
	return t.NetworkTransport.TimeoutNow(id, target(id, addr), a, r)
}
