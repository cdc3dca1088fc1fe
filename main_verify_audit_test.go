package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// auditBytes audits one segment file in memory.
func auditBytes(name string, data []byte) (auditedSegment, error) {
	return auditParts(name, data, 1+len(data)%3)
}

// auditParts is auditBytes with the entries in so many parts.
func auditParts(name string, data []byte, parts int) (auditedSegment, error) {
	tag := func(key []byte) uint64 { return uint64(crc32.ChecksumIEEE(key)) }
	s := &segmentAudit{src: bytes.NewReader(data), size: int64(len(data)), name: name, tag: tag, parts: parts, done: new(atomic.Int64)}
	found, err := s.run()
	if err == nil && name != "" && found.id()+segmentSuffix != name {
		err = fmt.Errorf("the entries make it %s", found.id())
	}
	return found, err
}

// Any flipped bit of a segment file is found, and so is any cut.
func TestAuditFlips(t *testing.T) {
	t.Parallel()
	h := newHonest(t, 1)
	h.fill(8)
	h.put("key 3", nil)
	h.put("large", bytes.Repeat([]byte("large"), 100))
	s := h.seal()
	name := s.info.id() + segmentSuffix
	if _, err := auditBytes(name, s.data); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d, %d bytes", seed, len(s.data))
	r := rand.New(rand.NewPCG(seed, 0))
	flips := 10_000
	for range flips {
		bit := r.IntN(8 * len(s.data))
		s.data[bit/8] ^= 1 << (bit % 8)
		_, err := auditBytes(name, s.data)
		s.data[bit/8] ^= 1 << (bit % 8)
		if err == nil {
			t.Fatalf("bit %d of byte %d flipped: not found", bit%8, bit/8)
		}
		if !strings.Contains(err.Error(), "offset ") {
			t.Fatalf("bit %d of byte %d flipped: no offset in %q", bit%8, bit/8, err)
		}
	}
	t.Logf("%d of %d flips found", flips, flips)
	for i := range s.data {
		s.data[i] ^= 0xff
		_, err := auditBytes(name, s.data)
		s.data[i] ^= 0xff
		_, cut := auditBytes(name, s.data[:i])
		if err == nil || cut == nil {
			t.Fatalf("byte %d: inverted %v, cut there %v", i, err, cut)
		}
	}
}

