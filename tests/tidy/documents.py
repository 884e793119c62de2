#!/usr/bin/env python3
"""Checks that documents name only files that exist.

A path is the target of a link, or it stands at the beginning of a code span and begins with a folder of the repository:
`base/check.h`, `base/check` (the files of that stem), `kernels/backend_*_test.cc`, `tests/golden/`.

Prints `path:line: problem` for each, and fails if there is one. `documents.py [ROOT]`; the default is this repository.
"""

import pathlib
import re
import subprocess
import sys

# CHANGELOG.md and docs/decisions/ are not among them: they also tell of the past.
DOCUMENTS = (
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "clients/python/README.md",
    "docs/ARCHITECTURE.md",
    "docs/BENCHMARKS.md",
    "docs/CONTEXTS.md",
    "docs/GLOSSARY.md",
    "docs/METRICS.md",
    "tests/demo_model/README.md",
    "tests/golden/README.md",
)

LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
CODE_SPAN = re.compile(r"`([\w.-]+/[\w./*-]*)")


def folders(root):
    """The top folders that git knows."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return {name.split("/")[0] for name in names if "/" in name}


def exists(root, path):
    return any(root.glob(path)) or any(root.glob(path + ".*"))


def missing_paths(root, folder, line, tops):
    """Yields the paths of the line that do not exist; links are relative to the document's folder."""
    for path in LINK.findall(line):
        if not (folder / path).exists():
            yield path
    for path in CODE_SPAN.findall(line):
        if path.split("/")[0] in tops and "..." not in path and not exists(root, path.rstrip("/")):
            yield path


def check_document(root, document, tops):
    """Yields every problem of a document as `path:line: problem`."""
    for number, line in enumerate((root / document).read_text(encoding="utf-8").splitlines(), 1):
        for path in missing_paths(root, (root / document).parent, line, tops):
            yield f"{document}:{number}: there is no {path}"


def check_documents(root, documents=DOCUMENTS):
    tops = folders(root)
    return [problem for document in documents for problem in check_document(root, document, tops)]


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2])
    problems = check_documents(root)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
