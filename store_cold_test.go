package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
)

// testBucket returns a strict S3 and the store's view of it.
func testBucket(t *testing.T) (*s3Server, objectStore) {
	t.Helper()
	s := newS3Server(t)
	return s, bucketStore{newS3Test(t, s, func(o *s3Options) { o.retries = 0 })}
}

// useObjects opens the store anew over a bucket.
func (h *harness) useObjects(o objectStore, cacheSize int64) {
	h.t.Helper()
	h.tune = func(so *storeOptions) { so.objects, so.objectPrefix, so.cacheSize = o, "a/b/", cacheSize }
	h.reopen()
}

// packedOnce has the packed segments of the tests, most of which are the same.
var packedOnce sync.Map // SHA-256 of the file and level -> packedSegment

type packedSegment struct {
	name string
	b    []byte
}

// packed packs a segment file.
func packed(t testing.TB, info segmentInfo, path string, level int) packedSegment {
	t.Helper()
	id := fmt.Sprint(info.sum, level)
	if p, ok := packedOnce.Load(id); ok {
		return p.(packedSegment)
	}
	b := readFile(t, path)
	var out bytes.Buffer
	table, err := packSegment(&out, bytes.NewReader(b), int64(len(b)), level)
	if err != nil {
		t.Fatal(err)
	}
	p := packedSegment{packedName(info.first, table.sum()), out.Bytes()}
	packedOnce.Store(id, p)
	return p
}

// archiveAll puts every confirmed segment into the bucket, as the leader does, and
// commits that it is there.
func (h *harness) archiveAll(s *s3Server, level int) {
	h.t.Helper()
	h.confirm()
	for _, info := range h.store.manifest.Load().shown() {
		if info.object != "" {
			continue
		}
		p := packed(h.t, info, h.store.segmentPath(info), level)
		info.object = p.name
		s.set(h.store.objectKey(info), p.b)
		h.commit(appendArchived(nil, info.first, p.name))
	}
}

// dropAll removes the local copies of all archived segments.
func (h *harness) dropAll() {
	h.t.Helper()
	for _, info := range h.store.manifest.Load().shown() {
		if err := h.store.drop(info); err != nil {
			h.t.Fatal(err)
		}
		if _, err := os.Stat(h.store.segmentPath(info)); err == nil {
			h.t.Fatalf("segment %s is dropped and still there", info.id())
		}
	}
}

