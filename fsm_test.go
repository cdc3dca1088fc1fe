package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// script makes a random log and says what the model answers to each entry.
type script struct {
	rnd   *rand.Rand
	h     *harness
	model *ledgerModel
	keys  []string
	used  []string // idempotency keys
}

func newScript(h *harness, rnd *rand.Rand) *script {
	s := &script{rnd: rnd, h: h, model: newLedgerModel()}
	for i := range 24 {
		s.keys = append(s.keys, fmt.Sprintf("%c/%d", 'a'+i%3, rnd.IntN(40)), strings.Repeat("é", rnd.IntN(20)+1), fmt.Sprintf("\x00%c", i))
	}
	s.keys = append(s.keys, strings.Repeat("\xff", maxKeySize), "\xff")
	slices.Sort(s.keys)
	s.keys = slices.Compact(s.keys)
	return s
}

// key returns one of a few keys, some of them more often.
func (s *script) key() string {
	if s.rnd.IntN(4) == 0 {
		return s.keys[s.rnd.IntN(3)]
	}
	return s.keys[s.rnd.IntN(len(s.keys))]
}

// operation returns a random operation; its condition is often right.
func (s *script) operation() operation {
	op := operation{kind: opPut, key: []byte(s.key()), ifSeq: noSeq}
	live := s.model.live(string(op.key))
	if s.rnd.IntN(5) == 0 {
		op.kind = opDelete
	} else {
		op.value = bytes.Repeat([]byte{byte(s.rnd.IntN(256))}, s.rnd.IntN(40))
		if s.rnd.IntN(40) == 0 {
			op.value = make([]byte, smallValue+s.rnd.IntN(1000))
		}
	}
	switch s.rnd.IntN(8) {
	case 0:
		op.ifAbsent = true
	case 1:
		op.ifSeq = min(live, noSeq-1)
	case 2:
		op.ifSeq = s.rnd.Uint64N(uint64(len(s.model.entries)) + 2)
	case 3:
		digest := hash(sha256.Sum256(op.value))
		digest[0] ^= byte(s.rnd.IntN(2))
		op.digest = &digest
	}
	if s.rnd.IntN(3) == 0 {
		op.contentType, op.author, op.region = "text/plain", "ada", "eu-1"
	}
	return op
}

// request returns a random request: one operation or an atomic batch, which
// may have a key twice; new, or under an idempotency key that was there.
func (s *script) request() *request {
	r := &request{ops: []operation{s.operation()}}
	if s.rnd.IntN(3) == 0 {
		r.atomic = true
		for range s.rnd.IntN(6) {
			r.ops = append(r.ops, s.operation())
		}
	}
	switch s.rnd.IntN(6) {
	case 0:
		r.idempotencyKey = fmt.Sprint("key-", s.rnd.Uint64())
		s.used = append(s.used, r.idempotencyKey)
	case 1:
		if len(s.used) > 0 {
			r.idempotencyKey = s.used[s.rnd.IntN(len(s.used))]
		}
	}
	return r
}

// pack returns a command and what the model answers; its time may go back.
func (s *script) pack() (command []byte, want []result) {
	s.h.clock += s.rnd.Int64N(4) - 1
	command = appendPackHeader(nil, s.h.clock)
	for range 1 + s.rnd.IntN(5) {
		r := s.request()
		command = appendRequest(command, r)
		want = append(want, s.model.apply(r, s.h.clock))
	}
	return command, want
}

// step commits something random and compares the answers.
func (s *script) step() {
	s.h.t.Helper()
	var commands [][]byte
	answers := make(map[int][]result) // by number of the command
	for range 1 + s.rnd.IntN(4) {
		command, want := s.pack()
		if s.rnd.IntN(4) == 0 {
			commands = append(commands, s.h.upload(command, 1+s.rnd.IntN(4))...)
		} else {
			commands = append(commands, command)
		}
		answers[len(commands)-1] = want
	}
	for i, response := range s.h.commit(commands...) {
		want, last := answers[i]
		if !last {
			if response != nil {
				s.h.t.Fatalf("a part is answered %v", response)
			}
			continue
		}
		got := s.h.results(response)
		if len(got) != len(want) {
			s.h.t.Fatalf("%d results, want %d", len(got), len(want))
		}
		for k := range got {
			s.model.wantResult(s.h.t, got[k], want[k])
		}
	}
}

