package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// fsm applies committed log entries to the store: it decides conditions, gives
// sequence numbers and versions, and closes segments. It has no clock, no
// randomness and no goroutine, so that the same log gives the same bytes on
// every node. Commands are in fsm_command.go, the idempotency window in
// fsm_window.go, the ledger's key in fsm_key.go, snapshots in fsm_snapshot.go.
type fsm struct {
	store *store

	// fail is called once when this node must not go on: it has diverged, or
	// its disk and its memory differ. Nothing is applied afterwards.
	fail   func(error)
	broken error

	// owned by the apply goroutine
	index        uint64 // of the last applied log entry
	term         uint64
	time         int64 // of the last command, Unix ms; never goes back
	config       []byte
	configIndex  uint64
	members      atomic.Pointer[agreedMembers] // the same for anybody to read
	window       *window
	upload       upload
	ops          []operation // room for parsing
	appliedIndex atomic.Uint64
	keys         atomic.Pointer[ledgerKeys] // that sign the ledger; anybody reads

	// compared is the size at which this replica's tree was last found to be
	// that of most nodes; agreed is told.
	compared uint64
	agreed   func(treeClaim)

	// alter, in tests, changes a command on this replica alone.
	alter func([]byte) []byte

	// uploadLimit bounds the bytes of one command that comes in parts.
	uploadLimit uint32

	// fetch makes sure that this node has all segments a snapshot names. It
	// returns an error at once while they are still on their way.
	fetch func(*snapshot) ([]fetchedSegment, error)
	// installed is called after a snapshot was installed.
	installed func(*snapshot)
	// rekeyed is called when the ledger's key has changed.
	rekeyed func()
}

// upload is a command that comes in parts. At most one is open: the leader
// sends one at a time. It ends with its last part; a change of term or a seal
// drops it, on every node at the same log position, so after a crash it is
// whole or absent, and a checkpoint never has to hold a half of one.
type upload struct {
	id    uint64
	total uint32
	bytes []byte // what has come so far
}

// errUploadLost answers the last part of a command whose earlier parts were
// dropped: nothing was applied and the leader may send the command again.
var errUploadLost = errors.New("upload was dropped before its last part")

// newFSM returns the FSM that goes on from the store's durable checkpoint.
func newFSM(s *store, uploadLimit uint32, fail func(error)) (*fsm, error) {
	state, err := s.checkpoint()
	if err != nil {
		return nil, err
	}
	w, err := newWindow(state.window, &state.at)
	if err != nil {
		return nil, err
	}
	keys, err := parseLedgerKeys(state.at.keys)
	if err != nil {
		return nil, err
	}
	f := &fsm{store: s, fail: fail, window: w, uploadLimit: uploadLimit, rekeyed: func() {}}
	f.keys.Store(keys)
	f.moveTo(&state.at)
	return f, nil
}

// moveTo takes over the position of a checkpoint.
func (f *fsm) moveTo(c *checkpoint) {
	f.index, f.term, f.time = c.index, c.term, c.time
	f.setMembers(c.configuration, c.configIndex)
	f.upload = upload{}
	f.compared = f.store.manifest.Load().confirmedEnd()
	f.appliedIndex.Store(c.index)
}

// agreedMembers is the newest committed configuration of Raft, encoded, and the
// index of its log entry.
type agreedMembers struct {
	configuration []byte
	index         uint64
}

// setMembers notes the configuration of a committed entry.
func (f *fsm) setMembers(configuration []byte, index uint64) {
	f.config, f.configIndex = configuration, index
	f.members.Store(&agreedMembers{configuration, index})
}

// Apply is never used: Raft calls ApplyBatch.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies committed entries. The response to a pack, or to the last
// part of one, is a []result or an error.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	for i, l := range logs {
		if f.broken != nil {
			responses[i] = f.broken
			continue
		}
		if l.Index <= f.index {
			continue // a restored checkpoint already covers it
		}
		if l.Term != f.term {
			f.upload = upload{} // its leader is gone
		}
		response, err := f.apply(l)
		if err != nil {
			f.broken = fmt.Errorf("applying log entry %d: %w", l.Index, err)
			f.store.unstage(f.store.pending.shown)
			f.fail(f.broken)
			response = f.broken
		}
		f.index, f.term = l.Index, l.Term
		responses[i] = response
	}
	if f.broken == nil {
		f.store.publish()
		f.appliedIndex.Store(f.index)
	}
	return responses
}

// apply applies one entry. An error means that this node cannot go on.
func (f *fsm) apply(l *raft.Log) (any, error) {
	if l.Type == raft.LogConfiguration {
		f.setMembers(bytes.Clone(l.Data), l.Index)
		return nil, nil
	}
	c := &cursor{b: l.Data}
	if f.alter != nil {
		c.b = f.alter(l.Data)
	}
	switch kind := commandKind(c.uint8()); kind {
	case commandPack:
		return f.applyPack(c)
	case commandPart:
		return f.applyPart(c)
	case commandSeal:
		return nil, f.applySeal(c, l)
	case commandConfirm:
		return nil, f.applyConfirm(c.b)
	case commandKey:
		return f.applyKey(c, l.Index)
	case commandCheck:
		return nil, f.applyCheck(c.b)
	case commandArchived:
		return nil, f.applyArchived(c.b)
	default:
		return nil, fmt.Errorf("command of kind %d: %w", kind, errFormat)
	}
}

