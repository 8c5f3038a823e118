"""Pictures among the parts of a composed query, for benchmarks/composed.py: "not like this one", "this, but red"."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.composed_data import ComposedEncoder, Gallery, QuestionSet, WordPair, questions
from benchmarks.composed_formulas import KIN, WEIGHTS
from benchmarks.composed_judge import FormulaOutcomes, difference, interval, outcomes

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Parts:
    """Unit vectors [Q, D] of the two parts, and what each is compared with, [Q, D]: other texts, other pictures.

    sign: of the second part. counterpart [Q, D]: of the second part the text that is true of the picture now, or None.
    """

    asked: QuestionSet
    first: F64
    second: F64
    sign: float
    texts: F64
    pictures: F64
    kin: F64
    counterpart: F64 | None = None

    @property
    def spreads(self) -> F64:
        """[Q, 1]: the standard deviation of the first part's cosines with the pictures over that of the second's."""
        first, second = ((each @ self.asked.gallery.unit.T).std(axis=1) for each in (self.first, self.second))
        return (first / second)[:, None]


Rule = Callable[[Parts, float], F64]
RULES: Mapping[str, Rule] = {
    "first part alone": lambda a, w: a.first,
    "plain": lambda a, w: a.first + a.sign * w * a.second,
    "standardized": lambda a, w: a.first + a.sign * w * a.spreads * a.second,
    "neutral texts": lambda a, w: a.first + a.sign * w * (a.second - a.texts),
    "mean picture": lambda a, w: a.first + a.sign * w * (a.second - a.pictures),
    "kin": lambda a, w: a.first + a.sign * w * (a.second - a.kin),
    "what it is now": lambda a, w: (
        a.first + a.sign * w * (a.second - (a.texts if a.counterpart is None else a.counterpart))
    ),
}


def parts(gallery: Gallery, encoder: ComposedEncoder, neutral: F64) -> list[Parts]:
    """Three sets: text - picture of the unwanted colour, picture - its colour, picture of one colour + another."""
    vectors = gallery.unit
    articles = sorted({article for article, _ in gallery.kinds})
    colours = sorted(set(gallery.labels) - set(articles))
    pairs = questions(gallery, articles, colours)
    shown = [_one(each.harmful, f"{each.wanted}|{each.unwanted}") for each in pairs]
    apart = [_without(each, at) for each, at in zip(pairs, shown, strict=True)]
    article, colour = (encoder.texts([getattr(each, name) for each in pairs]) for name in ("wanted", "unwanted"))
    pictures = vectors[shown]
    turned: dict[int, WordPair] = {}
    for index, each in enumerate(apart):
        others = [
            other
            for other in pairs
            if other.wanted == each.wanted
            and other.unwanted != each.unwanted
            and not (other.harmful & each.ignored).any()
        ]
        if others:  # one other colour for each picture
            turned[index] = _turned(each, others[_number(f"{each.wanted}|{each.unwanted}") % len(others)])
    rows = sorted(turned)
    colour_of = {each.unwanted: row for each, row in zip(pairs, colour, strict=True)}
    asked = QuestionSet("picture + another colour", gallery, tuple(turned[index] for index in rows))
    given = (
        (QuestionSet("shirt - picture of a blue one", gallery, tuple(apart)), article, pictures, -1.0, None),
        (QuestionSet("picture - its colour", gallery, tuple(apart)), pictures, colour, -1.0, None),
        (asked, pictures[rows], np.stack([colour_of[turned[i].unwanted] for i in rows]), 1.0, colour[rows]),
    )
    return [
        Parts(
            questions_,
            a,
            b,
            sign,
            np.tile(neutral, (len(a), 1)),
            np.tile(vectors.mean(axis=0), (len(a), 1)),
            _kin(a, vectors),
            now,
        )
        for questions_, a, b, sign, now in given
    ]


def judged(validation: Sequence[Parts], heldout: Sequence[Parts]) -> dict[str, Any]:
    """Set -> rule -> weight from validation, and numbers on held-out pictures with it and with weight 1."""
    found: dict[str, Any] = {}
    for seen, held in zip(validation, heldout, strict=True):
        groups = [each.wanted for each in held.asked.questions]
        entry: dict[str, Any] = {"questions": len(groups), "rules": {}}
        base: FormulaOutcomes | None = None
        for name in sorted(RULES, key=lambda each: each != "plain"):
            rule = RULES[name]
            weight = max(WEIGHTS, key=lambda w: float(_ranked(seen, rule(seen, w)).ap.mean()))
            result, one = _ranked(held, rule(held, weight)), _ranked(held, rule(held, 1.0))
            base = base or result
            entry["rules"][name] = {
                "weight": weight,
                "mAP": {"value": float(result.ap.mean()), "interval": interval(result.ap, groups)},
                "to_plain": difference(result.ap, base.ap, groups),
                "P@10": float(result.right.mean()),
                "harmful@10": float(result.harmful.mean()),
                "mAP at 1": float(one.ap.mean()),
            }
        found[held.asked.name] = entry
    return found


def _ranked(given: Parts, queries: F64) -> FormulaOutcomes:
    return outcomes(queries @ given.asked.gallery.unit.T, given.asked)


def _kin(first: F64, vectors: F64) -> F64:
    near = np.argsort(-(first @ vectors.T), axis=1)[:, :KIN]
    kin = vectors[near].mean(axis=1)
    return kin / np.linalg.norm(kin, axis=1, keepdims=True)


def _number(key: str) -> int:
    return hashlib.sha256(key.encode()).digest()[0]


def _one(chosen: NDArray[np.bool_], key: str) -> int:
    places = np.flatnonzero(chosen)
    return int(places[_number(key) % len(places)])


def _turned(each: WordPair, other: WordPair) -> WordPair:
    """The article of both in the colour of `other`; in that of `each` it is harmful."""
    ignored = each.ignored | other.ignored
    return WordPair(each.wanted, other.unwanted, other.negative, other.harmful, each.harmful & ~ignored, ignored)


def _without(each: WordPair, at: int) -> WordPair:
    """The same, the picture that is part of the query being no answer."""
    harmful, ignored = each.harmful.copy(), each.ignored.copy()
    harmful[at], ignored[at] = False, True
    return WordPair(each.wanted, each.unwanted, each.negative, each.relevant, harmful, ignored)
