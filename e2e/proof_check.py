"""Checks receipts, checkpoints and whole ledgers from their documented bytes; standard library only.

Reading order: Ed25519 (RFC 8032), Keyring and signed notes (merkle_note.go), the tree (RFC 6962), the entry header
(segment.go), receipts (merkle_receipt.go), hand-over notes (fsm_key.go), whole trees over /ledger/tile (C2SP tlog-tiles).
Whatever does not check out raises Refused. Nothing here is shared with the server.
"""

import base64
import binascii
import collections
import functools
import hashlib
import re


class Refused(Exception):
    """Something does not prove what it says."""


def must(condition, *what):
    if not condition:
        raise Refused(" ".join(map(str, what)))


def unbase64(text):
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as err:
        raise Refused(f"base64 {text[:60]!r}: {err}") from None
    must(base64.b64encode(data).decode() == text, f"base64 is not canonical: {text[:60]!r}")
    return data


# Ed25519, with tables so that a verification costs 128 additions and not 512.

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
NEUTRAL = (0, 1, 1, 0)


def add(a, b):
    """Sum of two points in extended coordinates."""
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return e * f % P, g * h % P, f * g % P, e * h % P


def decompress(data):
    """The point that 32 bytes stand for."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    must(y < P, "a point beyond the field")
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P != u:
        x = x * pow(2, (P - 1) // 4, P) % P
    must(v * x * x % P == u and not (x == 0 and sign), "no such point")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def compress(point):
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


@functools.lru_cache(64)
def table(data):
    """Multiples of a point: [i][j] is j * 16^i times it."""
    point, rows = decompress(data), []
    for _ in range(64):
        row = [NEUTRAL]
        for _ in range(15):
            row.append(add(row[-1], point))
        rows.append(row)
        point = add(row[15], point)
    return rows


def multiply(start, rows, k):
    for row in rows:
        if k & 15:
            start = add(start, row[k & 15])
        k >>= 4
    return start


BASE = bytes.fromhex("58" + "66" * 31)


def ed25519_verifies(key, message, signature):
    """RFC 8032 verification of one signature."""
    if len(signature) != 64:
        return False
    s = int.from_bytes(signature[32:], "little")
    if s >= ORDER:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % ORDER
    return compress(multiply(multiply(NEUTRAL, table(BASE), s), table(key), (ORDER - k) % ORDER)) == signature[:32]


# Keys and signed notes.

ED25519, COSIGNATURE = 1, 4
VKey = collections.namedtuple("VKey", "text name id kind key")


def parse_vkey(text):
    """name+id+base64(kind, key)."""
    name, key_id, rest = text.strip().split("+", 2)
    data = unbase64(rest)
    must(len(data) == 33 and data[0] in (ED25519, COSIGNATURE), "vkey", text)
    want = hashlib.sha256(name.encode() + b"\n" + data).digest()[:4]
    must(want.hex() == key_id, "the id of vkey", text, "should be", want.hex())
    return VKey(text.strip(), name, want, data[0], data[1:])


def split_note(text):
    """The signed text and its signatures, each (name, id, bytes)."""
    body, found, rest = text.rpartition("\n\n")
    must(found and rest.endswith("\n"), f"no note: {text[:80]!r}")
    signatures = []
    for line in rest[:-1].split("\n"):
        match = re.fullmatch("\u2014 ([^ +]+) ([A-Za-z0-9+/=]+)", line)
        must(match, f"no signature: {line!r}")
        data = unbase64(match[2])
        signatures.append((match[1], data[:4], data[4:]))
    return body + "\n", signatures


def signers(text, keys):
    """The vkeys of keys whose signatures the note bears; a wrong or an unknown signature is refused."""
    body, signatures = split_note(text)
    found = []
    for name, key_id, data in signatures:
        known = [k for k in keys if (k.name, k.id) == (name, key_id)]
        must(len(known) == 1, "a signature of nobody we know:", name, key_id.hex())
        message = body.encode()
        if known[0].kind == COSIGNATURE:
            seconds, data = int.from_bytes(data[:8], "big"), data[8:]
            message = b"cosignature/v1\ntime %d\n" % seconds + message
        must(ed25519_verifies(known[0].key, message, data), "a wrong signature of", known[0].text)
        found.append(known[0])
    must(len(set(found)) == len(found), "signed twice by the same key")
    return found


Head = collections.namedtuple("Head", "origin size root")


def parse_head(text):
    """What a checkpoint, signed or not, says."""
    lines = text.split("\n\n")[0].strip("\n").split("\n")
    must(len(lines) == 3 and re.fullmatch("0|[1-9][0-9]*", lines[1]), f"no tree head: {text[:120]!r}")
    root = unbase64(lines[2])
    must(len(root) == 32, "a root of", len(root), "bytes")
    return Head(lines[0], int(lines[1]), root)


def follow_keys(first, current, former):
    """Check the hand-over notes from the first key to the current one; {vkey text: most entries it may sign for}."""
    may, trusted = {}, parse_vkey(first)
    for note in former:
        lines = split_note(note)[0].split("\n")
        must(len(lines) == 5 and lines[0] == "scribe-ledger key rotation v1" and lines[1] == trusted.name, f"hand-over {note!r}")
        following = parse_vkey(lines[3])
        must(set(signers(note, [trusted, following])) == {trusted, following}, "a hand-over not signed by both keys")
        may[trusted.text] = int(lines[2])
        trusted = following
    must(trusted.text == current.strip(), "the hand-over notes end at", trusted.text, "the current key is", current)
    may[trusted.text] = float("inf")
    return may


# The tree.

def leaf_hash(data):
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left, right):
    return hashlib.sha256(b"\1" + left + right).digest()


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
        if not self.edge:
            return hashlib.sha256(b"").digest()
        return functools.reduce(lambda right, left: node_hash(left, right), reversed(self.edge))


def check_inclusion(leaf, index, size, proof, root):
    """RFC 9162 2.1.3.2."""
    must(0 <= index < size and all(len(h) == 32 for h in proof), "inclusion of", index, "in", size)
    fn, sn, r = index, size - 1, leaf
    for c in proof:
        must(sn, "the inclusion proof is too long")
        if fn & 1 or fn == sn:
            r = node_hash(c, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, c)
        fn, sn = fn >> 1, sn >> 1
    must(sn == 0 and r == root, "the inclusion proof of", index, "does not lead to the root of", size)


def check_consistency(old, new, proof, old_root, new_root):
    """RFC 9162 2.1.4.2."""
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


# Entries and receipts.

Entry = collections.namedtuple("Entry", "op seq version prev time size sha256 key content_type author region")


def parse_leaf(leaf):
    """The canonical entry header."""
    must(len(leaf) > 76 and leaf[0] == 1 and leaf[1] in (1, 2), "entry header")
    numbers = [int.from_bytes(leaf[i:i + 8], "big") for i in range(2, 42, 8)]
    end = 76 + int.from_bytes(leaf[74:76], "big")
    key, labels = leaf[76:end], []
    for _ in range(3):
        must(end < len(leaf), "entry header is cut off")
        stop = end + 1 + leaf[end]
        labels.append(leaf[end + 1:stop].decode())
        end = stop
    must(end == len(leaf) and key, "entry header has", len(leaf), "bytes, its fields", end)
    seq, version, prev, when, size = numbers
    must((version == 1) == (prev == 2**64 - 1) and (version == 1 or prev < seq), "entry", seq, "version", version, "prev", prev)
    return Entry({1: "put", 2: "delete"}[leaf[1]], seq, version, None if version == 1 else prev, when, size,
                 leaf[42:74].hex(), key, *labels)


def check_receipt(text):
    """Check the proof of a receipt; (leaf, index, checkpoint). Who signed the checkpoint is left to signers()."""
    head, found, note = text.partition("\n\n")
    lines = head.split("\n")
    must(found and lines[0] == "c2sp.org/tlog-proof@v1" and lines[1].startswith("extra "), f"no receipt: {text[:80]!r}")
    leaf = unbase64(lines[1][6:])
    match = re.fullmatch("index (0|[1-9][0-9]*)", lines[2])
    must(match, "receipt:", lines[2])
    tree = parse_head(note)
    check_inclusion(leaf_hash(leaf), int(match[1]), tree.size, [unbase64(line) for line in lines[3:]], tree.root)
    must(parse_leaf(leaf).seq == int(match[1]), "the leaf is entry", parse_leaf(leaf).seq, "the index", match[1])
    return leaf, int(match[1]), note


# Whole ledgers.

def tile_path(index, width):
    digits = f"{index:03d}"
    while len(digits) % 3:
        digits = "0" + digits
    groups = [digits[i:i + 3] for i in range(0, len(digits), 3)]
    return "/".join(["x" + g for g in groups[:-1]] + groups[-1:]) + (f".p/{width}" if width < 256 else "")


def read_tree(get, size):
    """The leaves of a tree from its entry bundles, each hash compared with the tiles of every level.

    get(path) returns the bytes at a path below /ledger/tile/.
    """
    leaves, level = [], []
    for index in range((size + 255) // 256):
        width = min(256, size - 256 * index)
        data = get("entries/" + tile_path(index, width))
        for _ in range(width):
            end = 2 + int.from_bytes(data[:2], "big")
            must(end <= len(data), "bundle", index, "is cut off")
            leaves.append(data[2:end])
            data = data[end:]
        must(not data, "bundle", index, "has more than", width, "entries")
    level, number = [leaf_hash(leaf) for leaf in leaves], 0
    while level:
        for index in range((len(level) + 255) // 256):
            hashes = level[256 * index:256 * (index + 1)]
            must(get(f"{number}/" + tile_path(index, len(hashes))) == b"".join(hashes), f"tile {number}/{index} differs from the entries")
        for _ in range(8):
            level = [node_hash(a, b) for a, b in zip(level[::2], level[1::2])]
        number += 1
    return leaves
