package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeLedger is a node and its store in memory. It is strict: it fails the
// test when the server hands it something the real one must never see.
type fakeLedger struct {
	t       testing.TB
	dir     string
	applied *sync.Cond // and the lock of all below

	entries  []entry
	byKey    map[string][]uint64
	seen     map[string]result // by idempotency key
	now      int64
	fail     error // of submit and confirmRead
	state    nodeStatus
	list_    []memberInfo
	man      manifest
	budget   int64 // of reserve
	used     int64
	most     int64 // highest used
	hold     chan struct{}
	change   memberChange // the last one
	author   string
	asyncs   chan func() // submitAsync runs here when not nil
	segments map[string]segmentInfo
	archived archiveResult // of archive, with archiveErr
	cold     map[uint64]bool

	prefetched string // what prefetch was asked for

	archiveErr error

	keys     []noteSigner // of the ledger; the last one signs
	headFail error        // of signedHead
	headHold bool         // signedHead waits for its deadline
	signed   int          // heads
	newest   signedHead
	lag      uint64 // newest entries that this node has not applied, as a follower
}

func newFakeLedger(t testing.TB) *fakeLedger {
	f := &fakeLedger{t: t, dir: t.TempDir(), applied: sync.NewCond(&sync.Mutex{}), byKey: map[string][]uint64{}, seen: map[string]result{},
		now: 1_700_000_000_123, budget: 64 << 20, segments: map[string]segmentInfo{}}
	leader := memberInfo{id: 1, http: "http://127.0.0.1:8001", raft: "127.0.0.1:9001", role: "leader", state: "alive", version: "1"}
	f.state = nodeStatus{clusterID: "000102030405060708090a0b0c0d0e0f", name: "scribe", nodeID: 1, role: "leader", term: 3, leader: &leader, ready: true}
	f.keys = []noteSigner{testSigner(t, "scribe/0001", 1)}
	f.list_ = []memberInfo{leader, {id: 2, http: "http://127.0.0.1:8002", raft: "127.0.0.1:9002", role: "follower", state: "suspect"}}
	return f
}

func (f *fakeLedger) check(r *request) {
	if len(r.ops) == 0 || !r.atomic && len(r.ops) != 1 || len(r.idempotencyKey) > 64 {
		f.t.Errorf("request with %d operations, atomic %v, idempotency key %q", len(r.ops), r.atomic, r.idempotencyKey)
	}
	for _, o := range r.ops {
		h := header{op: o.kind, seq: 1, version: 1, prev: noSeq, key: o.key, contentType: o.contentType, sum: sha256.Sum256(o.value), size: uint64(len(o.value))}
		if err := h.validate(); err != nil {
			f.t.Errorf("operation: %v", err)
		}
		if o.ifAbsent && o.ifSeq != noSeq || o.kind == opDelete && (len(o.value) > 0 || o.ifAbsent) {
			f.t.Errorf("operation %+v contradicts itself", o)
		}
	}
}

func (f *fakeLedger) live(key []byte) uint64 {
	seqs := f.byKey[string(key)]
	if len(seqs) == 0 || f.entries[seqs[len(seqs)-1]].op == opDelete {
		return noSeq
	}
	return seqs[len(seqs)-1]
}

func (f *fakeLedger) submit(ctx context.Context, r *request) (result, error) {
	f.check(r)
	if _, ok := ctx.Deadline(); !ok {
		f.t.Error("submit without a deadline")
	}
	if f.hold != nil {
		select {
		case <-f.hold:
		case <-ctx.Done():
			return result{}, errUnknownOutcome
		}
	}
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	return f.apply(r)
}

// apply decides r as the FSM does; f is locked.
func (f *fakeLedger) apply(r *request) (result, error) {
	if f.fail != nil {
		return result{}, f.fail
	}
	if r.idempotencyKey != "" {
		if res, ok := f.seen[r.idempotencyKey]; ok {
			return res, nil
		}
	}
	saved := len(f.entries)
	res := result{outcome: outcomeApplied}
	for i := range r.ops {
		if out := f.applyOne(&r.ops[i], &res); out != outcomeApplied {
			for len(f.entries) > saved {
				e := f.entries[len(f.entries)-1]
				f.byKey[string(e.key)] = f.byKey[string(e.key)][:len(f.byKey[string(e.key)])-1]
				f.entries = f.entries[:len(f.entries)-1]
			}
			res.outcome, res.failed, res.headers = out, i, nil
			break
		}
	}
	if r.idempotencyKey != "" {
		f.seen[r.idempotencyKey] = res
	}
	f.applied.Broadcast()
	return res, nil
}