// seal closes the pending segment, at a time the model sees.
func (s *script) seal() {
	s.h.t.Helper()
	s.h.seal()
	s.model.time = max(s.model.time, s.h.clock)
}

// check compares everything the store tells about some keys with the model.
func (s *script) check() {
	s.h.t.Helper()
	keys := []string{"none", s.keys[0], s.keys[len(s.keys)-1]}
	for range 6 {
		keys = append(keys, s.key())
	}
	s.model.check(s.h.t, s.h.store, s.rnd, keys)
}

// TestModel drives a store through packs, uploads, seals, restarts and merges
// at random and compares every answer with a model.
func TestModel(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	s := newScript(h, newRand(t))
	for range 140 {
		s.step()
		switch s.rnd.IntN(9) {
		case 0, 1:
			s.seal()
			s.check() // while the segment is on its way to the disk
		case 2:
			s.seal()
			h.waitSealed()
		case 3:
			h.confirm()
		case 4:
			h.newTerm()
		case 5:
			if s.rnd.IntN(3) == 0 {
				h.reopen()
			}
		}
		s.check()
	}
	s.seal()
	h.settle()
	if n := len(h.store.index.runs()); n >= len(h.store.durable.Load().segments) {
		t.Errorf("%d runs of %d segments: nothing was merged", n, len(h.store.durable.Load().segments))
	}
	for range 2 {
		for range 10 {
			s.check()
		}
		checkStore(t, h.store)
		h.reopen()
	}
	t.Logf("%d entries in %d segments", h.store.size(), len(h.store.durable.Load().segments))
}

// TestSameBytes applies one log to two stores, the second in other batches and
// with restarts: both have the same files and gave the same answers.
func TestSameBytes(t *testing.T) {
	t.Parallel()
	one, two := newHarness(t), newHarness(t)
	s := newScript(one, newRand(t))
	var answers []any
	take := func(h *harness, logs []*raft.Log) []any { return h.fsm.ApplyBatch(logs) }
	for range 100 {
		before := len(one.log)
		s.step()
		switch s.rnd.IntN(8) {
		case 0:
			s.seal()
		case 1:
			one.newTerm()
		case 2:
			one.index++
			one.log = append(one.log, &raft.Log{Index: one.index, Term: one.term, Type: raft.LogConfiguration, Data: []byte{byte(one.index)}})
			take(one, one.log[len(one.log)-1:])
		}
		for at := before; at < len(one.log); {
			n := 1 + s.rnd.IntN(len(one.log)-at)
			answers = append(answers, take(two, one.log[at:at+n])...)
			at += n
		}
		two.log = one.log
		if s.rnd.IntN(12) == 0 {
			two.reopen()
		}
	}
	one.sealNow()
	two.log, two.index = one.log, one.index
	take(two, one.log[len(one.log)-1:])
	one.settle()
	two.settle()
	sameFiles(t, two.dir, one.dir)
	a, b := one.store.durable.Load(), two.store.durable.Load()
	if !bytes.Equal(a.at.append(nil), b.at.append(nil)) || !slices.Equal(a.segments, b.segments) || !slices.Equal(one.store.index.runs(), two.store.index.runs()) {
		t.Errorf("D is %+v, want %+v", b.at, a.at)
	}
	if !bytes.Equal(one.snapshot(), two.snapshot()) {
		t.Error("snapshots differ")
	}

	// A third that gets all of it at once gives all the answers again.
	three := newHarness(t)
	again := three.fsm.ApplyBatch(one.log)
	if len(again) != len(answers)+1 {
		t.Fatalf("%d answers, want %d", len(again), len(answers)+1)
	}
	for i := range answers {
		a, aok := answers[i].([]result)
		b, bok := again[i].([]result)
		if aok != bok || !aok && again[i] != answers[i] || !slices.EqualFunc(a, b, equalResults) {
			t.Fatalf("answer %d is %+v, want %+v", i, again[i], answers[i])
		}
	}
	three.settle()
	sameFiles(t, three.dir, one.dir)
}

