"""What the scenarios with a bucket share: a cluster that archives to a real server, what was written to it, and the
whole of the contract over cold data.

A class that derives from Bucketed names a server; each of its tests has a bucket of its own there.
"""

import base64
import gzip
import os
import random
import sys

import helpers
import proof
from helpers import Scenario, cli, raw_path, sha256, wait_for
from s3_client import Bucket
from s3_servers import ACCESS_KEY, SECRET_KEY, Server
from test_contract import Contract, Listener

SEGMENT = 65536  # bytes, the least there is


class Bucketed(Scenario):
    server_name = "versitygw"
    proven, check_damage, vkey_of = Contract.proven, Contract.check_damage, Contract.vkey_of

    @classmethod
    def setUpClass(cls):
        cls.server = Server(cls.server_name).start()
        cls.addClassCleanup(cls.server.close)

    def setUp(self):
        self.new_bucket()

    def new_bucket(self, lock=False):
        """A bucket for the next cluster, with Object Lock if asked."""
        self.bucket = Bucket(self.server, "ledger-" + os.urandom(4).hex()).make(lock)

    def s3(self, **other):
        """[storage.s3] for this test's bucket; None takes a key out."""
        keys = {"bucket": self.bucket.name, "endpoint": self.server.url, "path_style": True, "region": "us-east-1", "prefix": "test/scribe",
                "access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY, "timeout_secs": 30, "max_retries": 1, **other}
        return {k: v for k, v in keys.items() if v is not None}

    def archiving(self, n=3, s3=None, start=True, storage=None, **tiering):
        """A cluster that archives by itself every second and keeps all local copies, unless tiering says otherwise."""
        tiering = {"archival_check_interval_secs": 1, "age_threshold_secs": 86400, **tiering}
        sections = {"storage": {"segment_size": SEGMENT, **(storage or {})}, "storage.s3": s3 or self.s3(), "storage.tiering": tiering}
        return self.cluster(n, start=start, **sections)

    def archive(self, c):
        """Everything sealed, and every segment in the bucket; the manifest."""
        self.expect(self.done(c.leader(), "POST", "/cluster/seal"), 200)

        def done():
            reply = c.running()[0].post("/cluster/archive", timeout=60)
            if reply.status == 200 and (told := reply.json())["archived_segments"] == told["segments"]:
                return segments(c.running()[0])
        return wait_for("all is archived", done, 180)

    def make_cold(self, c, nodes=None):
        """Archive everything and drop the local copies of nodes (default all): at least 95 % of the bytes are cold."""
        self.archive(c)
        for node in nodes or c.running():
            if node.sections["storage.tiering"]["age_threshold_secs"]:
                node.sections["storage.tiering"]["age_threshold_secs"] = 0
                node.stop()
                node.start().wait_ready()
        wait_cold(nodes or c.running())

    def check_bucket(self, c):
        """The bucket has the segments of the manifest, each once, each the right bytes, and no others."""
        listed = {s["object"]: s for s in self.archive(c)}
        self.assertEqual(set(self.bucket.segments()), set(listed))
        for key, segment in listed.items():
            self.assertEqual(sha256(gzip.decompress(self.bucket.get(key))), segment["sha256"], key)


def segments(node):
    """The segments as a node's manifest tells them."""
    reply = node.get("/ledger/manifest")
    return reply.json()["segments"] if reply.status == 200 else []


def cold_share(node):
    """Which part of the sealed bytes, and of what is not sealed yet, is cold on a node."""
    reply = node.get("/ledger/manifest")
    if reply.status != 200:
        return 0
    told = reply.json()
    bytes_of = [(s["size"], s["state"]) for s in told["segments"]]
    whole = sum(size for size, _ in bytes_of) + told["pending"]["size"]
    return sum(size for size, state in bytes_of if state == "cold") / max(1, whole)


def wait_cold(nodes, share=0.95, timeout=180):
    """Wait until that share of the ledger is cold on each of nodes."""
    for node in nodes:
        wait_for(f"{share:.0%} of node {node.number} is cold", lambda: cold_share(node) >= share, timeout, 0.1)


class Written:
    """Entries of all kinds and what they hold, in the order of the ledger."""

    def __init__(self, test, node, count=3000, large=700_000, seed=1):
        self.test, self.rng = test, random.Random(seed)
        self.entries = {}  # seq -> (key, value, operation)
        self.first = node.size()
        self.lines(node, count)
        for key, value in (("large", self.rng.randbytes(large)), ("empty", b""), ("a//b", b"\0\xff"), ("gone", b"for now")):
            self.note(test.expect(test.done(node, "PUT", raw_path(key), value), (200, 201)).json(), value)
        self.note(test.expect(test.done(node, "DELETE", "/gone"), 200).json(), b"")
        self.last = node.size()

    def lines(self, node, count):
        """count values of about 150 bytes under a third as many keys, by batches that become a segment each."""
        for start in range(0, count, 300):
            values = {i: self.rng.randbytes(50 + self.rng.randrange(50)).hex() for i in range(start, min(start + 300, count))}
            entries = self.test.batch(node, [{"op": "put", "key": f"k{i % (count // 3)}", "value": v} for i, v in values.items()])
            for entry, value in zip(entries, values.values(), strict=True):
                self.note(entry, value.encode())
            self.test.expect(self.test.done(node, "POST", "/cluster/seal"), 200)

    def note(self, entry, value):
        self.entries[entry["seq"]] = entry["key"], value, entry["op"]

    def check(self, node, sample=25):
        """The calls of API.md that read, over what was written, on one node."""
        chosen = self.rng.sample(sorted(self.entries), sample) + sorted(self.entries)[-5:]
        for seq in chosen:
            self.check_entry(node, seq)
        self.check_ranges(node)
        self.check_lists(node)
        self.check_tree(node)
        wait_for("/metrics counts the cold segments", lambda: node.get("/metrics").json()["cold"]["segments"]
                 == sum(s["state"] == "cold" for s in segments(node)))

    def check_entry(self, node, seq):
        """One entry: GET, HEAD, as of then, history, proof."""
        test, (key, value, op) = self.test, self.entries[seq]
        path = raw_path(key)
        proven = test.expect(node.get("/verify/" + path.removeprefix("/kv/") + f"?seq={seq}"), 200).json()
        test.proven(proven, key.encode(), value, op)
        test.assertTrue(proven["segment"])
        history = test.expect(node.get("/history/" + path.removeprefix("/kv/")), 200).json()["versions"]
        test.assertEqual([v["seq"] for v in history], sorted((s for s, e in self.entries.items() if e[0] == key), reverse=True))
        if op == "delete":
            test.expect(node.get(f"{path}?seq={seq}"), 404, "deleted")
            return
        reply = test.expect(node.get(f"{path}?seq={seq}"), 200)
        test.assertEqual((reply.body, reply.headers["Scribe-Seq"]), (value, str(seq)))
        test.assertEqual(test.expect(node.get(f"{path}?at={seq}"), 200).body, value)
        later = [e for s, e in self.entries.items() if s > seq and e[0] == key]
        if not later:
            test.assertEqual(test.expect(node.get(f"{path}?at={proven['time']}"), 200).body, value)
        test.assertEqual(test.expect(node.get(f"{path}?version={proven['version']}&consistency=stale"), 200).body, value)
        head = test.expect(node.request("HEAD", f"{path}?seq={seq}"), 200)
        test.assertEqual(head.headers["Content-Length"], str(len(value)))
        test.expect(node.get(f"{path}?seq={seq}", headers={"If-None-Match": f'"{seq}"'}), 304)

    def check_ranges(self, node):
        """Parts of a value over several members, and of a segment."""
        test = self.test
        value = next(v for k, v, _ in self.entries.values() if k == "large")
        part = test.expect(node.get("/large", headers={"Range": "bytes=199990-550009"}), 206)
        test.assertEqual(part.body, value[199990:550010])
        for segment in segments(node):
            whole = test.expect(node.get("/ledger/segments/" + segment["id"]), 200)
            test.assertEqual((sha256(whole.body), whole.headers["ETag"]), (segment["sha256"], f'"{segment["sha256"]}"'))
        tail = test.expect(node.get("/ledger/segments/" + segment["id"], headers={"Range": "bytes=-100"}), 206)
        test.assertEqual(tail.body, whole.body[-100:])

    def check_lists(self, node):
        """Entries with their values, and the keys in order."""
        test = self.test
        told = test.expect(node.get(f"/ledger/entries?from={self.first}&limit={self.last - self.first}&values=true"), 200).lines()
        for entry in told:
            value = base64.b64decode(entry["value_base64"]) if "value_base64" in entry else entry.get("value", "").encode()
            test.assertEqual((entry["key"], value, entry["op"]), self.entries[entry["seq"]])
        test.assertEqual(len(told), self.last - self.first)
        stream = Listener(node)
        wait_for("the stream of all entries", lambda: len(stream.got) >= self.last)
        test.assertEqual(stream.seqs()[:self.last], list(range(self.last)))
        keys, after = [], ""
        while after is not None:
            page = test.expect(node.get(f"/keys?limit=400&prefix=k&after={after}"), 200).json()
            keys += page["keys"]
            after = page["next"]
        newest = {key: (seq, op) for seq, (key, _, op) in sorted(self.entries.items()) if key.startswith("k")}
        test.assertEqual({k["key"]: k["seq"] for k in keys}, {key: seq for key, (seq, op) in newest.items() if op == "put"})

    def check_tree(self, node):
        """Proofs of inclusion and consistency against the leaves that the entries give."""
        test, size = self.test, node.size()
        leaves = [bytes.fromhex(e["leaf_hash"]) for e in test.expect(node.get(f"/ledger/entries?limit={size}"), 200).lines()]
        root = proof.root_of(leaves)
        for seq in self.rng.sample(range(size), 5):
            told = test.expect(node.get(f"/ledger/proof?seq={seq}&size={size}"), 200).json()
            proof.check_inclusion(leaves[seq], seq, size, [bytes.fromhex(h) for h in told["inclusion"]], root)
            told = test.expect(node.get(f"/ledger/consistency?from={seq}&to={size}"), 200).json()
            proof.check_consistency(seq, size, [bytes.fromhex(h) for h in told["proof"]], proof.root_of(leaves[:seq]), root)

    def check_writes(self, node):
        """New writes on keys whose versions are cold: conditions and both batches."""
        test = self.test
        newest = {key: seq for seq, (key, _, op) in self.entries.items()}
        cold = newest["k1"]
        test.expect(test.done(node, "PUT", "/k1", b"x", {"If-None-Match": "*"}), 412, "precondition_failed")
        test.expect(test.done(node, "PUT", "/k1", b"x", {"If-Match": f'"{cold + 1}"'}), 412, "precondition_failed")
        self.note(test.expect(test.done(node, "PUT", "/k1", b"new", {"If-Match": f'"{cold}"'}), 200).json(), b"new")
        test.expect(test.done(node, "DELETE", "/gone"), 404)
        self.note(test.expect(test.done(node, "PUT", "/gone", b"back", {"If-None-Match": "*"}), (200, 201)).json(), b"back")
        ops = [{"op": "put", "key": "k2", "value": "two", "if_seq": newest["k2"]}, {"op": "delete", "key": "k3"}]
        for entry, value in zip(test.batch(node, ops), (b"two", b""), strict=True):
            self.note(entry, value)
        test.assertEqual(test.expect(node.get("/k1"), 200).body, b"new")
        self.last = node.size()


def check_tools(test, node):
    """audit and the independent verifier over a running node, and export."""
    done = cli("audit", url=node.url, env={"SCRIBE_CONFIG_DIR": test.clusters[0].folder + "/pins"})
    test.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    done = helpers.subprocess.run([sys.executable, os.path.join(helpers.ROOT, "e2e", "verify_ledger.py"), "ledger", node.url], capture_output=True, timeout=120)
    test.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    done = cli("export", url=node.url)
    test.assertEqual(done.returncode, 0, done.stderr)
