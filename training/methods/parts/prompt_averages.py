"""A Gaussian-weighted average of what is trained, over equal parts of a run (Khattak et al., 2023, section 3.2).

It is kept as it stands after each part, and the step alone says how far it has come: a resumed run goes on with it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def gaussian_shares(epochs: int, *, mean: float, deviation: float) -> NDArray[np.float64]:
    """What each of `epochs` parts weighs in the average, [epochs], in sum 1; mean, deviation: as shares of the run."""
    places = np.arange(1, epochs + 1)
    powers = -(((places - mean * epochs) / (deviation * max(epochs, 1))) ** 2) / 2
    weights = np.exp(powers - powers.max(initial=-np.inf))
    return weights / weights.sum() if epochs else weights


def moved_share(shares: NDArray[np.float64], step: int, progress: float) -> float | None:
    """How far the average goes towards what is trained after the 0-based `step`; None: no part ends with it.

    progress: share of the steps done by now, (0, 1]. Several parts that end with one step are taken together.
    """
    done = step + 1
    steps, epochs = round(done / progress), len(shares)
    before, now = step * epochs // steps, done * epochs // steps
    if now == before:
        return None
    total = shares[:now].sum()
    return float(shares[before:now].sum() / total) if total > 0 else 1.0


def follow(average: nn.Module, live: nn.Module, share: float) -> None:
    """Move every parameter of `average` towards that of `live`."""
    with torch.no_grad():
        for kept, moving in zip(average.parameters(), live.parameters(), strict=True):
            kept.lerp_(moving, share)