func equalResults(a, b result) bool {
	return a.outcome == b.outcome && a.failed == b.failed && a.current == b.current && a.first == b.first && a.count == b.count &&
		slices.EqualFunc(a.headers, b.headers, bytes.Equal)
}

// TestConditions goes through what a condition meets.
func TestConditions(t *testing.T) {
	h := newHarness(t)
	put := func(change func(*operation)) result {
		t.Helper()
		r := putRequest("k", "v")
		change(&r.ops[0])
		return h.do(r)[0]
	}
	want := func(what string, got result, outcome outcome, current uint64) {
		t.Helper()
		if got.outcome != outcome || got.current != current || (len(got.headers) == 1) != (outcome == outcomeApplied) {
			t.Errorf("%s: %+v, want outcome %d and current %d", what, got, outcome, int64(current))
		}
	}
	none := func(*operation) {}
	absent := func(o *operation) { o.ifAbsent = true }
	seq := func(n uint64) func(*operation) { return func(o *operation) { o.ifSeq = n } }
	remove := func(o *operation) { o.kind, o.value = opDelete, nil }
	both := func(a, b func(*operation)) func(*operation) { return func(o *operation) { a(o); b(o) } }
	wrong := hash(sha256.Sum256([]byte("other")))

	want("delete of nothing", put(remove), outcomeNotFound, noSeq)
	want("if-seq on nothing", put(seq(0)), outcomePrecondition, noSeq)
	want("if-absent on nothing", put(absent), outcomeApplied, noSeq)                              // entry 0
	want("if-absent on a version", put(absent), outcomePrecondition, 0)                           //
	want("wrong if-seq", put(seq(7)), outcomePrecondition, 0)                                     //
	want("wrong digest", put(func(o *operation) { o.digest = &wrong }), outcomeDigestMismatch, 0) //
	want("right if-seq", put(seq(0)), outcomeApplied, noSeq)                                      // entry 1
	want("old if-seq", put(seq(0)), outcomePrecondition, 1)                                       //
	want("delete with wrong if-seq", put(both(remove, seq(0))), outcomePrecondition, 1)           //
	want("delete with if-seq", put(both(remove, seq(1))), outcomeApplied, noSeq)                  // entry 2
	want("if-seq of a tombstone", put(seq(2)), outcomePrecondition, noSeq)                        //
	want("delete of a tombstone", put(remove), outcomeNotFound, noSeq)                            //
	want("if-absent on a tombstone", put(absent), outcomeApplied, noSeq)                          // entry 3
	want("no condition", put(none), outcomeApplied, noSeq)                                        // entry 4
	want("condition before digest", put(func(o *operation) { o.digest, o.ifAbsent = &wrong, true }), outcomePrecondition, 4)

	e, err := h.store.get([]byte("k"), selector{})
	if err != nil || e.version != 5 || e.prev != 3 || e.seq != 4 {
		t.Errorf("entry is %+v, %v", e.header, err)
	}
	h.sealNow() // the same from a run
	want("if-absent on a sealed version", put(absent), outcomePrecondition, 4)
	want("if-seq on a sealed version", put(seq(4)), outcomeApplied, noSeq)
}

