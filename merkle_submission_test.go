package main

import (
	"strings"
	"testing"
)

// goldenSubmission is the example in the comment of merkle_submission.go, whole.
const goldenSubmission = `old 6
DrxdNDf74tsVi58Sah0RjjCBgQMdCpSfje3t68VY72o=
yoVOoSjtBQtBs1/8G4e46yveRh6eO1WW7Oa51ZdaCuA=
037kGJdt2VdTwcc4Yrk5j6Kiz5tP8P3+izDNlSCWFLc=

example.com/scribe-test
8
XcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=

— example.com/scribe-test QGooI2VoyxMd7IjeZsXCXMN3Tk03fe75NxfPDvYmPVpr3ZNeBDZDhxtIm7Pp7gv9UTlvyv4uC76AafLEGV5RuD4y2gA=
`

func TestSubmissionGolden(t *testing.T) {
	s, err := parseSubmission(goldenSubmission)
	if err != nil {
		t.Fatal(err)
	}
	head, err := parseTreeHead(s.head.body)
	if err != nil || s.old != 6 || head.size != 8 || len(s.proof) != 3 || len(s.head.signatures) != 1 {
		t.Fatalf("old %d, %d hashes, head %+v, %v", s.old, len(s.proof), head, err)
	}
	old, err := parseHash("76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef") // RFC 6962 vectors, size 6
	if err != nil {
		t.Fatal(err)
	}
	if err := checkConsistency(s.old, head.size, s.proof, old, head.root); err != nil {
		t.Error(err)
	}
	if s.String() != goldenSubmission {
		t.Errorf("written as\n%s", s)
	}
}

// TestSubmissionDamage: what is cut is refused; what is changed is refused or
// another request, never taken for the same.
func TestSubmissionDamage(t *testing.T) {
	for i := range goldenSubmission {
		if s, err := parseSubmission(goldenSubmission[:i]); err == nil && s.String() != goldenSubmission[:i] {
			t.Errorf("cut at %d: read as %q", i, s)
		}
		b := []byte(goldenSubmission)
		b[i] ^= 1
		if s, err := parseSubmission(string(b)); err == nil && s.String() != string(b) {
			t.Errorf("byte %d changed: read as %q", i, s)
		}
	}
}

func TestSubmissionMalformed(t *testing.T) {
	_, checkpoint, _ := strings.Cut(goldenSubmission, "\n\n")
	line := "DrxdNDf74tsVi58Sah0RjjCBgQMdCpSfje3t68VY72o=\n"
	for _, text := range []string{
		"", "\n\n", "old 6\n", "old 6\n\n", "old 6\n" + checkpoint,
		"old 06\n\n" + checkpoint, "old -1\n\n" + checkpoint, "old +6\n\n" + checkpoint, "old \n\n" + checkpoint,
		"old 18446744073709551616\n\n" + checkpoint, "Old 6\n\n" + checkpoint, "old  6\n\n" + checkpoint,
		"old 6 \n\n" + checkpoint, "old 6\r\n\r\n" + checkpoint, "\nold 6\n\n" + checkpoint,
		"old 6\n" + line[:43] + "\n\n" + checkpoint, "old 6\n" + line[:8] + "\n\n" + checkpoint, "old 6\n " + line + "\n" + checkpoint,
		"old 6\n" + strings.Repeat(line, 64) + "\n" + checkpoint,
	} {
		if s, err := parseSubmission(text); err == nil {
			t.Errorf("%.60q: read as %.60q", text, s)
		}
	}
	if _, err := parseSubmission("old 6\n" + strings.Repeat(line, 63) + "\n" + checkpoint); err != nil {
		t.Error(err)
	}
}

func FuzzSubmission(f *testing.F) {
	f.Add(goldenSubmission)
	f.Add("old 0\n\nx\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := parseSubmission(text); err == nil && s.String() != text {
			t.Errorf("%q is written as %q", text, s)
		}
	})
}
