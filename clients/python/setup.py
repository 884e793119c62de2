"""Builds what pyproject.toml cannot name: the version, the license file, and the messages of the API's .proto files.

All of them are files of the repository's root. In a source distribution the package's own folder has copies of them, in
the same places.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

PROTOS = ("protos/generate.proto", "protos/contexts.proto")
HERE = pathlib.Path(__file__).resolve().parent
# Every source distribution has PKG-INFO, and no checkout does.
ROOT = HERE if (HERE / "PKG-INFO").is_file() else HERE.parents[1]
DESCRIPTORS = "messages.binpb"  # read by _descriptors.py
TYPES = tuple(f"{pathlib.Path(proto).stem}_pb2.pyi" for proto in PROTOS)  # for type checkers


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
        with tempfile.TemporaryDirectory() as sources:
            # Known to protobuf as goldfinch/NAME.proto, also among themselves: another package may have one of the
            # same name.
            (pathlib.Path(sources) / "goldfinch").mkdir()
            names = [f"goldfinch/{pathlib.Path(proto).name}" for proto in PROTOS]
            for proto, name in zip(PROTOS, names):
                text = (ROOT / proto).read_text(encoding="utf-8").replace('import "protos/', 'import "goldfinch/')
                (pathlib.Path(sources) / name).write_text(text, encoding="utf-8")
            outputs = [f"--descriptor_set_out={folder / 'goldfinch' / DESCRIPTORS}", f"--pyi_out={folder}"]
            protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={sources}"]
            subprocess.run([*protoc, *outputs, *names], check=True)

    def get_outputs(self, include_bytecode=True):
        made = [str(pathlib.Path(self.build_lib) / "goldfinch" / name) for name in (DESCRIPTORS, *TYPES)]
        return super().get_outputs(include_bytecode) + made


class CompleteSdist(sdist):
    """Adds the files of the repository's root; the license file is already there."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        for name in ("VERSION", *PROTOS):
            target = pathlib.Path(base_dir) / name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, target)


copy_license()
setup(
    version=read_version(),
    cmdclass={"build_py": BuildMessages, "sdist": CompleteSdist},
    install_requires=["grpcio>=1.51", "protobuf>=4.25"],
)
