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
        """Stop the node and start it again; the moment of the SIGTERM, that of its end, and whether no hand-over failed."""
        asked = time.monotonic()
        self.assertEqual(node.stop(), 0, node.output()[-2000:])
        ended = time.monotonic()
        handed = "leadership was not handed over" not in node.output()
        node.start().wait_ready()
        return asked, ended, handed

    def handed_over(self, load, restarts):
        """The gap that restarts measures; where a hand-over failed it does not count, nor does what failed then, and they are done again."""
        for _ in range(3):
            before = len(load.failed)
            gap, handed = restarts()
            if handed:
                return gap
            del load.failed[before:]
        self.fail("three times leadership was not handed over")

    def check_failures(self, load):
        """All writes succeeded, but those that found nobody listening at a node that was stopped."""
        seen = [(number, reply) for number, reply in load.failed if reply.sent]
        self.assertEqual(seen, [], f"{len(seen)} of {len(load.attempts)} writes failed")

    def test_rolling_restart(self):
        c = self.cluster()
        with Load(c, writers=6) as load:
            wait_for("300 writes", lambda: len(load.acked) > 300, 120)

            def all_in_turn():
                start = time.monotonic()
                handed = [self.restart(node)[2] for node in [*c.followers(), c.leader()]]
                return load.longest_gap(start, time.monotonic()), all(handed)
            gap = self.handed_over(load, all_in_turn)
        print(f"longest time without an acknowledged write {gap:.2f} s", end=" ")
        self.assertLess(gap, 1.0)
        self.check_failures(load)
        check(self, c, load)

    def test_the_leader_hands_over(self):
        c = self.cluster()
        with Load(c, writers=6) as load:
            wait_for("300 writes", lambda: len(load.acked) > 300, 120)

            def leader_restarts():
                asked, ended, handed = self.restart(c.leader())
                return load.longest_gap(asked, ended + 0.2), handed
            gaps = [self.handed_over(load, leader_restarts) for _ in range(HANDOVERS)]
        print(f"{len(gaps)} hand-overs, without an acknowledged write for {statistics.median(gaps):.3f} s,"
              f" {max(gaps):.3f} s at worst", end=" ", flush=True)
        self.check_failures(load)
        self.assertLess(max(gaps), 0.5)
        check(self, c, load)


if __name__ == "__main__":
    helpers.main()
