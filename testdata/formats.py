#!/usr/bin/env python3
"""Writes the golden files of this directory from the format comments alone.

    python3 testdata/formats.py

A second implementation of the writers: it shares nothing with the Go code but
the comments at the heads of segment.go, segment_file.go, segment_gzip.go, manifest.go, manifest_bucket.go,
store_ledger.go, store_tree.go, fsm_command.go, fsm_window.go, fsm_key.go,
fsm_snapshot.go, raft_signed.go and raft_key.go. The Go tests build the same
values and want the same bytes. Never change what a golden file holds: a later
version must still read it; add a file for a new format.
"""
import base64
import hashlib
import json
import os
import struct
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, os.pardir, "e2e"))
import proof  # noqa: E402
NONE = 2**64 - 1  # no seq
CLUSTER = bytes(range(16))


def write(name, data):
    with open(os.path.join(HERE, name), "wb") as f:
        f.write(data)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return struct.pack(">I", crc ^ 0xFFFFFFFF)


def sha(data):
    return hashlib.sha256(data).digest()


def root(leaves):  # RFC 6962, from leaf hashes
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha(b"\1" + root(leaves[:k]) + root(leaves[k:]))


def label(text):
    data = text.encode()
    return bytes([len(data)]) + data


def header(op, seq, version, prev, time, value, key, content_type="", author="", region=""):
    return (struct.pack(">BBQQQQQ", 1, op, seq, version, prev, time, len(value)) + sha(value)
            + struct.pack(">H", len(key)) + key + label(content_type) + label(author) + label(region))


# The entries of segment-1.seg: seqs from 1000, so that the files before it are not needed.
LONG = "\u00e9" * 127 + "x"  # 255 bytes
BIG = bytes(i * i % 251 for i in range(70_000))
ENTRIES = [
    # op, seq, version, prev, time, value, key, labels
    (1, 1000, 1, NONE, 1700000000000, b"value", b"a", "text/plain", "ada", "eu-1"),
    (1, 1001, 1, NONE, 1700000000000, b"", b"\0", "", "", ""),
    (1, 1002, 7, 41, 1700000000001, b"\xff" * 300, b"k" * 1024, LONG, LONG, LONG),
    (2, 1003, 2, 1000, 1700000000002, b"", b"a", "", "eve", ""),
    (1, 1004, 1, NONE, 1700000000002, BIG, b"dir/big", "application/octet-stream", "", ""),
    (1, 1005, 3, 1003, 1700000000003, b"again", b"a", "", "", ""),
]


def segment():
    sealed = 1700000000009
    head = b"SCRSEGMT" + struct.pack(">II", 1, 0) + CLUSTER + struct.pack(">QQQI", 1000, len(ENTRIES), sealed, 0)
    out = head + crc32c(head)
    places = []
    for e in ENTRIES:
        places.append(len(out))
        out += e[5]
    records_at = len(out)
    offsets, leaves = [], []
    for e, place in zip(ENTRIES, places):
        raw = header(*e)
        leaves.append(sha(b"\0" + raw))
        offsets.append(len(out) - records_at)
        body = struct.pack(">Q", place) + crc32c(e[5]) + struct.pack(">H", len(raw)) + raw
        out += crc32c(body) + body
    directory_at = len(out)
    directory = b"".join(struct.pack(">I", o) for o in offsets)
    foot = struct.pack(">QQQ", records_at, directory_at, len(ENTRIES)) + root(leaves) + crc32c(directory) + bytes(12)
    return out + directory + foot + crc32c(foot) + b"SEND"


def operation(kind, key, value=b"", labels=("", "", ""), absent=False, seq=None, digest=None):
    flags = absent * 1 + (seq is not None) * 2 + (digest is not None) * 4
    out = struct.pack(">BBH", kind, flags, len(key)) + key + b"".join(label(s) for s in labels)
    if seq is not None:
        out += struct.pack(">Q", seq)
    return out + (digest or b"") + struct.pack(">I", len(value)) + value


def request(ops, atomic=False, idempotency_key=""):
    return bytes([atomic]) + label(idempotency_key) + struct.pack(">I", len(ops)) + b"".join(ops)


def pack():
    return struct.pack(">BQ", 1, 1700000000000) + b"".join([
        request([operation(1, b"a", b"value", ("text/plain", "ada", "eu-1"))]),
        request([operation(1, b"b", b"x", absent=True, digest=sha(b"x"))], idempotency_key="i" * 64),
        request([operation(1, b"b", b"y", seq=1), operation(2, b"a", seq=0), operation(1, b"\xff" * 1024)],
                atomic=True, idempotency_key="batch"),
        request([operation(2, b"none")], idempotency_key="gone"),
    ])


