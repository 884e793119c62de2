#!/usr/bin/env python3
"""Compares what `goldfinch plan` predicts of splits with what a server of each split does on this machine.

split_bench.py --model FILE [--model FILE...] [--split RANGES...] [--prompt-tokens N] [--output-tokens N]
               [--sequences N] [--threads N] [--program FILE] [--strict]

For each model and split: the rate at which prompts are read, the rate at which all sequences together are decoded after
a prompt, and the bytes that every stage receives, which must be equal. Without --split these are one stage, two and
three with a stage that begins at the border, two of equal layers, and two with a GOLD layer before the boundary. With
--strict a rate that is more than 15 % off, in either direction, is an error; other bytes always are. Nothing else
should run on the machine.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cluster" / "scenarios"))

import run  # noqa: E402

OFF_MAX = 0.15


def call(program, command, *flags):
    result = subprocess.run([program, command, *map(str, flags), "--json"], capture_output=True, check=False)
    if result.returncode != 0:
        raise run.Failure(f"goldfinch {command}: {result.stderr.decode(errors='backslashreplace').strip()}")
    return json.loads(result.stdout)


def usual_splits(layers, border):
    """Ranges, by the first layers of five splits."""
    firsts = [[0], [0, border], [0, layers // 2], [0, border // 2, border], [0, (border + layers) // 2]]
    if border == layers:  # no GOLD layers
        firsts = [[0], [0, layers // 2], [0, layers // 3], [0, layers // 3, 2 * layers // 3], [0, layers - 1]]
    unique = [list(first) for first in dict.fromkeys(tuple(first) for first in firsts)]
    return [",".join(f"{a}-{b - 1}" for a, b in zip(first, [*first[1:], layers])) for first in unique]


def traffic(prompt, output, sequences):
    return {"prompt": prompt, "output": output, "sequences": sequences}


def plan(program, serve_flags, load):
    expected = ("--expect-prompt-tokens", load["prompt"], "--expect-output-tokens", load["output"])
    expected += ("--expect-context-tokens", load["prompt"] + load["output"])
    return call(program, "plan", *serve_flags, *expected, "--expect-sequences", load["sequences"])["splits"][0]


def measure(program, server, load):
    lengths = ("--prompt-tokens", f"fixed:{load['prompt']}", "--output-tokens", f"fixed:{load['output']}")
    count = load["sequences"]
    report = call(program, "load-test", "--server", server, "--rate", 1000, "--requests", count, *lengths)
    if report["completed"] != count:
        raise run.Failure(f"{report['completed']} of {count} requests were answered: {report['errors']}")
    return report


def received(program, server):
    status = call(program, "status", "--server", server)["cluster"]
    kinds = ("hidden", "compressed", "ids")
    return [{kind: int(stage["received"][kind]) for kind in kinds} for stage in status["groups"][0]["stages"]]


def bench(args, model, split):
    """Prints a row for the split, and returns what is wrong with it."""
    flags = ["--model", model, "--split", split]
    flags += ["--max-model-len", 2 * (args.prompt_tokens + args.output_tokens)]
    flags += ["--threads", args.threads] if args.threads else []
    reading = traffic(args.prompt_tokens, 1, args.sequences)
    decoding = traffic(args.prompt_tokens, args.output_tokens, args.sequences)
    wrong, expected = [], None
    with run.server(args.program, [str(flag) for flag in flags]) as server:
        measure(args.program, server, traffic(64, 1, 1))  # warms up
        base = received(args.program, server)
        reads, decodes = measure(args.program, server, reading), measure(args.program, server, decoding)
        grown = [{k: now[k] - then[k] for k in now} for now, then in zip(received(args.program, server), base)]
        predicted = [plan(args.program, flags, load) for load in (reading, decoding)]
        expected = [
            {kind: args.sequences * (one["received"][kind] + two["received"][kind]) for kind in one["received"]}
            for one, two in zip(predicted[0]["stages"], predicted[1]["stages"])
        ]
    if grown != expected:
        wrong.append(f"{model}, {split}: stages received {grown}, expected {expected}")
    rates = [
        (predicted[0]["prefill_tokens_per_second"], reads["prompt_tokens_per_second"]),
        (predicted[1]["decode_tokens_per_second"], args.sequences / decodes["inter_token_seconds"]["p50"]),
    ]
    cells = [split]
    for what, (prediction, measured) in zip(("pre-fill", "decode"), rates):
        off = prediction / measured - 1
        cells += [f"{prediction:.4g}", f"{measured:.4g}", f"{100 * off:+.0f} %"]
        if args.strict and abs(off) > OFF_MAX:
            wrong.append(f"{model}, {split}: {what} is predicted {100 * off:+.0f} % off")
    print("| " + " | ".join(cells) + f" | {'equal' if grown == expected else 'DIFFERENT'} |", flush=True)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--split", action="append")
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--program", default=str(ROOT / "bazel-bin" / "clients" / "cli" / "goldfinch"))
    parser.add_argument("--strict", action="store_true")
    args = parser.parse_args()
    wrong = []
    try:
        for model in args.model:
            layers = call(args.program, "inspect", model)["layers"]
            border = sum(layer["kind"] != "gold" for layer in layers)
            print(f"\n{model}: {args.sequences} prompts of {args.prompt_tokens} tokens, tokens/s\n")
            print("| split | pre-fill predicted | measured | off | decode predicted | measured | off | bytes |")
            print("|---|---|---|---|---|---|---|---|", flush=True)
            for split in args.split or usual_splits(len(layers), border):
                wrong += bench(args, model, split)
    except run.Failure as failure:
        sys.exit(f"split_bench: {failure}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
