package main

import (
	"net"
	"os"
	"sync"
	"time"
)

// net/http moves the deadlines of a connection six times a request, and has a
// second goroutine read the socket while a handler works, to notice a client
// that leaves. On the way through the runtime's timers and its poller that is
// a tenth of the CPU of a small PUT, and no handler asks whether its client is
// still there: a write is finished either way, and every wait has an end.
//
// So a lazyConn only notes deadlines. The socket learns of one when it has
// passed, from a sweep over all connections that runs every sweepInterval; and
// a read of one byte, which is what net/http watches with, waits without
// touching the socket until net/http calls it off. Only a handler that waits
// for ever, as one does that follows the ledger, has the socket watched.

// sweepInterval is how late a deadline may come.
const sweepInterval = 250 * time.Millisecond

// longAgo is a deadline that ends what is under way.
var longAgo = time.Unix(1, 0)

// lazyConn is a connection of a client with lazy deadlines.
type lazyConn struct {
	net.Conn

	mu      sync.Mutex
	woken   sync.Cond // on mu: past changed
	reads   lazyDeadline
	writes  lazyDeadline
	past    bool // reads end at once, until the deadline is moved
	reading bool // a read is in the socket
	parked  bool // a read waits for woken
	watched bool // the handler wants to know that its client leaves
}

// lazyDeadline is one deadline of a connection.
type lazyDeadline struct {
	at  time.Time // zero = none
	set bool      // the socket has a deadline that has passed
}

// newLazyConn returns conn with lazy deadlines; somebody has to sweep it.
func newLazyConn(conn net.Conn) *lazyConn {
	c := &lazyConn{Conn: conn}
	c.woken.L = &c.mu
	return c
}

func (c *lazyConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if len(p) == 1 { // net/http's watch for a client that leaves
		c.parked = true
		for !c.past && !c.watched {
			c.woken.Wait()
		}
		c.parked = false
	}
	if c.past {
		c.mu.Unlock()
		return 0, os.ErrDeadlineExceeded
	}
	c.reading = true
	c.mu.Unlock()
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	c.reading = false
	c.mu.Unlock()
	return n, err
}

// watch says whether the handler under way is to learn that its client leaves.
func (c *lazyConn) watch(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watched = on
	if c.parked {
		c.woken.Signal()
	}
}

// SetReadDeadline notes t. longAgo or before ends the read under way at once, and
// those that follow until it is called again.
func (c *lazyConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads.at = t
	if t.IsZero() || t.After(longAgo) {
		c.past = false
		return c.reads.clear(c.Conn.SetReadDeadline)
	}
	return c.endReads()
}

// SetWriteDeadline notes t.
func (c *lazyConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes.at = t
	if t.IsZero() || t.After(longAgo) {
		return c.writes.clear(c.Conn.SetWriteDeadline)
	}
	return c.writes.pass(c.Conn.SetWriteDeadline)
}

func (c *lazyConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// endReads ends the read under way; mu must be held.
func (c *lazyConn) endReads() error {
	c.past = true
	if c.parked {
		c.woken.Signal()
	}
	if c.reading {
		return c.reads.pass(c.Conn.SetReadDeadline)
	}
	return nil
}

// sweep lets the deadlines before now take effect. A read that only watches
// goes on: what it would end is the handler's work.
func (c *lazyConn) sweep(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reads.passed(now) && !c.parked {
		c.endReads()
	}
	if c.writes.passed(now) {
		c.writes.pass(c.Conn.SetWriteDeadline)
	}
}

// passed tells whether the deadline came before now and nobody knows.
func (d *lazyDeadline) passed(now time.Time) bool {
	return !d.set && !d.at.IsZero() && d.at.Before(now)
}

// pass tells the socket that the deadline has passed.
func (d *lazyDeadline) pass(tell func(time.Time) error) error {
	d.set = true
	return tell(longAgo)
}

// clear takes from the socket a deadline that had passed.
func (d *lazyDeadline) clear(tell func(time.Time) error) error {
	if !d.set {
		return nil
	}
	d.set = false
	return tell(time.Time{})
}

// Close also ends a read that watches.
func (c *lazyConn) Close() error {
	c.mu.Lock()
	c.endReads()
	c.mu.Unlock()
	return c.Conn.Close()
}

// sweeper lets the deadlines of the connections it knows take effect.
type sweeper struct {
	mu    sync.Mutex
	conns map[*lazyConn]struct{}
}

// add makes c known.
func (s *sweeper) add(c *lazyConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = make(map[*lazyConn]struct{})
	}
	s.conns[c] = struct{}{}
}

// remove forgets c.
func (s *sweeper) remove(c *lazyConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// run sweeps until quit is closed and no connection is left.
func (s *sweeper) run(quit <-chan struct{}) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for now := range tick.C {
		left := s.sweep(now)
		select {
		case <-quit:
			if left == 0 {
				return
			}
		default:
		}
	}
}

// sweep returns how many connections there are.
func (s *sweeper) sweep(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.sweep(now)
	}
	return len(s.conns)
}
