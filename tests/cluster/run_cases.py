#!/usr/bin/env python3
"""Runs the tests of whole clusters: run_cases.py [NAME...], as tests/program/run.py does for the program.

In an environment that has the Python package (clients/python/run_tests.sh makes one), in the root of the repository:
GOLDFINCH=bazel-bin/clients/goldfinch VENV/bin/python tests/cluster/run_cases.py
"""

import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(1, str(FOLDER.parent / "program"))

import run  # noqa: E402

if __name__ == "__main__":
    sys.exit(run.main(FOLDER))
