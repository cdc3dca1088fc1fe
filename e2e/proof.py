"""Proofs as a stranger checks them: Ed25519, signed notes, receipts and RFC 6962, from the public texts alone.

It uses none of the server's code. Everything raises ValueError for what does not verify.
"""

import base64
import functools
import hashlib

P = 2**255 - 19  # Ed25519: RFC 8032, section 5.1
Q = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)


def _point(data):
    """The point that 32 bytes stand for, in extended coordinates."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        raise ValueError("no point")
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_1 % P
    if (x * x - square) % P or (x == 0 and sign):
        raise ValueError("no point")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def _add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]), (p[1] + p[0]) * (q[1] + q[0])
    c, d = 2 * p[3] * q[3] * D, 2 * p[2] * q[2]
    e, f, g, h = (b - a) % P, (d - c) % P, (d + c) % P, (b + a) % P
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(n, p):
    total = (0, 1, 1, 0)
    while n:
        if n & 1:
            total = _add(total, p)
        p, n = _add(p, p), n >> 1
    return total


BASE = _point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


@functools.cache  # many replies carry one checkpoint
def check_ed25519(key, signature, message):
    if len(signature) != 64 or int.from_bytes(signature[32:], "little") >= Q:
        raise ValueError("signature malformed")
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % Q
    left = _times(int.from_bytes(signature[32:], "little"), BASE)
    right = _add(_point(signature[:32]), _times(challenge, _point(key)))
    if (left[0] * right[2] - right[0] * left[2]) % P or (left[1] * right[2] - right[1] * left[2]) % P:
        raise ValueError("wrong signature")


def parse_vkey(vkey):
    """Name, kind (1 Ed25519, 4 cosignature), id and key of a C2SP verifier key."""
    name, number, data = vkey.strip().split("+", 2)
    raw = base64.b64decode(data, validate=True)
    if hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4].hex() != number or len(raw) != 33:
        raise ValueError(f"malformed vkey {vkey!r}")
    return name, raw[0], bytes.fromhex(number), raw[1:]


def open_note(note, *vkeys):
    """The body of a signed note, and those of vkeys that signed it with their times (None for kind 1)."""
    body, _, block = note.rpartition("\n\n")
    if not body or not block.endswith("\n"):
        raise ValueError("malformed note")
    body, lines, found = body + "\n", {}, {}
    for line in block[:-1].split("\n"):
        dash, name, data = line.split(" ")
        raw = base64.b64decode(data, validate=True)
        if dash != "\u2014" or len(raw) < 5:
            raise ValueError(f"malformed signature line {line!r}")
        lines[name, raw[:4]] = raw[4:]
    for vkey in vkeys:
        name, kind, number, key = parse_vkey(vkey)
        data, when, message = lines.get((name, number)), None, body
        if data is None:
            continue
        if kind == 4:
            when, data = int.from_bytes(data[:8], "big"), data[8:]
            message = f"cosignature/v1\ntime {when}\n{body}"
        check_ed25519(key, data, message.encode())
        found[vkey] = when
    return body, found


def parse_head(note):
    """Origin, size and root of a checkpoint, whoever signed it."""
    origin, size, root = note.split("\n\n")[0].split("\n")[:3]
    if str(int(size)) != size or len(base64.b64decode(root, validate=True)) != 32:
        raise ValueError("malformed checkpoint")
    return origin, int(size), base64.b64decode(root)


def leaf_hash(data):
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left, right):
    return hashlib.sha256(b"\1" + left + right).digest()


def root_of(leaves):
    """The root over leaf hashes (RFC 6962, 2.1): a last odd one moves up as it is."""
    level = list(leaves)
    while len(level) > 1:
        pairs = [node_hash(*level[i:i + 2]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) & ~1:]
    return level[0] if level else hashlib.sha256(b"").digest()


def check_inclusion(leaf, index, size, path, root):
    """RFC 9162, 2.1.3.2."""
    if not 0 <= index < size or any(len(h) != 32 for h in path):
        raise ValueError("inclusion proof malformed")
    node, last, got = index, size - 1, leaf
    for other in path:
        if last == 0:
            raise ValueError("inclusion proof too long")
        if node & 1 or node == last:
            got = node_hash(other, got)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            got = node_hash(got, other)
        node, last = node >> 1, last >> 1
    if last or got != root:
        raise ValueError("inclusion proof leads elsewhere")


def check_consistency(small, large, path, small_root, large_root):
    """RFC 9162, 2.1.4.2; of an empty tree the proof is empty."""
    if small in (0, large):
        if path or (small == large and small_root != large_root):
            raise ValueError("consistency proof of equal trees")
        return
    if not 0 < small < large or any(len(h) != 32 for h in path):
        raise ValueError("consistency proof malformed")
    rest = list(path) if small & (small - 1) else [small_root, *path]
    node, last = small - 1, large - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = rest.pop(0)
    for other in rest:
        if last == 0:
            raise ValueError("consistency proof too long")
        if node & 1 or node == last:
            old, new = node_hash(other, old), node_hash(other, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, other)
        node, last = node >> 1, last >> 1
    if last or old != small_root or new != large_root:
        raise ValueError("consistency proof leads elsewhere")


def check_receipt(text, *vkeys):
    """Leaf, index, size and root of a C2SP tlog-proof that all of vkeys signed."""
    head, note = text.split("\n\n", 1)
    magic, extra, index, *path = head.split("\n")
    if magic != "c2sp.org/tlog-proof@v1" or not extra.startswith("extra ") or not index.startswith("index "):
        raise ValueError("malformed receipt")
    if len(open_note(note, *vkeys)[1]) != len(vkeys):
        raise ValueError("receipt not signed by all")
    _, size, root = parse_head(note)
    leaf = base64.b64decode(extra[6:], validate=True)
    path = [base64.b64decode(h, validate=True) for h in path]
    check_inclusion(leaf_hash(leaf), int(index[6:]), size, path, root)
    return leaf, int(index[6:]), size, root
