"""`clipworks distill`: captions are used where there are any, any model teaches, and mistakes are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from clipworks.cli import app
from evaluation.encoder import open_artifact
from model_store.store import Store
from training.checkpoint import read_checkpoint
from training.publish import publish_checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.long]
Distill = Callable[..., Result]
FEW = ("optim.steps=6", "optim.batch_size=8", "optim.warmup_steps=1", "method_options.looks=1", "run.threads=1")
TOWER = 'method_options.image={trunk = "clipworks_conv_t", size_px = 16}'


@pytest.fixture(scope="module")
def store(square_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("distill") / "store")
    publish_checkpoint(square_base, "teacher", store, precisions=("fp32",), dense="none")
    return store


@pytest.fixture
def distill(squares: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distill:
    """Run the command on the squares, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*options: str, teacher: str = "teacher", settings: tuple[str, ...] = FEW) -> Result:
        named = ["--teacher", teacher, "--data", str(squares.parent), "--name", "student", "--precision", "fp32"]
        changed = [word for each in settings for word in ("--set", each)]
        return CliRunner().invoke(app, ["distill", *named, *changed, "--store", str(store.root), *options])

    return call


def test_captions_are_used_where_there_are_any(distill: Distill, store: Store, tmp_path: Path) -> None:
    done = distill(settings=(*FEW, TOWER))
    assert done.exit_code == 0, done.stderr
    manifest = store.open("student").manifest
    assert "validation/all/t2i_r@10" in " ".join(manifest.metrics)
    assert "space proof/R@10" in manifest.metrics
    assert (tmp_path / "runs" / "student" / "checkpoint.json").is_file()
    assert "serve it: clipworks serve" in done.stdout + done.stderr


def test_a_whole_model_of_pairs(distill: Distill, store: Store) -> None:
    """The shipped recipe's towers are too large for a test: a file of its own form is given."""
    done = distill("--student", "distill/pairs", "--run", "own", settings=(
        *FEW,
        "data.cache_px=16",
        'model.image={trunk = "clipworks_conv_t", size_px = 16}',
        "model.text={merges = 200, context_length = 16, width = 16, layers = 1, heads = 2}",
        "model.embed_dim=24",
    ))  # fmt: skip
    assert done.exit_code == 0, done.stderr
    student = store.open("student")
    assert student.manifest.kind == "base"
    assert open_artifact(student).encode_texts(["plain red shirt"]).shape == (1, 24)


def test_the_folder_of_a_checkpoint_teaches_too(distill: Distill, square_base: Path, store: Store) -> None:
    done = distill("--json", teacher=str(square_base), settings=(*FEW, TOWER))
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "student"
    base = store.open("student").manifest.base
    assert base is not None
    assert base.name == "teacher"
    shown = CliRunner().invoke(app, ["models", "show", "student", "--store", str(store.root)])
    digest = read_checkpoint(square_base).weights_sha256
    assert f"from squares ({digest[:16]}) by fd 2000" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("options", "teacher", "named"),
    [
        (("--student", "captions"), "teacher", "its method is base, expected kd or kd_image"),
        (("--student", "nothing"), "teacher", "no recipe of this name"),
        ((), "nobody", "nobody"),
    ],
)
def test_mistakes_are_named(distill: Distill, options: tuple[str, ...], teacher: str, named: str) -> None:
    done = distill(*options, teacher=teacher, settings=())
    assert done.exit_code == 2, done.stderr
    assert named in done.stderr
