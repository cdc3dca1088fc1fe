package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// feedTo returns a feed to a witness with the given key.
func feedTo(t testing.TB, key noteVerifier, url string) *witnessFeed {
	return &witnessFeed{witnessTarget: witnessTarget{key, url}, limit: &logLimit{log: testLogger(t), every: time.Hour}}
}

// signed returns the checkpoint of the given size as the leader holds it.
func (l *watchedLedger) signed(size uint64) signedHead {
	n := l.head(size)
	head, err := parseTreeHead(n.body)
	if err != nil {
		l.t.Fatal(err)
	}
	return signedHead{head, n.String()}
}

// prove is the ledger's prover.
func (l *watchedLedger) prove(from, to uint64) ([]hash, error) {
	return consistencyProof(from, to, l.node)
}

// TestWitnessFeed: the size a witness is at is learned from itself.
func TestWitnessFeed(t *testing.T) {
	l, dir := newWatchedLedger(t, "example.com/log", 1, 40), t.TempDir()
	w := startWitness(t, dir, l)
	client := newWitnessClient()
	for i, size := range []uint64{3, 17, 17, 40} {
		f := feedTo(t, w.signer.noteVerifier, w.http.URL)
		f.old = []uint64{0, 9, 90, 17}[i] // right, too small, beyond the ledger, right
		line, err := f.cosign(t.Context(), client, l.signed(size), l.prove)
		if err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		if line != w.signer.sign(l.signed(size).body(), witnessTime).line() || f.old != size || f.done != size {
			t.Errorf("size %d: old %d, line %q", size, f.old, line)
		}
	}
	f := feedTo(t, w.signer.noteVerifier, w.http.URL)
	if _, err := f.cosign(t.Context(), client, l.signed(39), l.prove); !errors.Is(err, errWitnessRefused) {
		t.Errorf("a smaller ledger: %v", err)
	}
	fork := newWatchedLedger(t, "example.com/log", 1, 50)
	fork.leaves[2] = leafHash(nil)
	for _, size := range []uint64{40, 50} {
		if _, err := f.cosign(t.Context(), client, fork.signed(size), fork.prove); !errors.Is(err, errWitnessRefused) {
			t.Errorf("a fork of %d entries: %v", size, err)
		}
	}
	if _, err := f.cosign(t.Context(), client, newWatchedLedger(t, "other", 1, 4).signed(4), l.prove); !errors.Is(err, errWitnessAnswer) {
		t.Errorf("a ledger that is not watched: %v", err)
	}
}

// TestWitnessLies: no answer of a witness is believed, followed or read without end.
func TestWitnessLies(t *testing.T) {
	l := newWatchedLedger(t, "example.com/log", 1, 40)
	head := l.signed(8)
	own, _ := newNoteSigner("witness.example/w1", sigCosignature, make([]byte, 32))
	other, _ := newNoteSigner("witness.example/w1", sigCosignature, []byte("another seed of thirty-two bytes"))
	good := own.sign(head.body(), 1).line()
	wrong := own.sign(head.body(), 1)
	wrong.data[20] ^= 1
	size := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", witnessSizeType)
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, text)
		}
	}
	answer := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, text)
		}
	}
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   error // nil: the line is taken
	}{
		"good":                   {answer(200, good), nil},
		"good and others":        {answer(200, other.sign(head.body(), 1).line()+good), nil},
		"nothing":                {answer(200, ""), errWitnessAnswer},
		"no line":                {answer(200, "thanks\n"), errWitnessAnswer},
		"no end":                 {answer(200, strings.TrimSuffix(good, "\n")), errWitnessAnswer},
		"wrong signature":        {answer(200, wrong.line()), errWitnessAnswer},
		"wrong one beside right": {answer(200, good+wrong.line()), errWitnessAnswer},
		"another key":            {answer(200, other.sign(head.body(), 1).line()), errWitnessAnswer},
		"another head":           {answer(200, own.sign(l.signed(9).body(), 1).line()), errWitnessAnswer},
		"another body":           {answer(200, "x\n\n"+own.sign(head.body()+"\nx\n", 1).line()), errWitnessAnswer},
		"huge":                   {answer(200, strings.Repeat(good, 1000)), errWitnessAnswer},
		"many":                   {answer(200, strings.Repeat("— x AAAAAAA=\n", 70)), errWitnessAnswer},
		"redirect":               {http.RedirectHandler("http://127.0.0.1:1/", http.StatusTemporaryRedirect).ServeHTTP, errWitnessAnswer},
		"server error":           {answer(500, "sorry"), errWitnessAnswer},
		"refusal":                {answer(422, "no"), errWitnessRefused},
		"conflict":               {answer(409, "no"), errWitnessRefused},
		"beyond":                 {size("9\n"), errWitnessRefused},
		"no size":                {size("-1\n"), errWitnessAnswer},
		"never content":          {size("5\n"), errWitnessAnswer},
		"slow": {func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body) // only then the server sees that the client is gone
			<-r.Context().Done()
		}, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(test.answer)
			defer server.Close()
			limit := waitLimit
			if test.want == context.DeadlineExceeded {
				limit = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			line, err := feedTo(t, own.noteVerifier, server.URL).cosign(ctx, newWitnessClient(), head, l.prove)
			if test.want == nil && line != good || !errors.Is(err, test.want) {
				t.Errorf("line %q, error %v, want %v", line, err, test.want)
			}
		})
	}
}

