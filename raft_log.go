package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// The Raft log: append-only files, one write and one fdatasync for each
// StoreLogs. The bytes are described in raft_log_file.go; raft_log_recover.go
// reads them at start, raft_log_disk.go makes the files ahead of need and
// raft_log_cache.go keeps the newest entries in memory.
//
// What a crash leaves, by operation:
//
//   - StoreLogs, the removal of a suffix or of everything, and reset are one
//     frame each: after a crash it is whole, or torn and then removed. So the
//     log is as it was before or as it is after; never a mix. What is removed
//     stays in the files, behind the frame that removed it, until they go.
//   - The removal of a prefix moves FirstIndex in memory and then deletes the
//     oldest files that hold nothing newer, one by one. A restart finds
//     FirstIndex where the oldest file left begins: maybe lower than it was,
//     never higher. Those entries are as good as ever; raft does not mind.
//   - A new file is whole, zero and durable before its first frame.
var (
	// errLogPoisoned: a write to the Raft log failed in a way that leaves its
	// contents in doubt. The process must end; a restart finds out.
	errLogPoisoned = errors.New("raft log is poisoned")
	// errLogGap: the entries do not follow the last one of the Raft log.
	errLogGap = errors.New("entries do not continue the Raft log")
	// errLogSync: the disk refused to make something durable.
	errLogSync = errors.New("sync")
	// errLogClosed: the Raft log was closed.
	errLogClosed = errors.New("raft log is closed")
)

const (
	defaultLogFileSize = 64 << 20
	firstLogFileSize   = 1 << 20  // each next file is twice as large, up to the file size
	defaultLogCache    = 16 << 20 // bytes
	keptLogBuffer      = 4 << 20  // bytes of the encoding buffer that survive a large batch
)

// logOptions configures a logStore. The zero value works.
type logOptions struct {
	fileSize int64    // bytes of one file, once the log has grown; 0 = 64 MiB
	cache    int64    // bytes of newest entries kept in memory; 0 = 16 MiB
	id       [16]byte // log id of a new directory; zero = random

	// gapAllowed says whether a log that does not reach index first-1 may go on
	// at first, because the durable checkpoint covers all before it. nil = never.
	// It must not call the store.
	gapAllowed func(first uint64) bool
	// mustExist: there was a log, and to begin another would forget votes and entries.
	mustExist bool
	// room returns how many bytes a new file should take at most; nil = any number.
	room func() int64
	// fatal is told the first error that leaves the log in doubt; the process
	// must end. nil = nobody is told. It must not call the store.
	fatal  func(error)
	logger *slog.Logger // nil = nothing is logged
	disk   logDisk      // nil = the real one
}

// logFile is one file of the log.
type logFile struct {
	number uint64
	handle logHandle
	size   int64
	frames int    // owned by the writer
	first  uint64 // index of spans[0]; guarded by logStore.mu, as is spans
	spans  []span // of the entries that are in the log; consecutive
}

// logStore is a raft.LogStore.
type logStore struct {
	// Immutable after open.
	dir    string
	o      logOptions
	disk   logDisk
	id     [16]byte
	seed   uint32 // of checksums
	opened time.Time
	stop   context.CancelFunc
	wg     sync.WaitGroup

	// writeMu is held for the whole of every change of the log, disk included,
	// so that frames are written one after the other, each durable before the next.
	writeMu longMutex
	maker   logFileMaker
	number  uint64 // of the next frame
	prev    uint32 // sum of the last frame
	end     int64  // offset of the next frame in the last of files
	lastAt  int64  // offset of the last frame; only at start
	buf     []byte // for encoding
	cut     bool   // the last change removed a suffix or everything

	// mu guards what readers see. It is never held during disk access.
	mu    sync.RWMutex
	files []*logFile // oldest first; the last is being written
	first uint64     // index of the oldest entry; next if there is none
	next  uint64     // index after the newest entry
	cache logCache

	dropMu   longMutex // held while old files are deleted, oldest first
	closed   atomic.Bool
	poisoned atomic.Pointer[error]
	busy     atomic.Int64 // when the StoreLogs in flight began, after opened; 0 = none
	slow     atomic.Int64 // when the last slow one ended, after opened; 0 = none was
}

