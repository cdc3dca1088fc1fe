package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// The command verify, which trusts neither a server nor its operator: this
// file is what a receipt proves offline; main_verify_online.go asks a server,
// main_verify_trust.go keeps what this user has seen of each ledger, and
// main_verify_audit.go re-derives a whole ledger. They share no code with the
// server beyond hashing and formats, which layers_test.go holds.
//
// A receipt proves that an entry is in the ledger, at its place, for ever: who
// holds the ledger key signed a tree that has it. It does not prove that the
// entry is the newest of its key.

// errBadArgument is wrapped by errors about what the user gave, not about what was checked.
var errBadArgument = errors.New("unusable")

// errDifference is wrapped by errors that say that something is not what was signed.
var errDifference = errors.New("not verified")

// verifier is one run of verify or audit: what it may touch of the outside.
type verifier struct {
	out    io.Writer
	now    func() time.Time
	folder string // where pins are kept; "" if nobody knows
	// progress is told how many entries are done and which part of all; nil for none.
	progress func(entries int64, part float64)
	// soundPages tells whether the pages of a bbolt file lead anywhere but into
	// the file: bbolt itself does not look. It judges bbolt's format, not ours.
	soundPages func(path string) error
}

// maxReceiptFile bounds the files of receipts, keys and checkpoints.
const maxReceiptFile = maxNoteSize

// receiptOptions are the arguments of an offline check.
type receiptOptions struct {
	receipt  string   // file
	value    string   // file; "" for none
	key      string   // vkey, or a file that holds it
	quorum   int      // nodes that must have cosigned; negative: all that are given
	nodeKeys []string // vkeys, or files that hold them
}

// verifyReceipt checks a receipt offline and prints what it proves.
func (v *verifier) verifyReceipt(o receiptOptions) error {
	if o.quorum < 0 {
		o.quorum = len(o.nodeKeys)
	}
	key, badKey := readKey(o.key, sigEd25519)
	nodes, badNodes := readNodeKeys(o.nodeKeys, o.quorum)
	text, badFile := readSmallFile(o.receipt)
	value, badValue := openValue(o.value)
	if err := unusableFirst(badKey, badNodes, badFile, badValue); err != nil {
		return err
	}
	if value != nil {
		defer value.Close()
	}
	p, err := proveReceipt(text, key)
	if err != nil {
		return fmt.Errorf("receipt %s: %w", o.receipt, err)
	}
	if p.nodes, err = countCosignatures(p.note, nodes, o.quorum); err != nil {
		return fmt.Errorf("receipt %s: %w", o.receipt, err)
	}
	if value != nil {
		if err := checkValue(value, &p.header); err != nil {
			return fmt.Errorf("value %s: %w", o.value, err)
		}
		p.value = "its value is " + o.value
	}
	p.print(v.out)
	return nil
}

// unusableFirst returns the first error about an argument that nothing can be
// checked with, else the first error: so the exit code does not depend on the
// order in which arguments are looked at.
func unusableFirst(errs ...error) error {
	var first error
	for _, err := range errs {
		if errors.Is(err, errBadArgument) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// openValue opens the file of a value; no name, no file.
func openValue(name string) (*os.File, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%w value: %w", errBadArgument, err)
	}
	if info, err := f.Stat(); err != nil || info.IsDir() {
		f.Close()
		return nil, fmt.Errorf("%w value %s: no file", errBadArgument, name)
	}
	return f, nil
}

// proven is what a receipt proves.
type proven struct {
	header header
	leaf   hash
	head   treeHead
	note   note     // the signed checkpoint
	key    string   // vkey of the ledger that signed it
	nodes  []string // cosigners asked for and found
	value  string   // what was checked of the value; "" for nothing
}

// proveReceipt returns what the receipt proves if the ledger key signed it.
func proveReceipt(text string, key noteVerifier) (proven, error) {
	r, err := parseReceipt(text)
	if err != nil {
		return proven{}, fmt.Errorf("%w: %w", errDifference, err)
	}
	return proveEntry(r, key)
}

// proveEntry is proveReceipt for a receipt that has been parsed.
func proveEntry(r receipt, key noteVerifier) (proven, error) {
	p := proven{leaf: leafHash(r.extra), note: r.head, key: key.String()}
	var err error
	if p.header, err = parseHeader(r.extra); err != nil {
		return proven{}, fmt.Errorf("%w: its leaf: %w", errDifference, err)
	}
	if p.header.seq != r.index {
		return proven{}, fmt.Errorf("%w: the leaf is of entry %d, the proof of %d", errDifference, p.header.seq, r.index)
	}
	if p.head, err = r.check(p.leaf, key); err != nil {
		return proven{}, fmt.Errorf("%w: %w", errDifference, err)
	}
	return p, nil
}

// countCosignatures returns the names of the nodes that cosigned n, at least
// quorum of them. A wrong signature by one of them is an error of its own.
func countCosignatures(n note, nodes []noteVerifier, quorum int) ([]string, error) {
	var names []string
	for _, node := range nodes {
		signed, _, err := n.check(node)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errDifference, err)
		}
		if signed {
			names = append(names, node.name)
		}
	}
	if len(names) < quorum {
		return nil, fmt.Errorf("%w: %d of the nodes given have cosigned, want %d", errDifference, len(names), quorum)
	}
	return names, nil
}

