"""The C++ of a .proto file, made by the system's protoc."""

load("@rules_cc//cc:defs.bzl", "cc_library")

# protoc's own code is not held to our warnings.
_COPTS = ["-Wno-unused-parameter"]

def cc_proto(name, service = False):
    """`name`_proto has the messages of name.proto; `name`_grpc, if it has a service, its stubs."""
    _protoc(name, "--cpp_out=$(GENDIR)", [name + ".pb.h", name + ".pb.cc"])
    cc_library(
        name = name + "_proto",
        srcs = [name + ".pb.cc"],
        hdrs = [name + ".pb.h"],
        copts = _COPTS,
        deps = ["@com_google_protobuf//:protobuf"],
    )
    if service:
        plugin = "--plugin=protoc-gen-grpc=$$(command -v grpc_cpp_plugin)"
        _protoc(name, plugin + " --grpc_out=$(GENDIR)", [name + ".grpc.pb.h", name + ".grpc.pb.cc"])
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

def _protoc(name, flags, outs):
    native.genrule(
        name = outs[0] + "_gen",
        srcs = [name + ".proto"],
        outs = outs,
        # From the repository's root, so that includes read "protos/...".
        cmd = "protoc -I . {} $(location {}.proto)".format(flags, name),
        message = "protoc",
    )
