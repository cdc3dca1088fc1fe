"""A bucket that cannot be used: each reason is named at the start, in one log line and in /health; writes go on, no local
copy goes, and all is archived as soon as the bucket can be used, without a restart."""

import json
import pathlib
import re

import socket

import time
import tomllib

import helpers
from archived import Bucketed, segments
from helpers import LONG, free_port, wait_for
from s3_client import Bucket, session
from s3_proxy import Proxy, error, skewed
from s3_servers import READER_KEY, READER_SECRET, SECRET_KEY
from truth import check

READ_ONLY = json.dumps({"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": ["arn:aws:s3:::*"]}]})


class Nodes(Bucketed):
    def node_with(self, keys, environment):
        """A node of its own with another [storage.s3]."""
        node = self.archiving(1, s3=self.s3(**keys), start=False, age_threshold_secs=0).nodes[0]
        node.environment = environment
        return node.start()

    def archive_check(self, node):
        return self.expect(node.get("/health"), 200).json()["checks"].get("archive", "")

    def loud(self, node):
        """Log lines of this start that warn about the bucket, each as its text."""
        records = [json.loads(line) for line in node.output().splitlines() if line.startswith("{")]
        return [json.dumps(r) for r in records if r["level"] in ("WARN", "ERROR") and ("archive" in r["msg"] or "bucket" in r["msg"])]


