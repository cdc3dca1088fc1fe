package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
)

const goldenOrigin = "scribe/000102030405060708090a0b0c0d0e0f"

// goldenKeys are the keys in testdata/ledger-keys-1.bin. Its notes are no notes:
// they are for who reads them.
func goldenKeys(t testing.TB) *ledgerKeys {
	t.Helper()
	fill := func(b byte) [32]byte { return [32]byte(bytes.Repeat([]byte{b}, 32)) }
	k := &ledgerKeys{index: 77, seed: fill(0x22), former: []formerKey{{fill(0x44), "first\n"}, {fill(0x45), "second note\n"}}}
	if err := k.derive(goldenOrigin); err != nil {
		t.Fatal(err)
	}
	return k
}

func TestLedgerKeysGolden(t *testing.T) {
	want := goldenKeys(t)
	wantGolden(t, want.append(nil), "ledger-keys-1.bin")
	got, err := parseLedgerKeys(golden(t, "ledger-keys-1.bin"))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("parsed %+v, %v", got, err)
	}
	if none, err := parseLedgerKeys(nil); none != nil || err != nil || none.append(nil) != nil {
		t.Errorf("no keys: %v, %v", none, err)
	}
}

func TestLedgerKeysCutAndFlipped(t *testing.T) {
	b := golden(t, "ledger-keys-1.bin")
	eachCut(b[:len(b)-1], func(cut []byte) {
		if len(cut) > 0 {
			_, err := parseLedgerKeys(cut)
			wantError(t, err, errCorrupt)
		}
	})
	_, err := parseLedgerKeys(append(bytes.Clone(b), 0))
	wantError(t, err, errCorrupt, "wrong length")
	eachFlip(b, func(flipped []byte, at int) { checkLedgerKeys(t, flipped) })
}

// checkLedgerKeys fails unless parseLedgerKeys refused b or found what b encodes.
func checkLedgerKeys(t *testing.T, b []byte) {
	t.Helper()
	k, err := parseLedgerKeys(b)
	if err != nil {
		wantError(t, err, errCorrupt)
		return
	}
	if got := k.append(nil); !bytes.Equal(got, b) {
		t.Fatalf("accepted\n%x and encodes it as\n%x", b, got)
	}
}

func FuzzLedgerKeys(f *testing.F) {
	f.Add(golden(f, "ledger-keys-1.bin"))
	f.Fuzz(checkLedgerKeys)
}

func TestKeyCommandGolden(t *testing.T) {
	want := keyCommand{goldenOrigin, [32]byte(bytes.Repeat([]byte{0x22}, 32)), publicKey(bytes.Repeat([]byte{0x45}, 32))}
	wantGolden(t, appendKey(nil, &want), "key-command-1.bin")
	b := golden(t, "key-command-1.bin")
	if got, err := parseKey(&cursor{b: b[1:]}); err != nil || *got != want {
		t.Errorf("parsed %+v, %v", got, err)
	}
	eachCut(b[1:], func(cut []byte) {
		_, err := parseKey(&cursor{b: cut})
		wantError(t, err, errCorrupt, "wrong length")
	})
	eachFlip(b[1:], func(flipped []byte, at int) { checkKeyCommand(t, flipped) })
}

// checkKeyCommand fails unless parseKey refused b or found what b encodes.
func checkKeyCommand(t *testing.T, b []byte) {
	t.Helper()
	k, err := parseKey(&cursor{b: b})
	if err != nil {
		wantError(t, err, errCorrupt)
		return
	}
	if got := appendKey(nil, k); !bytes.Equal(got[1:], b) {
		t.Fatalf("accepted\n%x and encodes it as\n%x", b, got[1:])
	}
}

func FuzzKeyCommand(f *testing.F) {
	f.Add(golden(f, "key-command-1.bin")[1:])
	h := newHarness(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		checkKeyCommand(t, b)
		h.fresh()
		h.applyAny(t, append([]byte{byte(commandKey)}, b...))
	})
}

// newKey commits a key command and returns the answer.
func (h *harness) newKey(seed byte, replaces publicKey) any {
	return h.commit(appendKey(nil, &keyCommand{goldenOrigin, [32]byte{seed}, replaces}))[0]
}

func TestLedgerKeyFirstWins(t *testing.T) {
	h := newHarness(t)
	h.put("a", "1")
	if r := h.newKey(1, publicKey{}); r != nil {
		t.Fatalf("the first key is answered %v", r)
	}
	first := h.fsm.keys.Load()
	for name, cmd := range map[string]keyCommand{
		"another first key": {goldenOrigin, [32]byte{2}, publicKey{}},
		"of an unknown key": {goldenOrigin, [32]byte{2}, publicKey{7}},
		"of another origin": {"other/1", [32]byte{2}, first.public()},
	} {
		if r := h.commit(appendKey(nil, &cmd))[0]; r != errStaleKey {
			t.Errorf("%s is answered %v", name, r)
		}
	}
	if k := h.fsm.keys.Load(); k != first || k.index != 2 || k.origin() != goldenOrigin || len(k.former) != 0 {
		t.Errorf("keys are %+v", k)
	}
	if r := h.newKey(1, publicKey{}); r != errStaleKey { // repeated
		t.Errorf("a repeated key is answered %v", r)
	}
	h.commit(appendKey(nil, &keyCommand{"no name", [32]byte{2}, first.public()}))
	if h.failed != nil {
		t.Error(h.failed)
	}
}