// coldHarness returns a store whose segments are all cold but the pending one,
// its bucket, and a store of the same log whose segments are all local.
func coldHarness(t *testing.T) (h, warm *harness, s *s3Server) {
	t.Helper()
	h, warm = newHarness(t), newHarness(t)
	s, objects := testBucket(t)
	h.useObjects(objects, 64<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for range 4 {
		for i := range 24 {
			switch i % 12 {
			case 3:
				h.do(deleteRequest(fmt.Sprint("key-", r.IntN(10))))
			case 7:
				h.put(fmt.Sprint("big-", r.IntN(2)), randomText(r, 150_000+r.IntN(250_000)))
			default:
				h.put(fmt.Sprint("key-", r.IntN(10)), randomText(r, r.IntN(2000)))
			}
		}
		h.sealNow()
	}
	h.archiveAll(s, 6)
	h.put("pending", "value")
	warm.fsm.ApplyBatch(h.log)
	warm.settle()
	h.settle()
	h.dropAll()
	s.requests()
	return h, warm, s
}

// randomText returns n bytes that cannot be packed.
func randomText(r *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// sameReads compares everything that can be read of two stores.
func sameReads(t *testing.T, got, want *store) {
	t.Helper()
	if got.size() != want.size() {
		t.Fatalf("%d entries, want %d", got.size(), want.size())
	}
	keys := make(map[string]bool)
	for seq := range want.size() {
		a, err := got.entryAt(seq)
		b, berr := want.entryAt(seq)
		if err != nil || berr != nil {
			t.Fatalf("entry %d: %v, %v", seq, err, berr)
		}
		if !bytes.Equal(a.raw, b.raw) || a.leaf != b.leaf || valueOf(t, &a) != valueOf(t, &b) {
			t.Fatalf("entry %d differs", seq)
		}
		at := selector{version: b.version}
		if c, err := got.get(b.key, at); b.op == opPut && (err != nil || valueOf(t, &c) != valueOf(t, &b)) {
			t.Fatalf("version %d of %q: %v", b.version, b.key, err)
		}
		keys[string(b.key)] = true
	}
	for key := range keys {
		a, _, err := got.history([]byte(key), noSeq, 1000)
		b, _, berr := want.history([]byte(key), noSeq, 1000)
		if err != nil || berr != nil || len(a) != len(b) || !bytes.Equal(a[len(a)-1].raw, b[len(b)-1].raw) {
			t.Fatalf("history of %q: %d versions, want %d, %v, %v", key, len(a), len(b), err, berr)
		}
	}
	a, _, err := got.list(nil, nil, 1000)
	b, _, berr := want.list(nil, nil, 1000)
	if err != nil || berr != nil || len(a) != len(b) {
		t.Fatalf("%d keys, want %d, %v, %v", len(a), len(b), err, berr)
	}
	for _, info := range want.manifest.Load().segments {
		sameSegment(t, got, want, info)
	}
}

// sameSegment compares the bytes and the headers of a sealed segment.
func sameSegment(t *testing.T, got, want *store, info segmentInfo) {
	t.Helper()
	f, err := got.segment(info)
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(f.src.section(0, f.size, false))
	if err != nil || !bytes.Equal(all, readFile(t, want.segmentPath(info))) {
		t.Fatalf("segment %s: %d bytes, %v", info.id(), len(all), err)
	}
	raws, err := got.headersFrom(info.first, info.end())
	if err != nil || len(raws) != int(info.count) {
		t.Fatalf("segment %s: %d headers, %v", info.id(), len(raws), err)
	}
}

func TestColdReads(t *testing.T) {
	t.Parallel()
	h, warm, s := coldHarness(t)
	sameReads(t, h.store, warm.store)
	h.reopen()
	if n := len(s.requests()); n == 0 {
		t.Error("nothing was asked of the bucket")
	}
	for _, info := range h.store.manifest.Load().segments {
		if !h.store.isCold(info.first) {
			t.Errorf("segment %s is not cold after a restart", info.id())
		}
	}
	s.requests()
	sameReads(t, h.store, warm.store)
	checkStore(t, h.store)
	h.useObjects(h.store.o.objects, 0) // without a cache
	for seq := range warm.store.size() / 4 {
		a, err := h.store.entryAt(4 * seq)
		b, berr := warm.store.entryAt(4 * seq)
		if err != nil || berr != nil || valueOf(t, &a) != valueOf(t, &b) {
			t.Fatalf("entry %d: %v, %v", 4*seq, err, berr)
		}
	}
}

// TestColdAtOnce: many readers of the same segments ask the bucket once for each member.
func TestColdAtOnce(t *testing.T) {
	t.Parallel()
	h, warm, s := coldHarness(t)
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for seq := range warm.store.size() {
				a, err := h.store.entryAt(seq)
				if err != nil {
					t.Errorf("entry %d: %v", seq, err)
					return
				}
				if _, err := io.Copy(io.Discard, io.NewSectionReader(a.value, 0, int64(a.header.size))); err != nil {
					t.Errorf("entry %d: %v", seq, err)
				}
			}
		})
	}
	readers.Wait()
	asked := make(map[string]bool)
	for _, r := range s.requests() {
		if asked[r.key+r.part] {
			t.Errorf("%s of %s was asked for twice", r.part, r.key)
		}
		asked[r.key+r.part] = true
	}
	members := 0
	for _, info := range h.store.manifest.Load().segments {
		_, n := gzipMembers(int64(info.size))
		members += n
	}
	if len(asked) > members {
		t.Errorf("%d requests for %d members", len(asked), members)
	}
}

