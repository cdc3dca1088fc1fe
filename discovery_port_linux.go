package main

import (
	"os"
	"syscall"
)

// sharePort lets several processes listen on one UDP port; each of them gets
// every broadcast, one of them gets what is sent to the host alone.
func sharePort(fd int) error {
	return os.NewSyscallError("setsockopt", syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
}
