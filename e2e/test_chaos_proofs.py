"""Everything provable, under faults: receipts, checkpoints and streams while nodes are killed, paused, wiped and filled up.

Three nodes under a load that keeps what every answer claimed; faults in an order that SCRIBE_SEED gives; at the end
verify_ledger.py and proof_check.py, which share nothing with the server, compare every claim with the ledger that is left:
  - a receipt or checkpoint, whoever gave it and when, is signed by a key of this ledger and leads to its tree;
  - an acknowledged write, also one answered with receipt_error, is at its seq; one refused is nowhere; none twice;
  - the checkpoints of one node never get smaller, and cover what was acknowledged before they were asked for;
  - a stream that is resumed after each cut gives every entry once, in order;
  - no request takes long unless a fault explains it, and no process keeps more files or memory than it needs.
SCRIBE_SECONDS says how long the faults go on.
"""

import collections
import concurrent.futures
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import helpers
import proof_check as proof
import truth
from helpers import JSON, LONG, MIB, NDJSON, Scenario, raw_path, sha256, wait_for
from load import ACKED, REFUSED, UNKNOWN, fate

SECONDS = float(os.environ.get("SCRIBE_SECONDS", 300 if LONG else 12))
SEED = int(os.environ.get("SCRIBE_SEED", random.randrange(1 << 32)))
STALL = 3.0       # seconds a request may take while nothing is wrong
ELECTION = 2.5    # seconds, with a split vote
QUIET = (1, 6) if LONG else (0.3, 1)
TMPFS = 512 * MIB
PROOFS = 3000     # consistency proofs to ask for at the end, at most
SLACK = 40        # goroutines and sockets that a node may have more than a new one: idle connections to each peer
NOTES = 6000      # checkpoints whose signatures are verified, at most


class Claims:
    """What the cluster has said, for the end. Everything is guarded by mutex."""

    def __init__(self):
        self.mutex = threading.Lock()
        self.done = threading.Event()  # the load ends
        self.violations = []
        self.fates = {}                # sha256 of a value -> [key, fate]
        self.entries = {}              # seq -> (key, op, sha256 of the value, leaf hash or None)
        self.roots = {}                # tree size -> root
        self.notes = set()             # checkpoints that bear signatures
        self.latest = {}               # key -> version last acknowledged
        self.keys = {}                 # vkey -> when first seen: ledger and nodes
        self.slow = []                 # (start, seconds, what)
        self.count = collections.Counter()
        self.size = 0                  # of the ledger, as far as it is acknowledged
        self.victims = []              # nodes that something is done to now
        self.steady = []               # when writes through other nodes were acknowledged

    def violation(self, *what):
        with self.mutex:
            self.violations.append(" ".join(map(str, what))[:600])

    def head(self, note):
        """Keep a checkpoint; its size."""
        head = proof.parse_checkpoint(note)
        with self.mutex:
            if self.roots.setdefault(head.size, head.root) != head.root:
                self.violations.append(f"two roots over {head.size} entries")
            self.notes.add(note)
        return head.size

    def wrote(self, key, op, digest, entry):
        """Keep what the answer to a write says; entry has a receipt or says why not."""
        seq = entry["seq"]
        error = entry.get("receipt_error")
        leaf = None if error else self.receipt(entry, key, op, digest)
        with self.mutex:
            self.count["receipt_error" if error else "receipts"] += 1
            if seq in self.entries and self.entries[seq][:3] != (key, op, digest):
                self.violations.append(f"entry {seq} is {self.entries[seq]} and {(key, op, digest)}")
            self.entries[seq] = (key, op, digest, leaf)
            self.latest[key] = max(self.latest.get(key, 0), entry["version"])
            self.size = max(self.size, seq + 1)

    def receipt(self, entry, key, op=None, digest=None):
        """Check the fields of /verify in an answer, and against what was written; the leaf hash."""
        leaf, index, note = proof.check_receipt(entry["receipt"])
        header, head = proof.parse_entry(leaf), proof.parse_checkpoint(note)
        told = (entry["seq"], entry["key"].encode(), entry["version"], entry["sha256"], entry["leaf_hash"], entry["tree_size"], entry["root"])
        proof.must(told == (index, header.key, header.version, header.sum.hex(), proof.leaf_hash(leaf).hex(), head.size, head.root.hex()),
                   "the receipt and the fields beside it differ:", entry)
        proof.must(entry["checkpoint"] == note and entry["verified"] is True and header.key == key.encode(), "receipt of", key, entry)
        proof.must(op is None or (proof.OPS[header.op], header.sum.hex()) == (op, digest), "the receipt is of another entry:", entry)
        self.head(note)
        return proof.leaf_hash(leaf)


