package main

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Reading of operations in JSON, by hand: encoding/json costs more than all
// the rest of a line. It is stricter than encoding/json where that would change
// what is stored: names match exactly and once, strings are UTF-8 without lone
// surrogates. FuzzScanOp compares the two.
//
// Strings are unescaped in place, so keys and values share the memory of the
// text, which the opScanner spoils.

// opScanner is a position in a JSON text.
type opScanner struct {
	b []byte
	i int
}

// peek passes over white space and returns the byte after it, 0 at the end.
func (s *opScanner) peek() byte {
	for ; s.i < len(s.b); s.i++ {
		switch s.b[s.i] {
		case ' ', '\t', '\r', '\n':
		default:
			return s.b[s.i]
		}
	}
	return 0
}

// next passes over c, if that is what comes.
func (s *opScanner) next(c byte) bool {
	if s.peek() != c || s.i >= len(s.b) {
		return false
	}
	s.i++
	return true
}

// unexpected is the error for what stands at the position; of names the field
// that want is part of, "" for none.
func (s *opScanner) unexpected(want, of string) error {
	if of != "" {
		want += " for " + of
	}
	if s.i >= len(s.b) {
		return badRequest("malformed", "the JSON ends at byte %d, want %s", s.i, want)
	}
	return badRequest("malformed", "the JSON has %q at byte %d, want %s", s.b[s.i], s.i, want)
}

// word passes over null, true or false.
func (s *opScanner) word(w string) bool {
	s.peek()
	if !bytes.HasPrefix(s.b[s.i:], []byte(w)) {
		return false
	}
	s.i += len(w)
	return true
}

