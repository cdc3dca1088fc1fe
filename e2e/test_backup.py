"""All nodes are lost, and a backup is not: its restore makes the same ledger again, whatever kills the programs on the way."""

import hashlib
import itertools
import os
import random
import shutil
import subprocess
import time

import helpers
from helpers import LONG, Scenario, binary, cli, raw_path
from truth import segment_files


class Backup(Scenario):
    def fill(self, node, rounds=4, lines=3000):
        """Write rounds of entries, sealed after each; the ledger's size."""
        for k in range(rounds):
            self.batch(node, [{"op": "put", "key": f"k{i}", "value": hashlib.sha256(b"%d %d" % (k, i)).hexdigest() * 8} for i in range(lines)])
            self.expect(self.done(node, "POST", "/cluster/seal"), 200)
        return node.size()

    def run_cli(self, *args, status=0):
        done = cli(*args, env={"SCRIBE_CONFIG_DIR": os.path.join(self.clusters[0].folder, "pins")})
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        self.assertNotRegex(done.stderr.decode(), r"goroutine \d+|panic:")
        return done.stdout.decode() + done.stderr.decode()

    def killed(self, seconds, *args):
        """Run a command and kill it after that time; True if it was killed."""
        process = subprocess.Popen([binary(), *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.assertEqual(process.wait(seconds), 0)
            return False
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return True

    def test_all_nodes_lost(self):
        """Three nodes, a backup of one of them, three empty disks: everything is there, under the old roots, and provable with the old key."""
        c = self.cluster()
        size = self.fill(c.leader())
        to = os.path.join(c.folder, "backup")
        self.assertIn(f"{size} entries", self.run_cli("backup", "--url", c.nodes[1].url, "--to", to))
        key = c.nodes[0].get("/ledger/key").body.decode().strip()
        proof = c.nodes[0].get("/verify/k7?version=2").json()
        root = c.nodes[0].get(f"/ledger/consistency?from=1&to={size}").json()["to_root"]
        self.expect(self.done(c.nodes[0], "PUT", "/late", b"lost"), 201)
        self.assertIn("another member of the cluster answers", self.refused_beside(c, to))
        c.kill()
        for node in c.nodes:
            shutil.rmtree(node.data)
        self.assertIn(f"audited    4 segments, {size} entries", self.run_cli("audit", "--data", to, "--key", key))
        said = self.run_cli("restore", "--config", c.nodes[0].config, "--from", to, "--key", key)
        self.assertIn(f"restored   {size} entries in 4 segments", said)
        c.start()
        for node in c.nodes:
            self.assertEqual(node.get(f"/ledger/consistency?from=1&to={size}").json()["to_root"], root)
            self.assertEqual(node.get("/k7").headers["Scribe-Version"], "4")
            self.assertEqual(node.get("/late").status, 404)
            cut = self.expect(node.get("/kv/cluster/restored"), 200)
            self.assertEqual((cut.headers["Scribe-Seq"], cut.json()["root"], cut.json()["signed_by"]), (str(size), root, key))
        receipt = os.path.join(c.folder, "receipt")
        with open(receipt, "w") as f:
            f.write(proof["receipt"])
        self.run_cli("verify", "--receipt", receipt, "--key", key)
        again = c.nodes[2].get("/verify/k7?version=2").json()
        self.assertEqual((again["seq"], again["leaf"]), (proof["seq"], proof["leaf"]))
        self.assertNotEqual(c.nodes[0].get("/ledger/key").body.decode().strip(), key)
        self.expect(self.done(c.nodes[1], "PUT", "/new", b"x"), 201)
        self.run_cli("audit", "--url", c.nodes[2].url, "--key", c.nodes[2].get("/ledger/key").body.decode().strip())

    def refused_beside(self, c, to):
        """What restore says on a fourth machine while the cluster lives."""
        config = os.path.join(c.folder, "fourth.toml")
        sections = {**c.nodes[0].sections, "node": {**c.nodes[0].sections["node"], "id": 4, "data_dir": os.path.join(c.folder, "fourth")}}
        sections["network"] = {"client_port": helpers.free_port(), "raft_port": helpers.free_port(), "seed_peers": [f"127.0.0.1:{c.nodes[1].sections['network']['raft_port']}"]}
        with open(config, "w") as f:
            f.write(helpers.toml(sections))
        return self.run_cli("restore", "--config", config, "--from", to, status=1)

    def test_killed_at_any_moment(self):
        """kill -9 of backup and restore, again and again: each goes on, and no node starts on half of anything."""
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        print(f"seed {seed}", end=" ", flush=True)
        c = self.cluster(1)
        node = c.nodes[0]
        size = self.fill(node, 6)
        node.stop()
        to = os.path.join(c.folder, "backup")
        start = time.monotonic()
        self.run_cli("backup", "--config", node.config, "--to", to)
        took = time.monotonic() - start
        original = os.path.join(c.folder, "original")
        shutil.copytree(node.data, original)
        stopped = os.path.join(c.folder, "original.toml")
        with open(stopped, "w") as f:
            f.write(helpers.toml({**node.sections, "node": {**node.sections["node"], "data_dir": original}}))
        files = segment_files(node)
        rounds = kills = 0
        until = time.monotonic() + 150
        while rounds < (20 if LONG else 4) or kills <= 3 and time.monotonic() < until:
            rounds, before = rounds + 1, kills
            half = os.path.join(c.folder, "half")
            shutil.rmtree(half, ignore_errors=True)
            turns = itertools.count(4)  # each has more time than the one before, so that one comes to the end
            while self.killed(rng.uniform(0, took * next(turns) / 4), "backup", "--config", stopped, "--to", half):
                kills += 1
            self.assertIn(f"audited    6 segments, {size} entries", self.run_cli("audit", "--data", half))

            shutil.rmtree(node.data)
            turns = itertools.count(8)
            while self.killed(rng.uniform(0, took * next(turns) / 4), "restore", "--config", node.config, "--from", half):
                kills += 1
                if os.path.exists(os.path.join(node.data, "restore.json")):
                    node.start()
                    self.expect_refusal(node, "not restored to the end")
                elif os.path.exists(os.path.join(node.data, "node.json")):
                    break  # it was killed behind its last step
            node.start().wait_ready()
            self.assertEqual(node.size(), size + 1)
            self.assertEqual(node.get("/kv/cluster/restored").headers["Scribe-Seq"], str(size))
            for i in (0, 1234, 2999):
                want = hashlib.sha256(b"5 %d" % i).hexdigest() * 8
                self.assertEqual(node.get(raw_path(f"k{i}")).body.decode(), want)
            self.assertEqual(segment_files(node), files)
            self.assertEqual(node.stop(), 0)
            if kills == before:
                took /= 2  # the first run was slow
        print(f"{kills} kills", end=" ", flush=True)
        self.assertGreater(kills, 3)


if __name__ == "__main__":
    helpers.main()
