package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
)

// The note that merkle_note.go shows: the log's key has the zero seed, the
// witness's the seed of 32 times 0x01; the time is 1700000000.
const (
	goldenLogKey     = "example.com/scribe-test+406a2823+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
	goldenWitnessKey = "witness.example/w1+0ad7d35e+BIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
	goldenHead       = "example.com/scribe-test\n8\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=\n"
	goldenLogLine    = "— example.com/scribe-test QGooI2VoyxMd7IjeZsXCXMN3Tk03fe75NxfPDvYmPVpr3ZNeBDZDhxtIm7Pp7gv9UTlvyv4uC76AafLEGV5RuD4y2gA=\n"
	goldenCosigLine  = "— witness.example/w1 CtfTXgAAAABlU/EApxaFFg2W0oSIu7iN8JigLtbnL0ajBACBsYRzv67aUQjumGPJanSLWv/8EOFxR+uVp9m9xo+X2L0xdxRp+wVCAg==\n"
	goldenNote       = goldenHead + "\n" + goldenLogLine + goldenCosigLine
)

// goldenSigners returns the two keys that signed goldenNote.
func goldenSigners(t testing.TB) (log, witness noteSigner) {
	t.Helper()
	log, err1 := newNoteSigner("example.com/scribe-test", sigEd25519, make([]byte, 32))
	witness, err2 := newNoteSigner("witness.example/w1", sigCosignature, bytes.Repeat([]byte{1}, 32))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return log, witness
}

