"""POST /batch with 100,000 NDJSON lines, streamed both ways at once."""

import concurrent.futures
import time

import helpers
from helpers import UNSETTLED, Scenario, raw_path
from load import stream_batch
from truth import check

LINES = 100_000


def codes(answers):
    return [a["error"]["code"] for a in answers if "error" in a]


class Batch(Scenario):
    def streamed(self, stream):
        """A cluster, and what stream got from it: [(status, answers)]; begun again on a new one if an election left lines without an outcome."""
        for _ in range(3):
            c = self.cluster()
            term, got = c.term(), stream(c)
            if c.term() == term or not any(code in UNSETTLED for _, answers in got for code in codes(answers)):
                break
        return c, got

    def test_a_hundred_thousand_lines(self):
        body = b"".join(b'{"op":"put","key":"batch/%06d","value":"value %d"}\n' % (i, i) for i in range(LINES))

        def stream(c):
            follower, start = c.followers()[0], time.monotonic()
            got = stream_batch(follower.port, body)
            print(f"{LINES / (time.monotonic() - start):,.0f} entries/s through a follower", end=" ", flush=True)
            return [got]
        c, [(status, answers)] = self.streamed(stream)
        self.assertEqual(status, 200)
        self.assertEqual(len(answers), LINES)
        self.assertEqual([a.get("key") for a in answers], [f"batch/{i:06d}" for i in range(LINES)], "answers in order")
        early = [i for i in range(1, LINES) if answers[i]["seq"] < answers[i - 1]["seq"]]
        self.assertEqual(early[:10], [], "lines that were applied before the line above them")
        for i in range(0, LINES, LINES // 50):
            self.assertEqual(c.nodes[i % 3].get(raw_path(f"batch/{i:06d}")).body, f"value {i}".encode())
        self.assertEqual(len(check(self, c)), LINES)

    def test_streams_side_by_side_with_failing_lines(self):
        def one(c, i):
            lines = []
            for j in range(3000):
                lines.append('{"op":"put","key":"s%d/%d","value":"x"}' % (i, j // 2))
                if j % 100 == 0:
                    lines.append('{"op":"put","key":"s%d/0","value":"x","if_absent":true}' % i)
            return stream_batch(c.nodes[i % 3].port, "\n".join(lines).encode())

        def stream(c):
            with concurrent.futures.ThreadPoolExecutor(6) as pool:
                return list(pool.map(one, [c] * 6, range(6)))
        c, results = self.streamed(stream)
        for status, answers in results:
            self.assertEqual((status, len(answers)), (200, 3030))
            self.assertEqual(codes(answers), ["precondition_failed"] * 30)
        self.assertEqual(len(check(self, c)), 6 * 3000)


if __name__ == "__main__":
    helpers.main()
