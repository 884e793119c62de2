#!/bin/sh
# run_tests.sh VENV_DIR [NAME...]: makes the virtual environment, installs the package into it as a user would, and runs
# its tests: those that are named, or all. It writes the cases to $XML_OUTPUT_FILE if that is set, and exits with 77 if
# packages that it needs are not installed and cannot be fetched.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${1:?usage: run_tests.sh VENV_DIR [NAME...]}
shift

python3 -m venv "$venv"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The build's own requirements stay in the environment, so a second run fetches nothing. A new environment comes with
# Python's setuptools, which may be too old.
if ! "$venv/bin/python" - 2>/dev/null <<'END'
import grpc_tools.protoc, setuptools, wheel
assert int(setuptools.__version__.split(".")[0]) >= 77
END
then
  if ! "$venv/bin/pip" install --quiet --disable-pip-version-check grpcio-tools 'setuptools>=77' wheel >"$work/log" 2>&1
  then
    tail -n 1 "$work/log" >&2
    echo "run_tests.sh: grpcio-tools and setuptools 77 are not installed and cannot be fetched" >&2
    exit 77
  fi
fi

# From a copy: the build leaves files beside its sources.
mkdir -p "$work/clients"
cp "$root/VERSION" "$root/LICENSE" "$work"
cp -R "$root/protos" "$work/protos"
cp -R "$here" "$work/clients/python"
rm -rf "$work/clients/python/build"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-build-isolation --force-reinstall --no-deps \
  "$work/clients/python"

# Refused handshakes are part of the tests: gRPC need not log them.
export GRPC_VERBOSITY="${GRPC_VERBOSITY:-NONE}"
# -B: nothing is written beside the tests.
"$venv/bin/python" -B "$here/tests/run_cases.py" "$@"
