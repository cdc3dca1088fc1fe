"""What every scenario stands on: real node processes, an HTTP client, waiting.

Reading order: Client, Node (one process), Cluster (n of them), Scenario (the unittest base that keeps the data
of a failed test). load.py has writers that remember what was acknowledged, truth.py the check at the end.
SCRIBE_BIN names a ready binary, else the tree is built once; SCRIBE_LONG=1 (or --long) asks for the long variants.
"""

import atexit
import contextlib
import functools
import hashlib
import http.client
import json
import os
import pathlib
import queue
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LONG = "--long" in sys.argv or os.environ.get("SCRIBE_LONG") == "1"
MIB = 1 << 20
MAX_VALUE = 32 * MIB
NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}
UNSETTLED = ("no_leader", "unknown_outcome")  # codes of requests to send again: nothing was applied, or nobody can tell


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def raw_path(key):
    """The path of a key given as str or bytes: each byte that is not plain is percent-encoded."""
    return "/kv/" + urllib.parse.quote(key, safe="")


def wait_for(what, condition, timeout=60.0, interval=0.02):
    """The first true answer of condition; AssertionError naming what after timeout seconds."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what} (last answer: {answer!r})")
        time.sleep(interval)


def within(limit, measure, tries=3):
    """The first figure within limit, as a machine that stands still spoils one; AssertionError when none of so many is."""
    figures = []
    while len(figures) < tries:
        figures.append(measure())
        if figures[-1] <= limit:
            return figures[-1]
    raise AssertionError(f"none of {figures} is within {limit}")


def binary():
    """Path of the program under test; builds it on the first call."""
    if "SCRIBE_BIN" not in os.environ:
        cache = os.path.join(tempfile.gettempdir(), f"scribe-e2e-{os.getuid()}-{sha256(ROOT.encode())[:8]}")  # one for each tree
        os.makedirs(cache, exist_ok=True)
        fresh = os.path.join(cache, f"scribe-ledger.{os.getpid()}")
        subprocess.run(["go", "build", "-trimpath", "-o", fresh, "."], cwd=ROOT, check=True)
        os.environ["SCRIBE_BIN"] = os.path.join(cache, "scribe-ledger")
        os.replace(fresh, os.environ["SCRIBE_BIN"])
    return os.environ["SCRIBE_BIN"]


def cli(*args, url=None, stdin=b"", timeout=120, env=None):
    """Run one subcommand to its end; the CompletedProcess holds bytes."""
    if url:
        args = (args[0], "--url", url, *args[1:])
    return subprocess.run([binary(), *args], input=stdin, capture_output=True, timeout=timeout,
                          env={**os.environ, **(env or {})})


_given = set()  # ports


def free_port():
    """A port nobody listens on, below the kernel's own range so that no outgoing connection takes it."""
    while True:
        port = random.randrange(12000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                if sys.platform == "linux":
                    with socket.socket(socket.AF_UNIX) as guard:
                        guard.bind(f"\0scribe-e2e-port-{port}")  # OSError: it is another script's
                        guard.detach()  # which leaves it bound while this process lives
                return port


class Reply:
    """An answer. status 0: nobody answered; then sent tells whether the request may have arrived."""

    def __init__(self, status, headers, body, sent=True):
        self.status, self.headers, self.body, self.sent = status, headers, body, sent

    def json(self):
        return json.loads(self.body)

    def lines(self):
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]

    def code(self):
        """The error code that the body holds, or None."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return self.json()["error"]["code"]

    def __repr__(self):
        return f"<{self.status} {self.body[:300]!r}>"


class Client:
    """Keep-alive connections to one port, shared by threads. Paths go out as they are."""

    connection = http.client.HTTPConnection

    def __init__(self, port, timeout=60.0):
        self.port, self.timeout = port, timeout
        self.idle = queue.LifoQueue()

    def request(self, method, path, body=None, headers=None, timeout=None):
        conn, reused = self._connection(timeout or self.timeout)
        reply = self._exchange(conn, method, path, body, headers or {})
        if reply.status == 0 and reused and method in ("GET", "HEAD"):
            self.forget()  # the server had closed the idle connections; reading twice is harmless
            conn, _ = self._connection(timeout or self.timeout)
            reply = self._exchange(conn, method, path, body, headers or {})
        return reply

    get = functools.partialmethod(request, "GET")
    put = functools.partialmethod(request, "PUT")
    post = functools.partialmethod(request, "POST")
    delete = functools.partialmethod(request, "DELETE")

    def forget(self):
        """Close every idle connection."""
        while True:
            try:
                self.idle.get_nowait().close()
            except queue.Empty:
                return

    def _connection(self, timeout):
        """An idle connection that the server has not closed, or a new one; whether it was used before."""
        while True:
            try:
                conn = self.idle.get_nowait()
            except queue.Empty:
                return self.connection("127.0.0.1", self.port, timeout=timeout), False
            poll = select.poll()
            poll.register(conn.sock, select.POLLIN)
            if not poll.poll(0):
                conn.sock.settimeout(timeout)
                return conn, True
            conn.close()

    def _exchange(self, conn, method, path, body, headers):
        sent = whole = False
        try:
            if conn.sock is None:
                conn.connect()
                conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sent = True
            try:
                conn.request(method, path, body=body, headers=headers)
                whole = True
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server may have answered before it closed
            answer = conn.getresponse()
            reply = Reply(answer.status, answer.headers, answer.read())
        except (OSError, http.client.HTTPException) as err:
            conn.close()
            return Reply(0, {}, f"{type(err).__name__}: {err}".encode(), sent)
        if whole and conn.sock is not None:  # else the server asked to close
            self.idle.put(conn)
        return reply


def toml(sections):
    """TOML text of {section: {key: value}}; JSON scalars and lists are TOML too."""
    return "\n".join(f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())
                     for name, keys in sections.items())


class Node:
    """One node: its folder (config, data, log) and, while it runs, its process."""

    def __init__(self, number, folder, sections):
        self.number, self.folder, self.sections = number, folder, sections
        self.port = sections["network"]["client_port"]
        self.data = sections["node"]["data_dir"]
        self.config = os.path.join(folder, f"config-node{number}.toml")
        self.log = os.path.join(folder, f"node{number}.log")
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.port)
        self.request, self.get, self.put = self.client.request, self.client.get, self.client.put
        self.post, self.delete = self.client.post, self.client.delete
        self.process = None
        self.prefix = []  # of the command: what the process runs in
        self.environment = {}  # what the process gets beside the usual
        self.log_start = 0

    def start(self, *flags):
        """Start the process; does not wait until it serves."""
        assert not self.running(), f"node {self.number} runs already"
        with open(self.config, "w") as f:
            f.write(toml(self.sections))
        self.client.forget()
        with open(self.log, "ab") as log:
            self.log_start = log.tell()
            self.process = subprocess.Popen(
                [*self.prefix, binary(), "serve", "--config", self.config, *flags], cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env={**os.environ, **self.environment})
        return self

    def running(self):
        return self.process is not None and self.process.poll() is None

    def wait_ready(self, timeout=90.0):
        """Wait until /health says that this node serves reads and writes."""
        def ready():
            if not self.running():
                raise AssertionError(f"node {self.number} ended with {self.process.poll()}:\n{self.output()[-3000:]}")
            return self.get("/health", timeout=2).status == 200
        wait_for(f"node {self.number} ready", ready, timeout)
        return self

    def stop(self, timeout=40.0):
        """SIGTERM and wait; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_exit(timeout)

    def kill(self):
        """kill -9 and wait."""
        self.process.kill()
        self.process.wait()

    def pause(self):
        """SIGSTOP; returns when every thread stands still."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = f"/proc/{self.process.pid}/task"
        wait_for(f"node {self.number} stands still", lambda: all(
            "State:\tT" in pathlib.Path(tasks, task, "status").read_text() for task in os.listdir(tasks)), 30)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def wait_exit(self, timeout=40.0):
        """Wait until the process ends by itself; the exit status."""
        wait_for(f"the end of node {self.number}", lambda: not self.running(), timeout)
        return self.process.returncode

    def output(self):
        """What the process printed since its last start."""
        with open(self.log, "rb") as f:
            f.seek(self.log_start)
            return f.read().decode(errors="replace")

    def peak_rss(self):
        """Peak resident memory (VmHWM) of the running process in bytes."""
        return int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024

    def size(self):
        """ledger_size as this node's health tells it, or None."""
        reply = self.get("/health", timeout=2)
        return reply.json().get("ledger_size") if reply.status else None



