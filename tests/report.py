#!/usr/bin/env python3
"""Counts what tests did: prints "passed failed skipped".

report.py EVENTS STATUS: of one `bazel test`. EVENTS is the file of --build_event_json_file, STATUS the exit status of
Bazel.
report.py --xml NAME FILE STATUS: of one program that wrote its cases to FILE and ended with STATUS.

Every case of a program that writes them down is a test of its own, any other program is one, and so is a target that
does not build. Failures and skipped tests are named on stderr.
"""

import json
import sys
import urllib.parse
import xml.etree.ElementTree

# Bazel found no test to run: nothing failed.
NO_TESTS = 4


def say(verdict, label, case="", reason=""):
    print("  ".join(part for part in (verdict, label, case, reason) if part), file=sys.stderr)


def count_cases(label, xml_path):
    """Counts the cases of one test.xml: (passed, failed, skipped)."""
    passed = failed = skipped = 0
    for case in xml.etree.ElementTree.parse(xml_path).iter("testcase"):
        name = ".".join(part for part in (case.get("classname"), case.get("name")) if part)
        if case.get("status") == "notrun":
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
            say("FAILED", label, name)
        elif case.get("result") == "skipped":
            skipped += 1
            message = case.find("skipped")
            lines = (message.get("message", "") if message is not None else "").strip().splitlines()
            say("SKIPPED", label, name, lines[-1] if lines else "")
        else:
            passed += 1
    return passed, failed, skipped


def count_result(label, result):
    """Counts one testResult event; a program that failed has at least one failure, whatever its test.xml says."""
    counts = (0, 0, 0)
    for output in result.get("testActionOutput", []):
        if output["name"] == "test.xml":
            try:
                counts = count_cases(label, urllib.parse.unquote(urllib.parse.urlparse(output["uri"]).path))
            except (OSError, xml.etree.ElementTree.ParseError):
                pass
    passed, failed, skipped = counts
    if result["status"] != "PASSED" and failed == 0:
        say("FAILED", label, reason=result["status"])
        failed = 1
    return passed, failed, skipped


def count_event(event):
    if "testResult" in event:
        return count_result(event["id"]["testResult"]["label"], event["testResult"])
    if "targetCompleted" in event["id"] and not event.get("completed", {}).get("success"):
        say("FAILED", event["id"]["targetCompleted"]["label"], reason="does not build")
        return 0, 1, 0
    return 0, 0, 0


def report(events, status):
    """Counts the events of a run that ended with the status."""
    counts = [count_event(event) for event in events]
    passed, failed, skipped = (sum(column) for column in zip(*counts)) if counts else (0, 0, 0)
    if failed == 0 and status not in (0, NO_TESTS):
        say("FAILED", f"bazel test: exit status {status}")
        failed = 1
    return passed, failed, skipped


def report_xml(name, path, status):
    """Counts the cases of one program; one that failed has at least one failure."""
    try:
        passed, failed, skipped = count_cases(name, path)
    except (OSError, xml.etree.ElementTree.ParseError):
        passed = failed = skipped = 0
    if failed == 0 and (status != 0 or passed + skipped == 0):
        say("FAILED", name, reason=f"exit status {status}, {passed} cases")
        failed = 1
    return passed, failed, skipped


def main():
    if sys.argv[1] == "--xml":
        print(*report_xml(sys.argv[2], sys.argv[3], int(sys.argv[4])))
        return
    with open(sys.argv[1], encoding="utf-8") as lines:
        print(*report([json.loads(line) for line in lines], int(sys.argv[2])))


if __name__ == "__main__":
    main()
