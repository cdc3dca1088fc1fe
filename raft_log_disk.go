package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// logDisk is what the Raft log needs of a file system. Tests give one that
// fails, fills up, or loses what was not synced.
type logDisk interface {
	list(dir string) ([]string, error)     // names in dir, which is made if it is missing
	create(path string) (logHandle, error) // a new, empty file in place of any old one
	open(path string) (logHandle, error)   // for reading and writing
	rename(from, to string) error          // within one directory
	remove(path string) error              // a file
	syncDir(dir string) error              // makes earlier creates, renames and removes durable
}

// logHandle is an open file of a logDisk.
type logHandle interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	size() (int64, error)
	sync() error // fdatasync: what was written, and the file's size, are durable
}

// osDisk is the real disk.
type osDisk struct{}

func (osDisk) list(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

func (osDisk) create(path string) (logHandle, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	return osHandle{f}, err
}

func (osDisk) open(path string) (logHandle, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	return osHandle{f}, err
}

func (osDisk) rename(from, to string) error { return os.Rename(from, to) }
func (osDisk) remove(path string) error     { return os.Remove(path) }

func (osDisk) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// osHandle is a file of the real disk.
type osHandle struct{ *os.File }

func (h osHandle) size() (int64, error) {
	info, err := h.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (h osHandle) sync() error { return fdatasync(h.File) }

// zeros is what files are filled with. Nobody writes to it.
var zeros [1 << 20]byte

// logFileMaker makes the files of one log, all zero and durable. It has one
// user at a time, who asks ahead of need with want.
type logFileMaker struct {
	disk logDisk
	dir  string
	id   [16]byte
	room func() int64 // logOptions.room

	ready   *logFile // made and not yet used
	pending bool     // an answer is due in made
	asked   chan logFileHeader
	made    chan madeFile
}

// madeFile is the answer of the background maker.
type madeFile struct {
	file *logFile
	err  error
}

// loop makes files as they are asked for, until ctx ends.
func (m *logFileMaker) loop(ctx context.Context) {
	for {
		select {
		case h := <-m.asked:
			f, err := m.makeFitting(ctx, h.number, h.size, min(h.size, firstLogFileSize))
			m.made <- madeFile{f, err}
		case <-ctx.Done():
			return
		}
	}
}

// want starts making the file in the background, if none was started.
func (m *logFileMaker) want(number uint64, size int64) {
	if m.ready != nil || m.pending {
		return
	}
	m.pending = true
	m.asked <- logFileHeader{number: number, size: size}
}

// take returns the file with that number and at least that size. It stays
// ready, for the next call to return again, until used says it has a frame.
func (m *logFileMaker) take(number uint64, size, least int64) (*logFile, error) {
	if m.pending {
		made := <-m.made
		m.ready, m.pending = made.file, false
		if made.err != nil && !diskFull(made.err) {
			return nil, made.err
		}
	}
	if m.ready != nil && m.ready.size < least {
		f := m.ready
		m.ready = nil
		f.handle.Close()
		// A crash from here on leaves this number without a file, as before it was made.
		if err := m.disk.remove(logPath(m.dir, number)); err != nil {
			return nil, err
		}
	}
	if m.ready != nil {
		return m.ready, nil
	}
	f, err := m.makeFitting(context.Background(), number, size, max(min(size, firstLogFileSize), least))
	m.ready = f
	return f, err
}

// makeFitting makes a file of that size, or a smaller one, down to least, that leaves
// the disk its reserve: a log that wants 64 MiB or nothing stops long before the disk
// is full, and nobody is told why.
func (m *logFileMaker) makeFitting(ctx context.Context, number uint64, size, least int64) (*logFile, error) {
	for room := m.room(); size > least && size > room; {
		size = size / 2
	}
	for size = max(size, least); ; size = max(size/2, least) {
		f, err := m.make(ctx, number, size)
		if !diskFull(err) || size == least {
			return f, err
		}
	}
}

// used says that the file of take now belongs to the log.
func (m *logFileMaker) used() { m.ready = nil }

// close closes what was made and not used; loop must have ended.
func (m *logFileMaker) close() {
	select {
	case made := <-m.made:
		m.ready = made.file
	default:
	}
	if m.ready != nil {
		m.ready.handle.Close()
	}
}

// logTemp is the name of a file while it is made; at start it is removed.
const logTemp = "next.tmp"

// make writes a file without frames and returns it when it is durable under
// its name. A crash before the rename leaves only logTemp.
func (m *logFileMaker) make(ctx context.Context, number uint64, size int64) (*logFile, error) {
	temp := filepath.Join(m.dir, logTemp)
	h, err := m.disk.create(temp)
	if err != nil {
		return nil, fmt.Errorf("making raft log file %d: %w", number, err)
	}
	err = m.fill(ctx, h, number, size)
	if err == nil {
		err = m.disk.rename(temp, logPath(m.dir, number))
	}
	if err == nil {
		err = m.syncDir()
	}
	if err != nil {
		h.Close()
		m.disk.remove(temp) // to free its space; a start removes it too
		return nil, fmt.Errorf("making raft log file %d of %d bytes: %w", number, size, err)
	}
	return &logFile{number: number, handle: h, size: size}, nil
}

// syncDir makes the names in the directory durable.
func (m *logFileMaker) syncDir() error {
	if err := m.disk.syncDir(m.dir); err != nil {
		return fmt.Errorf("%w of the directory: %w", errLogSync, err)
	}
	return nil
}

// fill writes the header and zeros up to size. It syncs each step, so that a
// frame which is synced meanwhile never waits behind more than one of them.
func (m *logFileMaker) fill(ctx context.Context, h logHandle, number uint64, size int64) error {
	header := appendLogHeader(nil, logFileHeader{m.id, number, size})
	if _, err := h.WriteAt(header, 0); err != nil {
		return err
	}
	for at := int64(logHeaderSize); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(size-at, int64(len(zeros)))
		if err := writeSynced(h, zeros[:n], at); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// writeSynced writes b at off and makes it durable.
func writeSynced(h logHandle, b []byte, off int64) error {
	if _, err := h.WriteAt(b, off); err != nil {
		return err
	}
	if err := h.sync(); err != nil {
		return fmt.Errorf("%w: %w", errLogSync, err)
	}
	return nil
}

// logPath names the file with that number.
func logPath(dir string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d.log", number))
}
