package main

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// goldenWindow is the window of which testdata/window-1.bin is chunk 4: of the
// requests 12288 to 16385 it has the last two.
func goldenWindow() []chunk {
	var full []byte
	for i := range uint64(windowChunk) {
		full = appendRemembered(full, &remembered{key: fmt.Sprint("key-", 12288+i), outcome: outcomeApplied, current: noSeq, first: 12288 + i, count: 1})
	}
	last := appendRemembered(nil, &remembered{key: "w", outcome: outcomePrecondition, failed: 9, current: 77})
	last = appendRemembered(last, &remembered{key: strings.Repeat("x", 64), outcome: outcomeApplied, current: noSeq, first: 90, count: 10})
	return []chunk{{3, full}, {4, last}}
}

var goldenWindowAt = checkpoint{windowOldest: 3, windowNext: 16386}

func TestWindowGolden(t *testing.T) {
	chunks := goldenWindow()
	wantGolden(t, chunks[1].data, "window-1.bin")
	w, err := newWindow(chunks, &goldenWindowAt)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]remembered{
		"w":                     {key: "w", outcome: outcomePrecondition, failed: 9, current: 77},
		strings.Repeat("x", 64): {key: strings.Repeat("x", 64), outcome: outcomeApplied, current: noSeq, first: 90, count: 10},
		"key-12288":             {key: "key-12288", outcome: outcomeApplied, current: noSeq, first: 12288, count: 1},
		"key-16383":             {key: "key-16383", outcome: outcomeApplied, current: noSeq, first: 16383, count: 1},
	} {
		if got, ok := w.find(key); !ok || got != want {
			t.Errorf("found %+v, %v; want %+v", got, ok, want)
		}
	}
	if _, ok := w.find("key-12287"); ok {
		t.Error("found a key that is not there")
	}
	if c := w.changed(); c != nil {
		t.Errorf("a window just read has %d changed chunks", len(c))
	}
	w.add(remembered{key: "new", outcome: outcomeApplied})
	if c := w.changed(); len(c) != 1 || c[0].number != 4 || !bytes.HasPrefix(c[0].data, chunks[1].data) || w.changed() != nil {
		t.Errorf("after one request %d chunks have changed", len(c))
	}
	w.chunks[4] = w.chunks[4][:2]
	for i, c := range chunks {
		if got := w.encode(c.number); got.number != c.number || !bytes.Equal(got.data, c.data) {
			t.Errorf("chunk %d is encoded differently", i)
		}
	}
}

func TestWindowRefuses(t *testing.T) {
	chunks := goldenWindow()
	full, last := chunks[0], chunks[1]
	at := func(oldest, next uint64) checkpoint { return checkpoint{windowOldest: oldest, windowNext: next} }
	for name, test := range map[string]struct {
		chunks []chunk
		at     checkpoint
		want   string
	}{
		"nothing there":      {nil, goldenWindowAt, "the checkpoint says chunk 3 to request 16386"},
		"nothing wanted":     {chunks, at(0, 0), "gap before chunk 3"},
		"last one lost":      {chunks[:1], goldenWindowAt, "has requests 12288 to 16384"},
		"first one lost":     {chunks[1:], goldenWindowAt, "gap before chunk 4"},
		"one too many":       {append(slices.Clone(chunks), chunk{5, last.data}), goldenWindowAt, "gap before chunk 5"},
		"gap":                {[]chunk{full, {5, last.data}}, goldenWindowAt, "gap before chunk 5"},
		"order":              {[]chunk{last, full}, goldenWindowAt, "gap before chunk 4"},
		"first not full":     {[]chunk{{3, last.data}, {4, last.data}}, goldenWindowAt, "gap before chunk 4"},
		"too long":           {[]chunk{full, {4, slices.Concat(last.data, last.data)}}, goldenWindowAt, "has requests 12288 to 16388"},
		"oldest after next":  {nil, at(5, 4096), "the checkpoint says chunk 5 to request 4096"},
		"numbers wrap":       {[]chunk{{1 << 60, last.data}}, at(1<<60, 2), "gap before chunk 1152921504606846976"},
		"outcome":            {[]chunk{{0, appendRemembered(nil, &remembered{key: "k", outcome: 5})}}, at(0, 1), "chunk 0 of the idempotency window: corrupt: remembered request with a key of 1 bytes and outcome 5"},
		"no outcome":         {[]chunk{{0, appendRemembered(nil, &remembered{key: "k"})}}, at(0, 1), "outcome 0"},
		"no key":             {[]chunk{{0, appendRemembered(nil, &remembered{outcome: 1})}}, at(0, 1), "key of 0 bytes"},
		"key of 65 bytes":    {[]chunk{{0, appendRemembered(nil, &remembered{key: strings.Repeat("k", 65), outcome: 1})}}, at(0, 1), "key of 65 bytes"},
		"half a request":     {[]chunk{{0, last.data[:len(last.data)-1]}}, at(0, 2), "remembered request"},
		"one request's half": {[]chunk{{0, last.data[:5]}}, at(0, 0), "remembered request"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newWindow(test.chunks, &test.at)
			wantError(t, err, errCorrupt, test.want)
		})
	}
}

