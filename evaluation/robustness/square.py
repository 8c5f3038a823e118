"""Square: random squares of the ball's corners, kept where the margin shrinks; it asks for logits and nothing else.

Andriushchenko et al., 2020, "Square Attack: a query-efficient black-box adversarial attack via random search",
algorithm 2 with the schedule of AutoAttack (the paper's, stretched to the number of queries).
"""

from __future__ import annotations

import math

import numpy as np

from evaluation.robustness.apgd import Tried
from evaluation.robustness.bounds import Ball
from evaluation.robustness.classifier import F32, I64, PictureClassifier
from evaluation.robustness.losses import margins

_FIRST_SHARE = 0.8
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def square(model: PictureClassifier, ball: Ball, truth: I64, *, queries: int, seed: int) -> Tried:
    """The values of every step are whole levels, floor(epsilon) from the clean ones: floats and pictures are one."""
    reach, count = math.floor(ball.epsilon), len(truth)
    rng = np.random.default_rng(seed)
    height, width = ball.clean.shape[1:3]
    whole = Ball(ball.clean, reach) if reach else ball
    stripes = _signs(rng, (count, 1, width, 3))
    best = _float(whole.picture(ball.clean + reach * stripes))
    margin = margins(model.logits(best), truth)
    first = margin.copy()
    for query in range(1, queries if reach else 0):
        alive = np.flatnonzero(margin > 0)
        if not len(alive):
            break
        side = max(1, round(math.sqrt(share_at(query, queries) * height * width)))
        side = min(side, height, width)
        tops = rng.integers(0, height - side + 1, len(alive))
        lefts = rng.integers(0, width - side + 1, len(alive))
        rows, columns = np.arange(height), np.arange(width)
        down = (rows >= tops[:, None]) & (rows < tops[:, None] + side)
        across = (columns >= lefts[:, None]) & (columns < lefts[:, None] + side)
        window = (down[:, :, None] & across[:, None, :])[..., None]
        corner = ball.clean[alive] + reach * _signs(rng, (len(alive), 1, 1, 3))
        tried = _float(whole.of(alive).picture(np.where(window, corner, best[alive]).astype(np.float32)))
        its = margins(model.logits(tried), truth[alive])
        better = its < margin[alive]
        best[alive[better]], margin[alive[better]] = tried[better], its[better]
    fools, pictures = margin <= 0, best.astype(np.uint8)
    return Tried(
        floats=best, floats_fool=fools, pictures=pictures, pictures_fool=fools, first_loss=-first, best_loss=-margin
    )


def share_at(query: int, queries: int) -> float:
    """The share of the picture that a square covers at a 0-based query."""
    at = int(query / queries * 10_000)
    return _FIRST_SHARE / 2 ** sum(at > step for step in _HALVED_AT)


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    return (2 * rng.integers(0, 2, shape) - 1).astype(np.float32)


def _float(pictures: np.ndarray) -> F32:
    return pictures.astype(np.float32)
