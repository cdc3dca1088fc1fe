package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"
)

func TestPendingSegment(t *testing.T) {
	rnd := newRand(t)
	p := newPendingSegment(100)
	byKey := make(map[string][]int)
	var leaves []hash
	for i := range 500 {
		key := fmt.Sprint("key-", rnd.IntN(60))
		h := header{op: opPut, seq: p.end(), version: uint64(len(byKey[key])) + 1, prev: noSeq, key: []byte(key)}
		if old := byKey[key]; len(old) > 0 {
			h.prev = 100 + uint64(old[len(old)-1])
		}
		e, leaf := p.encode(&h, nil)
		p.stage(e, leaf)
		p.forget(p.shown) // as of a batch that failed
		p.stage(e, leaf)
		if j, ok := p.newest([]byte(key), nil); ok != (len(byKey[key]) > 0) || ok && j == i {
			t.Fatalf("entry %d is seen before it is shown", i)
		}
		p.show()
		leaves = append(leaves, leaf)
		byKey[key] = append(byKey[key], i)
		if rnd.IntN(20) == 0 {
			p.sortKeys()
			if want := slices.Sorted(maps.Keys(byKey)); !slices.Equal(p.sorted, want) {
				t.Fatalf("sorted keys are %v, want %v", p.sorted, want)
			}
		}
	}
	if p.end() != 600 || p.tree.root() != referenceRoot(leaves) {
		t.Errorf("segment ends at %d with root %s", p.end(), p.tree.root())
	}
	for key, all := range byKey {
		if i, ok := p.newest([]byte(key), nil); !ok || i != all[len(all)-1] {
			t.Errorf("newest of %q is %d, %v; want %d", key, i, ok, all[len(all)-1])
		}
		limit := 100 + rnd.Uint64N(500)
		i, ok := p.newest([]byte(key), func(h *header) bool { return h.seq <= limit })
		want := slices.DeleteFunc(slices.Clone(all), func(i int) bool { return 100+uint64(i) > limit })
		if ok != (len(want) > 0) || ok && i != want[len(want)-1] {
			t.Errorf("newest of %q up to %d is %d, %v; want the last of %v", key, limit, i, ok, want)
		}
	}
	if _, ok := p.heads["none"]; ok {
		t.Error("a key came from nowhere")
	}
	order := p.byKey()
	for k := 1; k < len(order); k++ {
		a, b := &p.entries[order[k-1]], &p.entries[order[k]]
		if c := bytes.Compare(a.key(), b.key()); c > 0 || c == 0 && order[k-1] < order[k] {
			t.Fatalf("entry %d of %q comes before entry %d of %q", order[k-1], a.key(), order[k], b.key())
		}
	}
	if _, ok := p.newest([]byte("none"), nil); ok {
		t.Error("found a key that is not there")
	}
}
