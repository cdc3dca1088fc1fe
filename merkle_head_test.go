package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestTreeHeadGolden(t *testing.T) {
	root, _ := parseHash(merkleRoots[8])
	h := treeHead{origin: "example.com/scribe-test", size: 8, root: root}
	if got := h.body(); got != goldenHead {
		t.Errorf("body is %q, want %q", got, goldenHead)
	}
	for _, body := range []string{
		goldenHead, goldenHead + "extension 1\nextension 2\n", "a b+c\n18446744073709551615\n" + formatBase64Hash(root) + "\n",
		"o\n0\n" + formatBase64Hash(emptyRoot) + "\n", "— o\n8\n" + formatBase64Hash(root) + "\n— x\n",
	} {
		if h, err := parseTreeHead(body); err != nil || h.body() != body {
			t.Errorf("%q became %q, %v", body, h.body(), err)
		}
	}
	got, err := parseTreeHead(goldenHead + "more\n")
	if err != nil || got.origin != h.origin || got.size != 8 || got.root != root || !slices.Equal(got.extensions, []string{"more"}) {
		t.Errorf("parsed %+v, %v", got, err)
	}
}

func TestParseTreeHeadBad(t *testing.T) {
	good := strings.SplitAfter(goldenHead, "\n")[2]
	for _, body := range []string{
		"", "\n", "\n\n\n", "o\n8\n", "o\n8", strings.TrimSuffix(goldenHead, "\n"), goldenHead + "\n", "\n" + goldenHead,
		goldenHead + "x", goldenHead + "x\n\n", "\n8\n" + good, "o\n\n" + good,
		"o\n08\n" + good, "o\n00\n" + formatBase64Hash(emptyRoot) + "\n", "o\n+8\n" + good, "o\n-8\n" + good, "o\n 8\n" + good, "o\n8 \n" + good,
		"o\n0x8\n" + good, "o\n1_0\n" + good, "o\n8.0\n" + good, "o\n٨\n" + good, "o\n18446744073709551616\n" + good,
		"o\n0\n" + good, "o\n8\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg\n", "o\n8\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyh=\n",
		"o\n8\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz-Nw7_RgQyg=\n", "o\n8\nXcna\n", "o\n8\n" + merkleRoots[8] + "\n",
		"o\r\n8\n" + good, "o\n8\n" + strings.TrimSuffix(good, "\n") + "\r\n", "o\x00\n8\n" + good, "\xff\n8\n" + good,
		goldenHead + strings.Repeat("x", maxNoteSize) + "\n",
	} {
		if h, err := parseTreeHead(body); !errors.Is(err, errNote) {
			t.Errorf("parsed %.100q as %.100q, %v", body, h.body(), err)
		}
	}
}

// TestTreeHeadEveryByte wants damaged bodies refused, or read as something else.
func TestTreeHeadEveryByte(t *testing.T) {
	golden, _ := parseTreeHead(goldenHead)
	everyDamage(goldenHead, func(damaged string) {
		h, err := parseTreeHead(damaged)
		if err == nil && (h.body() != damaged || h.origin == golden.origin && h.size == golden.size && h.root == golden.root) {
			t.Errorf("parsed %q as %q", damaged, h.body())
		}
	})
}

func TestOpenTreeHead(t *testing.T) {
	log, witness := goldenSigners(t)
	n := mustNote(t, goldenNote)
	if h, err := openTreeHead(n, log.noteVerifier); err != nil || h.body() != goldenHead {
		t.Errorf("opened %q, %v", h.body(), err)
	}
	sameKey, _ := newNoteSigner("example.com/other", sigEd25519, make([]byte, 32))
	anotherKey, _ := newNoteSigner(log.name, sigEd25519, []byte(strings.Repeat("k", 32)))
	nodeKey, _ := newNoteSigner(log.name, sigCosignature, make([]byte, 32))
	forOther := note{goldenHead, []noteSignature{sameKey.sign(goldenHead, 0)}}
	cosignedOnly := note{goldenHead, []noteSignature{nodeKey.sign(goldenHead, 1)}}
	text := note{"just text\n", []noteSignature{log.sign("just text\n", 0)}}
	wrong := note{goldenHead, []noteSignature{log.sign("just text\n", 0)}}
	for _, c := range []struct {
		what string
		note note
		key  noteSigner
		want error
	}{
		{"the key of another log", n, sameKey, errSignature},
		{"another key of this log", n, anotherKey, errSignature},
		{"a node's key", n, witness, errNote},
		{"a cosigning key with the log's name", cosignedOnly, nodeKey, errNote},
		{"another log's signature under our head", forOther, sameKey, errSignature},
		{"a cosignature only", cosignedOnly, log, errSignature},
		{"a text that is no head", text, log, errNote},
		{"a wrong signature", wrong, log, errSignature},
	} {
		if h, err := openTreeHead(c.note, c.key.noteVerifier); !errors.Is(err, c.want) {
			t.Errorf("%s: opened %q, %v", c.what, h.body(), err)
		}
	}
}

func FuzzParseTreeHead(f *testing.F) {
	f.Add(goldenHead)
	f.Add(goldenHead + "extension\n")
	f.Add("o\n0\n" + formatBase64Hash(emptyRoot) + "\n")
	f.Fuzz(func(t *testing.T, body string) {
		if h, err := parseTreeHead(body); err == nil && h.body() != body {
			t.Errorf("%q became %q", body, h.body())
		}
	})
}
