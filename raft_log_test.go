package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

var _ raft.LogStore = (*logStore)(nil)

// testLogOptions are for small logs with a known id, logging to the test.
func testLogOptions(t testing.TB) logOptions {
	return logOptions{
		fileSize: 4096,
		cache:    1, // nothing fits: reads come from the disk
		id:       [16]byte{1, 2, 3},
		logger:   slog.New(slog.NewTextHandler(t.Output(), nil)),
		fatal:    func(err error) { t.Errorf("fatal: %v", err) },
	}
}

// mustOpenLog opens the log and closes it with the test.
func mustOpenLog(t testing.TB, dir string, o logOptions) *logStore {
	t.Helper()
	l, err := openLogStore(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.close() })
	return l
}

// testLog is the entry with that index; tag makes it differ from others.
func testLog(index uint64, tag string, size int) *raft.Log {
	data := []byte(fmt.Sprintf("%d/%s/", index, tag))
	for len(data) < size {
		data = append(data, byte('a'+len(data)%26))
	}
	return &raft.Log{Index: index, Term: 1 + index/10, Type: raft.LogCommand, Data: data}
}

// testLogs are n entries from index first on.
func testLogs(first uint64, n int, tag string, size int) []*raft.Log {
	var logs []*raft.Log
	for i := range uint64(n) {
		logs = append(logs, testLog(first+i, tag, size))
	}
	return logs
}

// mustStore appends the entries.
func mustStore(t testing.TB, l *logStore, logs []*raft.Log) {
	t.Helper()
	if err := l.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
}

// wantBounds fails the test unless the log reaches from first to last.
func wantBounds(t testing.TB, l *logStore, first, last uint64) {
	t.Helper()
	f, err1 := l.FirstIndex()
	n, err2 := l.LastIndex()
	if f != first || n != last || err1 != nil || err2 != nil {
		t.Fatalf("log is %d to %d (%v, %v), want %d to %d", f, n, err1, err2, first, last)
	}
}

// sameLog reports whether two entries are equal in all that is stored.
func sameLog(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) &&
		bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

// wantLogs fails the test unless the log holds exactly these entries.
func wantLogs(t testing.TB, l *logStore, want []*raft.Log) {
	t.Helper()
	first, last := want[0].Index, want[len(want)-1].Index
	wantBounds(t, l, first, last)
	for _, w := range want {
		var got raft.Log
		if err := l.GetLog(w.Index, &got); err != nil || !sameLog(&got, w) {
			t.Fatalf("entry %d is %+v, %v; want %+v", w.Index, got, err, *w)
		}
	}
	for _, index := range []uint64{0, first - 1, last + 1, last + 1000} {
		if err := l.GetLog(index, new(raft.Log)); err != raft.ErrLogNotFound {
			t.Fatalf("entry %d beside %d to %d: error %v, want exactly raft.ErrLogNotFound", index, first, last, err)
		}
	}
}

func TestLogEmpty(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		l := mustOpenLog(t, dir, logOptions{})
		wantBounds(t, l, 0, 0)
		if err := l.GetLog(1, new(raft.Log)); err != raft.ErrLogNotFound {
			t.Fatalf("entry 1: error %v, want exactly raft.ErrLogNotFound", err)
		}
		if err := errors.Join(l.DeleteRange(1, 100), l.StoreLogs(nil)); err != nil {
			t.Fatal(err)
		}
		if l.bytes() != firstLogFileSize {
			t.Fatalf("an empty log takes %d bytes", l.bytes())
		}
		l.close()
	}
}

