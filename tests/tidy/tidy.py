#!/usr/bin/env python3
"""Checks what compilers and formatters do not.

Rooms and what they include, header guards, dead files, lengths of lines and files, tabs, TODOs without a name, and
types that two files define.

Prints `path:line: problem` for each, and fails if there is one. `tidy.py [ROOT]`; the default is this repository.
"""

import pathlib
import re
import subprocess
import sys

import cpp

LINE_LENGTH_MAX = 120
TABLE_ROW_LENGTH_MAX = 200  # a row of a Markdown table cannot be broken

FILE_LENGTH_MAX = 500

# Longer files that hold one thing, and the length that each may have.
LONGER_FILES = {
    "worker/checkpoint/pickle.cc": 520,  # one interpreter: its opcodes read best on one page
}

# What a room may include, besides itself. A file is in the room whose path is the longest one above it:
# kernels/cpu/wkv.h is in kernels. Rooms that are not named here may include anything.
MAY_INCLUDE = {
    "base": set(),
    "protos": set(),
    "tokenizer": {"base"},
    "kernels": {"base"},
    "worker/checkpoint": {"base", "kernels"},
    "worker/model": {"base", "kernels", "worker/checkpoint"},
    "worker/stage": {"base", "kernels", "worker/checkpoint", "worker/model"},
    "worker/transport": {"base", "kernels"},
    "worker": {"base", "kernels", "protos", "worker/checkpoint", "worker/model", "worker/stage", "worker/transport"},
    "coordinator/contexts": {"base"},
    "coordinator/store": {"base", "coordinator/contexts"},
    "coordinator/scheduler": {"base", "protos"},
    "coordinator/planner": {"base", "protos"},
    "coordinator/metrics": {"base", "protos", "coordinator/planner", "coordinator/scheduler"},
    "coordinator/shelves": {"base", "protos", "coordinator/contexts", "coordinator/store"},
    "coordinator/keeper": {"base", "coordinator/contexts", "coordinator/scheduler", "coordinator/shelves",
                           "coordinator/store"},
    "coordinator/membership": {"base", "protos", "coordinator/keeper", "coordinator/planner", "coordinator/scheduler",
                               "coordinator/shelves"},
    "coordinator": {"base", "protos", "tokenizer", "coordinator/contexts", "coordinator/keeper",
                    "coordinator/membership", "coordinator/metrics", "coordinator/planner", "coordinator/scheduler",
                    "coordinator/shelves", "coordinator/store"},
    "coordinator/calls": {"base", "protos", "tokenizer", "coordinator/contexts", "coordinator/keeper",
                          "coordinator/metrics", "coordinator/scheduler"},
    "coordinator/front": {"base"},
    "coordinator/grpc": {"base", "protos", "tokenizer", "coordinator/calls", "coordinator/front", "coordinator/keeper",
                         "coordinator/membership", "coordinator/metrics", "coordinator/scheduler",
                         "coordinator/shelves"},
}

# The rooms of the program may include every room above, and these of their own. main.cc includes them all.
PROGRAM_MAY_INCLUDE = {
    "terminal": set(),
    "machine": {"terminal"},
    "flags": {"machine", "terminal"},
    "local": {"flags", "machine", "terminal"},
    "remote": {"flags", "local", "terminal"},
    "context": {"flags", "local", "remote", "terminal"},
    "load_test": {"flags", "local", "remote", "terminal"},
    "serve": {"flags", "machine", "terminal"},
}
MAY_INCLUDE |= {
    f"clients/cli/{room}": set(MAY_INCLUDE) | {f"clients/cli/{other}" for other in others}
    for room, others in PROGRAM_MAY_INCLUDE.items()
}
ROOMS = set(MAY_INCLUDE) | {"clients", "tests"}

# Two files may define these: exactly one of the two is in any program.
ALTERNATIVE_TYPES = {"goldfinch::cuda::LaunchShape"}

CPP = {".h", ".cc", ".cu", ".cuh"}
SOURCES = CPP | {".bzl", ".md", ".proto", ".py", ".sh", ".yml"}
SOURCE_NAMES = {"BUILD", "WORKSPACE", ".bazelrc", "dev", "run"}

INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')
BEGINS_WITH_OF = re.compile(r"(?:^|\s)//+ Of ")
# Rooms whose messages name fields; clients/cli puts its flags in their place.
NAMES_NO_FLAGS = ("base", "coordinator", "kernels", "tokenizer", "worker")
FLAG_IN_MESSAGE = re.compile(r'"(?:[^"\\]|\\.)*--[a-z][a-z-]+(?:[^"\\]|\\.)*"')
NAMELESS_TODO = re.compile(r"\bTODO\b(?!\([\w#][^)]*\))")


