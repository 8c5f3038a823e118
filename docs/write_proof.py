"""Write docs/proof.md from the promises of proof.toml and the recorded run of proof.json.

Without an argument it writes the page anew. With the JUnit files of a whole run of the tests, the long ones beside the
others, it records that run first:

    bash .ci/run && .ci/long && make proof ARGS="build/tests.xml build/long.xml"

The run's commit is the name of its suites, as these two set it.
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROMISES = ROOT / "docs" / "proof.toml"
RECORD = ROOT / "docs" / "proof.json"
PAGE = ROOT / "docs" / "proof.md"
COUNTED = ("passed", "failed", "skipped")
INTRODUCTION = """# Proof

What clipworks promises, and what holds each promise. This page is written by `make proof` from
[proof.toml](proof.toml) and [proof.json](proof.json): edit those. Counts of tests are those of the recorded run;
a figure beside a command was measured by that command, at the commit and on the day that stand beside it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/proof.md.")
    parser.add_argument("junit", nargs="*", type=Path, help="JUnit files of a whole run, to be recorded first")
    asked = parser.parse_args()
    promises = tomllib.loads(PROMISES.read_text(encoding="utf-8"))
    if asked.junit:
        record = read_run(*asked.junit)
        refuse_a_partial_run(promises, record)
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(promises, json.loads(RECORD.read_text(encoding="utf-8"))), encoding="utf-8")


def read_run(*junit: Path) -> dict[str, Any]:
    """The record of a run in one or more parts: commit, date, wall seconds, and for each test file passed, failed,
    skipped, seconds.

    Errors count as failed. Raises SystemExit for a run that has no commit or of files that were changed after it, and
    for parts of different commits.
    """
    suites = [suite_of(path) for path in junit]
    if len(commits := {suite.get("name", "") for suite in suites}) != 1:
        raise SystemExit(f"the parts are of different commits: {', '.join(sorted(commits))}")
    files: dict[str, dict[str, Any]] = {}
    for case in (case for suite in suites for case in suite.iter("testcase")):
        path = file_of(case)
        counts = files.setdefault(path, {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0})
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts[outcome] += 1
        counts["seconds"] = round(counts["seconds"] + float(case.get("time", 0)), 1)
    return {
        "commit": commits.pop(),
        "date": suites[0].get("timestamp", "")[:10],
        "seconds": round(sum(float(suite.get("time", 0)) for suite in suites)),
        "files": dict(sorted(files.items())),
    }


def suite_of(junit: Path) -> ElementTree.Element:
    """The suite of a JUnit file. Raises SystemExit for one that is not named after a commit."""
    suite = ElementTree.parse(junit).getroot().find("testsuite")
    if suite is None or not re.fullmatch(r"[0-9a-f]{7,40}", suite.get("name", "")):
        name = None if suite is None else suite.get("name")
        raise SystemExit(
            f"{junit}: the run's suite is named {name!r}, expected a commit without changes, as .ci/run sets it"
        )
    return suite


def file_of(case: ElementTree.Element) -> str:
    """The test file of a case. A decorated test has the file of its decorator, one that could not be read has none."""
    file = case.get("file", "")
    module = (case.get("classname") or case.get("name", "")).replace(".", "/") + ".py"
    return file if file.startswith("tests/") else module


def refuse_a_partial_run(promises: dict[str, Any], record: dict[str, Any]) -> None:
    missing = [name for name in test_names(promises) if not any(is_within(path, name) for path in record["files"])]
    if missing:
        raise SystemExit(f"this was not a run of all tests, it lacks {', '.join(missing)}")


def test_names(promises: dict[str, Any]) -> list[str]:
    """Every test file or folder that a promise names, once."""
    every = [name for part in promises["section"] for each in part["promise"] for name in each.get("tests", [])]
    return list(dict.fromkeys(every))


def is_within(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}/")


def page(promises: dict[str, Any], record: dict[str, Any]) -> str:
    """The text of docs/proof.md."""
    lines = [INTRODUCTION, *whole_runs(promises, record)]
    for part in promises["section"]:
        lines += [f"\n## {part['title']}\n", "| promise | held by | result | commit | date |", "|---|---|---|---|---|"]
        lines += [row(promise, record) for promise in part["promise"]]
    return "\n".join(lines) + "\n"


def whole_runs(promises: dict[str, Any], record: dict[str, Any]) -> list[str]:
    result = f"{told(record['files'].values())} in {record['seconds']} s"
    earlier = [cells(run["result"], run.get("commit", ""), run["date"]) for run in reversed(promises["whole_run"])]
    head = [
        "## Whole runs\n",
        "`bash .ci/run`, and since December 2026 `.ci/long` after it, newest first. The first is the recorded run that "
        "the counts below come from.\n",
    ]
    return [
        *head,
        "| result | commit | date |",
        "|---|---|---|",
        cells(result, record["commit"], record["date"]),
        *earlier,
    ]


def row(promise: dict[str, Any], record: dict[str, Any]) -> str:
    if "not_done" in promise:
        return cells(promise["claim"], "", f"not done: {promise['not_done']}", "", "")
    result = [promise["result"]] if "result" in promise else []
    if "tests" not in promise:
        commit, date = promise.get("commit", ""), promise["date"]
        return cells(promise["claim"], f"`{promise['command']}`", "; ".join(result), commit, date)
    held = " ".join(f"[{name.removeprefix('tests/')}](../{name})" for name in promise["tests"])
    ran = [found for path, found in record["files"].items() if any(is_within(path, name) for name in promise["tests"])]
    missing = sum(not any(is_within(path, name) for path in record["files"]) for name in promise["tests"])
    if ran and missing:
        result = [f"{missing} of its {len(promise['tests'])} files not in the recorded run yet", *result]
    result = [told(ran) if ran else "not in the recorded run yet", *result]
    commit, date = (record["commit"], record["date"]) if ran else ("", "")
    return cells(promise["claim"], held, "; ".join(result), commit, date)


def told(files: Any) -> str:
    """Such as `40 passed, 1 skipped`."""
    files = list(files)
    sums = {name: sum(each[name] for each in files) for name in COUNTED}
    return ", ".join(f"{count} {name}" for name, count in sums.items() if count or name == "passed")


def cells(*values: Any) -> str:
    return "| " + " | ".join(str(value) for value in values) + " |"


if __name__ == "__main__":
    main()
