"""The guide to a new method, done as it says: its one file trains, is published, served and judged."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clipworks.cli import app
from clipworks.client import Client
from evaluation.encoder import ServerEncoder, png
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from model_store.store import Store
from training import method as methods
from training import report
from training.opening import open_checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"
TEXTS = ["plain red shirt 0", "plain blue shirt 1"]
PICTURES = [png(render(sample(seed, SceneConfig()), 48).image) for seed in range(4)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)


def write_recipe(folder: Path, squares: Path) -> None:
    """The page's lines in the recipe of the base, as the page says."""
    (ours,) = blocks("toml")
    before, tables = squares.read_text(encoding="utf-8").split("[data]")
    kept = [line for line in before.splitlines() if not line.startswith("method")]
    recipe = "\n".join([*kept, ours, f"[data]{tables}"]).replace("steps = 6", "steps = 40")
    assert tomllib.loads(recipe)["method"] == "residual_adapter"
    (folder / "adapter.toml").write_text(recipe, encoding="utf-8")


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = shlex.split(line)
    if program == "clipworks":
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    else:
        assert [program, *arguments[:2]] == ["python", "-m", "training.report"]
        monkeypatch.setattr("sys.argv", arguments[1:])
        assert report.main() == 0


@pytest.mark.long
def test_the_guides_one_file_is_trained_published_served_and_judged(
    added: Callable[[str, str], Path],
    squares: Path,
    square_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    serving: Callable[..., AbstractContextManager[str]],
) -> None:
    (source,), (commands,) = blocks("python"), blocks("sh")  # the one file, and what is done with it
    assert source.startswith("# training/methods/residual_adapter.py\n")
    before = set(methods.available())
    written = added("residual_adapter", source)
    assert [path.name for path in written.parent.iterdir()] == ["residual_adapter.py"]
    assert set(methods.available()) - before == {"residual_adapter"}

    shutil.copytree(square_base, tmp_path / ".runs" / "base")
    write_recipe(tmp_path, squares)
    monkeypatch.chdir(tmp_path)
    *lines, serve = commands.splitlines()
    for line in lines:
        run_line(line, monkeypatch)

    # Judged: the adapter's own numbers, of the checkpoint as it was saved.
    told, ours = json.loads((tmp_path / "report.json").read_text()), open_checkpoint(Path(".runs/adapter"))
    assert (told["step"], told["split"]) == (40, "test")
    assert told["report"]["all"]["t2i_r@1"]["n"] == 12
    base = open_checkpoint(Path(".runs/base"))
    np.testing.assert_array_equal(ours.encode_texts(TEXTS), base.encode_texts(TEXTS))
    expected = ours.encode_images(PICTURES)
    assert np.abs(expected - base.encode_images(PICTURES)).max() > 0.02

    # Published: the adapter alone, in a space of its own; served: the checkpoint's vectors.
    artifact = Store(tmp_path / "models", builtin=False).open("adapted")
    assert [graph.role for graph in artifact.manifest.graphs] == ["image_adapter"]
    assert artifact.base is not None
    assert (artifact.base.reference, artifact.manifest.space == artifact.base.manifest.space) == ("base@1", False)
    program, command, *options = shlex.split(serve)
    assert (program, command) == ("clipworks", "serve")
    with serving(*options, "--data", tmp_path / "data") as url, Client(url) as client:
        served = ServerEncoder(client, model="adapted")
        np.testing.assert_allclose(served.encode_images(PICTURES), expected, atol=2e-5)
        np.testing.assert_allclose(served.encode_texts(TEXTS), ours.encode_texts(TEXTS), atol=2e-5)


def test_every_step_of_the_protocol_is_in_the_guide() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for use in ("export", "train_only", "frozen"):
        assert f"| `{use}` |" in page
    asked = [
        name for name in vars(methods.Method) if not name.startswith("_") and callable(getattr(methods.Method, name))
    ]
    for name in {*asked, *methods.StepMethod.__abstractmethods__}:
        assert f"| `{name}(" in page, name
