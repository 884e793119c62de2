#!/usr/bin/env bash
# Packs built programs with every library that they need except glibc, so that they run on any Linux with glibc 2.36 or
# newer: ./dev dist. The same inputs give the same file, byte for byte.
set -euo pipefail

readonly SIZE_MAX=60000000

usage() {
  cat <<'TEXT'
Usage: packaging/make_tarball.sh BAZEL_BIN VERSION HEADER_PACKAGES...

Run in the root of the repository. Writes dist/goldfinch-VERSION-linux-x86_64.tar.gz from the program and the programs
of tests/gpu/programs.txt under BAZEL_BIN. HEADER_PACKAGES: Debian packages whose headers are compiled in.
TEXT
}

fail() {
  printf 'make_tarball.sh: %s\n' "$*" >&2
  exit 1
}

# Libraries of glibc belong to the loader of the system: every system must use its own.
is_glibc() {
  case $1 in
    linux-vdso.so.* | ld-linux-* | libc.so.* | libm.so.* | libmvec.so.* | libdl.so.* | libpthread.so.* | librt.so.* | \
      libresolv.so.* | libutil.so.* | libanl.so.*) return 0 ;;
    *) return 1 ;;
  esac
}

# labels: prints the Bazel labels of the programs that go into bin/.
labels() {
  echo //clients/cli:goldfinch
  awk '!/^#/ && NF { print $2 }' tests/gpu/programs.txt
}

add_programs() {
  local label path
  while read -r label; do
    path=${label#//}
    install -m 755 "$bazel_bin/${path/://}" "$root/bin/${path##*:}"
    programs+=("$bazel_bin/${path/://}")
  done < <(labels)
}

# needed FILES...: prints "name path" of each library that the loader takes for them, once.
needed() {
  local output
  output=$(ldd "$@")
  if grep -q 'not found' <<<"$output"; then fail "ldd: $(grep 'not found' <<<"$output" | sort -u)"; fi
  awk '$2 == "=>" { print $1, $3 }' <<<"$output" | sort -u
}

add_libraries() {
  local name path list
  list=$(needed "${programs[@]}")
  while read -r name path; do
    is_glibc "$name" && continue
    install -m 755 "$(readlink -f "$path")" "$root/lib/$name"
    origin["$name"]=$path
  done <<<"$list"
}

# The old kind of run path has precedence over LD_LIBRARY_PATH, which on machines with GPUs often names other versions.
make_relocatable() {
  strip --strip-unneeded "$root"/lib/*
  strip "$root"/bin/*
  patchelf --force-rpath --set-rpath "\$ORIGIN" "$root"/lib/*
  patchelf --force-rpath --set-rpath "\$ORIGIN/../lib" "$root"/bin/*
}

# package_of FILE: prints the Debian package that installed it, under either name of /lib.
package_of() {
  local file
  for file in "/usr$1" "$1" "$(readlink -f "$1")" "${1#/usr}"; do
    if dpkg -S "$file" 2>/dev/null | cut -d: -f1 | head -n 1 | grep .; then return; fi
  done
  return 1
}

add_license() {
  install -D -m 644 "/usr/share/doc/$1/copyright" "$root/licenses/$1/copyright"
}

add_licenses() {
  local name package
  command -v dpkg >/dev/null || fail "licenses come from Debian's packages; this system has no dpkg"
  for name in "${!origin[@]}"; do
    case ${origin[$name]} in
      "$PWD"/* | "$bazel_bin"/* | */_solib_* | */bazel-out/*) continue ;;  # ours
    esac
    package=$(package_of "${origin[$name]}") || fail "no package has ${origin[$name]}: what is its license?"
    add_license "$package"
  done
  for package in "$@"; do add_license "$package"; done
  if [[ -e $root/lib/libgoldfinch_cuda.so ]]; then
    echo "lib/libgoldfinch_cuda.so holds NVIDIA's CUDA runtime (libcudart_static), under the CUDA Toolkit's EULA:" \
      "https://docs.nvidia.com/cuda/eula/" | install -D -m 644 /dev/stdin "$root/licenses/cuda/NOTICE"
  fi
}

# run_all.sh counts the tokens of its long prompt with the vocabulary, or in bytes where it could not be fetched.
add_vocabulary() {
  local file=third_party/world_vocab/rwkv_vocab_v20230424.txt
  [[ -e $file ]] || return 0
  install -D -m 644 "$file" "$root/$file"
  install -D -m 644 /usr/share/common-licenses/Apache-2.0 "$root/licenses/world_vocab/Apache-2.0"
  echo "$file is a file of the PyPI package rwkv, under the Apache License 2.0" |
    install -m 644 /dev/stdin "$root/licenses/world_vocab/NOTICE"
}

add_data() {
  git ls-files tests/golden | while read -r file; do install -D -m 644 "$file" "$root/$file"; done
  install -D -m 644 tests/demo_model/model.pth "$root/tests/demo_model/model.pth"
  install -D -m 644 tests/gpu/programs.txt "$root/tests/gpu/programs.txt"
  install -m 755 tests/gpu/run_all.sh tests/gpu/service_parts.py tests/gpu/torch_peer.py tests/gpu/scaling.py \
    "$root/tests/gpu"
  install -m 644 tests/demo_model/goldfinch.py tests/demo_model/config.json "$root/tests/demo_model"
  install -D -m 755 tests/cluster/scenarios/run.py "$root/tests/cluster/scenarios/run.py"
  install -m 644 tests/cluster/scenarios/*.textproto "$root/tests/cluster/scenarios"
  install -D -m 644 -t "$root/clients/cli/load_test" clients/cli/load_test/load_test_scenario.proto
  add_vocabulary
  install -m 644 CHANGELOG.md LICENSE "$root"
}

pack() {
  local tarball=$PWD/dist/$base.tar.gz size
  mkdir -p dist
  tar --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" \
    --mode=u+rw,go+r,go-w -C "$work" -cf - "$base" | gzip -n -9 >"$tarball.partial"
  size=$(stat -c %s "$tarball.partial")
  if ((size > SIZE_MAX)); then
    du -sh "$root"/* "$root"/bin/* "$root"/lib/* | sort -rh | head -n 20 >&2
    fail "dist/$base.tar.gz would have $size bytes, the limit is $SIZE_MAX"
  fi
  mv "$tarball.partial" "$tarball"
  printf 'dist/%s.tar.gz: %s bytes\n' "$base" "$size"
}

main() {
  if (($# < 2)) || [[ $1 == --help ]]; then
    usage
    exit 2
  fi
  bazel_bin=$(readlink -f "$1")
  base=goldfinch-$2-linux-x86_64
  shift 2
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  root=$work/$base
  declare -ga programs=() # as they were built: their run paths say where our own libraries are
  declare -gA origin=()   # of a library's name, the path that it was found at
  mkdir -p "$root"/{bin,lib}
  add_programs
  add_libraries
  make_relocatable
  add_licenses "$@"
  add_data
  pack
}

main "$@"
