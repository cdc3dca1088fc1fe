"""The independent verifier: published vectors, what it must refuse, and real nodes' segments, receipts and ledgers."""

import base64
import functools
import hashlib
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import time
import unittest

import helpers
import verify_ledger as verifier
from helpers import LONG, Scenario, raw_path

MUTATIONS = 100_000 if LONG else 10_000
FLIPS = 50_000 if LONG else 1_000
SCRIPT = os.path.join(helpers.ROOT, "e2e", "verify_ledger.py")


def run(*args):
    """Run the script as its user does: exit status and its JSON, or what it said on standard error."""
    done = subprocess.run([sys.executable, SCRIPT, *args, "--json"], capture_output=True, timeout=60)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr.decode()


# A signer and a tree of our own. The tree is the RFC's recursion, which the verifier does not use.

class Signer:
    """An Ed25519 key (RFC 8032 section 5.1.6) with its name as a note's signer."""

    def __init__(self, name, kind, seed):
        self.name, self.kind, digest = name, kind, hashlib.sha512(seed).digest()
        self.scalar = int.from_bytes(digest[:32], "little") & (1 << 254) - 8 | 1 << 254
        self.prefix, self.key = digest[32:], times_base(self.scalar)
        self.id = hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + self.key).digest()[:4]
        self.vkey = f"{name}+{self.id.hex()}+{base64.b64encode(bytes([kind]) + self.key).decode()}"

    def sign(self, message):
        nonce = sha512_number(self.prefix + message)
        point = times_base(nonce)
        s = (nonce + sha512_number(point + self.key + message) * self.scalar) % verifier.ORDER
        return point + s.to_bytes(32, "little")

    def line(self, body, when=0):
        """The signature line under a note with that body."""
        message = body if self.kind == 1 else f"cosignature/v1\ntime {when}\n{body}"
        stamp = b"" if self.kind == 1 else struct.pack(">Q", when)
        return f"— {self.name} {base64.b64encode(self.id + stamp + self.sign(message.encode())).decode()}\n"


def sha512_number(data):
    return int.from_bytes(hashlib.sha512(data).digest(), "little") % verifier.ORDER


def times_base(scalar):
    point, power = verifier.NEUTRAL, verifier.BASE[1]
    while scalar:
        if scalar & 1:
            point = verifier.add(point, power)
        power, scalar = verifier.double(power), scalar >> 1
    return verifier.compress(point)


def root(leaves):
    """MTH of RFC 6962 section 2.1 over leaf hashes."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + root(leaves[:k]) + root(leaves[k:])).digest()


def path(m, leaves):
    """PATH of RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return path(m, leaves[:k]) + [root(leaves[k:])] if m < k else path(m - k, leaves[k:]) + [root(leaves[:k])]


def checkpoint(signer, leaves, cosigners=()):
    body = f"{signer.name}\n{len(leaves)}\n{base64.b64encode(root(leaves)).decode()}\n"
    return body + "\n" + signer.line(body) + "".join(c.line(body, 1700000000 + i) for i, c in enumerate(cosigners))


def entry(seq, key, value, version=1, prev=verifier.NO_SEQ, op=verifier.PUT, when=None):
    """A canonical header."""
    return verifier.HEADER.pack(1, op, seq, version, prev, 1700000000000 + seq if when is None else when, len(value),
                                hashlib.sha256(value).digest(), len(key)) + key + b"\x0atext/plain\x03bob\x02eu"


def receipt(raw, seq, leaves, note):
    proof = "".join(base64.b64encode(h).decode() + "\n" for h in path(seq, leaves))
    return f"c2sp.org/tlog-proof@v1\nextra {base64.b64encode(raw).decode()}\nindex {seq}\n{proof}\n{note}".encode()


LEDGER = Signer("scribe/0123", 1, b"ledger")
NODES = [Signer(f"scribe/0123/node-{i}", 4, b"node %d" % i) for i in (1, 2, 3)]