// errNoLog says that there is no Raft log where one must be.
var errNoLog = errors.New("the Raft log and its state are gone, a node must not vote without them: move the directory away and let the node join again")

// openLogStore opens the Raft log in dir, or makes an empty one.
func openLogStore(dir string, o logOptions) (*logStore, error) {
	l := &logStore{dir: dir, o: o, disk: o.disk, opened: time.Now()}
	if l.disk == nil {
		l.disk = osDisk{}
	}
	if l.o.fileSize == 0 {
		l.o.fileSize = defaultLogFileSize
	}
	if l.o.room == nil {
		l.o.room = func() int64 { return math.MaxInt64 }
	}
	if l.o.logger == nil {
		l.o.logger = slog.New(slog.DiscardHandler)
	}
	l.cache.limit = o.cache
	if o.cache == 0 {
		l.cache.limit = defaultLogCache
	}
	l.maker = logFileMaker{disk: l.disk, dir: dir, room: l.o.room, asked: make(chan logFileHeader, 1), made: make(chan madeFile, 1)}
	err := l.recover()
	if err == nil && len(l.files) == 0 {
		if err = fmt.Errorf("%s: %w", dir, errNoLog); !o.mustExist {
			err = l.begin()
		}
	}
	if err != nil {
		l.closeFiles()
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.wg.Go(func() { l.maker.loop(ctx) })
	return l, nil
}

// begin makes the first file of a new log.
func (l *logStore) begin() error {
	id := l.o.id
	if id == [16]byte{} {
		rand.Read(id[:]) // never fails
	}
	l.setID(id)
	file, err := l.maker.take(1, min(firstLogFileSize, l.o.fileSize), logHeaderSize)
	if err != nil {
		return err
	}
	l.maker.used()
	l.files = []*logFile{file}
	l.startLocked()
	return nil
}

// startLocked sets the state before frame 1.
func (l *logStore) startLocked() { l.number, l.first, l.next, l.end = 1, 1, 1, logHeaderSize }

// setID sets the log id and the seed of checksums that follows from it.
func (l *logStore) setID(id [16]byte) {
	l.id, l.maker.id = id, id
	l.seed = crc32.Checksum(id[:], castagnoli)
}

// FirstIndex returns the index of the oldest entry, 0 if there is none.
func (l *logStore) FirstIndex() (uint64, error) {
	first, _ := l.bounds()
	return first, nil
}

// LastIndex returns the index of the newest entry, 0 if there is none.
func (l *logStore) LastIndex() (uint64, error) {
	_, last := l.bounds()
	return last, nil
}

// bounds returns the indexes of the oldest and the newest entry, or 0 and 0.
func (l *logStore) bounds() (first, last uint64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.first == l.next {
		return 0, 0
	}
	return l.first, l.next - 1
}

// GetLog reads the entry with that index. A missing one is exactly
// raft.ErrLogNotFound; a damaged one poisons the log.
func (l *logStore) GetLog(index uint64, log *raft.Log) error {
	l.mu.RLock()
	if index < l.first || index >= l.next {
		l.mu.RUnlock()
		return raft.ErrLogNotFound
	}
	if c := l.cache.get(index); c != nil {
		*log = *c
		l.mu.RUnlock()
		return nil
	}
	file, at := l.findLocked(index)
	l.mu.RUnlock()
	err := l.readEntry(file, at, index, log)
	if err == nil {
		return nil
	}
	if l.closed.Load() {
		return errLogClosed
	}
	// The entry may have been removed, and its file closed, since we looked.
	if first, last := l.bounds(); index < first || index > last {
		return raft.ErrLogNotFound
	}
	return l.poison(err)
}

// findLocked returns where the entry lies, which must be in the log.
func (l *logStore) findLocked(index uint64) (*logFile, span) {
	for i := len(l.files) - 1; i >= 0; i-- {
		if f := l.files[i]; len(f.spans) > 0 && index >= f.first {
			return f, f.spans[index-f.first]
		}
	}
	panic(fmt.Sprintf("raft log: index %d is in no file", index))
}

// readEntry reads one entry from its file; the memory of log is its own.
func (l *logStore) readEntry(file *logFile, at span, index uint64, log *raft.Log) error {
	b := make([]byte, at.size)
	var e raft.Log
	_, err := file.handle.ReadAt(b, int64(at.offset))
	if err == nil {
		err = parseEntry(b, l.seed, &e)
	}
	if err == nil && e.Index != index {
		err = fmt.Errorf("entry has index %d", e.Index)
	}
	if err != nil {
		return fmt.Errorf("%w: raft log %s: offset %d: index %d: %w",
			errCorrupt, logPath(l.dir, file.number), at.offset, index, err)
	}
	*log = e
	return nil
}

// StoreLog stores one entry, durably.
func (l *logStore) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs appends consecutive entries, durably, all or none. They must follow
// the last one, unless the log has none or gapAllowed agrees; then a gap empties
// the log first. An error that wraps syscall.ENOSPC left the log as it was.
func (l *logStore) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	l.busy.Store(int64(time.Since(l.opened)) + 1)
	defer l.noteWrite()
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	err := l.appendLocked(logs)
	if err != nil && l.cut {
		// raft still believes in the suffix it removed before this call, and
		// would ask for its entries for ever (raft.go:1566): only a restart helps.
		return l.poison(fmt.Errorf("after the removal of a suffix: %w", err))
	}
	l.cut = false
	return err
}

