"""Wrong flags, prompts, token files and outputs: one line that names them. Code 2: the program was called wrongly."""

import os
import pathlib

import checkpoints
from program import DEMO_MODEL, ProgramTest, flags, generate, listed


class CommandLineTest(ProgramTest):
    def test_commands_and_flags(self):
        for arguments, says in (
            ([], "subcommand is required"),
            (["bogus"], "bogus"),
            (["--bogus"], "--bogus"),
            (["generate", "--bogus"], "--bogus"),
            (["generate"], "--model is required"),
            (["generate", "--model"], "--model"),
            (["inspect"], "model"),
            (["inspect", DEMO_MODEL, "more"], "more"),
            (["logits", "--model", DEMO_MODEL], "--tokens is required"),
            (["tokenize", "--text", "a"], "--vocab"),
            (["detokenize", "--json"], "--json"),
            (["two\nlines"], r"two\x0alines"),
            ([*generate("And "), "--prompt-file", "x"], "--prompt-file"),
            ([*generate("And "), "--prompt", "And "], "--prompt"),
            (["tokenize", *flags(vocab="bytes", text="a", file="x")], "--file"),
        ):
            with self.subTest(arguments):
                self.refuses(*arguments, code=2, says=says)

    def test_values_of_flags(self):
        for flag, value, limit in (
            ("temperature", "-0.5", "0"),
            ("temperature", "nan", "0"),
            ("temperature", "inf", "100"),
            ("temperature", "warm", ""),
            ("top_p", "1.5", "1"),
            ("top_p", "-0.5", "0"),
            ("top_k", "-1", "0"),
            ("top_k", "1.5", ""),
            ("min_p", "1.5", "1"),
            ("presence_penalty", "101", "100"),
            ("frequency_penalty", "-101", "-100"),
            ("penalty_decay", "1.5", "1"),
            ("logprobs", "21", "20"),
            ("logprobs", "-1", "0"),
            ("ban", "257", "256"),
            ("ban", "-1", "0"),
            ("ban", "x", ""),
            ("ban", "4294967297", ""),
            ("seed", "-1", "0"),
            ("seed", "18446744073709551616", "18446744073709551615"),
            ("seed", "x", "0"),
            ("max_tokens", "-1", "0"),
            ("max_tokens", "9999999999999999999", "1073741824"),
            ("max_model_len", "0", "1"),
            ("max_num_batched_tokens", "0", "1"),
            ("max_num_batched_tokens", "8193", "8192"),
            ("threads", "-1", "0"),
            ("threads", "1025", "1024"),
            ("cache_dtype", "f64", "bf16"),
            ("verify", "some", "finite"),
        ):
            with self.subTest(flag, value=value):
                says = ["--" + flag.replace("_", "-"), value, limit]
                self.refuses(*generate("And ", **{flag: value}), code=2, says=says)

    def test_replan(self):
        serve = ("serve", "--model", DEMO_MODEL, "--replan")
        says = "--replan changes the split, and --split is 0-2,3-5: give auto, border or balanced"
        self.refuses(*serve, "--split", "0-2,3-5", code=2, says=says)
        for gain in ("0", "1.5", "nan", "much"):
            with self.subTest(gain=gain):
                self.refuses(*serve, "--replan-gain", gain, code=2, says=["--replan-gain", gain])
        self.refuses(*serve, "--replan-after", "0", code=2, says="--replan-after")

    def test_the_old_name_of_the_metrics_port(self):
        says = "--port is now --metrics-port; --port is reserved for the HTTP API"
        for command in ("serve", "coordinator"):
            for port in ("9090", "0", "-1"):
                with self.subTest(command, port=port):
                    self.refuses(command, "--model", DEMO_MODEL, "--port", port, code=2, says=says)
        self.refuses("worker", "--coordinator", "127.0.0.1:1", "--port", "0", code=2, says="--port")

    def test_logit_bias(self):
        for value, says in (
            ("257=1", ["257", "256"]),
            ("-1=1", ["-1", "0"]),
            ("1=101", ["101", "100"]),
            ("1=nan", ["nan", "100"]),
            ("1", '"1", expected ID=BIAS'),
            ("1=2=3", '"1=2=3", expected ID=BIAS'),
            ("x=1", '"x=1", expected ID=BIAS'),
            ("1=x", '"1=x", expected ID=BIAS'),
        ):
            with self.subTest(value):
                arguments = generate("And ", logit_bias=value)
                self.refuses(*arguments, code=2, says=["--logit-bias", *listed(says)])

    def test_every_token_banned(self):
        self.refuses(*generate("And ", ban=list(range(257))), code=2, says=["--ban", "257"])

    def test_stop_strings(self):
        self.refuses(*generate("And ", stop=""), code=2, says=["--stop", "empty"])
        self.refuses(*generate("And ", stop=["a", b"\xff"]), code=2, says=["--stop", "stop string 1", "UTF-8"])