func TestLogRoundTrip(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	want := []*raft.Log{
		{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: []byte("configuration"), AppendedAt: now},
		{Index: 2, Term: 2, Type: raft.LogNoop},
		{Index: 3, Term: 2, Type: raft.LogBarrier, Extensions: []byte("ext")},
		{Index: 4, Term: 1<<64 - 1, Type: raft.LogCommand, Data: bytes.Repeat([]byte{0}, 1<<20), Extensions: []byte("x"), AppendedAt: now},
	}
	for _, cache := range []int64{1, 1 << 20} {
		t.Run(fmt.Sprint("cache ", cache), func(t *testing.T) {
			dir := filepath.Join(dir, fmt.Sprint(cache))
			o := testLogOptions(t)
			o.cache = cache
			l := mustOpenLog(t, dir, o)
			if err := l.StoreLog(want[0]); err != nil {
				t.Fatal(err)
			}
			mustStore(t, l, want[1:])
			wantLogs(t, l, want)
			l.close()
			wantLogs(t, mustOpenLog(t, dir, o), want)
		})
	}
}

// Over many files: all there after a restart, and the old files go.
func TestLogManyFiles(t *testing.T) {
	dir := t.TempDir()
	o := testLogOptions(t)
	l := mustOpenLog(t, dir, o)
	want := testLogs(1, 200, "x", 100)
	for i := 0; i < len(want); i += 5 {
		mustStore(t, l, want[i:i+5])
	}
	if len(l.files) < 5 {
		t.Fatalf("only %d files", len(l.files))
	}
	wantLogs(t, l, want)
	l.close()
	l = mustOpenLog(t, dir, o)
	wantLogs(t, l, want)
	before := l.bytes()
	if err := l.DeleteRange(1, 150); err != nil {
		t.Fatal(err)
	}
	wantLogs(t, l, want[150:])
	if l.bytes() > before/2 {
		t.Fatalf("%d bytes before, %d after most was removed", before, l.bytes())
	}
	l.close()
	l = mustOpenLog(t, dir, o)
	first, _ := l.FirstIndex()
	if first > 151 || first < 100 {
		t.Fatalf("after a restart the log begins at %d, want 151 or a little before", first)
	}
	wantLogs(t, l, want[first-1:])
}

// A batch larger than a file gets a file of its own size.
func TestLogLargeBatch(t *testing.T) {
	dir := t.TempDir()
	o := testLogOptions(t)
	l := mustOpenLog(t, dir, o)
	want := testLogs(1, 3, "large", 5000)
	mustStore(t, l, want)
	want = append(want, testLogs(4, 30, "small", 100)...)
	for _, w := range want[3:] {
		mustStore(t, l, []*raft.Log{w})
	}
	want = append(want, testLogs(34, 3, "large", 50000)...) // the next file is ready, and too small
	mustStore(t, l, want[33:])
	wantLogs(t, l, want)
	l.close()
	wantLogs(t, mustOpenLog(t, dir, o), want)
}

func TestLogDeleteRange(t *testing.T) {
	t.Parallel()
	const first, last = 11, 60
	for _, c := range []struct {
		min, max  uint64
		from, to  uint64 // 0, 0 = empty
		whole     bool
		forbidden bool
	}{
		{min: 1, max: 10, from: 11, to: 60},
		{min: 61, max: 99, from: 11, to: 60},
		{min: 30, max: 20, from: 11, to: 60},
		{min: 1, max: 11, from: 12, to: 60},
		{min: 11, max: 40, from: 41, to: 60},
		{min: 5, max: 59, from: 60, to: 60},
		{min: 60, max: 60, from: 11, to: 59},
		{min: 12, max: 1000, from: 11, to: 11},
		{min: 40, max: 60, from: 11, to: 39},
		{min: 11, max: 60},
		{min: 0, max: 1 << 60},
		{min: 20, max: 30, from: 11, to: 60, forbidden: true},
	} {
		t.Run(fmt.Sprintf("%d-%d", c.min, c.max), func(t *testing.T) {
			dir := t.TempDir()
			o := testLogOptions(t)
			o.gapAllowed = func(first uint64) bool { return first == 11 }
			l := mustOpenLog(t, dir, o)
			logs := testLogs(first, last-first+1, "x", 200)
			for i := 0; i < len(logs); i += 10 {
				mustStore(t, l, logs[i:i+10])
			}
			if err := l.DeleteRange(c.min, c.max); (err != nil) != c.forbidden {
				t.Fatal(err)
			}
			suffix := c.to != 0 && c.to < last
			next := uint64(last + 1)
			if suffix {
				next = c.to + 1
			}
			for range 2 { // the second time after a restart
				if c.to == 0 {
					wantBounds(t, l, 0, 0)
				} else if got, _ := l.FirstIndex(); suffix || got == c.from {
					wantLogs(t, l, logs[got-first:c.to-first+1])
				} else {
					wantLogs(t, l, logs[got-first:])
				}
				l.close()
				l = mustOpenLog(t, dir, o)
			}
			mustStore(t, l, testLogs(next, 2, "y", 20))
			if got, _ := l.LastIndex(); got != next+1 {
				t.Fatalf("last index is %d, want %d", got, next+1)
			}
		})
	}
}

