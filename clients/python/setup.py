"""Builds what pyproject.toml cannot name: the version, the license file, and the messages of generate.proto.

All three are files of the repository's root. In a source distribution the package's own folder has copies of them, in
the same places.
"""

import pathlib
import shutil
import subprocess
import sys

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

PROTO = "protos/generate.proto"
HERE = pathlib.Path(__file__).resolve().parent
# Every source distribution has PKG-INFO, and no checkout does.
ROOT = HERE if (HERE / "PKG-INFO").is_file() else HERE.parents[1]
DESCRIPTORS, TYPES = "generate.binpb", "generate_pb2.pyi"  # read by generate_pb2.py, and by type checkers


def read_version():
    return (ROOT / "VERSION").read_text(encoding="ascii").strip()


def copy_license():
    """A license file must lie in the package's folder (license-files of pyproject.toml)."""
    if ROOT != HERE:
        shutil.copyfile(ROOT / "LICENSE", HERE / "LICENSE")


class BuildMessages(build_py):
    def run(self):
        super().run()
        folder = HERE if self.editable_mode else pathlib.Path(self.build_lib)
        (folder / "goldfinch").mkdir(parents=True, exist_ok=True)
        # Known to protobuf as goldfinch/generate.proto: another package may have a generate.proto too.
        source = (ROOT / PROTO).parent
        outputs = [f"--descriptor_set_out={folder / 'goldfinch' / DESCRIPTORS}", "--include_imports"]
        flags = [f"--proto_path=goldfinch={source}", *outputs, f"--pyi_out={folder}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *flags, "goldfinch/generate.proto"], check=True)

    def get_outputs(self, include_bytecode=True):
        made = [str(pathlib.Path(self.build_lib) / "goldfinch" / name) for name in (DESCRIPTORS, TYPES)]
        return super().get_outputs(include_bytecode) + made


class CompleteSdist(sdist):
    """Adds the files of the repository's root; the license file is already there."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        for name in ("VERSION", PROTO):
            target = pathlib.Path(base_dir) / name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, target)


copy_license()
setup(
    version=read_version(),
    cmdclass={"build_py": BuildMessages, "sdist": CompleteSdist},
    install_requires=["grpcio>=1.51", "protobuf>=4.25"],
)
