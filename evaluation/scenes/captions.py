"""Everything that is plainly true about a scene, as captions: the caption graph, one family per function.

Every function returns captions that the oracle calls True for the scene; what the scene does not settle is left out.
`frame` is an index into the family's frames (it wraps), `words` the set of words (see `frames.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations

from evaluation.scenes.frames import Words, frames
from evaluation.scenes.geometry import size_word
from evaluation.scenes.meaning import (
    RELATIONS,
    SPATIAL,
    Count,
    Enumeration,
    Ground,
    Meaning,
    Place,
    Relation,
    RelationName,
    What,
    is_true,
    place_of,
    related,
)
from evaluation.scenes.phrases import Caption, caption, family_of
from evaluation.scenes.scene import Scene, Thing

LONGEST_COUNT = 10


def name_of(thing: Thing, *attributes: str) -> What:
    """Describe a thing by these attributes, by default colour and shape."""
    chosen = attributes or ("colour", "shape")
    return What(
        shape=thing.shape if "shape" in chosen else None,
        colour=thing.colour if "colour" in chosen else None,
        texture=thing.texture if "texture" in chosen else None,
        size=size_word(thing) if "size" in chosen else None,
    )


def attributes(scene: Scene, *, frame: int = 0, words: Words = "train") -> list[Caption]:
    """ "a red circle", "a circle", "a red shape", "a striped red circle", "a large red circle"."""
    meanings: list[Meaning] = []
    for thing in scene.things:
        ways = [("colour", "shape"), ("shape",), ("colour",), ("texture", "shape"), ("texture", "colour", "shape")]
        if size_word(thing) is not None:
            ways.append(("size", "colour", "shape"))
        meanings += [Enumeration((name_of(thing, *way),)) for way in ways]
    return _said(scene, meanings, frame, words)


def mention(scene: Scene, order: Sequence[int] | None = None, *, frame: int = 0, words: Words = "train") -> Caption:
    """All things (or those of `order`), in this order of mention: "a red circle and a blue square".

    Raises:
        ValueError: a thing mentioned twice.
    """
    order = range(len(scene.things)) if order is None else order
    if len(set(order)) != len(order):
        raise ValueError(f"each thing is mentioned once, got order {list(order)}")
    choices = frames("affirmative", words)
    return caption(Enumeration(tuple(name_of(scene.things[index]) for index in order)), choices[frame % len(choices)])


def mentions(scene: Scene, *, frame: int = 0, words: Words = "train") -> list[Caption]:
    """`mention` in every order; at most 4 things, which is 24 orders."""
    if len(scene.things) > 4:
        raise ValueError(f"{len(scene.things)} things have too many orders of mention to list")
    orders = permutations(range(len(scene.things)))
    return [mention(scene, order, frame=frame, words=words) for order in orders]


def places(scene: Scene, *, frame: int = 0) -> list[Caption]:
    """ "a red circle on the left", for every thing with a plain place."""
    meanings: list[Meaning] = []
    for thing in scene.things:
        where = place_of(thing)
        if where is not None:
            meanings.append(Place(name_of(thing), where))
    return _said(scene, meanings, frame)


def relations(scene: Scene, names: Iterable[RelationName] = SPATIAL, *, frame: int = 0) -> list[Caption]:
    """ "a red circle left of a blue square", for ordered pairs of things with different names."""
    meanings: list[Meaning] = []
    wanted: list[RelationName] = [name for name in RELATIONS if name in set(names)]
    for a, b in permutations(range(len(scene.things)), 2):
        subject, target = name_of(scene.things[a]), name_of(scene.things[b])
        if subject != target:
            meanings += [Relation(subject, name, target) for name in wanted if related(scene, a, name, b)]
    return _said(scene, meanings, frame)


def counts(scene: Scene, *, frame: int = 0) -> list[Caption]:
    """ "three shapes", "two circles", "two red shapes", "one red circle"."""
    whats = [What()]
    for thing in scene.things:
        whats += [name_of(thing, "shape"), name_of(thing, "colour"), name_of(thing)]
    meanings: list[Meaning] = []
    for what in whats:
        number = sum(
            (what.shape in (None, thing.shape)) and (what.colour in (None, thing.colour)) for thing in scene.things
        )
        if number <= LONGEST_COUNT:
            meanings.append(Count(what, number))
    return _said(scene, meanings, frame)


def grounds(scene: Scene, *, frame: int = 0) -> list[Caption]:
    """ "a dark background"."""
    return _said(scene, [Ground(scene.background.tone)], frame)


def _said(scene: Scene, meanings: Iterable[Meaning], frame: int, words: Words = "train") -> list[Caption]:
    """Each different meaning once, if it is plainly true."""
    out: list[Caption] = []
    for meaning in dict.fromkeys(meanings):
        family = family_of(meaning)
        if family is not None and is_true(meaning, scene):
            choices = frames(family, words)
            out.append(caption(meaning, choices[frame % len(choices)]))
    return out
