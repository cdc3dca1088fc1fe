#!/usr/bin/env python3
"""The independent verifier: checks Scribe Ledger's files and answers with nothing but Python's standard library.

    python3 e2e/verify_ledger.py segment FILE
    python3 e2e/verify_ledger.py receipt FILE --key VKEY [--value FILE] [--quorum K] [--node-key VKEY ...]
    python3 e2e/verify_ledger.py ledger URL [--key VKEY]

It is written from documented bytes alone, so that it shares no mistake with the server: the comments at the heads
of segment.go (entries) and segment_file.go (segments), RFC 6962 (tree), RFC 8032 (Ed25519), and C2SP signed-note,
tlog-checkpoint, tlog-cosignature, tlog-proof (receipts) and tlog-tiles. VKEY is a verifier key or a file that holds
one. Exit status: 0 everything is as it must be; 1 a difference, which is told, or no answer; 2 unusable arguments.

Reading order: entries, segments, signatures, notes, receipts, ledgers. The arithmetic (CRC32C, Ed25519) comes last
before the command line.
"""

import argparse
import base64
import functools
import hashlib
import http.client
import json
import os
import re
import struct
import sys
import time
import typing
import urllib.parse


class Difference(Exception):
    """What is not as it must be, and where. The first one ends the check."""


class Unusable(Exception):
    """Arguments that nothing can be checked with."""


def require(condition, message):
    """Raise the Difference that message() describes unless condition holds."""
    if not condition:
        raise Difference(message())


# Hashes and the tree (RFC 6962 section 2.1)

EMPTY_ROOT = hashlib.sha256(b"").digest()
TILE = 256  # hashes of a full tile


def sha256(data):
    """SHA-256 of data."""
    return hashlib.sha256(data).digest()


def leaf_hash(leaf):
    """The hash of one leaf."""
    return sha256(b"\x00" + leaf)


def node_hash(left, right):
    """The hash of an inner node."""
    return sha256(b"\x01" + left + right)


def root_of(hashes):
    """The root over leaf hashes. Pairing each level and lifting a lone last hash gives RFC 6962's split."""
    if not hashes:
        return EMPTY_ROOT
    while len(hashes) > 1:
        lone = hashes[len(hashes) & ~1:]
        hashes = [node_hash(a, b) for a, b in zip(hashes[::2], hashes[1::2])] + lone
    return hashes[0]


def check_inclusion(leaf, index, size, proof, root):
    """The proof leads from the leaf hash at index to the root of the tree of that size (RFC 9162 section 2.1.3.2)."""
    require(index < size, lambda: f"index {index} is not below the tree size {size}")
    fn, sn, got = index, size - 1, leaf
    for step in proof:
        require(sn > 0, lambda: f"the inclusion proof has {len(proof)} hashes, too many for entry {index} of {size}")
        if fn & 1 or fn == sn:
            got = node_hash(step, got)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            got = node_hash(got, step)
        fn, sn = fn >> 1, sn >> 1
    require(sn == 0, lambda: f"the inclusion proof has {len(proof)} hashes, too few for entry {index} of {size}")
    require(got == root, lambda: f"the inclusion proof leads to root {got.hex()}, the checkpoint says {root.hex()}")


# Entries (segment.go)

PUT, DELETE = 1, 2
NO_SEQ = 2 ** 64 - 1
HEADER = struct.Struct(">BBQQQQQ32sH")  # up to and with the length of the key
MAX_HEADER = 1868


class Entry(typing.NamedTuple):
    op: int
    seq: int
    version: int
    prev: int
    time: int
    size: int
    sum: bytes
    key: bytes
    content_type: str
    author: str
    region: str

    def fields(self):
        """The entry as the API's JSON tells it."""
        try:
            key = {"key": self.key.decode()}
        except UnicodeDecodeError:
            key = {"key_base64": base64.b64encode(self.key).decode()}
        return {"seq": self.seq, **key, "op": "put" if self.op == PUT else "delete", "version": self.version,
                "prev": None if self.prev == NO_SEQ else self.prev, "time": rfc3339(self.time), "size": self.size,
                "sha256": self.sum.hex(), "content_type": self.content_type, "author": self.author,
                "region": self.region}


def rfc3339(ms):
    """Unix milliseconds as a date; beyond the year 9999 as a number."""
    if ms >= 253402300800000:
        return f"{ms} ms"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000)) + f".{ms % 1000:03}Z"


