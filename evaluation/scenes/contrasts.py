"""Contrasts of a meaning, those easily mistaken for it: the material of hard negatives and of probes.

These functions know no scene. Whoever offers a result as wrong asks the oracle first (`false_captions` does).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from evaluation.scenes.config import Pair
from evaluation.scenes.meaning import (
    INVERSE,
    SPATIAL,
    And,
    Count,
    Enumeration,
    Ground,
    Meaning,
    Not,
    Place,
    Relation,
    What,
    is_false,
)
from evaluation.scenes.palette import TEXTURES, TONES
from evaluation.scenes.phrases import Caption, caption
from evaluation.scenes.scene import Scene

Named = Literal["shape", "colour", "texture"]
_FOUR_PLACES = ("left", "right", "top", "bottom")


def swap_attribute(listing: Enumeration, attribute: Named, first: int = 0, second: int = 1) -> Enumeration:
    """ "a red circle and a blue square" -> "a blue circle and a red square": the same words in another order."""
    whats = list(listing.whats)
    a, b = whats[first], whats[second]
    whats[first] = replace(a, **{attribute: getattr(b, attribute)})
    whats[second] = replace(b, **{attribute: getattr(a, attribute)})
    return Enumeration(tuple(whats))


def swap_roles(relation: Relation) -> Relation:
    """ "A left of B" -> "B left of A": the same words in another order."""
    return Relation(relation.target, relation.name, relation.subject)


def swap_relation_attribute(relation: Relation, attribute: Named) -> Relation:
    """ "a red circle left of a blue square" -> "a blue circle left of a red square"."""
    swapped = swap_attribute(Enumeration((relation.subject, relation.target)), attribute)
    return Relation(swapped.whats[0], relation.name, swapped.whats[1])


def invert(relation: Relation) -> Relation:
    """ "A left of B" -> "A right of B"."""
    return Relation(relation.subject, INVERSE[relation.name], relation.target)


def four_ways(meaning: Relation | Place) -> tuple[Relation | Place, ...]:
    """The same things left, right, above (top) and below (bottom), always in this order: shuffle before asking."""
    if isinstance(meaning, Relation):
        return tuple(Relation(meaning.subject, name, meaning.target) for name in SPATIAL)
    return tuple(Place(meaning.what, where) for where in _FOUR_PLACES)


def replace_attribute(listing: Enumeration, index: int, attribute: Named, value: str) -> Enumeration:
    """One word of one mention replaced."""
    whats = list(listing.whats)
    whats[index] = replace(whats[index], **{attribute: value})
    return Enumeration(tuple(whats))


def replace_what(listing: Enumeration, index: int, what: What) -> Enumeration:
    """One mention replaced by another thing."""
    return Enumeration((*listing.whats[:index], what, *listing.whats[index + 1 :]))


def add(listing: Enumeration, what: What, index: int | None = None) -> Enumeration:
    """One more mention, at the end or before `index`."""
    at = len(listing.whats) if index is None else index
    return Enumeration((*listing.whats[:at], what, *listing.whats[at:]))


def recount(count: Count, numbers: Sequence[int]) -> tuple[Count, ...]:
    return tuple(Count(count.what, number) for number in numbers if number != count.number)


def near_misses(meaning: Meaning, pairs: Sequence[Pair]) -> list[Meaning]:
    """Every contrast of this module that stays within `pairs`, without duplicates and without the meaning itself."""
    match meaning:
        case Enumeration(whats):
            found = [*_listing_misses(meaning), *_replaced(whats, pairs)]
        case Relation():
            found = [m for m in (*four_ways(meaning), swap_roles(meaning), invert(meaning)) if isinstance(m, Relation)]
            found += [swap_relation_attribute(meaning, name) for name in ("colour", "shape")]
        case Place():
            found = list(four_ways(meaning))
        case Count(_, number):
            found = list(recount(meaning, [n for n in (number - 1, number + 1) if 1 <= n <= 10]))
        case Ground(tone):
            found = [Ground(other) for other in TONES if other != tone]
        case Not(part):
            found = [part]
        case And((Enumeration((present,)), Not(Enumeration((missing,))))):
            found = [And((Enumeration((missing,)), Not(Enumeration((present,))))), Enumeration((present, missing))]
        case _:
            found = []
    return [m for m in dict.fromkeys(found) if m != meaning and _named(m) <= set(pairs)]


def false_captions(scene: Scene, meanings: Iterable[Meaning], frame: str | None = None) -> list[Caption]:
    """Those that are plainly false for the scene, as captions."""
    return [caption(meaning, frame) for meaning in meanings if is_false(meaning, scene)]


def _listing_misses(listing: Enumeration) -> list[Enumeration]:
    size = len(listing.whats)
    spots = [(i, j) for i in range(size) for j in range(i + 1, size)]
    return [swap_attribute(listing, name, i, j) for i, j in spots for name in ("colour", "shape", "texture")]


def _replaced(whats: tuple[What, ...], pairs: Sequence[Pair]) -> list[Enumeration]:
    out: list[Enumeration] = []
    for index, what in enumerate(whats):
        for shape, colour in pairs:
            same_shape, same_colour = what.shape in (None, shape), what.colour in (None, colour)
            if same_shape != same_colour:  # exactly one word replaced
                new = replace(what, shape=shape if what.shape else None, colour=colour if what.colour else None)
                out.append(replace_what(Enumeration(whats), index, new))
        if what.texture is not None:
            out += [replace_what(Enumeration(whats), index, replace(what, texture=other)) for other in TEXTURES]
        if what.size is not None:
            other_size = "large" if what.size == "small" else "small"
            out.append(replace_what(Enumeration(whats), index, replace(what, size=other_size)))
    return out


def _named(meaning: Meaning) -> set[Pair]:
    """The (shape, colour) pairs that a caption names."""
    match meaning:
        case Enumeration(whats):
            named = whats
        case Relation(subject, _, target):
            named = (subject, target)
        case Place(what, _) | Count(what, _):
            named = (what,)
        case Not(part):
            return _named(part)
        case And(parts):
            return set().union(*(_named(part) for part in parts))
        case _:
            named = ()
    return {(what.shape, what.colour) for what in named if what.shape and what.colour}