// A conflict in the first entry left removes everything; what raft stores next
// starts where the log did.
func TestLogConflictInFirstEntry(t *testing.T) {
	dir := t.TempDir()
	o := testLogOptions(t)
	l := mustOpenLog(t, dir, o)
	mustStore(t, l, testLogs(1, 20, "x", 20))
	if err := errors.Join(l.DeleteRange(1, 10), l.DeleteRange(11, 20)); err != nil {
		t.Fatal(err)
	}
	want := testLogs(11, 3, "y", 20)
	mustStore(t, l, want)
	wantLogs(t, l, want)
	l.close()
	wantLogs(t, mustOpenLog(t, dir, o), want)
}

func TestLogGaps(t *testing.T) {
	dir := t.TempDir()
	o := testLogOptions(t)
	covered := uint64(0) // the durable checkpoint
	o.gapAllowed = func(first uint64) bool { return first-1 <= covered }
	l := mustOpenLog(t, dir, o)
	mustStore(t, l, testLogs(1, 30, "x", 200))
	for _, logs := range [][]*raft.Log{
		testLogs(51, 5, "y", 20),                                   // a gap that nothing covers
		testLogs(30, 5, "y", 20),                                   // stored already
		{testLog(31, "y", 20), testLog(33, "y", 20)},               // a gap inside
		{testLog(31, "y", 20), testLog(31, "y", 20)},               // twice
		append(testLogs(31, 2, "y", 20), testLogs(1, 1, "", 0)...), // backwards
	} {
		if err := l.StoreLogs(logs); !errors.Is(err, errLogGap) {
			t.Fatalf("storing %d...: %v, want errLogGap", logs[0].Index, err)
		}
	}
	wantLogs(t, l, testLogs(1, 30, "x", 200))
	covered = 50
	want := testLogs(51, 5, "y", 20)
	mustStore(t, l, want)
	wantLogs(t, l, want)
	if len(l.files) != 1 {
		if err := l.dropFiles(); err != nil {
			t.Fatal(err)
		}
	}
	l.close()
	l = mustOpenLog(t, dir, o)
	wantLogs(t, l, want)
}

func TestLogReset(t *testing.T) {
	dir := t.TempDir()
	o := testLogOptions(t)
	l := mustOpenLog(t, dir, o)
	mustStore(t, l, testLogs(1, 100, "x", 200))
	if err := l.reset(500); err != nil {
		t.Fatal(err)
	}
	wantBounds(t, l, 0, 0)
	if len(l.files) != 1 {
		t.Fatalf("%d files are left of an empty log", len(l.files))
	}
	number := l.number
	if err := l.reset(500); err != nil || l.number != number {
		t.Fatalf("reset to where it is: %v, wrote %d frames", err, l.number-number)
	}
	l.close()
	l = mustOpenLog(t, dir, o)
	wantBounds(t, l, 0, 0)
	if err := l.StoreLogs(testLogs(502, 1, "y", 20)); !errors.Is(err, errLogGap) {
		t.Fatalf("a gap after reset: %v", err)
	}
	mustStore(t, l, testLogs(501, 2, "y", 20))
	l.close()
	wantLogs(t, mustOpenLog(t, dir, o), testLogs(501, 2, "y", 20))
}

