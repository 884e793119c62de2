"""The C++ of a .proto file, made by the system's protoc."""

load("@rules_cc//cc:defs.bzl", "cc_library")

# protoc's own code is not held to our warnings.
_COPTS = ["-Wno-unused-parameter"]

def cc_proto(name, service = False, imports = []):
    """`name`_proto has the messages of name.proto; `name`_grpc, if it has a service, its stubs.

    `imports` are the names of the other .proto files that it imports.
    """
    _protoc(name, "--cpp_out=$(GENDIR)", [name + ".pb.h", name + ".pb.cc"], imports)
    cc_library(
        name = name + "_proto",
        srcs = [name + ".pb.cc"],
        hdrs = [name + ".pb.h"],
        copts = _COPTS,
        deps = ["@com_google_protobuf//:protobuf"] + [":%s_proto" % other for other in imports],
    )
    if service:
        plugin = "--plugin=protoc-gen-grpc=$$(command -v grpc_cpp_plugin)"
        _protoc(name, plugin + " --grpc_out=$(GENDIR)", [name + ".grpc.pb.h", name + ".grpc.pb.cc"], imports)
        cc_library(
            name = name + "_grpc",
            srcs = [name + ".grpc.pb.cc"],
            hdrs = [name + ".grpc.pb.h"],
            copts = _COPTS,
            deps = [
                ":" + name + "_proto",
                "@com_github_grpc_grpc//:grpc++",
            ],
        )

def _protoc(name, flags, outs, imports):
    native.genrule(
        name = outs[0] + "_gen",
        srcs = [file + ".proto" for file in [name] + imports],
        outs = outs,
        # From the repository's root, so that includes read "protos/...".
        cmd = "protoc -I . {} $(location {}.proto)".format(flags, name),
        message = "protoc",
    )
