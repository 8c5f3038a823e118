"""Sentences without end, for a text tower to learn what its teacher says of them: true ones, and changed ones.

A teacher answers for any sentence, so a student needs no true ones: what counts is that every word of the vocabulary
occurs, and in the places where words of a caption stand.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

TEMPLATES = (
    "{}",
    "a {}",
    "the {}",
    "a photo of a {}",
    "a photo of a {}.",
    "a picture of {}",
    "two {}s",
    "a person with a {}",
)
_AS_IT_IS, _CHANGED, _JOINED, _NAMED = 0.2, 0.4, 0.15, 0.15  # the rest are words in a row
_CHANGED_WORDS = 0.3
_LONGEST_NAME, _LONGEST_ROW = 3, 8
_LEAST_LETTERS = 3


@dataclass(frozen=True)
class Sentences:
    """corpora: sentences of each kind, drawn equally often. words: the most frequent first."""

    corpora: Sequence[Sequence[str]]
    words: Sequence[str]

    def draw(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < _AS_IT_IS:
            return self._true(rng)
        if kind < _AS_IT_IS + _CHANGED:
            return " ".join(self._word(rng) if rng.random() < _CHANGED_WORDS else w for w in self._true(rng).split())
        if kind < _AS_IT_IS + _CHANGED + _JOINED:
            first, second = (self._true(rng).split() for _ in range(2))
            return " ".join(first[: rng.randint(1, len(first))] + second[rng.randrange(len(second)) :])
        if kind < _AS_IT_IS + _CHANGED + _JOINED + _NAMED:
            return rng.choice(TEMPLATES).format(self._row(rng, _LONGEST_NAME))
        return self._row(rng, _LONGEST_ROW)

    def _true(self, rng: random.Random) -> str:
        return rng.choice(rng.choice(self.corpora))

    def _row(self, rng: random.Random, longest: int) -> str:
        return " ".join(self._word(rng) for _ in range(rng.randint(1, longest)))

    def _word(self, rng: random.Random) -> str:
        """By Zipf's law."""
        return self.words[int(math.exp(rng.random() * math.log(len(self.words) + 1))) - 1]


def whole_words(vocabulary: dict[str, int]) -> tuple[str, ...]:
    """Words of ASCII letters in the order of their ids, which in WordPiece vocabularies is that of their frequency."""
    found = [token for token in vocabulary if token.isascii() and token.isalpha() and len(token) >= _LEAST_LETTERS]
    return tuple(sorted(found, key=vocabulary.__getitem__))
