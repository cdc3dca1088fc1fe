"""Every row of API.md's Errors that can be provoked from outside, and what a request must never do."""

import json
import socket

import helpers
from helpers import JSON, MAX_VALUE, NDJSON, Scenario, raw_path, wait_for

RESERVED = "health metrics cluster verify history keys batch kv ledger region ui".split()


def raw_exchange(port, data, timeout=10.0):
    """Send bytes as they are; everything the server says until it closes or falls silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock:
        sock.sendall(data)
        answer, closed = b"", False
        try:
            while not closed:
                chunk = sock.recv(65536)
                answer, closed = answer + chunk, not chunk
                sock.settimeout(5.0)
        except (TimeoutError, ConnectionResetError) as err:
            closed = isinstance(err, ConnectionResetError)
        return answer, closed


class OneNode(Scenario):
    @classmethod
    def setUpClass(cls):
        cls.shared = helpers.Cluster(1, api={"read_timeout_secs": 1}).start()
        cls.n = cls.shared.nodes[0]

    @classmethod
    def tearDownClass(cls):
        cls.shared.close()

    def refuse(self, reply, status, code=None):
        """An error reply of the right shape that tells no paths and no stack; nothing was appended."""
        self.expect(reply, status, code)
        error = reply.json()["error"]
        self.assertTrue(error["code"] and error["message"], reply)
        self.assertNotIn(self.shared.folder, error["message"])
        self.assertNotIn("goroutine", error["message"])
        self.assertTrue(reply.headers["X-Request-Id"], "every reply carries X-Request-Id")
        self.assertTrue(reply.headers["Content-Type"].startswith("application/json"), reply.headers)
        return reply

    def unchanged(self, call, status, code=None):
        before = self.n.size()
        reply = self.refuse(call(), status, code)
        self.assertEqual(self.n.size(), before, "a refused write was appended")
        return reply

    def test_reserved_keys(self):
        for name in RESERVED:
            if name != "kv":
                self.unchanged(lambda: self.n.put(f"/{name}", b"x"), 400, "reserved_key")
                self.unchanged(lambda: self.n.put(f"/{name}/some/thing", b"x"), 400, "reserved_key")
                self.unchanged(lambda: self.n.delete(f"/{name}/x"), 400, "reserved_key")
        self.assertIn("/kv/health", self.n.put("/health", b"x").body.decode())
        self.unchanged(lambda: self.n.put("/%68ealth", b"x"), 400, "reserved_key")
        self.unchanged(lambda: self.n.put("/health%2Fx", b"x"), 400, "reserved_key")
        self.expect(self.n.put("/kv/health", b"mine"), (200, 201))
        self.assertEqual(self.n.get("/kv/health").body, b"mine")
        self.expect(self.n.put("/healthy", b"not reserved"), (200, 201))
        self.expect(self.n.put("/a/health", b"not reserved"), (200, 201))

    def test_empty_oversized_and_malformed_keys(self):
        self.unchanged(lambda: self.n.put("/", b"x"), 400)
        self.unchanged(lambda: self.n.put("/kv/", b"x"), 400)
        self.unchanged(lambda: self.n.put("/" + "k" * 1025, b"x"), 400)
        self.unchanged(lambda: self.n.put("/" + "%6b" * 1025, b"x"), 400)
        self.expect(self.n.put("/" + "%6b" * 1024, b"x"), (200, 201))
        self.assertEqual(self.n.get("/" + "k" * 1024).body, b"x")
        before = self.n.size()
        for path in ("/%zz", "/a%", "/a%4"):
            self.expect(self.n.put(path, b"x"), 400)
        self.assertEqual(self.n.size(), before)

    def test_not_found_and_deleted(self):
        self.refuse(self.n.get("/absent"), 404, "not_found")
        self.refuse(self.n.get("/history/absent"), 404, "not_found")
        self.unchanged(lambda: self.n.delete("/absent"), 404)
        self.n.put("/gone", b"x")
        self.refuse(self.n.get("/gone?version=9"), 404, "not_found")
        seq = self.n.delete("/gone").json()["seq"]
        self.refuse(self.n.get("/gone"), 404)
        self.unchanged(lambda: self.n.delete("/gone"), 404)
        for query in ("version=2", f"seq={seq}", f"at={seq}"):
            self.refuse(self.n.get(f"/gone?{query}"), 404, "deleted")
        other = self.n.put("/other", b"x").json()["seq"]
        self.refuse(self.n.get(f"/gone?seq={other}"), 404)

    def test_malformed_parameters(self):
        self.n.put("/p", b"x")
        for query in ("version=x", "version=0", "version=-1", "seq=x", "seq=-1", "seq=99999999999999999999999",
                      "at=yesterday", "consistency=strong", "min_seq=x"):
            self.refuse(self.n.get(f"/p?{query}"), 400)
        for path in ("/history/p?limit=x", "/history/p?before=x", "/keys?limit=x", "/keys?limit=-1",
                     "/ledger/entries?from=x"):
            self.refuse(self.n.get(path), 400)

    def test_preconditions(self):
        seq = self.n.put("/cond", b"x").json()["seq"]
        for headers in ({"If-None-Match": "*"}, {"If-Match": f'"{seq + 1000}"'}):
            reply = self.unchanged(lambda: self.n.put("/cond", b"y", headers=headers), 412, "precondition_failed")
            self.assertEqual(reply.headers["ETag"], f'"{seq}"')
        self.unchanged(lambda: self.n.put("/never", b"y", headers={"If-Match": '"1"'}), 412, "precondition_failed")
        self.expect(self.n.put("/cond", b"y", headers={"If-Match": f'"{seq}"'}), 200)

    def test_digests(self):
        wrong = "sha-256=:" + "A" * 43 + "=:"
        for name in ("Content-Digest", "Repr-Digest"):
            self.unchanged(lambda: self.n.put("/digest", b"x", headers={name: wrong}), 400, "digest_mismatch")
        self.refuse(self.n.get("/digest"), 404, "not_found")
        right = "sha-256=:LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=:"
        self.expect(self.n.put("/digest", b"x", headers={"Content-Digest": right}), 201)

    def test_idempotency_keys(self):
        self.unchanged(lambda: self.n.put("/i", b"x", headers={"Idempotency-Key": "k" * 65}), 400)
        headers = {"Idempotency-Key": "k" * 64}
        first = self.expect(self.n.put("/i", b"x", headers=headers), 201)
        size = self.n.size()
        again = self.n.put("/i", b"x", headers=headers)
        self.assertEqual((again.status, again.json(), self.n.size()), (201, first.json(), size))

    def test_value_too_large_is_refused_before_the_body(self):
        head = f"PUT /big HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_VALUE + 1}\r\n"
        for extra in ("", "Expect: 100-continue\r\n"):
            answer, _ = raw_exchange(self.n.port, (head + extra + "\r\n").encode())
            self.assertTrue(answer.startswith(b"HTTP/1.1 413"), answer[:200])
            self.assertIn(b"value_too_large", answer)
        chunks = (b"x" * helpers.MIB for _ in range(33))
        reply = self.n.request("PUT", "/big", body=chunks)
        self.assertIn(reply.status, (413, 0), reply)  # 0: closed on us while we were still sending
        self.refuse(self.n.get("/big"), 404, "not_found")

    def test_batch_errors(self):
        def ops(*lines):
            return json.dumps({"ops": lines})
        self.n.put("/have", b"x")
        for body in ("", "{", "[]", '{"ops": 3}', ops({"op": "rename", "key": "a"}), ops({"op": "put", "value": "x"}),
                     ops({"op": "put", "key": "", "value": "x"}), ops({"op": "put", "key": "a", "value_base64": "?"})):
            self.unchanged(lambda: self.n.post("/batch", body, headers=JSON), 400)
        reply = self.unchanged(lambda: self.n.post("/batch", ops(
            {"op": "put", "key": "atomic", "value": "x"},
            {"op": "put", "key": "have", "value": "y", "if_absent": True}), headers=JSON), 412)
        self.assertEqual(reply.json()["failed_op"], 1)
        self.refuse(self.n.get("/atomic"), 404, "not_found")

    def test_ndjson_errors_stand_in_their_place(self):
        lines = ['{"op":"put","key":"nd1","value":"x"}', "not json", '{"op":"fly","key":"nd2"}',
                 '{"op":"put","key":"nd1","value":"y","if_absent":true}', '{"op":"delete","key":"nowhere"}',
                 '{"op":"put","key":"nd3","value":"z"}']
        answers = self.expect(self.n.post("/batch", "\n".join(lines), headers=NDJSON), 200).lines()
        self.assertEqual(len(answers), len(lines), answers)
        self.assertEqual(["error" in a for a in answers], [False, True, True, True, True, False], answers)
        self.assertEqual(answers[3]["error"]["code"], "precondition_failed")
        self.assertEqual(answers[4]["error"]["code"], "not_found")

    def test_not_yet_applied(self):
        self.n.put("/m", b"x")
        self.refuse(self.n.get("/m?consistency=stale&min_seq=1000000000"), 504, "not_yet_applied")

    def test_length_and_transfer_encoding_together(self):
        before = self.n.size()
        smuggled = (b"PUT /smuggle HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
                    b"0\r\n\r\nPUT /inner HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
        answer, closed = raw_exchange(self.n.port, smuggled)
        self.assertTrue(answer.startswith(b"HTTP/1.1 400"), answer[:200])
        self.assertTrue(closed, "the connection must close")
        self.assertEqual(answer.count(b"HTTP/1.1 "), 1, "the smuggled request was answered")
        self.assertEqual(self.n.size(), before)

    def test_request_ids(self):
        self.assertEqual(self.n.get("/health", headers={"X-Request-Id": "abc-123"}).headers["X-Request-Id"], "abc-123")
        for bad in ("x" * 5000, "a b\tc", "<script>"):
            echoed = self.n.get("/absent", headers={"X-Request-Id": bad}).headers["X-Request-Id"]
            self.assertTrue(echoed and echoed != bad, bad[:20])

    def test_never_a_redirect(self):
        for path in ("//a", "/a//b/../c", "/kv//a", "/health/", "/keys/", "/batch/", "/ui", "/cluster", "/."):
            for method in ("GET", "PUT", "POST", "DELETE"):
                status = self.n.request(method, path, body=b"x" if method != "GET" else None).status
                self.assertFalse(300 <= status < 400 or status >= 500 or status == 0, f"{method} {path}: {status}")


class Deletes(Scenario):
    def test_deletes_disabled(self):
        n = self.node(api={"allow_delete": False})
        n.put("/k", b"x")
        self.expect(n.delete("/k"), 405, "deletes_disabled")
        self.assertEqual(n.get("/k").body, b"x")


class WithoutQuorum(Scenario):
    def test_one_of_three(self):
        c = self.cluster(3, api={"write_timeout_secs": 2, "read_timeout_secs": 2})
        alone = c.leader()
        self.expect(self.done(alone, "PUT", "/before", b"x"), 201)
        c.kill(c.followers())
        wait_for("the leader steps down", lambda: alone.get("/cluster/leader").status == 503)
        refused = self.expect(alone.put("/k", b"x"), 503, "no_leader")
        self.assertTrue(refused.headers["Retry-After"])
        self.expect(alone.get("/before"), 503)
        stale = self.expect(alone.get("/before?consistency=stale"), 200)
        self.assertEqual(stale.body, b"x")
        self.assertRegex(stale.headers["Scribe-Last-Contact"], r"^-?\d+$")
        self.expect(alone.get("/health"), 503)
        self.expect(alone.get("/health/live"), 200)

    def test_unknown_outcome(self):
        """A leader whose followers stand still cannot tell what becomes of a write it took."""
        c = self.cluster(3, api={"write_timeout_secs": 2})
        for _ in range(5):  # it must not have stepped down by the time of the write
            c.wait_ready()
            leader, followers = c.leader(), c.followers()
            for node in followers:
                node.pause()
            reply = leader.put(raw_path("limbo"), b"x", timeout=20)
            for node in followers:
                node.resume()
            if reply.code() != "no_leader":
                break
        self.expect(reply, 504, "unknown_outcome")
        c.wait_ready()
        self.expect(c.leader().get(raw_path("limbo")), (200, 404))


if __name__ == "__main__":
    helpers.main()
