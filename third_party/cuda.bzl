"""The CUDA toolkit, found at build time; without one everything builds but the CUDA back end.

It is looked for in $CUDA_HOME, else in /usr/local/cuda and where `./dev` puts one that it fetches (.cache/cuda).
`--define=goldfinch_cuda=off` leaves it out where there is one.
"""

_VERSION_MIN = 12

_BUILD = """
cc_library(
    name = "runtime",
    # Static: the program then starts on machines without CUDA too.
    linkopts = {linkopts},
    visibility = ["//visibility:public"],
)

config_setting(
    name = "off",
    values = {{"define": "goldfinch_cuda=off"}},
    visibility = ["//visibility:public"],
)
"""

def _home(ctx):
    """The toolkit's folder, or None."""
    given = ctx.os.environ.get("CUDA_HOME", "")
    if given:
        if not ctx.path(given + "/bin/nvcc").exists:
            fail("CUDA_HOME is {}, but there is no {}/bin/nvcc".format(given, given))
        return given
    fetched = ctx.path(Label("//:WORKSPACE")).dirname.get_child(".cache").get_child("cuda")
    for home in ["/usr/local/cuda", str(fetched)]:
        if ctx.path(home + "/bin/nvcc").exists:
            return home
    return None

def _check_version(ctx, nvcc):
    result = ctx.execute([nvcc, "--version"])
    words = result.stdout.replace(",", " ").split(" ")
    release = words[words.index("release") + 1] if "release" in words else "0"
    if int(release.split(".")[0]) < _VERSION_MIN:
        fail("{} is of CUDA {}, {} or newer is needed; set CUDA_HOME".format(nvcc, release, _VERSION_MIN))

def _cuda_repository_impl(ctx):
    home = _home(ctx)
    linkopts = []
    if home:
        _check_version(ctx, home + "/bin/nvcc")
        libraries = home + ("/lib64" if ctx.path(home + "/lib64").exists else "/lib")
        linkopts = [libraries + "/libcudart_static.a", "-ldl", "-lrt", "-lpthread"]
    ctx.file("defs.bzl", "CUDA_FOUND = {}\nCUDA_HOME = {}\n".format(home != None, repr(home or "")))
    ctx.file("BUILD", _BUILD.format(linkopts = linkopts))

cuda_repository = repository_rule(
    implementation = _cuda_repository_impl,
    environ = ["CUDA_HOME"],
    local = True,
)
