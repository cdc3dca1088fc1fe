package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// provenEntry is a reply of /verify, or an entry with a receipt.
type provenEntry struct {
	Seq        uint64
	Op         string
	Version    uint64
	Size       uint64
	SHA256     string
	LeafHash   string `json:"leaf_hash"`
	Leaf       []byte
	TreeSize   uint64 `json:"tree_size"`
	Root       string
	Inclusion  []string
	Checkpoint string
	Receipt    string
	Segment    *struct {
		ID   string
		Root string `json:"merkle_root"`
	}
	Verified bool
	Missing  *struct{ Code, Message string } `json:"receipt_error"`
}

// checkProven checks a proven entry as a client would that has value and trusts
// nothing but the ledger's key.
func checkProven(t testing.TB, body, vkey, value string) provenEntry {
	t.Helper()
	var p provenEntry
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	key, err := parseVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseHeader(p.Leaf)
	if err != nil {
		t.Fatalf("leaf: %v in %s", err, body)
	}
	if h.seq != p.Seq || h.version != p.Version || h.op.String() != p.Op || h.sum.String() != p.SHA256 || h.sum != sha256.Sum256([]byte(value)) {
		t.Errorf("the leaf says %+v, the entry %s", h, body)
	}
	leaf := leafHash(p.Leaf)
	r, err := parseReceipt(p.Receipt)
	if err != nil {
		t.Fatalf("receipt: %v in %s", err, body)
	}
	head, err := r.check(leaf, key)
	if err != nil {
		t.Fatalf("receipt: %v in %s", err, body)
	}
	path := []string{}
	for _, one := range r.proof {
		path = append(path, one.String())
	}
	if !bytes.Equal(r.extra, p.Leaf) || r.index != p.Seq || r.head.String() != p.Checkpoint || head.size != p.TreeSize || head.root.String() != p.Root ||
		p.LeafHash != leaf.String() || !slices.Equal(path, p.Inclusion) || p.Inclusion == nil || !p.Verified || p.Missing != nil {
		t.Errorf("receipt and fields differ: %s", body)
	}
	return p
}

// key returns the ledger's verifier key.
func (s *testServer) key() string {
	s.t.Helper()
	return strings.TrimSuffix(s.do("GET", "/ledger/key", "").body, "\n")
}

func TestVerify(t *testing.T) {
	s := newTestServer(t, nil)
	large := strings.Repeat("x", 700_000)
	values := map[string][]string{"a": {"one", "", "three"}, "b/c": {large}, "\xff": {"\x00"}}
	for _, k := range []string{"a", "b/c", "\xff"} {
		for _, v := range values[k] {
			s.do("PUT", "/"+url.PathEscape(k), v, "Content-Type: text/\"x")
		}
	}
	s.do("DELETE", "/a", "")
	root := rootOf(s.f.leaves(0, 3))
	s.f.man = manifest{version: 1, confirmed: 1, segments: []segmentInfo{{first: 0, count: 3, root: root}}}
	get := func(target string) httpReply {
		a := s.do("GET", target, "")
		if a.status != 200 || a.Get("Content-Type") != "application/json" {
			t.Fatalf("%s: %d %s", target, a.status, a.body)
		}
		return a
	}
	if p := checkProven(t, get("/verify/a?version=1").body, s.key(), "one"); p.Segment == nil || p.Segment.Root != root.String() || p.Segment.ID != s.f.man.segments[0].id() {
		t.Errorf("segment %+v", p.Segment)
	}
	checkProven(t, get("/verify/a?seq=1").body, s.key(), "")
	checkProven(t, get("/verify/a?at=2").body, s.key(), "three")
	checkProven(t, get("/verify/b%2fc").body, s.key(), large)
	checkProven(t, get("/verify/%ff?consistency=stale").body, s.key(), "\x00")
	for _, query := range []string{"", "?version=4", "?seq=5"} {
		if p := checkProven(t, get("/verify/a"+query).body, s.key(), ""); p.Op != "delete" || p.Seq != 5 || p.Segment != nil {
			t.Errorf("tombstone %+v", p)
		}
	}
	if s.f.signed != 1 {
		t.Errorf("%d heads were signed for a ledger that did not grow", s.f.signed)
	}
	s.check([]apiRow{
		{method: "HEAD", target: "/verify/a", status: 200, want: []string{"Content-Type: application/json"}},
		{method: "GET", target: "/verify/none", status: 404, code: "not_found"},
		{method: "GET", target: "/verify/a?version=9", status: 404, code: "not_found"},
		{method: "GET", target: "/verify/a?seq=9", status: 404, code: "not_found"},
		{method: "GET", target: "/verify/a?seq=3", status: 404, code: "not_found"},
		{method: "GET", target: "/verify/", status: 400, code: "empty_key"},
		{method: "GET", target: "/verify/%zz", status: 400, code: "malformed"},
		{method: "GET", target: "/verify/a?version=0", status: 400, code: "malformed"},
		{method: "GET", target: "/verify/a?version=1&seq=1", status: 400, code: "malformed"},
		{method: "GET", target: "/verify/a?consistency=maybe", status: 400, code: "malformed"},
		{method: "GET", target: "/verify/" + strings.Repeat("k", 1025), status: 400, code: "key_too_large"},
		{method: "POST", target: "/verify/a", status: 405, code: "method_not_allowed"},
		{method: "PUT", target: "/verify/a", status: 400, code: "reserved_key"},
		{method: "GET", target: "/verify", status: 404, code: "not_found"},
	})
	if n := s.o.metrics.proof.verified.value(); n != 9 {
		t.Errorf("%d entries were counted as verified, want 9", n)
	}
}

