package main

import (
	"errors"
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
// once the n bytes before are written. What it does not say to be wrong is not
// durable yet; but an error it says, no later sync of f may say again.
func writeBack(f *os.File, off, n int64) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) {
		failed = syscall.SyncFileRange(int(fd), off, n, rangeWrite)
		if failed == nil && off >= n {
			failed = syscall.SyncFileRange(int(fd), off-n, n, rangeWaitBefore|rangeWrite|rangeWaitAfter)
		}
	})
	if failed == syscall.ENOSYS || failed == syscall.EINVAL || failed == syscall.EPERM {
		failed = nil // a file system or a sandbox that has no such call
	}
	return errors.Join(err, os.NewSyscallError("sync_file_range", failed))
}