// Suffixes are removed across files, again and again, and prefixes beside them.
func TestLogConflicts(t *testing.T) {
	dir := t.TempDir()
	o := testLogOptions(t)
	l := mustOpenLog(t, dir, o)
	var want []*raft.Log
	for round := range 12 {
		tag := fmt.Sprint("round ", round)
		want = append(want, testLogs(uint64(len(want)+1), 30, tag, 150)...)
		mustStore(t, l, want[len(want)-30:])
		last := uint64(len(want))
		if err := l.DeleteRange(last-24, last); err != nil {
			t.Fatal(err)
		}
		want = want[:len(want)-25]
		first, _ := l.FirstIndex()
		wantLogs(t, l, want[first-1:])
		if round%3 == 2 {
			if err := l.DeleteRange(1, uint64(len(want))-10); err != nil {
				t.Fatal(err)
			}
			wantLogs(t, l, want[len(want)-10:])
		}
		if round%2 == 1 {
			l.close()
			l = mustOpenLog(t, dir, o)
		}
	}
}

// The frame that removed a suffix may outlive the file where that suffix began.
func TestLogCutReachesIntoDroppedFile(t *testing.T) {
	dir := t.TempDir()
	o := testLogOptions(t)
	l := mustOpenLog(t, dir, o)
	mustStore(t, l, testLogs(1, 20, "x", 100))
	mustStore(t, l, testLogs(21, 20, "x", 100)) // in the second file
	if err := l.DeleteRange(11, 40); err != nil {
		t.Fatal(err)
	}
	want := testLogs(11, 5, "y", 100)
	mustStore(t, l, want)
	if err := l.DeleteRange(1, 10); err != nil {
		t.Fatal(err)
	}
	if len(l.files) != 1 || l.files[0].number != 2 {
		t.Fatalf("%d files are left from number %d on", len(l.files), l.files[0].number)
	}
	wantLogs(t, l, want)
	l.close()
	wantLogs(t, mustOpenLog(t, dir, o), want)
}

// A batch costs one write and one sync, whatever its size.
func TestLogOneWriteOneSync(t *testing.T) {
	disk := newMemDisk()
	l := mustOpenLog(t, "raft", logOptions{disk: disk})
	for _, n := range []int{1, 16, 128} {
		before := disk.count()
		mustStore(t, l, testLogs(l.next, n, "x", 256))
		if got := disk.count() - before; got != 2 {
			t.Fatalf("batch of %d took %d disk operations, want 2", n, got)
		}
	}
}

// What GetLog returned, and what StoreLogs was given, is never written to again.
func TestLogBuffersAreNotReused(t *testing.T) {
	for _, cache := range []int64{1, 1 << 20} {
		o := testLogOptions(t)
		o.cache = cache
		l := mustOpenLog(t, t.TempDir(), o)
		given := testLogs(1, 10, "x", 100)
		mustStore(t, l, given)
		read := make([]raft.Log, 10)
		for i := range read {
			if err := l.GetLog(uint64(i+1), &read[i]); err != nil {
				t.Fatal(err)
			}
		}
		mustStore(t, l, testLogs(11, 50, "y", 300))
		for i, want := range testLogs(1, 10, "x", 100) {
			if !sameLog(&read[i], want) || !sameLog(given[i], want) {
				t.Fatalf("cache %d: entry %d changed", cache, i+1)
			}
		}
	}
}

