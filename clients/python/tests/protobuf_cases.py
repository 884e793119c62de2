"""The package beside other versions of protobuf than the one that its environment has, which is the newest."""

import os
import pathlib
import shutil
import subprocess
import sys
import unittest

FOLDER = pathlib.Path(__file__).resolve().parent
# The oldest that the package allows gets every case; one of each later series gets some that use each kind of message.
CASES = {
    "4.25.8": ["client_cases", "context_cases"],
    "5.29.5": ["client_cases.PackageTest", "client_cases.StreamTest"],
    "6.33.0": ["client_cases.PackageTest", "client_cases.StreamTest"],
}


def fetched(version):
    """The folder of the version within the environment, where it stays; None if it cannot be fetched."""
    folder = pathlib.Path(sys.prefix) / f"protobuf-{version}"
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*pip, "--target", partial, f"protobuf=={version}"], capture_output=True).returncode != 0:
            return None
        partial.rename(folder)
    return folder


class ProtobufTest(unittest.TestCase):
    def test_versions(self):
        for version, names in CASES.items():
            with self.subTest(version):
                folder = fetched(version)
                if folder is None:
                    self.skipTest(f"protobuf {version} is not there and cannot be fetched")
                environment = {**os.environ, "PYTHONPATH": str(folder)}
                environment.pop("XML_OUTPUT_FILE", None)
                show = "import google.protobuf; print(google.protobuf.__version__)"
                shown = subprocess.run(
                    [sys.executable, "-c", show], env=environment, check=True, capture_output=True, text=True
                )
                self.assertEqual(shown.stdout.strip(), version)
                cases = [sys.executable, "-B", FOLDER / "run_cases.py", *names]
                done = subprocess.run(cases, env=environment, capture_output=True, text=True)
                self.assertEqual(done.returncode, 0, done.stderr)
