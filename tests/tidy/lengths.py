#!/usr/bin/env python3
"""Prints the files and lines of each room, how long files and functions are, and the longest functions.

`lengths.py [ROOT]`; the default is this repository.
"""

import pathlib
import statistics
import sys

import cpp
import tidy

LONGEST = 10


def percentile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def room_of(path):
    """worker/model/layers.h is in worker/model; a file of tests/ is in tests."""
    parts = path.parts[:-1]
    return "/".join(parts[:1] if parts[:1] == ("tests",) else parts[:2]) or "."


def summary(name, values):
    middle, long = statistics.median(values), percentile(values, 0.9)
    return f"{name}: median {middle:.0f}, 90th percentile {long}, longest {max(values)}"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2])
    rooms, functions = {}, []
    for path in tidy.source_files(root):
        if path.suffix not in tidy.CPP:
            continue
        text = (root / path).read_text(encoding="utf-8")
        rooms.setdefault(room_of(path), []).append(len(text.splitlines()))
        functions += [(found.lines, f"{path}:{found.line} {found.name}") for found in cpp.functions_of(text)]
    print("| room | C++ and CUDA files | lines |\n|---|---|---|")
    for room, lines in sorted(rooms.items()):
        print(f"| {room} | {len(lines)} | {sum(lines)} |")
    files = [lines for room in rooms.values() for lines in room]
    print(f"| all | {len(files)} | {sum(files)} |\n")
    print(summary("lines of a file", files))
    print(summary("lines of a function", [lines for lines, _ in functions]))
    for lines, where in sorted(functions, reverse=True)[:LONGEST]:
        print(f"{lines:6} {where}")


if __name__ == "__main__":
    main()