// TestColdGet: what a small value of a large segment costs.
func TestColdGet(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	s, objects := testBucket(t)
	h.useObjects(objects, 64<<20)
	r := newRand(t)
	want := make(map[string]string)
	filler := randomText(r, 4<<20) // beyond what gzip looks back
	most := int64(64 << 20)
	if testing.Short() || raceDetector {
		most = 8 << 20
	}
	for i := 0; h.store.pending.bytes < most; {
		var all []*request
		for ; len(all) < 256; i++ {
			key, value := fmt.Sprint("key-", i), filler[i*3900%(4<<20-4096):][:3900]
			if i%97 == 0 {
				value = randomText(r, 100)
				want[key] = value
			}
			all = append(all, putRequest(key, value))
		}
		h.do(all...)
	}
	h.sealNow()
	h.archiveAll(s, 0) // nothing is packed: the worst there can be
	h.dropAll()
	s.requests()
	n, moved := 0, 0
	for key, value := range want {
		if n++; n > 40 {
			break
		}
		h.reopen() // forgets what it read
		s.requests()
		for again := range 2 {
			e, err := h.store.get([]byte(key), selector{})
			if err != nil || valueOf(t, &e) != value {
				t.Fatalf("get %s: %v", key, err)
			}
			seen, sent := s.requests(), 0
			for _, q := range seen {
				sent += q.sent
			}
			moved = max(moved, sent)
			if again == 0 && (len(seen) > 2 || sent > 512<<10) || again == 1 && len(seen) > 0 {
				t.Errorf("get %s, time %d: %d requests, %d bytes", key, again, len(seen), sent)
			}
		}
	}
	t.Logf("a cold GET of 100 bytes moves at most %d bytes", moved)
}

// brokenObjects is a bucket whose reads are altered.
type brokenObjects struct {
	objectStore
	mu    sync.Mutex // held while alter runs
	alter func(key string, from int64, b []byte) ([]byte, error)
}

func (o *brokenObjects) read(ctx context.Context, key string, from, size int64) ([]byte, error) {
	b, err := o.objectStore.read(ctx, key, from, size)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.alter(key, from, b)
}

// TestColdUnavailable: without the bucket the node starts, takes writes and
// serves what is here; what is there answers that it is not to be had, and is
// there again when the bucket is.
func TestColdUnavailable(t *testing.T) {
	t.Parallel()
	h, warm, _ := coldHarness(t)
	good := h.store.o.objects
	down := true
	broken := &brokenObjects{objectStore: good, alter: func(_ string, _ int64, b []byte) ([]byte, error) {
		if down {
			return nil, errors.New("no route to host")
		}
		return b, nil
	}}
	h.useObjects(broken, 64<<20)
	var lines bytes.Buffer // written under the reads below
	h.store.cold.logger = slog.New(slog.NewTextHandler(&lines, nil))
	for range 3 {
		_, err := h.store.entryAt(3)
		wantError(t, err, errArchiveUnavailable, "no route to host", "segments/0000")
		if errors.Is(err, errCorrupt) || errors.Is(err, errNotFound) || errors.Is(err, os.ErrNotExist) {
			t.Errorf("error is %v", err)
		}
	}
	h.put("while it is down", "value")
	h.sealNow()
	if e, err := h.store.get([]byte("while it is down"), selector{}); err != nil || valueOf(t, &e) != "value" {
		t.Errorf("local entry: %v", err)
	}
	broken.mu.Lock()
	down = false
	broken.mu.Unlock()
	eventually(t, "the bucket is not asked again", func() bool { _, err := h.store.entryAt(3); return err == nil })
	if s := lines.String(); strings.Count(s, "level=WARN") != 1 || strings.Count(s, "can be read again") != 1 {
		t.Errorf("the log tells more than the two changes, or less:\n%s", s)
	}
	warm.fsm.ApplyBatch(h.log)
	warm.settle()
	sameReads(t, h.store, warm.store)
}

