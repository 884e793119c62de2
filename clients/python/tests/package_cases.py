"""The package as it is built and installed: its version and license, and a source distribution that builds alone."""

import importlib.metadata
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile

import goldfinch

ROOT = pathlib.Path(__file__).resolve().parents[3]
VERSION = (ROOT / "VERSION").read_text(encoding="ascii").strip()
LICENSE = (ROOT / "LICENSE").read_bytes()


def build(kind, source, target):
    """Builds "sdist" or "wheel" of the source folder into the target folder, and returns the path."""
    hook = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", hook], cwd=source, check=True, capture_output=True, text=True)
    return target / done.stdout.splitlines()[-1]


class InstalledTest(unittest.TestCase):
    def test_version_is_that_of_the_repository(self):
        self.assertEqual(goldfinch.__version__, VERSION)

    def test_requires_no_protobuf_of_a_certain_day(self):
        self.assertCountEqual(importlib.metadata.requires("goldfinch"), ["grpcio>=1.51", "protobuf>=4.25"])

    def test_license(self):
        self.assertEqual(importlib.metadata.metadata("goldfinch")["License-Expression"], "Apache-2.0")
        (path,) = [path for path in importlib.metadata.files("goldfinch") if path.name == "LICENSE"]
        self.assertEqual(path.read_binary(), LICENSE)


class SourceDistributionTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def copy_of_the_checkout(self):
        """The build leaves files beside its sources."""
        checkout = self.folder / "checkout"
        shutil.copytree(ROOT / "clients" / "python", checkout / "clients" / "python")
        shutil.copytree(ROOT / "protos", checkout / "protos")
        shutil.copy(ROOT / "VERSION", checkout)
        shutil.copy(ROOT / "LICENSE", checkout)
        return checkout / "clients" / "python"

    def test_builds_the_same_wheel_without_the_checkout(self):
        sdist = build("sdist", self.copy_of_the_checkout(), self.folder)
        self.assertEqual(sdist.name, f"goldfinch-{VERSION}.tar.gz")
        unpacked = self.folder / "unpacked"
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked)
        with zipfile.ZipFile(build("wheel", unpacked / f"goldfinch-{VERSION}", self.folder)) as wheel:
            self.assertEqual(wheel.read(f"goldfinch-{VERSION}.dist-info/licenses/LICENSE"), LICENSE)
            modules = [f"{name}_pb2.{end}" for name in ("generate", "contexts") for end in ("py", "pyi")]
            for name in (*modules, "messages.binpb"):
                self.assertIn(f"goldfinch/{name}", wheel.namelist())