// appendLocked chooses the kind of frame for logs and writes it. writeMu must be held.
func (l *logStore) appendLocked(logs []*raft.Log) error {
	size := frameHeaderSize + frameEndSize
	first := logs[0].Index
	for i, log := range logs {
		if log.Index != first+uint64(i) {
			return fmt.Errorf("%w: entry %d of the batch has index %d, want %d", errLogGap, i, log.Index, first+uint64(i))
		}
		size += align8(entrySize(log))
	}
	if size > maxFrameSize {
		return fmt.Errorf("raft log: batch of %d bytes, at most %d can be stored", size, maxFrameSize)
	}
	kind := frameAppend
	// An empty log may begin anywhere below next: what is missing was never here.
	if empty := l.first == l.next; first > l.next || first < l.next && empty {
		kind = frameRestart
	} else if first < l.next {
		return fmt.Errorf("%w: index %d is stored already, the next is %d", errLogGap, first, l.next)
	}
	if first > l.next && (l.o.gapAllowed == nil || !l.o.gapAllowed(first)) {
		return fmt.Errorf("%w: index is %d, want %d", errLogGap, first, l.next)
	}
	return l.commitLocked(logFrame{kind: kind, first: first}, logs)
}

// commitLocked makes one frame durable and then visible. writeMu must be held.
func (l *logStore) commitLocked(f logFrame, logs []*raft.Log) error {
	if err := l.usableLocked(); err != nil {
		return err
	}
	f.number, f.prev = l.number, l.prev
	l.buf = appendFrame(l.buf[:0], l.seed, &f, logs)
	size := int64(len(l.buf))
	file, off, err := l.placeLocked(size)
	if err != nil {
		return l.writeFailed(err)
	}
	if err := l.writeLocked(file, off); err != nil {
		return err
	}
	if file == l.maker.ready {
		l.maker.used()
	}
	l.number, l.prev, l.end = f.number+1, f.sum, off+size
	l.show(file, &f, off, logs)
	if cap(l.buf) > keptLogBuffer {
		l.buf = nil
	}
	if 4*l.end > file.size {
		l.maker.want(file.number+1, l.nextSize(file))
	}
	return nil
}

// usableLocked returns why nothing can be written any more.
func (l *logStore) usableLocked() error {
	if p := l.poisoned.Load(); p != nil {
		return *p
	}
	if l.closed.Load() {
		return errLogClosed
	}
	return nil
}

// placeLocked finds room for a frame, in the next file if need be.
func (l *logStore) placeLocked(size int64) (*logFile, int64, error) {
	l.mu.RLock()
	active := l.files[len(l.files)-1]
	l.mu.RUnlock()
	if l.end+size <= active.size {
		return active, l.end, nil
	}
	file, err := l.maker.take(active.number+1, l.nextSize(active), logHeaderSize+size)
	return file, logHeaderSize, err
}