// auditFolder writes segments into a folder.
func auditFolder(t *testing.T, segments ...sealedBytes) string {
	dir := t.TempDir()
	for _, s := range segments {
		if err := os.WriteFile(filepath.Join(dir, s.info.id()+segmentSuffix), s.data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// sealedLedger returns a ledger of three segments.
func sealedLedger(t testing.TB) *honest {
	h := newHonest(t, 1)
	for _, n := range []int{30, 600, 10} {
		h.fill(n)
		h.seal()
	}
	return h
}

func TestAuditFolder(t *testing.T) {
	h := sealedLedger(t)
	dir := auditFolder(t, h.segments...)
	out := exits(t, "", 0, "audited    3 segments, 640 entries", "audit", "--data", dir)
	if root := h.head(640).root.String(); !strings.Contains(out, "tree       640 entries, root "+root) {
		t.Error("no root", root, "in", out)
	}
	key := h.signer.String()
	at := func(size uint64) string { return write(t, h.checkpoint(h.head(size))) }
	for _, size := range []uint64{0, 1, 30, 333, 640} {
		exits(t, "", 0, "agrees", "audit", "--data", dir, "--key", key, "--checkpoint", at(size))
	}
	forked := h.head(333)
	forked.root[0] ^= 1
	exits(t, "", 1, "the checkpoint of 333 entries has root", "audit", "--data", dir, "--key", key, "--checkpoint", write(t, h.checkpoint(forked)))
	more := forked
	more.size = 641
	exits(t, "", 1, "has 641 entries, the bytes here only 640", "audit", "--data", dir, "--key", key, "--checkpoint", write(t, h.checkpoint(more)))
	exits(t, "", 2, "no segment files", "audit", "--data", t.TempDir())
	exits(t, "", 2, "no such file", "audit", "--data", "/nowhere")
	exits(t, "", 2, "either --data or --url", "audit")
	exits(t, "", 2, "needs --data and --key", "audit", "--data", dir, "--checkpoint", at(1))

	exits(t, "", 1, "entries 30 to 629 are missing before it", "audit", "--data", auditFolder(t, h.segments[0], h.segments[2]))
	exits(t, "", 1, "entries 0 to 29 are missing before it", "audit", "--data", auditFolder(t, h.segments[1]))
	foreign := newHonest(t, 2)
	foreign.fill(700)
	foreign.segments = h.segments[:1:1]
	exits(t, "", 1, "cluster is 02", "audit", "--data", auditFolder(t, h.segments[0], foreign.seal()))
	renamed := h.segments[1]
	renamed.info.root[3] ^= 1
	exits(t, "", 1, "the entries make it", "audit", "--data", auditFolder(t, h.segments[0], renamed))
}

// However many parts there are, they find the same, also where one ends and the
// next begins.
func TestAuditParts(t *testing.T) {
	h := newHonest(t, 1)
	h.fill(300)
	for range 40 {
		h.put("the same", nil)
	}
	s := h.seal()
	name := s.info.id() + segmentSuffix
	want, err := auditParts(name, s.data, 1)
	if err != nil || len(want.tiles) != 1 || want.root != s.info.root {
		t.Fatalf("%d tiles, root %s, %v", len(want.tiles), want.root, err)
	}
	for _, parts := range []int{2, 3, 7, 340, 1000} {
		found, err := auditParts(name, s.data, parts)
		if err != nil || found.root != want.root || !slices.Equal(found.leaves, want.leaves) || !slices.Equal(found.tiles, want.tiles) {
			t.Fatalf("%d parts: %v", parts, err)
		}
		for i, runs := range found.links {
			if !slices.Equal(slices.Concat(runs...), slices.Concat(want.links[i]...)) {
				t.Errorf("%d parts: other links", parts)
			}
		}
	}
}

// However many parts there are, they find the same difference first.
func TestAuditPartsFlipped(t *testing.T) {
	h := newHonest(t, 1)
	h.fill(30)
	for range 10 {
		h.put("the same", nil)
	}
	s := h.seal()
	name := s.info.id() + segmentSuffix
	footer, err := parseSegmentFooter(s.data[len(s.data)-segmentFooterSize:], int64(len(s.data)))
	if err != nil {
		t.Fatal(err)
	}
	for at := int(footer.recordsAt); at < len(s.data); at++ {
		s.data[at] ^= 0x40
		_, one := auditParts(name, s.data, 1)
		_, three := auditParts(name, s.data, 3)
		s.data[at] ^= 0x40
		if one == nil || three == nil || one.Error() != three.Error() {
			t.Fatalf("offset %d: one part: %v\nthree parts: %v", at, one, three)
		}
	}
}

// The roots that a segment's worker derives are those that leaf after leaf gives.
func TestDerivedRoots(t *testing.T) {
	leaves := make([]hash, 1600)
	for i := range leaves {
		leaves[i] = leafHash([]byte{byte(i), byte(i >> 8)})
	}
	for _, first := range []int{1, 2, 64, 200, 255, 256, 300, 512, 768} {
		for _, end := range []int{first + 1, first + 2, first + 255, first + 256, first + 257, 1030, 1100, 1600} {
			var tree derivedTree
			tree.heads = []treeHead{{size: uint64(first+end) / 2, root: rootOf(leaves[:(first+end)/2])}}
			for _, run := range [][2]int{{0, first}, {first, end}} {
				part := leaves[run[0]:run[1]]
				root, tiles := derivedRoots(uint64(run[0]), part)
				if err := tree.appendAll(part, tiles); err != nil || root != rootOf(part) {
					t.Errorf("entries %d to %d: root %s, %v", run[0], run[1], root, err)
				}
			}
			if tree.size != uint64(end) || tree.root() != rootOf(leaves[:end]) || len(tree.heads) != 0 {
				t.Errorf("entries %d to %d: another tree of %d, %d heads left", first, end, tree.size, len(tree.heads))
			}
		}
	}
}

// A shortHasher hashes as the standard library does, and does so in its own way.
func TestShortHasher(t *testing.T) {
	h := newShortHasher()
	if !h.works {
		t.Error("this Go marshals its digests in another way: audit is slower than it could be")
	}
	b := bytes.Repeat([]byte("0123456789abcdef~"), 40)
	for _, works := range []bool{h.works, false} {
		h.works = works
		for n := range b {
			if got, want := h.sum(b[:n]), hash(sha256.Sum256(b[:n])); got != want {
				t.Fatalf("%d bytes: %s, want %s", n, got, want)
			}
		}
		left, right := hash(b[1:33]), hash(b[40:72])
		if h.node(&left, &right) != nodeHash(left, right) {
			t.Error("another node")
		}
	}
}

// FuzzRecordView demands that a view accepts what parseRecord does, and reads the same.
func FuzzRecordView(f *testing.F) {
	for _, h := range []header{
		{op: opPut, seq: 7, version: 2, prev: 3, time: 5, size: 9, sum: hash{1}, key: []byte("k"), contentType: "é", author: "a", region: "r"},
		{op: opDelete, seq: 7, version: 1, prev: noSeq, sum: emptyRoot, key: bytes.Repeat([]byte{0xff}, maxKeySize)},
	} {
		f.Add(appendHeader(nil, &h))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		b := appendRecord(nil, 64, &pendingEntry{raw: raw, value: []byte("v")})
		r, err := parseRecord(b)
		v, viewed := viewRecord(b)
		if (err == nil) != (viewed == nil) {
			t.Fatalf("parsed: %v, viewed: %v", err, viewed)
		}
		if err != nil {
			return
		}
		h := header{v.op(), v.seq(), v.version(), v.prev(), v.time(), v.size(), v.sum(), v.key(), r.header.contentType, r.header.author, r.header.region}
		if field := differentField(&h, &r.header); field != "" || v.valueAt() != r.valueAt || v.valueCRC() != r.valueCRC || !bytes.Equal(v.raw(), r.raw) {
			t.Fatalf("another %s", field)
		}
	})
}

// The first difference is told, whichever segment is audited sooner.
func TestAuditFirstDifference(t *testing.T) {
	h := sealedLedger(t)
	s := h.segments[1]
	s.data = bytes.Clone(s.data)
	s.data[len(s.data)-100] ^= 1 // the directory's end
	s.data[segmentHeaderSize+700] ^= 1
	last := h.segments[2]
	last.data = bytes.Clone(last.data)
	last.data[3] ^= 1
	out := exits(t, "", 1, "not verified", "audit", "--data", auditFolder(t, h.segments[0], s, last))
	if !strings.Contains(out, s.info.id()) || !strings.Contains(out, "SHA-256") || !strings.Contains(out, "entry ") {
		t.Errorf("want a value of %s, got %s", s.info.id(), out)
	}
}

// A chain of versions that is broken is told, within a segment and across two.
func TestAuditChain(t *testing.T) {
	for _, c := range []struct {
		name, said    string
		version, prev uint64
		key           string
	}{
		{"version left out", "version 4 of key \"k\" names entry 5 as the one before, it is entry 5, version 2", 4, 5, "k"},
		{"previous one left out", "version 2 of key \"k\" names entry 0 as the one before, it is entry 5, version 2", 2, 0, "k"},
		{"another key's", "version 3 of key \"new\" names entry 5 as the one before, there is none", 3, 5, "new"},
		{"begun again", "version 1 of key \"k\" names none as the one before, it is entry 5", 1, noSeq, "k"},
	} {
		for _, sealBetween := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, sealBetween), func(t *testing.T) {
				h := newHonest(t, 1)
				h.put("k", nil)
				h.fill(4)
				h.put("k", nil)
				if sealBetween {
					h.seal()
				}
				h.append(header{op: opDelete, seq: 6, version: c.version, prev: c.prev, time: 1_800_000_000_000, sum: emptyRoot, key: []byte(c.key)}, nil)
				h.seal()
				out := exits(t, "", 1, c.said, "audit", "--data", auditFolder(t, h.segments...))
				if !strings.Contains(out, segmentSuffix+": offset ") || !strings.Contains(out, "entry 6") {
					t.Error(out)
				}
			})
		}
	}
}