class Vectors(unittest.TestCase):
    """Published values (reliability.md section 3 names their sources)."""

    LEAVES = [bytes.fromhex(h) for h in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                                         "606162636465666768696a6b6c6d6e6f")]
    ROOTS = """e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
        6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d
        fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125
        aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77
        d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7
        4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4
        76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef
        ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c
        5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328""".split()
    PROOF = ["vBoGQ7EuTS18d5GPROD095qDi2z57FtcKD4fTYhZnms=", "yoVOoSjtBQtBs1/8G4e46yveRh6eO1WW7Oa51ZdaCuA=",
             "037kGJdt2VdTwcc4Yrk5j6Kiz5tP8P3+izDNlSCWFLc="]
    NOTE = ("example.com/scribe-test\n8\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=\n\n"
            "— example.com/scribe-test QGooI2VoyxMd7IjeZsXCXMN3Tk03fe75NxfPDvYmPVpr3ZNeBDZDhxtIm7Pp7gv9UTlvyv4uC76AafL"
            "EGV5RuD4y2gA=\n— witness.example/w1 CtfTXgAAAABlU/EApxaFFg2W0oSIu7iN8JigLtbnL0ajBACBsYRzv67aUQjumGPJanSLW"
            "v/8EOFxR+uVp9m9xo+X2L0xdxRp+wVCAg==\n")
    KEY = "example.com/scribe-test+406a2823+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
    WITNESS = "witness.example/w1+0ad7d35e+BIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"

    def test_tree(self):
        hashes = [verifier.leaf_hash(leaf) for leaf in self.LEAVES]
        for size, want in enumerate(self.ROOTS):
            self.assertEqual(verifier.root_of(hashes[:size]).hex(), want)
        self.assertEqual(verifier.leaf_hash(b"L123456").hex(),
                         "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56")
        self.assertEqual(verifier.node_hash(b"N123", b"N456").hex(),
                         "aa217fe888e47007fa15edab33c2b492a722cb106c64667fc2b044444de66bbb")
        verifier.check_inclusion(hashes[5], 5, 8, [base64.b64decode(h) for h in self.PROOF],
                                 bytes.fromhex(self.ROOTS[8]))

    def test_tree_against_the_recursion(self):
        """Roots of all sizes to 130, every proof of them, and each proof with another index, size or length refused."""
        leaves = [verifier.leaf_hash(b"%d" % i) for i in range(130)]
        for size in range(1, 131):
            want = root(leaves[:size])
            self.assertEqual(verifier.root_of(leaves[:size]), want)
            for i in range(size) if size < 40 else (0, size // 2, size - 1):
                proof = path(i, leaves[:size])
                verifier.check_inclusion(leaves[i], i, size, proof, want)
                for wrong in ((leaves[i], i ^ 1, size, proof), (leaves[i], i, size, proof[:-1]),
                              (leaves[i], i, size, proof + [want]), (leaves[i - 1], i, size, proof[1:] + proof[:1])):
                    if wrong[1] < size > 2:
                        with self.assertRaises(verifier.Difference):
                            verifier.check_inclusion(*wrong, want)

    def test_notes(self):
        for vkey, text in (
                ("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
                 "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7"
                 "Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"),
                ("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
                 "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is."
                 "\n\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE"
                 "6RyyBwJnAM=\n")):
            key = verifier.parse_vkey(vkey)
            self.assertEqual(verifier.signed_by(verifier.parse_note(text), key), 0)
            with self.assertRaisesRegex(verifier.Difference, "signature of .* is wrong"):
                verifier.signed_by(verifier.parse_note("x" + text), key)
            self.assertIsNone(verifier.signed_by(verifier.parse_note(text), verifier.parse_vkey(self.KEY)))

    def test_checkpoint_and_receipt(self):
        point = verifier.parse_checkpoint(self.NOTE)
        self.assertEqual((point.origin, point.size, point.root.hex()), ("example.com/scribe-test", 8, self.ROOTS[8]))
        verifier.check_ledger_signature(point, verifier.parse_vkey(self.KEY))
        self.assertEqual(verifier.check_cosignatures(point, [verifier.parse_vkey(self.WITNESS)], 1),
                         {"witness.example/w1": "2023-11-14T22:13:20.000Z"})
        text = "c2sp.org/tlog-proof@v1\nextra QEFCQw==\nindex 5\n" + "\n".join(self.PROOF) + "\n\n" + self.NOTE
        raw, index, proof, point = verifier.parse_receipt(text.encode())
        verifier.check_inclusion(verifier.leaf_hash(raw), index, point.size, proof, point.root)

    def test_tessera(self):
        """transparency-dev/tessera testdata/log: the signature under each size holds for the root that we derive."""
        key = verifier.parse_vkey("example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx")
        words = "one two three four five six seven eit nain ten ileven twelf threeten fourten fivten".split()
        hashes = [verifier.leaf_hash(word.encode()) for word in words]
        signatures = """hxJACzE1KoUdqKuPa+9p6R7dSW8BlEvrg/noo8FkGg6PbJoRNOcdjqjOq89wVvTA60eubCc4oufo5BvIVEgtQc=
            hr9kuLxGdAtaUrhm84TQffVsLdcy808sN0a3WyniNlfcr9+bywoiIke1YYciCNjJGkCgIlQ8b16jhsmg/SChAM=
            lH4NKmlf0u7C8tkJioQOmi7l5ELqljXgKRg6R3G5JJ7vx7emDWo5fpqKuA/Dk/jRrI6il+7QCVirNhyUAWGoAk=
            vAQRtH832pk2RTbeSeZMkp4FZSdJYFBUjO5SKxuRbywPUF3cx+HUrb50kjd3rUWW/fj53Wj1dwcwh9bGQnqVAg=
            nFuWt0cp60moO4jAkeXvMNLIIOGn4WdyeHQurBt9mBi0tWdfkldiAt9k0FpwuZymvttsVn9uwyouXU3vPpeNAc=
            mn5eDHyHP10zJObZdFAX2y1V8fdDKBi4IiHbDYf1TCUBwxZOhqwv2QZCqrdda2zTRTrmnwjwscN5RBTEmZUYAs=
            n+nHSdGSHEZBcjvqyYDXDbG8WxDwCDjbbGAMv/NTynAtJWhckSXIpuwpN3yJ4PTtzUbD34YGqIZr6RgJRn16gU=
            uA5JhTRUki/BBQD0QNiH6AEJ2pdtsA5CQjqJErViuuKrN6513RCTL2640wXJv0dCed3neRGI6dMzBq9uANf2Qc=
            q1EK37dHtgv9O3UzPxisw5vwIPcJsX9ab0xt4mvVfbdUR1fbMjN6sBFYpBoBEmD4+cWhj/AVgI5MitCO5+mews=
            s3mdnWX0qk4P3uGG0eYiFRWSwPR+RdeD1ARmrHPHjXP0x9UJWASPFTOTqJo0mp7Epck2O9RFB0J9IjDdAewagw=
            rmwaVEOWFZ+HS5ITnRd2YMOSWE5QeoYu+6DHwJLnJ+SVeJ2ZiYeD7lVC5oGJx76gbfLSyCUEq6D8JkarrsuiQQ=
            qbRtWirJwbUy4w3VrK2RyzfW8P+OIkc8t6b6AVG/tQd1Q2SN+uCLYzNNFnf/PhzeCdURSGQe1MRnohCxPu21wg=
            rFzoTgi+ovhrqX0DpsEAp3wLu1coMLIkeCwSkGfS4Ox4pLXo2LHudqm4merh0ZkCNzHr8kQwq5gS5mmimIvdA4=
            iO8x8xfEOGmZVYODUjQajkEpjccPQ9EkG3yEEDet4K3BWE/DFRPH6H+b6gFFFaG5KS1bBmYS/xeZJs8lj+z+wM=
            u8roIpjC+NXEG7JDkajIahoYDYWgxDtxfx/6rzLoztU9t/PvivZ48xt8ygJpjzaboSpkbVv3Jb+D3NdXWQf5wo=
            uh4jTG+UMBqOUo9/q+yAEvx1ilBEniMvjf1zfcBOhg+CKubMt53MvIt/uEWP6zdkdIQzd/fmwlM/dlPWF74ewI=""".split()
        for size, signature in enumerate(signatures):
            body = f"{key.name}\n{size}\n{base64.b64encode(verifier.root_of(hashes[:size])).decode()}\n"
            point = verifier.parse_checkpoint(f"{body}\n— {key.name} M9e0l{signature}\n")
            verifier.check_ledger_signature(point, key)

    def test_tile_paths(self):
        self.assertEqual(verifier.tile_path(0, 1234067, 256), "/ledger/tile/0/x001/x234/067")
        self.assertEqual(verifier.tile_path("entries", 0, 8), "/ledger/tile/entries/000.p/8")
        self.assertEqual(verifier.tile_path(1, 1000, 1), "/ledger/tile/1/x001/000.p/1")
        self.assertEqual([verifier.tiles_of(n)[-1] for n in (70000, 273, 1, 256)],
                         [(273, 112), (1, 17), (0, 1), (0, 256)])

    def test_crc(self):
        """RFC 3720's vectors, and the folding against the table."""
        for data, want in ((bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E),
                           (b"123456789", 0xE3069283), (b"", 0)):
            self.assertEqual(verifier.crc32c(data), want)
        for size in [*range(120, 700), 8191, 65536, 65537, 65700, 200003]:
            data, crc = random.randbytes(size), 0xFFFFFFFF
            for byte in data:
                crc = verifier.CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
            self.assertEqual(verifier.crc32c(memoryview(data)), crc ^ 0xFFFFFFFF, size)

    def test_ed25519(self):
        """RFC 8032 section 7.1, and what a strict verifier refuses."""
        for key, message, signature in (
                ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
                 "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25b"
                 "f5f0595bbe24655141438e7a100b"),
                ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
                 "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b"
                 "2eaeb4302aeeb00d291612bb0c00"),
                ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
                 "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c"
                 "15e9716ed28dc027beceea1ec40a")):
            key, message, signature = (bytes.fromhex(h) for h in (key, message, signature))
            self.assertTrue(verifier.ed25519_verify(key, signature, message))
            more = int.from_bytes(signature[32:], "little") + verifier.ORDER
            for wrong in (signature[:32] + more.to_bytes(32, "little"), signature[:63], signature + b"\0",
                          bytes(32) + signature[32:], signature[:32] + bytes(32)):
                self.assertFalse(verifier.ed25519_verify(key, wrong, message))
            self.assertFalse(verifier.ed25519_verify(key, signature, message + b"x"))
        small = ["01" + "00" * 31, "ec" + "ff" * 30 + "7f", "00" * 32, "00" * 31 + "80",
                 "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"]
        none = ["ee" + "ff" * 30 + "7f", "ed" + "ff" * 30 + "7f", "01" + "00" * 30 + "80", "02" + "00" * 31]
        for key in small + none:
            self.assertIsNone(verifier.ed25519_key(bytes.fromhex(key)), key)


