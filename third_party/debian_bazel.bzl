"""What Debian's Bazel (bazel-bootstrap, which calls itself no version) would otherwise fetch: it then works offline."""

def debian_bazel():
    """Declares the stand-ins; any other Bazel brings its own. Called once, by WORKSPACE."""
    if native.bazel_version:
        return
    native.local_repository(name = "remote_coverage_tools", path = "third_party/remote_coverage_tools")
    native.local_repository(name = "rules_cc", path = "third_party/rules_cc")
    native.local_repository(name = "rules_java", path = "/usr/share/bazel/rules/java")
    native.local_repository(name = "rules_proto", path = "/usr/share/bazel/rules/proto")
