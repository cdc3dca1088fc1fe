package main

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// simNet is a network in memory for nodes under virtual time (testing/synctest):
// whoever waits in it waits on a channel or a timer. It has streams, as TCP
// gives them, and each way between two nodes has faults of its own.
type simNet struct {
	mu      sync.Mutex // guards all; never held over a wait
	rng     *rand.Rand
	ports   map[string]*simPort
	hosts   map[string]int // whose an address is
	off     map[int]bool   // without power: nobody answers, not even with a refusal
	ways    map[[2]int]simWay
	conns   map[*simConn]bool // of both ends
	changed changeSignal
	count   *simCount // what happened
}

// simWay is how the way from one node to another is. The zero value is a good one.
type simWay struct {
	state linkState
	delay time.Duration // the longest there is
	stall float64       // chance that something is lost on the way and sent again later
	reset float64       // chance that a connection breaks with a write
	rate  float64       // bytes a second; 0 = any
}

const (
	simDelay     = time.Millisecond  // of a good way, at most
	simKeepAlive = 150 * time.Second // after which a connection to nowhere ends
)

// newSimNet returns a network without nodes.
func newSimNet(seed uint64, count *simCount) *simNet {
	s := &simNet{
		rng: rand.New(rand.NewPCG(seed, 'n')), ports: make(map[string]*simPort), hosts: make(map[string]int), off: make(map[int]bool),
		ways: make(map[[2]int]simWay), conns: make(map[*simConn]bool), count: count,
	}
	s.changed.init()
	return s
}

// simPort is a listener.
type simPort struct {
	net   *simNet
	node  int
	addr  peerAddr
	queue chan *simConn
	done  chan struct{}
	once  sync.Once
}

// listen opens a port of a node.
func (s *simNet) listen(node int, addr string) (net.Listener, error) {
	p := &simPort{net: s, node: node, addr: peerAddr(addr), queue: make(chan *simConn, 128), done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports[addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: "sim", Addr: p.addr, Err: syscall.EADDRINUSE}
	}
	s.ports[addr], s.hosts[addr] = p, node
	return p, nil
}

func (p *simPort) Addr() net.Addr { return p.addr }

