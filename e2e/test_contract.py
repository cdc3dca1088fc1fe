"""The contract of API.md, Verification, as a stranger checks it: every number and byte against proof.py, which shares
nothing with the server, on every node; damage, refusals, streams, kills and restarts."""

import base64
import contextlib
import glob
import hashlib
import http.client
import json
import os
import pathlib
import random
import threading
import time
import urllib.parse

import helpers
import proof
from helpers import JSON, MIB, NDJSON, Scenario, raw_path, sha256, wait_for

ENTRY = set("seq op version prev time size sha256 content_type author region leaf_hash".split())
PROOF = set("leaf tree_size root inclusion checkpoint receipt segment verified".split())
ODD_KEYS = [b"\0", b"\xff\xfe", b"health", b"verify/x", b"a//b", b"a/../b", b"a/", b"/", b"..", b"%41", b"?a=b",
            "ключ".encode(), b"x" * 1024, b"\n", bytes(range(256))]
VALUES = [b"", b"hello", b"\0", os.urandom(70_000)]


def tile_number(n):
    """A tile's number as C2SP writes it: 1234067 is x001/x234/067."""
    text = f"{n % 1000:03d}"
    while n >= 1000:
        n //= 1000
        text = f"x{n % 1000:03d}/{text}"
    return text


def bundle_leaves(data):
    """Leaf hashes of the entries in a bundle."""
    leaves = []
    while data:
        size = int.from_bytes(data[:2], "big")
        leaves.append(proof.leaf_hash(data[2:2 + size]))
        data = data[2 + size:]
    return leaves


def hashes(texts):
    return [bytes.fromhex(text) for text in texts]


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 1 << offset % 8]))


class Listener(threading.Thread):
    """Reads /ledger/entries?follow=true in the background; got holds the entries."""

    def __init__(self, node, query="", headers=None):
        super().__init__(daemon=True)
        self.node, self.path, self.headers, self.got, self.ids = node, "/ledger/entries?follow=true" + query, headers or {}, [], []
        self.start()

    def run(self):
        try:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=60)) as conn:
                conn.request("GET", self.path, headers=self.headers)
                for line in conn.getresponse():
                    if line.startswith(b"id: "):
                        self.ids.append(int(line[4:]))
                    if (line := line.removeprefix(b"data: ")).startswith(b"{"):
                        self.got.append(json.loads(line))
        except (OSError, http.client.HTTPException):
            pass  # its node was killed

    def seqs(self):
        return [entry["seq"] for entry in self.got]


