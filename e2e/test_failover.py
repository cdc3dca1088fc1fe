"""kill -9 of the leader: the next acknowledged write comes within two seconds, every time."""

import helpers
from helpers import LONG, Scenario, within
from load import Load, time_to_next_ack
from truth import check

ROUNDS = 50 if LONG else 5


class Failover(Scenario):
    def test_kill_the_leader(self):
        c = self.cluster()

        def worst():
            times = []
            for _ in range(ROUNDS):
                leader = c.leader()
                leader.kill()
                times.append(time_to_next_ack(c.running()))
                leader.start().wait_ready()
            print("next acknowledged write after (s):", *(f"{t:.2f}" for t in times), end=" ", flush=True)
            return max(times)
        with Load(c, writers=3, pause=0.02) as load:
            within(2.0, worst)
        check(self, c, load)


if __name__ == "__main__":
    helpers.main()
