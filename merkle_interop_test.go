package main

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	xnote "golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// These tests hold us to golang.org/x/mod/sumdb: what one side makes the other
// must accept.

// TestInteropNote opens our note there.
func TestInteropNote(t *testing.T) {
	theirs, err := xnote.NewVerifier(goldenLogKey)
	if err != nil {
		t.Fatal(err)
	}
	ours := mustVerifier(t, goldenLogKey)
	if theirs.Name() != ours.name || theirs.KeyHash() != ours.id {
		t.Errorf("they read the key as %s, %08x", theirs.Name(), theirs.KeyHash())
	}
	n, err := xnote.Open([]byte(goldenNote), xnote.VerifierList(theirs))
	if err != nil {
		t.Fatal(err)
	}
	if n.Text != goldenHead || len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 1 || n.UnverifiedSigs[0].Name != "witness.example/w1" {
		t.Errorf("they read %+v", n)
	}
	wrong := strings.Replace(goldenNote, "\n8\n", "\n9\n", 1)
	if _, err := xnote.Open([]byte(wrong), xnote.VerifierList(theirs)); err == nil {
		t.Error("they open a changed note")
	}
	tree, err := tlog.ParseTree([]byte(strings.Replace(goldenHead, "example.com/scribe-test", "go.sum database tree", 1)))
	if err != nil || tree.N != 8 || tree.Hash.String() != "XcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=" {
		t.Errorf("they read our tree head as %+v, %v", tree, err)
	}
}

// TestInteropSigner signs there what we open here.
func TestInteropSigner(t *testing.T) {
	log, witness := goldenSigners(t)
	seed := base64.StdEncoding.EncodeToString(append([]byte{sigEd25519}, make([]byte, 32)...))
	theirs, err := xnote.NewSigner(fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", log.name, log.id, seed))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{goldenHead, "\n", "one\n\ntwo\n\n", "— é\n"} {
		// They keep the signatures they do not know: ours as a witness.
		cosigned := &xnote.Note{Text: text, UnverifiedSigs: []xnote.Signature{theirSignature(witness.sign(text, 5))}}
		msg, err := xnote.Sign(cosigned, theirs)
		if err != nil {
			t.Fatal(err)
		}
		n := mustNote(t, string(msg))
		byLog, _, err1 := n.check(log.noteVerifier)
		byWitness, unix, err2 := n.check(witness.noteVerifier)
		if !byLog || !byWitness || unix != 5 || err1 != nil || err2 != nil {
			t.Errorf("%q: by the log %t %v, by the witness %t at %d %v", msg, byLog, err1, byWitness, unix, err2)
		}
		if n.body != text || n.String() != string(msg) {
			t.Errorf("%q became %q", msg, n)
		}
	}
}

// theirSignature is s in their type.
func theirSignature(s noteSignature) xnote.Signature {
	fields := strings.Fields(s.line())
	return xnote.Signature{Name: s.name, Hash: s.id, Base64: fields[2]}
}

// theirTree is the tree of the same leaves as newMemTree's, kept their way.
type theirTree []tlog.Hash

func newTheirTree(t *testing.T, n int64) theirTree {
	var tree theirTree
	for i := range n {
		hashes, err := tlog.StoredHashes(i, []byte{byte(i), byte(i >> 8)}, &tree)
		if err != nil {
			t.Fatal(err)
		}
		tree = append(tree, hashes...)
	}
	return tree
}

// ReadHashes makes theirTree a tlog.HashReader.
func (t *theirTree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var hashes []tlog.Hash
	for _, i := range indexes {
		hashes = append(hashes, (*t)[i])
	}
	return hashes, nil
}

// TestInteropProofs makes every proof up to size 70 on both sides, wants them
// equal, and each side to accept the other's.
func TestInteropProofs(t *testing.T) {
	const largest = 70
	ours, theirs := newMemTree(largest), newTheirTree(t, largest)
	roots := make([]hash, largest+1)
	for size := uint64(1); size <= largest; size++ {
		roots[size], _ = rootAt(size, ours.upTo(size))
		root, err := tlog.TreeHash(int64(size), &theirs)
		if err != nil || root != tlog.Hash(roots[size]) {
			t.Fatalf("their root at %d is %s, %v; ours %s", size, root, err, roots[size])
		}
		for seq := range size {
			checkInteropInclusion(t, seq, size, roots[size], ours, &theirs)
			checkInteropConsistency(t, seq+1, size, roots, ours, &theirs)
		}
	}
}

// checkInteropInclusion exchanges the proofs of entry seq.
func checkInteropInclusion(t *testing.T, seq, size uint64, root hash, ours memTree, theirs *theirTree) {
	t.Helper()
	proof, err := inclusionProof(seq, size, ours.upTo(size))
	if err != nil {
		t.Fatal(err)
	}
	var sent tlog.RecordProof
	for _, h := range proof {
		sent = append(sent, tlog.Hash(h))
	}
	leaf := ours[0][seq]
	if err := tlog.CheckRecord(sent, int64(size), tlog.Hash(root), int64(seq), tlog.Hash(leaf)); err != nil {
		t.Fatalf("%d in %d: they refuse ours: %v", seq, size, err)
	}
	got, err := tlog.ProveRecord(int64(size), int64(seq), theirs)
	if err != nil {
		t.Fatal(err)
	}
	var received []hash
	for _, h := range got {
		received = append(received, hash(h))
	}
	if err := checkInclusion(leaf, seq, size, received, root); err != nil {
		t.Fatalf("%d in %d: we refuse theirs: %v", seq, size, err)
	}
}

// checkInteropConsistency exchanges the proofs that from begins to.
func checkInteropConsistency(t *testing.T, from, to uint64, roots []hash, ours memTree, theirs *theirTree) {
	t.Helper()
	proof, err := consistencyProof(from, to, ours.upTo(to))
	if err != nil {
		t.Fatal(err)
	}
	var sent tlog.TreeProof
	for _, h := range proof {
		sent = append(sent, tlog.Hash(h))
	}
	err = tlog.CheckTree(sent, int64(to), tlog.Hash(roots[to]), int64(from), tlog.Hash(roots[from]))
	if err != nil {
		t.Fatalf("%d to %d: they refuse ours: %v", from, to, err)
	}
	got, err := tlog.ProveTree(int64(to), int64(from), theirs)
	if err != nil {
		t.Fatal(err)
	}
	var received []hash
	for _, h := range got {
		received = append(received, hash(h))
	}
	if err := checkConsistency(from, to, received, roots[from], roots[to]); err != nil {
		t.Fatalf("%d to %d: we refuse theirs: %v", from, to, err)
	}
}