// failingValue is a stored value that cannot be read.
type failingValue struct{ err error }

func (v failingValue) ReadAt([]byte, int64) (int, error) { return 0, v.err }

// TestVerifyDamage: whatever differs is named, and nothing of it is served as verified.
func TestVerifyDamage(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(e *entry)
		in     string
	}{
		"value":      {func(e *entry) { e.value = strings.NewReader("onf") }, "entry 0: its value has SHA-256 " + sumHex("onf") + ", its header says " + sumHex("one")},
		"short":      {func(e *entry) { e.value = strings.NewReader("on") }, "the value cannot be read to its end: EOF"},
		"torn":       {func(e *entry) { e.value = failingValue{io.ErrUnexpectedEOF} }, "the value cannot be read to its end"},
		"bad sector": {func(e *entry) { e.value = failingValue{&fs.PathError{Op: "read", Path: "/x/y.seg", Err: syscall.EIO}} }, "they cannot be read"},
		"header":     {func(e *entry) { e.contentType = "text/y" }, "entry 0: its header and its canonical bytes differ"},
		"sum":        {func(e *entry) { e.sum[0]++ }, "entry 0: its header and its canonical bytes differ"},
		"leaf":       {func(e *entry) { e.leaf[0]++ }, "entry 0: its leaf hash is "},
		"whole leaf": {func(e *entry) { e.time++; e.raw = appendHeader(nil, &e.header); e.leaf = leafHash(e.raw) }, "entry 0: its proof does not lead to the root of the checkpoint of 2 entries"},
		"key":        {func(e *entry) { e.key = []byte("b") }, "entry 0: it is of another key than the one asked for"},
		"crc": {func(e *entry) {
			e.value = failingValue{fmt.Errorf("segment /x/y.seg: entry 0: %w: value at offset 7 has CRC 1, its bytes give 2", errCorrupt)}
		}, "on this node: entry 0: value at offset 7 has CRC 1, its bytes give 2"},
		"path": {func(e *entry) { e.value = failingValue{fmt.Errorf("run: %w: open /x/y", errCorrupt)} }, "on this node: they cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, nil)
			s.do("PUT", "/a", "one")
			s.do("PUT", "/other", "x")
			s.do("GET", "/verify/a", "") // the head is signed
			s.f.applied.L.Lock()
			c.damage(&s.f.entries[0])
			s.f.applied.L.Unlock()
			before := s.o.metrics.proof.verified.value()
			s.check([]apiRow{{method: "GET", target: "/verify/a", status: 409, code: "corrupt", in: c.in}})
			if s.o.metrics.proof.verified.value() != before {
				t.Error("counted as verified")
			}
			if a := s.do("GET", "/verify/a", ""); strings.Contains(a.body, `"verified"`) || strings.Contains(a.body, "/x/") {
				t.Errorf("reply %s", a.body)
			}
		})
	}
}

func sumHex(v string) string {
	sum := sha256.Sum256([]byte(v))
	return hex.EncodeToString(sum[:])
}

func TestVerifyUnavailable(t *testing.T) {
	s := newTestServer(t, func(o *serverOptions, _ *fakeLedger) { o.readTimeout = 20 * time.Millisecond })
	s.do("PUT", "/a", "x")
	s.f.headHold = true
	s.check([]apiRow{
		{method: "GET", target: "/verify/a", status: 503, code: "timeout", in: "no checkpoint was signed in time"},
		{method: "GET", target: "/ledger/checkpoint", status: 503, code: "timeout", in: "no checkpoint was signed in time"},
	})
	s.f.headHold, s.f.headFail = false, errNoLeader
	s.check([]apiRow{
		{method: "GET", target: "/verify/a", status: 503, code: "no_leader"},
		{method: "GET", target: "/ledger/key", status: 503, code: "no_leader"},
		{method: "GET", target: "/ledger/keys", status: 503, code: "no_leader"},
	})
	s.f.headFail, s.f.fail = nil, errNoLeader
	s.check([]apiRow{
		{method: "GET", target: "/verify/a", status: 503, code: "no_leader"},
		{method: "GET", target: "/verify/a?consistency=stale", status: 200},
		{method: "POST", target: "/cluster/rotate-key", status: 503, code: "no_leader"},
	})
}

