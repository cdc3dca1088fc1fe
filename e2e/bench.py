"""The speed of one node and of three beside a bare net/http server, in one run on the same cores.

python3 e2e/bench.py [--cores 0,1] [--duration 10] [--only put,get,latency,batch,failover,restart,archive,cold]
                     [--server minio|versitygw] [--growth 10000000] [--entries 1000000] [--failovers 10] [--connections 64] [--dir DIR] [--json FILE]

Everything, wrk included, is pinned to --cores. Ratios are to the bare server driven by the same
wrk script, measured before and after (the mean counts). growth only runs when it is asked for.
archive and cold use a real S3 server (s3_servers.py) on the same cores; gzip is Go's, on one core:
what PUT loses beside it is what packing alone would cost.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import datetime
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import helpers
from helpers import Cluster, free_port, wait_for
from load import Load, time_to_next_ack
from s3_client import Bucket
from s3_proxy import Proxy
from s3_servers import ACCESS_KEY, SECRET_KEY, Server

# Each wrk thread has its own Lua state: thread gives it a number, salt tells the runs apart.
PUT_LUA = """
local threads = 0
function setup(thread) thread:set("id", threads); threads = threads + 1 end
local n, body = 0, string.rep("v", 100)
function request()
  n = n + 1
  return wrk.format("PUT", string.format("/%s%04d%020d", "SALT", id, n), nil, body)
