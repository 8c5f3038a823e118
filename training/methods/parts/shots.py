"""A few labelled pictures as a training set: which they are, and the batches of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics import normalize
from training.data.protocol import Source
from training.features import Features
from training.methods.parts.linear_heads import F32, I64, classes_of, pick_shots, truth_of

_SHUFFLE_STREAM = 6


@dataclass(frozen=True, kw_only=True)
class ShotBatches:
    """Pictures in shuffled passes, one pass after the other: each comes equally often, whatever a batch holds.

    image float32 [n, D], truth int64 [n]. A batch has image_embeds [B, D] and class_id int64 [B], and depends on (seed,
    step) only; a batch larger than the n pictures has some of them several times.
    """

    image: F32
    truth: I64
    batch_size: int
    seed: int

    def __call__(self, step: int) -> dict[str, Tensor]:
        """The batch of a 0-based step."""
        passes, places = divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size), len(self.image))
        orders = {
            number: np.random.default_rng((self.seed, _SHUFFLE_STREAM, number)).permutation(len(self.image))
            for number in set(passes.tolist())
        }
        rows = np.array([orders[number][place] for number, place in zip(passes.tolist(), places, strict=True)])
        return {"image_embeds": torch.from_numpy(self.image[rows]), "class_id": torch.from_numpy(self.truth[rows])}


@dataclass(frozen=True, kw_only=True)
class ShotTask:
    """Unit vectors of the shots [n, D] with their classes int64 [n], and of validation [V, D] with theirs.

    wanted: shots a class. unknown: pictures of validation that are of no class, and left out.
    """

    classes: tuple[str, ...]
    wanted: int
    image: F32
    truth: I64
    validation: F32
    expected: I64
    unknown: int

    def batches(self, *, batch_size: int, seed: int) -> ShotBatches:
        return ShotBatches(image=self.image, truth=self.truth, batch_size=batch_size, seed=seed)

    def report(self) -> dict[str, Any]:
        """What was trained on, and which classes had fewer pictures than wanted."""
        counts = Counter(self.truth.tolist())
        fewer = {name: counts[at] for at, name in enumerate(self.classes) if counts[at] < self.wanted}
        return {
            "wanted": self.wanted,
            "pictures": len(self.truth),
            "classes": len(self.classes),
            "classes_with_fewer": fewer,
            "validation_without_a_class": self.unknown,
        }


def shot_task(source: Source, features: Features, label: str, *, shots: int, seed: int, least: int) -> ShotTask:
    """`shots` training pictures of every class of a label column, 0: all; least: classes with fewer are left out.

    Raises:
        ValueError: no such label, fewer than two classes, or none of them in validation.
    """
    labels = source.labels(label)
    classes = classes_of(labels, least=least)
    truth, expected = truth_of(labels, classes), truth_of(source.labels(label, "validation"), classes)
    known = expected >= 0
    if not known.any():
        raise ValueError(f"no picture of validation has one of the {len(classes)} classes of {label!r}")
    rows = pick_shots(truth, classes=len(classes), shots=shots, seed=seed)
    return ShotTask(
        classes=classes,
        wanted=shots,
        image=normalize(features.image[rows]),
        truth=truth[rows],
        validation=normalize(features.validation[known]),
        expected=expected[known],
        unknown=int((~known).sum()),
    )