// The cache holds the newest entries, up to its limit, and follows removals.
func TestLogCache(t *testing.T) {
	c := logCache{limit: 10 * (logCacheEntryCost + 100)}
	for i := range uint64(100) {
		c.add([]*raft.Log{testLog(i+1, "x", 100)})
		if c.bytes > c.limit || c.get(i+1) == nil || c.get(i+2) != nil || i > 10 && c.get(i-10) != nil {
			t.Fatalf("after entry %d the cache has %d bytes in %d entries", i+1, c.bytes, len(c.logs))
		}
	}
	c.truncate(96)
	if c.get(96) != nil || c.get(95) == nil || len(c.logs) != 5 || c.bytes != 5*(logCacheEntryCost+100) {
		t.Fatalf("after the removal of 96 and more: %d entries, %d bytes", len(c.logs), c.bytes)
	}
	c.truncate(0)
	if len(c.logs) != 0 || c.bytes != 0 {
		t.Fatalf("after the removal of all: %d entries, %d bytes", len(c.logs), c.bytes)
	}
	c.add([]*raft.Log{testLog(500, "x", 10000)})
	if c.get(500) != nil {
		t.Fatal("an entry over the limit is held")
	}
}

// Recent entries are served without the disk.
func TestLogReadsRecentFromMemory(t *testing.T) {
	disk := newMemDisk()
	o := testLogOptions(t)
	o.cache, o.disk = 1<<20, disk
	l := mustOpenLog(t, "raft", o)
	want := testLogs(1, 50, "x", 100)
	mustStore(t, l, want)
	disk.setFault(func(op, path string) (bool, error) {
		if op == "read" {
			t.Errorf("read of %s", path)
		}
		return true, nil
	})
	wantLogs(t, l, want)
}

// Readers, an appender with conflicts and a remover of prefixes, all at once.
func TestLogConcurrent(t *testing.T) {
	t.Parallel()
	o := testLogOptions(t)
	o.cache = 3000
	l := mustOpenLog(t, t.TempDir(), o)
	mustStore(t, l, testLogs(1, 10, "start", 100))
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for n := uint64(0); !done.Load(); n += 7 {
				first, last := l.bounds()
				index := first + n%(last-first+1)
				var got raft.Log
				err := l.GetLog(index, &got)
				if err == nil && (got.Index != index || !strings.HasPrefix(string(got.Data), fmt.Sprintf("%d/", index))) {
					t.Errorf("entry %d is %+v", index, got)
				}
				if err != nil && err != raft.ErrLogNotFound {
					t.Errorf("entry %d: %v", index, err)
				}
			}
		})
	}
	wg.Go(func() {
		for !done.Load() {
			if _, last := l.bounds(); last > 60 {
				if err := l.DeleteRange(0, last-60); err != nil {
					t.Error(err)
				}
			}
		}
	})
	next := uint64(11)
	for round := range 150 {
		mustStore(t, l, testLogs(next, 10, "x", 100))
		next += 10
		if round%5 == 0 {
			if err := l.DeleteRange(next-7, next-1); err != nil {
				t.Fatal(err)
			}
			next -= 7
		}
	}
	done.Store(true)
	wg.Wait()
	if _, last := l.bounds(); last != next-1 {
		t.Fatalf("last index is %d, want %d", last, next-1)
	}
}

// The first fsync that fails poisons the log: fatal is told once, no write is
// tried again, and nothing of the failed batch is visible.
func TestLogSyncErrorPoisons(t *testing.T) {
	disk := newMemDisk()
	o := testLogOptions(t)
	o.disk = disk
	var told []error
	o.fatal = func(err error) { told = append(told, err) }
	l := mustOpenLog(t, "raft", o)
	want := testLogs(1, 5, "x", 100)
	mustStore(t, l, want)
	for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
		disk.setFault(func(op, path string) (bool, error) {
			if op == "sync" && strings.HasSuffix(path, ".log") {
				return true, errno
			}
			return true, nil
		})
		if err := l.StoreLogs(testLogs(6, 1, "y", 100)); !errors.Is(err, errLogPoisoned) || !errors.Is(err, syscall.EIO) {
			t.Fatalf("append with a failing fsync: %v", err)
		}
	}
	disk.setFault(nil)
	writes := disk.count()
	for _, err := range []error{l.StoreLogs(testLogs(6, 1, "z", 100)), l.DeleteRange(5, 5), l.DeleteRange(1, 2), l.reset(9)} {
		if !errors.Is(err, errLogPoisoned) {
			t.Fatalf("change of a poisoned log: %v", err)
		}
	}
	if disk.count() != writes || len(told) != 1 || !errors.Is(told[0], syscall.EIO) {
		t.Fatalf("after poisoning: %d more disk operations, fatal was told %v", disk.count()-writes, told)
	}
	wantLogs(t, l, want)
}