func TestReceipts(t *testing.T) {
	s := newTestServer(t, nil)
	send := func(method, target, body string, status int, headers ...string) provenEntry {
		t.Helper()
		a := s.do(method, target, body, headers...)
		if a.status != status || method == "PUT" && a.Get("Etag") == "" {
			t.Fatalf("%s %s: %d %s", method, target, a.status, a.body)
		}
		return checkProven(t, a.body, s.key(), body)
	}
	send("PUT", "/a?receipt=true", "one", 201)
	send("PUT", "/a?receipt=1", "", 200)
	first := send("PUT", "/b?receipt=true", "again", 201, "Idempotency-Key: k")
	if p := send("DELETE", "/a?receipt=true", "", 200); p.Op != "delete" || p.Seq != 3 {
		t.Errorf("tombstone %+v", p)
	}
	if p := send("PUT", "/b?receipt=true", "again", 201, "Idempotency-Key: k"); p.Seq != first.Seq {
		t.Errorf("repeat %+v", p)
	}
	large := strings.Repeat("y", 900_000)
	send("PUT", "/large?receipt=true", large, 201)
	s.check([]apiRow{
		{method: "PUT", target: "/a?receipt=maybe", body: "x", status: 400, code: "malformed"},
		{method: "DELETE", target: "/b?receipt=maybe", status: 400, code: "malformed"},
		{method: "POST", target: "/batch?receipt=maybe", body: "{}", headers: []string{"Content-Type: application/json"}, status: 400, code: "malformed"},
		{method: "POST", target: "/batch?receipt=maybe", body: "{}", headers: []string{"Content-Type: application/x-ndjson"}, status: 400, code: "malformed"},
		{method: "PUT", target: "/a?receipt=true", body: "x", headers: []string{`If-Match: "0"`}, status: 412, code: "precondition_failed"},
		{method: "DELETE", target: "/none?receipt=true", status: 404, code: "not_found"},
		{method: "GET", target: "/history/a", status: 200, in: `"seq":3`},
	})
	if n := s.o.metrics.proof.receipts.value(); n != 6 {
		t.Errorf("%d receipts were counted, want 6", n)
	}
}

// TestReceiptMissing: a write that is committed is never reported as failed
// because its receipt is.
func TestReceiptMissing(t *testing.T) {
	for name, c := range map[string]struct {
		change func(f *fakeLedger)
		code   string
		in     string
	}{
		"no leader":   {func(f *fakeLedger) { f.headFail = errNoLeader }, "unavailable", "is committed"},
		"broken":      {func(f *fakeLedger) { f.headFail = errors.New("/secret/path") }, "unavailable", "is committed"},
		"slow":        {func(f *fakeLedger) { f.headHold = true }, "timeout", "is committed"},
		"not applied": {func(f *fakeLedger) { f.lag = 1 }, "timeout", "is committed"},
		"damaged": {func(f *fakeLedger) {
			f.headFail = fmt.Errorf("node.key: %w: it is torn", errCorrupt)
		}, "corrupt", "it is torn"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, func(o *serverOptions, f *fakeLedger) {
				o.readTimeout = 20 * time.Millisecond
				c.change(f)
			})
			missing := func(body string, seq uint64) {
				t.Helper()
				var p provenEntry
				if err := json.Unmarshal([]byte(body), &p); err != nil || p.Seq != seq || p.LeafHash == "" || p.Verified || p.Receipt != "" || p.Missing == nil ||
					p.Missing.Code != c.code || !strings.Contains(p.Missing.Message, c.in) || strings.Contains(body, "/secret") {
					t.Errorf("%v: %s", err, body)
				}
			}
			a := s.do("PUT", "/a?receipt=true", "x")
			if a.status != 201 || a.Get("Etag") != `"0"` {
				t.Errorf("%d %s", a.status, a.body)
			}
			missing(a.body, 0)
			a = s.do("POST", "/batch?receipt=true", `{"ops":[{"op":"put","key":"b","value":"1"}]}`, "Content-Type: application/json")
			a.body = strings.TrimSuffix(strings.TrimPrefix(a.body, `{"results":[`), "]}\n")
			missing(a.body, 1)
			a = s.do("POST", "/batch?receipt=true", `{"op":"put","key":"b","value":"1"}`, "Content-Type: application/x-ndjson")
			missing(a.body, 2)
			if n := s.o.metrics.proof.missing.value(); n != 3 || a.status != 200 {
				t.Errorf("%d receipts were counted as missing, want 3", n)
			}
		})
	}
}