// text reads a string; what names it in errors.
func (s *opScanner) text(what string) ([]byte, error) {
	if !s.next('"') {
		return nil, s.unexpected("a string", what)
	}
	start, ascii := s.i, true
	for ; s.i < len(s.b); s.i++ {
		switch c := s.b[s.i]; {
		case c == '"':
			v := s.b[start:s.i:s.i]
			s.i++
			if !ascii && !utf8.Valid(v) {
				return nil, badRequest("malformed", "the JSON string for %s is not UTF-8; bytes go base64-encoded into %s_base64", what, what)
			}
			return v, nil
		case c == '\\':
			return s.escapedText(what, start)
		case c < ' ':
			return nil, s.unexpected("no control character in the string", what)
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return nil, s.unexpected("the end of the string", what)
}

// escapedText goes on with a string at its first backslash.
func (s *opScanner) escapedText(what string, start int) ([]byte, error) {
	out := s.i
	for s.i < len(s.b) {
		c := s.b[s.i]
		switch {
		case c == '"':
			v := s.b[start:out:out]
			s.i++
			if !utf8.Valid(v) {
				return nil, badRequest("malformed", "the JSON string for %s is not UTF-8; bytes go base64-encoded into %s_base64", what, what)
			}
			return v, nil
		case c < ' ':
			return nil, s.unexpected("no control character in the string", what)
		case c != '\\':
			s.b[out] = c
			out++
			s.i++
		default:
			r, ok := s.escape()
			if !ok {
				return nil, s.unexpected("an escape of JSON in the string", what)
			}
			out = len(utf8.AppendRune(s.b[:out], r)) // in place: an escape is never shorter than its rune
		}
	}
	return nil, s.unexpected("the end of the string", what)
}

// escape reads one escape, or two that make a surrogate pair. It leaves the
// position at a bad one.
func (s *opScanner) escape() (rune, bool) {
	if s.i+1 >= len(s.b) {
		return 0, false
	}
	const from, to = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	if k := bytes.IndexByte([]byte(from), s.b[s.i+1]); k >= 0 {
		s.i += 2
		return rune(to[k]), true
	}
	r, ok := s.unicodeEscape(s.i)
	if !ok {
		return 0, false
	}
	if !utf16.IsSurrogate(r) {
		s.i += 6
		return r, true
	}
	low, ok := s.unicodeEscape(s.i + 6)
	if r = utf16.DecodeRune(r, low); !ok || r == utf8.RuneError {
		return 0, false
	}
	s.i += 12
	return r, true
}

// unicodeEscape reads \uXXXX at i.
func (s *opScanner) unicodeEscape(i int) (rune, bool) {
	if i+6 > len(s.b) || s.b[i] != '\\' || s.b[i+1] != 'u' {
		return 0, false
	}
	r := rune(0)
	for _, c := range s.b[i+2 : i+6] {
		d := unhex(c)
		if d < 0 {
			return 0, false
		}
		r = r<<4 | rune(d)
	}
	return r, true
}

// number reads a whole number without sign, fraction or exponent.
func (s *opScanner) number(what string) (uint64, error) {
	s.peek()
	end := s.i
	for end < len(s.b) && s.b[end] >= '0' && s.b[end] <= '9' {
		end++
	}
	n, ok := parseNumber(s.b[s.i:end])
	if end < len(s.b) && (s.b[end] == '.' || s.b[end]|0x20 == 'e') {
		ok = false
	}
	if !ok {
		return 0, s.unexpected("a whole number", what)
	}
	s.i = end
	return n, nil
}

// opFields are the fields an operation has given, as bits.
type opFields uint16

const (
	fieldOp opFields = 1 << iota
	fieldKey
	fieldValue
	fieldType
	fieldIfAbsent
	fieldIfSeq
)

// op reads {"op":"put","key":"k","value":"v"} into o.
func (s *opScanner) op(o *operation) error {
	o.ifSeq = noSeq
	if !s.next('{') {
		return s.unexpected("an operation, which begins with {", "")
	}
	var given opFields
	for first := true; !s.next('}'); first = false {
		if !first && !s.next(',') {
			return s.unexpected(", or }", "")
		}
		name, err := s.text("a name")
		if err != nil {
			return err
		}
		if !s.next(':') {
			return s.unexpected(":", "")
		}
		field, err := s.field(o, name)
		if err != nil {
			return err
		}
		if given&field != 0 {
			return badRequest("malformed", "field %q is given twice", clip(string(name)))
		}
		given |= field
	}
	return checkOp(o, given)
}

// opField is a field of an operation by its name in JSON.
type opField struct {
	name  string
	bit   opFields
	coded bool // base64
}

var opFieldList = [...]opField{
	{"op", fieldOp, false},
	{"key", fieldKey, false},
	{"value", fieldValue, false},
	{"content_type", fieldType, false},
	{"if_absent", fieldIfAbsent, false},
	{"if_seq", fieldIfSeq, false},
	{"key_base64", fieldKey, true},
	{"value_base64", fieldValue, true},
}

func findOpField(name []byte) (opField, error) {
	for _, f := range opFieldList {
		if string(name) == f.name { // the compiler makes no string of it
			return f, nil
		}
	}
	return opField{}, badRequest("malformed", "unknown field %q in an operation", clip(string(name)))
}

// field reads the value of one field. It returns 0 for null, which is as if
// the field were not there.
func (s *opScanner) field(o *operation, name []byte) (opFields, error) {
	f, err := findOpField(name)
	if err != nil {
		return 0, err
	}
	if s.word("null") {
		return 0, nil
	}
	switch f.bit {
	case fieldIfAbsent:
		o.ifAbsent = s.word("true")
		if !o.ifAbsent && !s.word("false") {
			err = s.unexpected("true or false", f.name)
		}
		return f.bit, err
	case fieldIfSeq:
		o.ifSeq, err = s.number(f.name)
		return f.bit, err
	}
	v, err := s.text(f.name)
	if err == nil && f.coded {
		v, err = decodeBase64(v, f.name)
	}
	if err != nil {
		return f.bit, err
	}
	switch f.bit {
	case fieldKey:
		o.key = v
	case fieldValue:
		o.value = v
	case fieldType:
		o.contentType = string(v)
	default:
		o.kind, err = parseOpKind(v)
	}
	return f.bit, err
}

// decodeBase64 decodes v in place.
func decodeBase64(v []byte, name string) ([]byte, error) {
	n, err := base64.StdEncoding.Decode(v, v)
	if err != nil {
		return nil, badRequest("malformed", "%s is not base64: %s", name, err)
	}
	return v[:n:n], nil
}

func parseOpKind(v []byte) (opKind, error) {
	switch string(v) {
	case "put":
		return opPut, nil
	case "delete":
		return opDelete, nil
	}
	return 0, badRequest("malformed", `op is %q, want "put" or "delete"`, clip(string(v)))
}

// checkOp reports an operation that makes no sense, by the fields it gave.
func checkOp(o *operation, given opFields) error {
	switch {
	case given&fieldOp == 0:
		return badRequest("malformed", `the operation has no "op"`)
	case given&fieldKey == 0:
		return badRequest("malformed", `the operation has no "key"`)
	case len(o.key) == 0:
		return badRequest("empty_key", "the key is empty, want 1 to %d bytes", maxKeySize)
	case len(o.key) > maxKeySize:
		return badRequest("key_too_large", "the key has %d bytes, want 1 to %d", len(o.key), maxKeySize)
	case len(o.contentType) > maxLabelSize:
		return badRequest("malformed", "content_type has %d bytes, want at most %d", len(o.contentType), maxLabelSize)
	case o.ifAbsent && given&fieldIfSeq != 0:
		return badRequest("malformed", "if_absent and if_seq contradict each other")
	case given&fieldIfSeq != 0 && o.ifSeq == noSeq:
		return badRequest("malformed", "if_seq is %s, which no entry has", strconv.FormatUint(noSeq, 10))
	case o.kind == opPut && given&fieldValue == 0:
		return badRequest("malformed", `the put has no "value"`)
	case o.kind == opDelete && given&(fieldValue|fieldType) != 0:
		return badRequest("malformed", "a delete takes neither value nor content_type")
	case o.kind == opDelete && o.ifAbsent:
		return badRequest("malformed", "if_absent never holds for a delete")
	}
	return nil
}

// maxBatchOps is how many operations an atomic batch may have.
const maxBatchOps = 10000

// ops reads {"ops":[…]}. The index of the operation an error is about is
// returned with it, -1 if it is about none.
func (s *opScanner) ops() (ops []operation, failed int, err error) {
	if !s.next('{') {
		return nil, -1, s.unexpected(`{"ops":[`, "")
	}
	name, err := s.text("a name")
	if err != nil {
		return nil, -1, err
	}
	if string(name) != "ops" {
		return nil, -1, badRequest("malformed", "unknown field %q in a batch", clip(string(name)))
	}
	if !s.next(':') || !s.next('[') {
		return nil, -1, s.unexpected(`an array for "ops"`, "")
	}
	for first := true; !s.next(']'); first = false {
		if !first && !s.next(',') {
			return nil, -1, s.unexpected(", or ]", "")
		}
		if len(ops) == maxBatchOps {
			return nil, -1, badRequest("too_many_ops", "the batch has more than %d operations", maxBatchOps)
		}
		ops = append(ops, operation{})
		if err := s.op(&ops[len(ops)-1]); err != nil {
			return nil, len(ops) - 1, err
		}
	}
	if !s.next('}') {
		return nil, -1, s.unexpected("}", "")
	}
	return ops, -1, s.end()
}

// end reports what follows the JSON value.
func (s *opScanner) end() error {
	if s.peek(); s.i < len(s.b) {
		return s.unexpected("nothing more", "")
	}
	return nil
}
