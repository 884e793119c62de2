#!/usr/bin/env python3
"""What report.py counts, from events and test.xml files as Bazel and GoogleTest write them."""

import contextlib
import io
import pathlib
import tempfile
import unittest

import report

LABEL = "//base:check_test"


def result(xml_path, status="PASSED"):
    output = [{"name": "test.log", "uri": "file:///log"}, {"name": "test.xml", "uri": pathlib.Path(xml_path).as_uri()}]
    return {"id": {"testResult": {"label": LABEL}}, "testResult": {"status": status, "testActionOutput": output}}


def case(name, inside="", outcome="completed", status="run"):
    return f'<testcase name="{name}" status="{status}" result="{outcome}" classname="CheckTest">{inside}</testcase>'


class ReportTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.xml_path = pathlib.Path(folder.name) / "with space.xml"

    def count(self, cases=(), status="PASSED", exit_status=0):
        """Counts one program with these cases, and keeps what is said."""
        self.xml_path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>", encoding="utf-8")
        return self.count_events([result(self.xml_path, status)], exit_status)

    def count_events(self, events, exit_status):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            counts = report.report(events, exit_status)
        self.said = said.getvalue()
        return counts

    def test_every_case_counts(self):
        self.assertEqual(self.count([case("A"), case("B")]), (2, 0, 0))
        self.assertEqual(self.said, "")

    def test_failures_are_named(self):
        self.assertEqual(self.count([case("A"), case("B", '<failure message="no"/>')], "FAILED", 3), (1, 1, 0))
        self.assertIn("CheckTest.B", self.said)

    def test_skipped_cases_are_named_with_the_reason(self):
        skipped = case("A", '<skipped message="check_test.cc:3&#x0A;no vocabulary&#x0A;"/>', "skipped")
        self.assertEqual(self.count([skipped, case("B")]), (1, 0, 1))
        self.assertIn("CheckTest.A  no vocabulary", self.said)

    def test_cases_of_another_shard_do_not_count(self):
        self.assertEqual(self.count([case("A"), case("B", "", "suppressed", "notrun")]), (1, 0, 0))

    def test_a_program_that_failed_without_a_failed_case_is_a_failure(self):
        self.assertEqual(self.count([case("A")], "FAILED", 3), (1, 1, 0))
        self.assertEqual(self.count_events([result("/no/such/file.xml", "TIMEOUT")], 3), (0, 1, 0))

    def test_a_target_that_does_not_build_is_a_failure(self):
        built = {"id": {"targetCompleted": {"label": "//base:check"}}, "completed": {"success": True}}
        broken = {"id": {"targetCompleted": {"label": "//base:status"}}, "aborted": {"reason": "ANALYSIS_FAILURE"}}
        self.assertEqual(self.count_events([built, broken], 1), (0, 1, 0))
        self.assertIn("//base:status", self.said)

    def test_a_run_that_never_started_is_a_failure(self):
        self.assertEqual(self.count_events([], 37), (0, 1, 0))

    def test_a_program_outside_bazel(self):
        self.count([case("A"), case("B", '<failure message="no"/>')])
        with contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(report.report_xml("x", str(self.xml_path), 1), (1, 1, 0))
            self.assertEqual(report.report_xml("x", "/no/such/file.xml", 0), (0, 1, 0))
            self.count([case("A")])
            self.assertEqual(report.report_xml("x", str(self.xml_path), 139), (1, 1, 0))
            self.assertEqual(report.report_xml("x", str(self.xml_path), 0), (1, 0, 0))

    def test_no_test_at_all_is_none(self):
        self.assertEqual(self.count_events([], report.NO_TESTS), (0, 0, 0))


if __name__ == "__main__":
    unittest.main()
