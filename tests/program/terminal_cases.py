"""Progress bars, interrupts, and readers that go away."""

import os
import pty
import re
import resource
import select
import signal
import subprocess
import time

from program import DEMO_MODEL, PAGE, SECONDS_MAX, ProgramTest, command, flags, generate, run

LONG_PROMPT = PAGE * 200  # read for many seconds


def left_on_screen(output):
    """What a terminal shows in the end of output that returns to the start of a line and clears it."""
    return re.sub(r"[^\n]*\r\x1b\[K", "", output.replace("\r\n", "\n"))


def start(arguments, stderr, stdout=subprocess.PIPE):
    # A parent that runs in the background has interrupts ignored, and its children with it.
    return subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


class Terminal:
    """A running program with its standard error, or its standard output, on a terminal."""

    def __init__(self, arguments, output=False):
        self._master, terminal = pty.openpty()
        pipe = subprocess.PIPE
        self.process = start(arguments, **({"stdout": terminal, "stderr": pipe} if output else {"stderr": terminal}))
        os.close(terminal)
        self.shown = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        os.close(self._master)

    def read(self, until=None):
        """Reads until the text is shown, or to the end."""
        deadline = time.monotonic() + SECONDS_MAX
        while until is None or until not in self.shown:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no {until!r} in {self.shown!r}")
            try:
                part = os.read(self._master, 1 << 16)
            except OSError:  # how Linux says that the other end is closed
                part = b""
            if not part:
                return
            self.shown += part.decode()


class ProgressTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.long_prompt = self.write("long.txt", LONG_PROMPT)

    def test_bar_while_a_long_prompt_is_read_and_an_interrupt_then(self):
        with Terminal(generate(prompt_file=self.long_prompt, max_num_batched_tokens=16)) as terminal:
            terminal.read(until="tokens/s")
            bar = rf"\r\x1b\[Kreading the prompt \[#*\.*\] [\d,]+ of {len(LONG_PROMPT):,} tokens, [\d,]+ tokens/s"
            self.assertRegex(terminal.shown, bar)
            terminal.process.send_signal(signal.SIGINT)
            output, _ = terminal.process.communicate(timeout=SECONDS_MAX)
            self.assertEqual((terminal.process.returncode, output), (-signal.SIGINT, b""))

    def test_bar_is_gone_in_the_end(self):
        """With the shortest prompt, by and large, that shows one."""
        size, shown = 500, ""
        while "reading the prompt" not in shown:
            self.assertLessEqual(size, len(LONG_PROMPT), "no bar however long the prompt")
            arguments = generate(LONG_PROMPT[:size], max_num_batched_tokens=1, max_tokens=3)
            with Terminal(arguments) as terminal:
                terminal.read()
                self.assertEqual(terminal.process.wait(), 0)
                self.assertEqual(len(terminal.process.stdout.read()), 4)
            size, shown = size * 2, terminal.shown
        self.assertRegex(left_on_screen(shown), r"\Aprompt [^\r\x1b]+\n\Z")

    def test_errors_on_a_terminal(self):
        with Terminal(["inspect", self.folder / "none.pth"]) as terminal:
            terminal.read()
            self.assertEqual(terminal.process.wait(), 1)
            self.assertRegex(terminal.shown, r"\Agoldfinch: [^\r\n]+: No such file or directory\r\n\Z")

    def test_no_bar_elsewhere(self):
        arguments = generate(prompt_file=self.long_prompt, max_num_batched_tokens=16)
        with start(arguments, stderr=subprocess.PIPE) as process:
            # The time in which a terminal would have shown several.
            with self.assertRaises(subprocess.TimeoutExpired):
                process.communicate(timeout=2)
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.communicate(timeout=SECONDS_MAX), (b"", b""))


class ControlsTest(ProgramTest):
    """Text of a model on a terminal, and in a pipe. The token of a byte is its value plus one."""

    HOSTILE = "\x1b[2J\x9b\u202e\r\x7f\tx\n"
    SHOWN = "\\x1b[2J\\u009b\\u202e\\x0d\\x7f\tx\n"

    def check(self, arguments, text, shown):
        self.assertEqual(run(*arguments).stdout.decode(), text)
        with Terminal(arguments, output=True) as terminal:
            terminal.read()
            self.assertEqual(terminal.shown.replace("\r\n", "\n").expandtabs(), shown.expandtabs())

    def test_detokenize(self):
        ids = " ".join(str(byte + 1) for byte in self.HOSTILE.encode())
        self.check(["detokenize", *flags(vocab="bytes", text=ids)], self.HOSTILE, self.SHOWN)

    def test_generate(self):
        """The model is made to say one byte again and again: a whole character, or the start of one."""
        for byte, text, shown in ((0x1B, "\x1b", "\\x1b"), (0xE2, "\ufffd", "\ufffd")):
            arguments = generate("And ", max_tokens=3, logit_bias=f"{byte + 1}=100")
            self.check(arguments, text * 3 + "\n", shown * 3 + "\n")


class EndTest(ProgramTest):
    def start(self):
        """A run that does not end by itself."""
        return start(generate("And ", max_tokens=1 << 19, ignore_eos=True), stderr=subprocess.PIPE)

    def test_text_comes_as_it_is_made_and_an_interrupt_ends_it(self):
        with self.start() as process:
            self.assertTrue(os.read(process.stdout.fileno(), 1))
            self.assertIsNone(process.poll())
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=SECONDS_MAX)
            self.assertEqual((process.returncode, errors), (-signal.SIGINT, b""))

    def test_reader_that_goes_away(self):
        with self.start() as process:
            self.assertTrue(os.read(process.stdout.fileno(), 1))
            process.stdout.close()
            errors = process.stderr.read()
            self.assertEqual(process.wait(), 1)
            self.assertEqual(errors, b"goldfinch: standard output cannot be written\n")

    def test_full_disk_behind_standard_output(self):
        commands = {
            "generate": generate("And ", max_tokens=3),
            "generate --json": generate("And ", max_tokens=3, json=True),
            "generate, no token": generate("And ", max_tokens=0),
            "inspect": ["inspect", DEMO_MODEL],
            "inspect --json": ["inspect", "--json", DEMO_MODEL],
            "tokenize": ["tokenize", *flags(vocab="bytes", text="And")],
            "detokenize": ["detokenize", *flags(vocab="bytes", text="66")],
            "help": ["generate", "--help"],
        }
        for name, arguments in commands.items():
            with self.subTest(name), open("/dev/full", "wb") as full:
                result = run(*arguments, stdout=full)
                self.check_refusal(result, 1, "standard output cannot be written")

    def test_full_disk_behind_out(self):
        def limit_files():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

        tokens = self.write_tokens([1] * 100)
        out = self.folder / "logits.npy"
        arguments = ["logits", *flags(model=DEMO_MODEL, tokens=tokens, out=out, threads=1)]
        self.refuses(*arguments, says=f"{out}: cannot be written: File too large", preexec_fn=limit_files)
        self.assertFalse(out.exists())
