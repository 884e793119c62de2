#!/bin/sh
# Runs every test of the program. -B: the sources of a build are not to be written to.
exec python3 -B tests/program/run.py
