"""kill -9 of the leader: the next acknowledged write comes within two seconds, every time."""

import helpers
from helpers import LONG, Scenario
from load import Load, time_to_next_ack
from truth import check

ROUNDS = 50 if LONG else 5


class Failover(Scenario):
    def test_kill_the_leader(self):
        c = self.cluster()
        times = []
        with Load(c, writers=3, pause=0.02) as load:
            for _ in range(ROUNDS):
                leader = c.leader()
                leader.kill()
                times.append(time_to_next_ack(c.running()))
                leader.start().wait_ready()
        shown = " ".join(f"{t:.2f}" for t in times)
        print(f"next acknowledged write after (s): {shown}", end=" ", flush=True)
        check(self, c, load)
        self.assertLessEqual(max(times), 2.0)


if __name__ == "__main__":
    helpers.main()
