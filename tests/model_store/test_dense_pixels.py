"""Whole pictures for the dense role: what sizes they get, and that every cell shows its own share of the picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from model_store.errors import InvalidImage
from model_store.manifest import DenseSpec
from model_store.modality.image import dense_size, prepare_dense

FREE = DenseSpec.model_validate(
    {
        "stride_px": 8, "short_px": 112, "max_long_px": 448, "sizes": "free", "pooling": "mean",
        "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1),
    }
)  # fmt: skip
FIXED = FREE.model_copy(update={"sizes": "fixed", "height_px": 64, "width_px": 96, "pooling": "flat"})


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), short=st.integers(8, 600))
def test_sides_are_whole_cells_and_keep_the_aspect(width: int, height: int, short: int) -> None:
    found = dense_size(width, height, FREE, short_px=short)
    assert all(side % 8 == 0 and 16 <= side <= 448 for side in found)
    if min(found) >= 24 and max(found) < 440:
        scale = short / min(width, height)
        assert abs(found[0] - width * scale) <= 4
        assert abs(found[1] - height * scale) <= 4


def test_the_default_grid_has_fourteen_cells_on_its_short_side() -> None:
    assert dense_size(331, 227, FREE) == (160, 112)
    assert dense_size(227, 331, FREE) == (112, 160)
    assert dense_size(3, 3, FREE) == (112, 112)


def test_the_long_side_has_a_limit_and_the_short_one_two_cells() -> None:
    assert dense_size(1000, 10, FREE) == (448, 16)
    assert dense_size(10, 1000, FREE) == (16, 448)


def test_fixed_sizes_do_not_depend_on_the_picture() -> None:
    assert dense_size(331, 227, FIXED) == dense_size(20, 900, FIXED, short_px=400) == (96, 64)
    assert prepare_dense(Image.new("RGB", (331, 227)), FIXED).shape == (64, 96, 3)


def test_nothing_is_cropped_and_rows_are_rows() -> None:
    picture = np.zeros((227, 331, 3), dtype=np.uint8)
    picture[:10, :, 0] = 255  # a red band along the upper edge
    picture[:, -12:, 2] = 255  # a blue one along the right edge
    found = prepare_dense(Image.fromarray(picture), FREE)
    assert found.shape == (112, 160, 3)
    assert found.dtype == np.uint8
    assert found[:3, :, 0].min() > 200
    assert found[-100:, :, 0].max() < 20
    assert found[:, -4:, 2].min() > 200
    assert found[:, :140, 2].max() < 20


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (112, 160, 3), dtype=np.uint8)
    np.testing.assert_array_equal(prepare_dense(Image.fromarray(picture), FREE), picture)


def test_another_mode_is_refused() -> None:
    with pytest.raises(InvalidImage, match="RGB"):
        prepare_dense(Image.new("L", (30, 30)), FREE)
    with pytest.raises(ValueError, match="at least 1 px"):
        dense_size(0, 5, FREE)


@pytest.mark.parametrize(
    "change",
    [
        {"height_px": 64},
        {"sizes": "fixed"},
        {"short_px": 110},
        {"max_long_px": 104},
        {"sizes": "fixed", "height_px": 60, "width_px": 64},
        {"attention": "other"},
        {"fill": 3},
    ],
)
def test_a_spec_that_does_not_add_up_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DenseSpec.model_validate(FREE.model_dump() | change)