// mustVerifier parses a key that is known to be good.
func mustVerifier(t testing.TB, vkey string) noteVerifier {
	t.Helper()
	v, err := parseVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// mustNote parses a note that is known to be good.
func mustNote(t testing.TB, text string) note {
	t.Helper()
	n, err := parseNote(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNoteGolden(t *testing.T) {
	log, witness := goldenSigners(t)
	if log.String() != goldenLogKey || witness.String() != goldenWitnessKey {
		t.Errorf("keys are %s and %s", log, witness)
	}
	n := note{goldenHead, []noteSignature{log.sign(goldenHead, 0), witness.sign(goldenHead, 1700000000)}}
	if got := n.String(); got != goldenNote {
		t.Errorf("note is %s, want %s", got, goldenNote)
	}
	if got := n.signatures[1].time(); got != 1700000000 {
		t.Errorf("time of the cosignature is %d", got)
	}
	if got := n.signatures[0].time(); got != 0 {
		t.Errorf("time of the signature is %d", got)
	}
	parsed := mustNote(t, goldenNote)
	for _, c := range []struct {
		vkey string
		unix int64
	}{{goldenLogKey, 0}, {goldenWitnessKey, 1700000000}} {
		signed, unix, err := parsed.check(mustVerifier(t, c.vkey))
		if !signed || unix != c.unix || err != nil {
			t.Errorf("check of %s: %t, %d, %v", c.vkey, signed, unix, err)
		}
	}
}

// TestFormatComments wants the texts in the files' opening comments to be those
// the tests parse.
func TestFormatComments(t *testing.T) {
	for file, text := range map[string]string{
		"merkle_note.go":    goldenNote + goldenWitnessKey + "\n",
		"merkle_head.go":    goldenHead,
		"merkle_receipt.go": goldenReceipt,
	} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text) {
			if !strings.Contains(string(source), strings.TrimRight("//\t"+line, "\t\n")) {
				t.Errorf("%s does not show %q", file, line)
			}
		}
	}
}

// TestNoteVectors checks the notes published with C2SP signed-note and with
// golang.org/x/mod/sumdb/note.
func TestNoteVectors(t *testing.T) {
	const riddle = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
	const neumann = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
	const enoch = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
	for _, c := range []struct{ vkey, note string }{
		{"example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
			"This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"},
		{"PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", riddle + "\n" + neumann},
		{"PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", riddle + "\n" + enoch + neumann},
		{"EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop", riddle + "\n" + enoch + neumann},
	} {
		v, n := mustVerifier(t, c.vkey), mustNote(t, c.note)
		if signed, _, err := n.check(v); !signed || err != nil {
			t.Errorf("check of %s: %t, %v", c.vkey, signed, err)
		}
		if n.String() != c.note {
			t.Errorf("note became %q", n)
		}
		n.body += "x\n"
		if _, _, err := n.check(v); !errors.Is(err, errSignature) {
			t.Errorf("check of a changed text: %v", err)
		}
	}
	enochRoot, _ := newNoteSigner("EnochRoot", sigEd25519, make([]byte, 32))
	if got := enochRoot.sign(riddle, 5).line(); got != enoch {
		t.Errorf("signature of the zero seed is %s", got)
	}
	for _, vkey := range []string{
		"example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx",
		"witness.example.org+b8a2cf20+BFLN3yikSfFkVAJtrnh/CiY3Zozkoy7clp+P7XB28qUN",
		"mirror.example.org+3fb148ef+BAAjjch9GyYz0sJsJx7ALhbdAtz2ov0unbzSl1vMp94O",
	} {
		if got := mustVerifier(t, vkey).String(); got != vkey {
			t.Errorf("key %s became %s", vkey, got)
		}
	}
}

// TestNoteUnknown wants signatures of other keys ignored: of another name,
// another id, another kind with the same public key.
func TestNoteUnknown(t *testing.T) {
	log, witness := goldenSigners(t)
	other, _ := newNoteSigner("example.com/other", sigEd25519, make([]byte, 32))
	rekeyed, _ := newNoteSigner(log.name, sigEd25519, bytes.Repeat([]byte{2}, 32))
	asWitness, _ := newNoteSigner(log.name, sigCosignature, make([]byte, 32))
	sameID := log.noteVerifier
	sameID.name = "example.com/another"
	n := mustNote(t, goldenHead+"\n"+goldenLogLine)
	for _, v := range []noteVerifier{other.noteVerifier, rekeyed.noteVerifier, asWitness.noteVerifier, witness.noteVerifier, sameID} {
		if signed, _, err := n.check(v); signed || err != nil {
			t.Errorf("check of %s: %t, %v", v, signed, err)
		}
	}
}

// TestNoteWrongSignature wants an error for a wrong signature of a known key,
// even beside a good one, and the latest time of several good ones.
func TestNoteWrongSignature(t *testing.T) {
	log, witness := goldenSigners(t)
	good, wrong := log.sign(goldenHead, 0), log.sign(goldenHead+"x\n", 0)
	early, late := witness.sign(goldenHead, 3), witness.sign(goldenHead, 4)
	moved := witness.sign(goldenHead, 5)
	binary.BigEndian.PutUint64(moved.data, 6)
	beyond := witness.sign(goldenHead, math.MinInt64)
	plain := witness.sign(goldenHead, 7)
	plain.data = plain.data[8:]
	short, long := good, good
	short.data, long.data = good.data[:63], append(good.data[:64:64], 0)
	for _, c := range []struct {
		v    noteVerifier
		sigs []noteSignature
		unix int64
		want error
	}{
		{log.noteVerifier, []noteSignature{good, good}, 0, nil},
		{log.noteVerifier, []noteSignature{wrong}, 0, errSignature},
		{log.noteVerifier, []noteSignature{good, wrong}, 0, errSignature},
		{log.noteVerifier, []noteSignature{wrong, good}, 0, errSignature},
		{log.noteVerifier, []noteSignature{short}, 0, errSignature},
		{log.noteVerifier, []noteSignature{long}, 0, errSignature},
		{witness.noteVerifier, []noteSignature{early}, 3, nil},
		{witness.noteVerifier, []noteSignature{late, good, early}, 4, nil},
		{witness.noteVerifier, []noteSignature{moved}, 0, errSignature},
		{witness.noteVerifier, []noteSignature{late, moved}, 0, errSignature},
		{witness.noteVerifier, []noteSignature{beyond}, 0, errSignature},
		{witness.noteVerifier, []noteSignature{plain}, 0, errSignature},
	} {
		n := mustNote(t, note{goldenHead, c.sigs}.String())
		signed, unix, err := n.check(c.v)
		if !errors.Is(err, c.want) || signed != (c.want == nil) || unix != c.unix {
			t.Errorf("check of %s by %s: %t, %d, %v", n, c.v, signed, unix, err)
		}
	}
}

func TestParseNoteBad(t *testing.T) {
	sig := func(raw string) string { return "— n " + base64.StdEncoding.EncodeToString([]byte(raw)) + "\n" }
	good := sig("12345")
	for _, text := range []string{
		"", "\n", "\n\n", "text\n", "text\n\n", "text" + good, "text\n" + good,
		"text\n\n" + strings.TrimSuffix(good, "\n"),
		"text\n\n" + good + "\n",
		"text\n\n" + good + "text\n",
		"text\n\n " + good,
		"text\n\n" + strings.Replace(good, "—", "-", 1),
		"text\n\n" + strings.Replace(good, "— ", "—", 1),
		"text\n\n" + strings.Replace(good, "— ", "—\u00a0", 1),
		"text\n\n" + strings.Replace(good, " n ", "  ", 1),
		"text\n\n" + strings.Replace(good, " n ", " n  ", 1),
		"text\n\n" + strings.Replace(good, " n ", " n+m ", 1),
		"text\n\n" + strings.Replace(good, " n ", " n\u2003m ", 1),
		"text\n\n" + strings.Replace(good, "=", "", 1),
		"text\n\n" + strings.Replace(good, "=", "==", 1),
		"text\n\n" + strings.Replace(good, "=", "= ", 1),
		"text\n\n" + strings.Replace(good, "\n", "\r\n", 1),
		"text\n\n— n MTIzNDV=\n", "text\n\n— n MTIzNDR=\n", "text\n\n— n MTIz-DU=\n",
		"text\n\n" + sig("1234"), "text\n\n" + sig(""), "text\n\n— n\n", "text\n\n— \n",
		"te\x00xt\n\n" + good, "te\txt\n\n" + good, "te\rxt\n\n" + good, "te\xffxt\n\n" + good,
		"text\n\n" + strings.Repeat(good, 65),
		strings.Repeat("x", maxNoteSize) + "\n\n" + good,
	} {
		if n, err := parseNote(text); !errors.Is(err, errNote) {
			t.Errorf("parsed %.100q as %.100q, %v", text, n, err)
		}
	}
	for _, text := range []string{
		"text\n\n" + good, "\n\n" + good, "a\n\nb\n\n\n" + good, "text\n\n" + strings.Repeat(good, 64),
		"é\x7f\n\n" + good, "text\n\n" + strings.Replace(good, " n ", " —é/x ", 1),
		strings.Repeat("x", maxNoteSize-2-len(good)) + "\n\n" + good,
	} {
		if n, err := parseNote(text); err != nil || n.String() != text {
			t.Errorf("parsed %.100q as %.100q, %v", text, n, err)
		}
	}
}

// TestNoteEveryByte cuts the golden note at every length and flips every bit of
// it: it must never again be signed by both keys.
func TestNoteEveryByte(t *testing.T) {
	t.Parallel()
	log, witness := mustVerifier(t, goldenLogKey), mustVerifier(t, goldenWitnessKey)
	accepted := func(text string) bool {
		n, err := parseNote(text)
		if err != nil {
			return false
		}
		if signed, _, err := n.check(log); !signed || err != nil {
			return false
		}
		signed, unix, err := n.check(witness)
		return signed && unix == 1700000000 && err == nil
	}
	if !accepted(goldenNote) {
		t.Fatal("the golden note is not accepted")
	}
	everyDamage(goldenNote, func(damaged string) {
		if accepted(damaged) {
			t.Errorf("accepted %q", damaged)
		}
	})
}

// everyDamage calls try with text cut at every length, and with each of its bits
// flipped.
func everyDamage(text string, try func(damaged string)) {
	for i := range len(text) {
		try(text[:i])
		for bit := range 8 {
			b := []byte(text)
			b[i] ^= 1 << bit
			try(string(b))
		}
	}
}

func TestVerifierEveryByte(t *testing.T) {
	for _, vkey := range []string{goldenLogKey, goldenWitnessKey} {
		everyDamage(vkey, func(damaged string) {
			if v, err := parseVerifier(damaged); !errors.Is(err, errNote) {
				t.Errorf("parsed %q as %s, %v", damaged, v, err)
			}
		})
	}
}

func TestParseVerifierBad(t *testing.T) {
	key := func(name string, raw []byte) string {
		v := noteVerifier{name: name, kind: raw[0], key: raw[1:]}
		return strings.Replace(v.String(), "00000000", fmt.Sprintf("%08x", keyID(name, raw)), 1)
	}
	public := make([]byte, ed25519.PublicKeySize)
	if _, err := parseVerifier(key("n", append([]byte{1}, public...))); err != nil {
		t.Fatal(err)
	}
	for _, vkey := range []string{
		"", "+", "++", "n", "n+", "n+00000000", "n+00000000+",
		key("", append([]byte{1}, public...)),
		key("a b", append([]byte{1}, public...)),
		key("a+b", append([]byte{1}, public...)),
		key("a\nb", append([]byte{1}, public...)),
		key("a\x01b", append([]byte{1}, public...)),
		key("a\xffb", append([]byte{1}, public...)),
		key("n", append([]byte{2}, public...)), key("n", append([]byte{6}, public...)), key("n", append([]byte{0xff}, public...)),
		key("n", public), key("n", append([]byte{1, 1}, public...)),
		strings.Replace(goldenLogKey, "406a2823", "406A2823", 1),
		strings.Replace(goldenLogKey, "406a2823", "406a2824", 1),
		strings.Replace(goldenLogKey, "406a2823", "406a282", 1),
		goldenLogKey + "\n", " " + goldenLogKey, goldenLogKey + "+",
	} {
		if v, err := parseVerifier(vkey); !errors.Is(err, errNote) {
			t.Errorf("parsed %q as %s, %v", vkey, v, err)
		}
	}
}

// keyID computes an id the way the format says, apart from newNoteVerifier.
func keyID(name string, raw []byte) uint32 {
	sum := sha256.Sum256([]byte(name + "\n" + string(raw)))
	return binary.BigEndian.Uint32(sum[:4])
}

func TestNewNoteSignerBad(t *testing.T) {
	seed := make([]byte, 32)
	for _, c := range []struct {
		name string
		kind byte
		seed []byte
	}{{"n", sigEd25519, nil}, {"n", sigEd25519, seed[:31]}, {"n", 2, seed}, {"", sigEd25519, seed}, {"a b", sigEd25519, seed}} {
		if _, err := newNoteSigner(c.name, c.kind, c.seed); !errors.Is(err, errNote) {
			t.Errorf("signer %q of kind %d: %v", c.name, c.kind, err)
		}
	}
}

// TestSignerHidesSeed wants a signer that is printed to show its public key only.
func TestSignerHidesSeed(t *testing.T) {
	s, _ := newNoteSigner("n", sigEd25519, []byte("0123456789abcdef0123456789abcdef"))
	for _, format := range []string{"%v", "%+v", "%s"} {
		if got := fmt.Sprintf(format, s); got != s.noteVerifier.String() {
			t.Errorf("%s prints %s", format, got)
		}
	}
}

func FuzzParseVerifier(f *testing.F) {
	f.Add(goldenLogKey)
	f.Add(goldenWitnessKey)
	f.Add("n++")
	f.Fuzz(func(t *testing.T, vkey string) {
		if v, err := parseVerifier(vkey); err == nil && v.String() != vkey {
			t.Errorf("%q became %q", vkey, v)
		}
	})
}

func FuzzParseNote(f *testing.F) {
	f.Add(goldenNote)
	f.Add(goldenHead + "\n" + goldenLogLine)
	f.Add("a\n\n\n— n MTIzNDU=\n")
	log, witness := mustVerifier(f, goldenLogKey), mustVerifier(f, goldenWitnessKey)
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseNote(text)
		if err != nil {
			return
		}
		if n.String() != text {
			t.Errorf("%q became %q", text, n)
		}
		byLog, _, _ := n.check(log)
		byWitness, _, _ := n.check(witness)
		if (byLog || byWitness) && n.body != goldenHead {
			t.Errorf("%q is signed", n.body)
		}
	})
}

func BenchmarkNoteSign(b *testing.B) {
	_, witness := goldenSigners(b)
	for b.Loop() {
		witness.sign(goldenHead, 1700000000)
	}
}

func BenchmarkNoteCheck(b *testing.B) {
	log := mustVerifier(b, goldenLogKey)
	for b.Loop() {
		n, err := parseNote(goldenNote)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := n.check(log); err != nil {
			b.Fatal(err)
		}
	}
}
