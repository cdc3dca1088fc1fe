package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// goldenOptions make the files of testdata/raft-log-v1.
func goldenOptions(disk *memDisk) logOptions {
	return logOptions{
		fileSize:   1024,
		cache:      1,
		id:         [16]byte([]byte("golden log id 16")),
		gapAllowed: func(uint64) bool { return true },
		disk:       disk,
	}
}

// goldenSteps store what testdata/raft-log-v1 holds, in all kinds of frames,
// and return the entries that are left.
func goldenSteps(l *logStore) ([]*raft.Log, error) {
	at := time.Unix(0, 1_700_000_000_123_456_789)
	kept := []*raft.Log{
		{Index: 9, Term: 2, Type: raft.LogConfiguration, Data: []byte("configuration"), Extensions: []byte("ext"), AppendedAt: at},
		{Index: 10, Term: 2, Type: raft.LogNoop},
		{Index: 11, Term: 3, Data: bytes.Repeat([]byte("golden "), 40), AppendedAt: at},
	}
	err := errors.Join(
		l.StoreLogs(testLogs(1, 2, "golden", 40)),
		l.StoreLogs([]*raft.Log{kept[0], kept[1], testLog(11, "conflict", 50)}), // after a gap
		l.DeleteRange(11, 11),
		l.StoreLogs(kept[2:]),
	)
	return kept, err
}

// memFiles puts files on a memDisk, durable, in the directory raft.
func memFiles(files map[string][]byte) *memDisk {
	disk := newMemDisk()
	for name, b := range files {
		path := filepath.Join("raft", name)
		f := &memFile{path: path, data: bytes.Clone(b), durable: bytes.Clone(b)}
		disk.names[path], disk.durable[path] = f, f
	}
	return disk
}

// files returns what is on the disk, by name.
func (d *memDisk) files() map[string][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	files := map[string][]byte{}
	for path, f := range d.names {
		files[filepath.Base(path)] = bytes.Clone(f.data)
	}
	return files
}