// TestAtomic: all of a batch or nothing, and its operations see each other.
func TestAtomic(t *testing.T) {
	h := newHarness(t)
	op := func(kind opKind, key, value string) operation {
		return operation{kind: kind, key: []byte(key), value: []byte(value), ifSeq: noSeq}
	}
	batch := func(ops ...operation) result {
		t.Helper()
		return h.do(&request{atomic: true, ops: ops})[0]
	}
	created := op(opPut, "a", "1")
	created.ifAbsent = true
	second := op(opPut, "a", "2")
	second.ifSeq = 0 // the entry just before
	if r := batch(created, second, op(opDelete, "a", ""), created); r.outcome != outcomeApplied || len(r.headers) != 4 {
		t.Fatalf("four changes of a key: %+v", r)
	}
	for seq, want := range []uint64{noSeq, 0, 1, 2} {
		if e, err := h.store.entryAt(uint64(seq)); err != nil || e.prev != want || e.version != uint64(seq)+1 {
			t.Errorf("entry %d is %+v, %v", seq, e.header, err)
		}
	}

	root, keys := h.store.pending.tree.root(), len(h.store.pending.heads)
	for i, ops := range [][]operation{
		{op(opPut, "b", "1"), op(opPut, "a", "5"), created},
		{op(opDelete, "a", ""), op(opPut, "a", "5"), op(opDelete, "c", "")},
		{op(opPut, "b", "1"), op(opDelete, "b", ""), op(opDelete, "b", "")},
	} {
		r := batch(ops...)
		if r.outcome == outcomeApplied || r.failed != 2 || r.headers != nil {
			t.Errorf("batch %d: %+v", i, r)
		}
	}
	if h.store.size() != 4 || h.store.pending.tree.root() != root || h.store.mark() != 4 || len(h.store.pending.heads) != keys {
		t.Errorf("refused batches left %d entries, %d keys", h.store.mark(), len(h.store.pending.heads))
	}

	// In one pack: the refused one leaves what was staged before it.
	res := h.do(putRequest("a", "6"), &request{atomic: true, ops: []operation{op(opPut, "a", "7"), op(opPut, "d", "7"), op(opDelete, "c", "")}}, putRequest("a", "8"))
	if res[0].outcome != outcomeApplied || res[1].outcome != outcomeNotFound || res[2].outcome != outcomeApplied {
		t.Fatalf("results are %+v", res)
	}
	if a := mustHeader(t, res[2].headers[0]); a.seq != 5 || a.version != 6 || a.prev != 4 {
		t.Errorf("entry is %+v", a)
	}
	if _, err := h.store.get([]byte("d"), selector{}); !errors.Is(err, errNotFound) {
		t.Errorf("d is there: %v", err)
	}
}

// TestTimeNeverGoesBack gives commands whose leader's clock is behind.
func TestTimeNeverGoesBack(t *testing.T) {
	h := newHarness(t)
	at := func(time int64) header {
		t.Helper()
		b := appendRequest(appendPackHeader(nil, time), putRequest("k", ""))
		return mustHeader(t, h.results(h.commit(b)[0])[0].headers[0])
	}
	for _, step := range [][2]int64{{1000, 1000}, {900, 1000}, {-5, 1000}, {1001, 1001}, {0, 1001}} {
		if e := at(step[0]); e.time != step[1] {
			t.Errorf("at %d the entry has time %d, want %d", step[0], e.time, step[1])
		}
	}
	h.commit(appendSeal(nil, 500, 0)) // behind as well
	h.settle()
	if info := h.store.durable.Load().segments[0]; info.time != 1001 {
		t.Errorf("segment is sealed at %d", info.time)
	}
	h.reopen()
	if e := at(7); e.time != 1001 {
		t.Errorf("after a restart the entry has time %d", e.time)
	}
	h.commit(appendSeal(nil, 2000, 99)) // seals nothing, but time has passed
	if e := at(7); e.time != 2000 {
		t.Errorf("after a late seal the entry has time %d", e.time)
	}
	first, err := h.store.firstAfter(1000)
	if err != nil || first != 3 {
		t.Errorf("first entry after 1000 is %d, %v", first, err)
	}
}

