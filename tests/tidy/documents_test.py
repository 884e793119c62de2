#!/usr/bin/env python3
"""What documents.py finds in a small tree of its own, and that it finds nothing in this repository."""

import pathlib
import subprocess
import tempfile
import unittest

import documents

ROOT = pathlib.Path(__file__).resolve().parents[2]


class DocumentsTest(unittest.TestCase):
    def problems_of(self, text):
        """The problems of a document in a tree that has base/check.h and base/check_test.cc."""
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            subprocess.run(["git", "init", "-q", folder], check=True)
            (root / "base").mkdir()
            (root / "base" / "check.h").touch()
            (root / "base" / "check_test.cc").touch()
            (root / "docs").mkdir()
            (root / "docs" / "DOC.md").write_text(text, encoding="utf-8")
            return documents.check_documents(root, ["docs/DOC.md"])

    def test_files_and_folders_that_exist(self):
        text = "`base/check.h`, `base/check`, `base/`, `base/*_test.cc`, [it](../base/check.h), [this](DOC.md#top)\n"
        self.assertEqual(self.problems_of(text), [])

    def test_files_that_do_not(self):
        text = "`base/check.h`\n`base/gone.h 5` and [a link](docs/DOC.md)\n"
        expected = ["docs/DOC.md:2: there is no docs/DOC.md", "docs/DOC.md:2: there is no base/gone.h"]
        self.assertEqual(self.problems_of(text), expected)

    def test_what_is_no_file_of_the_repository(self):
        text = "`//base/gone:target`, `bazel-bin/base/gone`, `dist/*.tar.gz`, [gRPC](https://grpc.io/base/gone)\n"
        self.assertEqual(self.problems_of(text), [])

    def test_this_repository(self):
        self.assertEqual(documents.check_documents(ROOT), [])


if __name__ == "__main__":
    unittest.main()
