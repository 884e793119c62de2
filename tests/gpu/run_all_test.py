#!/usr/bin/env python3
"""run_all.sh with programs that only pretend: what it says, and how it ends."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent

BENCH = """
echo "cuda, a device"
echo "quantity                 measured"
echo "copy, read and written   1.000 ms"
echo "something                2.000 ms  >= 80 % of a copy  met"
echo "something else           3.000 ms  >= 80 % of a copy  MISSED"
"""
PASSES = """
echo "[       OK ] Suite.One (3 ms)"
echo "[  PASSED  ] 1 test."
"""
SKIPS = """
echo "[  SKIPPED ] Suite.One (0 ms)"
echo "[  SKIPPED ] 1 test, listed below:"
echo "[  SKIPPED ] Suite.One"
"""
MODEL_BENCH = """
echo "GoldFinch with random weights"
echo "quantity                 measured"
echo "pre-fill, one prompt     4.000 ms  >= 70 % of the product  met"
"""
# Stands in for service_parts.py: writes a figure, and prints what it found.
SERVICE = """
import sys
with open(sys.argv[sys.argv.index("--figures") + 1], "a") as file:
    print("first token              5.000 ms  <= 3600 ms  met", file=file)
print("3 of 3 answers equal")
"""
FAILS = """
echo "[       OK ] Suite.One (3 ms)"
echo "[  FAILED  ] Suite.Two, where GetParam() = 2 (3 ms)"
echo "[  FAILED  ] 1 test, listed below:"
echo "[  FAILED  ] Suite.Two, where GetParam() = 2"
exit 1
"""


class RunAllTest(unittest.TestCase):
    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)
        (self.root / "tests/gpu").mkdir(parents=True)
        (self.root / "bin").mkdir()
        for name in ("run_all.sh", "programs.txt"):
            shutil.copy(HERE / name, self.root / "tests/gpu" / name)
        for line in (HERE / "programs.txt").read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                kind, label = line.split()
                self.pretend(label.rpartition(":")[2], {"bench": BENCH, "model": MODEL_BENCH}.get(kind, PASSES))
        self.pretend("goldfinch", "echo In the end")
        self.pretend_script("service_parts.py", SERVICE)
        self.pretend_script("torch_peer.py", "print('SKIPPED: PyTorch sees no CUDA device')")

    def pretend(self, name, script):
        path = self.root / "bin" / name
        path.write_text("#!/usr/bin/env bash\n" + script, encoding="utf-8")
        path.chmod(0o755)

    def pretend_script(self, name, script):
        (self.root / "tests/gpu" / name).write_text(script, encoding="utf-8")

    def run_all(self, *arguments, **variables):
        environment = {**os.environ, "OUT": str(self.root / "out"), "CUDA_HOME": "/nonexistent", **variables}
        command = [str(self.root / "tests/gpu/run_all.sh"), *arguments]
        done = subprocess.run(command, env=environment, cwd=self.root, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    def test_without_a_device_it_is_skipped(self):
        self.pretend("kernel_bench", 'echo "SKIPPED: no CUDA device"')
        self.assertEqual(self.run_all(), (0, "SKIPPED: no CUDA device\n"))

    def test_a_device_that_fails_is_no_device_that_is_missing(self):
        self.pretend("kernel_bench", "exit 1")
        status, output = self.run_all()
        self.assertEqual(status, 1)
        self.assertNotIn("SKIPPED", output)

    def test_parts_and_then_figures(self):
        status, output = self.run_all()
        self.assertEqual(status, 0, output)
        parts, _, figures = output.partition("quantity ")
        self.assertRegex(parts, r"device_backend_test +passed .* [1-8] passed, 0 failed, 0 skipped")
        for name in ("golden_test", "families_test", "sequence_test", "split_test", "golden_cluster_test"):
            for dtype in ("f32", "bf16"):
                self.assertRegex(parts, rf"{name}, {dtype} +passed .* 1 passed, 0 failed, 0 skipped")
        self.assertRegex(parts, r"demo model +passed .*In the end")
        self.assertRegex(parts, r"kernel bench +passed .* 1 aims met, 1 missed")
        self.assertRegex(parts, r"model bench +passed .* 1 aims met, 0 missed")
        for part in ("answers", "stages", "kill", "speed"):
            self.assertRegex(parts, rf"service: {part} +passed .* 3 of 3 answers equal")
        self.assertRegex(parts, r"the model in PyTorch +skipped .*PyTorch")
        # One table: the head once, then the rows of all that measures.
        self.assertNotIn("quantity", figures)
        rows = [line.split(" ")[0] for line in figures.splitlines()[1:]]
        self.assertEqual(rows, ["copy,", "something", "something", "pre-fill,"] + ["first"] * 4)

    def test_failures_do_not_end_it(self):
        self.pretend("golden_test", FAILS)
        self.pretend("families_test", SKIPS)
        status, output = self.run_all()
        self.assertEqual(status, 1)
        self.assertRegex(output, r"golden_test, bf16 +failed .* 1 passed, 1 failed, 0 skipped")
        self.assertRegex(output, r"families_test, bf16 +skipped .* 0 passed, 0 failed, 1 skipped")
        self.assertRegex(output, r"kernel bench +passed")

    def test_a_bench_that_dies(self):
        self.pretend("kernel_bench", BENCH + '[[ " $* " == *--tiny* ]] || { echo "CHECK failed"; exit 134; }')
        status, output = self.run_all()
        self.assertEqual(status, 1)
        self.assertRegex(output, r"kernel bench +failed .*status 134: CHECK failed")

    def test_a_part_of_the_service_that_fails(self):
        self.pretend_script("service_parts.py", "print('FAILED: no 3 stages get ready')\nraise SystemExit(1)")
        status, output = self.run_all()
        self.assertEqual(status, 1)
        self.assertRegex(output, r"service: kill +failed .*status 1: FAILED: no 3 stages get ready")
        self.assertRegex(output, r"model bench +passed")

    def test_the_cpu_leaves_out_what_is_the_devices_own(self):
        for name in ("device_backend_test", "compute-sanitizer"):
            self.pretend(name, "exit 1")
        status, output = self.run_all(GOLDFINCH_RUN_ALL_DEVICE="cpu")
        self.assertEqual(status, 0, output)
        self.assertRegex(output, r"golden_test, f32 +passed")
        self.assertNotIn("bf16 ", output.partition("quantity")[0])
        self.assertNotIn("device_backend_test", output)
        self.assertNotIn("compute-sanitizer", output)

    def test_arguments(self):
        self.assertEqual(self.run_all(GOLDFINCH_RUN_ALL_DEVICE="tpu")[0], 2)
        self.assertEqual(self.run_all("--all")[0], 2)
        status, output = self.run_all("--help")
        self.assertEqual(status, 0)
        self.assertIn("Usage:", output)


if __name__ == "__main__":
    unittest.main()
