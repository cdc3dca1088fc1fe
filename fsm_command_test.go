package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// goldenRequests are those in testdata/pack-1.bin.
func goldenRequests() []*request {
	digest := hash(sha256.Sum256([]byte("x")))
	return []*request{
		{ops: []operation{{kind: opPut, key: []byte("a"), value: []byte("value"), contentType: "text/plain", author: "ada", region: "eu-1", ifSeq: noSeq}}},
		{idempotencyKey: strings.Repeat("i", 64), ops: []operation{{kind: opPut, key: []byte("b"), value: []byte("x"), ifAbsent: true, ifSeq: noSeq, digest: &digest}}},
		{idempotencyKey: "batch", atomic: true, ops: []operation{
			{kind: opPut, key: []byte("b"), value: []byte("y"), ifSeq: 1},
			{kind: opDelete, key: []byte("a"), value: []byte{}, ifSeq: 0},
			{kind: opPut, key: bytes.Repeat([]byte{0xff}, 1024), value: []byte{}, ifSeq: noSeq},
		}},
		{idempotencyKey: "gone", ops: []operation{{kind: opDelete, key: []byte("none"), value: []byte{}, ifSeq: noSeq}}},
	}
}

// goldenPack is the command in testdata/pack-1.bin.
func goldenPack() []byte {
	b := appendPackHeader(nil, 1_700_000_000_000)
	for _, r := range goldenRequests() {
		b = appendRequest(b, r)
	}
	return b
}

