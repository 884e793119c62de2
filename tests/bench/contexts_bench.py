#!/usr/bin/env python3
"""Measures what kept texts save and what keeping them costs, with servers that it starts on this machine.

contexts_bench.py [--model FILE] [--program FILE] [--tokens N] [--rounds N] [--stages N] [--threads N]

Prints, for a document of N tokens (16,384 unless said otherwise) of random words:
- the time to the first token: of a cold document, of another question after it, of the same prompt again, and of both
  after a restart of the server, from the folder of contexts on disk;
- what snapshots cost pre-fill: prompts that nobody asks for again, with the prefix cache and without, by turns, so that
  what else the machine does falls on both;
- the bytes of a context beside those of a transformer of the same shape;
- pages in use, kept rows and the time to the first token when 1, 8 and 64 questions are asked at once about a document;
- how many of the tokens are spared when twice as many documents are asked about, in turn, as the memory holds.

Nothing else should run on the machine.
"""

import argparse
import concurrent.futures
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cluster" / "scenarios"))

import run  # noqa: E402

QUESTIONS = 5


def call(program, *arguments):
    result = subprocess.run([program, *map(str, arguments), "--json"], capture_output=True, check=False)
    if result.returncode != 0:
        raise run.Failure(f"goldfinch {arguments[0]}: {result.stderr.decode(errors='backslashreplace').strip()}")
    return json.loads(result.stdout)


def text(seed, tokens):
    """One byte is one token of the demo model; other vocabularies take fewer tokens."""
    draw = random.Random(seed)
    words = []
    size = 0
    while size < tokens:
        words.append("".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(draw.randint(2, 9))))
        size += len(words[-1]) + 1
    return " ".join(words)[: tokens - 1] + "\n"


class Asker:
    def __init__(self, program, server, folder):
        self.program, self.server, self.file = program, server, pathlib.Path(folder) / "prompt.txt"

    def ask(self, prompt):
        """Returns the usage of a request for one token."""
        self.file.write_text(prompt)
        return call(self.program, "generate", "--server", self.server, "--prompt-file", self.file, "--max-tokens", 1)


def first_token(usage):
    return usage["queue_seconds"] + usage["prefill_seconds"]


def milliseconds(usages):
    return f"{1e3 * statistics.median(map(first_token, usages)):.1f} ms"


def serve_flags(args, *more):
    flags = ["--model", args.model, "--pipeline-parallel-size", args.stages, *more]
    return [str(flag) for flag in flags + (["--threads", args.threads] if args.threads else [])]


def bench_first_tokens(args, folder):
    store = pathlib.Path(folder) / "contexts"
    flags = serve_flags(args, "--context-dir", store)
    documents = [text(seed, args.tokens) for seed in range(QUESTIONS)]
    rows = []
    with run.server(args.program, flags) as server:
        asker = Asker(args.program, server, folder)
        asker.ask(text("warm", 256))
        cold = [asker.ask(document + "Question 0?") for document in documents]
        for question in (1, 2):  # after the second one, there is a snapshot where they part
            others = [asker.ask(document + f"Question {question}?") for document in documents]
        others = [asker.ask(document + "Question 3?") for document in documents]
        same = [asker.ask(document + "Question 0?") for document in documents]
        rows += [("cold", cold), ("another question, from memory", others), ("the same prompt, from memory", same)]
        contexts = [call(args.program, "context", "create", f"document {i}", "--server", server, "--text", document)
                    for i, document in enumerate(documents[:1])]
    with run.server(args.program, flags) as server:
        asker = Asker(args.program, server, folder)
        asker.ask(text("warm", 256))
        rows.append(("another question, from disk", [asker.ask(document + "Question 4?") for document in documents]))
        rows.append(("another question after that", [asker.ask(document + "Question 5?") for document in documents]))
    print(f"\nTime to the first token, documents of {args.tokens} tokens, median of {QUESTIONS}\n")
    print("| | first token | prompt tokens | cached |")
    print("|---|---|---|---|")
    for name, usages in rows:
        prompt = statistics.median(usage["prompt_tokens"] for usage in usages)
        cached = statistics.median(usage["cached_tokens"] for usage in usages)
        print(f"| {name} | {milliseconds(usages)} | {prompt:.0f} | {cached:.0f} |", flush=True)
    context = contexts[0].get("context", contexts[0])
    kept, transformer = int(context["bytes"]), int(context["transformer_bytes"])
    print(f"\nA context of {context['tokens']} tokens takes {kept:,} bytes; a transformer's, {transformer:,}: "
          f"{transformer / kept:.1f} times as many.", flush=True)


