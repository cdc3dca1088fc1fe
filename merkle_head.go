package main

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
)

// A tree head is the text of a checkpoint (C2SP tlog-checkpoint): what a log
// signs about its tree at one size. Lines, each ending with a newline:
//
//	example.com/scribe-test                         origin, the name of the log
//	8                                               entries, decimal, no leading zero
//	XcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=    base64 of the root over them
//
// and perhaps extension lines, none of them empty. The root of the empty tree
// is SHA-256 of nothing.

// treeHead is the size and root of one log's tree.
type treeHead struct {
	origin     string
	size       uint64
	root       hash
	extensions []string // lines without their newline
}

// body returns the text to sign.
func (h treeHead) body() string {
	var b strings.Builder
	b.WriteString(h.origin + "\n" + strconv.FormatUint(h.size, 10) + "\n" + formatBase64Hash(h.root) + "\n")
	for _, line := range h.extensions {
		b.WriteString(line + "\n")
	}
	return b.String()
}

// parseTreeHead reads what body writes, and nothing else.
func parseTreeHead(body string) (treeHead, error) {
	text, ended := strings.CutSuffix(body, "\n")
	lines := strings.Split(text, "\n")
	if len(body) > maxNoteSize || !ended || len(lines) < 3 || !validNoteText(body) {
		return treeHead{}, fmt.Errorf("%w tree head %.200q: want three lines of plain UTF-8", errNote, body)
	}
	for i, line := range lines {
		if line == "" {
			return treeHead{}, fmt.Errorf("%w tree head: line %d is empty", errNote, i+1)
		}
	}
	h := treeHead{origin: lines[0]}
	var err error
	if h.size, err = parseDecimal(lines[1]); err != nil {
		return treeHead{}, fmt.Errorf("tree head: size: %w", err)
	}
	if h.root, err = parseBase64Hash(lines[2]); err != nil {
		return treeHead{}, fmt.Errorf("tree head: root: %w", err)
	}
	if h.size == 0 && h.root != emptyRoot {
		return treeHead{}, fmt.Errorf("%w tree head: root of no entries is %s, want %s", errNote, h.root, emptyRoot)
	}
	if len(lines) > 3 {
		h.extensions = lines[3:]
	}
	return h, nil
}

// openTreeHead returns the tree head in n if the log whose key is log signed it:
// a log's key is named by its origin.
func openTreeHead(n note, log noteVerifier) (treeHead, error) {
	if log.kind != sigEd25519 {
		return treeHead{}, fmt.Errorf("%w log key %s: kind is %#x, want %#x", errNote, log, log.kind, sigEd25519)
	}
	h, err := parseTreeHead(n.body)
	if err != nil {
		return treeHead{}, err
	}
	if h.origin != log.name {
		return treeHead{}, fmt.Errorf("%w: tree head is of %q, the key of %q", errSignature, h.origin, log.name)
	}
	signed, _, err := n.check(log)
	if err != nil {
		return treeHead{}, err
	}
	if !signed {
		return treeHead{}, fmt.Errorf("%w: tree head of %s is not signed by %s", errSignature, h.origin, log)
	}
	return h, nil
}

// parseDecimal reads a number without sign or leading zero.
func parseDecimal(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%w number %.40q", errNote, s)
	}
	return n, nil
}

// formatBase64Hash returns h as checkpoints and receipts write it.
func formatBase64Hash(h hash) string { return base64.StdEncoding.EncodeToString(h[:]) }

// parseBase64Hash reads what formatBase64Hash writes.
func parseBase64Hash(s string) (hash, error) {
	b, err := exactBase64(s)
	if err != nil || len(b) != len(hash{}) {
		return hash{}, fmt.Errorf("%w hash %.100q: want base64 of %d bytes", errNote, s, len(hash{}))
	}
	return hash(b), nil
}
