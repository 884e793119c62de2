#!/usr/bin/env python3
"""What compile_commands.py makes of actions as Bazel prints them."""

import pathlib
import tempfile
import unittest

import compile_commands

FLAGS = ["-std=c++20", "-Werror", "-iquote", ".", "-iquote", "bazel-out/k8-opt/bin", "-iquote", "external/zlib"]
OUTPUTS = ["-MD", "-MF", "a.d", "-frandom-seed=a.o", "-fno-canonical-system-headers"]


def action(source, flags=(), output="a.o"):
    return {"arguments": ["/usr/bin/gcc", *flags, "-c", source, "-o", output]}


class CompileCommandsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def test_keeps_what_says_how_to_read_the_source(self):
        (entry,) = compile_commands.entries([action("base/check.cc", FLAGS + OUTPUTS)], self.root)
        self.assertEqual((entry["directory"], entry["file"]), (str(self.root), "base/check.cc"))
        flags = ["-Wno-unknown-warning-option", "-std=c++20", "-iquote", ".", "-iquote", "bazel-out/k8-opt/bin"]
        self.assertEqual(entry["arguments"], ["/usr/bin/gcc", *flags, "-c", "base/check.cc"])

    def test_a_source_has_one_entry(self):
        actions = [action("b.cc", output="b.pic.o"), action("a.cc"), action("b.cc", output="b.o")]
        found = compile_commands.entries(actions, self.root)
        self.assertEqual([entry["file"] for entry in found], ["a.cc", "b.cc"])

    def test_device_code_stands_for_its_emulated_copy(self):
        (self.root / "kernels" / "cuda").mkdir(parents=True)
        (self.root / "kernels" / "cuda" / "wkv.cu").touch()
        copies = [f"bazel-out/k8-opt/bin/kernels/cuda/emulated/{name}.cc" for name in ("gone", "wkv")]
        gone, wkv = compile_commands.entries([action(copy) for copy in copies], self.root)
        self.assertEqual(gone["file"], copies[0])
        self.assertEqual(wkv["arguments"][-4:], ["-x", "c++", "-c", "kernels/cuda/wkv.cu"])


if __name__ == "__main__":
    unittest.main()
