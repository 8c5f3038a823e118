"""A table and scenes in one run: whose batch comes when, what the losses see, and both judges."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.checkpoint import read_checkpoint
from training.config import MixedData, load_config, with_data_folder
from training.data.batches import BatchPlan
from training.data.source import open_source
from training.loop import train
from training.models.building import image_spec

SCENES = """
[data.scenes]
kind = "scenes"
cache_px = 48
[[data.scenes.parts]]
scenes = 40
share = 1
count = [2, 2]
differ_in = ["shape", "colour"]
mix = {mentions = 1.0}
"""


def tokenize(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([[ord(letter) for letter in text.ljust(200)] for text in texts], dtype=np.int64)


@pytest.fixture(scope="module")
def recipe(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = squares.read_text(encoding="utf-8")
    text = text.replace("[data.split]", "[data.table.split]").replace("[data]", "[data.table]")
    text = text.replace("size_px = 16", "size_px = 48").replace("cache_px = 16", "cache_px = 48")
    path = tmp_path_factory.mktemp("mixed") / "mixed.toml"
    path.write_text(f'{text}\n[data]\nkind = "mixed"\nscene_share = 0.4\n{SCENES}', encoding="utf-8")
    return path


def batches(recipe: Path, *, negatives: bool = True, truth: bool = True) -> Callable[[int], dict[str, torch.Tensor]]:
    config = load_config(recipe)
    spec = image_spec(config.model)
    source = open_source(config, cache_spec=spec, image_spec=spec)
    return source.batches(tokenize, BatchPlan(batch_size=8, negatives=negatives, truth=truth))


def said(batch: dict[str, torch.Tensor]) -> list[str]:
    return ["".join(chr(letter) for letter in row).rstrip() for row in batch["text"].tolist()]


def test_each_batch_is_of_one_kind_and_the_share_is_kept(recipe: Path) -> None:
    draw = batches(recipe)
    kinds = ["shirt" in said(draw(step))[0] for step in range(20)]
    for step in range(20):
        assert len({"shirt" in text for text in said(draw(step))}) == 1
    assert kinds.count(False) == 8
    assert all(any(kinds[at : at + 3]) and not all(kinds[at : at + 4]) for at in range(16))
    again = batches(recipe)
    assert all(torch.equal(draw(step)[name], again(step)[name]) for step in (3, 0, 7) for name in ("image", "text"))


def test_no_photograph_is_skipped(recipe: Path) -> None:
    """Both kinds count their own steps: an epoch of the table is seen whole."""
    draw = batches(recipe)
    rows = [draw(step)["row"] for step in range(24) if "shirt" in said(draw(step))[0]]
    epoch = torch.cat(rows[: 96 // 8])
    assert len(epoch) == len(epoch.unique())


def test_photographs_have_no_twins_and_nothing_is_excused(recipe: Path) -> None:
    draw = batches(recipe)
    found = {"shirt" in said(batch)[0]: batch for batch in map(draw, range(4))}
    photographs, scenes = found[True], found[False]
    assert photographs.keys() == scenes.keys()
    assert not photographs["has_negative"].any()
    assert not photographs["excused"].any()
    assert photographs["excused"].shape == scenes["excused"].shape == (8, 16)
    assert scenes["has_negative"].all()
    plain = batches(recipe, negatives=False, truth=False)
    assert {frozenset(plain(step)) for step in range(4)} == {frozenset({"image", "row", "text", "caption_id"})}


def test_a_run_is_judged_on_both(recipe: Path, tmp_path: Path) -> None:
    train(
        recipe,
        [
            f"run.folder={json.dumps(str(tmp_path / 'run'))}",
            'method="negclip"',
            "method_options={excuse_true = true}",
            "optim.steps=3",
        ],
    )
    metrics = read_checkpoint(tmp_path / "run").metrics["validation"]
    assert metrics["all"]["t2i_r@10"]["n"] > 0
    assert 0 <= metrics["scenes"]["single"] <= 1


def test_the_table_may_move(recipe: Path, tmp_path: Path) -> None:
    moved = with_data_folder(load_config(recipe), tmp_path).data
    assert isinstance(moved, MixedData)
    assert moved.table.folder == tmp_path
    assert with_data_folder(load_config(recipe), None) == load_config(recipe)


def test_what_only_scenes_have_is_refused(recipe: Path) -> None:
    config = load_config(recipe)
    spec = image_spec(config.model)
    source = open_source(config, cache_spec=spec, image_spec=spec)
    with pytest.raises(ValueError, match="neither neighbours nor several captions"):
        source.batches(tokenize, BatchPlan(batch_size=8, captions=2))
