"""Hostile clients of every kind beside an honest one, for a moment. hostile_load.py measures them for longer."""

import unittest

import hostile_load

# The front holds at most 256 MiB of unfinished messages, and the hog's streams their part of the queue.
RESIDENT_BYTES_MAX = 600 << 20


class HostileTest(unittest.TestCase):
    def test_honest_requests_go_on_beside_every_attack(self):
        result = hostile_load.measure(6, tuple(hostile_load.ATTACKS), quiet_seconds=1)
        self.assertEqual(result["failures"], [])
        self.assertGreater(result["attacked"]["requests"], 0)
        usage = result["resident_bytes"]
        self.assertLess(max(usage["most_of_first_half"], usage["most_of_second_half"]), RESIDENT_BYTES_MAX)
