package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// GET /verify/{key} and ?receipt=true: an entry with everything that proves it
// to somebody who trusts neither this node nor its disk. What is sent is what
// was checked: the value is read and hashed again, and the proof of the reply
// itself must lead from the entry's bytes to the root of the signed checkpoint
// beside it.

// verify answers with the proof of one entry, a tombstone's too.
func (s *server) verify(c *call) (reply, error) {
	if err := checkKey(c); err != nil {
		return reply{}, err
	}
	sel, err := c.selector()
	if err != nil {
		return reply{}, err
	}
	if err := s.prepareRead(c); err != nil {
		return reply{}, err
	}
	e, err := s.store.get(c.key, sel)
	if err == nil || errors.Is(err, errDeleted) {
		err = checkAsked(c, &sel, &e)
	}
	p, rep := proofs{s: s, cosigned: true}, reply{status: http.StatusOK, pooled: getBody()}
	if err == nil {
		b := appendEntry(*rep.pooled, &e.header, &e.leaf)
		rep.body, err = p.append(b, s.reads.context(), &e)
	}
	if err != nil {
		putBody(rep.pooled)
		return reply{}, s.unproven(err)
	}
	s.o.metrics.proof.verified.add(1)
	c.lines.add("Content-Type", "application/json")
	rep.body = append(rep.body, '\n')
	return rep, nil
}

// checkAsked reports an entry that is not the one the client asked for.
func checkAsked(c *call, sel *selector, e *entry) error {
	switch {
	case !bytes.Equal(e.key, c.key):
		return fmt.Errorf("entry %d: %w: it is of another key than the one asked for", e.seq, errCorrupt)
	case sel.version > 0 && e.version != sel.version:
		return fmt.Errorf("entry %d: %w: it is version %d, not %d", e.seq, errCorrupt, e.version, sel.version)
	case sel.seq != nil && e.seq != *sel.seq:
		return fmt.Errorf("entry %d: %w: its header says %d", *sel.seq, errCorrupt, e.seq)
	}
	return nil
}

// unproven counts and turns an error of a proof into the one a client sees.
func (s *server) unproven(err error) error {
	switch {
	case errors.Is(err, errCorrupt), errors.Is(err, errDiverged):
		s.o.metrics.proof.differs.add(1)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &apiError{status: 503, code: "timeout", message: "no checkpoint was signed in time", retry: true}
	}
	return err
}

// whatDiffers says what differs in stored bytes, without the path that err may name.
func whatDiffers(err error) string {
	text := err.Error()
	i := strings.LastIndex(text, errCorrupt.Error()+": ")
	if i < 0 {
		return "the stored bytes are damaged on this node"
	}
	what := text[i+len(errCorrupt.Error()+": "):]
	if strings.Contains(what, "/") {
		what = "they cannot be read"
	}
	if j := strings.LastIndex(text[:i], "entry "); j >= 0 {
		what = strings.TrimSuffix(text[j:i], " ") + " " + what
	}
	return "the stored bytes are damaged on this node: " + what
}

// whyUnproven says why a node whose tree is not the one that was signed proves nothing.
func whyUnproven(err error) string {
	_, why, _ := strings.Cut(err.Error(), errDiverged.Error()+": ")
	return "this node proves nothing, its ledger is not the one that was signed: " + why
}

// proofs proves entries of one request against signed checkpoints, of which it
// keeps the last: entries that were written together share one.
type proofs struct {
	s        *server
	cosigned bool // ask for the signatures of other nodes too
	head     signedHead
}

// wantsReceipt returns what makes receipts, nil if the request asks for none.
func (s *server) wantsReceipt(c *call) (*proofs, error) {
	wanted, err := c.flag("receipt")
	if err != nil || !wanted {
		return nil, err
	}
	return &proofs{s: s}, nil
}

