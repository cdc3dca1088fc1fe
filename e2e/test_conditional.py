"""Concurrent conditional writers: no lost update, one winner, also while leaders die."""

import threading

import helpers
from helpers import Scenario, raw_path, wait_for
from load import ACKED, UNKNOWN, fate
from truth import check

KEY = raw_path("counter")


class Conditional(Scenario):
    def increment(self, node, tally, mutex):
        """One read and one conditional write; the fate is counted."""
        got = node.get(KEY, timeout=15)
        if got.status not in (200, 404):
            return
        value = int(got.body) if got.status == 200 else 0
        condition = {"If-Match": got.headers["ETag"]} if got.status == 200 else {"If-None-Match": "*"}
        what = fate(node.put(KEY, str(value + 1).encode(), headers=condition, timeout=35))
        with mutex:
            tally[what] = tally.get(what, 0) + 1

    def count_up(self, c, disturb=lambda: None, wanted=200, threads=6):
        """Increment from many threads over all nodes; {fate: how many}."""
        tally, mutex, done = {}, threading.Lock(), threading.Event()

        def worker(i):
            while not done.is_set():
                node = c.nodes[i % len(c.nodes)]
                if node.running():
                    self.increment(node, tally, mutex)
                i += 1
        workers = [threading.Thread(target=worker, args=(i,), daemon=True) for i in range(threads)]
        for thread in workers:
            thread.start()
        try:
            disturb()
            wait_for(f"{wanted} increments", lambda: tally.get(ACKED, 0) >= wanted, 180)
        finally:
            done.set()
        for thread in workers:
            thread.join(60)
        return tally

    def test_no_lost_update(self):
        c = self.cluster()
        term = c.term()
        tally = self.count_up(c, wanted=300)
        self.check_value(c, tally)
        if c.term() == term:
            self.assertNotIn(UNKNOWN, tally)
        check(self, c)

    def check_value(self, c, tally):
        value = int(c.nodes[0].get(KEY).body)
        print(tally, "value", value, end=" ", flush=True)
        self.assertGreaterEqual(value, tally[ACKED], "an acknowledged increment is lost")
        self.assertLessEqual(value, tally[ACKED] + tally.get(UNKNOWN, 0), "an increment was applied twice")

    def test_no_lost_update_while_leaders_die(self):
        c = self.cluster()

        def disturb():
            for _ in range(3):
                leader = c.leader()
                leader.kill()
                wait_for("another leader", lambda: c.leader() is not leader)
                leader.start().wait_ready()
        tally = self.count_up(c, disturb)
        c.wait_ready()
        self.check_value(c, tally)
        check(self, c)

    def test_one_creator_wins(self):
        c = self.cluster()
        for turn in range(10):
            replies = []
            threads = [threading.Thread(target=lambda n=node, i=i: replies.append(
                self.done(n, "PUT", f"/race{turn}", str(i).encode(), {"If-None-Match": "*"})))
                for i, node in enumerate(c.nodes * 4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(sorted(r.status for r in replies), [201] + [412] * 11)


if __name__ == "__main__":
    helpers.main()
