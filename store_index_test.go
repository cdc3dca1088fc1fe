package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// testIndexLog returns a logger that writes to t's output.
func testIndexLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// mustOpenIndex opens an index that is closed at the end of the test.
func mustOpenIndex(t testing.TB, dir string, runs []runInfo) *keyIndex {
	t.Helper()
	x, err := openIndex(dir, runs, testIndexLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.close)
	return x
}

// indexModel is a ledger as the index should see it.
type indexModel struct {
	rnd      *rand.Rand
	size     uint64
	keys     []string
	versions map[string][]position // oldest first
}

// newIndexModel returns an empty model whose seed it logs.
func newIndexModel(t testing.TB) *indexModel {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &indexModel{rnd: rand.New(rand.NewPCG(seed, 0)), versions: make(map[string][]position)}
}

// key returns an old key, a neighbour of one, or a new one.
func (m *indexModel) key() string {
	switch m.rnd.IntN(8) {
	case 0, 1, 2:
		if len(m.keys) > 0 {
			return m.keys[m.rnd.IntN(len(m.keys))]
		}
	case 3:
		return "hot"
	case 4:
		if len(m.keys) > 0 {
			return m.keys[m.rnd.IntN(len(m.keys))] + "\x00"
		}
	case 5:
		return strings.Repeat("k", 1+m.rnd.IntN(40))
	}
	return fmt.Sprintf("key/%x", m.rnd.Uint64()>>m.rnd.IntN(64))
}

// grow adds n entries and returns their records.
func (m *indexModel) grow(n int) []indexRecord {
	var records []indexRecord
	for range n {
		k := m.key()
		k = k[:min(len(k), maxKeySize)]
		old := m.versions[k]
		if len(old) == 0 {
			m.keys = append(m.keys, k)
		}
		p := position{m.size, uint64(len(old)) + 1, m.rnd.Uint32(), uint16(m.rnd.Uint32()), m.rnd.IntN(5) == 0}
		m.versions[k] = append(old, p)
		m.size++
		records = append(records, indexRecord{[]byte(k), p})
	}
	return records
}

// check asks x all kinds of questions about random keys.
func (m *indexModel) check(t *testing.T, x *keyIndex, questions int) {
	t.Helper()
	same := func(what, key string, p position, ok bool, err error, want []position) {
		t.Helper()
		if err != nil || ok != (len(want) > 0) || ok && p != want[len(want)-1] {
			t.Fatalf("%s of %q is %+v, %v, %v; want the last of %d versions", what, key, p, ok, err, len(want))
		}
	}
	for range questions {
		k := m.key()
		key, all := []byte(k), m.versions[k]
		p, ok, err := x.latest(key)
		same("latest", k, p, ok, err, all)

		v := m.rnd.Uint64N(uint64(len(all)) + 2)
		p, ok, err = x.version(key, v)
		var want []position
		if v > 0 && v <= uint64(len(all)) {
			want = all[:v]
		}
		same(fmt.Sprint("version ", v), k, p, ok, err, want)

		seq := m.rnd.Uint64N(m.size + 2)
		upTo := func(seq uint64) []position {
			n := 0
			for n < len(all) && all[n].seq <= seq {
				n++
			}
			return all[:n]
		}
		p, ok, err = x.before(key, seq)
		same(fmt.Sprint("before ", seq), k, p, ok, err, upTo(seq))

		want = nil
		if seq > 0 {
			want = slices.Clone(upTo(seq - 1))
		}
		slices.Reverse(want)
		limit := m.rnd.IntN(12)
		want = want[:min(limit, len(want))]
		if got, err := x.versions(key, seq, limit); err != nil || !slices.Equal(got, want) {
			t.Fatalf("%d versions of %q before %d are %+v, %v; want %+v", limit, k, seq, got, err, want)
		}
	}
	m.checkScan(t, x, "")
	m.checkScan(t, x, m.key())
}

