"""goldfinch plan: how the demo model would be split, here and on workers that are only named."""

import json

from program import DEMO_MODEL, ProgramTest

TOKENS = 32_768 + 512 - 1
WORKER = "8,0.17,26"  # GB, TFLOP/s, GB/s


class PlanTest(ProgramTest):
    def plan(self, *arguments):
        return json.loads(self.succeeds("plan", "--json", "--device", "cpu", "--model", DEMO_MODEL, *arguments).stdout)

    def given(self, workers, *arguments):
        return self.plan(*[text for _ in range(workers) for text in ("--worker", WORKER)], *arguments)

    def test_stages_begin_at_the_border_by_default(self):
        plan = self.given(3)
        self.assertEqual(plan["splits"][0]["first_layers"], [0, 4, 5])
        self.assertTrue(plan["why"].startswith("a stage begins at the border, layer 4"), plan["why"])
        self.assertEqual(plan["traffic"]["prompt_tokens"], 32_768)
        self.assertGreaterEqual(len(plan["splits"]), 3)
        costs = [split["cost_seconds"] for split in plan["splits"]]
        self.assertEqual(costs[1:], sorted(costs[1:]))

    def test_bytes_over_each_boundary(self):
        stages = self.given(3)["splits"][0]["stages"]
        # At a prompt's end the border is crossed by the rows that two GOLD layers need, and then by one row a token.
        self.assertEqual(stages[0]["received"], {"hidden": 0, "compressed": 0, "ids": 0})
        for stage, rows in ((1, 5), (2, 3)):
            expected = {"hidden": (rows + 511) * 128 * 4, "compressed": TOKENS * 16, "ids": TOKENS * 2}
            self.assertEqual(stages[stage]["received"], expected)

    def test_this_machine(self):
        plan = self.plan("--pipeline-parallel-size", "3")
        self.assertEqual(len(plan["splits"][0]["stages"]), 3)
        self.assertIn("3 of this machine, measured", plan["workers"])

    def test_devices_of_this_machine(self):
        arguments = ("plan", "--json", "--model", DEMO_MODEL, "--pipeline-parallel-size", "2", "--devices")
        for devices in ("cpu", "all"):
            plan = json.loads(self.succeeds(*arguments, devices).stdout)
            self.assertIn("2 of this machine, measured: cpu, ", plan["workers"])

    def test_traffic_and_links_decide(self):
        reads = ("--expect-prompt-tokens", "65536", "--expect-output-tokens", "1")
        self.assertEqual(self.given(2, *reads)["splits"][0]["first_layers"], [0, 2])
        self.assertEqual(self.given(2, *reads, "--link-speed", "1MiB")["splits"][0]["first_layers"], [0, 4])

    def test_split(self):
        self.assertEqual(self.given(2, "--split", "border")["splits"][0]["first_layers"], [0, 4])
        self.assertEqual(self.given(2, "--split", "0-0,1-5")["splits"][0]["first_layers"], [0, 1])
        says = ["--split", "halves is none of auto"]
        self.refuses("plan", "--model", DEMO_MODEL, "--split", "halves", code=2, says=says)
        says = ["--split has 2 stages", "--pipeline-parallel-size is 3"]
        self.refuses(
            "plan", "--model", DEMO_MODEL, "--split", "0-2,3-5", "--pipeline-parallel-size", "3", code=2, says=says
        )

    def test_table(self):
        result = self.succeeds("plan", "--device", "cpu", "--model", DEMO_MODEL, "--worker", WORKER, "--worker", WORKER)
        table = result.stdout.decode()
        for line in (
            r"workers  2 as given, .*",
            r"links    10 GB/s, assumed for local",
            r"traffic  16 sequences at a time, each with a prompt of 32,768 tokens and an output of 512, "
            r"in a context of 65,536",
            r"split    0-4,5-5: no stage begins at the border, layer 4: the best such split, 0-3,4-5, takes 1\..*",
            r"split +time +pre-fill +decode +first token +a request +slowest",
            r"0-4,5-5 +as chosen .*",
            r"stage +layers +computes +sends +memory +GOLD tiers +receives for a request",
            r"1 +5-5 .* hidden .*, compressed 16, ids 2 B a token",
        ):
            self.assertRegex(table, rf"(?m)^{line}$")

    def test_workers_that_are_not_understood(self):
        for text in ("8", "8,1,0", "8,1,nan", "a,b,c", "8,1,2,3"):
            with self.subTest(text):
                self.refuses("plan", "--model", DEMO_MODEL, "--worker", text, code=2, says=["--worker is " + text])
        says = ["--worker is given 1 times", "3 stages"]
        self.refuses(
            "plan", "--model", DEMO_MODEL, "--worker", WORKER, "--pipeline-parallel-size", "3", code=2, says=says
        )
