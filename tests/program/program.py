"""The program as a user meets it: starting it, and what every run of it must keep to."""

import collections
import os
import pathlib
import subprocess
import tempfile
import unittest

import checkpoints

# Bazel starts tests in the folder of their run files, which is laid out as the repository is.
PROGRAM = pathlib.Path(os.environ.get("GOLDFINCH", "clients/cli/goldfinch")).resolve()
DEMO_MODEL = pathlib.Path("tests/demo_model/model.pth")
DEMO_CONFIG = pathlib.Path("tests/demo_model/config.json")
GOLDEN = pathlib.Path("tests/golden")
WORLD_VOCAB = pathlib.Path("third_party/world_vocab/rwkv_vocab_v20230424.txt")
PAGE = pathlib.Path("tests/program/king_james.txt").read_text(encoding="ascii")

# What the tests expect is what the CPU says: every machine is one without a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

SECONDS_MAX = 120  # of one run; sanitizers on a busy machine are slow

Result = collections.namedtuple("Result", "code stdout stderr")  # int, bytes, str


def command(*arguments):
    return [PROGRAM, *(argument if isinstance(argument, bytes) else str(argument) for argument in arguments)]


def run(*arguments, stdin=b"", **options):
    """Runs to the end; `options` as of subprocess.run."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": SECONDS_MAX, **options}
    done = subprocess.run(command(*arguments), input=stdin, check=False, **options)
    return Result(done.returncode, done.stdout, done.stderr.decode(errors="backslashreplace"))


def listed(value):
    """A list or tuple as it is, anything else as a list of one."""
    return value if isinstance(value, (list, tuple)) else [value]


def flags(**values):
    """max_tokens=5, json=True, stop=["a", "b"] as --max-tokens 5 --json --stop a --stop b; without None and False."""
    arguments = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        for one in listed(value):
            if one is True:
                arguments += [flag]
            elif one is not None and one is not False:
                arguments += [flag, one]
    return arguments


def generate(prompt=None, **values):
    """The arguments of a greedy run of the demo model, unless `values` say otherwise."""
    # One thread is the quickest for so small a model, and waits for no other on a busy machine.
    defaults = {"model": DEMO_MODEL, "threads": 1, "temperature": 0, "presence_penalty": 0, "frequency_penalty": 0}
    return ["generate", *flags(**{**defaults, "prompt": prompt, **values})]


class ProgramTest(unittest.TestCase):
    """Has a folder of its own, `folder`."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR"))
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name).resolve()

    def write(self, name, content):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def write_tokens(self, ids):
        return checkpoints.write_npy(self.folder / "tokens.npy", ids)

    def succeeds(self, *arguments, **options):
        result = run(*arguments, **options)
        self.assertEqual(result.code, 0, result)
        return result

    def refuses(self, *arguments, says=(), code=1, **options):
        """The run ends with the code, and with one line that has all of `says`."""
        result = run(*arguments, **options)
        self.check_refusal(result, code, says)

    def check_refusal(self, result, code, says):
        self.assertEqual(result.code, code, result)
        self.assertFalse(result.stdout, result)
        self.assertRegex(result.stderr, r"\Agoldfinch: [^\x00-\x1f]+\n\Z")
        for words in listed(says):
            self.assertIn(str(words), result.stderr)