def timed(claims, what, call):
    """Make a request, remembering it if it takes long."""
    start = time.monotonic()
    reply = call()
    seconds = time.monotonic() - start
    if seconds > 0.5:
        with claims.mutex:
            claims.slow.append((start, seconds, f"{what}: {reply.status} {reply.body[:120]!r}"))
    return reply


class Worker(threading.Thread):
    """A thread that does turn() until the load ends; a proof that does not hold is a violation."""

    pause = 0.004

    def __init__(self, cluster, claims, number):
        super().__init__(daemon=True, name=f"{type(self).__name__} {number}")
        self.cluster, self.claims, self.number = cluster, claims, number
        self.chance = random.Random(f"{SEED} {self.name}")

    def run(self):
        while not self.claims.done.is_set():
            nodes = self.cluster.running()
            try:
                if nodes:
                    self.turn(self.chance.choice(nodes))
            except Exception as err:
                self.claims.violation(self.name, type(err).__name__, err)
            self.claims.done.wait(self.pause)


class Writer(Worker):
    """PUT and DELETE with receipts, of keys of its own; some writers go round the nodes with a fault."""

    turns = 0

    def turn(self, node):
        self.turns += 1
        steady = self.number % 2 == 0
        if steady:
            sound = [n for n in self.cluster.running() if n not in self.claims.victims]
            node = self.chance.choice(sound or [node])
        key = f"w{self.number}/{self.turns % 40}"
        if self.turns % 9 == 0:
            return self.delete(node, key)
        value = f"writer {self.number} turn {self.turns} ".encode().ljust(self.chance.choice((30, 200, 2000)), b".")
        reply = timed(self.claims, f"PUT node {node.number}", lambda: node.put(raw_path(key) + "?receipt=true", value, timeout=40))
        what = fate(reply)
        with self.claims.mutex:
            self.claims.fates[sha256(value)] = [key, what]
            self.claims.count[what] += 1
        if what == ACKED:
            self.claims.wrote(key, "put", sha256(value), reply.json())
            if steady:
                self.claims.steady.append(time.monotonic())

    def delete(self, node, key):
        reply = timed(self.claims, f"DELETE node {node.number}", lambda: node.delete(raw_path(key) + "?receipt=true", timeout=40))
        if reply.status == 200:
            self.claims.wrote(key, "delete", sha256(b""), reply.json())


class Batcher(Worker):
    """NDJSON batches with receipts; what came before a cut counts."""

    pause, turns = 0.05, 0

    def turn(self, node):
        self.turns += 1
        ops = [(f"b{self.number}/{i}", f"batcher {self.number} turn {self.turns} line {i}") for i in range(self.chance.randint(1, 40))]
        body = "".join(json.dumps({"op": "put", "key": key, "value": value}) + "\n" for key, value in ops).encode()
        with self.claims.mutex:
            for key, value in ops:
                self.claims.fates[sha256(value.encode())] = [key, UNKNOWN]
        for (key, value), entry in zip(ops, self.answers(node, body)):
            digest = sha256(value.encode())
            code = entry.get("error", {}).get("code")
            what = ACKED if "seq" in entry else UNKNOWN if code in ("unknown_outcome", "internal") else REFUSED
            with self.claims.mutex:
                self.claims.fates[digest][1] = what
                self.claims.count["batch " + what] += 1
            if what == ACKED:
                self.claims.wrote(key, "put", digest, entry)

    def answers(self, node, body):
        """The lines of the reply as far as it comes."""
        start = time.monotonic()
        conn = http.client.HTTPConnection("127.0.0.1", node.port, timeout=40)
        try:
            conn.request("POST", "/batch?receipt=true", body, NDJSON)
            answer = conn.getresponse()
            for line in answer if answer.status == 200 else ():
                if line.endswith(b"\n"):
                    yield json.loads(line)
        except (OSError, http.client.HTTPException):
            pass
        finally:
            conn.close()
        if time.monotonic() - start > 0.5:
            with self.claims.mutex:
                self.claims.slow.append((start, time.monotonic() - start, f"batch node {node.number}"))