def parse_entry(raw):
    """The Entry of canonical header bytes."""
    require(len(raw) >= HEADER.size, lambda: f"the entry header has {len(raw)} bytes, want {HEADER.size} or more")
    version, *fixed, key_size = HEADER.unpack_from(raw)
    require(version == 1, lambda: f"the entry header has format {version}, want 1")
    at = HEADER.size + key_size
    require(at <= len(raw), lambda: "the entry header ends inside its key")
    key, labels = raw[HEADER.size:at], []
    for name in ("content type", "author", "region"):
        require(at < len(raw) and at + 1 + raw[at] <= len(raw), lambda: f"the entry header ends inside its {name}")
        try:
            labels.append(raw[at + 1:at + 1 + raw[at]].decode())
        except UnicodeDecodeError:
            raise Difference(f"the {name} is not UTF-8") from None
        at += 1 + raw[at]
    require(at == len(raw), lambda: f"{len(raw) - at} bytes follow the entry header")
    return check_entry(Entry(*fixed, key, *labels))


def check_entry(e):
    """The fields of e can stand together."""
    require(e.op in (PUT, DELETE), lambda: f"the operation is {e.op}, want 1 or 2")
    require(1 <= len(e.key) <= 1024, lambda: f"the key has {len(e.key)} bytes, want 1 to 1024")
    require(e.time < 2 ** 63, lambda: "the time is negative")
    require(e.op == PUT or (e.size == 0 and e.sum == EMPTY_ROOT), lambda: "a tombstone has a value")
    if e.prev == NO_SEQ:
        require(e.version == 1, lambda: f"version {e.version} has no previous entry")
    else:
        require(e.prev < e.seq, lambda: f"the previous entry is {e.prev}, not before seq {e.seq}")
        require(2 <= e.version <= e.prev + 2, lambda: f"version {e.version} can not follow entry {e.prev}")
    return e


class Chain:
    """Holds entries, given in order, to their sequence, time and chain of versions."""

    def __init__(self, first):
        self.first = self.next = first
        self.time = 0
        self.last = {}  # key -> (version, seq) of its last entry seen

    def add(self, e):
        """Take the next entry."""
        require(e.seq == self.next, lambda: f"the header says seq {e.seq}, its place is {self.next}")
        require(e.time >= self.time, lambda: f"the time is {e.time}, before {self.time} of the entry before it")
        known = self.last.get(e.key)
        if known:
            require((e.version - 1, e.prev) == known, lambda: f"version {e.version} with previous entry {e.prev} "
                    f"follows version {known[0]}, which is entry {known[1]}")
        else:  # so its previous entry, if any, lies before the first one seen
            require(e.prev == NO_SEQ or e.prev < self.first, lambda: f"entry {e.prev} is said to be the previous "
                    "one of this key, but it has another key")
        self.next, self.time, self.last[e.key] = e.seq + 1, e.time, (e.version, e.seq)


# Segment files (segment_file.go)

SEGMENT_HEADER = struct.Struct(">8sII16sQQQII")
SEGMENT_FOOTER = struct.Struct(">QQQ32sI12sI4s")
RECORD = struct.Struct(">IQIH")


def check_segment(name, data):
    """Every byte of a segment file is what its format says; a summary."""
    data = memoryview(data)
    require(len(data) >= SEGMENT_HEADER.size + SEGMENT_FOOTER.size, lambda: f"the file has only {len(data)} bytes")
    cluster, first, count, sealed = check_segment_header(data)
    records_at, directory_at, root = check_segment_footer(data, count)
    directory = struct.unpack(f">{count}I", data[directory_at:-SEGMENT_FOOTER.size])
    chain, leaves, at, value_at = Chain(first), [], records_at, SEGMENT_HEADER.size
    for offset in directory:
        try:
            require(offset == at - records_at,
                    lambda: f"the directory says offset {offset}, the records before it end at {at - records_at}")
            at, value_at, raw = check_record(data, at, directory_at, value_at, records_at, chain)
        except Difference as err:
            raise Difference(f"entry {chain.next}, record at byte {at}: {err}") from None
        leaves.append(leaf_hash(raw))
    require(at == directory_at, lambda: f"the records end at byte {at}, the footer says {directory_at}")
    require(value_at == records_at, lambda: f"the values end at byte {value_at}, the footer says {records_at}")
    got = root_of(leaves)
    require(got == root, lambda: f"the records give root {got.hex()}, the footer says {root.hex()}")
    want = f"{first:020}-{root.hex()}.seg"
    require(name == want, lambda: f"the file is named {name}, its bytes say {want}")
    return {"cluster": cluster.hex(), "first_seq": first, "count": count, "sealed": rfc3339(sealed),
            "merkle_root": root.hex(), "size": len(data), "sha256": sha256(data).hex()}


