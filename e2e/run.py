"""Run the e2e scenarios: python3 e2e/run.py [--long] [name …]

Each script runs in a process group of its own with a time limit, after which
the whole group is ended. Exit 0 when all passed.
"""

import glob
import os
import signal
import subprocess
import sys
import time

import helpers

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT = 3600 if helpers.LONG else 300  # seconds for one script


def run_script(path):
    """Run one script; True when it passed in time."""
    process = subprocess.Popen([sys.executable, path], start_new_session=True, stdin=subprocess.DEVNULL)
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


def main():
    names = [arg for arg in sys.argv[1:] if arg != "--long"]
    if helpers.LONG:
        os.environ["SCRIBE_LONG"] = "1"
    helpers.binary()  # built once for all
    scripts = sorted(glob.glob(os.path.join(HERE, "test_*.py")))
    if names:
        scripts = [s for s in scripts if any(name in os.path.basename(s) for name in names)]
    failed = []
    start = time.monotonic()
    for script in scripts:
        name = os.path.basename(script)
        print(f"\n== {name}", flush=True)
        begun = time.monotonic()
        if not run_script(script):
            failed.append(name)
        print(f"-- {name}: {time.monotonic() - begun:.1f} s", flush=True)
    print(f"\n{len(scripts)} scripts, {time.monotonic() - start:.0f} s; failed: {', '.join(failed) or 'none'}")
    return 1 if failed or not scripts else 0


if __name__ == "__main__":
    sys.exit(main())