// Time that goes back and a seq that is not the next are found.
func TestAuditOrder(t *testing.T) {
	for said, change := range map[string]func(*header){
		"time goes back from 1700000000001 to 1699999999999": func(e *header) { e.time = 1_699_999_999_999 },
		"the record is of entry 8":                           func(e *header) { e.seq = 8 },
	} {
		h := newHonest(t, 1)
		h.fill(5)
		e := header{op: opDelete, seq: 5, version: 1, prev: noSeq, time: 1_800_000_000_000, sum: emptyRoot, key: []byte("x")}
		change(&e)
		h.append(e, nil)
		h.seal()
		exits(t, "", 1, said, "audit", "--data", auditFolder(t, h.segments...))
	}
}

// Keys that share a tag are told apart.
func TestChainsCollide(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, tags := range []uint64{1, 3, 1000} {
		c := newChains(0)
		c.tag = func(key []byte) uint64 { return uint64(key[0]) % tags }
		var entries []header
		c.find = func(seq uint64) (header, string, error) { return entries[seq], "here", nil }
		heads := make(map[byte]chainHead)
		add := func(k byte, head chainHead, seen bool) error {
			h := header{seq: uint64(len(entries)), key: []byte{k}, version: 1, prev: noSeq}
			if seen {
				h.version, h.prev = head.version+1, head.seq
			}
			entries = append(entries, h)
			return c.add(&link{c.tag(h.key), h.seq, h.version, h.prev})
		}
		for range 500 {
			k := byte(r.IntN(20))
			head, seen := heads[k]
			if err := add(k, head, seen); err != nil {
				t.Fatalf("%d tags: %v", tags, err)
			}
			heads[k] = chainHead{uint64(len(entries)) - 1, entries[len(entries)-1].version}
		}
		for k := range byte(20) {
			if err := add(k, heads[(k+1)%20], true); err == nil {
				t.Fatalf("%d tags: key %d goes on from another key", tags, k)
			}
		}
	}
}

