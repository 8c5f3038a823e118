"""Several tables, folders of pictures and kinds of scenes in one run: each batch is of one part.

So the rows of one part are no easy negatives for another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.manifest import ImageSpec
from training.data.batches import BatchPlan, Tokenize
from training.data.meaning_code import MeaningCode
from training.data.protocol import DividedBatches, Source, StepBatches
from training.data.rows import Drawn, LabelledRow, Split
from training.distributed import own_rows
from training.encoder import TorchEncoder


class SeveralBatches:
    """Each step is of the part that is furthest behind its share; each part counts its own steps.

    So of any first n steps a part of share s has had n s, give or take one.
    """

    def __init__(self, parts: Sequence[StepBatches], shares: Sequence[float], starts: Sequence[int]) -> None:
        """starts: the number of each part's first row among those of all parts."""
        self._parts, self._shares, self._starts = parts, [share / sum(shares) for share in shares], starts
        self._had = [0] * len(parts)
        self._turns: list[tuple[int, int]] = []

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of 0-based `step`."""
        return self.part(step, process=0, processes=1)

    def part(self, step: int, *, process: int, processes: int) -> dict[str, torch.Tensor]:
        """One process's rows of it."""
        while len(self._turns) <= step:
            behind = [share * (len(self._turns) + 1) - had for share, had in zip(self._shares, self._had, strict=True)]
            part = behind.index(max(behind))
            self._turns.append((part, self._had[part]))
            self._had[part] += 1
        part, own = self._turns[step]
        batches = self._parts[part]
        if isinstance(batches, DividedBatches):
            found = batches.part(own, process=process, processes=processes)
        else:
            found = {
                name: tensor[own_rows(len(tensor), process=process, processes=processes)]
                for name, tensor in batches(own).items()
            }
        return {name: tensor + self._starts[part] if name == "row" else tensor for name, tensor in found.items()}


@dataclass(frozen=True)
class SeveralSource:
    """The parts behind one interface; `pixels` and `captions` are those of all parts, one after the other."""

    names: tuple[str, ...]
    parts: tuple[Source, ...]
    shares: tuple[float, ...]

    @property
    def pixels(self) -> NDArray[np.uint8]:
        return np.concatenate([part.pixels for part in self.parts])

    @property
    def captioned(self) -> bool:
        return all(part.captioned for part in self.parts)

    def texts(self) -> Sequence[str]:
        return [text for part in self.parts for text in part.texts()]

    def pictures(self, split: Split, spec: ImageSpec | None = None) -> NDArray[np.uint8]:
        return np.concatenate([part.pictures(split, spec) for part in self.parts])

    def labels(self, name: str, split: Split = "train") -> Sequence[str | None]:
        raise ValueError(f"several kinds of data have no label {name!r} in common")

    def labelled(self, name: str, split: Split, *, side_px: int) -> LabelledRow:
        raise ValueError(f"several kinds of data have no label {name!r} in common")

    def row_weights(self) -> NDArray[np.float64]:
        """A part's rows share what the part has."""
        found: list[NDArray[np.float64]] = []
        for part, share in zip(self.parts, self.shares, strict=True):
            weights = part.row_weights()
            found.append(share * weights / weights.sum())
        return np.concatenate(found)

    def captions(self, count: int, *, negatives: bool) -> list[tuple[int, Drawn]]:
        found: list[tuple[int, Drawn]] = []
        start = 0
        for part in self.parts:
            found += [(start + row, drawn) for row, drawn in part.captions(count, negatives=negatives)]
            start += len(part.pixels)
        return found

    def batches(self, tokenize: Tokenize, plan: BatchPlan) -> StepBatches:
        if plan.negatives or plan.truth or plan.codes or plan.neighbours is not None or plan.captions != 1:
            raise ValueError("several kinds of data have pictures and captions only: no negatives, truth or neighbours")
        starts = np.cumsum([0, *(len(part.pixels) for part in self.parts[:-1])]).tolist()
        return SeveralBatches([part.batches(tokenize, plan) for part in self.parts], self.shares, starts)

    def looks(self, rows: NDArray[np.int64], look: int, *, size_px: int) -> tuple[NDArray[np.uint8], list[str]]:
        counts = np.cumsum([len(part.pixels) for part in self.parts])
        part_of = np.searchsorted(counts, rows, side="right")
        pixels = np.empty((len(rows), size_px, size_px, 3), dtype=np.uint8)
        texts = [""] * len(rows)
        for number, part in enumerate(self.parts):
            where = np.flatnonzero(part_of == number)
            start = counts[number] - len(part.pixels)
            if len(where):
                pixels[where], said = part.looks(rows[where] - start, look, size_px=size_px)
                for at, text in zip(where.tolist(), said, strict=True):
                    texts[at] = text
        return pixels, texts

    def meaning_code(self) -> MeaningCode:
        raise ValueError("this method wants to know what captions mean, as drawn scenes do: tables do not")

    def digest(self) -> str:
        lines = [f"{part.digest()} {share}" for part, share in zip(self.parts, self.shares, strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def judge(self, encoder: TorchEncoder, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """Each part's numbers below its name."""
        return {name: part.judge(encoder, split=split) for name, part in zip(self.names, self.parts, strict=True)}

    def rehearse(self, encoder: TorchEncoder) -> None:
        for part in self.parts:
            part.rehearse(encoder)
