"""Randomness that is the same in every process, on every platform and in any order of calls for different keys."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")
_STEPS = 1024


class Dice:
    """A stream of choices named by a key of numbers and words.

    Only `random.Random.random` is used: it is the one method whose sequence Python promises to keep, and it is
    quick. Equal keys give equal streams; different keys give unrelated ones.
    """

    def __init__(self, *key: int | str) -> None:
        digest = blake2b(repr(key).encode(), digest_size=16).digest()
        self._draw = random.Random(int.from_bytes(digest, "big")).random

    def uniform(self, low: float, high: float) -> float:
        """A multiple of 1/1024 between `low` and `high`: exact in JSON and in every float type."""
        return round((low + (high - low) * self._draw()) * _STEPS) / _STEPS

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self._draw() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        if not options:
            raise ValueError("nothing to pick from")
        return options[int(self._draw() * len(options))]

    def chance(self, share: float) -> bool:
        return self._draw() < share

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """A new list in random order, every order equally likely."""
        out = list(options)
        for last in range(len(out) - 1, 0, -1):
            other = int(self._draw() * (last + 1))
            out[last], out[other] = out[other], out[last]
        return out

    def fractions(self, count: int) -> list[float]:
        """`count` numbers in [0, 1)."""
        return [self._draw() for _ in range(count)]
