#!/bin/sh
# run_tests.sh VENV_DIR [NAME...]: makes the virtual environment, installs the package into it as a user would, and runs
# its tests, those that are named or all. Cases go to $XML_OUTPUT_FILE, if that is set. Exits 77 if the packages that it
# needs are not there and cannot be fetched.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${1:?usage: run_tests.sh VENV_DIR [NAME...]}
shift

python3 -m venv "$venv"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What the build needs stays in the environment: a second run fetches nothing.
if ! "$venv/bin/python" -c 'import grpc_tools.protoc, setuptools, wheel' 2>/dev/null; then
  if ! "$venv/bin/pip" install --quiet --disable-pip-version-check grpcio-tools 'setuptools>=64' wheel >"$work/log" 2>&1
  then
    tail -n 1 "$work/log" >&2
    echo "run_tests.sh: grpcio-tools is not installed and cannot be fetched" >&2
    exit 77
  fi
fi

# From a copy: the build leaves files beside its sources.
mkdir -p "$work/clients"
cp -R "$root/protos" "$work/protos"
cp -R "$here" "$work/clients/python"
rm -rf "$work/clients/python/build"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-build-isolation --force-reinstall --no-deps \
  "$work/clients/python"

# Refused handshakes are part of the tests: gRPC need not tell of them.
export GRPC_VERBOSITY="${GRPC_VERBOSITY:-NONE}"
# -B: nothing is written beside the tests.
"$venv/bin/python" -B "$here/tests/run_cases.py" "$@"
