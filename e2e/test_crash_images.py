"""Power cuts, step by step: the disks that one can leave are rebuilt from a trace, and a real node starts on each.

    python3 e2e/test_crash_images.py [--long]            SCRIBE_SEED, SCRIBE_IMAGES and SCRIBE_JOBS change the rest
    python3 e2e/test_crash_images.py --replay FOLDER     starts a kept image again

Each workload is recorded once a round. A moment is every write, size, name and fsync of it; an image is one choice of
what of the pending changes is on the disk then. Images that are equal are started once, with all that clients had been
told by the last of those moments.
"""

import base64
import collections
import concurrent.futures
import contextlib
import copy
import itertools
import json
import multiprocessing
import os
import pickle
import random
import shutil
import statistics
import struct
import sys
import tempfile
import time
import traceback

import crash_images
import crash_trace
import helpers
from crash_images import KINDS, Disk
from crash_workloads import WORKLOADS, Run, go_on
from helpers import LONG, Node, Scenario, cli, raw_path, sha256, wait_for
from truth import entries
from verify_ledger import root_of

SEED = int(os.environ.get("SCRIBE_SEED", random.randrange(1 << 32)))
IMAGES = int(os.environ.get("SCRIBE_IMAGES", 12_000 if LONG else 350))
JOBS = int(os.environ.get("SCRIBE_JOBS", 4 if LONG else 2))
READY = 60.0  # seconds within which an image must lead, on a machine that does other things too
FAST = "/dev/shm" if os.path.isdir("/dev/shm") else None  # where images lie: to them nothing happens any more


class Expected:
    """The whole ledger that the traced node had in the end, and the requests that may be repeated."""

    def __init__(self, run):
        self.ledger, self.repeats, self.root = run.ledger(), run.repeats, run.root
        self.sections = run.node.sections