class Faults(Nodes):
    def silent(self):
        """An address that takes connections and never says anything."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        return "http://127.0.0.1:%d" % listener.getsockname()[1]

    def proxied(self, answer):
        """The address of a proxy that answers so."""
        proxy = Proxy(self.server)
        self.addCleanup(proxy.close)
        proxy.answer = answer
        return proxy.url

    def faults(self):
        """{name: (keys of [storage.s3] that differ, environment, words that name it)}."""
        away = {"path_style": True}
        return {
            "wrong region": ({"region": "mars-1"}, {}, "in region us-east-1 and not in mars-1: set storage.s3.region"),
            "wrong secret": ({"secret_access_key": "other"}, {}, "the secret does not belong to access key scribe-test"),
            "unknown access key": ({"access_key_id": "nobody"}, {}, "does not know access key nobody"),
            "no credentials": ({"access_key_id": None, "secret_access_key": None}, {"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}, "no S3 credentials"),
            "missing bucket": ({"bucket": self.bucket.name + "-x"}, {}, f"has no bucket {self.bucket.name}-x"),
            "nobody listens": ({"endpoint": f"http://127.0.0.1:{free_port()}"}, {}, "connection refused"),
            "no such host": ({"endpoint": "http://minoi.invalid:9000", **away}, {}, "check storage.s3.endpoint"),
            "https on a port without TLS": ({"endpoint": self.server.url.replace("http:", "https:")}, {}, "should perhaps begin with http://"),
            "no answer": ({"endpoint": self.silent(), "timeout_secs": 1, "max_retries": 0}, {}, "storage.s3.timeout_secs"),
            "no S3": ({"endpoint": self.proxied(lambda method, path: (200, {"Content-Type": "text/html"}, b"<html>It works!</html>"))}, {}, "S3"),
            "overloaded": ({"endpoint": self.proxied(lambda method, path: error(503, "SlowDown", "Please reduce your request rate.")), "max_retries": 0}, {}, "SlowDown"),
            "clock behind": ({"endpoint": self.proxied(skewed(3600))}, {}, r"difference of (1h0m0s|59m5\ds|1h0m\ds)"),
            "clock ahead": ({"endpoint": self.proxied(skewed(-3600))}, {}, r"difference of (1h0m0s|59m5\ds|1h0m\ds)"),
            "only reading": self.reader(),
        }

    def reader(self):
        """Credentials that may only read, of versitygw."""
        self.bucket.allow_reading(READER_KEY)
        return {"access_key_id": READER_KEY, "secret_access_key": READER_SECRET}, {}, f"access key {READER_KEY} .*may not put here"

    def test_each_is_named(self):
        faults = self.faults()
        nodes = {name: self.node_with(keys, environment) for name, (keys, environment, _) in faults.items()}
        for name, node in nodes.items():
            node.wait_ready()
            self.expect(node.put("/k", b"v"), 201)
            self.expect(node.post("/cluster/seal"), 200)
        for name, node in nodes.items():
            with self.subTest(name):
                wait_for(f"{name} in /health", lambda: re.search(faults[name][2], self.archive_check(node)))
        time.sleep(2)  # for more attempts, which are to be silent
        for name, node in nodes.items():
            with self.subTest(name):
                lines = self.loud(node)
                self.assertEqual(len(lines), 1, lines)
                self.assertRegex(lines[0], faults[name][2])
                reply = self.expect(node.post("/cluster/archive", timeout=30), 503)
                self.assertRegex(reply.json()["error"]["message"], faults[name][2])
                for secret in (SECRET_KEY, READER_SECRET):
                    self.assertNotIn(secret, node.output())
                self.expect(node.put("/k", b"w"), 200)
                self.assertEqual([s["state"] for s in segments(node)], ["local"] * len(segments(node)))
                self.assertEqual(self.expect(node.get("/k?version=1"), 200).body, b"v")
        self.assertEqual(self.bucket.segments(), {})

    def test_it_can_be_used_later(self):
        """A bucket that is made, and a clock that is set, while the node runs."""
        later = Bucket(self.server, self.bucket.name + "-later")
        proxy = Proxy(self.server)
        self.addCleanup(proxy.close)
        proxy.answer = skewed(3600)
        nodes = [self.node_with({"bucket": later.name}, {}), self.node_with({"endpoint": proxy.url}, {})]
        for node in nodes:
            node.wait_ready()
            self.expect(node.put("/k", b"v"), 201)
            self.expect(node.post("/cluster/seal"), 200)
            wait_for("it is named", lambda: re.search("has no bucket|difference of", self.archive_check(node)))
        later.make()
        proxy.answer = None
        for node in nodes:
            wait_for("it is archived", lambda: [s["state"] for s in segments(node)] != ["local"])
            wait_for("it is well", lambda: not re.search("has no bucket|difference of", self.archive_check(node)))

    def test_the_bucket_of_another_cluster(self):
        """A cluster that was begun anew in place of a lost one, under its name: nothing of either is touched."""
        first = self.archiving(1)
        self.expect(first.nodes[0].put("/k", b"of the first"), 201)
        self.archive(first)
        wait_for("a manifest", lambda: any("/manifests/" in key for key in self.bucket.objects()))
        first.nodes[0].stop()
        before = self.bucket.objects()
        second = self.node_with({}, {}).wait_ready()
        self.expect(second.put("/k", b"of the second"), 201)
        self.expect(second.post("/cluster/seal"), 200)
        wait_for("it is named", lambda: "another cluster" in self.archive_check(second))
        self.expect(second.post("/cluster/archive"), 503)
        self.assertEqual(len(self.loud(second)), 1, self.loud(second))
        self.assertEqual({k: v for k, v in self.bucket.objects().items() if k in before or "/segments/" in k}, before)
        self.assertEqual([s["state"] for s in segments(second)], ["local"])
        first.nodes[0].start().wait_ready()
        self.expect(first.nodes[0].put("/k", b"more"), 200)
        self.archive(first)
        check(self, first)


class Configuration(Nodes):
    def test_the_section_of_config_toml(self):
        """What config.toml has for MinIO is whole as soon as the # in front are gone."""
        section = pathlib.Path(helpers.ROOT, "config.toml").read_text().partition("\n[storage.s3]\n")[2].partition("\n[")[0]
        keys = tomllib.loads(re.sub("(?m)^# ", "", section))
        self.assertLessEqual(set(self.s3()), set(keys))
        node = self.node_with({**keys, **self.s3()}, {}).wait_ready()
        self.expect(node.put("/k", b"v"), 201)
        self.archive(self.clusters[-1])

    def test_refused_at_start(self):
        for keys, words in (({"endpoint": "minio:9000"}, "endpoint"), ({"endpoint": "ftp://minio"}, "endpoint"), ({"secret_access_key": None}, "secret_access_key"),
                            ({"bucket": "a/b"}, "bucket"), ({"timeout_secs": 0}, "timeout_secs")):
            node = self.node_with(keys, {})
            self.expect_refusal(node, words)


class FaultsOnMinio(Faults):
    server_name = "minio"

    def faults(self):
        """Those that the server names itself; for the others it makes no difference."""
        own = ("wrong region", "wrong secret", "unknown access key", "missing bucket", "only reading")
        return {name: fault for name, fault in super().faults().items() if LONG or name in own}

    def reader(self):
        """The same by a session, whose token comes from the environment."""
        key, secret, token = session(self.server, READ_ONLY)
        return ({"access_key_id": None, "secret_access_key": None},
                {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": token}, f"access key {key} .*may not put here")


if __name__ == "__main__":
    helpers.main()
