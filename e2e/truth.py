"""The whole truth: the check that ends every scenario with several writes.

All running nodes are sealed and compared: the same segment files byte for byte,
the same manifest, the same entries numbered from 0 without a gap. Every
acknowledged write is at its sequence number with its version and value, every
other entry of a load belongs to an attempt whose outcome was unknown, and no
attempt is there twice.
"""

import contextlib
import os
import random

from helpers import raw_path, sha256, wait_for
from load import ACKED, REFUSED


def seal(cluster):
    """POST /cluster/seal until a node does it; the ledger size it reports."""
    def sealed():
        for node in cluster.running():
            reply = node.post("/cluster/seal")
            if reply.status == 200:
                return reply
    return wait_for("POST /cluster/seal answers 200", sealed, 120).json()["ledger_size"]


def segment_files(node):
    """{name: sha256} of the segment files on the node's disk."""
    folder = os.path.join(node.data, "segments")
    found = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".seg"):
            with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, name), "rb") as f:  # it may just have been dropped
                found[name] = sha256(f.read())
    return found


def entries(node, start=0, page=10000):
    """All entries of the ledger as this node tells them, page by page."""
    while True:
        reply = node.get(f"/ledger/entries?from={start}&limit={page}")
        if reply.status != 200:
            raise AssertionError(f"node {node.number} /ledger/entries?from={start}: {reply}")
        lines = reply.lines()
        if not lines:
            return
        yield from lines
        start = lines[-1]["seq"] + 1


def check(test, cluster, load=None, sample=1000):
    """The whole truth about the running nodes of cluster; returns the entries."""
    cluster.wait_ready()
    size = seal(cluster)
    nodes = cluster.running()
    wait_for("all nodes at the sealed size", lambda: all((n.size() or 0) >= size for n in nodes), 120)
    compare_manifests(test, nodes, size)
    ledger = compare_entries(test, nodes, size)
    if load is not None:
        check_load(test, ledger, load)
        check_reads(test, nodes, load, sample)
    return ledger


def manifest(node):
    """What all nodes must agree on, and the names of the files that this node should have: a cold segment has none."""
    reply = node.get("/ledger/manifest")
    if reply.status != 200:
        return reply, []
    told = reply.json()
    states = {s["id"]: s.pop("state") for s in told["segments"]}
    return told, [i + ".seg" for i, state in states.items() if state != "cold"]


def compare_manifests(test, nodes, size):
    """The manifests agree, cover the ledger and are backed by the files they name."""
    def settled():
        first, _ = manifest(nodes[0])
        told = [manifest(n) for n in nodes]
        if all(m == first and list(segment_files(n)) == files for n, (m, files) in zip(nodes, told)):
            return first
    first = wait_for("equal manifests, and their files on every node", settled, 120)

    position = 0
    for segment in first["segments"]:
        test.assertEqual(segment["first_seq"], position, "segments leave a gap or overlap")
        position += segment["count"]
    test.assertGreaterEqual(position, size, "segments do not cover the sealed size")
    digests = {s["id"] + ".seg": s["sha256"] for s in first["segments"]}
    for node in nodes:
        files = segment_files(node).items()
        test.assertLessEqual(files, digests.items(), f"node {node.number}: files differ from the manifest")


def compare_entries(test, nodes, size):
    """Every node tells the same entries, numbered from 0 without a gap."""
    ledger = list(entries(nodes[0]))
    test.assertEqual([e["seq"] for e in ledger], list(range(len(ledger))))
    test.assertGreaterEqual(len(ledger), size)
    for node in nodes[1:]:
        for ours, theirs in zip(ledger, entries(node)):
            test.assertEqual(ours, theirs, f"node {node.number} differs from node {nodes[0].number}")
    newest = {}
    for entry in ledger:  # the chain of each key: versions and prev
        key = entry.get("key", entry.get("key_base64"))
        before = newest.get(key)
        test.assertEqual((entry["version"], entry["prev"]),
                         (before["version"] + 1, before["seq"]) if before else (1, None), entry)
        newest[key] = entry
    return ledger


def check_load(test, ledger, load):
    """Nothing acknowledged is lost or changed, nothing was invented or written twice."""
    test.assertEqual(load.violations, [])
    for seq, (key, version, digest) in load.acked.items():
        test.assertLess(seq, len(ledger), f"acknowledged entry {seq} ({key}) is lost")
        entry = ledger[seq]
        test.assertEqual((entry.get("key"), entry["version"], entry["sha256"]), (key, version, digest))
    seen = set()
    for entry in ledger:
        if not entry.get("key", "").startswith(load.prefix + "/"):
            continue
        digest = entry["sha256"]
        test.assertIn(digest, load.attempts, f"nobody wrote {entry}")
        test.assertNotIn(digest, seen, f"written twice: {entry}")
        seen.add(digest)
        what = load.attempts[digest][1]
        test.assertNotEqual(what, REFUSED, f"was refused, yet it is in the ledger: {entry}")
        if what == ACKED:
            test.assertIn(entry["seq"], load.acked, f"acknowledged under another seq: {entry}")


def check_reads(test, nodes, load, sample):
    """GET and /history of acknowledged writes, on every node in turn."""
    wanted = list(load.acked.items())
    random.Random(1).shuffle(wanted)
    for i, (seq, (key, version, digest)) in enumerate(wanted[:sample]):
        node = nodes[i % len(nodes)]
        reply = node.get(raw_path(key) + f"?version={version}")
        test.assertEqual((reply.status, sha256(reply.body)), (200, digest), f"node {node.number} {key} v{version}")
        test.assertEqual(reply.headers["Scribe-Seq"], str(seq))
    for i, (key, seq) in enumerate(load.latest.items()):
        node = nodes[i % len(nodes)]
        history = node.get("/history/" + raw_path(key).removeprefix("/kv/") + f"?limit=1000").json()["versions"]
        test.assertGreaterEqual(history[0]["seq"], seq)
        test.assertIn(seq, [version["seq"] for version in history], f"{key}: /history has lost entry {seq}")