def mutant(rng, data):
    """data with a few bits flipped, bytes deleted, inserted or duplicated, or two lines swapped."""
    data, at, n = bytearray(data), rng.randrange(len(data)), rng.choice((1, 1, 2, 8, 40))
    kind = rng.randrange(5)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:at + n]
    elif kind == 2:
        data[at:at] = rng.choice((rng.randbytes(n), b"\n" * n, b"=" * n, b"A" * n))
    elif kind == 3:
        data[at:at] = data[at:at + n]
    else:
        lines = bytes(data).splitlines(keepends=True)
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
        data = b"".join(lines)
    return bytes(data)


def says_the_same(receipt, changed):
    """changed has the receipt's body and signatures; others, by keys that nobody knows, may be there too."""
    (body, _, signatures), (body2, _, signatures2) = receipt.rpartition(b"\n\n"), changed.rpartition(b"\n\n")
    return body == body2 and set(signatures.split(b"\n")) <= set(signatures2.split(b"\n"))


class Receipts(unittest.TestCase):
    VALUE = b"the value, \x00 and all"

    def setUp(self):
        self.entries = [entry(i, b"key%d" % i, self.VALUE + b"%d" % i) for i in range(300)]
        self.leaves = [verifier.leaf_hash(raw) for raw in self.entries]
        self.receipt = receipt(self.entries[200], 200, self.leaves, checkpoint(LEDGER, self.leaves, NODES))
        self.value = self.VALUE + b"200"
        self.key = verifier.parse_vkey(LEDGER.vkey)
        self.nodes = [verifier.parse_vkey(node.vkey) for node in NODES]

    def check(self, data=None, key=None, value=None, nodes=(), quorum=0):
        return verifier.check_receipt(data or self.receipt, key or self.key, value, nodes, quorum)

    def refused(self, words, **kw):
        with self.assertRaisesRegex(verifier.Difference, words):
            self.check(**kw)

    def test_accepts(self):
        found = self.check(value=self.value, nodes=self.nodes, quorum=3)
        self.assertEqual((found["entry"]["seq"], found["entry"]["key"], found["value_checked"]), (200, "key200", True))
        self.assertEqual(len(found["cosigned"]), 3)

    def test_refuses(self):
        other = Signer("scribe/4567", 1, b"ledger")
        renamed = Signer(LEDGER.name, 1, b"another")
        unsigned = self.receipt[:self.receipt.index("— scribe/0123/".encode())]
        self.refused("value has", value=self.value + b"x")
        self.refused("checkpoint is of scribe/0123", key=verifier.parse_vkey(other.vkey))
        self.refused("not signed by", key=verifier.parse_vkey(renamed.vkey))
        self.refused("not a ledger's", key=self.nodes[0])
        self.refused("0 of the given nodes cosigned", data=unsigned, nodes=self.nodes, quorum=1)
        self.refused("not a cosigning key", nodes=[self.key], quorum=1)
        twice = self.receipt + self.receipt.splitlines(keepends=True)[-1]
        self.assertEqual(len(self.check(data=twice, nodes=self.nodes, quorum=3)["cosigned"]), 3)
        aliases = [verifier.parse_vkey(Signer(f"alias{i}", 4, b"node 1").vkey) for i in range(3)]
        point = checkpoint(LEDGER, self.leaves, [Signer(a.name, 4, b"node 1") for a in aliases])
        data = receipt(self.entries[200], 200, self.leaves, point)
        self.refused("1 of the given nodes", data=data, nodes=aliases, quorum=2)  # one key under three names
        for i in range(len(self.receipt)):
            if i >= len(unsigned) and self.receipt[:i].endswith(b"\n"):
                continue  # whole, with fewer cosignatures
            with self.assertRaises(verifier.Difference):
                self.check(data=self.receipt[:i] or b"\n")

    def test_tombstone(self):
        entries = [entry(0, b"k", b"v"), entry(1, b"k", b"", 2, 0, verifier.DELETE)]
        leaves = [verifier.leaf_hash(raw) for raw in entries]
        data = receipt(entries[1], 1, leaves, checkpoint(LEDGER, leaves))
        self.assertEqual(self.check(data=data)["entry"]["op"], "delete")
        self.refused("tombstone", data=data, value=b"")

    def test_random_mutations(self):
        """No changed receipt, key or value is accepted."""
        rng, began = random.Random(1), time.monotonic()
        alone = receipt(self.entries[200], 200, self.leaves, checkpoint(LEDGER, self.leaves))
        for i in range(MUTATIONS):
            data, nodes = (self.receipt, self.nodes) if i % 5 == 0 else (alone, [])
            original = (data, LEDGER.vkey.encode(), self.value)
            changed, which = list(original), rng.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 2))
            while changed[which] == original[which]:
                changed[which] = mutant(rng, original[which])
            try:
                key = verifier.parse_vkey(changed[1].decode(errors="surrogateescape"))
                self.check(data=changed[0] or b"\n", key=key, value=changed[2], nodes=nodes, quorum=len(nodes))
            except verifier.Difference:
                continue
            self.assertTrue(which == 0 and says_the_same(data, changed[0]), changed)
        print(f"{MUTATIONS} mutations: {time.monotonic() - began:.1f} s", end=" ", flush=True)

    def test_command_line(self):
        folder = self.enterContext(helpers.tempfile.TemporaryDirectory())
        for name, data in (("r", self.receipt), ("k", LEDGER.vkey.encode() + b"\n"), ("v", self.value), ("w", b"")):
            pathlib.Path(folder, name).write_bytes(data)
        at = functools.partial(os.path.join, folder)
        node_keys = [arg for node in NODES for arg in ("--node-key", node.vkey)]
        for status, *args in (
                (0, at("r"), "--key", LEDGER.vkey), (0, at("r"), "--key", at("k"), "--value", at("v"), *node_keys),
                (0, at("r"), "--key", at("k"), "--quorum", "2", *node_keys), (1, at("r"), "--key", NODES[0].vkey),
                (1, at("r"), "--key", at("k"), "--value", at("w")), (1, at("v"), "--key", at("k")),
                (2, at("r"), "--key", "nonsense"), (2, at("r"), "--key", LEDGER.vkey[:-4]), (2, at("r")),
                (2, at("absent"), "--key", at("k")), (2, at("r"), "--key", at("k"), "--quorum", "4", *node_keys)):
            self.assertEqual(run("receipt", *args)[0], status, args)
        self.assertEqual(run("segment", at("absent"))[0], 2)
        self.assertEqual(run("ledger", "nowhere")[0], 2)
        self.assertEqual(run("ledger", f"http://127.0.0.1:{helpers.free_port()}")[0], 1)


