"""Device code: compiled by nvcc for the device, and by the host compiler for the emulation that unit tests run."""

load("@cuda//:defs.bzl", "CUDA_FOUND", "CUDA_HOME")
load("@rules_cc//cc:defs.bzl", "cc_library")

# Machine code for Ampere, and PTX that drivers compile for what comes later.
_AMPERE = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_80,code=compute_80",
]
# Left out by --define=goldfinch_architectures=ampere, as `bazel test` has it: no source differs by architecture, and
# what is compiled for Ampere runs on Hopper too.
_HOPPER = ["-gencode=arch=compute_90a,code=sm_90a"]

_NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "-lineinfo",
    "--expt-relaxed-constexpr",
    "--threads=2",
    "-Werror=all-warnings",
    # Declarations of both passes are looked at, and each leaves some of them unused.
    "-diag-suppress=177",
    "-Xcompiler=-Wall,-Wextra,-fPIC",
]

def _nvcc_objects_impl(ctx):
    objects = []
    architectures = _AMPERE + ([] if ctx.var.get("goldfinch_architectures") == "ampere" else _HOPPER)
    contexts = [dep[CcInfo].compilation_context for dep in ctx.attr.deps]
    headers = depset(ctx.files.hdrs, transitive = [context.headers for context in contexts])
    defines = depset(transitive = [context.defines for context in contexts])
    for source in ctx.files.srcs:
        object = ctx.actions.declare_file("{}/{}.o".format(ctx.label.name, source.basename))
        arguments = ctx.actions.args()
        arguments.add_all(_NVCC_FLAGS + architectures)
        arguments.add_all(defines, format_each = "-D%s")
        arguments.add_all(["-I.", "-I" + ctx.bin_dir.path, "-x", "cu", "-c", source, "-o", object])
        ctx.actions.run(
            executable = CUDA_HOME + "/bin/nvcc",
            arguments = [arguments],
            inputs = depset([source], transitive = [headers]),
            outputs = [object],
            env = {"PATH": "/usr/local/bin:/usr/bin:/bin"},
            mnemonic = "Nvcc",
            progress_message = "Compiling {} for the device".format(source.short_path),
        )
        objects.append(object)
    return [DefaultInfo(files = depset(objects))]

_nvcc_objects = rule(
    implementation = _nvcc_objects_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu"], mandatory = True),
        "hdrs": attr.label_list(allow_files = [".h"]),
        "deps": attr.label_list(providers = [CcInfo]),
    },
)

def device_library(name, srcs, hdrs = [], device_srcs = [], emulated_srcs = [], deps = [], emulated_deps = []):
    """Declares NAME, for the device, and NAME_emulated, for tests.

    Args:
      name: of the library; without a CUDA toolkit there is only the other one.
      srcs: .cu files of both.
      hdrs: of both.
      device_srcs: .cu files for the device alone.
      emulated_srcs: .cc files for the emulation alone.
      deps: of both.
      emulated_deps: of the emulation alone.
    """
    if CUDA_FOUND:
        _nvcc_objects(
            name = name + "_objects",
            srcs = srcs + device_srcs,
            hdrs = hdrs,
            deps = deps,
        )
        cc_library(
            name = name,
            srcs = [name + "_objects"],
            hdrs = hdrs,
            deps = deps + ["@cuda//:runtime"],
        )
    copies = []
    for source in srcs:
        copy = "emulated/" + source.replace(".cu", ".cc")
        native.genrule(
            name = copy.replace("/", "_").replace(".cc", ""),
            srcs = [source],
            outs = [copy],
            cmd = "cp $< $@",
        )
        copies.append(copy)
    cc_library(
        name = name + "_emulated",
        testonly = True,
        srcs = copies + emulated_srcs,
        hdrs = hdrs,
        copts = ["-Wno-unknown-pragmas"],
        deps = deps + emulated_deps,
    )