func (f *fakeLedger) applyOne(o *operation, res *result) outcome {
	live := f.live(o.key)
	sum := hash(sha256.Sum256(o.value))
	switch {
	case o.ifAbsent && live != noSeq, o.ifSeq != noSeq && live != o.ifSeq:
		res.current = live
		return outcomePrecondition
	case o.kind == opDelete && live == noSeq:
		return outcomeNotFound
	case o.digest != nil && *o.digest != sum:
		return outcomeDigestMismatch
	}
	seqs := f.byKey[string(o.key)]
	h := header{op: o.kind, seq: uint64(len(f.entries)), version: uint64(len(seqs)) + 1, prev: noSeq, time: f.now, size: uint64(len(o.value)),
		sum: sum, key: bytes.Clone(o.key), contentType: o.contentType, author: f.author}
	f.now += 1000
	if len(seqs) > 0 {
		h.prev = seqs[len(seqs)-1]
	}
	raw := appendHeader(nil, &h)
	f.entries = append(f.entries, entry{header: h, raw: raw, leaf: leafHash(raw), value: bytes.NewReader(bytes.Clone(o.value))})
	f.byKey[string(o.key)] = append(seqs, h.seq)
	res.headers = append(res.headers, raw)
	return outcomeApplied
}

func (f *fakeLedger) submitAsync(r *request, done func(result, error)) error {
	f.check(r)
	run := func() {
		f.applied.L.Lock()
		res, err := f.apply(r)
		f.applied.L.Unlock()
		done(res, err)
	}
	if f.asyncs == nil {
		go run()
		return nil
	}
	f.asyncs <- run
	return nil
}

