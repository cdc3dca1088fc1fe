"""Run the e2e scenarios: python3 e2e/run.py [--long] [name …]

Each script runs in a process group of its own with a time limit, after which
the whole group is ended. Two run at a time, since much of it is waiting; with
--long or a single name one, whose output is shown as it comes. Exit 0 when all
passed.
"""

import concurrent.futures
import glob
import os
import signal
import subprocess
import sys
import tempfile
import time

import helpers

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT = 3600 if helpers.LONG else 900  # seconds for one script


def run_script(path, output):
    """Run one script; True when it passed in time."""
    process = subprocess.Popen([sys.executable, path], start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        return process.wait(LIMIT) == 0
    except subprocess.TimeoutExpired:
        print(f"{os.path.basename(path)}: not finished after {LIMIT} s, ended", flush=True)
        return False
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # nodes that an ended script left behind
        except ProcessLookupError:
            pass


def run_beside(path):
    """Run one script beside others and show its output when it is done; True when it passed."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        passed = run_script(path, output)
        output.seek(0)
        print(f"\n== {os.path.basename(path)}\n{output.read()}-- {time.monotonic() - begun:.1f} s", flush=True)
    return passed


def main():
    names = [arg for arg in sys.argv[1:] if arg != "--long"]
    if helpers.LONG:
        os.environ["SCRIBE_LONG"] = "1"
    helpers.binary()  # built once for all
    scripts = sorted(glob.glob(os.path.join(HERE, "test_*.py")))
    if names:
        scripts = [s for s in scripts if any(name in os.path.basename(s) for name in names)]
    start = time.monotonic()
    if helpers.LONG or len(scripts) == 1:
        passed = [run_script(script, None) for script in scripts]
    else:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            passed = list(pool.map(run_beside, scripts))
    failed = [os.path.basename(script) for script, good in zip(scripts, passed) if not good]
    print(f"\n{len(scripts)} scripts, {time.monotonic() - start:.0f} s; failed: {', '.join(failed) or 'none'}")
    return 1 if failed or not scripts else 0


if __name__ == "__main__":
    sys.exit(main())
