"""Real S3 servers: python3 e2e/s3_servers.py [minio|versitygw …] runs the client's tests against them.

binary(name) builds a server once into a cache (XDG_CACHE_HOME or ~/.cache, scribe-ci/bin; the first time takes
minutes), Server runs one in a process of its own. SCRIBE_S3_MINIO and SCRIBE_S3_VERSITYGW name ready binaries.
"""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = {
    "minio": "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c",
    "versitygw": "github.com/versity/versitygw/cmd/versitygw@v1.8.0",
}
ACCESS_KEY, SECRET_KEY = "scribe-test", "secret/with+signs"


def binary(name):
    """Path of a server's binary; builds it if the cache has none of that version."""
    ready = os.environ.get(f"SCRIBE_S3_{name.upper()}")
    if ready:
        return ready
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "scribe-ci" / "bin"
    path = cache / f"{name}-{MODULES[name].rpartition('@')[2]}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            print(f"building {MODULES[name]}", flush=True)
            subprocess.run(["nice", "-n", "10", "go", "install", "-p", "2", MODULES[name]], check=True, cwd=work,
                           env=dict(os.environ, GOBIN=work, GOFLAGS=""))
            os.replace(os.path.join(work, name), path)
    return str(path)


class Server:
    """A server with its data in a folder of its own; as a context manager it ends with the block."""

    def __init__(self, name):
        self.name = name
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"scribe-{name}-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = "127.0.0.1:%d" % probe.getsockname()[1]
        self.url = "http://" + self.address
        self.process = None

    def command(self):
        """Arguments and environment of the process."""
        data = self.folder / "data"
        versions = self.folder / "versions"
        data.mkdir(exist_ok=True)
        versions.mkdir(exist_ok=True)
        if self.name == "minio":
            return (["server", "--quiet", "--address", self.address, str(data)],
                    {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY,
                     "MINIO_SITE_REGION": "us-east-1", "MINIO_BROWSER": "off", "MINIO_UPDATE": "off"})
        return (["--keep-alive", "--quiet", "--port", self.address, "posix", "--versioning-dir", str(versions), str(data)],
                {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY})

    def start(self):
        """Start the process, again with the same data after stop; returns when it takes connections."""
        arguments, environment = self.command()
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([binary(self.name), *arguments], stdout=log, stderr=log,
                                            env=dict(os.environ, **environment))
        deadline = time.monotonic() + 30
        host, port = self.address.split(":")
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"{self.name} does not come up:\n{(self.folder / 'log').read_text()}") from None
                time.sleep(0.05)

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

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def main():
    names = sys.argv[1:] or list(MODULES)
    environment = dict(os.environ)
    for name in MODULES:
        environment.pop(f"SCRIBE_S3_{name.upper()}", None)
    for name in names:
        environment[f"SCRIBE_S3_{name.upper()}"] = binary(name)
    return subprocess.run(["go", "test", "-count=1", "-run", "^TestS3Real$", "."], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
