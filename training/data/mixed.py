"""Photographs and drawn scenes in one run: each batch is of one kind, so neither is the other's easy negative."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.manifest import ImageSpec
from training.data.batches import BatchPlan, Tokenize
from training.data.meaning_code import MeaningCode
from training.data.protocol import Source, StepBatches
from training.data.rows import Drawn, LabelledRow, Split
from training.encoder import TorchEncoder


@dataclass(frozen=True)
class MixedBatches:
    """Of n steps, floor(n * scene_share) are batches of scenes, evenly spread; each kind counts its own steps."""

    table: StepBatches
    scenes: StepBatches
    scene_share: float
    negatives: bool
    truth: bool

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of 0-based `step`."""
        before, after = (math.floor(count * self.scene_share) for count in (step, step + 1))
        if after > before:
            return self.scenes(before)
        return without_twins(self.table(step - before), negatives=self.negatives, truth=self.truth)


def without_twins(batch: dict[str, torch.Tensor], *, negatives: bool, truth: bool) -> dict[str, torch.Tensor]:
    """A batch of captions that have no hard negatives and whose truth of other pictures nobody knows."""
    count, extra = len(batch["text"]), dict[str, torch.Tensor]()
    if negatives:
        extra["negative_text"], extra["negative_id"] = batch["text"], batch["caption_id"]
        extra["has_negative"] = torch.zeros(count, dtype=torch.bool)
    if truth:
        extra["excused"] = torch.zeros(count, 2 * count if negatives else count, dtype=torch.bool)
    return {**batch, **extra}


@dataclass(frozen=True)
class MixedSource:
    """A table and scenes behind one interface; what works on cached vectors sees the table only."""

    table: Source
    scenes: Source
    scene_share: float

    @property
    def pixels(self) -> NDArray[np.uint8]:
        return self.table.pixels

    @property
    def captioned(self) -> bool:
        return True

    def texts(self) -> Sequence[str]:
        return [*self.table.texts(), *self.scenes.texts()]

    def pictures(self, split: Split, spec: ImageSpec | None = None) -> NDArray[np.uint8]:
        return self.table.pictures(split, spec)

    def labels(self, name: str, split: Split = "train") -> Sequence[str | None]:
        return self.table.labels(name, split)

    def labelled(self, name: str, split: Split, *, side_px: int) -> LabelledRow:
        return self.table.labelled(name, split, side_px=side_px)

    def row_weights(self) -> NDArray[np.float64]:
        return self.table.row_weights()

    def captions(self, count: int, *, negatives: bool) -> list[tuple[int, Drawn]]:
        return self.table.captions(count, negatives=negatives)

    def batches(self, tokenize: Tokenize, plan: BatchPlan) -> StepBatches:
        if plan.codes:
            self.meaning_code()
        if plan.neighbours is not None or plan.captions != 1:
            raise ValueError("a table mixed with scenes has neither neighbours nor several captions a picture")
        if plan.looks:
            raise ValueError('fixed looks are for data.kind = "several", not for "mixed"')
        table = self.table.batches(tokenize, replace(plan, negatives=False, truth=False))
        return MixedBatches(table, self.scenes.batches(tokenize, plan), self.scene_share, plan.negatives, plan.truth)

    def looks(self, rows: NDArray[np.int64], look: int, *, size_px: int) -> tuple[NDArray[np.uint8], list[str]]:
        raise ValueError('fixed looks are for data.kind = "several", not for "mixed"')

    def meaning_code(self) -> MeaningCode:
        return self.table.meaning_code()

    def digest(self) -> str:
        parts = f"{self.table.digest()}\n{self.scenes.digest()}\n{self.scene_share}\n"
        return hashlib.sha256(parts.encode()).hexdigest()

    def judge(self, encoder: TorchEncoder, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """The table's numbers, and those of the scenes below "scenes"."""
        return {**self.table.judge(encoder, split=split), "scenes": self.scenes.judge(encoder, split=split)}

    def rehearse(self, encoder: TorchEncoder) -> None:
        self.table.rehearse(encoder)
        self.scenes.rehearse(encoder)
