package main

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// tcpPair returns a lazy connection and its other end.
func tcpPair(t *testing.T) (*lazyConn, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := newLazyConn(conn)
	t.Cleanup(func() { c.Close(); client.Close() })
	return c, client
}

// readLater reads size bytes of c in the background.
func readLater(c net.Conn, size int) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(c, make([]byte, size))
		done <- err
	}()
	return done
}

// inRead tells whether a read of c has begun.
func (c *lazyConn) inRead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reading || c.parked
}

// TestLazyReadDeadline checks that a deadline ends a read only once it was
// swept, and that moving it lets reads go on.
func TestLazyReadDeadline(t *testing.T) {
	c, client := tcpPair(t)
	at := time.Now().Add(time.Minute)
	c.SetReadDeadline(at)
	done := readLater(c, 2)
	eventually(t, "a read", c.inRead)
	c.sweep(at.Add(-time.Second))
	select {
	case err := <-done:
		t.Fatalf("read ended before its deadline: %v", err)
	default:
	}
	c.sweep(at.Add(time.Second))
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read after its deadline: %v", err)
	}
	if _, err := c.Read(make([]byte, 2)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("next read: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	done = readLater(c, 2)
	client.Write([]byte("ok"))
	if err := <-done; err != nil {
		t.Fatalf("read without deadline: %v", err)
	}
}

// TestLazyWatch checks that a read of one byte leaves the socket alone, is not
// ended by a sweep, and is called off as net/http does it.
func TestLazyWatch(t *testing.T) {
	c, client := tcpPair(t)
	at := time.Now()
	c.SetReadDeadline(at)
	client.Write([]byte("next"))
	done := readLater(c, 1)
	eventually(t, "a watch", c.inRead)
	c.sweep(at.Add(time.Second))
	select {
	case err := <-done:
		t.Fatalf("watch ended: %v", err)
	default:
	}
	c.SetReadDeadline(longAgo)
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("watch called off: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	if err := <-readLater(c, 4); err != nil {
		t.Fatalf("the next request: %v", err)
	}
	done = readLater(c, 1)
	eventually(t, "a watch", c.inRead)
	c.Close()
	if err := <-done; err == nil {
		t.Fatal("watch of a closed connection went on")
	}
}

// TestLazyWriteDeadline checks that a client that does not read ends a write.
func TestLazyWriteDeadline(t *testing.T) {
	c, _ := tcpPair(t)
	at := time.Now().Add(time.Minute)
	c.SetWriteDeadline(at)
	done := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 64<<20))
		done <- err
	}()
	c.sweep(at.Add(time.Second))
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("write after its deadline: %v", err)
	}
	c.SetWriteDeadline(time.Now().Add(time.Minute))
	if c.writes.set {
		t.Fatal("the socket still has the passed deadline")
	}
}

// TestSweeperEnds checks that the sweeper outlives the listener as long as
// there are connections, and no longer.
func TestSweeperEnds(t *testing.T) {
	t.Parallel()
	c, _ := tcpPair(t)
	var s sweeper
	s.add(c)
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() { s.run(quit); close(ended) }()
	c.SetReadDeadline(time.Now())
	if err := <-readLater(c, 2); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read under the sweeper: %v", err)
	}
	close(quit)
	s.remove(c)
	<-ended
}
