#!/usr/bin/env python3
"""Each problem that tidy.py knows, in a small tree of its own."""

import pathlib
import subprocess
import tempfile
import unittest

import tidy

GUARDED = "#ifndef {0}\n#define {0}\n{1}\n#endif  // {0}\n"


class TidyTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        subprocess.run(["git", "init", "-q", folder.name], check=True)

    def problems_of(self, files):
        """The problems of a tree with these files: path -> text."""
        for path, text in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text, encoding="utf-8")
        return tidy.check_tree(self.root)

    def problems_of_cc(self, text, room="worker"):
        return self.problems_of({f"{room}/BUILD": '"stage.cc"', f"{room}/stage.cc": text})

    def test_a_clean_tree_has_none(self):
        guarded = GUARDED.format("GOLDFINCH_KERNELS_CPU_WKV_H_", '#include "base/check.h"')
        self.assertEqual(self.problems_of({"kernels/BUILD": '"cpu/wkv.h"', "kernels/cpu/wkv.h": guarded}), [])

    def test_rooms_keep_their_direction(self):
        line = '#include "kernels/tensor.h"\n'
        self.assertEqual(self.problems_of_cc(line, "worker"), [])
        self.assertEqual(self.problems_of_cc(line, "clients"), [])
        self.assertEqual(self.problems_of_cc(line, "coordinator"),
                         ["coordinator/stage.cc:1: coordinator may not include kernels"])

    def test_rooms_within_rooms_keep_theirs(self):
        files = {"worker/BUILD": "", "worker/model/BUILD": '"a.cc"', "worker/stage/BUILD": '"b.cc"',
                 "base/BUILD": '"c.cc"',
                 "worker/model/a.cc": '#include "worker/stage/stage.h"\n#include "worker/checkpoint/names.h"\n',
                 "worker/stage/b.cc": '#include "worker/model/model.h"\n#include "worker/worker.h"\n',
                 "base/c.cc": '#include <string>\n#include "absl/strings/str_cat.h"\n'}
        files["worker/model/BUILD"] += '"a_test.cc" "a_fuzz.cc"'
        files["worker/model/a_fuzz.cc"] = '#include "worker/stage/stage.h"\n'
        files["worker/model/a_test.cc"] = '#include "worker/stage/stage.h"\n#include "coordinator/scheduler.h"\n'
        self.assertEqual(self.problems_of(files), ["worker/model/a.cc:1: worker/model may not include worker/stage",
                                                   "worker/model/a_test.cc:2: worker/model may not include coordinator",
                                                   "worker/stage/b.cc:2: worker/stage may not include worker"])

    def test_rooms_of_the_program_keep_theirs(self):
        files = {"clients/cli/BUILD": '"main.cc"', "clients/cli/local/BUILD": '"a.cc"', "clients/cli/flags/BUILD": "",
                 "clients/cli/main.cc": '#include "clients/cli/local/a.h"\n#include "worker/worker.h"\n',
                 "clients/cli/local/a.cc": '#include "clients/cli/flags/options.h"\n#include "worker/worker.h"\n'
                                           '#include "clients/cli/remote/remote.h"\n#include "clients/cli/main.h"\n'}
        self.assertEqual(self.problems_of(files), [
            "clients/cli/local/a.cc:3: clients/cli/local may not include clients/cli/remote",
            "clients/cli/local/a.cc:4: clients/cli/local may not include clients"])

    def test_files_have_a_limit(self):
        self.assertEqual(self.problems_of_cc("\n" * 500), [])
        self.assertEqual(self.problems_of_cc("\n" * 501),
                         ["worker/stage.cc:1: 501 lines, the limit is 500: does it hold two things?"])

    def test_types_have_one_home(self):
        files = {"base/BUILD": '"a.cc", "b.cc"',
                 "base/a.cc": "namespace goldfinch {\nstruct Edge {};\nnamespace {\nstruct Mine {};\n}\n}\n",
                 "base/b.cc": "namespace goldfinch {\nclass Edge final : public Base {\n};\nstruct Mine {};\n}\n"}
        self.assertEqual(self.problems_of(files), ["base/b.cc:2: goldfinch::Edge is defined in base/a.cc, too"])

    def test_comments_have_a_subject(self):
        self.assertEqual(self.problems_of_cc("int a;  // Of b.\n// A part of b.\n"),
                         ['worker/stage.cc:1: a comment that begins with "Of" has no subject'])
        self.assertIn('protos/a.proto:1: a comment that begins with "Of" has no subject',
                      self.problems_of({"protos/a.proto": "// Of b.\n"}))

    def test_messages_below_the_program_name_no_flags(self):
        line = 'Error("lower --memory, or a -- b");\n'
        self.assertEqual(self.problems_of_cc(line, "clients"), [])
        self.assertEqual(self.problems_of_cc(line), ["worker/stage.cc:1: messages of this room name fields, not flags"])

    def test_documents_have_the_limit_of_lines(self):
        self.assertEqual(self.problems_of({"docs/A.md": "a" * 121 + "\n|" + "a" * 199 + "\n|" + "a" * 200 + "\n"}),
                         ["docs/A.md:1: 121 characters, the limit is 120",
                          "docs/A.md:3: 201 characters, the limit is 200"])

    def test_lines_have_a_limit(self):
        self.assertEqual(self.problems_of_cc("/" * 120 + "\n"), [])
        self.assertEqual(self.problems_of_cc("/" * 121 + "\n"), ["worker/stage.cc:1: 121 characters, the limit is 120"])

    def test_tabs(self):
        self.assertEqual(self.problems_of_cc("int a;\n\tint b;\n"), ["worker/stage.cc:2: tab"])

    def test_todos_have_a_name_or_an_issue(self):
        todo = "TO" + "DO"
        self.assertEqual(self.problems_of_cc(f"// {todo}(#12): faster. {todo}(finch): smaller.\n"), [])
        self.assertEqual(len(self.problems_of_cc(f"// {todo}: faster\n")), 1)

    def test_files_that_nothing_builds(self):
        self.assertEqual(self.problems_of({"worker/BUILD": "", "worker/stage.cc": ""}),
                         ["worker/stage.cc:1: not in worker/BUILD: dead file"])

    def test_header_guards(self):
        files = {"base/BUILD": '"check.h"', "base/check.h": GUARDED.format("CHECK_H", "")}
        self.assertEqual(self.problems_of(files), ["base/check.h:1: header guard is not GOLDFINCH_BASE_CHECK_H_"])

    def test_headers_that_highway_includes_again(self):
        guard = "GOLDFINCH_KERNELS_GEMM_INL_H_"
        text = f"#if defined({guard}) == defined(HWY_TARGET_TOGGLE)\n#endif  // {guard}\n"
        self.assertEqual(self.problems_of({"kernels/BUILD": '"gemm-inl.h"', "kernels/gemm-inl.h": text}), [])


if __name__ == "__main__":
    unittest.main()
