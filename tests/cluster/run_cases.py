#!/usr/bin/env python3
"""Runs the tests of whole clusters: run_cases.py [NAME...], as tests/program/run.py does for the program.

In an environment that has the Python package (clients/python/run_tests.sh makes one), in the root of the repository:
GOLDFINCH=bazel-bin/clients/cli/goldfinch VENV/bin/python tests/cluster/run_cases.py
"""

import os
import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(1, str(FOLDER.parent / "program"))

import run  # noqa: E402

if __name__ == "__main__":
    # Processes start while gRPC has threads; they use nothing of it, and it need not say so each time.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(run.main(FOLDER))
