"""The oracle for many scenes at once: the answers of `meaning.judge`, as arrays.

A batch of training asks it of every picture and every caption; nearly all of those name a thing that is not there,
which one comparison of numbers settles. The rest is left to `judge` itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from evaluation.scenes.meaning import And, Count, Enumeration, Meaning, Not, Place, Relation, What, judge
from evaluation.scenes.palette import COLOURS, SHAPES
from evaluation.scenes.scene import Scene

Truths = NDArray[np.int8]
TRUE, UNSETTLED, FALSE = 1, 0, -1
_NOTHING = -1
_SHAPES: Mapping[str, int] = MappingProxyType({name: number for number, name in enumerate(SHAPES)})
_COLOURS: Mapping[str, int] = MappingProxyType({name: number for number, name in enumerate(COLOURS)})


class Scenes:
    """Scenes with the shapes and colours of their things as numbers."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self._scenes = tuple(scenes)
        most = max((len(scene.things) for scene in scenes), default=0)
        self._shapes = np.full((len(scenes), most), _NOTHING)
        self._colours = np.full((len(scenes), most), _NOTHING)
        for row, scene in enumerate(scenes):
            for column, thing in enumerate(scene.things):
                self._shapes[row, column] = _SHAPES[thing.shape]
                self._colours[row, column] = _COLOURS[thing.colour]

    def judge(self, meaning: Meaning) -> Truths:
        """int8 [n]: 1 plainly true, -1 plainly false, 0 where a scene does not settle it (Kleene's logic)."""
        match meaning:
            case Enumeration(whats) if all(_plain(what) for what in whats):
                present = np.all([self._count(what) > 0 for what in whats], axis=0)
                return _truths(present) if len(whats) == 1 else self._one_by_one(meaning, present)
            case Count(what, number) if _plain(what):
                return _truths(self._count(what) == number)
            case Place(what, _) if _plain(what):
                return self._one_by_one(meaning, self._count(what) > 0)
            case Relation(subject, _, target) if _plain(subject) and _plain(target):
                return self._one_by_one(meaning, (self._count(subject) > 0) & (self._count(target) > 0))
            case Not(part):
                return -self.judge(part)
            case And(parts):
                return np.min([self.judge(part) for part in parts], axis=0)
            case _:
                return self._one_by_one(meaning, np.ones(len(self._scenes), dtype=np.bool_))

    def _count(self, what: What) -> NDArray[np.int64]:
        """How many things of each scene fit a description of shape and colour."""
        fits = self._shapes != _NOTHING
        if what.shape is not None:
            fits = fits & (self._shapes == _SHAPES[what.shape])
        if what.colour is not None:
            fits = fits & (self._colours == _COLOURS[what.colour])
        return fits.sum(axis=1)

    def _one_by_one(self, meaning: Meaning, possible: NDArray[np.bool_]) -> Truths:
        """`judge` where it is possible at all, false elsewhere."""
        out = np.full(len(self._scenes), FALSE, dtype=np.int8)
        for row in np.flatnonzero(possible):
            truth = judge(meaning, self._scenes[row])
            out[row] = UNSETTLED if truth is None else TRUE if truth else FALSE
        return out


def _plain(what: What) -> bool:
    """Shape and colour only."""
    return what.texture is None and what.size is None and what.but_not is None


def _truths(values: NDArray[np.bool_]) -> Truths:
    return np.where(values, TRUE, FALSE).astype(np.int8)
