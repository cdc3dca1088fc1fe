package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var updateRuns = flag.Bool("update-runs", false, "write testdata/run-1.run again")

// yieldRecords yields records in the order they stand in.
func yieldRecords(records []indexRecord) iter.Seq2[indexRecord, error] {
	return func(yield func(indexRecord, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// sortRecords puts records in the order of the format.
func sortRecords(records []indexRecord) []indexRecord {
	slices.SortFunc(records, func(a, b indexRecord) int {
		if c := bytes.Compare(a.key, b.key); c != 0 {
			return c
		}
		return int(int64(b.seq - a.seq))
	})
	return records
}

// mustWriteRun writes records, in any order, as one run of the given level.
func mustWriteRun(t testing.TB, dir string, level int, records []indexRecord) runInfo {
	t.Helper()
	first := slices.MinFunc(records, func(a, b indexRecord) int { return int(int64(a.seq - b.seq)) }).seq
	info, err := writeRun(dir, level, first, first+uint64(len(records))-1, yieldRecords(sortRecords(records)))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// readRun returns all records of r.
func readRun(r *run) ([]indexRecord, error) {
	var records []indexRecord
	c := newRunCursor(r)
	for {
		ok, err := c.next()
		if !ok || err != nil {
			return records, err
		}
		records = append(records, indexRecord{bytes.Clone(c.key), c.position})
	}
}

func equalRecords(a, b []indexRecord) bool {
	return slices.EqualFunc(a, b, func(a, b indexRecord) bool {
		return bytes.Equal(a.key, b.key) && a.position == b.position
	})
}

// goldenRecords are those of testdata/run-1.run: seqs from 1000, keys with
// common prefixes, keys of one byte and of 1,024, one with 100 versions.
func goldenRecords() []indexRecord {
	var records []indexRecord
	versions := make(map[string]uint64)
	for i := range 300 {
		key := fmt.Sprintf("orders/2026/%03d", i*i%97)
		switch {
		case i%3 == 0:
			key = "hot"
		case i%30 == 1:
			key = strings.Repeat(string(rune('a'+i/30)), maxKeySize)
		case i == 20:
			key = "\x00"
		case i == 40:
			key = "\xff"
		}
		versions[key]++
		records = append(records, indexRecord{[]byte(key), position{
			seq:     1000 + uint64(i),
			version: versions[key],
			offset:  uint32(i * 40_000_000),
			length:  uint16(76 + 317*i),
			deleted: i%7 == 6,
		}})
	}
	return sortRecords(records)
}

const goldenLevel = 2

// goldenRun returns the bytes of testdata/run-1.run and its description.
func goldenRun(t testing.TB) ([]byte, runInfo) {
	t.Helper()
	b, err := os.ReadFile("testdata/run-1.run")
	if err != nil {
		t.Fatal(err)
	}
	return b, runInfo{
		level: goldenLevel,
		first: 1000,
		last:  1299,
		keys:  binary.BigEndian.Uint64(b[len(b)-56:]),
		size:  int64(len(b)),
		sum:   sha256.Sum256(b[len(b)-56:]),
	}
}

func TestRunGolden(t *testing.T) {
	dir := t.TempDir()
	info := mustWriteRun(t, dir, goldenLevel, goldenRecords())
	got, err := os.ReadFile(filepath.Join(dir, info.name()))
	if err != nil {
		t.Fatal(err)
	}
	if *updateRuns {
		if err := os.WriteFile("testdata/run-1.run", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, want := goldenRun(t)
	if !bytes.Equal(got, golden) {
		t.Error("the writer gives other bytes than testdata/run-1.run")
	}
	if info != want {
		t.Errorf("info is %+v, want %+v", info, want)
	}
	if want := "2-00000000000000001000-00000000000000001299.run"; info.name() != want {
		t.Errorf("name is %s, want %s", info.name(), want)
	}
	r, err := loadRun(bytes.NewReader(golden), want)
	if err != nil {
		t.Fatal(err)
	}
	if records, err := readRun(r); err != nil || !equalRecords(records, goldenRecords()) {
		t.Errorf("read %d records (%v) that are not those written", len(records), err)
	}
}

// TestRunByHand reads the golden file with nothing but what the comment at the
// head of store_run.go says.
func TestRunByHand(t *testing.T) {
	b, _ := goldenRun(t)
	u16, u32, u64 := binary.BigEndian.Uint16, binary.BigEndian.Uint32, binary.BigEndian.Uint64
	crc := func(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
	check := func(what string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}

	check("magic", string(b[:8]), "SCRINDEX")
	check("format", u32(b[8:]), uint32(1))
	check("level", u32(b[12:]), uint32(2))
	check("first", u64(b[16:]), uint64(1000))
	check("last", u64(b[24:]), uint64(1299))
	f := b[len(b)-56:]
	indexAt, filterAt, blocks := u64(f[16:]), u64(f[24:]), u32(f[32:])
	index, filter := b[indexAt:filterAt], b[filterAt:len(b)-56]
	check("records", u64(f[8:]), uint64(300))
	check("CRC of index", u32(f[36:]), crc(index))
	check("CRC of filter", u32(f[40:]), crc(filter))
	check("CRC of header", u32(f[44:]), crc(b[:32]))
	check("CRC of footer", u32(f[48:]), crc(f[:48]))
	check("end magic", string(f[52:]), "REND")

	if blocks < 3 {
		t.Errorf("%d blocks, want some", blocks)
	}
	var got []indexRecord
	keys, end := make(map[string]bool), uint64(32)
	for range blocks {
		n := u16(index)
		firstKey, e := string(index[2:2+n]), index[2+n:]
		firstSeq, firstVersion, at, length := u64(e), u64(e[8:]), u64(e[16:]), u32(e[24:])
		check("offset of block", at, end)
		block := b[at : at+uint64(length)]
		check("CRC of block", u32(e[28:]), crc(block))
		index, end = e[32:], at+uint64(length)

		restarts := int(u16(block[len(block)-2:]))
		records := block[:len(block)-2-2*restarts]
		var key []byte
		for n, rest := 0, records; len(rest) > 0; n++ {
			uvarint := func() uint64 {
				v, size := binary.Uvarint(rest)
				rest = rest[size:]
				return v
			}
			at := len(records) - len(rest)
			shared, unshared := uvarint(), uvarint()
			if n%16 == 0 {
				check("shared at restart", shared, uint64(0))
				check("restart", int(u16(block[len(records)+n/16*2:])), at)
			}
			key = append(slices.Clone(key[:shared]), rest[:unshared]...)
			rest = rest[unshared:]
			p := position{seq: 1000 + uvarint(), version: uvarint(), offset: uint32(uvarint())}
			last := uvarint()
			p.length, p.deleted = uint16(last/2), last%2 == 1
			if n == 0 && (firstKey != string(key) || firstSeq != p.seq || firstVersion != p.version) {
				t.Errorf("index says block %d starts with %.20q", at, firstKey)
			}
			got, keys[string(key)] = append(got, indexRecord{key, p}), true
		}
	}
	check("end of blocks", end, indexAt)
	check("bytes after index", len(index), 0)
	check("keys", u64(f), uint64(len(keys)))
	if !equalRecords(got, goldenRecords()) {
		t.Error("records are not those written")
	}

	groups := uint64(len(filter) / 64)
	check("groups of filter", groups, uint64((len(keys)*12+511)/512))
	want := make([]byte, len(filter))
	for key := range keys {
		h := uint64(0xcbf29ce484222325)
		for _, c := range []byte(key) {
			h = (h ^ uint64(c)) * 0x100000001b3
		}
		mix := func(x uint64) uint64 {
			x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
			x = (x ^ (x >> 27)) * 0x94d049bb133111eb
			return x ^ (x >> 31)
		}
		h = mix(h)
		for i := range 7 {
			bit := mix(h) >> (9 * i) & 511
			want[(h>>32)*groups>>32*64+bit/8] |= 1 << (bit % 8)
		}
	}
	if !bytes.Equal(filter, want) {
		t.Error("filter is not the one described")
	}
}

// useRun opens the run and reads all of it in every way; it returns the first error.
func useRun(dir string, info runInfo) error {
	r, err := openRun(dir, info)
	if err != nil {
		return err
	}
	defer r.src.(*os.File).Close()
	_, err = readRun(r)
	return err
}

// wantDamaged fails unless err names info's run and says it is corrupt.
func wantDamaged(t *testing.T, err error, info runInfo, what string) {
	t.Helper()
	var re *runError
	if !errors.Is(err, errCorrupt) || !errors.As(err, &re) || re.info != info || !strings.Contains(err.Error(), info.name()) {
		t.Fatalf("%s: error is %v, want one that names the run and wraps errCorrupt", what, err)
	}
}

// useBytesAs is useRun for a run in memory.
func useBytesAs(b []byte, info runInfo) error {
	r, err := loadRun(bytes.NewReader(b), info)
	if err != nil {
		return damagedRun(info, err)
	}
	_, err = readRun(r)
	return err
}

func TestRunFlippedBytes(t *testing.T) {
	t.Parallel()
	b, info := goldenRun(t)
	for i := range b {
		b[i] ^= 1 << (i % 8)
		wantDamaged(t, useBytesAs(b, info), info, fmt.Sprintf("byte %d flipped", i))
		b[i] ^= 1 << (i % 8)
	}
	if err := useBytesAs(b, info); err != nil {
		t.Fatal(err)
	}
}

func TestRunCutAndGrown(t *testing.T) {
	t.Parallel()
	b, info := goldenRun(t)
	dir := t.TempDir()
	path := filepath.Join(dir, info.name())
	if err := os.WriteFile(path, append(slices.Clone(b), 0), 0o644); err != nil {
		t.Fatal(err)
	}
	wantDamaged(t, useRun(dir, info), info, "one byte more")
	for n := len(b) - 1; n >= 0; n-- {
		if err := os.Truncate(path, int64(n)); err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("cut at %d", n)
		wantDamaged(t, useRun(dir, info), info, what)
		short := info
		short.size = int64(n) // as if the list agreed
		wantDamaged(t, useBytesAs(b[:n], short), short, what)
	}
	os.Remove(path)
	err := useRun(dir, info)
	wantDamaged(t, err, info, "missing")
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing run: error %v does not say so", err)
	}
}

// TestRunMisplaced puts whole blocks and whole files in the place of others:
// all their own bytes are sound.
func TestRunMisplaced(t *testing.T) {
	dir := t.TempDir()
	path := func(i runInfo) string { return filepath.Join(dir, i.name()) }
	records := make([][]indexRecord, 2)
	for n := range records { // two files with blocks of one size at the same places
		for i := range 5000 {
			key := fmt.Appendf(nil, "%02d-%04d", n, i)
			records[n] = append(records[n], indexRecord{key, position{seq: uint64(i), version: 1}})
		}
	}
	one := mustWriteRun(t, dir, 0, records[0])
	whole, _ := os.ReadFile(path(one))
	two := mustWriteRun(t, dir, 0, records[1])
	other, _ := os.ReadFile(path(two))
	if one.name() != two.name() || one.size != two.size || one.sum == two.sum {
		t.Fatalf("the runs are no twins: %+v, %+v", one, two)
	}
	wantDamaged(t, useRun(dir, one), one, "another run under the name")

	r, err := loadRun(bytes.NewReader(whole), one)
	if err != nil {
		t.Fatal(err)
	}
	a, b := r.index.ref(1), r.index.ref(2)
	for i := 3; b.length != a.length; i++ {
		b = r.index.ref(i)
	}
	swapped := slices.Clone(whole)
	copy(swapped[a.offset:], whole[b.offset:b.offset+uint64(b.length)])
	copy(swapped[b.offset:], whole[a.offset:a.offset+uint64(a.length)])
	foreign := slices.Clone(whole)
	copy(foreign[a.offset:], other[a.offset:a.offset+uint64(a.length)])
	for what, bytes := range map[string][]byte{"swapped blocks": swapped, "block of another run": foreign} {
		os.WriteFile(path(one), bytes, 0o644)
		err := useRun(dir, one)
		wantDamaged(t, err, one, what)
		if !strings.Contains(err.Error(), "block 1") {
			t.Errorf("%s: error %q does not name block 1", what, err)
		}
	}
}

func TestWriteRunRefuses(t *testing.T) {
	rec := func(key string, seq, version uint64) indexRecord {
		return indexRecord{[]byte(key), position{seq: seq, version: version}}
	}
	good := []indexRecord{rec("a", 11, 2), rec("a", 10, 1), rec("b", 12, 1)}
	tests := map[string][]indexRecord{
		"comes after":            {good[2], good[0], good[1]},
		"version 2 with seq 11":  {good[1], good[0], good[2]},
		"version 2 with seq 10 ": {rec("a", 11, 2), rec("a", 10, 2), rec("b", 12, 1)},
		"does not belong here":   {good[0], good[1], rec("b", 13, 1)},
		"version 0":              {good[0], good[1], rec("b", 12, 0)},
		"got 2 records, want 3":  good[:2],
		"got 0 records, want 3":  nil,
		"key has 0 bytes":        {rec("", 10, 1)},
		"key has 1025 bytes":     {rec(strings.Repeat("k", maxKeySize+1), 10, 1)},
	}
	dir := t.TempDir()
	for want, records := range tests {
		if _, err := writeRun(dir, 0, 10, 12, yieldRecords(records)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q", err, want)
		}
	}
	broken := errors.New("segment is gone")
	if _, err := writeRun(dir, 0, 10, 12, func(yield func(indexRecord, error) bool) {
		_ = yield(good[0], nil) && yield(indexRecord{}, broken)
	}); !errors.Is(err, broken) {
		t.Errorf("error is %v, want the one of the records", err)
	}
	if _, err := writeRun(filepath.Join(dir, "none"), 0, 10, 12, yieldRecords(good)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v, want fs.ErrNotExist", err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 0 {
		t.Errorf("refused runs left %v", files)
	}
	if _, err := writeRun(dir, 0, 10, 12, yieldRecords(good)); err != nil {
		t.Error(err)
	}
}

// A run of too many keys to keep their hashes gets the same filter from its blocks.
func TestRunFilterFromBlocks(t *testing.T) {
	records := goldenRecords()
	want, info := goldenRun(t)
	for _, limit := range []uint64{0, 1, info.keys - 1} {
		dir := t.TempDir()
		w, err := createRun(dir, runInfo{first: info.first, last: info.last, level: goldenLevel})
		if err != nil {
			t.Fatal(err)
		}
		w.limit = limit
		if err := errors.Join(w.writeRecords(yieldRecords(records)), w.finish(), w.publish(dir)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, w.info.name()))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("with the hashes of %d keys the run differs: %v", limit, err)
		}
	}
}

func TestRunNames(t *testing.T) {
	want := runInfo{level: 3, first: 8, last: 1<<64 - 2}
	if got, ok := parseRunName(want.name()); !ok || got != want {
		t.Errorf("parsed %s as %+v, %v", want.name(), got, ok)
	}
	for _, s := range []string{"", "0-1-2.run", want.name() + ".tmp", "+" + want.name(), "x" + want.name(), want.name()[1:]} {
		if got, ok := parseRunName(s); ok {
			t.Errorf("parsed %q as %+v", s, got)
		}
	}
}

// TestRunSeek compares seeks to all places, and beside them, with a search of the records.
func TestRunSeek(t *testing.T) {
	b, info := goldenRun(t)
	r, err := loadRun(bytes.NewReader(b), info)
	if err != nil {
		t.Fatal(err)
	}
	records := goldenRecords()
	bounds := []bound{{}, newestOf(nil), newestOf([]byte("zzz")), newestOf([]byte("\xff\xff"))}
	for _, r := range records {
		bounds = append(bounds, newestOf(r.key), newestOf(append(slices.Clone(r.key), 0)), newestOf(r.key[:len(r.key)/2]),
			bound{r.key, r.seq, 1 << 63}, bound{r.key, r.seq - 1, 1 << 63}, bound{r.key, 1 << 63, r.version}, bound{r.key, 1 << 63, r.version - 1})
	}
	c := newRunCursor(r)
	for _, b := range bounds {
		i := slices.IndexFunc(records, func(r indexRecord) bool { return b.before(r.key, r.seq, r.version) })
		ok, err := c.seek(b)
		if err != nil || ok != (i >= 0) || ok && c.position != records[i].position {
			t.Fatalf("seek to %.20q seq %d version %d: %v, %+v, %v; want record %d", b.key, b.seq, b.version, ok, c.position, err, i)
		}
	}
}

func TestKeyFilter(t *testing.T) {
	const keys = 50_000
	rnd := rand.New(rand.NewPCG(1, 2))
	f := make(keyFilter, filterSize(keys))
	for i := range keys {
		f.add(hashKey(fmt.Append(nil, "key", i)))
	}
	wrong := 0
	for i := range keys {
		if !f.has(hashKey(fmt.Append(nil, "key", i))) {
			t.Fatalf("key %d is not in the filter", i)
		}
		if f.has(hashKey(fmt.Append(nil, "other", rnd.Uint64()))) {
			wrong++
		}
	}
	t.Logf("%.3f %% of absent keys pass the filter", 100*float64(wrong)/keys)
	if wrong > keys*7/1000 {
		t.Errorf("%d of %d absent keys pass the filter, want at most 7 in 1000", wrong, keys)
	}
	for keys, want := range map[uint64]uint64{0: 64, 1: 64, 42: 64, 43: 128, 512: 768, 513: 832} {
		if got := filterSize(keys); got != want {
			t.Errorf("filter of %d keys has %d bytes, want %d", keys, got, want)
		}
	}
}

// reseal makes all checksums of a run right, as far as its offsets make sense,
// so that mutated bytes reach the decoders behind them.
func reseal(b []byte) {
	if len(b) < runHeaderSize+runFooterSize {
		return
	}
	end := uint64(len(b) - runFooterSize)
	f := b[end:]
	indexAt, filterAt := binary.BigEndian.Uint64(f[16:]), binary.BigEndian.Uint64(f[24:])
	crc := func(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
	if indexAt <= filterAt && filterAt <= end {
		for x := b[indexAt:filterAt]; len(x) >= 2; {
			n := int(binary.BigEndian.Uint16(x))
			if len(x) < indexEntryFixed+n {
				break
			}
			at, length := binary.BigEndian.Uint64(x[2+n+16:]), uint64(binary.BigEndian.Uint32(x[2+n+24:]))
			if at <= indexAt && length <= indexAt-at {
				binary.BigEndian.PutUint32(x[2+n+28:], crc(b[at:at+length]))
			}
			x = x[indexEntryFixed+n:]
		}
		binary.BigEndian.PutUint32(f[36:], crc(b[indexAt:filterAt]))
		binary.BigEndian.PutUint32(f[40:], crc(b[filterAt:end]))
	}
	binary.BigEndian.PutUint32(f[44:], crc(b[:runHeaderSize]))
	binary.BigEndian.PutUint32(f[48:], crc(f[:48]))
}

// smallRun returns the bytes of a run of n short records.
func smallRun(t testing.TB, n int) []byte {
	t.Helper()
	dir := t.TempDir()
	info := mustWriteRun(t, dir, 0, benchRecords(0, n))
	b, err := os.ReadFile(filepath.Join(dir, info.name()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// useBytes opens any bytes as a run, believing what they say of themselves,
// and uses it. There may be errors that say it is corrupt, but no panic and no
// key or position that cannot be.
func useBytes(t *testing.T, b, key []byte) {
	footer := b[len(b)-runFooterSize:]
	info := runInfo{
		level: int(binary.BigEndian.Uint32(b[12:])),
		first: binary.BigEndian.Uint64(b[16:]),
		last:  binary.BigEndian.Uint64(b[24:]),
		keys:  binary.BigEndian.Uint64(footer),
		size:  int64(len(b)),
		sum:   sha256.Sum256(footer),
	}
	corrupt := func(err error) bool {
		if err != nil && !errors.Is(err, errCorrupt) {
			t.Fatal(err)
		}
		return err != nil
	}
	r, err := loadRun(bytes.NewReader(b), info)
	if corrupt(err) {
		return
	}
	records, err := readRun(r)
	corrupt(err)
	for _, rec := range records {
		if len(rec.key) == 0 || len(rec.key) > maxKeySize || rec.version == 0 || rec.seq < info.first || rec.seq > info.last {
			t.Fatalf("read impossible record %+v", rec)
		}
	}
	c := newRunCursor(r)
	for _, bound := range []bound{newestOf(key), {key, info.first, 1}, {}} {
		if ok, err := c.seek(bound); !corrupt(err) && ok {
			_, err = c.skipKey(bytes.Clone(c.key))
			corrupt(err)
		}
	}
	r.filter.has(hashKey(key))
}

// TestRunResealed flips every bit of a very small run and makes the checksums right again.
func TestRunResealed(t *testing.T) {
	whole := smallRun(t, 8)
	for i := range 8 * len(whole) {
		b := slices.Clone(whole)
		b[i/8] ^= 1 << (i % 8)
		reseal(b)
		useBytes(t, b, benchKey(i%8))
	}
}

// FuzzRun does it with any bytes, with right and wrong checksums.
func FuzzRun(f *testing.F) {
	golden, _ := goldenRun(f)
	f.Add(golden, []byte("hot"), false)
	f.Add(golden, []byte("orders/2026/036"), true)
	for _, n := range []int{1, 3, 40} { // small ones mutate better
		f.Add(smallRun(f, n), benchKey(0), true)
	}
	f.Fuzz(func(t *testing.T, b, key []byte, seal bool) {
		if len(b) < runHeaderSize+runFooterSize || len(b) > 1<<20 {
			return
		}
		b = slices.Clone(b)
		if seal {
			reseal(b)
		}
		useBytes(t, b, key)
	})
}
