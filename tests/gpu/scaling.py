#!/usr/bin/env python3
"""Pipelines of several devices, COMPUTED from the times of single stages: nothing here has run on several devices.

A prompt of n chunks takes, on S stages whose times for a chunk are t_1 .. t_S and which send for x_1 .. x_S,

  sum(t_i + x_i) + (n - 1) * max(t_1, .., t_S, x_1, .., x_S)

since sending goes on beside the next chunk's work. With equal stages and no time to send that is n/(n+S-1) of S
devices. Efficiency: the time of one device over S times that.
"""

import argparse
import json
import pathlib
import sys

COLUMNS = "{:>7} {:>7} {:>9} {:>9} {:>12} {:>12} {:>11} {:>13}"


def prompt_seconds(stage_seconds, send_seconds, chunks):
    """The time of a prompt of `chunks` chunks, as the formula above says."""
    slowest = max(*stage_seconds, *send_seconds)
    return sum(stage_seconds) + sum(send_seconds) + (chunks - 1) * slowest


def rows(stage_times, prompt_tokens, link_bytes_per_second):
    """One a number of stages: what the table shows."""
    single = next(entry for entry in stage_times if entry["stages"] == 1)
    for entry in stage_times:
        stages, seconds = entry["stages"], entry["seconds"]
        chunks = -(-prompt_tokens // entry["chunk_tokens"])
        sends = [size / link_bytes_per_second for size in entry["sent_bytes"]]
        alone = prompt_seconds(single["seconds"], [0.0], chunks)
        whole = prompt_seconds(seconds, sends, chunks)
        yield {
            "stages": stages,
            "chunks": chunks,
            "fill": chunks / (chunks + stages - 1),
            "balance": sum(seconds) / stages / max(seconds),
            "stage_seconds": max(seconds),
            "send_seconds": max(sends),
            "efficiency": alone / (stages * whole),
            "tokens_per_second": prompt_tokens / whole,
        }


def predicted(arguments):
    """stage_times as model_bench would write them, from a rate and counts instead of a measurement."""
    times = []
    chunk_seconds = arguments.chunk_tokens / arguments.predicted_rate
    for stages in (1, 2, 4, 8):
        times.append(
            {
                "stages": stages,
                "chunk_tokens": arguments.chunk_tokens,
                "seconds": [chunk_seconds / stages] * stages,
                "sent_bytes": [arguments.chunk_tokens * arguments.width * 4] * (stages - 1) + [0],
            }
        )
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=pathlib.Path, nargs="?", help="what model_bench --json wrote")
    parser.add_argument("--predicted-rate", type=float, help="tokens a second of one device, instead of a file")
    parser.add_argument("--width", type=int, default=2048, help="of the model, with --predicted-rate")
    parser.add_argument("--max-num-batched-tokens", dest="chunk_tokens", type=int, default=8192, help="likewise")
    parser.add_argument("--link-gb-per-second", type=float, default=25.0, help="between two devices, one way [25]")
    parser.add_argument("--prompt-tokens", type=int, default=1 << 20, help="[1048576]")
    arguments = parser.parse_args()
    if (arguments.json is None) == (arguments.predicted_rate is None):
        parser.error("either a file or --predicted-rate")
    if arguments.json:
        measured = json.loads(arguments.json.read_text(encoding="utf-8"))
        times, source = measured.get("stage_times", []), f"stages measured alone on {measured.get('device')}"
        if not any(entry["stages"] == 1 for entry in times):
            print("scaling.py: no stage times in the file", file=sys.stderr)
            return 1
    else:
        times, source = predicted(arguments), "a PREDICTED rate, nothing measured"
    link = arguments.link_gb_per_second
    print(f"COMPUTED pre-fill of {arguments.prompt_tokens:,} tokens on S devices, from {source};")
    print(f"links of {link:g} GB/s")
    print(COLUMNS.format("S", "chunks", "n/(n+S-1)", "balance", "stage, ms", "send, ms", "efficiency", "tokens/s"))
    for row in rows(times, arguments.prompt_tokens, 1e9 * link):
        print(
            COLUMNS.format(
                row["stages"],
                row["chunks"],
                f"{row['fill']:.3f}",
                f"{row['balance']:.3f}",
                f"{1e3 * row['stage_seconds']:.3f}",
                f"{1e3 * row['send_seconds']:.3f}",
                f"{row['efficiency']:.3f}",
                f"{row['tokens_per_second']:,.0f}",
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