// checkValue compares what r holds with the size and SHA-256 that the entry has.
func checkValue(r io.Reader, h *header) error {
	if h.op == opDelete {
		return fmt.Errorf("%w: entry %d is a delete, it has no value", errDifference, h.seq)
	}
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(r, int64(min(h.size, 1<<62))+1))
	if err != nil {
		return err
	}
	if uint64(n) > h.size {
		return fmt.Errorf("%w: more than the %d bytes that entry %d has", errDifference, h.size, h.seq)
	}
	if uint64(n) < h.size {
		return fmt.Errorf("%w: %d bytes, entry %d has %d", errDifference, n, h.seq, h.size)
	}
	if got := hash(sum.Sum(nil)); got != h.sum {
		return fmt.Errorf("%w: SHA-256 is %s, entry %d has %s", errDifference, got, h.seq, h.sum)
	}
	return nil
}

// print tells what p proves.
func (p *proven) print(w io.Writer) {
	h := &p.header
	fmt.Fprintf(w, "verified   key %q, version %d, %s\n", h.key, h.version, h.op)
	fmt.Fprintf(w, "entry      %d, written %s\n", h.seq, time.UnixMilli(h.time).UTC().Format("2006-01-02T15:04:05.000Z"))
	if h.op == opPut {
		fmt.Fprintf(w, "value      %d bytes, SHA-256 %s\n", h.size, h.sum)
	}
	if p.value != "" {
		fmt.Fprintf(w, "           %s\n", p.value)
	}
	for _, label := range [...]struct{ name, text string }{{"type", h.contentType}, {"author", h.author}, {"region", h.region}} {
		if label.text != "" {
			fmt.Fprintf(w, "%-10s %q\n", label.name, label.text)
		}
	}
	if h.prev != noSeq {
		fmt.Fprintf(w, "previous   entry %d of the same key\n", h.prev)
	}
	fmt.Fprintf(w, "leaf       %s\n", p.leaf)
	fmt.Fprintf(w, "tree       %d entries, root %s\n", p.head.size, p.head.root)
	fmt.Fprintf(w, "signed by  %s\n", p.key)
	for _, name := range p.nodes {
		fmt.Fprintf(w, "cosigned   %s\n", name)
	}
}

// readKey reads a vkey, from the text itself or a file that holds it. Malformed,
// it is unusable; well formed but of another kind than the given one, nothing
// that was signed can be verified with it.
func readKey(text string, kind byte) (noteVerifier, error) {
	line := strings.TrimSpace(text)
	if _, err := parseVerifier(line); err != nil {
		if held, readErr := readSmallFile(text); readErr == nil {
			line = strings.TrimSpace(held)
		} else if !strings.Contains(text, "+") {
			return noteVerifier{}, readErr
		}
	}
	key, err := parseVerifier(line)
	switch {
	case errors.Is(err, errKeyKind):
		return noteVerifier{}, fmt.Errorf("%w: %w", errDifference, err)
	case err != nil:
		return noteVerifier{}, fmt.Errorf("%w key: %w", errBadArgument, err)
	case key.kind != kind:
		return noteVerifier{}, fmt.Errorf("%w: key %s: kind is %#02x, want %#02x", errDifference, key, key.kind, kind)
	}
	return key, nil
}

// readNodeKeys reads the keys of nodes, each of them another one, at least quorum.
func readNodeKeys(texts []string, quorum int) ([]noteVerifier, error) {
	var nodes []noteVerifier
	var wrongKind error
	seen := make(map[string]bool)
	for _, text := range texts {
		key, err := readKey(text, sigCosignature)
		if errors.Is(err, errDifference) {
			wrongKind = err
			continue
		}
		if err != nil {
			return nil, err
		}
		if seen[string(key.key)] {
			return nil, fmt.Errorf("%w key %s: given twice", errBadArgument, key)
		}
		seen[string(key.key)] = true
		nodes = append(nodes, key)
	}
	if quorum > len(texts) {
		return nil, fmt.Errorf("%w quorum: %d of %d node keys", errBadArgument, quorum, len(texts))
	}
	return nodes, wrongKind
}

// readSmallFile returns the text of a file that a user named; of one that is too
// large for all that is read so, as much as its parser refuses.
func readSmallFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("%w file: %w", errBadArgument, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxReceiptFile+1))
	if err != nil {
		return "", fmt.Errorf("%w file: %w", errBadArgument, err)
	}
	return string(b), nil
}