class Contract(Scenario):
    def proven(self, e, key, value, op="put", vkey=None):
        """All that the fields of /verify promise for this key and value."""
        self.assertNotIn("receipt_error", e)
        self.assertLessEqual(ENTRY | PROOF, set(e))
        named = e["key"].encode() if "key" in e else base64.b64decode(e["key_base64"])
        self.assertEqual((named, e["op"], e["size"], e["sha256"], e["verified"]), (key, op, len(value), sha256(value), True))
        leaf, index, size, root = proof.check_receipt(e["receipt"], vkey or self.vkey)
        self.assertEqual((base64.b64encode(leaf).decode(), index, size, root.hex()), (e["leaf"], e["seq"], e["tree_size"], e["root"]))
        self.assertEqual(proof.leaf_hash(leaf).hex(), e["leaf_hash"])
        self.assertIn(hashlib.sha256(value).digest(), leaf)
        self.assertIn(key, leaf)
        proof.check_inclusion(proof.leaf_hash(leaf), index, size, hashes(e["inclusion"]), root)
        self.assertEqual(e["receipt"].partition("\n\n")[2], e["checkpoint"])
        return e

    def vkey_of(self, node):
        self.vkey = self.expect(node.get("/ledger/key"), 200).body.decode().strip()
        return self.vkey

    def entries(self, node, query=""):
        return self.expect(node.get("/ledger/entries?limit=1000000" + query), 200).lines()

    def leaves(self, node):
        return hashes(e["leaf_hash"] for e in self.entries(node))

    def verify(self, node, key, e):
        return self.expect(node.get(f"/verify/{urllib.parse.quote(key, safe='')}?seq={e['seq']}"), 200).json()

    def test_receipts(self):
        """PUT, DELETE, both batches, repeats and 10 MB values, on all nodes, pending, sealed and after restarts."""
        c = self.cluster()
        self.vkey_of(c.nodes[0])
        written = {}

        def keep(e, key, value, op="put"):
            written[e["seq"]] = key, value, op
            self.proven(e, key, value, op)
        for i, key in enumerate(ODD_KEYS):
            node, value = c.nodes[i % 3], VALUES[i % len(VALUES)]
            reply = self.expect(self.done(node, "PUT", raw_path(key) + "?receipt=true", value), 201)
            keep(reply.json(), key, value)
            for other in c.nodes:
                e = self.proven(self.verify(other, key, reply.json()), key, value)
                self.assertIsNone(e["segment"])
                self.assertEqual({f: e[f] for f in ENTRY}, {f: reply.json()[f] for f in ENTRY})
        node = c.nodes[1]
        for method, value in (("PUT", b"once"), ("DELETE", b"")):
            replies = [self.expect(self.done(node, method, "/again?receipt=true", value, {"Idempotency-Key": method}), (200, 201)) for _ in range(2)]
            self.assertEqual(len({(reply.status, reply.json()["seq"]) for reply in replies}), 1)
            for reply in replies:
                keep(reply.json(), b"again", value, method.lower())
        self.assertIs(self.proven(node.get("/verify/again").json(), b"again", b"", "delete")["verified"], True)
        self.expect(self.done(node, "DELETE", "/again?receipt=true"), 404)
        ops = [{"op": "put", "key": "b", "value": "1", "if_absent": True}, {"op": "delete", "key": "b"},
               {"op": "put", "key_base64": "/wA=", "value_base64": "/g=="}, {"op": "put", "key": "health", "value": ""}]
        done = [(b"b", b"1", "put"), (b"b", b"", "delete"), (b"\xff\0", b"\xfe", "put"), (b"health", b"", "put")]
        results = self.expect(self.done(node, "POST", "/batch?receipt=true", json.dumps({"ops": ops}).encode(), JSON), 200).json()["results"]
        for e, what in zip(results, done, strict=True):
            keep(e, *what)
        refused = self.expect(self.done(node, "POST", "/batch?receipt=true", json.dumps({"ops": [ops[3], ops[0], ops[0]]}).encode(), JSON), 412)
        self.assertEqual(refused.json()["failed_op"], 2)
        lines = [json.dumps(op).encode() for op in ops] + [b"malformed", b'{"op":"delete","key":"absent"}']
        replies = self.expect(node.post("/batch?receipt=true", b"\n".join(lines), NDJSON), 200).lines()
        for e, what in zip(replies[:4], done, strict=True):
            keep(e, *what)
        self.assertEqual([e["error"]["code"] for e in replies[4:]], ["malformed", "not_found"])
        large = os.urandom(10 * MIB)
        keep(self.expect(self.done(node, "PUT", "/large?receipt=true", large), 201).json(), b"large", large)
        self.assertEqual(sorted(written), list(range(len(written))))
        self.assertEqual(self.expect(self.done(node, "POST", "/cluster/seal"), 200).json()["ledger_size"], len(written))
        for again in (False, True):
            if again:
                c.stop()
                c.start()
            for node in c.nodes:
                wait_for("the segment", lambda: node.get("/verify/large").json()["segment"])
                covered = sum(s["count"] for s in self.expect(node.get("/ledger/manifest"), 200).json()["segments"])
                self.assertEqual(covered, len(written))
                for seq, (key, value, op) in written.items():
                    e = self.verify(node, key, {"seq": seq})
                    self.assertEqual(set(e["segment"]), {"id", "merkle_root"})
                    self.proven(e, key, value, op)

    def test_proofs_between_all_sizes(self):
        """Consistency from every size to every size, inclusion of every entry in every tree, partial bundles and tiles of every width."""
        node = self.node()
        size = 33
        for i in range(size):
            self.expect(node.put(raw_path(f"k{i % 7}"), b"%d" % i), (200, 201))
            if i == 20:
                self.expect(node.post("/cluster/seal"), 200)
        leaves = self.leaves(node)
        roots = [proof.root_of(leaves[:n]) for n in range(size + 1)]
        for to in range(size + 1):
            for start in range(to + 1):
                p = self.expect(node.get(f"/ledger/consistency?from={start}&to={to}"), 200).json()
                self.assertEqual((p["from"], p["to"], p["from_root"], p["to_root"]), (start, to, roots[start].hex(), roots[to].hex()))
                proof.check_consistency(start, to, hashes(p["proof"]), roots[start], roots[to])
            for seq in range(to):
                p = self.expect(node.get(f"/ledger/proof?seq={seq}&size={to}"), 200).json()
                self.assertEqual((p["seq"], p["tree_size"], p["leaf_hash"], p["root"]), (seq, to, leaves[seq].hex(), roots[to].hex()))
                proof.check_inclusion(leaves[seq], seq, to, hashes(p["inclusion"]), roots[to])
        for node_vkey, when in proof.open_note(node.get("/ledger/checkpoint").body.decode(), self.vkey_of(node), node.get("/ledger/keys").json()["nodes"]["1"])[1].items():
            self.assertTrue(node_vkey == self.vkey or abs(when - time.time()) < 60)
        body = b"".join(b'{"op":"put","key":"t%d","value":"%d"}\n' % (i % 90, i) for i in range(567))
        self.expect(node.post("/batch", body, NDJSON), 200)
        leaves = self.leaves(node)
        for tile, count in ((0, 256), (1, 256), (2, len(leaves) - 512)):
            for width in range(1, count + 1) if count < 256 else (1, 2, 127, 128, 255, 256):
                path, want = tile_number(tile) + (f".p/{width}" if width < 256 else ""), leaves[tile * 256:tile * 256 + width]
                got = self.expect(node.get("/ledger/tile/0/" + path), 200)
                self.assertEqual(got.body, b"".join(want), path)
                self.assertIn("immutable", got.headers["Cache-Control"])
                self.assertEqual(bundle_leaves(self.expect(node.get("/ledger/tile/entries/" + path), 200).body), want)
        self.assertEqual(node.get("/ledger/tile/1/000.p/2").body, b"".join(proof.root_of(leaves[i:i + 256]) for i in (0, 256)))
        for path in ("0/002", "0/003.p/1", "0/002.p/89", "1/000", "1/000.p/3", "2/000.p/1", "63/000", "entries/002.p/89"):
            self.expect(node.get("/ledger/tile/" + path), 404, "not_found")

    def test_refusals(self):
        node = self.node()
        for i in range(70):
            node.put("/k", b"%d" % i)
        for path in ("proof?seq=70", "proof?seq=0&size=71", "proof?seq=100&size=50", "consistency?from=0&to=71", "consistency?from=71&to=71", "consistency?from=72&to=71", "segments/none", "nothing"):
            self.expect(node.get("/ledger/" + path), 404, "not_found")
        huge = str(1 << 64)
        for path in ("proof", "proof?size=3", "proof?seq=x", "proof?seq=-1", "proof?seq=01", "proof?seq=1&size=" + huge, "proof?seq=1&size=5&size=6", "proof?seq=%zz", "consistency", "consistency?to=3",
                     "consistency?from=5&to=3", "consistency?from=0x1&to=3", "consistency?from=&to=", "entries?from=x", "entries?from=" + huge, "entries?limit=0", "entries?limit=x", "entries?values=x",
                     "entries?follow=x", "tile/0/0", "tile/0/0000", "tile/0/x000/001", "tile/0/x01/000", "tile/0/000/001", "tile/0/X001/000", "tile/00/000", "tile/-1/000", "tile/64/000", "tile/a/000", "tile/0/000/",
                     "tile/0//000", "tile/0/000.p/", "tile/0/000.p/0", "tile/0/000.p/01", "tile/0/000.p/256", "tile/0/000.p/-1", "tile/0/000.p", "tile/0/000.p/3.p/3", "tile/", "tile/entries", "tile/entries/000.p/0",
                     "tile/entries/000.p/256", "tile/0/x018/x446/x744/x073/x709/x551/616", "tile/0/" + "x999/" * 300 + "999"):
            self.expect(node.get("/ledger/" + path), 400, "malformed")
        for query in ("version=0", "version=x", "seq=-1", "seq=", "seq=" + huge, "seq=1&version=1", "receipt"):
            self.expect(node.get("/verify/k?" + query), 200 if query == "receipt" else 400)
        for query in ("version=71", "seq=70"):
            self.expect(node.get("/verify/k?" + query), 404, "not_found")
        self.expect(node.get("/verify/none"), 404, "not_found")
        self.expect(node.put("/k?receipt=maybe", b"x"), 400, "malformed")
        for path in ("/verify/k", "/ledger/checkpoint", "/ledger/key", "/ledger/proof?seq=0", "/ledger/consistency?from=0&to=1", "/ledger/tile/0/000.p/1", "/ledger/entries?follow=true", "/ledger/manifest"):
            self.expect(node.post(path, b""), 405, "method_not_allowed")
            self.expect(node.put(path, b""), 400, "reserved_key")
            self.expect(node.delete(path), 400, "reserved_key")
            head = self.expect(node.request("HEAD", path), 200)
            self.assertEqual(head.body, b"")
            self.assertTrue(head.headers["X-Request-Id"])
        self.assertEqual(node.size(), 70)

    def test_entries_and_followers(self):
        """Ranges, prefixes and values; streams on every node, several at once, resumed, and over the death of the leader."""
        c = self.cluster()
        node = c.followers()[0]
        self.vkey_of(node)
        self.batch(node, [{"op": "put", "key": f"{'tu'[i % 2]}{i % 97}", "value": f"v{i}"} for i in range(1000)])
        self.expect(self.done(node, "PUT", raw_path(b"\xff\0"), b"\xfe"), 201)
        self.expect(self.done(node, "DELETE", "/t0"), 200)
        self.expect(self.done(node, "POST", "/cluster/seal"), 200)
        whole = self.entries(node, "&values=true")
        self.assertEqual([e["seq"] for e in whole], list(range(1002)))
        self.assertEqual((whole[1000]["value_base64"], whole[1000]["key_base64"], whole[1001]["op"]), ("/g==", "/wA=", "delete"))
        for other in c.nodes:
            self.assertEqual(self.entries(other, "&values=true"), whole)
            self.assertEqual(self.entries(other), [{k: v for k, v in e.items() if not k.startswith("value")} for e in whole])
            self.assertEqual(other.get("/ledger/entries?from=990&limit=3&values=true").lines(), whole[990:993])
            self.assertEqual(other.get("/ledger/entries?from=1002").lines(), [])
            self.assertEqual(other.get("/ledger/entries?prefix=u&limit=9&values=true").lines(), [e for e in whole if e.get("key", "").startswith("u")][:9])
            self.assertEqual(len(other.get("/ledger/entries?prefix=%ff").lines()), 1)
        sse = {"Accept": "text/event-stream"}
        leader = c.leader()
        streams = [(Listener(n, f"&from={start}", h), start) for n in c.nodes for start in (0, 1002) for h in ({}, sse)]
        streams += [(Listener(n, "", {**sse, "Last-Event-ID": "700"}), 701) for n in c.nodes]
        acked, alive = [], [n for n in c.nodes if n is not leader]

        def write(count):
            for i in range(count):
                reply = self.expect(self.done(alive[i % 2], "PUT", f"/w{i % 5}?receipt=true", b"%d" % i), (200, 201))
                acked.append((reply.json(), b"w%d" % (i % 5), b"%d" % i))
        write(100)
        for stream, start in streams:
            wait_for("all entries", lambda: len(stream.got) == 1102 - start)
        leader.kill()
        write(101)
        for stream, start in streams:
            if stream.node is leader:
                stream.join(10)
                self.assertEqual(stream.seqs(), list(range(start, 1102)))
                continue
            wait_for("all entries", lambda: len(stream.got) >= 1203 - start)
            self.assertEqual(stream.seqs(), list(range(start, 1203)))
            if stream.headers:
                self.assertEqual(stream.ids, stream.seqs())
        resumed = Listener(alive[0], "", {**sse, "Last-Event-ID": "1101"})
        wait_for("the rest", lambda: len(resumed.got) >= 101)
        self.assertEqual(resumed.seqs(), list(range(1102, 1203)))
        leader.start().wait_ready()
        self.assertEqual(self.entries(leader), self.entries(alive[1]))
        for e, key, value in random.Random(1).sample(acked, 20):
            self.proven(e, key, value)

    def test_checkpoints_only_grow(self):
        """On all nodes, while the leader is killed twice, after a restart of all, and after a rotation: each extends the ones before."""
        c = self.cluster()
        first = self.vkey_of(c.nodes[0])
        seen = []

        def look(node):
            note = self.expect(node.get("/ledger/checkpoint"), 200).body.decode()
            seen.append((proof.parse_head(note), note, self.vkey))
            self.assertGreaterEqual(seen[-1][0][1], max(head[1] for head, _, _ in seen))
        for kills in range(2):
            for i in range(20):
                self.expect(self.done(c.nodes[i % 3], "PUT", "/k", b"%d" % i), (200, 201))
                look(c.nodes[(i + 1) % 3])
            leader = c.leader()
            leader.kill()
            for node in c.followers():
                self.expect(self.done(node, "PUT", "/k", b"x"), (200, 201))
                look(node)
            leader.start().wait_ready()
            look(leader)
        c.stop()
        c.start()
        self.expect(self.done(c.nodes[1], "POST", "/cluster/rotate-key"), 200)
        wait_for("the new key everywhere", lambda: len({self.vkey_of(node) for node in c.nodes} - {first}) == 1 and first not in {self.vkey_of(n) for n in c.nodes})
        keys = self.expect(c.nodes[2].get("/ledger/keys"), 200).json()
        self.assertEqual(set(proof.open_note(keys["former"][0], first, self.vkey)[1]), {first, self.vkey})
        self.expect(self.done(c.nodes[0], "PUT", "/k", b"y"), 200)
        for node in c.nodes:
            look(node)
            self.proven(self.expect(node.get("/verify/k"), 200).json(), b"k", b"y")
        leaves = self.leaves(c.nodes[0])
        for (origin, size, root), note, vkey in seen:
            self.assertEqual((origin, root), (vkey.split("+")[0], proof.root_of(leaves[:size])))
        for (_, _, _), note, vkey in seen[::5]:
            self.assertIn(vkey, proof.open_note(note, vkey)[1])
        nodes = list(keys["nodes"].values())
        wait_for("cosignatures of all nodes", lambda: set(proof.open_note(c.nodes[1].get("/ledger/checkpoint").body.decode(), self.vkey, *nodes)[1]) == {self.vkey, *nodes})

    def check_damage(self, node, values, whole):
        """Nothing that the node serves is wrong or missing; whole: nothing is refused either. The codes seen."""
        codes = set()

        def got(path):
            reply = node.get(path, timeout=30)
            codes.add(reply.status)
            self.assertIn(reply.status, (200,) if whole else (200, 409, 502, 503), reply)
            return reply if reply.status == 200 else None
        for key, (value, e) in values.items():
            if reply := got("/" + key):
                self.assertEqual(reply.body, value)
            if reply := got("/verify/" + key):
                self.assertEqual(self.proven(reply.json(), key.encode(), value)["leaf"], e["leaf"])
            if reply := got("/history/" + key):
                self.assertEqual([v["leaf_hash"] for v in reply.json()["versions"]], [e["leaf_hash"]])
            if reply := got(f"/ledger/entries?from={e['seq']}&limit=1&values=true"):
                self.assertEqual([x["value"] for x in reply.lines()], [value.decode()])
        for info in self.expect(node.get("/ledger/manifest"), 200).json()["segments"]:
            if reply := got("/ledger/segments/" + info["id"]):
                self.assertEqual(sha256(reply.body), info["sha256"])
                self.assertEqual(reply.headers["ETag"], f'"{info["sha256"]}"')
        return codes

    def damage(self, n):
        """A cluster with a sealed segment, what it holds, the node to damage, its file, and offsets within."""
        c = self.cluster(n)
        self.vkey_of(c.nodes[0])
        values = {}
        for i in range(9):
            value = f"value {i} ".encode() * 20 if i else b""
            values[f"k{i}"] = value, self.expect(self.done(c.nodes[0], "PUT", f"/k{i}?receipt=true", value), 201).json()
        self.expect(self.done(c.nodes[0], "POST", "/cluster/seal"), 200)
        node = c.followers()[0] if n > 1 else c.nodes[0]
        path = wait_for("the file", lambda: glob.glob(node.data + "/segments/*.seg"))[0]
        data = pathlib.Path(path).read_bytes()
        spots = {"magic": 1, "format": 9, "header": 41, "value": data.index(b"value 4") + 3, "record": data.rindex(b"k5"), "directory": len(data) - 90, "footer": len(data) - 40, "end": len(data) - 1}
        return c, values, node, path, spots

    def test_damage_on_one_node(self):
        """A flipped bit under a running node that has nobody to ask: refused with 409 where it matters, nothing wrong, nothing lost."""
        _, values, node, path, spots = self.damage(1)
        for name, at in spots.items():
            flip(path, at)
            codes = self.check_damage(node, values, False)
            self.assertEqual(codes, {200, 409}, f"{name}: the file itself at least is refused")
            self.expect(node.get("/ledger/segments/" + os.path.basename(path)[:-4]), 409, "corrupt")
            flip(path, at)
        wait_for("the file as it was", lambda: node.get("/ledger/segments/" + os.path.basename(path)[:-4]).status == 200)
        self.check_damage(node, values, True)

    def test_damage_in_a_cluster(self):
        """The same at rest, one bit after the other: the node starts and has the file again from another one."""
        _, values, node, path, spots = self.damage(3)
        sound = pathlib.Path(path).read_bytes()
        for name, at in spots.items():
            node.stop()
            flip(path, at)
            node.start().wait_ready()
            self.assertEqual(self.check_damage(node, values, True), {200}, name)
            self.assertEqual(pathlib.Path(path).read_bytes(), sound, name)


if __name__ == "__main__":
    helpers.main()
