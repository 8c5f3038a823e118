"""Relations: which of two things is left of, right of, above or below the other (What'sUp, VG-Relation)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool, named
from evaluation.probes.questions import Question, Quiz, question
from evaluation.probes.readers import said
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.scenes.contrasts import four_ways, invert, swap_roles
from evaluation.scenes.meaning import INVERSE, OPPOSITES, Relation, RelationName, What

FOUR = "four relations"


def build(pool: Pool) -> Quiz:
    """Every layout of a compass group, told from either thing.

    Rows: exchanged things (2 options, same words), opposite relation (2), four relations (4); then the share of
    opposite layouts that are both right ("pair") and of whole groups of four ("set"), as in What'sUp.
    """
    questions: list[Question] = []
    for cluster, group in enumerate(pool.compass):
        for scenes in (group.plain, group.swapped):
            for name, scene in scenes.items():
                a, b = (named(thing) for thing in scene.things)
                for right in (Relation(a, name, b), Relation(b, INVERSE[name], a)):
                    picture, text = Picture(scene), said(right)
                    others = [said(other) for other in four_ways(right) if other != right]
                    asked = (
                        ("things exchanged", [said(swap_roles(right))]),
                        ("opposite relation", [said(invert(right))]),
                        (FOUR, others),
                    )
                    questions += [question(picture, text, wrong, row=row, cluster=cluster) for row, wrong in asked]
    return Quiz("relation", tuple(questions), more=_pairs_and_sets)


def _pairs_and_sets(questions: Sequence[Question], outcomes: F64) -> list[ProbeRow]:
    """A pair (set) counts when the same sentence about the same things is right in both (all four) layouts."""
    found: dict[tuple[int, What, What], dict[RelationName, float]] = defaultdict(dict)
    for asked, outcome in zip(questions, outcomes, strict=True):
        meaning = asked.options[asked.answer].meaning
        if asked.row == FOUR and isinstance(meaning, Relation):
            found[asked.cluster, meaning.subject, meaning.target][meaning.name] = outcome
    pairs = [(key[0], np.prod([group[name] for name in pair])) for key, group in found.items() for pair in OPPOSITES]
    sets = [(key[0], np.prod(list(group.values()))) for key, group in found.items()]
    return [
        mean_row(name, [float(value) for _, value in kept], [cluster for cluster, _ in kept], chance=chance)
        for name, kept, chance in (("four relations, pair", pairs, 4**-2), ("four relations, set", sets, 4**-4))
    ]