// TestSeals: late, repeated and empty ones change nothing.
func TestSeals(t *testing.T) {
	h := newHarness(t)
	seal := func(first uint64) int {
		t.Helper()
		if r := h.commit(appendSeal(nil, h.clock, first))[0]; r != nil {
			t.Fatal(r)
		}
		return len(h.store.manifest.Load().segments)
	}
	if n := seal(0); n != 0 {
		t.Errorf("sealed an empty segment")
	}
	h.put("a", "1")
	h.put("b", "1")
	for _, first := range []uint64{1, 2, 7, noSeq} {
		if n := seal(first); n != 0 {
			t.Errorf("sealed from %d", first)
		}
	}
	if n := seal(0); n != 1 {
		t.Error("not sealed")
	}
	if n := seal(0); n != 1 {
		t.Error("sealed twice")
	}
	if n := seal(2); n != 1 {
		t.Error("sealed an empty segment behind another")
	}
	// In one batch with what it seals.
	h.commit(h.pack(putRequest("c", "1")), appendSeal(nil, h.clock, 2), h.pack(putRequest("d", "1")), appendSeal(nil, h.clock, 3), appendSeal(nil, h.clock, 3))
	if n := len(h.store.manifest.Load().segments); n != 3 || h.store.size() != 4 {
		t.Errorf("%d segments, %d entries", n, h.store.size())
	}
	h.settle()
	h.confirm()
	if m := h.store.currentManifest(); m.confirmed != 3 || len(m.segments) != 3 || m.version != 3 || m.segments[2].end() != 4 {
		t.Errorf("manifest is %+v", m)
	}
	checkStore(t, h.store)
}

// TestConfirmDiverged: a node whose segment differs from the leader's stops.
func TestConfirmDiverged(t *testing.T) {
	for name, change := range map[string]func(*segmentInfo){"root": func(i *segmentInfo) { i.root[0]++ }, "sum": func(i *segmentInfo) { i.sum[0]++ }} {
		h := newHarness(t)
		h.put("a", "1")
		h.sealNow()
		info, _ := h.store.unconfirmed()
		change(&info)
		response := h.commit(appendConfirm(nil, info, hash{}))[0]
		err, _ := response.(error)
		wantError(t, err, errDiverged, "applying log entry 3")
		if h.failed != err || h.fsm.appliedIndex.Load() != 2 {
			t.Errorf("%s: failed with %v at %d", name, h.failed, h.fsm.appliedIndex.Load())
		}
	}
	// Confirmed before the file is on disk: it is found when it is written.
	h := newHarness(t)
	hold := make(chan struct{})
	h.fault = func(step string) error {
		if step == "before write segment" {
			<-hold
		}
		return nil
	}
	h.reopen()
	h.put("a", "1")
	h.seal()
	info := h.store.manifest.Load().segments[0]
	info.size, info.sum = 1000, hash{1}
	if r := h.commit(appendConfirm(nil, info, hash{}))[0]; r != nil {
		t.Fatal(r)
	}
	close(hold)
	eventually(t, "the node goes on", func() bool { return h.fatal.Load() != nil })
	wantError(t, *h.fatal.Load(), errDiverged, "sealing segment "+info.id(), "this node's file is")
}

// TestIdempotency repeats requests at once, after a seal, after a restart that
// replays, after one at D, and after a snapshot was installed.
func TestIdempotency(t *testing.T) {
	h := newHarness(t)
	keyed := func(key string, r *request) *request { r.idempotencyKey = key; return r }
	batch := &request{atomic: true, ops: slices.Concat(putRequest("b", "1").ops, putRequest("c", "1").ops)}
	requests := []*request{keyed("put", putRequest("a", "1")), keyed("batch", batch), keyed("refused", deleteRequest("none"))}
	first := h.do(requests...)
	if first[0].outcome != outcomeApplied || first[1].outcome != outcomeApplied || first[2].outcome != outcomeNotFound {
		t.Fatalf("results are %+v", first)
	}
	repeat := func(what string, h *harness) {
		t.Helper()
		size := h.store.size()
		res := h.do(keyed("put", putRequest("other", "2")), keyed("batch", deleteRequest("a")), keyed("refused", putRequest("none", "")))
		if h.store.size() != size {
			t.Fatalf("%s: a repeat was applied", what)
		}
		for i, want := range []struct{ first, count uint64 }{{0, 1}, {1, 2}, {3, 0}} {
			r := res[i]
			if r.outcome != first[i].outcome || r.first != want.first || r.count != want.count || r.headers != nil {
				t.Errorf("%s: repeat %d is answered %+v", what, i, r)
			}
		}
	}
	repeat("at once", h)
	h.reopen()
	repeat("after a replay", h)
	h.seal()
	repeat("after a seal", h)
	h.settle()
	repeat("on disk", h)
	h.reopen()
	repeat("after a restart at D", h)
	h.put("x", "1")
	h.sealNow()
	h.log = nil // as if it were shortened
	h.reopen()
	repeat("from ledger.db alone", h)
	other := newHarness(t)
	if err := other.restore(h.snapshot(), h); err != nil {
		t.Fatal(err)
	}
	other.index = h.fsm.index
	repeat("after a snapshot", other)
}

