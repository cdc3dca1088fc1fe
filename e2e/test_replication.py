"""Writes and reads through every node; who leads; values of every size on all nodes."""

import functools

import helpers
from helpers import Scenario, raw_path, wait_for
from load import Load
from truth import check


class Replication(Scenario):
    def test_write_anywhere_read_anywhere(self):
        c = self.cluster()
        for i in range(60):
            writer, reader = c.nodes[i % 3], c.nodes[(i + 1) % 3]
            key = raw_path(f"k{i % 7}")
            entry = self.expect(self.done(writer, "PUT", key, f"value {i}".encode()), (200, 201)).json()
            got = self.expect(reader.get(key), 200)
            self.assertEqual((got.body, got.headers["Scribe-Seq"]), (f"value {i}".encode(), str(entry["seq"])))
            own = self.expect(c.nodes[(i + 2) % 3].get(key + f"?consistency=stale&min_seq={entry['seq']}"), 200)
            self.assertEqual(own.body, f"value {i}".encode())
            self.assertIn("Scribe-Last-Contact", own.headers)
        check(self, c)

    def test_followers_answer_like_the_leader(self):
        c = self.cluster()
        leader, follower = c.leader(), c.followers()[0]
        self.expect(self.done(follower, "PUT", "/e", b"one", {"If-None-Match": "*"}), 201)
        refused = self.expect(self.done(follower, "PUT", "/e", b"two", {"If-None-Match": "*"}), 412, "precondition_failed")
        self.assertEqual(refused.headers["ETag"], leader.get("/e").headers["ETag"])
        self.expect(self.done(follower, "DELETE", "/nothing"), 404)
        self.expect(self.done(follower, "DELETE", "/e"), 200)
        for path in ("/history/e", "/keys", "/ledger/entries?from=0"):
            self.assertEqual(leader.get(path).body, follower.get(path).body, path)
        self.assertEqual(follower.get("/cluster/leader").json()["id"], leader.number)

    def test_concurrent_clients(self):
        c = self.cluster(storage={"segment_size": 1 << 20})
        with Load(c, writers=12, pause=0, size=2000) as load:
            term = c.term()
            wait_for("6000 writes", lambda: len(load.acked) > 6000, 180)
        self.check_unfailed(c, load, term)
        check(self, c, load)

    def test_leadership_can_be_handed_over(self):
        c = self.cluster()
        leader, heir = c.leader(), c.followers()[0]
        transfer = functools.partial(leader.post, "/cluster/transfer", '{"to":%d}' % heir.number, headers=helpers.JSON)
        wait_for("the hand-over", lambda: transfer().status == 200)
        wait_for("the heir leads", lambda: c.leader() is heir or not transfer())
        self.expect(self.done(leader, "PUT", "/after", b"x"), 201)


if __name__ == "__main__":
    helpers.main()
