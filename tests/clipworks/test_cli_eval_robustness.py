"""`clipworks eval --suite robustness`: a user's pictures in classes, and what is refused."""

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
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for name in ("dark", "light"):
        (folder / name).mkdir()
        noise = rng.integers(120, size=(9, 9, 3)) + 120 * (name == "light")
        Image.fromarray(noise.astype(np.uint8)).save(folder / name / "0.png")
    return folder


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, ["eval", "--suite", "robustness", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_an_artifact_meets_corruptions_and_square(pictures: Path, tmp_path: Path) -> None:
    few = ("--epsilon", "8", "--epsilon", "2", "--attack-queries", "3", "--most", "2")
    result = run("--pictures", pictures, *few, "--out", tmp_path / "run.json")
    assert result.exit_code == 0, result.stderr
    names = [line.split("\t")[1] for line in result.stdout.splitlines()[1:]]
    assert names[:3] == ["clean", "corrupted, mean of 15 kinds", "corrupted, gaussian noise"]
    assert names[-2:] == ["attacked at 2/255", "attacked at 8/255"]
    assert "attacked by Square alone" in result.stderr
    (found,) = read_run(tmp_path / "run.json").results
    assert found.key.probe == "robustness"
    assert all(row.n == 2 for row in found.rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--suite robustness needs --pictures DIR"),
        (["--pictures", "none"], "none: no such folder"),
        (["--pictures", "DIR", "--epsilon", "0.5"], "expected 1 to 255 levels"),
        (["--pictures", "DIR", "--attack-steps", "0"], "--attack-steps"),
        (["--suite", "quick", "--pictures", "DIR", "--most", "3"], "--pictures, --most: for --suite robustness"),
        (["--pictures", "DIR", "--checkpoint", "none"], "--checkpoint none: not a checkpoint"),
        (["--pictures", "DIR", "--checkpoint", "x", "--model", "y"], "leave --model, --url, --precision out"),
    ],
)
def test_mistakes_cost_a_sentence(pictures: Path, arguments: list[str], said: str) -> None:
    result = run(*(argument.replace("DIR", str(pictures)) for argument in arguments))
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
