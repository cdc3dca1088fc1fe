package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// ledgerModel is what the FSM must do, written as plainly as can be.
type ledgerModel struct {
	entries []modelEntry
	byKey   map[string][]int // seqs, oldest first
	answers map[string]result
	time    int64
}

// modelEntry is one entry of the model; its header has no size and sum.
type modelEntry struct {
	header
	value string
}

func newLedgerModel() *ledgerModel {
	return &ledgerModel{byKey: make(map[string][]int), answers: make(map[string]result)}
}

// live returns the seq of the key's live version, or noSeq.
func (m *ledgerModel) live(key string) uint64 {
	seqs := m.byKey[key]
	if len(seqs) == 0 || m.entries[seqs[len(seqs)-1]].op == opDelete {
		return noSeq
	}
	return uint64(seqs[len(seqs)-1])
}

// apply does one request at the given time. The result's first and count say
// which entries the request appended, when it was first seen.
func (m *ledgerModel) apply(r *request, time int64) result {
	m.time = max(m.time, time)
	if res, ok := m.answers[r.idempotencyKey]; ok && r.idempotencyKey != "" {
		return res
	}
	size := len(m.entries)
	res := result{outcome: outcomeApplied, current: noSeq, first: uint64(size), count: uint64(len(r.ops))}
	for i := range r.ops {
		if failed := m.refuses(&r.ops[i]); failed != 0 {
			res = result{outcome: failed, failed: i, current: m.live(string(r.ops[i].key)), first: uint64(size)}
			m.cut(size)
			break
		}
		m.add(&r.ops[i])
	}
	if r.idempotencyKey != "" {
		m.answers[r.idempotencyKey] = res
	}
	return res
}

// refuses tells why op cannot be applied, or 0.
func (m *ledgerModel) refuses(op *operation) outcome {
	live := m.live(string(op.key))
	switch {
	case op.ifAbsent && live != noSeq, op.ifSeq != noSeq && op.ifSeq != live:
		return outcomePrecondition
	case op.kind == opDelete && live == noSeq:
		return outcomeNotFound
	case op.digest != nil && sha256.Sum256(op.value) != *op.digest:
		return outcomeDigestMismatch
	}
	return 0
}

// add appends the entry of op.
func (m *ledgerModel) add(op *operation) {
	key := string(op.key)
	seqs := m.byKey[key]
	h := header{op: op.kind, seq: uint64(len(m.entries)), version: uint64(len(seqs)) + 1, prev: noSeq, time: m.time,
		key: op.key, contentType: op.contentType, author: op.author, region: op.region}
	if len(seqs) > 0 {
		h.prev = uint64(seqs[len(seqs)-1])
	}
	m.byKey[key] = append(seqs, len(m.entries))
	m.entries = append(m.entries, modelEntry{h, string(op.value)})
}

// cut removes all entries from size on.
func (m *ledgerModel) cut(size int) {
	for i := len(m.entries) - 1; i >= size; i-- {
		key := string(m.entries[i].key)
		m.byKey[key] = m.byKey[key][:len(m.byKey[key])-1]
	}
	m.entries = m.entries[:size]
}

// wantResult compares the FSM's answer with the model's.
func (m *ledgerModel) wantResult(t testing.TB, got, want result) {
	t.Helper()
	if got.outcome != want.outcome || got.failed != want.failed || got.current != want.current {
		t.Fatalf("result is %+v, the model's %+v", got, want)
	}
	if got.outcome == outcomeApplied && got.headers == nil { // a repeat
		if got.first != want.first || got.count != want.count {
			t.Fatalf("repeat names %d entries from %d, the model %d from %d", got.count, got.first, want.count, want.first)
		}
		return
	}
	if uint64(len(got.headers)) != want.count {
		t.Fatalf("%d headers, want %d", len(got.headers), want.count)
	}
	for i, raw := range got.headers {
		m.wantHeader(t, mustHeader(t, raw), want.first+uint64(i))
	}
}

// wantHeader compares a header with that of the model's entry seq.
func (m *ledgerModel) wantHeader(t testing.TB, got header, seq uint64) {
	t.Helper()
	e := &m.entries[seq]
	want := e.header
	want.size, want.sum = uint64(len(e.value)), sha256.Sum256([]byte(e.value))
	if g, w := appendHeader(nil, &got), appendHeader(nil, &want); !bytes.Equal(g, w) {
		t.Fatalf("entry is %+v, want %+v", got, want)
	}
}

// check asks the store everything there is to ask about some keys.
func (m *ledgerModel) check(t testing.TB, s *store, rnd *rand.Rand, keys []string) {
	t.Helper()
	if s.size() != uint64(len(m.entries)) {
		t.Fatalf("size is %d, want %d", s.size(), len(m.entries))
	}
	for _, key := range keys {
		m.checkKey(t, s, rnd, key)
	}
	m.checkList(t, s, "", "", 1+rnd.IntN(2*len(m.byKey)+2))
	for range 3 {
		k, after := keys[rnd.IntN(len(keys))], keys[rnd.IntN(len(keys))]
		m.checkList(t, s, k[:rnd.IntN(len(k)+1)], "", 1+rnd.IntN(8))
		m.checkList(t, s, k[:rnd.IntN(len(k)+1)], after, 1+rnd.IntN(8))
	}
}