def check_segment_header(data):
    """Cluster id, first seq, count and time of the first 64 bytes, all of which are checked."""
    magic, version, zero, cluster, first, count, sealed, zero2, crc = SEGMENT_HEADER.unpack_from(data)
    require(magic == b"SCRSEGMT", lambda: f"the file begins with {magic!r}, not with the magic of a segment")
    require(version == 1, lambda: f"the segment has format {version}, want 1")
    check_crc("bytes 0 to 59 of the header", crc, data[:60])
    require(zero == zero2 == 0, lambda: "an unused field of the header is not 0")
    require(count > 0 and first + count < NO_SEQ, lambda: f"the header says {count} entries from {first}")
    require(sealed < 2 ** 63, lambda: "the time of sealing is negative")
    return cluster, first, count, sealed


def check_segment_footer(data, want):
    """Offsets of records and directory, and the root, of the last 80 bytes; the directory has its checksum."""
    end = len(data) - SEGMENT_FOOTER.size
    records_at, directory_at, count, root, directory_crc, zero, crc, magic = SEGMENT_FOOTER.unpack_from(data, end)
    require(magic == b"SEND", lambda: f"the file ends with {magic!r}, not with the magic of a segment")
    check_crc("bytes 0 to 71 of the footer", crc, data[end:end + 72])
    require(zero == bytes(12), lambda: "an unused field of the footer is not 0")
    require(count == want, lambda: f"the footer says {count} entries, the header {want}")
    require(SEGMENT_HEADER.size <= records_at <= directory_at and directory_at + 4 * count == end,
            lambda: f"records at {records_at} and directory at {directory_at} do not fit {len(data)} bytes")
    check_crc("the directory", directory_crc, data[directory_at:end])
    return records_at, directory_at, root


def check_record(data, at, end, value_at, values_end, chain):
    """The record at at, and its value, are right; where the next record and value are, and the header's bytes."""
    require(at + RECORD.size <= end, lambda: "the records end inside it")
    crc, offset, value_crc, length = RECORD.unpack_from(data, at)
    raw = bytes(data[at + RECORD.size:at + RECORD.size + length])
    require(at + RECORD.size + length <= end, lambda: "the records end inside its header")
    check_crc("the record", crc, data[at + 4:at + RECORD.size + length])
    entry = parse_entry(raw)
    chain.add(entry)
    require(offset == value_at, lambda: f"the value is said to be at byte {offset}, the one before ends at {value_at}")
    require(value_at + entry.size <= values_end, lambda: f"the value at byte {value_at} ends after the values")
    value = data[value_at:value_at + entry.size]
    check_crc(f"the value at byte {value_at}", value_crc, value)
    require(sha256(value) == entry.sum,
            lambda: f"the value at byte {value_at} has another SHA-256 than the header says")
    return at + RECORD.size + length, value_at + entry.size, raw


def check_crc(what, want, data):
    """data has the CRC32C that the file says."""
    got = crc32c(data)
    require(got == want, lambda: f"the CRC32C of {what} is {got:08x}, the file says {want:08x}")


# Keys, notes and checkpoints (C2SP signed-note, tlog-checkpoint, tlog-cosignature)

LEDGER_KEY, NODE_KEY = 0x01, 0x04  # Ed25519 over the text; cosignature/v1
MAX_SIGNATURES = 64
MAX_TEXT = 1_000_000  # bytes of a receipt or checkpoint
NUMBER = r"(?:0|[1-9][0-9]{0,19})"
MAX_NUMBER = 2 ** 64 - 1


