"""Examples of a model's choices in single items, as plain data that is kept beside a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evaluation.metrics import TIE
from evaluation.probes.pictures import Picture
from evaluation.probes.rows import F64
from evaluation.scenes.dice import Dice
from evaluation.scenes.scene import scene_from_json

Mark = Literal["right", "wrong", "tie"]
MOST_EXAMPLES = 8
_MOST_OPTIONS = 5
_DIGITS = 7  # finer than what counts as a tie


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A text, a picture, or a picture with a text beside it. A picture is kept as the scene that it is drawn from."""

    text: str | None = None
    picture: Picture | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One item: its queries, and for each query the right options, the score of every option, and the chosen ones.

    row: the row that the item counts in. right, scores, chosen: one entry for each query. Several options are chosen
    where they tie for best. candidates: how many options there were; `options` keeps the best of them and a right one.
    grid: for a localisation the cosine of each cell, row by row.
    """

    row: str
    queries: tuple[Card, ...]
    options: tuple[Card, ...]
    right: tuple[tuple[int, ...], ...]
    scores: tuple[tuple[float, ...], ...]
    chosen: tuple[tuple[int, ...], ...]
    candidates: int
    mark: Mark
    grid: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item that may be shown; `make` builds it once it is drawn."""

    row: str
    right: bool
    make: Callable[[], Example]


def choose(candidates: Sequence[Candidate], *, name: str, seed: int) -> tuple[Example, ...]:
    """Half right and half wrong ones as far as there are any, drawn by the seed, from as many rows as possible.

    They show what happens, not how often: the shares are in the rows.
    """
    halves = [
        _drawn([each for each in candidates if each.right == right], Dice("examples", name, seed, right))
        for right in (True, False)
    ]
    order = [half[at] for at in range(MOST_EXAMPLES // 2) for half in halves if at < len(half)]
    return tuple(each.make() for each in order)


def _drawn(candidates: list[Candidate], dice: Dice) -> list[Candidate]:
    """The first ones of each row in turn, in a random order."""
    seen: Counter[str] = Counter()
    turns: list[tuple[int, int]] = []
    shuffled = dice.shuffled(candidates)
    for at, each in enumerate(shuffled):
        turns.append((seen[each.row], at))
        seen[each.row] += 1
    return [shuffled[at] for _, at in sorted(turns)[: MOST_EXAMPLES // 2]]


def chosen(scores: F64) -> tuple[int, ...]:
    """Indexes of the best score and of those that tie with it."""
    return tuple(int(index) for index in np.flatnonzero(scores >= scores.max() - TIE))


def marked(picked: tuple[int, ...], right: Sequence[int]) -> Mark:
    """A best option that is right beside one that is wrong is a tie, and so is a tie of wrong ones."""
    if set(picked) <= set(right):
        return "right"
    return "wrong" if len(picked) == 1 else "tie"


def choice(row: str, query: Card, options: Sequence[Card], scores: F64, right: Sequence[int]) -> Example:
    """An item with one query; of many options the best right one and the best others are kept, in their order."""
    ranked = [int(index) for index in np.argsort(-scores, kind="stable")]
    best_right = next(index for index in ranked if index in set(right))
    kept = sorted([best_right, *(index for index in ranked if index != best_right)][:_MOST_OPTIONS])
    places = {index: at for at, index in enumerate(kept)}
    picked = chosen(scores)
    return Example(
        row=row,
        queries=(query,),
        options=tuple(options[index] for index in kept),
        right=(tuple(places[index] for index in right if index in places),),
        scores=(rounded(scores[kept]),),
        chosen=(tuple(places[index] for index in picked if index in places),),
        candidates=len(options),
        mark=marked(picked, right),
    )


def rounded(scores: F64) -> tuple[float, ...]:
    return tuple(round(float(score), _DIGITS) for score in scores)


def example_from_json(data: Mapping[str, Any]) -> Example:
    """The inverse of `asdict`, also after a trip through a file.

    Raises:
        KeyError, TypeError, ValueError: not an example.
    """
    fields = dict(data)
    for name in ("right", "scores", "chosen", "grid"):
        fields[name] = tuple(tuple(part) for part in fields[name])
    for name in ("queries", "options"):
        fields[name] = tuple(_card(card) for card in fields[name])
    return Example(**fields)


def _card(data: Mapping[str, Any]) -> Card:
    drawn = data["picture"]
    picture = None if drawn is None else Picture(scene_from_json(drawn["scene"]), drawn["corruption"])
    return Card(text=data["text"], picture=picture)
