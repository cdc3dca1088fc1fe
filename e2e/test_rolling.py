"""A rolling restart with SIGTERM under load: exit 0 each time, and writes hardly notice."""

import time

import helpers
from helpers import Scenario, wait_for
from load import Load
from truth import check


class Rolling(Scenario):
    def test_rolling_restart(self):
        c = self.cluster()
        with Load(c, writers=6) as load:
            wait_for("300 writes", lambda: len(load.acked) > 300, 30)
            start = time.monotonic()
            followers = c.followers()
            for node in (*followers, c.leader()):
                self.assertEqual(node.stop(), 0, node.output()[-2000:])
                node.start().wait_ready()
            end = time.monotonic()
        gap = load.longest_gap(start, end)
        print(f"longest time without an acknowledged write {gap:.2f} s, {load.count('unknown')} unknown", end=" ")
        self.assertLess(gap, 2.0)
        check(self, c, load)


if __name__ == "__main__":
    helpers.main()