def unbase64(text, what):
    """The bytes of canonical base64."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError:
        data = None
    require(data is not None and base64.b64encode(data).decode() == text,
            lambda: f"{what} is not base64: {text[:60]!r}")
    return data


def is_key_name(name):
    """name is not empty and has no space, no plus and no surrogates, which stand for bytes that are not UTF-8."""
    return re.fullmatch(r"[^\s+\x00-\x1f\ud800-\udfff]+", name) is not None


class VerifierKey(typing.NamedTuple):
    name: str
    id: bytes
    kind: int
    key: bytes


def parse_vkey(text):
    """The VerifierKey of name+id+base64."""
    parts = text.split("+", 2)
    require(len(parts) == 3 and is_key_name(parts[0]), lambda: f"not a verifier key: {text[:80]!r}")
    name, key_id, data = parts[0], parts[1], unbase64(parts[2], "the verifier key")
    want = sha256(name.encode() + b"\n" + data)[:4]
    require(key_id == want.hex(), lambda: f"the verifier key says id {key_id!r}, its bytes give {want.hex()}")
    require(data, lambda: f"not a verifier key: {text[:80]!r}")
    if data[0] in (LEDGER_KEY, NODE_KEY):  # another kind can be a good key, but nothing here is signed with it
        require(len(data) == 33, lambda: f"the verifier key {name} has {len(data) - 1} bytes, want 32")
        require(ed25519_key(data[1:]) is not None, lambda: f"the verifier key {name} is not a usable point")
    return VerifierKey(name, want, data[0], data[1:])


class Note(typing.NamedTuple):
    body: str
    signatures: list  # (name, key id, signature)


def parse_note(text):
    """The Note of a signed text: the body, a blank line, signature lines."""
    require(not any(c < " " and c != "\n" for c in text), lambda: "the note holds a control character")
    body, blank, block = text.rpartition("\n\n")
    require(blank and block.endswith("\n"), lambda: "the note lacks its signatures, or its end")
    lines = block[:-1].split("\n")
    require(len(lines) <= MAX_SIGNATURES, lambda: f"the note has {len(lines)} signatures, more than {MAX_SIGNATURES}")
    return Note(body + "\n", [parse_signature(line) for line in lines])


def parse_signature(line):
    """Name, key id and signature of a signature line."""
    parts = line.split(" ")
    require(len(parts) == 3 and parts[0] == "\u2014" and is_key_name(parts[1]),
            lambda: f"not a signature line: {line[:80]!r}")
    data = unbase64(parts[2], "a signature")
    require(len(data) > 4, lambda: f"the signature of {parts[1]} is empty")
    return parts[1], data[:4], data[4:]


def signed_by(note, vkey):
    """None if vkey did not sign; else the Unix time of its cosignature, the latest one, 0 for a ledger key."""
    found = [data for name, key_id, data in note.signatures if (name, key_id) == (vkey.name, vkey.id)]
    return max((check_signature(note, vkey, data) for data in found), default=None)


def check_signature(note, vkey, signature):
    """The Unix time of one signature of vkey, which must be right."""
    when, message = 0, note.body
    if vkey.kind == NODE_KEY:
        require(len(signature) == 72, lambda: f"the cosignature of {vkey.name} has {len(signature)} bytes, want 72")
        when, signature = int.from_bytes(signature[:8], "big"), signature[8:]
        require(when < 2 ** 63, lambda: f"the time of the cosignature of {vkey.name} is beyond all times")
        message = f"cosignature/v1\ntime {when}\n{note.body}"
    require(ed25519_verify(vkey.key, signature, message.encode()), lambda: f"the signature of {vkey.name} is wrong")
    return when


class Checkpoint(typing.NamedTuple):
    origin: str
    size: int
    root: bytes
    note: Note


def parse_checkpoint(text):
    """The Checkpoint of a signed note; its signatures are not checked yet."""
    note = parse_note(text)
    origin, size, root, *extensions = note.body[:-1].split("\n") + [""] * (3 - note.body.count("\n"))
    require(is_key_name(origin) and all(extensions), lambda: f"not a checkpoint: {note.body[:80]!r}")
    require(re.fullmatch(NUMBER, size), lambda: f"the checkpoint's size is {size[:30]!r}")
    root = unbase64(root, "the checkpoint's root")
    require(len(root) == 32, lambda: f"the checkpoint's root has {len(root)} bytes")
    require(size != "0" or root == EMPTY_ROOT, lambda: "the checkpoint of size 0 has not the empty tree's root")
    require(int(size) <= MAX_NUMBER, lambda: f"the checkpoint's size is {size}")
    return Checkpoint(origin, int(size), root, note)


def check_ledger_signature(checkpoint, vkey):
    """The ledger whose key vkey is has signed the checkpoint."""
    require(vkey.kind == LEDGER_KEY, lambda: f"the key of {vkey.name} is of kind {vkey.kind:#04x}, not a ledger's")
    require(checkpoint.origin == vkey.name, lambda: f"the checkpoint is of {checkpoint.origin}, the key of {vkey.name}")
    require(signed_by(checkpoint.note, vkey) is not None,
            lambda: f"the checkpoint is not signed by {vkey.name} with key {vkey.id.hex()}")


def check_cosignatures(checkpoint, node_keys, quorum):
    """At least quorum of the nodes cosigned the checkpoint; their names and times."""
    for vkey in node_keys:
        require(vkey.kind == NODE_KEY, lambda: f"the key of {vkey.name} is of kind {vkey.kind:#04x}, not a cosigning key")
    signed = {vkey.key: (vkey.name, signed_by(checkpoint.note, vkey)) for vkey in node_keys}
    given = {name: rfc3339(1000 * when) for name, when in signed.values() if when is not None}
    require(len(given) >= quorum, lambda: f"{len(given)} of the given nodes cosigned, want {quorum}")
    return given


# Receipts (C2SP tlog-proof whose extra is the canonical header)

def parse_receipt(data):
    """Canonical header, index, inclusion proof and Checkpoint of a receipt's bytes."""
    require(len(data) <= MAX_TEXT, lambda: f"the receipt has {len(data)} bytes, more than {MAX_TEXT}")
    try:
        head, blank, checkpoint = data.decode().partition("\n\n")
    except UnicodeDecodeError:
        raise Difference("the receipt is not UTF-8") from None
    magic, extra, index, *proof = head.split("\n") + [""] * (2 - head.count("\n"))
    require(blank and magic == "c2sp.org/tlog-proof@v1", lambda: f"not a receipt: it begins with {magic[:40]!r}")
    require(extra.startswith("extra "), lambda: f"the receipt lacks the entry: {extra[:40]!r}")
    require(re.fullmatch("index " + NUMBER, index), lambda: f"the receipt lacks its index: {index[:40]!r}")
    hashes = [unbase64(line, "a hash of the proof") for line in proof]
    require(all(len(h) == 32 for h in hashes), lambda: "a hash of the proof has not 32 bytes")
    return unbase64(extra[6:], "the entry"), int(index[6:]), hashes, parse_checkpoint(checkpoint)


