"""Auto-PGD: projected gradient ascent that sets its own step size, in the L-infinity ball of a picture.

Croce and Hein, 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
Attacks", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.robustness.bounds import Ball
from evaluation.robustness.classifier import F32, F64, I64, U8, PulledClassifier
from evaluation.robustness.losses import Loss, margins

_MOMENTUM, _IMPROVING = 0.75, 0.75
_FIRST, _SHORTER, _SHORTEST = 0.22, 0.03, 0.06


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What an attack found, for each of N pictures.

    floats: inside the ball, misnamed where `floats_fool`, else of the highest loss. pictures: the same in whole levels,
    where `pictures_fool`. loss: of the start and the highest one that was met, each [N].
    """

    floats: F32
    floats_fool: NDArray[np.bool_]
    pictures: U8
    pictures_fool: NDArray[np.bool_]
    first_loss: F64
    best_loss: F64


def apgd(
    model: PulledClassifier,
    ball: Ball,
    truth: I64,
    loss: Callable[[NDArray[np.intp]], Loss],
    *,
    steps: int,
    seed: int,
) -> Tried:
    """loss: of the rows of the ball that are still attacked, by index; a picture is left alone once it is misnamed
    both in floats and in whole levels.
    """
    count, clean = len(truth), ball.clean.astype(np.float32)
    alive = np.arange(count)
    start = np.random.default_rng(seed).uniform(-1, 1, clean.shape).astype(np.float32)
    start /= np.abs(start).reshape(count, -1).max(axis=1).reshape(-1, 1, 1, 1)
    x = ball.inside((clean + np.float32(ball.epsilon) * start).astype(np.float32, copy=False))
    found = _Found(model, ball, truth, x)
    value, slope = _climbed(model, x, loss(alive), found, alive)
    first, best = value.copy(), value.copy()
    best_x, best_slope, before = x.copy(), slope.copy(), x.copy()
    size = np.full(count, 2 * ball.epsilon, dtype=np.float32)
    rises, checked = np.zeros(count, dtype=np.int64), best.copy()
    shrunk = np.ones(count, dtype=np.bool_)  # as the authors have it: the first check looks at the rises alone
    period, since = max(int(_FIRST * steps), 1), 0
    for step in range(steps):
        alive = np.flatnonzero(~found.done)
        if not len(alive):
            break
        of = ball.of(alive)
        here, last = x[alive], before[alive]
        before[alive] = here
        ahead = of.inside(here + size[alive].reshape(-1, 1, 1, 1) * np.sign(slope[alive]))
        kept = _MOMENTUM if step else 1.0
        moved = of.inside((here + kept * (ahead - here) + (1 - kept) * (here - last)).astype(np.float32))
        reached, its_slope = _climbed(model, moved, loss(alive), found, alive)
        rises[alive] += reached > value[alive]
        x[alive], value[alive], slope[alive] = moved, reached, its_slope
        better = alive[reached > best[alive]]
        best[better], best_x[better], best_slope[better] = value[better], x[better], slope[better]
        since += 1
        if since == period:
            stuck = (rises <= period * _IMPROVING) | (~shrunk & (checked >= best))
            size[stuck] /= 2
            x[stuck], slope[stuck] = best_x[stuck], best_slope[stuck]
            shrunk, checked, rises, since = stuck, best.copy(), np.zeros(count, dtype=np.int64), 0
            period = max(period - max(int(_SHORTER * steps), 1), max(int(_SHORTEST * steps), 1))
    found.end(best_x)
    return Tried(
        floats=np.where(found.floats_fool[:, None, None, None], found.floats, best_x),
        floats_fool=found.floats_fool,
        pictures=found.pictures,
        pictures_fool=found.pictures_fool,
        first_loss=first,
        best_loss=best,
    )


class _Found:
    """What misled the model so far."""

    def __init__(self, model: PulledClassifier, ball: Ball, truth: I64, x: F32) -> None:
        self._model, self._ball, self._truth = model, ball, truth
        self.floats, self.pictures = x.copy(), ball.clean.copy()
        self.floats_fool = np.zeros(len(truth), dtype=np.bool_)
        self.pictures_fool = np.zeros(len(truth), dtype=np.bool_)

    @property
    def done(self) -> NDArray[np.bool_]:
        return self.floats_fool & self.pictures_fool

    def see(self, rows: NDArray[np.intp], x: F32, logits: F64) -> None:
        """Floats [n, H, W, 3] of these rows, and what the model says of them."""
        missed = margins(logits, self._truth[rows]) <= 0
        new = missed & ~self.floats_fool[rows]
        self.floats[rows[new]], self.floats_fool[rows[missed]] = x[new], True
        self._try_pictures(rows[missed], x[missed])

    def end(self, best: F32) -> None:
        """The floats of the highest loss of each row [N, H, W, 3]: what has not misled yet may do so as a picture."""
        left = np.flatnonzero(~self.pictures_fool)
        self._try_pictures(left, best[left])

    def _try_pictures(self, rows: NDArray[np.intp], x: F32) -> None:
        waiting = ~self.pictures_fool[rows]
        rows, x = rows[waiting], x[waiting]
        if not len(rows):
            return
        shown = self._ball.of(rows).picture(x)
        fools = margins(self._model.logits(shown.astype(np.float32)), self._truth[rows]) <= 0
        self.pictures[rows[fools]], self.pictures_fool[rows[fools]] = shown[fools], True
        # A picture of whole levels is a float as well.
        new = rows[fools & ~self.floats_fool[rows]]
        self.floats[new], self.floats_fool[new] = self.pictures[new], True


def _climbed(
    model: PulledClassifier, x: F32, loss: Loss, found: _Found, rows: NDArray[np.intp]
) -> tuple[F64, NDArray[np.float32]]:
    """Loss [n] and its slope by the pixels, of which the sign alone is used."""
    logits, pull = model.pulled(x)
    found.see(rows, x, logits)
    value, weights = loss(logits)
    # Of a sure model they are so small that float32 would lose them on the way back.
    largest = np.abs(weights).max(axis=1, keepdims=True)
    return value, pull(weights / np.where(largest > 0, largest, 1))
