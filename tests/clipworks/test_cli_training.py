"""From a recipe to vectors with nothing but the command line, and from open_clip weights likewise."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipworks.cli import app
from model_store.store import Store

pytest.importorskip("torch", reason="needs the train extra")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

COLOURS = ("red", "green", "blue", "white")
RECIPE = """
name = "squares"
seed = 1
method = "base"
[method_options]
templates = ["{}"]
[data]
folder = "."
cache_px = 20
split = {modulo = 10, test = [1], validation = [2]}
[augment]
[model]
kind = "small"
embed_dim = 16
image = {trunk = "clipworks_conv_t", size_px = 16}
text = {merges = 200, context_length = 16, width = 16, layers = 1, heads = 2}
[optim]
batch_size = 8
steps = 3
rate = 1e-3
warmup_steps = 1
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.9
[run]
folder = "unset"
device = "cpu"
threads = 1
"""


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe beside 60 pictures of one colour each."""
    with (tmp_path / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number in range(60):
            colour = COLOURS[number % len(COLOURS)]
            Image.new("RGB", (24, 24), colour).save(tmp_path / f"{number}.png")
            writer.writerow([f"{number}.png", f"a {colour} square"])
    path = tmp_path / "squares.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_train_export_embed(recipe: Path, tmp_path: Path) -> None:
    checkpoint, store = tmp_path / "run", tmp_path / "store"
    options = ["--set", f"data.folder={recipe.parent}", "--set", f"run.folder={checkpoint}"]
    code, _, said = run("train", recipe, *options, "--set", "optim.stepz=9")
    assert (code, "optim.stepz" in said) == (2, True)
    code, printed, said = run("train", recipe, *options, "--set", "optim.steps=2", "--json")
    assert code == 0, said
    trained = json.loads(printed)
    assert trained["step"] == 2
    kinds = ("--precision", "fp32", "--text-precision", "fp16")
    code, printed, said = run(
        "export", trained["folder"], "--name", "squares", *kinds, "--dense", "none", "--store", store
    )
    assert code == 0, said
    assert "published squares@1" in said
    graphs = Store(store).open("squares").manifest.graphs
    assert {(graph.role, graph.precision) for graph in graphs} == {
        ("image_encoder", "fp32"),
        ("text_encoder", "fp32"),
        ("text_encoder", "fp16"),
    }
    assert run("models", "verify", "squares", "--store", store)[0] == 0
    vectors = tmp_path / "v.npy"
    code, _, said = run(
        "embed", tmp_path / "0.png", "--text", "red", "--model", "squares", "--store", store, "--out", vectors
    )
    assert code == 0, said
    assert np.load(vectors).shape == (2, 16)


def test_import_open_clip_weights(tmp_path: Path) -> None:
    from training.tiny import write_tiny_source

    source, store = write_tiny_source(tmp_path / "source"), tmp_path / "store"
    arguments = ["models", "import", f"local-dir:{source}", "--name", "mine", "--tokenizer", source / "merges.txt"]
    assert run(*arguments, "--precision", "fp64", "--store", store)[0] == 2
    assert run(*arguments)[0] == 2
    lean = ("--precision", "fp32", "--dense", "none")
    code, printed, said = run(*arguments, *lean, "--store", store, "--json")
    assert code == 0, said
    assert json.loads(printed)["precisions"] == ["fp32"]
    tiny = Path(__file__).parents[1] / "fixtures" / "tiny_store"
    assert Store(store).open("mine").manifest.fingerprint == Store(tiny).open("tiny").manifest.fingerprint
