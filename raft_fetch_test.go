package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// puller is a node of which only the store, the port and the fetcher are there,
// and a ledger that it lacks.
type puller struct {
	*node
	t      *testing.T
	leader *harness
	snap   snapshot
}

// sender is a peer of a puller: how it answers may be changed by the test.
type sender func(honest http.Handler, w http.ResponseWriter, r *http.Request)

// newPuller returns a puller with such peers, nil for an honest one.
func newPuller(t *testing.T, leader *harness, peers ...sender) *puller {
	t.Helper()
	state, err := leader.store.checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	p := &puller{t: t, leader: leader, snap: snapshot{testClusterID, state.at, state.segments, state.window}}
	own := identity{cluster: testClusterID, name: "test", node: 9, incarnation: 9}
	h := newHarness(t)
	p.node = &node{o: nodeOptions{metrics: h.store.o.metrics, logger: testLogger(t), now: time.Now}, store: h.store}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.fetches.n = p.node
	p.self.Store(&nodeFile{NodeID: 9, ClusterName: "test", cluster: testClusterID})
	p.port = openPort(t, own, portOptions{})
	t.Cleanup(func() {
		p.cancel()
		p.done.Wait()
	})
	var c raft.Configuration
	for i, change := range peers {
		id := identity{cluster: testClusterID, name: "test", node: uint64(i + 1), incarnation: 1}
		port := openPort(t, id, portOptions{})
		from := &node{o: nodeOptions{metrics: newMetrics(), logger: testLogger(t)}, store: leader.store}
		m := http.NewServeMux()
		m.HandleFunc("GET /segments/{id}", from.serveSegment)
		honest := http.Handler(m)
		if change != nil {
			honest = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { change(m, w, r) })
		}
		port.serveHTTP(honest)
		c.Servers = append(c.Servers, raft.Server{ID: serverID(id), Address: raft.ServerAddress(port.addr().String())})
	}
	p.snap.at.configuration = raft.EncodeConfiguration(c)
	return p
}

// takeOver fetches until nothing is missing and installs the snapshot.
func (p *puller) takeOver() {
	p.t.Helper()
	var got []fetchedSegment
	waitUntil(p.t, "all segments are fetched", func() (done bool) {
		var err error
		got, err = p.fetches.fetch(&p.snap)
		if err != nil && !errors.Is(err, errFetching) {
			p.t.Fatal(err)
		}
		return err == nil
	})
	p.done.Wait()
	if err := p.store.install(p.snap.at, p.snap.segments, got, p.snap.window); err != nil {
		p.t.Fatal(err)
	}
	sameFiles(p.t, p.store.o.dir, p.leader.dir)
	checkStore(p.t, p.store)
}

// library is a ledger of several segments of some 300 KiB.
func library(t *testing.T) *harness {
	h := newHarness(t)
	for i := range 6 {
		for k := range 3 {
			h.put(fmt.Sprint("key-", k), strings.Repeat(fmt.Sprint("value ", i, k), 12_000))
		}
		h.sealNow()
	}
	return h
}

// alteringWriter changes what a peer sends; alter gets each piece of the body
// and its place in it, and false ends the connection.
type alteringWriter struct {
	http.ResponseWriter
	at    int
	alter func(b []byte, at int) bool
}

func (w *alteringWriter) Write(b []byte) (int, error) {
	b = append([]byte(nil), b...)
	if !w.alter(b, w.at) {
		panic(http.ErrAbortHandler)
	}
	w.at += len(b)
	return w.ResponseWriter.Write(b)
}

// ReadFrom is there for a sender that copies a file.
func (w *alteringWriter) ReadFrom(r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, r, make([]byte, 4<<10))
}

