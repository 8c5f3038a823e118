"""A reader that judges each pair of a picture and a text by itself, as a reranker does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.probes.pictures import Picture
from evaluation.probes.readers import NotApplicable, Sentence
from evaluation.probes.rows import F64

F32 = NDArray[np.float32]
Grids = Sequence[NDArray[np.floating]]
_PICTURES, _PAIRS = 32, 4096


class MatchReader:
    """Positions of each picture are worked out once.

    see: uint8 pictures [H, W, 3] -> for each its positions [rows, columns, D]. match: positions and texts of N pairs ->
    logits [N]. size_px: the side of the drawn pictures.
    """

    ties_wrong = True

    def __init__(
        self,
        see: Callable[[Sequence[NDArray[np.uint8]]], Grids],
        match: Callable[[Grids, Sequence[str]], F32],
        *,
        size_px: int,
    ) -> None:
        self._see, self._match, self._size_px = see, match, size_px
        self._grids: dict[Picture, NDArray[np.floating]] = {}

    def scores(self, asked: Sequence[tuple[Picture, Sentence]]) -> F64:
        missing = [picture for picture in dict.fromkeys(one for one, _ in asked) if picture not in self._grids]
        for at in range(0, len(missing), _PICTURES):
            part = missing[at : at + _PICTURES]
            self._grids.update(zip(part, self._see([one.draw(self._size_px) for one in part]), strict=True))
        parts = [asked[at : at + _PAIRS] for at in range(0, len(asked), _PAIRS)]
        found = [
            self._match([self._grids[picture] for picture, _ in part], [text.text for _, text in part])
            for part in parts
        ]
        return np.concatenate(found).astype(np.float64)

    def image_vectors(self, pictures: Sequence[Picture]) -> F64:
        raise NotApplicable("a reranker judges pairs and has no vectors")

    def text_vectors(self, texts: Sequence[Sentence]) -> F64:
        raise NotApplicable("a reranker judges pairs and has no vectors")
