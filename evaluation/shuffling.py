"""The order in which pictures and texts are sent to an encoder: shuffled, and the same on every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def shuffled(items: Sequence[Item], seed: tuple[int, ...]) -> list[Item]:
    """All of them in an order drawn by the seed; two lists that belong together need two seeds."""
    return [items[at] for at in np.random.default_rng(seed).permutation(len(items))]
