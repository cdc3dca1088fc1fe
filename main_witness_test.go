package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// watchedLedger is a log in memory, to be witnessed.
type watchedLedger struct {
	t      testing.TB
	signer noteSigner
	leaves []hash
}

// newWatchedLedger returns a log of n leaves; another seed gives other leaves and
// another key.
func newWatchedLedger(t testing.TB, origin string, seed byte, n int) *watchedLedger {
	signer, err := newNoteSigner(origin, sigEd25519, bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	l := &watchedLedger{t: t, signer: signer}
	for i := range n {
		l.leaves = append(l.leaves, leafHash(fmt.Appendf(nil, "%d %d", seed, i)))
	}
	return l
}

// node is the tree's nodeReader.
func (l *watchedLedger) node(level int, index uint64) (hash, error) {
	return rootOf(l.leaves[index<<level : (index+1)<<level]), nil
}

// head returns the signed checkpoint of the given size.
func (l *watchedLedger) head(size uint64) note {
	body := treeHead{origin: l.signer.name, size: size, root: rootOf(l.leaves[:size])}.body()
	return note{body, []noteSignature{l.signer.sign(body, 0)}}
}

// submission asks for a cosignature of the given size.
func (l *watchedLedger) submission(old, size uint64) submission {
	s := submission{old: old, head: l.head(size)}
	if old > 0 && old < size {
		var err error
		if s.proof, err = consistencyProof(old, size, l.node); err != nil {
			l.t.Fatal(err)
		}
	}
	return s
}

// testWitness is a witness in this process.
type testWitness struct {
	*witnessServer
	t    testing.TB
	http *httptest.Server
}

// witnessTime is the clock of test witnesses.
const witnessTime = 1700000000

// startWitness opens a witness in dir that watches the logs.
func startWitness(t testing.TB, dir string, logs ...*watchedLedger) *testWitness {
	t.Helper()
	w := &witnessServer{logger: testLogger(t), now: func() time.Time { return time.Unix(witnessTime, 0) }}
	var keys []noteVerifier
	for _, l := range logs {
		keys = append(keys, l.signer.noteVerifier)
	}
	if err := w.open(dir, "witness.example/w1", keys); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(w.routes())
	t.Cleanup(server.Close)
	return &testWitness{w, t, server}
}

// add posts a body and returns status, content type and text of the answer.
func (w *testWitness) add(body string) (status int, kind, text string) {
	w.t.Helper()
	res, err := http.Post(w.http.URL+"/add-checkpoint", "text/plain", strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	return readAnswer(w.t, res)
}

// get fetches a path.
func (w *testWitness) get(path string) (status int, text string) {
	w.t.Helper()
	res, err := http.Get(w.http.URL + path)
	if err != nil {
		w.t.Fatal(err)
	}
	status, _, text = readAnswer(w.t, res)
	return status, text
}

func readAnswer(t testing.TB, res *http.Response) (status int, kind, text string) {
	t.Helper()
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header.Get("Content-Type"), string(b)
}

// want posts a submission and compares the status; it returns the text.
func (w *testWitness) want(status int, s submission) string {
	w.t.Helper()
	got, kind, text := w.add(s.String())
	if got != status || (got == 409) != (kind == witnessSizeType) {
		w.t.Fatalf("answer %d (%s) %q, want %d", got, kind, text, status)
	}
	return text
}

func TestWitnessCosigns(t *testing.T) {
	l, dir := newWatchedLedger(t, "example.com/log", 1, 40), t.TempDir()
	w := startWitness(t, dir, l)
	const path = "/4d3203c8f35cdf600e475f55fede6081a703d3d322f208865fca2ec4f0e030f8/checkpoint" // SHA-256 of the origin
	if status, text := w.get(path); status != 404 {
		t.Errorf("before the first checkpoint: %d %q", status, text)
	}
	old := uint64(0)
	for _, size := range []uint64{0, 3, 4, 4, 17, 40} {
		s := l.submission(old, size)
		cosigned, err := parseNote(s.head.String() + w.want(200, s))
		if err != nil {
			t.Fatal(err)
		}
		if signed, unix, err := cosigned.check(w.signer.noteVerifier); !signed || unix != witnessTime || err != nil {
			t.Errorf("size %d: %v %d %v", size, signed, unix, err)
		}
		if status, text := w.get(path); status != 200 || text != cosigned.String() {
			t.Errorf("size %d: %d %q, want %q", size, status, text, cosigned)
		}
		old = size
	}
	if status, text := w.get("/vkey"); status != 200 || text != w.signer.noteVerifier.String()+"\n" {
		t.Errorf("vkey: %d %q", status, text)
	}
	if status, text := w.get("/metrics"); status != 200 || !strings.Contains(text, "scribe_witness_answers_total{status=\"200\"} 6\n") {
		t.Errorf("metrics: %d %q", status, text)
	}
}

// TestWitnessGolden holds the cosignature to a vector made by another program.
func TestWitnessGolden(t *testing.T) {
	signer, err := newNoteSigner("witness.example/w1", sigCosignature, bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := writeText(filepath.Join(dir, witnessKeyName), formatWitnessKey(signer, bytes.Repeat([]byte{1}, 32))); err != nil {
		t.Fatal(err)
	}
	w := startWitness(t, dir, newWatchedLedger(t, "example.com/scribe-test", 0, 0))
	status, _, text := w.add("old 0\n\n" + goldenSubmission[strings.Index(goldenSubmission, "example.com"):])
	const want = "— witness.example/w1 CtfTXgAAAABlU/EApxaFFg2W0oSIu7iN8JigLtbnL0ajBACBsYRzv67aUQjumGPJanSLWv/8EOFxR+uVp9m9xo+X2L0xdxRp+wVCAg==\n"
	if status != 200 || text != want {
		t.Errorf("%d %q, want %q", status, text, want)
	}
	const vkey = "witness.example/w1+0ad7d35e+BIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
	if w.signer.noteVerifier.String() != vkey {
		t.Errorf("key %v, want %s", w.signer.noteVerifier, vkey)
	}
}

func TestWitnessRefuses(t *testing.T) {
	l, dir := newWatchedLedger(t, "example.com/log", 1, 40), t.TempDir()
	other := newWatchedLedger(t, "example.com/log", 2, 40) // the same name, another key and other leaves
	w := startWitness(t, dir, l)
	forged := l.submission(0, 5)
	forged.head.signatures[0].data[3] ^= 1
	w.want(403, forged)
	w.want(403, other.submission(0, 5))
	both := l.submission(0, 5)
	both.head.signatures = append(both.head.signatures, forged.head.signatures[0])
	w.want(403, both) // a wrong signature of a known key spoils the note
	w.want(404, newWatchedLedger(t, "example.com/unknown", 1, 9).submission(0, 5))
	w.want(400, submission{old: 6, head: l.head(5)})
	w.want(409, l.submission(4, 5))
	w.want(200, l.submission(0, 20))

	fork := newWatchedLedger(t, "example.com/log", 1, 40)
	fork.leaves[7] = leafHash(nil)
	if text := w.want(409, l.submission(0, 30)); text != "20\n" {
		t.Errorf("409 says %q, want 20", text)
	}
	w.want(409, l.submission(19, 19)) // a rollback
	w.want(400, submission{old: 20, head: l.head(19)})
	w.want(422, fork.submission(20, 20))
	w.want(422, fork.submission(20, 40))
	w.want(409, fork.submission(0, 20))
	damaged := l.submission(20, 40)
	damaged.proof[1][0] ^= 1
	w.want(422, damaged)
	w.want(422, submission{old: 20, head: l.head(40)})
	w.want(422, submission{old: 20, head: l.head(20), proof: damaged.proof})
	zero := submission{head: l.head(0)}
	zero.head.body = treeHead{origin: l.signer.name}.body()
	zero.head.signatures[0] = l.signer.sign(zero.head.body, 0)
	w.want(409, zero)
	w.want(200, l.submission(20, 40)) // none of them changed anything
	if w.forks.Load() != 2 {
		t.Errorf("%d forks were counted, want 2", w.forks.Load())
	}
	id := w.logs[l.signer.name].id
	for suffix, want := range map[string]hash{witnessForkSuffix: rootOf(fork.leaves[:20]), witnessBaseSuffix: rootOf(l.leaves[:20])} {
		b, err := os.ReadFile(filepath.Join(dir, id+suffix))
		if err != nil {
			t.Fatal(err)
		}
		n, err := parseNote(string(b))
		if err != nil {
			t.Fatal(err)
		}
		if head, err := openTreeHead(n, l.signer.noteVerifier); err != nil || head.root != want || head.size != 20 {
			t.Errorf("%s: %+v, %v", suffix, head, err)
		}
	}
}

// TestWitnessEmptyTree: a tree of no entries has one root.
func TestWitnessEmptyTree(t *testing.T) {
	l := newWatchedLedger(t, "example.com/log", 1, 4)
	w := startWitness(t, t.TempDir(), l)
	zero := submission{head: l.head(0)}
	zero.head.body = treeHead{origin: l.signer.name}.body()
	w.want(403, zero)
	zero.head.signatures[0] = l.signer.sign(zero.head.body, 0)
	w.want(422, zero)
	w.want(422, submission{head: l.head(3), proof: []hash{emptyRoot}})
	w.want(200, l.submission(0, 0))
	w.want(200, l.submission(0, 3))
}

func TestWitnessBadRequests(t *testing.T) {
	t.Parallel()
	l := newWatchedLedger(t, "example.com/log", 1, 4)
	w := startWitness(t, t.TempDir(), l)
	good := l.submission(0, 3).String()
	for body, want := range map[string]int{
		"":                                   400,
		good[:len(good)-1]:                   400,
		"old 0\n\n" + good:                   400,
		good + strings.Repeat(" ", 1<<17):    413,
		strings.Repeat("old 0\n", 1<<20):     413,
		"old 0\n\nexample.com/log\n3\n\n—\n": 400,
	} {
		if status, _, text := w.add(body); status != want {
			t.Errorf("%.40q: %d %q, want %d", body, status, text, want)
		}
	}
	for request, want := range map[string]int{
		"GET /add-checkpoint": 405, "PUT /add-checkpoint": 405, "POST /vkey": 405, "GET /": 404, "GET /x/y": 404,
		"GET /x/checkpoint": 404, "POST /" + w.logs[l.signer.name].id + "/checkpoint": 405, "DELETE /metrics": 405,
	} {
		method, path, _ := strings.Cut(request, " ")
		req, err := http.NewRequest(method, w.http.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if status, _, _ := readAnswer(t, res); status != want {
			t.Errorf("%s: %d, want %d", request, status, want)
		}
	}
}

// TestWitnessRace: of many trees that go on from one, one is cosigned.
func TestWitnessRace(t *testing.T) {
	l := newWatchedLedger(t, "example.com/log", 1, 8)
	w := startWitness(t, t.TempDir(), l)
	w.want(200, l.submission(0, 8))
	var requests []string
	for i := range 16 {
		branch := newWatchedLedger(t, "example.com/log", 1, 9+i%3)
		branch.leaves[8] = leafHash([]byte{byte(i)})
		requests = append(requests, branch.submission(8, uint64(len(branch.leaves))).String())
	}
	var done sync.WaitGroup
	answers := make([]int, len(requests))
	for i := range requests {
		done.Go(func() { answers[i], _, _ = w.add(requests[i]) })
	}
	done.Wait()
	won := 0
	for _, status := range answers {
		if status == 200 {
			won++
		} else if status != 409 {
			t.Errorf("answers: %v", answers)
		}
	}
	if won != 1 {
		t.Errorf("%d trees were cosigned: %v", won, answers)
	}
}

// TestWitnessRemembers: the state is on disk when the answer is out, and what
// cannot be written is not cosigned.
func TestWitnessRemembers(t *testing.T) {
	l, dir := newWatchedLedger(t, "example.com/log", 1, 40), t.TempDir()
	w := startWitness(t, dir, l)
	w.want(200, l.submission(0, 10))
	key := w.signer.noteVerifier.String()
	if info, err := os.Stat(filepath.Join(dir, witnessKeyName)); err != nil || info.Mode() != 0o600 {
		t.Errorf("key: %v %v", info, err)
	}
	path := w.logs[l.signer.name].path + witnessedSuffix
	state, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	os.Mkdir(path, 0o700) // nothing can be renamed to that
	w.want(500, l.submission(10, 20))
	w.want(409, l.submission(20, 30))
	os.Remove(path)
	if err := writeText(path, string(state)); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(path+".1"+tmpSuffix, []byte("left"), 0o600)

	w = startWitness(t, dir, l) // what a crash leaves
	if w.signer.noteVerifier.String() != key {
		t.Errorf("key is %v, was %s", w.signer.noteVerifier, key)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*"+tmpSuffix)); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if text := w.want(409, l.submission(0, 20)); text != "10\n" {
		t.Errorf("after the restart the size is %q, want 10", text)
	}
	w.want(200, l.submission(10, 20))
}

// TestWitnessRotatedKey: several keys of one log are all trusted.
func TestWitnessRotatedKey(t *testing.T) {
	first, second := newWatchedLedger(t, "example.com/log", 1, 40), newWatchedLedger(t, "example.com/log", 2, 0)
	second.leaves = first.leaves
	w := startWitness(t, t.TempDir(), first, second)
	w.want(200, first.submission(0, 10))
	w.want(200, second.submission(10, 20))
	both := first.submission(20, 30)
	both.head.signatures = append(both.head.signatures, second.head(30).signatures...)
	w.want(200, both)
	_, text := w.get("/" + w.logs["example.com/log"].id + "/checkpoint")
	if n, err := parseNote(text); err != nil || len(n.signatures) != 3 {
		t.Errorf("%v in %q", err, text)
	}
}

// TestWitnessDamagedState: a damaged file never changes what was cosigned.
func TestWitnessDamagedState(t *testing.T) {
	l, dir := newWatchedLedger(t, "example.com/log", 1, 40), t.TempDir()
	w := startWitness(t, dir, l)
	w.want(200, l.submission(0, 10))
	entry := w.logs[l.signer.name]
	state, err := os.ReadFile(entry.path + witnessedSuffix)
	if err != nil {
		t.Fatal(err)
	}
	load := func(b []byte) (*cosignedHead, error) {
		head, err := parseCosigned(string(b), l.signer.name, w.signer.noteVerifier)
		return &head, err
	}
	for i := range state {
		if _, err := load(state[:i]); err == nil {
			t.Errorf("cut at %d: taken", i)
		}
		b := bytes.Clone(state)
		b[i] ^= 1
		if head, err := load(b); err == nil && head.root != rootOf(l.leaves[:10]) {
			t.Errorf("byte %d changed: taken for %+v", i, head.treeHead)
		}
	}
	os.WriteFile(entry.path+witnessedSuffix, state[:20], 0o600)
	if _, _, err := openWitness(dir, "witness.example/w1", []noteVerifier{l.signer.noteVerifier}); err == nil || !strings.Contains(err.Error(), witnessedSuffix) {
		t.Errorf("a damaged directory was opened: %v", err)
	}
}

func TestWitnessKey(t *testing.T) {
	seed := bytes.Repeat([]byte{1}, 32)
	s, err := newNoteSigner("witness.example/w1", sigCosignature, seed)
	if err != nil {
		t.Fatal(err)
	}
	text := formatWitnessKey(s, seed)
	if want := "PRIVATE+KEY+witness.example/w1+0ad7d35e+BAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB\n"; text != want {
		t.Errorf("%q, want %q", text, want)
	}
	if got, err := parseWitnessKey(text); err != nil || got.String() != s.String() {
		t.Errorf("%v %v", got, err)
	}
	for i := range text {
		b := []byte(text)
		b[i] ^= 1
		if _, err := parseWitnessKey(string(b)); err == nil {
			t.Errorf("byte %d changed: taken", i)
		}
		if _, err := parseWitnessKey(text[:i]); err == nil {
			t.Errorf("cut at %d: taken", i)
		}
	}
}

func FuzzWitnessKey(f *testing.F) {
	f.Add("PRIVATE+KEY+witness.example/w1+0ad7d35e+BAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB\n")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := parseWitnessKey(text); err == nil && formatWitnessKey(s, s.private.Seed()) != text {
			t.Errorf("%q was taken for %v", text, s)
		}
	})
}

func TestWitnessArguments(t *testing.T) {
	folder := t.TempDir()
	log := newWatchedLedger(t, "example.com/log", 1, 0).signer.String()
	cosigner, _ := newNoteSigner("w", sigCosignature, make([]byte, 32))
	bad := filepath.Join(folder, "bad")
	os.WriteFile(bad, []byte("# ledgers\n\n"+log+"\nnonsense\n"), 0o600)
	for _, test := range []struct {
		args []string
		text string // in stderr
	}{
		{nil, "witness: --name and at least one --log are needed"},
		{[]string{"--log", log}, "--name and at least one --log"},
		{[]string{"--name", "w1"}, "--name and at least one --log"},
		{[]string{"--name", "w 1", "--log", log}, "witness: --name: malformed key name"},
		{[]string{"--name", "w1", "--log", "nonsense"}, "want name+id+base64"},
		{[]string{"--name", "w1", "--log", cosigner.noteVerifier.String()}, "key w is of type 0x04, a ledger signs with type 0x01"},
		{[]string{"--name", "w1", "--log-file", folder + "/none"}, "no such file"},
		{[]string{"--name", "w1", "--log-file", bad}, "line 4: malformed key"},
		{[]string{"--name", "w1", "--log", log, "more"}, "unexpected argument"},
		{[]string{"--name", "w1", "--log", log, "--data", bad}, "not a directory"},
		{[]string{"--name", "w1", "--log", log, "--data", filepath.Join(folder, "d"), "--listen", "256.0.0.1:1"}, "listen"},
	} {
		code, stdout, stderr := runText(t, "", nil, append([]string{"witness"}, test.args...)...)
		if code != 2 || stdout != "" || !strings.Contains(stderr, test.text) {
			t.Errorf("%q: exit code %d, printed %q and %q, want %q", test.args, code, stdout, stderr, test.text)
		}
	}
}

// TestWitnessCommand runs the daemon from start to end, and beside it a second
// one and one of another name.
func TestWitnessCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "w")
	log := newWatchedLedger(t, "example.com/log", 1, 0).signer.noteVerifier.String()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	args := []string{"witness", "--listen", "127.0.0.1:0", "--data", dir, "--name", "w1", "--log", log}
	out, in := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- runCommand(ctx, args, strings.NewReader(""), in, io.Discard, nil)
		in.Close()
	}()
	line := make([]byte, 200)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	if key, err := parseVerifier(strings.TrimSpace(string(line[:n]))); err != nil || key.name != "w1" || key.kind != sigCosignature {
		t.Errorf("printed %q: %v", line[:n], err)
	}
	go io.Copy(io.Discard, out)
	if code, _, text := runText(t, "", nil, args...); code != 2 || !strings.Contains(text, "in use") {
		t.Errorf("a second one on the same directory: %d %s", code, text)
	}
	cancel()
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(waitLimit):
		t.Fatal("the witness does not end")
	}
	args[6] = "w2"
	if code, _, text := runText(t, "", nil, args...); code != 2 || !strings.Contains(text, `the key is of witness "w1", this is "w2"`) {
		t.Errorf("under another name: %d %s", code, text)
	}
}
