"""A cluster that has lost everything but its bucket, or a backup folder: rebuilt by scribe-ledger restore, on both servers."""

import os
import pathlib
import random
import shutil
import subprocess
import time

import helpers
from archived import Bucketed, Written, check_tools
from helpers import LONG, binary, cli, wait_for
from load import Load
from truth import check

CUT = "cluster/restored"


class Restore:
    def lost(self, rotate=False):
        """A cluster with a load and everything archived; its nodes are still there. (cluster, load, written)"""
        c = self.archiving(3)
        first = self.vkey_of(c.nodes[0])
        written = Written(self, c.leader(), count=1500)
        if rotate:
            self.expect(self.done(c.leader(), "POST", "/cluster/rotate-key"), 200)
            wait_for("the new key", lambda: self.vkey_of(c.nodes[0]) != first)
        with Load(c, writers=3, size=500) as load:
            wait_for("writes", lambda: load.count() > 300, 120)
        self.archive(c)
        size = c.nodes[0].size()
        wait_for("the manifest of all", lambda: any(f"/manifests/{size:020d}-" in key for key in self.bucket.objects()))
        return c, load, written

    def restore(self, node, *args, status=0, says="."):
        """scribe-ledger restore with the configuration of a node."""
        done = cli("restore", "--config", node.config, *args)
        text = (done.stdout + done.stderr).decode()
        self.assertIn(done.returncode, status if isinstance(status, tuple) else (status,), text)
        self.assertRegex(text, says)
        return text

    def wipe(self, c):
        c.kill()
        for node in c.nodes:
            shutil.rmtree(node.data)

    def come_back(self, c, load, written):
        """Node 1 was rebuilt: it starts, the others join, and everything is there, with one entry that tells of the cut."""
        size = max(written.last, max(load.acked) + 1)
        c.nodes[0].start().wait_ready()
        self.vkey_of(c.nodes[0])
        cut = self.expect(c.nodes[0].get("/verify/" + CUT), 200).json()
        self.assertGreaterEqual(cut["seq"], size)
        told = self.expect(c.nodes[0].get("/kv/" + CUT), 200).json()
        self.assertIn(str(cut["seq"]), str(told))
        for node in c.nodes[1:]:
            node.start()
        c.wait_ready()
        wait_for("three voters", lambda: [m["role"] for m in c.nodes[0].get("/cluster/members").json()["members"]].count("follower") == 2)
        for node in c.nodes:
            written.check(node, 10)
        written.check_writes(c.nodes[1])
        check_tools(self, c.nodes[2])
        ledger = check(self, c, load)
        self.assertEqual([e["seq"] for e in ledger if e.get("key") == CUT], [cut["seq"]])
        self.archive(c)

    def test_from_the_bucket(self):
        c, load, written = self.lost()
        node, old = c.nodes[0], self.vkey
        receipt = pathlib.Path(c.folder, "receipt")
        receipt.write_text(self.expect(c.leader().get("/verify/k7"), 200).json()["receipt"])
        data = node.sections["node"]["data_dir"]
        self.restore(node, "--force", status=(1, 2), says="not empty|in use")
        node.stop()
        shutil.move(data, data + ".kept")
        self.restore(node, status=1, says="the cluster lives")
        self.restore(node, "--force", status=1, says="another member of the cluster answers")
        self.assertEqual(os.listdir(data), ["LOCK"])  # as good as empty: it could still join
        c.kill()
        shutil.rmtree(data + ".kept")
        for other in c.nodes[1:]:
            shutil.rmtree(other.data)
        for _ in range(20 if LONG else 4):
            begun = subprocess.Popen([binary(), "restore", "--config", node.config, "--force", "--key", old], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(random.random() * 0.25)
            begun.kill()
            begun.wait()
            left = os.listdir(data)
            if "restore.json" in left:
                node.start()
                self.expect_refusal(node, "not restored to the end")
            elif "node.json" in left:  # done, if killed as it said so or not
                break
        else:
            self.restore(node, "--key", old)  # waits until the archive shows that nobody leads
        self.come_back(c, load, written)
        done = cli("verify", "--receipt", str(receipt), "--key", old)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.check_bucket(c)

    def test_from_a_folder(self):
        """backup of a running cluster whose segments are cold, audited there, and taken for a restore without any bucket."""
        c, load, written = self.lost(rotate=True)
        node, folder = c.nodes[0], os.path.join(c.folder, "backup")
        self.make_cold(c, [c.nodes[1]])
        done = cli("backup", "--url", c.nodes[1].url, "--to", folder)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for place in (["--data", folder], ["--url", f"s3://{self.bucket.name}/test/scribe", "--config", node.config]):
            done = cli("audit", *place, env={"SCRIBE_CONFIG_DIR": os.path.join(c.folder, "pins")})
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.wipe(c)
        self.bucket.empty()
        self.restore(node, "--from", folder, "--force")
        self.come_back(c, load, written)
        self.check_bucket(c)


class RestoreFromVersitygw(Restore, Bucketed):
    def test_what_is_refused(self):
        """A bucket with two clusters, with none, with a damaged manifest, with a key that nobody knows."""
        c = self.archiving(1)
        self.expect(c.nodes[0].put("/k", b"v"), 201)
        self.archive(c)
        other = self.archiving(1, start=False)
        other.nodes[0].sections["cluster"]["name"] = "other"
        other.start()
        self.expect(other.nodes[0].put("/k", b"w"), 201)
        self.archive(other)
        wait_for("two manifests", lambda: sum("/manifests/" in key for key in self.bucket.objects()) >= 2)
        ids = [x.nodes[0].get("/cluster/status").json()["cluster_id"] for x in (c, other)]
        key = self.expect(c.nodes[0].get("/ledger/key"), 200).body.decode().strip()
        self.wipe(c)
        self.wipe(other)
        node = c.nodes[0]
        text = self.restore(node, "--force", status=2, says="--cluster")
        for i in ids:
            self.assertIn(i.replace("-", ""), text.replace("-", ""))
        self.restore(node, "--force", "--cluster", ids[1], "--key", key, status=1, says="key")
        self.assertFalse(os.path.exists(node.data))
        self.restore(node, "--force", "--cluster", ids[0], "--key", key)
        node.start().wait_ready()
        self.assertEqual(self.expect(node.get("/k"), 200).body, b"v")
        self.wipe(c)
        for name, body in self.bucket.objects().items():
            if "/manifests/" in name:
                self.bucket.put(name, b"x" * body)
        self.restore(node, "--force", "--cluster", ids[0], status=1, says="manifest")
        self.bucket.empty()
        self.restore(node, "--force", status=2, says="has no manifest of any cluster")


class RestoreFromMinio(Restore, Bucketed):
    server_name = "minio"


if __name__ == "__main__":
    helpers.main()
