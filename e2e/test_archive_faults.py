"""A ledger that lies in a bucket whose server is down, or whose objects are damaged or gone: writes go on, nothing wrong is
served, and what another node has is put right."""

import random
import time

import helpers
from archived import Bucketed, Written, segments
from helpers import LONG, sha256, wait_for
from load import Load
from s3_proxy import Proxy, error
from truth import check


class Down(Bucketed):
    def told(self, node):
        """checks.archive of /health, which is 200 all the time there is a leader."""
        def served():
            reply = node.get("/health")
            return reply if reply.status != 503 or reply.json()["checks"]["raft"] == "ok" else None
        return self.expect(wait_for("a leader", served), 200).json()["checks"]["archive"]

    def test_the_server_is_down_under_writes(self):
        """Stopped, then hung: no write is refused, /health tells it, and all is archived afterwards."""
        c = self.archiving(s3=self.s3(timeout_secs=1))
        Written(self, c.leader(), count=600)
        self.archive(c)
        good = wait_for("ok", lambda: (told := self.told(c.leader())) == "ok" and told)
        term = c.term()
        with Load(c, writers=3, size=1500) as load:
            for stop, start in ((self.server.stop, self.server.start), (self.server.pause, self.server.resume)):
                stop()
                until, before = time.monotonic() + (60 if LONG else 3), load.count()
                wait_for("/health tells it", lambda: self.told(c.leader()) != good)
                while time.monotonic() < until:
                    for node in c.nodes:
                        self.told(node)
                    c.leader().post("/cluster/seal")
                    time.sleep(0.2)
                wait_for("writes go on", lambda: load.count() > before + 50)
                print(repr(self.told(c.leader())), end=" ", flush=True)
                self.expect(c.nodes[0].post("/cluster/archive", timeout=60), 503)
                start()
                wait_for("/health is well again", lambda: self.told(c.leader()) == good, 90)
        self.check_unfailed(c, load, term)
        self.assertEqual(load.count(), len(load.acked))
        check(self, c, load)
        self.check_bucket(c)

    def test_reads_while_the_server_is_down(self):
        """Cold data: 503 with Retry-After, never 404; a restart; writes and what is here go on; then all as before."""
        c = self.archiving(1, storage={"max_cache_size": 1048576})
        node = c.nodes[0]
        written = Written(self, node, count=1200)
        self.vkey_of(node)
        self.make_cold(c)
        self.server.stop()
        try:
            node.kill()
            node.start().wait_ready()
            reply = self.expect(node.get("/k7"), 503, "archive_unavailable")
            self.assertGreater(int(reply.headers["Retry-After"]), 0)
            for path in ("/verify/k7", "/history/k7", "/large", "/ledger/segments/" + segments(node)[0]["id"]):
                self.expect(node.get(path), (200, 503), "archive_unavailable" if node.get(path).status != 200 else None)
            self.expect(node.put("/k7", b"while it is down"), 200)
            self.assertEqual(self.expect(node.get("/k7"), 200).body, b"while it is down")
            self.expect(node.get("/none"), 404, "not_found")
        finally:
            self.server.start()
        wait_for("cold data again", lambda: node.get("/k8").status == 200)
        self.expect(node.delete("/k7"), 200)
        written.entries.update({written.last: ("k7", b"while it is down", "put"), written.last + 1: ("k7", b"", "delete")})
        self.archive(c)
        written.check(node)
        check(self, c)


