"""Hosts of their own for nodes: a bridge with one network namespace each, and the ways to cut what is between them.

A cut is one way, from one host to another, of one of two kinds. A blocked way is a blackhole route: the sender gets
an error for each connection it begins. A muted way is a wrong hardware address: what is sent is lost without a word
and connections stay half open, as when a cable is cut. Announcements are broadcasts and pass both; plug() stops them.
"""

import contextlib
import ctypes
import functools
import http.client
import os
import subprocess
import unittest

from helpers import Scenario

NOBODY = "02:00:00:00:00:99"  # hardware address of no host


def ip(*args):
    subprocess.run(["ip", *args], check=True, capture_output=True)


class Network:
    """A bridge and n hosts on it: 10.77.0.1 and up, no default route. Hosts count from 1, as nodes do."""

    count = 0

    def __init__(self, n):
        Network.count += 1
        self.tag = f"sl{os.getpid()}-{Network.count}"
        self.hub, self.hosts = f"{self.tag}-hub", range(1, n + 1)
        self.cuts = {}  # (from, to) -> how to undo the cut
        try:
            ip("netns", "add", self.hub)
            ip("-n", self.hub, "link", "add", "br0", "type", "bridge")
            ip("-n", self.hub, "link", "set", "br0", "up")
            for host in self.hosts:
                space = self.space(host)
                ip("netns", "add", space)
                ip("-n", space, "link", "set", "lo", "up")
                ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{host}", "netns", self.hub)
                ip("-n", space, "addr", "add", f"{self.address(host)}/24", "brd", "+", "dev", "eth0")
                ip("-n", space, "link", "set", "eth0", "up")
                ip("-n", self.hub, "link", "set", f"port{host}", "master", "br0", "up")
        except BaseException:
            self.close()
            raise

    def space(self, host):
        return f"{self.tag}-{host}"

    def address(self, host):
        return f"10.77.0.{host}"

    def give(self, host, address):
        """The host gets one more address, with which it answers too."""
        ip("-n", self.space(host), "addr", "add", f"{address}/24", "dev", "eth0")

    def plug(self, host, state):
        """Pull the host's cable or put it back: state up or down."""
        ip("-n", self.hub, "link", "set", f"port{host}", state)

    def block(self, sender, receiver):
        """What sender sends to receiver is refused at the sender."""
        to = self.address(receiver)
        ip("-n", self.space(sender), "route", "add", "blackhole", to)
        self.cuts[sender, receiver] = ("route", "del", "blackhole", to)

    def mute(self, sender, receiver):
        """What sender sends to receiver is lost without a word."""
        to = self.address(receiver)
        ip("-n", self.space(sender), "neigh", "replace", to, "lladdr", NOBODY, "nud", "permanent", "dev", "eth0")
        self.cuts[sender, receiver] = ("neigh", "del", to, "dev", "eth0")

    def cut(self, one, other, way=None):
        """Cut both ways between two groups of hosts."""
        for a in one:
            for b in other:
                (way or self.mute)(a, b)
                (way or self.mute)(b, a)

    def heal(self):
        """Undo every cut."""
        for (sender, _), undo in self.cuts.items():
            ip("-n", self.space(sender), *undo)
        self.cuts = {}

    def slow(self, host, rate):
        """The host sends and gets no more than rate, such as 1mbit; None: what it can."""
        for space, device in ((self.space(host), "eth0"), (self.hub, f"port{host}")):
            what = ("replace", "dev", device, "root", "tbf", "rate", rate, "burst", "8kb", "latency", "400ms") if rate \
                else ("del", "dev", device, "root")
            subprocess.run(["ip", "netns", "exec", space, "tc", "qdisc", *what], check=True, capture_output=True)

    def close(self):
        for space in (*(self.space(host) for host in self.hosts), self.hub):
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


@contextlib.contextmanager
def inside(space):
    """This thread is in the network namespace; sockets made here stay in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{space}") as there:
        if libc.setns(there.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(home.fileno(), 0)


class Connection(http.client.HTTPConnection):
    """A connection made inside a network namespace."""

    def __init__(self, space, *args, **kw):
        super().__init__(*args, **kw)
        self.space = space

    def connect(self):
        with inside(self.space):
            super().connect()


class Hosted(Scenario):
    """A scenario whose nodes each have a host of their own."""

    size = 3  # hosts

    def setUp(self):
        try:
            self.net = Network(self.size)
        except (OSError, subprocess.CalledProcessError) as err:
            raise unittest.SkipTest(f"network namespaces are not available here: {getattr(err, 'stderr', err)}")
        self.addCleanup(self.net.close)

    def hosts(self, n=3, first=1, seeds=True, **sections):
        """A cluster of n nodes on the hosts from first on, not started; clients reach a node from its own host,
        whatever is cut. With seeds they know each other, else they have to find each other."""
        cluster = {"name": "hosts", "secret": "s3", "insecure": True, "expect": n, **sections.pop("cluster", {})}
        c = self.cluster(n, start=False, cluster=cluster, **sections)
        places = [f"{self.net.address(first + i)}:9001" for i in range(n)]
        for i, node in enumerate(c.nodes):
            self.settle(node, first + i, places if seeds else [])
        return c

    def settle(self, node, host, seeds):
        """Put a node on a host."""
        node.sections["network"] = {"listen_addr": f"0.0.0.0:{node.port}", "client_port": node.port, "raft_port": 9001,
                                    "seed_peers": seeds}
        node.sections["node"]["address"] = self.net.address(host)
        node.prefix = ["ip", "netns", "exec", self.net.space(host)]
        node.client.connection = functools.partial(Connection, self.net.space(host))
