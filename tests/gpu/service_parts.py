#!/usr/bin/env python3
"""The service on the device, part by part, for run_all.sh: real servers, asked by the program's own clients.

  answers  a server of 1, 3 and 6 stages with the demo model recalls facts of a document, and always says the same
  stages   a model of 24 layers in 1, 3 and 8 stages says the same
  kill     a coordinator and three workers, one of them killed while streams run: the streams are those of an
           undisturbed run, token by token
  speed    the time to the first token of a long prompt, and latencies under load

Needs nothing but Python. Prints what it found as its last line, and rows for the table of figures to --figures. Exits
with 1 if a part fails.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time

SECONDS_MAX = 60  # of anything that is waited for
# Two tokens whose probabilities differ by no more are equal to the rounding of activations (docs/decisions/0010).
TIE_NATS = 0.1
ROW = "{:<48} {:>10} {:>18} {:>10} {:>6}  {:<30} {}"

FACTS = {"Kodaru": "41906", "Mitese": "73358", "Bavonil": "20417"}
VERSES = [
    "And God said, Let there be light: and there was light.",
    "And God saw the light, that it was good: and God divided the light from the darkness.",
    "And God called the light Day, and the darkness he called Night.",
    "And the evening and the morning were the first day.",
    "And God said, Let there be a firmament in the midst of the waters, and let it divide the waters from the waters.",
    "And God called the firmament Heaven. And the evening and the morning were the second day.",
    "And God said, Let the waters under the heaven be gathered together unto one place, and let the dry land appear.",
    "And God called the dry land Earth; and the gathering together of the waters called he Seas.",
]


class Failure(Exception):
    """What a part found wrong."""


def document(lines, seed=1):
    """Verses, with the facts among them."""
    rng = random.Random(seed)
    text = [rng.choice(VERSES) for _ in range(lines)]
    for number, (name, digits) in enumerate(FACTS.items()):
        text.insert((2 * number + 1) * lines // 7, f"The number of {name} is {digits}.")
    return "\n".join(text) + "\n"


class Process:
    """One running command of the program, in a process group of its own; what it logs goes to a file."""

    def __init__(self, bed, name, arguments):
        self.log = bed.out / f"{name}.log"
        with open(self.log, "ab") as log:
            self.popen = subprocess.Popen(
                [bed.program, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def ports(self):
        """What --ready-json says."""
        ready, _, _ = select.select([self.popen.stdout], [], [], SECONDS_MAX)
        line = self.popen.stdout.readline() if ready else b""
        if not line:
            raise Failure(f"it does not listen: {self.tail()}")
        return json.loads(line)

    def kill(self):
        """As kill -9; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def close(self):
        self.kill()
        self.popen.stdout.close()

    def tail(self):
        lines = self.log.read_text(errors="backslashreplace").splitlines()
        return f"{self.log.name}: {' | '.join(lines[-3:])}"


