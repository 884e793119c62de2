#!/usr/bin/env bash
# Checks that a tarball of ./dev dist runs by itself: unpacked in another folder, with an empty environment, and on a
# system that has nothing but glibc.
set -euo pipefail

readonly GLIBC_MAX=2.36

fail() {
  printf 'check_tarball.sh: %s\n' "$*" >&2
  exit 1
}

say() { printf '== %s\n' "$*" >&2; }

# Every library that the loader takes is in lib/ or glibc's.
check_libraries() {
  local file name path list
  for file in "$root"/bin/* "$root"/lib/*; do
    list=$(env -i /usr/bin/ldd "$file" | awk '$2 == "=>" { print $1, $3 }')
    while read -r name path; do
      [[ -n $name ]] || continue
      case $path in
        "$root"/lib/* | "$root"/bin/../lib/*) ;;
        not) fail "$file: $name is not found" ;;
        *) [[ $name =~ ^(ld-linux-.*|lib(c|m|mvec|dl|pthread|rt|resolv|util|anl)\.so\.[0-9]+)$ ]] ||
          fail "$file takes $name from $path" ;;
      esac
    done <<<"$list"
  done
}

# The newest version of glibc that something in it asks for.
check_glibc() {
  local newest
  newest=$(objdump -T "$root"/bin/* "$root"/lib/* 2>/dev/null | grep -oE 'GLIBC_[0-9.]+' | sed 's/GLIBC_//' |
    sort -uV | tail -n 1)
  [[ $(printf '%s\n' "$newest" "$GLIBC_MAX" | sort -V | tail -n 1) == "$GLIBC_MAX" ]] ||
    fail "it needs glibc $newest, the newest that it may is $GLIBC_MAX"
  say "needs glibc $newest"
}

# check_generate FOLDER COMMAND...: the command, which starts the program, writes text with the model of the tarball,
# which is in the folder for it.
check_generate() {
  local folder=$1 said
  shift
  said=$("$@" generate --device cpu --model "$folder/tests/demo_model/model.pth" --prompt "In the beginning" \
    --max-tokens 20 --temperature 0 2>"$work/errors") || fail "generate: $(cat "$work/errors")"
  [[ -n $said ]] || fail "generate writes nothing"
  say "generate writes: $said"
}

# The folder is named goldfinch-VERSION-linux-x86_64.
check_version() {
  local said
  said=$(env -i "$root/bin/goldfinch" --version) || fail "--version fails"
  [[ ${root##*/} == "${said/ /-}-linux-x86_64" ]] || fail "--version says $said, the folder is ${root##*/}"
  [[ -s $root/LICENSE ]] || fail "there is no LICENSE"
}

check_empty_environment() {
  cd "$root"
  env -i bin/goldfinch --help >/dev/null || fail "--help fails"
  check_generate . env -i bin/goldfinch
  env -i GOLDFINCH_TEST_DATA="$root" bin/golden_test --gtest_filter='*InChunksOfAnySize*' >"$work/golden" ||
    fail "golden_test: $(tail -n 20 "$work/golden")"
  env -i OUT="$work/results" tests/gpu/run_all.sh >"$work/run_all" || fail "run_all.sh: $(cat "$work/run_all")"
  say "run_all.sh: $(tail -n 1 "$work/run_all")"
  # Every part of it that the CPU can do: then none of its files is missing. Its tables end with what is computed.
  env -i PATH="$PATH" OUT="$work/results" GOLDFINCH_RUN_ALL_DEVICE=cpu tests/gpu/run_all.sh >"$work/run_all" 2>&1 ||
    fail "run_all.sh on the CPU: $(tail -n 60 "$work/run_all")"
  say "run_all.sh on the CPU: $(grep -c ' passed ' "$work/run_all") parts passed"
}

# A folder with nothing of the system but glibc, as the root of the file system.
check_bare_root() {
  local bare=$work/bare file enter=(chroot)
  if ((EUID != 0)); then enter=(unshare -r chroot); fi
  mkdir -p "$bare"/{lib64,lib/x86_64-linux-gnu,proc/self,tmp}
  cp -r "$root" "$bare/goldfinch"
  # All that the loader asks of /proc: where a program is, to find its libraries from there.
  ln -s /goldfinch/bin/goldfinch "$bare/proc/self/exe"
  for file in /lib/x86_64-linux-gnu/lib{c,m,mvec,dl,pthread,rt,resolv,util,anl}.so.* /lib64/ld-linux-x86-64.so.2; do
    if [[ -e $file ]]; then cp -L "$file" "$bare$file"; fi
  done
  if ! "${enter[@]}" "$bare" /goldfinch/bin/goldfinch --help >/dev/null 2>"$work/errors"; then
    if grep -qi 'not permitted' "$work/errors"; then
      say "SKIPPED: no bare root: $(cat "$work/errors")"
      return
    fi
    fail "in a bare root: $(cat "$work/errors")"
  fi
  "${enter[@]}" "$bare" /goldfinch/bin/kernel_bench --device=cpu --tiny >/dev/null
  "${enter[@]}" "$bare" /goldfinch/bin/model_bench --device=cpu --tiny >/dev/null
  check_generate /goldfinch "${enter[@]}" "$bare" /goldfinch/bin/goldfinch
}

main() {
  (($# == 1)) || fail "which tarball?"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  tar -xzf "$1" -C "$work"
  root=$(echo "$work"/goldfinch-*)
  check_libraries
  check_glibc
  check_version
  check_empty_environment
  check_bare_root
  say "$1 runs by itself"
}

main "$@"
