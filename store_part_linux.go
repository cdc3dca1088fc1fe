package main

import (
	"os"
	"syscall"
)

// Flags of sync_file_range(2).
const (
	rangeWaitBefore = 1
	rangeWrite      = 2
	rangeWaitAfter  = 4
)

// writeBack has the kernel begin to write n bytes of f from off on to the disk,
// once the n bytes before are written. It promises nothing: a later sync does.
func writeBack(f *os.File, off, n int64) {
	if c, err := f.SyscallConn(); err == nil {
		c.Control(func(fd uintptr) {
			syscall.SyncFileRange(int(fd), off, n, rangeWrite)
			if off >= n {
				syscall.SyncFileRange(int(fd), off-n, n, rangeWaitBefore|rangeWrite|rangeWaitAfter)
			}
		})
	}
}