def check_receipt(data, vkey, value=None, node_keys=(), quorum=0):
    """The receipt proves its entry under vkey, and value, if given, is the entry's; a summary."""
    raw, index, proof, checkpoint = parse_receipt(data)
    entry = parse_entry(raw)
    require(entry.seq == index, lambda: f"the entry has seq {entry.seq}, the receipt is for index {index}")
    check_inclusion(leaf_hash(raw), index, checkpoint.size, proof, checkpoint.root)
    if value is not None:
        require(entry.op == PUT, lambda: "the entry is a tombstone, it has no value")
        require((len(value), sha256(value)) == (entry.size, entry.sum),
                lambda: f"the value has {len(value)} bytes and SHA-256 {sha256(value).hex()}, "
                        f"the entry says {entry.size} and {entry.sum.hex()}")
    check_ledger_signature(checkpoint, vkey)
    cosigned = check_cosignatures(checkpoint, node_keys, quorum)
    return {"entry": entry.fields(), "leaf_hash": leaf_hash(raw).hex(), "origin": checkpoint.origin,
            "tree_size": checkpoint.size, "root": checkpoint.root.hex(), "cosigned": cosigned,
            "value_checked": value is not None}


# Ledgers over HTTP (C2SP tlog-tiles; API.md, Verification)

