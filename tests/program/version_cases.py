"""What the program says of its version."""

import pathlib

from program import ProgramTest

VERSION = pathlib.Path("VERSION").read_text(encoding="ascii").strip()


class VersionTest(ProgramTest):
    def test_version_is_that_of_the_file(self):
        self.assertRegex(VERSION, r"\A\d+\.\d+\.\d+\Z")
        result = self.succeeds("--version")
        self.assertEqual((result.stdout, result.stderr), (f"goldfinch {VERSION}\n".encode(), ""))

    def test_version_needs_no_command(self):
        self.assertEqual(self.succeeds("--version", "serve").stdout, self.succeeds("--version").stdout)
