package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// evidence returns the only evidence file of folder.
func evidence(t *testing.T, folder, said string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "evidence", "*.txt"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%d evidence files, want 1 (%v)", len(files), err)
	}
	if !strings.Contains(said, files[0]) {
		t.Errorf("%s is not named in %q", files[0], said)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// noEvidence demands that nobody was accused.
func noEvidence(t *testing.T, folder string) {
	t.Helper()
	if files, _ := filepath.Glob(filepath.Join(folder, "evidence", "*")); len(files) > 0 {
		t.Fatalf("evidence %q of nothing", files)
	}
}

func TestVerifyOnline(t *testing.T) {
	h := newHonest(t, 1)
	h.fill(10)
	first := h.put("a/../b c", []byte("one"))
	h.put("a/../b c", nil)
	h.put(".", []byte("dot"))
	folder := t.TempDir()
	key := []string{"verify", "a/../b c", "--url", h.url}
	out := exits(t, folder, 0, "pinned     "+h.signer.String(), key...)
	if !strings.Contains(out, "first visit") || !strings.Contains(out, "version 2, delete") {
		t.Error(out)
	}
	out = exits(t, folder, 0, "verified", append(key, "--version", "1")...)
	if strings.Contains(out, "pinned") || !strings.Contains(out, "SHA-256 "+first.sum.String()) {
		t.Error(out)
	}
	exits(t, folder, 0, "version 1, put", append(key, "--seq", strconv.FormatUint(first.seq, 10))...)
	exits(t, folder, 0, "verified", "verify", ".", "--url", h.url+"/")
	h.fill(300)
	exits(t, folder, 0, "verified", key...)
	exits(t, folder, 1, "not_found", "verify", "no such key", "--url", h.url)
	exits(t, folder, 1, "request failed", "verify", "x", "--url", "http://127.0.0.1:1")
	noEvidence(t, folder)

	given := t.TempDir()
	out = exits(t, given, 0, "verified", append(key, "--key", h.signer.String())...)
	if strings.Contains(out, "first visit") {
		t.Error(out)
	}
	wrong := newHonest(t, 2).signer.String()
	exits(t, given, 1, "tree head is of", append(key, "--key", wrong)...)
}

// Every lie of a server about one entry is found.
func TestVerifyLies(t *testing.T) {
	t.Parallel()
	h := newHonest(t, 1)
	h.fill(10)
	h.put("k", []byte("value"))
	other := h.put("j", []byte("another"))
	h.fill(5)
	old := h.checkpoint(h.head(12))
	field := func(name string, value any) func(string, []byte) []byte {
		return func(path string, reply []byte) []byte {
			if strings.HasPrefix(path, "/verify/") {
				return replaceField(reply, name, value)
			}
			return reply
		}
	}
	whole := func(prefix string, f func([]byte) []byte) func(string, []byte) []byte {
		return func(path string, reply []byte) []byte {
			if strings.HasPrefix(path, prefix) {
				return f(reply)
			}
			return reply
		}
	}
	foreign := func(text string) func(string, []byte) []byte {
		return whole("/kv/", func([]byte) []byte { return []byte(text) })
	}
	lies := map[string]func(string, []byte) []byte{
		"seq": field("seq", 3), "key": field("key", "x"), "op": field("op", "delete"), "version": field("version", 2),
		"prev": field("prev", 3), "time": field("time", "2020-01-01T00:00:00Z"), "size": field("size", 4),
		"sha256": field("sha256", other.sum.String()), "content type": field("content_type", "x"), "author": field("author", "x"),
		"region": field("region", "x"), "leaf hash": field("leaf_hash", other.sum.String()), "leaf": field("leaf", h.entries[11].raw),
		"no leaf": field("leaf", nil), "tree size": field("tree_size", 16), "root": field("root", h.head(12).root.String()),
		"proof": field("inclusion", hexes(h.receipt(10, 12).proof)), "long proof": field("inclusion", make([]string, 1000)),
		"no proof": field("inclusion", nil), "old checkpoint": field("checkpoint", old), "no checkpoint": field("checkpoint", ""),
		"other receipt": field("receipt", h.receipt(11, 17).String()), "no receipt": field("receipt", ""),
		"time with microseconds": field("time", "2023-11-14T22:13:20.003001Z"), "two keys": field("key_base64", []byte("k")),
		"value": foreign("Value"), "short value": foreign("valu"), "long value": foreign("value."), "no value": whole("/kv/", func([]byte) []byte { return nil }),
		"another entry": func(path string, reply []byte) []byte {
			if strings.HasPrefix(path, "/verify/") {
				return h.verify("j", noSeq, noSeq)
			}
			return reply
		},
		"not JSON":  whole("/verify/", func([]byte) []byte { return []byte("<html>") }),
		"truncated": whole("/verify/", func(b []byte) []byte { return b[:len(b)/2] }),
		"huge":      whole("/verify/", func([]byte) []byte { return bytes.Repeat([]byte(" "), maxReply+1) }),
		"huge key":  whole("/ledger/key", func([]byte) []byte { return bytes.Repeat([]byte("x"), maxReply+1) }),
		"no key":    whole("/ledger/key", func([]byte) []byte { return []byte("\n") }),
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			h.lies(lie)
			exits(t, t.TempDir(), 1, "scribe-ledger: ", "verify", "k", "--url", h.url)
		})
	}
	h.lies(nil)
	exits(t, t.TempDir(), 0, "verified", "verify", "k", "--url", h.url)
	h.lies(whole("/verify/", func(b []byte) []byte { return h.verify("k", noSeq, noSeq) }))
	exits(t, t.TempDir(), 1, "asked for version 3, got a proof for 1", "verify", "k", "--version", "3", "--url", h.url)
	exits(t, t.TempDir(), 1, "asked for entry 3, got a proof for 10", "verify", "k", "--seq", "3", "--url", h.url)
}

