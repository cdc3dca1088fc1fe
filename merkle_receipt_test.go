package main

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
)

// The receipt that merkle_receipt.go shows: entry 5 of the published eight.
const goldenReceipt = receiptMagic +
	"extra QEFCQw==\n" +
	"index 5\n" +
	"vBoGQ7EuTS18d5GPROD095qDi2z57FtcKD4fTYhZnms=\n" +
	"yoVOoSjtBQtBs1/8G4e46yveRh6eO1WW7Oa51ZdaCuA=\n" +
	"037kGJdt2VdTwcc4Yrk5j6Kiz5tP8P3+izDNlSCWFLc=\n\n" +
	goldenHead + "\n" + goldenLogLine

// publishedReceipt returns the receipt of one of the published eight leaves,
// with both signatures of the golden note.
func publishedReceipt(t testing.TB, seq uint64) receipt {
	t.Helper()
	leaf, _ := hex.DecodeString(merkleLeaves[seq])
	proof, err := inclusionProof(seq, 8, memTreeOf(publishedLeaves()).upTo(8))
	if err != nil {
		t.Fatal(err)
	}
	return receipt{leaf, seq, proof, mustNote(t, goldenNote)}
}

func TestReceiptGolden(t *testing.T) {
	log := mustVerifier(t, goldenLogKey)
	made := publishedReceipt(t, 5)
	made.head.signatures = made.head.signatures[:1]
	if got := made.String(); got != goldenReceipt {
		t.Errorf("receipt is %s, want %s", got, goldenReceipt)
	}
	r, err := parseReceipt(goldenReceipt)
	if err != nil || r.index != 5 || !slices.Equal(r.proof, made.proof) || string(r.extra) != "@ABC" {
		t.Fatalf("parsed %s, %v", r, err)
	}
	if h, err := r.check(leafHash(r.extra), log); err != nil || h.body() != goldenHead {
		t.Errorf("check: %q, %v", h.body(), err)
	}
	if _, err := r.check(leafHash([]byte("@ABD")), log); !errors.Is(err, errProof) {
		t.Errorf("check of another leaf: %v", err)
	}
	r.head.signatures = mustNote(t, goldenHead+"\n"+goldenCosigLine).signatures
	if _, err := r.check(leafHash(r.extra), log); !errors.Is(err, errSignature) {
		t.Errorf("check without the log's signature: %v", err)
	}
}

func TestReceiptRoundTrip(t *testing.T) {
	log := mustVerifier(t, goldenLogKey)
	for seq := range uint64(8) {
		text := publishedReceipt(t, seq).String()
		r, err := parseReceipt(text)
		if err != nil || r.String() != text {
			t.Errorf("%q became %q, %v", text, r, err)
		}
		if _, err := r.check(leafHash(r.extra), log); err != nil {
			t.Error(err)
		}
	}
	one := receiptMagic + "index 0\n\no\n1\n" + formatBase64Hash(leafHash(nil)) + "\n\n" + goldenLogLine
	if r, err := parseReceipt(one); err != nil || r.String() != one || r.extra != nil || r.proof != nil {
		t.Errorf("%q became %q, %v", one, r, err)
	}
}

