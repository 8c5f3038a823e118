"""The protocol of a data source: batches, pictures, labels and captions of a run, and its judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.manifest import ImageSpec
from training.data.batches import BatchPlan, Tokenize
from training.data.meaning_code import MeaningCode
from training.data.rows import Drawn, LabelledRow, Split
from training.encoder import TorchEncoder


class StepBatches(Protocol):
    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of a 0-based step; it depends on (seed, step) only."""
        ...


@runtime_checkable
class DividedBatches(Protocol):
    """Batches that can make the rows of one process alone: `part` is what `distributed.part_of` would leave."""

    def part(self, step: int, *, process: int, processes: int) -> dict[str, torch.Tensor]: ...


@runtime_checkable
class StreamedBatches(Protocol):
    """Batches that are read on and on; every process has its own already, and a place to go on from."""

    def __call__(self, step: int) -> dict[str, torch.Tensor]: ...
    def position(self) -> dict[str, torch.Tensor]: ...
    def resume(self, position: Mapping[str, torch.Tensor]) -> None: ...
    def bad_samples(self) -> dict[str, int]: ...
    def close(self) -> None: ...


class Source(Protocol):
    """Training data and the judge beside it."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 [N, S, S, 3], the training pictures only."""
        ...

    @property
    def captioned(self) -> bool:
        """Whether pictures have captions; without them there are no texts, and there is no judge."""
        ...

    def texts(self) -> Sequence[str]:
        """What training may say, large enough a sample to hold every word."""
        ...

    def pictures(self, split: Split, spec: ImageSpec | None = None) -> NDArray[np.uint8]:
        """uint8 [n, H, W, 3] of a split, as the model takes them, or as `spec` says; of scenes that judge, those of one
        thing."""
        ...

    def labels(self, name: str, split: Split = "train") -> Sequence[str | None]:
        """One value for every picture of `pictures(split)`; None where this label says nothing of it.

        Raises:
            ValueError: there is no such label.
        """
        ...

    def labelled(self, name: str, split: Split, *, side_px: int) -> LabelledRow:
        """Every value of a label column that each picture shows, at side_px x side_px; the names are training's.

        Raises:
            ValueError: there is no such label.
        """
        ...

    def row_weights(self) -> NDArray[np.float64]:
        """How often each picture is drawn, relative to the others; for methods that draw pairs themselves."""
        ...

    def captions(self, count: int, *, negatives: bool) -> list[tuple[int, Drawn]]:
        """`count` captions of every row, as (row, drawn): for methods that work on cached features."""
        ...

    def batches(self, tokenize: Tokenize, plan: BatchPlan) -> StepBatches:
        """Raises:
        ValueError: these data lack what is asked for.
        """
        ...

    def looks(self, rows: NDArray[np.int64], look: int, *, size_px: int) -> tuple[NDArray[np.uint8], list[str]]:
        """Pictures uint8 [n, size_px, size_px, 3] and captions of these rows as batches with fixed looks have them.

        Raises:
            ValueError: these data have no rows to name.
        """
        ...

    def meaning_code(self) -> MeaningCode:
        """What captions mean, as numbers.

        Raises:
            ValueError: nobody knows.
        """
        ...

    def digest(self) -> str:
        """sha256 over what training really sees."""
        ...

    def judge(self, encoder: TorchEncoder, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """Numbers on a split that training never sees; nested, higher is better."""
        ...

    def rehearse(self, encoder: TorchEncoder) -> None:
        """Judge once before the first step, where the data are a person's: what is wrong with them is found now.

        Raises:
            ValueError: the judge refuses them.
        """
        ...
