package main

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// This file reads the Raft log back when a node starts: every frame of every
// file, in order, through the same applyLocked that appends use.

// logTorn is the place of a write that a crash cut short.
type logTorn struct {
	file   *logFile
	offset int64
	bytes  int64  // up to the last one that is not zero
	reason error  // why it is no frame
	index  uint64 // that would have been next
}

// recover opens the files of the directory and rebuilds the log from them. It
// changes the disk only to remove what a crash left unfinished.
func (l *logStore) recover() error {
	numbers, err := l.listFiles()
	if err != nil {
		return err
	}
	if len(numbers) > 0 && numbers[0] == 1 {
		l.startLocked() // else the first frame found says where the log is
	}
	var buf []byte
	var torn *logTorn
	for i, number := range numbers {
		if want := numbers[0] + uint64(i); number != want {
			return fmt.Errorf("%w: raft log %s: file is missing", errCorrupt, logPath(l.dir, want))
		}
		file, err := l.openFile(number)
		if err != nil {
			return err
		}
		l.files = append(l.files, file)
		if buf, err = l.loadFile(file, buf); err != nil {
			return err
		}
		if torn != nil && !allZero(buf[logHeaderSize:]) {
			return l.corrupt(torn.file, torn.offset, fmt.Errorf("%w, and a later file is in use", torn.reason))
		}
		if torn == nil {
			if torn, err = l.scanFile(file, buf); err != nil {
				return err
			}
		}
	}
	if err := l.splitReady(); err != nil {
		return err
	}
	if err := l.removeTorn(torn); err != nil {
		return err
	}
	return l.secureEnd()
}

