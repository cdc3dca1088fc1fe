"""SIGTERM under load: exit 0 each time, the next leader takes over within half a second, and no client sees a failure
that the nodes could have hidden from it."""

import statistics
import time

import helpers
from helpers import LONG, Scenario, wait_for
from load import Load
from truth import check

HANDOVERS = 50 if LONG else 3


class Rolling(Scenario):
    def restart(self, node):
        """Stop the node and start it again; the moment of the SIGTERM and that of its end."""
        asked = time.monotonic()
        self.assertEqual(node.stop(), 0, node.output()[-2000:])
        ended = time.monotonic()
        node.start().wait_ready()
        return asked, ended

    def check_failures(self, load, stopped):
        """All writes succeeded, but those that found nobody listening at a node that was stopped."""
        seen = [(number, reply) for number, reply in load.failed if reply.sent]
        self.assertEqual(seen, [], f"{len(seen)} of {len(load.attempts)} writes failed, while these were stopped: {stopped}")

    def test_rolling_restart(self):
        c = self.cluster()
        with Load(c, writers=6) as load:
            wait_for("300 writes", lambda: len(load.acked) > 300, 30)
            start = time.monotonic()
            order = [*c.followers(), c.leader()]
            for node in order:
                self.restart(node)
            end = time.monotonic()
        gap = load.longest_gap(start, end)
        print(f"longest time without an acknowledged write {gap:.2f} s", end=" ")
        self.assertLess(gap, 1.0)
        self.check_failures(load, [node.number for node in order])
        check(self, c, load)

    def test_the_leader_hands_over(self):
        c = self.cluster()
        gaps, stopped = [], []
        with Load(c, writers=6) as load:
            wait_for("300 writes", lambda: len(load.acked) > 300, 30)
            for _ in range(HANDOVERS):
                leader = c.leader()
                stopped.append(leader.number)
                asked, ended = self.restart(leader)
                gaps.append(load.longest_gap(asked, ended + 0.2))
        print(f"{len(gaps)} hand-overs, without an acknowledged write for {statistics.median(gaps):.3f} s,"
              f" {max(gaps):.3f} s at worst", end=" ", flush=True)
        self.check_failures(load, stopped)
        self.assertLess(max(gaps), 0.5)
        check(self, c, load)


if __name__ == "__main__":
    helpers.main()