// TestReceiptFollows: a node that does not have the write yet waits for it.
func TestReceiptFollows(t *testing.T) {
	s := newTestServer(t, func(_ *serverOptions, f *fakeLedger) { f.lag = 1 })
	answered := make(chan httpReply, 1)
	go func() { answered <- s.do("PUT", "/a?receipt=true", "x") }()
	s.f.applied.L.Lock()
	for len(s.f.entries) == 0 {
		s.f.applied.Wait()
	}
	s.f.lag = 0
	s.f.applied.L.Unlock()
	s.f.applied.Broadcast()
	checkProven(t, (<-answered).body, s.key(), "x")
}

func TestBatchReceipts(t *testing.T) {
	s := newTestServer(t, nil)
	s.do("PUT", "/gone", "x")
	ops := []string{`{"op":"put","key":"a","value":"1"}`, `{"op":"put","key":"b","value":"2"}`, `{"op":"delete","key":"gone"}`}
	values := []string{"1", "2", ""}
	a := s.do("POST", "/batch?receipt=true", `{"ops":[`+strings.Join(ops, ",")+`]}`, "Content-Type: application/json", "Idempotency-Key: k")
	var batch struct{ Results []json.RawMessage }
	if err := json.Unmarshal([]byte(a.body), &batch); err != nil || len(batch.Results) != 3 || a.Get("Content-Type") != "application/json" {
		t.Fatalf("%v: %s", err, a.body)
	}
	for i, r := range batch.Results {
		checkProven(t, string(r), s.key(), values[i])
	}
	if s.f.signed != 1 {
		t.Errorf("%d heads were signed for one batch", s.f.signed)
	}
	again := s.do("POST", "/batch?receipt=true", `{"ops":[`+strings.Join(ops, ",")+`]}`, "Content-Type: application/json", "Idempotency-Key: k")
	if again.body != a.body {
		t.Errorf("the repeat answered %s", again.body)
	}

	a = s.do("POST", "/batch?receipt=true", strings.Join(ops[:2], "\n")+"\n{}\n"+ops[0], "Content-Type: application/x-ndjson")
	lines := strings.Split(strings.TrimSuffix(a.body, "\n"), "\n")
	if len(lines) != 4 || codeOf(lines[2]) != "malformed" {
		t.Fatalf("reply %s", a.body)
	}
	for i, v := range []string{"1", "2", "", "1"} {
		if i != 2 {
			checkProven(t, lines[i], s.key(), v)
		}
	}
	s.check([]apiRow{
		{method: "POST", target: "/batch?receipt=true", body: `{"ops":[{"op":"put","key":"a","value":"1","if_absent":true}]}`, headers: []string{"Content-Type: application/json"},
			status: 412, code: "precondition_failed", in: `"failed_op":0`},
	})
}

// TestReceiptText holds the JSON written by hand to encoding/json and to receipt.String.
func TestReceiptText(t *testing.T) {
	s := newTestServer(t, nil)
	for i := range 9 {
		s.do("PUT", fmt.Sprintf("/%d", i), "x")
	}
	a := s.do("GET", "/verify/3", "")
	p := checkProven(t, a.body, s.key(), "x")
	r, err := parseReceipt(p.Receipt)
	if err != nil || r.String() != p.Receipt {
		t.Errorf("receipt %q, again %q: %v", p.Receipt, r.String(), err)
	}
	quoted, _ := json.Marshal(p.Receipt)
	if !strings.Contains(a.body, strings.NewReplacer(`\u003c`, "<").Replace(string(quoted))) {
		t.Errorf("%s\nis not in\n%s", quoted, a.body)
	}
	names := []string{"seq", "key", "op", "version", "prev", "time", "size", "sha256", "content_type", "author", "region", "leaf_hash",
		"leaf", "tree_size", "root", "inclusion", "checkpoint", "receipt", "segment", "verified"}
	d := json.NewDecoder(strings.NewReader(a.body))
	d.Token()
	for _, want := range names {
		name, err := d.Token()
		if name != want || err != nil {
			t.Fatalf("field %v, want %s: %v", name, want, err)
		}
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
	}
	if end, _ := d.Token(); end != json.Delim('}') {
		t.Errorf("%v follows", end)
	}
	if _, err := d.Token(); err != io.EOF {
		t.Errorf("after the object: %v", err)
	}
}
