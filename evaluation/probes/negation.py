"""Negation: four options of three kinds (NegBench), and "there is a ..." against "there is no ..."."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool
from evaluation.probes.questions import Question, Quiz, question
from evaluation.probes.readers import Sentence, said
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.scenes.frames import WORDS, Words
from evaluation.scenes.negation import KINDS, Absence, Kind, has, has_no, negation_question

YES_NO = "is or is no"
_LAYOUTS: tuple[tuple[str, Absence], ...] = (("left of", "near"), ("above", "far"))


@dataclass(frozen=True, slots=True)
class _Tag:
    """What one question belongs to; None for the questions of two options."""

    kind: Kind | None
    words: Words
    absence: Absence
    negated_is_right: bool


def build(pool: Pool) -> Quiz:
    """Rows: four options by the kind of the right one, by the words of the sentences, by both, and by the absent thing
    (`near`: it shares its shape or its colour with a present one); then the two options, of which the negated one is
    right in half the items, and that half alone."""
    asked = [*_multiple_choice(pool), *_present_or_absent(pool)]
    return Quiz(
        "negation", tuple(each for each, _ in asked), more=partial(_breakdown, tags=tuple(tag for _, tag in asked))
    )


def _multiple_choice(pool: Pool) -> list[tuple[Question, _Tag]]:
    out: list[tuple[Question, _Tag]] = []
    for cluster, group in enumerate(pool.compass):
        for colouring, scenes in enumerate((group.plain, group.swapped)):
            for layout, absence in _LAYOUTS:
                scene = next(scene for name, scene in scenes.items() if name == layout)
                for turn, kind in enumerate(KINDS):
                    words = WORDS[(cluster + colouring + turn) % len(WORDS)]
                    made = negation_question(
                        scene, 2 * cluster + colouring, pairs=pool.pairs, kind=kind, how=absence, words=words
                    )
                    options = tuple(Sentence(option.text, option.meaning) for option in made.options)
                    row = f"four options, {kind}"
                    each = Question(Picture(scene), options, made.answer, row, cluster)
                    out.append((each, _Tag(kind, words, absence, kind != "affirmative")))
    return out


def _present_or_absent(pool: Pool) -> list[tuple[Question, _Tag]]:
    """Both sentences about a class, for a picture of it and for a picture of another class.

    The other class shares the shape (odd groups) or nothing (even groups).
    """
    out: list[tuple[Question, _Tag]] = []
    count, side = len(pool.classes), len(pool.grid[1])
    for index, what in enumerate(pool.classes):
        yes, no = said(has(what), "there is {a}"), said(has_no(what), "there is no {no}")
        row, column = divmod(index, side)
        near, far = row * side + (column + 1) % side, ((row + 1) * side + (column + 1) % side) % count
        for at, group in enumerate(pool.class_groups[index]):
            other = near if at % 2 else far
            absence: Absence = "near" if at % 2 else "far"
            for present, absent in zip(group.scenes, pool.class_groups[other][at].scenes, strict=True):
                for scene, right, wrong in ((present, yes, no), (absent, no, yes)):
                    each = question(Picture(scene), right, [wrong], row=YES_NO, cluster=index)
                    out.append((each, _Tag(None, "train", absence, right is no)))
    return out


def _breakdown(questions: Sequence[Question], outcomes: F64, *, tags: Sequence[_Tag]) -> list[ProbeRow]:
    def row(name: str, at: list[int], chance: float) -> ProbeRow:
        return mean_row(name, outcomes[at], [questions[index].cluster for index in at], chance=chance)

    four = [index for index, tag in enumerate(tags) if tag.kind is not None]
    two = [index for index, tag in enumerate(tags) if tag.kind is None]
    rows = [row(f"four options, {words} words", [i for i in four if tags[i].words == words], 1 / 4) for words in WORDS]
    rows += [
        row(
            f"four options, {kind}, {words} words",
            [i for i in four if (tags[i].kind, tags[i].words) == (kind, words)],
            1 / 4,
        )
        for kind in KINDS
        for words in WORDS
    ]
    rows += [
        row(f"four options, {absence} thing absent", [i for i in four if tags[i].absence == absence], 1 / 4)
        for absence in ("near", "far")
    ]
    return [*rows, row(f"{YES_NO}, absent half", [i for i in two if tags[i].negated_is_right], 1 / 2)]