class Watcher(Worker):
    """Asks one node for checkpoints and proofs, one after the other."""

    pause, size, turns = 0.03, 0, 0

    def turn(self, _):
        node, self.turns = self.cluster.nodes[self.number], self.turns + 1
        if not node.running():
            return
        if self.turns % 20 == 0:
            self.learn_keys(node)
        if self.turns % 3 == 0:
            return self.verify(node)
        before = self.claims.size
        reply = timed(self.claims, f"checkpoint node {node.number}", lambda: node.get("/ledger/checkpoint", timeout=40))
        if reply.status == 200:
            note = reply.body.decode()
            self.advance(node, self.claims.head(note), "checkpoint")
            if self.size < before:
                self.claims.violation(f"node {node.number}: checkpoint of {self.size} entries after {before} were acknowledged")
            with self.claims.mutex:
                self.claims.count[f"checkpoints signed by {note.count(chr(0x2014)) - 1} nodes"] += 1

    def advance(self, node, size, what):
        """Heads that the node gives for all nodes never get smaller."""
        if what == "checkpoint" and size < self.size:
            self.claims.violation(f"node {node.number} {what}: {size} entries after {self.size}")
        self.size = max(size, self.size) if what == "checkpoint" else self.size

    def verify(self, node):
        with self.claims.mutex:
            if not self.claims.latest:
                return
            key, version = self.chance.choice(list(self.claims.latest.items()))
        reply = timed(self.claims, f"verify node {node.number}", lambda: node.get("/verify/" + raw_path(key)[4:], timeout=40))
        with self.claims.mutex:
            self.claims.count[f"verify {reply.status}"] += 1
        if reply.status == 200:
            entry = reply.json()
            self.claims.receipt(entry, key)
            if entry["version"] < version:
                self.claims.violation(f"node {node.number}: {key} at version {entry['version']} after {version} was acknowledged")
        elif reply.status in (404, 409, 500):
            self.claims.violation(f"node {node.number}: /verify of {key}: {reply}")

    def learn_keys(self, node):
        reply = node.get("/ledger/keys", timeout=10)
        if reply.status == 200:
            with self.claims.mutex:
                for vkey in (reply.json()["current"], *reply.json()["nodes"].values()):
                    self.claims.keys.setdefault(vkey, time.monotonic())


class Follower(Worker):
    """A stream that is resumed where it was cut, on its own node or on any (number None)."""

    def __init__(self, cluster, claims, number, events):
        super().__init__(cluster, claims, number)
        self.events, self.goal, self.leaves, self.cuts = events, None, [], 0

    def reached(self):
        return self.goal is not None and len(self.leaves) >= self.goal

    def run(self):
        while not self.reached():
            nodes = self.cluster.running()
            node = self.cluster.nodes[self.number] if self.number is not None else self.chance.choice(nodes or self.cluster.nodes)
            if node.running():
                self.follow(node)
                self.cuts += 1
            time.sleep(0.1)  # between tries

    def follow(self, node):
        conn = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
        headers = {"Accept": "text/event-stream"} if self.events else {}
        try:
            conn.request("GET", f"/ledger/entries?follow=true&from={len(self.leaves)}", headers=headers)
            answer = conn.getresponse()
            for line in answer if answer.status == 200 else ():
                line = line.removeprefix(b"data: ")
                if line.startswith(b"{") and line.endswith(b"\n"):
                    entry = json.loads(line)
                    if "error" in entry:
                        return
                    if entry["seq"] != len(self.leaves):
                        return self.claims.violation(f"stream of node {node.number}: entry {entry['seq']}, want {len(self.leaves)}")
                    self.leaves.append(entry["leaf_hash"])
                if self.reached():
                    return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            conn.close()


