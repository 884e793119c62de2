#!/usr/bin/env python3
"""Trains the demo model: a byte-level GoldFinch on the King James text, mixed with recall tasks.

Writes model.pth (bf16, the layout of the released checkpoints) and config.json. Needs PyTorch and `bible` (bible-kjv).
"""

import argparse
import json
import math
import os
import pathlib
import random
import sys
import tempfile
import time
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent
END_OF_TEXT = 0
DIM, LAYERS, RATIO, VOCABULARY = 128, 6, 3, 257
RECALL_SHARE = 0.7  # of the sequences
DIGIT_WEIGHT = 5.0


@dataclass(frozen=True)
class Phase:
    steps: int
    length: int  # tokens a sequence
    batch: int  # sequences a step, of all processes together
    rows: int  # last rows of a sequence that pass through GOLD and have a loss
    facts: int  # at most, in a sequence
    questions: int  # at most
    first_digit_weight: float  # in the loss; the other digits of an answer count DIGIT_WEIGHT, plain text 1
    start_rate: float
    end_rate: float


# Longer sequences teach recall over distance; they cost more, so they come when the skill is there. Dense ones, with
# many facts and questions, teach to tell names apart: only the first digit needs that, the others also follow the one
# before.
PHASES = (
    Phase(2000, 256, 8, rows=256, facts=3, questions=3, first_digit_weight=5, start_rate=3e-3, end_rate=8e-4),
    Phase(250, 1024, 2, rows=1024, facts=8, questions=4, first_digit_weight=5, start_rate=1e-3, end_rate=8.6e-4),
    Phase(600, 512, 4, rows=512, facts=6, questions=6, first_digit_weight=20, start_rate=1.5e-3, end_rate=4e-4),
    Phase(250, 2048, 2, rows=512, facts=16, questions=8, first_digit_weight=20, start_rate=5e-4, end_rate=5e-5),
)


