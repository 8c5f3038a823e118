"""Drawn few-shot problems: unit vectors around one centre a class, and texts that miss the centres."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import normalize
from training.methods.parts.class_heads import ClassHead, LinearHead, accuracy
from training.methods.parts.few_shot import HeadMethod
from training.methods.parts.linear_heads import zero_shot_head


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Shots by class, validation and unseen pictures: unit vectors [n, D] and classes int64 [n]."""

    zero_shot: LinearHead
    shots: NDArray[np.float32]
    truth: NDArray[np.int64]
    validation: NDArray[np.float32]
    expected: NDArray[np.int64]
    unseen: NDArray[np.float32]
    answers: NDArray[np.int64]

    def of(self, method: HeadMethod, *, seed: int = 0) -> HeadMethod:
        """The method as it is after `setup`, as far as `choose` needs it."""
        method.zero_shot, method.seed = self.zero_shot, seed
        method.pool = np.bincount(self.truth)
        return method

    def gain(self, head: ClassHead) -> float:
        """Accuracy on unseen pictures above zero-shot's."""
        return accuracy(head, self.unseen, self.answers) - accuracy(self.zero_shot, self.unseen, self.answers)

    def leaning(self, label: int, *, by: float) -> Problem:
        """The same with every picture moved towards the text of one class."""
        text = normalize(self.zero_shot.weight.T)[label]
        moved = {name: normalize(getattr(self, name) + by * text) for name in ("shots", "validation", "unseen")}
        return replace(self, **moved)


def drawn(*, seed: int = 0, sizes: tuple[int, ...] = (6, 6, 6, 6, 6), dim: int = 16, off: float = 1.2) -> Problem:
    """`sizes`: shots of each class. `off`: how far a text lies from its centre."""
    rng = np.random.default_rng(seed)
    centres = normalize(rng.normal(size=(len(sizes), dim)))

    def pictures(truth: NDArray[np.int64]) -> NDArray[np.float32]:
        return normalize(centres[truth] + rng.normal(size=(len(truth), dim)) * 0.3)

    truth = np.repeat(np.arange(len(sizes)), sizes)
    expected, answers = (np.arange(count) % len(sizes) for count in (200, 800))
    texts = normalize(centres + off * normalize(rng.normal(size=centres.shape)))
    return Problem(
        zero_shot=zero_shot_head(texts, scale=20.0),
        shots=pictures(truth),
        truth=truth,
        validation=pictures(expected),
        expected=expected,
        unseen=pictures(answers),
        answers=answers,
    )