// Writes that fail otherwise than for lack of space poison as well.
func TestLogWriteErrorPoisons(t *testing.T) {
	disk := newMemDisk()
	o := testLogOptions(t)
	o.disk = disk
	told := 0
	o.fatal = func(error) { told++ }
	l := mustOpenLog(t, "raft", o)
	disk.setFault(failOp("write", false, syscall.EIO))
	if err := l.StoreLogs(testLogs(1, 1, "x", 100)); !errors.Is(err, errLogPoisoned) || told != 1 {
		t.Fatalf("append with a failing write: %v; fatal was told %d times", err, told)
	}
}

// failOp is a fault for every operation of that kind.
func failOp(kind string, apply bool, err error) func(op, path string) (bool, error) {
	return func(op, path string) (bool, error) {
		if op == kind {
			return apply, err
		}
		return true, nil
	}
}

// A full disk refuses the batch and leaves the log as it was, whether the
// write had no effect, some or all of it.
func TestLogDiskFullRollsBack(t *testing.T) {
	for _, size := range []int{100, 3000, 20000} { // in the file, in the next, too large for either
		for _, apply := range []bool{false, true} {
			t.Run(fmt.Sprint(size, apply), func(t *testing.T) {
				disk := newMemDisk()
				o := testLogOptions(t)
				o.disk = disk
				l := mustOpenLog(t, "raft", o)
				want := testLogs(1, 10, "x", 100)
				mustStore(t, l, want)
				if l.maker.pending { // the next file is being made: let it
					if _, err := l.maker.take(2, o.fileSize, 0); err != nil {
						t.Fatal(err)
					}
				}
				failed := false
				disk.setFault(func(op, path string) (bool, error) {
					if op != "write" || failed {
						return true, nil
					}
					failed = true
					return apply, syscall.ENOSPC
				})
				err := l.StoreLogs(testLogs(11, 2, "full", size))
				if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, errLogPoisoned) {
					t.Fatalf("append to a full disk: %v", err)
				}
				wantLogs(t, l, want)
				wantLogs(t, mustOpenLog(t, "raft", memOptions(o, disk.image(keepAll))), want)
				disk.setFault(nil)
				want = append(want, testLogs(11, 2, "room", size)...)
				mustStore(t, l, want[10:])
				wantLogs(t, l, want)
				l.close()
				wantLogs(t, mustOpenLog(t, "raft", o), want)
			})
		}
	}
}

// A next file that would touch the reserve of the disk, or does not fit, is made smaller.
func TestLogSmallerFiles(t *testing.T) {
	t.Parallel()
	const limit = 3 << 20
	disk, written := newMemDisk(), 0
	full := func(op, path string) (bool, error) { // room for limit bytes in what is being made
		switch {
		case !strings.HasSuffix(path, logTemp):
		case op == "create":
			written = 0
		case op == "write":
			if written++; written > limit>>20 {
				return false, syscall.ENOSPC
			}
		}
		return true, nil
	}
	for _, x := range []struct {
		name  string
		room  func() int64
		fault func(op, path string) (bool, error)
	}{{"reserve", func() int64 { return limit }, nil}, {"full", nil, full}, {"nothing", func() int64 { return -limit }, full}} {
		t.Run(x.name, func(t *testing.T) {
			o := testLogOptions(t)
			o.disk, o.fileSize, o.room = disk, 16<<20, x.room
			disk.setFault(x.fault)
			defer disk.setFault(nil)
			l := mustOpenLog(t, x.name, o)
			for i := range 40 {
				mustStore(t, l, testLogs(uint64(i)+1, 1, "x", 256<<10))
			}
			if len(l.files) < 5 {
				t.Errorf("10 MiB are in %d files", len(l.files))
			}
			for _, f := range l.files {
				if f.size > limit {
					t.Errorf("file %d has %d bytes", f.number, f.size)
				}
			}
			l.close()
			wantLogs(t, mustOpenLog(t, x.name, o), testLogs(1, 40, "x", 256<<10))
		})
	}
}

