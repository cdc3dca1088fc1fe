"""Three nodes form one cluster in under five seconds, in any order of arrival, and only once."""

import time

import helpers
from helpers import Cluster, Scenario, within
from truth import check


class Formation(Scenario):
    def test_three_nodes_in_five_seconds(self):
        within(5.0, self.form)

    def form(self):
        """How long it takes a new cluster to form and write."""
        c = self.cluster(start=False)
        start = time.monotonic()
        c.start()
        self.expect(self.done(c.nodes[2], "PUT", "/first", b"x"), 201)
        took = time.monotonic() - start
        print(f"formed and wrote in {took:.2f} s", end=" ", flush=True)
        ids = {n.get("/cluster/status").json()["cluster_id"] for n in c.nodes}
        self.assertEqual(len(ids), 1)
        members = c.nodes[0].get("/cluster/members").json()["members"]
        self.assertEqual(sorted(m["id"] for m in members), [1, 2, 3])
        self.assertEqual(sorted(m["role"] for m in members), ["follower", "follower", "leader"])
        self.assertEqual({m["http"] for m in members}, {n.url for n in c.nodes})
        check(self, c)
        return took

    def test_a_part_of_the_cluster_waits(self):
        """expect = 3 and one node absent: no cluster of two or one, however long; then all at once."""
        c = self.cluster(start=False)
        first, second, third = c.nodes
        first.start()
        second.start()
        until = time.monotonic() + 4.0
        while time.monotonic() < until:
            for node in (first, second):
                self.assertIn(node.get("/health").status, (0, 503))
                self.assertIn(node.put("/k", b"x").status, (0, 503))
            time.sleep(0.1)
        third.start()
        c.wait_ready()
        check(self, c)

    def test_restart_keeps_the_cluster(self):
        c = self.cluster()
        before = c.nodes[0].get("/cluster/status").json()["cluster_id"]
        self.expect(self.done(c.nodes[0], "PUT", "/k", b"x"), 201)
        self.assertEqual(c.stop(), [0, 0, 0])
        c.start()
        self.assertEqual({n.get("/cluster/status").json()["cluster_id"] for n in c.nodes}, {before})
        self.assertEqual(c.nodes[2].get("/k").body, b"x")

    def test_bootstrap_is_a_cluster_of_one(self):
        c = Cluster(1, cluster={"expect": 3})
        self.clusters.append(c)
        node = c.nodes[0].start("--bootstrap").wait_ready()
        self.expect(node.put("/k", b"x"), 201)
        self.assertEqual(node.stop(), 0)
        node.start("--bootstrap").wait_ready()
        self.assertEqual(node.get("/k").body, b"x", "--bootstrap over state must keep the state")


if __name__ == "__main__":
    helpers.main()
