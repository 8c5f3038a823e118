"""A few labelled pictures as a training set: which they are, and the batches of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from training.data.protocol import Source
from training.methods.parts.linear_heads import I64, classes_of, pick_shots, truth_of
from training.options import Options

_SHUFFLE_STREAM = 6


class ShotOptions(Options):
    """label: what is told apart, as `Source.labels` names it. shots: pictures a class, 0: all. shots_seed: which ones.

    least: classes with fewer training pictures are left out. only: the values of the label that are learnt and told
    apart, by default all. templates: prompts of the zero-shot logits, by default the base's own.
    """

    label: str
    shots: int = Field(default=16, ge=0)
    shots_seed: int = Field(default=0, ge=0)
    least: int = Field(default=1, ge=1)
    only: tuple[str, ...] | None = Field(default=None, min_length=2)
    templates: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ShotBatches:
    """Rows in shuffled passes, one pass after the other: each comes equally often, whatever a batch holds.

    fields: what a batch has of its rows, arrays [n, ...]. A batch depends on (seed, step) only; one that is larger than
    n has some rows several times.
    """

    fields: Mapping[str, NDArray[np.generic]]
    batch_size: int
    seed: int

    def __call__(self, step: int) -> dict[str, Tensor]:
        """The batch of a 0-based step."""
        count = len(next(iter(self.fields.values())))
        passes, places = divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size), count)
        orders = {
            number: np.random.default_rng((self.seed, _SHUFFLE_STREAM, number)).permutation(count)
            for number in set(passes.tolist())
        }
        rows = np.array([orders[number][place] for number, place in zip(passes.tolist(), places, strict=True)])
        return {name: torch.from_numpy(array[rows]) for name, array in self.fields.items()}


@dataclass(frozen=True, kw_only=True)
class ShotTask:
    """Rows of the training pictures that are the shots, int64 [n], with their classes `truth`, int64 [n].

    wanted: shots a class. pool: how many training pictures each class has, int64 [C]. known: which pictures of
    validation are of a class, bool [V]; expected: theirs.
    """

    classes: tuple[str, ...]
    wanted: int
    pool: I64
    rows: I64
    truth: I64
    known: NDArray[np.bool_]
    expected: I64

    def report(self) -> dict[str, Any]:
        """What was trained on, and which classes had fewer pictures than wanted."""
        counts = Counter(self.truth.tolist())
        fewer = {name: counts[at] for at, name in enumerate(self.classes) if counts[at] < self.wanted}
        return {
            "wanted": self.wanted,
            "pictures": len(self.truth),
            "classes": len(self.classes),
            "classes_with_fewer": fewer,
            "validation_without_a_class": int((~self.known).sum()),
        }


def shot_task(source: Source, options: ShotOptions) -> ShotTask:
    """The shots of the training split that the options name, and the pictures of validation that are of their classes.

    Raises:
        ValueError: no such label, fewer than two classes, one of `only` that there is not, or none in validation.
    """
    labels = source.labels(options.label)
    classes = classes_of(labels, least=options.least, only=options.only)
    truth, expected = truth_of(labels, classes), truth_of(source.labels(options.label, "validation"), classes)
    known = expected >= 0
    if not known.any():
        raise ValueError(f"no picture of validation has one of the {len(classes)} classes of {options.label!r}")
    rows = pick_shots(truth, classes=len(classes), shots=options.shots, seed=options.shots_seed)
    return ShotTask(
        classes=classes,
        wanted=options.shots,
        pool=np.bincount(truth[truth >= 0], minlength=len(classes)),
        rows=rows,
        truth=truth[rows],
        known=known,
        expected=expected[known],
    )