end
"""
GET_LUA = """
local threads = 0
function setup(thread) thread:set("id", threads); threads = threads + 1 end
local keys = {}
function init(args)
  math.randomseed(id + 1)
  for line in io.lines("KEYS") do keys[#keys + 1] = "/" .. line .. "QUERY" end
end
function request() return wrk.format("GET", keys[math.random(#keys)]) end
"""
DONE_LUA = """
function done(summary, latency, requests)
  local e = summary.errors
  print(string.format('RESULT {"rate":%f,"p50":%f,"p99":%f,"errors":%d}', summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Bench:
    """One run: its folder, its clusters, and the rows of the table."""

    def __init__(self, options):
        self.options, self.rows, self.bare = options, [], {}
        self.folder = tempfile.mkdtemp(prefix="scribe-bench-", dir=options.dir)
        self.salts = 0
        self.wrk_path = find_wrk()

    # ---- measuring

    def wrk(self, port, lua, connections=None, seconds=None):
        """Run wrk with a script over --connections, or so many, for --duration, or so long; its RESULT, or None without wrk."""
        if not self.wrk_path:
            return None
        self.salts += 1
        script = os.path.join(self.folder, f"run{self.salts}.lua")
        with open(script, "w") as f:
            f.write(lua.replace("SALT", f"{self.salts:08d}") + DONE_LUA)
        connections = connections or self.options.connections
        threads = min(len(self.options.cores), connections)
        done = subprocess.run([self.wrk_path, f"-t{threads}", f"-c{connections}", f"-d{seconds or self.options.duration}s",
                               "--timeout", "10s", "-s", script, f"http://127.0.0.1:{port}"],
                              capture_output=True, text=True, check=True)
        result = json.loads(re.search("RESULT (.*)", done.stdout)[1])
        if result["errors"]:
            print(f"wrk: {result['errors']} errors\n{done.stdout}", file=sys.stderr)
        return result

    def row(self, name, figure, unit, target="", met=None, ratio=None):
        """Add one line of the table and show it at once."""
        self.rows.append({"name": name, "figure": figure, "unit": unit, "ratio": ratio, "target": target, "met": met})
        print(format_row(self.rows[-1]), flush=True)

    def rated(self, name, result, base, least):
        """A row for a wrk result as a ratio of base, a rate or None."""
        if result is None or not base:
            return self.row(name, None, "skipped: no wrk")
        ratio = result["rate"] / base
        met = ratio >= least and not result["errors"]
        self.row(name, result["rate"], f"/s  p50 {result['p50'] * 1e3:.2f} p99 {result['p99'] * 1e3:.2f} ms"
                 + (f"  {result['errors']} ERRORS" if result["errors"] else ""), f">= {least}", met, ratio)

    def measure_bare(self, kinds):
        """Add a measurement of the bare server for each kind of script."""
        binary = os.path.join(self.folder, "bare")
        if not os.path.exists(binary):
            source = os.path.join(helpers.ROOT, "e2e", "bare_server.go")
            subprocess.run(["go", "build", "-o", binary, source], check=True)
        port = free_port()
        process = subprocess.Popen([binary, "-addr", f"127.0.0.1:{port}"])
        try:
            wait_for("the bare server", lambda: helpers.Client(port).get("/").status == 204)
            for kind, lua in kinds.items():
                result = self.wrk(port, lua)
                if result:
                    self.bare.setdefault(kind, []).append(result["rate"])
                    self.row(f"bare server {kind}", result["rate"], "/s")
        finally:
            process.kill()
            process.wait()

    def base(self, kind):
        return statistics.mean(self.bare[kind]) if self.bare.get(kind) else None

    def cluster(self, n, **sections):
        folder = tempfile.mkdtemp(prefix=f"nodes{n}-", dir=self.folder)
        return Cluster(n, folder=folder, **sections).start()

    # ---- the parts

    def run_put_get(self, parts):
        """PUT and GET of one and three nodes between two measurements of the bare server."""
        keys = os.path.join(self.folder, "keys")
        with open(keys, "w") as f:
            f.writelines(key + "\n" for key in random_keys(100_000))
        get = GET_LUA.replace("KEYS", keys).replace("QUERY", "")
        kinds = {kind: lua for kind, lua in (("PUT", PUT_LUA), ("GET", get)) if kind.lower() in parts}
        self.measure_bare(kinds)
        results = {}
        if "put" in parts:
            one = self.cluster(1)
            results["one"] = self.wrk(one.nodes[0].port, PUT_LUA)
            one.close()
        three = self.cluster(3)
        leader, follower = three.leader(), three.followers()[0]
        if "put" in parts:
            results["leader"] = self.wrk(leader.port, PUT_LUA)
            results["follower"] = self.wrk(follower.port, PUT_LUA)
        if "get" in parts:
            with open(keys) as f:
                send_batch(leader.port, batch_body(f.read().split()))
            for name, query in (("linear", ""), ("stale", "?consistency=stale")):
                for place, node in (("leader", leader), ("follower", follower)):
                    lua = GET_LUA.replace("KEYS", keys).replace("QUERY", query)
                    results[f"{name} {place}"] = self.wrk(node.port, lua)
        three.close()
        self.measure_bare(kinds)
        if "put" in parts:
            self.rated("one node, PUT", results["one"], self.base("PUT"), 0.5)
            self.rated("three nodes, PUT through the leader", results["leader"], self.base("PUT"), 0.25)
            through_leader = results["leader"] and results["leader"]["rate"]
            self.rated("three nodes, PUT through a follower (to leader)", results["follower"], through_leader, 0.8)
        for name, least in (("linear", 0.45), ("stale", 0.65)) if "get" in parts else ():
            for place in ("leader", "follower"):
                result = results[f"{name} {place}"]
                self.rated(f"three nodes, {name} GET on the {place}", result, self.base("GET"), least)

    def run_latency(self):
        """One connection, beside the disk's own append + fdatasync in the same folder."""
        three = self.cluster(3)
        before = disk_p50(self.folder)
        result = self.wrk(three.leader().port, PUT_LUA, connections=1)
        disk = statistics.mean([before, disk_p50(self.folder)])
        three.close()
        self.row("disk, 4 KiB append + fdatasync p50", disk * 1e3, "ms")
        if result:
            ratio = result["p50"] / disk
            self.row("three nodes, PUT p50, one connection", result["p50"] * 1e3, "ms", "<= 4", ratio <= 4, ratio)

    def run_batch(self):
        """NDJSON from four streams over three nodes; bodies are made before the clock starts."""
        three = self.cluster(3)
        bodies = [batch_body(random_keys(250_000), b"a small value") for _ in range(4)]
        leader = three.leader()
        for name, ports in (("leader", [leader.port] * 4), ("all nodes", [three.nodes[i % 3].port for i in range(4)])):
            start = time.monotonic()
            counts = in_threads(send_batch, list(zip(ports, bodies)))
            rate = sum(counts) / (time.monotonic() - start)
            self.row(f"three nodes, POST /batch ndjson, {name}", rate, "entries/s", ">= 150000", rate >= 150_000)
        three.close()

    def run_failover(self):
        """kill -9 of the leader under writers, again and again: how long until another node acknowledges a write,
        and until one of them stood for election and led."""
        three = self.cluster(3)
        times, stood, led = [], [], []
        with Load(three, writers=3, pause=0.005):
            for _ in range(self.options.failovers):
                leader = three.leader()
                time.sleep(random.random() / 2)  # anywhere between two heartbeats
                killed = time.time()
                leader.kill()
                times.append(time_to_next_ack(three.running()))
                events = [logged(node, killed) for node in three.running()]
                stood.append(min(first for first, _ in events) - killed)
                led.append(min(last for _, last in events) - killed)
                leader.start().wait_ready()
        three.close()
        p99 = percentile(times, 99)
        self.row(f"failover, p99 of {len(times)} kills", p99, f"s  worst {max(times):.2f}", "<= 2", p99 <= 2)
        self.row("failover, median", statistics.median(times), "s")
        for name, since in (("until a node stands for election", stood), ("until one leads", led)):
            self.row(f"failover, {name}, median", statistics.median(since), f"s  p99 {percentile(since, 99):.2f}")

    def run_restart(self):
        """Restart after kill -9 with many entries."""
        one = self.cluster(1)
        node = one.nodes[0]
        for _ in range(0, self.options.entries, 100_000):
            send_batch(node.port, batch_body(random_keys(100_000)))
        node.kill()
        took = timed_restart(node)
        self.row(f"restart after {self.options.entries:,} entries", took, "s", "< 3", took < 3)
        one.close()

    def run_growth(self, total, chunk=100_000):
        """Random 32-byte keys into one node: ingest, GET and memory must not depend on how many there are."""
        one = self.cluster(1)
        node = one.nodes[0]
        times, sample, gets = [], [], {}
        keep = max(1, total // 200_000)
        for done in range(chunk, total + chunk, chunk):
            keys = random_keys(chunk)
            body = batch_body(keys)
            start = time.monotonic()
            send_batch(node.port, body)
            times.append(time.monotonic() - start)
            sample += keys if done == chunk else keys[::keep]
            if done in (chunk, total):
                gets[done] = self.get_sample(node, sample)
            if done == chunk:
                sample = sample[::keep]
            if done % 1_000_000 == 0:
                rate = 1_000_000 / sum(times[-10:])
                print(f"  {done:,} keys: {rate:,.0f}/s, RSS {current_rss(node) / helpers.MIB:.0f} MiB", flush=True)
        million = 1_000_000 // chunk
        first, last = sum(times[:million]), sum(times[-million:])
        ratio = first / last
        self.row(f"growth, ingest, last million of {total:,}", 1e6 / last, "/s", ">= 0.8", ratio >= 0.8, ratio)
        if gets[total]:
            self.rated(f"growth, GET at {total:,} keys (to 100,000)", gets[total], gets[chunk]["rate"], 0.7)
        rss = current_rss(node) / helpers.MIB
        self.row("growth, RSS at the end", rss, f"MiB  peak {node.peak_rss() / helpers.MIB:.0f}", "< 400", rss < 400)
        node.kill()
        self.row("growth, restart", timed_restart(node), "s")
        one.close()

    def bucket_cluster(self, server, url, segment_size=64 * helpers.MIB):
        """A node with a bucket of its own on server, reached at url, that archives when asked."""
        bucket = Bucket(server, "bench-" + os.urandom(4).hex()).make()
        s3 = {"bucket": bucket.name, "endpoint": url, "path_style": True, "access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
        tiering = {"enable_auto_archival": False, "archival_check_interval_secs": 1, "age_threshold_secs": 86400}
        return self.cluster(1, **{"storage": {"segment_size": segment_size}, "storage.s3": s3, "storage.tiering": tiering}), bucket

    def run_archive(self, size=16 * helpers.MIB):
        """Segments of log lines: how fast they come to the bucket, alone and while PUT is measured, and what PUT has left."""
        seconds = max(self.options.duration, 30)  # in which a segment that is on its way does not count for much
        with Server(self.options.server) as server:
            c, _ = self.bucket_cluster(server, server.url, size)
            node = c.nodes[0]
            fill_segments(node, 8)
            gzip = self.gzip_rate(node)
            self.row("gzip level 6 on one core (Go)", gzip / helpers.MIB, "MiB/s")
            rate = archive_rate(node)
            self.row(f"archive to {self.options.server}, nothing else", rate / helpers.MIB, "MiB/s", ">= 0.5", rate >= gzip / 2, rate / gzip)
            before = self.wrk(node.port, PUT_LUA, seconds=seconds)
            with concurrent.futures.ThreadPoolExecutor() as pool:
                bare = pool.submit(self.wrk, node.port, PUT_LUA, seconds=seconds)
                bare_gzip = self.gzip_rate(node, seconds - 2)
                bare = bare.result()
            fill_segments(node, int(gzip * seconds / size) + 4)
            assert node.post("/cluster/seal").status == 200
            call = threading.Thread(target=node.post, args=("/cluster/archive",), kwargs={"timeout": 600}, daemon=True)
            call.start()
            waiting, start = not_archived(node), time.monotonic()
            during = self.wrk(node.port, PUT_LUA, seconds=seconds)
            left = not_archived(node)
            rate = sum(size for i, size in waiting.items() if i not in left) / (time.monotonic() - start)
            call.join()
            after = self.wrk(node.port, PUT_LUA, seconds=seconds)
            if before:
                alone = (before["rate"] + after["rate"]) / 2
                self.row("one node, PUT without archiving", alone, "/s")
                self.row("one node, PUT beside a bare gzip", bare["rate"], "/s", ratio=bare["rate"] / alone)
                self.row("the bare gzip meanwhile", bare_gzip / helpers.MIB, "MiB/s", ratio=bare_gzip / gzip)
                self.rated("one node, PUT while it archives", during, alone, 0.8)
                self.row("archive meanwhile", rate / helpers.MIB, "MiB/s", ">= 0.5", rate >= gzip / 2, rate / gzip)
            c.close()

    def gzip_rate(self, node, seconds=0):
        """Bytes of segments that Go's gzip takes in a second on one core; the mean of as many seconds or a little more."""
        folder = os.path.join(node.data, "segments")
        files = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".seg")][:4]
        binary = os.path.join(self.folder, "gzip")
        if not os.path.exists(binary):
            subprocess.run(["go", "build", "-o", binary, os.path.join(helpers.ROOT, "e2e", "bare_gzip.go")], check=True)
        rates, end = [], time.monotonic() + seconds
        while not rates or time.monotonic() < end:
            done = subprocess.run([binary, *files], check=True, capture_output=True, env={**os.environ, "GOMAXPROCS": "1"})
            rates.append(float(done.stdout))
        return statistics.mean(rates)

    def run_cold(self, tries=20):
        """GETs of 100-byte values out of a cold segment of 64 MiB, through a proxy that counts."""
        with Server(self.options.server) as server, Proxy(server) as proxy:
            c, _ = self.bucket_cluster(server, proxy.url)
            node = c.nodes[0]
            keys = random_keys(300_000)
            for start in range(0, len(keys), 100_000):
                values = (base64.b64encode(os.urandom(75)) for _ in range(100_000))  # which gzip makes little of
                send_batch(node.port, b"".join(batch_body([key], value) for key, value in zip(keys[start:], values)))
            archive_rate(node)
            node.stop()
            node.sections["storage.tiering"]["age_threshold_secs"] = 0
            node.start().wait_ready()
            wait_for("all is cold", lambda: all(s["state"] == "cold" for s in manifest_segments(node)), 120)
            sizes = [s["size"] for s in manifest_segments(node)]
            first, again, times = [], [], []
            for key in random.sample(keys, tries):
                node.kill()  # and with it what was in memory
                node.start().wait_ready()
                for moved in (first, again):
                    proxy.reset()
                    start = time.monotonic()
                    assert len(node.get("/" + key).body) == 100
                    times.append(time.monotonic() - start)
                    asked = [r for r in proxy.requests if r[0] != "PUT" and "/segments/" in r[1]]
                    moved.append((len(asked), sum(size for *_, size in asked)))
            self.row(f"cold GET, segments of {max(sizes) / helpers.MIB:.0f} MiB, most requests of {tries}", max(n for n, _ in first), "", "<= 2",
                     max(n for n, _ in first) <= 2)
            most = max(size for _, size in first)
            self.row("cold GET, most bytes moved", most / 1024, f"KiB  median {statistics.median(times[::2]) * 1e3:.1f} ms", "<= 512", most <= 512 << 10)
            self.row("the same again, requests", max(n for n, _ in again), f"   median {statistics.median(times[1::2]) * 1e3:.1f} ms", "0", max(again) == (0, 0))
            c.close()

    def get_sample(self, node, keys):
        """wrk GET of keys that exist."""
        path = os.path.join(self.folder, "sample")
        with open(path, "w") as f:
            f.writelines(key + "\n" for key in keys)
        return self.wrk(node.port, GET_LUA.replace("KEYS", path).replace("QUERY", ""))


# ---- tools with a bucket ----------------------------------------------------------------

def fill_segments(node, count):
    """count sealed segments or a little more, of what logs are like."""
    words = [os.urandom(4).hex() for _ in range(2000)]
    wanted = len(manifest_segments(node)) + count
    while len(manifest_segments(node)) < wanted:
        texts = (" ".join(random.choices(words, k=40)) for _ in range(20_000))
        send_batch(node.port, b"".join(b'{"op":"put","key":"log/%s/%d","value":"level=info n=%d %s"}\n' % (random.choice(words).encode(), i, i, text.encode())
                                       for i, text in enumerate(texts)))


def manifest_segments(node):
    return node.get("/ledger/manifest").json()["segments"]


def not_archived(node):
    """{id: size} of the segments that are not in the bucket."""
    return {s["id"]: s["size"] for s in manifest_segments(node) if s["state"] == "local"}


def archive_rate(node):
    """Bytes of segments a second that POST /cluster/archive brings to the bucket."""
    assert node.post("/cluster/seal").status == 200
    waiting, start = not_archived(node), time.monotonic()
    reply = node.post("/cluster/archive", timeout=600)
    took = time.monotonic() - start
    assert reply.status == 200 and not not_archived(node), reply
    return sum(waiting.values()) / took


# ---- tools ------------------------------------------------------------------------------

def percentile(times, percent):
    """The smallest of times that so many percent do not exceed."""
    return sorted(times)[-(-len(times) * percent // 100) - 1]


def logged(node, since):
    """When the node first stood for election and when it led after a time (infinity: never), by its log."""
    when = {"heartbeat timeout": float("inf"), "leading": float("inf")}
    for line in node.output().splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            at = datetime.datetime.fromisoformat(record["time"]).timestamp()
            for text, first in when.items():
                if at >= since and text in record["msg"]:
                    when[text] = min(first, at)
    return tuple(when.values())


def find_wrk():
    """Path of wrk, installed if that is possible; None otherwise, said clearly."""
    if not shutil.which("wrk") and os.getuid() == 0 and shutil.which("apt-get"):
        subprocess.run("apt-get update -q && apt-get install -qy wrk", shell=True, capture_output=True)
    if not shutil.which("wrk"):
        print("wrk is missing and cannot be installed: the rows that need it are skipped", file=sys.stderr)
    return shutil.which("wrk")


def random_keys(n):
    """n random keys of 32 bytes (hex digits)."""
    text = os.urandom(16 * n).hex()
    return [text[i:i + 32] for i in range(0, 32 * n, 32)]


def batch_body(keys, value=b"v" * 100):
    end = b'","value":"' + value + b'"}\n'
    return b"".join(b'{"op":"put","key":"' + key.encode() + end for key in keys)


def send_batch(port, body):
    """POST one NDJSON batch and read the whole answer; how many lines were applied."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=120)
    sock.sendall(b"POST /batch HTTP/1.1\r\nHost: bench\r\nContent-Type: application/x-ndjson\r\n"
                 b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
    sender = threading.Thread(target=sock.sendall, args=(body,), daemon=True)
    sender.start()
    count, tail = 0, b""
    while data := sock.recv(1 << 20):
        data = tail + data
        count += data.count(b'"leaf_hash"')
        tail = data[-(len('"leaf_hash"') - 1):]
    sender.join()
    sock.close()
    if count != body.count(b"\n"):
        raise AssertionError(f"batch: {count} of {body.count(10)} lines applied; the answer ends {tail!r}")
    return count


def in_threads(call, arguments):
    """call(*a) for each of arguments at once; the results in order."""
    results = [None] * len(arguments)

    def one(i):
        results[i] = call(*arguments[i])
    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(arguments))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def disk_p50(folder, seconds=3.0):
    """Median time in seconds of appending 4 KiB and fdatasync in folder."""
    path, block, times = os.path.join(folder, "disk"), os.urandom(4096), []
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        os.write(fd, block)
        os.fdatasync(fd)
        times.append(time.perf_counter() - start)
    os.close(fd)
    os.remove(path)
    return statistics.median(times)


def timed_restart(node):
    """Seconds from the start of the process until it serves."""
    start = time.monotonic()
    node.start().wait_ready(120)
    return time.monotonic() - start


def current_rss(node):
    with open(f"/proc/{node.process.pid}/status") as f:
        return int(re.search(r"VmRSS:\s+(\d+) kB", f.read())[1]) * 1024


def format_row(row):
    """One line of the table."""
    figure = "-" if row["figure"] is None else f"{row['figure']:,.{0 if row['figure'] >= 1000 else 3}f}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    verdict = {None: "", True: "met", False: "MISSED"}[row["met"]]
    return f"{row['name']:<52} {figure:>12} {row['unit']:<34} {ratio:>6} {row['target']:>10} {verdict}"


def parse_arguments():
    parser = argparse.ArgumentParser(description="Scribe Ledger beside a bare net/http server")
    parser.add_argument("--cores", default="0,1", type=lambda s: {int(c) for c in s.split(",")})
    parser.add_argument("--duration", default=10, type=int, help="seconds of each wrk run")
    parser.add_argument("--only", default="put,get,latency,batch,failover,restart", type=lambda s: set(s.split(",")))
    parser.add_argument("--server", default="versitygw", choices=("minio", "versitygw"), help="of archive and cold")
    parser.add_argument("--growth", default=0, type=int, metavar="KEYS", help="run the growth test with so many keys")
    parser.add_argument("--entries", default=1_000_000, type=int, help="entries before the restart")
    parser.add_argument("--failovers", default=10, type=int)
    parser.add_argument("--connections", default=64, type=int, help="of wrk")
    parser.add_argument("--dir", default=None, help="where the data goes; the disk matters")
    parser.add_argument("--json", default=None, metavar="FILE", help="write the rows there (- for standard output)")
    return parser.parse_args()


def main():
    options = parse_arguments()
    os.sched_setaffinity(0, options.cores)  # children inherit it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    helpers.binary()
    bench = Bench(options)
    try:
        if options.only & {"put", "get"}:
            bench.run_put_get(options.only)
        for part in ("latency", "batch", "failover", "restart", "archive", "cold"):
            if part in options.only:
                getattr(bench, f"run_{part}")()
        if options.growth:
            bench.run_growth(options.growth)
    finally:
        helpers.close_all()
        shutil.rmtree(bench.folder, ignore_errors=True)
    print("\n" + "\n".join(format_row(row) for row in bench.rows))
    if options.json:
        with open(1 if options.json == "-" else options.json, "w", closefd=options.json != "-") as f:
            json.dump(bench.rows, f, indent=1)
    missed = [row["name"] for row in bench.rows if row["met"] is False]
    print(f"\n{sum(row['met'] is True for row in bench.rows)} targets met, {len(missed)} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