// memOptions is o on another disk.
func memOptions(o logOptions, disk *memDisk) logOptions {
	o.disk = disk
	return o
}

// If even taking back the write fails, the log is in doubt.
func TestLogDiskFullRollBackFails(t *testing.T) {
	disk := newMemDisk()
	o := testLogOptions(t)
	o.disk = disk
	told := 0
	o.fatal = func(error) { told++ }
	l := mustOpenLog(t, "raft", o)
	disk.setFault(failOp("write", true, syscall.ENOSPC))
	if err := l.StoreLogs(testLogs(1, 1, "x", 100)); !errors.Is(err, errLogPoisoned) || told != 1 {
		t.Fatalf("append that cannot be taken back: %v; fatal was told %d times", err, told)
	}
}

// raft forgets to take back its last index when StoreLogs fails after it
// removed a conflicting suffix; then only a restart helps.
func TestLogFailureAfterConflictIsFatal(t *testing.T) {
	disk := newMemDisk()
	o := testLogOptions(t)
	o.disk = disk
	told := 0
	o.fatal = func(error) { told++ }
	l := mustOpenLog(t, "raft", o)
	mustStore(t, l, testLogs(1, 10, "x", 100))
	if err := l.DeleteRange(6, 10); err != nil {
		t.Fatal(err)
	}
	failed := false
	disk.setFault(func(op, path string) (bool, error) {
		if op != "write" || path != logPath("raft", 1) || failed { // the next file is being made meanwhile
			return true, nil
		}
		failed = true
		return false, syscall.ENOSPC
	})
	if err := l.StoreLogs(testLogs(6, 1, "y", 100)); !errors.Is(err, errLogPoisoned) || !errors.Is(err, syscall.ENOSPC) || told != 1 {
		t.Fatalf("append after the removal of a suffix: %v; fatal was told %d times", err, told)
	}
}

// A read that meets damage says where, and the node must not go on.
func TestLogDamagedReadPoisons(t *testing.T) {
	dir := t.TempDir()
	o := testLogOptions(t)
	var told error
	o.fatal = func(err error) { told = err }
	l := mustOpenLog(t, dir, o)
	mustStore(t, l, testLogs(1, 3, "x", 100))
	path := logPath(dir, 1)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b, []byte("2/x/"))] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	err = l.GetLog(2, new(raft.Log))
	if !errors.Is(err, errCorrupt) || told == nil {
		t.Fatalf("damaged entry: %v; fatal was told %v", err, told)
	}
	for _, part := range []string{path, "offset 232", "index 2", "checksum"} {
		if !strings.Contains(err.Error(), part) {
			t.Fatalf("error %q does not name %q", err, part)
		}
	}
}

// stalled turns true while a write hangs, and false again.
func TestLogStalled(t *testing.T) {
	disk := newMemDisk()
	o := testLogOptions(t)
	o.disk = disk
	l := mustOpenLog(t, "raft", o)
	hanging, release := make(chan struct{}), make(chan struct{})
	disk.setFault(func(op, path string) (bool, error) {
		if op == "sync" {
			close(hanging)
			<-release
		}
		return true, nil
	})
	stored := make(chan error)
	go func() { stored <- l.StoreLogs(testLogs(1, 1, "x", 100)) }()
	<-hanging
	for deadline := time.Now().Add(5 * time.Second); !l.stalled(time.Millisecond); {
		if time.Now().After(deadline) {
			t.Fatal("the write hangs, but nothing is stalled")
		}
	}
	if l.stalled(time.Hour) {
		t.Fatal("stalled for an hour")
	}
	wantBounds(t, l, 0, 0) // readers are not held up
	close(release)
	if err := <-stored; err != nil || l.stalled(0) {
		t.Fatalf("after the write: %v, stalled %v", err, l.stalled(0))
	}
}

