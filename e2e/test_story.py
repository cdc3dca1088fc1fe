"""The closing story: the Go source tree, as real data, imported while the leader dies, exported, compared."""

import functools
import json
import os
import shutil
import subprocess
import unittest

import helpers
from helpers import Scenario, binary, cli, sha256, wait_for
from truth import check


@functools.cache
def source_tree():
    """{path: (size, sha256)} of every file under GOROOT; over 10,000 of them."""
    root = subprocess.run(["go", "env", "GOROOT"], capture_output=True, check=True).stdout.decode().strip()
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                with open(path, "rb") as f:
                    data = f.read()
                found["go/" + os.path.relpath(path, root)] = (len(data), sha256(data))
    return found


@unittest.skipUnless(shutil.which("go"), "needs the Go source tree")
class Story(Scenario):
    def test_import_kill_export_compare(self):
        tree = source_tree()
        self.assertGreater(len(tree), 10_000)
        c = self.cluster()
        path = os.path.join(c.folder, "tree.ndjson")
        lines = [json.dumps({"op": "put", "key": name, "value": json.dumps({"size": size, "sha256": digest}), "if_absent": True}) + "\n"
                 for name, (size, digest) in tree.items()]
        with open(path, "w") as f:
            f.writelines(lines)

        leader, follower = c.leader(), c.followers()[0]
        first = subprocess.Popen([binary(), "import", "--url", follower.url, "-"], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        half = len(lines) // 2
        first.stdin.write("".join(lines[:half]).encode())
        first.stdin.flush()
        wait_for("the first entries", lambda: (follower.size() or 0) > 500)
        leader.kill()
        half_way = follower.size() or 0
        output = first.communicate("".join(lines[half:]).encode(), timeout=180)[0].decode()
        print(f"{len(tree)} files; leader killed at {half_way} entries; first import exit {first.returncode}",
              end="; ", flush=True)
        self.assertLess(half_way, len(tree), "the import was over before the leader could be killed")
        self.assertIn(first.returncode, (0, 1), output)

        wait_for("another leader", lambda: c.leader() is not leader)
        rounds = 0
        while (c.leader().size() or 0) < len(tree):  # if_absent makes the repetition safe
            rounds += 1
            self.assertLessEqual(rounds, 3, "the import does not come to its end")
            again = cli("import", path, url=follower.url, timeout=180)
            self.assertIn(again.returncode, (0, 1), again)
        leader.start().wait_ready()

        for node in c.nodes:
            done = cli("export", url=node.url, timeout=180)
            self.assertEqual(done.returncode, 0, done.stderr)
            exported = [json.loads(line) for line in done.stdout.splitlines()]
            self.assertEqual(len(exported), len(tree), f"node {node.number}")
            back = {e["key"]: json.loads(e["value"]) for e in exported}
            self.assertEqual(back, {name: {"size": s, "sha256": d} for name, (s, d) in tree.items()})
        ledger = check(self, c)
        self.assertEqual(len(ledger), len(tree), "every file exactly once")
        print(f"{rounds} repetition(s); {len(ledger)} entries, exports of 3 nodes equal the tree", end=" ")


if __name__ == "__main__":
    helpers.main()
