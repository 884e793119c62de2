#!/usr/bin/env python3
"""Documents to test recall on: King James text with facts in it, and questions about them.

A fact is "The number of Kodaru is 41906."; its question, put after the document, "What is the number of Kodaru? ".
Prints one JSON object a document: {"document": ..., "questions": [{"question", "answer", "name", "offset"}]}; each
question stands alone after the document. With --out, writes files instead: 0.txt, and 0.questions.tsv with question
and answer. The same arguments always give the same documents. Training never sees the text they are made of.
"""

import argparse
import json
import pathlib
import random
import re
import subprocess

HELD_OUT_SHARE = 0.08  # The end of the text: long enough for one document of 262,144 bytes.
ANSWER_DIGITS = 5


def load_text(path=None):
    """The whole text, a verse a line, without verse numbers. From Debian's `bible-kjv` unless a file is named."""
    if path:
        return pathlib.Path(path).read_text(encoding="ascii")
    verses = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, check=True).stdout.decode("ascii")
    return re.sub(r"^\w+:\d+ ", "", verses, flags=re.MULTILINE)


def split_text(text):
    """(training text, held-out text), cut at a line."""
    cut = text.index("\n", int(len(text) * (1 - HELD_OUT_SHARE))) + 1
    return text[:cut], text[cut:]


def make_name(rng):
    name = "".join(rng.choice("bdfghjklmnprstvz") + rng.choice("aeiou") for _ in range(3)).capitalize()
    return name + rng.choice("nrsl") if rng.random() < 0.25 else name


def make_facts(rng, count):
    """[(name, digits)], no name twice."""
    names = set()
    while len(names) < count:
        names.add(make_name(rng))
    return [(name, "".join(rng.choice("0123456789") for _ in range(ANSWER_DIGITS))) for name in sorted(names)]


def fact_line(name, digits):
    return f"The number of {name} is {digits}.\n"


def question(name):
    return f"What is the number of {name}? "


def insert_facts(rng, text, facts, places=r"\n"):
    """Puts each fact's line after a match of `places`, anywhere from the very start to the very end, in random order.

    Returns (document, [(offset of the fact's line, fact)]). `text` may begin inside a verse and should end with a
    newline.
    """
    starts = [0] + [match.end() for match in re.finditer(places, text)]
    # The random middle shuffles facts that fall on one place.
    chosen = sorted((rng.choice(starts), rng.random(), fact) for fact in facts)
    pieces, placed, done, length = [], [], 0, 0
    for start, _, fact in chosen:
        pieces += [text[done:start], fact_line(*fact)]
        placed.append((length + start - done, fact))
        length += len(pieces[-2]) + len(pieces[-1])
        done = start
    return "".join(pieces) + text[done:], placed


def make_document(rng, source, size_bytes, fact_count):
    """(document of exactly size_bytes, [(offset, (name, digits))]), from a random place of `source`.

    A source too short for the document is repeated.
    """
    facts = make_facts(rng, fact_count)
    room = size_bytes - sum(len(fact_line(*fact)) for fact in facts)
    if room < 1:
        raise SystemExit(f"{size_bytes} bytes are too few for {fact_count} facts")
    source = source * (1 + room // len(source))
    begin = rng.randrange(max(1, len(source) - room))
    return insert_facts(rng, source[begin : begin + room - 1] + "\n", facts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=16384, help="size of a document, its facts included")
    parser.add_argument("--documents", type=int, default=1)
    parser.add_argument("--questions", type=int, default=4, help="facts in a document, each with its question")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", help="file to use instead of the output of `bible`")
    parser.add_argument("--out", type=pathlib.Path, help="folder to write to instead of printing JSON lines")
    args = parser.parse_args()

    rng = random.Random(args.seed)
    _, held_out = split_text(load_text(args.text))
    for number in range(args.documents):
        document, placed = make_document(rng, held_out, args.bytes, args.questions)
        rows = [
            {"question": question(name), "answer": digits, "name": name, "offset": offset}
            for offset, (name, digits) in placed
        ]
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"{number}.txt").write_text(document, encoding="ascii")
            lines = "".join(f"{row['question']}\t{row['answer']}\n" for row in rows)
            (args.out / f"{number}.questions.tsv").write_text(lines, encoding="ascii")
        else:
            print(json.dumps({"document": document, "questions": rows}))


if __name__ == "__main__":
    main()
