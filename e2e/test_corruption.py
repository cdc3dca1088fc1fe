"""One flipped byte in any file of a stopped node: repaired, refused with one line, or 409 for that
read; never a wrong value, never a lost key."""

import glob
import os
import random
import shutil

import helpers
from helpers import LONG, MIB, Scenario, raw_path
from load import Load
from truth import check

FLIPS = 12 if LONG else 3
HONEST = (409, 502, 503)  # "this copy is damaged", never 404 and never another value


def used_bytes(path):
    """How much of a file is more than trailing zeros."""
    with open(path, "rb") as f:
        return len(f.read().rstrip(b"\0"))


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 0x40]))


class Corruption(Scenario):
    def fill(self, c):
        """Sealed segments and a pending one; {key: value} of everything in the ledger."""
        values = {}
        for i in range(600):
            key, value = f"key{i:04d}", (f"value {i} " * 20).encode()
            self.expect(self.done(c.nodes[i % len(c.nodes)], "PUT", raw_path(key), value), 201)
            values[key] = value
            if i in (200, 400):
                self.expect(self.done(c.nodes[0], "POST", "/cluster/seal"), 200)
        return values

    def files(self, node, pattern):
        return sorted(p for p in glob.glob(os.path.join(node.data, pattern)) if used_bytes(p))

    def survive(self, node, values, allowed=HONEST):
        """Start on damaged files: a clear refusal, or honest answers for every key; what happened."""
        node.start()
        try:
            node.wait_ready(60)
        except AssertionError:
            if node.running():
                raise
            self.expect_refusal(node)
            return "refused"
        refused = 0
        for key, value in values.items():
            reply = node.get(raw_path(key))
            if reply.status == 0 and not node.running():
                self.expect_refusal(node)
                return "stopped"
            if reply.status == 200:
                self.assertEqual(reply.body, value, f"{key}: a wrong value")
            else:
                self.assertIn(reply.status, allowed, f"{key}: {reply}")
                refused += 1
        node.kill()
        return f"{refused} reads refused" if refused else "served all"

    def each_flip(self, pattern, low=0.0, high=1.0):
        """Flip bytes of every file that matches, one at a time, each on a fresh copy of the data."""
        c = self.cluster(1)
        node, rng = c.nodes[0], random.Random(pattern)
        values = self.fill(c)
        self.assertEqual(node.stop(), 0)
        kept = node.data + ".kept"
        shutil.copytree(node.data, kept)
        found, what = self.files(node, pattern), {}
        self.assertTrue(found, f"no file matches {pattern}")
        for path in found[:4]:
            for _ in range(FLIPS):
                used = used_bytes(path)
                offset = rng.randrange(int(used * low), max(int(used * high), 1))
                with self.subTest(file=os.path.relpath(path, node.data), offset=offset):
                    flip(path, offset)
                    outcome = self.survive(node, values)
                    what[outcome] = what.get(outcome, 0) + 1
                if node.running():
                    node.kill()
                shutil.rmtree(node.data)
                shutil.copytree(kept, node.data)
        print(what, end=" ", flush=True)
        node.start().wait_ready()
        check(self, c)

    def test_segment_files(self):
        self.each_flip("segments/*.seg")

    def test_index_runs(self):
        self.each_flip("index/*.run")

    def test_raft_log(self):
        self.each_flip("raft/*.log", 0.0, 0.6)  # a bad last frame is a torn write, and is cut

    def test_stable_store(self):
        self.each_flip("raft/stable.db")

    def test_ledger_db(self):
        self.each_flip("ledger.db")

    def test_node_json(self):
        self.each_flip("node.json")

    def test_missing_index_is_rebuilt(self):
        c = self.cluster(1)
        node = c.nodes[0]
        values = self.fill(c)
        self.assertEqual(node.stop(), 0)
        shutil.rmtree(os.path.join(node.data, "index"))
        node.start().wait_ready()
        for key, value in values.items():
            self.assertEqual(node.get(raw_path(key)).body, value)
        check(self, c)

    def test_missing_segment_is_never_silence(self):
        c = self.cluster(1)
        node = c.nodes[0]
        values = self.fill(c)
        self.assertEqual(node.stop(), 0)
        os.remove(self.files(node, "segments/*.seg")[0])
        print(self.survive(node, values), end=" ", flush=True)

    def test_follower_with_a_damaged_segment(self):
        """Two sound nodes serve on; the damaged one refuses, repairs itself or answers honestly."""
        c = self.cluster(storage={"segment_size": MIB})
        with Load(c, writers=4, size=2000) as load:
            values = self.fill(c)
            victim = c.followers()[0]
            self.assertEqual(victim.stop(), 0)
        path = self.files(victim, "segments/*.seg")[0]
        flip(path, os.path.getsize(path) // 2)
        print(self.survive(victim, values), end=" ", flush=True)
        for key in list(values)[::10]:
            for node in c.running():
                self.assertEqual(node.get(raw_path(key)).body, values[key])
        sound = [node for node in c.nodes if node is not victim]
        self.assertEqual([node.running() for node in sound], [True, True])
        check(self, c, load)


if __name__ == "__main__":
    helpers.main()