class Boot:
    """A node that starts on images, one after the other, and is asked about its past."""

    def __init__(self, expected):
        self.expected = expected
        self.folder = tempfile.mkdtemp(prefix="scribe-image-", dir=FAST)
        sections = json.loads(json.dumps(expected.sections))
        sections["node"]["data_dir"] = os.path.join(self.folder, "disk/data")
        self.node = Node(1, self.folder, sections)
        self.times = []

    def close(self):
        if self.node.running():
            self.node.kill()
        self.node.client.forget()
        shutil.rmtree(self.folder)

    def check(self, image, promise):
        """Start a node on the image; AssertionError if it breaks the promise."""
        self.check_signed(image, promise)
        shutil.rmtree(os.path.join(self.folder, "disk"), ignore_errors=True)
        crash_images.write(image, self.expected.root, os.path.join(self.folder, "disk"))
        open(self.node.log, "w").close()
        begun = time.monotonic()
        try:
            self.node.start()
            wait_for("the node serves", self.serves, READY, 0.004)
            self.times.append(time.monotonic() - begun)
            size = self.check_past(promise)
            leaves = self.check_future(size)
        finally:
            if self.node.running():
                self.node.kill()
        self.check_bytes(leaves, image)

    def check_signed(self, image, promise):
        """The node remembers the largest head that it gave out: the file signed says so before it starts."""
        file = image.get(os.path.join(self.expected.root, "data/signed")) or b""
        newest = max((struct.unpack(">QQ", file[at + 8:at + 24]) for at in range(0, len(file) - 23, 4096)), default=(0, 0))
        require(newest[1] >= promise.signed, f"a head over {promise.signed} entries was given out, {newest[1]} are remembered")

    def serves(self):
        if not self.node.running():
            raise AssertionError(f"the node ended with {self.node.process.poll()}:\n{self.node.output()[-3000:]}")
        return self.node.get("/health", timeout=5).status == 200

    def check_past(self, promise):
        """What clients were told is true, and nothing else is there; the size of the ledger."""
        told = list(entries(self.node))
        for ours, theirs in zip(self.expected.ledger, told):
            require(ours == theirs, f"entry {ours} became {theirs}")
        require(promise.least <= len(told) <= len(self.expected.ledger),
                f"{len(told)} entries of {len(self.expected.ledger)}, {promise.least} were acknowledged")
        keys = self.get("/ledger/keys").json()
        later = promise.vkeys[-1:] + [key for key in self.expected.vkeys if key not in promise.vkeys]
        require(not promise.vkeys or keys["current"] in later, f"ledger key is {keys['current']}, want one of {later}")
        require(promise.node_vkey in (None, keys["nodes"]["1"]), f"node key is {keys['nodes']}, was {promise.node_vkey}")
        live = {}
        for entry in told:
            live[entry["key"]] = entry
        wanted = sorted((key, entry["seq"]) for key, entry in live.items() if entry["op"] == "put")
        listed = [(key["key"], key["seq"]) for key in self.get("/keys?limit=10000").json()["keys"]]
        require(listed == wanted, f"/keys tells {listed}, want {wanted}")
        for key, seq in wanted[::max(1, len(wanted) // 5)]:
            reply = self.get(raw_path(key))
            require((sha256(reply.body), reply.headers["Scribe-Seq"]) == (live[key]["sha256"], str(seq)), f"{key}: {reply.headers}")
        self.check_repeat(len(told))
        return len(told)

    def check_repeat(self, size):
        """The last request with an Idempotency-Key that is in the ledger is not applied again."""
        seqs = [seq for seq in self.expected.repeats if seq < size]
        if seqs:
            name, key, value = self.expected.repeats[max(seqs)]
            reply = self.node.put(raw_path(key), value, headers={"Idempotency-Key": name})
            require(reply.status in (200, 201) and reply.json()["seq"] == max(seqs), f"{name}, {max(seqs)} before: {reply}")

    def check_future(self, size):
        """The node takes a write, seals and signs; the leaf hashes of all entries."""
        reply = self.node.put("/kv/after", b"the power cut")
        require(reply.status == 201 and reply.json()["seq"] == size, f"a write after the power cut, of {size} entries: {reply}")
        require(self.get("/kv/after").body == b"the power cut", "the write after the power cut is not there")
        require(self.node.post("/cluster/seal").status == 200, "no seal after the power cut")
        leaves = [bytes.fromhex(entry["leaf_hash"]) for entry in entries(self.node)]
        require(len(leaves) == size + 1, f"{len(leaves)} entries after one write to {size}")
        head = self.get("/ledger/checkpoint").body.decode().splitlines()
        want = [str(len(leaves)), base64.b64encode(root_of(leaves)).decode()]
        require(head[1:3] == want, f"signed head is {head}, want {want}")
        return leaves

    def check_bytes(self, leaves, image):
        """The bytes on disk give the same root, and no unfinished file of the image is left behind."""
        done = cli("audit", "--data", self.node.data)
        text = done.stdout.decode() + done.stderr.decode()
        require(done.returncode == 0, f"audit ends with {done.returncode}:\n{text}")
        require(f"{len(leaves)} entries, root {root_of(leaves).hex()}" in text, f"audit has another root:\n{text}")
        unfinished = [os.path.relpath(path, self.expected.root) for path in image if ".tmp" in os.path.basename(path)]
        left = [path for path in unfinished if os.path.exists(os.path.join(self.folder, "disk", path))]
        require(not [path for path in left if os.path.basename(path) != "next.tmp"], f"unfinished files are left: {left}")  # that one is made again

    def get(self, path):
        reply = self.node.get(path)
        require(reply.status == 200, f"GET {path}: {reply}")
        return reply


def require(condition, message):
    if not condition:
        raise AssertionError(message[:4000])


def moments(trace):
    """The states of the disk that differ, each with the step that led there and all that was promised before the next."""
    disk, promise, last = Disk(trace), copy.deepcopy(trace.promise), None
    for what, thing in trace.events:
        if what == "sent":
            promise.hear(thing)
            continue
        changes = isinstance(thing, crash_trace.Op) == (what == "enter")  # an fsync counts when it returns
        if changes and last is not None:
            yield disk, promise, last  # only now: until here the disk was as it is, whatever clients were told
            last = None
        if disk.step(what, thing):
            last = f"{'after' if what == 'leave' else 'during'} {thing.step}"
    yield disk, promise, last or "at the end"


def choose(trace, rng, wanted):
    """{moment number: kinds to try}: each kind equally often, over the whole trace."""
    number = sum(1 for _ in moments(trace))
    every = [(moment, kind) for moment in range(number) for kind in KINDS for _ in range(2 if kind in ("prefix", "subset", "torn") else 1)]
    chosen = every if len(every) <= wanted else rng.sample(every, wanted)
    plan = collections.defaultdict(list)
    for moment, kind in chosen:
        plan[moment].append(kind)
    return number, plan


def images(trace, plan, seed):
    """The planned images that differ: (moment, step, kind, image, promise) with the last promise of each."""
    for last in (False, True):
        if last:
            newest = found
        found = {}
        for number, (disk, promise, step) in enumerate(moments(trace)):
            for turn, kind in enumerate(plan.get(number, ())):
                image = KINDS[kind](disk, random.Random(f"{seed}/{number}/{turn}"))
                same = crash_images.digest(image)
                if found.get(same, (-1,))[0] != number:
                    found[same] = number, turn
                if last and newest[same] == (number, turn):
                    yield number, step, kind, image, promise


def record(workload, seed, folder):
    """Run the workload under strace; the trace and what it must leave."""
    if workload == "twice":
        return record_twice(random.Random(seed), folder)
    return finish(run := Run(folder, seed), crash_trace.Trace(run.root), WORKLOADS[workload])


def finish(run, trace, workload):
    """Run the workload; the trace, with all lives of the node in it, and what it must leave."""
    workload(run)
    expected = Expected(run)
    run.end(run.node.stop)
    run.node.client.forget()
    for out in run.traces:
        trace.add(out)
        os.remove(out)
    *_, (_, promise, _) = moments(trace)
    require(promise.least == len(expected.ledger), f"{promise.least} acknowledgements were traced, {len(expected.ledger)} entries are there")
    expected.vkeys = promise.vkeys
    return trace, expected


def record_twice(rng, folder):
    """The trace of a start after a power cut, so that the power can go again in the middle of it."""
    run = Run(os.path.join(folder, "first"), rng.random())
    trace, _ = finish(run, crash_trace.Trace(run.root), WORKLOADS[rng.choice(("small", "conditions", "restarts", "large"))])
    number = rng.randrange(sum(1 for _ in moments(trace)))
    disk, promise, _ = next(itertools.islice(moments(trace), number, None))
    image = KINDS[rng.choice(("subset", "torn", "prefix", "one file"))](disk, rng)
    after = Run(os.path.join(folder, "second"), rng.random())
    after.follow(run)
    crash_images.write(image, run.root, after.root)
    trace = crash_trace.Trace(after.root, {after.root + path.removeprefix(run.root): data for path, data in image.items()})
    trace.promise = promise
    return finish(after, trace, go_on)


class Result:
    """What became of the images of one recorded workload."""

    def __init__(self, workload, seed):
        self.workload, self.seed = workload, seed
        self.kinds, self.times, self.failures = collections.Counter(), [], []
        self.moments = self.took = self.recorded = 0


def keep(expected, image, promise, step, error, node):
    """Keep an image that failed, as it was before the start; its folder."""
    folder = tempfile.mkdtemp(prefix="scribe-image-kept-")
    crash_images.write(image, expected.root, os.path.join(folder, "disk"))
    with open(os.path.join(folder, "why.txt"), "w") as f:
        f.write(f"{step}\n\n{error}\n\n{node.output()}")
    with open(os.path.join(folder, "case.pickle"), "wb") as f:
        pickle.dump((expected, image, promise), f)
    return folder


def job(workload, seed, wanted):
    """Record a workload and start its images."""
    result, folder = Result(workload, seed), tempfile.mkdtemp(prefix="scribe-trace-")
    random.seed(f"{workload}/{seed}/{os.getpid()}")
    begun = time.monotonic()
    trace, expected = record(workload, seed, folder)
    shutil.rmtree(folder)
    result.recorded = time.monotonic() - begun
    result.moments, plan = choose(trace, random.Random(seed), wanted)
    with contextlib.closing(Boot(expected)) as boot:
        for number, step, kind, image, promise in images(trace, plan, seed):
            result.kinds[kind] += 1
            try:
                boot.check(image, promise)
            except Exception as err:
                kept = keep(expected, image, promise, step, err, boot.node)
                result.failures.append(f"{workload} seed {seed}, moment {number} of {result.moments}, {step}, image '{kind}', kept in {kept}:\n{err}")
                print(result.failures[-1], flush=True)
                if len(result.failures) >= 20:
                    break
        result.times, result.took = boot.times, time.monotonic() - begun
    return result


def in_child(workload, seed, wanted):
    """job in another process; what fails before there are images is a failure of the workload."""
    try:
        return job(workload, seed, wanted)
    except Exception:
        result = Result(workload, seed)
        result.failures.append(f"{workload} seed {seed}: {traceback.format_exc()}")
        helpers.close_all()
        return result


class CrashImages(Scenario):
    def setUp(self):
        why = crash_trace.missing()
        if why:
            self.skipTest(why)

    def test_every_boundary(self):
        print(f"SCRIBE_SEED={SEED}", end=" ", flush=True)
        wanted = os.environ.get("SCRIBE_WORKLOADS", ",".join((*WORKLOADS, "twice"))).split(",")
        share = -(-IMAGES // len(wanted)) if not LONG else 1 << 30
        tasks = [(name, SEED + turn, share) for turn in range(1000 if LONG else 1) for name in wanted]
        results = self.work(tasks)
        report(results)
        self.assertEqual([failure for result in results for failure in result.failures], [])
        self.assertGreater(count(results), IMAGES // 3, "too few images to prove anything")

    def work(self, tasks):
        """The results of tasks, several at a time, until there are enough images or a failure."""
        results, running = [], set()
        with concurrent.futures.ProcessPoolExecutor(JOBS, multiprocessing.get_context("fork")) as pool:
            while True:
                going = count(results) < IMAGES and not any(result.failures for result in results)
                while going and tasks and len(running) < JOBS:
                    running.add(pool.submit(in_child, *tasks.pop(0)))
                if not running:
                    return results
                done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                results += [future.result() for future in done]
                if LONG:
                    print(f"\n{count(results)} images", end=" ", flush=True)


def count(results):
    return sum(result.kinds.total() for result in results)


def report(results):
    """Print what was started, by workload and kind."""
    print(f"\n{'workload':12}{'moments':>9}{'images':>8}  " + "".join(f"{kind:>10}" for kind in KINDS) + f"{'ms/image':>10}{'start p50':>10}{'max':>7}")
    for name in (*WORKLOADS, "twice"):
        found = [result for result in results if result.workload == name]
        if not found:
            continue
        times = [t for result in found for t in result.times] or [0]
        kinds = sum((result.kinds for result in found), collections.Counter())
        spent = sum(result.took - result.recorded for result in found)
        print(f"{name:12}{sum(result.moments for result in found):9}{kinds.total():8}  " + "".join(f"{kinds[kind]:10}" for kind in KINDS)
              + f"{1000 * spent / max(1, kinds.total()):10.0f}{1000 * statistics.median(times):10.0f}{1000 * max(times):7.0f}")


def replay(folder):
    """Start a kept image again."""
    with open(os.path.join(folder, "case.pickle"), "rb") as f:
        expected, image, promise = pickle.load(f)
    with contextlib.closing(Boot(expected)) as boot:
        boot.check(image, promise)
    print("this image starts, and all that was promised is there")


if __name__ == "__main__":
    if "--replay" in sys.argv:
        replay(sys.argv[sys.argv.index("--replay") + 1])
    else:
        helpers.main()
