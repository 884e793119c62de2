"""goldfinch worker --devices: a parent and the processes of its workers."""

import os
import pathlib
import re
import signal

from cluster import ClusterTest, wait_until
from goldfinch import GREEDY

PROMPT = "And he said unto them, "


def children_of(pid):
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


class SupervisedTest(ClusterTest):
    def setUp(self):
        super().setUp()
        self.cluster.start_coordinator(regroup_wait=60)
        self.parent = self.cluster.start_worker("machine", devices="cpu")
        self.cluster.wait_ready()

    def child(self):
        """The process of the worker, where there is one NUMA node; else of one of them."""
        return wait_until(lambda: children_of(self.parent.pid), "a child")[0]

    def test_a_worker_that_dies_comes_back(self):
        client = self.cluster.client()
        request = {"max_tokens": 3000, "ignore_eos": True, "sampling": GREEDY}
        expected = [token.id for token in client.generate(PROMPT, **request).tokens]
        stream = client.stream(PROMPT, **request)
        tokens = [token.id for token in next(stream).tokens]
        worker = self.cluster.info().groups[0].stages[0].worker
        self.assertTrue(worker.startswith("machine/"), worker)
        os.kill(self.child(), signal.SIGKILL)
        again = self.cluster.wait_generation(2)
        self.assertEqual(again.groups[0].stages[0].worker, worker)
        for piece in stream:
            tokens += [token.id for token in piece.tokens]
        self.assertEqual(tokens, expected)
        self.assertIsNone(self.parent.returncode)
        log = self.parent.log.read_text()
        self.assertRegex(log, r"worker \S+ has died: signal 9 \(Killed\); it starts again in 1 s")
        self.assertRegex(log, r"(?m)^\[\w+\] \S+ info limits: ")

    def test_sigterm_ends_all_of_them(self):
        child = self.child()
        self.parent.terminate()
        self.assertEqual(self.parent.wait(), 0, self.parent.tail())
        self.assertFalse(is_running(child))
        self.assertRegex(self.parent.log.read_text(), r"(?m)^\[\w+\] \S+ info ending$")

    def test_signals_to_both_are_one(self):
        # As service managers do, which signal every process of a service.
        child = self.child()
        os.kill(child, signal.SIGTERM)
        self.parent.terminate()
        self.assertEqual(self.parent.wait(), 0, self.parent.tail())
        self.assertFalse(is_running(child))

    def test_children_end_with_their_parent(self):
        child = self.child()
        self.parent.kill()
        wait_until(lambda: not is_running(child), "the child has ended")


class RefusedTest(ClusterTest):
    def test_wrong_flags_are_not_tried_again(self):
        self.cluster.start_coordinator()
        worker = self.cluster.start_worker("w", devices="cpu", dtype="bf16")
        self.assertEqual(worker.wait(), 2, worker.tail())
        log = worker.log.read_text()
        self.assertIn("--dtype is bf16, the CPU computes in f32 only", log)
        self.assertTrue(re.search(r"died: worker \w+ \(exit code 2\)", log), log)
        self.assertNotIn("starts again", log)

    def test_gpus_that_are_not_there(self):
        self.cluster.start_coordinator()
        worker = self.cluster.start_worker("w", devices="0-1")
        self.assertEqual(worker.wait(), 2, worker.tail())
        self.assertIn("--devices names GPU 0, this machine has no GPU that CUDA can use", worker.log.read_text())