// TestWitnessTable: the newest checkpoint for each number of cosignatures.
func TestWitnessTable(t *testing.T) {
	l := newWatchedLedger(t, "example.com/log", 1, 40)
	a, b := &witnessFeed{}, &witnessFeed{}
	table := witnessTable{feeds: []*witnessFeed{a, b}, lines: make([]string, 2)}
	check := func(least, size uint64, lines string) {
		t.Helper()
		head, err := table.get(least)
		if size == 0 {
			if !errors.Is(err, errNotWitnessed) {
				t.Errorf("with %d: %+v %v", least, head, err)
			}
			return
		}
		if err != nil || head.size != size || head.note != l.signed(size).note+lines {
			t.Errorf("with %d: %d entries, %q, %v", least, head.size, head.note, err)
		}
	}
	check(1, 0, "")
	table.keep(b, l.signed(5), "B5\n")
	check(0, 5, "B5\n")
	check(1, 5, "B5\n")
	check(2, 0, "")
	table.keep(a, l.signed(5), "A5\n")
	check(1, 5, "A5\nB5\n")
	check(2, 5, "A5\nB5\n")
	table.keep(a, l.signed(9), "A9\n")
	check(1, 9, "A9\n")
	check(2, 5, "A5\nB5\n")
	table.keep(b, l.signed(5), "late\n")
	check(2, 5, "A5\nB5\n")
	table.keep(b, l.signed(9), "B9\n")
	check(2, 9, "A9\nB9\n")
	check(3, 0, "")
	check(1<<63, 0, "")
}

// lateWitness is a witness that is there before it knows the ledger's key.
type lateWitness struct {
	target witnessTarget
	dir    string
	now    atomic.Pointer[http.Handler]
}

