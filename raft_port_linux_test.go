package main

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// unheardLimit returns the TCP_USER_TIMEOUT of a connection.
func unheardLimit(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	raw, err := c.(*peerConn).Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	ms, failed := 0, error(nil)
	if err := raw.Control(func(fd uintptr) {
		ms, failed = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
	}); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return time.Duration(ms) * time.Millisecond
}

// Both ends of a connection notice when it is cut, except where one may be full
// for long.
func TestPortNoticesCuts(t *testing.T) {
	a, b := openPort(t, nodeA, portOptions{}), openPort(t, nodeB, portOptions{})
	for kind, want := range map[connKind]time.Duration{kindRaft: unheardFor, kindStream: unheardFor, kindHTTP: 0} {
		taken := b.listen(kind)
		out, err := a.connect(t.Context(), b.addr().String(), kind)
		if err != nil {
			t.Fatal(err)
		}
		in, err := taken.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got, other := unheardLimit(t, out), unheardLimit(t, in); got != want || other != want {
			t.Errorf("kind %v: limits %v and %v, want %v", kind, got, other, want)
		}
	}
}
