package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestCheckpoint(t *testing.T) {
	s := newTestServer(t, nil)
	s.check([]apiRow{{method: "GET", target: "/ledger/checkpoint", status: 200, in: "\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"}})
	for i := range 5 {
		s.do("PUT", "/a", "x")
		a := s.do("GET", "/ledger/checkpoint", "")
		if a.status != 200 || a.Get("Content-Type") != "text/plain; charset=utf-8" || a.Get("Cache-Control") != "no-store" {
			t.Fatalf("%d %v %s", a.status, a.Header, a.body)
		}
		n, err := parseNote(a.body)
		if err != nil {
			t.Fatal(err)
		}
		key, _ := parseVerifier(s.key())
		h, err := openTreeHead(n, key)
		if err != nil || h.size != uint64(i)+1 || h.root != rootOf(s.f.leaves(0, h.size)) {
			t.Errorf("after %d writes the head is %+v: %v", i+1, h, err)
		}
	}
	s.check([]apiRow{
		{method: "HEAD", target: "/ledger/checkpoint", status: 200, want: []string{"Content-Type: text/plain; charset=utf-8"}},
		{method: "GET", target: "/ledger/checkpoint?consistency=stale", status: 200, want: []string{"Scribe-Last-Contact: 0"}},
		{method: "GET", target: "/ledger/checkpoint?consistency=x", status: 400, code: "malformed"},
		{method: "GET", target: "/ledger/checkpoint/", status: 404, code: "not_found"},
		{method: "PUT", target: "/ledger/checkpoint", status: 400, code: "reserved_key"},
	})
}

func TestLedgerKeys(t *testing.T) {
	s := newTestServer(t, nil)
	first := s.f.keys[0].String()
	s.check([]apiRow{
		{method: "GET", target: "/ledger/key", status: 200, in: first + "\n", want: []string{"Content-Type: text/plain; charset=utf-8"}},
		{method: "GET", target: "/ledger/keys", status: 200, in: `{"current":"` + first + `","former":[],"nodes":{"1":"one","2":"two"}}`},
		{method: "GET", target: "/cluster/rotate-key", status: 405, code: "method_not_allowed"},
	})
	a := s.do("POST", "/cluster/rotate-key", "")
	second := s.f.keys[1].String()
	if a.status != 200 || a.body != `{"key":"`+second+"\"}\n" || first == second {
		t.Errorf("%d %s", a.status, a.body)
	}
	s.check([]apiRow{
		{method: "GET", target: "/ledger/key", status: 200, in: second + "\n"},
		{method: "GET", target: "/ledger/keys", status: 200, in: `"former":["hand-over to ` + second + `"]`},
	})
}

// TestProofs asks for every proof of a small ledger and checks it.
func TestProofs(t *testing.T) {
	s := newTestServer(t, nil)
	const most = 11
	for i := range most {
		s.do("PUT", "/a", fmt.Sprint(i))
	}
	roots := []hash{emptyRoot}
	for size := uint64(1); size <= most; size++ {
		roots = append(roots, rootOf(s.f.leaves(0, size)))
	}
	for size := uint64(0); size <= most; size++ {
		for seq := range size {
			var p struct {
				Seq       uint64
				TreeSize  uint64 `json:"tree_size"`
				LeafHash  string `json:"leaf_hash"`
				Inclusion []string
				Root      string
			}
			s.decode(fmt.Sprintf("/ledger/proof?seq=%d&size=%d", seq, size), &p)
			if p.Seq != seq || p.TreeSize != size || p.LeafHash != s.f.entries[seq].leaf.String() || p.Root != roots[size].String() {
				t.Fatalf("%d in %d: %+v", seq, size, p)
			}
			if err := checkInclusion(s.f.entries[seq].leaf, seq, size, hashesOf(t, p.Inclusion), roots[size]); err != nil {
				t.Errorf("%d in %d: %v", seq, size, err)
			}
		}
		for from := uint64(0); from <= size; from++ {
			var p struct {
				From, To uint64
				Proof    []string
				FromRoot string `json:"from_root"`
				ToRoot   string `json:"to_root"`
			}
			s.decode(fmt.Sprintf("/ledger/consistency?from=%d&to=%d", from, size), &p)
			if p.From != from || p.To != size || p.FromRoot != roots[from].String() || p.ToRoot != roots[size].String() || p.Proof == nil {
				t.Fatalf("%d to %d: %+v", from, size, p)
			}
			if err := checkConsistency(from, size, hashesOf(t, p.Proof), roots[from], roots[size]); err != nil {
				t.Errorf("%d to %d: %v", from, size, err)
			}
		}
	}
	row := func(target string, status int, code, in string) apiRow {
		return apiRow{method: "GET", target: "/ledger/" + target, status: status, code: code, in: in}
	}
	s.check([]apiRow{
		row("proof?seq=3", 200, "", `"tree_size":11`),
		row("proof?seq=3&size=11&consistency=stale", 200, "", ""),
		row("proof", 400, "malformed", "names no seq"),
		row("proof?size=3", 400, "malformed", "names no seq"),
		row("proof?seq=-1&size=3", 400, "malformed", ""),
		row("proof?seq=1&size=03", 400, "malformed", ""),
		row("proof?seq=1&size=x", 400, "malformed", ""),
		row("proof?seq=1&seq=1&size=3", 400, "malformed", "given twice"),
		row("proof?seq=99999999999999999999&size=3", 400, "malformed", ""),
		row("proof?seq=3&size=3", 400, "malformed", "seq is 3, not in a tree of 3 entries"),
		row("proof?seq=0&size=0", 400, "malformed", ""),
		row("proof?seq=3&size=5&consistency=x", 400, "malformed", ""),
		row("proof?seq=3&size=12", 404, "not_found", "size is 12, the ledger has 11 entries"),
		row("proof?seq=11", 404, "not_found", "seq is 11, the ledger has 11 entries"),
		row("proof?seq=11&size=5", 404, "not_found", ""),
		row("proof?seq=18446744073709551615&size=18446744073709551615", 404, "not_found", ""),
		row("consistency?from=0&to=5", 200, "", `"proof":[],"from_root":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`),
		row("consistency?from=5&to=5", 200, "", `"proof":[]`),
		row("consistency?from=5", 200, "", `"to":11`),
		row("consistency", 400, "malformed", "names no from"),
		row("consistency?to=5", 400, "malformed", "names no from"),
		row("consistency?from=x&to=5", 400, "malformed", ""),
		row("consistency?from=5&to=", 400, "malformed", ""),
		row("consistency?from=6&to=5", 400, "malformed", "from is 6, to is 5"),
		row("consistency?from=3&to=5&consistency=x", 400, "malformed", ""),
		row("consistency?from=5&to=12", 404, "not_found", "to is 12, the ledger has 11 entries"),
		row("consistency?from=12&to=5", 404, "not_found", ""),
		row("consistency?from=12&to=13", 404, "not_found", ""),
	})
	s.f.applied.L.Lock()
	s.f.entries[4].leaf[0]++
	s.f.applied.L.Unlock()
	s.check([]apiRow{row("proof?seq=4&size=9", 200, "", "")}) // the tree is of the same bytes
}

