"""Nodes join and leave a running cluster, by curl, under load, and no acknowledged write is lost."""

import json
import os
import shutil
import subprocess
import threading
import time
import unittest

import helpers
from helpers import UNSETTLED, Node, Scenario, free_port, wait_for
from truth import check


def curl(node, path, body=None):
    """The status and the JSON that curl gets from a node; a body is posted."""
    command = ["curl", "-sS", "-m", "30", "-w", "\n%{http_code}", node.url + path]
    if body is not None:
        command += ["-X", "POST", "-d", json.dumps(body)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    text, status = done.stdout.decode().rsplit("\n", 1)
    return int(status), json.loads(text)


class Load:
    """Writes through every node that is a member, until stopped; remembers what was acknowledged."""

    def __init__(self, nodes):
        self.nodes, self.acknowledged, self.on = nodes, {}, True
        self.threads = [threading.Thread(target=self.write, args=(i,), daemon=True) for i in range(4)]
        for thread in self.threads:
            thread.start()

    def write(self, number):
        count = 0
        turn = number
        while self.on:
            count += 1
            key, value = f"load-{number}-{count}", os.urandom(64).hex()
            while self.on:
                turn += 1
                node = self.nodes[turn % len(self.nodes)]
                client = helpers.Client(node.port)
                reply = client.request("PUT", "/" + key, value.encode(), headers={"Idempotency-Key": key}, timeout=10)
                client.forget()
                if reply.status in (200, 201):
                    self.acknowledged[key] = value
                    break
                time.sleep(0.02)

    def stop(self):
        self.on = False
        for thread in self.threads:
            thread.join(30)
        return self.acknowledged


@unittest.skipUnless(shutil.which("curl"), "needs curl")
class Membership(Scenario):
    def extra(self, c, number, seeds, **cluster):
        """A node that waits to be taken in, or finds the cluster by its seeds."""
        http, raft = free_port(), free_port()
        own = {
            "node": {"id": number, "address": "127.0.0.1", "data_dir": os.path.join(c.folder, f"node-{number}")},
            "network": {"listen_addr": f"127.0.0.1:{http}", "client_port": http, "raft_port": raft, "seed_peers": seeds},
            "cluster": {"expect": len(seeds) + 1, **cluster},
        }
        node = Node(number, c.folder, own)
        c.nodes.append(node)
        return node

    def members(self, node):
        status, reply = curl(node, "/cluster/members")
        self.assertEqual(status, 200, reply)
        return {m["id"]: m for m in reply["members"]}

    def change(self, node, what, body):
        """Ask a node to have another one join or leave until there is an outcome; its status and JSON."""
        def told():
            status, reply = curl(node, "/cluster/" + what, body)
            return reply.get("error", {}).get("code") not in UNSETTLED and (status, reply)
        return wait_for(f"the outcome of {what}", told, 120)

    def wait_role(self, nodes, number, role):
        for node in nodes:
            wait_for(f"node {number} is {role} for node {node.number}",
                     lambda: self.members(node).get(number, {}).get("role") in role.split("|"))

    def test_grow_and_shrink_under_load(self):
        c = self.cluster()
        first = c.nodes[:3]
        writers = list(first)
        load = Load(writers)
        raft = lambda node: f"127.0.0.1:{node.sections['network']['raft_port']}"
        join = lambda node, **more: {"id": node.number, "http": node.url, "raft": raft(node), **more}

        nobody = f"127.0.0.1:{free_port()}"
        fourth = self.extra(c, 4, [nobody]).start()  # waits: it knows nobody
        wait_for("node 4 answers", lambda: fourth.get("/health/live", timeout=2).status == 200)
        self.assertEqual(curl(first[0], "/cluster/join", {"id": 4, "raft": nobody})[0], 502)
        for node, wrong in ((2, 409), (5, 400)):  # a taken id, and that of nobody
            status, error = curl(first[1], "/cluster/join", {"id": node, "raft": raft(fourth)})
            self.assertEqual(status, wrong, error)
        self.assertEqual(self.change(first[1], "join", join(fourth, voter=True))[0], 200)
        fourth.wait_ready()
        self.wait_role(first + [fourth], 4, "follower|leader")
        fifth = self.extra(c, 5, [raft(first[0]), raft(first[1])]).start().wait_ready()  # comes by itself
        self.wait_role(first + [fourth, fifth], 5, "follower|leader")
        writers += [fourth, fifth]

        leader = c.leader()  # leaves, and hands over first
        writers.remove(leader)
        self.assertEqual(self.change(fourth, "leave", {"id": leader.number})[0], 200)
        wait_for("the leader that left says so", lambda: (reply := leader.get("/health", timeout=2)).status == 503
                 and "removed" in reply.json()["checks"]["raft"])
        self.assertEqual(leader.get("/load-0-1").code(), "removed")
        self.assertEqual(leader.stop(), 0)
        leader.start()
        wait_for("it still says so", lambda: (reply := leader.get("/health", timeout=2)).status == 503
                 and reply.json()["role"] == "removed")

        chief = c.leader()
        dead = next(node for node in writers if node is not chief)
        writers.remove(dead)
        dead.kill()
        for node in writers:
            wait_for("the dead node is dead", lambda: self.members(node)[dead.number]["state"] == "dead")
        self.assertEqual(self.change(writers[0], "leave", {"id": dead.number})[0], 200)
        wait_for("nobody else is a member", lambda: sorted(self.members(writers[0])) == sorted(node.number for node in writers))

        self.assertEqual(self.change(writers[0], "join", join(leader, voter=False))[0], 200)
        leader.wait_ready()
        self.wait_role(writers + [leader], leader.number, "learner")
        self.assertEqual(self.change(leader, "leave", {"id": 77})[1]["error"]["code"], "unknown_node")

        wait_for("100 writes", lambda: len(load.acknowledged) > 100)
        acknowledged = load.stop()
        for node in writers + [leader]:
            for key, value in acknowledged.items():
                reply = node.get("/" + key)
                self.assertEqual((reply.status, reply.body.decode()), (200, value), f"{key} on node {node.number}")
        c.nodes = writers + [leader]
        check(self, c)
        print(f"{len(acknowledged)} writes acknowledged meanwhile, all there on 4 nodes", end=" ", flush=True)

    def test_last_voter_stays(self):
        n = self.node()
        self.expect(n.put("/k", b"x"), 201)
        status, error = curl(n, "/cluster/leave", {"id": 1})
        self.assertEqual((status, error["error"]["code"]), (409, "would_lose_quorum"))
        self.expect(n.get("/k"), 200)

    def test_learner_by_configuration(self):
        c = self.cluster(2)
        learner = self.extra(c, 3, [f"127.0.0.1:{c.nodes[0].sections['network']['raft_port']}"], voter=False)
        learner.start().wait_ready()
        self.expect(self.done(learner, "PUT", "/k", b"x"), 201)
        self.assertEqual(learner.get("/k").body, b"x")
        status, error = curl(c.nodes[0], "/cluster/join", {
            "id": 3, "raft": f"127.0.0.1:{learner.sections['network']['raft_port']}", "voter": True})
        self.assertEqual((status, error["error"]["code"]), (409, "learner"))
        self.wait_role(c.nodes, 3, "learner")


if __name__ == "__main__":
    helpers.main()