// checkScan compares a scan with the sorted keys of the model.
func (m *indexModel) checkScan(t *testing.T, x *keyIndex, from string) {
	t.Helper()
	keys := slices.Sorted(slices.Values(m.keys))
	at, _ := slices.BinarySearch(keys, from)
	it := x.scan([]byte(from))
	for key, p, ok := it.next(); ok; key, p, ok = it.next() {
		if at == len(keys) || string(key) != keys[at] {
			t.Fatalf("scan from %q gives %q, want key %d of %d", from, key, at, len(keys))
		}
		if all := m.versions[string(key)]; p != all[len(all)-1] {
			t.Fatalf("scan gives %q as %+v, want %+v", key, p, all[len(all)-1])
		}
		at++
	}
	if it.err() != nil || at != len(keys) {
		t.Fatalf("scan from %q ends before key %d of %d: %v", from, at, len(keys), it.err())
	}
}

// mergeOnce does the next merge, if there is one, as the store does.
func mergeOnce(t testing.TB, x *keyIndex) bool {
	t.Helper()
	old, level, ok := x.nextMerge()
	if !ok {
		return false
	}
	merged, err := x.merge(t.Context(), level, old)
	if err == nil {
		err = x.replace(old, merged)
	}
	if err == nil {
		err = x.remove(old)
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

func TestIndexModel(t *testing.T) {
	t.Parallel()
	m, dir := newIndexModel(t), t.TempDir()
	x := mustOpenIndex(t, dir, nil)
	m.check(t, x, 10)
	grown := 70
	if raceDetector {
		grown = 25
	}
	for range grown {
		if err := x.add(mustWriteRun(t, dir, 0, m.grow(1+m.rnd.IntN(300)))); err != nil {
			t.Fatal(err)
		}
		if m.rnd.IntN(3) == 0 {
			mergeOnce(t, x)
		}
		if m.rnd.IntN(8) == 0 {
			runs := x.runs()
			x.close()
			x = mustOpenIndex(t, dir, runs)
		}
		m.check(t, x, 30)
	}
	for mergeOnce(t, x) {
	}
	m.check(t, x, 500)
	var all []indexRecord
	for r, err := range x.all(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, indexRecord{bytes.Clone(r.key), r.position})
	}
	if !equalRecords(all, m.records(0, m.size)) {
		t.Errorf("all records are not the %d of the model", m.size)
	}
	if n := len(x.runs()); n > 3*(mergeWidth-1) {
		t.Errorf("%d runs are left after all merges", n)
	}
	if files, _ := os.ReadDir(dir); len(files) != len(x.runs()) {
		t.Errorf("%d files for %d runs", len(files), len(x.runs()))
	}
}

// growIndex returns an index of n level-0 runs of 100 entries each.
func growIndex(t testing.TB, m *indexModel, n int) (*keyIndex, string) {
	t.Helper()
	dir := t.TempDir()
	x := mustOpenIndex(t, dir, nil)
	for range n {
		if err := x.add(mustWriteRun(t, dir, 0, m.grow(100))); err != nil {
			t.Fatal(err)
		}
	}
	return x, dir
}

// records returns the model's records with seqs from first to last, in order.
func (m *indexModel) records(first, last uint64) []indexRecord {
	var records []indexRecord
	for k, all := range m.versions {
		for _, p := range all {
			if first <= p.seq && p.seq <= last {
				records = append(records, indexRecord{[]byte(k), p})
			}
		}
	}
	return sortRecords(records)
}

func TestMergeIsDeterministic(t *testing.T) {
	m := newIndexModel(t)
	x, dir := growIndex(t, m, mergeWidth*mergeWidth+3)
	for mergeOnce(t, x) {
	}
	runs := x.runs()
	if len(runs) != 4 || runs[0].level != 2 || runs[3].level != 0 {
		t.Fatalf("runs are %+v", runs)
	}
	direct := t.TempDir()
	info := mustWriteRun(t, direct, 2, m.records(runs[0].first, runs[0].last))
	if info != runs[0] {
		t.Errorf("written directly the run is %+v, merged %+v", info, runs[0])
	}
	a, _ := os.ReadFile(filepath.Join(direct, info.name()))
	b, _ := os.ReadFile(filepath.Join(dir, info.name()))
	if !bytes.Equal(a, b) {
		t.Error("a merged run and one written directly have other bytes")
	}
}

func TestNextMerge(t *testing.T) {
	for levels, want := range map[string]string{
		"":                      "",
		"0000000":               "",
		"00000000":              "0-7",
		"2110000000000":         "3-10",
		"11111111000":           "0-7",
		"1111111100000000":      "8-15",
		"1111111000":            "",
		"3211111111110":         "2-9",
		"100000001":             "",
		"0000000022222222":      "8-15",
		"22222222211111110000":  "0-7",
		"222222221111111100000": "8-15",
	} {
		x := new(keyIndex)
		list := make([]*run, len(levels))
		for i, l := range levels {
			list[i] = &run{info: runInfo{level: int(l - '0'), first: uint64(i), last: uint64(i)}}
		}
		x.list.Store(&list)
		got := ""
		if runs, level, ok := x.nextMerge(); ok {
			got = fmt.Sprintf("%d-%d", runs[0].first, runs[len(runs)-1].last)
			if level != runs[0].level+1 {
				t.Errorf("%s: level is %d", levels, level)
			}
		}
		if got != want {
			t.Errorf("%s: next merge is %q, want %q", levels, got, want)
		}
	}
}

func TestReplaceRefuses(t *testing.T) {
	m := newIndexModel(t)
	x, dir := growIndex(t, m, 4)
	runs := x.runs()
	merged, err := x.merge(t.Context(), 1, runs[:3])
	if err != nil {
		t.Fatal(err)
	}
	for what, old := range map[string][]runInfo{
		"too few":    runs[:2],
		"too many":   runs,
		"not in row": {runs[0], runs[2]},
		"none":       nil,
	} {
		if err := x.replace(old, merged); err == nil {
			t.Errorf("%s: replaced", what)
		}
	}
	if err := x.add(runs[0]); err == nil {
		t.Error("a run was added that does not follow the newest")
	}
	if _, err := x.merge(t.Context(), 1, []runInfo{merged}); err == nil {
		t.Error("a run was merged that is not in the index")
	}
	if !slices.Equal(x.runs(), runs) {
		t.Errorf("list changed to %+v", x.runs())
	}
	if _, err := openIndex(dir, []runInfo{runs[0], runs[2]}, testIndexLog(t)); err == nil {
		t.Error("an index with a gap was opened")
	}
	m.check(t, x, 20)
}

// TestIndexLeftovers puts the states in the directory that crashes leave.
func TestIndexLeftovers(t *testing.T) {
	m := newIndexModel(t)
	x, dir := growIndex(t, m, mergeWidth)
	list := x.runs()
	merged, err := x.merge(t.Context(), 1, list) // written, not committed
	if err != nil {
		t.Fatal(err)
	}
	beyond := mustWriteRun(t, dir, 0, (&indexModel{m.rnd, m.size, nil, map[string][]position{}}).grow(5))
	scratch := filepath.Join(dir, list[0].name()+".rebuild.tmp")
	os.Mkdir(scratch, 0o755)
	os.WriteFile(filepath.Join(scratch, list[0].name()), nil, 0o644)
	os.WriteFile(filepath.Join(dir, list[1].name()+".tmp"), []byte("SCRIN"), 0o644)
	os.WriteFile(filepath.Join(dir, "notes"), nil, 0o644)
	names := func() (names []string) {
		files, _ := os.ReadDir(dir)
		for _, f := range files {
			names = append(names, f.Name())
		}
		return names
	}

	x = mustOpenIndex(t, dir, list)
	m.check(t, x, 20)
	want := []string{beyond.name(), "notes"}
	for _, info := range list {
		want = append(want, info.name())
	}
	slices.Sort(want)
	if got := names(); !slices.Equal(got, want) {
		t.Errorf("files are %q, want %q", got, want)
	}
	if again, err := x.merge(t.Context(), 1, list); err != nil || again != merged { // committed, old ones not removed
		t.Fatal(again, err)
	}
	x = mustOpenIndex(t, dir, []runInfo{merged})
	m.check(t, x, 20)
	if got, want := names(), []string{beyond.name(), merged.name(), "notes"}; !slices.Equal(got, want) {
		t.Errorf("files are %q, want %q", got, want)
	}
}

// flipByte flips a bit of the file.
func flipByte(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	f.ReadAt(b[:], at)
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// parts cuts the range of info into parts of 100 entries, as growIndex wrote them.
func (m *indexModel) parts(info runInfo) iter.Seq2[runPart, error] {
	parts := make(map[uint64][]indexRecord)
	for _, r := range m.records(info.first, info.last) {
		parts[r.seq/100] = append(parts[r.seq/100], r)
	}
	return func(yield func(runPart, error) bool) {
		for first := info.first; first < info.last; first += 100 {
			if !yield(runPart{first, first + 99, yieldRecords(parts[first/100])}, nil) {
				return
			}
		}
	}
}

// TestRebuild damages runs of all levels before and after they are opened.
func TestRebuild(t *testing.T) {
	t.Parallel()
	m := newIndexModel(t)
	x, dir := growIndex(t, m, mergeWidth*mergeWidth+mergeWidth+1)
	for mergeOnce(t, x) {
	}
	list := x.runs()
	if len(list) != 3 {
		t.Fatalf("runs are %+v", list)
	}
	for i, info := range list {
		flipByte(t, filepath.Join(dir, info.name()), runHeaderSize+7) // in the first block
		it := x.scan(nil)
		for _, _, ok := it.next(); ok; _, _, ok = it.next() {
		}
		wantDamaged(t, it.err(), info, "scan of a damaged block")
		if _, err := x.merge(t.Context(), 9, list); !errors.Is(err, errCorrupt) || !strings.Contains(err.Error(), info.name()) {
			t.Fatalf("merge of a damaged run: %v", err)
		}
		if i == 1 {
			os.Remove(filepath.Join(dir, info.name()))
		}
		rebuilt, err := rebuildRun(t.Context(), dir, info, m.parts(info), testIndexLog(t))
		if err != nil || rebuilt != info {
			t.Fatalf("rebuilt %+v, %v; want %+v", rebuilt, err, info)
		}
		if err := x.swap(rebuilt); err != nil {
			t.Fatal(err)
		}
		m.check(t, x, 20)
	}
	for _, info := range list {
		flipByte(t, filepath.Join(dir, info.name()), info.size-3)
		_, err := openIndex(dir, list, testIndexLog(t))
		wantDamaged(t, err, info, "open with a damaged footer")
		if _, err := rebuildRun(t.Context(), dir, info, m.parts(info), testIndexLog(t)); err != nil {
			t.Fatal(err)
		}
	}
	m.check(t, mustOpenIndex(t, dir, list), 20)
	if files, _ := os.ReadDir(dir); len(files) != len(list) {
		t.Errorf("%d files for %d runs", len(files), len(list))
	}
}

func TestRebuildRefuses(t *testing.T) {
	m := newIndexModel(t)
	x, dir := growIndex(t, m, mergeWidth)
	mergeOnce(t, x)
	info := x.runs()[0]
	before, _ := os.ReadFile(filepath.Join(dir, info.name()))
	short := info
	short.last -= 100
	broken := errors.New("segment is gone")
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	for what, rebuild := range map[string]func() (runInfo, error){
		"do not cover it": func() (runInfo, error) { return rebuildRun(t.Context(), dir, info, m.parts(short), testIndexLog(t)) },
		broken.Error(): func() (runInfo, error) {
			return rebuildRun(t.Context(), dir, info, func(yield func(runPart, error) bool) { yield(runPart{}, broken) }, testIndexLog(t))
		},
		context.Canceled.Error(): func() (runInfo, error) { return rebuildRun(stopped, dir, info, m.parts(info), testIndexLog(t)) },
	} {
		if _, err := rebuild(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("error is %v, want %q", err, what)
		}
	}
	files, _ := os.ReadDir(dir)
	after, _ := os.ReadFile(filepath.Join(dir, info.name()))
	if len(files) != 1 || !bytes.Equal(before, after) {
		t.Errorf("a refused rebuild left %v", files)
	}
}

func TestMergeStops(t *testing.T) {
	m := newIndexModel(t)
	x, dir := growIndex(t, m, mergeWidth)
	ctx, cancel := context.WithCancel(t.Context())
	turns := 0
	_, err := x.mergeInto(ctx, dir, 1, x.runs(), func(ctx context.Context) error {
		turns++
		cancel()
		return ctx.Err()
	})
	if !errors.Is(err, context.Canceled) || turns != 1 {
		t.Errorf("merge ended after %d turns: %v", turns, err)
	}
	if _, err := x.merge(ctx, 1, x.runs()); !errors.Is(err, context.Canceled) {
		t.Errorf("merge ended with %v", err)
	}
	if files, _ := os.ReadDir(dir); len(files) != mergeWidth {
		t.Errorf("stopped merges left %v", files)
	}
	p := pacer{turn: time.Now().Add(-time.Hour)} // it is to rest now
	if err := p.rest(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("rest ended with %v", err)
	}
	if err := p.rest(t.Context()); err != nil {
		t.Errorf("rest ended with %v", err)
	}
}

// TestHotKey has one key with so many versions that they fill many blocks.
func TestHotKey(t *testing.T) {
	const versions = 20_000
	m := newIndexModel(t)
	dir := t.TempDir()
	x := mustOpenIndex(t, dir, nil)
	for range 2 {
		var records []indexRecord
		for range versions / 2 {
			for _, k := range []string{"hot", fmt.Sprint("cold", m.size)} {
				p := position{seq: m.size, version: uint64(len(m.versions[k])) + 1}
				m.versions[k] = append(m.versions[k], p)
				if p.version == 1 {
					m.keys = append(m.keys, k)
				}
				records = append(records, indexRecord{[]byte(k), p})
				m.size++
			}
		}
		if err := x.add(mustWriteRun(t, dir, 0, records)); err != nil {
			t.Fatal(err)
		}
	}
	all := m.versions["hot"]
	for i := 0; i < versions; i += 97 {
		if p, ok, err := x.version([]byte("hot"), uint64(i+1)); !ok || err != nil || p != all[i] {
			t.Fatalf("version %d is %+v, %v, %v", i+1, p, ok, err)
		}
		if p, ok, err := x.before([]byte("hot"), all[i].seq+1); !ok || err != nil || p != all[i] {
			t.Fatalf("before %d is %+v, %v, %v", all[i].seq+1, p, ok, err)
		}
	}
	got, err := x.versions([]byte("hot"), math.MaxUint64, math.MaxInt)
	slices.Reverse(got)
	if err != nil || !slices.Equal(got, all) {
		t.Errorf("history has %d versions, %v; want %d", len(got), err, versions)
	}
	m.checkScan(t, x, "")
	m.checkScan(t, x, "hot")
	m.checkScan(t, x, "hot\x00")
}

// TestReadersDuringMerges reads while runs are added, merged and removed;
// under -race it also shows that readers need no lock.
func TestReadersDuringMerges(t *testing.T) {
	t.Parallel()
	m := newIndexModel(t)
	x, dir := growIndex(t, m, 1)
	fixed := m.records(0, 99)
	it := x.scan(nil) // opened before, read after all merges
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				r := fixed[i%len(fixed)]
				if p, ok, err := x.version(r.key, r.version); err != nil || !ok || p != r.position {
					t.Errorf("version %d of %q is %+v, %v, %v; want %+v", r.version, r.key, p, ok, err, r.position)
					return
				}
			}
		})
	}
	for range 2 * mergeWidth {
		if err := x.add(mustWriteRun(t, dir, 0, m.grow(100))); err != nil {
			t.Error(err)
		}
		mergeOnce(t, x)
		runtime.GC() // closes the files nobody holds
	}
	close(done)
	readers.Wait()
	keys := 0
	for _, _, ok := it.next(); ok; _, _, ok = it.next() {
		keys++
	}
	if it.err() != nil || keys == 0 {
		t.Errorf("the old iterator gave %d keys, %v", keys, it.err())
	}
	m.check(t, x, 50)
}

