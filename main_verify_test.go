package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// honest is a ledger in memory and a server of it that tells the truth, unless
// lie changes a reply.
type honest struct {
	t       testing.TB
	cluster clusterID
	signer  noteSigner
	nodes   []noteSigner // cosign every checkpoint
	former  []string     // hand-over notes
	url     string

	mu       sync.Mutex // guards what follows
	entries  []honestEntry
	heads    map[string]header
	segments []sealedBytes
	lie      func(path string, reply []byte) []byte // path with its query
}

// honestEntry is an entry of honest.
type honestEntry struct {
	raw, value []byte
	leaf       hash
}

// sealedBytes is a segment of honest.
type sealedBytes struct {
	info segmentInfo
	data []byte
}

// newHonest starts a server of an empty ledger.
func newHonest(t testing.TB, seed byte) *honest {
	h := &honest{t: t, cluster: clusterID{seed}, heads: make(map[string]header)}
	origin := fmt.Sprintf("test/%s", h.cluster)
	h.signer = signerOf(t, origin, sigEd25519, seed)
	for i := byte(1); i <= 3; i++ {
		h.nodes = append(h.nodes, signerOf(t, fmt.Sprintf("%s/node-%d", origin, i), sigCosignature, 100+i))
	}
	if _, ok := t.(*testing.T); ok {
		server := httptest.NewServer(h)
		t.Cleanup(server.Close)
		h.url = server.URL
	}
	return h
}

