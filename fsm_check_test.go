package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// The bytes of confirm and check commands, with and without the tree's root.
func TestCheckGolden(t *testing.T) {
	root := leafHash([]byte("tree"))
	want := append(append([]byte{4}, golden(t, "segment-info-1.bin")...), root[:]...)
	if b := appendConfirm(nil, goldenInfo(), root); !bytes.Equal(b, want) {
		t.Errorf("confirm is %x", b)
	}
	for _, row := range []struct {
		b    []byte
		root hash
	}{{want[1:], root}, {want[1 : len(want)-len(root)], hash{}}} {
		if i, got, err := parseConfirm(row.b); err != nil || i != goldenInfo() || got != row.root {
			t.Errorf("parsed %+v, %s, %v", i, got, err)
		}
	}
	if b := hex.EncodeToString(appendCheck(nil, 0x0102, root)); b != "060000000000000102"+root.String() {
		t.Errorf("check is %s", b)
	}
	if size, got, err := parseCheck(appendCheck(nil, 7, root)[1:]); size != 7 || got != root || err != nil {
		t.Errorf("parsed %d, %s, %v", size, got, err)
	}
}

// A replica compares at any size it has, with the log of an older program not
// at all, and names the entries since it last agreed.
func TestCheckCompares(t *testing.T) {
	h := newHarness(t)
	agreed := uint64(0)
	h.fsm.agreed = func(c treeClaim) { agreed = c.size }
	h.put("a", "1")
	h.put("b", "2")
	h.sealNow()
	info, _ := h.store.unconfirmed()
	if r := h.commit(append([]byte{byte(commandConfirm)}, info.append(nil)...))[0]; r != nil || agreed != 0 {
		t.Errorf("the confirm command of an older program gives %v, agreed to %d", r, agreed)
	}
	for size := uint64(1); size <= 2; size++ {
		root, err := h.store.root(size)
		if err != nil {
			t.Fatal(err)
		}
		if r := h.commit(appendCheck(nil, size, root))[0]; r != nil || agreed != size {
			t.Errorf("check at %d gives %v, agreed to %d", size, r, agreed)
		}
	}
	h.put("c", "3")
	own, err := h.store.root(3)
	if err != nil {
		t.Fatal(err)
	}
	r, _ := h.commit(appendCheck(nil, 3, hash{1}))[0].(error)
	wantError(t, r, errDiverged, "entries 2 to 2", own.String()+" here", hash{1}.String())
	h.reopen() // the difference is in the log
	if !errors.Is(h.failed, errDiverged) || !strings.Contains(h.failed.Error(), "entries 2 to 2") {
		t.Errorf("after a restart: %v", h.failed)
	}
}
