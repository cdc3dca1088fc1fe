"""Archiving beside writes: python3 e2e/bench_archive.py [rounds]

One node with a MinIO. In each round it prints how fast clients write without the archive, how fast while 128 MiB are
archived, how fast that is, how fast it is without clients, and what one core packs at that level with Python's zlib.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib

import s3_servers

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEGMENT = 64 << 20
SEGMENTS = 2
PORT = 18301


def call(method, path, body=None):
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", method=method, data=body)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def bench(binary, seconds):
    out = subprocess.run([binary, "bench", "--json", "--connections", "64", "--duration", f"{seconds}s"], check=True,
                         capture_output=True, env=dict(os.environ, SCRIBE_URL=f"http://127.0.0.1:{PORT}"))
    got = json.loads(out.stdout)
    return got["requests"] / got["seconds"]


def text(size, seed):
    """Bytes that gzip packs about as well as JSON."""
    words = [b'"%s":' % w for w in (b"name", b"time", b"value", b"state", b"owner")] + [b"%d" % (i * 7919) for i in range(5000)]
    out, n, state = [], 0, seed
    while n < size:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(words[(state >> 33) % len(words)])
        n += len(out[-1])
    return b"".join(out)[:size]


def fill(chunk):
    for i in range(SEGMENTS):
        for k in range(SEGMENT // len(chunk) - 1):
            call("PUT", f"/big/{i}/{k}/{time.time()}", chunk)
        call("POST", "/cluster/seal")


def one_core(chunk):
    begun = time.process_time()
    zlib.compress(chunk, 6)
    return len(chunk) / (time.process_time() - begun) / 1e6


def archive():
    begun = time.time()
    done = call("POST", "/cluster/archive")["archived"]
    return done * SEGMENT / (time.time() - begun) / 1e6


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    chunk = text(4 << 20, 1)
    with s3_servers.Server("minio") as s3, tempfile.TemporaryDirectory() as work:
        binary = f"{work}/scribe-ledger"
        (s3.folder / "data" / "ledger").mkdir()
        subprocess.run(["go", "build", "-o", binary, "."], check=True, cwd=ROOT)
        env = {f"SCRIBE_STORAGE_S3_{k}": v for k, v in dict(BUCKET="ledger", ENDPOINT=s3.url, PATH_STYLE="true",
               ACCESS_KEY_ID=s3_servers.ACCESS_KEY, SECRET_ACCESS_KEY=s3_servers.SECRET_KEY).items()}
        env.update(SCRIBE_NODE_DATA_DIR=f"{work}/data", SCRIBE_NETWORK_CLIENT_PORT=str(PORT), SCRIBE_NETWORK_RAFT_PORT=str(PORT + 1000),
                   SCRIBE_STORAGE_TIERING_ENABLE_AUTO_ARCHIVAL="false", SCRIBE_STORAGE_SCRUB_RATE="0")
        node = subprocess.Popen([binary], env=dict(os.environ, **env), stderr=open(f"{work}/log", "w"))
        try:
            time.sleep(2)
            for _ in range(rounds):
                fill(chunk)
                alone = archive()
                fill(chunk)
                plain = bench(binary, 16)
                beside = {}
                worker = threading.Thread(target=lambda: beside.update(rate=archive()))
                worker.start()
                busy = bench(binary, 16)
                worker.join()
                print(f"PUT {plain:.0f}/s, while archiving {busy:.0f}/s ({busy / plain:.2f}); archive {beside['rate']:.0f} MB/s beside, "
                      f"{alone:.0f} MB/s alone; one core gzip {one_core(chunk):.0f} MB/s", flush=True)
        finally:
            node.terminate()
            node.wait()
            print(open(f"{work}/log").read()[-1500:] if os.environ.get("VERBOSE") else "", end="")


if __name__ == "__main__":
    main()
