"""Generates the Python messages from generate.proto; everything else about the package is in pyproject.toml.

A checkout has the .proto in ../../protos; a source distribution contains a copy.
"""

import importlib.metadata
import pathlib
import shutil
import subprocess
import sys

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

PROTO = "generate.proto"
HERE = pathlib.Path(__file__).resolve().parent
MESSAGES = ("generate_pb2.py", "generate_pb2.pyi")


def proto_folder():
    for folder in (HERE / "protos", HERE.parents[1] / "protos"):
        if (folder / PROTO).is_file():
            return folder
    raise FileNotFoundError(f"{PROTO} is neither in {HERE / 'protos'} nor in the checkout's protos")


def protobuf_requirement():
    """Generated code runs with the protobuf version that generated it, and with the next major version."""
    version = importlib.metadata.version("protobuf")
    return f"protobuf>={version},<{int(version.split('.')[0]) + 2}"


class BuildMessages(build_py):
    def run(self):
        super().run()
        folder = HERE if self.editable_mode else pathlib.Path(self.build_lib)
        folder.mkdir(parents=True, exist_ok=True)
        # Registered as goldfinch/generate.proto, as another package may have a generate.proto too.
        flags = [f"--proto_path=goldfinch={proto_folder()}", f"--python_out={folder}", f"--pyi_out={folder}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *flags, f"goldfinch/{PROTO}"], check=True)

    def get_outputs(self, include_bytecode=True):
        made = [str(pathlib.Path(self.build_lib) / "goldfinch" / name) for name in MESSAGES]
        return super().get_outputs(include_bytecode) + made


class SdistWithProto(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        folder = pathlib.Path(base_dir) / "protos"
        folder.mkdir(exist_ok=True)
        shutil.copy(proto_folder() / PROTO, folder / PROTO)


setup(
    cmdclass={"build_py": BuildMessages, "sdist": SdistWithProto},
    install_requires=["grpcio>=1.51", protobuf_requirement()],
)
