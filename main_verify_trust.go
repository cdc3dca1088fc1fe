package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// What a user may believe of a server: its checkpoints must be signed by the
// key pinned on the first visit, or by one it was handed over to, and each must
// extend the largest one seen before. So a rollback or a fork between two visits
// is seen, even one the holder of the key signed. It leaves an evidence file:
// two checkpoints with good signatures of one key that contradict each other.
//
// A hand-over is a note that the old and the new key signed:
//
//	scribe-ledger key rotation v1
//	<origin>
//	<entries in the ledger, decimal>
//	<vkey of the new key>
//
// GET /ledger/keys has all of them, oldest first, in "former".

const rotationMagic = "scribe-ledger key rotation v1"

// visitor asks one server and holds it to what was seen of its ledger before.
type visitor struct {
	*verifier
	client *ledgerClient
	given  *noteVerifier // key the user gave, which replaces the pinned one
}

// newVisitor returns a visitor of the server at url; key is a vkey, a file that
// holds one, or "".
func (v *verifier) newVisitor(url, key string) (*visitor, error) {
	client, err := newLedgerClient(url)
	if err != nil {
		return nil, err
	}
	t := &visitor{verifier: v, client: client}
	if key != "" {
		given, err := readKey(key, sigEd25519)
		if err != nil {
			return nil, err
		}
		t.given = &given
	}
	return t, nil
}

// checkpoint returns the server's checkpoint once it is trusted.
func (t *visitor) checkpoint(ctx context.Context) (pin, error) {
	text, err := t.client.get(ctx, "/ledger/checkpoint", maxReply)
	if err != nil {
		return pin{}, err
	}
	return t.trust(ctx, string(text))
}

// trust returns a checkpoint that the server showed, and the key that signed
// it, if they agree with all that was seen before; it remembers them.
func (t *visitor) trust(ctx context.Context, text string) (pin, error) {
	folder, err := openPins(t.folder)
	if err != nil {
		return pin{}, err
	}
	defer folder.close()
	known, key, err := t.recall(ctx, folder)
	if err != nil {
		return pin{}, err
	}
	now, file, err := t.compare(ctx, known, key, text)
	if file != nil && ctx.Err() == nil {
		return pin{}, t.accuse(folder, known, key, file, err)
	}
	if err != nil {
		return pin{}, err
	}
	if known == nil {
		fmt.Fprintf(t.out, "pinned     %s\n", now.key)
		if t.given == nil {
			fmt.Fprintf(t.out, "           on this first visit to %s: the server told this key itself. Compare it with one\n"+
				"           that you got by other means, or give that one with --key.\n", t.client.base)
		}
	}
	keep := now
	if known != nil && known.head.size > now.head.size {
		keep.seen, keep.head = known.seen, known.head
	}
	return now, folder.save(t.client.base, &keep)
}

// recall returns what is known of the ledger at this URL, nil if it is new, and
// the key to trust.
func (t *visitor) recall(ctx context.Context, folder *pins) (*pin, noteVerifier, error) {
	origin, err := folder.origin(t.client.base)
	if err != nil {
		return nil, noteVerifier{}, err
	}
	var key noteVerifier
	switch {
	case t.given != nil:
		key = *t.given
	case origin == "":
		if key, err = t.ask(ctx); err != nil {
			return nil, noteVerifier{}, err
		}
	}
	if key.name != "" {
		origin = key.name
	}
	known, err := folder.ledger(origin)
	switch {
	case err != nil:
		return nil, noteVerifier{}, err
	case known == nil && key.name == "":
		return nil, noteVerifier{}, fmt.Errorf("%w: the key of %s is gone; give it with --key", errPin, origin)
	case known != nil && t.given == nil:
		key = known.key // also at a URL that is new
	}
	return known, key, nil
}

// ask returns the key that the server names.
func (t *visitor) ask(ctx context.Context) (noteVerifier, error) {
	text, err := t.client.get(ctx, "/ledger/key", maxReply)
	if err != nil {
		return noteVerifier{}, err
	}
	key, err := parseVerifier(strings.TrimSuffix(string(text), "\n"))
	if err != nil || key.kind != sigEd25519 {
		return noteVerifier{}, fmt.Errorf("%w: GET /ledger/key: %.200q is no ledger key", errReply, text)
	}
	return key, nil
}

// shown is what a server showed, for the evidence file.
type shown struct {
	checkpoint string // the one that contradicts
	path       string // a request that belongs to it, "" for none
	reply      []byte
}

