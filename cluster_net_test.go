package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// linkState says what happens to what one node sends to another.
type linkState uint8

const (
	linkOpen   linkState = iota
	linkLoud             // connections break
	linkSilent           // nothing arrives until the link is healed, as with TCP when packets are lost
	linkSlow             // each piece takes up to slowLink
)

const slowLink = 100 * time.Millisecond

var errLinkCut = errors.New("link is cut")

// linkTable says how the links between nodes are.
type linkTable struct {
	mu      sync.Mutex
	state   map[[2]int]linkState // from, to
	refused map[[2]int]bool      // from cannot open connections to to
	changed changeSignal
}

func (l *linkTable) init() {
	l.state, l.refused = make(map[[2]int]linkState), make(map[[2]int]bool)
	l.changed.init()
}

// get returns the state of the way from one node to another.
func (l *linkTable) get(from, to int) linkState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state[[2]int{from, to}]
}

// set changes the way from one node to another.
func (l *linkTable) set(from, to int, s linkState) {
	l.mu.Lock()
	l.state[[2]int{from, to}] = s
	l.mu.Unlock()
	l.changed.fire()
}

// refuse lets a node open connections to another or not; those it has stay.
func (l *linkTable) refuse(from, to int, refuse bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused[[2]int{from, to}] = refuse
}

// heal opens all links.
func (l *linkTable) heal() {
	l.mu.Lock()
	clear(l.state)
	clear(l.refused)
	l.mu.Unlock()
	l.changed.fire()
}

// pass waits until the way is open, as long as wait allows.
func (l *linkTable) pass(from, to int, wait func() error) error {
	for {
		changed := l.changed.next()
		switch l.get(from, to) {
		case linkOpen:
			return nil
		case linkLoud:
			return errLinkCut
		case linkSlow:
			<-time.After(rand.N(slowLink))
			return wait()
		}
		if err := wait(); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// isolate changes all links of node i, in both directions.
func (c *testCluster) isolate(i int, s linkState) {
	for k := range c.nodes {
		if k != i {
			c.links.set(i, k, s)
			c.links.set(k, i, s)
		}
	}
}

// dialer connects node from to the others as the links allow.
func (c *testCluster) dialer(from int) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		to := -1
		c.links.mu.Lock()
		for i, n := range c.nodes {
			if n.o.raftAddr == addr {
				to = i
			}
		}
		refused := c.links.refused[[2]int{from, to}]
		c.links.mu.Unlock()
		if refused {
			return nil, errLinkCut
		}
		for _, way := range [][2]int{{from, to}, {to, from}} {
			if err := c.links.pass(way[0], way[1], ctx.Err); err != nil {
				return nil, err
			}
		}
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return &cutConn{Conn: conn, links: &c.links, from: from, to: to}, nil
	}
}

// cutConn is a connection that node from opened to node to, under the rules of
// their links.
type cutConn struct {
	net.Conn
	links    *linkTable
	from, to int
	closed   atomic.Bool
	readBy   atomic.Int64 // deadlines in Unix ns, 0 = none
	writeBy  atomic.Int64
}

func (c *cutConn) Write(b []byte) (int, error) {
	if err := c.pass(c.from, c.to, &c.writeBy); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err := c.pass(c.to, c.from, &c.readBy); err != nil {
		return 0, err
	}
	return n, err
}

// pass waits until the way is open; the connection ends if that takes too long.
func (c *cutConn) pass(from, to int, by *atomic.Int64) error {
	err := c.links.pass(from, to, func() error {
		switch deadline := by.Load(); {
		case c.closed.Load():
			return net.ErrClosed
		case deadline != 0 && time.Now().UnixNano() > deadline:
			return os.ErrDeadlineExceeded
		}
		return nil
	})
	if err != nil {
		c.Close()
	}
	return err
}

func (c *cutConn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// unixNano is 0 for no deadline.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func (c *cutConn) SetDeadline(t time.Time) error {
	c.readBy.Store(unixNano(t))
	c.writeBy.Store(unixNano(t))
	return c.Conn.SetDeadline(t)
}

func (c *cutConn) SetReadDeadline(t time.Time) error {
	c.readBy.Store(unixNano(t))
	return c.Conn.SetReadDeadline(t)
}

func (c *cutConn) SetWriteDeadline(t time.Time) error {
	c.writeBy.Store(unixNano(t))
	return c.Conn.SetWriteDeadline(t)
}

// freeAddrs returns loopback addresses nobody listens on. They are on a host
// of their own where that is possible: the local ends of connections, which are
// on 127.0.0.1, cannot take the port of a node that is down for a moment.
func freeAddrs(t testing.TB, count int) []string {
	t.Helper()
	host := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	if l, err := net.Listen("tcp", host+":0"); err != nil {
		host = "127.0.0.1"
	} else {
		l.Close()
	}
	var addrs []string
	for range count {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}
