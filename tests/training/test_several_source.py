"""Several tables and scenes in one run: whose batch comes when, how often a row is drawn, and every judge."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.checkpoint import read_checkpoint
from training.config import SeveralData, load_config
from training.data.batches import BatchPlan
from training.data.several import SeveralBatches
from training.data.source import open_source
from training.loop import train
from training.models.building import image_spec

pytestmark = pytest.mark.torch

SCENES = """
[[data.parts]]
name = "scenes"
share = 1
[data.parts.data]
kind = "scenes"
cache_px = 48
[[data.parts.data.parts]]
scenes = 40
share = 1
mix = {mentions = 1.0}
"""


def tokenize(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([[ord(letter) for letter in text.ljust(200)] for text in texts], dtype=np.int64)


@pytest.fixture(scope="module")
def recipe(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shirts, the same shirts again with a fifth of the rows, and scenes."""
    text = (
        squares.read_text(encoding="utf-8")
        .replace("size_px = 16", "size_px = 48")
        .replace("cache_px = 16", "cache_px = 48")
    )
    start, end = text.index("[data]"), text.index("[augment]")
    table = text[start + len("[data]") : end].strip()
    path = tmp_path_factory.mktemp("several") / "several.toml"
    parts = [
        f'[[data.parts]]\nname = "{name}"\nshare = {share}\n[data.parts.data]\n{table}\n'
        for name, share in (("shirts", 2), ("again", 1))
    ]
    split, fewer = "modulo = 10, test = [1], validation = [2]", "modulo = 5, test = [1, 0, 3], validation = [2]"
    few = parts[1].replace(split, fewer)
    data = '[data]\nkind = "several"\n' + parts[0] + few + SCENES
    path.write_text(text[:start] + data + text[end:], encoding="utf-8")
    return path


def several() -> SeveralBatches:
    parts = [lambda step, at=at: {"at": torch.tensor([at, step]), "row": torch.tensor([0, 1])} for at in range(3)]
    return SeveralBatches(parts, (2, 1, 5), (0, 2, 4))


def test_turns_follow_the_shares() -> None:
    batches = several()
    turns = [tuple(batches(step)["at"].tolist()) for step in range(80)]
    assert Counter(part for part, _ in turns) == {0: 20, 1: 10, 2: 50}
    for part, share in enumerate((2 / 8, 1 / 8, 5 / 8)):
        own = [step for at, step in turns if at == part]
        assert own == list(range(len(own)))  # no step of a part is left out
        had = np.cumsum([at == part for at, _ in turns])
        assert np.abs(had - share * np.arange(1, 81)).max() < 1.5
    # Rows are numbered over all parts.
    assert all(batches(at)["row"].tolist() == [2 * turns[at][0], 2 * turns[at][0] + 1] for at in range(8))
    again = several()
    assert [tuple(again(step)["at"].tolist()) for step in (79, 3, 40)] == [turns[79], turns[3], turns[40]]


def test_a_row_is_drawn_by_its_parts_share(recipe: Path) -> None:
    config = load_config(recipe)
    spec = image_spec(config.model)
    source = open_source(config, cache_spec=spec, image_spec=spec)
    weights, sizes = source.row_weights(), (96, 24, 40)
    assert len(weights) == len(source.pictures("train")) == sum(sizes)
    parts = np.split(weights, np.cumsum(sizes)[:-1])
    assert [round(float(part.sum() / weights.sum()), 6) for part in parts] == [0.5, 0.25, 0.25]
    drawn = source.captions(1, negatives=False)
    assert [row for row, _ in drawn] == list(range(sum(sizes)))
    assert "shirt" in drawn[119][1].text
    assert "shirt" not in drawn[120][1].text
    batch = source.batches(tokenize, BatchPlan(batch_size=8))(0)
    assert batch["image"].shape == (8, 48, 48, 3)
    with pytest.raises(ValueError, match="no negatives"):
        source.batches(tokenize, BatchPlan(batch_size=8, negatives=True))


def test_a_run_is_judged_on_all(recipe: Path, tmp_path: Path) -> None:
    train(recipe, [f"run.folder={json.dumps(str(tmp_path / 'run'))}", "optim.steps=3"])
    metrics = read_checkpoint(tmp_path / "run").metrics["validation"]
    assert set(metrics) == {"shirts", "again", "scenes"}
    assert metrics["shirts"]["all"]["t2i_r@10"]["n"] == 12
    assert 0 <= metrics["scenes"]["single"] <= 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.parts.1.name='shirts'", "occurs twice"),
        ("data.parts.2.data.cache_px=64", "same cache_px"),
        ("data.parts.name='x'", "is a list"),
        ("data.parts.7.name='x'", "is a list"),
        ("data.parts.0.share=0", "greater than 0"),
    ],
)
def test_wrong_parts_are_refused(recipe: Path, override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_config(recipe, [override])


def test_one_part_can_be_set(recipe: Path, tmp_path: Path) -> None:
    data = load_config(recipe, [f"data.parts.1.data.folder={json.dumps(str(tmp_path))}"]).data
    assert isinstance(data, SeveralData)
    folders = [getattr(part.data, "folder", None) for part in data.parts]
    assert folders[1] == tmp_path
    assert folders[0] != tmp_path