// compare checks text against the key and the checkpoint known, if there is
// one. An error that comes with shown is a contradiction.
func (t *visitor) compare(ctx context.Context, known *pin, key noteVerifier, text string) (pin, *shown, error) {
	now, file, err := t.open(ctx, key, text)
	if err != nil || known == nil {
		return now, file, err
	}
	if now.head.size < known.head.size {
		return t.compareOlder(ctx, known, now)
	}
	file, err = t.extends(ctx, known.head, now.head)
	if file != nil {
		file.checkpoint = text
	}
	return now, file, err
}

// compareOlder is compare for a checkpoint that is smaller than one seen
// before. That is no rollback if the server has a larger one as well, and all
// three agree: it may have shown what it had ready.
func (t *visitor) compareOlder(ctx context.Context, known *pin, now pin) (pin, *shown, error) {
	text, err := t.client.get(ctx, "/ledger/checkpoint", maxReply)
	if err != nil {
		return pin{}, &shown{checkpoint: now.seen.String()},
			fmt.Errorf("%w: rollback: the tree has %d entries, %d were seen before, and the server shows no other: %w",
				errDifference, now.head.size, known.head.size, err)
	}
	newest, file, err := t.open(ctx, now.key, string(text))
	switch {
	case err != nil:
		return pin{}, file, err
	case newest.head.size < known.head.size:
		return pin{}, &shown{checkpoint: string(text)},
			fmt.Errorf("%w: rollback: the tree has %d entries, %d were seen before", errDifference, newest.head.size, known.head.size)
	}
	if file, err = t.extends(ctx, known.head, newest.head); err == nil {
		file, err = t.extends(ctx, now.head, known.head)
		text = []byte(now.seen.String())
	}
	if file != nil {
		file.checkpoint = string(text)
	}
	return now, file, err
}

// open checks the signature of a checkpoint, by key or one it was handed over to.
func (t *visitor) open(ctx context.Context, key noteVerifier, text string) (pin, *shown, error) {
	n, err := parseNote(text)
	if err != nil {
		return pin{}, nil, fmt.Errorf("%w: checkpoint: %w", errReply, err)
	}
	head, err := openTreeHead(n, key)
	if err == nil {
		return pin{key, n, head}, nil, nil
	}
	signed, _, wrong := n.check(key)
	if head, parseErr := parseTreeHead(n.body); signed || wrong != nil || parseErr != nil || head.origin != key.name {
		return pin{}, &shown{checkpoint: text}, fmt.Errorf("%w: %w", errDifference, err)
	}
	const path = "/ledger/keys"
	reply, getErr := t.client.get(ctx, path, maxReply)
	if getErr != nil {
		return pin{}, &shown{checkpoint: text}, fmt.Errorf("%w: %w, and the server shows no hand-over: %w", errDifference, err, getErr)
	}
	next, followErr := followRotation(reply, key)
	if followErr == nil {
		if head, err = openTreeHead(n, next); err == nil {
			fmt.Fprintf(t.out, "rotated    the ledger key was handed over from %s\n           to %s\n", key, next)
			return pin{next, n, head}, nil, nil
		}
	}
	return pin{}, &shown{text, path, reply}, fmt.Errorf("%w: %w", errDifference, errors.Join(err, followErr))
}

// followRotation returns the key that key was handed over to, through all the
// hand-overs in a reply of /ledger/keys.
func followRotation(reply []byte, key noteVerifier) (noteVerifier, error) {
	var keys struct {
		Former []string `json:"former"`
	}
	if err := json.Unmarshal(reply, &keys); err != nil {
		return key, fmt.Errorf("%w: GET /ledger/keys: %w", errReply, err)
	}
	return followNotes(keys.Former, key)
}

// followNotes returns the key that key was handed over to, through all hand-overs,
// which are in order.
func followNotes(handOvers []string, key noteVerifier) (noteVerifier, error) {
	for i, text := range handOvers {
		n, err := parseNote(text)
		if err != nil {
			return key, fmt.Errorf("hand-over %d: %w", i, err)
		}
		signed, _, err := n.check(key)
		if err != nil {
			return key, fmt.Errorf("hand-over %d: %w", i, err)
		}
		if !signed {
			continue // from a key older than the pinned one
		}
		if key, err = checkRotation(n, key); err != nil {
			return key, fmt.Errorf("hand-over %d: %w", i, err)
		}
	}
	return key, nil
}