// TestIdempotencyForgets sends more requests than the window holds, with seals
// and a restart between: two nodes forget the same.
func TestIdempotencyForgets(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	numbered := func(i int) *request {
		r := deleteRequest("none") // remembered, without an entry
		r.idempotencyKey = fmt.Sprint("key-", i)
		return r
	}
	const total, perPack = 112_000, 4000
	for i := 0; i < total; i += perPack {
		var requests []*request
		for k := range perPack {
			requests = append(requests, numbered(i+k))
		}
		h.do(requests...)
		if i%56_000 == 0 {
			h.put(fmt.Sprint("entry-", i), "")
			h.sealNow()
		}
		if i == 80_000 {
			h.reopen()
		}
	}
	known := func(h *harness, i int) bool { _, ok := h.fsm.window.find(fmt.Sprint("key-", i)); return ok }
	oldest := int(h.fsm.window.oldest) * windowChunk
	if oldest == 0 || oldest > total-windowSize || oldest <= total-windowSize-windowChunk {
		t.Errorf("the oldest request remembered is %d of %d", oldest, total)
	}
	h.put("last", "")
	h.sealNow()
	h.reopen()
	other := newHarness(t)
	if err := other.restore(h.snapshot(), h); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*harness{h, other} {
		if !known(n, oldest) || known(n, oldest-1) || !known(n, total-1) || !known(n, total-windowSize) {
			t.Error("a node remembers something else")
		}
	}
	state, err := h.store.checkpoint()
	if err != nil || state.window[0].number != h.fsm.window.oldest {
		t.Errorf("ledger.db holds chunks from %d, want %d, %v", state.window[0].number, h.fsm.window.oldest, err)
	}
}

// TestUploads takes commands in parts, whole and not.
func TestUploads(t *testing.T) {
	h := newHarness(t)
	long := strings.Repeat("v", 50_000)
	size := uint64(0)
	whole := func(what string, response any) {
		t.Helper()
		res, ok := response.([]result)
		if size++; !ok || res[0].outcome != outcomeApplied || h.store.size() != size {
			t.Fatalf("%s: %v, %d entries", what, response, h.store.size())
		}
	}
	lost := func(what string, responses ...any) {
		t.Helper()
		last := responses[len(responses)-1]
		if err, ok := last.(error); !ok || !errors.Is(err, errUploadLost) || h.store.size() != size || h.failed != nil {
			t.Fatalf("%s: %v, %d entries, failed %v", what, last, h.store.size(), h.failed)
		}
	}
	parts := func(n int) [][]byte { return h.upload(h.pack(putRequest("k", long)), n) }

	for _, n := range []int{1, 2, 7} {
		responses := h.commit(parts(n)...)
		whole(fmt.Sprint(n, " parts in a batch"), responses[n-1])
		for _, p := range parts(n) {
			responses = h.commit(p)
		}
		whole(fmt.Sprint(n, " parts one by one"), responses[0])
	}
	p := parts(3)
	h.commit(p[:2]...)
	whole("a write between", h.commit(h.pack(putRequest("between", "")))[0])
	whole("around a write", h.commit(p[2])[0])

	p = parts(3)
	h.commit(p[:2]...)
	h.seal()
	lost("a seal between", h.commit(p[2])...)
	p = parts(3)
	h.commit(p[:2]...)
	h.commit(appendSeal(nil, h.clock, 0)) // late: seals nothing
	whole("a late seal between", h.commit(p[2])[0])
	p = parts(3)
	h.commit(p[:2]...)
	h.newTerm()
	lost("a new term between", h.commit(p[2])...)
	p = parts(3)
	h.commit(p[:2]...)
	q := parts(2)
	h.commit(q[0])
	lost("a new upload between", h.commit(p[2])...)
	lost("and it is dropped too", h.commit(q[1])...)
	p = parts(3)
	h.commit(p[0], p[2])
	lost("a part missing", h.commit(p[1], p[2])...)
	p = parts(3)
	lost("out of order", h.commit(p[1], p[0], p[2])...)
	p = parts(3)
	h.commit(p[0], p[1])
	lost("a part twice", h.commit(p[1], p[2])...)
	p = parts(3)
	h.commit(p[0], p[1])
	whole("from the start again", h.commit(p...)[2])
	p = parts(3)
	lost("only the last", h.commit(p[2])...)

	// Open at a restart: the log has the parts still.
	p = parts(3)
	h.commit(p[:2]...)
	h.reopen()
	whole("a restart between", h.commit(p[2])[0])
}