func signerOf(t testing.TB, name string, kind, seed byte) noteSigner {
	s, err := newNoteSigner(name, kind, bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// put appends a value; nil deletes.
func (h *honest) put(key string, value []byte) header {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := uint64(len(h.entries))
	e := header{op: opPut, seq: n, version: 1, prev: noSeq, time: 1_700_000_000_000 + int64(n)/3,
		size: uint64(len(value)), sum: sha256.Sum256(value), key: []byte(key), contentType: "text/x"}
	if before, ok := h.heads[key]; ok {
		e.version, e.prev = before.version+1, before.seq
	}
	if value == nil {
		e.op, e.contentType = opDelete, ""
	}
	return h.append(e, value)
}

// append appends any entry, sound or not; h.mu must be held.
func (h *honest) append(e header, value []byte) header {
	raw := appendHeader(nil, &e)
	h.entries = append(h.entries, honestEntry{raw, value, leafHash(raw)})
	h.heads[string(e.key)] = e
	return e
}

// fill appends n entries of several keys.
func (h *honest) fill(n int) {
	for range n {
		i := len(h.entries)
		h.put(fmt.Sprintf("key %d", i%(n/2+1)), bytes.Repeat([]byte{byte(i)}, i%50))
	}
}

// seal makes a segment of the entries that are in none yet.
func (h *honest) seal() sealedBytes {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := h.sealed()
	p := newPendingSegment(first)
	for _, e := range h.entries[first:] {
		p.stage(pendingEntry{raw: e.raw, value: e.value}, e.leaf)
	}
	p.show()
	var b bytes.Buffer
	size, sum, _, err := writeSegment(&b, h.cluster, p, 1_700_000_000_000+int64(first))
	if err != nil {
		h.t.Fatal(err)
	}
	s := sealedBytes{segmentInfo{first: first, count: uint64(p.shown), size: uint64(size), time: 1_700_000_000_000 + int64(first),
		root: p.tree.root(), sum: sum}, b.Bytes()}
	h.segments = append(h.segments, s)
	return s
}

// sealed returns the first entry that is in no segment.
func (h *honest) sealed() uint64 {
	if len(h.segments) == 0 {
		return 0
	}
	return h.segments[len(h.segments)-1].info.end()
}

// node reads the tree.
func (h *honest) node(level int, index uint64) (hash, error) {
	var tree compactTree
	for _, e := range h.entries[index<<level : (index+1)<<level] {
		tree.append(leafHash(e.raw))
	}
	return tree.root(), nil
}

// head returns the tree head of size entries.
func (h *honest) head(size uint64) treeHead {
	root, err := rootAt(size, h.node)
	if err != nil {
		h.t.Fatal(err)
	}
	return treeHead{origin: h.signer.name, size: size, root: root}
}

// checkpoint returns a signed head, cosigned by all nodes.
func (h *honest) checkpoint(head treeHead) string {
	n := note{head.body(), []noteSignature{h.signer.sign(head.body(), 0)}}
	for _, node := range h.nodes {
		n.signatures = append(n.signatures, node.sign(head.body(), 1_700_000_000))
	}
	return n.String()
}

// receipt returns the receipt of an entry at size.
func (h *honest) receipt(seq, size uint64) receipt {
	proof, err := inclusionProof(seq, size, h.node)
	if err != nil {
		h.t.Fatal(err)
	}
	head, err := parseNote(h.checkpoint(h.head(size)))
	if err != nil {
		h.t.Fatal(err)
	}
	return receipt{h.entries[seq].raw, seq, proof, head}
}

// rotate hands the ledger key over to a new one.
func (h *honest) rotate(seed byte) {
	next := signerOf(h.t, h.signer.name, sigEd25519, seed)
	body := fmt.Sprintf("%s\n%s\n%d\n%s\n", rotationMagic, next.name, len(h.entries), next)
	n := note{body, []noteSignature{h.signer.sign(body, 0), next.sign(body, 0)}}
	h.former = append(h.former, n.String())
	h.signer = next
}

// lies sets what changes replies; nil for the truth.
func (h *honest) lies(lie func(path string, reply []byte) []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lie = lie
}

func (h *honest) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	reply := h.answer(r)
	path := r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	if h.lie != nil {
		reply = h.lie(path, reply)
	}
	if reply == nil {
		w.WriteHeader(404)
		reply = []byte(`{"error":{"code":"not_found","message":"no such thing"}}`)
	}
	w.Write(reply)
}

// answer returns the true reply, nil for 404.
func (h *honest) answer(r *http.Request) []byte {
	number := func(name string) uint64 {
		n, err := strconv.ParseUint(r.URL.Query().Get(name), 10, 64)
		if err != nil {
			return noSeq
		}
		return n
	}
	size := uint64(len(h.entries))
	switch path := r.URL.Path; {
	case path == "/ledger/key":
		return []byte(h.signer.String() + "\n")
	case path == "/ledger/keys":
		return encodeTest(map[string]any{"current": h.signer.String(), "former": h.former})
	case path == "/ledger/checkpoint":
		return []byte(h.checkpoint(h.head(size)))
	case path == "/ledger/consistency":
		return h.consistency(number("from"), number("to"))
	case path == "/ledger/manifest":
		return h.manifest()
	case path == "/ledger/entries":
		return h.stream(number("from"), number("limit"), r.URL.Query().Get("values") == "true")
	case strings.HasPrefix(path, "/ledger/tile/"):
		return h.tile(strings.TrimPrefix(path, "/ledger/tile/"))
	case strings.HasPrefix(path, "/ledger/segments/"):
		for _, s := range h.segments {
			if s.info.id() == strings.TrimPrefix(path, "/ledger/segments/") {
				return s.data
			}
		}
		return nil
	case strings.HasPrefix(path, "/verify/"):
		return h.verify(strings.TrimPrefix(path, "/verify/"), number("version"), number("seq"))
	case strings.HasPrefix(path, "/kv/"):
		return append([]byte{}, h.entries[number("seq")].value...)
	}
	return nil
}

func (h *honest) consistency(from, to uint64) []byte {
	if from > to || to > uint64(len(h.entries)) {
		return nil
	}
	proof, err := consistencyProof(from, to, h.node)
	if err != nil {
		h.t.Error(err)
	}
	return encodeTest(map[string]any{"from": from, "to": to, "proof": hexes(proof), "from_root": h.head(from).root.String(), "to_root": h.head(to).root.String()})
}

func (h *honest) manifest() []byte {
	list := []any{}
	for _, s := range h.segments {
		list = append(list, map[string]any{"id": s.info.id(), "first_seq": s.info.first, "count": s.info.count, "size": s.info.size,
			"timestamp": time.UnixMilli(s.info.time).UTC(), "merkle_root": s.info.root.String(), "sha256": s.info.sum.String(), "state": "local", "object": nil})
	}
	return encodeTest(map[string]any{"version": 1, "ledger_size": len(h.entries), "segments": list})
}

func (h *honest) stream(from, limit uint64, values bool) []byte {
	var b []byte
	for seq := from; seq < uint64(len(h.entries)) && seq-from < limit; seq++ {
		e := h.fields(seq)
		if values && e["op"] == "put" {
			e["value_base64"] = h.entries[seq].value
		}
		b = append(append(b, encodeTest(e)...), '\n')
	}
	return b
}

func (h *honest) tile(path string) []byte {
	id, err := parseTilePath(path)
	if err != nil || (id.index*tileWidth+uint64(id.width))<<(tileHeight*id.level) > uint64(len(h.entries)) {
		return nil
	}
	var b []byte
	for i := range uint64(id.width) {
		node, _ := h.node(tileHeight*id.level, id.index*tileWidth+i)
		b = append(b, node[:]...)
	}
	return b
}

func (h *honest) verify(key string, version, seq uint64) []byte {
	found := h.heads[key]
	if seq == noSeq {
		seq = found.seq
	}
	if version != noSeq {
		for i, e := range h.entries {
			if p, _ := parseHeader(e.raw); string(p.key) == key && p.version == version {
				seq = uint64(i)
			}
		}
	}
	if seq >= uint64(len(h.entries)) || found.version == 0 {
		return nil
	}
	size := uint64(len(h.entries))
	r := h.receipt(seq, size)
	e := h.fields(seq)
	e["leaf"], e["tree_size"], e["root"], e["inclusion"] = r.extra, size, h.head(size).root.String(), hexes(r.proof)
	e["checkpoint"], e["receipt"], e["segment"], e["verified"] = r.head.String(), r.String(), nil, true
	return encodeTest(e)
}

// fields returns the JSON fields of an entry.
func (h *honest) fields(seq uint64) map[string]any {
	e, err := parseHeader(h.entries[seq].raw)
	if err != nil {
		h.t.Error(err)
	}
	f := map[string]any{"seq": e.seq, "key": string(e.key), "op": e.op.String(), "version": e.version, "prev": nil,
		"time": time.UnixMilli(e.time).UTC(), "size": e.size, "sha256": e.sum.String(), "content_type": e.contentType,
		"author": e.author, "region": e.region, "leaf_hash": leafHash(h.entries[seq].raw).String()}
	if e.prev != noSeq {
		f["prev"] = e.prev
	}
	return f
}

func hexes(list []hash) []string {
	s := []string{}
	for _, h := range list {
		s = append(s, h.String())
	}
	return s
}

func encodeTest(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// replaceField changes one field of a JSON reply.
func replaceField(reply []byte, name string, value any) []byte {
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(reply))
	d.UseNumber()
	if d.Decode(&m) != nil {
		return reply
	}
	m[name] = value
	return encodeTest(m)
}

// runHere runs a command of the program against its own folder of pins.
func runHere(t *testing.T, folder string, args ...string) (code int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = runCommand(t.Context(), args, strings.NewReader(""), &stdout, &stderr, []string{"SCRIBE_CONFIG_DIR=" + folder})
	return code, stdout.String(), stderr.String()
}

// exits runs a command and demands its exit code and a text in what it says.
func exits(t *testing.T, folder string, code int, text string, args ...string) string {
	t.Helper()
	got, out, errs := runHere(t, folder, args...)
	if got != code || !strings.Contains(out+errs, text) {
		t.Fatalf("%v: exit %d, want %d and %q in:\n%s%s", args, got, code, text, out, errs)
	}
	return out + errs
}

// write puts text into a file of its own.
func write(t *testing.T, text string) string {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestVerifyReceipt(t *testing.T) {
	h := newHonest(t, 1)
	h.fill(20)
	e := h.put("the key", []byte("the value"))
	gone := h.put("the key", nil)
	h.fill(7)
	r := h.receipt(e.seq, 25)
	file, value, vkey := write(t, r.String()), write(t, "the value"), h.signer.String()
	base := []string{"verify", "--receipt", file}
	with := func(args ...string) []string { return append(base[:len(base):len(base)], args...) }

	out := exits(t, "", 0, "verified", with("--key", vkey, "--value", value)...)
	for _, text := range []string{`key "the key", version 1, put`, "entry      20", "9 bytes, SHA-256 " + e.sum.String(),
		"tree       25 entries", vkey, "2023-11-14T22:13:20.006Z", e.contentType} {
		if !strings.Contains(out, text) {
			t.Errorf("no %q in:\n%s", text, out)
		}
	}
	exits(t, "", 0, "verified", with("--key", write(t, vkey+"\n"))...)
	node := func(i int) string { return h.nodes[i].String() }
	exits(t, "", 0, "cosigned", with("--key", vkey, "--quorum", "2", "--node-key", node(0), "--node-key", node(2))...)

	other := newHonest(t, 9)
	stranger := signerOf(t, "x", sigCosignature, 77).String()
	for _, bad := range []struct {
		code int
		text string
		args []string
	}{
		{1, "wrong signature", with("--key", other.signer.String())},
		{1, "bytes, entry 20 has 9", with("--key", vkey, "--value", write(t, "the"))},
		{1, "more than the 9 bytes", with("--key", vkey, "--value", write(t, "the value!"))},
		{1, "SHA-256 is", with("--key", vkey, "--value", write(t, "the valuE"))},
		{1, "1 of the nodes given have cosigned, want 2", with("--key", vkey, "--quorum", "2", "--node-key", node(0), "--node-key", stranger)},
		{2, "given twice", with("--key", vkey, "--quorum", "2", "--node-key", node(0), "--node-key", node(0))},
		{1, "1 of the nodes given have cosigned, want 2", with("--key", vkey, "--node-key", node(0), "--node-key", stranger)},
		{2, "2 of 1 node keys", with("--key", vkey, "--quorum", "2", "--node-key", node(0))},
		{1, "kind is 0x04", with("--key", node(0))},
		{1, "kind is 0x01", with("--key", vkey, "--quorum", "1", "--node-key", vkey)},
		{2, "--receipt takes --key", with()},
		{2, "--receipt takes --key", with("--key", vkey, "some key")},
		{2, "no such file", with("--key", vkey, "--value", "/nowhere")},
		{2, "no such file", []string{"verify", "--key", vkey, "--receipt", "/nowhere"}},
		{2, "no such file", with("--key", "/nowhere")},
		{2, "malformed", with("--key", "a+b+c")},
		{1, "malformed receipt", []string{"verify", "--key", vkey, "--receipt", value}},
		{1, "entry 21 is a delete", []string{"verify", "--key", vkey, "--receipt", write(t, h.receipt(gone.seq, 25).String()), "--value", value}},
		{2, "name a key", []string{"verify", "--key", vkey}},
		{2, "exclude", []string{"verify", "k", "--seq", "1", "--version", "1"}},
		{2, "whole number", []string{"verify", "k", "--seq", "-1"}},
		{2, "want http://", []string{"verify", "k", "--url", "ftp://x"}},
	} {
		exits(t, t.TempDir(), bad.code, bad.text, bad.args...)
	}
	forged := r
	forged.extra = h.entries[3].raw
	exits(t, "", 1, "the leaf is of entry 3, the proof of 20", "verify", "--key", vkey, "--receipt", write(t, forged.String()))
}

// A flipped bit anywhere in a receipt is refused, and so is a cut.
func TestVerifyReceiptFlips(t *testing.T) {
	h := newHonest(t, 1)
	h.fill(9)
	text := h.receipt(4, 9).String()
	nodes := make([]noteVerifier, len(h.nodes))
	for i := range nodes {
		nodes[i] = h.nodes[i].noteVerifier
	}
	accepts := func(text string) bool {
		p, err := proveReceipt(text, h.signer.noteVerifier)
		if err == nil {
			_, err = countCosignatures(p.note, nodes, len(nodes))
		}
		return err == nil
	}
	if !accepts(text) {
		t.Fatal("the receipt itself is refused")
	}
	for n := range text {
		b := []byte(text)
		b[n] ^= 1 << (n % 8)
		if accepts(string(b)) {
			t.Errorf("bit %d of byte %d flipped: accepted\n%s", n%8, n, b)
		}
		if accepts(text[:n]) {
			t.Errorf("accepted when cut at %d of %d bytes", n, len(text))
		}
	}
}
