"""Squares of one colour with true and false captions, and a checkpoint trained on them: seconds, for every method."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store.modality.text import Tokenizer
from training import method as methods
from training import methods as folder_of_methods
from training.checkpoint import load_model
from training.config import load_config
from training.data.source import open_source
from training.data.vocabulary import tokenizer_of
from training.loop import train
from training.models.towers import image_spec

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (240, 240, 240)}
RECIPE = """
name = "squares"
seed = 3
method = "base"
[data]
folder = "."
cache_px = 16
label_columns = ["colour"]
negative_column = "false_caption"
split = {modulo = 10, test = [1], validation = [2]}
[augment]
crop_scale = [1.0, 1.0]
word_drop = 0.0
template_share = 0.0
[model]
kind = "small"
embed_dim = 16
image = {trunk = "clipworks_conv_t", size_px = 16}
text = {merges = 200, context_length = 16, width = 16, layers = 1, heads = 2, pool = "eos"}
[optim]
batch_size = 8
steps = 6
rate = 3e-3
warmup_steps = 2
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.9
[run]
folder = "unset"
device = "cpu"
precision = "fp32"
threads = 1
log_steps = 1
report = "retrieval"
"""

Train = Callable[..., Path]
MakeContext = Callable[..., methods.Context]


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of 120 squares; every fourth caption has no hard negative."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    names = list(COLOURS)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "false_caption", "colour"])
        for number in range(120):
            name, other = names[number % 4], names[(number + 1 + number // 4 % 3) % 4]
            pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 8, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            false = "" if number // 4 % 4 == 0 else f"plain {other} shirt {number % 3}"
            writer.writerow([f"{number}.png", f"plain {name} shirt {number % 3}", false, name])
    (folder / "squares.toml").write_text(RECIPE.replace('folder = "."', f"folder = {json.dumps(str(folder))}"))
    return folder / "squares.toml"


@pytest.fixture(scope="session")
def square_base(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of six steps of the base method."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    train(squares, [f"run.folder={json.dumps(str(folder))}"])
    return folder


@pytest.fixture
def train_squares(squares: Path, tmp_path: Path) -> Train:
    """Train the squares with overrides into a new folder, which is returned."""

    def call(*overrides: str, base: Path | None = None, name: str = "run") -> Path:
        folder = tmp_path / name
        start = [] if base is None else [f"base={json.dumps(str(base))}"]
        train(squares, [f"run.folder={json.dumps(str(folder))}", *start, *overrides])
        return folder

    return call


@pytest.fixture
def make_context(squares: Path) -> MakeContext:
    """What the loop gives a method's setup, for the squares with overrides."""

    def call(*overrides: str, base: Path | None = None) -> methods.Context:
        config = load_config(squares, overrides)
        spec, data = tokenizer_of(config.model)
        size = image_spec(config.model)
        return methods.Context(
            model=config.model,
            tokenizer=Tokenizer(spec, data),
            source=open_source(config, cache_spec=size, image_spec=size),
            batch_size=config.optim.batch_size,
            device="cpu",
            seed=config.seed,
            base=None if base is None else load_model(base),
        )

    return call


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a module into a folder on the package's path; nothing of it stays after the test."""
    folder = tmp_path / "more_methods"
    folder.mkdir()
    monkeypatch.setattr(folder_of_methods, "__path__", [*folder_of_methods.__path__, str(folder)])

    def add(name: str, source: str) -> Path:
        path = folder / f"{name}.py"
        path.write_text(source, encoding="utf-8")
        # Set first, so that the import's own entry is taken back with it.
        monkeypatch.setitem(sys.modules, f"{folder_of_methods.__name__}.{name}", sys)
        monkeypatch.delitem(sys.modules, f"{folder_of_methods.__name__}.{name}")
        return path

    return add
