package main

import (
	"fmt"
	"time"
)

// entryJSON is an entry as the server tells it (API.md, entry). Fields that an
// entry must have are pointers, so that a missing one is seen.
type entryJSON struct {
	Seq         *uint64   `json:"seq"`
	Key         *string   `json:"key"`
	KeyBase64   []byte    `json:"key_base64"`
	Op          string    `json:"op"`
	Version     uint64    `json:"version"`
	Prev        *uint64   `json:"prev"`
	Time        time.Time `json:"time"`
	Size        *uint64   `json:"size"`
	SHA256      string    `json:"sha256"`
	ContentType string    `json:"content_type"`
	Author      string    `json:"author"`
	Region      string    `json:"region"`
	LeafHash    string    `json:"leaf_hash"`
}

// key returns the bytes of the key.
func (e *entryJSON) key() []byte {
	if e.Key != nil {
		return []byte(*e.Key)
	}
	return e.KeyBase64
}

// header returns the canonical header that the fields make; it is valid.
func (e *entryJSON) header() (header, error) {
	h := header{version: e.Version, prev: noSeq, time: e.Time.UnixMilli(), key: e.key(),
		contentType: e.ContentType, author: e.Author, region: e.Region}
	switch e.Op {
	case "put":
		h.op = opPut
	case "delete":
		h.op = opDelete
	}
	if e.Seq == nil || e.Size == nil || e.Key != nil && e.KeyBase64 != nil {
		return header{}, fmt.Errorf("%w: an entry lacks its seq, size or key, or has two keys", errReply)
	}
	h.seq, h.size = *e.Seq, *e.Size
	if e.Prev != nil {
		h.prev = *e.Prev
	}
	var err error
	if h.sum, err = parseHash(e.SHA256); err != nil {
		return header{}, fmt.Errorf("%w: entry %d: sha256: %w", errReply, h.seq, err)
	}
	if e.Time.Nanosecond()%int(time.Millisecond) != 0 {
		return header{}, fmt.Errorf("%w: entry %d: time %s is not of whole milliseconds", errReply, h.seq, e.Time)
	}
	if err := h.validate(); err != nil {
		return header{}, fmt.Errorf("%w: entry %d: %w", errReply, h.seq, err)
	}
	return h, nil
}
