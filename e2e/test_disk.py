"""A full disk (small tmpfs): writes are refused, reads go on, and freed space brings all back."""

import os
import subprocess
import tempfile
import time

import helpers
from helpers import MIB, Scenario, raw_path, wait_for, within
from truth import check

SIZE = 512 * MIB


class FullDisk(Scenario):
    def tmpfs(self):
        """A small file system of its own, unmounted at the end; skips where mount is not permitted."""
        folder = tempfile.mkdtemp(prefix="scribe-disk-")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True)
        if done.returncode != 0:
            os.rmdir(folder)
            self.skipTest(f"mount -t tmpfs is not permitted here: {done.stderr.decode().strip()}")
        return folder

    def run(self, result=None):
        self.mounts = []
        result = super().run(result)  # ends the processes
        for folder in self.mounts:
            subprocess.run(["umount", folder], capture_output=True)
            os.rmdir(folder)
        return result

    def cluster_on_tmpfs(self, n, victim):
        folder = self.tmpfs()
        self.mounts.append(folder)
        c = self.cluster(n, data_dirs={victim: os.path.join(folder, "data")}, storage={"segment_size": 4 * MIB})
        return c, os.path.join(folder, "ballast")

    def fill(self, ballast, leave=MIB):
        """Write a file until only leave bytes are free."""
        stat = os.statvfs(os.path.dirname(ballast))
        with open(ballast, "wb") as f:
            left = stat.f_bavail * stat.f_frsize - leave
            while left > 0:
                left -= f.write(bytes(min(MIB, left)))

    def test_one_node(self):
        c, ballast = self.cluster_on_tmpfs(1, victim=1)
        n = c.nodes[0]
        acked = {}

        def write(i):
            reply = n.put(f"/k{i}", b"%d" % i * 50_000, timeout=30)
            if reply.status in (200, 201):
                acked[f"/k{i}"] = b"%d" % i * 50_000
            return reply
        for i in range(20):
            self.expect(write(i), 201)
        self.fill(ballast)
        counter = iter(range(100, 100_000))
        refused = wait_for("a refused write", lambda: (r := write(next(counter))).status not in (200, 201) and r, 30)
        self.expect(refused, (503, 507))
        if refused.status == 507:
            self.assertEqual(refused.code(), "disk_full")
        self.assertTrue(n.running(), "a full disk must not end the node:\n" + n.output()[-2000:])
        for key, value in acked.items():
            self.assertEqual(self.expect(n.get(key), 200).body, value, "reads go on")
        self.assertEqual(n.get("/health").status, 503, "a node that refuses writes is not ready")
        self.expect(n.get("/health/live"), 200)
        self.assertEqual(n.get("/health").json()["checks"]["disk"], "full")
        self.assertEqual(n.get("/metrics").json()["disk"]["full"], 1)
        os.remove(ballast)
        n.wait_ready()
        self.expect(n.put("/after", b"x"), 201)
        self.assertEqual(n.stop(), 0)
        n.start().wait_ready()
        for key, value in acked.items():
            self.assertEqual(n.get(key).body, value)
        check(self, c)

    def test_start_on_a_full_disk(self):
        """A node whose disk is full at start serves reads, or refuses with one clear line."""
        c, ballast = self.cluster_on_tmpfs(1, victim=1)
        n = c.nodes[0]
        for i in range(20):
            self.expect(n.put(f"/k{i}", b"x" * 100_000), 201)
        self.assertEqual(n.stop(), 0)
        self.fill(ballast, leave=0)
        n.start()
        served = wait_for("an answer or an end",
                          lambda: not n.running() or n.get("/k1?consistency=stale").status == 200)
        if n.running():
            self.assertTrue(served)
            n.kill()
        else:
            self.expect_refusal(n, "space", "full")
        os.remove(ballast)
        n.start().wait_ready()
        self.assertEqual(n.get("/k19").body, b"x" * 100_000)
        check(self, c)

    def test_full_disk_of_the_leader(self):
        """Leadership goes to a node with room, and writes go on."""
        c, ballast = self.cluster_on_tmpfs(3, victim=1)
        full, others = c.nodes[0], c.nodes[1:]
        wait_for("node 1 leads", lambda: (at := c.leader()) is full or not at.post("/cluster/transfer", b'{"to":1}', headers=helpers.JSON))
        self.expect(self.done(full, "PUT", "/before", b"x"), 201)
        self.fill(ballast)
        start = time.monotonic()
        wait_for("leadership moves", lambda: any(n.get("/health").json()["role"] == "leader" for n in others), 30)
        wait_for("a write elsewhere", lambda: others[0].put("/k", b"x" * 10_000).status in (200, 201))
        print(f"writes again after {time.monotonic() - start:.2f} s", end=" ", flush=True)
        for i in range(50):
            self.expect(self.done(others[i % 2], "PUT", raw_path(f"more{i}"), b"x" * 100_000), 201)
        if full.running():
            self.expect(full.get("/before?consistency=stale"), 200)
        else:
            self.expect_refusal(full, "space", "full")
        os.remove(ballast)
        if not full.running():
            full.start()
        full.wait_ready()
        check(self, c)

    def test_all_disks_full(self):
        """All nodes refuse writes and answer reads; when space is back they go on as they are."""
        folder = self.tmpfs()
        self.mounts.append(folder)
        c = self.cluster(3, data_dirs={i: os.path.join(folder, f"data-{i}") for i in (1, 2, 3)})
        ballast = os.path.join(folder, "ballast")
        self.expect(self.done(c.nodes[0], "PUT", "/before", b"x"), 201)
        self.fill(ballast)
        for n in c.nodes:
            wait_for("node %d refuses writes" % n.number, lambda: n.put("/k", b"x").status == 507)
            self.expect(self.done(n, "PUT", "/k", b"x"), 507, "disk_full")
            self.assertEqual(self.expect(n.get("/before"), 200).body, b"x")
            wait_for("it says so", lambda: n.get("/health").json()["checks"]["disk"] == "full")

        def changes():
            """Terms that pass in two seconds."""
            term = c.nodes[0].get("/cluster/status").json()["term"]
            time.sleep(2)
            return c.nodes[0].get("/cluster/status").json()["term"] - term
        within(0, changes)  # nobody can do better
        os.remove(ballast)
        c.wait_ready()
        for n in c.nodes:
            self.expect(self.done(n, "PUT", "/after-%d" % n.number, b"x"), 201)
        check(self, c)


if __name__ == "__main__":
    helpers.main()
