"""The commands that talk to a server, where there is none or the command line is wrong: one line that names it."""

import socket

from program import DEMO_MODEL, ProgramTest, flags, listed

COMMANDS = {
    "generate": ["--prompt", "a"],
    "status": [],
    "load-test": ["--requests", "1"],
}
HOGS = "tests/cluster/scenarios/hogs.textproto"


def closed_port():
    """A port of this machine that nobody listens on: bound, so that nobody else comes to."""
    unheard = socket.socket()
    unheard.bind(("127.0.0.1", 0))
    return unheard


class RemoteTest(ProgramTest):
    def setUp(self):
        super().setUp()
        unheard = closed_port()
        self.addCleanup(unheard.close)
        self.server = "127.0.0.1:%d" % unheard.getsockname()[1]

    def each(self):
        for command, arguments in COMMANDS.items():
            with self.subTest(command):
                yield [command, "--server", self.server, *arguments]


class NoServerTest(RemoteTest):
    def test_connection_refused(self):
        for command in self.each():
            self.refuses(*command, says=(self.server, "UNAVAILABLE", "Connection refused"))

    def test_a_host_that_is_not_there(self):
        for command, arguments in COMMANDS.items():
            with self.subTest(command):
                address = "no-such-host.invalid:50051"
                self.refuses(command, "--server", address, *arguments, says=(address, "UNAVAILABLE"))

    def test_a_server_that_says_nothing(self):
        silent = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(silent.close)
        address = "127.0.0.1:%d" % silent.getsockname()[1]
        for command, arguments in COMMANDS.items():
            with self.subTest(command):
                line = [command, "--server", address, *arguments, "--deadline", "0.3"]
                self.refuses(*line, says=(address, "DEADLINE_EXCEEDED"))


class FlagsTest(RemoteTest):
    def test_addresses(self):
        for address in ("localhost", "localhost:", ":50051", "localhost:0", "localhost:65536", "localhost:x", ""):
            for command, arguments in COMMANDS.items():
                if command == "generate" and not address:
                    continue  # no server: a model is wanted
                with self.subTest(command, address=address):
                    says = (f'"{address}"', "HOST:PORT")
                    self.refuses(command, "--server", address, *arguments, code=2, says=says)

    def test_server_is_required(self):
        for command, arguments in COMMANDS.items():
            with self.subTest(command):
                self.refuses(command, *arguments, code=2, says="--server")

    def test_a_model_here_or_a_server(self):
        generate = ["generate", "--prompt", "a"]
        for flag, value in (("model", DEMO_MODEL), ("threads", 1), ("vocab", "bytes"), ("verify", "none")):
            with self.subTest(flag):
                line = [*generate, "--server", self.server, *flags(**{flag: value})]
                self.refuses(*line, code=2, says=(f"--{flag}", "--server"))
        for flag, value in (("deadline", 1), ("samples", 2), ("priority", 1), ("api_key_file", "x")):
            with self.subTest(flag):
                line = [*generate, *flags(model=DEMO_MODEL, **{flag: value})]
                self.refuses(*line, code=2, says=(f"--{flag.replace('_', '-')}", "--server"))

    def test_values(self):
        for command, flag, value, limit in (
            ("generate", "samples", 0, "1"),
            ("generate", "samples", 65, "64"),
            ("generate", "priority", 101, "100"),
            ("generate", "top_k", -1, "0"),
            ("generate", "ban", -1, "0"),
            ("generate", "logit_bias", "-1=2", "0"),
            ("generate", "deadline", -1, "0"),
            ("status", "watch", 0, "0.1"),
            ("status", "watch", "x", "x"),
            ("load-test", "rate", 0, "0.001"),
            ("load-test", "rate", "nan", "nan"),
            ("generate", "deadline", "nan", "nan"),
            ("status", "watch", "nan", "nan"),
            ("load-test", "max_concurrency", 0, "1"),
            ("load-test", "seed", -1, "18446744073709551615"),
            ("load-test", "prompt_tokens", "fixed:0", "4194304"),
            ("load-test", "prompt_tokens", "gauss:1:2", "lognormal:MEDIAN:SIGMA"),
            ("load-test", "output_tokens", "uniform:9:1", "uniform:9:1"),
        ):
            with self.subTest(command, flag=flag, value=value):
                # The flag's own name, but for the ids within --ban and --logit-bias.
                line = [command, "--server", self.server, *COMMANDS[command], *flags(**{flag: value})]
                self.refuses(*line, code=2, says=("--" + flag.replace("_", "-"), limit))

    def test_load_test_ends_in_one_way(self):
        load_test = ["load-test", "--server", self.server]
        for end in ([], ["--requests", "1", "--duration", "1"]):
            with self.subTest(end):
                self.refuses(*load_test, *end, code=2, says=("--requests", "--duration"))
        for flag, value in (("--requests", "1"), ("--rate", "1"), ("--prompt-tokens", "fixed:1"), ("--csv", "x")):
            with self.subTest(flag):
                self.refuses(*load_test, "--scenario", HOGS, flag, value, code=2, says=("--scenario", flag))
        for flag in (["--variant", "small"], ["--strict"]):
            with self.subTest(flag):
                self.refuses(*load_test, "--requests", "1", *flag, code=2, says=("--scenario", flag[0]))
        both = ["--prompt-file", "x", "--prompt-tokens", "fixed:1"]
        self.refuses(*load_test, "--requests", "1", *both, code=2, says="--prompt-file")

    def test_empty_prompt(self):
        self.refuses("generate", "--server", self.server, "--prompt", "", code=2, says="prompt is empty")


