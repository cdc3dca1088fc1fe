"""Nodes whose disk is gone, that move, that are copied or that never come back, under load: the cluster goes on, and no
acknowledged write is lost."""

import os
import shutil
import unittest

import helpers
from helpers import LONG, Node, Scenario, free_port, wait_for
from load import Load
from truth import check


class Replaced(Scenario):
    def members(self, node):
        """{id: member} as node knows them."""
        return {m["id"]: m for m in node.get("/cluster/members").json()["members"]}

    def wait_members(self, c, wanted):
        """Wait until each running node of c names the wanted members: {id: roles}."""
        for node in c.running():
            wait_for(f"the members {wanted} on node {node.number}",
                     lambda: {i: m["role"] for i, m in self.members(node).items() if m["role"] not in wanted.get(i, "")} == {}
                     and sorted(self.members(node)) == sorted(wanted), 90)

    def extra(self, c, number, **cluster):
        """A node beside those of c, which finds them by its seeds."""
        http, raft = free_port(), free_port()
        seeds = [f"127.0.0.1:{node.sections['network']['raft_port']}" for node in c.running()]
        c.nodes.append(Node(number, c.folder, {
            "node": {"id": number, "address": "127.0.0.1", "data_dir": os.path.join(c.folder, f"node-{number}")},
            "network": {"listen_addr": f"127.0.0.1:{http}", "client_port": http, "raft_port": raft, "seed_peers": seeds},
            "cluster": {"expect": 3, **cluster}}))
        return c.nodes[-1]

    def loaded(self, c):
        """Load on c that has acknowledged something, as a context manager."""
        load = Load(c, writers=3, pause=0.01)
        load.__enter__()
        self.addCleanup(load.done.set)
        wait_for("writes", lambda: load.count() > 30)
        return load

    def test_a_wiped_node_comes_back_by_itself(self):
        c = self.cluster()
        load = self.loaded(c)
        for node in (c.followers()[0], c.leader()):
            node.kill()
            shutil.rmtree(node.data)
            node.start().wait_ready()
            self.wait_members(c, dict.fromkeys((1, 2, 3), "leader follower"))
        load.__exit__()
        check(self, c, load)

    def test_a_new_node_in_place_of_a_lost_one(self):
        c = self.cluster()
        load = self.loaded(c)
        lost = c.leader()
        lost.kill()
        fourth = self.extra(c, 4).start().wait_ready()
        self.expect(self.done(fourth, "POST", "/cluster/leave", f'{{"id": {lost.number}}}'), 200)
        self.wait_members(c, {i: "leader follower" for i in (1, 2, 3, 4) if i != lost.number})
        lost.start()  # it learns that it was removed, and answers so
        wait_for("it says that it was removed", lambda: (reply := lost.get("/health")).status == 503
                 and reply.json()["role"] == "removed")
        self.expect(lost.put("/k", b"x"), 503, "removed")
        lost.kill()
        load.__exit__()
        check(self, c, load)

    def copied(self, c, original):
        """Stop a node and copy its directory; the node that is to run on the copy, at other addresses."""
        copy = self.extra(c, original.number)
        c.nodes.remove(copy)
        self.addCleanup(copy.kill)
        self.assertEqual(original.stop(), 0)
        copy.data = copy.sections["node"]["data_dir"] = original.data + "-copy"
        copy.config, copy.log = copy.data + ".toml", copy.data + ".log"
        shutil.copytree(original.data, copy.data)
        return copy

    def test_a_copied_directory_is_refused(self):
        c = self.cluster()
        original = c.followers()[0]
        self.expect(self.done(original, "PUT", "/k", b"x"), 201)
        copy = self.copied(c, original)
        original.start().wait_ready()
        self.expect_refusal(copy.start(), "copy")
        self.assertEqual(self.members(original)[original.number]["state"], "alive")
        check(self, c)

    def test_a_copy_takes_the_place_of_its_original(self):
        c = self.cluster()
        load = self.loaded(c)
        original = c.followers()[0]
        copy = self.copied(c, original).start().wait_ready()
        place = f"127.0.0.1:{copy.sections['network']['raft_port']}"
        for other in c.running():
            wait_for("the copy is known", lambda: self.members(other)[copy.number]["raft"] == place)
        self.expect_refusal(original.start(), "copy")
        c.nodes[c.nodes.index(original)] = copy
        load.__exit__()
        check(self, c, load)

    def test_a_node_moves(self):
        c = self.cluster()
        load = self.loaded(c)
        for node in (c.followers()[0], c.leader()):
            self.assertEqual(node.stop(), 0)
            node.sections["network"]["raft_port"] = free_port()
            node.start().wait_ready()
            place = f"127.0.0.1:{node.sections['network']['raft_port']}"
            for other in c.running():
                wait_for("the new address is known", lambda: self.members(other)[node.number]["raft"] == place)
        load.__exit__()
        check(self, c, load)

    @unittest.skipUnless(LONG, "a dead node is removed after ten seconds at the earliest")
    def test_dead_nodes_are_removed_but_no_quorum(self):
        c = self.cluster(4, cluster={"remove_dead_after": "10s"})
        load = self.loaded(c)
        first, second, third = c.followers()
        first.kill()
        self.wait_members(c, {n.number: "leader follower" for n in c.nodes if n is not first})
        second.kill()
        self.wait_members(c, {n.number: "leader follower" for n in c.nodes if n not in (first, second)})
        third.kill()  # of two: the one that is left must not make a cluster of one
        last = c.running()[0]
        wait_for("no leader", lambda: last.get("/health").status == 503)
        with self.assertRaises(AssertionError):
            wait_for("it forgets the other", lambda: len(self.members(last)) < 2, 15)
        third.start().wait_ready()
        load.__exit__()
        check(self, c, load)

    @unittest.skipUnless(LONG, "a learner is in test_membership.py")
    def test_learners_do_not_vote(self):
        c = self.cluster()
        for number in (4, 5):
            self.extra(c, number, voter=False).start().wait_ready()
        self.wait_members(c, {1: "leader follower", 2: "leader follower", 3: "leader follower", 4: "learner", 5: "learner"})
        load = self.loaded(c)
        leader = c.leader()
        voters = [n for n in c.nodes[:3] if n is not leader]
        leader.kill()
        wait_for("a voter leads", lambda: self.members(voters[0]) and c.leader() in voters)
        voters[0].kill()  # one voter and two learners are left: no quorum
        for learner in c.nodes[3:]:
            self.expect(learner.put("/k", b"x"), (503, 504))
            self.expect(learner.get("/k"), 503)
            self.assertIn(learner.get("/k?consistency=stale").status, (200, 404))
        leader.start()
        voters[0].start()
        c.wait_ready()
        load.__exit__()
        check(self, c, load)


if __name__ == "__main__":
    helpers.main()