def results():
    first = header(1, 0, 1, NONE, 1700000000000, b"value", b"a", "text/plain", "ada", "eu-1")
    second = header(2, 3, 2, 0, 1700000000000, b"", b"a")
    return b"".join([
        struct.pack(">BIQI", 1, 0, NONE, 2) + b"".join(struct.pack(">H", len(h)) + h for h in (first, second)),
        struct.pack(">BIQI", 2, 7, 5, 0),
        struct.pack(">BIQI", 3, 0, NONE, 0),
        struct.pack(">BIQI", 4, 1, 5, 0),
    ])


def segment_info(first, count, size, time, number, obj):
    return (struct.pack(">QQQQ", first, count, size, time) + bytes([number]) * 32 + bytes([number + 1]) * 32
            + struct.pack(">H", len(obj)) + obj.encode())


def remembered(key, outcome, failed, current, first, count):
    return label(key) + struct.pack(">BIQQI", outcome, failed, current, first, count)


def window():
    """Chunks 3 (full) and 4: requests 12288 to 16385."""
    full = b"".join(remembered("key-%d" % i, 1, 0, NONE, i, 1) for i in range(12288, 16384))
    return [(3, full), (4, remembered("w", 2, 9, 77, 0, 0) + remembered("x" * 64, 1, 0, NONE, 90, 10))]


def checkpoint():
    config = b"\x81raft configuration"
    return struct.pack(">QQQQQQQQQI", 900, 7, 3, 150, 1700000000009, 2, 1, 3, 16386, len(config)) + config


def snapshot():
    body = b"SCRSNAP1" + CLUSTER + checkpoint() + struct.pack(">I", 2)
    body += segment_info(0, 100, 5000, 1700000000005, 0x11, "ab/cd.gz") + segment_info(100, 50, 2500, 1700000000009, 0x33, "")
    chunks = window()[1:]  # the full chunk would make the file large
    body = body.replace(struct.pack(">QQ", 3, 16386), struct.pack(">QQ", 4, 16386))
    body += struct.pack(">I", len(chunks))
    for number, data in chunks:
        body += struct.pack(">QI", number, len(data)) + data
    return body + sha(body)


def ledger_keys():
    origin = b"scribe/000102030405060708090a0b0c0d0e0f"
    former = [(0x44, b"first\n"), (0x45, b"second note\n")]
    body = struct.pack(">QH", 77, len(origin)) + origin + bytes([0x22]) * 32 + struct.pack(">I", len(former))
    for public, note in former:
        body += bytes([public]) * 32 + struct.pack(">I", len(note)) + note
    return body


def key_command():
    origin = b"scribe/000102030405060708090a0b0c0d0e0f"
    return bytes([5]) + bytes([0x45]) * 32 + bytes([0x22]) * 32 + struct.pack(">H", len(origin)) + origin


def archived_command():
    return struct.pack(">BQ", 7, 2**40) + b"%020d-%s.seg.gz" % (2**40, b"31" * 32)


def snapshot_with_keys():
    body = b"SCRSNAP2" + snapshot()[8:-32]
    keys = ledger_keys()
    body += struct.pack(">I", len(keys)) + keys
    return body + sha(body)


def signed():
    def record(number, size, root, key, index):
        body = b"SCRSIGN1" + struct.pack(">QQ", number, size) + root + key + struct.pack(">Q", index)
        return (body + crc32c(body)).ljust(4096, b"\0")
    return record(8, 1000, bytes([0x31]) * 32, bytes([0x32]) * 32, 5) + record(7, 999, bytes([0x33]) * 32, bytes([0x32]) * 32, 5)


def node_key():
    body = b"SCRNKEY1" + bytes([0x77]) * 32
    return body + crc32c(body)


def node_file():
    member = {"id": 1, "incarnation": "8f3a5c0b12d4e677", "http": "http://127.0.0.1:8001", "raft": "127.0.0.1:9001", "region": "eu"}
    fields = {"format": 1, "node_id": 1, "incarnation": member["incarnation"], "cluster_name": "scribe", "cluster_id": "5b0c" * 8,
              "members": [member], "started": True, "pledge": {"cluster_id": "5b0c" * 8, "name": "scribe", "members": [member]},
              "raft": member["raft"], "learner": True, "removed": True}
    fields["crc32c"] = crc32c(json.dumps(fields, indent=2).encode()).hex()
    return json.dumps(fields, indent=2).encode() + b"\n"


def run_info():
    return struct.pack(">QQQQQ", 2, 1000, 1199, 63, 12345) + bytes([0x55]) * 32


