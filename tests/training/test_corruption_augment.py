"""Corruptions of training pictures: none by default, else the same again from the seed, in every kind of batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.config import AugmentConfig, CorruptionConfig, SceneData, ScenePart, load_config
from training.data.augment import CaptionAugment, CorruptionAugment, ImageAugment
from training.data.batches import Batches, BatchPlan, SceneBatches, SecondLook, TableRows
from training.data.rows import Row
from training.data.scenes import draw_scenes
from training.data.source import image_augment

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3)).astype(np.uint8)
HALF = CorruptionAugment(share=0.5, kinds=("gaussian_noise", "fog"), severities=(2, 3))
SCENES = SceneData(kind="scenes", cache_px=48, parts=(ScenePart(scenes=30, share=1, mix={"mentions": 1.0}),))


def ids(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([[len(text)] for text in texts])


def table(corruption: CorruptionAugment | None, *, seed: int = 5, looks: int = 0) -> Batches:
    augment = ImageAugment(size_px=16, scale=(0.8, 1.0), corruption=corruption)
    rows = [Row(image=f"{at}.png", caption=f"thing {at}", group=at) for at in range(24)]
    whole = TableRows(rows=rows, pixels=PIXELS, image_augment=augment, caption_augment=CaptionAugment(), seed=seed)
    return Batches(whole, ids, BatchPlan(batch_size=12, looks=looks, second=SecondLook(size_px=12)))


def test_nothing_is_corrupted_by_default() -> None:
    assert image_augment(AugmentConfig(), size_px=16).corruption is None
    assert "corruption" not in AugmentConfig().model_dump()  # names of cached features and of runs stay
    assert AugmentConfig(corruption=CorruptionConfig()).model_dump()["corruption"]["share"] == 0.5


def test_a_share_of_a_table_is_corrupted_and_the_same_again() -> None:
    plain = ImageAugment(size_px=16, scale=(1.0, 1.0), flip=0)
    rng = np.random.default_rng(0)
    noisy = ImageAugment(size_px=16, scale=(1.0, 1.0), flip=0, corruption=HALF)
    views = [noisy.draw(16, rng) for _ in range(400)]
    drawn = [view.corruption for view in views if view.corruption is not None]
    assert 160 < len(drawn) < 240
    assert {(one.kind, one.severity) for one in drawn} == {(k, s) for k in HALF.kinds for s in (2, 3)}
    changed = [not np.array_equal(noisy.seen(PIXELS[0], view), plain.seen(PIXELS[0], view)) for view in views[:1]]
    changed += [not np.array_equal(noisy.seen(PIXELS[0], view), PIXELS[0]) for view in views[:40]]
    assert changed[1:] == [view.corruption is not None for view in views[:40]]
    one, again, other = (table(HALF, seed=seed)(3) for seed in (5, 5, 6))
    for name in ("image", "second_image"):
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name])
    looked = table(HALF, looks=2)
    parts = [looked.part(1, process=process, processes=3)["image"] for process in range(3)]
    assert torch.equal(torch.cat(parts), looked(1)["image"])


def test_scenes_are_corrupted_alike_in_batches_parts_and_looks() -> None:
    clean, noisy = (draw_scenes(SCENES, seed=5, corruption=each) for each in (None, HALF))
    plan = BatchPlan(batch_size=12, looks=2)
    for chosen in (plan, BatchPlan(batch_size=12)):
        batches = SceneBatches(noisy, ids, chosen)
        batch, before = batches(4), SceneBatches(clean, ids, chosen)(4)
        assert all(torch.equal(batch[name], before[name]) for name in batch if name != "image")
        share = (batch["image"] != before["image"]).flatten(1).any(dim=1).float().mean()
        assert 0 < share < 1
        parts = [batches.part(4, process=process, processes=3)["image"] for process in range(3)]
        assert torch.equal(torch.cat(parts), batch["image"])
    batch = SceneBatches(noisy, ids, plan)(4)
    shown = noisy.seen(batch["row"].numpy(), batch["look"].tolist(), size_px=48)
    assert np.array_equal(batch["image"].numpy(), shown)
    assert np.array_equal(clean.pixels, noisy.pixels)
    assert clean.digest() == noisy.digest()


def test_a_recipe_of_scenes_may_corrupt_and_augments_nothing_else(squares: Path) -> None:
    scenes = ["run.report=scenes", f"data={_toml(SCENES.model_dump(mode='json', exclude_none=True))}"]
    bare = [*scenes, "augment={}"]
    assert load_config(squares, [*bare, "augment.corruption.share=0.2"]).augment.corruption is not None
    with pytest.raises(ValueError, match=r"leave \[augment\] out, but for \[augment.corruption\]"):
        load_config(squares, [*bare, "augment.flip=0.2"])
    for wrong, said in (
        ("severities=[0,2]", "severities 0 to 2"),
        ("severities=[3,2]", "severities 3 to 2"),
        ('kinds=["smoke"]', "kinds.0"),
        ('kinds=["fog","fog"]', "occurs twice"),
    ):
        with pytest.raises(ValueError, match=said):
            load_config(squares, [f"augment.corruption.{wrong}"])


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}={_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