// receipt gives the JSON entry at the end of b, which is that of seq, the
// fields of its proof. The entry is committed whatever happens here, so if
// there is no proof the reason stands in their place, in receipt_error.
func (p *proofs) receipt(b []byte, seq uint64) []byte {
	if p == nil {
		return b
	}
	start, m := time.Now(), &p.s.o.metrics.proof
	ctx := p.s.reads.context()
	e, err := p.committed(ctx, seq)
	if err == nil {
		b, err = p.append(b, ctx, &e)
	}
	if err == nil {
		m.receipts.add(1)
		m.seconds.observe(time.Since(start))
		return b
	}
	m.missing.add(1)
	return p.s.appendReceiptError(b, err)
}

// committed returns entry seq, which is committed, once this node has applied it.
func (p *proofs) committed(ctx context.Context, seq uint64) (entry, error) {
	if err := p.s.node.waitCommitted(ctx, seq+1); err != nil {
		return entry{}, err
	}
	return p.s.store.entryAt(seq)
}

// appendReceiptError says in the JSON entry at the end of b why it has no receipt.
func (s *server) appendReceiptError(b []byte, err error) []byte {
	code, message := "unavailable", "no checkpoint was signed in time"
	switch {
	case errors.Is(err, errCorrupt):
		s.o.metrics.proof.differs.add(1)
		code, message = "corrupt", whatDiffers(err)
	case errors.Is(err, errDiverged):
		s.o.metrics.proof.differs.add(1)
		code, message = "corrupt", whyUnproven(err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		code = "timeout"
	}
	s.o.logger.Error("receipt failed", "err", err)
	b = append(b[:len(b)-1], `,"receipt_error":{"code":"`...)
	b = append(b, code...)
	b = append(b, `","message":`...)
	b = appendJSONString(b, "the write is committed, only its receipt is missing; /verify/ gives it later: "+message)
	return append(b, '}', '}')
}

// append checks e and gives its JSON at the end of b the fields that prove it.
// Without a proof it returns b as it was.
func (p *proofs) append(b []byte, ctx context.Context, e *entry) ([]byte, error) {
	if p.head.size <= e.seq {
		head, err := p.covering(ctx, e.seq)
		if err != nil {
			return b, err
		}
		p.head = head
	}
	path, err := p.s.prove(e, &p.head)
	if err != nil {
		return b, err
	}
	return appendProof(b[:len(b)-1], e, &p.head, path, p.s.segmentOf(e.seq)), nil
}

// covering returns a head that covers entry seq. A receipt goes out with what
// this node signs, at once; who verifies later gets the cosignatures too.
func (p *proofs) covering(ctx context.Context, seq uint64) (head signedHead, err error) {
	if p.cosigned {
		head, err = p.s.heads.covering(ctx, p.s.node, seq)
	} else {
		head, err = p.s.node.signedHead(ctx, seq+1, false)
	}
	if err == nil && head.size <= seq {
		err = fmt.Errorf("checkpoint of %d entries does not cover entry %d", head.size, seq)
	}
	return head, err
}

// headAge is how old a cosigned head may be that proves an entry it covers: a
// newer one costs a question to every node, and has the signatures of nodes
// that came back meanwhile.
const headAge = time.Second

// headCache keeps the last cosigned head.
type headCache struct{ last atomic.Pointer[cachedHead] }

type cachedHead struct {
	signedHead
	key   string // of the ledger, that signed it
	until time.Time
}

// covering returns a cosigned head that covers entry seq, signed with the key
// now in force.
func (h *headCache) covering(ctx context.Context, n serverNode, seq uint64) (signedHead, error) {
	key, _, _ := n.ledgerVKeys() // without one nothing is signed
	now := time.Now()
	if last := h.last.Load(); last != nil && last.size > seq && last.key == key && now.Before(last.until) {
		return last.signedHead, nil
	}
	head, err := n.signedHead(ctx, seq+1, true)
	if err == nil {
		h.last.Store(&cachedHead{head, key, now.Add(headAge)})
	}
	return head, err
}

// prove checks the bytes of e and returns the path from its leaf to the root of head.
func (s *server) prove(e *entry, head *signedHead) ([]hash, error) {
	if err := checkEntry(e); err != nil {
		return nil, err
	}
	path, err := s.store.inclusion(e.seq, head.size)
	if err == nil && checkInclusion(e.leaf, e.seq, head.size, path, head.root) != nil {
		err = fmt.Errorf("entry %d: %w: its proof does not lead to the root of the checkpoint of %d entries", e.seq, errCorrupt, head.size)
	}
	return path, err
}

// checkEntry compares an entry with its canonical bytes and with its value.
func checkEntry(e *entry) error {
	var room [512]byte
	if !bytes.Equal(appendHeader(room[:0], &e.header), e.raw) {
		return fmt.Errorf("entry %d: %w: its header and its canonical bytes differ", e.seq, errCorrupt)
	}
	if leaf := leafHash(e.raw); leaf != e.leaf {
		return fmt.Errorf("entry %d: %w: its leaf hash is %s, its bytes give %s", e.seq, errCorrupt, e.leaf, leaf)
	}
	sum, err := sumValue(e)
	if err == nil && sum != e.sum {
		err = fmt.Errorf("entry %d: %w: its value has SHA-256 %s, its header says %s", e.seq, errCorrupt, sum, e.sum)
	}
	return err
}

// sumValue returns the SHA-256 of the stored value of e.
func sumValue(e *entry) (hash, error) {
	if e.size == 0 {
		return emptyRoot, nil
	}
	room := getBody()
	defer putBody(room)
	if e.size <= uint64(cap(*room)) {
		v := (*room)[:e.size]
		err := readAtFull(e.value, v, 0)
		return sha256.Sum256(v), err
	}
	sum := sha256.New()
	_, err := io.CopyBuffer(sum, io.NewSectionReader(e.value, 0, int64(e.size)), make([]byte, min(e.size, 256<<10)))
	return hash(sum.Sum(nil)), unreadable(err)
}

// segmentOf returns the confirmed segment that holds entry seq, nil while there
// is none.
func (s *server) segmentOf(seq uint64) *segmentInfo {
	m := s.store.currentManifest()
	if k := m.find(seq); k >= 0 {
		return &m.segments[k]
	}
	return nil
}

// appendProof appends the fields that follow those of the entry, and the brace
// that ends it.
func appendProof(b []byte, e *entry, head *signedHead, path []hash, segment *segmentInfo) []byte {
	b = append(b, `,"leaf":"`...)
	b = base64.StdEncoding.AppendEncode(b, e.raw)
	b = append(b, `","tree_size":`...)
	b = strconv.AppendUint(b, head.size, 10)
	b = append(b, `,"root":"`...)
	b = hex.AppendEncode(b, head.root[:])
	b = append(b, `","inclusion":`...)
	b = appendHashes(b, path)
	b = append(b, `,"checkpoint":"`...)
	from := len(b)
	b = appendEscaped(b, head.note)
	to := len(b)
	b = append(b, `","receipt":"`...)
	b = appendReceipt(b, e.raw, e.seq, path, b[from:to])
	b = append(b, `","segment":`...)
	if segment == nil {
		b = append(b, "null"...)
	} else {
		b = append(append(b, `{"id":"`...), segment.id()...)
		b = append(b, `","merkle_root":"`...)
		b = append(hex.AppendEncode(b, segment.root[:]), '"', '}')
	}
	return append(b, `,"verified":true}`...)
}

// appendReceipt appends the text of a receipt (C2SP tlog-proof, merkle_receipt.go)
// as it stands in a JSON string. note is the checkpoint, already escaped; all
// else needs no escapes but for the ends of the lines.
func appendReceipt(b, raw []byte, seq uint64, path []hash, note []byte) []byte {
	b = append(b, `c2sp.org/tlog-proof@v1\nextra `...)
	b = base64.StdEncoding.AppendEncode(b, raw)
	b = append(b, `\nindex `...)
	b = strconv.AppendUint(b, seq, 10)
	for i := range path {
		b = append(b, '\\', 'n')
		b = base64.StdEncoding.AppendEncode(b, path[i][:])
	}
	b = append(b, `\n\n`...)
	return append(b, note...)
}

// appendHashes appends a JSON array of hashes in hex.
func appendHashes(b []byte, hashes []hash) []byte {
	b = append(b, '[')
	for i := range hashes {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(hex.AppendEncode(append(b, '"'), hashes[i][:]), '"')
	}
	return append(b, ']')
}
