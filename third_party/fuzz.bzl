"""libFuzzer targets."""

load("@rules_cc//cc:defs.bzl", "cc_binary")

def cc_fuzz(name, srcs, deps):
    """A libFuzzer program, run by `./dev fuzz SECONDS`; its seeds are the files in the folder `NAME_corpus` beside it.

    Args:
      name: of the target.
      srcs: the file that defines LLVMFuzzerTestOneInput.
      deps: as in cc_binary.
    """
    cc_binary(
        name = name,
        testonly = True,
        srcs = srcs,
        # manual: only clang links it, so that `bazel build //...` leaves it out.
        tags = ["fuzz", "manual"],
        deps = deps,
    )