// decode gets target and decodes its JSON.
func (s *testServer) decode(target string, v any) {
	s.t.Helper()
	a := s.do("GET", target, "")
	if err := json.Unmarshal([]byte(a.body), v); err != nil || a.status != 200 || a.Get("Content-Type") != "application/json" {
		s.t.Fatalf("%s: %d %s: %v", target, a.status, a.body, err)
	}
}

func hashesOf(t testing.TB, list []string) []hash {
	t.Helper()
	var hashes []hash
	for _, one := range list {
		h, err := parseHash(one)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, h)
	}
	return hashes
}

func TestTiles(t *testing.T) {
	s := newTestServer(t, nil)
	for i := range 258 {
		o := operation{kind: opPut, key: []byte("a"), value: fmt.Append(nil, i), ifSeq: noSeq}
		if _, err := s.f.apply(&request{ops: []operation{o}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, width := range []int{1, 2, 255} {
		a := s.do("GET", fmt.Sprintf("/ledger/tile/0/000.p/%d", width), "")
		if want, _ := s.f.tile(tileID{0, 0, width}); a.body != string(want) || len(a.body) != 32*width || a.Get("Content-Type") != "application/octet-stream" || a.Get("Cache-Control") != immutable {
			t.Errorf("width %d: %d %v", width, a.status, a.Header)
		}
	}
	bundle, _ := s.f.tile(tileID{entryTile, 1, 2})
	row := func(target string, status int, code string) apiRow {
		return apiRow{method: "GET", target: "/ledger/tile/" + target, status: status, code: code}
	}
	rows := []apiRow{
		{method: "GET", target: "/ledger/tile/entries/001.p/2", status: 200, in: string(bundle), want: []string{"Cache-Control: " + immutable, "Content-Type: application/octet-stream"}},
		{method: "GET", target: "/ledger/tile/0/000", status: 200, want: []string{"Content-Length: 8192"}},
		{method: "HEAD", target: "/ledger/tile/0/000", status: 200, want: []string{"Content-Length: 8192"}},
		{method: "PUT", target: "/ledger/tile/0/000", status: 400, code: "reserved_key"},
		row("0/001", 404, "not_found"),
		row("0/001.p/3", 404, "not_found"),
		row("entries/002.p/1", 404, "not_found"),
		row("5/000", 404, "not_found"),
		row("0/x018/446/744/073/709/551/615", 400, "malformed"),
	}
	for _, path := range badTilePaths {
		rows = append(rows, row(path, 400, "malformed"))
	}
	s.check(rows)
	s.f.applied.L.Lock()
	s.f.lag = 2 // the tile is in a checkpoint of another node, but not here
	s.f.applied.L.Unlock()
	s.check([]apiRow{row("0/001.p/1", 404, "not_found"), row("0/001.p/1?consistency=x", 400, "malformed"), row("0/000", 200, "")})
}

// badTilePaths are paths no tile has: each tile has one path.
var badTilePaths = []string{
	"", "0", "0/", "/000", "0/0", "0/00", "0/0000", "0/000/", "0//000", "0/000.p", "0/000.p/", "0/000.p/0", "0/000.p/256", "0/000.p/01", "0/000.p/-1", "0/000.p/1/",
	"0/000.P/1", "0/001/000", "0/x000/000", "0/x001", "0/X001/000", "00/000", "-1/000", "+0/000", "64/000", "entry/000", "Entries/000", "entries", "0/%30%30%30", "%30/000",
	"0/000%00", "0/../0/000", "0/000.p/1.p/1", "0/١٢٣", strings.Repeat("9/", 40),
}
