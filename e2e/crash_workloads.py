"""What a traced node is asked to do before its disk is cut off: WORKLOADS, each a function of a Run."""

import concurrent.futures
import json
import os
import random

import crash_trace
from helpers import JSON, NDJSON, Cluster, raw_path, sha256
from truth import entries

class Run:
    """One traced node, what it was sent and what it acknowledged."""

    def __init__(self, folder, seed, **sections):
        self.rng = random.Random(seed)
        self.root = os.path.join(folder, "disk")
        os.makedirs(self.root, exist_ok=True)
        self.cluster = Cluster(1, folder=folder, data_dirs={1: os.path.join(self.root, "data")},
                               storage={"segment_size": 64 << 10, **sections.pop("storage", {})}, log={"level": "warn"}, **sections)
        self.node = self.cluster.nodes[0]
        self.traces = []
        self.attempts = set()   # (key, sha256) of every put that was sent
        self.acked = {}         # seq -> (key, op, sha256)
        self.repeats = {}       # seq -> (Idempotency-Key, key, value)
        self.again = 0

    def follow(self, before):
        """Be the same node after a power cut: with its addresses, and knowing what was sent to it."""
        self.node.sections["network"] = before.node.sections["network"]
        self.node.port = self.node.client.port = before.node.port
        self.attempts, self.again = before.attempts, 1000

    def start(self):
        out = os.path.join(self.cluster.folder, f"life-{len(self.traces)}.strace")
        self.node.prefix = crash_trace.prefix(out)
        self.node.start().wait_ready()
        self.traces.append(out)

    def end(self, how):
        """End the node by one of its methods and wait for the whole trace."""
        pid = self.node.process.pid
        how()
        crash_trace.wait_whole(self.traces[-1], pid)

    def write(self, method, key, value=b"", headers=None, query=""):
        """One request that may append an entry; its reply."""
        self.attempts.add((key, sha256(value)))
        reply = self.node.request(method, raw_path(key) + query, value if method == "PUT" else None, headers)
        if reply.status in (200, 201):
            self.note(reply.json(), key)
        elif reply.status not in (404, 412):
            raise AssertionError(f"{method} {key}: {reply}")
        return reply

    def note(self, entry, key):
        if entry["key"] != key:
            raise AssertionError(f"{entry} answers a write of {key}")
        self.acked[entry["seq"]] = key, entry["op"], entry["sha256"]

    def put(self, key, value, **headers):
        return self.write("PUT", key, value, {name.replace("_", "-"): text for name, text in headers.items()})

    def remember(self, key, value):
        """A put with an Idempotency-Key, sometimes sent twice."""
        self.again += 1
        name = f"again-{self.again}"
        seqs = {self.put(key, value, Idempotency_Key=name).json()["seq"] for _ in range(self.rng.randint(1, 2))}
        if len(seqs) != 1:
            raise AssertionError(f"{name} was applied as {seqs}")
        self.repeats[seqs.pop()] = name, key, value

    def value(self, low=50, high=900):
        return self.rng.randbytes(self.rng.randint(low, high)).hex().encode()

    def batch(self, lines):
        """One ndjson batch of [(key, value)]."""
        self.attempts.update((key, sha256(value.encode())) for key, value in lines)
        body = "".join(json.dumps({"op": "put", "key": key, "value": value}) + "\n" for key, value in lines)
        reply = self.node.post("/batch", body.encode(), headers=NDJSON)
        for (key, _), entry in zip(lines, reply.lines(), strict=True):
            self.note(entry, key)

    def atomic(self, ops):
        """One atomic batch of puts [(key, value)]."""
        self.attempts.update((key, sha256(value.encode())) for key, value in ops)
        body = {"ops": [{"op": "put", "key": key, "value": value} for key, value in ops]}
        reply = self.node.post("/batch", json.dumps(body).encode(), headers=JSON)
        for (key, _), entry in zip(ops, reply.json()["results"], strict=True):
            self.note(entry, key)

    def together(self, jobs, threads=4):
        """Run the functions, several at a time."""
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(job) for job in jobs]:
                done.result()

    def ask(self, method, path):
        reply = self.node.request(method, path)
        if reply.status != 200:
            raise AssertionError(f"{method} {path}: {reply}")
        return reply

    def ledger(self):
        """All entries as the node tells them, compared with what clients know."""
        told = list(entries(self.node))
        for seq, (key, op, digest) in self.acked.items():
            entry = told[seq]
            if (entry["key"], entry["op"], entry["sha256"]) != (key, op, digest):
                raise AssertionError(f"{entry} was acknowledged as {op} of {key}, {digest}")
        for entry in told:
            if entry["op"] == "put" and (entry["key"], entry["sha256"]) not in self.attempts:
                raise AssertionError(f"nobody wrote {entry}")
        return told


