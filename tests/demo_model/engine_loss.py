#!/usr/bin/env python3
"""Loss of a byte-level model on held-out text, by the engine: bits a byte, as evaluate.py has them by PyTorch.

Reads the same pieces as evaluate.py, each from an empty state, through `goldfinch logits`. Standard library only.
"""

import argparse
import math
import pathlib
import subprocess
import sys
import tempfile

import recall_task

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "program"))

import checkpoints  # noqa: E402, the path is set above


def bits_of_piece(program, model, cache_dtype, ids, folder):
    """Sum over the bytes after the first."""
    tokens = checkpoints.write_npy(folder / "tokens.npy", ids[:-1])
    out = folder / "logits.npy"
    flags = ["--model", model, "--cache-dtype", cache_dtype, "--tokens", tokens, "--out", out]
    subprocess.run([program, "logits", *flags], check=True)
    (_, vocabulary), logits = checkpoints.read_npy(out)
    bits = 0.0
    for position, right in enumerate(ids[1:]):
        row = logits[position * vocabulary : (position + 1) * vocabulary]
        largest = max(row)
        total = sum(math.exp(logit - largest) for logit in row)
        bits -= (row[right] - largest - math.log(total)) / math.log(2)
    return bits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, nargs="+")
    parser.add_argument("--program", type=pathlib.Path, default="bazel-bin/clients/cli/goldfinch")
    parser.add_argument("--cache-dtype", default="bf16", help="f32, f16, bf16 or int8")
    parser.add_argument("--bytes", type=int, default=1024, help="of a piece")
    parser.add_argument("--pieces", type=int, default=64, help="spread evenly over the text")
    parser.add_argument("--text", help="file to use instead of the output of `bible`")
    args = parser.parse_args()

    _, held_out = recall_task.split_text(recall_task.load_text(args.text))
    step = (len(held_out) - args.bytes - 1) // max(1, args.pieces - 1)
    with tempfile.TemporaryDirectory() as folder:
        for model in args.model:
            bits = 0.0
            for piece in range(args.pieces):
                # Byte b is token b + 1.
                ids = [byte + 1 for byte in held_out[piece * step : piece * step + args.bytes + 1].encode()]
                bits += bits_of_piece(args.program, model, args.cache_dtype, ids, pathlib.Path(folder))
            print(f"{model}: {bits / (args.pieces * args.bytes):.4f} bits a byte", flush=True)


if __name__ == "__main__":
    main()
