"""POST /batch with 100,000 NDJSON lines, streamed both ways at once."""

import threading
import time

import helpers
from helpers import Scenario, raw_path
from load import stream_batch
from truth import check

LINES = 100_000


class Batch(Scenario):
    def test_a_hundred_thousand_lines(self):
        c = self.cluster()
        follower = c.followers()[0]
        body = b"".join(b'{"op":"put","key":"batch/%06d","value":"value %d"}\n' % (i, i) for i in range(LINES))
        start = time.monotonic()
        status, answers = stream_batch(follower.port, body)
        took = time.monotonic() - start
        print(f"{LINES / took:,.0f} entries/s through a follower", end=" ", flush=True)
        self.assertEqual(status, 200)
        self.assertEqual(len(answers), LINES)
        self.assertEqual([a.get("key") for a in answers], [f"batch/{i:06d}" for i in range(LINES)], "answers in order")
        early = [i for i in range(1, LINES) if answers[i]["seq"] < answers[i - 1]["seq"]]
        self.assertEqual(early[:10], [], "lines that were applied before the line above them")
        for i in range(0, LINES, LINES // 50):
            self.assertEqual(c.nodes[i % 3].get(raw_path(f"batch/{i:06d}")).body, f"value {i}".encode())
        self.assertEqual(len(check(self, c)), LINES)

    def test_streams_side_by_side_with_failing_lines(self):
        c = self.cluster()
        results = {}

        def one(i):
            lines = []
            for j in range(3000):
                lines.append('{"op":"put","key":"s%d/%d","value":"x"}' % (i, j // 2))
                if j % 100 == 0:
                    lines.append('{"op":"put","key":"s%d/0","value":"x","if_absent":true}' % i)
            results[i] = stream_batch(c.nodes[i % 3].port, "\n".join(lines).encode())
        threads = [threading.Thread(target=one, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i in range(6):
            status, answers = results[i]
            self.assertEqual((status, len(answers)), (200, 3030))
            errors = [a["error"]["code"] for a in answers if "error" in a]
            self.assertEqual(errors, ["precondition_failed"] * 30)
        self.assertEqual(len(check(self, c)), 6 * 3000)


if __name__ == "__main__":
    helpers.main()