class Recorded(verifier.Server):
    """Answers by path, as a server that lies would give them."""

    def __init__(self, answers):
        self.answers = answers

    def get(self, path, most):
        return self.answers.get(path)


def ledger_answers(entries, leaves=None, segments=(100, 150)):
    """What a node serves of a ledger with these canonical headers; leaves: those of the tree, if it lies."""
    leaves = leaves or [verifier.leaf_hash(raw) for raw in entries]
    manifest, first = [], 0
    for count in segments:
        top = verifier.root_of(leaves[first:first + count]).hex()
        manifest.append({"id": f"{first:020}-{top}", "first_seq": first, "count": count, "merkle_root": top})
        first += count
    answers = {"/ledger/manifest": json.dumps({"segments": manifest}).encode(),
               "/ledger/key": LEDGER.vkey.encode() + b"\n", "/ledger/checkpoint": checkpoint(LEDGER, leaves).encode()}
    for index, width in verifier.tiles_of(len(entries)):
        part = (struct.pack(">H", len(raw)) + raw for raw in entries[256 * index:256 * index + width])
        answers[verifier.tile_path("entries", index, width)] = b"".join(part)
    level, hashes = 0, leaves
    while hashes:
        for index, width in verifier.tiles_of(len(hashes)):
            answers[verifier.tile_path(level, index, width)] = b"".join(hashes[256 * index:256 * index + width])
        hashes = [root(hashes[i:i + 256]) for i in range(0, len(hashes) - 255, 256)]
        level += 1
    return answers


