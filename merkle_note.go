package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A signed note (C2SP signed-note) is a text and signatures of it:
//
//	example.com/scribe-test
//	8
//	XcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=
//
//	— example.com/scribe-test QGooI2VoyxMd7IjeZsXCXMN3Tk03fe75NxfPDvYmPVpr3ZNeBDZDhxtIm7Pp7gv9UTlvyv4uC76AafLEGV5RuD4y2gA=
//	— witness.example/w1 CtfTXgAAAABlU/EApxaFFg2W0oSIu7iN8JigLtbnL0ajBACBsYRzv67aUQjumGPJanSLWv/8EOFxR+uVp9m9xo+X2L0xdxRp+wVCAg==
//
// The text ends with a newline; the last empty line of the note divides it from
// the signatures, one a line: U+2014, space, the key's name, space, base64 of
// the key's id (4 bytes) and the signature. All of it is UTF-8 without control
// characters, at most 1,000,000 bytes with at most 64 signatures; base64 is RFC
// 4648 §4 with padding and nothing else in it. What is signed, and the
// signature, by the kind of key:
//
//	kind 1  the text                                               64 bytes of Ed25519
//	kind 4  "cosignature/v1\ntime " unix seconds "\n" and the text  8 bytes of unix seconds, 64 of Ed25519
//
// A key is written as its name, "+", its id in 8 hex digits, "+", base64 of its
// kind (1 byte) and public key (32 bytes):
//
//	witness.example/w1+0ad7d35e+BIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c
//
// The id is the first 4 bytes of SHA-256 over name, newline, kind, public key.
// A name is not empty and has neither spaces nor "+". Integers are big-endian.

// Kinds of keys, part of the format.
const (
	sigEd25519     = 0x01
	sigCosignature = 0x04
)

const (
	maxNoteSize       = 1_000_000 // as in golang.org/x/mod/sumdb/note
	maxNoteSignatures = 64
	signatureDash     = "— "
)

// errNote is returned for a note, key, tree head or receipt that is malformed.
var errNote = errors.New("malformed")

// errKeyKind is wrapped by the error about a key that is well formed and of a
// kind that this program has no use for.
var errKeyKind = fmt.Errorf("%w for this program", errNote)

// errSignature is returned when a signature of a key we know is wrong, or missing
// where it is wanted.
var errSignature = errors.New("wrong signature")

// noteVerifier is a public key with its name.
type noteVerifier struct {
	name string
	kind byte
	id   uint32
	key  ed25519.PublicKey
}

// newNoteVerifier returns the verifier of that name, kind and public key.
func newNoteVerifier(name string, kind byte, key ed25519.PublicKey) (noteVerifier, error) {
	switch {
	case !validKeyName(name):
		return noteVerifier{}, fmt.Errorf("%w key name %q", errNote, name)
	case kind != sigEd25519 && kind != sigCosignature:
		return noteVerifier{}, fmt.Errorf("%w key %s: kind is %#02x, want %#02x or %#02x", errKeyKind, name, kind, sigEd25519, sigCosignature)
	case len(key) != ed25519.PublicKeySize:
		return noteVerifier{}, fmt.Errorf("%w key %s: %d bytes, want %d", errNote, name, len(key), ed25519.PublicKeySize)
	}
	return noteVerifier{name, kind, verifierID(name, append([]byte{kind}, key...)), key}, nil
}

// verifierID returns the id of the key with that name, kind and public key.
func verifierID(name string, raw []byte) uint32 {
	sum := sha256.Sum256(append([]byte(name+"\n"), raw...))
	return binary.BigEndian.Uint32(sum[:])
}

// parseVerifier reads a key as String writes it, and nothing else.
func parseVerifier(vkey string) (noteVerifier, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	id, encoded, _ := strings.Cut(rest, "+")
	raw, err := exactBase64(encoded)
	if err != nil || len(raw) == 0 {
		return noteVerifier{}, fmt.Errorf("%w key %.200q: want name+id+base64", errNote, vkey)
	}
	if want := fmt.Sprintf("%08x", verifierID(name, raw)); id != want {
		return noteVerifier{}, fmt.Errorf("%w key %.200q: id should be %s", errNote, vkey, want)
	}
	return newNoteVerifier(name, raw[0], raw[1:])
}

// String returns the key as text, its vkey.
func (v noteVerifier) String() string {
	id := binary.BigEndian.AppendUint32(nil, v.id)
	raw := append([]byte{v.kind}, v.key...)
	return v.name + "+" + hex.EncodeToString(id) + "+" + base64.StdEncoding.EncodeToString(raw)
}

// verify checks one signature of this key over body, and returns its time if
// it is a cosignature.
func (v noteVerifier) verify(body string, data []byte) (unix int64, err error) {
	text := body
	if v.kind == sigCosignature {
		if len(data) != 8+ed25519.SignatureSize || binary.BigEndian.Uint64(data) > math.MaxInt64 {
			return 0, fmt.Errorf("%w by %s: no time and signature in %d bytes", errSignature, v.name, len(data))
		}
		unix = int64(binary.BigEndian.Uint64(data))
		text, data = cosignedText(body, unix), data[8:]
	}
	if !ed25519.Verify(v.key, []byte(text), data) {
		return 0, fmt.Errorf("%w by %s", errSignature, v)
	}
	return unix, nil
}

