"""Encodes what a sentence affirms and denies as numbers, for methods that may know what drawn captions mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.scenes.config import Pair
from evaluation.scenes.meaning import And, Enumeration, Meaning, Not, What

_KINDS = 3


@dataclass(frozen=True)
class MeaningCode:
    """One number for each thing that may be affirmed, one for each that may be denied, and the kind of sentence.

    A thing is a (shape, colour) pair, a shape alone or a colour alone. Kinds: only affirmed, only denied, both.
    """

    pairs: tuple[Pair, ...]

    @property
    def things(self) -> tuple[tuple[str | None, str | None], ...]:
        shapes, colours = (tuple(dict.fromkeys(pair[at] for pair in self.pairs)) for at in (0, 1))
        return (*self.pairs, *((shape, None) for shape in shapes), *((None, colour) for colour in colours))

    @property
    def size(self) -> int:
        return 2 * len(self.things) + _KINDS

    def of(self, meanings: Sequence[Meaning | None]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """float32 [n, size], and bool [n]: which of them this code can say; the rows of others are zero."""
        where = {thing: at for at, thing in enumerate(self.things)}
        codes, known = np.zeros((len(meanings), self.size), dtype=np.float32), np.zeros(len(meanings), dtype=np.bool_)
        for row, meaning in enumerate(meanings):
            said = None if meaning is None else affirmed_and_denied(meaning)
            if said is None or any(
                not _plain(what) or (what.shape, what.colour) not in where for what in sum(said, ())
            ):
                continue
            affirmed, denied = said
            codes[row, [where[what.shape, what.colour] for what in affirmed]] = 1
            codes[row, [len(where) + where[what.shape, what.colour] for what in denied]] = 1
            codes[row, 2 * len(where) + (0 if not denied else 2 if affirmed else 1)] = 1
            known[row] = True
        return codes, known


def affirmed_and_denied(meaning: Meaning) -> tuple[tuple[What, ...], tuple[What, ...]] | None:
    """The things that a sentence says are there, and those it says are not; None: it says more than that."""
    match meaning:
        case Enumeration(whats):
            return whats, ()
        case Not(Enumeration((what,))):
            return (), (what,)
        case And(parts):
            found = [affirmed_and_denied(part) for part in parts]
            if any(each is None for each in found):
                return None
            said = [each for each in found if each is not None]
            return tuple(w for one, _ in said for w in one), tuple(w for _, one in said for w in one)
        case _:
            return None


def _plain(what: What) -> bool:
    return what == What(shape=what.shape, colour=what.colour)
