"""docs/tutorial.md and the notebooks: run as a reader runs them, with the shipped model, and they say what is shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.repository.test_readme import HERE, served

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
STEP = re.compile(r"<!-- run -->\n```(bash|python)\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+")
SECONDS = re.compile(r"in [\d.]+ s.*")
LARGEST_DIFFERENCE = 0.002
"""Between the scores of two processors."""


def in_terminal(command: list[str], environment: dict[str, str], folder: Path) -> str:
    """What a command writes to a terminal of 100 columns; it must end well."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment, cwd=folder
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # how Linux says that the other end was closed
        pass
    finally:
        os.close(ours)
    text = written.decode().replace("\r\n", "\n")
    assert process.wait(timeout=60) == 0, text
    return text


def lines_of(text: str) -> list[str]:
    """Lines that can be compared: without trailing spaces, durations, and what is drawn while one waits."""
    kept = (SECONDS.sub("in ...", line.rstrip()) for line in text.splitlines())
    return [line for line in kept if line and "━━ " not in line and "is held by the server at" not in line]


@pytest.mark.long
@pytest.mark.slow
def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLIPWORKS_")}
    environment = kept | {
        "CLIPWORKS_DATA": str(tmp_path / "data"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        "COLUMNS": "100",
        "TERM": "dumb",
    }
    shutil.copytree(ROOT / "docs" / "photos", tmp_path / "docs" / "photos")
    steps = STEP.findall(TUTORIAL)
    assert len(steps) == TUTORIAL.count("<!-- run -->") >= 5
    with served(environment) as url:
        for language, text, shown in steps:
            runner = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[language]
            printed = lines_of(in_terminal([*runner, text.replace(HERE, url)], environment, tmp_path))
            expected = lines_of(shown)
            assert [NUMBER.sub("N", line) for line in printed] == [NUMBER.sub("N", line) for line in expected], printed
            numbers = [float(each) for each in NUMBER.findall("\n".join(printed))]
            assert numbers == pytest.approx(
                [float(each) for each in NUMBER.findall("\n".join(expected))], abs=LARGEST_DIFFERENCE
            )


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells hold assertions of their own; what kind of output each has is what is stored."""
    for name in [name for name in os.environ if name.startswith("CLIPWORKS_")]:
        monkeypatch.delenv(name)
    for folder in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(folder, str(tmp_path / folder))
    notebook = nbformat.read(path, as_version=4)
    stored = kinds_of_outputs(notebook)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert kinds_of_outputs(notebook) == stored


def kinds_of_outputs(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Of each cell: the name of a stream, or the media types of what was shown."""
    return [
        [output.get("name") or ", ".join(output.get("data", ())) for output in cell.get("outputs", ())]
        for cell in notebook.cells
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_stores_is_of_a_whole_run_and_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r"/(home|root|tmp|work|Users)/|127\.0\.0\.1:\d|\"output_type\": \"error\"", text)
    cells = [cell for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_there_are_two_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["adapt-to-my-classes", "search-my-photographs"]
