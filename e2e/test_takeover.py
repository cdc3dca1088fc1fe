"""A node without a ledger takes over all of it: from several peers, under load, killed and short of space.

--long takes over more than 1 GiB and says how fast that is beside the disk. What is printed as takeover_rate is the
bytes of the segments through the time from the first to the last of them, as the node logs it.
"""

import json
import os
import random
import subprocess
import threading
import time

import helpers
from helpers import LONG, MIB, Node, Scenario, binary, free_port, wait_for
from truth import check, seal, segment_files

SIZE = (1100 if LONG else 200) * MIB
SEGMENT = (64 if LONG else 16) * MIB
VALUE = 16 << 10
KILLS = 20 if LONG else 6
PUTS = 8 if LONG else 3  # seconds of load before and during a takeover


def bench(nodes, *args):
    """Run the load generator; its JSON, also when a leader was replaced meanwhile and requests failed."""
    urls = [word for node in nodes for word in ("--url", node.url)]
    done = subprocess.run([binary(), "bench", "--json", *urls, *args], capture_output=True)
    if not done.stdout:
        raise AssertionError(done.stderr.decode())
    return json.loads(done.stdout)


def fill(nodes, size):
    """Write size bytes of values at least, also when batches fail while leadership moves."""
    left, until = size // VALUE, time.monotonic() + 300
    while left > 0 and time.monotonic() < until:
        left -= bench(nodes, "--op", "put", "--batch", "32", "--connections", "4", "--size", str(VALUE), "--count", str(-(-left // 32)))["entries"]


def disk_rate(folder, size=512 * MIB):
    """Bytes a second that one writer brings to this disk, fdatasync included."""
    block, path = os.urandom(MIB), os.path.join(folder, "disk-rate")
    start = time.monotonic()
    with open(path, "wb", buffering=0) as f:
        for _ in range(size // MIB):
            f.write(block)
        os.fdatasync(f.fileno())
    took = time.monotonic() - start
    os.unlink(path)
    return size / took


def cpu(node):
    """Seconds of processor time that a node has taken."""
    with open(f"/proc/{node.process.pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Puts(threading.Thread):
    """A load of small PUTs for some seconds; the requests a second in rate."""

    def __init__(self, nodes, seconds):
        super().__init__(daemon=True)
        self.nodes, self.seconds, self.rate = nodes, seconds, None
        self.start()

    def run(self):
        result = bench(self.nodes, "--op", "put", "--connections", "16", "--size", "1000", "--duration", f"{self.seconds}s")
        self.rate = result["requests_per_second"]

    def wait(self):
        self.join()
        return self.rate


class Takeover(Scenario):
    def newcomer(self, c, number=4):
        """A fresh node that will join the cluster, not started."""
        http, raft = free_port(), free_port()
        seeds = [f"127.0.0.1:{n.sections['network']['raft_port']}" for n in c.nodes]
        node = Node(number, c.folder, {
            "node": {"id": number, "address": "127.0.0.1", "data_dir": os.path.join(c.folder, f"node-{number}")},
            "network": {"listen_addr": f"127.0.0.1:{http}", "client_port": http, "raft_port": raft, "seed_peers": seeds},
            "storage": {"segment_size": SEGMENT}, "cluster": {"expect": 3}})
        c.nodes.append(node)
        return node

    def full(self, size=SIZE):
        """A cluster of three with a sealed ledger of so many bytes."""
        c = self.cluster(storage={"segment_size": SEGMENT})
        fill(c.nodes, size)
        return c, seal(c)

    def taken(self, node, size, timeout=120):
        """Wait until a node has the ledger; what its log says of fetching, and its peak memory."""
        wait_for(f"node {node.number} has {size} entries", lambda: (node.size() or 0) >= size, timeout, 0.05)
        def lines(message):
            found = [line for line in node.output().splitlines() if f'"{message}"' in line]
            return [json.loads(line) for line in found]
        ended = wait_for("the line that ends a fetch", lambda: lines("fetching segments has ended"))
        peers = {peer for line in lines("segment fetched") for peer in line["from"].split(", ")}
        return peers, max(line["bytes_per_second"] for line in ended), sum(line["bytes"] for line in ended), node.peak_rss()

    def measure(self, c, node, size):
        """Start a node that lacks everything, beside a load; print and check how it went."""
        members = [n for n in c.running()]
        before = Puts(members, PUTS).wait()
        disk = disk_rate(c.folder)
        load = Puts(members, PUTS)
        time.sleep(1)
        start = time.monotonic()
        node.start()
        peers, rate, fetched, rss = self.taken(node, size)
        took, spent = time.monotonic() - start, cpu(node)
        during = load.wait()
        metrics = node.get("/metrics").json()["fetch"]
        print(json.dumps({
            "bytes": fetched, "seconds_from_start": round(took, 2), "takeover_rate_mib": rate // MIB, "disk_rate_mib": int(disk) // MIB,
            "of_disk": round(rate / disk, 2), "put_before": int(before), "put_during": int(during), "of_put": round(during / before, 2),
            "cpu_seconds": round(spent, 2), "peers": len(peers), "newcomer_peak_rss_mib": rss // MIB, "metrics": metrics}), flush=True)
        self.assertGreaterEqual(fetched, SIZE)
        self.assertGreaterEqual(len(peers), 2, "all came from one peer")
        if LONG:
            self.assertGreaterEqual(rate / disk, 0.5)
            self.assertGreaterEqual(during / before, 0.7)

    def test_fresh_node(self):
        c, size = self.full()
        node = self.newcomer(c)
        self.measure(c, node, size)
        wait_for("the newcomer votes", lambda: any(
            m["id"] == 4 and m["role"] == "follower" for m in c.nodes[0].get("/cluster/members").json()["members"]), 30)
        self.finish(c)

    def test_node_that_was_down_all_the_time(self):
        c = self.cluster(storage={"segment_size": SEGMENT})
        node = c.followers()[0]
        node.kill()
        fill(c.running(), SIZE)
        self.measure(c, node, seal(c))
        self.finish(c)

    def test_kills(self):
        """kill -9 of the puller, and of its peers, at random moments."""
        c, size = self.full()
        node = self.newcomer(c)
        rng = random.Random(4)
        parts = resumed = 0
        for turn in range(KILLS):
            node.start()
            time.sleep(rng.uniform(0.1, 1.0))
            if turn % 2:
                peer = rng.choice(c.nodes[:3])
                peer.kill()
                time.sleep(rng.uniform(0, 0.3))
            with_metrics = node.get("/metrics", timeout=2)
            if with_metrics.status == 200:
                resumed += with_metrics.json()["fetch"]["resumed"]
            node.kill()
            folder = os.path.join(node.data, "segments")
            parts += sum(name.endswith(".part") for name in os.listdir(folder)) if os.path.isdir(folder) else 0
            if turn % 2:
                peer.start()
            c.nodes[0].wait_ready()
            if turn % 3 == 2:  # begin anew, or all is there after some turns
                subprocess.run(["rm", "-rf", os.path.join(node.data, "segments"), os.path.join(node.data, "ledger.db")], check=True)
                subprocess.run(["rm", "-rf", node.data], check=True)
        print(json.dumps({"kills": KILLS, "parts_left": parts, "segments_resumed": resumed}), flush=True)
        node.start()
        self.taken(node, size)
        self.finish(c)

    def finish(self, c):
        """The whole truth, and nothing half-made is left."""
        c.wait_ready(60)
        check(self, c)
        for node in c.running():
            left = [name for name in os.listdir(os.path.join(node.data, "segments")) if not name.endswith(".seg")]
            self.assertEqual(left, [], f"node {node.number} keeps unfinished files")
            self.assertTrue(segment_files(node))


if __name__ == "__main__":
    helpers.main()