// TestFetchFromFaultyPeers: whatever one peer does to what it sends, the other
// one brings it, and the metric says why the first was left.
func TestFetchFromFaultyPeers(t *testing.T) {
	t.Parallel()
	leader := library(t)
	altering := func(alter func(b []byte, at int) bool) sender {
		return func(honest http.Handler, w http.ResponseWriter, r *http.Request) {
			honest.ServeHTTP(&alteringWriter{ResponseWriter: w, alter: alter}, r)
		}
	}
	for name, row := range map[string]struct {
		send  sender
		cause error
	}{
		"lacks": {func(_ http.Handler, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, errPeerLacks},
		"busy":  {func(_ http.Handler, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, errPeerBusy},
		"error": {func(_ http.Handler, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, errPeerBroken},
		"other range": {func(_ http.Handler, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 1-2/3")
			w.WriteHeader(206)
		}, errPeerBroken},
		"hangs up": {altering(func([]byte, int) bool { return false }), errPeerBroken},
		"dies":     {altering(func(b []byte, at int) bool { return at < 100_000 }), errPeerBroken},
		"flips":    {altering(func(b []byte, at int) bool { b[0] ^= 1; return true }), errCorrupt},
		"dies and flips": {altering(func(b []byte, at int) bool {
			b[0] ^= 1
			return at < 100_000
		}), errPeerBroken},
		"swaps segments": {func(honest http.Handler, w http.ResponseWriter, r *http.Request) {
			all := leader.store.durable.Load().segments
			r.SetPathValue("id", "")
			r.URL.Path = "/segments/" + all[rand.IntN(len(all))].id()
			honest.ServeHTTP(w, r)
		}, nil},
		"stalls": {func(honest http.Handler, w http.ResponseWriter, r *http.Request) {
			honest.ServeHTTP(&alteringWriter{ResponseWriter: w, alter: func(b []byte, at int) bool {
				if at > 50_000 {
					w.(http.Flusher).Flush()
					<-r.Context().Done()
					return false
				}
				return true
			}}, r)
		}, errPeerStalled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPuller(t, leader, row.send, nil)
			p.takeOver()
			m := &p.o.metrics.fetch
			if m.segments.value() != 6 || m.bytes.value() < p.snap.segments[5].size || m.missing.value() != 0 {
				t.Errorf("counted %d segments, %d bytes, %d missing", m.segments.value(), m.bytes.value(), m.missing.value())
			}
			if row.cause != nil && m.refused[refusalOf(row.cause)].value() == 0 {
				t.Errorf("the faulty peer was never left for %q", row.cause)
			}
		})
	}
}

// TestFetchSpreads: all peers that have the segments send some.
func TestFetchSpreads(t *testing.T) {
	t.Parallel()
	var asked [3]atomic.Int32
	count := func(i int) sender {
		return func(honest http.Handler, w http.ResponseWriter, r *http.Request) {
			asked[i].Add(1)
			honest.ServeHTTP(&alteringWriter{ResponseWriter: w, alter: func([]byte, int) bool { // not all at once
				<-time.After(time.Millisecond)
				return true
			}}, r)
		}
	}
	p := newPuller(t, library(t), count(0), count(1), count(2))
	p.takeOver()
	for i := range asked {
		if asked[i].Load() == 0 {
			t.Errorf("peer %d was never asked", i+1)
		}
	}
}

// TestFetchLeavesSlowPeer: a peer that trickles is left in the middle for one
// that is much faster, and asked for little more.
func TestFetchLeavesSlowPeer(t *testing.T) {
	t.Parallel()
	slow := func(honest http.Handler, w http.ResponseWriter, r *http.Request) {
		honest.ServeHTTP(&alteringWriter{ResponseWriter: w, alter: func([]byte, int) bool {
			w.(http.Flusher).Flush()
			select {
			case <-time.After(100 * time.Millisecond):
				return true
			case <-r.Context().Done():
				return false
			}
		}}, r)
	}
	p := newPuller(t, library(t), slow, nil)
	p.takeOver()
	if p.o.metrics.fetch.refused[refusalOf(errPeerSlow)].value() == 0 {
		t.Error("the slow peer was never left")
	}
}

// TestFetchPacksOverSlowLink: over a link that carries little the pieces come
// compressed, and they are the same.
func TestFetchPacksOverSlowLink(t *testing.T) {
	t.Parallel()
	var packed atomic.Int32
	link := func(honest http.Handler, w http.ResponseWriter, r *http.Request) {
		honest.ServeHTTP(&alteringWriter{ResponseWriter: w, alter: func(b []byte, _ int) bool {
			if w.Header().Get("Content-Encoding") == packedEncoding {
				packed.Add(1)
			}
			<-time.After(time.Duration(len(b)) * time.Second / (2 << 20))
			return true
		}}, r)
	}
	p := newPuller(t, library(t), link)
	p.takeOver()
	m := &p.o.metrics.fetch
	if packed.Load() == 0 || m.wireBytes.value() >= m.bytes.value() {
		t.Errorf("%d pieces of frames, %d bytes travelled for %d", packed.Load(), m.wireBytes.value(), m.bytes.value())
	}
}

// TestFetchWithoutRoom: a full disk, found in the middle of a segment or known
// before, stops the fetch and nothing else; it says so, and goes on from there
// when there is room.
func TestFetchWithoutRoom(t *testing.T) {
	t.Parallel()
	p := newPuller(t, library(t), nil)
	var full atomic.Bool
	var writes atomic.Int32
	p.store.o.fault = func(step string) error {
		if step == "before write part" && writes.Add(1) > 1 && full.Load() {
			return &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
		}
		return nil
	}
	full.Store(true)
	left := 0 // parts with something in them, to be resumed
	for _, recover := range []func(){
		func() { p.diskFull.Store(true); full.Store(false) },
		func() { p.diskFull.Store(false) },
	} {
		waitUntil(t, "the fetch waits for room", func() bool {
			p.fetches.fetch(&p.snap)
			p.fetches.mu.Lock()
			rest := len(p.fetches.busy) == 0 // a try that goes on beside the one that failed may need no other
			p.fetches.mu.Unlock()
			return rest && p.o.metrics.fetch.waiting.value() == 1 && strings.Contains(p.fetches.state(), "no room on the disk")
		})
		for _, info := range p.snap.segments {
			if st, err := os.Stat(p.store.partPath(info)); err == nil && st.Size() > 0 {
				left++
			}
		}
		recover()
	}
	p.takeOver()
	if m := &p.o.metrics.fetch; m.waiting.value() != 0 || p.fetches.state() != "" || left > 0 && m.resumed.value() == 0 {
		t.Errorf("after all: waiting is %d, state %q, %d of %d resumed", m.waiting.value(), p.fetches.state(), m.resumed.value(), left)
	}
}

// TestServeSegmentLimits: who asks for a segment that is not there, or while
// enough are being sent, is told so.
func TestServeSegmentLimits(t *testing.T) {
	t.Parallel()
	leader := library(t)
	p := newPuller(t, leader, nil)
	from := &node{o: nodeOptions{metrics: newMetrics()}, store: leader.store}
	port := openPort(t, identity{cluster: testClusterID, name: "test", node: 5, incarnation: 1}, portOptions{})
	m := http.NewServeMux()
	m.HandleFunc("GET /segments/{id}", from.serveSegment)
	port.serveHTTP(m)
	ask := func(info segmentInfo) error {
		_, err := p.pullPiece(t.Context(), port.addr().String(), info, 0, info.size, false, func(pulled) bool { return false }, io.Discard)
		return err
	}
	info := p.snap.segments[2]
	if err := ask(info); err != nil {
		t.Error(err)
	}
	other := info
	other.root[0] ^= 1
	wantError(t, ask(other), errPeerLacks)
	from.serving.Store(maxServeStreams)
	wantError(t, ask(info), errPeerBusy)
	from.serving.Store(0)
	if err := os.Rename(leader.store.segmentPath(info), leader.store.segmentPath(info)+".away"); err != nil {
		t.Fatal(err)
	}
	wantError(t, ask(info), errPeerLacks)
	if err := os.Rename(leader.store.segmentPath(info)+".away", leader.store.segmentPath(info)); err != nil {
		t.Fatal(err)
	}
}

// TestFetchThroughLeaderChanges: a node that lost its disk takes the ledger over
// while leaders change, peers die one at a time and it is killed itself.
func TestFetchThroughLeaderChanges(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	rng := rand.New(rand.NewPCG(1, 2))
	lead := c.leader()
	puller := (lead + 1) % 3
	c.put(lead, "a", strings.Repeat("x", 1000))
	index := c.lastIndex(puller)
	c.kill(puller)
	for i := range 6 {
		c.fill(lead, fmt.Sprint("part-", i), 20, 20_000)
		c.sealAll()
	}
	c.passTruncation(index)
	c.wipe(puller)
	for turn := range rounds(t, 4) {
		for i := range c.nodes { // the fetch begins, and nothing comes
			c.links.refuse(puller, i, true)
		}
		c.start(puller)
		switch turn % 4 {
		case 0:
			c.transfer((puller + 1 + turn%2) % 3)
		case 1:
			c.links.heal()
			n := c.nodes[puller].node
			soon(time.Duration(rng.IntN(200))*time.Millisecond, func() bool { return n.o.metrics.fetch.segments.value() > 1 })
		case 2:
			c.links.heal()
			peer := (puller + 1 + rng.IntN(2)) % 3
			c.restart(peer)
		}
		c.links.heal()
		soon(time.Duration(rng.IntN(300))*time.Millisecond, func() bool { return c.nodes[puller].store.size() > 0 })
		c.kill(puller)
	}
	c.start(puller)
	if v := c.get(puller, "part-5-19"); len(v) != 20_000 {
		t.Errorf("value has %d bytes", len(v))
	}
}
