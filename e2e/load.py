"""Writers that remember what became of every attempt, streamed batches, the failover stopwatch."""

import http.client
import json
import random
import threading
import time

from helpers import NDJSON, raw_path, sha256

ACKED, REFUSED, UNKNOWN = "acknowledged", "refused", "unknown"


def fate(reply):
    """What an answer to a write says about the ledger."""
    if reply.status in (200, 201):
        return ACKED
    if 400 <= reply.status < 500 or reply.status in (503, 507) or not reply.sent:
        return REFUSED
    return UNKNOWN  # 504, another 5xx, or a connection that broke after the request left


class Load:
    """Concurrent writers over the running nodes, as a context manager.

    Each writer owns its keys and writes a value that no one ever wrote before,
    so that every entry in the ledger belongs to exactly one attempt. One write
    in ten is followed by a linearizable read on a random node, which must show
    that write or a later one.
    """

    def __init__(self, cluster, writers=4, keys=20, size=100, pause=0.002, prefix="load"):
        self.cluster, self.keys, self.size, self.pause, self.prefix = cluster, keys, size, pause, prefix
        self.attempts = {}    # sha256 of the value -> [key, fate]
        self.acked = {}       # seq -> (key, version, sha256 of the value)
        self.latest = {}      # key -> seq of its last acknowledged write
        self.ack_times = []   # when acknowledgements came
        self.failed = []      # (number of the node, answer) of all other attempts
        self.violations = []  # reads that went back in time, sequence numbers given twice
        self.mutex = threading.Lock()
        self.done = threading.Event()
        self.threads = [threading.Thread(target=self._write, args=(i,), daemon=True) for i in range(writers)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self.done.set()
        for thread in self.threads:
            thread.join(90)

    def count(self, wanted=ACKED):
        with self.mutex:
            return sum(1 for _, what in self.attempts.values() if what == wanted)

    def longest_gap(self, start, end):
        """Longest time in seconds without any acknowledgement between two moments."""
        with self.mutex:
            inside = [start] + sorted(t for t in self.ack_times if start < t < end) + [end]
        return max(b - a for a, b in zip(inside, inside[1:]))

    def _write(self, writer):
        rng = random.Random(writer)
        turn = 0
        while not self.done.is_set():
            nodes = self.cluster.running()
            if not nodes:
                self.done.wait(0.05)
                continue
            turn += 1
            key = f"{self.prefix}/{writer}/{turn % self.keys}"
            value = f"{self.prefix} writer {writer} attempt {turn} ".encode().ljust(self.size, b".")
            node = rng.choice(nodes)
            reply = node.put(raw_path(key), value, timeout=35)
            self._note(node, key, sha256(value), reply)
            if fate(reply) != ACKED:
                self.done.wait(0.02)
            elif rng.random() < 0.1:
                self._read_back(key, reply.json()["seq"], rng.choice(nodes))
            self.done.wait(self.pause)

    def _note(self, node, key, digest, reply):
        what = fate(reply)
        with self.mutex:
            self.attempts[digest] = [key, what]
            if what != ACKED:
                self.failed.append((node.number, reply))
                return
            entry = reply.json()
            if entry["seq"] in self.acked:
                self.violations.append(f"seq {entry['seq']} was given to {key} and {self.acked[entry['seq']][0]}")
            self.acked[entry["seq"]] = (key, entry["version"], digest)
            self.latest[key] = entry["seq"]
            self.ack_times.append(time.monotonic())

    def _read_back(self, key, seq, node):
        reply = node.get(raw_path(key), timeout=15)
        shown = int(reply.headers["Scribe-Seq"]) if reply.status == 200 else None
        if reply.status == 404 or (shown is not None and shown < seq):
            self.violations.append(f"node {node.number} showed {key} at {shown} after {seq} was acknowledged")


def stream_batch(port, body):
    """POST /batch of NDJSON, sent from one thread while this one reads; (status, answers)."""
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    conn.putrequest("POST", "/batch")
    for name, value in {**NDJSON, "Content-Length": str(len(body))}.items():
        conn.putheader(name, value)
    conn.endheaders()
    sock = conn.sock  # getresponse may drop it from conn

    def send():
        try:
            sock.sendall(body)
        except OSError:
            pass  # the reader sees what happened to the connection
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    reply = conn.getresponse()
    answers = [json.loads(line) for line in reply]
    sender.join(30)
    sock.close()
    return reply.status, answers


def time_to_next_ack(nodes, key="failover", deadline=20.0):
    """Seconds from now to the first acknowledged write through any of nodes."""
    start, first, done = time.monotonic(), [], threading.Event()

    def hammer(node):
        while not done.is_set() and time.monotonic() - start < deadline:
            if node.put(raw_path(f"{key}/{node.number}"), b"x", timeout=deadline).status in (200, 201):
                first.append(time.monotonic() - start)
                done.set()
            done.wait(0.01)

    threads = [threading.Thread(target=hammer, args=(node,), daemon=True) for node in nodes]
    for thread in threads:
        thread.start()
    if not done.wait(deadline):
        raise AssertionError(f"no acknowledged write within {deadline} s of the leader's death")
    for thread in threads:
        thread.join(deadline)
    return min(first)