class PromptTest(ProgramTest):
    def test_empty(self):
        empty = self.write("empty.txt", "")
        for name, arguments in (
            ("flag", generate("")),
            ("file", generate(prompt_file=empty)),
            ("standard input", generate()),
            ("chat", generate("", chat=True)),
            ("chat, white space", generate(" \n\n", chat=True)),
        ):
            with self.subTest(name):
                self.refuses(*arguments, code=2, says="the prompt is empty")

    def test_too_long(self):
        self.refuses(
            *generate("x" * 11, max_model_len=10), code=2, says="prompt has 11 tokens, --max-model-len is 10"
        )
        together = "prompt has 8 tokens and --max-tokens is 3, together more than --max-model-len, which is 10"
        self.refuses(*generate("x" * 8, max_tokens=3, max_model_len=10), code=2, says=together)
        self.refuses(
            *generate(max_model_len=10), stdin=b"x" * 100_000, says="standard input: more than 1280 bytes of text"
        )
        path = pathlib.Path("/dev/zero")
        self.refuses(*generate(prompt_file=path, max_model_len=10), says="/dev/zero: more than 1280 bytes of text")

    def test_not_utf8(self):
        for content, position in (
            (b"\xff", 0),
            (b"abc\x80", 3),
            (b"\xc3\xa9\xc0\xaf", 2),
            (b"ab\xed\xa0\x80", 2),
            (b"abc\xf0\x9f\x98", 3),
            (b"x" * 70_000 + b"\xc3(", 70_000),
        ):
            says = f"not UTF-8 at byte {position}"
            with self.subTest(content[-8:]):
                self.refuses(*generate(), stdin=content, says=f"standard input: {says}")
                path = self.write("prompt.txt", content)
                self.refuses(*generate(prompt_file=path), says=f"{path}: {says}")
                self.refuses("tokenize", *flags(vocab="bytes", file=path), says=f"{path}: {says}")
                self.refuses(*generate(content), says=f"--prompt: {says}")
                self.refuses("tokenize", *flags(vocab="bytes", text=content), says=f"--text: {says}")

    def test_no_file(self):
        none = self.folder / "none"
        self.refuses(*generate(prompt_file=none), says=f"{none}: cannot be read: No such file or directory")
        self.refuses(*generate(prompt_file=self.folder), says=f"{self.folder}: cannot be read: Is a directory")
        self.refuses("tokenize", *flags(vocab="bytes", file=none), says=f"{none}: cannot be read")