// checkWindow fails unless newWindow refused data as the only chunk, or found
// what it encodes.
func checkWindow(t *testing.T, data []byte, n uint64) {
	t.Helper()
	w, err := newWindow([]chunk{{4, data}}, &checkpoint{windowOldest: 4, windowNext: 4*windowChunk + n})
	if err != nil {
		if !errors.Is(err, errCorrupt) {
			t.Fatal(err)
		}
		return
	}
	if n > windowChunk {
		return // goes on in chunks that are not there
	}
	if got := w.encode(4); !bytes.Equal(got.data, data) {
		t.Fatalf("accepted\n%x and encodes it as\n%x", data, got.data)
	}
	for _, r := range w.chunks[4] {
		if got, ok := w.find(r.key); !ok || got.key != r.key || len(r.key) > maxIdempotencyKey || r.outcome > outcomeDigestMismatch {
			t.Fatalf("find %q gives %+v, %v", r.key, got, ok)
		}
	}
}

func TestWindowCutAndFlipped(t *testing.T) {
	b := golden(t, "window-1.bin")
	eachCut(b, func(cut []byte) {
		_, err := newWindow([]chunk{{4, cut}}, &checkpoint{windowOldest: 4, windowNext: 4*windowChunk + 2})
		wantError(t, err, errCorrupt)
	})
	eachFlip(b, func(flipped []byte, at int) { checkWindow(t, flipped, 2) })
}

func FuzzWindow(f *testing.F) {
	f.Add(golden(f, "window-1.bin"), uint64(2))
	f.Add([]byte{}, uint64(0))
	f.Fuzz(checkWindow)
}

// TestWindowForgets adds 120,000 requests: at any time the last 100,000 are
// there and no more than a chunk beside them, and what a D would hold, changed
// chunks written over older ones, gives the same window.
func TestWindowForgets(t *testing.T) {
	t.Parallel()
	rnd := newRand(t)
	w, err := newWindow(nil, &checkpoint{})
	if err != nil {
		t.Fatal(err)
	}
	key := func(i int) string { return fmt.Sprint("key-", i) }
	stored := make(map[uint64][]byte)
	const total = 120_000
	nextSave := 0
	for i := range total {
		w.add(remembered{key: key(i), outcome: outcomeApplied, current: noSeq, first: uint64(i), count: 1})
		if i != nextSave && i != total-1 {
			continue
		}
		nextSave = i + 1 + rnd.IntN(40_000)
		for _, k := range []int{i, max(0, i-windowSize+1), i - rnd.IntN(min(i, windowSize)+1)} {
			if r, ok := w.find(key(k)); k > i-windowSize && (!ok || r.first != uint64(k)) {
				t.Fatalf("after %d requests, request %d is %+v, %v", i+1, k, r, ok)
			}
		}
		if len(w.byKey) > windowSize+windowChunk || len(w.byKey) > i+1 || i > windowSize && len(w.byKey) < windowSize {
			t.Fatalf("after %d requests %d are remembered", i+1, len(w.byKey))
		}
		if k := int(w.oldest)*windowChunk - 1; k >= 0 {
			if _, ok := w.find(key(k)); ok {
				t.Fatalf("request %d is still there", k)
			}
		}
		for _, c := range w.changed() {
			stored[c.number] = c.data
		}
		w = reread(t, w, stored)
	}
}

// reread returns the window that the stored chunks of w give.
func reread(t *testing.T, w *window, stored map[uint64][]byte) *window {
	t.Helper()
	var chunks []chunk
	for n := w.oldest; n*windowChunk < w.next; n++ {
		chunks = append(chunks, chunk{n, stored[n]})
	}
	again, err := newWindow(chunks, &checkpoint{windowOldest: w.oldest, windowNext: w.next})
	if err != nil {
		t.Fatal(err)
	}
	if len(again.byKey) != len(w.byKey) {
		t.Fatalf("stored window has %d keys, want %d", len(again.byKey), len(w.byKey))
	}
	return again
}

// TestWindowReusedKey: a key that was forgotten and came again lives as long
// as its second request.
func TestWindowReusedKey(t *testing.T) {
	w, _ := newWindow(nil, &checkpoint{})
	add := func(key string) { w.add(remembered{key: key, outcome: outcomeApplied, first: w.next}) }
	add("again")
	for i := 0; w.oldest == 0; i++ {
		add(fmt.Sprint(i))
	}
	if _, ok := w.find("again"); ok {
		t.Fatal("key was not forgotten")
	}
	add("again")
	at := w.next - 1
	for i := 0; w.oldest < 2; i++ {
		add(fmt.Sprint("x", i))
	}
	if r, ok := w.find("again"); !ok || r.first != at {
		t.Errorf("key is %+v, %v; want request %d", r, ok, at)
	}
}
