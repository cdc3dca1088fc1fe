//go:build !linux

package main

import (
	"net"
	"time"
)

// limitUnheard does nothing: keepAlive and the deadlines of requests have to do.
func limitUnheard(net.Conn, time.Duration) error { return nil }
