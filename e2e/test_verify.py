"""verify and audit against real nodes: proofs on the command line, rollbacks, damage in the files."""

import base64
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import helpers
import test_verify_ledger as made
from helpers import MAX_VALUE, Scenario, cli, raw_path, sha256, wait_for


class Verify(Scenario):
    def setUp(self):
        self.pins = tempfile.mkdtemp(prefix="scribe-pins-")
        self.addCleanup(shutil.rmtree, self.pins)

    def run_cli(self, *args, status=0, says="", url=None):
        done = cli(*args, url=url, env={"SCRIBE_CONFIG_DIR": self.pins})
        text = (done.stdout + done.stderr).decode()
        self.assertEqual(done.returncode, status, text)
        self.assertIn(says, text)
        return text

    def fill(self, node, count):
        self.batch(node, [{"op": "put", "key": f"k{i % 50}", "value": f"value {i}"} for i in range(count)])

    def write(self, data):
        path = os.path.join(self.pins, f"file-{sha256(data)[:12]}")
        pathlib.Path(path).write_bytes(data)
        return path

    def test_verify_online_on_every_node(self):
        cluster = self.cluster(3)
        self.fill(cluster.leader(), 300)
        large = os.urandom(3 * helpers.MIB)
        self.expect(self.done(cluster.leader(), "PUT", "/large", large), 201)
        first = self.run_cli("verify", "k7", url=cluster.nodes[0].url, says="first visit")
        self.assertIn("version 6, put", first)
        for node in cluster.nodes:
            text = self.run_cli("verify", "large", url=node.url, says="SHA-256 " + sha256(large))
            self.assertNotIn("k7", text)
            self.run_cli("verify", "k7", "--version", "2", url=node.url, says="version 2, put")
        self.run_cli("rm", "k7", url=cluster.nodes[0].url)
        self.run_cli("verify", "k7", url=cluster.nodes[1].url, says="version 7, delete")
        self.run_cli("verify", "absent", url=cluster.nodes[2].url, status=1, says="not_found")
        self.assertEqual(os.listdir(os.path.join(self.pins, "evidence")), [])

    def test_every_kind_of_entry_through_all_that_happens(self):
        """A tombstone, a key that is no text, no value and the largest: on each node, whoever leads, with any key."""
        cluster = self.cluster(3)
        leader = cluster.leader()
        strange, largest = b"\xff\xfe %/\x01", os.urandom(MAX_VALUE)
        self.expect(self.done(leader, "PUT", "/gone", b"for now"), 201)
        self.expect(self.done(leader, "DELETE", "/gone"), 200)
        self.expect(self.done(leader, "PUT", raw_path(strange), b"of a strange key"), 201)
        self.expect(self.done(leader, "PUT", "/empty", b""), 201)
        self.expect(self.done(leader, "PUT", "/largest", largest), 201)
        wanted = {b"gone": 'key "gone", version 2, delete', strange: "SHA-256 " + sha256(b"of a strange key"),
                  b"empty": "value      0 bytes, SHA-256 " + sha256(b""), b"largest": f"{MAX_VALUE} bytes, SHA-256 {sha256(largest)}"}

        def verify_all():
            for node in cluster.running():
                for key, says in wanted.items():
                    self.run_cli("verify", key, url=node.url, says=says)
                self.run_cli("verify", "gone", "--version", "1", url=node.url, says="SHA-256 " + sha256(b"for now"))

        verify_all()
        self.assertIn(r"\xff\xfe", self.run_cli("verify", strange, url=leader.url))
        self.expect(self.done(leader, "POST", "/cluster/seal"), 200)
        leader.kill()
        self.expect(self.done(cluster.leader(), "PUT", "/since", b"another leads"), 201)
        verify_all()
        leader.start().wait_ready()
        cluster.stop()
        for node in cluster.nodes:
            node.start()
        cluster.wait_ready()
        verify_all()
        self.expect(self.done(cluster.leader(), "POST", "/cluster/rotate-key"), 200)
        self.expect(self.done(cluster.leader(), "PUT", "/gone", b"back"), 200)
        wanted[b"gone"] = 'key "gone", version 3, put'
        verify_all()
        self.assertEqual(os.listdir(os.path.join(self.pins, "evidence")), [])

    def test_receipt_offline_with_a_quorum_of_nodes(self):
        cluster = self.cluster(3)
        leader = cluster.leader()
        self.fill(leader, 30)
        reply = self.expect(self.done(leader, "PUT", "/contract?receipt=true", b"signed by all"), 201).json()
        keys = json.loads(leader.get("/ledger/keys").body)
        vkey = leader.get("/ledger/key").body.decode().strip()
        self.assertEqual(keys["current"], vkey)
        receipt = self.write(reply["receipt"].encode())
        value, other = self.write(b"signed by all"), self.write(b"signed by none")
        cluster.kill()  # nobody to ask
        self.run_cli("verify", "--receipt", receipt, "--value", value, "--key", vkey, says='key "contract", version 1')
        self.run_cli("verify", "--receipt", receipt, "--key", self.write(vkey.encode()), says="tree ")
        self.run_cli("verify", "--receipt", receipt, "--value", other, "--key", vkey, status=1, says="not verified")
        damaged = self.write(reply["receipt"].replace("index ", "index 1").encode())
        self.run_cli("verify", "--receipt", damaged, "--key", vkey, status=1)

    def test_quorum_of_nodes(self):
        cluster = self.cluster(3)
        self.fill(cluster.leader(), 30)
        checkpoint = self.signed_by_all(cluster.nodes[1])
        proof = cluster.nodes[1].get("/verify/k3").json()
        size = int(checkpoint.split("\n")[1])
        inclusion = cluster.nodes[1].get(f"/ledger/proof?seq={proof['seq']}&size={size}").json()["inclusion"]
        text = "c2sp.org/tlog-proof@v1\nextra " + proof["leaf"] + f"\nindex {proof['seq']}\n"
        text += "".join(base64.b64encode(bytes.fromhex(h)).decode() + "\n" for h in inclusion) + "\n" + checkpoint
        keys = json.loads(cluster.nodes[0].get("/ledger/keys").body)
        nodes = [arg for vkey in keys["nodes"].values() for arg in ("--node-key", vkey)]
        receipt = self.write(text.encode())
        self.run_cli("verify", "--receipt", receipt, "--key", keys["current"], "--quorum", "2", *nodes, says="cosigned")
        self.run_cli("verify", "--receipt", receipt, "--key", keys["current"], "--quorum", "4", *nodes, status=2)

    def test_rollback_leaves_evidence(self):
        cluster = self.cluster(1)
        node = cluster.nodes[0]
        self.fill(node, 40)
        node.stop()
        kept = node.data + ".kept"
        shutil.copytree(node.data, kept)
        node.start().wait_ready()
        self.fill(node, 40)
        self.run_cli("verify", "k1", url=node.url)
        node.stop()
        shutil.rmtree(node.data)
        os.rename(kept, node.data)
        node.start().wait_ready()
        text = self.run_cli("verify", "k1", url=node.url, status=1, says="rollback")
        path = re.search(r"evidence: (\S+)", text)[1]
        evidence = pathlib.Path(path).read_text()
        self.assertRegex(evidence, r"(?s)=== checkpoint seen before\n\S+\n80\n.*\u2014 .*=== checkpoint shown now\n\S+\n40\n.*\u2014 ")
        self.fill(node, 60)  # the tree is larger again, but another one
        self.run_cli("verify", "k1", url=node.url, status=1, says="does not extend")

    def test_another_ledger_at_the_same_url(self):
        cluster = self.cluster(1)
        node = cluster.nodes[0]
        self.fill(node, 10)
        self.run_cli("verify", "k1", url=node.url)
        node.stop()
        shutil.rmtree(node.data)
        node.start().wait_ready()
        self.fill(node, 10)
        self.run_cli("verify", "k1", url=node.url, status=1, says="evidence: ")

    def test_rotated_key(self):
        node = self.node()
        self.fill(node, 10)
        self.run_cli("verify", "k1", url=node.url, says="pinned")
        old = node.get("/ledger/key").body
        self.expect(node.post("/cluster/rotate-key"), 200)
        self.assertNotEqual(node.get("/ledger/key").body, old)
        self.run_cli("verify", "k1", url=node.url, says="handed over")
        self.assertNotIn("handed over", self.run_cli("verify", "k1", url=node.url))

    def test_audit_of_a_running_cluster(self):
        cluster = self.cluster(3)
        leader = cluster.leader()
        self.fill(leader, 2000)
        self.expect(self.done(leader, "POST", "/cluster/seal"), 200)
        self.fill(leader, 700)
        self.expect(self.done(leader, "DELETE", "/k3"), 200)
        for node in cluster.nodes:
            self.run_cli("audit", url=node.url, says="2701 entries")
            wait_for("the segment file", lambda: list(pathlib.Path(node.data, "segments").glob("*.seg")))
            self.run_cli("audit", "--data", node.data, says="a running node holds the lock")
        self.expect(self.done(leader, "POST", "/cluster/seal"), 200)
        checkpoint = self.write(leader.get("/ledger/checkpoint").body)
        vkey = leader.get("/ledger/key").body.decode().strip()
        wait_for("two segment files", lambda: len(list(pathlib.Path(leader.data, "segments").glob("*.seg"))) == 2)
        self.run_cli("audit", "--data", leader.data, "--key", vkey, "--checkpoint", checkpoint, says="agrees")
        cluster.stop()
        for node in cluster.nodes:
            text = self.run_cli("audit", "--data", node.data, says="segments agree")
            self.assertRegex(text, r"signed +\d+ entries, root [0-9a-f]{64}: agrees")

    def test_audit_finds_damage(self):
        node = self.node()
        self.fill(node, 3000)
        self.expect(node.post("/cluster/seal"), 200)
        node.stop()
        self.run_cli("audit", "--data", node.data, says="segments agree")
        segment = next(pathlib.Path(node.data, "segments").glob("*.seg"))
        sound = segment.read_bytes()
        for at in (3, 40, 64, 5000, len(sound) // 2, len(sound) - 200, len(sound) - 1):
            damaged = bytearray(sound)
            damaged[at] ^= 0x10
            segment.write_bytes(damaged)
            text = self.run_cli("audit", "--data", node.data, status=1, says=segment.name)
            self.assertIn("offset ", text)
        segment.write_bytes(sound[:-1])
        self.run_cli("audit", "--data", node.data, status=1)
        segment.write_bytes(sound)
        segment.rename(segment.with_name("kept"))
        self.run_cli("audit", "--data", node.data, status=1, says="missing")


class Readme(Scenario):
    def test_verify_it_yourself_works_when_pasted(self):
        node = self.node()
        text = pathlib.Path(helpers.ROOT, "README.md").read_text()
        section = text.partition("## Verify it yourself\n")[2].partition("\n## ")[0]
        lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
        self.assertGreater(len(lines), 15)
        folder = tempfile.mkdtemp(dir=node.folder)
        for name, target in (("scribe-ledger", helpers.binary()), ("data", node.data), ("e2e", os.path.join(helpers.ROOT, "e2e"))):
            os.symlink(target, os.path.join(folder, name))
        script = "set -e -o pipefail\n" + "\n".join(lines).replace("http://127.0.0.1:8001", node.url)
        done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, timeout=120,
                              env={**os.environ, "SCRIBE_URL": node.url, "SCRIBE_CONFIG_DIR": os.path.join(folder, "pins")})
        said = (done.stdout + done.stderr).decode()
        self.assertEqual(done.returncode, 0, said)
        self.assertEqual(said.count("verified   key "), sum(line.startswith("./scribe-ledger verify") for line in lines), said)
        self.assertIn("checkpoint checkpoint.txt agrees", said)


