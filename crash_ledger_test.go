package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// bigLedger returns a closed harness whose ledger.db has branch pages, a free
// list, merged runs and an idempotency window of several pages.
func bigLedger(t *testing.T) (h *harness, path string) {
	h = newHarness(t)
	for i := range 38 {
		var requests []*request
		for k := range 10 {
			r := deleteRequest("none")
			r.idempotencyKey = fmt.Sprintf("idempotency-key-%d-%d-%s", i, k, strings.Repeat("x", 30))
			requests = append(requests, r)
		}
		h.do(requests...)
		h.put(fmt.Sprint("key-", i), fmt.Sprint("value-", i))
		h.sealNow()
	}
	h.settle()
	h.close()
	return h, filepath.Join(h.dir, ledgerName)
}

// readLedger opens ledger.db and returns what is in it.
func readLedger(path string) (state *durableState, err error) {
	if p := caught(func() {
		var l *ledgerFile
		if l, state, err = openLedger(path); err == nil {
			l.close()
		}
	}); p != nil {
		return nil, fmt.Errorf("panic: %v", p)
	}
	return state, err
}

// TestLedgerHalfMade: a power cut while ledger.db was made, at any sector of
// bbolt's first write, leaves a directory that starts.
func TestLedgerHalfMade(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, ledgerName)
	if state, err := readLedger(path); err != nil || state.at.size != 0 {
		t.Fatalf("a new file: %+v, %v", state, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 0; cut <= len(whole); cut += 512 {
		b := append(bytes.Clone(whole[:cut]), make([]byte, len(whole)-cut)...)
		for _, torn := range [][]byte{b, b[:cut]} {
			if err := errors.Join(os.Remove(path), os.WriteFile(path+tmpSuffix, torn, 0o600)); err != nil {
				t.Fatal(err)
			}
			if state, err := readLedger(path); err != nil || state.at.size != 0 {
				t.Fatalf("cut at %d of %d bytes: %+v, %v", cut, len(torn), state, err)
			}
			if names, _ := os.ReadDir(dir); len(names) != 1 {
				t.Fatalf("left %v", names)
			}
		}
	}
}

// TestLedgerWithoutBuckets: a ledger.db that bbolt calls sound and that holds
// nothing, as a flip of the root page's count leaves it, is no new one.
func TestLedgerWithoutBuckets(t *testing.T) {
	path := filepath.Join(t.TempDir(), ledgerName)
	db, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if state, err := readLedger(path); !errors.Is(err, errCorrupt) {
		t.Fatalf("it reads as %+v, %v", state, err)
	}
}

// TestLedgerFlipped flips bytes all over ledger.db: opening it gives an error
// or all that was there. A byte no state depends on stays so when bbolt writes.
func TestLedgerFlipped(t *testing.T) {
	t.Parallel()
	_, path := bigLedger(t)
	want, err := readLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rnd := newRand(t)
	noticed, harmless := 0, 0
	for i := 0; i < len(b); i++ {
		if in := i % os.Getpagesize(); in >= 128 && rnd.IntN(200) > 0 || in >= 16 && rnd.IntN(12) > 0 {
			continue // the heads of pages are where the harm is
		}
		f.WriteAt([]byte{b[i] ^ byte(1+rnd.IntN(255))}, int64(i))
		got, err := readLedger(path)
		switch {
		case errors.Is(err, errCorrupt) && strings.Contains(err.Error(), path), errors.Is(err, errFormat):
			noticed++
		case err != nil:
			t.Fatalf("byte %d flipped: error %v", i, err)
		case !reflect.DeepEqual(got, want):
			t.Fatalf("byte %d flipped: read %+v", i, got)
		default:
			harmless++
			if harmless%25 == 0 {
				growLedger(t, path, want)
			}
		}
		f.WriteAt(b[i:i+1], int64(i))
	}
	t.Logf("%d flipped bytes noticed, %d harmless", noticed, harmless)
}

// growLedger moves D in a copy of ledger.db and reads it again.
func growLedger(t *testing.T, path string, want *durableState) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	l, _, err := openLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	l.db.NoSync = true
	size := want.at.size
	grown := *want
	for i := range uint64(3) {
		info := testInfo(size+i, 1)
		run := runInfo{first: size + i, last: size + i, keys: 1, size: 100}
		grown.at.size++
		grown.segments, grown.runs = append(grown.segments[:len(grown.segments):len(grown.segments)], info), append(grown.runs[:len(grown.runs):len(grown.runs)], run)
		err := l.update(func(t ledgerTx) error {
			return errors.Join(t.putSegment(info), t.replaceRuns(nil, []runInfo{run}), t.putCheckpoint(grown.at))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	l.close()
	if got, err := readLedger(path); err != nil || !reflect.DeepEqual(got, &grown) {
		t.Fatalf("after growing: %+v, %v; want %+v", got, err, &grown)
	}
}

// TestLedgerCut cuts ledger.db at many lengths: bbolt would end the process
// when it reads behind the end of the file.
func TestLedgerCut(t *testing.T) {
	t.Parallel()
	_, path := bigLedger(t)
	want, err := readLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := 0 // bytes the newer meta page counts
	for _, at := range []int{0, os.Getpagesize()} {
		used = max(used, int(binary.NativeEndian.Uint64(b[at+16+40:]))*os.Getpagesize())
	}
	step := os.Getpagesize() / 2
	for n := len(b); n > 0; n = (n - 1) / step * step {
		for _, n := range []int{n, n - 1} {
			if err := os.Truncate(path, int64(n)); err != nil {
				t.Fatal(err)
			}
			got, err := readLedger(path)
			if n < used {
				wantError(t, err, errCorrupt, path)
			} else if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("cut at %d of %d bytes in use: %v", n, used, err)
			}
		}
	}
}

// TestBoltPages makes ledger.db what bbolt would not survive: trees with
// circles, elements outside their page, pages in use that are called free.
func TestBoltPages(t *testing.T) {
	t.Parallel()
	_, path := bigLedger(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	size := os.Getpagesize()
	u16, u64 := binary.NativeEndian.PutUint16, binary.NativeEndian.PutUint64
	u32 := binary.NativeEndian.PutUint32
	meta, err := parseBoltMeta(bytes.NewReader(good), 0, int64(len(good)))
	if other, oerr := parseBoltMeta(bytes.NewReader(good), int64(size), int64(len(good))); other.tx > meta.tx {
		meta, err = other, errors.Join(err, oerr)
	}
	if err != nil {
		t.Fatal(err)
	}
	branch := uint64(0) // the page of a bucket with more than one leaf
	root := good[meta.root*uint64(size):]
	for i := range int(binary.NativeEndian.Uint16(root[10:])) {
		e := root[16+16*i:]
		at := binary.NativeEndian.Uint32(e[4:]) + binary.NativeEndian.Uint32(e[8:])
		if id := binary.NativeEndian.Uint64(e[at:]); id > 0 && good[id*uint64(size)+8] == boltBranch {
			branch = id
		}
	}
	if branch == 0 {
		t.Fatal("no bucket has a branch page")
	}
	leaf := binary.NativeEndian.Uint64(good[branch*uint64(size)+16+8:])
	for want, change := range map[string]func(root, branch, leaf, free []byte){
		"has two uses":       func(r, b, l, f []byte) { u64(b[16+8:], meta.root) },
		"is none of":         func(r, b, l, f []byte) { u64(b[16+8:], 1<<60) },
		"page 1 is none of":  func(r, b, l, f []byte) { u64(b[16+8:], 1) },
		"says it is page 77": func(r, b, l, f []byte) { u64(l, 77) },
		fmt.Sprintf("page %d says it is page %d to", leaf, leaf): func(r, b, l, f []byte) { u32(l[12:], 1<<31) },
		"flags 16 with":               func(r, b, l, f []byte) { u16(l[8:], boltFree) },
		"flags 3 with":                func(r, b, l, f []byte) { u16(r[8:], 3) },
		"flags 1 with 0 elements":     func(r, b, l, f []byte) { u16(b[10:], 0) },
		"with 65535 elements":         func(r, b, l, f []byte) { u16(l[10:], 65535) },
		"bytes at 4294967295":         func(r, b, l, f []byte) { u32(l[16+4:], 1<<32-1) },
		"key and value of 4294967295": func(r, b, l, f []byte) { u32(l[16+8:], 1<<32-1) },
		"and 4294967295 bytes":        func(r, b, l, f []byte) { u32(l[16+12:], 1<<32-1) },
		"bytes at 3":                  func(r, b, l, f []byte) { u32(l[16+4:], 3) },
		"flags 2, key":                func(r, b, l, f []byte) { u32(l[16:], 2) },
		"bucket of 3 bytes":           func(r, b, l, f []byte) { u32(l[16:], 1); u32(l[16+12:], 3) },
		"inline page has":             func(r, b, l, f []byte) { u32(r[16+12:], 20) },
		"key is out of order": func(r, b, l, f []byte) {
			copy(l[16+16+4:], l[16+4:16+12])
			u32(l[32+4:], binary.NativeEndian.Uint32(l[16+4:])-16)
		},
		"is called free and is not":                          func(r, b, l, f []byte) { u64(f[16:], leaf) },
		fmt.Sprintf("page %d is called free", meta.freelist): func(r, b, l, f []byte) { u64(f[16+8:], meta.freelist) },
		"page 0 is called free":                              func(r, b, l, f []byte) { u64(f[16:], 0) },
		"free list in a page with flags 2":                   func(r, b, l, f []byte) { u16(f[8:], boltLeaf) },
		"has 60000 elements":                                 func(r, b, l, f []byte) { u16(f[10:], 60000) },
		"has 1152921504606846976 elements":                   func(r, b, l, f []byte) { u16(f[10:], 65535); u64(f[16:], 1<<60) },
	} {
		t.Run(want, func(t *testing.T) {
			b := slices.Clone(good)
			page := func(id uint64) []byte { return b[id*uint64(size):][:size] }
			change(page(meta.root), page(branch), page(leaf), page(meta.freelist))
			path := filepath.Join(t.TempDir(), ledgerName)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := readLedger(path)
			wantError(t, err, errCorrupt, path, want)
		})
	}
}

// TestLedgerRefuses changes ledger.db through bbolt: pages and checksums are right.
func TestLedgerRefuses(t *testing.T) {
	t.Parallel()
	_, path := bigLedger(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	u64 := func(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
	at := goldenCheckpoint()
	at.size, at.confirmed = 38, 0
	for want, change := range map[string]func(ledgerTx) error{
		"ledger.db has format 2, this program reads 1": func(t ledgerTx) error { return t.put(bucketMeta, keyFormat, []byte{0, 0, 0, 2}) },
		`"format" is missing`:                          func(t ledgerTx) error { return t.tx.Bucket(bucketMeta).Delete(keyFormat) },
		`bucket "window" is missing`:                   func(t ledgerTx) error { return t.tx.DeleteBucket(bucketWindow) },
		`bucket "meta" is missing`:                     func(t ledgerTx) error { return t.tx.DeleteBucket(bucketMeta) },
		"segments end at entry 38, the checkpoint at 0": func(t ledgerTx) error {
			return t.tx.Bucket(bucketMeta).Delete(keyCheckpoint)
		},
		"checkpoint is cut short":                   func(t ledgerTx) error { return t.put(bucketMeta, keyCheckpoint, []byte{1}) },
		`value of "checkpoint": corrupt`:            func(t ledgerTx) error { return t.tx.Bucket(bucketMeta).Put(keyCheckpoint, u64(1)) },
		"CRC is 00000009":                           func(t ledgerTx) error { return t.tx.Bucket(bucketWindow).Put(u64(9), nil) },
		"segment starts at entry 6, want 5":         func(t ledgerTx) error { return t.tx.Bucket(bucketSegments).Delete(u64(5)) },
		"segments end at entry 37":                  func(t ledgerTx) error { return t.tx.Bucket(bucketSegments).Delete(u64(37)) },
		"segment info covers 0 entries":             func(t ledgerTx) error { return t.put(bucketSegments, u64(5), segmentInfo{first: 5}.append(nil)) },
		"run starts at entry 8, want 0":             func(t ledgerTx) error { return t.replaceRuns([]runInfo{{level: 1, first: 0, last: 7}}, nil) },
		"runs end at entry 37, the checkpoint":      func(t ledgerTx) error { return t.replaceRuns([]runInfo{{level: 0, first: 37, last: 37}}, nil) },
		"run has a description of 2 bytes":          func(t ledgerTx) error { return t.put(bucketRuns, []byte("x"), []byte("yz")) },
		"the checkpoint at 38":                      func(t ledgerTx) error { c := at; c.confirmed = 39; return t.putCheckpoint(c) },
		"gap before chunk 0":                        func(t ledgerTx) error { return t.putCheckpoint(at) },
		"idempotency window has requests 0 to 380":  func(t ledgerTx) error { c := at; c.windowOldest, c.windowNext = 0, 381; return t.putCheckpoint(c) },
		"idempotency window has requests 0 to 0, t": func(t ledgerTx) error { return t.putWindow(nil, 1) },
	} {
		path := filepath.Join(t.TempDir(), ledgerName)
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := (&ledgerFile{db}).update(change); err != nil {
			t.Fatal(want, err)
		}
		db.Close()
		state, err := readLedger(path)
		if err == nil {
			_, err = newWindow(state.window, &state.at)
		}
		target := errCorrupt
		if strings.Contains(want, "format 2") {
			target = errFormat
		}
		wantError(t, err, target, want)
	}
}

// FuzzLedgerFile changes some bytes of a ledger.db: whatever passes the check
// must be safe in bbolt's hands, and take another segment.
func FuzzLedgerFile(f *testing.F) {
	good, err := os.ReadFile(filepath.Join(goldenStore, ledgerName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, false)
	f.Add([]byte{0, 16, 40, 1, 0, 0, 66, 3}, true)
	path := filepath.Join(f.TempDir(), ledgerName)
	file, err := os.Create(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { file.Close() })
	f.Fuzz(func(t *testing.T, changes []byte, seal bool) {
		b := slices.Clone(good)
		for ; len(changes) >= 4; changes = changes[4:] { // three bytes of place, one to add there
			b[(int(changes[0])<<16|int(changes[1])<<8|int(changes[2]))%len(b)] += changes[3]
		}
		for _, page := range []int{0, os.Getpagesize()} {
			if meta := b[page+16:]; seal {
				sum := fnv.New64a()
				sum.Write(meta[:56])
				binary.NativeEndian.PutUint64(meta[56:], sum.Sum64())
			}
		}
		if _, err := file.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		l, state, err := openLedger(path)
		if err != nil {
			return
		}
		defer l.close()
		l.db.NoSync = true
		if err := state.validate(); err != nil {
			t.Fatal(err)
		}
		size := state.at.size
		err = l.update(func(t ledgerTx) error {
			return errors.Join(t.putSegment(testInfo(size, 1)), t.replaceRuns(nil, []runInfo{{first: size, last: size, keys: 1, size: 1}}))
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