class TokenIdsTest(ProgramTest):
    def test_detokenize(self):
        for ids, says in (
            ("257", ["257", "0 to 256"]),
            ("1 2 -1", ["-1", "position 2", "0 to 256"]),
            ("4294967297", "4294967297"),
            ("1.5", "1.5"),
            ("1 two", "two"),
        ):
            with self.subTest(ids):
                self.refuses("detokenize", *flags(vocab="bytes", text=ids), code=2, says=says)

    def logits(self, tokens, **values):
        out = self.folder / "logits.npy"
        return ["logits", *flags(**{"model": DEMO_MODEL, "tokens": tokens, "out": out, "threads": 1, **values})]

    def refuses_tokens(self, tokens, says, **values):
        says = [tokens, *listed(says)]
        self.refuses(*self.logits(tokens, **values), says=says)
        self.assertFalse([path for path in self.folder.iterdir() if path.name.startswith("logits")])

    def test_ids_outside_the_vocabulary(self):
        self.refuses_tokens(self.write_tokens([1, 2, 257]), ["element 2 is 257", "0 to 256"])
        self.refuses_tokens(self.write_tokens([-1]), ["element 0 is -1", "0 to 256"])
        path = checkpoints.write_npy(self.folder / "wide.npy", [0, 1 << 40], "<i8")
        self.refuses_tokens(path, ["element 1 is 1099511627776", "2147483647"])

    def test_lengths(self):
        self.refuses_tokens(self.write_tokens([]), "empty")
        self.refuses_tokens(self.write_tokens([1] * 11), ["has 11 elements", "the limit is 10"], max_model_len=10)

    def test_arrays(self):
        write = checkpoints.write_npy
        self.refuses_tokens(write(self.folder / "floats.npy", [1, 2], "<f4"), ["<f4", "expected integers"])
        self.refuses_tokens(write(self.folder / "table.npy", [1, 2, 3, 4], shape=(2, 2)), "has 2 axes")
        for shape in ((-3,), (1 << 62, 4), (1 << 64,), (3, 0), (2,)):
            with self.subTest(shape):
                self.refuses_tokens(write(self.folder / "bad.npy", [1, 2, 3], shape=shape), "the ")
        good = self.write_tokens([1, 2, 3]).read_bytes()
        for name, content, says in (
            ("empty", b"", "not a .npy file"),
            ("text", b"1 2 3 4 5 6 7 8", "not a .npy file"),
            ("short", good[:-1], ["3 elements of 4 bytes", "11 bytes"]),
            ("long", good + b"\0", "13 bytes"),
            ("cut header", good[:40], "a file of 40"),
            ("version", good[:6] + b"\x09" + good[7:], "version 9"),
            ("order", good.replace(b"False", b"True "), "Fortran order"),
            ("endian", good.replace(b"<i4", b">i4"), ">i4"),
            ("no descr", good.replace(b"descr", b"DESCR"), "descr"),
            ("no shape", good.replace(b"(3,)", b"(x,)"), "x"),
            ("strings", good.replace(b"'<i4'", b"'U4' "), "U4"),
        ):
            with self.subTest(name):
                self.refuses_tokens(self.write("bad.npy", content), says)

    def test_no_file(self):
        self.refuses_tokens(self.folder / "none.npy", "cannot be read: No such file or directory")
        self.refuses_tokens(self.folder, "not a regular file")
        self.refuses_tokens("/dev/zero", "not a regular file")


class UnwritableTest(ProgramTest):
    def refuses_out(self, out, says=""):
        arguments = flags(model=DEMO_MODEL, tokens=self.write_tokens([1] * 100), out=out, threads=1)
        self.refuses("logits", *arguments, says=[f"{out}: cannot be written: ", says])

    def test_no_folder(self):
        self.refuses_out(self.folder / "none" / "logits.npy", "No such file or directory")
        self.refuses_out(self.write("file", "") / "logits.npy", "Not a directory")

    def test_folder(self):
        arguments = flags(model=DEMO_MODEL, tokens=self.write_tokens([1]), out=self.folder, threads=1)
        self.refuses("logits", *arguments, says=f"{self.folder}: is a folder")

    def test_read_only_folder(self):
        folder = self.folder / "read_only"
        folder.mkdir(mode=0o555)
        # Root may write there nevertheless, but nobody here.
        self.refuses_out((pathlib.Path("/proc/sys") if os.access(folder, os.W_OK) else folder) / "logits.npy")

    def test_full_device(self):
        """Through a link: should the device itself be replaced, the link is all that is lost."""
        link = self.folder / "full"
        link.symlink_to("/dev/full")
        self.refuses_out(link, "No space left on device")
        self.assertTrue(link.is_symlink())