// checkRotation returns the key that n, signed by key, hands over to.
func checkRotation(n note, key noteVerifier) (noteVerifier, error) {
	lines := strings.Split(n.body, "\n")
	if len(lines) != 5 || lines[0] != rotationMagic || lines[1] != key.name || lines[4] != "" {
		return key, fmt.Errorf("%w: %.200q is no hand-over of %s", errDifference, n.body, key.name)
	}
	if _, err := parseDecimal(lines[2]); err != nil {
		return key, err
	}
	next, err := parseVerifier(lines[3])
	if err != nil {
		return key, err
	}
	signed, _, err := n.check(next)
	if err == nil && (!signed || next.kind != sigEd25519 || next.name != key.name) {
		err = fmt.Errorf("%w: the new key %s did not sign, or is not of %s", errDifference, next, key.name)
	}
	return next, err
}

// extends asks the server to prove that the tree of the older head is the
// beginning of the newer one's.
func (t *visitor) extends(ctx context.Context, older, newer treeHead) (*shown, error) {
	if older.size == newer.size {
		if older.root != newer.root {
			return &shown{}, fmt.Errorf("%w: fork: %d entries have root %s, %s was seen before",
				errDifference, newer.size, newer.root, older.root)
		}
		return nil, nil
	}
	if older.size == 0 {
		return nil, nil
	}
	path := fmt.Sprintf("/ledger/consistency?from=%d&to=%d", older.size, newer.size)
	reply, err := t.client.get(ctx, path, maxReply)
	var status *statusError
	if errors.As(err, &status) && (status.status == 400 || status.status == 404 || status.status == 409) {
		return &shown{path: path, reply: []byte(status.text)}, fmt.Errorf("%w: no proof that the tree of %d entries extends that of %d: %w",
			errDifference, newer.size, older.size, err)
	}
	if err != nil {
		return nil, err // nobody said anything
	}
	if err := checkExtends(reply, older, newer); err != nil {
		return &shown{path: path, reply: reply}, fmt.Errorf("%w: the tree of %d entries does not extend that of %d: %w",
			errDifference, newer.size, older.size, err)
	}
	return nil, nil
}

// checkExtends checks a reply of /ledger/consistency.
func checkExtends(reply []byte, older, newer treeHead) error {
	var c struct {
		From  *uint64  `json:"from"`
		To    *uint64  `json:"to"`
		Proof []string `json:"proof"`
		Older string   `json:"from_root"`
		Newer string   `json:"to_root"`
	}
	if err := json.Unmarshal(reply, &c); err != nil {
		return err
	}
	if c.From == nil || c.To == nil || *c.From != older.size || *c.To != newer.size {
		return fmt.Errorf("the proof is of other sizes")
	}
	proof, err := parseHashes(c.Proof)
	if err != nil {
		return err
	}
	if err := checkConsistency(older.size, newer.size, proof, older.root, newer.root); err != nil {
		return err
	}
	if c.Older != older.root.String() || c.Newer != newer.root.String() {
		return fmt.Errorf("the server names the roots %.64q and %.64q", c.Older, c.Newer)
	}
	return nil
}

// parseHashes reads the hex digits of a proof.
func parseHashes(list []string) ([]hash, error) {
	if len(list) > 2*64 {
		return nil, fmt.Errorf("a proof of %d hashes", len(list))
	}
	hashes := make([]hash, len(list))
	for i, s := range list {
		var err error
		if hashes[i], err = parseHash(s); err != nil {
			return nil, err
		}
	}
	return hashes, nil
}

// accuse writes the evidence file and returns cause with its path.
func (t *visitor) accuse(folder *pins, known *pin, key noteVerifier, file *shown, cause error) error {
	now := t.now()
	var b strings.Builder
	fmt.Fprintf(&b, "scribe-ledger evidence v1\ntime %s\nurl %s\nfound %q\nkey %s\n", now.UTC().Format(time.RFC3339), t.client.base, cause, key)
	if known != nil {
		fmt.Fprintf(&b, "\n=== checkpoint seen before\n%s", known.seen)
	}
	fmt.Fprintf(&b, "\n=== checkpoint shown now\n%s", file.checkpoint)
	if file.path != "" {
		fmt.Fprintf(&b, "\n=== reply to GET %s\n%s\n", file.path, file.reply)
	}
	path, err := folder.evidence(now, b.String())
	if err != nil {
		return errors.Join(cause, err)
	}
	return fmt.Errorf("%w; evidence: %s", cause, path)
}
