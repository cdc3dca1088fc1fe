//go:build !linux

package main

import (
	"errors"
	"os"
	"syscall"
)

// sharePort lets several processes listen on one UDP port; each of them gets
// every broadcast, one of them gets what is sent to the host alone. Outside
// Linux this takes a second option.
func sharePort(fd int) error {
	return os.NewSyscallError("setsockopt", errors.Join(
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1),
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEPORT, 1)))
}
