"""Several tables and kinds of scenes in one run: each batch is of one part, so none is another's easy negative."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.batches import Neighbours, Tokenize
from training.data.meaning_code import MeaningCode
from training.data.protocol import DividedBatches, Source, StepBatches
from training.data.rows import Drawn, LabelledRow, Split
from training.distributed import own_rows
from training.encoder import TorchEncoder


class SeveralBatches:
    """Each step is of the part that is furthest behind its share; each part counts its own steps.

    So of any first n steps a part of share s has had n s, give or take one.
    """

    def __init__(self, parts: Sequence[StepBatches], shares: Sequence[float]) -> None:
        self._parts, self._shares = parts, [share / sum(shares) for share in shares]
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
            return batches.part(own, process=process, processes=processes)
        return {
            name: tensor[own_rows(len(tensor), process=process, processes=processes)]
            for name, tensor in batches(own).items()
        }


@dataclass(frozen=True)
class SeveralSource:
    """The parts behind one interface; `pixels` and `captions` are those of all parts, one after the other."""

    names: tuple[str, ...]
    parts: tuple[Source, ...]
    shares: tuple[float, ...]

    @property
    def pixels(self) -> NDArray[np.uint8]:
        return np.concatenate([part.pixels for part in self.parts])

    def texts(self) -> Sequence[str]:
        return [text for part in self.parts for text in part.texts()]

    def pictures(self, split: Split) -> NDArray[np.uint8]:
        return np.concatenate([part.pictures(split) for part in self.parts])

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

    def batches(
        self,
        tokenize: Tokenize,
        *,
        batch_size: int,
        negatives: bool,
        truth: bool,
        neighbours: Neighbours | None,
        captions: int = 1,
        codes: bool = False,
    ) -> StepBatches:
        if negatives or truth or codes or neighbours is not None or captions != 1:
            raise ValueError("several kinds of data have pictures and captions only: no negatives, truth or neighbours")
        made = [
            part.batches(
                tokenize, batch_size=batch_size, negatives=False, truth=False, neighbours=None, captions=1, codes=False
            )
            for part in self.parts
        ]
        return SeveralBatches(made, self.shares)

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