def tiles():
    """Block 2 of level 1 with one full tile and one of three hashes."""
    out = b""
    for number, width in [(32, 256), (33, 3)]:
        hashes = b"".join(sha(struct.pack(">I", 256 * (number - 32) + i)) for i in range(width))
        out += hashes + crc32c(struct.pack(">BQ", 1, number) + hashes)
    return out


def packed():
    """A file of 600,000 bytes, each thousand of them the same, in three members."""
    raw = b"".join(bytes([i % 256]) * 1000 for i in range(600))
    parts = []
    for at in range(0, len(raw), 240 << 10):
        pack = zlib.compressobj(6, zlib.DEFLATED, 31)
        parts.append(pack.compress(raw[at:at + (240 << 10)]) + pack.flush())
    field = b"".join(struct.pack(">I", len(p)) + sha(raw[i * (240 << 10):(i + 1) * (240 << 10)]) for i, p in enumerate(parts)) + struct.pack(">QI", len(raw), 240 << 10)
    field += crc32c(field) + b"SGZT"
    table = bytes.fromhex("1f8b080400000000 00ff") + struct.pack("<H2sH", len(field) + 4, b"SL", len(field))
    return b"".join(parts) + table + field + bytes.fromhex("0300") + bytes(8)


def cold_record():
    """Of the segment that packed() would hold: header and footer are made up, the table is that of packed()."""
    table = packed()[-(46 + 36 * 3):]
    fields = table[16:-18]
    name = "%020d-%s.seg.gz" % (7, sha(struct.pack(">QI", 600000, 240 << 10) + b"".join(fields[36 * i + 4:36 * i + 36] for i in range(3))).hex())
    return b"h" * 64 + b"f" * 80 + struct.pack(">H", len(name)) + name.encode() + table


def sign(seed, message):  # RFC 8032; the curve is that of e2e/proof.py
    def encode(point):
        z = pow(point[2], proof.P - 2, proof.P)
        x, y = point[0] * z % proof.P, point[1] * z % proof.P
        return (y | (x & 1) << 255).to_bytes(32, "little")
    h = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(h[:32], "little") & (2**254 - 8) | 2**254
    public = encode(proof._times(scalar, proof.BASE))
    nonce = int.from_bytes(hashlib.sha512(h[32:] + message).digest(), "little") % proof.Q
    point = encode(proof._times(nonce, proof.BASE))
    challenge = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little") % proof.Q
    return public, point + ((nonce + challenge * scalar) % proof.Q).to_bytes(32, "little")


def bucket_manifest():
    def b64(data):
        return base64.b64encode(data).decode()
    origin, seed = "scribe/" + CLUSTER.hex(), bytes([0x22]) * 32
    public = sign(seed, b"")[0]
    key_id = sha(origin.encode() + b"\n\1" + public)[:4]
    text = "".join("former %s\n" % b64(note) for note in (b"first\n", b"second note\n"))
    for i, (first, count, size, time) in enumerate([(0, 1000, 4096, 1700000000000), (1000, 42, 77, 1700000000001)]):
        name = "%020d-%s.seg.gz" % (first, (bytes([0x30 + i]) * 32).hex())
        text += "segment %d %d %d %d %s %s %s\n" % (first, count, size, time, (bytes([0x10 + i]) * 32).hex(), (bytes([0x20 + i]) * 32).hex(), name)
    body = "%s\n1042\n%s\nscribe-ledger bucket manifest v1\ncluster %s test\ntime 1700000000002\nkey %s+%s+%s\nlist %s\n" % (
        origin, b64(bytes([0x40]) * 32), CLUSTER.hex(), origin, key_id.hex(), b64(b"\1" + public), sha(text.encode()).hex())
    line = "\u2014 %s %s\n" % (origin, b64(key_id + sign(seed, body.encode())[1]))
    return (body + "\n" + line + "\n" + text).encode()


if __name__ == "__main__":
    write("segment-1.seg", segment())
    write("pack-1.bin", pack())
    write("results-1.bin", results())
    write("snapshot-1.bin", snapshot())
    write("checkpoint-1.bin", checkpoint())
    write("segment-info-1.bin", segment_info(2**40, 100, 5000, 1700000000005, 0x11, "ab/cd.gz"))
    write("run-info-1.bin", run_info())
    write("tiles-1.bin", tiles())
    write("window-1.bin", window()[1][1])
    write("ledger-keys-1.bin", ledger_keys())
    write("key-command-1.bin", key_command())
    write("archived-command-1.bin", archived_command())
    write("snapshot-2.bin", snapshot_with_keys())
    write("signed-1.bin", signed())
    write("node-key-1.bin", node_key())
    write("packed-1.seg.gz", packed())
    write("cold-record-1.bin", cold_record())
    write("bucket-manifest-1.txt", bucket_manifest())
    write("node-1.json", node_file())
