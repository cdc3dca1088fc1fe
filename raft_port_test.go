package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// testWait is how long a test waits for what must happen.
const testWait = 2 * time.Minute

// portLog returns a logger whose lines belong to t, and stop with it: some of
// hashicorp/raft's goroutines outlive their transport by a moment.
func portLog(t testing.TB) *slog.Logger {
	w := &endingWriter{w: t.Output()}
	t.Cleanup(func() {
		w.mu.Lock()
		w.w = io.Discard
		w.mu.Unlock()
	})
	return slog.New(slog.NewTextHandler(w, nil))
}

type endingWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (e *endingWriter) Write(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.w.Write(b)
}

// waitUntil waits until ok, or fails.
func waitUntil(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !soon(testWait, ok) {
		t.Fatalf("not after %v: %s", testWait, what)
	}
}

// soon reports whether ok becomes true within d.
func soon(d time.Duration, ok func() bool) bool {
	for end := time.Now().Add(d); !ok(); {
		if time.Now().After(end) {
			return false
		}
		<-time.After(time.Millisecond)
	}
	return true
}

// receive takes a value from a channel, or fails.
func receive[T any](t testing.TB, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(testWait):
		t.Fatalf("not after %v: %s", testWait, what)
	}
	return v
}

// tell leaves a value in a channel unless one is there already.
func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// links is the network between in-process nodes. Cutting a link from one node
// to another fails what the first asks of the second and kills its connections.
type links struct {
	mu    sync.Mutex
	names map[string]string // by address
	down  map[[2]string]bool
	conns map[*linkConn]struct{}
}

func newLinks() *links {
	return &links{names: map[string]string{}, down: map[[2]string]bool{}, conns: map[*linkConn]struct{}{}}
}

// linkConn is a connection that one node dialled to another.
type linkConn struct {
	net.Conn
	l    *links
	path [2]string
}

func (c *linkConn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// at says under which address a node is reached.
func (l *links) at(name string, addr net.Addr) {
	l.mu.Lock()
	l.names[addr.String()] = name
	l.mu.Unlock()
}

// dialer returns portOptions.dial for a node.
func (l *links) dialer(name string) func(ctx context.Context, addr string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		c := &linkConn{raw, l, [2]string{name, l.names[addr]}}
		down := l.down[c.path]
		if !down {
			l.conns[c] = struct{}{}
		}
		l.mu.Unlock()
		if down {
			raw.Close()
			return nil, fmt.Errorf("link from %s to %s is cut", c.path[0], c.path[1])
		}
		return c, nil
	}
}

// cut takes one direction down.
func (l *links) cut(from, to string) {
	l.mu.Lock()
	path := [2]string{from, to}
	l.down[path] = true
	var kill []*linkConn
	for c := range l.conns {
		if c.path == path {
			kill = append(kill, c)
		}
	}
	l.mu.Unlock()
	for _, c := range kill {
		c.Close()
	}
}

// partition takes both directions down.
func (l *links) partition(a, b string) {
	l.cut(a, b)
	l.cut(b, a)
}

// heal takes everything up again.
func (l *links) heal() {
	l.mu.Lock()
	clear(l.down)
	l.mu.Unlock()
}

