"""A repository whose targets are libraries of the system.

Headers are in the compiler's own search path, so a target is its link line. pkg-config gives that line (and the macros
that the library's headers need), or `linkopts` does for a library without a .pc file.
"""

_TARGET = """
cc_library(
    name = {name},
    defines = {defines},
    linkopts = {linkopts},
    visibility = ["//visibility:public"],
)
"""

def _pkg_config(ctx, args):
    result = ctx.execute(["pkg-config"] + args)
    if result.return_code != 0:
        fail("pkg-config {}: {}\n`./dev build` installs the packages that the build needs.".format(
            " ".join(args),
            result.stderr or "not found",
        ))
    return [word for word in result.stdout.strip().split(" ") if word]

def _target(ctx, name, module):
    defines = []
    linkopts = []
    if module.startswith("-l"):
        linkopts = [module]
    elif module:
        defines = [flag[2:] for flag in _pkg_config(ctx, ["--cflags-only-other", module]) if flag.startswith("-D")]
        linkopts = ["-Wl,--as-needed"] + _pkg_config(ctx, ["--libs", module])
    return _TARGET.format(name = repr(name), defines = repr(defines), linkopts = repr(linkopts))

def _system_library_impl(ctx):
    packages = {}
    for label, module in ctx.attr.targets.items():
        package, name = label.split(":")
        packages[package] = packages.get(package, "") + _target(ctx, name, module)
    for package, build in packages.items():
        ctx.file(package + "/BUILD" if package else "BUILD", build)

system_library = repository_rule(
    implementation = _system_library_impl,
    attrs = {
        "targets": attr.string_dict(
            doc = "package:name -> pkg-config module, or -lNAME, or nothing for headers alone",
            mandatory = True,
        ),
    },
    local = True,
)