func TestClosedIndex(t *testing.T) {
	m := newIndexModel(t)
	x, _ := growIndex(t, m, 2)
	x.close()
	r := m.records(0, m.size)[0]
	if _, ok, err := x.latest(r.key); ok || !errors.Is(err, os.ErrClosed) || errors.Is(err, errCorrupt) {
		t.Errorf("a closed index answers %v, %v; want os.ErrClosed", ok, err)
	}
	if _, err := x.versions(r.key, m.size, 1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed index answers %v; want os.ErrClosed", err)
	}
	it := x.scan(nil)
	if _, _, ok := it.next(); ok || !errors.Is(it.err(), os.ErrClosed) {
		t.Errorf("a closed index answers %v; want os.ErrClosed", it.err())
	}
}

func TestLookUpsDoNotAllocate(t *testing.T) {
	m := newIndexModel(t)
	x, _ := growIndex(t, m, 3)
	records := m.records(0, m.size)
	i := 0
	allocs := testing.AllocsPerRun(1000, func() {
		x.latest(records[i%len(records)].key)
		i++
	})
	if allocs > 2 { // 0; under -race a pool forgets at random
		t.Errorf("%.1f allocations a look-up", allocs)
	}
}

// benchIndexKeys is how many keys the benchmarks have; BENCH_INDEX_KEYS sets another number.
func benchIndexKeys(b *testing.B) int {
	n := 200_000
	if s := os.Getenv("BENCH_INDEX_KEYS"); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil {
			b.Fatal(err)
		}
	}
	return n
}