// TestColdDamaged: whatever a bucket gives in place of what was put, nothing of
// it is served, and the error names the object.
func TestColdDamaged(t *testing.T) {
	t.Parallel()
	h, warm, _ := coldHarness(t)
	r := newRand(t)
	o := &brokenObjects{objectStore: h.store.o.objects}
	h.useObjects(o, 0)
	var last []byte
	reads := 0
	o.alter = func(_ string, _ int64, b []byte) ([]byte, error) {
		reads++
		defer func(good []byte) { last = good }(bytes.Clone(b))
		switch r.IntN(4) {
		case 0:
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		case 1:
			return b[:r.IntN(len(b))], nil
		case 2:
			n := r.IntN(len(b))
			clear(b[n:])
			b[n] ^= 0xff
		case 3:
			if bytes.Equal(last, b) || len(last) == 0 {
				b[0] ^= 1
			}
			copy(b, last)
		}
		return b, nil
	}
	altered := func() int {
		o.mu.Lock()
		defer o.mu.Unlock()
		return reads
	}
	which := newRand(t)
	for altered() < rounds(t, 500) {
		seq := which.Uint64N(warm.store.size() - 1)
		h.store.scrub.mu.Lock()
		clear(h.store.scrub.damages)
		h.store.scrub.mu.Unlock()
		e, err := h.store.entryAt(seq)
		if err == nil { // a flip in what gzip does not need, or a bit that came back
			b, _ := warm.store.entryAt(seq)
			if !bytes.Equal(e.raw, b.raw) {
				t.Fatalf("entry %d is served with other bytes", seq)
			}
			if v, err := io.ReadAll(io.NewSectionReader(e.value, 0, int64(e.header.size))); err == nil && string(v) != valueOf(t, &b) {
				t.Fatalf("entry %d is served with another value", seq)
			}
			continue
		}
		if !errors.Is(err, errArchiveCorrupt) && !errors.Is(err, errArchiveUnavailable) || errors.Is(err, errCorrupt) || !strings.Contains(err.Error(), "segments/0000") {
			t.Fatalf("entry %d: %v", seq, err)
		}
	}
	t.Logf("%d reads altered", altered())
}

// adopt installs a snapshot of from, leaving what is archived in the bucket.
func (h *harness) adopt(from *harness) error { return h.adoptWhile(from, func() {}) }

// adoptWhile is adopt; fetched is called before the checkpoint is installed.
func (h *harness) adoptWhile(from *harness, fetched func()) error {
	h.fsm.fetch = func(s *snapshot) ([]fetchedSegment, error) {
		var got []fetchedSegment
		for _, info := range s.segments {
			if info.first < h.store.durable.Load().at.size {
				continue
			}
			f, err := h.store.adoptCold(context.Background(), info)
			if info.object == "" {
				f, err = h.store.fetchSegment(info, copyFile(from.store.segmentPath(info)))
			}
			if err != nil {
				return nil, err
			}
			got = append(got, f)
		}
		fetched()
		return got, nil
	}
	return h.fsm.Restore(io.NopCloser(bytes.NewReader(from.snapshot())))
}

// TestAdoptCold: a node that has nothing takes over a ledger that is in the
// bucket, and moves little of it.
func TestAdoptCold(t *testing.T) {
	t.Parallel()
	h, warm, s := coldHarness(t)
	h.sealNow() // D has the objects now
	warm.fsm.ApplyBatch(h.log)
	warm.settle()
	newcomer := newHarness(t)
	newcomer.useObjects(h.store.o.objects, 64<<20)
	s.requests()
	if err := newcomer.adopt(h); err != nil {
		t.Fatal(err)
	}
	newcomer.log = h.log
	sent, total := 0, 0
	for _, q := range s.requests() {
		sent += q.sent
	}
	segments := newcomer.store.durable.Load().segments
	for i, info := range segments {
		total += int(info.size)
		if newcomer.store.isCold(info.first) != (i < len(segments)-1) {
			t.Errorf("segment %s: cold is %v", info.id(), newcomer.store.isCold(info.first))
		}
	}
	t.Logf("adopting %d bytes moved %d", total, sent)
	for range 2 {
		checkStore(t, newcomer.store)
		sameReads(t, newcomer.store, warm.store)
		newcomer.reopen()
	}
}

