#!/usr/bin/env python3
"""Runs the tests of the installed package: run_cases.py [NAME...], as tests/program/run.py does for the program."""

import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
TESTS = FOLDER.parents[2] / "tests"
sys.path[1:1] = [str(TESTS / "program"), str(TESTS / "cluster")]

import run  # noqa: E402

if __name__ == "__main__":
    sys.exit(run.main(FOLDER))
