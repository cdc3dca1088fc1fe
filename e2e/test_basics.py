"""One node: write, read, history, listing, batches, time travel, the command line."""

import base64
import json
import os
import subprocess
import tempfile
import time

import helpers
from helpers import JSON, NDJSON, Scenario, binary, cli, free_port, raw_path, sha256, wait_for, within
from truth import check


class Basics(Scenario):
    def setUp(self):
        self.n = self.node()

    def tearDown(self):
        check(self, self.clusters[0])

    def test_put_and_get(self):
        first = self.expect(self.n.put("/greeting", b"hello", headers={"Content-Type": "text/x-test"}), 201)
        entry = first.json()
        self.assertEqual(entry["seq"], 0)
        self.assertEqual((entry["key"], entry["op"], entry["version"], entry["prev"]), ("greeting", "put", 1, None))
        self.assertEqual((entry["size"], entry["sha256"]), (5, sha256(b"hello")))
        self.assertRegex(entry["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertRegex(entry["leaf_hash"], "^[0-9a-f]{64}$")
        self.assertEqual(first.headers["ETag"], '"0"')
        second = self.expect(self.n.put("/greeting", b"hello again"), 200).json()
        self.assertEqual((second["seq"], second["version"], second["prev"]), (1, 2, 0))

        got = self.expect(self.n.get("/greeting?version=1"), 200)
        self.assertEqual((got.body, got.headers["Content-Type"]), (b"hello", "text/x-test"))
        self.assertEqual((got.headers["Scribe-Seq"], got.headers["Scribe-Version"]), ("0", "1"))
        self.assertEqual(got.headers["Scribe-Ledger-Size"], "2")
        digest = base64.b64encode(bytes.fromhex(sha256(b"hello"))).decode()
        self.assertEqual(got.headers["Repr-Digest"], f"sha-256=:{digest}:")
        for name in ("Last-Modified", "Scribe-Time", "X-Request-Id"):
            self.assertTrue(got.headers[name], name)

    def test_head_range_and_conditional_get(self):
        self.n.put("/r", b"0123456789")
        head = self.expect(self.n.request("HEAD", "/r"), 200)
        self.assertEqual((head.body, head.headers["Content-Length"]), (b"", "10"))
        part = self.expect(self.n.get("/r", headers={"Range": "bytes=2-4"}), 206)
        self.assertEqual((part.body, part.headers["Content-Range"]), (b"234", "bytes 2-4/10"))
        self.expect(self.n.get("/r", headers={"Range": "bytes=99-"}), 416)
        self.expect(self.n.get("/r", headers={"If-None-Match": '"0"'}), 304)
        self.expect(self.n.get("/r", headers={"If-None-Match": '"7"'}), 200)

    def test_history_time_travel_and_delete(self):
        for value in (b"one", b"two", b"three"):
            self.n.put("/k", value)
            time.sleep(0.005)  # versions get times of their own
        versions = self.n.get("/history/k?limit=2").json()
        self.assertEqual([v["version"] for v in versions["versions"]], [3, 2])
        older = self.n.get(f"/history/k?limit=2&before={versions['next']}").json()
        self.assertEqual(([v["version"] for v in older["versions"]], older["next"]), ([1], None))
        self.assertEqual(self.n.get("/k?seq=1").body, b"two")
        self.assertEqual(self.n.get("/k?at=1").body, b"two")
        self.assertEqual(self.n.get(f"/k?at={versions['versions'][1]['time']}").body, b"two")

        gone = self.expect(self.n.delete("/k"), 200).json()
        self.assertEqual((gone["op"], gone["version"], gone["size"]), ("delete", 4, 0))
        self.assertIn(self.expect(self.n.get("/k"), 404).code(), ("deleted", "not_found"))
        self.expect(self.n.get("/k?version=4"), 404, "deleted")
        self.assertEqual(self.n.get("/k?version=3").body, b"three")
        self.expect(self.n.put("/k", b"back", headers={"If-None-Match": "*"}), (200, 201))

    def test_keys_are_bytes(self):
        odd = ["a//b", "a/../b", "a/", "a/./b", "%00", "%D0%BA%D0%BB%D1%8E%D1%87", "%FF%FE", "a%2Fb", "a+b", "a%20b",
               "a%3Fb"]
        for i, path in enumerate(odd):
            self.expect(self.n.put("/" + path, f"v{i}".encode()), 201)
        for i, path in enumerate(odd):
            self.assertEqual(self.n.get("/" + path).body, f"v{i}".encode(), path)
            self.assertEqual(self.n.get("/kv/" + path).body, f"v{i}".encode(), path)
        self.assertEqual(self.n.get("/a/b").body, b"v7", "%2F is the byte /")
        listed = [k.get("key", k.get("key_base64")) for k in self.n.get("/keys?limit=100").json()["keys"]]
        self.assertEqual(len(listed), len(odd))
        self.assertIn("ключ", listed)
        self.assertIn(base64.b64encode(b"\xff\xfe").decode(), listed)

    def test_listing_pages_in_byte_order(self):
        names = [f"p/{i:03d}" for i in range(25)]
        for name in reversed(names):
            self.n.put(raw_path(name), b"x")
        self.n.put("/q", b"x")
        self.n.delete("/p/007")
        seen, after = [], ""
        while after is not None:
            page = self.n.get(f"/keys?prefix=p/&limit=10&after={after}").json()
            seen += [k["key"] for k in page["keys"]]
            after = page["next"]
        self.assertEqual(seen, [name for name in names if name != "p/007"])

    def test_reads_after_seal_and_restart(self):
        for i in range(50):
            self.n.put(f"/s{i % 10}", f"value {i}".encode())
        self.expect(self.n.post("/cluster/seal"), 200)
        self.n.put("/s0", b"pending")
        self.assertEqual(self.n.stop(), 0)
        self.n.start().wait_ready()
        self.assertEqual(self.n.get("/s0").body, b"pending")
        for i in range(40, 50):
            self.assertEqual(self.n.get(f"/s{i % 10}?version=5").body, f"value {i}".encode())

    def test_batches(self):
        ops = [{"op": "put", "key": f"b{i}", "value": f"v{i}", "content_type": "text/x-b"} for i in range(3)]
        results = self.expect(self.n.post("/batch", json.dumps({"ops": ops}), headers=JSON), 200).json()["results"]
        self.assertEqual([r["seq"] for r in results], [0, 1, 2])
        self.assertEqual(self.n.get("/b1").headers["Content-Type"], "text/x-b")
        lines = [{"op": "put", "key": "b9", "value_base64": "/wA="}, {"op": "delete", "key": "b0"},
                 {"op": "put", "key": "b1", "value": "again", "if_seq": 1}]
        body = "".join(json.dumps(line) + "\n" for line in lines)
        answers = self.expect(self.n.post("/batch", body, headers=NDJSON), 200).lines()
        self.assertEqual([a["seq"] for a in answers], [3, 4, 5])
        self.assertEqual(self.n.get("/b9").body, b"\xff\x00")

    def test_operations_endpoints(self):
        health = self.expect(self.n.get("/health"), 200).json()
        self.assertEqual((health["status"], health["node_id"], health["role"]), ("ok", 1, "leader"))
        self.expect(self.n.get("/health/live"), 200)
        status = self.expect(self.n.get("/cluster/status"), 200).json()
        self.assertEqual((status["node_id"], status["leader"]["id"], status["leader"]["http"]), (1, 1, self.n.url))
        self.assertEqual(self.n.get("/cluster/members").json()["members"][0]["role"], "leader")
        self.assertEqual(self.n.get("/cluster/leader").json()["id"], 1)
        self.assertIsInstance(self.expect(self.n.get("/metrics"), 200).json(), dict)


class CommandLine(Scenario):
    def test_client_commands(self):
        n = self.node()
        with tempfile.NamedTemporaryFile() as f:
            f.write(b"from a file")
            f.flush()
            self.assertEqual(cli("put", "file", f.name, url=n.url).returncode, 0)
        self.assertEqual(cli("put", "stdin", "-", url=n.url, stdin=b"piped").returncode, 0)
        self.assertEqual(cli("get", "file", url=n.url).stdout, b"from a file")
        self.assertEqual(cli("get", "stdin", env={"SCRIBE_URL": n.url}).stdout, b"piped")
        self.assertEqual(cli("rm", "stdin", url=n.url).returncode, 0)
        self.assertEqual(cli("get", "stdin", url=n.url).returncode, 1)
        for command in (("history", "file"), ("keys", "f"), ("status",)):
            done = cli(*command, url=n.url)
            self.assertEqual(done.returncode, 0, done)
            self.assertTrue(done.stdout, command)
        self.assertEqual(cli("version").returncode, 0)
        self.assertEqual(cli("no-such-command").returncode, 2)
        self.assertEqual(cli("get", "x", url="http://127.0.0.1:1").returncode, 1)

    def test_import_and_export(self):
        n = self.node()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "in.ndjson")
            with open(path, "w") as f:
                for i in range(2000):
                    f.write(json.dumps({"op": "put", "key": f"i/{i:05d}", "value": f"value {i}"}) + "\n")
            done = cli("import", path, url=n.url)
            self.assertEqual(done.returncode, 0, done)
        exported = [json.loads(line) for line in cli("export", url=n.url).stdout.splitlines()]
        self.assertEqual({e["key"]: e["value"] for e in exported}, {f"i/{i:05d}": f"value {i}" for i in range(2000)})

    def test_no_arguments_serve_from_the_working_directory(self):
        within(1.5, self.serve_from_the_working_directory)  # one node must be ready in under a second

    def serve_from_the_working_directory(self):
        """How long that takes."""
        with tempfile.TemporaryDirectory() as folder:
            port = free_port()
            env = {**os.environ, "SCRIBE_NETWORK_LISTEN_ADDR": f"127.0.0.1:{port}",
                   "SCRIBE_NETWORK_CLIENT_PORT": str(port), "SCRIBE_NETWORK_RAFT_PORT": str(free_port())}
            start = time.monotonic()
            process = subprocess.Popen([binary()], cwd=folder, env=env, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                wait_for("ready", lambda: helpers.Client(port).get("/health").status == 200, interval=0.01)
                took = time.monotonic() - start
                self.assertTrue(os.path.isdir(os.path.join(folder, "data")))
            finally:
                process.terminate()
                self.assertEqual(process.wait(60), 0)
        return took


if __name__ == "__main__":
    helpers.main()
