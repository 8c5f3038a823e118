"""The page of proofs is written by its script from records in the repository, and the tests that it names exist."""

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SUITE = (
    '<testsuites><testsuite name="{commit}" timestamp="2026-11-29T10:00:00" time="2.5">{cases}</testsuite></testsuites>'
)
PROMISES = {
    "section": [
        {
            "title": "Store",
            "promise": [
                {"claim": "held", "tests": ["tests/store"], "result": "3 of 3"},
                {"claim": "grown", "tests": ["tests/new.py", "tests/storey.py", "tests/newer"]},
                {"claim": "new", "tests": ["tests/new.py"]},
                {"claim": "fast", "command": "bench", "result": "9/s", "commit": "abcdef0", "date": "2026-01-02"},
                {"claim": "open", "not_done": "needs a GPU"},
            ],
        }
    ],
    "whole_run": [{"date": "2026-01-01", "commit": "1234567", "result": "1 passed in 1.0s"}],
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_proof", ROOT / "docs" / "write_proof.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def promises() -> dict:
    return tomllib.loads((ROOT / "docs" / "proof.toml").read_text(encoding="utf-8"))


def junit(folder: Path, *cases: str, commit: str = "abcdef0") -> Path:
    path = folder / "tests.xml"
    path.write_text(SUITE.format(commit=commit, cases="".join(cases)))
    return path


def case(file: str, inner: str = "", seconds: float = 0.25) -> str:
    return f'<testcase file="{file}" name="test" time="{seconds}">{inner}</testcase>'


def test_the_page_is_what_the_script_writes(script: ModuleType, promises: dict) -> None:
    record = json.loads((ROOT / "docs" / "proof.json").read_text(encoding="utf-8"))
    written = (ROOT / "docs" / "proof.md").read_text(encoding="utf-8")
    assert written == script.page(promises, record), "run `make proof`; edit docs/proof.toml, not the page"


def test_every_test_that_is_named_exists(script: ModuleType, promises: dict) -> None:
    named = script.test_names(promises)
    assert len(named) > 40
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_promise_says_what_holds_it(promises: dict) -> None:
    for part in promises["section"]:
        for promise in part["promise"]:
            kinds = {"tests", "command", "not_done"} & promise.keys()
            assert len(kinds) == 1, promise
            assert "command" not in kinds or {"result", "date"} <= promise.keys(), promise


def test_a_run_is_counted_by_file(script: ModuleType, tmp_path: Path) -> None:
    path = junit(
        tmp_path,
        case("tests/store/test_a.py"),
        case("tests/store/test_a.py", "<failure/>"),
        case("tests/store/test_a.py", "<error/>"),
        case("tests/store/test_b.py", "<skipped/>", seconds=3),
    )
    assert script.read_run(path) == {
        "commit": "abcdef0",
        "date": "2026-11-29",
        "seconds": 2,
        "files": {
            "tests/store/test_a.py": {"passed": 1, "failed": 2, "skipped": 0, "seconds": 0.8},
            "tests/store/test_b.py": {"passed": 0, "failed": 0, "skipped": 1, "seconds": 3.0},
        },
    }


def test_a_decorated_test_counts_for_its_own_file(script: ModuleType, tmp_path: Path) -> None:
    """JUnit names the file of the decorator then, and no file at all of one that could not be read."""
    cases = (
        '<testcase classname="tests.a.test_b" file=".venv/lib/decorator.py" name="test" time="1"/>',
        '<testcase classname="" name="tests.a.test_c" time="0"><error/></testcase>',
    )
    files = script.read_run(junit(tmp_path, *cases))["files"]
    assert {path: (each["passed"], each["failed"]) for path, each in files.items()} == {
        "tests/a/test_b.py": (1, 0),
        "tests/a/test_c.py": (0, 1),
    }


@pytest.mark.parametrize("commit", ["abcdef0-changed", "unknown", "pytest"])
def test_a_run_of_no_commit_is_not_recorded(script: ModuleType, tmp_path: Path, commit: str) -> None:
    with pytest.raises(SystemExit, match=f"{commit}.*expected a commit without changes"):
        script.read_run(junit(tmp_path, case("tests/store/test_a.py"), commit=commit))


def test_a_run_in_parts_is_one_run_of_one_commit(script: ModuleType, tmp_path: Path) -> None:
    for name, commit in (("gate", "abcdef0"), ("long", "abcdef0"), ("other", "0123456")):
        (tmp_path / name).mkdir()
        junit(tmp_path / name, case("tests/store/test_a.py"), case(f"tests/{name}.py"), commit=commit)
    gate, long, other = (tmp_path / name / "tests.xml" for name in ("gate", "long", "other"))
    record = script.read_run(gate, long)
    assert (record["commit"], record["seconds"]) == ("abcdef0", 5)
    passed = {path: counts["passed"] for path, counts in record["files"].items()}
    assert passed == {"tests/gate.py": 1, "tests/long.py": 1, "tests/store/test_a.py": 2}
    with pytest.raises(SystemExit, match="of different commits: 0123456, abcdef0"):
        script.read_run(gate, other)


def test_a_run_of_a_part_is_not_recorded(script: ModuleType, tmp_path: Path) -> None:
    record = script.read_run(junit(tmp_path, case("tests/store/test_a.py")))
    with pytest.raises(SystemExit, match=r"it lacks tests/new\.py, tests/storey\.py, tests/newer$"):
        script.refuse_a_partial_run(PROMISES, record)


def test_a_row_has_the_counts_of_its_tests(script: ModuleType, tmp_path: Path) -> None:
    record = script.read_run(
        junit(
            tmp_path,
            case("tests/store/test_a.py"),
            case("tests/store/test_b.py", "<failure/>"),
            case("tests/storey.py"),
        )
    )
    rows = [line for line in script.page(PROMISES, record).splitlines() if line.startswith("| ")]
    held, grown, new, fast, undone = rows[-5:]
    assert held == "| held | [store](../tests/store) | 1 passed, 1 failed; 3 of 3 | abcdef0 | 2026-11-29 |"
    files = "[new.py](../tests/new.py) [storey.py](../tests/storey.py) [newer](../tests/newer)"
    told = "1 passed; 2 of its 3 files not in the recorded run yet"
    assert grown == f"| grown | {files} | {told} | abcdef0 | 2026-11-29 |"
    assert new == "| new | [new.py](../tests/new.py) | not in the recorded run yet |  |  |"
    assert fast == "| fast | `bench` | 9/s | abcdef0 | 2026-01-02 |"
    assert undone == "| open |  | not done: needs a GPU |  |  |"
    assert "2 passed, 1 failed in 2 s" in script.page(PROMISES, record)


def test_pytest_writes_the_file_that_is_read(script: ModuleType, tmp_path: Path) -> None:
    """A small run in parallel, with the options of .ci/run: each file under its path, the suite under its commit."""
    command = [sys.executable, "-m", "pytest", "-n", "1", "--junitxml", str(tmp_path / "tests.xml")]
    command += ["-o", "junit_suite_name=abcdef0", "-k", "every_promise_says", "tests/repository/test_proof.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    record = script.read_run(tmp_path / "tests.xml")
    assert record["files"]["tests/repository/test_proof.py"] | {"seconds": 0} == {
        "passed": 1,
        "failed": 0,
        "skipped": 0,
        "seconds": 0,
    }
