"""Disks that fail, fill up, slow down or hang under a running node; strace makes the system calls do it."""

import concurrent.futures
import functools
import statistics
import subprocess
import tempfile
import time

import crash_trace
import helpers
from helpers import LONG, Scenario, raw_path, wait_for, within
from load import Load
from truth import check

SYNCS = "fsync,fdatasync"


def command(calls, fault):
    """strace with a fault in some system calls of all threads."""
    return ["strace", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"]


class Fault:
    """A fault in system calls of a running node, from now until the with block ends or the node does."""

    def __init__(self, node, calls, fault):
        self.node, self.said = node, tempfile.TemporaryFile()
        self.process = subprocess.Popen([*command(calls, fault), "-p", str(node.process.pid)], stderr=self.said)
        wait_for("strace is attached", self.attached)

    def attached(self):
        if "attached" in self.text():
            return True  # and it may have ended already, with the node
        if self.process.poll() is None:
            return False
        try:
            self.node.wait_exit(5)  # it was ending when strace came
        except AssertionError:
            raise AssertionError(f"strace ended with {self.process.returncode}: {self.text()}") from None
        return True

    def text(self):
        """What strace said."""
        self.said.seek(0)
        return self.said.read().decode()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()  # the kernel lets the node go on as it was; a strace that delays a call hears nothing else
        self.process.wait()
        self.said.close()


def latencies(puts):
    """p50 and p99 in milliseconds."""
    return f"p50 {1000 * statistics.median(puts):.1f} ms, p99 {1000 * sorted(puts)[int(0.99 * len(puts))]:.1f} ms"


class DiskFaults(Scenario):
    def setUp(self):
        why = crash_trace.missing()
        if why:
            self.skipTest(why)

    def timed_puts(self, node, count, prefix, threads=4):
        """Puts by several clients, repeated until they are acknowledged; the seconds of each."""
        def one(i):
            begun = time.monotonic()
            send = functools.partial(node.put, raw_path(f"{prefix}/{i}"), b"x" * 200, {"Idempotency-Key": f"{prefix}/{i}"}, timeout=40)
            wait_for("an acknowledgement", lambda: self.expect(send(), (200, 201, 503, 504)).status < 300, 40)
            return time.monotonic() - begun
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, range(count)))

    def refusal(self, node, timeout=60.0):
        """The process ends with 2 and says in one line what failed."""
        return self.expect_refusal(node, "input/output error", timeout=timeout)

    def settled(self, node):
        """Wait until the node serves or has ended; whether it runs."""
        wait_for("ready, or the end", lambda: not node.running() or node.get("/health", timeout=2).status == 200)
        return node.running()

    def ended_for_space(self, node):
        """The process ended with 2; its last line says that there was no space. Before, it may have logged refused writes."""
        status, text = node.wait_exit(), node.output()
        self.assertEqual(status, 2, text[-3000:])
        self.assertNotRegex(text, r"goroutine \d+|panic:|runtime error")
        self.assertRegex(text.splitlines()[-1], "^scribe-ledger: .*no space left on device")
        return text.splitlines()[-1][:150]

    def test_failed_sync_alone(self):
        """The N-th sync of a thread fails, from the first start on: exit 2, and all acknowledged is there later."""
        for n in range(1, 41) if LONG else (1, 2, 3, 4, 6, 9, 13, 20):
            with self.subTest(n=n):
                c = self.cluster(1, start=False, storage={"segment_size": 64 << 10})
                node = c.nodes[0]
                node.prefix = [*command(SYNCS, f"error=EIO:when={n}"), "-D"]
                node.start()
                with Load(c, writers=3, size=1500) as load:
                    line = self.refusal(node)
                print(f"\n  {n}: {load.count()} acknowledged; {line[:150]}", end="", flush=True)
                node.prefix = []
                c.start()
                check(self, c, load)
                c.kill()

    def one_of_three_fails(self, choose):
        """A sync of the chosen node fails under load: it ends, the others go on, and it comes back."""
        c = self.cluster(storage={"segment_size": 256 << 10})
        victim = choose(c)
        with Load(c, writers=4) as load:
            wait_for("500 writes", lambda: load.count() > 500, 180)
            with Fault(victim, SYNCS, "error=EIO:when=1"):
                begun = time.monotonic()
                line = self.refusal(victim)
            enough = load.count() + 500
            wait_for("writes go on", lambda: load.count() > enough, 180)
            gap = load.longest_gap(begun, time.monotonic())
            print(f"{line[:120]}; no acknowledgement for {gap:.2f} s", end=" ", flush=True)
            self.assertLess(gap, 10)
            victim.start().wait_ready()
        check(self, c, load)

    def test_failed_sync_of_the_leader(self):
        self.one_of_three_fails(lambda c: c.leader())

    def test_failed_sync_of_a_follower(self):
        self.one_of_three_fails(lambda c: c.followers()[0])

    def test_no_space_alone(self):
        """No write to the log and the databases finds space, not even where they had some: nothing is acknowledged,
        reads go on or the node ends with one line, and all comes back."""
        c = self.cluster(1, storage={"segment_size": 64 << 10})
        node = c.nodes[0]
        with Load(c, writers=3, size=1500) as load:
            wait_for("100 writes", lambda: load.count() > 100, 60)
        with Fault(node, "pwrite64", "error=ENOSPC"):
            for i in range(5):
                reply = self.expect(node.put(f"/none/{i}", b"x" * 2000, timeout=40), (0, 503, 507))
                self.assertIn(reply.code(), (None, "disk_full", "no_leader"))
            for key, seq in load.latest.items():
                reply = self.expect(node.get(raw_path(key) + "?consistency=stale"), (0, 200))
                if reply.status == 0:
                    break  # it ends
                self.assertEqual(reply.headers["Scribe-Seq"], str(seq))
            ended = reply.status == 0
        if ended:
            node.wait_exit()
        if not self.settled(node):
            print(self.ended_for_space(node), end=" ", flush=True)
            node.start().wait_ready()
        self.expect(node.put("/again", b"x"), 201)
        check(self, c, load)

    def test_no_space_now_and_then(self):
        """Single writes find no space: no request is told another outcome than it has."""
        c = self.cluster(1, storage={"segment_size": 64 << 10})
        node, lines = c.nodes[0], []
        with Load(c, writers=4, size=1500) as load:
            for n in range(2, 30 if LONG else 8):
                if not node.running():
                    node.start().wait_ready()
                with Fault(node, "pwrite64", f"error=ENOSPC:when={n}"):
                    enough = load.count() + 60
                    wait_for("60 more writes, or the end", lambda: load.count() > enough or not node.running(), 180)
                if not self.settled(node):
                    lines.append(self.ended_for_space(node))
            if not node.running():
                node.start().wait_ready()
        print(f"{load.count()} acknowledged, {load.count('refused')} refused, {load.count('unknown')} unknown;", *lines, sep="\n  ")
        check(self, c, load)

    def slow_syncs(self, choose, ms):
        """Each sync of the chosen node takes longer; the seconds of each put meanwhile and before."""
        c = self.cluster()
        victim, leader = choose(c), c.leader()
        other = next(node for node in c.nodes if node not in (victim, leader))
        count = 100 if ms < 1000 else 60
        before = self.timed_puts(other, 400, "before")
        term = other.get("/cluster/status").json()["term"]
        with Load(c, writers=2, keys=500) as load, Fault(victim, SYNCS, f"delay_enter={1000 * ms}"):
            slow = self.timed_puts(other, count, "slow")
            terms = other.get("/cluster/status").json()["term"] - term
            now = c.leader()
        after = self.timed_puts(other, 400, "after")
        print(f"\n  {ms} ms more: {latencies(slow)}; before {latencies(before)}; after {latencies(after)}; "
              f"{terms} elections{', the leader moved' if now is not leader else ''}", end=" ", flush=True)
        self.assertTrue(victim.running(), victim.output()[-2000:])
        self.assertLessEqual(terms, 3, "leadership flaps")
        check(self, c, load)
        return slow, before

    def test_slow_follower(self):
        for ms in (200, 2000) if LONG else (500,):
            with self.subTest(ms=ms):
                slow, before = self.slow_syncs(lambda c: c.followers()[0], ms)
                self.assertLess(statistics.median(slow), statistics.median(before) + 0.15, "writes wait for the slowest of three")

    def test_slow_leader(self):
        for ms in (200, 500, 2000) if LONG else (200,):
            with self.subTest(ms=ms):
                self.slow_syncs(lambda c: c.leader(), ms)

    def hung_sync(self, choose):
        """The syncs of the chosen node do not return; seconds until writes went on, how many more than before the next ones
        took, and whether the others still follow the node."""
        c = self.cluster()
        victim = choose(c)
        others = [node for node in c.nodes if node is not victim]
        before = self.timed_puts(others[0], 100, "before")
        with Load(c, writers=2) as load:
            wait_for("100 writes", lambda: load.count() > 100)
            with Fault(victim, SYNCS, "delay_enter=600000000"):
                begun = time.monotonic()
                self.expect(others[0].put("/first", b"x", timeout=40), (200, 201, 503, 504))
                wait_for("a write elsewhere", lambda: others[0].put("/next", b"x", timeout=40).status in (200, 201), 40)
                gap = time.monotonic() - begun
                later = self.timed_puts(others[0], 200, "later")
                leader = wait_for("a leader", lambda: others[0].get("/cluster/leader").json().get("id"))  # the victim may take itself for it
                wait_for("the node says that its disk hangs", lambda: victim.get("/health", timeout=2).status == 503)
            print(f"writes again after {gap:.2f} s, then {latencies(later)}", end=" ", flush=True)
            if victim.running():  # its disk goes on now, as one that had hung may
                victim.kill()
            victim.start().wait_ready()
        check(self, c, load)
        return gap, statistics.median(later) - statistics.median(before), leader == victim.number

    def test_hung_leader(self):
        gap, _, leads = self.hung_sync(lambda c: c.leader())
        self.assertFalse(leads, "the node with the hung disk leads on")
        self.assertLess(gap, 15)

    def test_hung_follower(self):
        def gap():
            gap, more, _ = self.hung_sync(lambda c: c.followers()[0])
            self.assertLess(more, 0.15)
            return gap
        within(2, gap)


if __name__ == "__main__":
    helpers.main()