class FilesTest(RemoteTest):
    def test_api_keys(self):
        for content, says in (("", "no API key"), ("\n", "no API key"), ("a b", "one line"), ("a\nb", "one line")):
            with self.subTest(content):
                key = self.write("key", content)
                for command in self.each():
                    self.refuses(*command, "--api-key-file", key, says=(key, says))

    def test_files_that_are_not_there(self):
        missing = self.folder / "none"
        for flag in ("--api-key-file", "--grpc-root-cert"):
            for command in self.each():
                self.refuses(*command, flag, missing, says=missing)

    def test_certificates(self):
        junk = self.write("junk.pem", "not PEM")
        for command in self.each():
            self.refuses(*command, "--grpc-root-cert", junk, says=junk)
            for flag in ("--grpc-client-cert", "--grpc-client-key"):
                self.refuses(*command, flag, junk, code=2, says=("--grpc-client-cert", "--grpc-client-key"))

    def test_prompt_file_of_the_load_test(self):
        load_test = ["load-test", "--server", self.server, "--requests", "1"]
        self.refuses(*load_test, "--prompt-file", self.folder / "none", says=self.folder / "none")
        blank = self.write("blank", "\n \n")
        self.refuses(*load_test, "--prompt-file", blank, says=(blank, "no prompt"))


class ScenarioTest(RemoteTest):
    """Whatever is wrong with the file is told before the server is looked for."""

    def load_test(self, scenario, *more):
        return ["load-test", "--server", self.server, "--scenario", scenario, *more]

    def test_files(self):
        missing = self.folder / "none"
        self.refuses(*self.load_test(missing), says=missing)
        large = self.write("large", "#" * 70_000)
        self.refuses(*self.load_test(large), says=(large, "65536"))
        for text, says in (
            ("", "name"),
            ("{" * 10_000, ":1:"),
            ("name: 'a'\ngroups { client: 1 }", ":2:"),
            ("name: 'a'\ngroups { name: 'b'\nclients: 0 }", (":3:", "clients is 0", "4096")),
            (b"name: '\xff\x1b'", "\\xff\\x1b"),
            (b"\x00\x1b[2J", ":1:"),
        ):
            with self.subTest(text[:20]):
                scenario = self.write("scenario", text)
                self.refuses(*self.load_test(scenario), says=(scenario, *listed(says)))

    def test_variants(self):
        self.refuses(*self.load_test(HOGS, "--variant", "tiny"), code=2, says=(HOGS, '"tiny"', "small"))

    def test_no_server(self):
        self.refuses(*self.load_test(HOGS, "--variant", "small"), says=(self.server, "UNAVAILABLE"))


class HelpTest(ProgramTest):
    def test_help_is_on_standard_output(self):
        for command in COMMANDS:
            with self.subTest(command):
                result = self.succeeds(command, "--help")
                self.assertIn(b"--server HOST:PORT", result.stdout)
                self.assertEqual(result.stderr, "")
