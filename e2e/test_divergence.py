"""A flipped byte on one node's disk is found and mended from the others, while clients see only right values;
a node whose state was set aside comes back with the same files as the others."""

import glob
import os

import helpers
from helpers import MIB, Scenario, cli, raw_path, wait_for
from truth import check

FAST = {"segment_size": MIB, "scrub_rate": 64 * MIB}


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 0x10]))


def read(path):
    with open(path, "rb") as f:
        return f.read()


class Divergence(Scenario):
    def fill(self, c):
        """Two sealed segments on every node; {key: value}."""
        values = {}
        for i in range(300):
            key, value = f"key{i:04d}", (f"value {i} " * 40).encode()
            self.expect(self.done(c.nodes[i % len(c.nodes)], "PUT", raw_path(key), value), 201)
            values[key] = value
            if i in (150, 299):
                self.expect(self.done(c.leader(), "POST", "/cluster/seal"), 200)
        for node in c.nodes:
            wait_for("two segments", lambda: len(self.segments(node)) == 2)
        return values

    def segments(self, node):
        return sorted(glob.glob(os.path.join(node.data, "segments", "*.seg")))

    def mended(self, node, path, good):
        wait_for(f"{path} is mended", lambda: os.path.exists(path) and read(path) == good)
        wait_for("storage ok", lambda: node.get("/health").json()["checks"].get("storage") == "ok")

    def all_right(self, node, values):
        for key, value in values.items():
            reply = node.get(raw_path(key))
            self.assertEqual((reply.status, reply.body), (200, value), key)

    def test_flip_while_down(self):
        c = self.cluster(storage=FAST)
        values = self.fill(c)
        victim = c.followers()[0]
        path = self.segments(victim)[0]
        good = read(path)
        for offset in (3, len(good) // 3, len(good) - 40):  # header, value, footer
            self.assertEqual(victim.stop(), 0)
            flip(path, offset)
            victim.start().wait_ready()
            self.all_right(victim, values)
            self.mended(victim, path, good)
        self.assertEqual(victim.stop(), 0)
        os.remove(path)
        victim.start().wait_ready()
        self.all_right(victim, values)
        self.mended(victim, path, good)
        check(self, c)

    def test_flip_while_it_runs(self):
        """Nobody reads the damaged value: the scrub finds it in its next pass."""
        c = self.cluster(storage=FAST)
        values = self.fill(c)
        victim = c.followers()[0]
        for path in self.segments(victim) + sorted(glob.glob(os.path.join(victim.data, "index", "*.run"))):
            good = read(path)
            flip(path, len(good) // 2)
            if path.endswith(".seg"):
                self.assertEqual(victim.get(raw_path("key0000")).body, values["key0000"])
        victim.stop()  # its next start begins with a pass
        victim.start().wait_ready()
        wait_for("a pass", lambda: victim.get("/metrics").json()["scrub"]["passes"] > 0)
        for path in self.segments(victim):
            self.mended(victim, path, read(path.replace(victim.data, c.leader().data)))
        self.all_right(victim, values)
        check(self, c)

    def test_alone(self):
        """Nobody to get it from: told, and never served."""
        node = self.node(storage=FAST)
        node.wait_ready()
        self.expect(node.put("/k", b"a value" * 100), 201)
        self.expect(node.post("/cluster/seal"), 200)
        path = wait_for("a segment", lambda: self.segments(node))[0]
        flip(path, 100)
        self.expect(node.get("/k"), 409, "corrupt")
        health = node.get("/health")
        self.assertEqual((health.status, health.json()["status"]), (200, "degraded"))
        self.assertIn("damaged: segment", health.json()["checks"]["storage"])
        self.assertEqual(node.get("/metrics").json()["scrub"]["damaged"], 1)
        self.assertEqual(node.stop(), 0)

    def test_repair(self):
        c = self.cluster(storage=FAST)
        values = self.fill(c)
        victim = c.leader()
        running = cli("repair", "--config", victim.config)
        self.assertEqual(running.returncode, 1)
        self.assertIn(b"in use", running.stderr)
        self.assertEqual(victim.stop(), 0)

        # What a node leaves that has found itself to be the odd one.
        line = "this node has diverged from the others: entries 5 to 9: as a test says"
        with open(os.path.join(victim.data, "DIVERGED"), "w") as f:
            f.write(line + "\n")
        victim.start()
        self.assertIn(line, self.expect_refusal(victim, "diverged"))

        sound = [node for node in c.nodes if node is not victim]
        for node in sound:
            self.assertEqual(node.stop(), 0)
        alone = cli("repair", "--config", victim.config)
        self.assertEqual(alone.returncode, 1)
        self.assertIn(b"only copy", alone.stderr)
        self.assertTrue(os.path.exists(os.path.join(victim.data, "ledger.db")))
        for node in sound:
            node.start()
        c.leader()

        done = cli("repair", "--config", victim.config)
        self.assertEqual(done.returncode, 0, done.stderr)
        aside = glob.glob(os.path.join(victim.data, "set-aside-*"))
        self.assertEqual(len(aside), 1)
        self.assertEqual(len(glob.glob(os.path.join(aside[0], "segments", "*.seg"))), 2)
        self.assertEqual(sorted(os.listdir(victim.data)), sorted(["LOCK", os.path.basename(aside[0])]))
        victim.start().wait_ready()
        self.all_right(victim, values)
        check(self, c)


if __name__ == "__main__":
    helpers.main()
