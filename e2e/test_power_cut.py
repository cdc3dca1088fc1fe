"""Power cuts on a real file system: ext4 in a file, copied under load, mounted again with its journal replayed.

With commit=600 nothing is on that file but what was synced, so a copy is the disk a power cut leaves. The nodes stand
still while it is made. What was acknowledged before must be on it.
"""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import types

import helpers
from helpers import LONG, MIB, Scenario, cli, wait_for
from load import ACKED, UNKNOWN, Load
from truth import check

SEED = int(os.environ.get("SCRIBE_SEED", random.randrange(1 << 32)))
SIZE = 256 * MIB


class Disk:
    """An ext4 file system in the file image, mounted at folder."""

    def __init__(self, image):
        self.image, self.folder = image, image + ".mounted"
        os.makedirs(self.folder)

    def make(self):
        with open(self.image, "wb") as f:
            f.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True, capture_output=True)
        return self

    def mount(self):
        subprocess.run(["mount", "-o", "loop,commit=600", self.image, self.folder], check=True, capture_output=True)
        return self

    def unmount(self):
        subprocess.run(["umount", self.folder], capture_output=True)

    def copy(self, image):
        """What a power cut leaves of this disk now, as another disk."""
        subprocess.run(["cp", "--sparse=always", self.image, image], check=True)
        return Disk(image)


def missing(folder):
    """Why file systems in files cannot be used here, or None."""
    disk = Disk(os.path.join(folder, "try.img"))
    try:
        disk.make().mount()
    except (OSError, subprocess.CalledProcessError) as err:
        return f"mkfs.ext4 and mount -o loop are not permitted here: {getattr(err, 'stderr', None) or err}"
    disk.unmount()
    return None


def known(load):
    """What is certain about the load at this moment, in the form truth.check takes."""
    with load.mutex:
        acked, attempts = dict(load.acked), {digest: list(attempt) for digest, attempt in load.attempts.items()}
    return types.SimpleNamespace(prefix=load.prefix, violations=[], acked=acked, attempts=attempts,
                                 latest={key: seq for seq, (key, _, _) in sorted(acked.items())})


class PowerCut(Scenario):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="scribe-cut-")
        self.disks = []
        self.addCleanup(self.clean)
        why = missing(self.folder)
        if why:
            self.skipTest(why)

    def clean(self):
        """End all that uses the disks, and remove them."""
        for cluster in self.clusters:
            cluster.kill()
        for disk in self.disks:
            disk.unmount()
        shutil.rmtree(self.folder)

    def mounted(self, disk):
        """disk, mounted until it is unmounted or the test ends."""
        self.disks.append(disk)
        return disk.mount()

    def start_on_disks(self, n, turn):
        """A cluster, each node on a new disk."""
        disks = [self.mounted(Disk(os.path.join(self.folder, f"{turn}-{i + 1}.img")).make()) for i in range(n)]
        c = self.cluster(n, data_dirs={i + 1: os.path.join(disk.folder, "data") for i, disk in enumerate(disks)},
                         storage={"segment_size": 128 << 10})
        return c, disks

    def cut(self, c, disks, load, number):
        """Copies of all disks, as of one moment, and what was known before it."""
        before = known(load)
        for node in c.nodes:
            node.process.send_signal(signal.SIGSTOP)
        try:
            for node in c.nodes:
                node.pause()  # returns when it does stand still
            return before, [disk.copy(f"{disk.image}.{number}") for disk in disks]
        finally:
            for node in c.nodes:
                node.resume()

    def check_cut(self, c, load, before, copies):
        """The nodes start on the copies with all that was acknowledged, and go on."""
        attempts = known(load).attempts  # those of later are on no copy, or were on their way
        now_acked = {digest for _, _, digest in before.acked.values()}
        before.attempts = {digest: [key, UNKNOWN if what == ACKED and digest not in now_acked else what]
                           for digest, (key, what) in attempts.items()}
        for node, disk in zip(c.nodes, copies):
            node.data = node.sections["node"]["data_dir"] = os.path.join(self.mounted(disk).folder, "data")
        c.start()
        check(self, c, before, sample=200)
        for node in c.nodes:
            self.expect(self.done(node, "PUT", "/after", b"the power cut"), (200, 201))
        c.kill()
        for node, disk in zip(c.nodes, copies):
            done = cli("audit", "--data", node.data)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            disk.unmount()
            os.remove(disk.image)

    def cut_at_random(self, n, cuts):
        """Power cuts of n nodes at once, at random moments of a load; up to ten for one load."""
        print(f"SCRIBE_SEED={SEED}", end=" ", flush=True)
        rng = random.Random(SEED)
        for turn in range(-(-cuts // 10)):
            c, disks = self.start_on_disks(n, turn)
            taken = []
            with Load(c, writers=6, size=700) as load:
                for i in range(min(cuts, 10)):
                    enough = load.count() + rng.randint(1, 400)
                    wait_for("more writes", lambda: load.count() >= enough, 180, interval=rng.uniform(0.001, 0.01))
                    taken.append(self.cut(c, disks, load, i))
            c.kill()
            for disk in disks:
                disk.unmount()
                os.remove(disk.image)
            for before, copies in taken:
                self.check_cut(c, load, before, copies)
            print(f"{len(taken)} cuts, {load.count()} acknowledged;", end=" ", flush=True)

    def test_one_node(self):
        self.cut_at_random(1, 50 if LONG else 4)

    def test_three_nodes_at_once(self):
        self.cut_at_random(3, 30 if LONG else 3)


if __name__ == "__main__":
    helpers.main()
