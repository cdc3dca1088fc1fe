"""verify and audit against real nodes: proofs on the command line, rollbacks, damage in the files."""

import base64
import json
import os
import pathlib
import re
import shutil
import tempfile

import helpers
from helpers import NDJSON, Scenario, cli, sha256, wait_for


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
        lines = [json.dumps({"op": "put", "key": f"k{i % 50}", "value": f"value {i}"}) for i in range(count)]
        self.expect(node.post("/batch", "\n".join(lines).encode(), headers=NDJSON), 200)

    def write(self, data):
        path = os.path.join(self.pins, f"file-{sha256(data)[:12]}")
        pathlib.Path(path).write_bytes(data)
        return path

    def test_verify_online_on_every_node(self):
        cluster = self.cluster(3)
        self.fill(cluster.leader(), 300)
        large = os.urandom(3 * helpers.MIB)
        self.expect(cluster.leader().put("/large", large), 201)
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

    def test_receipt_offline_with_a_quorum_of_nodes(self):
        cluster = self.cluster(3)
        leader = cluster.leader()
        self.fill(leader, 30)
        reply = self.expect(leader.put("/contract?receipt=true", b"signed by all"), 201).json()
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
        checkpoint = cluster.nodes[1].get("/ledger/checkpoint").body.decode()
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
        self.expect(leader.post("/cluster/seal"), 200)
        self.fill(leader, 700)
        self.expect(leader.delete("/k3"), 200)
        for node in cluster.nodes:
            self.run_cli("audit", url=node.url, says="2701 entries")
            wait_for("the segment file", lambda: list(pathlib.Path(node.data, "segments").glob("*.seg")))
            self.run_cli("audit", "--data", node.data, says="a running node holds the lock")
        self.expect(leader.post("/cluster/seal"), 200)
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


if __name__ == "__main__":
    helpers.main()