func TestPackGolden(t *testing.T) {
	wantGolden(t, goldenPack(), "pack-1.bin")
	c := &cursor{b: golden(t, "pack-1.bin")}
	if kind, time := commandKind(c.uint8()), c.uint64(); kind != commandPack || time != 1_700_000_000_000 {
		t.Fatalf("kind %d, time %d", kind, time)
	}
	for i, want := range goldenRequests() {
		size := len(c.b)
		got, err := parseRequest(c, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k := range got.ops {
			got.ops[k].value = slices.Clip(got.ops[k].value)
		}
		if !reflect.DeepEqual(&got, want) {
			t.Errorf("request %d is %+v, want %+v", i, got, want)
		}
		if n := requestSize(want); n < size-len(c.b) || n > size-len(c.b)+40*len(want.ops) {
			t.Errorf("request %d of %d bytes is thought to have %d", i, size-len(c.b), n)
		}
	}
	if len(c.b) != 0 || c.short {
		t.Errorf("%d bytes are left", len(c.b))
	}
}

// TestPackGoldenApplied is what a later version must still do with an old log.
func TestPackGoldenApplied(t *testing.T) {
	h := newHarness(t)
	res := h.results(h.commit(golden(t, "pack-1.bin"))[0])
	want := []result{{outcome: outcomeApplied, current: noSeq}, {outcome: outcomeApplied, current: noSeq}, {outcome: outcomeApplied, current: noSeq}, {outcome: outcomeNotFound, current: noSeq}}
	for i, r := range res {
		if r.outcome != want[i].outcome || r.failed != 0 || r.current != noSeq {
			t.Errorf("result %d is %+v", i, r)
		}
	}
	if h.store.size() != 5 {
		t.Errorf("%d entries", h.store.size())
	}
	// By formats.py: root() over the leaf hashes of the five header()s.
	const root = "29b604cb7729637df49bedf5db9fc2a50bf2040ec00e17426f5507eb4c0a373f"
	if got := h.store.pending.tree.root().String(); got != root {
		t.Errorf("root is %s, want %s", got, root)
	}
}

func TestRequestCut(t *testing.T) {
	for _, r := range goldenRequests() {
		eachCut(appendRequest(nil, r), func(cut []byte) {
			_, err := parseRequest(&cursor{b: cut}, nil)
			wantError(t, err, errCorrupt)
		})
	}
}

func TestRequestRefuses(t *testing.T) {
	op := func(change func(*operation)) *request {
		r := putRequest("k", "v")
		change(&r.ops[0])
		return r
	}
	for want, r := range map[string]*request{
		"with flags 0 and 0 operations":    {},
		"with flags 1 and 0 operations":    {atomic: true},
		"with flags 0 and 2 operations":    {ops: slices.Repeat(putRequest("k", "v").ops, 2)},
		"and 1 operations":                 {ops: putRequest("k", "v").ops, idempotencyKey: strings.Repeat("x", 65)},
		"operation of kind 0":              op(func(o *operation) { o.kind = 0 }),
		"operation of kind 3":              op(func(o *operation) { o.kind = 3 }),
		"key of 0":                         op(func(o *operation) { o.key = nil }),
		"key of 1025":                      op(func(o *operation) { o.key = make([]byte, 1025) }),
		"operation of kind 2 with flags 0": op(func(o *operation) { o.kind = opDelete }),
		"operation of kind 1 with flags 0": op(func(o *operation) { o.author = "\xff" }),
		"key of 1 and value of 1":          op(func(o *operation) { o.contentType = "a\x80" }),
		"operation of kind 1 with":         op(func(o *operation) { o.region = "\xed\xa0\x80" }),
	} {
		_, err := parseRequest(&cursor{b: appendRequest(nil, r)}, nil)
		wantError(t, err, errCorrupt, want)
	}
	b := appendRequest(nil, putRequest("k", "v"))
	b[0] = 2
	_, err := parseRequest(&cursor{b: b}, nil)
	wantError(t, err, errCorrupt, "flags 2")

	seq := op(func(o *operation) { o.ifSeq = 7 })
	b = appendRequest(nil, seq)
	at := bytes.Index(b, []byte{0, 0, 0, 0, 0, 0, 0, 7})
	copy(b[at:], bytes.Repeat([]byte{0xff}, 8)) // the condition that is none
	_, err = parseRequest(&cursor{b: b}, nil)
	wantError(t, err, errCorrupt, "flags 2")
}

// checkRequest fails unless parseRequest refused, or found what used up bytes encode.
func checkRequest(t *testing.T, b []byte) {
	t.Helper()
	c := &cursor{b: b}
	r, err := parseRequest(c, nil)
	if err != nil {
		if !errors.Is(err, errCorrupt) {
			t.Fatal(err)
		}
		return
	}
	if got := appendRequest(nil, &r); !bytes.Equal(got, b[:len(b)-len(c.b)]) {
		t.Fatalf("accepted\n%x and encodes it as\n%x", b, got)
	}
}

func TestRequestFlipped(t *testing.T) {
	for _, r := range goldenRequests() {
		eachFlip(appendRequest(nil, r), func(flipped []byte, at int) { checkRequest(t, flipped) })
	}
}

func FuzzRequest(f *testing.F) {
	for _, r := range goldenRequests() {
		f.Add(appendRequest(nil, r))
	}
	f.Fuzz(checkRequest)
}

// goldenResults are those in testdata/results-1.bin.
func goldenResults() []result {
	sum := sha256.Sum256([]byte("value"))
	first := header{op: opPut, seq: 0, version: 1, prev: noSeq, time: 1_700_000_000_000, size: 5, sum: sum, key: []byte("a"), contentType: "text/plain", author: "ada", region: "eu-1"}
	second := header{op: opDelete, seq: 3, version: 2, prev: 0, time: 1_700_000_000_000, sum: emptyRoot, key: []byte("a")}
	return []result{
		{outcome: outcomeApplied, current: noSeq, headers: [][]byte{appendHeader(nil, &first), appendHeader(nil, &second)}},
		{outcome: outcomePrecondition, failed: 7, current: 5},
		{outcome: outcomeNotFound, current: noSeq},
		{outcome: outcomeDigestMismatch, failed: 1, current: 5},
		{outcome: outcomeUnknown, current: noSeq},
	}
}

func TestResultGolden(t *testing.T) {
	var b []byte
	c := &cursor{b: golden(t, "results-1.bin")}
	for i, want := range goldenResults() {
		b = appendResult(b, &want)
		got, err := parseResult(c)
		if err != nil || got.outcome != want.outcome || got.failed != want.failed || got.current != want.current ||
			!slices.EqualFunc(got.headers, want.headers, bytes.Equal) {
			t.Errorf("result %d is %+v, %v; want %+v", i, got, err, want)
		}
	}
	wantGolden(t, b, "results-1.bin")
	if len(c.b) != 0 {
		t.Errorf("%d bytes are left", len(c.b))
	}
}

// checkResult fails unless parseResult refused, or found what used up bytes encode.
func checkResult(t *testing.T, b []byte) {
	t.Helper()
	c := &cursor{b: b}
	r, err := parseResult(c)
	if err != nil {
		if !errors.Is(err, errCorrupt) {
			t.Fatal(err)
		}
		return
	}
	if r.outcome < outcomeApplied || r.outcome > outcomeUnknown || r.outcome != outcomeApplied && len(r.headers) > 0 {
		t.Fatalf("accepted %+v", r)
	}
	if got := appendResult(nil, &r); !bytes.Equal(got, b[:len(b)-len(c.b)]) {
		t.Fatalf("accepted\n%x and encodes it as\n%x", b, got)
	}
}

func TestResultCutAndFlipped(t *testing.T) {
	for _, r := range goldenResults() {
		b := appendResult(nil, &r)
		eachCut(b, func(cut []byte) {
			_, err := parseResult(&cursor{b: cut})
			wantError(t, err, errCorrupt)
		})
		eachFlip(b, func(flipped []byte, at int) { checkResult(t, flipped) })
	}
}

func FuzzResult(f *testing.F) {
	f.Add(golden(f, "results-1.bin"))
	for _, r := range goldenResults() {
		f.Add(appendResult(nil, &r))
	}
	f.Fuzz(checkResult)
}

// fresh gives h an FSM and a store in memory as of its open, on which nothing
// was sealed, without going to the disk.
func (h *harness) fresh() {
	h.store.mu.Lock()
	h.store.pending = newPendingSegment(0)
	h.store.mu.Unlock()
	h.failed = nil
	f, err := newFSM(h.store, testUploadLimit, func(err error) { h.failed = err })
	if err != nil {
		h.t.Fatal(err)
	}
	h.fsm = f
}

// applyAny applies commands of any bytes, one entry each, and checks that what
// came of it holds together: either the node stopped with an error that says
// why and nothing is visible of the entry, or every entry can be read.
func (h *harness) applyAny(t *testing.T, commands ...[]byte) (refused bool) {
	t.Helper()
	for i, b := range commands {
		size := h.store.size()
		response := h.fsm.ApplyBatch([]*raft.Log{{Index: h.fsm.index + 1, Term: 1, Type: raft.LogCommand, Data: b}})[0]
		if h.failed == nil {
			continue
		}
		err, _ := response.(error)
		if !errors.Is(h.failed, errCorrupt) && !errors.Is(h.failed, errFormat) && !errors.Is(h.failed, errDiverged) || err != h.failed {
			t.Fatalf("command %d: %x gives %v and fails with %v", i, b, response, h.failed)
		}
		if h.store.size() != size || h.store.mark() != h.store.pending.shown {
			t.Fatalf("command %d failed and left entries", i)
		}
		again := h.fsm.ApplyBatch([]*raft.Log{{Index: h.fsm.index + 1, Term: 1, Type: raft.LogCommand, Data: goldenPack()}})[0]
		if again != error(h.failed) || h.store.size() != size {
			t.Fatalf("a node that stopped answers %v", again)
		}
		return true
	}
	for seq := uint64(0); seq < h.store.size(); seq++ {
		if e, err := h.store.entryAt(seq); err != nil || e.seq != seq || e.header.validate() != nil {
			t.Fatalf("entry %d is %+v, %v", seq, e.header, err)
		}
	}
	return false
}

// parts returns the golden pack in three parts.
func goldenParts() [][]byte {
	return (&harness{}).upload(goldenPack(), 3)
}

func TestCommandCut(t *testing.T) {
	h := newHarness(t)
	var starts []int // where a pack may end
	c := &cursor{b: goldenPack()[packHeaderSize:]}
	for len(c.b) > 0 {
		starts = append(starts, len(goldenPack())-len(c.b))
		if _, err := parseRequest(c, nil); err != nil {
			t.Fatal(err)
		}
	}
	eachCut(goldenPack(), func(cut []byte) {
		h.fresh()
		if refused := h.applyAny(t, cut); refused == slices.Contains(starts, len(cut)) {
			t.Errorf("pack cut at %d: refused is %v", len(cut), refused)
		}
	})
	for name, b := range map[string][]byte{"seal": appendSeal(nil, 5, 0), "confirm": appendConfirm(nil, goldenInfo(), hash{9}), "check": appendCheck(nil, 5, hash{9}), "archived": goldenArchived()} {
		eachCut(b, func(cut []byte) {
			h.fresh()
			old := name == "confirm" && len(cut) == len(b)-len(hash{}) // as older programs wrote it
			if h.applyAny(t, cut) == old {
				t.Errorf("%s cut at %d is applied", name, len(cut))
			}
		})
		h.fresh()
		if !h.applyAny(t, append(b, 0)) {
			t.Errorf("%s with a byte more is applied", name)
		}
	}
	parts := goldenParts()
	for i := range parts {
		eachCut(parts[i], func(cut []byte) {
			h.fresh()
			refused := h.applyAny(t, slices.Concat(parts[:i], [][]byte{cut}, parts[i+1:])...)
			if refused != (len(cut) <= partHeaderSize) || h.store.size() != 0 {
				t.Errorf("part %d cut at %d: refused is %v, %d entries", i, len(cut), refused, h.store.size())
			}
		})
	}
}

func TestCommandFlipped(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	eachFlip(goldenPack(), func(flipped []byte, at int) {
		h.fresh()
		if flipped[0] == byte(commandSeal) {
			return // needs a disk of its own; its cursor is tested above
		}
		h.applyAny(t, flipped)
	})
	parts := goldenParts()
	for i := range parts {
		eachFlip(parts[i], func(flipped []byte, at int) {
			h.fresh()
			h.applyAny(t, slices.Concat(parts[:i], [][]byte{flipped}, parts[i+1:])...)
		})
	}
	eachFlip(appendConfirm(nil, goldenInfo(), hash{9}), func(flipped []byte, at int) {
		h.fresh()
		h.applyAny(t, flipped)
	})
	eachFlip(appendCheck(nil, 3, hash{9}), func(flipped []byte, at int) {
		h.fresh()
		h.applyAny(t, goldenPack(), flipped)
	})
	eachFlip(goldenArchived(), func(flipped []byte, at int) {
		h.fresh()
		h.applyAny(t, goldenPack(), flipped)
	})
}

// TestSealFlipped: another time is another seal, another first none.
func TestSealFlipped(t *testing.T) {
	h := newHarness(t)
	eachFlip(appendSeal(nil, 1_700_000_000_000, 0), func(flipped []byte, at int) {
		if at > 0 && at < packHeaderSize {
			return
		}
		h.fresh()
		h.applyAny(t, goldenPack(), flipped)
		if n := len(h.store.manifest.Load().segments); n != 0 {
			t.Fatalf("byte %d flipped: %d segments", at, n)
		}
	})
}

func TestCommandUnknown(t *testing.T) {
	h := newHarness(t)
	for _, kind := range []byte{0, 99, 255} {
		h.fresh()
		if !h.applyAny(t, []byte{kind, 1, 2, 3}) || !errors.Is(h.failed, errFormat) {
			t.Errorf("kind %d: %v", kind, h.failed)
		}
		wantError(t, h.failed, errFormat, "applying log entry 1", fmt.Sprintf("command of kind %d: newer format", kind))
	}
	h.fresh()
	if !h.applyAny(t, nil) {
		t.Error("an empty command is applied")
	}
}

// FuzzCommand applies any bytes as commands: after the kind of each, its length.
func FuzzCommand(f *testing.F) {
	f.Add(goldenPack(), []byte{}, []byte{})
	parts := goldenParts()
	f.Add(parts[0], parts[1], parts[2])
	f.Add(goldenPack(), appendConfirm(nil, goldenInfo(), hash{9}), appendSeal(nil, 5, 7))
	f.Add(goldenPack(), appendCheck(nil, 3, hash{9}), appendCheck(nil, 1<<60, hash{}))
	f.Add(goldenPack(), goldenArchived(), []byte{byte(commandArchived)})
	h := newHarness(f)
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		for _, command := range [][]byte{a, b, c} {
			if len(command) > 0 && command[0] == byte(commandSeal) && bytes.HasSuffix(command, make([]byte, 8)) {
				return // seals and goes to the disk
			}
		}
		h.fresh()
		h.applyAny(t, a, b, c)
	})
}
