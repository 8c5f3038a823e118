"""CONTRIBUTING.md is followed to the letter in a copy of the tree; what was added is used from outside."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.stores import SHOP_STORE

REPOSITORY = Path(__file__).parents[2]
GUIDE = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
_SECTION = re.compile(r"^## (Add a [a-z ]+): (\d+) files?\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r'^```python title="([^"]+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
_DIFF = re.compile(r"^```diff\n(.*?)^```", re.MULTILINE | re.DOTALL)
_STATED = {name: int(count) for name, count, _ in _SECTION.findall(GUIDE)}
_TEXTS = {name: text for name, _, text in _SECTION.findall(GUIDE)}


def follow(tree: Path, section: str) -> set[str]:
    """Make every file and every edit of a section; the files that were touched."""
    touched: set[str] = set()
    for name, text in _FILE.findall(_TEXTS[section]):
        assert not (tree / name).exists(), name
        (tree / name).write_text(text, encoding="utf-8")
        touched.add(name)
    for diff in _DIFF.findall(_TEXTS[section]):
        for hunk in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
            name, _, lines = hunk.partition("\n")
            old = "".join(line[1:] or "\n" for line in lines.splitlines(keepends=True) if line[0] in " -\n")
            new = "".join(line[1:] or "\n" for line in lines.splitlines(keepends=True) if line[0] in " +\n")
            before = (tree / name).read_text(encoding="utf-8")
            assert before.count(old) == 1, f"{name} has {before.count(old)} places that read\n{old}"
            (tree / name).write_text(before.replace(old, new), encoding="utf-8")
            touched.add(name)
    return touched


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the parts that a server is made of, in which everything of the guide was added."""
    copy = tmp_path_factory.mktemp("tree")
    left_out = shutil.ignore_patterns("__pycache__", "*.png", "*.jpg", "builtin")
    for room in ("clipworks", "evaluation", "model_store", "service", "docs"):
        shutil.copytree(REPOSITORY / room, copy / room, ignore=left_out)
    for section in ("Add a setting", "Add a route", "Add a backend for collections", "Add a probe"):
        assert len(follow(copy, section)) == _STATED[section], section
    return copy


def environment(tree: Path, **settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CLIPWORKS_")}
    return {**inherited, "PYTHONPATH": str(tree), **settings}


@contextmanager
def server(tree: Path, **settings: str) -> Generator[httpx2.Client]:
    """A server of the copy, with a client for it; the copy shadows the installed project."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service"],
        cwd=tree,
        env=environment(tree, CLIPWORKS_PORT="0", **settings),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        address = ""
        for line in process.stdout:
            address = line.split()[-1] if "listening on" in line else address
            if "ready" in line:
                break
        with httpx2.Client(base_url=address) as client:
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_the_added_setting_is_a_flag_and_in_the_table(tree: Path) -> None:
    script = [sys.executable, str(tree / "docs" / "write_settings.py")]
    subprocess.run(script, env=environment(tree), cwd=tree, check=True)
    assert (
        "`CLIPWORKS_MAX_TOKEN_TEXTS` | `--max-token-texts` | `64` |" in (tree / "docs" / "configuration.md").read_text()
    )


def test_the_added_route_and_backend_answer(tree: Path, tmp_path: Path) -> None:
    settings = {
        "CLIPWORKS_STORE": str(SHOP_STORE),
        "CLIPWORKS_MAX_TOKEN_TEXTS": "2",
        "CLIPWORKS_COLLECTIONS_BACKEND": "audited",
        "CLIPWORKS_DATA": str(tmp_path / "data"),
    }
    with server(tree, **settings) as client:
        counted = client.post("/tokens", json={"texts": ["a", "a red shirt"]})
        assert counted.status_code == 200, counted.text
        one, three = counted.json()["tokens"]
        assert three - one == 2
        refused = client.post("/tokens", json={"texts": ["a"] * 3})
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_items")
        assert client.post("/tokens", json={"texts": ["a"], "x": 1}).status_code == 422
        document = client.get("/openapi.json").json()
        assert "TokensRequest" in document["components"]["schemas"]
        assert client.put("/collections/photos", json={}).status_code == 201
        assert client.delete("/collections/photos").status_code == 204
    assert (tmp_path / "data" / "dropped.txt").read_text() == "photos\n"


def test_the_added_probe_asks_a_model_and_its_controls(tree: Path, tmp_path: Path) -> None:
    """The truth always knows the answer, a reader that sees nothing guesses, and the report has words for it."""
    code = """
import dataclasses, pathlib, sys
from evaluation.encoder import open_artifact
from evaluation.probes.pool import QUICK
from evaluation.report.topics import TOPICS
from evaluation.suites import run, suite
from model_store.store import Store
chosen = dataclasses.replace(suite("shape"), size=QUICK)
folder, store = map(pathlib.Path, sys.argv[1:])
(result,) = run(open_artifact(Store(store, builtin=False).open("fashion-small")), chosen, folder=folder)
(row,) = result.rows
assert TOPICS["shape"].claims[0].row == row.name
print(row.n, row.chance, row.truth, row.blind, row.score)
"""
    command = [sys.executable, "-c", code, tmp_path, SHOP_STORE]
    done = subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    n, chance, truth, blind, score = map(float, done.stdout.split())
    assert n > 100
    assert truth == 1
    assert abs(blind - chance) < 0.1
    assert 0 <= score <= 1
