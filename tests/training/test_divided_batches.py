"""Each process makes its own rows only, and together they are the batch that one process makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.augment import CaptionAugment, ImageAugment
from training.data.batches import Batches, BatchPlan, SceneBatches, SecondLook, TableRows
from training.data.protocol import DividedBatches
from training.data.rows import Row
from training.data.several import SeveralBatches
from training.distributed import own_rows
from training.features import FeatureBatches, Features

pytestmark = pytest.mark.torch

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 20, 20, 3), dtype=np.uint8)
ROWS = [
    Row(image=f"{number}", caption=f"a thing of {number % 5} parts", group=number, negative=f"no {number}")
    for number in range(24)
]


def lengths(texts: Sequence[str]) -> np.ndarray:
    """Some number of each text, in as many columns for all."""
    return np.array([[len(text), sum(text.encode())] for text in texts])


def batches_of(augment: ImageAugment, *, neighbours: bool = False) -> Batches:
    said = CaptionAugment(templates=("see {}",), tail=0.2)
    table = TableRows(rows=ROWS, pixels=PIXELS, image_augment=augment, caption_augment=said, seed=5)
    near = np.roll(np.arange(24), 1)[:, None] if neighbours else None
    return Batches(table, lengths, BatchPlan(batch_size=12, negatives=True, neighbours=near))


def together(batches: DividedBatches, step: int, processes: int) -> dict[str, torch.Tensor]:
    parts = [batches.part(step, process=process, processes=processes) for process in range(processes)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def check(batches: DividedBatches, step: int, processes: int) -> None:
    whole, found = batches.part(step, process=0, processes=1), together(batches, step, processes)
    assert whole.keys() == found.keys()
    assert all(torch.equal(whole[name], found[name]) for name in whole)


@settings(deadline=None, max_examples=40)
@given(
    step=st.integers(0, 9),
    processes=st.sampled_from([1, 2, 3, 4, 6, 12]),
    scale=st.sampled_from([(1.0, 1.0), (0.5, 1.0), (0.8, 1.6)]),
    aspect=st.sampled_from([1.0, 1.5]),
    shift_px=st.integers(0, 3),
    size_px=st.sampled_from([16, 20]),
    neighbours=st.booleans(),
)
def test_parts_of_a_table_are_the_batch(
    step: int,
    processes: int,
    scale: tuple[float, float],
    aspect: float,
    shift_px: int,
    size_px: int,
    neighbours: bool,
) -> None:
    augment = ImageAugment(size_px=size_px, scale=scale, aspect=aspect, shift_px=shift_px)
    batches = batches_of(augment, neighbours=neighbours)
    check(batches, step, processes)
    # The picture that a row is seen as does not depend on whether the others are looked at.
    rng, again = np.random.default_rng(step), np.random.default_rng(step)
    views = [augment.draw(20, rng) for _ in range(4)]
    expected = [augment(PIXELS[at], again) for at in range(4)]
    assert all(np.array_equal(augment.seen(PIXELS[at], views[at]), expected[at]) for at in range(4))


def test_parts_of_several_kinds_are_the_batch() -> None:
    features = Features(
        image=np.arange(80, dtype=np.float32).reshape(40, 2),
        **{name: np.empty(0, dtype=np.float32) for name in ("validation", "dense", "text", "negative")},
        **{name: np.empty(0, dtype=np.int64) for name in ("row", "caption_id", "negative_id")},
        has_negative=np.empty(0, dtype=np.bool_),
    )
    table = batches_of(ImageAugment(size_px=16))
    several = SeveralBatches([table, FeatureBatches(features=features, batch_size=12, seed=1)], [2, 1], [0, 24])
    for step in range(6):
        check(several, step, 3)


def test_parts_of_scenes_are_the_batch(make_scenes: Callable[[], SceneBatches]) -> None:
    batches = make_scenes()
    for step in range(3):
        check(batches, step, 4)


@pytest.mark.parametrize("augment", [ImageAugment(size_px=8), ImageAugment(size_px=20, scale=(1.0, 1.0), flip=0.5)])
def test_a_second_look_shows_the_same_crop_to_another_model(augment: ImageAugment) -> None:
    smooth = np.tile(np.linspace(0, 255, 20, dtype=np.uint8)[None, :, None], (24, 20, 1, 3))
    smooth[..., 1] = smooth[..., 1].transpose(0, 2, 1)
    plain = batches_of(augment)
    plan = replace(plain.plan, second=SecondLook(size_px=12, tokenize=lambda texts: lengths(texts) + 1))
    batches = Batches(replace(plain.table, pixels=smooth), lengths, plan)
    batch = batches(3)
    assert batch["second_image"].shape == (12, 12, 12, 3)
    assert torch.equal(batch["second_text"], batch["text"] + 1)
    # Nothing else is drawn because of it.
    assert torch.equal(plain(3)["text"], batch["text"])
    corner, other = (batch[name].float()[:, [0, 0, -1, -1], [0, -1, 0, -1]] for name in ("image", "second_image"))
    assert (corner - other).abs().max() < 16, "another crop, or mirrored"
    check(batches, 3, 4)


def test_fixed_looks_come_again_and_are_what_the_source_says() -> None:
    plain = batches_of(ImageAugment(size_px=8))
    batches = Batches(plain.table, lengths, replace(plain.plan, looks=2))
    seen: dict[tuple[int, int], tuple[bytes, tuple[int, ...]]] = {}
    for step in range(40):
        batch = batches(step)
        for row, look, image, text in zip(batch["row"], batch["look"], batch["image"], batch["text"], strict=True):
            shown = (image.numpy().tobytes(), tuple(text.tolist()))
            assert seen.setdefault((int(row), int(look)), shown) == shown
    assert len(seen) == 48
    assert len({shown for shown, _ in seen.values()}) > 40, "the looks of a row are alike"
    for (row, look), (image, _) in seen.items():
        view, _ = batches.table.look(row, look)
        assert batches.table.shown(np.array([row]), [view], size_px=8).tobytes() == image
    check(batches, 3, 4)


@pytest.fixture
def make_scenes() -> Callable[[], SceneBatches]:
    from training.config import SceneData
    from training.data.scenes import draw_scenes

    part = {"scenes": 24, "share": 1.0, "mix": {"attributes": 1.0, "negatives": 1.0}}
    data = SceneData.model_validate({"kind": "scenes", "parts": (part,), "cache_px": 48})

    def call() -> SceneBatches:
        rows = draw_scenes(data, seed=2)
        return SceneBatches(rows, lengths, BatchPlan(batch_size=8, negatives=True, truth=True, codes=True, captions=2))

    return call


def test_a_batch_that_does_not_divide_is_refused() -> None:
    assert [own_rows(6, process=process, processes=3) for process in range(3)] == [
        slice(0, 2),
        slice(2, 4),
        slice(4, 6),
    ]
    with pytest.raises(ValueError, match="a batch of 7 does not divide among 2 processes"):
        own_rows(7, process=0, processes=2)
