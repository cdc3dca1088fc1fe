"""Cut cables between nodes that each have a host of their own: who is cut off acknowledges nothing and shows nothing
old, the rest goes on, and five seconds after the cut is mended every node serves, with nothing lost."""

import functools
import math
import os
import random
import subprocess
import threading
import time
import unittest

import helpers
from helpers import LONG, wait_for, within
from load import Load
from netns import Hosted
from truth import check

HEAL = 5.0  # seconds
SEED = random.randrange(1 << 32)
THREE = ["leader", "leader_deaf", "leader_dumb", "follower"]  # cuts, as the methods cut_ of Cuts
FIVE = ["bridge"]
if LONG:
    THREE += ["leader_blocked", "leader_dumb_blocked", "follower_deaf", "follower_dumb", "one_link"]
    FIVE += ["minority", "bridge_leads", "one_link"]


def term(node):
    return node.get("/cluster/status").json()["term"]


def metric(node, field):
    return node.get("/metrics").json()["discovery"][field]


class Discovery(Hosted):
    size = 6

    def found(self, n=3, first=1, **cluster):
        return self.hosts(n, first, seeds=False, cluster=cluster, discovery={"enabled": True})

    def form(self):
        """How long it takes a new cluster to form and write."""
        c = self.found()
        start = time.monotonic()
        c.start()
        self.expect(self.done(c.nodes[2], "PUT", "/first", b"x"), 201)
        took = time.monotonic() - start
        self.assertEqual(len({n.get("/cluster/status").json()["cluster_id"] for n in c.nodes}), 1)
        c.kill()
        return took

    def test_forms_in_five_seconds(self):
        times = [within(5.0, self.form) for _ in range(20 if LONG else 1)]
        print(f"formed and wrote, worst of {len(times)}: {max(times):.2f} s", end=" ", flush=True)

    def test_other_names_and_secrets_never_mix(self):
        groups = [self.found(2, 1, name="one", secret="a"), self.found(2, 3, name="one", secret="b"),
                  self.found(2, 5, name="two", secret="a")]
        for c in groups:
            for node in c.nodes:
                node.start()
        ids = set()
        for c in groups:
            c.wait_ready()
            self.expect(self.done(c.nodes[0], "PUT", "/k", b"x"), 201)
            ids |= {n.get("/cluster/status").json()["cluster_id"] for n in c.nodes}
        self.assertEqual(len(ids), 3)
        node = groups[0].nodes[0]
        wait_for("foreign and forged ones are counted",
                 lambda: metric(node, "dropped").get("forged") and metric(node, "dropped").get("foreign"))
        for c in groups:
            self.assertEqual([m["id"] for m in c.nodes[0].get("/cluster/members").json()["members"]], [1, 2])
            check(self, c)


class Cuts(Hosted):
    """Cuts of every kind, one after the other, under load."""

    def cuts(self, c, names):
        """Make the named cuts in any order and print how long they took to heal."""
        rng = random.Random(SEED)
        todo = names * (3 if LONG else 1)
        rng.shuffle(todo)
        self.healed, self.moved = [], []
        try:
            for name in todo:
                with self.subTest(cut=name, seed=SEED):
                    within(HEAL, functools.partial(self.one_cut, c, name, rng.uniform(2, 12) if LONG else 2, rng))
        finally:
            print(f"{len(self.healed)} cuts, healed in {max(self.healed, default=0):.2f} s at worst,"
                  f" another leader in {max(self.moved, default=0):.2f} s", end=" ", flush=True)

    def one_cut(self, c, name, seconds, rng):
        """Cut, look at both sides, heal; how long that took, or more than any limit if there was an election that should not be."""
        try:
            return self.cut_and_look(c, name, seconds, rng)
        finally:
            self.net.heal()

    def cut_and_look(self, c, name, seconds, rng):
        leader = c.leader()
        others = [node.number for node in c.nodes if node is not leader]
        rng.shuffle(others)
        before = term(leader)
        lost = getattr(self, "cut_" + name)(leader.number, others)
        start = time.monotonic()
        cut_off = [node for node in c.nodes if node.number in lost]
        rest = [node for node in c.nodes if node.number not in lost]
        with Watch(self, cut_off):
            first_ack(rest, 20)
            self.moved.append(time.monotonic() - start)
            self.refuse(cut_off)
            wait_for("the time of the cut is over", lambda: time.monotonic() > start + seconds, seconds + 10)
        if leader in rest and term(rest[0]) != before:
            print(f"{name}: an election, although the leader has a majority;", end=" ", flush=True)
            return math.inf
        start = time.monotonic()
        self.net.heal()
        every_ack(c.nodes, 30)
        took = time.monotonic() - start
        self.healed.append(took)
        if LONG:
            print(f"\n  {name}: {seconds:.1f} s, rest served after {self.moved[-1]:.2f} s, healed in {took:.2f} s",
                  end="", flush=True)
        return took

    def refuse(self, cut_off):
        """Nodes that are cut off answer neither writes nor linearizable reads; stale ones they do."""
        for node in cut_off:
            reply = wait_for("a reply to a read", lambda: node.get("/cut/0?consistency=linearizable"))
            self.expect(reply, 503)
            self.assertTrue(reply.headers["Retry-After"])
            self.expect(node.put("/minority", b"x"), (503, 504))
            self.expect(node.get("/cut/0?consistency=stale"), (200, 404))
            self.assertEqual(node.get("/health").status, 503)

    # ---- each cuts and returns the numbers of those who are cut off

    def cut_leader(self, leader, others):
        self.net.cut([leader], others)
        return [leader]

    def cut_leader_blocked(self, leader, others):
        self.net.cut([leader], others, self.net.block)
        return [leader]

    def cut_leader_deaf(self, leader, others):
        for other in others:
            self.net.mute(other, leader)
        return [leader]

    def cut_leader_dumb(self, leader, others):
        for other in others:
            self.net.mute(leader, other)
        return [leader]

    def cut_leader_dumb_blocked(self, leader, others):
        for other in others:
            self.net.block(leader, other)
        return [leader]

    def cut_follower(self, leader, others):
        self.net.cut(others[:1], [leader, *others[1:]])
        return others[:1]

    def cut_follower_deaf(self, leader, others):
        for other in (leader, *others[1:]):
            self.net.mute(other, others[0])
        return others[:1]

    def cut_follower_dumb(self, leader, others):
        for other in (leader, *others[1:]):
            self.net.mute(others[0], other)
        return others[:1]

    def cut_one_link(self, leader, others):
        """The leader and one follower do not reach each other; both reach all the others."""
        self.net.cut([leader], others[:1])
        return others[:1]

    def cut_minority(self, leader, others):
        """The leader and one more of five."""
        self.net.cut([leader, others[0]], others[1:])
        return [leader, others[0]]

    def cut_bridge(self, leader, others):
        """Two pairs of five that reach each other only through the fifth, which is not the leader."""
        self.net.cut([leader, others[0]], others[2:])
        return others[2:]

    def cut_bridge_leads(self, leader, others):
        self.net.cut(others[:2], others[2:])
        return []