// openPort opens a port for tests that closes with t.
func openPort(t testing.TB, id identity, o portOptions) *internalPort {
	t.Helper()
	if o.identity == nil {
		o.identity = func() identity { return id }
	}
	if o.logger == nil {
		o.logger = portLog(t)
	}
	p, err := listenInternal("127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.close() })
	return p
}

// get asks a port's client for a path of another port.
func get(p *internalPort, addr net.Addr, path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+addr.String()+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := p.client().Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// sayPeer answers an internal request with who sent it.
func sayPeer(w http.ResponseWriter, r *http.Request) {
	id, ok := peerOf(r.Context())
	fmt.Fprintf(w, "%v %v", id, ok)
}

func TestPortCarriesBothKinds(t *testing.T) {
	for _, secret := range []string{"", "s"} {
		a, b := openPort(t, nodeA, portOptions{secret: secret}), openPort(t, nodeB, portOptions{secret: secret})
		b.serveHTTP(http.HandlerFunc(sayPeer))
		for range 2 { // the second time over the same connection
			got, err := get(a, b.addr(), "/hello")
			if want := fmt.Sprintf("%v true", nodeA); err != nil || got != want {
				t.Errorf("peerOf = %q, %v, want %q", got, err, want)
			}
		}
		layer := b.raftLayer()
		out, err := a.raftLayer().Dial(raft.ServerAddress(b.addr().String()), testWait)
		if err != nil {
			t.Fatal(err)
		}
		in, err := layer.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if peer := in.(*peerConn).peer; peer != nodeA {
			t.Errorf("stream is from %v, want %v", peer, nodeA)
		}
		io.WriteString(out, "ping")
		buf := make([]byte, 4)
		if _, err := io.ReadFull(in, buf); err != nil || string(buf) != "ping" {
			t.Errorf("read %q, %v", buf, err)
		}
		layer.Close()
		if _, err := out.Read(buf); err == nil {
			t.Error("closing the layer left its stream open")
		}
		if _, err := layer.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
		if _, err := get(a, b.addr(), "/hello"); err != nil {
			t.Errorf("closing the layer ended HTTP: %v", err)
		}
	}
}

func TestPortRefuses(t *testing.T) {
	b := openPort(t, nodeB, portOptions{})
	b.serveHTTP(http.HandlerFunc(sayPeer))
	dev := openPort(t, nodeDev, portOptions{})
	_, err := get(dev, b.addr(), "/")
	if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "the cluster names differ") {
		t.Errorf("other name: error is %v", err)
	}
	newcomer := openPort(t, nodeNew, portOptions{})
	if got, err := get(newcomer, b.addr(), "/"); err != nil || got != fmt.Sprintf("%v true", nodeNew) {
		t.Errorf("not formed, http: %q, %v", got, err)
	}
	if _, err := newcomer.raftLayer().Dial(raft.ServerAddress(b.addr().String()), testWait); !errors.Is(err, errRefused) {
		t.Errorf("not formed, raft: error is %v", err)
	}
}

// A stream to one incarnation must not end at another under the same address.
func TestPortDialsTheVeryServer(t *testing.T) {
	a, b := openPort(t, nodeA, portOptions{}), openPort(t, nodeB, portOptions{})
	streams := a.raftLayer()
	addr := raft.ServerAddress(b.addr().String())
	c, err := streams.Dial(target(serverID(nodeB), addr), testWait)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	before := nodeB
	before.incarnation++
	_, err = streams.Dial(target(serverID(before), addr), testWait)
	if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "server 2-000000000000000b answers, want 2-000000000000000c") {
		t.Errorf("error is %v", err)
	}
}

// The identity is asked for anew: a cluster forms while its nodes run.
func TestPortIdentityChanges(t *testing.T) {
	formed := make(chan struct{})
	b := openPort(t, nodeB, portOptions{})
	n := openPort(t, nodeNew, portOptions{identity: func() identity {
		id := nodeNew
		select {
		case <-formed:
			id.cluster = nodeB.cluster
		default:
		}
		return id
	}})
	streams, addr := n.raftLayer(), raft.ServerAddress(b.addr().String())
	if _, err := streams.Dial(addr, testWait); !errors.Is(err, errRefused) {
		t.Errorf("before: error is %v", err)
	}
	close(formed)
	c, err := streams.Dial(addr, testWait)
	if err != nil {
		t.Fatalf("after: %v", err)
	}
	c.Close()
}

// ended reports whether the other side ends the connection within testWait.
func ended(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(testWait))
	_, err := io.Copy(io.Discard, c)
	return !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err)
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestPortDropsStrangers(t *testing.T) {
	p := openPort(t, nodeA, portOptions{timeout: 50 * time.Millisecond})
	hello := appendPreamble(nil, &preamble{kind: kindRaft, identity: nodeB})
	for what, bytes := range map[string]string{
		"nothing":                         "",
		"half a preamble":                 string(hello[:40]),
		"an HTTP request":                 "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"a stream without Raft behind it": string(hello),
	} {
		c, err := net.Dial("tcp", p.addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, bytes)
		if !ended(c) {
			t.Errorf("%s: the connection stays open", what)
		}
		c.Close()
	}
}