// advance moves the ledger's clock, which never goes back.
func (f *fsm) advance(time int64) { f.time = max(f.time, time) }

// applyPack applies the requests of a pack, each with its own result.
func (f *fsm) applyPack(c *cursor) (any, error) {
	f.advance(int64(c.uint64()))
	if c.short {
		return nil, fmt.Errorf("%w: pack is cut short", errCorrupt)
	}
	results := make([]result, 0, 8)
	for len(c.b) > 0 {
		r, err := parseRequest(c, f.ops)
		if err != nil {
			return nil, err
		}
		f.ops = r.ops
		res, err := f.applyRequest(&r)
		if err != nil {
			return nil, err
		}
		results = append(results, res)
	}
	return results, nil
}

// applyPart adds a part to the open upload and applies the whole after the
// last one.
func (f *fsm) applyPart(c *cursor) (any, error) {
	id, offset, total := c.uint64(), c.uint32(), c.uint32()
	if c.short || len(c.b) == 0 || total > f.uploadLimit || uint64(offset)+uint64(len(c.b)) > uint64(total) {
		return nil, fmt.Errorf("%w: part of %d bytes at %d of %d", errCorrupt, len(c.b), offset, total)
	}
	if offset == 0 {
		f.upload = upload{id: id, total: total, bytes: make([]byte, 0, total)}
	}
	last := offset+uint32(len(c.b)) == total
	if f.upload.id != id || f.upload.total != total || uint32(len(f.upload.bytes)) != offset {
		f.upload = upload{}
		if last {
			return errUploadLost, nil
		}
		return nil, nil
	}
	f.upload.bytes = append(f.upload.bytes, c.b...)
	if !last {
		return nil, nil
	}
	whole := cursor{b: f.upload.bytes}
	f.upload = upload{}
	if kind := commandKind(whole.uint8()); kind != commandPack {
		return nil, fmt.Errorf("upload of a command of kind %d: %w", kind, errFormat)
	}
	return f.applyPack(&whole)
}

// applySeal closes the pending segment if it is the one that is meant; a
// repeated or late proposal changes nothing.
func (f *fsm) applySeal(c *cursor, l *raft.Log) error {
	time, first := int64(c.uint64()), c.uint64()
	if c.short || len(c.b) > 0 {
		return fmt.Errorf("%w: seal command of %d bytes", errCorrupt, len(l.Data))
	}
	f.advance(time)
	f.store.publish()
	if f.store.pending.first != first || len(f.store.pending.entries) == 0 {
		return nil
	}
	f.upload = upload{}
	changed := f.window.changed()
	return f.store.seal(f.time, checkpoint{
		index:         l.Index,
		term:          l.Term,
		configuration: f.config,
		configIndex:   f.configIndex,
		time:          f.time,
		windowOldest:  f.window.oldest,
		windowNext:    f.window.next,
		keys:          f.keys.Load().append(nil),
	}, changed)
}

// applyArchived notes which object holds a segment. A repeated proposal changes
// nothing, and so does one for a segment that is not confirmed.
func (f *fsm) applyArchived(b []byte) error {
	first, object, err := parseArchived(b)
	if err == nil {
		f.store.setArchived(first, object)
	}
	return err
}

// applyRequest decides and applies one request.
func (f *fsm) applyRequest(r *request) (result, error) {
	if r.idempotencyKey != "" {
		if old, ok := f.window.find(r.idempotencyKey); ok {
			return result{outcome: old.outcome, failed: int(old.failed), current: old.current, first: old.first, count: uint64(old.count)}, nil
		}
	}
	first := f.store.nextSeq()
	res, err := f.applyOperations(r)
	if err == nil && r.idempotencyKey != "" {
		f.window.add(remembered{r.idempotencyKey, res.outcome, uint32(res.failed), res.current, first, uint32(len(res.headers))})
	}
	return res, err
}

// applyOperations applies all operations of r or none.
func (f *fsm) applyOperations(r *request) (result, error) {
	mark := f.store.mark()
	res := result{outcome: outcomeApplied, current: noSeq, headers: make([][]byte, 0, len(r.ops))}
	for i := range r.ops {
		raw, failed, current, err := f.applyOperation(&r.ops[i])
		if err != nil {
			return res, err
		}
		if failed != 0 {
			f.store.unstage(mark)
			return result{outcome: failed, failed: i, current: current}, nil
		}
		res.headers = append(res.headers, raw)
	}
	return res, nil
}

// applyOperation stages one entry, or says why not and what the live version is.
func (f *fsm) applyOperation(op *operation) (raw []byte, failed outcome, current uint64, err error) {
	h, found, err := f.store.head(op.key)
	if err != nil {
		return nil, 0, 0, err
	}
	current = noSeq
	if found && !h.deleted {
		current = h.seq
	}
	switch {
	case op.ifAbsent && current != noSeq, op.ifSeq != noSeq && current != op.ifSeq:
		return nil, outcomePrecondition, current, nil
	case op.kind == opDelete && current == noSeq:
		return nil, outcomeNotFound, current, nil
	case op.digest != nil && sha256.Sum256(op.value) != *op.digest:
		return nil, outcomeDigestMismatch, current, nil
	}
	e := header{
		op: op.kind, version: 1, prev: noSeq, time: f.time,
		key: op.key, contentType: op.contentType, author: op.author, region: op.region,
	}
	if found {
		e.version, e.prev = h.version+1, h.seq
	}
	return f.store.stage(&e, op.value), 0, current, nil
}
