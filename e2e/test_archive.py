"""A ledger that lies in a bucket, on both servers: all calls over cold data, kills while archiving and dropping."""

import json
import random
import shutil
import threading
import time

import helpers
from archived import Bucketed, Written, check_tools, segments, wait_cold
from helpers import JSON, LONG, MAX_VALUE, wait_for
from load import Load
from truth import check


class Cold:
    """Everything over a ledger of which at least 95 % is cold."""

    def whole_contract(self, n):
        c = self.archiving(n)
        written = Written(self, c.leader(), large=MAX_VALUE if LONG else 700_000)
        self.vkey_of(c.nodes[0])
        self.make_cold(c)
        for node in c.nodes:
            written.check(node)
        check_tools(self, c.followers()[0] if n > 1 else c.nodes[0])
        written.check_writes(c.followers()[0] if n > 1 else c.nodes[0])
        check(self, c)
        wait_cold(c.nodes)
        self.check_bucket(c)
        return c, written

    def test_one_node(self):
        c, written = self.whole_contract(1)
        node = c.nodes[0]
        node.kill()
        node.start().wait_ready()
        written.check(node)

    def test_three_nodes(self):
        """And a node whose disk is gone joins again."""
        c, written = self.whole_contract(3)
        for node in (c.followers()[0], c.leader()):
            node.kill()
            shutil.rmtree(node.data)
            self.expect(self.done(c.leader(), "PUT", "/meanwhile", b"%d" % node.number), (200, 201))
            for _ in range(10 if LONG else 2):  # in the middle of taking over
                node.start()
                time.sleep(random.random() * 0.6)
                node.kill()
            node.start().wait_ready()
            wait_for("it is a voter again", lambda: all(m["role"] != "learner" for m in c.nodes[0].get("/cluster/members").json()["members"]))
            written.check(node)
        check(self, c)
        self.check_bucket(c)


class ColdOnVersitygw(Cold, Bucketed):
    pass


class ColdOnMinio(Cold, Bucketed):
    server_name = "minio"

    def test_a_bucket_where_nothing_can_be_deleted(self):
        """Object Lock with retention of everything that is put for good."""
        self.new_bucket(lock=True)
        c = self.archiving(1, s3=self.s3(object_lock_mode="COMPLIANCE", object_lock_days=1))
        written = Written(self, c.nodes[0], count=600)
        self.vkey_of(c.nodes[0])
        self.make_cold(c)
        written.check(c.nodes[0])
        for i in range(12):  # more bucket manifests than are kept
            self.expect(c.nodes[0].put("/more", b"%d" % i), (200, 201))
            self.archive(c)
        self.assertNotIn("s3:", self.expect(c.nodes[0].get("/health"), 200).json()["checks"]["archive"])
        check(self, c)
        self.check_bucket(c)


class Tiering(Bucketed):
    def local(self, node):
        """Bytes of segments with a file on this node."""
        return sum(s["size"] for s in segments(node) if s["state"] != "cold")

    def test_room_is_kept_and_segments_come_back(self):
        """local_max_bytes holds; prefetch brings files back, and pinned ones stay over restarts until they are let go."""
        limit = 900_000  # one segment has 700,000
        c = self.archiving(1, local_max_bytes=limit)
        node = c.nodes[0]
        written = Written(self, node)
        self.vkey_of(node)
        self.archive(c)
        wait_for("room is made", lambda: self.local(node) <= limit)
        self.assertGreater(self.local(node), 0, "more went than had to")
        wanted = segments(node)[1:4]
        span = {"from": wanted[0]["first_seq"], "to": wanted[-1]["first_seq"]}

        def prefetch(pin):
            return self.expect(node.post("/cluster/prefetch", json.dumps({**span, "pin": pin}).encode(), JSON), 200).json()

        def states():
            return [s["state"] for s in segments(node)[1:4]]
        told = prefetch(True)
        self.assertEqual((told["segments"], told["pinned"]), (3, 3), told)
        self.assertEqual(states(), ["archived"] * 3)
        node.kill()
        node.start().wait_ready()
        wait_for("others went", lambda: self.local(node) <= limit)
        self.assertEqual(states(), ["archived"] * 3)
        self.server.stop()
        try:  # what is pinned is read without the server
            for seq in (span["from"], span["to"]):
                key, value, _ = written.entries[seq]
                self.assertEqual(self.expect(node.get(f"/{key}?seq={seq}"), 200).body, value)
        finally:
            self.server.start()
        prefetch(False)
        wait_for("room is made again", lambda: self.local(node) <= limit)
        written.check(node)
        check(self, c)


class Kills(Bucketed):
    def test_the_leader_while_it_archives(self):
        """kill -9 under load, at any moment: what was put is recorded by the next leader, nothing twice."""
        c, covered = self.archiving(), []
        with Load(c, writers=3, size=1500) as load:
            for _ in range(30 if LONG else 3):
                before = load.count()
                wait_for("writes", lambda: load.count() > before + 60)
                leader = c.leader()
                sealed = wait_for("a segment", lambda: (reply := leader.post("/cluster/seal")).status == 200 and reply.json())
                covered.append(sealed["ledger_size"])
                call = threading.Thread(target=leader.post, args=("/cluster/archive",), daemon=True)
                call.start()
                time.sleep(random.random() * 0.2)  # somewhere in packing, putting, reading back, recording
                leader.kill()
                call.join()
                self.assertIsNot(c.leader(), leader)
                leader.start().wait_ready()
        check(self, c, load)
        self.check_bucket(c)
        self.assertLessEqual(set(covered), {s["first_seq"] + s["count"] for s in segments(c.nodes[0])})

    def test_a_node_while_it_drops(self):
        c = self.archiving(1)
        written = Written(self, c.nodes[0], count=6000 if LONG else 2400)
        self.vkey_of(c.nodes[0])
        self.archive(c)
        node = c.nodes[0]
        node.kill()
        node.sections["storage.tiering"]["age_threshold_secs"] = 0
        for _ in range(20 if LONG else 4):
            node.start().wait_ready()
            try:
                wait_cold([node], 0.01, random.random() * 2)
            except AssertionError:
                pass  # then it was before
            time.sleep(random.random() * 0.05)
            node.kill()
        node.start().wait_ready()
        wait_cold([node])
        written.check(node)
        check(self, c)
        self.check_bucket(c)


if __name__ == "__main__":
    helpers.main()
