"""Attribute binding: "a red circle and a blue square", or the other way round? Both captions hold the same words."""

from __future__ import annotations

from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool, named
from evaluation.probes.questions import Question, Quiz, question
from evaluation.probes.readers import said
from evaluation.scenes.contrasts import swap_attribute
from evaluation.scenes.meaning import Enumeration


def build(pool: Pool) -> Quiz:
    """Every scene of a compass group in both orders of mention; the scene with exchanged colours asks the reverse."""
    questions: list[Question] = []
    for cluster, group in enumerate(pool.compass):
        for scene in group.scenes:
            a, b = (named(thing) for thing in scene.things)
            for right in (Enumeration((a, b)), Enumeration((b, a))):
                wrong = swap_attribute(right, "colour")
                questions.append(
                    question(Picture(scene), said(right), [said(wrong)], row="colours swapped", cluster=cluster)
                )
    return Quiz("binding", tuple(questions))