def read_rate(args, *more):
    with run.server(args.program, serve_flags(args, *more)) as server:
        lengths = ("--prompt-tokens", f"fixed:{args.tokens}", "--output-tokens", "fixed:1")
        load = ("load-test", "--server", server, "--rate", 1000, *lengths)
        call(args.program, *load, "--requests", 1, "--seed", 1)  # warms up, with another prompt than those that follow
        report = call(args.program, *load, "--requests", 8, "--seed", 2)
    return report["prompt_tokens_per_second"]


def bench_cost(args):
    kept, plain = [], []
    for _ in range(args.rounds):
        kept.append(read_rate(args))
        plain.append(read_rate(args, "--no-prefix-cache"))
    cost = statistics.median(1 - a / b for a, b in zip(kept, plain))
    print(f"\nReading prompts that are never asked for again: {statistics.median(kept):.0f} tokens/s with snapshots, "
          f"{statistics.median(plain):.0f} without; cost {100 * cost:+.1f} % (median of {args.rounds} pairs), aim at "
          f"most 2 %: {'met' if cost <= 0.02 else 'MISSED'}.", flush=True)


def bench_questions(args, folder):
    document = text(7, args.tokens)
    rows = []
    with run.server(args.program, serve_flags(args, "--max-num-seqs", 80)) as server:
        call(args.program, "context", "create", "document", "--server", server, "--text", document)

        def ask(question):
            flags = ("--context", "document", "--prompt", f"Question {question}?", "--max-tokens", 400)
            return call(args.program, "generate", "--server", server, *flags, "--ignore-eos")

        for count in (1, 8, 64):
            with concurrent.futures.ThreadPoolExecutor(count) as pool:
                usages = [pool.submit(ask, question) for question in range(count)]
                most = {"cache_bytes": 0, "gold_kept_bytes": 0}
                while not all(usage.done() for usage in usages):
                    now = call(args.program, "status", "--server", server)["cluster"]
                    most = {key: max(value, int(now[key])) for key, value in most.items()}
                    time.sleep(0.2)  # asking takes processors from what is measured
            usages = [usage.result() for usage in usages]
            first = [1e3 * first_token(usage) for usage in usages]
            rows.append((count, *most.values(), statistics.median(first), max(first)))
    print(f"\nQuestions at once about a document of {args.tokens} tokens that is kept\n")
    print("| questions | most bytes of pages | most bytes of kept rows | first token, median | last of them |")
    print("|---|---|---|---|---|")
    for count, pages, kept, median, last in rows:
        print(f"| {count} | {pages:,} | {kept:,} | {median:.1f} ms | {last:.1f} ms |", flush=True)


def bench_eviction(args, folder):
    count = 12
    documents = [text(100 + seed, args.tokens // 2) for seed in range(count)]
    with run.server(args.program, serve_flags(args)) as server:
        context = call(args.program, "context", "create", "one", "--server", server, "--text", documents[0])
        context = context.get("context", context)
    # A document is kept up to where questions part, and once more up to the end of the first question about it.
    memory = 2 * args.stages * int(context["bytes"]) * count // 2
    with run.server(args.program, serve_flags(args, "--context-memory", memory)) as server:
        asker = Asker(args.program, server, folder)
        draw = random.Random(1)
        # A few documents are asked about far more often than the others.
        weights = [1 / (1 + rank) for rank in range(count)]
        usages = [asker.ask(draw.choices(documents, weights)[0] + f"Question {i}?") for i in range(60)]
    cached, asked = (sum(usage[key] for usage in usages) for key in ("cached_tokens", "prompt_tokens"))
    print(f"\n{count} documents, twice what the memory for contexts holds, 60 questions: {100 * cached / asked:.0f} % "
          "of the tokens are spared.", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "tests" / "demo_model" / "model.pth"))
    parser.add_argument("--program", default=str(ROOT / "bazel-bin" / "clients" / "cli" / "goldfinch"))
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench_first_tokens(args, folder)
            bench_questions(args, folder)
            bench_cost(args)
            bench_eviction(args, folder)
    except run.Failure as failure:
        sys.exit(f"contexts_bench: {failure}")


if __name__ == "__main__":
    main()
