#!/usr/bin/env python3
"""What scaling.py computes."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import scaling  # pylint: disable=wrong-import-position


def split(stages, seconds, sent_bytes=0):
    return {"stages": stages, "chunk_tokens": 100, "seconds": seconds, "sent_bytes": [sent_bytes] * (stages - 1) + [0]}


class ScalingTest(unittest.TestCase):
    def rows(self, *splits, link=1e9):
        return {row["stages"]: row for row in scaling.rows([split(1, [1.0]), *splits], 1000, link)}

    def test_equal_stages_and_no_time_to_send(self):
        rows = self.rows(split(2, [0.5] * 2), split(4, [0.25] * 4))
        for stages in (1, 2, 4):
            self.assertAlmostEqual(rows[stages]["efficiency"], 10 / (10 + stages - 1))
            self.assertAlmostEqual(rows[stages]["efficiency"], rows[stages]["fill"])
            self.assertEqual(rows[stages]["balance"], 1)

    def test_the_slowest_stage_sets_the_pace(self):
        row = self.rows(split(2, [0.4, 0.6]))[2]
        self.assertAlmostEqual(row["balance"], 0.5 / 0.6)
        self.assertAlmostEqual(row["tokens_per_second"], 1000 / (1.0 + 9 * 0.6))

    def test_a_slow_link_sets_the_pace(self):
        row = self.rows(split(2, [0.5, 0.5], sent_bytes=2e9))[2]
        self.assertAlmostEqual(row["tokens_per_second"], 1000 / (1.0 + 2.0 + 9 * 2.0))

    def test_predictions_have_the_shape_of_measurements(self):
        class Arguments:
            predicted_rate, width, chunk_tokens = 1000.0, 64, 100

        rows = list(scaling.rows(scaling.predicted(Arguments), 1000, 1e30))
        self.assertEqual([row["stages"] for row in rows], [1, 2, 4, 8])
        self.assertAlmostEqual(rows[0]["tokens_per_second"], 1000)


if __name__ == "__main__":
    unittest.main()