_clusters = []


@atexit.register
def close_all():
    """End every node of every cluster, also after an interrupt."""
    for cluster in _clusters:
        cluster.kill()


class Cluster:
    """n nodes that form one cluster; extra sections lie over each node's configuration."""

    def __init__(self, n=3, folder=None, data_dirs=None, **sections):
        _clusters.append(self)
        self.folder = folder or tempfile.mkdtemp(prefix="scribe-e2e-")
        http_ports = [free_port() for _ in range(n)]
        raft_ports = [free_port() for _ in range(n)]
        self.nodes = []
        for i in range(n):
            data = (data_dirs or {}).get(i + 1, os.path.join(self.folder, f"node-{i + 1}"))
            own = {
                "node": {"id": i + 1, "address": "127.0.0.1", "data_dir": data},
                "network": {"listen_addr": f"127.0.0.1:{http_ports[i]}", "client_port": http_ports[i],
                            "raft_port": raft_ports[i],
                            "seed_peers": [f"127.0.0.1:{p}" for p in raft_ports if p != raft_ports[i]]},
                "cluster": {"expect": n},
            }
            for name, keys in sections.items():
                own.setdefault(name, {}).update(keys)
            self.nodes.append(Node(i + 1, self.folder, own))

    def start(self, timeout=90.0):
        for node in self.nodes:
            node.start()
        return self.wait_ready(timeout)

    def wait_ready(self, timeout=90.0):
        for node in self.running():
            node.wait_ready(timeout)
        return self

    def running(self):
        return [node for node in self.nodes if node.running()]

    def leader(self, timeout=60.0):
        """The running node that calls itself leader and whom another one's view agrees with."""
        def found():
            for node in self.running():
                reply = node.get("/cluster/leader", timeout=2)
                if reply.status == 200:
                    chosen = self.nodes[int(reply.json()["id"]) - 1]
                    health = chosen.get("/health", timeout=2) if chosen.running() else None
                    if health and health.status == 200 and health.json()["role"] == "leader":
                        return chosen
        return wait_for("a leader", found, timeout)

    def term(self):
        return self.leader().get("/cluster/status").json()["term"]

    def followers(self):
        leader = self.leader()
        return [node for node in self.running() if node is not leader]

    def stop(self):
        """SIGTERM to all at once; the exit statuses."""
        for node in self.running():
            node.process.terminate()
        return [node.wait_exit(40) for node in self.nodes]

    def kill(self, nodes=None):
        """kill -9 of several nodes as near to one moment as it gets."""
        nodes = list(nodes or self.running())
        for node in nodes:
            node.process.kill()
            node.client.forget()
        for node in nodes:
            node.process.wait()

    def close(self, failed=False):
        """End all processes; a failed test keeps its folder and shows the ends of the logs."""
        self.kill()
        if not failed:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        print(f"\n==== data kept in {self.folder}", file=sys.stderr)
        for node in self.nodes:
            if os.path.exists(node.log):
                tail = "\n".join(pathlib.Path(node.log).read_text(errors="replace").splitlines()[-12:])
                print(f"---- node {node.number} {node.log}\n{tail}", file=sys.stderr)


