"""kill -9 of any and all nodes at random moments under load: nothing acknowledged is lost."""

import os
import random
import time

import helpers
from helpers import LONG, Scenario, wait_for
from load import Load
from truth import check

ROUNDS = 100 if LONG else 5
SEED = int(os.environ.get("SCRIBE_SEED", random.randrange(1 << 32)))


class Crash(Scenario):
    def test_kill_all_and_restart(self):
        c = self.cluster(storage={"segment_size": 256 << 10})
        with Load(c, writers=6) as load:
            wait_for("1000 writes", lambda: len(load.acked) > 1000, 180)
            c.kill()
        c.start()
        check(self, c, load)

    def test_one_node_alone(self):
        c = self.cluster(1, storage={"segment_size": 256 << 10})
        with Load(c, writers=6) as load:
            for _ in range(3):
                enough = len(load.acked) + 500
                wait_for("500 more writes", lambda: len(load.acked) > enough, 180)
                c.kill()
                c.start()
        check(self, c, load)

    def test_random_kills(self):
        print(f"SCRIBE_SEED={SEED}", end=" ", flush=True)
        rng = random.Random(SEED)
        c = self.cluster(storage={"segment_size": 512 << 10})
        with Load(c, writers=8, keys=50, size=500) as load:
            for turn in range(1, ROUNDS + 1):
                enough = len(load.acked) + 20
                wait_for("20 more writes", lambda: len(load.acked) >= enough)
                time.sleep(rng.uniform(0.1, 1.0))  # the random moment, not a wait for something
                victims = rng.sample(c.nodes, rng.randint(1, 3))
                c.kill(victims)
                if rng.random() < 0.5:
                    time.sleep(rng.uniform(0, 0.5))
                for node in victims:
                    node.start()
                c.wait_ready()
                if turn % 20 == 0:
                    print(f"round {turn}: {len(load.acked)} acknowledged", flush=True)
        print(f"{len(load.acked)} acknowledged, {load.count('unknown')} unknown", end=" ", flush=True)
        self.assertGreaterEqual(len(load.acked), ROUNDS * 20, "too little load to prove anything")
        check(self, c, load)


if __name__ == "__main__":
    helpers.main()
