#!/usr/bin/env python3
"""Runs the tests of whole clusters: run_cases.py [--jobs N] [NAME...], names as tests/program/run.py takes them.

Most tests wait for processes most of the time. With --jobs, so many classes of tests run at a time, each in a process
of its own, and what a class prints comes when it has ended.

In an environment that has the Python package (clients/python/run_tests.sh makes one), in the root of the repository:
GOLDFINCH=bazel-bin/clients/cli/goldfinch VENV/bin/python tests/cluster/run_cases.py
"""

import argparse
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(1, str(FOLDER.parent / "program"))

import run  # noqa: E402


def class_names(names):
    """The classes of the named tests, each once. A module that cannot be imported is a class that fails."""
    cases = run.cases_of(unittest.defaultTestLoader.loadTestsFromNames(names))
    classes = {}
    for case in cases:
        kind = type(case)
        classes[case.id() if kind.__module__.startswith("unittest") else f"{kind.__module__}.{kind.__name__}"] = None
    return list(classes)


def run_class(name, xml_path):
    """Returns the exit status of the tests of a class, and prints what they print."""
    done = subprocess.run(
        [sys.executable, "-B", __file__, name],
        env={**os.environ, "XML_OUTPUT_FILE": str(xml_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    sys.stderr.buffer.write(done.stdout)
    sys.stderr.flush()
    return done.returncode


def run_classes(names, jobs):
    """Runs all classes. Their cases go to $XML_OUTPUT_FILE, if it is set."""
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        paths = [pathlib.Path(folder) / f"{number}.xml" for number in range(len(names))]
        statuses = list(pool.map(run_class, names, paths))
        cases = [
            case
            for path in paths
            if path.exists()
            for case in xml.etree.ElementTree.parse(path).iter("testcase")
        ]
    if "XML_OUTPUT_FILE" in os.environ:
        run.write_xml(cases, os.environ["XML_OUTPUT_FILE"])
    failed = [name for name, status in zip(names, statuses) if status != 0]
    lines = [f"{len(cases)} tests of {len(names)} classes", *(f"FAILED {name}" for name in failed)]
    print(*lines, sep="\n", file=sys.stderr)
    return 1 if failed or not cases else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="classes that run at a time (default 1)")
    parser.add_argument("names", nargs="*", help="modules, classes or tests (default: all)")
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.stem for path in FOLDER.glob("*_cases.py"))
    if arguments.jobs > 1:
        return run_classes(class_names(names), arguments.jobs)
    sys.argv[1:] = names
    return run.main(FOLDER)


if __name__ == "__main__":
    # Processes start while gRPC has threads; they use nothing of it, and it need not say so each time.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