class Scenario(unittest.TestCase):
    """A test that owns clusters: they end with it, and a failure keeps their data."""

    maxDiff = 2000

    def run(self, result=None):
        self.clusters = []
        result = result or self.defaultTestResult()
        before = len(result.failures) + len(result.errors)
        super().run(result)
        for cluster in self.clusters:
            cluster.close(failed=len(result.failures) + len(result.errors) > before)
        return result

    def cluster(self, n=3, start=True, **kw):
        cluster = Cluster(n, **kw)
        self.clusters.append(cluster)
        return cluster.start() if start else cluster

    def node(self, **kw):
        return self.cluster(1, **kw).nodes[0]

    def expect(self, reply, status, code=None):
        """Check status and, for errors, the shape of the body; returns the reply."""
        wanted = status if isinstance(status, tuple) else (status,)
        self.assertIn(reply.status, wanted, reply)
        if code is not None:
            self.assertEqual(reply.code(), code, reply)
            self.assertTrue(reply.json()["error"]["message"], reply)
        return reply

    def done(self, node, method, path, body=None, headers=None):
        """The answer to a request that is sent again, under one Idempotency-Key, until it tells an outcome."""
        headers = {"Idempotency-Key": os.urandom(8).hex(), **(headers or {})}

        def told():
            reply = node.request(method, path, body, headers)
            return reply.code() not in UNSETTLED and reply
        return wait_for(f"the outcome of {method} {path}", told, 120)

    def batch(self, node, ops):
        """Do all ops in one atomic batch; the entries."""
        body = json.dumps({"ops": ops}).encode()
        return self.expect(self.done(node, "POST", "/batch", body, JSON), 200).json()["results"]

    def check_unfailed(self, c, load, term):
        """No write of load failed, or an election since term is why."""
        excused = UNSETTLED if c.term() != term else ()
        self.assertEqual([(number, reply) for number, reply in load.failed if reply.code() not in excused], [])

    def signed_by_all(self, node):
        """A checkpoint that the ledger and all three nodes have signed."""
        def signed():
            note = self.expect(node.get("/ledger/checkpoint"), 200).body.decode()
            return note.count("\u2014 ") == 4 and note
        return wait_for(f"node {node.number} has the signatures of all", signed)

    def expect_refusal(self, node, *words, timeout=40.0):
        """The process ends with 2 and one clear line, which holds one of words; the line."""
        status, text = node.wait_exit(timeout), node.output()
        self.assertEqual(status, 2, text)
        self.assertNotRegex(text, r"goroutine \d+|panic:|SIGBUS|runtime error")
        quiet = re.compile(r'level=(DEBUG|INFO|WARN)|"level":"(DEBUG|INFO|WARN)"|\[(DEBUG|INFO|WARN)\]|"msg":"raft: '
                           "(failed to heartbeat to|failed to appendEntries to|failed to make requestVote RPC|peer has newer term)")
        loud = [line for line in text.splitlines() if line.strip() and not quiet.search(line)]
        self.assertEqual(len(loud), 1, f"want one clear line, got:\n{text}")
        self.assertRegex(loud[0].lower(), "|".join(words or ["."]))
        return loud[0]


def main():
    """Run the scenarios of the script that calls this."""
    sys.argv = [arg for arg in sys.argv if arg != "--long"]
    binary()
    unittest.main(verbosity=2)
