"""AutoAttack's standard parts one after the other, each on what the ones before could not mislead.

APGD on the cross entropy, APGD on the targeted DLR loss for each of the strongest wrong classes, and Square (Croce and
Hein, 2020). Their fourth part, FAB, is left out: see docs/robustness.md. Without gradients there is Square alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.robustness.apgd import Tried, apgd
from evaluation.robustness.bounds import Ball
from evaluation.robustness.classifier import I64, U8, PictureClassifier, PulledClassifier
from evaluation.robustness.losses import cross_entropy, margins, strongest_others, targeted_dlr
from evaluation.robustness.square import square

Part = Literal["apgd-ce", "apgd-t", "square"]
_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """steps: of each run of APGD. targets: wrong classes that APGD-T aims at, one run for each. queries: of Square.

    The defaults are AutoAttack's.
    """

    steps: int = 100
    targets: int = 9
    queries: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises:
        ValueError: no step, or less than nothing of something.
        """
        if self.steps < 1 or self.targets < 0 or self.queries < 0:
            raise ValueError(f"{self}: expected at least one step, and nothing below 0")


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Of one epsilon, for each of N pictures: what is still named, in floats and in whole levels; and the pictures.

    by: which part misled a picture first (in whole levels), "" where none did or where it was misnamed already.
    """

    epsilon: float
    named_as_floats: NDArray[np.bool_]
    named: NDArray[np.bool_]
    pictures: U8
    by: tuple[Part | Literal[""], ...]


def attacked(
    model: PictureClassifier,
    clean: U8,
    truth: I64,
    *,
    epsilons: Sequence[float],
    plan: AttackPlan | None = None,
    told: Callable[[int], None] | None = None,
) -> list[Attacked]:
    """Pictures uint8 [N, H, W, 3] with their classes int64 [N], at each epsilon (of 255 levels), ascending.

    What misleads at a small epsilon is in the ball of a larger one, so that only the others are attacked again. told:
    called with the number of pictures that are done, N times epsilons in all.

    Raises:
        ValueError: no epsilon, or one that is not above 0.
    """
    if not epsilons or list(epsilons) != sorted(set(epsilons)):
        raise ValueError(f"epsilons {list(epsilons)}: expected at least one, ascending")
    plan = plan or AttackPlan()
    parts: list[list[Attacked]] = []
    for start in range(0, len(truth), _CHUNK):
        rows = slice(start, start + _CHUNK)
        parts.append(list(_of_chunk(model, clean[rows], truth[rows], epsilons, plan, plan.seed + start, told)))
    return [_joined([part[at] for part in parts]) for at in range(len(epsilons))]


def _of_chunk(
    model: PictureClassifier,
    clean: U8,
    truth: I64,
    epsilons: Sequence[float],
    plan: AttackPlan,
    seed: int,
    told: Callable[[int], None] | None,
) -> Iterator[Attacked]:
    logits = model.logits(clean.astype(np.float32))
    named = margins(logits, truth) > 0
    as_floats, pictures = named.copy(), clean.copy()
    others = strongest_others(logits, truth, plan.targets)
    for epsilon in epsilons:
        by: list[Part | Literal[""]] = [""] * len(truth)
        ball = Ball(clean, epsilon)
        for number, (part, run) in enumerate(_runs(model, ball, truth, others, plan)):
            left = np.flatnonzero(named | as_floats)
            if not len(left):
                break
            tried = run(left, seed + 1_000_003 * number)
            new = left[tried.pictures_fool & named[left]]
            pictures[new] = tried.pictures[tried.pictures_fool & named[left]]
            for at in new.tolist():
                by[at] = part
            named[left] &= ~tried.pictures_fool
            as_floats[left] &= ~tried.floats_fool
        if told is not None:
            told(len(truth))
        yield Attacked(
            epsilon=epsilon,
            named_as_floats=as_floats.copy(),
            named=named.copy(),
            pictures=pictures.copy(),
            by=tuple(by),
        )


def _runs(
    model: PictureClassifier, ball: Ball, truth: I64, others: I64, plan: AttackPlan
) -> Iterator[tuple[Part, Callable[[NDArray[np.intp], int], Tried]]]:
    """The runs in their order; each takes rows of the ball and a seed."""
    if isinstance(model, PulledClassifier):
        yield (
            "apgd-ce",
            lambda rows, seed: apgd(
                model,
                ball.of(rows),
                truth[rows],
                lambda at: cross_entropy(truth[rows][at]),
                steps=plan.steps,
                seed=seed,
            ),
        )
        for column in others.T:
            yield (
                "apgd-t",
                lambda rows, seed, column=column: apgd(
                    model,
                    ball.of(rows),
                    truth[rows],
                    lambda at: targeted_dlr(truth[rows][at], column[rows][at]),
                    steps=plan.steps,
                    seed=seed,
                ),
            )
    if plan.queries:
        yield "square", lambda rows, seed: square(model, ball.of(rows), truth[rows], queries=plan.queries, seed=seed)


def _joined(parts: Sequence[Attacked]) -> Attacked:
    return Attacked(
        epsilon=parts[0].epsilon,
        named_as_floats=np.concatenate([each.named_as_floats for each in parts]),
        named=np.concatenate([each.named for each in parts]),
        pictures=np.concatenate([each.pictures for each in parts]),
        by=tuple(part for each in parts for part in each.by),
    )
