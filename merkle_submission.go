package main

import (
	"fmt"
	"strconv"
	"strings"
)

// A submission is what a ledger asks a witness to cosign: the body of POST
// add-checkpoint of C2SP tlog-witness. It is text; every line ends with 0x0A:
//
//	old <size>     entries of the checkpoint that the witness cosigned last, 0 for none;
//	               decimal, without leading zeros
//	<hash>         0 to 63 lines: base64 (with padding) of 32 bytes each, the RFC 6962
//	               consistency proof from that size to the one of the checkpoint
//	               an empty line
//	<checkpoint>   a signed note (merkle_note.go) around a tree head (merkle_head.go)
//
// For example, from 6 entries to 8:
//
//	old 6
//	DrxdNDf74tsVi58Sah0RjjCBgQMdCpSfje3t68VY72o=
//	...
//
//	example.com/scribe-test
//	8
//	XcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=
//
//	— example.com/scribe-test QGooI2VoyxMd7IjeZsXCXMN3...
//
// A witness answers with the lines of its cosignatures, which can follow the
// lines under the checkpoint.

const maxSubmissionHashes = 63 // part of the format

// submission is one request to a witness.
type submission struct {
	old   uint64
	proof []hash
	head  note
}

// String returns the body of the request.
func (s submission) String() string {
	var b strings.Builder
	b.WriteString("old " + strconv.FormatUint(s.old, 10) + "\n")
	for _, h := range s.proof {
		b.WriteString(formatBase64Hash(h) + "\n")
	}
	b.WriteString("\n" + s.head.String())
	return b.String()
}

// parseSubmission reads what String writes, and nothing else.
func parseSubmission(text string) (submission, error) {
	top, head, ok := strings.Cut(text, "\n\n")
	if !ok {
		return submission{}, fmt.Errorf("%w submission: no empty line before a checkpoint", errNote)
	}
	lines := strings.Split(top, "\n")
	number, ok := strings.CutPrefix(lines[0], "old ")
	if !ok {
		return submission{}, fmt.Errorf("%w submission: %.100q where old is due", errNote, lines[0])
	}
	if len(lines)-1 > maxSubmissionHashes {
		return submission{}, fmt.Errorf("%w submission: %d hashes, want at most %d", errNote, len(lines)-1, maxSubmissionHashes)
	}
	var s submission
	var err error
	if s.old, err = parseDecimal(number); err != nil {
		return submission{}, fmt.Errorf("submission: old: %w", err)
	}
	for _, line := range lines[1:] {
		h, err := parseBase64Hash(line)
		if err != nil {
			return submission{}, fmt.Errorf("submission: proof: %w", err)
		}
		s.proof = append(s.proof, h)
	}
	if s.head, err = parseNote(head); err != nil {
		return submission{}, fmt.Errorf("submission: %w", err)
	}
	return s, nil
}