// TestAdoptColdUnavailable: a bucket that goes away while a checkpoint is installed
// changes nothing; when it is back the next try goes on.
func TestAdoptColdUnavailable(t *testing.T) {
	t.Parallel()
	h, warm, s := coldHarness(t)
	h.sealNow()
	warm.fsm.ApplyBatch(h.log)
	warm.settle()
	newcomer := newHarness(t)
	newcomer.useObjects(h.store.o.objects, 0) // nothing is read twice from memory
	newcomer.fsm.fail = func(err error) { t.Errorf("the node ends: %v", err) }
	install := func() error {
		return newcomer.adoptWhile(h, func() {
			newcomer.store.forgetAhead() // the tree is to be made in install
			s.fault(s3Get, "", "503", 1)
		})
	}
	wantError(t, install(), errArchiveUnavailable)
	if size := newcomer.store.durable.Load().at.size; size != 0 {
		t.Errorf("D is at %d entries", size)
	}
	s.heal()
	eventually(t, "the bucket is not asked again", func() bool { return newcomer.adopt(h) == nil })
	newcomer.log = h.log
	checkStore(t, newcomer.store)
	sameReads(t, newcomer.store, warm.store)
}

// goldenCold is the segment whose record is in testdata/cold-record-1.bin.
var goldenCold = segmentInfo{first: 7, count: 3, size: 600_000}

func TestColdRecordGolden(t *testing.T) {
	packed := golden(t, "packed-1.seg.gz")
	table, err := parseGzipTable(packed[len(packed)-int(gzipTableSize(600_000)):], 600_000)
	if err != nil {
		t.Fatal(err)
	}
	r := &coldRecord{bytes.Repeat([]byte("h"), segmentHeaderSize), bytes.Repeat([]byte("f"), segmentFooterSize), packedName(7, table.sum()), table}
	wantGolden(t, r.append(nil), "cold-record-1.bin")
	got, err := parseColdRecord(golden(t, "cold-record-1.bin"), goldenCold)
	if err != nil || !bytes.Equal(got.append(nil), r.append(nil)) || got.object != r.object {
		t.Errorf("parsed %+v, %v", got, err)
	}
}

// TestColdRecordCutAndFlipped: a record that is cut is no record; a flip in what the
// object's name commits to is found even without the checksum around it.
func TestColdRecordCutAndFlipped(t *testing.T) {
	b := golden(t, "cold-record-1.bin")
	eachCut(b, func(cut []byte) {
		_, err := parseColdRecord(cut, goldenCold)
		wantError(t, err, errCorrupt)
	})
	_, err := parseColdRecord(append(bytes.Clone(b), 0), goldenCold)
	wantError(t, err, errCorrupt)
	eachFlip(b, func(flipped []byte, at int) {
		if _, err := parseColdRecord(flipped, goldenCold); err == nil && at >= segmentHeaderSize+segmentFooterSize {
			t.Errorf("byte %d flipped: parsed", at)
		}
	})
	other := goldenCold
	other.first++
	_, err = parseColdRecord(b, other)
	wantError(t, err, errCorrupt, "its table gives the name")
}

func FuzzColdRecord(f *testing.F) {
	b := golden(f, "cold-record-1.bin")
	f.Add(b, uint64(600_000))
	f.Add(b[:200], uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, size uint64) {
		if size > 1<<40 {
			return
		}
		info := segmentInfo{first: 7, count: 3, size: size}
		if r, err := parseColdRecord(b, info); err == nil && !bytes.Equal(r.append(nil), b) {
			t.Errorf("%x is read and written as %x", b, r.append(nil))
		}
	})
}
