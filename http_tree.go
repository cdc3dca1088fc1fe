package main

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// The calls on the Merkle tree and its keys: what a client, a witness or an
// auditor needs to check the ledger as a whole (C2SP tlog-tiles below /ledger/).

// immutable lets caches keep what can never change.
const immutable = "public, max-age=31536000, immutable"

// checkpoint answers with a signed head that covers every write acknowledged
// before the request.
func (s *server) checkpoint(c *call) (reply, error) {
	if err := s.prepareRead(c); err != nil {
		return reply{}, err
	}
	head, err := s.node.signedHead(s.reads.context(), s.store.size(), true)
	if err != nil {
		return reply{}, s.unproven(err)
	}
	return textReply(c, head.note), nil
}

// textReply is a 200 whose body is text that will soon be another.
func textReply(c *call, text string) reply {
	c.lines.add("Content-Type", "text/plain; charset=utf-8")
	c.lines.add("Cache-Control", "no-store")
	return reply{status: http.StatusOK, body: []byte(text)}
}

// ledgerKey answers with the verifier key of the ledger.
func (s *server) ledgerKey(c *call) (reply, error) {
	current, _, err := s.vkeys()
	if err != nil {
		return reply{}, err
	}
	return textReply(c, current+"\n"), nil
}

// vkeys returns the ledger's keys. A cluster that has just formed makes the
// first one now; nothing is signed before.
func (s *server) vkeys() (current string, former []string, err error) {
	if current, former, err = s.node.ledgerVKeys(); err == nil {
		return current, former, nil
	}
	if _, err := s.node.signedHead(s.reads.context(), 0, false); err != nil {
		return "", nil, s.unproven(err)
	}
	return s.node.ledgerVKeys()
}

// ledgerKeys answers with every key a verifier may need: the ledger's, the
// notes that handed it over, and those the nodes cosign with.
func (s *server) ledgerKeys(c *call) (reply, error) {
	current, former, err := s.vkeys()
	if err != nil {
		return reply{}, err
	}
	if former == nil {
		former = []string{}
	}
	return encodeJSON(c, http.StatusOK, struct {
		Current string            `json:"current"`
		Former  []string          `json:"former"`
		Nodes   map[uint64]string `json:"nodes"`
	}{current, former, s.node.nodeVKeys()})
}

// rotateKey makes a new ledger key and answers with it.
func (s *server) rotateKey(c *call) (reply, error) {
	if err := s.node.rotateLedgerKey(s.writes.context()); err != nil {
		return reply{}, err
	}
	current, _, err := s.node.ledgerVKeys()
	if err != nil {
		return reply{}, err
	}
	return encodeJSON(c, http.StatusOK, map[string]string{"key": current})
}

// reach returns the size of the tree that the query names as name, the present
// one if it names none. This node then has all of it.
func (s *server) reach(c *call, name string) (uint64, error) {
	size, given, err := c.number(name, 0, noSeq)
	if err == nil {
		_, err = s.consistencyOf(c)
	}
	if err != nil || given && size <= s.store.size() {
		return size, err
	}
	if err := s.prepareRead(c); err != nil {
		return 0, err
	}
	if most := s.store.size(); !given {
		size = most
	} else if size > most {
		return 0, beyond(name, size, most)
	}
	return size, nil
}

// beyond is the error for a number that no entry of the ledger has yet.
func beyond(name string, n, size uint64) error {
	message := name + " is " + strconv.FormatUint(n, 10) + ", the ledger has " + strconv.FormatUint(size, 10) + " entries"
	return &apiError{status: 404, code: "not_found", message: message}
}

