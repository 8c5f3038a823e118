"""Replaced and added words (SugarCrepe's cells), with every wrong caption right for another picture of the probe."""

from __future__ import annotations

from collections.abc import Iterator

from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool, named
from evaluation.probes.questions import Question, Quiz, question
from evaluation.probes.readers import said
from evaluation.scenes.meaning import Enumeration, Relation, RelationName, What
from evaluation.scenes.scene import Scene

_PARTNER: dict[RelationName, RelationName] = {
    "left of": "above",
    "above": "left of",
    "right of": "below",
    "below": "right of",
}


def build(pool: Pool) -> Quiz:
    """Rows: replace object, shape, colour, relation, and add.

    SugarCrepe's added caption is always the longer one. Here the longer is wrong for the picture without the added
    thing, and right for the one with it, where a shorter caption with a replaced thing is wrong.
    """
    questions = [*_objects(pool), *_attributes(pool), *_relations(pool), *_additions(pool)]
    return Quiz("replace-add", tuple(questions))


def _objects(pool: Pool) -> Iterator[Question]:
    for cluster, square in enumerate(pool.squares):
        for (ratio, _, first, second), scene in square.scenes.items():
            if ratio > 1:
                continue
            a, c = square.firsts[first], square.firsts[1 - first]
            b, d = square.seconds[second], square.seconds[1 - second]
            for right, wrongs in (((a, b), ((c, b), (a, d))), ((b, a), ((b, c), (d, a)))):
                for wrong in wrongs:
                    yield _asked(scene, right, wrong, "replace object", cluster)
    for cluster, group in enumerate(pool.additions, start=len(pool.squares)):
        a, b, _, d = group.whats
        for scene, kept, gone in ((group.two[0], b, d), (group.two[1], d, b)):
            yield _asked(scene, (a, kept), (a, gone), "replace object", cluster)
            yield _asked(scene, (kept, a), (gone, a), "replace object", cluster)


def _attributes(pool: Pool) -> Iterator[Question]:
    """Colours and shapes of the grid go in twos; each is mistaken for its partner, and both are one cluster: who likes
    one of their captions better is right in the one and wrong in the other."""
    shapes, colours = pool.grid
    for groups in pool.class_groups:
        what = groups[0].what
        colour = colours[colours.index(what.colour or "") ^ 1]
        shape = shapes[shapes.index(what.shape or "") ^ 1]
        columns, here = len(colours), (shapes.index(what.shape or ""), colours.index(what.colour or ""))
        of_colour, of_shape = here[0] * columns + here[1] // 2, here[0] // 2 * columns + here[1]
        for scene in (scene for group in groups for scene in group.scenes):
            yield _asked(scene, (what,), (What(shape=what.shape, colour=colour),), "replace colour", of_colour)
            yield _asked(scene, (what,), (What(shape=shape, colour=what.colour),), "replace shape", of_shape)


def _relations(pool: Pool) -> Iterator[Question]:
    for cluster, group in enumerate(pool.compass):
        for scenes in (group.plain, group.swapped):
            for name, scene in scenes.items():
                a, b = (named(thing) for thing in scene.things)
                right, wrong = said(Relation(a, name, b)), said(Relation(a, _PARTNER[name], b))
                yield question(Picture(scene), right, [wrong], row="replace relation", cluster=cluster)


def _additions(pool: Pool) -> Iterator[Question]:
    for cluster, group in enumerate(pool.additions):
        a, b, c, d = group.whats
        for index, (here, gone) in enumerate(((b, d), (d, b))):
            for two, three, other in (
                ((a, here), (a, here, c), (a, gone)),
                ((here, a), (c, here, a), (gone, a)),
            ):
                yield _asked(group.two[index], two, three, "add object", cluster)
                yield _asked(group.three[index], three, other, "add object", cluster)


def _asked(scene: Scene, right: tuple[What, ...], wrong: tuple[What, ...], row: str, cluster: int) -> Question:
    return question(Picture(scene), said(Enumeration(right)), [said(Enumeration(wrong))], row=row, cluster=cluster)