class Server:
    """A node's answers, over one connection. No answer is a Difference: nothing is proven then."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Unusable(f"not the URL of a node: {url!r}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.connection, self.prefix = kind(parts.netloc, timeout=60), parts.path.rstrip("/")

    def get(self, path, most):
        """Body of the answer to GET path, of at most most bytes; None for 404."""
        for last in (False, True):
            try:
                self.connection.request("GET", self.prefix + path)
                answer = self.connection.getresponse()
                body = answer.read()
                break
            except (OSError, http.client.HTTPException) as err:
                self.connection.close()  # the server may have closed an idle connection: once more
                if last:
                    raise Difference(f"GET {path}: {type(err).__name__}: {err}") from None
        if answer.status == 404:
            return None
        require(answer.status == 200, lambda: f"GET {path}: status {answer.status} {body[:200]!r}")
        require(len(body) <= most, lambda: f"GET {path}: {len(body)} bytes, want at most {most}")
        return body

    def must(self, path, most):
        """As get, but 404 is a Difference too."""
        body = self.get(path, most)
        require(body is not None, lambda: f"GET {path}: not found")
        return body

    def text(self, path):
        """As must, for a short text."""
        try:
            return self.must(path, MAX_TEXT).decode()
        except UnicodeDecodeError:
            raise Difference(f"GET {path}: not UTF-8") from None


def tile_path(level, index, width):
    """Path of a tile: the index in groups of three digits, all but the last after an x; .p/width if not full."""
    groups = [f"{index % 1000:03}"]
    while index >= 1000:
        index //= 1000
        groups.insert(0, f"x{index % 1000:03}")
    return f"/ledger/tile/{level}/{'/'.join(groups)}" + ("" if width == TILE else f".p/{width}")


def tiles_of(count):
    """(index, width) of the tiles that hold count hashes or entries."""
    return [(first // TILE, min(TILE, count - first)) for first in range(0, count, TILE)]


def read_tile(server, level, index, width, most):
    """The tile's path and bytes. A partial tile may go when the full one is there, whose path and bytes it then is."""
    path = tile_path(level, index, width)
    tile = server.get(path, most)
    if tile is None and width < TILE:
        full = tile_path(level, index, TILE)
        tile, path = server.get(full, most), full
    require(tile is not None, lambda: f"GET {tile_path(level, index, width)}: not found")
    return path, tile


def read_entries(server, size):
    """Leaf hashes of the first size entries, each of which is checked as far as its own bytes and those before go."""
    chain, leaves = Chain(0), []
    for index, width in tiles_of(size):
        path, bundle = read_tile(server, "entries", index, width, TILE * (2 + MAX_HEADER))
        at = 0
        for _ in range(width):
            raw = bundle[at + 2:at + 2 + int.from_bytes(bundle[at:at + 2], "big")]
            try:
                chain.add(parse_entry(raw))
            except Difference as err:
                raise Difference(f"{path} at byte {at}, entry {len(leaves)}: {err}") from None
            leaves.append(leaf_hash(raw))
            at += 2 + len(raw)
        require(at == len(bundle) or path != tile_path("entries", index, width),
                lambda: f"{path}: {len(bundle) - at} bytes follow its {width} entries")
    return leaves


def check_tiles(server, leaves):
    """Every hash tile over the leaves is as the leaves give it; the number of tiles."""
    level, hashes, count = 0, leaves, 0
    while hashes:
        for index, width in tiles_of(len(hashes)):
            path, tile = read_tile(server, level, index, width, TILE * 32)
            if path != tile_path(level, index, width):
                tile = tile[:32 * width]
            check_tile(path, tile, hashes[index * TILE:index * TILE + width])
            count += 1
        full = len(hashes) // TILE * TILE
        hashes = [root_of(hashes[i:i + TILE]) for i in range(0, full, TILE)]
        level += 1
    return count


def check_tile(path, tile, want):
    """The tile holds the wanted hashes and nothing else."""
    require(len(tile) == 32 * len(want), lambda: f"{path}: {len(tile)} bytes, want {32 * len(want)}")
    for i, h in enumerate(want):
        got = tile[32 * i:32 * i + 32]
        require(got == h, lambda: f"{path}: hash {i} is {got.hex()}, the entries give {h.hex()}")


def check_manifest(text, leaves):
    """The manifest's segments follow one another and have the roots that the leaves give; how many were checked."""
    end = checked = 0
    try:
        for s in json.loads(text)["segments"]:
            first, count, root = int(s["first_seq"]), int(s["count"]), s["merkle_root"]
            require(first == end and count > 0, lambda: f"manifest: a segment has {count} entries from {first}, "
                    f"the one before it ends at {end}")
            require(s["id"] == f"{first:020}-{root}", lambda: f"manifest: segment {s['id']} has root {root}")
            end = first + count
            if end <= len(leaves):  # else it was sealed after the checkpoint
                got = root_of(leaves[first:end]).hex()
                require(got == root, lambda: f"manifest: segment {s['id']} has root {root}, its entries give {got}")
                checked += 1
    except (KeyError, TypeError, ValueError) as err:
        raise Difference(f"manifest: not as documented: {type(err).__name__} {err}") from None
    return checked


