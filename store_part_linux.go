package main

import (
	"errors"
	"os"
	"syscall"
)

// rangeThrough are the flags of sync_file_range(2) to write a range and wait for it.
const rangeThrough = 1 | 2 | 4

// writeBack brings n bytes of f from off on to the disk. Their place in the file
// may not be durable yet: that is for a sync; but an error told here, no later
// sync of f may tell again.
func writeBack(f *os.File, off, n int64) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) { failed = syscall.SyncFileRange(int(fd), off, n, rangeThrough) })
	if failed == syscall.ENOSYS || failed == syscall.EINVAL || failed == syscall.EPERM {
		failed = nil // a file system or a sandbox that has no such call
	}
	return errors.Join(err, os.NewSyscallError("sync_file_range", failed))
}
