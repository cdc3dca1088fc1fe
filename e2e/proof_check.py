"""What a test needs beside verify_ledger.py to judge many checkpoints of one ledger: who signed each, the hand-over
of the ledger's keys (fsm_key.go), consistency proofs, and the roots of a growing tree. Whatever does not check out
raises Difference. Nothing here is shared with the server.
"""

import functools

import verify_ledger
from verify_ledger import (EMPTY_ROOT, Difference, check_inclusion, check_signature, leaf_hash, node_hash,
                           parse_checkpoint, parse_entry, parse_note, parse_receipt, parse_vkey, require)

OPS = {verify_ledger.PUT: "put", verify_ledger.DELETE: "delete"}


def must(condition, *what):
    """Raise a Difference of these words unless condition holds."""
    require(condition, lambda: " ".join(map(str, what)))


def signers(text, vkeys):
    """The vkeys whose signatures a note bears; a wrong one, or one of nobody we know, is refused."""
    note, found = parse_note(text), []
    known = {(key.name, key.id): (vkey, key) for vkey, key in ((v, parse_vkey(v)) for v in vkeys)}
    for name, key_id, signature in note.signatures:
        must((name, key_id) in known, "a signature of nobody we know:", name, key_id.hex())
        vkey, key = known[name, key_id]
        check_signature(note, key, signature)
        found.append(vkey)
    must(len(set(found)) == len(found), "signed twice by the same key")
    return found


def follow_keys(first, current, former):
    """Check the hand-over notes from the first key to the current one; {vkey: most entries it may sign for}."""
    may, trusted = {}, first
    for text in former:
        lines = parse_note(text).body.split("\n")
        must(len(lines) == 5 and lines[0] == "scribe-ledger key rotation v1" and lines[1] == parse_vkey(trusted).name, "hand-over", text)
        must(set(signers(text, [trusted, lines[3]])) == {trusted, lines[3]}, "a hand-over that both keys did not sign:", text)
        may[trusted], trusted = int(lines[2]), lines[3]
    must(trusted == current, "the hand-over notes end at", trusted, "and the current key is", current)
    return {**may, trusted: float("inf")}


def check_consistency(old, new, proof, old_root, new_root):
    """RFC 9162 section 2.1.4.2."""
    if old == new or old == 0:
        must(not proof and (old == 0 or old_root == new_root), "consistency of", old, "and", new)
        return
    must(0 < old < new and proof, "consistency of", old, "and", new)
    proof = ([old_root] if old & old - 1 == 0 else []) + proof
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = proof[0]
    for c in proof[1:]:
        must(sn, "the consistency proof is too long")
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    must(fr == old_root and sr == new_root and sn == 0, "trees of", old, "and", new, "entries are not consistent")


def check_receipt(text):
    """Check the proof of a receipt; (leaf, index, checkpoint text). Who signed the checkpoint is left to signers()."""
    leaf, index, proof, head = parse_receipt(text.encode())
    check_inclusion(leaf_hash(leaf), index, head.size, proof, head.root)
    must(parse_entry(leaf).seq == index, "the leaf is entry", parse_entry(leaf).seq, "the index", index)
    return leaf, index, text.partition("\n\n")[2]


class Roots:
    """The tree as it grows: the roots of its complete subtrees, largest first."""

    def __init__(self):
        self.size, self.edge = 0, []

    def append(self, leaf):
        bit = self.size
        while bit & 1:
            leaf, bit = node_hash(self.edge.pop(), leaf), bit >> 1
        self.edge.append(leaf)
        self.size += 1

    def root(self):
        return functools.reduce(lambda right, left: node_hash(left, right), reversed(self.edge)) if self.edge else EMPTY_ROOT