func TestParseReceiptBad(t *testing.T) {
	edit := func(old, with string) string { return strings.Replace(goldenReceipt, old, with, 1) }
	hashLine := "vBoGQ7EuTS18d5GPROD095qDi2z57FtcKD4fTYhZnms=\n"
	for _, text := range []string{
		"", receiptMagic, receiptMagic + "\n\n", receiptMagic + "index 5\n", receiptMagic + "extra QEFCQw==\n\n" + goldenNote,
		receiptMagic + "\n\n" + goldenNote, receiptMagic + "\n" + goldenNote,
		edit("@v1", "@v2"), edit("c2sp", " c2sp"), edit("@v1\n", "@v1\r\n"), "\n" + goldenReceipt,
		edit("extra QEFCQw==", "extra "), edit("extra QEFCQw==", "extra"), edit("extra QEFCQw==", "extra QEFCQw="), edit("extra QEFCQw==", "extra QEFCQx=="),
		edit("extra QEFCQw==", "Extra QEFCQw=="), edit("extra QEFCQw==\n", "extra QEFCQw==\nextra QEFCQw==\n"),
		edit("extra QEFCQw==", "extra QEFC\rQw=="), edit("extra ", "extra  "),
		edit("index 5", "index 05"), edit("index 5", "index +5"), edit("index 5", "index -5"), edit("index 5", "index "), edit("index 5", "index"),
		edit("index 5", "index 5 "), edit("index 5", "index  5"), edit("index 5", "index 18446744073709551616"), edit("index 5\n", ""),
		edit("index 5\n", "index 5\nindex 5\n"), edit("index 5\n", "index 5\n\n"),
		edit(hashLine, "\n"), edit(hashLine, " "+hashLine), edit(hashLine, hashLine[4:]), edit("Znms=", "Znmt="), edit("Znms=", "Znms"),
		edit(hashLine, strings.Repeat(hashLine, 62)),
		edit("index 5\n", "index 5\n"+base64.StdEncoding.EncodeToString(make([]byte, 33))+"\n"),
		edit("\n\nexample", "\nexample"), edit("\n8\n", "\n08\n"), edit("\n\n— ", "\n— "),
		goldenReceipt + "\n", goldenReceipt + "x\n", strings.TrimSuffix(goldenReceipt, "\n"),
		edit("QEFCQw==", strings.Repeat("QEFC", maxNoteSize/4)),
	} {
		if r, err := parseReceipt(text); !errors.Is(err, errNote) {
			t.Errorf("parsed %.100q as %.100q, %v", text, r, err)
		}
	}
	if _, err := parseReceipt(edit(hashLine, strings.Repeat(hashLine, 61))); err != nil {
		t.Errorf("63 hashes: %v", err)
	}
}

// receiptAccepted is what a careful client does with a receipt whose extra is
// the leaf: it wants the log's signature and the witness's.
func receiptAccepted(text string, log, witness noteVerifier) bool {
	r, err := parseReceipt(text)
	if err != nil {
		return false
	}
	if _, err := r.check(leafHash(r.extra), log); err != nil {
		return false
	}
	signed, _, err := r.head.check(witness)
	return signed && err == nil
}

func TestReceiptEveryByte(t *testing.T) {
	t.Parallel()
	log, witness := mustVerifier(t, goldenLogKey), mustVerifier(t, goldenWitnessKey)
	text := publishedReceipt(t, 5).String()
	if !receiptAccepted(text, log, witness) {
		t.Fatal("the receipt is not accepted")
	}
	everyDamage(text, func(damaged string) {
		if receiptAccepted(damaged, log, witness) {
			t.Errorf("accepted %q", damaged)
		}
	})
}

func FuzzParseReceipt(f *testing.F) {
	f.Add(goldenReceipt)
	f.Add(publishedReceipt(f, 0).String())
	f.Add(receiptMagic + "index 0\n\no\n1\n" + formatBase64Hash(leafHash(nil)) + "\n\n" + goldenLogLine)
	log := mustVerifier(f, goldenLogKey)
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseReceipt(text)
		if err != nil {
			return
		}
		if r.String() != text {
			t.Errorf("%q became %q", text, r)
		}
		leaf := leafHash(r.extra)
		if _, err := r.check(leaf, log); err == nil && (r.index > 7 || leaf != publishedLeaves()[r.index]) {
			t.Errorf("accepted %q", text)
		}
	})
}

func BenchmarkReceiptString(b *testing.B) {
	r := publishedReceipt(b, 5)
	r.proof = slices.Repeat(r.proof, 8)
	r.extra = make([]byte, 150)
	for b.Loop() {
		_ = r.String()
	}
}

func BenchmarkReceiptCheck(b *testing.B) {
	log := mustVerifier(b, goldenLogKey)
	for b.Loop() {
		r, err := parseReceipt(goldenReceipt)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := r.check(leafHash(r.extra), log); err != nil {
			b.Fatal(err)
		}
	}
}