// What contradicts an earlier visit is refused, and leaves evidence with both
// checkpoints.
func TestVerifyRemembers(t *testing.T) {
	t.Parallel()
	serve := func(h *honest) func(path string, reply []byte) []byte {
		return func(path string, _ []byte) []byte { // all that h says
			return h.answer(httptest.NewRequest("GET", path, nil))
		}
	}
	grown := func(seed byte, n int, last string) *honest {
		h := newHonest(t, seed)
		h.put("k", []byte("v"))
		h.fill(n)
		h.put("end", []byte(last))
		return h
	}
	for _, c := range []struct {
		name, said string
		later      *honest
	}{
		{"rollback", "rollback: the tree has 12 entries, 22 were seen before", grown(1, 10, "x")},
		{"fork of one size", "fork: 22 entries have root", grown(1, 20, "y")},
		{"fork that grew", "the tree of 32 entries does not extend that of 22", grown(1, 30, "x")},
		{"other ledger", "tree head is of", grown(2, 30, "x")},
	} {
		t.Run(c.name, func(t *testing.T) {
			folder := t.TempDir()
			h := grown(1, 20, "x")
			args := []string{"verify", "k", "--url", h.url}
			exits(t, folder, 0, "verified", args...)
			before := h.checkpoint(h.head(22))
			h.lies(serve(c.later))
			said := exits(t, folder, 1, c.said, args...)
			size := uint64(len(c.later.entries))
			text := evidence(t, folder, said)
			for _, want := range []string{before, c.later.checkpoint(c.later.head(size)), "url " + h.url + "\n"} {
				if !strings.Contains(text, want) {
					t.Errorf("evidence lacks %q:\n%s", want, text)
				}
			}
			h.lies(nil)
			exits(t, folder, 0, "verified", args...) // what was refused is not remembered
		})
	}
}

// A checkpoint of another node, seen at another URL, is held to the same pin.
func TestVerifySplitView(t *testing.T) {
	folder := t.TempDir()
	a, b := newHonest(t, 1), newHonest(t, 1)
	a.fill(5)
	b.fill(5)
	exits(t, folder, 0, "verified", "verify", "key 0", "--url", a.url)
	b.put("k", nil)
	a.put("k", []byte("x"))
	exits(t, folder, 0, "verified", "verify", "key 0", "--url", a.url)
	said := exits(t, folder, 1, "fork", "verify", "key 0", "--url", b.url)
	evidence(t, folder, said)
}

// An older checkpoint is no rollback while the server shows one that goes on
// from what was seen.
func TestVerifyOlderCheckpoint(t *testing.T) {
	folder := t.TempDir()
	h := newHonest(t, 1)
	h.fill(9)
	args := []string{"verify", "key 0", "--url", h.url}
	old := h.verify("key 0", noSeq, noSeq)
	h.fill(9)
	exits(t, folder, 0, "verified", args...)
	h.lies(func(path string, reply []byte) []byte {
		if strings.HasPrefix(path, "/verify/") {
			return old
		}
		return reply
	})
	exits(t, folder, 0, "tree       9 entries", args...)
	noEvidence(t, folder)
	known, err := (&pins{folder: folder}).ledger(h.signer.name)
	if err != nil || known.head.size != 18 {
		t.Fatalf("remembered %+v, %v; want 18 entries", known, err)
	}
	forked := newHonest(t, 1)
	forked.put("key 0", []byte("fork"))
	fork := forked.verify("key 0", noSeq, noSeq)
	h.lies(func(path string, reply []byte) []byte {
		if strings.HasPrefix(path, "/verify/") {
			return fork
		}
		return reply
	})
	evidence(t, folder, exits(t, folder, 1, "does not extend", args...))
}