// TestUploadRefused: what no leader sends stops the node.
func TestUploadRefused(t *testing.T) {
	h := newHarness(t)
	part := func(offset, total uint32, n int) []byte {
		return append(appendPartHeader(nil, 1, offset, total), make([]byte, n)...)
	}
	for name, p := range map[string][]byte{
		"more than the limit": part(0, testUploadLimit+1, 10),
		"no bytes":            part(0, 100, 0),
		"past the end":        part(90, 100, 11),
		"offset overflows":    part(1<<32-1, 1<<32-1, 5),
		"offset at the end":   part(100, 100, 1),
	} {
		h.fresh()
		if !h.applyAny(t, p) {
			t.Errorf("%s: applied", name)
		}
		wantError(t, h.failed, errCorrupt, "applying log entry 1", "part of")
	}
	h.fresh()
	if !h.applyAny(t, h.upload(appendSeal(nil, 1, 0), 1)...) || !errors.Is(h.failed, errFormat) {
		t.Errorf("upload of a seal: %v", h.failed)
	}
	h.fresh()
	if h.applyAny(t, part(0, testUploadLimit, 10)) {
		t.Errorf("upload of the largest size: %v", h.failed)
	}
}

// TestUploadOpenAtSnapshot: what D covers has no half of an upload.
func TestUploadOpenAtSnapshot(t *testing.T) {
	h, other := newHarness(t), newHarness(t)
	h.put("a", "1")
	p := h.upload(h.pack(putRequest("k", "v")), 2)
	h.commit(p[0])
	h.sealNow()
	if err := other.restore(h.snapshot(), h); err != nil {
		t.Fatal(err)
	}
	other.index, other.term = h.index, h.term
	for _, n := range []*harness{h, other} {
		if err, ok := n.commit(p[1])[0].(error); !ok || !errors.Is(err, errUploadLost) || n.store.size() != 1 {
			t.Errorf("the last part is answered %v, %d entries", err, n.store.size())
		}
	}
}

// TestRestart at D with the log behind it, again and again.
func TestRestart(t *testing.T) {
	h := newHarness(t)
	index := uint64(0)
	for i := range 6 {
		h.put("k", fmt.Sprint(i))
		if i%2 == 0 {
			h.sealNow()
			index = h.fsm.index
		}
		h.commit(appendSeal(nil, h.clock, 0)) // nothing
		h.reopen()
		if at := h.store.durable.Load().at; at.index != index || h.fsm.index != h.index || h.fsm.appliedIndex.Load() != h.index {
			t.Fatalf("D is at %d, applied %d; want %d, %d", at.index, h.fsm.index, index, h.index)
		}
		e, err := h.store.get([]byte("k"), selector{})
		if err != nil || e.version != uint64(i)+1 || valueOf(t, &e) != fmt.Sprint(i) {
			t.Errorf("entry is %+v, %v", e.header, err)
		}
	}
	if r := h.fsm.Apply(&raft.Log{Index: 1, Term: 1, Data: goldenPack()}); r != nil {
		t.Errorf("an entry from before is answered %v", r)
	}
	if _, err := h.fsm.Snapshot(); !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		t.Errorf("snapshot: %v", err)
	}
}
