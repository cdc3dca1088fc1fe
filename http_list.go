package main

import (
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
)

// The calls on many entries: the history of a key and the live keys.

// history answers with the versions of a key, newest first.
func (s *server) history(c *call) (reply, error) {
	if err := checkKey(c); err != nil {
		return reply{}, err
	}
	limit, err := c.limit(100, 1000)
	if err != nil {
		return reply{}, err
	}
	before, paged, err := c.number("before", 0, noSeq)
	if err != nil {
		return reply{}, err
	}
	if !paged {
		before = noSeq
	}
	if err := s.prepareRead(c); err != nil {
		return reply{}, err
	}
	versions, next, err := s.store.history(c.key, before, limit)
	if err != nil {
		return reply{}, err
	}
	if len(versions) == 0 && !paged {
		return reply{}, errNotFound
	}
	b := appendBytes([]byte{'{'}, "key", c.key)
	b = append(b, `,"versions":[`...)
	for i := range versions {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendEntry(b, &versions[i].header, &versions[i].leaf)
	}
	b = append(b, `],"next":`...)
	if next == nil {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendUint(b, *next, 10)
	}
	return jsonReply(c, append(b, "}\n"...)), nil
}

// jsonReply is a 200 whose body is JSON.
func jsonReply(c *call, body []byte) reply {
	c.lines.add("Content-Type", "application/json")
	return reply{status: http.StatusOK, body: body}
}

// keys answers with the live keys in byte order.
func (s *server) keys(c *call) (reply, error) {
	limit, err := c.limit(1000, 10000)
	if err != nil {
		return reply{}, err
	}
	prefix, _, err := c.bytes("prefix")
	if err != nil {
		return reply{}, err
	}
	after, given, err := c.bytes("after")
	if err != nil {
		return reply{}, err
	}
	if !given {
		after = nil
	}
	if err := s.prepareRead(c); err != nil {
		return reply{}, err
	}
	found, more, err := s.store.list(prefix, after, limit)
	if err != nil {
		return reply{}, err
	}
	b := []byte(`{"keys":[`)
	for i := range found {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendListed(b, &found[i].header)
	}
	b = append(b, ']', ',')
	if more && len(found) > 0 {
		b = appendBytes(b, "next", found[len(found)-1].key)
	} else {
		b = append(b, `"next":null`...)
	}
	return jsonReply(c, append(b, "}\n"...)), nil
}

// appendListed appends one element of /keys.
func appendListed(b []byte, h *header) []byte {
	b = appendBytes(append(b, '{'), "key", h.key)
	b = append(b, `,"seq":`...)
	b = strconv.AppendUint(b, h.seq, 10)
	b = append(b, `,"version":`...)
	b = strconv.AppendUint(b, h.version, 10)
	b = append(b, `,"size":`...)
	b = strconv.AppendUint(b, h.size, 10)
	b = append(b, `,"time":"`...)
	b = appendTime(b, h.time)
	return append(b, '"', '}')
}

// bytes returns the query parameter name, or name_base64 decoded.
func (c *call) bytes(name string) (v []byte, given bool, err error) {
	plain, hasPlain, err := c.param(name)
	if err != nil {
		return nil, false, err
	}
	coded, hasCoded, err := c.param(name + "_base64")
	switch {
	case err != nil:
		return nil, false, err
	case hasPlain && hasCoded:
		return nil, false, badRequest("malformed", "%s and %s_base64 exclude each other", name, name)
	case !hasCoded:
		return []byte(plain), hasPlain, nil
	}
	v, ok := parseBase64(coded)
	if !ok {
		return nil, false, badRequest("malformed", "%s_base64 is %q, want base64", name, clip(coded))
	}
	return v, true, nil
}

// parseBase64 reads base64 of a query in either alphabet, with or without padding.
func parseBase64(s string) ([]byte, bool) {
	// A + that the client did not escape arrives as a space.
	s = strings.NewReplacer(" ", "+", "-", "+", "_", "/").Replace(strings.TrimRight(s, "="))
	v, err := base64.RawStdEncoding.DecodeString(s)
	return v, err == nil
}