def check_ledger(server, vkey=None):
    """Everything a node serves of its ledger follows from the entries it serves; a summary."""
    manifest = server.must("/ledger/manifest", 1 << 30)  # first, so that the checkpoint covers it
    key = vkey or parse_vkey(server.text("/ledger/key").removesuffix("\n"))
    checkpoint = parse_checkpoint(server.text("/ledger/checkpoint"))
    check_ledger_signature(checkpoint, key)
    leaves = read_entries(server, checkpoint.size)
    tiles = check_tiles(server, leaves)
    got = root_of(leaves)
    require(got == checkpoint.root,
            lambda: f"the entries give root {got.hex()}, the checkpoint of size {checkpoint.size} says "
                    f"{checkpoint.root.hex()}")
    return {"origin": checkpoint.origin, "tree_size": checkpoint.size, "root": got.hex(), "tiles": tiles,
            "segments": check_manifest(manifest, leaves), "key": "given" if vkey else "told by the server"}


# CRC32C: Castagnoli, reflected, begins and ends with all ones

CRC_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    CRC_TABLE.append(_byte)

# Python has no CRC32C, and a table alone does 6 MB/s. But x^290 = x^136 + x^113 + x^107 + x^32 + 1 modulo the
# polynomial, and so, squared, with every exponent times 2^k. The first n bits of a message, read as one integer, can
# therefore be moved 290, 290-136, ... times 2^k bits further on by shifts and xors: ~250 MB/s.
FOLD_CHUNK = 1 << 16  # bytes at once
FOLDS = []  # by k: n, mask of n bits, the five shifts after n bits were dropped
for _k in range(11):
    FOLDS.append((152 << _k, (1 << (152 << _k)) - 1, [(290 - b - 152) << _k for b in (136, 113, 107, 32, 0)]))


