"""Starts that must be refused: exit 2 and one clear line, and nothing on the disk is touched."""

import json
import os
import shutil
import subprocess
import time

import helpers
from helpers import Scenario, wait_for
from truth import check


class Configuration(Scenario):
    def refused(self, text, *places, env=None):
        """Serve with this configuration text must end with 2 and name every one of places; the report."""
        node = self.cluster(1, start=False).nodes[0]
        with open(node.config, "w") as f:
            f.write(text.replace("DATA", node.data))
        done = subprocess.run([helpers.binary(), "serve", "--config", node.config], capture_output=True, timeout=20,
                              env={**os.environ, **(env or {})})
        report = (done.stdout + done.stderr).decode()
        self.assertEqual(done.returncode, 2, report)
        self.assertNotIn("goroutine", report)
        for place in places:
            self.assertIn(place, report)
        self.assertFalse(os.path.exists(node.data), "a refused configuration must not create the data directory")
        return report

    def test_faults_are_named_with_file_and_line(self):
        head = '[node]\nid = 1\ndata_dir = "DATA"\n'
        self.refused("[node\nid = 1\n", "config-node1.toml", "1")
        self.refused(head + "[storage]\nsegment_sizes = 5\n", "config-node1.toml:5", "segment_sizes")
        self.refused(head + "[network]\nclient_port = 70000\n", "config-node1.toml:5", "client_port", "70000")
        self.refused(head + '[storage]\nseal_after = "soon"\n', "config-node1.toml:5", "seal_after")
        self.refused(head + "[network]\nraft_port = \"x\"\n", "config-node1.toml:5", "raft_port")
        self.refused(head + '[api]\nread_consistency = "maybe"\n', "config-node1.toml:5", "read_consistency")
        self.refused('[node]\nid = 0\ndata_dir = "DATA"\n', "config-node1.toml:2", "id")

    def test_all_faults_in_one_report(self):
        self.refused('[node]\nid = 1\ndata_dir = "DATA"\ncolour = "red"\n[network]\nclient_port = -1\n'
                     "[consensus]\nelection_timeout_min = 900\nelection_timeout_max = 300\n",
                     "colour", "client_port", "election_timeout")

    def test_environment_and_arguments(self):
        text = '[node]\nid = 1\ndata_dir = "DATA"\n'
        self.refused(text, "SCRIBE_NETWORK_CLIENT_PORT", env={"SCRIBE_NETWORK_CLIENT_PORT": "many"})
        for args in (["serve", "--config", "/nonexistent.toml"], ["serve", "--no-such-flag"],
                     ["serve", "--log-level", "loud"]):
            done = subprocess.run([helpers.binary(), *args], capture_output=True, timeout=20)
            self.assertEqual(done.returncode, 2, done)

    def test_raft_on_an_open_address_without_tls(self):
        text = '[node]\nid = 1\naddress = "0.0.0.0"\ndata_dir = "DATA"\n'
        self.assertIn("insecure", self.refused(text))


class DataDirectory(Scenario):
    def edit_node_json(self, node, change):
        path = os.path.join(node.data, "node.json")
        with open(path) as f:
            fields = json.load(f)
        change(fields)
        with open(path, "w") as f:
            json.dump(fields, f)

    def test_second_process(self):
        c = self.cluster(1)
        first = c.nodes[0]
        first.put("/k", b"x")
        other = self.cluster(1, start=False).nodes[0]
        other.sections["node"]["data_dir"] = first.data
        line = self.expect_refusal(other.start(), "lock", "in use", "another process", "already")
        self.assertIn(first.data, line)
        self.assertEqual(first.get("/k").body, b"x")

    def test_newer_format(self):
        c = self.cluster(1)
        node = c.nodes[0]
        node.put("/k", b"x")
        self.assertEqual(node.stop(), 0)
        keep = {}

        def newer(fields):
            name = next(n for n in fields if "format" in n or n == "version")
            keep[name] = fields[name]
            fields[name] += 1
        self.edit_node_json(node, newer)
        self.expect_refusal(node.start(), "format", "version", "newer")
        self.edit_node_json(node, lambda fields: fields.update(keep))
        node.start().wait_ready()
        self.assertEqual(node.get("/k").body, b"x", "the refusal must have left the data alone")

    def test_another_node_and_another_cluster_by_name(self):
        node = self.node(cluster={"name": "first"})
        self.assertEqual(node.stop(), 0)
        node.sections["node"]["id"] = 2
        self.expect_refusal(node.start(), "id", "node")
        node.sections["node"]["id"] = 1
        node.sections["cluster"]["name"] = "second"
        self.expect_refusal(node.start(), "cluster", "first")

    def test_directory_of_another_cluster_of_the_same_name(self):
        """Its node must not disturb the cluster, serve foreign data or vote in it."""
        a, b = self.cluster(), self.cluster()
        a.nodes[0].put("/only-in-a", b"x")
        b.nodes[0].put("/only-in-b", b"x")
        a.stop()
        stranger = b.nodes[2]
        self.assertEqual(stranger.stop(), 0)
        shutil.rmtree(stranger.data)
        shutil.copytree(a.nodes[2].data, stranger.data)
        stranger.start()
        others = b.nodes[:2]
        until = time.monotonic() + 5.0  # of life beside the stranger
        while time.monotonic() < until:
            for node in others:
                self.expect(self.done(node, "PUT", "/k", b"x"), (200, 201))
            if stranger.running():
                self.assertIn(stranger.get("/health", timeout=3).status, (0, 503))
                self.assertIn(stranger.get("/only-in-a", timeout=5).status, (0, 503, 504))
        wait_for("still one leader", lambda: b.leader() in others)
        self.expect(others[0].get("/only-in-a"), 404)
        if not stranger.running():
            self.expect_refusal(stranger, "cluster")
        else:
            stranger.kill()
        check(self, b)

    def test_read_only_directory(self):
        node = self.node()
        node.put("/k", b"x")
        self.assertEqual(node.stop(), 0)
        mounted = subprocess.run(["mount", "--bind", "-o", "ro", node.data, node.data], capture_output=True)
        if mounted.returncode == 0:
            subprocess.run(["mount", "-o", "remount,bind,ro", node.data], check=True)
        elif os.getuid() != 0:
            os.chmod(node.data, 0o555)
        else:
            self.skipTest("root may write everywhere and mount is not permitted here")
        try:
            self.expect_refusal(node.start(), "read-only", "permission", "read only")
        finally:
            subprocess.run(["umount", node.data], capture_output=True)
            os.chmod(node.data, 0o755)
        node.start().wait_ready()
        self.assertEqual(node.get("/k").body, b"x")


if __name__ == "__main__":
    helpers.main()