func (p *simPort) Accept() (net.Conn, error) {
	select {
	case c := <-p.queue:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *simPort) Close() error {
	p.once.Do(func() {
		p.net.mu.Lock()
		delete(p.net.ports, string(p.addr))
		p.net.mu.Unlock()
		close(p.done)
		for {
			select {
			case c := <-p.queue:
				c.Close()
			default:
				return
			}
		}
	})
	return nil
}

// dial connects a node to an address, as the ways between them allow.
func (s *simNet) dial(ctx context.Context, from int, addr string) (net.Conn, error) {
	refused := &net.OpError{Op: "dial", Net: "sim", Addr: peerAddr(addr), Err: syscall.ECONNREFUSED}
	for {
		changed := s.changed.next()
		s.mu.Lock()
		to, known := s.hosts[addr]
		there, back := s.ways[[2]int{from, to}], s.ways[[2]int{to, from}]
		lost := !known || s.off[to] || s.off[from] || there.state == linkSilent || back.state == linkSilent
		trip := s.delayLocked(there) + s.delayLocked(back)
		s.mu.Unlock()
		switch {
		case lost:
			select {
			case <-changed:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			continue
		case there.state == linkLoud || back.state == linkLoud:
			return nil, refused
		}
		select {
		case <-time.After(trip):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if c := s.join(from, to, addr); c != nil {
			return c, nil
		}
		return nil, refused
	}
}

// join makes a connection to the port at addr, nil if there is none.
func (s *simNet) join(from, to int, addr string) *simConn {
	s.mu.Lock()
	p := s.ports[addr]
	if p == nil || s.off[from] || s.off[to] {
		s.mu.Unlock()
		return nil
	}
	there, back := newSimPipe(), newSimPipe()
	local := peerAddr(addrOf(from) + ":0")
	a := &simConn{net: s, node: from, peer: to, in: back, out: there, local: local, remote: p.addr}
	b := &simConn{net: s, node: to, peer: from, in: there, out: back, local: p.addr, remote: local}
	s.conns[a], s.conns[b] = true, true
	s.mu.Unlock()
	select {
	case p.queue <- b:
		return a
	case <-p.done:
	default:
	}
	a.Close()
	b.Close()
	return nil
}

// addrOf is the host of a node.
func addrOf(node int) string { return "10.0.0." + string(rune('1'+node)) }

// delayLocked draws how long something takes on a way.
func (s *simNet) delayLocked(w simWay) time.Duration {
	d := time.Duration(s.rng.Int64N(int64(simDelay)))
	if w.delay > 0 {
		d += time.Duration(s.rng.Int64N(int64(w.delay)))
	}
	if w.stall > 0 && s.rng.Float64() < w.stall { // sent again, with a pause that doubles
		d += 200 * time.Millisecond << s.rng.IntN(4)
	}
	return d
}

// set changes the way from one node to another. What was on a silent way goes
// on when it is heard again, as TCP sends it again; of the connections on it
// some are forgotten by what is between, for ever, and nobody is told.
func (s *simNet) set(from, to int, w simWay) {
	s.mu.Lock()
	old := s.ways[[2]int{from, to}]
	s.ways[[2]int{from, to}] = w
	for c := range s.conns {
		if c.node != from || c.peer != to {
			continue
		}
		c.out.hold(w.state == linkSilent)
		switch {
		case w.state == linkLoud:
			c.breakLocked("then a connection broke")
		case old.state == linkSilent && w.state == linkOpen && s.rng.IntN(4) == 0:
			c.vanishLocked()
		}
	}
	s.mu.Unlock()
	s.changed.fire()
}

// pause stops and resumes everything a node sends and hears, without loss.
func (s *simNet) pause(node int, stopped bool) {
	s.mu.Lock()
	for c := range s.conns {
		if c.node == node || c.peer == node {
			c.out.hold(stopped || s.ways[[2]int{c.node, c.peer}].state == linkSilent)
		}
	}
	s.off[node] = stopped
	s.mu.Unlock()
	s.changed.fire()
}

// heal makes all ways good.
func (s *simNet) heal() {
	s.mu.Lock()
	var bad [][2]int
	for way, w := range s.ways {
		if w != (simWay{}) {
			bad = append(bad, way)
		}
	}
	s.mu.Unlock()
	for _, way := range bad {
		s.set(way[0], way[1], simWay{})
	}
}

// kill ends all connections of a node whose process ended: its system says so.
func (s *simNet) kill(node int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.node == node {
			c.breakLocked("then a connection broke")
		}
	}
}

// powerOff makes a node vanish, powerOn brings it back: those who still hold
// connections to it learn then that it knows nothing of them.
func (s *simNet) powerOff(node int) {
	s.mu.Lock()
	s.off[node] = true
	for c := range s.conns {
		if c.node == node {
			c.vanishLocked()
			c.in.fail(syscall.ECONNRESET) // for the remains of the node itself
		}
	}
	s.mu.Unlock()
	s.changed.fire()
}

func (s *simNet) powerOn(node int) {
	s.mu.Lock()
	s.off[node] = false
	for c := range s.conns {
		if c.peer == node {
			c.breakLocked("then a connection broke")
		}
	}
	s.mu.Unlock()
	s.changed.fire()
}

// simConn is one end of a connection.
type simConn struct {
	net           *simNet
	node, peer    int
	in, out       *simPipe
	local, remote net.Addr
	once          sync.Once
}

// breakLocked ends both directions with a reset.
func (c *simConn) breakLocked(how string) {
	c.net.count.add(how)
	c.in.fail(syscall.ECONNRESET)
	c.out.fail(syscall.ECONNRESET)
}

// vanishLocked makes the connection half-open: nothing arrives any more, and
// each end learns it by itself.
func (c *simConn) vanishLocked() {
	c.net.count.add("then a connection was half-open")
	c.in.lose()
	c.out.lose()
	time.AfterFunc(simKeepAlive, func() {
		c.in.fail(syscall.ETIMEDOUT)
		c.out.fail(syscall.ETIMEDOUT)
	})
}

func (c *simConn) Read(b []byte) (int, error) { return c.in.read(b) }

// Write never waits: there is room for all that is on its way.
func (c *simConn) Write(b []byte) (int, error) {
	c.net.mu.Lock()
	w := c.net.ways[[2]int{c.node, c.peer}]
	delay := c.net.delayLocked(w)
	if w.state == linkLoud || w.reset > 0 && c.net.rng.Float64() < w.reset {
		c.breakLocked("connection reset")
	}
	c.net.mu.Unlock()
	return c.out.write(b, delay, w.rate)
}

func (c *simConn) Close() error {
	c.once.Do(func() {
		c.net.mu.Lock()
		delete(c.net.conns, c)
		w := c.net.ways[[2]int{c.node, c.peer}]
		delay := c.net.delayLocked(w)
		c.net.mu.Unlock()
		c.out.finish(delay)
		c.in.close()
	})
	return nil
}

func (c *simConn) LocalAddr() net.Addr  { return c.local }
func (c *simConn) RemoteAddr() net.Addr { return c.remote }

func (c *simConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *simConn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	c.in.deadline = t
	c.in.mu.Unlock()
	c.in.poke()
	return nil
}

func (c *simConn) SetWriteDeadline(t time.Time) error {
	c.out.mu.Lock()
	c.out.writeBy = t
	c.out.mu.Unlock()
	return nil
}

// simPipe is one direction of a connection; it has one reader at a time.
type simPipe struct {
	mu       sync.Mutex
	chunks   []simChunk // on their way, in order
	arrived  time.Time  // of the last of them
	held     bool       // nothing arrives for now
	lost     bool       // nothing arrives ever
	failed   error      // both ends see it
	closed   bool       // by the reader
	finished bool       // by the writer
	deadline time.Time  // of the reader
	writeBy  time.Time
	wake     chan struct{}
}

// simChunk is what one write sent; without bytes it is the end.
type simChunk struct {
	b  []byte
	at time.Time
}

func newSimPipe() *simPipe { return &simPipe{wake: make(chan struct{}, 1)} }

// poke makes the reader look again.
func (p *simPipe) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// change changes the pipe and wakes the reader.
func (p *simPipe) change(f func()) {
	p.mu.Lock()
	f()
	p.mu.Unlock()
	p.poke()
}

func (p *simPipe) hold(held bool) { p.change(func() { p.held = held }) }
func (p *simPipe) lose()          { p.change(func() { p.lost = true }) }
func (p *simPipe) close()         { p.change(func() { p.closed, p.chunks = true, nil }) }

// fail breaks the pipe unless it is broken.
func (p *simPipe) fail(err error) {
	p.change(func() {
		if p.failed == nil {
			p.failed = err
		}
	})
}

// finish sends the end.
func (p *simPipe) finish(delay time.Duration) {
	p.change(func() {
		p.finished = true
		p.pushLocked(nil, delay, 0)
	})
}

// pushLocked puts a chunk on its way.
func (p *simPipe) pushLocked(b []byte, delay time.Duration, rate float64) {
	at := time.Now().Add(delay)
	if at.Before(p.arrived) {
		at = p.arrived
	}
	if rate > 0 {
		at = at.Add(time.Duration(float64(len(b)) / rate * float64(time.Second)))
	}
	p.arrived = at
	p.chunks = append(p.chunks, simChunk{b, at})
}

// write puts b on its way.
func (p *simPipe) write(b []byte, delay time.Duration, rate float64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.finished:
		return 0, net.ErrClosed
	case p.failed != nil:
		return 0, p.failed
	case !p.writeBy.IsZero() && !time.Now().Before(p.writeBy):
		return 0, os.ErrDeadlineExceeded
	case p.closed && !p.held && !p.lost:
		return 0, syscall.EPIPE
	}
	if len(b) > 0 && !p.closed {
		p.pushLocked(append([]byte(nil), b...), delay, rate)
		p.poke()
	}
	return len(b), nil
}

// read waits for bytes, the end, an error or the deadline.
func (p *simPipe) read(b []byte) (int, error) {
	for {
		p.mu.Lock()
		n, until, err := p.takeLocked(b)
		p.mu.Unlock()
		if n > 0 || err != nil || len(b) == 0 {
			return n, err
		}
		if until.IsZero() {
			<-p.wake
			continue
		}
		timer := time.NewTimer(time.Until(until))
		select {
		case <-p.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// takeLocked takes what has arrived, or says when to look again.
func (p *simPipe) takeLocked(b []byte) (n int, until time.Time, err error) {
	now := time.Now()
	switch {
	case p.closed:
		return 0, until, net.ErrClosed
	case !p.deadline.IsZero() && !now.Before(p.deadline):
		return 0, until, os.ErrDeadlineExceeded
	case p.failed != nil:
		return 0, until, p.failed
	}
	until = p.deadline
	if p.held || p.lost {
		return 0, until, nil
	}
	for n < len(b) && len(p.chunks) > 0 && !p.chunks[0].at.After(now) {
		c := &p.chunks[0]
		if c.b == nil {
			if n == 0 {
				return 0, until, io.EOF
			}
			return n, until, nil
		}
		k := copy(b[n:], c.b)
		if n, c.b = n+k, c.b[k:]; len(c.b) == 0 {
			p.chunks = p.chunks[1:]
		}
	}
	if n == 0 && len(p.chunks) > 0 && (until.IsZero() || p.chunks[0].at.Before(until)) {
		until = p.chunks[0].at
	}
	return n, until, nil
}
