package main

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The ledger key signs the tree heads of the ledger (raft_checkpoint.go). All
// nodes have it: the first leader draws a seed and puts it into the Raft log,
// and from there on it is part of what the FSM knows, like the idempotency
// window. It is kept in ledger.db and in snapshots, which only nodes read, and
// never in a segment, the manifest or the bucket.
//
// A rotation replaces it. The note that hands over from one key to the next is
// made by the FSM, the same on every node because Ed25519 is deterministic, and
// kept for ever: who trusts the first key can follow the notes to the present
// one. Its text, signed by both keys, reads
//
//	scribe-ledger key rotation v1
//	scribe/5b0c6e0f8a4d4a53b6f1d9b4c2a7e310
//	1042
//	scribe/5b0c6e0f8a4d4a53b6f1d9b4c2a7e310+c3a1ab0d+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop
//
// with the origin, the entries in the ledger when the key changed, and the new
// key. The seed of the old key is forgotten.
//
// The keys as ledger.db and snapshots hold them, integers big-endian:
//
//	8   Raft index of the command that brought the key in force
//	2   length of the origin, then the origin
//	32  seed of the key in force
//	4   number of former keys, then for each, oldest first:
//	    32 public key, 4 length, the note that hands over from it

// errStaleKey answers a key command that replaces another key than the one in
// force: nothing changed.
var errStaleKey = errors.New("ledger key has been replaced meanwhile")

// rotationTitle is the first line of a hand-over note.
const rotationTitle = "scribe-ledger key rotation v1\n"

// publicKey is an Ed25519 public key; all zero stands for none.
type publicKey [ed25519.PublicKeySize]byte

// ledgerKeys is the key in force and those before it. It is never changed, only
// replaced; nil while the ledger has no key.
type ledgerKeys struct {
	index  uint64 // of the command that brought the key in force
	seed   [ed25519.SeedSize]byte
	former []formerKey // oldest first
	signer noteSigner  // made of origin and seed
}

// formerKey is a key that was replaced.
type formerKey struct {
	public   publicKey
	handOver string // signed note
}

// origin returns the name of the ledger's tree.
func (k *ledgerKeys) origin() string { return k.signer.name }

// public returns the public half of the key in force, zero if there is none.
func (k *ledgerKeys) public() publicKey {
	if k == nil {
		return publicKey{}
	}
	return publicKey(k.signer.key)
}

// has tells whether p is or was the ledger's key.
func (k *ledgerKeys) has(p publicKey) bool {
	return k != nil && (k.public() == p || slices.ContainsFunc(k.former, func(f formerKey) bool { return f.public == p }))
}

// append appends the encoding of k, nothing if there is no key.
func (k *ledgerKeys) append(b []byte) []byte {
	if k == nil {
		return b
	}
	b = binary.BigEndian.AppendUint64(b, k.index)
	b = binary.BigEndian.AppendUint16(b, uint16(len(k.origin())))
	b = append(b, k.origin()...)
	b = append(b, k.seed[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(k.former)))
	for _, f := range k.former {
		b = append(b, f.public[:]...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(f.handOver)))
		b = append(b, f.handOver...)
	}
	return b
}

// parseLedgerKeys reads what append writes.
func parseLedgerKeys(b []byte) (*ledgerKeys, error) {
	if len(b) == 0 {
		return nil, nil
	}
	c := &cursor{b: b}
	k := &ledgerKeys{index: c.uint64()}
	origin := string(c.take(int(c.uint16())))
	copy(k.seed[:], c.take(len(k.seed)))
	for n := c.uint32(); n > 0 && !c.short; n-- {
		var f formerKey
		copy(f.public[:], c.take(len(f.public)))
		f.handOver = string(c.take(int(c.uint32())))
		k.former = append(k.former, f)
	}
	if c.short || len(c.b) > 0 {
		return nil, fmt.Errorf("%w: ledger keys have the wrong length", errCorrupt)
	}
	return k, k.derive(origin)
}

// derive makes the signer.
func (k *ledgerKeys) derive(origin string) (err error) {
	k.signer, err = newNoteSigner(origin, sigEd25519, k.seed[:])
	if err != nil {
		return fmt.Errorf("%w: ledger key: %w", errCorrupt, err)
	}
	return nil
}

// keyCommand brings a new ledger key.
type keyCommand struct {
	origin   string
	seed     [ed25519.SeedSize]byte
	replaces publicKey // zero for the first key
}

// appendKey appends a key command.
func appendKey(b []byte, k *keyCommand) []byte {
	b = append(b, byte(commandKey))
	b = append(b, k.replaces[:]...)
	b = append(b, k.seed[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(k.origin)))
	return append(b, k.origin...)
}

// parseKey reads what follows a key command's kind.
func parseKey(c *cursor) (*keyCommand, error) {
	k := &keyCommand{}
	copy(k.replaces[:], c.take(len(k.replaces)))
	copy(k.seed[:], c.take(len(k.seed)))
	k.origin = string(c.take(int(c.uint16())))
	if c.short || len(c.b) > 0 {
		return nil, fmt.Errorf("%w: key command has the wrong length", errCorrupt)
	}
	return k, nil
}

// applyKey brings a new ledger key in force if it replaces the present one; a
// repeated or late proposal changes nothing and is answered errStaleKey.
func (f *fsm) applyKey(c *cursor, index uint64) (any, error) {
	cmd, err := parseKey(c)
	if err != nil {
		return nil, err
	}
	old := f.keys.Load()
	if cmd.replaces != old.public() || old != nil && cmd.origin != old.origin() {
		return errStaleKey, nil
	}
	k := &ledgerKeys{index: index, seed: cmd.seed}
	if err := k.derive(cmd.origin); err != nil {
		return nil, err
	}
	if old != nil {
		k.former = append(slices.Clip(old.former), formerKey{old.public(), handOver(old.signer, k.signer, f.store.nextSeq())})
	}
	f.keys.Store(k) // before publish: who sees a later size sees the new key
	f.rekeyed()
	return nil, nil
}

// handOver returns the note with which old says that next signs from size on.
func handOver(old, next noteSigner, size uint64) string {
	body := fmt.Sprintf("%s%s\n%d\n%s\n", rotationTitle, next.name, size, next.noteVerifier)
	return note{body, []noteSignature{old.sign(body, 0), next.sign(body, 0)}}.String()
}
