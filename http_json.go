package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// The JSON of replies that are written often, by hand: reflection costs more
// than all the rest of a small request. Tests compare each with encoding/json.

// appendJSONString appends s as a JSON string, byte for byte as encoding/json
// does with SetEscapeHTML(false).
func appendJSONString[T string | []byte](b []byte, s T) []byte {
	b = append(b, '"')
	b = appendEscaped(b, s)
	return append(b, '"')
}

// appendEscaped appends s as it stands between the quotes of a JSON string.
func appendEscaped[T string | []byte](b []byte, s T) []byte {
	const digits = "0123456789abcdef"
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := decodeRune(s[i:])
			if (r != utf8.RuneError || n > 1) && r != '\u2028' && r != '\u2029' {
				i += n
				continue
			}
			b = append(b, s[start:i]...)
			b = append(b, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
			i += n
			start = i
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
		i++
		start = i
	}
	return append(b, s[start:]...)
}

// decodeRune is utf8.DecodeRune for strings and byte slices.
func decodeRune[T string | []byte](s T) (rune, int) {
	var room [utf8.UTFMax]byte
	return utf8.DecodeRune(room[:copy(room[:], s)])
}

// appendBytes appends "name":"…" or, for bytes that are not UTF-8,
// "name_base64":"…".
func appendBytes(b []byte, name string, v []byte) []byte {
	b = append(b, '"')
	b = append(b, name...)
	if utf8.Valid(v) {
		b = append(b, '"', ':')
		return appendJSONString(b, v)
	}
	b = append(b, `_base64":"`...)
	b = base64.StdEncoding.AppendEncode(b, v)
	return append(b, '"')
}

// appendEntry appends the JSON entry of API.md.
func appendEntry(b []byte, h *header, leaf *hash) []byte {
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, h.seq, 10)
	b = append(b, ',')
	b = appendBytes(b, "key", h.key)
	b = append(b, `,"op":"`...)
	b = append(b, h.op.String()...)
	b = append(b, `","version":`...)
	b = strconv.AppendUint(b, h.version, 10)
	b = append(b, `,"prev":`...)
	if h.prev == noSeq {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendUint(b, h.prev, 10)
	}
	b = append(b, `,"time":"`...)
	b = appendTime(b, h.time)
	b = append(b, `","size":`...)
	b = strconv.AppendUint(b, h.size, 10)
	b = append(b, `,"sha256":"`...)
	b = hex.AppendEncode(b, h.sum[:])
	b = append(b, `","content_type":`...)
	b = appendJSONString(b, h.contentType)
	b = append(b, `,"author":`...)
	b = appendJSONString(b, h.author)
	b = append(b, `,"region":`...)
	b = appendJSONString(b, h.region)
	b = append(b, `,"leaf_hash":"`...)
	b = hex.AppendEncode(b, leaf[:])
	return append(b, '"', '}')
}

// appendTime appends Unix milliseconds as RFC 3339 in UTC with three decimals.
func appendTime(b []byte, ms int64) []byte {
	t := time.UnixMilli(ms).UTC()
	b = t.AppendFormat(b, time.RFC3339) // the layout time formats fastest; ends in Z
	n := t.Nanosecond() / 1e6
	return append(b[:len(b)-1], '.', byte('0'+n/100), byte('0'+n/10%10), byte('0'+n%10), 'Z')
}

// badRequest is an error about what the client sent.
func badRequest(code, format string, args ...any) *apiError {
	return &apiError{status: 400, code: code, message: fmt.Sprintf(format, args...)}
}

// appendJSON appends the body of an error reply, which is also its line in a stream.
func (e *apiError) appendJSON(b []byte) []byte {
	b = append(b, `{"error":{"code":`...)
	b = appendJSONString(b, e.code)
	b = append(b, `,"message":`...)
	b = appendJSONString(b, e.message)
	b = append(b, '}')
	if e.failed != nil {
		b = append(b, `,"failed_op":`...)
		b = strconv.AppendInt(b, int64(*e.failed), 10)
	}
	return append(b, '}', '\n')
}
