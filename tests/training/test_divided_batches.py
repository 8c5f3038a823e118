"""Each process makes its own rows only, and together they are the batch that one process makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.augment import CaptionAugment, ImageAugment
from training.data.batches import Batches, SceneBatches
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
    return Batches(
        rows=ROWS,
        pixels=PIXELS,
        image_augment=augment,
        caption_augment=CaptionAugment(templates=("see {}",), tail=0.2),
        tokenize=lengths,
        batch_size=12,
        seed=5,
        negatives=True,
        neighbours=np.roll(np.arange(24), 1)[:, None] if neighbours else None,
    )


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
    several = SeveralBatches([table, FeatureBatches(features=features, batch_size=12, seed=1)], [2, 1])
    for step in range(6):
        check(several, step, 3)


def test_parts_of_scenes_are_the_batch(make_scenes: Callable[[], SceneBatches]) -> None:
    batches = make_scenes()
    for step in range(3):
        check(batches, step, 4)


@pytest.fixture
def make_scenes() -> Callable[[], SceneBatches]:
    from training.config import SceneData
    from training.data.scenes import draw_scenes

    part = {"scenes": 24, "share": 1.0, "mix": {"attributes": 1.0, "negatives": 1.0}}
    data = SceneData.model_validate({"kind": "scenes", "parts": (part,), "cache_px": 48})

    def call() -> SceneBatches:
        rows = draw_scenes(data, seed=2)
        return SceneBatches(
            rows=rows, tokenize=lengths, batch_size=8, negatives=True, truth=True, codes=True, captions=2
        )

    return call


def test_a_batch_that_does_not_divide_is_refused() -> None:
    assert [own_rows(6, process=process, processes=3) for process in range(3)] == [
        slice(0, 2),
        slice(2, 4),
        slice(4, 6),
    ]
    with pytest.raises(ValueError, match="a batch of 7 does not divide among 2 processes"):
        own_rows(7, process=0, processes=2)
