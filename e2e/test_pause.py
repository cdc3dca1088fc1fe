"""SIGSTOP of the leader: another one leads; what the old one is asked while it stands still, it never answers with an old value."""

import socket
import time

import helpers
from helpers import LONG, Scenario, wait_for, within
from load import time_to_next_ack
from truth import check

ROUNDS = 100 if LONG else 10


def ask(node, path):
    """Send a GET on a connection of its own; the answer is read later, when the process runs again."""
    s = socket.create_connection(("127.0.0.1", node.port), timeout=30)
    s.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode())
    return s


def answer(s):
    """Status and body of what comes on a connection until it ends."""
    data = b""
    while chunk := s.recv(65536):
        data += chunk
    s.close()
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]) if data else 0, body


class Pause(Scenario):
    def test_no_stale_read_after_resume(self):
        """The question comes after the write was acknowledged elsewhere, so the answer is the new value, or none."""
        c = self.cluster(3, api={"read_timeout_secs": 5})
        self.statuses = {}
        for i in range(ROUNDS):
            within(5, lambda: self.pause(c, i))
        print(f"{ROUNDS} pauses; answers: {self.statuses}", end=" ", flush=True)
        check(self, c)

    def pause(self, c, i):
        """How long nobody led while the leader stood still."""
        old = c.leader()
        others = [n for n in c.nodes if n is not old]
        self.expect(self.done(old, "PUT", "/k", b"old %d" % i), (200, 201))
        warm = [ask(old, "/k") for _ in range(4)]  # whatever is under way when it stops
        old.pause()
        try:
            took = time_to_next_ack(others)
            wait_for("the write elsewhere", lambda: others[0].put("/k", b"new %d" % i).status == 200)
            asked = [ask(old, path) for path in ("/k", "/k", "/kv/k?consistency=linearizable")]
            time.sleep((0, 0.5, 3)[i % 3])
        finally:
            old.resume()
        for s in asked:
            status, body = answer(s)
            self.statuses[status] = self.statuses.get(status, 0) + 1
            self.assertIn(status, (200, 503, 504))
            if status == 200:
                self.assertEqual(body, b"new %d" % i, "a stale read")
        for s in warm:
            status, body = answer(s)
            self.assertTrue(status != 200 or body in (b"old %d" % i, b"new %d" % i), (status, body))
        old.wait_ready()
        return took


if __name__ == "__main__":
    helpers.main()
