#!/usr/bin/env python3
"""Writes compile_commands.json for editors and clang-tidy: `./dev ide`.

compile_commands.py ROOT <ACTIONS >compile_commands.json

ACTIONS is what `bazel aquery --output=jsonproto` prints of CppCompile actions, ROOT the folder that their paths are
relative to: the repository, where `bazel-out` links to what Bazel has generated.
"""

import json
import pathlib
import re
import sys

# GCC alone knows these, or they name outputs of the compilation, which nobody else wants.
DROPPED = re.compile(r"-MD|-frandom-seed=.*|-Werror|-fno-canonical-system-headers")
DROPPED_WITH_THE_NEXT = {"-MF", "-o"}
# Every library is the system's: these folders of Bazel's hold no headers.
EXTERNAL = re.compile(r"(bazel-out/[^/]+/bin/)?external/.*")
# GCC's warnings keep their names; clang does not know all of them.
ADDED = ["-Wno-unknown-warning-option"]
# The emulation compiles copies of device code as C++ (third_party/device_code.bzl).
EMULATED = re.compile(r"bazel-out/[^/]+/bin/(.*/)emulated/([^/]+)\.cc")


def source_of(arguments):
    return arguments[arguments.index("-c") + 1]


def cleaned(arguments):
    """The arguments without those that are for GCC under Bazel alone."""
    result = []
    rest = iter(arguments)
    for argument in rest:
        if argument in DROPPED_WITH_THE_NEXT:
            next(rest)
        elif argument == "-iquote":
            folder = next(rest)
            if not EXTERNAL.fullmatch(folder):
                result += [argument, folder]
        elif not DROPPED.fullmatch(argument):
            result.append(argument)
    return result[:1] + ADDED + result[1:]


def as_device_source(arguments, root):
    """The command of an emulated copy, for the .cu file itself if there is one."""
    copy = source_of(arguments)
    match = EMULATED.fullmatch(copy)
    source = match and match[1] + match[2] + ".cu"
    if source is None or not (root / source).is_file():
        return arguments
    at = arguments.index("-c")
    return arguments[:at] + ["-x", "c++", "-c", source] + arguments[at + 2 :]


def entries(actions, root):
    """One entry for each source, sorted by its name. Of several commands the first is taken: they differ in outputs."""
    found = {}
    for action in actions:
        arguments = as_device_source(cleaned(action["arguments"]), root)
        entry = {"directory": str(root), "file": source_of(arguments), "arguments": arguments}
        found.setdefault(entry["file"], entry)
    return [found[file] for file in sorted(found)]


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    json.dump(entries(json.load(sys.stdin)["actions"], root), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