// newLateWitness returns a witness that is out of order until watch is called.
func newLateWitness(t testing.TB) *lateWitness {
	w := &lateWitness{dir: t.TempDir()}
	signer, err := loadWitnessKey(filepath.Join(w.dir, witnessKeyName), "witness.example/w1")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if h := w.now.Load(); h != nil {
			(*h).ServeHTTP(rw, r)
		} else {
			http.Error(rw, "out of order", http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	w.target = witnessTarget{signer.noteVerifier, server.URL}
	return w
}

// watch starts the witness for the ledger.
func (w *lateWitness) watch(t testing.TB, vkey string) *witnessServer {
	t.Helper()
	key, err := parseVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	s := &witnessServer{logger: testLogger(t), now: time.Now}
	if err := s.open(w.dir, w.target.key.name, []noteVerifier{key}); err != nil {
		t.Fatal(err)
	}
	h := s.routes()
	w.now.Store(&h)
	return s
}

// witnessed lets the nodes of a cluster ask the witnesses all the time.
func witnessed(list ...*lateWitness) func(*nodeOptions) {
	return func(o *nodeOptions) {
		for _, w := range list {
			o.witnesses = append(o.witnesses, w.target)
		}
		o.witnessEvery, o.witnessTimeout = 20*time.Millisecond, time.Second
		o.metrics = newMetrics()
	}
}

// waitWitnessed waits until every node serves a checkpoint of at least size
// entries with that many cosignatures, and checks it with the keys.
func (c *testCluster) waitWitnessed(size, least uint64, list ...*lateWitness) {
	c.t.Helper()
	for i, n := range c.nodes {
		if n.node == nil {
			continue
		}
		var head signedHead
		var vkey string
		eventually(c.t, fmt.Sprintf("node %d has no witnessed checkpoint of %d", i+1, size), func() bool {
			c.tend()
			var err, err2 error
			head, err = n.witnessedHead(c.t.Context(), least)
			vkey, _, err2 = n.ledgerVKeys()
			return err == nil && err2 == nil && head.size >= size
		})
		signed, err := parseNote(head.note)
		if err != nil {
			c.t.Fatal(err)
		}
		ledger, err := parseVerifier(vkey)
		if err != nil {
			c.t.Fatal(err)
		}
		if got, err := openTreeHead(signed, ledger); err != nil || got.size != head.size {
			c.t.Fatalf("node %d: %d entries, want %d: %v", i+1, got.size, head.size, err)
		}
		count := uint64(0)
		for _, w := range list {
			if ok, _, err := signed.check(w.target.key); err != nil {
				c.t.Fatal(err)
			} else if ok {
				count++
			}
		}
		if count < least {
			c.t.Errorf("node %d: %d cosignatures, want %d", i+1, count, least)
		}
	}
}

// TestWitnessCluster: a cluster with two witnesses, of which one is out of order,
// through a change of leader.
func TestWitnessCluster(t *testing.T) {
	t.Parallel()
	first, second := newLateWitness(t), newLateWitness(t)
	c := newCluster(t, 3, witnessed(first, second))
	lead := c.leader()
	c.fill(lead, "a", 20, 100)
	var vkey string
	eventually(t, "no ledger key", func() (ok bool) {
		var err error
		vkey, _, err = c.nodes[lead].ledgerVKeys()
		return err == nil
	})
	if _, err := c.nodes[lead].witnessedHead(t.Context(), 1); !errors.Is(err, errNotWitnessed) {
		t.Errorf("before the witnesses are there: %v", err)
	}
	first.watch(t, vkey)
	c.waitWitnessed(20, 1, first, second)
	if _, err := c.nodes[(lead+1)%3].witnessedHead(t.Context(), 2); !errors.Is(err, errNotWitnessed) {
		t.Errorf("with one of two witnesses: %v", err)
	}
	second.watch(t, vkey)
	c.waitWitnessed(20, 2, first, second)
	c.kill(lead)
	next := c.leader(lead)
	c.fill(next, "b", 20, 100)
	c.waitWitnessed(40, 2, first, second)
	c.start(lead)
	c.waitWitnessed(40, 2, first, second)
}

// TestWitnessFork: a ledger whose directory was copied and went two ways is
// witnessed on one of them only.
func TestWitnessFork(t *testing.T) {
	w := newLateWitness(t)
	c := newCluster(t, 1, witnessed(w))
	c.unformed = true // the two ways cannot both be the truth of this test
	c.put(c.leader(), "a", "1")
	var vkey string
	eventually(t, "no ledger key", func() (ok bool) {
		var err error
		vkey, _, err = c.nodes[0].ledgerVKeys()
		return err == nil
	})
	server := w.watch(t, vkey)
	c.waitWitnessed(1, 1, w)
	c.stop(0)
	twin := t.TempDir()
	if err := os.CopyFS(twin, os.DirFS(c.nodes[0].o.dataDir)); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(twin, lockName))
	c.start(0)
	c.put(c.leader(), "b", "1")
	c.waitWitnessed(2, 1, w)
	c.stop(0)

	c.nodes[0].o.dataDir = twin
	c.start(0)
	c.put(c.leader(), "b", "2")
	eventually(t, "the fork is not refused", func() bool { return server.forks.Load() > 0 })
	eventually(t, "the node does not count it", func() bool { return c.nodes[0].o.metrics.witness.refused.value() > 0 })
	if head, err := c.nodes[0].witnessedHead(t.Context(), 1); err == nil {
		t.Errorf("the fork is witnessed: %+v", head)
	}
	c.put(c.leader(), "c", "2")
	before := server.answers[6].Load() // 422
	eventually(t, "a longer fork is not refused", func() bool { return server.answers[6].Load() > before+1 })
	if _, err := os.Stat(server.logs[strings.Split(vkey, "+")[0]].path + witnessForkSuffix); err != nil {
		t.Error(err)
	}
}
