"""Bounded memory: 64 clients send the largest value at once, and read it at once; slow clients cost little."""

import os
import socket
import threading
import time
import unittest

import helpers
from helpers import LONG, MAX_VALUE, MIB, Scenario, raw_path, sha256
from truth import check

CLIENTS = 64
LIMIT = 1536 * MIB


class Memory(Scenario):
    def all_at_once(self, call):
        """call(i) from 64 threads; the replies in order."""
        replies = [None] * CLIENTS

        def one(i):
            replies[i] = call(i)
        threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        return replies

    def flood(self, n):
        c = self.cluster(n)
        value = os.urandom(MAX_VALUE)
        start = time.monotonic()
        puts = self.all_at_once(lambda i: c.nodes[i % n].put(raw_path(f"v{i}"), value, timeout=240))
        took = time.monotonic() - start
        for reply in puts:
            self.expect(reply, (201, 429, 503, 504))
        stored = [i for i, reply in enumerate(puts) if reply.status == 201]
        after_puts = [node.peak_rss() // MIB for node in c.nodes]
        gets = self.all_at_once(lambda i: c.nodes[i % n].get(raw_path(f"v{stored[i % len(stored)]}"), timeout=240))
        for reply in gets:
            self.expect(reply, (200, 429, 503))
            if reply.status == 200:
                self.assertEqual(sha256(reply.body), sha256(value))
        peaks = [node.peak_rss() // MIB for node in c.nodes]
        print(f"{len(stored)} of {CLIENTS} values of 32 MiB stored in {took:.1f} s; peak RSS after the writes "
              f"{after_puts} MiB, after the reads {peaks} MiB", end=" ", flush=True)
        self.assertGreater(len(stored), 0)
        self.assertLess(max(peaks), LIMIT // MIB)
        check(self, c)

    def test_one_node(self):
        self.flood(1)

    @unittest.skipUnless(LONG, "three nodes with --long")
    def test_three_nodes(self):
        self.flood(3)

    def test_slow_clients_hold_no_memory_for_bytes_they_did_not_send(self):
        """64 connections announce the largest value and send 1 KiB of it; others are still served."""
        c = self.cluster(1)
        n = c.nodes[0]
        n.put("/k", b"x")
        before, socks = n.peak_rss(), []
        for i in range(CLIENTS):
            sock = socket.create_connection(("127.0.0.1", n.port))
            sock.sendall(f"PUT /slow{i} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_VALUE}\r\n\r\n".encode())
            sock.sendall(b"x" * 1024)
            socks.append(sock)
        self.expect(n.get("/k"), 200)
        self.expect(n.put("/k", b"y", timeout=40), (200, 429, 503))
        self.assertLess(n.peak_rss() - before, 1024 * MIB)
        for sock in socks:
            sock.close()
        self.expect(n.put("/k", b"z", timeout=40), 200)
        check(self, c)


if __name__ == "__main__":
    helpers.main()