class Gauge(threading.Thread):
    """Samples memory, files and threads of the processes."""

    def __init__(self, cluster, claims):
        super().__init__(daemon=True)
        self.cluster, self.claims, self.samples = cluster, claims, collections.defaultdict(list)

    def run(self):
        while not self.claims.done.wait(1):
            for node in self.cluster.running():
                self.sample(node)

    def sample(self, node):
        """(time, RSS in MiB, open files, threads) of one process."""
        pid = node.process.pid
        try:
            with open(f"/proc/{pid}/status") as f:
                status = dict(line.split(":", 1) for line in f if ":" in line)
            now = time.monotonic(), int(status["VmRSS"].split()[0]) >> 10, len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"])
        except (OSError, KeyError):
            return
        self.samples[node.number, pid].append(now)

    def tell(self):
        """One line for each process that lived long."""
        for (number, _), all_of_it in self.samples.items():
            if all_of_it[-1][0] - all_of_it[0][0] > 20:
                first, last = all_of_it[min(5, len(all_of_it) - 1)], all_of_it[-1]
                print(f"  node {number} {last[0] - first[0]:.0f} s: RSS {first[1]} -> {last[1]} MiB, peak {max(s[1] for s in all_of_it)}; "
                      f"files {first[2]} -> {last[2]}, peak {max(s[2] for s in all_of_it)}; threads {first[3]} -> {last[3]}")