func TestPortBoundsStrangers(t *testing.T) {
	var log bytes.Buffer
	p := openPort(t, nodeA, portOptions{strangers: 1, timeout: testWait, logger: slog.New(slog.NewTextHandler(&endingWriter{w: &log}, nil))})
	p.serveHTTP(http.HandlerFunc(sayPeer))
	first, err := net.Dial("tcp", p.addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c, err := net.Dial("tcp", p.addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if !ended(c) {
			t.Error("a stranger too many stays connected")
		}
		c.Close()
	}
	first.Close()
	b := openPort(t, nodeB, portOptions{})
	waitUntil(t, "a place is free again", func() bool {
		_, err := get(b, p.addr(), "/")
		return err == nil
	})
	p.close()
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines were logged, want 1:\n%s", n, &log)
	}
}

func TestPortCloses(t *testing.T) {
	a, b := openPort(t, nodeA, portOptions{}), openPort(t, nodeB, portOptions{})
	asked, ended := make(chan struct{}), make(chan struct{})
	b.serveHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
		close(ended)
	}))
	failed := make(chan error)
	go func() {
		_, err := get(a, b.addr(), "/")
		failed <- err
	}()
	receive(t, asked, "the request arrives")
	if err := b.close(); err != nil {
		t.Error(err)
	}
	receive(t, ended, "the handler's context ends")
	if err := receive(t, failed, "the request ends"); err == nil {
		t.Error("a request outlived the port")
	}
	if err := b.close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if _, err := b.connect(context.Background(), a.addr().String(), kindHTTP); !errors.Is(err, net.ErrClosed) {
		t.Errorf("connect after close: %v", err)
	}
	b.serveHTTP(http.NotFoundHandler()) // must not serve, nor panic
	l, err := net.Listen("tcp", b.addr().String())
	if err != nil {
		t.Fatalf("the address is still taken: %v", err)
	}
	l.Close()
	if n := len(b.conns); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

func TestPortAddressTaken(t *testing.T) {
	p := openPort(t, nodeA, portOptions{})
	_, err := listenInternal(p.addr().String(), portOptions{})
	if err == nil || !strings.Contains(err.Error(), "opening the internal port: listen tcp 127.0.0.1:") {
		t.Errorf("error is %v", err)
	}
}

// A dialer must give up when its caller does, also in the middle of the exchange.
func TestPortConnectEndsWithContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := openPort(t, nodeA, portOptions{timeout: testWait})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			readPreamble(c)
		}
		cancel()
	}()
	_, err = p.connect(ctx, l.Addr().String(), kindRaft)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want context.Canceled", err)
	}
	if n := len(p.conns); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

func TestLinks(t *testing.T) {
	l := newLinks()
	a, b := openPort(t, nodeA, portOptions{dial: l.dialer("a")}), openPort(t, nodeB, portOptions{dial: l.dialer("b")})
	l.at("a", a.addr())
	l.at("b", b.addr())
	a.serveHTTP(http.HandlerFunc(sayPeer))
	b.serveHTTP(http.HandlerFunc(sayPeer))
	ab := func() error { _, err := get(a, b.addr(), "/"); return err }
	ba := func() error { _, err := get(b, a.addr(), "/"); return err }
	stream, err := a.raftLayer().Dial(raft.ServerAddress(b.addr().String()), testWait)
	if err != nil {
		t.Fatal(err)
	}
	if ab() != nil || ba() != nil {
		t.Fatal("the links are down from the start")
	}
	l.cut("a", "b")
	if !ended(stream) {
		t.Error("an established stream outlived the cut")
	}
	if ab() == nil || ba() != nil {
		t.Error("cut: want only a to b down")
	}
	l.partition("a", "b")
	if ab() == nil || ba() == nil {
		t.Error("partition: want both ways down")
	}
	l.heal()
	if ab() != nil || ba() != nil {
		t.Error("heal: want both ways up")
	}
}
