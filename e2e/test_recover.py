"""The majority is gone for good: `scribe-ledger recover` makes a cluster of its own of the node that is left, and others join it."""

import os
import shutil
import unittest

import helpers
from helpers import LONG, Scenario, cli, wait_for
from load import Load
from truth import check


class Recover(Scenario):
    def test_two_of_three_disks_are_lost(self):
        c = self.cluster()
        with Load(c, writers=3, pause=0.01) as load:
            wait_for("writes", lambda: load.count() > (500 if LONG else 50))
        survivor, *others = c.nodes
        size = c.leader().get("/ledger/manifest").json()["ledger_size"]
        wait_for("the survivor has everything", lambda: (survivor.size() or 0) >= size)

        refused = cli("recover", "--config", survivor.config)
        self.assertNotEqual(refused.returncode, 0, "a running node was recovered")
        self.assertIn(b"in use", refused.stderr)
        survivor.kill()
        refused = cli("recover", "--config", survivor.config)
        self.assertEqual(refused.returncode, 1, refused)
        self.assertIn(b"another member of the cluster answers", refused.stderr)

        for node in others:
            node.kill()
            os.rename(node.data, node.data + "-old")
        survivor.start()
        wait_for("it cannot serve alone", lambda: survivor.get("/health").status == 503)
        survivor.kill()
        done = cli("recover", "--config", survivor.config)
        self.assertEqual(done.returncode, 0, done)
        self.assertIn(b"cluster of its own", done.stdout)
        self.assertEqual(cli("recover", "--config", survivor.config).returncode, 1, "it is the only member already")

        survivor.start().wait_ready()
        cut = self.expect(survivor.get("/kv/cluster/recovered"), 200).json()
        self.assertEqual((cut["node"], len(cut["lost"])), (survivor.number, 2), cut)
        for node in others:  # with empty disks and the configuration they had
            node.start().wait_ready()
        wait_for("three voters", lambda: [m["role"] == "learner" for m in survivor.get("/cluster/members").json()["members"]] == 3 * [False])
        self.expect(self.done(others[1], "PUT", "/after", b"x"), 201)
        check(self, c, load)

        # A lost node on its old data takes part in nothing: it has another history.
        stranger = others[0]
        stranger.kill()
        shutil.rmtree(stranger.data)
        os.rename(stranger.data + "-old", stranger.data)
        stranger.start()
        wait_for("it serves nothing", lambda: not stranger.running() or stranger.get("/health").status == 503)
        self.expect(self.done(survivor, "PUT", "/still", b"x"), 201)
        stranger.kill()
        c.nodes.remove(stranger)
        check(self, c, load)


if __name__ == "__main__":
    helpers.main()
