#!/usr/bin/env bash
# Everything that wants a GPU, in one go: tests/gpu/run_all.sh --help
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: tests/gpu/run_all.sh

Tests and measures the CUDA back end on the device of this machine, in less than nine minutes: kernels against plain
double code, the same under compute-sanitizer (where it is installed), whole models against the golden cases, alone and
through the service, servers of several stages, a worker that is killed, and every kernel, a whole model and the
service beside the device's ceilings. Runs from an unpacked tarball of ./dev dist, and from the tree after: bazel build
-- //clients/cli:goldfinch and the labels in tests/gpu/programs.txt

Logs go to $OUT, or ./gpu-results, where logs.tar.gz has all of them. Prints what failed, a table of the parts, then
one of the figures. Exits with 1 if a part failed; figures that miss their aim are no failures. Without a device: says
SKIPPED, why, and exits with 0. What wants Python, or PyTorch, is skipped where there is none.

GOLDFINCH_RUN_ALL_DEVICE=cpu runs everything that is not the device's own on the CPU, in small sizes: whether the parts
work, not how fast.
TEXT
}

# Seconds of each part at most; together less than nine minutes. What others leave of them is the sanitizers'.
readonly ALL_SECONDS=525
readonly PROBE_SECONDS=15
readonly FACTS_SECONDS=5
readonly KERNELS_SECONDS=75  # all programs together
readonly SANITIZER_SECONDS_MIN=6 SANITIZER_SECONDS_MAX=20 # each of two tools, each program
readonly TRANSPORT_SECONDS=10
readonly PARITY_SECONDS=30 # each type of activations; the programs run side by side
readonly DEMO_SECONDS=10
readonly MAKER_SECONDS=25
declare -rA SERVICE_SECONDS=([answers]=15 [stages]=15 [kill]=25 [speed]=33)
readonly BENCH_SECONDS=70
readonly MODEL_SECONDS=105
readonly TORCH_SECONDS=25 IMPORT_SECONDS=10
# One choice of types launches every kind of kernel. Tests that end their process on purpose only end the tool.
readonly SANITIZER_FILTER='*/bf16*-*Dies*:*activations_f32'

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
out=${OUT:-$PWD/gpu-results}
device=${GOLDFINCH_RUN_ALL_DEVICE:-cuda}
tiny=()
slack=1 # times the limits
if [[ $device == cpu ]]; then
  tiny=(--tiny)
  slack=5
fi

say() { printf '== %s\n' "$*" >&2; }

# labels_of KIND: those of tests/gpu/programs.txt.
labels_of() { awk -v kind="$1" '$1 == kind { print $2 }' "$root/tests/gpu/programs.txt"; }