// A table that grows keeps what it has.
func TestHeadTable(t *testing.T) {
	table := newHeadTable(3)
	want := make(map[uint64]chainHead)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range uint64(10_000) {
		tag := r.Uint64()
		if i%3 == 0 {
			tag = i % 600 // all in the first slots
		}
		slot, seen := table.find(tag)
		if head, had := want[tag]; seen != had || slot.chainHead != head {
			t.Fatalf("tag %x: %v, %v, want %v", tag, slot.chainHead, seen, head)
		}
		slot.chainHead = chainHead{i, slot.version + 1}
		want[tag] = slot.chainHead
		if !seen {
			table.take(slot, tag)
		}
	}
	if table.used != len(want) || len(table.slots) < len(want) {
		t.Errorf("%d of %d slots, want %d", table.used, len(table.slots), len(want))
	}
}

func TestAuditServer(t *testing.T) {
	h := sealedLedger(t)
	h.fill(100)
	h.put("gone", nil)
	folder := t.TempDir()
	args := []string{"audit", "--url", h.url}
	out := exits(t, folder, 0, "agrees, and 4 tiles", args...) // 0/000, 0/001, 0/002.p, 1/000.p
	for _, text := range []string{"pinned     " + h.signer.String(), "3 segments, 741 entries", "pending    101 entries", h.head(741).root.String()} {
		if !strings.Contains(out, text) {
			t.Errorf("no %q in:\n%s", text, out)
		}
	}
	empty := newHonest(t, 3)
	exits(t, folder, 0, "0 segments, 0 entries", "audit", "--url", empty.url)
}