class Three(Cuts):
    def test_cuts(self):
        c = self.hosts().start()
        with Load(c, pause=0.02) as load:
            wait_for("writes", lambda: load.count() > 50)
            self.cuts(c, THREE)
        check(self, c, load)


class Five(Cuts):
    size = 5

    def test_cuts(self):
        c = self.hosts(5).start()
        with Load(c, pause=0.02) as load:
            wait_for("writes", lambda: load.count() > 50)
            self.cuts(c, FIVE)
        check(self, c, load)


class Slow(Hosted):
    @unittest.skipUnless(LONG, "takes half a minute")
    def test_a_slow_link_holds_up_nobody(self):
        """A follower that gets a fifth of what is written: the others go on under their leader, and it catches up."""
        c = self.hosts().start()
        leader, (slow, other) = c.leader(), c.followers()
        with Load(c, writers=1) as load:
            wait_for("writes", lambda: load.count() > 20)
            before = term(leader)
            try:
                self.net.slow(slow.number, "1mbit")
            except subprocess.CalledProcessError as err:
                self.skipTest(f"tc tbf is not available here: {err.stderr}")
            start, count, gap = time.monotonic(), 0, 0.0
            while time.monotonic() < start + 20:
                begun = time.monotonic()
                for node in (leader, other):
                    self.expect(node.put(f"/slow/{count}", os.urandom(30_000)), 201)
                    count += 1
                gap = max(gap, time.monotonic() - begun)
                self.assertEqual(term(leader), before)
                time.sleep(0.08)  # 5 Mbit/s: no more than a busy disk takes
            behind = leader.size() - (slow.size() or 0)
            self.net.slow(slow.number, None)
            start = time.monotonic()
            every_ack(c.nodes, 30)
            took = time.monotonic() - start
        print(f"{count} values of 30 kB, two at most {gap:.2f} s; {behind} entries behind, writes again after {took:.2f} s",
              end=" ", flush=True)
        self.assertLess(took, HEAL)
        check(self, c, load)


class Watch:
    """While it is on, tries nodes all the time: none of them may acknowledge a write or show a linearizable read."""

    def __init__(self, test, nodes):
        self.test, self.nodes, self.wrong, self.done = test, nodes, [], threading.Event()

    def __enter__(self):
        self.threads = [threading.Thread(target=self.ask, args=(node, *what), daemon=True)
                        for node in self.nodes for what in (("GET", None), ("PUT", b"x"))]
        for thread in self.threads:
            thread.start()

    def ask(self, node, method, body):
        while not self.done.is_set():
            reply = node.request(method, f"/watch/{node.number}", body, timeout=60)
            if reply.status not in (503, 504) and not self.done.is_set():
                self.wrong.append((node.number, method, reply))
            self.done.wait(0.05)

    def __exit__(self, *exc):
        self.done.set()
        if exc[0] is None:
            self.test.assertEqual(self.wrong, [], "a node that is cut off answered")


def first_ack(nodes, timeout):
    """Wait until one of nodes acknowledges a write."""
    return acks(nodes, timeout, any)


def every_ack(nodes, timeout):
    """Wait until each of nodes has acknowledged a write that began after the call."""
    return acks(nodes, timeout, all)


def acks(nodes, timeout, enough):
    """Write through all nodes at once, again and again, until enough of them have acknowledged."""
    acked, done = {node.number: False for node in nodes}, threading.Event()
    last = {}

    def hammer(node):
        while not done.is_set() and not acked[node.number]:
            reply = last[node.number] = node.put(f"/cut/{node.number}", b"x", timeout=timeout)
            acked[node.number] = reply.status in (200, 201)
            done.wait(0.01)
    for node in nodes:
        threading.Thread(target=hammer, args=(node,), daemon=True).start()
    try:
        wait_for("acknowledged writes", lambda: enough(acked.values()), timeout, 0.005)
    except AssertionError as err:
        raise AssertionError(f"{err}: {acked} {last}") from None
    finally:
        done.set()


if __name__ == "__main__":
    helpers.main()