# program LABEL: where it is, in a tarball or built in the tree.
program() {
  local path=${1#//}
  local packed=$root/bin/${path##*:} built=$root/bazel-bin/${path/://}
  if [[ -x $packed ]]; then
    echo "$packed"
  elif [[ -x $built ]]; then
    echo "$built"
  else
    echo "run_all.sh: $1 is neither in bin/ nor built" >&2
    return 1
  fi
}

# add_part NAME RESULT SECONDS NOTE: a row of the table.
add_part() {
  printf '%-34s %-8s %5s s  %s\n' "$@" >>"$out/parts.txt"
  if [[ $2 == failed ]]; then failures=$((failures + 1)); fi
}

# tests_in LOGS...: "N passed, N failed, N skipped" of googletest's logs.
tests_in() {
  awk '/^\[       OK \]/ { p++ } /^\[  SKIPPED \].*\(/ { s++ } /^\[  FAILED  \].*\([0-9]+ ms\)/ { f++ }
    END { printf "%d passed, %d failed, %d skipped", p, f, s }' "$@"
}

# limited SECONDS LOG COMMAND...: its exit status; 124 if it was stopped.
limited() {
  local seconds=$1 log=$2
  shift 2
  timeout -k 5 "$((seconds * slack))" "$@" >"$log" 2>&1 </dev/null
}

# ---- Parts ----

# Prints why there is no device to test, or nothing. Small sizes: the time of one launch each.
why_no_device() {
  local log=$out/device.log
  if ! limited "$PROBE_SECONDS" "$log" "$(program "$(labels_of bench)")" --device "$device" --tiny --filter=none; then
    cat "$log" >&2
    echo "run_all.sh: the device cannot be used: above" >&2
    return 1
  fi
  sed -n 's/^SKIPPED: //p' "$log"
}

facts() {
  local start=$SECONDS
  if [[ $device == cpu ]]; then
    add_part "device facts" skipped 0 "the device is the CPU"
    return
  fi
  if ! command -v nvidia-smi >/dev/null; then
    add_part "device facts" skipped 0 "no nvidia-smi"
    return
  fi
  if limited "$FACTS_SECONDS" "$out/nvidia-smi.log" nvidia-smi; then
    limited "$FACTS_SECONDS" "$out/nvidia-smi-q.log" nvidia-smi -q || true
    add_part "device facts" passed $((SECONDS - start)) "$(sed -n '/^quantity/q; p' "$out/device.log" | head -n 1)"
  else
    add_part "device facts" skipped $((SECONDS - start)) "nvidia-smi does not work: nvidia-smi.log"
  fi
}

# sharded NAME SECONDS COMMAND...: a googletest program, its tests dealt out to several processes, one a core. Their
# logs are $out/NAME.*.log; the status is that of the worst.
sharded() {
  local name=$1 seconds=$2 count shard pid status=0 one pids=()
  shift 2
  count=$(nproc)
  if ((count > 8)); then count=8; fi
  for ((shard = 0; shard < count; ++shard)); do
    GTEST_TOTAL_SHARDS=$count GTEST_SHARD_INDEX=$shard limited "$seconds" "$out/$name.$shard.log" "$@" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    one=0
    wait "$pid" || one=$?
    if ((one > status)); then status=$one; fi
  done
  return "$status"
}

# add_tests NAME STATUS SECONDS LOGS...: the row of googletest programs.
add_tests() {
  local name=$1 status=$2 seconds=$3 counts result=passed note=""
  shift 3
  counts=$(tests_in "$@")
  if ((status == 124 || status == 137)); then note=", stopped at the time limit"; fi
  if ((status != 0)); then
    result=failed
  elif [[ $counts == 0\ passed* ]]; then
    result=skipped
  fi
  add_part "$name" "$result" "$seconds" "$counts$note"
}

# left START LIMIT: what is left of the limit, and a second at least.
left() {
  local seconds=$(($2 - (SECONDS - $1)))
  echo $((seconds > 1 ? seconds : 1))
}

kernels() {
  local label name start status begin=$SECONDS
  while read -r label; do
    name=${label##*:}
    say "$name"
    start=$SECONDS status=0
    sharded "$name" "$(left "$begin" "$KERNELS_SECONDS")" "$(program "$label")" || status=$?
    add_tests "$name" "$status" $((SECONDS - start)) "$out/$name".*.log
  done < <(labels_of kernels)
}

# Between stages on the device; by NCCL where there are several.
transports() {
  local label name start status
  while read -r label; do
    name=${label##*:}
    say "$name"
    start=$SECONDS status=0
    limited "$TRANSPORT_SECONDS" "$out/$name.log" "$(program "$label")" || status=$?
    add_tests "$name" "$status" $((SECONDS - start)) "$out/$name.log"
  done < <(labels_of nccl)
}

find_sanitizer() {
  local path
  for path in "$(command -v compute-sanitizer || true)" "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer"; do
    if [[ -n $path && -x $path ]]; then
      echo "$path"
      return
    fi
  done
}

# sanitizer_seconds: for each program and tool.
sanitizer_seconds() {
  local seconds=$(((ALL_SECONDS - SECONDS) / (2 * $(labels_of kernels | wc -l))))
  seconds=$((seconds > SANITIZER_SECONDS_MIN ? seconds : SANITIZER_SECONDS_MIN))
  echo $((seconds < SANITIZER_SECONDS_MAX ? seconds : SANITIZER_SECONDS_MAX))
}

# sanitized TOOL SECONDS FLAGS...: what was not reached in the time is said, and is no failure; an error in what was is
# one.
sanitized() {
  local tool=$1 seconds=$2 start=$SECONDS status=0 sanitizer label
  shift 2
  sanitizer=$(find_sanitizer)
  if [[ -z $sanitizer ]]; then
    add_part "compute-sanitizer $tool" skipped 0 "compute-sanitizer not found"
    return
  fi
  local counts one
  while read -r label; do
    say "compute-sanitizer $tool, ${label##*:}"
    one=0
    sharded "$tool.${label##*:}" "$seconds" "$sanitizer" --tool "$tool" "$@" \
      --error-exitcode 9 "$(program "$label")" --gtest_filter="$SANITIZER_FILTER" || one=$?
    if ((one != 0 && (status == 0 || status == 124))); then status=$one; fi
  done < <(labels_of kernels)
  if grep -qi 'device not supported' "$out/$tool".*.log; then
    add_part "compute-sanitizer $tool" skipped $((SECONDS - start)) "it does not support this device here"
    return
  fi
  counts=$(tests_in "$out/$tool".*.log)
  if ((status == 124 || status == 137)) &&
    ! grep -qE '^========= (Invalid|Error|Race|Program hit|Misaligned)|^\[  FAILED  \]' "$out/$tool".*.log; then
    add_part "compute-sanitizer $tool" passed $((SECONDS - start)) "$counts, the rest not in the time"
  elif ((status != 0)); then
    add_part "compute-sanitizer $tool" failed $((SECONDS - start)) "$counts: $tool.*.log"
  else
    add_part "compute-sanitizer $tool" passed $((SECONDS - start)) "$counts"
  fi
}

# parity DTYPE: of activations. Of what is tested on the CPU anyway, one kind of test is enough to see that it runs.
parity() {
  local dtype=$1 label name start=$SECONDS status pids=() names=() i filter='*'
  if [[ $device == cpu ]]; then filter='*InChunksOfAnySize*:*ScoresAsTheReference*'; fi
  say "parity, activations $dtype"
  while read -r label; do
    name=${label##*:}
    names+=("$name")
    GOLDFINCH_TEST_DATA=$root GOLDFINCH_TEST_DEVICE=$device GOLDFINCH_TEST_DTYPE=$dtype \
      limited "$PARITY_SECONDS" "$out/$name.$dtype.log" "$(program "$label")" --gtest_filter="$filter" &
    pids+=($!)
  done < <(labels_of parity)
  for i in "${!pids[@]}"; do
    status=0
    wait "${pids[$i]}" || status=$?
    add_tests "${names[$i]}, $dtype" "$status" $((SECONDS - start)) "$out/${names[$i]}.$dtype.log"
  done
}

demo() {
  local start=$SECONDS
  say "the demo model"
  if limited "$DEMO_SECONDS" "$out/demo.log" "$(program //clients/cli:goldfinch)" generate --device "$device" \
    --model "$root/tests/demo_model/model.pth" --prompt "In the beginning" --max-tokens 40 --temperature 0; then
    add_part "demo model" passed $((SECONDS - start)) "$(head -n 1 "$out/demo.log" | cut -c 1-60)"
  else
    add_part "demo model" failed $((SECONDS - start)) "demo.log"
  fi
}

# bench NAME LABEL SECONDS FLAGS...: a bench's table is the end of its log.
bench() {
  local name=$1 program start=$SECONDS log=$out/${2##*:}.log status=0
  program=$(program "$2")
  say "$name"
  limited "$3" "$log" "$program" --device "$device" "${tiny[@]}" --json "${log%.log}.json" "${@:4}" || status=$?
  if ((status == 0)); then
    add_part "$name" passed $((SECONDS - start)) "$(grep -c ' met *$' "$log" || true) aims met, $(grep -c \
      'MISSED' "$log" || true) missed"
  else
    add_part "$name" failed $((SECONDS - start)) "status $status: $(tail -n 1 "$log" | cut -c 1-90)"
  fi
}

# A model with random weights, as large as a released one, for the parts after; removed in the end.
make_model() {
  local flags=()
  if [[ $device == cpu ]]; then flags=(--layers 12 --width 128); fi
  say "making a model"
  limited "$MAKER_SECONDS" "$out/bench_model.log" "$(program "$(labels_of maker)")" --out "$model" "${flags[@]}" ||
    add_part "making a model" failed "$MAKER_SECONDS" "$(tail -n 1 "$out/bench_model.log" | cut -c 1-90)"
}

# Why Python parts cannot run, or nothing.
why_no_python() {
  if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then echo "no Python 3.8 or newer"; fi
}

# service PART: of service_parts.py.
service() {
  local part=$1 start=$SECONDS log=$out/service.$1.log status=0 reason
  reason=$(why_no_python)
  if [[ -n $reason ]]; then
    add_part "service: $part" skipped 0 "$reason"
    return
  fi
  say "service: $part"
  limited "${SERVICE_SECONDS[$part]}" "$log" python3 "$root/tests/gpu/service_parts.py" "$part" \
    --program "$(program //clients/cli:goldfinch)" --bench-model "$(program "$(labels_of maker)")" --model "$model" \
    --root "$root" --out "$out" --figures "$out/service_figures.txt" --device "$device" "${tiny[@]}" || status=$?
  if ((status == 0)); then
    add_part "service: $part" passed $((SECONDS - start)) "$(tail -n 1 "$log" | cut -c 1-110)"
  else
    add_part "service: $part" failed $((SECONDS - start)) "status $status: $(tail -n 1 "$log" | cut -c 1-200)"
  fi
}

# The same model written in plain PyTorch, on the same weights.
torch_peer() {
  local start=$SECONDS log=$out/torch_peer.log status=0 reason
  reason=$(why_no_python)
  if [[ -z $reason ]] && ! limited "$IMPORT_SECONDS" "$out/import_torch.log" python3 -c 'import torch'; then
    reason="no PyTorch"
  fi
  if [[ -n $reason ]]; then
    add_part "the model in PyTorch" skipped 0 "$reason"
    return
  fi
  say "the model in PyTorch"
  limited "$TORCH_SECONDS" "$log" python3 "$root/tests/gpu/torch_peer.py" "$model" --device "$device" "${tiny[@]}" \
    --json "$out/torch_peer.json" --ours "$out/model_bench.json" || status=$?
  if ((status == 0)) && grep -q '^SKIPPED' "$log"; then
    add_part "the model in PyTorch" skipped $((SECONDS - start)) "$(sed -n 's/^SKIPPED: //p' "$log" | cut -c 1-90)"
  elif ((status == 0)); then
    add_part "the model in PyTorch" passed $((SECONDS - start)) "$(head -n 1 "$log" | cut -c 1-110)"
  else
    add_part "the model in PyTorch" failed $((SECONDS - start)) "status $status: $(tail -n 1 "$log" | cut -c 1-90)"
  fi
}

# What was measured, in one table: the benches print the same columns.
figures() {
  sed -n '/^quantity/,$p' "$out/kernel_bench.log"
  sed '1,/^quantity/d' "$out/model_bench.log"
  cat "$out/service_figures.txt"
  if [[ -e $out/torch_peer.log ]]; then sed '1,/^quantity/d' "$out/torch_peer.log"; fi
  if [[ -s $out/model_bench.json && -z $(why_no_python) ]]; then
    echo
    python3 "$root/tests/gpu/scaling.py" "$out/model_bench.json" || true
  fi
}

# The lines of the logs that say why, a few of each.
show_failures() {
  local log
  for log in "$out"/*.log; do
    if grep -qE '^\[  FAILED  \]|: Failure$|CHECK failed|^=========     (Invalid|Error|Race)' "$log"; then
      echo "-- ${log##*/}"
      grep -E -A 4 ': Failure$|CHECK failed|^========= (Invalid|Error|Race)' "$log" | head -n 12 | cut -c 1-200 || true
      grep -E '^\[  FAILED  \]' "$log" | sort -u | head -n 8 || true
    fi
  done
}

main() {
  if [[ ${1:-} == --help ]]; then
    usage
    return
  fi
  if (($#)); then
    usage >&2
    return 2
  fi
  if [[ $device != cuda && $device != cpu ]]; then
    echo "run_all.sh: GOLDFINCH_RUN_ALL_DEVICE is $device: neither cuda nor cpu" >&2
    return 2
  fi
  mkdir -p "$out"
  out=$(cd "$out" && pwd)
  rm -f "$out"/*.log "$out"/*.json "$out/parts.txt"
  : >"$out/service_figures.txt"
  failures=0
  model=${TMPDIR:-/tmp}/goldfinch-run-all-$$.safetensors
  trap 'rm -f "$model"
    tar -C "$out" -czf "$out/logs.tar.gz" $(cd "$out" && ls | grep -E "log$|txt$|json$") || true' EXIT
  local reason
  reason=$(why_no_device)
  if [[ -n $reason ]]; then
    echo "SKIPPED: $reason"
    # A driver that is too old for this program's CUDA looks like none.
    if command -v nvidia-smi >/dev/null; then limited "$FACTS_SECONDS" "$out/nvidia-smi.log" nvidia-smi || true; fi
    if [[ -s $out/nvidia-smi.log ]]; then
      head -n 4 "$out/nvidia-smi.log"
      echo "There is a driver. This program needs one of CUDA 13 (580 or newer), and cuBLASLt of CUDA 13."
    fi
    return
  fi
  facts
  if [[ $device == cuda ]]; then
    kernels
    transports
  fi
  parity f32
  if [[ $device == cuda ]]; then parity bf16; fi
  demo
  make_model
  service answers
  service stages
  service kill
  bench "kernel bench" "$(labels_of bench)" "$BENCH_SECONDS"
  bench "model bench" "$(labels_of model)" "$MODEL_SECONDS" --model "$model"
  service speed
  torch_peer
  if [[ $device == cuda ]]; then
    local seconds
    seconds=$(sanitizer_seconds)
    sanitized memcheck "$seconds" --report-api-errors no # a test asks for more memory than there is
    sanitized racecheck "$seconds"
  fi
  if ((failures > 0)); then show_failures; fi
  printf '\n%-34s %-8s %7s\n' part result time
  cat "$out/parts.txt"
  echo
  figures
  ((failures == 0))
}

main "$@"
