"""Nodes without seed_peers find each other by UDP, on one host and on one network; others never get in."""

import contextlib
import hashlib
import hmac
import json
import socket
import time

import helpers
from helpers import Scenario, cli, free_port, wait_for, within
from netns import Hosted
from truth import check


def metric(node, field):
    return node.get("/metrics").json()["discovery"][field]


def states(node):
    """State of each member by id, as node knows it."""
    return {m["id"]: m["state"] for m in node.get("/cluster/members").json()["members"]}


class OneHost(Scenario):
    """Three processes at 127.0.0.1 share the discovery port."""

    def found(self, n=3, port=None, secret="s3", name="found", start=True, **discovery):
        """A cluster of n nodes that know nobody."""
        c = self.cluster(n, start=False, cluster={"name": name, "secret": secret},
                         discovery={"enabled": True, "discovery_port": port or free_port(), **discovery})
        for node in c.nodes:
            node.sections["network"]["seed_peers"] = []
        return c.start() if start else c

    def test_forms_in_five_seconds(self):
        within(5.0, self.form)

    def form(self):
        """How long it takes a new cluster to form and write."""
        c = self.found(start=False)
        start = time.monotonic()
        c.start()
        self.expect(self.done(c.nodes[2], "PUT", "/first", b"x"), 201)
        took = time.monotonic() - start
        print(f"formed and wrote in {took:.2f} s", end=" ", flush=True)
        self.assertEqual(len({n.get("/cluster/status").json()["cluster_id"] for n in c.nodes}), 1)
        check(self, c)
        return took

    def test_a_part_waits_and_a_fourth_joins(self):
        c = self.found(4, start=False)
        for node in c.nodes:
            node.sections["cluster"]["expect"] = 3
        first, second, third, fourth = c.nodes
        first.start()
        second.start()
        wait_for("both hear each other", lambda: first.get("/metrics").status == 200 and second.get("/metrics").status == 200
                 and metric(first, "peers")["alive"] and metric(second, "peers")["alive"])
        until = time.monotonic() + 2
        while time.monotonic() < until:
            self.assertEqual({first.get("/health").status, second.get("/health").status}, {503})
            time.sleep(0.1)
        third.start()
        for node in (first, second, third):
            node.wait_ready()
        fourth.start().wait_ready()
        wait_for("four voters", lambda: sorted(states(first)) == [1, 2, 3, 4])
        self.assertEqual(fourth.get("/cluster/status").json()["cluster_id"],
                         first.get("/cluster/status").json()["cluster_id"])
        check(self, c)

    def test_states_follow_a_kill(self):
        c = self.found(failure_timeout_ms=1000, heartbeat_interval_ms=200)
        leader, (second, third) = c.leader(), c.followers()

        def death():
            """How long until a kill is known."""
            wait_for("all are alive", lambda: set(states(leader).values()) == {"alive"})
            third.kill()
            start = time.monotonic()
            wait_for("dead", lambda: states(leader)[third.number] == "dead")
            took = time.monotonic() - start
            wait_for("the second is alive", lambda: states(leader)[second.number] == "alive")
            third.start().wait_ready()
            return took
        within(4, death)
        wait_for("alive again", lambda: states(leader)[third.number] == "alive")
        check(self, c)

    def test_other_names_and_secrets_never_mix(self):
        port = free_port()
        groups = [self.found(2, port=port, start=False, name=name, secret=secret)
                  for name, secret in (("one", "a"), ("one", "b"), ("two", "a"))]
        for c in groups:
            for node in c.nodes:
                node.start()
        ids = []
        for c in groups:
            c.wait_ready()
            self.expect(self.done(c.nodes[0], "PUT", "/k", b"x"), 201)
            got = {n.get("/cluster/status").json()["cluster_id"] for n in c.nodes}
            self.assertEqual(len(got), 1)
            ids += got
            self.assertEqual(sorted(states(c.nodes[0])), [1, 2])
        self.assertEqual(len(set(ids)), 3)
        node = groups[0].nodes[0]
        wait_for("foreign and forged ones are counted",
                 lambda: metric(node, "dropped").get("forged") and metric(node, "dropped").get("foreign"))

    def test_garbage_replays_and_forgeries_change_nothing(self):
        port = free_port()
        c = self.found(port=port)
        node = c.leader()
        with contextlib.closing(listen(port)) as s:
            real = s.recvfrom(2048)[0]
            s.sendto(b"", ("127.255.255.255", port))
            s.sendto(b"\0" * 900, ("127.255.255.255", port))
            s.sendto(real[:4] + b"\0\x02" + real[6:], ("127.255.255.255", port))  # version 2
            for bit in range(8 * len(real)):
                flipped = bytearray(real)
                flipped[bit // 8] ^= 1 << bit % 8
                s.sendto(flipped, ("127.255.255.255", port))
            old = bytearray(real)
            old[48:56] = (int.from_bytes(real[48:56]) - 3_600_000).to_bytes(8)

            def counted():
                """Send what may be lost behind so many others, and look."""
                for datagram in (signed(real, b"wrong"), real.replace(b"found", b"other"), real, real, signed(old, b"s3")):
                    s.sendto(datagram, ("127.255.255.255", port))
                return all(metric(other, "dropped").get(cause) for cause in wanted)
            wanted = ("malformed", "version", "forged", "foreign", "stale", "replayed")
            # the sender of the datagram itself takes a replay for its own, which came back
            other = next(n for n in c.nodes if n.number != int.from_bytes(real[24:32]))
            wait_for("all are counted", counted)
        self.assertEqual(sorted(states(node)), [1, 2, 3])
        wait_for("all are alive", lambda: set(states(node).values()) == {"alive"}, 20)
        check(self, c)

    def test_refused_settings(self):
        for sections, words in (({"discovery": {"enabled": True}}, "cluster.expect"),
                                ({"discovery": {"enabled": True}, "cluster": {"expect": 3},
                                  "node": {"address": "10.1.1.1"}}, "cluster.secret")):
            env = {f"SCRIBE_{section}_{key}".upper(): json.dumps(value).strip('"')
                   for section, keys in sections.items() for key, value in keys.items()}
            done = cli("serve", env=env)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(words, done.stderr.decode())


def listen(port):
    """A socket that hears announcements beside the nodes."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    s.settimeout(10)
    s.bind(("0.0.0.0", port))
    return s


def signed(datagram, secret):
    """The announcement with a new HMAC."""
    return bytes(datagram[:-32]) + hmac.new(secret, b"scribe discovery" + datagram[:-32], hashlib.sha256).digest()


class Broadcast(Hosted):
    """Each node on a host of its own: real broadcasts to 255.255.255.255, without a default route."""

    def test_a_pulled_cable_is_seen(self):
        c = self.hosts(seeds=False, discovery={"enabled": True}).start()
        first, third = c.nodes[0], c.nodes[2]
        wait_for("all are alive", lambda: set(states(first).values()) == {"alive"}, 20)
        self.net.plug(3, "down")
        wait_for("the third is dead", lambda: states(first)[3] == "dead", 40)
        wait_for("the second is alive", lambda: states(first)[2] == "alive", 20)
        wait_for("the others are dead to it", lambda: (states(third)[1], states(third)[2]) == ("dead", "dead"), 40)
        self.assertEqual(sorted(states(third)), [1, 2, 3], "silence removes nobody")
        self.net.plug(3, "up")
        wait_for("all are alive", lambda: all(set(states(n).values()) == {"alive"} for n in c.nodes), 60)
        c.wait_ready()
        check(self, c)


if __name__ == "__main__":
    helpers.main()