def source_files(root):
    """Tracked and new files of the tree, as relative paths."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    paths = [pathlib.PurePosixPath(name) for name in names if name]
    return [path for path in paths if is_source(path) and (root / path).is_file()]


def is_source(path):
    return path.suffix in SOURCES or path.name in SOURCE_NAMES


def check_line(path, line):
    """Yields the problems of one line."""
    limit = TABLE_ROW_LENGTH_MAX if path.suffix == ".md" and line.startswith("|") else LINE_LENGTH_MAX
    if len(line) > limit:
        yield f"{len(line)} characters, the limit is {limit}"
    if "\t" in line:
        yield "tab"
    if NAMELESS_TODO.search(line):
        yield "TODO(name) or TODO(#issue) says who knows more"
    if path.suffix in CPP | {".proto"} and BEGINS_WITH_OF.search(line):
        yield 'a comment that begins with "Of" has no subject'
    if path.suffix in CPP:
        yield from check_include(path, line)
        if path.parts[0] in NAMES_NO_FLAGS and FLAG_IN_MESSAGE.search(line):
            yield "messages of this room name fields, not flags"


def room_of(path):
    """The room of a file, or None if it is in none: a file of kernels/cpu is in kernels."""
    for folder in path.parents:
        if str(folder) in ROOMS:
            return str(folder)
    return None


def check_include(path, line):
    match = INCLUDE.match(line)
    if not match:
        return
    room, included = room_of(path), room_of(pathlib.PurePosixPath(match[1]))
    if included and room in MAY_INCLUDE and included not in MAY_INCLUDE[room] | {room}:
        # A test may use doubles and models of its neighbors: worker/checkpoint tests read files of worker/model.
        is_neighbor = room.split("/")[0] == included.split("/")[0]
        if not (is_neighbor and path.name.endswith(("_test.cc", "_fuzz.cc"))):
            yield f"{room} may not include {included}"


def guard_of(path):
    return "GOLDFINCH_" + re.sub(r"\W", "_", str(path)).upper() + "_"


def check_guard(path, text):
    guard = guard_of(path)
    opening = f"#ifndef {guard}\n#define {guard}\n"
    # Highway includes these once per instruction set.
    if path.name.endswith("-inl.h"):
        opening = f"#if defined({guard}) == defined(HWY_TARGET_TOGGLE)\n"
    if opening not in text or not text.endswith(f"#endif  // {guard}\n"):
        yield f"header guard is not {guard}"


def check_alive(root, path):
    """A C++ file is named by the BUILD file of its package, the nearest one above it."""
    for folder in path.parents:
        build = root / folder / "BUILD"
        if build.is_file():
            if f'"{path.relative_to(folder)}"' not in build.read_text(encoding="utf-8"):
                yield f"not in {folder / 'BUILD'}: dead file"
            return
    yield "no BUILD file above it"


def check_length(path, text):
    lines, limit = len(text.splitlines()), LONGER_FILES.get(str(path), FILE_LENGTH_MAX)
    if lines > limit:
        yield f"{lines} lines, the limit is {limit}: does it hold two things?"


def check_file(root, path):
    """Yields (line number, problem)."""
    text = (root / path).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        for problem in check_line(path, line):
            yield number, problem
    if path.suffix in CPP:
        for problem in [*check_alive(root, path), *check_length(path, text)]:
            yield 1, problem
    if path.suffix in {".h", ".cuh"}:
        for problem in check_guard(path, text):
            yield 1, problem


def check_types(root, paths):
    """Yields a problem for every type that two files define in one namespace.

    Linked into one program they are one symbol, and which of their constructors it gets is up to the linker.
    """
    homes = {}
    for path in paths:
        if path.suffix not in CPP:
            continue
        for found in cpp.types_of((root / path).read_text(encoding="utf-8")):
            if found.local or found.name in ALTERNATIVE_TYPES:
                continue
            home = homes.setdefault(found.name, path)
            if home != path:
                yield f"{path}:{found.line}: {found.name} is defined in {home}, too"


def check_tree(root):
    """Returns every problem of the tree as `path:line: problem`."""
    paths = source_files(root)
    problems = [f"{path}:{line}: {problem}" for path in paths for line, problem in check_file(root, path)]
    return problems + list(check_types(root, paths))


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2])
    problems = check_tree(root)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
