"""Every library that Goldfinch Serving links, under the names and labels of the upstream projects.

The Debian package of each is in BUILD_NEEDS of ./dev.
"""

load("//third_party:system_library.bzl", "system_library")

def libraries():
    """Declares the repositories; called once, by WORKSPACE."""
    system_library(
        name = "com_google_absl",
        targets = {
            "absl/algorithm:container": "absl_algorithm_container",
            "absl/base:core_headers": "absl_core_headers",
            "absl/cleanup:cleanup": "absl_cleanup",
            "absl/container:fixed_array": "absl_fixed_array",
            "absl/container:flat_hash_map": "absl_flat_hash_map",
            "absl/container:flat_hash_set": "absl_flat_hash_set",
            "absl/container:inlined_vector": "absl_inlined_vector",
            "absl/flags:flag": "absl_flags",
            "absl/flags:parse": "absl_flags_parse",
            "absl/flags:reflection": "absl_flags_reflection",
            "absl/flags:usage": "absl_flags_usage",
            "absl/functional:any_invocable": "absl_any_invocable",
            "absl/functional:function_ref": "absl_function_ref",
            "absl/numeric:bits": "absl_bits",
            "absl/numeric:int128": "absl_int128",
            "absl/random:bit_gen_ref": "absl_random_bit_gen_ref",
            "absl/random:random": "absl_random_random",
            "absl/status:status": "absl_status",
            "absl/status:statusor": "absl_statusor",
            "absl/strings:str_format": "absl_str_format",
            "absl/strings:strings": "absl_strings",
            "absl/synchronization:synchronization": "absl_synchronization",
            "absl/time:time": "absl_time",
            "absl/types:span": "absl_span",
        },
    )
    system_library(
        name = "com_google_googletest",
        targets = {
            ":gtest": "gmock",
            ":gtest_main": "gmock_main",
        },
    )
    system_library(
        name = "com_github_google_benchmark",
        targets = {
            ":benchmark": "benchmark",
            ":benchmark_main": "-lbenchmark_main",
        },
    )
    system_library(
        name = "com_google_protobuf",
        targets = {":protobuf": "-lprotobuf"},
    )
    system_library(
        name = "com_github_grpc_grpc",
        targets = {
            ":grpc++": "grpc++",
            ":grpc++_reflection": "-lgrpc++_reflection",
        },
    )
    system_library(
        name = "prometheus_cpp",
        targets = {"core:core": "prometheus-cpp-core"},
    )
    system_library(
        name = "openssl",
        targets = {
            ":crypto": "libcrypto",
            ":ssl": "libssl",
        },
    )
    system_library(
        name = "boost",
        targets = {
            ":beast": "",
            ":context": "-lboost_context",
        },
    )
    system_library(
        name = "highway",
        targets = {":hwy": "libhwy"},
    )
    system_library(
        name = "isa_l",
        targets = {":isal": "libisal"},
    )
    system_library(
        name = "onednn",
        targets = {":onednn": "-ldnnl"},
    )
    system_library(
        name = "spdlog",
        targets = {":spdlog": "spdlog"},
    )
    system_library(
        name = "cli11",
        targets = {":cli11": ""},
    )
    system_library(
        name = "nlohmann_json",
        targets = {":json": ""},
    )
    system_library(
        name = "yaml_cpp",
        targets = {":yaml-cpp": "yaml-cpp"},
    )
    system_library(
        name = "zlib",
        targets = {":zlib": "zlib"},
    )
