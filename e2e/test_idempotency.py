"""Idempotency-Key: a repeat gives the first answer, across leader loss, restarts and seals."""

import threading

import helpers
from helpers import Scenario, raw_path, wait_for
from load import ACKED, fate
from truth import check


class Idempotency(Scenario):
    def put_until_acked(self, c, key, value, token):
        """Repeat one request with its Idempotency-Key on any node until it is acknowledged."""
        def acked():
            for node in c.running():
                reply = node.put(raw_path(key), value, headers={"Idempotency-Key": token}, timeout=35)
                if fate(reply) == ACKED:
                    return reply
        return wait_for(f"{key} acknowledged", acked, 60)

    def test_repeats_across_everything(self):
        c = self.cluster()
        first = self.put_until_acked(c, "once", b"value", "token-1")
        self.put_until_acked(c, "once", b"newer", "token-2")

        def repeat(when):
            for node in c.running():
                again = self.put_until_acked(c, "once", b"value", "token-1")
                self.assertEqual((again.status, again.json(), again.headers["ETag"]),
                                 (first.status, first.json(), first.headers["ETag"]), f"{when}, node {node.number}")
        repeat("at once")
        leader = c.leader()
        leader.kill()
        wait_for("another leader", lambda: c.leader() is not leader)
        repeat("after the leader's death")
        leader.start().wait_ready()
        self.expect(self.done(c.nodes[0], "POST", "/cluster/seal"), 200)
        repeat("after a seal")
        c.kill()
        c.start()
        repeat("after kill -9 of all")
        self.assertEqual(c.stop(), [0, 0, 0])
        c.start()
        repeat("after a clean restart")
        self.assertEqual(len(check(self, c)), 2)

    def test_retries_under_leader_loss_append_once(self):
        """Writers repeat each unknown outcome under the same token while leaders die."""
        c = self.cluster()
        done, written, mutex = threading.Event(), {}, threading.Lock()

        def writer(w):
            turn = 0
            while not done.is_set():
                turn += 1
                key = f"w{w}/{turn}"
                entry = self.put_until_acked(c, key, key.encode(), f"token {key}").json()
                with mutex:
                    written[key] = entry["seq"]
        threads = [threading.Thread(target=writer, args=(w,), daemon=True) for w in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            enough = len(written) + 50
            wait_for("50 more writes", lambda: len(written) >= enough, 120)
            leader = c.leader()
            leader.kill()
            leader.start().wait_ready()
        done.set()
        for thread in threads:
            thread.join(60)
        ledger = check(self, c)
        self.assertEqual(sorted(e["key"] for e in ledger), sorted(written), "a retry was appended twice, or is lost")
        self.assertEqual({e["key"]: e["seq"] for e in ledger}, written)


if __name__ == "__main__":
    helpers.main()