// nextSize returns the size of the file after file.
func (l *logStore) nextSize(file *logFile) int64 { return min(2*file.size, l.o.fileSize) }

// writeLocked puts the frame in buf on the disk. If there is no space for it,
// it is taken back, and the log is as before.
func (l *logStore) writeLocked(file *logFile, off int64) error {
	_, err := file.handle.WriteAt(l.buf, off)
	if diskFull(err) {
		if undo := writeZeros(file.handle, off, int64(len(l.buf))); undo != nil {
			return l.poison(fmt.Errorf("%w; taking the write back: %w", err, undo))
		}
	}
	if err != nil {
		return l.writeFailed(err)
	}
	if err := file.handle.sync(); err != nil {
		return l.poison(fmt.Errorf("%w of %s: %w", errLogSync, logPath(l.dir, file.number), err))
	}
	return nil
}

// writeFailed returns the error of a write that left the log as it was, or poisons.
func (l *logStore) writeFailed(err error) error {
	if diskFull(err) {
		return fmt.Errorf("raft log: %w", err)
	}
	return l.poison(err)
}

// diskFull reports whether a write, not a sync, found no space.
func diskFull(err error) bool {
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	return full && !errors.Is(err, errLogSync)
}

// poison ends all writing and tells fatal, the first time.
func (l *logStore) poison(err error) error {
	err = fmt.Errorf("%w: %w", errLogPoisoned, err)
	if l.poisoned.CompareAndSwap(nil, &err) && l.o.fatal != nil {
		l.o.fatal(err)
	}
	return *l.poisoned.Load()
}

// show makes the durable frame visible to readers.
func (l *logStore) show(file *logFile, f *logFrame, off int64, logs []*raft.Log) {
	spans := frameSpans(off, logs)
	l.mu.Lock()
	defer l.mu.Unlock()
	if file != l.files[len(l.files)-1] {
		l.files = append(l.files, file)
	}
	if err := l.applyLocked(file, f, spans); err != nil {
		panic("raft log: " + err.Error()) // appendLocked chose the frame so that it fits
	}
	l.cache.add(logs)
}

// applyLocked changes the log as the frame f of the file says. mu must be held.
func (l *logStore) applyLocked(file *logFile, f *logFrame, spans []span) error {
	if l.next == 0 { // the first frame found at start: those before it are deleted
		l.first, l.next = f.first, f.first
	}
	switch {
	case f.kind == frameRestart:
		l.truncateLocked(0)
		l.first, l.next = f.first, f.first
	case f.first > l.next || f.kind == frameAppend && f.first < l.next:
		return fmt.Errorf("frame %d of kind %d starts at index %d, want %d", f.number, f.kind, f.first, l.next)
	case f.kind == frameTruncate:
		l.truncateLocked(f.first)
	}
	if len(file.spans) == 0 {
		file.first = f.first
	}
	file.spans = append(file.spans, spans...)
	file.frames++
	l.next += uint64(len(spans))
	return nil
}

// truncateLocked removes the entries from index on. mu must be held.
func (l *logStore) truncateLocked(index uint64) {
	for _, f := range l.files {
		if keep := index - min(index, f.first); keep < uint64(len(f.spans)) {
			f.spans = f.spans[:keep]
		}
	}
	l.first, l.next = min(l.first, index), index
	l.cache.truncate(index)
}

// DeleteRange removes the entries from min to max, both included: a prefix, a
// suffix or all. A suffix is durably gone on return. Indexes that are not in the log
// do not matter. The removal of a prefix may run beside everything else.
func (l *logStore) DeleteRange(min, max uint64) error {
	if err := l.deleteRange(min, max); err != nil {
		return err
	}
	return l.dropFiles()
}