// The bytes of version 1 stay as they are, and stay readable.
// SCRIBE_GOLDEN=write makes the files anew.
func TestLogGolden(t *testing.T) {
	dir := filepath.Join("testdata", "raft-log-v1")
	disk := newMemDisk()
	l := mustOpenLog(t, "raft", goldenOptions(disk))
	want, err := goldenSteps(l)
	if err != nil {
		t.Fatal(err)
	}
	wantLogs(t, l, want)
	l.close()
	files := disk.files()
	if os.Getenv("SCRIBE_GOLDEN") == "write" {
		for name, b := range files {
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), b, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
	golden := map[string][]byte{}
	for _, name := range []string{"00000000000000000001.log"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if golden[name] = b; !bytes.Equal(b, files[name]) {
			t.Errorf("%s: this program writes\n%swant\n%s", name, hex.Dump(files[name]), hex.Dump(b))
		}
	}
	l = mustOpenLog(t, "raft", goldenOptions(memFiles(golden)))
	wantLogs(t, l, want)
}

// damagedLog is the disk of a log of several files, and what it holds.
func damagedLog(t testing.TB) (*memDisk, []*raft.Log) {
	disk := newMemDisk()
	o := goldenOptions(disk)
	l := mustOpenLog(t, "raft", o)
	var want []*raft.Log
	for i := range 9 {
		logs := testLogs(uint64(len(want)+1), 1+i%3, "x", 50+40*i)
		mustStore(t, l, logs)
		want = append(want, logs...)
	}
	l.close()
	if len(l.files) < 3 {
		t.Fatalf("only %d files", len(l.files))
	}
	return disk, want
}

// Every flipped byte of every file is refused, or was not needed: never is an
// entry lost or changed. The error names file, offset and index.
func TestLogFlipEveryByte(t *testing.T) {
	t.Parallel()
	disk, want := damagedLog(t)
	good := disk.files()
	refused := 0
	for name := range good {
		for i := range good[name] {
			flip := []byte{0x01, 0x80, 0xff}[i%3]
			files := disk.files()
			files[name][i] ^= flip
			l, err := openLogStore("raft", goldenOptions(memFiles(files)))
			if err != nil {
				refused++
				if !errors.Is(err, errCorrupt) || !strings.Contains(err.Error(), name) ||
					!strings.Contains(err.Error(), ": offset ") || !strings.Contains(err.Error(), ": index ") {
					t.Fatalf("%s byte %d ^ %02x: error %q", name, i, flip, err)
				}
				continue
			}
			wantLogs(t, l, want)
			l.close()
		}
	}
	if refused < 2000 {
		t.Fatalf("only %d flips were refused", refused)
	}
}

// lastFrame returns the place of the last frame, which is in the last file in use.
func lastFrame(t testing.TB, l *logStore) (name string, from, to int) {
	file := l.files[len(l.files)-1]
	at := file.spans[len(file.spans)-1]
	frame := int(at.offset) - frameHeaderSize
	if int64(frame+frameHeaderSize+align8(int(at.size))+frameEndSize) != l.end {
		t.Fatal("the last frame has more than one entry")
	}
	return filepath.Base(logPath("", file.number)), frame, int(l.end)
}

// tornLog is the disk of a log whose last frame covers several sectors.
func tornLog(t testing.TB) (disk *memDisk, want []*raft.Log, name string, from, to int) {
	disk = newMemDisk()
	o := goldenOptions(disk)
	o.fileSize = 4096
	l := mustOpenLog(t, "raft", o)
	want = append(testLogs(1, 4, "x", 100), testLog(5, "torn", 1800))
	mustStore(t, l, want[:4])
	mustStore(t, l, want[4:])
	name, from, to = lastFrame(t, l)
	l.close()
	return disk, want, name, from, to
}

// A last frame that is cut at any byte is gone without an error, a whole one
// is there, and the log goes on as if the torn one had never been.
func TestLogTornEveryByte(t *testing.T) {
	t.Parallel()
	disk, want, name, from, to := tornLog(t)
	for cut := from; cut <= to; cut++ {
		files := disk.files()
		clear(files[name][cut:])
		whole := cut == to
		checkTorn(t, fmt.Sprintf("cut at %d of %d-%d", cut, from, to), files, want, whole)
	}
}

// The same with any of its sectors missing.
func TestLogTornSectors(t *testing.T) {
	t.Parallel()
	disk, want, name, from, to := tornLog(t)
	first, last := from/sectorSize, (to-1)/sectorSize
	for set := range 1 << (last - first + 1) {
		files := disk.files()
		for s := first; s <= last; s++ {
			if set>>(s-first)&1 == 1 {
				clear(files[name][max(from, s*sectorSize):min(to, (s+1)*sectorSize)])
			}
		}
		checkTorn(t, fmt.Sprintf("sectors %b", set), files, want, set == 0)
	}
}

// checkTorn opens the files; the last entry must be there if its frame is whole.
func checkTorn(t *testing.T, what string, files map[string][]byte, want []*raft.Log, whole bool) {
	t.Helper()
	o := goldenOptions(memFiles(files))
	l, err := openLogStore("raft", o)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if !whole {
		want = append([]*raft.Log(nil), want[:len(want)-1]...)
	}
	wantLogs(t, l, want)
	want = append(want[:len(want):len(want)], testLog(uint64(len(want)+1), "after", 300))
	mustStore(t, l, want[len(want)-1:])
	l.close()
	l = mustOpenLog(t, "raft", o)
	wantLogs(t, l, want)
	l.close()
}

// A client cannot store a value that a later recovery takes for a frame: the
// torn write of an entry which holds a copy of a frame of another log is torn.
func TestLogFrameInsideValue(t *testing.T) {
	disk := newMemDisk()
	o := goldenOptions(disk)
	o.fileSize = 4096
	l := mustOpenLog(t, "raft", o)
	mustStore(t, l, testLogs(1, 1, "x", 100))
	other := crc32.Checksum([]byte("another log"), castagnoli)
	fake := appendFrame(nil, other, &logFrame{kind: frameAppend, number: 3, first: 3}, testLogs(3, 1, "fake", 40))
	log := testLog(2, "torn", 2000)
	copy(log.Data[496:], fake) // somewhere at a multiple of 8
	mustStore(t, l, []*raft.Log{log})
	name, from, _ := lastFrame(t, l)
	l.close()
	files := disk.files()
	clear(files[name][from:sectorSize])
	checkTorn(t, "first sector missing", files, append(testLogs(1, 1, "x", 100), log), false)
}

// Damage that a crash cannot explain stops the node, with its place.
func TestLogCorruption(t *testing.T) {
	disk, _ := damagedLog(t)
	const one, two, three = "00000000000000000001.log", "00000000000000000002.log", "00000000000000000003.log"
	for _, c := range []struct {
		name   string
		damage func(files map[string][]byte)
		want   string
	}{
		{"zeros before a good frame", func(f map[string][]byte) { clear(f[one][logHeaderSize:192]) }, one + ": offset 48: index 1: "},
		{"a lost frame at the end of a file", func(f map[string][]byte) { clear(f[one][192:]) }, two + ": offset 48: index 2: frame 3 follows"},
		{"a frame cut short before the next file", func(f map[string][]byte) { clear(f[two][500:]) }, "and a later file is in use"},
		{"a file missing in the middle", func(f map[string][]byte) { delete(f, two) }, two + ": file is missing"},
		{"a file cut short", func(f map[string][]byte) { f[two] = f[two][:700] }, "file has 700 bytes, its header says 1024"},
		{"an empty file", func(f map[string][]byte) { f[two] = nil }, two + ": offset 0: index 4: file has 0 bytes"},
		{"a file under another number", func(f map[string][]byte) { f[three] = bytes.Clone(f[two]) }, three + ": offset 0: index 8: file header says number 2"},
		{"another format", func(f map[string][]byte) { f[one][11] = 2 }, "file has format 2, this program reads 1"},
		{"another kind of file", func(f map[string][]byte) { f[one][0] = 'X' }, `file starts with "XcribeRL", want "ScribeRL"`},
		{"a file of another log", func(f map[string][]byte) {
			f[two] = append(appendLogHeader(nil, logFileHeader{[16]byte{9}, 2, 1024}), f[two][logHeaderSize:]...)
		}, "file belongs to log 09"},
		{"bytes in the room after the last frame", func(f map[string][]byte) { f[one][1023] = 1 }, one + ": offset 512: index 4: frame header ends in 00000000, want 5c71bee5, which no crash explains"},
		{"the files before an empty one missing", func(f map[string][]byte) {
			clear(f)
			f[two] = append(appendLogHeader(nil, logFileHeader{[16]byte{9}, 2, 1024}), make([]byte, 1024-logHeaderSize)...)
		}, "those before it are missing"},
	} {
		files := disk.files()
		c.damage(files)
		l, err := openLogStore("raft", goldenOptions(memFiles(files)))
		if err == nil {
			l.close()
			t.Errorf("%s: no error", c.name)
			continue
		}
		if !errors.Is(err, errCorrupt) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %q, want %q in it", c.name, err, c.want)
		}
	}
}