// checkKey asks for versions of one key in every way.
func (m *ledgerModel) checkKey(t testing.TB, s *store, rnd *rand.Rand, key string) {
	t.Helper()
	seqs := m.byKey[key]
	upTo := func(ok func(*modelEntry) bool) int { // the newest version for which ok, or -1
		found := -1
		for _, seq := range seqs {
			if ok(&m.entries[seq]) {
				found = seq
			}
		}
		return found
	}
	m.checkGet(t, s, key, selector{}, upTo(func(*modelEntry) bool { return true }))

	version := rnd.Uint64N(uint64(len(seqs))+2) + 1
	m.checkGet(t, s, key, selector{version: version}, upTo(func(e *modelEntry) bool { return e.version == version }))

	seq := rnd.Uint64N(uint64(len(m.entries)) + 2)
	if len(seqs) > 0 && rnd.IntN(2) == 0 {
		seq = uint64(seqs[rnd.IntN(len(seqs))])
	}
	m.checkGet(t, s, key, selector{seq: &seq}, upTo(func(e *modelEntry) bool { return e.seq == seq }))
	m.checkGet(t, s, key, selector{atSeq: &seq}, upTo(func(e *modelEntry) bool { return e.seq <= seq }))

	time := m.time + 1
	if len(m.entries) > 0 {
		time = m.entries[rnd.IntN(len(m.entries))].time + rnd.Int64N(3) - 1
	}
	m.checkGet(t, s, key, selector{atTime: &time}, upTo(func(e *modelEntry) bool { return e.time <= time }))
	m.checkHistory(t, s, key, seq, 1+rnd.IntN(6))
	m.checkHistory(t, s, key, noSeq, 1+rnd.IntN(6))
}

// checkGet compares one answer with entry want of the model, -1 being none.
func (m *ledgerModel) checkGet(t testing.TB, s *store, key string, sel selector, want int) {
	t.Helper()
	e, err := s.get([]byte(key), sel)
	switch {
	case want < 0:
		if !errors.Is(err, errNotFound) {
			t.Fatalf("get %q %+v: entry %d, %v; want not found", key, sel, e.seq, err)
		}
		return
	case m.entries[want].op == opDelete:
		if !errors.Is(err, errDeleted) {
			t.Fatalf("get %q %+v: %v, want deleted by entry %d", key, sel, err, want)
		}
	case err != nil:
		t.Fatalf("get %q %+v: %v", key, sel, err)
	}
	m.wantHeader(t, e.header, uint64(want))
	if v := valueOf(t, &e); v != m.entries[want].value {
		t.Fatalf("get %q %+v: value of %d bytes is not that of entry %d", key, sel, len(v), want)
	}
	if e.leaf != leafHash(e.raw) || !bytes.Equal(e.raw, appendHeader(nil, &e.header)) {
		t.Fatalf("get %q %+v: raw or leaf do not belong to the header", key, sel)
	}
}

// checkHistory compares one page of a key's history.
func (m *ledgerModel) checkHistory(t testing.TB, s *store, key string, before uint64, limit int) {
	t.Helper()
	var want []int
	for _, seq := range slices.Backward(m.byKey[key]) {
		if uint64(seq) < before {
			want = append(want, seq)
		}
	}
	got, next, err := s.history([]byte(key), before, limit)
	if len(want) == 0 {
		if !errors.Is(err, errNotFound) {
			t.Fatalf("history of %q before %d: %d versions, %v; want not found", key, before, len(got), err)
		}
		return
	}
	more := len(want) > limit
	want = want[:min(limit, len(want))]
	if err != nil || len(got) != len(want) || more != (next != nil) || more && *next != uint64(want[limit-1]) {
		t.Fatalf("history of %q before %d: %d versions, next %v, %v; want %d, more %v", key, before, len(got), next, err, len(want), more)
	}
	for i, e := range got {
		m.wantHeader(t, e.header, uint64(want[i]))
	}
}

// checkList compares one page of a listing; after "" starts at the front.
func (m *ledgerModel) checkList(t testing.TB, s *store, prefix, after string, limit int) {
	t.Helper()
	var want []string
	for _, k := range slices.Sorted(maps.Keys(m.byKey)) {
		if strings.HasPrefix(k, prefix) && (after == "" || k > after) && m.live(k) != noSeq {
			want = append(want, k)
		}
	}
	var from []byte
	if after != "" {
		from = []byte(after)
	}
	got, more, err := s.list([]byte(prefix), from, limit)
	if err != nil || more != (len(want) > limit) {
		t.Fatalf("list %q after %q: %d keys, more %v, %v; want %d, limit %d", prefix, after, len(got), more, err, len(want), limit)
	}
	want = want[:min(limit, len(want))]
	if len(got) != len(want) {
		t.Fatalf("list %q after %q: %d keys, want %d", prefix, after, len(got), len(want))
	}
	for i, e := range got {
		if string(e.key) != want[i] {
			t.Fatalf("list %q after %q: key %d is %q, want %q", prefix, after, i, e.key, want[i])
		}
		m.wantHeader(t, e.header, m.live(want[i]))
	}
}