// benchKey returns the i-th of the random keys of 32 bytes.
func benchKey(i int) []byte {
	key := make([]byte, 0, 32)
	for j := range uint64(4) {
		key = binary.BigEndian.AppendUint64(key, mix64(uint64(i)*4+j+1))
	}
	return key
}

// benchRecords returns records for seqs first..first+n-1, in order.
func benchRecords(first, n int) []indexRecord {
	records := make([]indexRecord, n)
	for i := range records {
		p := position{uint64(first + i), 1, uint32(i * 150), 150, false}
		records[i] = indexRecord{benchKey(first + i), p}
	}
	return sortRecords(records)
}

// benchIndex returns an index of 20 runs as a ledger of that size has: each a
// tenth of the rest.
func benchIndex(b *testing.B) (*keyIndex, int) {
	keys := benchIndexKeys(b)
	dir := b.TempDir()
	x := mustOpenIndex(b, dir, nil)
	for i, first := 0, 0; i < 20; i++ {
		n := (keys - first) / 10
		if i == 19 {
			n = keys - first
		}
		n = max(n, 1)
		info, err := writeRun(dir, 0, uint64(first), uint64(first+n-1), yieldRecords(benchRecords(first, n)))
		if err == nil {
			err = x.add(info)
		}
		if err != nil {
			b.Fatal(err)
		}
		first += n
	}
	return x, keys
}

