#!/usr/bin/env python3
"""Runs the tests of the program: run.py [NAME...], names as `python3 -m unittest` takes them.

Bazel runs it (//tests/program:program_test) and gets the cases in $XML_OUTPUT_FILE, each with its verdict. By hand, in
the root of the repository: GOLDFINCH=bazel-bin/clients/cli/goldfinch python3 tests/program/run.py
"""

import os
import pathlib
import re
import sys
import time
import unittest
import xml.etree.ElementTree

NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class XmlResult(unittest.TextTestResult):
    """Also keeps a <testcase> for each test."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.cases = {}
        self._start = {}

    def startTest(self, test):
        super().startTest(test)
        self._start[test.id()] = time.monotonic()
        self._case(test)

    def stopTest(self, test):
        super().stopTest(test)
        self._case(test).set("time", f"{time.monotonic() - self._start[test.id()]:.3f}")

    def addError(self, test, err):
        super().addError(test, err)
        self._mark(test, "error", self._exc_info_to_string(err, test))

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._mark(test, "failure", self._exc_info_to_string(err, test))

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._mark(test, "failure", f"{subtest}\n{self._exc_info_to_string(err, test)}")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._mark(test, "skipped", reason)
        self._case(test).set("result", "skipped")

    def _case(self, test):
        """Also of a module or class that could not be set up, which is no test."""
        name = test.id()
        if name not in self.cases:
            class_name, _, case_name = name.rpartition(".")
            attributes = {"classname": class_name, "name": case_name, "status": "run", "result": "completed"}
            self.cases[name] = xml.etree.ElementTree.Element("testcase", attributes)
        return self.cases[name]

    def _mark(self, test, kind, message):
        mark = xml.etree.ElementTree.SubElement(self._case(test), kind)
        mark.set("message", NOT_IN_XML.sub("?", message))


def write_xml(cases, path):
    suites = xml.etree.ElementTree.Element("testsuites")
    suite = xml.etree.ElementTree.SubElement(suites, "testsuite", {"name": "program_test", "tests": str(len(cases))})
    suite.extend(cases)
    xml.etree.ElementTree.ElementTree(suites).write(path, encoding="utf-8", xml_declaration=True)


def cases_of(suite):
    """The test cases of nested suites, in their order."""
    for member in suite:
        if isinstance(member, unittest.TestSuite):
            yield from cases_of(member)
        else:
            yield member


def of_this_shard(suite):
    """What Bazel wants this process to run: every n-th class, so that each class is set up once."""
    shards = int(os.environ.get("TEST_TOTAL_SHARDS", "1"))
    if shards == 1:
        return suite
    pathlib.Path(os.environ["TEST_SHARD_STATUS_FILE"]).touch()
    cases = list(cases_of(suite))
    classes = list(dict.fromkeys(type(case) for case in cases))
    mine = set(classes[int(os.environ["TEST_SHARD_INDEX"]) :: shards])
    return unittest.TestSuite(case for case in cases if type(case) in mine)


def main(folder=pathlib.Path(__file__).parent):
    loader = unittest.defaultTestLoader
    names = sys.argv[1:] or sorted(path.stem for path in folder.glob("*_cases.py"))
    runner = unittest.TextTestRunner(verbosity=2, resultclass=XmlResult)
    result = runner.run(of_this_shard(loader.loadTestsFromNames(names)))
    if "XML_OUTPUT_FILE" in os.environ:
        write_xml(result.cases.values(), os.environ["XML_OUTPUT_FILE"])
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main())