// Frames that are whole but contradict the log are corruption too.
func TestLogContradiction(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(f *logFrame)
		want string
	}{
		{"frame missing", func(f *logFrame) { f.number++ }, "want frame 2"},
		{"chain broken", func(f *logFrame) { f.prev++ }, "want frame 2 after"},
		{"gap", func(f *logFrame) { f.first++ }, "entry has index 5, want 6"},
		{"unknown kind", func(f *logFrame) { f.kind = 4 }, "frame has kind 4"},
		{"truncation beyond the end", func(f *logFrame) { f.kind, f.first = frameTruncate, 6 }, "starts at index 6, want 5"},
		{"index 0", func(f *logFrame) { f.kind, f.first = frameTruncate, 0 }, "starts at index 0"},
	} {
		disk := newMemDisk()
		o := goldenOptions(disk)
		l := mustOpenLog(t, "raft", o)
		mustStore(t, l, testLogs(1, 4, "x", 30))
		f := logFrame{kind: frameAppend, number: l.number, first: l.next, prev: l.prev}
		c.edit(&f)
		var logs []*raft.Log
		if f.kind != frameTruncate {
			logs = testLogs(5, 1, "x", 30)
		}
		b := appendFrame(nil, l.seed, &f, logs)
		if _, err := l.files[0].handle.WriteAt(b, l.end); err != nil {
			t.Fatal(err)
		}
		l.close()
		if l, err := openLogStore("raft", o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q in it", c.name, err, c.want)
			if err == nil {
				l.close()
			}
		}
	}
}

