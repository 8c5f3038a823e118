"""Selection of the items of each probe that are shown as examples, and their captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from evaluation.probes.count import Counting
from evaluation.probes.examples import Candidate, Card, Example, choice, choose, chosen, marked, rounded
from evaluation.probes.few_shot import FewShot
from evaluation.probes.few_shot import ShotExample as Labelled
from evaluation.probes.image_to_image import ImageToImage
from evaluation.probes.localisation import POINTING, LocalisationProbe, best_cells, pointing, truth
from evaluation.probes.mention_bias import MentionBias
from evaluation.probes.multi_label import MultiLabel
from evaluation.probes.quads import Quads
from evaluation.probes.questions import Probe, Quiz
from evaluation.probes.readers import EncoderReader, Reader, said
from evaluation.probes.rows import F64, Mean, ProbeRow
from evaluation.probes.size_bias import SizeBias
from evaluation.probes.spurious import Spurious
from evaluation.scenes.meaning import Enumeration, is_true
from evaluation.scenes.negation import has


def examples(probe: Probe, reader: Reader, rows: Sequence[ProbeRow], *, seed: int) -> tuple[Example, ...]:
    """At most eight items with what the reader chose; rows: what `probe.measure(reader)` gave."""
    match probe:
        case Quiz():
            found = _of_quiz(probe, reader)
        case Counting() | Spurious():
            found = _of_quiz(probe.quiz, reader)
        case Quads():
            found = _of_quads(probe, reader)
        case SizeBias():
            found = _of_sizes(probe, reader)
        case MentionBias():
            found = _of_mentions(probe, reader)
        case MultiLabel():
            found = _of_labels(probe, reader)
        case ImageToImage():
            found = _of_pictures(probe, reader)
        case FewShot():
            found = _of_classes(probe, reader)
        case LocalisationProbe() if isinstance(reader, EncoderReader):
            found = _of_phrases(probe, reader, rows)
        case _:
            found = []
    return choose(found, name=probe.name, seed=seed)


def _of_quiz(quiz: Quiz, reader: Reader) -> list[Candidate]:
    scores = reader.scores([(asked.picture, option) for asked in quiz.questions for option in asked.options])
    ends = np.cumsum([len(asked.options) for asked in quiz.questions])[:-1]
    found: list[Candidate] = []
    for asked, part in zip(quiz.questions, np.split(scores, ends), strict=True):
        options = [Card(text=option.text) for option in asked.options]
        make = partial(choice, asked.row, Card(picture=asked.picture), options, part, (asked.answer,))
        found.append(Candidate(asked.row, marked(chosen(part), (asked.answer,)) == "right", make))
    return found


def _of_quads(probe: Quads, reader: Reader) -> list[Candidate]:
    """Two pictures look for their captions; right if both find theirs, as in the rows called text."""
    asked = [(picture, text) for quad in probe.quads for picture in quad.pictures for text in quad.captions]
    tables = reader.scores(asked).reshape(-1, 2, 2)
    found: list[Candidate] = []
    for quad, table in zip(probe.quads, tables, strict=True):
        picked = tuple(chosen(line) for line in table)
        marks = [marked(line, (at,)) for at, line in enumerate(picked)]
        example = Example(
            row=f"{quad.kind}, text",
            queries=tuple(Card(picture=picture) for picture in quad.pictures),
            options=tuple(Card(text=caption.text) for caption in quad.captions),
            right=((0,), (1,)),
            scores=tuple(rounded(line) for line in table),
            chosen=picked,
            candidates=2,
            mark="wrong" if "wrong" in marks else "tie" if "tie" in marks else "right",
        )
        found.append(Candidate(example.row, example.mark == "right", _given(example)))
    return found


def _of_sizes(probe: SizeBias, reader: Reader) -> list[Candidate]:
    """Of each kind of thing the nearest picture is an option."""
    gallery = reader.image_vectors([picture for picture, _ in probe.gallery])
    similar = reader.image_vectors([query.picture for query in probe.queries]) @ gallery.T
    kinds = list(dict.fromkeys(kind for _, kind in probe.gallery))
    members = [np.array([at for at, (_, of) in enumerate(probe.gallery) if of == kind]) for kind in kinds]
    found: list[Candidate] = []
    for query, line in zip(probe.queries, similar, strict=True):
        names = ("first thing", "second thing") if query.ratio == 1 else ("larger thing", "smaller thing")
        words = dict(zip((query.larger, query.smaller), names, strict=True))
        nearest = [int(own[np.argmax(line[own])]) for own in members]
        options = [
            Card(text=words.get(kind, "another thing"), picture=probe.gallery[at][0])
            for kind, at in zip(kinds, nearest, strict=True)
        ]
        right = [at for at, kind in enumerate(kinds) if kind in words]
        row, scores = f"a thing is found, area x{query.ratio}", line[nearest]
        make = partial(choice, row, Card(picture=query.picture), options, scores, right)
        found.append(Candidate(row, marked(chosen(scores), right) == "right", make))
    return found


def _of_mentions(probe: MentionBias, reader: Reader) -> list[Candidate]:
    gallery = [said(Enumeration((what,))) for what in probe.gallery]
    vectors = reader.text_vectors(gallery)
    similar = reader.text_vectors([query.text for query in probe.queries]) @ vectors.T
    options = [Card(text=text.text) for text in gallery]
    found: list[Candidate] = []
    for query, line in zip(probe.queries, similar, strict=True):
        right = [probe.gallery.index(what) for what in query.whats]
        row = f"{len(query.whats)} things, a mentioned one is found"
        make = partial(choice, row, Card(text=query.text.text), options, line, right)
        found.append(Candidate(row, marked(chosen(line), right) == "right", make))
    return found


def _of_labels(probe: MultiLabel, reader: Reader) -> list[Candidate]:
    """Of each label the pictures that fit it best; right if the very best one holds it."""
    texts = [said(has(label), "there is {a}") for label in probe.labels]
    asked = [(picture, text) for text in texts for picture in probe.pictures]
    scores = reader.scores(asked).reshape(len(texts), -1)
    options = [Card(picture=picture) for picture in probe.pictures]
    found: list[Candidate] = []
    for label, text, line in zip(probe.labels, texts, scores, strict=True):
        right = [at for at, picture in enumerate(probe.pictures) if is_true(has(label), picture.scene)]
        make = partial(choice, "mAP, there is", Card(text=text.text), options, line, right)
        found.append(Candidate("mAP, there is", marked(chosen(line), right) == "right", make))
    return found


def _of_pictures(probe: ImageToImage, reader: Reader) -> list[Candidate]:
    vectors = reader.image_vectors(probe.pictures)
    similar = vectors @ vectors.T
    labels, groups = np.array(probe.labels), np.array(probe.groups)
    found: list[Candidate] = []
    cards = [Card(picture=picture) for picture in probe.pictures]
    for query in range(len(cards)):
        at = np.flatnonzero(groups != groups[query])
        right = [int(index) for index in np.flatnonzero(labels[at] == labels[query])]
        options = [cards[index] for index in at]
        make = partial(choice, "recall at 1", cards[query], options, similar[query][at], right)
        found.append(Candidate("recall at 1", marked(chosen(similar[query][at]), right) == "right", make))
    return found


def _of_classes(probe: FewShot, reader: Reader) -> list[Candidate]:
    """Without shots: the texts of the own half against the picture."""
    vectors = reader.text_vectors(probe.texts)
    count = len(probe.base)
    halves = ((probe.base_tests, 0, count, "base, zero-shot"), (probe.new_tests, count, None, "new, zero-shot"))
    found: list[Candidate] = []
    for tests, start, end, row in halves:
        options = [Card(text=text.text) for text in probe.texts[start:end]]
        lines = reader.image_vectors([test.picture for test in tests]) @ vectors[start:end].T
        found += [_labelled(row, test, options, line) for test, line in zip(tests, lines, strict=True)]
    return found


def _labelled(row: str, test: Labelled, options: list[Card], line: F64) -> Candidate:
    make = partial(choice, row, Card(picture=test.picture), options, line, (test.label,))
    return Candidate(row, marked(chosen(line), (test.label,)) == "right", make)


def _of_phrases(probe: LocalisationProbe, reader: EncoderReader, rows: Sequence[ProbeRow]) -> list[Candidate]:
    """The marks are those of the pointing game; the grid is computed again for the few that are shown."""
    statistic = next(row for row in rows if row.name == POINTING).statistic
    if not isinstance(statistic, Mean):
        raise TypeError(f"{POINTING} is {type(statistic).__name__}, expected a mean over phrases")
    again = EncoderReader(reader.encoder, size_px=reader.size_px)

    def make(index: int) -> Example:
        phrase = probe.phrases[index]
        grid = again.maps([(phrase.picture, phrase.text)], probe.texts)[0]
        outline, _ = truth(phrase, reader.size_px)
        best = len(best_cells(grid))
        return Example(
            row=POINTING,
            queries=(Card(text=phrase.text.text, picture=phrase.picture),),
            options=(),
            right=((),),
            scores=((),),
            chosen=((),),
            candidates=int(grid.size),
            mark="tie" if best > 1 else "right" if pointing(grid, outline) else "wrong",
            grid=tuple(rounded(line) for line in grid),
        )

    marks = zip(range(len(probe.phrases)), statistic.outcomes, strict=True)
    return [Candidate(POINTING, mark == 1, partial(make, index)) for index, mark in marks]


def _given(example: Example) -> Callable[[], Example]:
    return lambda: example
