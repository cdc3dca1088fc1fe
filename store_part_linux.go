package main

import (
	"os"
	"syscall"
)

// writeBack asks the kernel to begin writing a range of f to the disk, and
// waits for none of it. It promises nothing: a later sync does.
func writeBack(f *os.File, off, n int64) {
	const begin = 2 // SYNC_FILE_RANGE_WRITE
	if c, err := f.SyscallConn(); err == nil {
		c.Control(func(fd uintptr) { syscall.SyncFileRange(int(fd), off, n, begin) })
	}
}
