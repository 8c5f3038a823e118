"""Blind controls: simple rules that look at the texts alone or at the pictures alone, and the best score of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.probes.count import Counting
from evaluation.probes.multi_label import MultiLabel
from evaluation.probes.pictures import Picture
from evaluation.probes.quads import Quads
from evaluation.probes.questions import Probe, Quiz
from evaluation.probes.readers import Sentence
from evaluation.probes.rows import F64, ProbeRow
from evaluation.probes.spurious import Spurious

_DENIALS = frozenset(
    ("no", "not", "nothing", "none", "without", "lacks", "lack", "missing", "absent", "instead", "never", "neither")
)
_MIDDLING = frozenset(("five", "six"))
_WORD = re.compile(r"[^\W\d_]+")
_MORE_THAN_LENGTH = 1000.0


@dataclass(frozen=True, kw_only=True)
class BestPrior:
    """The highest score (of an error the lowest) of a row that one of the rules has, and the rule's name."""

    name: str
    value: float


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _denials(text: str) -> int:
    return sum(word in _DENIALS for word in _words(text))


# Each a liking for some texts, whatever the picture.
TEXT_PRIORS: Mapping[str, Callable[[str], float]] = {
    "short": lambda text: -len(_words(text)),
    "long": lambda text: len(_words(text)),
    "few letters": lambda text: -len(text),
    "many letters": len,
    "no denial": lambda text: -_denials(text),
    "denial": _denials,
    "no denial, short": lambda text: -_MORE_THAN_LENGTH * _denials(text) - len(_words(text)),
    "no denial, long": lambda text: -_MORE_THAN_LENGTH * _denials(text) + len(_words(text)),
    "denial, short": lambda text: _MORE_THAN_LENGTH * min(1, _denials(text)) - len(_words(text)),
    "denial, long": lambda text: _MORE_THAN_LENGTH * min(1, _denials(text)) + len(_words(text)),
    "and": lambda text: _words(text).count("and"),
    "repeats no word": lambda text: len(set(_words(text))) - len(_words(text)),
    "middling number": lambda text: float(bool(_MIDDLING & set(_words(text)))),
}
# Each an order of all pictures, whatever the text.
PICTURE_PRIORS: Mapping[str, Callable[[Picture], float]] = {
    "many things": lambda picture: len(picture.scene.things),
    "few things": lambda picture: -len(picture.scene.things),
    "much covered": lambda picture: sum(thing.size**2 for thing in picture.scene.things),
    "little covered": lambda picture: -sum(thing.size**2 for thing in picture.scene.things),
}


class PriorReader:
    """Scores by one rule about texts, or by one about pictures; what ties is shared by luck. It has no vectors."""

    ties_wrong = False

    def __init__(
        self, *, texts: Callable[[str], float] | None = None, pictures: Callable[[Picture], float] | None = None
    ) -> None:
        self._texts, self._pictures = texts, pictures

    def scores(self, asked: Sequence[tuple[Picture, Sentence]]) -> F64:
        if self._pictures is not None:
            return np.array([float(self._pictures(picture)) for picture, _ in asked])
        if self._texts is None:
            return np.zeros(len(asked))
        known = {text: float(self._texts(text)) for text in {sentence.text for _, sentence in asked}}
        return np.array([known[sentence.text] for _, sentence in asked])

    def image_vectors(self, pictures: Sequence[Picture]) -> F64:
        raise NotImplementedError("a rule has no vectors")

    def text_vectors(self, texts: Sequence[Sentence]) -> F64:
        raise NotImplementedError("a rule has no vectors")


def best_priors(probe: Probe) -> list[BestPrior | None]:
    """For each row of the probe, None where there is nothing to win: a bias, a gap, a worst group. Empty for a probe
    that compares vectors."""
    match probe:
        case Quiz() | Quads() | Counting() | Spurious():
            return best_of({name: probe.measure(PriorReader(texts=rule)) for name, rule in TEXT_PRIORS.items()})
        case MultiLabel():
            orders = {n: probe.precision_rows(PriorReader(pictures=rule)) for n, rule in PICTURE_PRIORS.items()}
            return [*best_of(orders), None]  # of the texts' cosines
        case _:
            return []


def best_of(found: Mapping[str, Sequence[ProbeRow]]) -> list[BestPrior | None]:
    """found: the rows that each rule has, in one order."""
    out: list[BestPrior | None] = []
    for rows in zip(*found.values(), strict=True):
        sign = 1 if rows[0].better == "more" else -1
        an_error = rows[0].better == "less" and rows[0].unit == "count"
        winnable = rows[0].chance is not None and rows[0].parts == 1 and (rows[0].better == "more" or an_error)
        values = [sign * row.value for row in rows]
        if not winnable or np.isnan(values).any():
            out.append(None)
            continue
        best = int(np.argmax(values))
        out.append(BestPrior(name=list(found)[best], value=sign * values[best]))
    return out