def crc32c(data):
    """The CRC32C of bytes or a memoryview."""
    crc = 0xFFFFFFFF
    for at in range(0, len(data), FOLD_CHUNK):
        piece = data[at:at + FOLD_CHUNK]
        if len(piece) > 55:
            piece, crc = fold(int.from_bytes(piece, "little") ^ crc, 8 * len(piece)), 0
        for byte in piece:
            crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def fold(message, bits):
    """Bytes, fewer than 56, whose CRC from 0 is that of the message's bits."""
    for k in range((bits // 442).bit_length() - 1, -1, -1):
        n, mask, (a, b, c, d, e) = FOLDS[k]
        while bits >= 442 << k:
            low = message & mask
            message = message >> n ^ low << a ^ low << b ^ low << c ^ low << d ^ low << e
            bits -= n
    return message.to_bytes(bits // 8, "little")


# Ed25519 (RFC 8032 section 5.1), strict: S below the order, points canonical, keys not of small order

P = 2 ** 255 - 19
ORDER = 2 ** 252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)
NEUTRAL = (0, 1, 1, 0)  # extended coordinates (X, Y, Z, T): x = X/Z, y = Y/Z, xy = T/Z


def add(p, q):
    """p + q."""
    (x1, y1, z1, t1), (x2, y2, z2, t2) = p, q
    a, b, c, d = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P, 2 * D * t1 * t2 % P, 2 * z1 * z2
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def double(p):
    """2 p."""
    x, y, z, _ = p
    a, b = x * x % P, y * y % P
    h, g = a + b, a - b
    e, f = h - (x + y) * (x + y) % P, 2 * z * z + g
    return e * f % P, g * h % P, f * g % P, e * h % P


def decompress(data):
    """The point of its 32 canonical bytes, or None."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P != u:
        x = x * SQRT_M1 % P
    if y >= P or v * x * x % P != u or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def compress(p):
    """The 32 bytes of a point."""
    x, y, z, _ = p
    inverse = pow(z, -1, P)
    return ((y * inverse % P) | (x * inverse % P & 1) << 255).to_bytes(32, "little")


def multiples(p):
    """0, 1, ... 15 times p."""
    table = [NEUTRAL]
    for _ in range(15):
        table.append(add(table[-1], p))
    return table


BASE = multiples(decompress((4 * pow(5, -1, P) % P).to_bytes(32, "little")))


@functools.lru_cache(maxsize=256)
def ed25519_key(key):
    """Multiples of the key's point, negated; None for bytes that are no usable key."""
    point = decompress(key)
    if point is None or compress(double(double(double(point)))) == compress(NEUTRAL):
        return None
    x, y, z, t = point
    return multiples((P - x, y, z, P - t))


def ed25519_verify(key, signature, message):
    """signature is key's over message: R = S*B - H(R, key, message)*A."""
    negated, s = ed25519_key(key), int.from_bytes(signature[32:], "little")
    if negated is None or len(signature) != 64 or s >= ORDER:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % ORDER
    point = NEUTRAL
    for shift in range(252, -4, -4):  # four bits of both scalars a step
        point = double(double(double(double(point))))
        point = add(add(point, BASE[s >> shift & 15]), negated[h >> shift & 15])
    return compress(point) == signature[:32]


# Command line

def read_file(path):
    """The bytes of the file, which the user named."""
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError as err:
        raise Unusable(f"{path}: {err.strerror}") from None


def vkey_argument(text):
    """The VerifierKey of an argument that is its text or names a file that holds it."""
    if os.path.isfile(text):
        text = read_file(text).decode(errors="replace").strip()
    try:
        return parse_vkey(text)
    except Difference as err:
        raise Unusable(str(err)) from None


def run_segment(args):
    """The segment command."""
    began, data = time.perf_counter(), read_file(args.file)
    found = check_segment(os.path.basename(args.file), data)
    return {**found, "mb_per_s": round(len(data) / 1e6 / (time.perf_counter() - began), 1)}


def run_receipt(args):
    """The receipt command."""
    node_keys = [vkey_argument(text) for text in args.node_key]
    quorum = len(node_keys) if args.quorum is None else args.quorum  # a key that is given must have signed
    if len({vkey.key for vkey in node_keys}) < len(node_keys) or not 0 <= quorum <= len(node_keys):
        raise Unusable(f"--quorum {quorum} of {len(node_keys)} node keys, each of which must be another one")
    value = read_file(args.value) if args.value else None
    return check_receipt(read_file(args.file), vkey_argument(args.key), value, node_keys, quorum)


def run_ledger(args):
    """The ledger command."""
    began, vkey = time.perf_counter(), vkey_argument(args.key) if args.key else None
    found = check_ledger(Server(args.url), vkey)
    return {**found, "entries_per_s": round(found["tree_size"] / (time.perf_counter() - began))}


def arguments():
    """The parsed command line; unusable ones end the program with 2."""
    parser = argparse.ArgumentParser(prog="verify_ledger.py", description="Independent verifier of Scribe Ledger.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("segment", help="check every byte of a segment file")
    one.set_defaults(run=run_segment)
    one.add_argument("file", metavar="FILE")
    one = commands.add_parser("receipt", help="check a receipt offline")
    one.set_defaults(run=run_receipt)
    one.add_argument("file", metavar="FILE")
    one.add_argument("--key", metavar="VKEY", required=True, help="the ledger's verifier key, or a file that holds it")
    one.add_argument("--value", metavar="FILE", help="must be the value of the entry")
    one.add_argument("--quorum", metavar="K", type=int, help="how many of the nodes must have cosigned; default all")
    one.add_argument("--node-key", metavar="VKEY", action="append", default=[], help="cosigning key; may be repeated")
    one = commands.add_parser("ledger", help="derive a node's whole tree from its entries")
    one.set_defaults(run=run_ledger)
    one.add_argument("url", metavar="URL")
    one.add_argument("--key", metavar="VKEY", help="the ledger's verifier key; else the server is asked for it")
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser.parse_args()


def main():
    """Run the command; the exit status."""
    args = arguments()
    try:
        found, status = {"ok": True, **args.run(args)}, 0
    except Difference as err:
        found, status = {"ok": False, "difference": str(err)}, 1
    except Unusable as err:
        print(f"verify_ledger.py: {err}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    elif status == 1:
        print(f"DIFFERENCE: {found['difference']}")
    else:
        print("ok", *(f"{name}: {value}" for name, value in found.items() if name != "ok"), sep="\n  ")
    return status


if __name__ == "__main__":
    sys.exit(main())