// deleteRange is DeleteRange except for the files that it makes useless.
func (l *logStore) deleteRange(min, max uint64) error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if err := l.usableLocked(); err != nil {
		return err
	}
	first, last := l.bounds()
	switch {
	case last == 0 || max < min || max < first || min > last:
		return nil
	case min > first && max < last:
		return fmt.Errorf("raft log: removing %d to %d would leave a hole in %d to %d", min, max, first, last)
	case min <= first && max < last:
		l.mu.Lock()
		l.first = max + 1
		l.mu.Unlock()
		return nil
	}
	f := logFrame{kind: frameTruncate, first: min}
	if min <= first {
		f = logFrame{kind: frameRestart, first: last + 1}
	}
	if err := l.commitLocked(f, nil); err != nil {
		return err
	}
	l.cut = true
	return nil
}

// back returns the oldest index from which the entries before end take at most
// size bytes; end itself if there are none such.
func (l *logStore) back(end uint64, size int64) uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	end = min(max(end, l.first), l.next)
	for i := len(l.files) - 1; i >= 0 && end > l.first; i-- {
		f := l.files[i]
		for len(f.spans) > 0 && end > max(f.first, l.first) && end <= f.first+uint64(len(f.spans)) {
			if size -= int64(f.spans[end-1-f.first].size); size < 0 {
				return end
			}
			end--
		}
	}
	return end
}

// reset empties the log, durably; the next entry may be base+1.
func (l *logStore) reset(base uint64) error {
	if err := l.restart(base + 1); err != nil {
		return err
	}
	return l.dropFiles()
}

// restart empties the log, so that next is its next index.
func (l *logStore) restart(next uint64) error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if l.first == l.next && l.next == next {
		return l.usableLocked()
	}
	return l.commitLocked(logFrame{kind: frameRestart, first: next}, nil)
}

// dropFiles deletes the oldest files while nothing in them is in the log. Each
// is durably gone before the next goes: a hole between files would be taken for
// corruption. A file that a crash brings back does no harm.
func (l *logStore) dropFiles() error {
	l.dropMu.Lock()
	defer l.dropMu.Unlock()
	for {
		file := l.useless()
		if file == nil {
			return nil
		}
		if err := l.disk.remove(logPath(l.dir, file.number)); err != nil {
			return fmt.Errorf("raft log: %w", err)
		}
		if err := l.maker.syncDir(); err != nil {
			return l.poison(err)
		}
		l.mu.Lock()
		l.files = append([]*logFile(nil), l.files[1:]...)
		l.mu.Unlock()
		file.handle.Close() // waits for nobody: a reader that comes too late looks again
	}
}

// useless returns the oldest file if nothing in it is in the log, else nil.
// The last file stays, since it knows what comes next.
func (l *logStore) useless() *logFile {
	l.mu.RLock()
	defer l.mu.RUnlock()
	f := l.files[0]
	if len(l.files) == 1 || len(f.spans) > 0 && f.first+uint64(len(f.spans)) > l.first {
		return nil
	}
	return f
}

// noteWrite ends the time that a StoreLogs is in flight.
func (l *logStore) noteWrite() {
	if l.stalled(slowWrite) {
		l.slow.Store(int64(time.Since(l.opened)))
	}
	l.busy.Store(0)
}

// slowLately reports whether a write is slow, or one was of late.
func (l *logStore) slowLately() bool {
	last := l.slow.Load()
	return l.stalled(slowWrite) || last != 0 && time.Since(l.opened)-time.Duration(last) < slowFor
}

// stalled reports whether a StoreLogs is in flight for longer than d: the disk hangs.
func (l *logStore) stalled(d time.Duration) bool {
	since := l.busy.Load()
	return since != 0 && time.Since(l.opened)-time.Duration(since) > d
}

// bytes returns what the files in use take on the disk.
func (l *logStore) bytes() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var sum int64
	for _, f := range l.files {
		sum += f.size
	}
	return sum
}

// close waits for a write in flight and closes the files. Nobody may read any more.
func (l *logStore) close() error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if l.closed.Swap(true) {
		return nil
	}
	l.stop()
	l.wg.Wait()
	return l.closeFiles()
}

// closeFiles closes all files; every write is durable already.
func (l *logStore) closeFiles() error {
	l.maker.close()
	var failed error
	for _, f := range l.files {
		failed = errors.Join(failed, f.handle.Close())
	}
	return failed
}