class Ledgers(unittest.TestCase):
    """Ledgers over HTTP: a right one, and every kind of lie told from where it is."""

    def setUp(self):
        self.entries = [entry(i, b"key%d" % i, b"v") for i in range(600)]
        self.entries[400] = entry(400, b"key7", b"w", 2, 7)
        self.entries[500] = entry(500, b"key7", b"", 3, 400, verifier.DELETE)

    def refused(self, words, answers, key=None):
        with self.assertRaisesRegex(verifier.Difference, words):
            verifier.check_ledger(Recorded(answers), key)

    def test_accepts(self):
        found = verifier.check_ledger(Recorded(ledger_answers(self.entries)))
        self.assertEqual((found["tree_size"], found["tiles"], found["segments"]), (600, 4, 2))
        self.assertEqual(verifier.check_ledger(Recorded(ledger_answers([], segments=())))["tree_size"], 0)
        answers = ledger_answers(self.entries)
        for kind in ("0", "entries"):  # partial tiles gone, full ones there
            part = answers.pop(f"/ledger/tile/{kind}/002.p/88")
            answers[f"/ledger/tile/{kind}/002"] = part + bytes(168 * 32)
        self.assertEqual(verifier.check_ledger(Recorded(answers))["tree_size"], 600)

    def test_large(self):
        """Three levels of tiles; the whole check takes seconds for 100,000 entries."""
        entries = [entry(i, b"key%d" % i, b"v") for i in range(66_000)]
        answers, began = ledger_answers(entries), time.monotonic()
        self.assertEqual(verifier.check_ledger(Recorded(answers))["tiles"], 258 + 2 + 1)
        print(f"{66_000 / (time.monotonic() - began):.0f} entries/s", end=" ", flush=True)

    def test_damage(self):
        """A flipped bit, a cut or a longer answer is refused, and its path told."""
        rng, answers = random.Random(2), ledger_answers(self.entries)
        manifest = answers.pop("/ledger/manifest")
        for where, body in answers.items():
            for i in range(21):
                at = rng.randrange(len(body) - 1)
                flipped = body[:at] + bytes([body[at] ^ 1 << rng.randrange(8)]) + body[at + 1:]
                wrong = (flipped, body[:at], body + body[:at + 1])[i % 3]
                words = re.escape(where) if re.search(r"tile/\d", where) else "."
                self.refused(words, {**answers, "/ledger/manifest": manifest, where: wrong})
            self.refused(where, {"/ledger/manifest": manifest, **answers, where: None})

    def test_lies(self):
        """Trees that are right and signed, over entries that can not be."""
        for words, seq, raw in (
                ("seq 300, its place is 301", 301, entry(300, b"a", b"v")),
                ("version 2 .*version 2", 450, entry(450, b"key7", b"v", 2, 400)),
                ("version 3 .*entry 400", 450, entry(450, b"key7", b"v", 3, 7)),
                ("another key", 450, entry(450, b"new", b"v", 2, 7)),
                ("version 1 .*follows", 450, entry(450, b"key7", b"v")),
                ("time is 5", 3, entry(3, b"a", b"v", when=5)), ("operation is 3", 9, entry(9, b"a", b"v", op=3)),
                ("tombstone has a value", 9, entry(9, b"key7", b"v", 2, 7, 2)),
                ("key has 0", 9, entry(9, b"", b"v")), ("key has 1025", 9, entry(9, b"k" * 1025, b"v")),
                ("not before", 9, entry(9, b"a", b"v", 2, 9)), ("format 2", 9, b"\x02" + self.entries[9][1:]),
                ("no previous", 9, entry(9, b"a", b"v", 2)), ("follow the entry header", 9, self.entries[9] + b"\0")):
            entries = self.entries.copy()
            entries[seq] = raw
            self.refused(f"entry {seq}: .*{words}", ledger_answers(entries))
        answers = ledger_answers(self.entries, segments=(100, 500, 600))
        self.assertEqual(verifier.check_ledger(Recorded(answers))["segments"], 2)  # the third is newer

    def test_another_history(self):
        """A tree that is not the entries', a manifest that is not the tree's, another key than the one at hand."""
        answers = ledger_answers(self.entries)
        leaves = [verifier.leaf_hash(raw) for raw in self.entries]
        leaves[258] = bytes(32)
        self.refused(r"/ledger/tile/0/001: hash 2 is 0000", ledger_answers(self.entries, leaves))
        signed = checkpoint(LEDGER, leaves).encode()
        self.refused("the entries give root", {**answers, "/ledger/checkpoint": signed})
        lie = ledger_answers(self.entries, leaves, (259, 3))["/ledger/manifest"]
        self.refused("manifest: segment .* its entries give", {**answers, "/ledger/manifest": lie})
        for old, new in (('"count": 100', '"count": 99'), ('"first_seq": 100', '"first_seq": 101'),
                         ('"count"', '"cnt"'), ('"segments": [', '"segments": [7, '),
                         ('"merkle_root": "', '"merkle_root": "0')):
            text = answers["/ledger/manifest"].decode()
            self.refused("manifest", {**answers, "/ledger/manifest": text.replace(old, new, 1).encode()})
        self.refused("not signed by", answers, verifier.parse_vkey(Signer(LEDGER.name, 1, b"other").vkey))


