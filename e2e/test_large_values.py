"""Values from 10 MB to the largest allowed, and uploads whose leader dies: whole or absent."""

import os
import random
import socket
import threading

import helpers
from helpers import LONG, MAX_VALUE, MIB, Scenario, raw_path, sha256, wait_for
from truth import check


class LargeValues(Scenario):
    def test_sizes(self):
        c = self.cluster()
        values = {}
        for i, size in enumerate((0, 1, 512 * 1024, 512 * 1024 + 1, 10_000_000, 16 * MIB, MAX_VALUE)):
            values[f"v{size}"] = os.urandom(size)
            entry = self.expect(self.done(c.nodes[i % 3], "PUT", f"/v{size}", values[f"v{size}"]), 201).json()
            self.assertEqual((entry["size"], entry["sha256"]), (size, sha256(values[f"v{size}"])))
        check(self, c)
        for node in c.nodes:
            for key, value in values.items():
                self.assertEqual(sha256(self.expect(node.get("/" + key), 200).body), sha256(value), key)
            part = self.expect(node.get(f"/v{MAX_VALUE}", headers={"Range": f"bytes={9 * MIB}-{9 * MIB + 99}"}), 206)
            self.assertEqual(part.body, values[f"v{MAX_VALUE}"][9 * MIB:9 * MIB + 100])
        self.expect(c.nodes[0].put("/over", bytes(MAX_VALUE + 1)), (413, 0))
        self.expect(c.nodes[0].get("/over"), 404)

    def test_chunked_upload_with_digest(self):
        n = self.node()
        value = os.urandom(10 * MIB)
        pieces = (value[i:i + MIB] for i in range(0, len(value), MIB))
        self.expect(n.request("PUT", "/chunked", body=pieces), 201)
        self.assertEqual(sha256(n.get("/chunked").body), sha256(value))

    def test_large_values_across_seal_and_restart(self):
        """Uploads under way while segments are sealed all the time, then kill -9 of the node."""
        c = self.cluster(1, storage={"segment_size": 4 * MIB})
        n = c.nodes[0]
        done = threading.Event()

        def sealer():
            while not done.wait(0.05):
                n.post("/cluster/seal")
        thread = threading.Thread(target=sealer)
        thread.start()
        values = {f"/big{i}": os.urandom(11 * MIB + i) for i in range(4)}
        replies = {key: n.put(key, value) for key, value in values.items()}
        done.set()
        thread.join()
        for reply in replies.values():
            self.expect(reply, 201)
        n.kill()
        n.start().wait_ready()
        for key, value in values.items():
            self.assertEqual(sha256(n.get(key).body), sha256(value), key)
        check(self, c)

    def test_half_an_upload_is_nothing(self):
        """The leader dies, and later the client, before all of the value was sent."""
        c = self.cluster()
        for round_, through_leader in enumerate((True, False)):
            leader = c.leader()
            target = leader if through_leader else c.followers()[0]
            with socket.create_connection(("127.0.0.1", target.port)) as sock:
                sock.sendall(f"PUT /half{round_} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_VALUE}\r\n\r\n".encode())
                sock.sendall(os.urandom(20 * MIB))
                leader.kill()
            wait_for("another leader", lambda: c.leader() is not leader)
            leader.start().wait_ready()
            for node in c.nodes:
                self.expect(node.get(f"/half{round_}"), 404, "not_found")
        check(self, c)

    def test_leader_killed_while_a_value_is_uploaded(self):
        rng = random.Random(7)
        c = self.cluster()
        fates = []
        for turn in range(12 if LONG else 4):
            value, replies = os.urandom(MAX_VALUE), []
            leader, follower = c.leader(), c.followers()[0]
            key = raw_path(f"upload{turn}")
            thread = threading.Thread(target=lambda: replies.append(follower.put(key, value, timeout=120)))
            thread.start()
            threading.Event().wait(rng.uniform(0.02, 0.4))  # a random moment inside the upload
            leader.kill()
            thread.join()
            leader.start()
            c.wait_ready()
            self.expect(replies[0], (201, 503, 504))
            for node in c.nodes:
                got = self.expect(node.get(key), (200, 404))
                if got.status == 200:
                    self.assertEqual(sha256(got.body), sha256(value), "a value is whole or absent")
                    self.assertNotEqual(replies[0].status, 503, "503 says that it was not applied")
                else:
                    self.assertNotEqual(replies[0].status, 201, "an acknowledged value is lost")
            fates.append(f"{replies[0].status}/{got.status}")
        print("reply/found:", *fates, end=" ", flush=True)
        check(self, c)


if __name__ == "__main__":
    helpers.main()