// cosignedText returns what a cosignature made at unix signs.
func cosignedText(body string, unix int64) string {
	return "cosignature/v1\ntime " + strconv.FormatInt(unix, 10) + "\n" + body
}

// noteSigner is a private key with its name. It prints as its public key.
type noteSigner struct {
	noteVerifier
	private ed25519.PrivateKey
}

// newNoteSigner returns the key that the 32 bytes of seed make.
func newNoteSigner(name string, kind byte, seed []byte) (noteSigner, error) {
	if len(seed) != ed25519.SeedSize {
		return noteSigner{}, fmt.Errorf("%w key %s: seed of %d bytes, want %d", errNote, name, len(seed), ed25519.SeedSize)
	}
	private := ed25519.NewKeyFromSeed(seed)
	v, err := newNoteVerifier(name, kind, private.Public().(ed25519.PublicKey))
	return noteSigner{v, private}, err
}

// sign signs body, which must end with a newline. Only a cosignature says when:
// unix, in seconds.
func (s noteSigner) sign(body string, unix int64) noteSignature {
	sig := noteSignature{name: s.name, id: s.id}
	if s.kind == sigCosignature {
		sig.data = binary.BigEndian.AppendUint64(nil, uint64(unix))
		body = cosignedText(body, unix)
	}
	sig.data = append(sig.data, ed25519.Sign(s.private, []byte(body))...)
	return sig
}

// noteSignature is one signature under a note, by a key we may not know.
type noteSignature struct {
	name string
	id   uint32
	data []byte
}

// line returns the signature as its line in the note.
func (s noteSignature) line() string { return string(s.append(nil)) }

// append appends what line returns.
func (s noteSignature) append(b []byte) []byte {
	raw := append(binary.BigEndian.AppendUint32(nil, s.id), s.data...)
	b = append(append(append(b, signatureDash...), s.name...), ' ')
	return append(base64.StdEncoding.AppendEncode(b, raw), '\n')
}

// time returns the unix seconds a cosignature says it was made at, else 0.
// Nothing vouches for them before check does.
func (s noteSignature) time() int64 {
	if len(s.data) != 8+ed25519.SignatureSize {
		return 0
	}
	return int64(binary.BigEndian.Uint64(s.data) & math.MaxInt64)
}

// parseSignature reads what line writes, without the newline.
func parseSignature(line string) (noteSignature, error) {
	rest, dashed := strings.CutPrefix(line, signatureDash)
	name, encoded, _ := strings.Cut(rest, " ")
	raw, err := exactBase64(encoded)
	if !dashed || !validKeyName(name) || err != nil || len(raw) < 5 {
		return noteSignature{}, fmt.Errorf("%w signature line %.200q", errNote, line)
	}
	return noteSignature{name, binary.BigEndian.Uint32(raw), raw[4:]}, nil
}

// note is a text and signatures of it, checked or not.
type note struct {
	body       string // ends with a newline
	signatures []noteSignature
}

// String returns the signed note.
func (n note) String() string { return string(n.append(nil)) }

// append appends what String returns.
func (n note) append(b []byte) []byte {
	b = append(append(b, n.body...), '\n')
	for _, s := range n.signatures {
		b = s.append(b)
	}
	return b
}

// parseNote reads a signed note; it checks no signature. What it accepts String
// returns byte for byte.
func parseNote(text string) (note, error) {
	if len(text) > maxNoteSize || !validNoteText(text) {
		return note{}, fmt.Errorf("%w note: %d bytes, or not plain UTF-8", errNote, len(text))
	}
	split := strings.LastIndex(text, "\n\n")
	if split < 0 || !strings.HasSuffix(text[split+2:], "\n") {
		return note{}, fmt.Errorf("%w note: no signatures after an empty line", errNote)
	}
	n := note{body: text[:split+1]}
	for line := range strings.Lines(text[split+2:]) {
		s, err := parseSignature(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return note{}, err
		}
		if n.signatures = append(n.signatures, s); len(n.signatures) > maxNoteSignatures {
			return note{}, fmt.Errorf("%w note: more than %d signatures", errNote, maxNoteSignatures)
		}
	}
	return n, nil
}

// check reports whether v signed the note and, for a cosignature, when: the
// latest time if it did more than once. Signatures of other keys do not matter;
// a wrong one of v is an error.
func (n note) check(v noteVerifier) (signed bool, unix int64, err error) {
	for _, s := range n.signatures {
		if s.name != v.name || s.id != v.id {
			continue
		}
		t, err := v.verify(n.body, s.data)
		if err != nil {
			return false, 0, err
		}
		signed, unix = true, max(unix, t)
	}
	return signed, unix, nil
}

// validNoteText reports whether s is UTF-8 without control characters but newlines.
func validNoteText(s string) bool {
	control := func(r rune) bool { return r < ' ' && r != '\n' }
	return utf8.ValidString(s) && !strings.ContainsFunc(s, control)
}

// validKeyName reports whether name can stand in a signature line and a vkey.
func validKeyName(name string) bool {
	bad := func(r rune) bool { return r < ' ' || r == '+' || unicode.IsSpace(r) }
	return name != "" && utf8.ValidString(name) && !strings.ContainsFunc(name, bad)
}

// exactBase64 decodes s if it is exactly what encoding the result gives: no
// line breaks, no missing padding, no stray bits.
func exactBase64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || base64.StdEncoding.EncodeToString(b) != s {
		return nil, fmt.Errorf("%w base64 %.100q", errNote, s)
	}
	return b, nil
}
