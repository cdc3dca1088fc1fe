"""Real S3 servers: python3 e2e/s3_servers.py [minio|versitygw …] runs the client's tests against them; build builds them.

binary(name) builds a server once into a cache (XDG_CACHE_HOME or ~/.cache, scribe-ci/bin; the first time takes
minutes), Server runs one in a process of its own. SCRIBE_S3_MINIO and SCRIBE_S3_VERSITYGW name ready binaries.
"""

import fcntl
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = {
    "minio": "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c",
    "versitygw": "github.com/versity/versitygw/cmd/versitygw@v1.8.0",
}
ACCESS_KEY, SECRET_KEY = "scribe-test", "secret/with+signs"
READER_KEY, READER_SECRET = "scribe-reader", "may-only-read"  # an account of versitygw's


class NotBuilt(Exception):
    """A server is not in the cache and cannot be built."""


def binary(name):
    """Path of a server's binary; builds it if the cache has none of that version. NotBuilt says why there is none."""
    ready = os.environ.get(f"SCRIBE_S3_{name.upper()}")
    if ready:
        return ready
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "scribe-ci" / "bin"
    path = cache / f"{name}-{MODULES[name].rpartition('@')[2]}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # scripts run side by side, and .ci/run builds behind them
            if not path.exists():
                build(name, path)
    return str(path)


def build(name, path):
    """go install, with low priority; what it compiled before an interruption stays in Go's cache."""
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        print(f"building {MODULES[name]}", flush=True)
        command = ["nice", "-n", "10", "go", "install", "-p", "2", MODULES[name]]
        try:
            done = subprocess.run(command, cwd=work, env=dict(os.environ, GOBIN=work, GOFLAGS=""), stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except OSError as err:
            raise NotBuilt(f"{name} is not in {path.parent}, and Go cannot be run: {err}") from None
        if done.returncode != 0:
            words = " | ".join(done.stdout.strip().splitlines()[-3:])
            raise NotBuilt(f"{name} is not in {path.parent}, and {' '.join(command[3:])} failed: {words}")
        os.replace(os.path.join(work, name), path)


def require(name):
    """binary(name) for a test: it is skipped where there is none, but in CI that is a failure."""
    try:
        return binary(name)
    except NotBuilt as err:
        if os.environ.get("CI"):
            raise
        raise unittest.SkipTest(str(err)) from None


class Server:
    """A server with its data in a folder of its own; as a context manager it ends with the block."""

    def __init__(self, name):
        self.name = name
        self.program = require(name)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"scribe-{name}-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.url = "http://" + self.address
        self.data = self.folder / "data"
        self.process = None

    def command(self):
        """Arguments and environment of the process."""
        accounts, versions = self.folder / "accounts", self.folder / "versions"
        for folder in (self.data, accounts, versions):
            folder.mkdir(exist_ok=True)
        if self.name == "minio":
            return (["server", "--quiet", "--address", self.address, str(self.data)],
                    {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY,
                     "MINIO_SITE_REGION": "us-east-1", "MINIO_BROWSER": "off", "MINIO_UPDATE": "off"})
        reader = {"access": READER_KEY, "secret": READER_SECRET, "role": "user", "userID": 0, "groupID": 0, "projectID": 0}
        (accounts / "users.json").write_text(json.dumps({"accessAccounts": {READER_KEY: reader}}))
        return (["--keep-alive", "--quiet", "--port", self.address, "--iam-dir", str(accounts),
                 "posix", "--versioning-dir", str(versions), str(self.data)],
                {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY})

    def start(self):
        """Start the process, again with the same data after stop; returns when it is ready."""
        arguments, environment = self.command()
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([self.program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=dict(os.environ, **environment))
        deadline = time.monotonic() + 30
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} does not come up:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.05)
        return self

    def answers(self):
        """Whether it refuses who does not sign, as it does when it is ready."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            conn.request("GET", "/")
            return conn.getresponse().status == 403
        except (OSError, http.client.HTTPException):
            return False
        finally:
            conn.close()

    def stop(self):
        """End the process; the data stays."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def pause(self):
        """It takes connections and says nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def close(self):
        """End the process and remove its data."""
        if self.process is not None:
            self.resume()
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()


def main():
    names = sys.argv[1:] or list(MODULES)
    only_build = names[0] == "build"
    environment = dict(os.environ)
    try:
        for name in MODULES:
            ready = binary(name) if only_build or name in names else ""
            environment[f"SCRIBE_S3_{name.upper()}"] = ready
    except NotBuilt as err:
        print(err, file=sys.stderr)
        return 1
    if only_build:
        return 0
    return subprocess.run(["go", "test", "-count=1", "-run", "^TestS3Real$", "."], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