func TestVerifyRotation(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	h := newHonest(t, 1)
	h.fill(5)
	args := []string{"verify", "key 0", "--url", h.url}
	exits(t, folder, 0, "verified", args...)
	oldest := h.signer
	h.rotate(2)
	h.fill(5)
	h.rotate(3)
	exits(t, folder, 0, "to "+h.signer.String(), args...)
	if out := exits(t, folder, 0, "verified", args...); strings.Contains(out, "rotated") {
		t.Error("the new key was not pinned:", out)
	}
	exits(t, t.TempDir(), 0, "rotated", append(args, "--key", oldest.String())...)

	// A key that was not handed over to, or by halves.
	thief := signerOf(t, h.signer.name, sigEd25519, 66)
	honest := h.former
	body := rotationMagic + "\n" + thief.name + "\n10\n" + thief.String() + "\n"
	for name, former := range map[string][]string{
		"none":                 honest,
		"not by the old key":   append(honest[:2:2], note{body, []noteSignature{thief.sign(body, 0)}}.String()),
		"not by the new key":   append(honest[:2:2], note{body, []noteSignature{h.signer.sign(body, 0)}}.String()),
		"broken":               {"x"},
		"wrong old signature":  append(honest[:2:2], note{body, []noteSignature{{h.signer.name, h.signer.id, make([]byte, 64)}, thief.sign(body, 0)}}.String()),
		"another kind of text": append(honest[:2:2], note{"x\n" + body, []noteSignature{h.signer.sign("x\n"+body, 0), thief.sign("x\n"+body, 0)}}.String()),
	} {
		t.Run(name, func(t *testing.T) {
			h.mu.Lock()
			signer := h.signer
			h.signer, h.former = thief, former
			h.mu.Unlock()
			defer func() { h.signer, h.former = signer, honest }()
			evidence(t, folder, exits(t, folder, 1, "not verified", args...))
			os.RemoveAll(filepath.Join(folder, "evidence"))
		})
	}
}

// A redirect is an error, not a way to another server.
func TestVerifyRedirect(t *testing.T) {
	h := newHonest(t, 1)
	h.fill(3)
	away := httptest.NewServer(http.RedirectHandler(h.url+"/verify/key%200", http.StatusFound))
	defer away.Close()
	exits(t, t.TempDir(), 1, "status 302", "verify", "key 0", "--url", away.URL)
}

// A folder of pins that cannot be used is told, and never taken for a new one.
func TestVerifyPins(t *testing.T) {
	t.Parallel()
	h := newHonest(t, 1)
	h.fill(5)
	folder := t.TempDir()
	args := []string{"verify", "key 0", "--url", h.url}
	exits(t, folder, 0, "verified", args...)
	p := &pins{folder: folder}
	for _, path := range []string{p.path("urls", h.url), p.path("ledgers", h.signer.name)} {
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(good); n += 3 {
			flipped := bytes.Clone(good)
			flipped[n] ^= 4
			for _, bad := range [][]byte{good[:n], flipped} {
				if err := os.WriteFile(path, bad, 0o600); err != nil {
					t.Fatal(err)
				}
				_, err1 := p.origin(h.url)
				_, err2 := p.ledger(h.signer.name)
				if err1 == nil && err2 == nil {
					t.Fatalf("%s: accepted when damaged at %d", path, n)
				}
			}
		}
		exits(t, folder, 2, "is damaged", args...)
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(p.path("ledgers", h.signer.name)); err != nil {
		t.Fatal(err)
	}
	exits(t, folder, 2, "is gone", args...)
	exits(t, write(t, "a file"), 2, "unusable", args...)
	exits(t, "/proc/nowhere", 2, "unusable", args...)
}

// FuzzVerifyReply demands that no reply makes verify panic, and none but the
// true one is accepted with other fields.
func FuzzVerifyReply(f *testing.F) {
	h := newHonest(f, 1)
	h.fill(5)
	reply := h.verify("key 0", noSeq, noSeq)
	f.Add(reply)
	f.Add([]byte(`{"seq":1,"size":0,"inclusion":["00"]}`))
	seen, err := parseNote(h.checkpoint(h.head(5)))
	if err != nil {
		f.Fatal(err)
	}
	trusted := pin{h.signer.noteVerifier, seen, h.head(5)}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r verifyReply
		if json.Unmarshal(b, &r) != nil {
			return
		}
		if p, err := r.prove(trusted); err == nil && p.leaf != leafHash(h.entries[p.header.seq].raw) {
			t.Fatalf("accepted %s", b)
		}
		_, _ = followRotation(b, h.signer.noteVerifier)
		_ = checkExtends(b, h.head(3), h.head(5))
	})
}