class Agreement(unittest.TestCase):
    """The Go verifier and the Python one, which share no code, say the same of every receipt, key and value."""

    ENTRIES = 21  # the last one a tombstone

    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory(prefix="scribe-agree-"))
        self.value = b"value 7"
        put = [made.entry(i, b"key%d" % i, b"value %d" % i) for i in range(self.ENTRIES - 1)]
        self.entries = put + [made.entry(self.ENTRIES - 1, b"key7", b"", 2, 7, made.verifier.DELETE)]
        self.leaves = [made.verifier.leaf_hash(raw) for raw in self.entries]
        self.note = made.checkpoint(made.LEDGER, self.leaves, made.NODES[:2])  # node 3 has not signed
        self.good = self.receipt(7, self.note)

    def receipt(self, seq, note):
        return made.receipt(self.entries[seq], seq, self.leaves, note)

    def file(self, data):
        path = os.path.join(self.folder, sha256(data)[:16])
        pathlib.Path(path).write_bytes(data)
        return path

    def statuses(self, data, key, value, extra):
        """Exit statuses of both for a receipt, given as bytes or as a path."""
        args = [data if isinstance(data, str) else self.file(data), "--key", key, *extra]
        if value is not None:
            args += ["--value", value if isinstance(value, str) else self.file(value)]
        script = [sys.executable, made.SCRIPT, "receipt"]
        go, python = (subprocess.run([*command, *args], capture_output=True, timeout=60)
                      for command in ([helpers.binary(), "verify", "--receipt"], script))
        for done in (go, python):
            text = (done.stdout + done.stderr).decode()
            self.assertNotRegex(text, r"panic:|Traceback")
            self.assertTrue(text.strip())
        return go.returncode, python.returncode

    def cases(self):
        """Name, wanted exit status, and what is not as in the sound case: data, key, value, extra."""
        ledger, nodes, good, text = made.LEDGER, made.NODES, self.good, self.good.decode()
        body, _, signed = text.rpartition("\n\n")
        last = signed.splitlines(keepends=True)[-1]
        other, same = made.Signer("scribe/4567", 1, b"ledger"), made.Signer(ledger.name, 1, b"another")
        fork = made.checkpoint(ledger, self.leaves[:-1])
        foreign = self.receipt(7, made.checkpoint(other, self.leaves))

        def keys(*signers):
            return [arg for s in signers for arg in ("--node-key", s if isinstance(s, str) else s.vkey)]

        def kind(number):
            raw = bytes([number]) + ledger.key
            name = ledger.name.encode()
            return f"{ledger.name}+{made.verifier.sha256(name + bytes([10]) + raw)[:4].hex()}+{base64.b64encode(raw).decode()}"
        return [
            ("sound", 0, {}), ("with its value", 0, {"value": self.value}),
            ("key in a file", 0, {"key": self.file(ledger.vkey.encode() + b"\n")}),
            ("two nodes, all by default", 0, {"extra": keys(*nodes[:2])}),
            ("two of three nodes", 0, {"extra": ["--quorum", "2", *keys(*nodes)]}),
            ("a quorum of none", 0, {"extra": ["--quorum", "0", *keys(*nodes)]}),
            ("no nodes", 0, {"extra": ["--quorum", "0"]}),
            ("a cosignature twice", 0, {"data": good + last.encode(), "extra": keys(*nodes[:2])}),
            ("signatures in another order", 0, {"data": (body + "\n\n" + last + signed.removesuffix(last)).encode()}),
            ("signed by strangers too", 0, {"data": good + other.line("x").encode()}),
            ("a delete", 0, {"data": self.receipt(self.ENTRIES - 1, self.note)}),
            ("all three nodes by default", 1, {"extra": keys(*nodes)}),
            ("three of three nodes", 1, {"extra": ["--quorum", "3", *keys(*nodes)]}),
            ("a node that is a stranger", 1, {"extra": keys(made.Signer("x", 4, b"x"))}),
            ("key of another ledger", 1, {"key": other.vkey}), ("another key of this ledger", 1, {"key": same.vkey}),
            ("receipt of another ledger", 1, {"data": foreign}),
            ("cosigner's key as ledger key", 1, {"key": nodes[0].vkey}),
            ("ledger key as cosigner's", 1, {"extra": keys(ledger)}),
            ("ledger key as cosigner's, quorum 0", 1, {"extra": ["--quorum", "0", *keys(ledger)]}),
            ("key of kind 2", 1, {"key": kind(2)}), ("key of kind 255", 1, {"key": kind(255)}),
            ("node key of kind 5", 1, {"extra": keys(kind(5))}),
            ("value longer", 1, {"value": self.value + b"x"}), ("value shorter", 1, {"value": self.value[:-1]}),
            ("value empty", 1, {"value": b""}), ("another value", 1, {"value": b"value 8"}),
            ("value of a delete", 1, {"data": self.receipt(self.ENTRIES - 1, self.note), "value": b""}),
            ("empty receipt", 1, {"data": b""}), ("no receipt", 1, {"data": b"hello\n"}),
            ("no UTF-8", 1, {"data": good.replace(b"index", b"ind\xffx")}),
            ("huge receipt", 1, {"data": good + last.encode() * (1_000_000 // len(last))}),
            ("65 signatures", 1, {"data": good + last.encode() * 62}), ("64 signatures", 0, {"data": good + last.encode() * 61}),
            ("cut in the middle", 1, {"data": good[:len(good) // 2]}), ("no last newline", 1, {"data": good[:-1]}),
            ("no checkpoint", 1, {"data": text.split("\n\n")[0].encode()}),
            ("no signature", 1, {"data": (body + "\n\n").encode()}),
            ("index of another entry", 1, {"data": good.replace(b"index 7", b"index 8")}),
            ("index beyond the tree", 1, {"data": good.replace(b"index 7", b"index 21")}),
            ("index of 2^64", 1, {"data": good.replace(b"index 7", b"index 18446744073709551616")}),
            ("index with a zero", 1, {"data": good.replace(b"index 7", b"index 07")}),
            ("leaf of another entry", 1, {"data": self.receipt(8, self.note).replace(b"index 8", b"index 7")}),
            ("proof too short", 1, {"data": re.sub(rb"(index 7\n)[^\n]+\n", rb"\1", good)}),
            ("proof too long", 1, {"data": re.sub(rb"(index 7\n)([^\n]+\n)", rb"\1\2\2", good)}),
            ("proof damaged", 1, {"data": re.sub(rb"(index 7\n)([^\n]+\n)([^\n]+\n)", rb"\1\3\2", good)}),
            ("checkpoint of a smaller tree", 1, {"data": self.receipt(7, fork)}),
            ("size changed", 1, {"data": good.replace(b"\n21\n", b"\n22\n")}),
            ("line ends of DOS", 1, {"data": good.replace(b"\n", b"\r\n")}),
            ("key and receipt damaged", 2, {"data": b"", "key": "nonsense"}),
            ("malformed key", 2, {"key": "a+b+c"}), ("key cut", 2, {"key": ledger.vkey[:-4]}),
            ("key with another id", 2, {"key": ledger.vkey.replace("+" + ledger.id.hex(), "+00000000")}),
            ("key of kind 2 with another id", 2, {"key": kind(2).replace("scribe", "scribf")}),
            ("key file absent", 2, {"key": os.path.join(self.folder, "absent")}),
            ("receipt absent", 2, {"data": os.path.join(self.folder, "absent")}),
            ("receipt a folder", 2, {"data": self.folder}), ("value a folder", 2, {"value": self.folder}),
            ("value absent, receipt damaged", 2, {"data": b"", "value": os.path.join(self.folder, "absent")}),
            ("wrong kind, value absent", 2, {"key": kind(2), "value": os.path.join(self.folder, "absent")}),
            ("wrong kind, malformed node key", 2, {"key": kind(2), "extra": keys("nonsense")}),
            ("a node twice", 2, {"extra": keys(nodes[0], nodes[0])}),
            ("more than there are", 2, {"extra": ["--quorum", "3", *keys(*nodes[:2])]}),
            ("quorum without nodes", 2, {"extra": ["--quorum", "1"]}), ("quorum below 0", 2, {"extra": ["--quorum=-1", *keys(*nodes)]}),
            ("quorum no number", 2, {"extra": ["--quorum", "two", *keys(*nodes)]}),
        ]

    def test_same_exit_status(self):
        for name, want, given in self.cases():
            case = {"data": self.good, "key": made.LEDGER.vkey, "value": None, "extra": (), **given}
            with self.subTest(name):
                self.assertEqual(self.statuses(**case), (want, want))

    def test_keys_that_are_no_points(self):
        """The one difference: Go has no public test of a point, so a key that is none just verifies nothing there."""
        raw = b"\x01\x02" + bytes(31)
        name = made.LEDGER.name
        key_id = made.verifier.sha256(name.encode() + b"\n" + raw)[:4].hex()
        status = self.statuses(self.good, f"{name}+{key_id}+{base64.b64encode(raw).decode()}", None, ())
        self.assertEqual(status, (1, 2))


if __name__ == "__main__":
    helpers.main()