func BenchmarkIndexAbsent(b *testing.B) {
	x, keys := benchIndex(b)
	absent := make([][]byte, 1<<14)
	for i := range absent {
		absent[i] = benchKey(keys + i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, ok, err := x.latest(absent[i%len(absent)]); ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

func BenchmarkIndexPresent(b *testing.B) {
	x, keys := benchIndex(b)
	present := make([][]byte, 1<<16)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range present {
		present[i] = benchKey(rnd.IntN(keys))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, ok, err := x.latest(present[i%len(present)]); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

// BenchmarkIndexScan reads pages of 100 keys from random places.
func BenchmarkIndexScan(b *testing.B) {
	x, _ := benchIndex(b)
	for i := 0; b.Loop(); i++ {
		it := x.scan(benchKey(i))
		for range 100 {
			it.next()
		}
		if it.err() != nil {
			b.Fatal(it.err())
		}
	}
}

func BenchmarkWriteRun(b *testing.B) {
	keys := benchIndexKeys(b)
	dir, records := b.TempDir(), benchRecords(0, keys)
	b.ReportAllocs()
	for b.Loop() {
		info, err := writeRun(dir, 0, 0, uint64(keys-1), yieldRecords(records))
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(info.size)
	}
	b.ReportMetric(float64(b.N*keys)/b.Elapsed().Seconds(), "keys/s")
}

// BenchmarkMerge merges eight runs into one, without and with rests.
func BenchmarkMerge(b *testing.B) {
	keys := benchIndexKeys(b) / mergeWidth * mergeWidth
	dir := b.TempDir()
	x := mustOpenIndex(b, dir, nil)
	for i := range mergeWidth {
		n := keys / mergeWidth
		if err := x.add(mustWriteRun(b, dir, 0, benchRecords(i*n, n))); err != nil {
			b.Fatal(err)
		}
	}
	merges := map[string]func() (runInfo, error){
		"full": func() (runInfo, error) { return x.mergeInto(b.Context(), dir, 1, x.runs(), context.Context.Err) },
		"half": func() (runInfo, error) { return x.merge(b.Context(), 1, x.runs()) },
	}
	for name, merge := range merges {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				info, err := merge()
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(info.size)
			}
			b.ReportMetric(float64(b.N*keys)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}
