"""A follower that was down past the truncation of the Raft log comes back through segments."""

import os

import helpers
from helpers import LONG, MIB, UNSETTLED, Scenario, raw_path, wait_for
from load import Load, stream_batch
from truth import check, seal

ROUNDS = 60 if LONG else 20  # of 8 MB each: several Raft log files are left behind


class CatchUp(Scenario):
    def write_much(self, node, round_):
        """8 MB in 2,000 entries by one NDJSON batch; lines that have no outcome are sent again."""
        left = [b'{"op":"put","key":"bulk/%d/%d","value":"%s","if_absent":true}\n' % (round_, i, b"%06d" % i * 680) for i in range(2000)]
        good = {None}

        def done():
            status, answers = stream_batch(node.port, b"".join(left))
            self.assertEqual((status, len(answers)), (200, len(left)))
            codes = [answer.get("error", {}).get("code") for answer in answers]
            self.assertLessEqual(set(codes), good.union(UNSETTLED))
            left[:] = [line for line, code in zip(left, codes) if code in UNSETTLED]
            good.add("precondition_failed")  # from here on: it was applied before
            return not left
        wait_for("all lines are done", done, 120)

    def log_files(self, node):
        """Names of the files of the Raft log, oldest first."""
        return sorted(name for name in os.listdir(os.path.join(node.data, "raft")) if name.endswith(".log"))

    def test_follower_down_past_truncation(self):
        c = self.cluster(storage={"segment_size": 4 * MIB})
        with Load(c, writers=3, pause=0.01) as load:
            absent = c.followers()[0]
            absent.kill()
            upright = c.running()
            oldest = self.log_files(upright[0])[0]
            for round_ in range(ROUNDS):
                self.write_much(upright[round_ % 2], round_)
                if round_ % 5 == 4:
                    seal(c)
            left = self.log_files(upright[0])
            self.assertGreater(left[0], oldest, "the Raft log was not truncated: this proves nothing")
            absent.start()
            absent.wait_ready()
            wait_for("the follower has everything", lambda: (absent.size() or 0) >= ROUNDS * 2000, 180)
        self.assertEqual(absent.get(raw_path("bulk/0/1999")).body, b"%06d" % 1999 * 680)
        self.assertEqual(absent.get("/history/" + "bulk%2F3%2F7").json()["versions"][0]["version"], 1)
        check(self, c, load)

    def test_killed_while_it_catches_up(self):
        c = self.cluster(storage={"segment_size": 2 * MIB})
        absent = c.followers()[0]
        absent.kill()
        for round_ in range(ROUNDS // 2):
            self.write_much(c.running()[0], round_)
        seal(c)
        for delay in (0.1, 0.3, 0.6, 1.0):
            absent.start()
            try:
                wait_for("ready", lambda: absent.get("/health", timeout=1).status == 200, delay)
            except AssertionError:
                pass  # still catching up, which is when the kill is to come
            absent.kill()
        absent.start().wait_ready()
        check(self, c)

    def test_the_returned_node_counts_for_quorum(self):
        """After it caught up, one of the other two may die."""
        c = self.cluster(storage={"segment_size": MIB})
        absent = c.followers()[0]
        absent.kill()
        self.write_much(c.running()[0], 0)
        seal(c)
        absent.start().wait_ready()
        next(node for node in c.running() if node is not absent).kill()
        wait_for("a write", lambda: c.running()[0].put("/two-of-three", b"x").status in (200, 201), 90)
        self.assertEqual(absent.get(raw_path("bulk/0/77")).body, b"%06d" % 77 * 680)
        check(self, c)


if __name__ == "__main__":
    helpers.main()
