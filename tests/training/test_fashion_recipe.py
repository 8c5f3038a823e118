"""The recipe of fashion-small: its promises as data, and a few real steps where the photographs are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from training.config import SmallConfig, load_config
from training.data.vocabulary import tokenizer_of
from training.loop import train
from training.models.building import build_model
from training.report import report_split

RECIPE = Path(__file__).parents[2] / "training" / "configs" / "fashion.toml"
MAX_ARTIFACT_BYTES = 25_000_000


def test_the_recipe_fits_its_size_and_keeps_positions() -> None:
    config = load_config(RECIPE, ["data.folder=x"]).model
    assert isinstance(config, SmallConfig)
    spec, _ = tokenizer_of(config)
    model = build_model(config, vocab_size=spec.vocab_size, end_id=spec.end_id or 0).eval()
    # fp32 and int8 copies of every weight, the worst case of what is shipped.
    assert sum(p.numel() for p in model.parameters()) * (4 + 1) < MAX_ARTIFACT_BYTES * 0.9
    side = config.image.size_px
    with torch.inference_mode():
        dense = model.encode_dense(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    assert dense.shape[1] >= side / 8


def test_the_recipe_never_trains_on_held_out_products() -> None:
    rule = load_config(RECIPE, ["data.folder=x"]).data.split.rule()
    assert [rule.of(number) for number in (11, 21, 12, 10, 13)] == ["test", "test", "validation", "train", "train"]


@pytest.mark.skipif("CLIPWORKS_TEST_DATA" not in os.environ, reason="CLIPWORKS_TEST_DATA is not set")
def test_the_recipe_recipe_runs_on_real_photographs(tmp_path: Path) -> None:
    source = Path(os.environ["CLIPWORKS_TEST_DATA"]) / "fashion-products"
    (tmp_path / "images").symlink_to(source / "images")
    lines = (source / "captions.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "captions.csv").write_text("".join(lines[:400]), encoding="utf-8")
    folder = tmp_path / "run"
    overrides = ["optim.steps=2", "optim.batch_size=32", f"run.folder={json.dumps(str(folder))}"]
    result = train(RECIPE, [*overrides, f"data.folder={json.dumps(str(tmp_path))}"])
    again = report_split(folder, data_folder=tmp_path, split="validation")
    # The checkpoint, opened afresh, answers what the loop said of it.
    assert again["all"]["t2i_r@10"]["value"] == pytest.approx(result.metrics["all"]["t2i_r@10"]["value"], abs=0.03)
    assert again["rows"] == result.metrics["rows"] > 20