// Files grow from small to the file size, one ahead of need.
func TestLogFilesGrow(t *testing.T) {
	disk := newMemDisk()
	o := testLogOptions(t)
	o.disk, o.fileSize = disk, 4<<20
	l := mustOpenLog(t, "raft", o)
	next := uint64(1)
	for range 30 {
		mustStore(t, l, testLogs(next, 1, "x", 300<<10))
		next++
	}
	var sizes []int64
	for _, f := range l.files {
		sizes = append(sizes, f.size>>20)
	}
	if got := fmt.Sprint(sizes); got != "[1 2 4 4]" {
		t.Fatalf("file sizes are %s MiB", got)
	}
}

// A closed log refuses, and does not call it damage.
func TestLogClosed(t *testing.T) {
	l := mustOpenLog(t, t.TempDir(), testLogOptions(t))
	mustStore(t, l, testLogs(1, 3, "x", 100))
	if err := errors.Join(l.close(), l.close()); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{l.GetLog(1, new(raft.Log)), l.StoreLogs(testLogs(4, 1, "x", 1)), l.DeleteRange(3, 3), l.reset(7)} {
		if !errors.Is(err, errLogClosed) {
			t.Fatalf("use of a closed log: %v", err)
		}
	}
}

func TestLogOpenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := openLogStore(file, testLogOptions(t)); err == nil {
		l.close()
		t.Fatal("a file was opened as a directory")
	}
	for _, op := range []string{"list", "create", "write", "sync", "rename", "syncDir"} {
		o := testLogOptions(t)
		disk := newMemDisk()
		disk.setFault(failOp(op, false, syscall.EIO))
		o.disk = disk
		if l, err := openLogStore("raft", o); !errors.Is(err, syscall.EIO) {
			l.close()
			t.Fatalf("new log with failing %s: %v", op, err)
		}
	}
}

// logFSM counts what raft applies.
type logFSM struct {
	mu      sync.Mutex
	applied [][]byte
}

func (f *logFSM) Apply(l *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = append(f.applied, l.Data)
	return nil
}
func (f *logFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("none") }
func (f *logFSM) Restore(r io.ReadCloser) error       { return errors.New("none") }

// raft itself runs on both stores, and finds everything after a restart.
func TestLogUnderRaft(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const each = 40
	for start := 1; start <= 3; start++ {
		l := mustOpenLog(t, dir, testLogOptions(t))
		s := mustOpenStable(t, filepath.Join(dir, "stable.db"))
		c := raft.DefaultConfig()
		c.LocalID, c.LogOutput = "one", io.Discard
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
		addr, transport := raft.NewInmemTransport("one")
		snaps := raft.NewInmemSnapshotStore()
		if start == 1 {
			servers := raft.Configuration{Servers: []raft.Server{{ID: "one", Address: addr}}}
			if err := raft.BootstrapCluster(c, l, s, snaps, transport, servers); err != nil {
				t.Fatal(err)
			}
		} else if has, err := raft.HasExistingState(l, s, snaps); err != nil || !has {
			t.Fatalf("existing state: %v, %v", has, err)
		}
		fsm := &logFSM{}
		r, err := raft.NewRaft(c, fsm, l, s, snaps, transport)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-r.LeaderCh():
		case <-time.After(10 * time.Second):
			t.Fatal("no leader")
		}
		for i := range each {
			if err := r.Apply([]byte(fmt.Sprintf("%d/%d", start, i)), time.Second).Error(); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Shutdown().Error(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.close(), s.close()); err != nil {
			t.Fatal(err)
		}
		if len(fsm.applied) != start*each || string(fsm.applied[0]) != "1/0" {
			t.Fatalf("start %d applied %d entries, want %d", start, len(fsm.applied), start*each)
		}
	}
}
