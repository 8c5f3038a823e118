"""`clipworks eval --suite bias`: a user's groups and queries, in this process and over HTTP."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from clipworks.cli import app
from evaluation.results_file import read_run
from tests.stores import TINY_STORE


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPWORKS_STORE", str(TINY_STORE))
    monkeypatch.setenv("CLIPWORKS_MODEL", "tiny")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four pictures of noise in two groups, half of each dark."""
    folder = tmp_path_factory.mktemp("groups")
    rng = np.random.default_rng(0)
    lines = ["path,group,label"]
    for number in range(24):
        noise = rng.integers(120, size=(9, 9, 3)) + 120 * (number % 2)
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,group {number // 2 % 2},{('dark', 'light')[number % 2]}")
    (folder / "groups.csv").write_text("\n".join(lines))
    (folder / "queries.txt").write_text("a thing\n\na good thing\n")
    return folder / "groups.csv"


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, ["eval", "--suite", "bias", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_server_and_this_process_say_the_same(groups: Path, server_url: str, tmp_path: Path) -> None:
    asked = ["--groups", groups, "--query", f"@{groups.parent / 'queries.txt'}", "--top", "4"]
    here = run(*asked, "--out", tmp_path / "here.json")
    assert here.exit_code == 0, here.stderr
    lines = [line.split("\t") for line in here.stdout.splitlines()]
    assert [line[1] for line in lines[1:]] == [
        *("MaxSkew@4, mean over queries", "MaxSkew@4, a thing", "MaxSkew@4, a good thing"),
        *("NDKL, mean over queries", "NDKL, a thing", "NDKL, a good thing"),
        *("labels, accuracy", "labels, mean of 4 groups", "labels, worst of 4 groups"),
        "labels find their pictures, mAP",
    ]
    assert "groups permuted" in here.stderr
    there = run(*asked, "--url", server_url, "--model", "tiny", "--out", tmp_path / "there.json")
    assert there.exit_code == 0, there.stderr
    (ours,), (theirs,) = read_run(tmp_path / "here.json").results, read_run(tmp_path / "there.json").results
    assert ours.questions == theirs.questions
    for a, b in zip(ours.rows, theirs.rows, strict=True):  # two pictures may change places by the last bits of a vector
        assert b.score == pytest.approx(a.score, abs=0.12), a.name
        assert b.chance == pytest.approx(a.chance, abs=0.05), a.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--suite bias needs --groups FILE"),
        (["--groups", "GROUPS"], "--suite bias needs --query TEXT"),
        (["--groups", "GROUPS", "--query", "@none.txt"], "--query @none.txt: cannot be read"),
        (["--groups", "GROUPS", "--query", "x", "--top", "25"], "top 25: expected 1 to 24"),
        (["--groups", "none.csv", "--query", "x"], "none.csv: no such file"),
        (["--suite", "quick", "--query", "x"], "--query: for --suite bias"),
    ],
)
def test_mistakes_cost_a_sentence(groups: Path, arguments: list[str], said: str) -> None:
    result = run(*(argument.replace("GROUPS", str(groups)) for argument in arguments))
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
