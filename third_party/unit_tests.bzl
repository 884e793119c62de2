"""Unit tests of one folder, compiled and linked together.

Most of the time that a test takes is that of parsing headers and of linking, so that a folder's tests are one program.
Each stays a target of its own, with the tag manual: `bazel test //base:units_test` builds it alone.
"""

load("@rules_cc//cc:defs.bzl", "cc_test")

# So many files are compiled as one. More take less time, and more memory: a gigabyte under ASan.
_FILES_MAX = 7

_TOGETHER = "together"

def unit_test(name, srcs, deps, tags = [], **kwargs):
    """A cc_test that unit_tests() puts together with the others of its folder.

    It has one source, all in a namespace without a name inside a named one; no suite of its file is instantiated, and
    none of its cases has the name of one, in another file of the folder.

    Args:
      name: of the target.
      srcs: the source.
      deps: as in cc_test.
      tags: as in cc_test; tests are put together with those that have the same.
      **kwargs: size and data, as in cc_test.
    """
    for argument in kwargs:
        if argument not in ["size", "data"]:
            fail("unit_test {}: {} is not for single tests of a folder, use cc_test".format(name, argument))
    cc_test(
        name = name,
        srcs = srcs,
        tags = tags + ["manual", _TOGETHER],
        deps = deps,
        **kwargs
    )

def unit_tests(shard_count = None, sanitizers_only = False):
    """Declares `unit_tests` of all unit_test rules above, and `unit_tests_TAG` of those with a tag.

    Args:
      shard_count: as in cc_test.
      sanitizers_only: `./dev test` runs them under the sanitizers alone, and does not compile them once more for the
        optimized program. For folders whose results do not depend on how the compiler orders arithmetic.
    """
    groups = {}
    for rule in native.existing_rules().values():
        if rule["kind"] == "cc_test" and _TOGETHER in rule["tags"]:
            tags = [tag for tag in rule["tags"] if tag not in ["manual", _TOGETHER]]
            groups.setdefault("_".join(["unit_tests"] + sorted(tags)), []).append((rule["name"], rule, tags))
    for name, rules in groups.items():
        tags = rules[0][2]
        if sanitizers_only and "no_asan" not in tags:
            tags = tags + ["sanitizers_only"]
        _program(name, [rule for _, rule, _ in sorted(rules)], tags, shard_count)

def _program(name, rules, tags, shard_count):
    sources = []
    parts = (len(rules) + _FILES_MAX - 1) // _FILES_MAX
    for part in range(parts):
        source = "{}_{}_test.cc".format(name, part)
        _one_source(source, [src for rule in rules[part::parts] for src in rule["srcs"]])
        sources.append(source)
    cc_test(
        name = name,
        timeout = "long",
        srcs = sources,
        data = _union(rules, "data"),
        shard_count = shard_count,
        tags = tags,
        deps = _union(rules, "deps"),
    )

def _one_source(name, srcs):
    """Each source gets a namespace of its own around what is local to it, so that names may be used in several."""
    native.genrule(
        name = name.replace(".cc", "_source"),
        srcs = srcs,
        outs = [name],
        cmd = """for file in $(SRCS); do
            echo "#line 1 \\"$$file\\""
            sed -e "s/^namespace {$$/namespace $$(basename $$file .cc) { namespace {/" \\
                -e "s/^}  [/][/] namespace$$/} }/" $$file
        done >$@""",
        message = "Putting tests together:",
    )

def _union(rules, attribute):
    return {value: None for rule in rules for value in rule.get(attribute, ())}.keys()
