"""Witnesses: the daemon's answers and memory, a cluster that asks two of them, a fork that is refused."""

import concurrent.futures
import hashlib
import os
import re
import shutil
import subprocess

import helpers
from helpers import Client, Scenario, binary, cli, free_port, wait_for


class Witness:
    """One witness process and its folder."""

    def __init__(self, folder, name):
        self.name, self.port, self.data = name, free_port(), os.path.join(folder, name)
        self.log = os.path.join(folder, name + ".log")
        self.client, self.process = Client(self.port), None

    def start(self, *vkeys):
        self.client.forget()
        logs = [arg for vkey in vkeys for arg in ("--log", vkey)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [binary(), "witness", "--listen", f"127.0.0.1:{self.port}", "--data", self.data, "--name", self.name, *logs],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(f"{self.name} serves", lambda: self.client.get("/vkey", timeout=2).status == 200)
        return self

    def vkey(self):
        return self.client.get("/vkey").body.decode().strip()

    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def kill(self):
        self.client.forget()
        if self.process:
            self.process.kill()
            self.process.wait()

    def latest(self, origin):
        """(size, note) of the newest cosigned checkpoint, or (0, "")."""
        reply = self.client.get(f"/{hashlib.sha256(origin.encode()).hexdigest()}/checkpoint")
        if reply.status == 404:
            return 0, ""
        note = reply.body.decode()
        return int(note.splitlines()[1]), note


# A key of nobody's: what a witness watches until the real key is known.
NOBODY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"


class Witnesses(Scenario):
    def setUp(self):
        self.witnesses = []

    def tearDown(self):
        for witness in self.witnesses:
            witness.kill()

    def watched(self, nodes, count=1):
        """A cluster and count witnesses that watch it; the ledger's vkey too."""
        cluster = self.cluster(nodes, start=False)
        self.witnesses = [Witness(cluster.folder, f"w{i + 1}.example").start(NOBODY) for i in range(count)]
        for node in cluster.nodes:
            node.sections["witness"] = {"targets": [f"{w.vkey()} {w.url()}" for w in self.witnesses],
                                        "interval_secs": 1, "timeout_secs": 2}
        cluster.start()
        self.expect(self.done(cluster.leader(), "PUT", "/a", b"1"), 201)
        vkey = wait_for("the ledger's key", lambda: self.key(cluster.nodes[0]))
        for witness in self.witnesses:
            old = witness.vkey()
            witness.kill()
            self.assertEqual(witness.start(vkey).vkey(), old, "the key stays")
        return cluster, vkey

    def key(self, node):
        reply = node.get("/ledger/key", timeout=2)
        return reply.body.decode().strip() if reply.status == 200 else None

    def wait_witnessed(self, node, size, least=1):
        """The newest checkpoint with least cosignatures, once it has size entries."""
        def found():
            reply = node.get(f"/ledger/checkpoint?witnessed={least}", timeout=3)
            return reply.body.decode() if reply.status == 200 and int(reply.body.splitlines()[1]) >= size else None
        return wait_for(f"{least} witnesses on node {node.number} at {size}", found)

    def test_cluster(self):
        cluster, vkey = self.watched(3, 2)
        origin = vkey.split("+")[0]
        size = cluster.leader().size()
        for node in cluster.nodes:
            note = self.wait_witnessed(node, size, 2)
            self.assertEqual(note.splitlines()[0], origin)
            for name in (origin, "w1.example", "w2.example"):
                self.assertEqual(len(re.findall(f"^— {re.escape(name)} ", note, re.M)), 1, note)
        for witness in self.witnesses:
            self.assertEqual(witness.latest(origin)[0], size)
        self.expect(cluster.nodes[0].get("/ledger/checkpoint?witnessed=3"), 404, "not_found")

        self.witnesses[1].kill()  # one that is down holds nothing up
        cluster.kill([cluster.leader()])
        leader = cluster.leader()
        for i in range(20):
            self.expect(self.done(leader, "PUT", f"/b{i}", b"2"), (200, 201))
        self.wait_witnessed(leader, size + 20)
        self.witnesses[1].start(vkey)
        self.wait_witnessed(leader, size + 20, 2)
        failed = leader.get("/metrics").json()["witness"]
        self.assertGreater(failed["cosigned"], 0)
        self.assertEqual(failed["refused"], 0)

    def test_kill_keeps_what_was_answered(self):
        """kill -9 in the middle of a growing ledger: the size never goes back."""
        cluster, vkey = self.watched(1)
        node, witness, origin = cluster.nodes[0], self.witnesses[0], vkey.split("+")[0]
        seen = 0
        for i in range(5):
            node.put(f"/k{i}", b"x")
            self.wait_witnessed(node, node.size())
            seen = max(seen, node.size())
            witness.kill()
            size, _ = witness.start(vkey).latest(origin)
            self.assertGreaterEqual(size, seen)
        stale = witness.client.post("/add-checkpoint", b"old 0\n\n" + node.get("/ledger/checkpoint").body)
        self.assertEqual((stale.status, stale.headers["Content-Type"]), (409, "text/x.tlog.size"))
        self.assertEqual(stale.body, f"{size}\n".encode())

    def test_fork(self):
        """A copied data directory goes another way: the witness refuses it and keeps the evidence."""
        cluster, vkey = self.watched(1)
        node, witness, origin = cluster.nodes[0], self.witnesses[0], vkey.split("+")[0]
        self.wait_witnessed(node, node.size())
        self.assertEqual(node.stop(), 0)
        twin = node.data + "-twin"
        shutil.copytree(node.data, twin)
        node.start().wait_ready()
        node.put("/way", b"one")
        size = node.size()
        self.wait_witnessed(node, size)
        _, before = witness.latest(origin)
        self.assertEqual(node.stop(), 0)

        node.sections["node"]["data_dir"] = twin
        node.start().wait_ready()
        node.put("/way", b"two")
        self.assertEqual(node.size(), size)
        wait_for("the refusal", lambda: node.get("/metrics").json()["witness"]["refused"] > 0)
        node.put("/way", b"three")
        wait_for("another refusal", lambda: b'status="422"} 0' not in witness.client.get("/metrics").body)
        self.assertIn(b"scribe_witness_forks_total", witness.client.get("/metrics").body)
        body_of = lambda note: note.rsplit("\n\n", 1)[0]
        self.assertEqual(body_of(witness.latest(origin)[1]), body_of(before))
        self.assertIn("WITNESS REFUSES THIS LEDGER", node.output())
        self.expect(node.get("/ledger/checkpoint?witnessed=true"), 404, "not_found")
        evidence = os.path.join(witness.data, hashlib.sha256(origin.encode()).hexdigest())
        two = [open(evidence + suffix).read() for suffix in (".fork", ".fork-base")]
        self.assertEqual([note.splitlines()[:2] for note in two], [[origin, str(size)]] * 2)
        self.assertNotEqual(two[0].splitlines()[2], two[1].splitlines()[2])

    def test_requests(self):
        folder = self.cluster(1, start=False).folder
        witness = Witness(folder, "w.example")
        self.witnesses = [witness]
        witness.start(NOBODY)
        self.assertEqual(os.stat(os.path.join(witness.data, "witness.key")).st_mode & 0o777, 0o600)
        post = lambda body: witness.client.post("/add-checkpoint", body).status
        head = b"example.com/foo\n1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n"
        line = "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n".encode()
        self.assertEqual(post(b""), 400)
        self.assertEqual(post(b"old 0\n\n" + head + line), 403)
        self.assertEqual(post(b"old 0\n\n" + head.replace(b"foo", b"bar") + line), 404)
        self.assertEqual(post(b"old 00\n\n" + head + line), 400)
        self.assertIn(post(b"x" * (1 << 20)), (0, 413))
        self.assertEqual(witness.client.get("/add-checkpoint").status, 405)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertEqual(set(pool.map(post, [b"old 0\n\n" + head + line] * 200)), {403})
        second = cli("witness", "--data", witness.data, "--name", "w.example", "--log", NOBODY)
        self.assertEqual((second.returncode, b"in use" in second.stderr), (2, True), second.stderr)
        for args in ((), ("--name", "x"), ("--name", "a b", "--log", NOBODY), ("--name", "x", "--log", "y")):
            self.assertEqual(cli("witness", *args).returncode, 2, args)
        witness.process.terminate()
        self.assertEqual(witness.process.wait(10), 0)


if __name__ == "__main__":
    helpers.main()