class RealNodes(Scenario):
    """Files and answers of real nodes."""

    def fill(self, node, rng):
        """Entries of all kinds: empty and large values, versions, tombstones, keys that are not text."""
        for i in range(60):
            key = rng.choice((f"k{i % 7}", f"deep//path/../{i}", bytes([0, 255, i]), "ключ" + "x" * i))
            value = rng.randbytes(rng.choice((0, 1, 30, 127, 128, 129, 1500)))
            kind = {"Content-Type": "text/plain"[:rng.randrange(11)]}
            self.expect(self.done(node, "PUT", raw_path(key), value, kind), (200, 201))
            if i % 9 == 8:
                self.expect(self.done(node, "DELETE", raw_path(key)), 200)

    def segments(self, node):
        files = sorted(pathlib.Path(node.data, "segments").glob("*.seg"))
        self.assertTrue(files)
        return files

    def test_segments(self):
        node, rng = self.node(), random.Random(3)
        for _ in range(3):
            self.fill(node, rng)
            self.expect(node.post("/cluster/seal"), 200)
        files, entries = self.segments(node), 0
        for file, said in zip(files, node.get("/ledger/manifest").json()["segments"], strict=True):
            status, found = run("segment", str(file))
            self.assertEqual(status, 0, found)
            self.assertEqual([found[k] for k in ("merkle_root", "first_seq", "count", "size", "sha256")],
                             [said[k] for k in ("merkle_root", "first_seq", "count", "size", "sha256")])
            entries += found["count"]
        self.assertEqual(entries, node.size())
        self.damage(files[1].name, files[1].read_bytes(), rng)

    def damage(self, name, data, rng):
        """Single flipped bits, cuts and longer files are refused; so is another name."""
        began = time.monotonic()
        for _ in range(FLIPS):
            wrong, bit = bytearray(data), rng.randrange(8 * len(data))
            wrong[bit // 8] ^= 1 << bit % 8
            with self.assertRaises(verifier.Difference, msg=f"bit {bit} of {len(data)} bytes"):
                verifier.check_segment(name, wrong)
        for wrong in (data + b"\0", b"", *(data[:rng.randrange(len(data))] for _ in range(200))):
            with self.assertRaises(verifier.Difference):
                verifier.check_segment(name, wrong)
        with self.assertRaisesRegex(verifier.Difference, "named"):
            verifier.check_segment(name[:-1], data)
        print(f"{FLIPS} flips: {time.monotonic() - began:.1f} s", end=" ", flush=True)

    def test_large_segment(self):
        node = self.node()
        value = os.urandom(8 * helpers.MIB)
        for i in range(5):
            self.expect(node.put(f"/big{i}", value[i:]), 201)
        self.expect(node.post("/cluster/seal"), 200)
        status, found = run("segment", str(self.segments(node)[-1]))
        self.assertEqual(status, 0, found)
        print(f"{found['mb_per_s']} MB/s", end=" ", flush=True)


    def test_receipts(self):
        """Receipts of writes on each of three nodes, and of any version later; with cosignatures of a quorum."""
        c, rng = self.cluster(3), random.Random(4)
        folder = pathlib.Path(c.folder)
        for i in range(6):
            value, node = rng.randbytes(rng.choice((0, 5, 70_000))), c.nodes[i % 3]
            written = self.expect(self.done(node, "PUT", raw_path(f"r{i % 3}") + "?receipt=true", value), (200, 201)).json()
            later = self.expect(c.nodes[i % 2].get(f"/verify/r{i % 3}"), 200).json()
            (folder / "value").write_bytes(value)
            (folder / "key").write_bytes(c.nodes[(i + 1) % 3].get("/ledger/key").body)
            for answer in (written, later):
                (folder / "receipt").write_text(answer["receipt"])
                status, found = run("receipt", str(folder / "receipt"), "--key", str(folder / "key"),
                                    "--value", str(folder / "value"))
                self.assertEqual(status, 0, found)
                self.assertLessEqual(found["entry"].items(), answer.items())
                self.assertEqual([found[k] for k in ("leaf_hash", "tree_size", "root")],
                                 [answer[k] for k in ("leaf_hash", "tree_size", "root")])
        gone = self.expect(self.done(c.nodes[0], "DELETE", "/r0?receipt=true"), 200).json()
        self.cosigned(c, gone["seq"], folder)

    def cosigned(self, c, seq, folder):
        """A receipt whose checkpoint is the cosigned one of /ledger/checkpoint shows the quorum of nodes."""
        keys = self.expect(c.nodes[1].get("/ledger/keys"), 200).json()
        note = self.signed_by_all(c.nodes[1])
        size = note.split("\n")[1]
        proof = self.expect(c.nodes[2].get(f"/ledger/proof?seq={seq}&size={size}"), 200).json()
        leaf = self.expect(c.nodes[2].get(f"/verify/r0?seq={seq}"), 200).json()["leaf"]
        lines = "".join(base64.b64encode(bytes.fromhex(h)).decode() + "\n" for h in proof["inclusion"])
        (folder / "receipt").write_text(f"c2sp.org/tlog-proof@v1\nextra {leaf}\nindex {seq}\n{lines}\n{note}")
        node_keys = [arg for vkey in keys["nodes"].values() for arg in ("--node-key", vkey)]
        self.assertEqual(len(node_keys), 6)
        args = ("receipt", str(folder / "receipt"), "--key", keys["current"], *node_keys)
        status, found = run(*args, "--quorum", "2")
        self.assertEqual(status, 0, found)
        self.assertEqual(found["entry"]["op"], "delete")
        self.assertGreaterEqual(len(found["cosigned"]), 2)

    def test_ledgers(self):
        """A ledger over several levels of tiles, sealed and pending, from each node; its answers damaged in between."""
        c, rng = self.cluster(3), random.Random(5)
        self.fill(c.nodes[0], rng)
        for turn in range(2):
            for i in range(2):
                self.batch(c.nodes[i], [{"op": "put", "key": f"b{rng.randrange(900)}", "value": "x" * rng.randrange(40)} for _ in range(1500)])
            if turn == 0:
                self.expect(self.done(c.nodes[1], "POST", "/cluster/seal"), 200)
        size = c.leader().size()
        for node in c.nodes:
            status, found = run("ledger", node.url, "--key", node.get("/ledger/key").body.decode().strip())
            self.assertEqual(status, 0, found)
            self.assertEqual((found["tree_size"], found["segments"] > 0), (size, True))
        self.assertEqual(run("ledger", node.url)[0], 0)
        self.assertEqual(run("ledger", node.url, "--key", LEDGER.vkey)[0], 1)
        self.damage_answers(node, rng)

    def damage_answers(self, node, rng):
        """Any bit of the tiles, bundles, checkpoint and roots that a node serves, flipped on the way, is told."""
        answers = {}

        class Recording(verifier.Server):
            def get(self, path, most):
                answers[path] = super().get(path, most)
                return answers[path]

        server = Recording(node.url)
        verifier.check_ledger(server)
        server.connection.close()
        for path in [path for path in answers if "/tile/" in path] + ["/ledger/checkpoint", "/ledger/key"]:
            body = answers[path]
            covered = body.partition(b"/node-")[0].rpartition(b"\n")[0] if path.endswith("checkpoint") else body
            at = rng.randrange(len(covered))  # nobody asks for the cosignatures here
            wrong = body[:at] + bytes([body[at] ^ 1 << rng.randrange(8)]) + body[at + 1:]
            with self.assertRaises(verifier.Difference, msg=f"{path} at {at}"):
                verifier.check_ledger(Recorded({**answers, path: wrong}))


if __name__ == "__main__":
    helpers.main()
