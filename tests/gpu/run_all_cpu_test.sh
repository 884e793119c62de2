#!/usr/bin/env bash
# run_all.sh with the real programs on the CPU, in small sizes, as if unpacked from a tarball: whether its parts work.
set -euo pipefail

fail() {
  printf 'run_all_cpu_test.sh: %s\n' "$*" >&2
  exit 1
}

unpacked=$TEST_TMPDIR/unpacked
mkdir -p "$unpacked/bin" "$unpacked/tests"
for name in gpu golden demo_model; do cp -rL "tests/$name" "$unpacked/tests/$name"; done
while read -r kind label; do
  path=${label#//}
  # Tests of kernels and of transports between devices are of a device alone.
  if [[ $kind != kernels && $kind != nccl ]]; then ln -s "$PWD/${path/://}" "$unpacked/bin/${path##*:}"; fi
done < <(awk '!/^#/ && NF' tests/gpu/programs.txt)
ln -s "$PWD/clients/cli/goldfinch" "$unpacked/bin/goldfinch"

status=0
mkdir "$TEST_TMPDIR/tmp"
OUT=$TEST_TMPDIR/out TMPDIR=$TEST_TMPDIR/tmp GOLDFINCH_RUN_ALL_DEVICE=cpu "$unpacked/tests/gpu/run_all.sh" \
  >"$TEST_TMPDIR/said" || status=$?
cat "$TEST_TMPDIR/said"
if ((status != 0)); then
  tail -n 20 "$TEST_TMPDIR"/out/*.log
  fail "status $status"
fi
for part in 'golden_test, f32' 'golden_cluster_test, f32' 'demo model' 'kernel bench' 'model bench'; do
  grep -q "^$part  *passed" "$TEST_TMPDIR/said" || fail "$part did not pass"
done
if command -v python3 >/dev/null; then
  for part in answers stages kill speed; do
    grep -q "^service: $part  *passed" "$TEST_TMPDIR/said" || fail "service: $part did not pass"
  done
  grep -q '^COMPUTED' "$TEST_TMPDIR/said" || fail "nothing was computed from the stages' times"
fi
for row in 'copy, read and written' 'pre-fill, one prompt' 'decode, 1 sequence' 'pre-fill through the service' \
  'first token'; do
  grep -q "^$row" "$TEST_TMPDIR/said" || fail "no figure of: $row"
done
[[ -s $TEST_TMPDIR/out/logs.tar.gz ]] || fail "no logs.tar.gz"
[[ -z $(ls "$TEST_TMPDIR/tmp") ]] || fail "it leaves $(ls "$TEST_TMPDIR/tmp")"
