#!/usr/bin/env python3
"""Recall and loss of the demo model on held-out text.

The document passes through the Finch layers in pieces, each question starts from the states it left, and GOLD layers
run only on the question's rows: linear in the document's length, and exact.
"""

import argparse
import json
import math
import pathlib
import random
import time

import torch
import torch.nn.functional as F

import recall_task
from goldfinch import GoldFinch

PIECE_TOKENS = 4096
HERE = pathlib.Path(__file__).resolve().parent


def encode(text):
    """Byte b is token b + 1; token 0 ends a text."""
    return torch.tensor(list(text.encode()), dtype=torch.long)[None] + 1


def load_model(path):
    return GoldFinch({name: tensor.float() for name, tensor in torch.load(path, map_location="cpu").items()})


class ReadDocument:
    """What a document leaves behind: enough to answer any number of questions, each as if it came first."""

    def __init__(self, model, document, cache_dtype=torch.bfloat16):
        self.model, self.cache_dtype = model, cache_dtype
        tokens = encode(document)
        self.x0 = model.embed(tokens)
        self.states, cache, last_rows = None, [], self.x0[:, :0]
        for piece in self.x0.split(PIECE_TOKENS, 1):
            x, self.states = model.finch_side(piece, self.states)
            cache.append(self.compress(x))
            last_rows = torch.cat([last_rows, x], 1)[:, -2 * len(model.gold_layers) :]
        self.c, self.last_rows = torch.cat(cache, 1), last_rows
        self.key_values = [model.key_values(layer, self.x0, self.c) for layer in model.gold_layers]

    def compress(self, x):
        return self.model.compress(x).to(self.cache_dtype).to(x.dtype)

    def logits(self, continuation):
        """Logits [time, vocabulary] after each token of a text that follows the document."""
        x0 = self.model.embed(encode(continuation))
        x, _ = self.model.finch_side(x0, self.states)
        # Keys and values look one row back, hence the document's last row in front, dropped again.
        x0 = torch.cat([self.x0[:, -1:], x0], 1)
        c = torch.cat([self.c[:, -1:], self.compress(x)], 1)
        key_values = []
        for layer, (k, v) in zip(self.model.gold_layers, self.key_values):
            new_k, new_v = self.model.key_values(layer, x0, c)
            key_values.append((torch.cat([k, new_k[:, :, 1:]], 2), torch.cat([v, new_v[:, :, 1:]], 2)))
        return self.model.gold_side(torch.cat([self.last_rows, x], 1), key_values)[0, -x.shape[1] :]

    def answers(self, question, answer):
        """Whether greedy decoding gives the answer: it does if every digit wins after the right ones before it."""
        digits = self.logits(question + answer[:-1])[-len(answer) :].argmax(-1) - 1
        return bytes(digits.clamp(min=0).tolist()) == answer.encode()


@torch.no_grad()
def recall(model, source, size_bytes, documents, questions, seed):
    """(right answers, questions asked, [fact's offset / document length of each wrong one])."""
    rng = random.Random(seed)
    right, wrong = 0, []
    for _ in range(documents):
        document, placed = recall_task.make_document(rng, source, size_bytes, questions)
        read = ReadDocument(model, document)
        for offset, (name, digits) in placed:
            if read.answers(recall_task.question(name), digits):
                right += 1
            else:
                wrong.append(round(offset / size_bytes, 3))
    return right, documents * questions, wrong


@torch.no_grad()
def bits_per_byte(model, source, length=1024, pieces=64):
    """Mean over pieces spread evenly over the text, each read from an empty state."""
    step = (len(source) - length - 1) // max(1, pieces - 1)
    loss = 0.0
    for n in range(pieces):
        tokens = encode(source[n * step : n * step + length + 1])
        loss += F.cross_entropy(model.forward(tokens[:, :-1])[0], tokens[0, 1:]).item() / pieces
    return loss / math.log(2)


@torch.no_grad()
def generate(model, prompt, length, temperature=0.8, seed=1):
    """Plain sampling, the whole text again for each token: for a look, not for speed."""
    generator = torch.Generator().manual_seed(seed)
    tokens = encode(prompt)
    for _ in range(length):
        probabilities = (model.forward(tokens, rows=1)[0, -1] / temperature).softmax(-1)
        choice = torch.multinomial(probabilities, 1, generator=generator)
        if choice == 0:
            break
        tokens = torch.cat([tokens, choice[None]], 1)
    return bytes((tokens[0] - 1).tolist()).decode(errors="replace")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=HERE / "model.pth")
    parser.add_argument("--bytes", type=int, nargs="+", default=[1024, 4096, 16384], help="document sizes")
    parser.add_argument("--documents", type=int, default=25, help="documents of each size")
    parser.add_argument("--questions", type=int, default=4, help="facts and questions a document")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", help="file to use instead of the output of `bible`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sample", type=int, default=0, metavar="BYTES", help="also print generated text")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = load_model(args.model)
    _, held_out = recall_task.split_text(recall_task.load_text(args.text))
    print(json.dumps({"bits_per_byte": round(bits_per_byte(model, held_out), 4)}), flush=True)
    for size in args.bytes:
        begin = time.monotonic()
        right, asked, wrong = recall(model, held_out, size, args.documents, args.questions, args.seed)
        row = {"bytes": size, "right": right, "asked": asked, "wrong_at_depth": wrong}
        print(json.dumps({**row, "seconds": round(time.monotonic() - begin, 1)}), flush=True)
    if args.sample:
        print(generate(model, "And it came to pass", args.sample))


if __name__ == "__main__":
    main()