class Bed:
    """The program, the device, and what was started: all of it ends with the part."""

    def __init__(self, arguments, stack):
        self.program = str(arguments.program.resolve())
        self.arguments = arguments
        self.out = arguments.out
        self.device = arguments.device
        self.stack = stack
        self.demo_model = arguments.root / "tests/demo_model/model.pth"
        self.folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def start(self, name, arguments):
        process = Process(self, f"{self.arguments.part}.{name}", arguments)
        self.stack.callback(process.close)
        return process

    def compute_flags(self):
        """Activations of fp32: what is compared then differs by little but the order of sums."""
        return ["--device", self.device, "--dtype", "f32"] + (["--threads", 1] if self.device == "cpu" else [])

    def serve(self, name, model, stages, *flags):
        """An embedded server, ready. Returns (its process, HOST:PORT)."""
        arguments = ["serve", "--model", model, "--pipeline-parallel-size", stages]
        arguments += ["--grpc-port", 0, "--metrics-port", -1, "--ready-json"]
        process = self.start(name, [*arguments, *flags])
        address = f"127.0.0.1:{process.ports()['grpc_port']}"
        self.wait_ready(address, process, stages)
        return process, address

    def status(self, address):
        done = subprocess.run(
            [self.program, "status", "--server", address, "--json"], capture_output=True, text=True, check=False
        )
        return json.loads(done.stdout)["cluster"] if done.returncode == 0 else {}

    def wait_ready(self, address, process, stages):
        """Until one group of so many stages is ready."""
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            groups = self.status(address).get("groups", [])
            if groups and groups[0].get("state") == "READY" and len(groups[0].get("stages", [])) == stages:
                return groups[0]
            if time.monotonic() > deadline or process.popen.poll() is not None:
                raise Failure(f"no {stages} stages get ready: {process.tail()}")
            time.sleep(0.05)

    def generate(self, address, prompt, tokens, *flags):
        """What `generate --json` says."""
        file = self.folder / f"prompt-{threading.get_ident()}.txt"
        file.write_text(prompt, encoding="ascii")
        command = ["generate", "--server", address, "--prompt-file", file, "--max-tokens", tokens, "--json"]
        command += ["--ignore-eos", "--logprobs", 2, "--deadline", SECONDS_MAX, *flags]
        done = subprocess.run(
            [self.program, *map(str, command)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Failure(f"generate: {done.stderr.strip().splitlines()[-1:]}")
        return json.loads(done.stdout)

    def figure(self, quantity, measured, rate="", aim="", verdict=""):
        """A row of the table of figures, in the columns of the benches."""
        with open(self.arguments.figures, "a", encoding="utf-8") as file:
            print(ROW.format(quantity, measured, rate, "", "", aim, verdict).rstrip(), file=file)


GREEDY = ("--temperature", 0, "--presence-penalty", 0, "--frequency-penalty", 0)


def compare(ours, expected, what):
    """True if the answers are equal; False if they part where two tokens are equal to rounding; else a Failure."""
    pairs = list(zip(ours["tokens"], expected["tokens"]))
    if len(ours["tokens"]) != len(expected["tokens"]):
        raise Failure(f"{what}: {len(ours['tokens'])} tokens, expected {len(expected['tokens'])}")
    for number, (one, other) in enumerate(pairs):
        if one["id"] == other["id"]:
            continue
        likely = {top["id"]: top["logprob"] for top in other["top"]}
        if one["id"] in likely and abs(likely[one["id"]] - likely.get(other["id"], -1e9)) <= TIE_NATS:
            return False
        raise Failure(f"{what}: token {number} is {one['id']}, expected {other['id']} ({likely})")
    return True


def said(equal, answers):
    """For a note: how many answers were equal."""
    return f"{equal} of {answers} answers equal" + ("" if equal == answers else ", the others to rounding")


def answers(bed):
    """Facts recalled through servers of several stages."""
    text = document(40 if bed.arguments.tiny else 200)
    expected, equal, right = [], 0, 0
    stages_of = (1, 3, 6)
    for stages in stages_of:
        process, address = bed.serve(f"serve{stages}", bed.demo_model, stages, *bed.compute_flags(), "--memory", "4GiB")
        for number, (name, digits) in enumerate(FACTS.items()):
            answer = bed.generate(address, f"{text}What is the number of {name}? ", len(digits), *GREEDY)
            right += answer["text"] == digits
            if stages == stages_of[0]:
                expected.append(answer)
            equal += compare(answer, expected[number], f"{stages} stages, {name}")
        process.kill()
    asked = len(stages_of) * len(FACTS)
    if right < asked:
        raise Failure(f"{right} of {asked} facts recalled")
    return f"{right} of {asked} facts recalled by 1, 3 and 6 stages; {said(equal, asked)}"


def stages(bed):
    """One model in 1, 3 and 8 stages."""
    model = bed.folder / "model.safetensors"
    width = 128 if bed.arguments.tiny else 512
    subprocess.run(
        [bed.arguments.bench_model, "--out", model, "--layers", "24", "--width", str(width), "--vocab-size", "257"],
        check=True,
    )
    expected, equal = [], 0
    for count in (1, 3, 8):
        process, address = bed.serve(f"serve{count}", model, count, *bed.compute_flags(), "--memory", "4GiB")
        for number in range(2):
            text = document(10 if bed.arguments.tiny else 100, seed=number)
            answer = bed.generate(address, text, 12 if bed.arguments.tiny else 60, *GREEDY)
            if count == 1:
                expected.append(answer)
            equal += compare(answer, expected[number], f"{count} stages, answer {number}")
        process.kill()
    return f"24 layers in 1, 3 and 8 stages: {said(equal, 6)}"


class Streams:
    """Several answers at once, each by a client process."""

    def __init__(self, bed, address, tokens):
        self.answers = {}
        self.errors = []
        self.threads = []
        for number in range(5):
            prompt = document(10, seed=number)
            thread = threading.Thread(target=self._run, args=(bed, address, number, prompt, tokens))
            thread.start()
            self.threads.append(thread)

    def _run(self, bed, address, number, prompt, tokens):
        try:
            self.answers[number] = bed.generate(address, prompt, tokens, *GREEDY)
        except Exception as error:  # pylint: disable=broad-except
            self.errors.append(str(error))

    def join(self):
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise Failure(self.errors[0])
        return self.answers


def kill(bed):
    """A worker is killed while streams run."""
    tokens = 60 if bed.arguments.tiny else 400
    coordinator = bed.start(
        "coordinator",
        ["coordinator", "--model", bed.demo_model, "--pipeline-parallel-size", 3, "--max-model-len", 16384]
        + ["--grpc-port", 0, "--cluster-port", 0, "--metrics-port", -1, "--ready-json", "--cache-tokens", 65536]
        + ["--heartbeat-interval", 0.2, "--heartbeat-timeout", 2, "--regroup-wait", 0.2],
    )
    ports = coordinator.ports()
    address = f"127.0.0.1:{ports['grpc_port']}"
    workers = {}

    def add(name):
        workers[name] = bed.start(
            name,
            ["worker", "--coordinator", f"127.0.0.1:{ports['cluster_port']}", "--name", name, "--memory", "4GiB"]
            + [*bed.compute_flags(), "--transport", "tcp"],
        )

    # Three stages, and one that stands by.
    for number in range(4):
        add(f"w{number}")
    bed.wait_ready(address, coordinator, 3)
    start = time.monotonic()
    undisturbed = Streams(bed, address, tokens).join()
    whole = time.monotonic() - start
    rng = random.Random(1)
    rounds, equal, recoveries = 2 if bed.arguments.tiny else 3, 0, 0
    for number in range(rounds):
        streams = Streams(bed, address, tokens)
        time.sleep(whole * rng.uniform(0.3, 0.6))
        group = bed.wait_ready(address, coordinator, 3)
        victim = rng.choice([stage["worker"] for stage in group["stages"]])
        workers.pop(victim).kill()
        add(f"r{number}")
        for stream, answer in streams.join().items():
            equal += compare(answer, undisturbed[stream], f"round {number}, stream {stream}")
            recoveries += answer["recoveries"]
        bed.wait_ready(address, coordinator, 3)
    if recoveries == 0:
        raise Failure(f"{rounds} workers were killed and no stream noticed: they were too short")
    return f"{rounds} workers killed, {recoveries} streams recovered; {said(equal, 5 * rounds)}"


def load_test(bed, address, *flags):
    command = [bed.program, "load-test", "--server", address, "--json", *map(str, flags)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"load-test: {done.stderr.strip().splitlines()[-1:]}")
    result = json.loads(done.stdout)
    if result["failed"]:
        raise Failure(f"load-test: {result['errors']}")
    return result


def long_prompt(bed, tokens):
    """About so many tokens of words on one line, and the vocabulary that counts them."""
    vocabulary = bed.arguments.root / "third_party/world_vocab/rwkv_vocab_v20230424.txt"
    rng = random.Random(1)
    if not vocabulary.exists():
        line = " ".join(rng.choice(VERSES) for _ in range(tokens // 50))
        return line[:tokens], "bytes"
    words = re.findall(r"^\d+ '( [a-z]+)' \d+$", vocabulary.read_text(encoding="utf-8"), re.MULTILINE)
    return "".join(rng.choices(words, k=tokens)), vocabulary


def milliseconds(seconds):
    return f"{1e3 * seconds:.3f} ms" if seconds < 10 else f"{1e3 * seconds:.0f} ms"


def speed(bed):
    """Latencies of a server of one stage with the model of the bench."""
    tiny = bed.arguments.tiny
    tokens, chunk = (2000, 64) if tiny else (1 << 20, 8192)
    text, vocabulary = long_prompt(bed, tokens)
    prompt = bed.folder / "long.txt"
    prompt.write_text(text, encoding="utf-8")
    flags = ["--vocab", vocabulary, "--device", bed.device, "--verify", "none", "--max-num-batched-tokens", chunk]
    flags += ["--max-model-len", tokens + 65536, "--cache-tokens", 2 * (tokens + 65536), "--max-num-seqs", 64]
    _, address = bed.serve("serve", bed.arguments.model, 1, *flags)
    warm = f"fixed:{min(tokens, 65536)}"
    load_test(bed, address, "--requests", 1, "--prompt-tokens", warm, "--output-tokens", "fixed:8")
    firsts = []
    for _ in range(2):
        result = load_test(bed, address, "--requests", 1, "--prompt-file", prompt, "--output-tokens", "fixed:1")
        firsts.append(result["time_to_first_token_seconds"]["max"])
    read = result["prompt_tokens"]
    kind = "bytes" if vocabulary == "bytes" else "World tokens"
    bed.figure(
        f"first token of {read:,} {kind}, by gRPC",
        milliseconds(firsts[-1]),
        f"{read / firsts[-1]:.0f} tokens/s",
        "<= 3600 ms",
        "met" if firsts[-1] <= 3.6 else "MISSED",
    )
    rate, seconds = (20, 1) if tiny else (40, 10)
    flags = ["--rate", rate, "--duration", seconds, "--prompt-tokens", "lognormal:512:1", "--output-tokens", "fixed:64"]
    if tiny:
        flags[-3:] = ["fixed:16", "--output-tokens", "fixed:4"]
    result = load_test(bed, address, *flags)
    latencies = {"time to first token": "time_to_first_token_seconds", "between tokens": "inter_token_seconds"}
    for name, key in latencies.items():
        for share in ("p50", "p99"):
            bed.figure(
                f"{result['requests_per_second']:.0f} requests/s, {name}, {share}",
                milliseconds(result[key][share]),
                f"{result['output_tokens_per_second']:.0f} tokens/s out",
            )
    return f"first token of {read:,} {kind} after {firsts[-1]:.2f} s; {result['completed']} requests under load"


PARTS = {"answers": answers, "stages": stages, "kill": kill, "speed": speed}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--program", type=pathlib.Path, required=True, help="goldfinch")
    parser.add_argument("--bench-model", type=pathlib.Path, help="the program that makes models, for stages")
    parser.add_argument("--model", type=pathlib.Path, help="for speed")
    parser.add_argument("--root", type=pathlib.Path, required=True, help="where tests/demo_model is")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for logs")
    parser.add_argument("--figures", type=pathlib.Path, required=True, help="file to append rows to")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes: the times mean nothing")
    arguments = parser.parse_args()
    # A part that is stopped at its time limit leaves no server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped at the time limit"))
    with contextlib.ExitStack() as stack:
        try:
            print(PARTS[arguments.part](Bed(arguments, stack)))
        except (Failure, subprocess.SubprocessError, OSError) as error:
            print(f"FAILED: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
