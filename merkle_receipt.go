package main

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
)

// A receipt (C2SP tlog-proof) shows offline that an entry is in a log:
//
//	c2sp.org/tlog-proof@v1
//	extra QEFCQw==                                    what we keep here is the leaf; no line if there is none
//	index 5                                           the entry's seq
//	vBoGQ7EuTS18d5GPROD095qDi2z57FtcKD4fTYhZnms=      its inclusion proof, nearest sibling first,
//	yoVOoSjtBQtBs1/8G4e46yveRh6eO1WW7Oa51ZdaCuA=      at most 63 lines
//	037kGJdt2VdTwcc4Yrk5j6Kiz5tP8P3+izDNlSCWFLc=
//
//	example.com/scribe-test                           a signed checkpoint, to the end
//	8
//	XcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=
//
//	— example.com/scribe-test QGooI2VoyxMd7IjeZsXCXMN3Tk03fe75NxfPDvYmPVpr3ZNeBDZDhxtIm7Pp7gv9UTlvyv4uC76AafLEGV5RuD4y2gA=
//
// Numbers are decimal without leading zero. Nobody signs extra: believe it only
// after hashing it to the leaf that the proof is for.

const (
	receiptMagic     = "c2sp.org/tlog-proof@v1\n"
	maxReceiptHashes = 63
)

// receipt is the proof that entry index is in the log at a checkpoint.
type receipt struct {
	extra []byte
	index uint64
	proof []hash
	head  note
}

// String returns the receipt's text.
func (r receipt) String() string {
	var b strings.Builder
	b.WriteString(receiptMagic)
	if len(r.extra) > 0 {
		b.WriteString("extra " + base64.StdEncoding.EncodeToString(r.extra) + "\n")
	}
	b.WriteString("index " + strconv.FormatUint(r.index, 10) + "\n")
	for _, h := range r.proof {
		b.WriteString(formatBase64Hash(h) + "\n")
	}
	b.WriteString("\n" + r.head.String())
	return b.String()
}

// parseReceipt reads what String writes, and nothing else. It proves nothing;
// check does.
func parseReceipt(text string) (receipt, error) {
	rest, ok := strings.CutPrefix(text, receiptMagic)
	if !ok || len(text) > maxNoteSize {
		return receipt{}, fmt.Errorf("%w receipt: %d bytes beginning %.40q", errNote, len(text), text)
	}
	top, head, ok := strings.Cut(rest, "\n\n")
	if !ok {
		return receipt{}, fmt.Errorf("%w receipt: no empty line before a checkpoint", errNote)
	}
	var r receipt
	if err := r.parseTop(strings.Split(top, "\n")); err != nil {
		return receipt{}, fmt.Errorf("receipt: %w", err)
	}
	var err error
	if r.head, err = parseNote(head); err != nil {
		return receipt{}, fmt.Errorf("receipt: %w", err)
	}
	if _, err := parseTreeHead(r.head.body); err != nil {
		return receipt{}, fmt.Errorf("receipt: %w", err)
	}
	return r, nil
}

// parseTop reads the lines between the first one and the empty one.
func (r *receipt) parseTop(lines []string) (err error) {
	if encoded, ok := strings.CutPrefix(lines[0], "extra "); ok {
		if r.extra, err = exactBase64(encoded); err != nil {
			return fmt.Errorf("extra: %w", err)
		}
		if lines = lines[1:]; len(r.extra) == 0 || len(lines) == 0 {
			return fmt.Errorf("%w: extra is empty, or index is missing", errNote)
		}
	}
	number, ok := strings.CutPrefix(lines[0], "index ")
	if !ok {
		return fmt.Errorf("%w: %.100q where index is due", errNote, lines[0])
	}
	if r.index, err = parseDecimal(number); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if lines = lines[1:]; len(lines) > maxReceiptHashes {
		return fmt.Errorf("%w: %d hashes, want at most %d", errNote, len(lines), maxReceiptHashes)
	}
	for _, line := range lines {
		h, err := parseBase64Hash(line)
		if err != nil {
			return fmt.Errorf("proof: %w", err)
		}
		r.proof = append(r.proof, h)
	}
	return nil
}

// check returns the tree head of the receipt if the log whose key is log signed
// it and leaf is in its tree where the receipt says.
func (r receipt) check(leaf hash, log noteVerifier) (treeHead, error) {
	h, err := openTreeHead(r.head, log)
	if err != nil {
		return treeHead{}, err
	}
	if err := checkInclusion(leaf, r.index, h.size, r.proof, h.root); err != nil {
		return treeHead{}, err
	}
	return h, nil
}