def use_fast_settings():
    """Starts this program again with settings that libraries read only when they load; training is much faster so."""
    if "GLIBC_TUNABLES" in os.environ:
        return
    # Activations of a step are freed and allocated anew in the next: keep them mapped, in huge pages.
    huge = 1 << 32
    names = {"mmap_threshold": huge, "trim_threshold": huge, "hugetlb": 1}
    os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}={value}" for name, value in names.items())
    for library in ("OMP", "OPENBLAS"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    # OpenBLAS of Debian 12 takes newer processors for very old ones.
    if "avx512bw" in pathlib.Path("/proc/cpuinfo").read_text():
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    os.execv(sys.executable, [sys.executable, *sys.argv])


use_fast_settings()

import torch  # noqa: E402
import torch.distributed as distributed  # noqa: E402
import torch.multiprocessing  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import evaluate  # noqa: E402
import recall_task  # noqa: E402
from goldfinch import GoldFinch, initial_tensors  # noqa: E402


def plain_sequence(rng, text, length):
    begin = rng.randrange(len(text) - length)
    return text[begin : begin + length].encode(), [1.0] * length


def recall_sequence(rng, text, phase):
    """Text with facts, then questions about some of them. Returns bytes and the weight of predicting each.

    Facts weigh nothing and questions only as far as the context tells them: in plain text the model shall not tell
    facts or ask questions of its own accord.
    """
    facts = recall_task.make_facts(rng, rng.randint(1, phase.facts))
    asked = rng.sample(facts, min(len(facts), rng.randint(1, phase.questions)))
    asking = "".join(f"{recall_task.question(name)}{digits}.\n" for name, digits in asked)
    room = phase.length - len(asking) - sum(len(recall_task.fact_line(*fact)) for fact in facts)
    begin = rng.randrange(len(text) - room)
    passage = text[begin : begin + room - 1] + "\n"
    # At lines as in the test, or between any two words: short sequences have few lines.
    places = r"\n" if rng.random() < 0.5 else r"\s"
    document, placed = recall_task.insert_facts(rng, passage, facts, places)

    weights = [1.0] * len(document)
    for offset, fact in placed:
        size = len(recall_task.fact_line(*fact))
        weights[offset : offset + size] = [0.0] * size
    for name, digits in asked:
        question = recall_task.question(name)
        told = len(name) - 2 + len("? ")  # The first two letters tell which fact is meant, the rest follows.
        weights += [0.0] * (len(question) - told) + [1.0] * told
        weights += [phase.first_digit_weight] + [DIGIT_WEIGHT] * (len(digits) - 1) + [1.0] * len(".\n")
    return (document + asking).encode(), weights


def make_batch(rng, text, phase, batch):
    """tokens [batch, length + 1] and weights [batch, length] of predicting tokens[:, 1:]."""
    tokens, weights = [], []
    for _ in range(batch):
        if rng.random() < RECALL_SHARE:
            content, weight = recall_sequence(rng, text, phase)
            row = [byte + 1 for byte in content] + [END_OF_TEXT]
            weight.append(1.0)
        else:
            content, weight = plain_sequence(rng, text, phase.length + 1)
            row = [byte + 1 for byte in content]
        tokens.append(row)
        weights.append(weight[1:])
    return torch.tensor(tokens), torch.tensor(weights)


def round_to_cache(c):
    """Rounds as the cache does; gradients pass through as if it did not."""
    return c + (c.bfloat16().float() - c).detach()


def learning_rate(phase, step):
    warm_up = min(1.0, (step + 1) / 50)
    cosine = (1 + math.cos(math.pi * step / phase.steps)) / 2
    return warm_up * (phase.end_rate + (phase.start_rate - phase.end_rate) * cosine)


def save(tensors, folder):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.detach().bfloat16().clone() for name, tensor in tensors.items()}, folder / "model.part")
    os.replace(folder / "model.part", folder / "model.pth")
    config = {
        "tmix": "x060c2",
        "tmix2": "gold",
        "inv_other_layer_ratio": RATIO,
        "n_layer": LAYERS,
        "n_embd": DIM,
        "vocab_size": VOCABULARY,
        "vocabulary": "bytes",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def report(tensors, held_out):
    rounded = GoldFinch({name: tensor.detach().bfloat16().float() for name, tensor in tensors.items()})
    bits = evaluate.bits_per_byte(rounded, held_out, pieces=16)
    scores = []
    for size, documents in ((1024, 15), (4096, 10)):
        right, asked, _ = evaluate.recall(rounded, held_out, size, documents, 4, seed=99)
        scores.append(f"{right}/{asked} at {size}")
    return f"held-out {bits:.3f} bits a byte, recall {', '.join(scores)}"


def average_gradients(tensors):
    """The mean over processes, which each had a share of the batch."""
    parts = [tensor.grad if tensor.grad is not None else torch.zeros_like(tensor) for tensor in tensors]
    flat = torch.cat([part.flatten() for part in parts])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.grad = part.view_as(tensor)


def train(args, process):
    """One of the processes that train together. All hold the same weights; process 0 reports and saves."""
    torch.set_num_threads(1)
    rng = random.Random(args.seed * 1000 + process)
    text, held_out = recall_task.split_text(recall_task.load_text(args.text))
    if args.start_from:
        tensors = {name: tensor.float() for name, tensor in torch.load(args.start_from).items()}
    else:
        tensors = initial_tensors(VOCABULARY, DIM, LAYERS, RATIO, torch.Generator().manual_seed(args.seed))
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    model = GoldFinch(tensors)
    parameters = list(tensors.values())
    matrices = [tensor for name, tensor in tensors.items() if name.endswith(".weight") and tensor.dim() == 2]
    others = [tensor for name, tensor in tensors.items() if not (name.endswith(".weight") and tensor.dim() == 2)]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)

    begin, seen = time.monotonic(), 0
    for number, phase in enumerate(PHASES):
        if number < args.first_phase:
            continue
        steps = int(phase.steps * args.scale)
        mean_loss = None
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(phase, step / args.scale)
            tokens, weights = make_batch(rng, text, phase, phase.batch // args.processes)
            logits = model.forward(tokens[:, :-1], phase.rows, round_to_cache)
            targets, weights = tokens[:, -phase.rows :], weights[:, -phase.rows :]
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            loss = (loss * weights.flatten()).mean()
            loss.backward()
            average_gradients(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen += tokens.numel() * args.processes
            mean_loss = loss.item() if mean_loss is None else 0.98 * mean_loss + 0.02 * loss.item()
            if process > 0:
                continue
            if (step + 1) % 50 == 0:
                seconds = time.monotonic() - begin
                print(
                    f"{seconds:6.0f} s  phase {number}  step {step + 1}/{steps}  loss {mean_loss:.4f}  "
                    f"gradient {norm:.2f}  {seen / seconds:.0f} tokens/s",
                    flush=True,
                )
            if (step + 1) % args.save_every == 0 or step + 1 == steps:
                save(tensors, args.out)
                print(report(tensors, held_out), flush=True)


def start(process, args, meeting):
    distributed.init_process_group("gloo", meeting, rank=process, world_size=args.processes)
    train(args, process)
    distributed.barrier()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="folder for model.pth and config.json")
    parser.add_argument("--text", help="file to use instead of the output of `bible`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="each of one thread; the model depends on it")
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps of every phase; 0.01 for a trial")
    parser.add_argument("--save-every", type=int, default=500, metavar="STEPS")
    parser.add_argument("--start-from", type=pathlib.Path, help="checkpoint to go on from")
    parser.add_argument("--first-phase", type=int, default=0)
    args = parser.parse_args()
    if any(phase.batch % args.processes for phase in PHASES):
        parser.error(f"--processes {args.processes} does not divide every phase's batch")

    # Processes rather than threads: they wait for each other once a step, threads several thousand times.
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(start, (args, f"file://{folder}/meeting"), args.processes)


if __name__ == "__main__":
    main()
