"""Stacks waiting rows into one array: rows of equal shape, texts padded to one length where that is exact, pictures
that are asked about the same texts, pairs of picture and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Row = NDArray[Any]
# A run reads all the weights once, whatever its size. On two cores and ViT-B-32 that costs as much as 14 tokens do.
_SPARE_TOKENS = 8
_SPARE_SHARE = 1.5


Item = TypeVar("Item", contravariant=True)


class Stacking(Protocol[Item]):
    """How the items of one graph are put together; of encoders they are rows."""

    def joins(self, first: Item, other: Item) -> bool:
        """May `other` share a run with `first`, the oldest item of it?"""
        ...

    def most(self, first: Item) -> int | None:
        """How many items a run of `first` may have at most; None: as many as the batcher allows."""
        ...

    def stack(self, rows: Sequence[Item]) -> Any:
        """What the graph takes for items that join; of rows [B, ...]."""
        ...


class EqualShapes:
    """Rows of one shape only: a row's answer depends on itself alone, whatever the graph does with padding."""

    def joins(self, first: Row, other: Row) -> bool:
        return first.shape == other.shape

    def most(self, first: Row) -> int | None:
        return None

    def stack(self, rows: Sequence[Row]) -> Row:
        return np.stack(rows)


class EqualPictures(EqualShapes):
    """Pictures [H, W, 3] of one size, together at most `max_pixels`: memory of a run grows with them, not with their
    number. One picture may always run, however large."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels

    def most(self, first: Row) -> int | None:
        return max(1, self._max_pixels // (first.shape[0] * first.shape[1]))


class PaddedTokens:
    """Token rows [L] of similar lengths, padded to the longest of the run.

    Only for graphs whose measured batch difference is exactly 0 with padding (docs/decisions/0002). Similar is at most
    1.5 times as long or 8 tokens longer: padding that far is cheaper than a run of its own.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def joins(self, first: Row, other: Row) -> bool:
        short, long = sorted((len(first), len(other)))
        return long <= max(_SPARE_SHARE * short, short + _SPARE_TOKENS)

    def most(self, first: Row) -> int | None:
        return None

    def stack(self, rows: Sequence[Row]) -> Row:
        stacked = np.full((len(rows), max(len(row) for row in rows)), self._pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            stacked[index, : len(row)] = row
        return stacked


@dataclass(frozen=True, eq=False)
class PictureWithTexts:
    """An image vector [D] and the ids int64 [C, L] that a conditional head reads for it.

    Pictures are asked about the same texts when they share the very array.
    """

    vector: NDArray[np.float32]
    ids: NDArray[np.int64]


class SharedTexts:
    """Pictures with the same texts, B x C at most `max_texts`, as memory of a run grows with that. One picture may
    always run."""

    def __init__(self, max_texts: int) -> None:
        self._max_texts = max_texts

    def joins(self, first: PictureWithTexts, other: PictureWithTexts) -> bool:
        return first.ids is other.ids

    def most(self, first: PictureWithTexts) -> int | None:
        return max(1, self._max_texts // len(first.ids))

    def stack(self, rows: Sequence[PictureWithTexts]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(vectors [B, D], ids [C, L])."""
        return np.stack([row.vector for row in rows]), rows[0].ids


@dataclass(frozen=True, eq=False)
class PictureAndText:
    """What a reranker reads: positions float32 [rows, columns, D] and states float32 [L, W] of a text's tokens."""

    positions: NDArray[np.float32]
    states: NDArray[np.float32]


class EqualPairs:
    """Pairs with grids of one shape and texts of one length, so that none is padded; their positions have together at
    most `max_numbers` numbers, as memory of a run grows with that. One pair may always run."""

    def __init__(self, max_numbers: int) -> None:
        self._max_numbers = max_numbers

    def joins(self, first: PictureAndText, other: PictureAndText) -> bool:
        return first.positions.shape == other.positions.shape and first.states.shape == other.states.shape

    def most(self, first: PictureAndText) -> int | None:
        return max(1, self._max_numbers // max(first.positions.size, 1))

    def stack(self, rows: Sequence[PictureAndText]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(positions [B, rows, columns, D], states [B, L, W])."""
        return np.stack([row.positions for row in rows]), np.stack([row.states for row in rows])