class Faults:
    """What goes wrong, one after the other. spans has (start, end, what): when a request may take long."""

    def __init__(self, test, cluster, claims, ballast):
        self.test, self.cluster, self.claims, self.ballast = test, cluster, claims, ballast
        self.chance, self.spans = random.Random(SEED), []
        self.all = [self.kill, self.kill, self.kill_leader, self.pause, self.pause, self.rolling, self.rotate, self.rotate_and_kill,
                    self.wipe, self.transfer, self.fill_disk] + [self.calm] * LONG

    def run(self, seconds):
        """All faults in some order, again and again."""
        end, todo = time.monotonic() + seconds, []
        while time.monotonic() < end:
            todo = todo or self.chance.sample(self.all, len(self.all))
            fault = todo.pop()
            start = time.monotonic()
            print(f"  {fault.__name__}", end="", file=sys.stderr, flush=True)
            said, over = fault(), time.monotonic()
            self.ready()
            end_of_it = time.monotonic()
            self.spans.append((start, end_of_it + 1, f"{fault.__name__} of {[n.number for n in self.claims.victims]}", len(self.claims.victims)))
            print(f" {[n.number for n in self.claims.victims]} {said or ''} {over - start:.1f} s, ready {end_of_it - over:.1f} s later", file=sys.stderr, flush=True)
            self.claims.victims = []
            time.sleep(self.chance.uniform(*QUIET))

    def ready(self):
        """Every node runs, serves and has what is acknowledged by now."""
        for node in self.cluster.nodes:
            if not node.running():
                node.start()
        self.cluster.wait_ready(60)
        size = self.claims.size
        wait_for("all nodes have caught up", lambda: all((n.size() or 0) >= size for n in self.cluster.nodes), 60)

    def some(self, least=1, most=3):
        return self.chance.sample(self.cluster.nodes, self.chance.randint(least, most))

    def hit(self, nodes):
        self.claims.victims = list(nodes)
        return self.claims.victims

    def calm(self):
        time.sleep(0.1)

    def kill(self):
        victims = self.hit(self.some())
        self.cluster.kill(victims)
        time.sleep(self.chance.choice((0, 0.1, 1, 2.5)))
        for node in victims:
            node.start()

    def kill_leader(self):
        leader = self.hit([self.cluster.leader()])[0]
        leader.kill()
        time.sleep(self.chance.choice((0, 3)))
        leader.start()

    def pause(self):
        victims = self.hit(self.some(most=2) if self.chance.random() < 0.6 else [self.cluster.leader()])
        for node in victims:
            node.pause()
        time.sleep(self.chance.choice((0.2, 1, 2) + (5,) * LONG))
        for node in victims:
            node.resume()

    def rolling(self):
        for node in self.hit(self.some(3)):
            self.test.assertEqual(node.stop(), 0, node.output()[-2000:])
            node.start().wait_ready(60)

    def rotate(self):
        keys = [self.test.expect(self.test.done(n, "POST", "/cluster/rotate-key"), 200).json()["key"] for n in self.some(most=2)]
        for node in self.cluster.nodes:
            wait_for("the new key", lambda: node.get("/ledger/key").body.decode().strip() == keys[-1])

    def rotate_and_kill(self):
        asked = self.some(1, 1)[0]
        thread = threading.Thread(target=asked.post, args=("/cluster/rotate-key",), daemon=True)
        thread.start()
        time.sleep(self.chance.uniform(0, 0.03))
        self.cluster.kill(self.hit(self.some()))

    def wipe(self):
        self.ready()
        for watcher in self.test.watchers:
            watcher.learn_keys(self.cluster.nodes[watcher.number])
        victim = self.hit(self.some(1, 1))[0]
        victim.kill()
        shutil.rmtree(victim.data)
        victim.start()

    def transfer(self):
        to = self.some(1, 1)[0].number
        self.cluster.leader().post("/cluster/transfer", b'{"to":%d}' % to, headers=JSON)

    def fill_disk(self):
        """The disk of node 3 is full for a while."""
        if not self.ballast:
            return "no tmpfs here"
        self.hit(self.cluster.nodes[2:])
        stat = os.statvfs(os.path.dirname(self.ballast))
        leave = self.chance.choice((0, 1, 8)) * MIB
        with open(self.ballast, "wb") as f:
            try:
                for _ in range((stat.f_bavail * stat.f_frsize - leave) // MIB):
                    f.write(bytes(MIB))
            except OSError:
                pass
        time.sleep(self.chance.choice((1, 3)))
        os.remove(self.ballast)
        return f"{leave >> 20} MiB left, {'running' if self.cluster.nodes[2].running() else 'ended'}"


def verify_note(args):
    """Which vkeys signed a checkpoint; an error's text. Runs in a process of its own."""
    note, vkeys = args
    try:
        return proof.signers(note, vkeys)
    except proof.Difference as err:
        return f"{err}: {note!r}"


class ChaosProofs(Scenario):
    def tmpfs(self):
        """A small file system for node 3, None where mount is not permitted."""
        folder = tempfile.mkdtemp(prefix="scribe-chaos-")
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS}", "tmpfs", folder], capture_output=True).returncode != 0:
            os.rmdir(folder)
            return None
        self.mounted.append(folder)
        return folder

    def run(self, result=None):
        self.mounted = []
        result = super().run(result)  # ends the processes
        for folder in self.mounted:
            subprocess.run(["umount", folder], capture_output=True)
            os.rmdir(folder)
        return result

    def test_faults(self):
        print(f"SCRIBE_SEED={SEED}", file=sys.stderr, flush=True)
        small = self.tmpfs()
        data = {3: os.path.join(small, "data")} if small else {}
        c = self.cluster(data_dirs=data, storage={"segment_size": 256 << 10, "scrub_rate": 8 * MIB})
        claims = Claims()
        first_key = self.expect(c.nodes[0].get("/ledger/key"), 200).body.decode().strip()
        self.watchers = [Watcher(c, claims, i) for i in range(3)]
        followers = [Follower(c, claims, number, events) for number, events in ((0, False), (1, True), (2, False), (None, True))]
        workers = [Writer(c, claims, i) for i in range(8)] + [Batcher(c, claims, i) for i in range(2)] + self.watchers
        faults, gauge = Faults(self, c, claims, small and os.path.join(small, "ballast")), Gauge(c, claims)
        sealer = threading.Thread(target=self.seal, args=(c, claims), daemon=True)
        for thread in (*workers, *followers, gauge, sealer):
            thread.start()
        try:
            faults.run(SECONDS)
        finally:
            claims.done.set()
            for thread in (*workers, sealer):
                thread.join(60)
        print("  checking", file=sys.stderr, flush=True)
        told = truth.check(self, c)
        for follower in followers:
            follower.goal = len(told) + 1
        self.expect(self.done(c.nodes[0], "PUT", raw_path("last"), b"the end"), (200, 201))
        told = list(truth.entries(c.nodes[0]))
        self.report(claims, faults, gauge, followers, told)
        self.check_entries(claims, told)
        self.check_tree(claims, told)
        self.check_signatures(claims, first_key, c)
        self.check_consistency(claims, c)
        for follower in followers:
            follower.join(60)
            self.assertEqual(follower.leaves, [e["leaf_hash"] for e in told][:len(follower.leaves)], follower.name)
            self.assertTrue(follower.reached(), f"{follower.name} came to {len(follower.leaves)} of {len(told)}")
        self.check_stalls(claims, faults)
        self.assertEqual(claims.violations, [])
        self.audit(c)

    def test_nothing_is_left_over(self):
        """After faults that end no process, nodes at rest have the goroutines and sockets of new ones."""
        c = self.cluster(storage={"segment_size": 256 << 10})
        self.some_load(c, 1, [])
        fresh = self.at_rest(c)
        c.kill()
        c = self.cluster(storage={"segment_size": 256 << 10})
        faults = Faults(self, c, Claims(), None)
        self.some_load(c, 1, [])
        before = [self.memory(node) for node in c.nodes]
        for _ in range(20 if LONG else 1):
            self.some_load(c, 6, [faults.pause, faults.transfer, faults.rotate, faults.pause, faults.transfer])
        after = [self.memory(node) for node in c.nodes]
        left = self.at_rest(c)
        print(f"\n  (goroutines, sockets) of new nodes {fresh}, of these {left}; RSS in MiB {before} -> {after}", file=sys.stderr)
        for old in left:
            self.assertLessEqual(old[0], max(n[0] for n in fresh) + SLACK, "goroutines")
            self.assertLessEqual(old[1], max(n[1] for n in fresh) + SLACK, "sockets")
        self.assertLess(max(after), 256)

    def some_load(self, c, seconds, faults):
        """Writers, watchers and streams for a while, with faults meanwhile; then they are gone."""
        claims = Claims()
        followers = [Follower(c, claims, number, events) for number, events in ((0, False), (1, True), (2, False))]
        workers = [Writer(c, claims, i) for i in range(6)] + [Batcher(c, claims, 0)] + [Watcher(c, claims, i) for i in range(3)]
        sealer = threading.Thread(target=self.seal, args=(c, claims), daemon=True)
        for follower in followers:
            follower.goal = 1 << 60
        for thread in (*workers, *followers, sealer):
            thread.start()
        end = time.monotonic() + seconds
        for fault in faults:
            fault()
            c.wait_ready(30)
        time.sleep(max(0, end - time.monotonic()))
        claims.done.set()
        for follower in followers:
            follower.goal = 0
        truth.seal(c)
        self.expect(self.done(c.nodes[0], "PUT", raw_path("wakes streams"), b"%d" % time.monotonic_ns()), (200, 201))
        for thread in (*workers, *followers, sealer):
            thread.join(60)
        self.assertEqual([t.name for t in (*workers, *followers, sealer) if t.is_alive()], [])
        self.assertEqual(claims.violations, [])
        for node in c.nodes:
            node.client.forget()

    def memory(self, node):
        """Resident memory in MiB."""
        with open(f"/proc/{node.process.pid}/status") as f:
            return next(int(line.split()[1]) >> 10 for line in f if line.startswith("VmRSS"))

    def at_rest(self, c):
        """(goroutines, sockets) of each node some time after the last request; ends the nodes."""
        time.sleep(3)
        found = []
        for node in c.nodes:
            fds = f"/proc/{node.process.pid}/fd"
            sockets = sum(os.readlink(os.path.join(fds, fd)).startswith("socket:") for fd in os.listdir(fds))
            found.append([0, sockets])
        for node in c.nodes:
            node.process.send_signal(signal.SIGQUIT)  # says what its goroutines do
        for node, numbers in zip(c.nodes, found):
            node.wait_exit()
            numbers[0] = node.output().count("\ngoroutine ")
        return found

    def seal(self, c, claims):
        """Close a segment every few hundred entries."""
        chance = random.Random(f"{SEED} seal")
        while not claims.done.wait(chance.uniform(0.1, 1.5)):
            nodes = c.running()
            if nodes:
                chance.choice(nodes).post("/cluster/seal", timeout=40)

    def report(self, claims, faults, gauge, followers, told):
        print(f"  {len(told)} entries, {len(claims.roots)} tree sizes, {len(claims.notes)} checkpoints, {len(faults.spans)} faults, "
              f"{sum(f.cuts for f in followers)} cuts of streams, {dict(sorted(claims.count.items()))}", file=sys.stderr)
        gauge.tell()

    def check_entries(self, claims, told):
        """What was acknowledged is there, what was refused is not, nothing is twice."""
        for seq, (key, op, digest, leaf) in claims.entries.items():
            self.assertLess(seq, len(told), f"acknowledged entry {seq} of {key} is lost")
            entry = told[seq]
            self.assertEqual((entry["key"], entry["op"], entry["sha256"]), (key, op, digest))
            self.assertIn(leaf and leaf.hex(), (None, entry["leaf_hash"]))
        seen = set()
        for entry in told[:-1]:
            digest = entry["sha256"]
            if entry["op"] == "delete":
                continue
            self.assertNotIn(digest, seen, f"written twice: {entry}")
            seen.add(digest)
            key, what = claims.fates[digest]
            self.assertEqual(key, entry["key"])
            self.assertNotEqual(what, REFUSED, f"was refused, yet it is in the ledger: {entry}")
            if what == ACKED:
                self.assertIn(entry["seq"], claims.entries, f"acknowledged under another seq: {entry}")

    def check_tree(self, claims, told):
        """Every head ever seen is of the tree over the entries."""
        roots = proof.Roots()
        for entry in told:
            roots.append(bytes.fromhex(entry["leaf_hash"]))
            self.assertEqual(claims.roots.get(roots.size, roots.root()), roots.root(), f"a head over {roots.size} entries is not of this ledger")
        self.assertLessEqual(max(claims.roots), len(told), "a head of more entries than there are")

    def check_signatures(self, claims, first, c):
        """Every signature on every checkpoint; a ledger key signs nothing beyond its hand-over."""
        keys = self.expect(c.nodes[0].get("/ledger/keys"), 200).json()
        may = proof.follow_keys(first, keys["current"], keys["former"])
        vkeys = sorted({*may, *claims.keys, *keys["nodes"].values()})
        notes = sorted(claims.notes)
        notes = random.Random(SEED).sample(notes, min(NOTES, len(notes)))
        with concurrent.futures.ProcessPoolExecutor(2) as pool:
            for note, signed in zip(notes, pool.map(verify_note, ((note, vkeys) for note in notes), chunksize=200)):
                self.assertIsInstance(signed, list, signed)
                by = [k for k in signed if k in may]
                self.assertEqual(len(by), 1, f"one ledger key signs: {note}")
                self.assertLessEqual(proof.parse_checkpoint(note).size, may[by[0]], f"signed with a key after it was replaced: {note}")

    def check_consistency(self, claims, c):
        """Proofs between neighbours, from every node in turn."""
        sizes = sorted(claims.roots)
        step = max(1, len(sizes) // PROOFS)
        for i in range(step, len(sizes), step):
            old, new = sizes[i - step], sizes[i]
            told = self.expect(c.nodes[i % 3].get(f"/ledger/consistency?from={old}&to={new}"), 200).json()
            self.assertEqual((told["from_root"], told["to_root"]), (claims.roots[old].hex(), claims.roots[new].hex()))
            proof.check_consistency(old, new, [bytes.fromhex(h) for h in told["proof"]], claims.roots[old], claims.roots[new])

    def check_stalls(self, claims, faults):
        """No request stayed long in a quiet time; while one node had a fault, the others went on."""
        def explained(start, end):
            return any(begun - 0.1 < end and start < over for begun, over, _, _ in faults.spans)
        slow = sorted(((seconds, what) for start, seconds, what in claims.slow if not explained(start, start + min(seconds, STALL))), reverse=True)
        print(f"  {len(slow)} requests over 0.5 s in quiet times, the slowest {slow[:3]}", file=sys.stderr)
        gaps = []
        for begun, over, name, victims in faults.spans:
            moments = [begun] + [t for t in claims.steady if begun < t < over] + [over]
            if victims <= 1:
                gaps.append((round(max(b - a for a, b in zip(moments, moments[1:])), 2), name))
        gaps.sort(reverse=True)
        print(f"  longest without a write through the nodes that had no fault: {gaps[:5]}", file=sys.stderr)
        self.assertEqual([s for s in slow if s[0] > STALL], [])
        self.assertEqual([g for g in gaps if g[0] > STALL + ELECTION], [])

    def audit(self, c):
        """Every node's ledger by both verifiers, then the data directories after a clean end."""
        verifier = os.path.join(helpers.ROOT, "e2e", "verify_ledger.py")
        for node in c.nodes:
            done = subprocess.run([sys.executable, verifier, "ledger", node.url], capture_output=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            done = helpers.cli("audit", url=node.url)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(c.stop(), [0, 0, 0])
        for node in c.nodes:
            done = helpers.cli("audit", "--data", node.data)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(truth.segment_files(c.nodes[0]), truth.segment_files(c.nodes[1]))
        self.assertEqual(truth.segment_files(c.nodes[0]), truth.segment_files(c.nodes[2]))


if __name__ == "__main__":
    helpers.main()