func TestLedgerKeyBadOrigin(t *testing.T) {
	h := newHarness(t)
	h.commit(appendKey(nil, &keyCommand{"no name", [32]byte{2}, publicKey{}}))
	wantError(t, h.failed, errCorrupt, "ledger key")
}

// TestLedgerKeyRotation follows the notes from the first key to the last, on
// two nodes that must have the same bytes.
func TestLedgerKeyRotation(t *testing.T) {
	grow := func(h *harness) []noteVerifier {
		var keys []noteVerifier
		for i := range 3 {
			if r := h.newKey(byte(i+1), h.fsm.keys.Load().public()); r != nil {
				t.Fatal(r)
			}
			keys = append(keys, h.fsm.keys.Load().signer.noteVerifier)
			h.put("k", strings.Repeat("v", i))
			if i == 1 {
				h.sealNow()
			}
		}
		return keys
	}
	a, b := newHarness(t), newHarness(t)
	keys := grow(a)
	grow(b)
	b.reopen() // from D, which has the second key
	k := a.fsm.keys.Load()
	if !bytes.Equal(k.append(nil), b.fsm.keys.Load().append(nil)) {
		t.Error("two nodes have other keys")
	}
	for i, f := range k.former {
		if f.public != publicKey(keys[i].key) || !k.has(f.public) {
			t.Errorf("former key %d is %x", i, f.public)
		}
		n, err := parseNote(f.handOver)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range keys[i : i+2] {
			if ok, _, err := n.check(v); !ok || err != nil {
				t.Errorf("hand-over %d: %s: %v, %v", i, v, ok, err)
			}
		}
		if want := fmt.Sprintf("%s%s\n%d\n%s\n", rotationTitle, goldenOrigin, i+1, keys[i+1]); n.body != want {
			t.Errorf("hand-over %d is %q, want %q", i, n.body, want)
		}
	}
	if len(k.former) != 2 || k.public() != publicKey(keys[2].key) || bytes.Contains(k.append(nil), append([]byte{1}, make([]byte, 31)...)) {
		t.Errorf("keys are %+v", k)
	}
}

// TestLedgerKeyOldStore gives a key to a directory of a version that had none.
func TestLedgerKeyOldStore(t *testing.T) {
	h := newHarness(t)
	h.close()
	h.dir, h.index = copyDir(t, goldenStore), 6
	h.open()
	if h.fsm.keys.Load() != nil {
		t.Error("an old directory has a key")
	}
	if r := h.newKey(1, publicKey{}); r != nil {
		t.Fatal(r)
	}
	h.put("x", "1")
	h.sealNow()
	want := h.fsm.keys.Load()
	h.log = nil
	h.reopen()
	if got := h.fsm.keys.Load(); !reflect.DeepEqual(got, want) {
		t.Errorf("from ledger.db came %+v, want %+v", got, want)
	}
}

func TestSnapshotWithKeys(t *testing.T) {
	want := goldenSnapshot()
	want.at.keys = goldenKeys(t).append(nil)
	wantGolden(t, want.append(nil), "snapshot-2.bin")
	b := golden(t, "snapshot-2.bin")
	if got, err := parseSnapshot(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("parsed %+v, %v", got, err)
	}
	eachCut(b[:len(b)-32], func(cut []byte) { checkSnapshot(t, resealSnapshot(cut)) })
	eachFlip(b[:len(b)-32], func(flipped []byte, at int) { checkSnapshot(t, resealSnapshot(flipped)) })
	old := resealSnapshot(append([]byte(snapshotMagic), golden(t, "snapshot-1.bin")[8:492-32]...))
	_, err := parseSnapshot(old)
	wantError(t, err, errCorrupt, "wrong length")
}

// TestSnapshotBringsKeys installs a snapshot on nodes without a key, with the
// same one, and with another.
func TestSnapshotBringsKeys(t *testing.T) {
	t.Parallel()
	lead := newHarness(t)
	lead.newKey(1, publicKey{})
	before := lead.fsm.keys.Load().public()
	lead.put("a", "1")
	lead.newKey(2, before)
	lead.sealNow()
	for _, seed := range []byte{0, 1, 2, 9} {
		h := newHarness(t)
		if seed > 0 {
			h.newKey(seed, publicKey{})
		}
		h.fsm.fetch = nil
		err := h.restore(lead.snapshot(), lead)
		if seed == 9 {
			wantError(t, err, errDiverged, "does not know the ledger key")
			wantError(t, h.failed, errDiverged)
			continue
		}
		if err != nil || !reflect.DeepEqual(h.fsm.keys.Load(), lead.fsm.keys.Load()) {
			t.Errorf("with key %d: %+v, %v", seed, h.fsm.keys.Load(), err)
		}
		h.log, h.index = nil, lead.index
		h.reopen()
		if !reflect.DeepEqual(h.fsm.keys.Load(), lead.fsm.keys.Load()) {
			t.Errorf("with key %d: after a restart %+v", seed, h.fsm.keys.Load())
		}
	}
	bad := goldenSnapshot()
	bad.at.keys = []byte("keys")
	h := newHarness(t)
	h.fsm.fetch = func(*snapshot) ([]fetchedSegment, error) { return nil, nil }
	err := h.fsm.Restore(io.NopCloser(bytes.NewReader(bad.append(nil))))
	if !errors.Is(err, errCorrupt) {
		t.Errorf("keys that are none: %v", err)
	}
}
