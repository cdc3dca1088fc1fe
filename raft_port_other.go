//go:build !linux

package main

import (
	"net"
	"time"
)

// boundSilence does nothing: only on Linux can it be said for one connection.
func boundSilence(net.Conn, time.Duration) {}
