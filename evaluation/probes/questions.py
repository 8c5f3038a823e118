"""Questions with one right answer, and how an answer is marked: a tie is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from evaluation.metrics import TIE
from evaluation.probes.pictures import Picture
from evaluation.probes.readers import Reader, Sentence
from evaluation.probes.rows import F64, ProbeRow, mean_row

Reads = Literal["both", "images", "texts", "dense"]


class Probe(Protocol):
    """`reads`: what it needs. Only "both" can be asked blind; "dense" has no control but the grid's bound.

    The names and the order of its rows do not depend on the reader.
    """

    @property
    def name(self) -> str: ...
    @property
    def reads(self) -> Reads: ...
    @property
    def pictures(self) -> Sequence[Picture]: ...
    @property
    def texts(self) -> Sequence[Sentence]: ...
    def measure(self, reader: Reader) -> list[ProbeRow]: ...


@dataclass(frozen=True, slots=True)
class Question:
    """One picture, several texts, of which `answer` is the right one. `cluster` is the group of scenes it came from."""

    picture: Picture
    options: tuple[Sentence, ...]
    answer: int
    row: str
    cluster: int


def question(picture: Picture, right: Sentence, wrong: Sequence[Sentence], *, row: str, cluster: int) -> Question:
    """The right one first; `Quiz` spreads the answers over the slots."""
    return Question(picture, (right, *wrong), 0, row, cluster)


@dataclass(frozen=True)
class Quiz:
    """A probe made of questions. `more` adds rows that look at several outcomes together (float64 [questions]).

    Raises:
        ValueError: two options of a question are one text.
    """

    name: str
    questions: tuple[Question, ...]
    more: Callable[[Sequence[Question], F64], list[ProbeRow]] | None = None
    reads: Reads = "both"

    def __post_init__(self) -> None:
        for asked in self.questions:
            if len({option.text for option in asked.options}) != len(asked.options):
                raise ValueError(f"{self.name}: two options are one text: {[o.text for o in asked.options]}")
        object.__setattr__(self, "questions", spread(self.questions))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(dict.fromkeys(asked.picture for asked in self.questions))

    @property
    def texts(self) -> tuple[Sentence, ...]:
        return tuple(dict.fromkeys(option for asked in self.questions for option in asked.options))

    def outcomes(self, reader: Reader) -> F64:
        """Credit for each question, float64 in 0..1."""
        scores = reader.scores([(asked.picture, option) for asked in self.questions for option in asked.options])
        sizes = [len(asked.options) for asked in self.questions]
        parts = np.split(scores, np.cumsum(sizes)[:-1])
        answers = [asked.answer for asked in self.questions]
        return np.array(
            [credit(part, at, ties_wrong=reader.ties_wrong) for part, at in zip(parts, answers, strict=True)]
        )

    def measure(self, reader: Reader) -> list[ProbeRow]:
        outcomes = self.outcomes(reader)
        names = list(dict.fromkeys(asked.row for asked in self.questions))
        rows: list[ProbeRow] = []
        for name in names:
            at = [index for index, asked in enumerate(self.questions) if asked.row == name]
            clusters = [self.questions[index].cluster for index in at]
            rows.append(mean_row(name, outcomes[at], clusters, chance=1 / len(self.questions[at[0]].options)))
        return rows + (self.more(self.questions, outcomes) if self.more else [])


def credit(scores: F64, answer: int, *, ties_wrong: bool) -> float:
    """1 if the right option alone is best. A tie for best gives 0, or an equal share where ties are not wrong.

    Raises:
        ValueError: a score is NaN: the truth of an option is open, or the encoder is broken.
    """
    if np.isnan(scores).any():
        raise ValueError(f"option {int(np.argmax(np.isnan(scores)))} has no score: its truth is open")
    best = np.flatnonzero(scores >= scores.max() - TIE)
    if answer not in best or (ties_wrong and len(best) > 1):
        return 0.0
    return 1 / len(best)


def spread(questions: Sequence[Question]) -> tuple[Question, ...]:
    """Move right answers so that within a row every slot holds them equally often (off by one at most)."""
    seen: Counter[tuple[str, int]] = Counter()
    out: list[Question] = []
    for asked in questions:
        key = (asked.row, len(asked.options))
        slot = seen[key] % len(asked.options)
        seen[key] += 1
        options = [option for index, option in enumerate(asked.options) if index != asked.answer]
        options.insert(slot, asked.options[asked.answer])
        out.append(replace(asked, options=tuple(options), answer=slot))
    return tuple(out)