// proof answers with the path from an entry to the root of a tree.
func (s *server) proof(c *call) (reply, error) {
	seq, given, err := c.number("seq", 0, noSeq)
	if err == nil && !given {
		err = badRequest("malformed", "the query names no seq, want ?seq=N&size=M")
	}
	if err != nil {
		return reply{}, err
	}
	size, err := s.reach(c, "size")
	if err != nil {
		return reply{}, err
	}
	if most := s.store.size(); seq >= most {
		return reply{}, beyond("seq", seq, most)
	}
	if seq >= size {
		return reply{}, badRequest("malformed", "seq is %d, not in a tree of %d entries", seq, size)
	}
	e, err := s.store.headerAt(seq)
	if err != nil {
		return reply{}, err
	}
	root, err := s.store.root(size)
	if err != nil {
		return reply{}, err
	}
	path, err := s.store.inclusion(seq, size)
	if err == nil && checkInclusion(e.leaf, seq, size, path, root) != nil {
		err = fmt.Errorf("entry %d: %w: its proof does not lead to the root of %d entries", seq, errCorrupt, size)
	}
	if err != nil {
		return reply{}, s.unproven(err)
	}
	b := strconv.AppendUint([]byte(`{"seq":`), seq, 10)
	b = strconv.AppendUint(append(b, `,"tree_size":`...), size, 10)
	b = fmt.Appendf(b, `,"leaf_hash":"%s","inclusion":`, e.leaf)
	b = appendHashes(b, path)
	return jsonReply(c, fmt.Appendf(b, ",\"root\":\"%s\"}\n", root)), nil
}

// consistency answers with the proof that one tree continues another.
func (s *server) consistency(c *call) (reply, error) {
	from, given, err := c.number("from", 0, noSeq)
	if err == nil && !given {
		err = badRequest("malformed", "the query names no from, want ?from=A&to=B")
	}
	if err != nil {
		return reply{}, err
	}
	to, err := s.reach(c, "to")
	if err != nil {
		return reply{}, err
	}
	if most := s.store.size(); from > most {
		return reply{}, beyond("from", from, most)
	}
	if from > to {
		return reply{}, badRequest("malformed", "from is %d, to is %d: no tree continues a larger one", from, to)
	}
	fromRoot, err := s.store.root(from)
	if err != nil {
		return reply{}, err
	}
	toRoot, err := s.store.root(to)
	if err != nil {
		return reply{}, err
	}
	path, err := s.store.consistency(from, to)
	if err == nil && checkConsistency(from, to, path, fromRoot, toRoot) != nil {
		err = fmt.Errorf("tree: %w: the proof from %d to %d entries does not lead to their roots", errCorrupt, from, to)
	}
	if err != nil {
		return reply{}, s.unproven(err)
	}
	b := strconv.AppendUint([]byte(`{"from":`), from, 10)
	b = strconv.AppendUint(append(b, `,"to":`...), to, 10)
	b = appendHashes(append(b, `,"proof":`...), path)
	return jsonReply(c, fmt.Appendf(b, ",\"from_root\":\"%s\",\"to_root\":\"%s\"}\n", fromRoot, toRoot)), nil
}

// tile answers with a tile of hashes or a bundle of entries. One that this
// node does not have may be in a checkpoint of another: then it catches up.
func (s *server) tile(c *call) (reply, error) {
	id, err := parseTilePath(c.raw)
	if err != nil {
		return reply{}, badRequest("malformed", "%q is no path of a tile: %s", clip(c.raw), clip(err.Error()))
	}
	b, err := s.store.tile(id)
	if errors.Is(err, errBeyond) {
		if err := s.prepareRead(c); err != nil {
			return reply{}, err
		}
		b, err = s.store.tile(id)
	}
	if errors.Is(err, errBeyond) {
		return reply{}, &apiError{status: 404, code: "not_found", message: "the ledger has no tile " + clip(c.raw) + " yet"}
	}
	if err != nil {
		return reply{}, err
	}
	c.lines.add("Content-Type", "application/octet-stream")
	c.lines.add("Cache-Control", immutable)
	return reply{status: http.StatusOK, body: b}, nil
}
