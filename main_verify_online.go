package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
)

// verify KEY: one entry of a server, checked here.

// entryOptions are the arguments of an online check.
type entryOptions struct {
	url     string
	key     string // of the entry
	version string // decimal; "" for the newest
	seq     string // decimal; "" for the newest
	pin     string // vkey, or a file that holds it; "" for the pinned one
}

// verifyReply is what /verify answers (API.md, Verification).
type verifyReply struct {
	entryJSON
	Leaf       []byte   `json:"leaf"`
	TreeSize   uint64   `json:"tree_size"`
	Root       string   `json:"root"`
	Inclusion  []string `json:"inclusion"`
	Checkpoint string   `json:"checkpoint"`
	Receipt    string   `json:"receipt"`
}

// verifyEntry fetches an entry, its proof and its value, checks all of it, and
// prints what is proven.
func (v *verifier) verifyEntry(ctx context.Context, o entryOptions) error {
	query, err := o.query()
	if err != nil {
		return err
	}
	t, err := v.newVisitor(o.url, o.pin)
	if err != nil {
		return err
	}
	var reply verifyReply
	if err := t.client.getJSON(ctx, "/verify/"+escapeKey(o.key)+query, maxReply, &reply); err != nil {
		return err
	}
	trusted, err := t.trust(ctx, reply.Checkpoint)
	if err != nil {
		return err
	}
	p, err := reply.prove(trusted)
	if err != nil {
		return err
	}
	if err := o.asked(&p.header); err != nil {
		return err
	}
	if p.header.op == opPut {
		if err := t.fetchValue(ctx, &p.header); err != nil {
			return err
		}
		p.value = "which the server still has"
	}
	p.print(v.out)
	return nil
}

// query returns the query for the version that is asked for.
func (o *entryOptions) query() (string, error) {
	if len(o.key) == 0 || len(o.key) > maxKeySize {
		return "", fmt.Errorf("%w key: %d bytes, want 1 to %d", errBadArgument, len(o.key), maxKeySize)
	}
	if o.version != "" && o.seq != "" {
		return "", fmt.Errorf("%w: --version and --seq exclude each other", errBadArgument)
	}
	for _, q := range [...]struct{ name, text string }{{"version", o.version}, {"seq", o.seq}} {
		if q.text == "" {
			continue
		}
		if _, err := parseDecimal(q.text); err != nil {
			return "", fmt.Errorf("%w %s %q: want a whole number", errBadArgument, q.name, q.text)
		}
		return "?" + q.name + "=" + q.text, nil
	}
	return "", nil
}

// asked reports an entry that is not the one asked for.
func (o *entryOptions) asked(h *header) error {
	switch {
	case string(h.key) != o.key:
		return fmt.Errorf("%w: asked for key %q, got a proof for %q", errDifference, o.key, h.key)
	case o.version != "" && strconv.FormatUint(h.version, 10) != o.version:
		return fmt.Errorf("%w: asked for version %s, got a proof for %d", errDifference, o.version, h.version)
	case o.seq != "" && strconv.FormatUint(h.seq, 10) != o.seq:
		return fmt.Errorf("%w: asked for entry %s, got a proof for %d", errDifference, o.seq, h.seq)
	}
	return nil
}

// prove checks the whole reply against a checkpoint that is trusted.
func (r *verifyReply) prove(trusted pin) (proven, error) {
	proof, err := parseHashes(r.Inclusion)
	if err != nil {
		return proven{}, fmt.Errorf("%w: inclusion: %w", errReply, err)
	}
	told, err := r.header()
	if err != nil {
		return proven{}, err
	}
	p, err := proveEntry(receipt{r.Leaf, told.seq, proof, trusted.seen}, trusted.key)
	if err != nil {
		return proven{}, err
	}
	if field := differentField(&told, &p.header); field != "" {
		return proven{}, fmt.Errorf("%w: the reply's %s is not that of the leaf", errDifference, field)
	}
	same, err := proveReceipt(r.Receipt, trusted.key)
	if err != nil {
		return proven{}, fmt.Errorf("receipt: %w", err)
	}
	switch {
	case r.LeafHash != p.leaf.String():
		err = fmt.Errorf("leaf_hash is %.64q, the leaf hashes to %s", r.LeafHash, p.leaf)
	case r.TreeSize != p.head.size || r.Root != p.head.root.String():
		err = fmt.Errorf("tree_size %d and root %.64q are not those of the checkpoint", r.TreeSize, r.Root)
	case same.leaf != p.leaf || same.head.body() != p.head.body():
		err = errors.New("the receipt is for another leaf or checkpoint")
	}
	if err != nil {
		return proven{}, fmt.Errorf("%w: %w", errDifference, err)
	}
	return p, nil
}

// differentField names the first field in which two headers differ, "" for none.
func differentField(a, b *header) string {
	switch {
	case a.seq != b.seq:
		return "seq"
	case !bytes.Equal(a.key, b.key):
		return "key"
	case a.op != b.op:
		return "op"
	case a.version != b.version:
		return "version"
	case a.prev != b.prev:
		return "prev"
	case a.time != b.time:
		return "time"
	case a.size != b.size:
		return "size"
	case a.sum != b.sum:
		return "sha256"
	case a.contentType != b.contentType:
		return "content_type"
	case a.author != b.author:
		return "author"
	case a.region != b.region:
		return "region"
	}
	return ""
}

// fetchValue checks the value that the server has for an entry.
func (t *visitor) fetchValue(ctx context.Context, h *header) error {
	body, err := t.client.open(ctx, "/kv/"+escapeKey(h.key)+"?seq="+strconv.FormatUint(h.seq, 10))
	if err != nil {
		return fmt.Errorf("value: %w", err)
	}
	defer body.Close()
	if err := checkValue(body, h); err != nil {
		return fmt.Errorf("value: %w", err)
	}
	return nil
}