// Every lie of a server about its ledger is found.
func TestAuditServerLies(t *testing.T) {
	t.Parallel()
	h := sealedLedger(t)
	h.fill(100)
	on := func(prefix string, f func(b []byte) []byte) func(string, []byte) []byte {
		return func(path string, reply []byte) []byte {
			if strings.HasPrefix(path, prefix) && reply != nil {
				return f(bytes.Clone(reply))
			}
			return reply
		}
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 1; return b }
	}
	swap := func(old, now string) func([]byte) []byte {
		return func(b []byte) []byte {
			if !bytes.Contains(b, []byte(old)) {
				t.Errorf("no %q in %.300s", old, b)
			}
			return bytes.Replace(b, []byte(old), []byte(now), 1)
		}
	}
	sum := h.segments[1].info.sum.String()
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	forked := h.head(740)
	forked.root[0] ^= 1
	for name, c := range map[string]struct {
		said string
		lie  func(string, []byte) []byte
	}{
		"value in a segment": {"SHA-256", on("/ledger/segments/"+h.segments[1].info.id(), flip(segmentHeaderSize+9))},
		"short segment":      {"the manifest says", on("/ledger/segments/", cut)},
		"endless segment":    {"the manifest says", on("/ledger/segments/", func(b []byte) []byte { return append(b, b...) })},
		"sum of a segment":   {"file has SHA-256", on("/ledger/manifest", swap(sum, h.segments[0].info.sum.String()))},
		"hex of a segment":   {"want 64", on("/ledger/manifest", swap(sum, "x"))},
		"gap":                {"want them from", on("/ledger/manifest", swap(`"first_seq":30`, `"first_seq":31`))},
		"count":              {"manifest", on("/ledger/manifest", swap(`"count":600`, `"count":601`))},
		"no JSON":            {"request failed", on("/ledger/manifest", cut)},
		"first tile":         {"tile 0/000: offset 64", on("/ledger/tile/0/000", flip(64))},
		"last tile":          {"tile 1/000.p/2: offset 1", on("/ledger/tile/1/000.p/2", flip(1))},
		"short tile":         {"tile 0/001: offset 4096", on("/ledger/tile/0/001", cut)},
		"pending value":      {"SHA-256", on("/ledger/entries", swap(`"value_base64":"gI`, `"value_base64":"gJ`))},
		"pending entry":      {"leaf_hash", on("/ledger/entries", swap(`"region":""`, `"region":"x"`))},
		"pending cut":        {"before entry", on("/ledger/entries", func(b []byte) []byte { return b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1] })},
		"pending torn":       {"entry", on("/ledger/entries", cut)},
		"pending error":      {"corrupt", on("/ledger/entries", func([]byte) []byte { return []byte(`{"error":{"code":"corrupt"}}` + "\n") })},
		"checkpoint":         {"checkpoint of 740 entries has root", on("/ledger/checkpoint", func([]byte) []byte { return []byte(h.checkpoint(forked)) })},
	} {
		t.Run(name, func(t *testing.T) {
			h.lies(c.lie)
			exits(t, t.TempDir(), 1, c.said, "audit", "--url", h.url)
		})
	}
}

// FuzzAuditSegment demands that no file makes the audit panic, and that only
// those are accepted that the entries they hold give.
func FuzzAuditSegment(f *testing.F) {
	h := sealedLedger(f)
	for _, s := range h.segments {
		if len(s.data) < 10_000 {
			f.Add(s.data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := auditBytes("", data)
		if err != nil && len(found.leaves) > 0 {
			t.Fatal("leaves of a file that is not sound")
		}
		if len(data) > segmentFooterSize {
			_, _, _ = findEntry(bytes.NewReader(data), int64(len(data)), 0, 1)
		}
	})
}

// FuzzAuditReply demands that no reply of a server makes the audit panic.
func FuzzAuditReply(f *testing.F) {
	h := newHonest(f, 1)
	h.fill(2)
	f.Add(bytes.TrimSpace(h.stream(0, 1, true)))
	f.Fuzz(func(t *testing.T, line []byte) {
		a := &audit{chains: newChains(0)}
		a.chains.find = a.findEntry
		_ = a.addLine(line)
		_, _ = parseSegmentName(string(line))
	})
}