def small(run):
    """Small puts by four clients, over the borders of segments."""
    run.start()
    run.together([lambda i=i, value=run.value(): run.put(f"small/{i % 37}", value) for i in range(200)])


def batches(run):
    """Streamed and atomic batches."""
    run.start()
    for turn in range(6):
        lines = [(f"batch/{turn}/{i}", run.value(20, 400).decode()) for i in range(run.rng.randint(1, 50))]
        ops = [(f"batch/{turn}/{i}", run.value(20, 400).decode()) for i in range(run.rng.randint(1, 20))]
        run.together([lambda: run.batch(lines), lambda: run.atomic([(key + "/a", value) for key, value in ops])])


def large(run):
    """Values that travel in many parts, with small ones between them."""
    run.start()
    jobs = []
    for i in range(8):
        value = run.rng.randbytes(run.rng.choice((70_000, 200_000, 400_000, 700_000)))
        jobs += [lambda i=i, value=value: run.put(f"large/{i % 3}", value), lambda i=i: run.put(f"beside/{i}", b"small %d" % i)]
    run.together(jobs, 3)


def conditions(run):
    """Deletes, conditions that hold and that do not, requests sent twice."""
    run.start()
    for i in range(60):
        key, etag = f"key/{run.rng.randrange(12)}", None
        now = run.node.get(raw_path(key))
        etag = now.headers["ETag"] if now.status == 200 else '"9999"'
        what = run.rng.randrange(5)
        if what == 0:
            run.write("DELETE", key)
        elif what == 1:
            run.put(key, run.value(), If_None_Match="*")
        elif what == 2:
            run.put(key, run.value(), If_Match=etag)
        else:
            run.remember(key, run.value())
        if i % 25 == 24:
            run.ask("POST", "/cluster/seal")


def merges(run):
    """Many seals, so that runs merge, and so much that the Raft log drops its oldest files."""
    run.start()
    for turn in range(18):
        run.together([lambda i=i, value=run.value(10_000, 25_000): run.put(f"merge/{turn % 5}/{i}", value) for i in range(6)], 2)
        run.ask("POST", "/cluster/seal")


def restarts(run):
    """Ends of both kinds between the writes, receipts, signed heads and new keys."""
    for turn in range(4):
        run.start()
        run.ask("GET", "/ledger/keys")
        for i in range(12):
            run.write("PUT", f"turn/{i}", run.value(), query="?receipt=true" if i % 3 == 0 else "")
        run.remember("turn/again", run.value())
        if turn in (1, 2):
            run.ask("POST", "/cluster/rotate-key")
            run.ask("GET", "/ledger/checkpoint")
        if turn == 2:
            run.ask("POST", "/cluster/seal")
        if turn < 3:
            run.end(run.node.kill if turn % 2 else run.node.stop)


def genesis(run):
    """The first start, and the first writes."""
    run.start()
    run.ask("GET", "/ledger/keys")
    for i in range(3):
        run.put(f"first/{i}", run.value())
    run.ask("POST", "/cluster/seal")
    run.ask("GET", "/ledger/checkpoint")


def go_on(run):
    """A start after a power cut, and some writes."""
    run.start()
    for i in range(5):
        run.put(f"go on/{i}", run.value())
    run.ask("POST", "/cluster/seal")
    run.remember("go on/again", run.value())


WORKLOADS = {"genesis": genesis, "small": small, "batches": batches, "large": large, "conditions": conditions,
             "merges": merges, "restarts": restarts}
