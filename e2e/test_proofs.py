"""Everything provable, over HTTP: receipts, /verify, checkpoints, proofs, tiles and streams that follow.

The checks here are those of RFC 6962 in a few lines; verify_ledger.py is the independent verifier.
"""

import base64
import hashlib
import http.client
import json
import random
import signal
import threading
import time

import helpers
from helpers import NDJSON, Scenario, raw_path, sha256, wait_for, within
from truth import check

FRESH_ENTRY = 1.0  # seconds from a commit to its event, on a busy machine


def leaf_hash(data):
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left, right):
    return hashlib.sha256(b"\1" + left + right).digest()


def root_of(leaves):
    """The root over leaf hashes, shaped like the RFC."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(root_of(leaves[:k]), root_of(leaves[k:]))


def root_from(leaf, seq, size, path):
    """The root that an inclusion proof leads to, None if it does not fit."""
    if size == 1:
        return leaf if not path else None
    if not path:
        return None
    k = 1 << (size - 1).bit_length() - 1
    if seq < k:
        below = root_from(leaf, seq, k, path[:-1])
        return below and node_hash(below, path[-1])
    below = root_from(leaf, seq - k, size - k, path[:-1])
    return below and node_hash(path[-1], below)


def parse_head(text):
    """Origin, size and root of a signed checkpoint."""
    origin, size, root = text.split("\n\n")[0].split("\n")[:3]
    return origin, int(size), base64.b64decode(root)


class Proofs(Scenario):
    def proven(self, entry, value, op="put"):
        """Check an entry with the fields of /verify against value; its leaf hash."""
        self.assertNotIn("receipt_error", entry)
        leaf = base64.b64decode(entry["leaf"])
        self.assertEqual(leaf[1], {"put": 1, "delete": 2}[op])
        self.assertEqual(int.from_bytes(leaf[2:10], "big"), entry["seq"])
        self.assertEqual(leaf[42:74].hex(), sha256(value))
        self.assertEqual(leaf_hash(leaf).hex(), entry["leaf_hash"])
        root = root_from(leaf_hash(leaf), entry["seq"], entry["tree_size"], [bytes.fromhex(h) for h in entry["inclusion"]])
        self.assertEqual(root.hex(), entry["root"])
        _, size, signed = parse_head(entry["checkpoint"])
        self.assertEqual((size, signed), (entry["tree_size"], root))
        head, _, rest = entry["receipt"].partition("\n\n")
        lines = ["c2sp.org/tlog-proof@v1", "extra " + entry["leaf"], f"index {entry['seq']}"]
        lines += [base64.b64encode(bytes.fromhex(h)).decode() for h in entry["inclusion"]]
        self.assertEqual(head.split("\n"), lines)
        self.assertEqual(rest, entry["checkpoint"])
        self.assertIs(entry["verified"], True)
        return leaf_hash(leaf)

    def test_receipts_of_every_node(self):
        c = self.cluster()
        for i, node in enumerate(c.nodes):
            value = b"value %d" % i
            put = self.expect(self.done(node, "PUT", raw_path(f"k{i}") + "?receipt=true", value), 201)
            self.proven(put.json(), value)
            again = self.expect(self.done(node, "PUT", raw_path("shared") + "?receipt=true", value), (200, 201))
            self.assertEqual(again.headers["ETag"], f'"{again.json()["seq"]}"')
            self.proven(again.json(), value)
            self.proven(self.expect(self.done(node, "DELETE", raw_path(f"k{i}") + "?receipt=true"), 200).json(), b"", "delete")
            lines = node.post("/batch?receipt=true", b'{"op":"put","key":"l","value":"1"}\n{"op":"put","key":"l","value":"2"}', NDJSON)
            for entry, value in zip(lines.lines(), (b"1", b"2"), strict=True):
                self.proven(entry, value)
        for node in c.nodes:
            self.proven(self.expect(node.get("/verify/l?version=1"), 200).json(), b"1")
            self.proven(self.expect(node.get("/verify/k0"), 200).json(), b"", "delete")
            self.expect(node.get("/verify/none"), 404, "not_found")
            self.signed_by_all(node)
        self.expect(self.done(c.nodes[0], "POST", "/cluster/seal"), 200)
        def sealed():
            return all(n.get("/verify/k0?version=1").json()["segment"] for n in c.nodes)
        wait_for("the entry is in a confirmed segment", sealed)
        check(self, c)

    def test_tree_from_outside(self):
        """The whole tree from its bundles, and proofs between any two of its sizes."""
        c = self.cluster()
        self.batch(c.nodes[1], [{"op": "put", "key": f"t/{i % 90}", "value": str(i)} for i in range(1000)])
        node = c.nodes[2]
        _, size, root = parse_head(self.expect(node.get("/ledger/checkpoint"), 200).body.decode())
        self.assertGreaterEqual(size, 1000, "a checkpoint covers what was acknowledged before")
        leaves = []
        while len(leaves) < size:
            width = min(256, size - len(leaves))
            path = f"{len(leaves) // 256:03d}" + (f".p/{width}" if width < 256 else "")
            bundle, tile = node.get(f"/ledger/tile/entries/{path}"), node.get(f"/ledger/tile/0/{path}")
            self.assertIn("immutable", self.expect(tile, 200).headers["Cache-Control"])
            self.assertEqual(tile.headers["Content-Type"], "application/octet-stream")
            data, hashes = bundle.body, []
            while data:
                n = int.from_bytes(data[:2], "big")
                hashes.append(leaf_hash(data[2:2 + n]))
                data = data[2 + n:]
            self.assertEqual(b"".join(hashes), tile.body)
            leaves += hashes
        self.assertEqual(root_of(leaves), root)
        chance = random.Random(7)
        for _ in range(30):
            small, large = sorted(chance.sample(range(1, size + 1), 2))
            seq = chance.randrange(large)
            p = self.expect(node.get(f"/ledger/proof?seq={seq}&size={large}"), 200).json()
            self.assertEqual(p["leaf_hash"], leaves[seq].hex())
            self.assertEqual(root_from(leaves[seq], seq, large, [bytes.fromhex(h) for h in p["inclusion"]]), root_of(leaves[:large]))
            p = self.expect(node.get(f"/ledger/consistency?from={small}&to={large}"), 200).json()
            self.assertEqual((p["from_root"], p["to_root"]), (root_of(leaves[:small]).hex(), root_of(leaves[:large]).hex()))
        for path, status in (("tile/0/004", 404), ("tile/0/0", 400), ("tile/entries/000.p/256", 400), ("tile/0/../0/000", 400), ("proof?seq=0&size=999999", 404),
                             ("proof?size=3", 400), ("consistency?from=9&to=3", 400), ("consistency?from=0&to=999999", 404), ("consistency?from=x&to=3", 400)):
            self.expect(node.get("/ledger/" + path), status, {400: "malformed", 404: "not_found"}[status])

    def test_follow(self):
        within(FRESH_ENTRY, self.follow)

    def follow(self):
        """NDJSON and SSE from every node: every entry once, in order, then a clean end; how long the slowest came after its commit."""
        c = self.cluster()
        count, done = 200, {}

        def listen(node, events, start=0, stop=count):
            conn = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
            headers = {"Accept": "text/event-stream"} if events else {}
            if events and start:
                headers["Last-Event-ID"] = str(start - 1)
            conn.request("GET", f"/ledger/entries?follow=true&values=true&limit={stop - start}&from={0 if events else start}", headers=headers)
            answer, got = conn.getresponse(), []
            for line in answer:
                if events and line.startswith(b"id: "):
                    self.assertEqual(int(line[4:]), start + len(got))
                line = line.removeprefix(b"data: ")
                if line.startswith(b"{"):
                    got.append((json.loads(line), time.monotonic()))
            conn.close()
            done[node.number, events, start] = got
        threads = [threading.Thread(target=listen, args=(node, events, start)) for node in c.nodes for events in (False, True) for start in (0, 150)]
        for thread in threads:
            thread.start()
        committed = []
        for i in range(count):
            self.expect(self.done(c.nodes[i % 3], "PUT", raw_path("f"), b"%d" % i), (200, 201))
            committed.append(time.monotonic())
        for thread in threads:
            thread.join(60)
        self.assertEqual(len(done), len(threads))
        slowest = 0
        for (_, _, start), got in done.items():
            self.assertEqual([e["seq"] for e, _ in got], list(range(start, count)))
            self.assertEqual([e["value"] for e, _ in got], [str(i) for i in range(start, count)])
            self.assertTrue(all(len(e["leaf_hash"]) == 64 for e, _ in got))
            slowest = max(slowest, *(at - committed[e["seq"]] for e, at in got))
        print(f"slowest event after {slowest * 1e3:.1f} ms", end=" ", flush=True)
        return slowest

    def test_shutdown_ends_streams(self):
        node = self.node()
        node.put(raw_path("a"), b"x")
        conn = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
        conn.request("GET", "/ledger/entries?follow=true")
        answer = conn.getresponse()
        self.assertEqual(json.loads(answer.readline())["seq"], 0)
        node.process.send_signal(signal.SIGTERM)
        self.assertEqual(answer.read(), b"", "the rest of a stream that ends as a whole reply")
        conn.close()
        self.assertEqual(node.wait_exit(), 0)

    def test_rotated_key(self):
        c = self.cluster()
        first = self.expect(c.nodes[0].get("/ledger/key"), 200).body.decode().strip()
        self.proven(self.done(c.nodes[1], "PUT", raw_path("a") + "?receipt=true", b"x").json(), b"x")
        second = self.expect(self.done(c.followers()[0], "POST", "/cluster/rotate-key"), 200).json()["key"]
        self.assertNotEqual(first, second)
        for node in c.nodes:
            wait_for("the new key", lambda: node.get("/ledger/key").body.decode().strip() == second)
            keys = self.expect(node.get("/ledger/keys"), 200).json()
            self.assertEqual((keys["current"], len(keys["former"]), sorted(keys["nodes"])), (second, 1, ["1", "2", "3"]))
            self.proven(wait_for("a proof", lambda: (reply := node.get("/verify/a")).status == 200 and reply).json(), b"x")


if __name__ == "__main__":
    helpers.main()
