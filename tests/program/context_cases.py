"""goldfinch context: what needs no server, and what the command line refuses."""

import json
import pathlib

from program import DEMO_MODEL, ProgramTest, flags, run
from remote_cases import closed_port

EXPORTED = pathlib.Path("coordinator/store/testdata/context.safetensors")
TEXT = ["--text", "a"]
# The arguments of each command of a server.
COMMANDS = {
    "create": ["book", *TEXT],
    "append": ["book", *TEXT],
    "list": [],
    "show": ["book"],
    "fork": ["book@3", "chapter"],
    "rename": ["book", "tome"],
    "pin": ["book"],
    "unpin": ["book"],
    "delete": ["book"],
    "export": ["book", "book.safetensors"],
    "import": [EXPORTED, "book"],
}


class ContextTest(ProgramTest):
    def setUp(self):
        super().setUp()
        unheard = closed_port()
        self.addCleanup(unheard.close)
        self.server = "127.0.0.1:%d" % unheard.getsockname()[1]

    def test_help(self):
        for command in ("", *COMMANDS, "verify"):
            with self.subTest(command):
                shown = run("context", *command.split(), "--help")
                self.assertEqual((shown.code, shown.stderr), (0, ""))
                usage = f"Usage: goldfinch context {command}".strip() + (" " if command else " COMMAND")
                self.assertIn(usage, shown.stdout.decode())
        create = run("context", "create", "--help").stdout.decode()
        self.assertIn("Usage: goldfinch context create NAME --server HOST:PORT [FLAGS]\n", create)
        for flag in ("--from NAME[@TOKEN]", "--expire-after SECONDS", "--breakpoint TOKEN", "--text TEXT"):
            self.assertIn(flag, create)

    def test_no_server(self):
        for command, arguments in COMMANDS.items():
            with self.subTest(command):
                if command == "export":
                    arguments = ["book", self.folder / "book.safetensors"]
                self.refuses("context", command, *arguments, "--server", self.server, says=(self.server, "UNAVAILABLE"))
        self.assertEqual(list(self.folder.iterdir()), [], "an export that got nothing leaves nothing")

    def test_command_lines(self):
        self.refuses("context", code=2)
        self.refuses("context", "creat", "book", code=2, says="creat")
        for command, arguments in COMMANDS.items():
            with self.subTest(command):
                self.refuses("context", command, *arguments, code=2, says="--server")
        server = ["--server", self.server]
        for command, flag, value, says in (
            ("create", "expire_after", 0, "--expire-after"),
            ("create", "expire_after", "nan", "--expire-after"),
            ("create", "breakpoint", 0, "--breakpoint"),
            ("create", "from", "@3", '--from is "@3"'),
            ("create", "priority", 101, "100"),
            ("export", "retry", -1, "--retry"),
        ):
            with self.subTest(command, flag=flag, value=value):
                line = ["context", command, *COMMANDS[command], *server, *flags(**{flag: value})]
                self.refuses(*line, code=2, says=says)
        self.refuses("context", "create", "book", "--text", "", *server, code=2, says="the text is empty")
        self.refuses("context", "fork", "book@0", "x", *server, code=2, says='"book@0"')
        self.refuses("context", "export", "book", EXPORTED, *server, code=2, says="--force")

    def test_flags_of_generate(self):
        server = ["generate", "--server", self.server, "--prompt", "a"]
        self.refuses(*server, "--context", "@1", code=2, says='--context is "@1"')
        self.refuses(*server, "--expire-after", "5", code=2, says="--keep-as")
        here = ["generate", "--model", DEMO_MODEL, "--prompt", "a"]
        self.refuses(*here, "--keep-as", "x", code=2, says=("--keep-as", "--server"))
        self.refuses(*here, "--breakpoint", "3", code=2, says=("--breakpoint", "--server"))
        self.refuses(*here, "--context", EXPORTED, says=(EXPORTED, "the context is of"))
        self.refuses(*here, "--context", self.folder / "none", says=self.folder / "none")

    def test_verify(self):
        shown = self.succeeds("context", "verify", EXPORTED).stdout.decode()
        for words in ("sha256", "vocabulary", "tokens", "wkv", "rows", "right"):
            self.assertIn(words, shown)
        found = json.loads(self.succeeds("context", "verify", EXPORTED, "--json").stdout)
        self.assertEqual(found["file_bytes"], EXPORTED.stat().st_size)
        self.assertEqual(found["tensors"][-1]["offset"] + found["tensors"][-1]["bytes"], found["file_bytes"])
        data = EXPORTED.read_bytes()
        for name, content in (
            ("cut", data[:-1]),
            ("longer", data + b"x"),
            ("flipped", data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
            ("text", b"In the beginning"),
            ("empty", b""),
        ):
            with self.subTest(name):
                path = self.write(name, content)
                self.refuses("context", "verify", path, says=path)
                self.refuses("context", "import", path, "x", "--server", self.server, says=path)
        self.refuses("context", "verify", self.folder, says=self.folder)
        self.refuses("context", "verify", self.folder / "none", says=self.folder / "none")