// listFiles returns the numbers of the log's files in order and removes an
// unfinished one. Other names in the directory are not ours.
func (l *logStore) listFiles() ([]uint64, error) {
	names, err := l.disk.list(l.dir)
	if err != nil {
		return nil, fmt.Errorf("raft log: %w", err)
	}
	var numbers []uint64
	for _, name := range names {
		if name == logTemp {
			if err := l.disk.remove(filepath.Join(l.dir, name)); err != nil {
				return nil, fmt.Errorf("raft log: %w", err)
			}
		}
		digits, ok := strings.CutSuffix(name, ".log")
		number, err := strconv.ParseUint(digits, 10, 64)
		if ok && err == nil && filepath.Base(logPath(l.dir, number)) == name {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// openFile opens the file with that number.
func (l *logStore) openFile(number uint64) (*logFile, error) {
	h, err := l.disk.open(logPath(l.dir, number))
	if err != nil {
		return nil, fmt.Errorf("raft log: %w", err)
	}
	size, err := h.size()
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("raft log: %w", err)
	}
	return &logFile{number: number, handle: h, size: size}, nil
}

// loadFile reads the whole file into buf, which it may replace, and checks its header.
func (l *logStore) loadFile(file *logFile, buf []byte) ([]byte, error) {
	if file.size > maxFrameSize+int64(len(zeros)) {
		return nil, l.corrupt(file, 0, fmt.Errorf("file has %d bytes", file.size))
	}
	buf = slices.Grow(buf[:0], int(file.size))[:file.size]
	if _, err := file.handle.ReadAt(buf, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("raft log %s: %w", logPath(l.dir, file.number), err)
	}
	h, err := parseLogHeader(buf)
	if err != nil {
		return nil, l.corrupt(file, 0, err)
	}
	if file == l.files[0] {
		l.setID(h.id)
	}
	switch {
	case h.id != l.id:
		err = fmt.Errorf("file belongs to log %x, the one before it to %x", h.id, l.id)
	case h.number != file.number:
		err = fmt.Errorf("file header says number %d", h.number)
	case h.size != file.size:
		err = fmt.Errorf("file has %d bytes, its header says %d", file.size, h.size)
	}
	if err != nil {
		return nil, l.corrupt(file, 0, err)
	}
	return buf, nil
}

// scanFile applies the frames of the file, whose bytes are b, up to the first
// place without one. Zeros from there on are the normal end; else it returns
// the torn write, or an error when a crash cannot have left these bytes.
func (l *logStore) scanFile(file *logFile, b []byte) (*logTorn, error) {
	at := logHeaderSize
	for {
		f, err := parseFrame(b[at:], l.seed)
		if err != nil {
			return l.endOfFrames(file, b, at, err)
		}
		if err := l.replay(file, b[at:], &f, int64(at)); err != nil {
			return nil, l.corrupt(file, int64(at), err)
		}
		l.lastAt = int64(at)
		at += f.size()
		l.end = int64(at)
	}
}

// replay applies one valid frame that lies at offset of the file.
func (l *logStore) replay(file *logFile, b []byte, f *logFrame, offset int64) error {
	if l.number != 0 && (f.number != l.number || f.prev != l.prev) {
		return fmt.Errorf("frame %d follows %08x, want frame %d after %08x", f.number, f.prev, l.number, l.prev)
	}
	spans, err := parseSpans(b, f, offset)
	if err != nil {
		return err
	}
	if err := l.applyLocked(file, f, spans); err != nil {
		return err
	}
	l.number, l.prev = f.number+1, f.sum
	return nil
}

// endOfFrames decides what the bytes from at on are, which begin no frame for
// the given reason: the end, a torn write, or corruption.
func (l *logStore) endOfFrames(file *logFile, b []byte, at int, reason error) (*logTorn, error) {
	last := len(b)
	for last > at && b[last-1] == 0 {
		last--
	}
	if last == at {
		return nil, nil
	}
	for later := at + 8; later+frameHeaderSize <= last; later += 8 {
		if f, err := parseFrame(b[later:], l.seed); err == nil {
			return nil, l.corrupt(file, int64(at), fmt.Errorf("%w, and frame %d follows at offset %d", reason, f.number, later))
		}
	}
	if !tornFrame(b, at, l.seed) {
		return nil, l.corrupt(file, int64(at), fmt.Errorf("%w, which no crash explains", reason))
	}
	return &logTorn{file, int64(at), int64(last - at), reason, l.next}, nil
}

// tornFrame reports whether a crash during the write of a frame at offset at
// explains the bytes: a sector's share of it, or all from some byte on, is zero.
func tornFrame(b []byte, at int, seed uint32) bool {
	if len(b)-at < frameHeaderSize {
		return false // too little room: no frame was written here
	}
	f, err := parseFrameHeader(b[at:], seed)
	end := at + f.size()
	if err != nil { // the header itself is torn: all of it, or one of two sectors
		end = min((at+frameHeaderSize+sectorSize-1)/sectorSize*sectorSize, len(b))
		return allZero(b[at+frameHeaderSize-1:]) || zeroSector(b, at, end)
	}
	if end > len(b) || !allZero(b[end:]) {
		return false
	}
	return b[end-1] == 0 || zeroSector(b, at, end)
}

// zeroSector reports whether one of the sectors in b[at:end] is all zero.
func zeroSector(b []byte, at, end int) bool {
	for at < end {
		next := min(at/sectorSize*sectorSize+sectorSize, end)
		if allZero(b[at:next]) {
			return true
		}
		at = next
	}
	return false
}

// allZero reports whether b holds only zeros.
func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if string(b[:len(zeros)]) != string(zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return string(b) == string(zeros[:len(b)])
}

// splitReady finds the file in use, the last one with a frame, and keeps the
// empty one after it, made ahead of time, ready.
func (l *logStore) splitReady() error {
	used := len(l.files)
	for used > 1 && l.files[used-1].frames == 0 {
		used--
	}
	if used == 0 {
		return nil
	}
	if oldest := l.files[0]; oldest.frames == 0 && oldest.number != 1 {
		return l.corrupt(oldest, logHeaderSize, fmt.Errorf("file has no frame, and those before it are missing"))
	}
	if len(l.files)-used > 1 {
		return l.corrupt(l.files[used], logHeaderSize, fmt.Errorf("file is empty, and so is the next"))
	}
	if used < len(l.files) {
		l.maker.ready = l.files[used]
	}
	l.files = l.files[:used]
	return nil
}

// removeTorn makes the place of a torn write zero again, durably: later
// recoveries must not find parts of it under a newer frame. A crash here
// leaves a torn write.
func (l *logStore) removeTorn(torn *logTorn) error {
	if torn == nil {
		return nil
	}
	l.o.logger.Warn("removing a torn write from the end of the Raft log",
		"file", logPath(l.dir, torn.file.number), "offset", torn.offset, "bytes", torn.bytes,
		"index", torn.index, "reason", torn.reason.Error())
	if err := writeZeros(torn.file.handle, torn.offset, torn.bytes); err != nil {
		return fmt.Errorf("raft log %s: removing a torn write: %w", logPath(l.dir, torn.file.number), err)
	}
	return nil
}

// secureEnd makes the last frame and the names of the files durable before
// anybody is told of them. The process before may have ended between a write
// and its sync, or because the sync failed: then the system has dropped what it
// could not write, still shows it to those who read, and a sync of it succeeds
// without a write. So the frame is written again. All before it was durable
// before it was written. A crash here leaves the frame or a torn write.
func (l *logStore) secureEnd() error {
	if len(l.files) == 0 {
		return nil
	}
	if err := l.maker.syncDir(); err != nil {
		return fmt.Errorf("raft log: %w", err)
	}
	file := l.files[len(l.files)-1]
	if file.frames == 0 {
		return nil
	}
	b := make([]byte, l.end-l.lastAt)
	if _, err := file.handle.ReadAt(b, l.lastAt); err != nil {
		return fmt.Errorf("raft log %s: %w", logPath(l.dir, file.number), err)
	}
	if err := writeSynced(file.handle, b, l.lastAt); err != nil {
		return fmt.Errorf("raft log %s: writing the last frame again: %w", logPath(l.dir, file.number), err)
	}
	return nil
}

// writeZeros makes n bytes at off zero, durably.
func writeZeros(h logHandle, off, n int64) error {
	for ; n > int64(len(zeros)); n -= int64(len(zeros)) {
		if _, err := h.WriteAt(zeros[:], off); err != nil {
			return err
		}
		off += int64(len(zeros))
	}
	return writeSynced(h, zeros[:n], off)
}

// corrupt says where the log is not what was written.
func (l *logStore) corrupt(file *logFile, offset int64, reason error) error {
	return fmt.Errorf("%w: raft log %s: offset %d: index %d: %w",
		errCorrupt, logPath(l.dir, file.number), offset, l.next, reason)
}