// No header is accepted that appendFrame does not write.
func TestLogFrameValidate(t *testing.T) {
	for _, f := range []logFrame{
		{kind: 0, number: 1, first: 1, count: 1, length: 40},
		{kind: frameAppend, number: 0, first: 1, count: 1, length: 40},
		{kind: frameAppend, number: 1, first: 1<<64 - 1, count: 2, length: 80},
		{kind: frameAppend, number: 1, first: 1, count: 1, length: 44},
		{kind: frameAppend, number: 1, first: 1, count: 2, length: 72},
		{kind: frameAppend, number: 1, first: 1},
		{kind: frameRestart, number: 1, first: 1, length: 8},
		{kind: frameTruncate, number: 1, first: 1, count: 1, length: 40},
	} {
		if err := f.validate(); err == nil {
			t.Errorf("%+v is accepted", f)
		}
	}
}

// Zeros beyond the length of the shared ones are written, and seen, as well.
func TestLogManyZeros(t *testing.T) {
	h, err := newMemDisk().create("x")
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte{1}, 2*len(zeros)+1000)
	if _, err := h.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := writeZeros(h, 10, int64(len(b)-20)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if !allZero(b[10:len(b)-10]) || allZero(b[10:len(b)-9]) || allZero(b[9:len(b)-10]) || b[9] != 1 || b[len(b)-10] != 1 {
		t.Fatal("other bytes are zero than asked for")
	}
}

// An unfinished file is removed; what is not ours is left alone.
func TestLogForeignFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{logTemp, "stable.db", "1.log", "00000000000000000001.log.bak"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := mustOpenLog(t, dir, testLogOptions(t))
	mustStore(t, l, testLogs(1, 3, "x", 10))
	for _, name := range []string{"stable.db", "1.log", "00000000000000000001.log.bak"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != "x" {
			t.Fatalf("%s: %q, %v", name, b, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, logTemp)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s: %v", logTemp, err)
	}
}

// An entry is refused when any byte or its length is wrong.
func TestLogEntryDamage(t *testing.T) {
	want := &raft.Log{Index: 7, Term: 3, Type: raft.LogBarrier, Data: []byte("some data"), Extensions: []byte("ext"), AppendedAt: time.Unix(0, 99)}
	b := appendLogEntry(nil, 5, want)
	b = b[:entrySize(want)]
	var got raft.Log
	if err := parseEntry(b, 5, &got); err != nil || !sameLog(&got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	for n := range b {
		if err := parseEntry(b[:n], 5, &got); err == nil {
			t.Fatalf("cut to %d bytes: no error", n)
		}
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x40
		if err := parseEntry(bad, 5, &got); err == nil {
			t.Fatalf("byte %d flipped: no error", i)
		}
	}
	if err := parseEntry(b, 6, &got); err == nil {
		t.Fatal("an entry of another log: no error")
	}
}

// FuzzLogScan opens a log whose file has arbitrary bytes after its header:
// either an error, or a log that can be read, written and opened again.
func FuzzLogScan(f *testing.F) {
	disk := newMemDisk()
	l := mustOpenLog(f, "raft", goldenOptions(disk))
	mustStore(f, l, testLogs(1, 2, "x", 20))
	mustStore(f, l, testLogs(3, 1, "x", 30))
	name, _, to := lastFrame(f, l)
	l.close()
	whole := disk.files()[name][logHeaderSize:to]
	f.Add(whole)
	f.Add(whole[:len(whole)-50])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		o := goldenOptions(nil)
		file := appendLogHeader(nil, logFileHeader{o.id, 1, 2048})
		file = append(file, b[:min(len(b), 2048-len(file))]...)
		file = append(file, make([]byte, 2048-len(file))...)
		useLog(t, map[string][]byte{name: file})
	})
}

