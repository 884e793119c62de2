"""The scenarios of tests/cluster/scenarios in small, each against a server of the demo model with four stages."""

import json
import subprocess
import sys

from program import DEMO_MODEL, PROGRAM, SECONDS_MAX, ProgramTest

RUN = "tests/cluster/scenarios/run.py"


class ScenariosTest(ProgramTest):
    def run_scenarios(self, *names, more=(), code=0):
        """Returns {name: what run.py wrote}, and what it printed."""
        command = [sys.executable, "-B", RUN, "--program", PROGRAM, "--model", DEMO_MODEL, "--variant", "small"]
        command += ["--out", self.folder, "--serve-flags", "--threads 1", *more, *names]
        done = subprocess.run(command, capture_output=True, timeout=SECONDS_MAX, check=False)
        self.assertEqual(done.returncode, code, done)
        results = {name: json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}
        return results, done.stdout.decode()

    def groups(self, result):
        return {group["name"]: group for group in result["report"]["groups"]}

    def check_all_done(self, result):
        report = result["report"]
        self.assertEqual((result["exit_code"], report["failed"], report["variant"]), (0, 0, "small"))
        self.assertEqual((report["model"]["stages"], report["model"]["layers"]), (4, 6))
        self.assertGreater(report["memory"]["looks"], 0)
        self.assertGreater(report["memory"]["cache_tokens_max"], 0)
        for group in report["groups"]:
            self.assertEqual(group["quiet"] is None, group["background"])
            for run in filter(None, (group["quiet"], group["together"])):
                self.assertGreater(run["time_to_first_token_seconds"]["count"], 0)
                self.assertEqual(run["requests"], run["completed"] + run["cut"])

    def test_a_long_prompt_beside_decoders_and_newcomers(self):
        results, printed = self.run_scenarios("long-prompt")
        self.check_all_done(results["long-prompt"])
        groups = self.groups(results["long-prompt"])
        long = groups["long"]["together"]
        self.assertEqual((long["completed"], long["prompt_tokens"], long["output_tokens"]), (1, 2500, 2))
        quiet = groups["decoder"]["quiet"]
        self.assertEqual((quiet["completed"], quiet["output_tokens"]), (1, 32))
        # A response may bring several tokens.
        self.assertIn(quiet["inter_token_seconds"]["count"], range(1, 32))
        aim = results["long-prompt"]["report"]["aims"][0]
        self.assertEqual((aim["group"], aim["measure"], aim["limit_seconds"]), ("decoder", "inter_token_p99", 0.4))
        self.assertIn("| long-prompt | decoder | together |", printed)

    def test_hogs_and_bursts(self):
        results, printed = self.run_scenarios("hogs", "bursts")
        for result in results.values():
            self.check_all_done(result)
        hogs, bursts = self.groups(results["hogs"]), self.groups(results["bursts"])
        self.assertEqual(hogs["newcomer"]["together"]["completed"], 2)
        self.assertEqual(bursts["short"]["together"]["completed"], 100)
        self.assertEqual(bursts["short"]["together"]["output_tokens"], 200)
        self.assertRegex(printed, "hogs: (met|MISSED): newcomer, time_to_first_token_p99 is ")

    def test_beside_an_earlier_run(self):
        self.run_scenarios("bursts")
        _, printed = self.run_scenarios("bursts", more=["--before", self.folder])
        self.assertRegex(printed, r"\| bursts \| short \| together \|( [\d.e+-]+ \(was [\d.e+-]+\) \|){6}")

    def test_requests_that_fail(self):
        more = ["--serve-flags", "--threads 1 --max-num-seqs 2 --max-queue 2"]
        results, printed = self.run_scenarios("bursts", more=more, code=1)
        self.assertEqual(results["bursts"]["exit_code"], 1)
        self.assertGreater(results["bursts"]["report"]["failed"], 0)
        self.assertIn("RESOURCE_EXHAUSTED in short, together", printed)

    def test_a_server_that_does_not_start(self):
        command = [sys.executable, "-B", RUN, "--program", PROGRAM, "--model", self.folder / "none", "bursts"]
        done = subprocess.run(command, capture_output=True, timeout=SECONDS_MAX, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(str(self.folder / "none"), done.stderr.decode())