class Flaky(Bucketed):
    def test_a_third_of_all_requests_fail(self):
        """Some are not done, some are done but answered with an error, cut short or not at all; reads and writes are right."""
        rng = random.Random(5)
        with Proxy(self.server) as proxy:
            c = self.archiving(s3=self.s3(endpoint=proxy.url), age_threshold_secs=0)
            proxy.answer = lambda method, path: error(503, "SlowDown") if rng.random() < 0.1 else None

            def spoil(method, path, given):
                chance = rng.random()
                if chance < 0.1:
                    return error(500, "InternalError", "We encountered an internal error. Please try again.")
                if chance < 0.15 and method == "GET":
                    return given[0], given[1], given[2][:len(given[2]) // 2]
                return None if chance < 0.2 else given
            proxy.spoil = spoil
            term = c.term()
            with Load(c, writers=3, size=1500) as load:
                until = time.monotonic() + (60 if LONG else 5)
                while time.monotonic() < until:
                    c.leader().post("/cluster/seal")
                    time.sleep(0.3)
                wait_for("some is cold", lambda: any(s["state"] == "cold" for s in segments(c.leader())), 180)
            self.check_unfailed(c, load, term)
            self.assertEqual(load.violations, [])
            for key, version, digest in list(load.acked.values())[:40]:
                reply = self.expect(c.nodes[0].get(f"/kv/{key.replace('/', '%2F')}?version={version}"), (200, 502, 503))
                self.assertIn(sha256(reply.body) if reply.status == 200 else reply.code(), (digest, "archive_unavailable", "archive_corrupt"))
            proxy.answer = proxy.spoil = None
            self.archive(c)
            wait_for("all nodes read everything again", lambda: all(  # each rests for a second after a failure
                n.get("/ledger/entries?values=true&limit=1000000").status == 200 for n in c.nodes), 90)
            check(self, c, load)
            self.check_bucket(c)


class Refused(Bucketed):
    def test_one_object_is_refused(self):
        """An object that lies in a storage class that cannot be read, or is forbidden: what it holds is 503, all else goes on."""
        with Proxy(self.server) as proxy:
            c = self.archiving(s3=self.s3(endpoint=proxy.url), age_threshold_secs=0)
            node = c.leader()
            self.vkey_of(node)
            written = Written(self, node)
            self.make_cold(c)
            listed = segments(node)
            refused = listed[2]
            proxy.answer = lambda method, path: error(403, "InvalidObjectState", "The operation is not valid for the object's storage class") \
                if refused["object"] in path else None
            for other in c.nodes:
                other.stop()
                other.start().wait_ready()
            node = c.leader()
            written.lines(node, 600)
            last = written.last = node.size()
            for other in c.nodes:
                reply = self.expect(other.get("/ledger/segments/" + refused["id"]), 503, "archive_unavailable")
                self.assertIn(refused["object"], reply.body.decode())
                self.expect(other.get(f"/ledger/entries?from={refused['first_seq']}&limit=1&values=true"), 503)
                for segment in listed:
                    if segment["id"] != refused["id"]:
                        self.expect(other.get("/ledger/segments/" + segment["id"]), 200)
            self.expect(self.done(node, "PUT", "/new", b"new"), 201)
            self.expect(self.done(node, "POST", "/cluster/seal"), 200)
            wait_for("what is new is archived and dropped", lambda: all(
                s["state"] == "cold" for other in c.nodes for s in segments(other)[len(listed):]) and node.size() > last, 90)
            proxy.answer = None
            wait_for("it is given again", lambda: all(
                other.get("/ledger/segments/" + refused["id"]).status == 200 for other in c.nodes), 90)
            written.check(node)
            check(self, c)
            self.check_bucket(c)


KINDS = ["one bit in each", "cut in half", "empty", "swapped", "zeros of the same size", "gone"]


class Damage:
    """Objects that are changed, swapped, cut, gone."""

    def damages(self):
        """(name, what makes an object of the bucket so) for each kind of damage."""
        keys = sorted(self.bucket.segments())
        sound = {key: self.bucket.get(key) for key in keys}

        def changed(make):
            def do():
                for key in keys:
                    self.overwrite(key, make(key, sound[key]))
            return do

        def flipped(key, body):
            at = random.randrange(len(body))
            return body[:at] + bytes([body[at] ^ 1 << random.randrange(8)]) + body[at + 1:]
        yield from zip(KINDS, (
            changed(flipped), changed(lambda key, body: body[:len(body) // 2]), changed(lambda key, body: b""),
            changed(lambda key, body: sound[keys[(keys.index(key) + 1) % len(keys)]]), changed(lambda key, body: bytes(len(body))), self.bucket.empty))
        yield "as they were", changed(lambda key, body: body)

    def overwrite(self, key, body):
        self.bucket.put(key, body)

    def small(self, node):
        """What check_damage wants: a few values and their entries, in several segments."""
        values = {}
        for i in range(40):
            value = (f"value {i} " * 500).encode()
            values[f"v{i}"] = value, self.expect(self.done(node, "PUT", f"/v{i}?receipt=true", value), 201).json()
            if i % 14 == 0:
                self.expect(self.done(node, "POST", "/cluster/seal"), 200)
        return values

    def test_nobody_has_it(self):
        """One node: refused with 502 and the object's name, nothing wrong, and well again when the objects are."""
        c = self.archiving(1)
        node = c.nodes[0]
        self.vkey_of(node)
        values = self.small(node)
        self.make_cold(c)
        for name, make in self.damages():
            make()
            node.kill()  # with what it has in memory
            node.start().wait_ready()
            whole = name == "as they were"
            codes = self.check_damage(node, values, whole)
            self.assertEqual(codes, {200} if whole else codes & {200, 502} | {502}, name)
            if not whole and name != "one bit in each":
                reply = self.expect(node.get("/v3"), 502, "archive_corrupt")
                self.assertTrue(any(key in reply.json()["error"]["message"] for key in (s["object"] for s in segments(node))), reply)
            self.expect(node.put("/w", name.encode()), (200, 201))
        check(self, c)

    def test_another_node_has_it(self):
        """One of three keeps its files: whatever happens to the objects, all nodes answer everything."""
        kinds = KINDS if LONG else random.sample(KINDS, 1)
        for kind in kinds:
            print(kind, end="; ", flush=True)
            self.new_bucket()
            c = self.archiving(3)
            self.vkey_of(c.nodes[0])
            values = self.small(c.nodes[0])
            self.make_cold(c, c.nodes[:2])
            dict(self.damages())[kind]()
            for node in c.nodes[:2]:
                node.stop()  # with what it has in memory
                node.start().wait_ready()
                self.assertEqual(self.check_damage(node, values, True), {200}, kind)
            check(self, c)
            c.kill()


class DamageOnVersitygw(Damage, Bucketed):
    def overwrite(self, key, body):
        """On the disk, where the server does not see it."""
        path = self.server.data / self.bucket.name / key
        if path.exists():
            with open(path, "r+b") as f:
                f.write(body)
                f.truncate()
        else:
            self.bucket.put(key, body)


class DamageOnMinio(Damage, Bucketed):
    server_name = "minio"


if __name__ == "__main__":
    helpers.main()
