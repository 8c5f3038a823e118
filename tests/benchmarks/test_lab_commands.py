"""The commands of the studies' pages, read from the pages and run at toy size in a clean clone."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.lab_runs import toy_overrides

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.long]

REPOSITORY = Path(__file__).parents[2]
PAGES = ("docs/lab.md", "docs/unmix.md", "docs/distillation.md")
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"^ {4}((?:clipworks|python) .*)$", re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """Every command of a page as words, in its order; comments are left out."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    lines = [line for block in _BLOCK.findall(text) for line in block.splitlines()] + _LINE.findall(text)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is committed, as somebody who clones it has it."""
    folder = tmp_path_factory.mktemp("clone") / "clipworks"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with titles, in place of the photographs that the joint recipe is for."""
    folder = tmp_path_factory.mktemp("table")
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "baseColour"])
        for number in range(60):
            colour, value = (("Red", (200, 0, 0)), ("Blue", (0, 0, 200)))[number % 2]
            Image.fromarray(np.full((64, 64, 3), value, dtype=np.uint8)).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", f"shirt {number} {colour}", colour])
    return folder


@pytest.fixture(scope="module")
def run(clone: Path, table: Path, warm: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a documented command in the clone at toy size: a study by its own switch, a recipe by the same overrides."""
    environment = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    environment["PATH"] = os.pathsep.join((str(warm), str(Path(sys.executable).parent), environment["PATH"]))

    def call(words: list[str]) -> subprocess.CompletedProcess[str]:
        if words[:2] == ["clipworks", "train"]:
            words = [str(table) if each == "FOLDER" else each.replace("=FOLDER", f"={table}") for each in words]
            words = [*words, *(part for each in toy_overrides(clone / words[2]) for part in ("--set", each))]
        else:
            words = [*words, "--toy"]
        return subprocess.run(words, cwd=clone, env=environment, capture_output=True, text=True, timeout=550)

    return call


@pytest.fixture(scope="module")
def outputs(run: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, str]:
    """What every command of the pages printed, in the order of the pages; each must succeed."""
    found: dict[str, str] = {}
    for page in PAGES:
        for words in commands(page):
            done = run(words)
            assert done.returncode == 0, f"{page}: {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
            found[shlex.join(words)] = done.stdout
    return found


def test_every_command_of_the_pages_runs(outputs: dict[str, str], clone: Path) -> None:
    assert {words.split()[1] for words in outputs} >= {
        "train",
        "benchmarks/lab.py",
        "benchmarks/unmix.py",
        "benchmarks/distillation.py",
    }
    assert len(outputs) >= 8
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert changed.stdout == "", "toys write beside the records and pages of the study"


def test_what_is_run_is_run_here_and_not_read_from_the_records(outputs: dict[str, str], clone: Path) -> None:
    listed = outputs["python benchmarks/unmix.py --list"].replace("not judged", "")
    assert "judged" not in listed, "nothing was judged when it was listed"
    said = outputs["python benchmarks/unmix.py --run '*'"]
    assert "64px/mfi-30/r0: training" in said
    assert "64px/mfi-30/r0: judging" in said
    assert "base/r0: training" not in said, "clipworks train made it, with a relative path"
    assert "64px/mfi-0/r0: training" not in said
    assert "64px/mfi-0/r0: judging" in said
    assert "b0/r0: training" in outputs["python benchmarks/lab.py --run 'negclip/*'"], "its base first"
    record = json.loads((clone / ".runs/lab/toy/records/unmix/64px-mfi-30-r0.json").read_text())
    base = json.loads((clone / ".runs/lab/unmix/base/r0/checkpoint.json").read_text())
    assert record["of"]["base"] == {"run": "base/r0", "weights_sha256": base["weights_sha256"]}
    assert record["of"]["seeds"] == {"training": 0, "scenes": 0, "split": 0, "base": 0}
    assert record["of"]["recipe"]["optim"]["steps"] == 2


def test_another_base_is_said_and_nothing_of_it_is_handed_back(
    outputs: dict[str, str], run: Callable[..., subprocess.CompletedProcess[str]], clone: Path
) -> None:
    path = clone / ".runs/lab/unmix/base/r0/checkpoint.json"
    stood = path.read_text()
    path.write_text(json.dumps({**json.loads(stood), "weights_sha256": "0" * 64}))
    try:
        listed = run(["python", "benchmarks/unmix.py", "--list"]).stdout
        refused = run(["python", "benchmarks/unmix.py", "--run", "64px/mfi-0/*"])
    finally:
        path.write_text(stood)
    line = next(line for line in listed.splitlines() if line.startswith("64px/mfi-0/r0"))
    assert line.split(maxsplit=1)[1].split("  ")[0] == "another base"
    assert line.endswith("record of another base")
    assert refused.returncode == 1
    assert "holds a run of another base: --run '64px/mfi-0/r0' --again runs it anew" in refused.stderr