// FuzzLogFrames does the same with frames whose checksums are right: b is cut
// into frames by its own words.
func FuzzLogFrames(f *testing.F) {
	f.Add([]byte{1, 1, 1, 1, 1, 2, 2, 1, 3, 5, 0, 1, 5, 1})
	f.Add([]byte{3, 200, 2, 2, 100, 0, 1, 100, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		o := goldenOptions(nil)
		seed := crc32.Checksum(o.id[:], castagnoli)
		file := appendLogHeader(nil, logFileHeader{o.id, 1, 1 << 13})
		prev := uint32(0)
		for number := uint64(1); len(b) >= 3 && len(file) < 1<<12; number++ {
			fr := logFrame{kind: frameKind(b[0] % 5), number: number, first: uint64(b[1]), prev: prev}
			logs := testLogs(uint64(b[1]), int(b[2]%8), "fuzz", int(b[2]))
			start := len(file)
			file = appendFrame(file, seed, &fr, logs)
			if b[2] > 250 { // lengths inside the frame that lie
				binary.BigEndian.PutUint32(file[start+frameHeaderSize+24:], uint32(b[0])<<24)
				binary.BigEndian.PutUint32(file[len(file)-8:], crc32.Update(seed, castagnoli, file[start:len(file)-8]))
			}
			prev = fr.sum
			b = b[3:]
		}
		file = append(file, make([]byte, 1<<13-len(file))...)
		useLog(t, map[string][]byte{"00000000000000000001.log": file})
	})
}

// useLog opens the files and, if they are accepted, uses the log.
func useLog(t *testing.T, files map[string][]byte) {
	o := goldenOptions(memFiles(files))
	l, err := openLogStore("raft", o)
	if err != nil {
		if !errors.Is(err, errCorrupt) {
			t.Fatal(err)
		}
		return
	}
	defer func() { l.close() }()
	for again := range 2 {
		first, last := l.bounds()
		for index := first; index <= last && last != 0; index++ {
			var log raft.Log
			if err := l.GetLog(index, &log); err != nil || log.Index != index {
				t.Fatalf("entry %d of %d to %d: %+v, %v", index, first, last, log, err)
			}
		}
		if again == 1 {
			return
		}
		if l.next > 1<<62 {
			return
		}
		mustStore(t, l, testLogs(l.next, 1, "appended", 100))
		l.close()
		if l, err = openLogStore("raft", o); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLogRandomDamage overwrites random places with random bytes: an entry
// that is read is always one that was written.
func TestLogRandomDamage(t *testing.T) {
	t.Parallel()
	disk, want := damagedLog(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		files := disk.files()
		for range 1 + rng.IntN(3) {
			for name := range files {
				b := files[name]
				at := rng.IntN(len(b))
				for i := range b[at:min(at+1+rng.IntN(600), len(b))] {
					b[at+i] = byte(rng.Uint32())
				}
				break // map order is random enough here
			}
		}
		l, err := openLogStore("raft", goldenOptions(memFiles(files)))
		if err != nil {
			continue
		}
		_, last := l.bounds()
		for index := uint64(1); index <= last; index++ {
			var got raft.Log
			if err := l.GetLog(index, &got); err != nil || !sameLog(&got, want[index-1]) {
				t.Fatalf("entry %d is %+v, %v", index, got, err)
			}
		}
		l.close()
	}
}