func (f *fakeLedger) confirmRead(ctx context.Context) error {
	if f.hold != nil {
		select {
		case <-f.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return f.fail
}

func (f *fakeLedger) waitCommitted(ctx context.Context, size uint64) error {
	return f.waitSize(ctx, size)
}

func (f *fakeLedger) reserve(ctx context.Context, size int64) (func(), error) {
	stop := context.AfterFunc(ctx, func() {
		f.applied.L.Lock()
		defer f.applied.L.Unlock()
		f.applied.Broadcast()
	})
	defer stop()
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	for f.used+size > f.budget {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		f.applied.Wait()
	}
	f.used += size
	f.most = max(f.most, f.used)
	return func() {
		f.applied.L.Lock()
		defer f.applied.L.Unlock()
		if f.used -= size; f.used < 0 {
			f.t.Error("more was released than reserved")
		}
		f.applied.Broadcast()
	}, nil
}

func (f *fakeLedger) status() nodeStatus {
	st := f.state
	st.size, st.manifest = f.size(), &f.man
	return st
}

func (f *fakeLedger) lastContact() int64 { return f.state.contact }

func (f *fakeLedger) mayServe() error { return nil }

func (f *fakeLedger) members() []memberInfo { return f.list_ }

func (f *fakeLedger) isCold(first uint64) bool { return f.cold[first] }

func (f *fakeLedger) prefetch(_ context.Context, from, to uint64, pin *bool) (prefetchResult, error) {
	f.prefetched = fmt.Sprintf("%d-%d pin %s", from, to, map[bool]string{true: "given"}[pin != nil])
	return prefetchResult{2, 1, 17, 0}, f.archiveErr
}

func (f *fakeLedger) objectKey(info segmentInfo) string { return "prefix/segments/" + info.object }

func (f *fakeLedger) archive(context.Context) (archiveResult, error) {
	return f.archived, f.archiveErr
}

func (f *fakeLedger) seal(context.Context) error {
	size := f.size()
	covered := uint64(0)
	if n := len(f.man.segments); n > 0 {
		covered = f.man.segments[n-1].first + f.man.segments[n-1].count
	}
	if size > covered {
		f.man.segments = append(f.man.segments, segmentInfo{first: covered, count: size - covered, size: 7, time: f.now})
		f.man.version++
	}
	return f.fail
}

func (f *fakeLedger) transfer(_ context.Context, to uint64) error {
	f.state.leader = &memberInfo{id: to}
	return f.fail
}

func (f *fakeLedger) changeMember(_ context.Context, c *memberChange) error {
	f.change = *c
	return f.fail
}

func (f *fakeLedger) get(key []byte, sel selector) (entry, error) {
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	seqs := f.byKey[string(key)]
	for i := len(seqs) - 1; i >= 0; i-- {
		e := f.entries[seqs[i]]
		switch {
		case sel.version > 0 && e.version != sel.version:
		case sel.seq != nil && e.seq != *sel.seq:
		case sel.atSeq != nil && e.seq > *sel.atSeq:
		case sel.atTime != nil && e.time > *sel.atTime:
		case e.op == opDelete:
			return e, errDeleted
		default:
			return e, nil
		}
	}
	return entry{}, errNotFound
}

func (f *fakeLedger) entryAt(seq uint64) (entry, error) {
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	if seq >= uint64(len(f.entries)) {
		return entry{}, errNotFound
	}
	return f.entries[seq], nil
}

func (f *fakeLedger) history(key []byte, before uint64, limit int) ([]entry, *uint64, error) {
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	var out []entry
	seqs := f.byKey[string(key)]
	for i := len(seqs) - 1; i >= 0; i-- {
		if seqs[i] >= before {
			continue
		}
		if len(out) == limit {
			return out, &out[limit-1].seq, nil
		}
		out = append(out, f.entries[seqs[i]])
	}
	return out, nil, nil
}

func (f *fakeLedger) list(prefix, after []byte, limit int) ([]entry, bool, error) {
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	var keys []string
	for k := range f.byKey {
		if strings.HasPrefix(k, string(prefix)) && (after == nil || k > string(after)) && f.live([]byte(k)) != noSeq {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	more := len(keys) > limit
	var out []entry
	for _, k := range keys[:min(limit, len(keys))] {
		out = append(out, f.entries[f.live([]byte(k))])
	}
	return out, more, nil
}

func (f *fakeLedger) headerAt(seq uint64) (entry, error) {
	e, err := f.entryAt(seq)
	e.value = nil
	return e, err
}

func (f *fakeLedger) size() uint64 {
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	return uint64(len(f.entries)) - f.lag
}

func (f *fakeLedger) waitSize(ctx context.Context, n uint64) error {
	stop := context.AfterFunc(ctx, func() {
		f.applied.L.Lock() // or the one who waits misses it
		defer f.applied.L.Unlock()
		f.applied.Broadcast()
	})
	defer stop()
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	for uint64(len(f.entries))-f.lag < n {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.applied.Wait()
	}
	return nil
}

func (f *fakeLedger) sealedFile(id string) (io.ReadSeekCloser, segmentInfo, error) {
	info, ok := f.segments[id]
	if !ok {
		return nil, info, fmt.Errorf("segment %s: %w", id, fs.ErrNotExist)
	}
	file, err := os.Open(filepath.Join(f.dir, id))
	return file, info, err
}

func (f *fakeLedger) currentManifest() *manifest { return &f.man }

func (f *fakeLedger) pendingInfo() (first, count, size uint64) { return 0, f.size(), 17 }

// testSigner returns the signer that a seed of equal bytes makes.
func testSigner(t testing.TB, name string, seed byte) noteSigner {
	t.Helper()
	k, err := newNoteSigner(name, sigEd25519, bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// witnessedHead has the cosignature of one witness, and none over nothing.
func (f *fakeLedger) witnessedHead(ctx context.Context, least uint64) (signedHead, error) {
	if f.size() == 0 || least > 1 {
		return signedHead{}, errNotWitnessed
	}
	head, err := f.signedHead(ctx, f.size(), false)
	head.note += "— w AAAAAAA=\n"
	return head, err
}

func (f *fakeLedger) signedManifest(ctx context.Context) ([]byte, error) {
	if _, ok := ctx.Deadline(); !ok {
		f.t.Error("signedManifest without a deadline")
	}
	return []byte("a manifest\n"), f.headFail
}

func (f *fakeLedger) signedHead(ctx context.Context, minSize uint64, cosigned bool) (signedHead, error) {
	if _, ok := ctx.Deadline(); !ok {
		f.t.Error("signedHead without a deadline")
	}
	if f.headHold {
		<-ctx.Done()
		return signedHead{}, ctx.Err()
	}
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	size := uint64(len(f.entries)) - f.lag
	if minSize > size {
		f.t.Errorf("a head of %d entries is wanted, this node has %d", minSize, size)
	}
	if f.headFail != nil {
		return signedHead{}, f.headFail
	}
	if f.newest.note != "" && f.newest.size >= minSize {
		return f.newest, nil
	}
	f.signed++
	key := f.keys[len(f.keys)-1]
	h := treeHead{origin: key.name, size: size, root: rootOf(f.leaves(0, size))}
	f.newest = signedHead{treeHead: h, note: note{h.body(), []noteSignature{key.sign(h.body(), 0)}}.String()}
	return f.newest, nil
}

func (f *fakeLedger) ledgerVKeys() (string, []string, error) {
	if f.headFail != nil {
		return "", nil, f.headFail
	}
	var former []string
	for _, k := range f.keys[1:] {
		former = append(former, "hand-over to "+k.String())
	}
	return f.keys[len(f.keys)-1].String(), former, nil
}

func (f *fakeLedger) nodeVKeys() map[uint64]string { return map[uint64]string{1: "one", 2: "two"} }

func (f *fakeLedger) rotateLedgerKey(context.Context) error {
	if f.fail == nil {
		f.keys = append(f.keys, testSigner(f.t, f.keys[0].name, byte(len(f.keys)+1)))
	}
	return f.fail
}

// leaves returns the leaf hashes of entries from lo to hi; f is locked.
func (f *fakeLedger) leaves(lo, hi uint64) []hash {
	var hashes []hash
	for _, e := range f.entries[lo:hi] {
		hashes = append(hashes, e.leaf)
	}
	return hashes
}

// node is the nodeReader of the entries; f is locked.
func (f *fakeLedger) node(level int, index uint64) (hash, error) {
	return rootOf(f.leaves(index<<level, (index+1)<<level)), nil
}

func (f *fakeLedger) covers(size uint64) error {
	if size > uint64(len(f.entries))-f.lag {
		return fmt.Errorf("tree of %d entries: %w", size, errBeyond)
	}
	return nil
}

func (f *fakeLedger) root(size uint64) (hash, error) {
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	if err := f.covers(size); err != nil {
		return hash{}, err
	}
	return rootOf(f.leaves(0, size)), nil
}

func (f *fakeLedger) inclusion(seq, size uint64) ([]hash, error) {
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	if err := f.covers(size); err != nil {
		return nil, err
	}
	return inclusionProof(seq, size, f.node)
}

func (f *fakeLedger) consistency(from, to uint64) ([]hash, error) {
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	if err := f.covers(to); err != nil {
		return nil, err
	}
	return consistencyProof(from, to, f.node)
}

func (f *fakeLedger) tile(id tileID) ([]byte, error) {
	f.applied.L.Lock()
	defer f.applied.L.Unlock()
	first := id.index * 256
	if id.level > 0 {
		return nil, errBeyond
	}
	if err := f.covers(first + uint64(id.width)); err != nil {
		return nil, err
	}
	var b []byte
	for _, e := range f.entries[first : first+uint64(id.width)] {
		if id.level == entryTile {
			b = binary.BigEndian.AppendUint16(b, uint16(len(e.raw)))
			b = append(b, e.raw...)
		} else {
			b = append(b, e.leaf[:]...)
		}
	}
	return b, nil
}

// testServer is a server on a port of its own.
type testServer struct {
	*server
	t    testing.TB
	f    *fakeLedger
	addr string
}

// newTestServer starts a server; change may edit its options first.
func newTestServer(t testing.TB, change func(*serverOptions, *fakeLedger)) *testServer {
	t.Helper()
	f := newFakeLedger(t)
	o := serverOptions{maxValueSize: 1 << 20, readTimeout: 5 * time.Second, writeTimeout: 5 * time.Second, allowDelete: true,
		consistency: "linearizable", version: "test", metrics: newMetrics()}
	o.logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	if change != nil {
		change(&o, f)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServerFor(f, f, o)
	done := make(chan error, 1)
	go func() { done <- s.serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if n := s.small.Load(); n != 0 {
			t.Errorf("%d bytes of small bodies were not given back", n)
		}
		if f.used != 0 {
			t.Errorf("%d bytes were not released", f.used)
		}
	})
	return &testServer{server: s, t: t, f: f, addr: ln.Addr().String()}
}

// httpReply is a reply as it came over the wire.
type httpReply struct {
	status int
	http.Header
	body   string
	closed bool // the server closes the connection
}

// raw sends bytes on a connection of their own and returns the first reply.
func (s *testServer) raw(text string) httpReply {
	s.t.Helper()
	conn := s.dial()
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		s.t.Fatalf("%.60q: %v", text, err)
	}
	method, _, _ := strings.Cut(text, " ")
	return s.readAnswer(bufio.NewReader(conn), method)
}

func (s *testServer) dial() net.Conn {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(waitLimit))
	return conn
}

func (s *testServer) readAnswer(r *bufio.Reader, method string) httpReply {
	s.t.Helper()
	res, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		s.t.Fatalf("no reply: %v", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatalf("reply cut off after %d bytes: %v", len(body), err)
	}
	if id := res.Header.Get("X-Request-Id"); !saneID(id) {
		s.t.Errorf("reply %d has X-Request-Id %q", res.StatusCode, id)
	}
	return httpReply{res.StatusCode, res.Header, string(body), res.Close}
}

// do sends one request; headers are "Name: value".
func (s *testServer) do(method, target, body string, headers ...string) httpReply {
	s.t.Helper()
	text := method + " " + target + " HTTP/1.1\r\nHost: x\r\n"
	for _, h := range headers {
		text += h + "\r\n"
	}
	if body != "" || method == "PUT" || method == "POST" {
		text += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	return s.raw(text + "\r\n" + body)
}
