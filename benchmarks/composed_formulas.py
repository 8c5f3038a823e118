"""The formulas for "this, but not that" which benchmarks/composed.py compares: one score for each picture.

Where p and n are the unit vectors of the two texts, x that of a picture: a formula on the side of the vectors is one
query vector, which an index answers as it is; one on the side of the scores wants n.x of every candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.composed_data import ComposedEncoder, Gallery, QuestionSet
from model_store.label_vectors import LabelVectors, filled, label_means
from model_store.manifest import Presence, SearchCalibration
from model_store.presence import directions, presence_logits, presence_of
from model_store.store import Store

F64 = NDArray[np.float64]
Side = Literal["vector", "score", "control"]
Lengths = Literal["own", "median", "one"]
KIN = 100  # pictures nearest to the positive
WEIGHTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)


@dataclass(frozen=True, eq=False)
class AskedPair:
    """Cosines of one set's questions with its pictures, float64 [Q, N] unless said otherwise.

    neutral: mean vector of the model's neutral texts, [1, N]; others: mean of the set's other negatives; context: the
    text "p, n"; kin: unit mean of the pictures nearest to p; without: the text "p without n"; placebo: another
    negative of the set. pn [Q, 1] is p.n; reach [Q, 1] the length of n - neutral. logits: of the presence of n, with
    the lengths that the model gives the pictures' vectors; median_logits: with one length for all, the gallery's
    median; unit_logits: with length 1, which is what an index holds.
    """

    positive: F64
    negative: F64
    neutral: F64
    others: F64
    context: F64
    kin: F64
    without: F64
    but_not: F64
    placebo: F64
    pn: F64
    reach: F64
    logits: F64
    median_logits: F64
    unit_logits: F64
    threshold: float
    scale: float


class Presences:
    """The shipped calibrations of a model; `rule` is asked for one text at a time, as by sigmoid /classify."""

    def __init__(self, encoder: ComposedEncoder, store: Path | None) -> None:
        artifact = Store(store).open(encoder.reference)
        self.rule: Presence = presence_of(artifact)
        if artifact.manifest.search is None:
            raise ValueError(f"{artifact.reference} was not calibrated for searches (training.shipped.search_fit)")
        self.search: SearchCalibration = artifact.manifest.search
        self._encoder = encoder
        self.neutral = encoder.texts(self.rule.neutral_texts)

    def logits(self, names: Sequence[str], gallery: Gallery, *, lengths: Lengths = "own") -> F64:
        """Logits [n, N] that each name is in each picture."""
        prompts = [self._encoder.texts(filled(self.rule.positive_templates, name)) for name in names]
        vectors = label_means(prompts)
        neutral = self.neutral.astype(np.float32)
        found = np.concatenate(
            [directions(LabelVectors(positive=row[None], neutral=neutral), self.rule) for row in vectors]
        ).astype(np.float64)
        own = gallery.lengths
        taken = {"own": own, "median": np.full_like(own, np.median(own)), "one": np.ones_like(own)}[lengths]
        pooled = gallery.unit * taken[:, None]
        if self.rule.aggregation != "pooled" or self.rule.similarity != "projection" or self.rule.divide_by != "one":
            raise ValueError("this study knows presences of pooled, undivided projections only")
        values = self.rule.scale * (found @ pooled.T)
        ones = np.ones(values.size, dtype=np.int64)
        every = np.tile(taken, len(names))
        return presence_logits(values.ravel(), self.rule, asked=ones, length=every).reshape(values.shape)


def ask(asked: QuestionSet, encoder: ComposedEncoder, presences: Presences) -> AskedPair:
    pictures = asked.gallery.unit
    each = asked.questions
    p = encoder.texts([one.wanted for one in each])
    n = encoder.texts([one.negative for one in each])
    neutral = presences.neutral.mean(axis=0, keepdims=True)
    vocabulary = sorted({one.negative for one in each})
    total = encoder.texts(vocabulary).sum(axis=0)
    others = (total - n) / max(len(vocabulary) - 1, 1)
    positive = p @ pictures.T
    near = np.argsort(-positive, axis=1)[:, :KIN]
    kin = pictures[near].mean(axis=1)
    kin /= np.linalg.norm(kin, axis=1, keepdims=True)
    at = {text: index for index, text in enumerate(vocabulary)}
    shifted = encoder.texts([vocabulary[(at[one.negative] + len(at) // 2) % len(at)] for one in each])
    names = list(dict.fromkeys(one.negative for one in each))
    rows = [names.index(one.negative) for one in each]

    def cosines(vectors: F64) -> F64:
        return vectors @ pictures.T

    return AskedPair(
        positive=positive,
        negative=cosines(n),
        neutral=cosines(neutral),
        others=cosines(others),
        context=cosines(encoder.texts([f"{one.wanted}, {one.negative}" for one in each])),
        kin=cosines(kin),
        without=cosines(encoder.texts([f"{one.wanted} without {one.negative}" for one in each])),
        but_not=cosines(encoder.texts([f"{one.wanted} but not {one.negative}" for one in each])),
        placebo=cosines(shifted),
        pn=(p * n).sum(axis=1, keepdims=True),
        reach=np.linalg.norm(n - neutral, axis=1, keepdims=True),
        logits=presences.logits(names, asked.gallery)[rows],
        median_logits=presences.logits(names, asked.gallery, lengths="median")[rows],
        unit_logits=presences.logits(names, asked.gallery, lengths="one")[rows],
        threshold=presences.rule.threshold,
        scale=presences.rule.scale,
    )


@dataclass(frozen=True)
class Formula:
    """weights: what validation chooses from; (1.0,) where there is nothing to choose."""

    name: str
    text: str
    side: Side
    score: Callable[[AskedPair, float], F64]
    weights: tuple[float, ...] = WEIGHTS


def probability(logits: F64) -> F64:
    return 0.5 * (1 + np.tanh(logits / 2))


def log_absent(logits: F64) -> F64:
    """log(1 - P), without overflow."""
    return -np.logaddexp(0.0, logits)


def _spread(cosines: F64) -> F64:
    return cosines.std(axis=1, keepdims=True)


def _cut(asked: AskedPair, logits: F64) -> F64:
    """Those in which the negative is present come last, each part in the order of the positive."""
    return asked.positive - 10.0 * (probability(logits) >= asked.threshold)


def _standardized(a: AskedPair, w: float) -> F64:
    return a.positive - w * _spread(a.positive) / _spread(a.negative) * a.negative


def _hinge_deviations(a: AskedPair, w: float) -> F64:
    deviations = (a.negative - a.negative.mean(axis=1, keepdims=True)) / _spread(a.negative)
    return a.positive - w * _spread(a.positive) * np.maximum(0.0, deviations - 1.0)


_ONE = (1.0,)
FORMULAS: tuple[Formula, ...] = (
    Formula("positive alone", "p", "control", lambda a, w: a.positive, _ONE),
    Formula("plain", "p - w n", "vector", lambda a, w: a.positive - w * a.negative),
    Formula("projection", "p - (p.n) n", "vector", lambda a, w: a.positive - a.pn * a.negative, _ONE),
    Formula(
        "orthogonal", "p - w (n - (n.p) p)", "vector",
        lambda a, w: a.positive - w * (a.negative - a.pn * a.positive),
    ),
    Formula("neutral", "p - w (n - neutral)", "vector", lambda a, w: a.positive - w * (a.negative - a.neutral)),
    Formula(
        "neutral, unit", "p - w unit(n - neutral)", "vector",
        lambda a, w: a.positive - w * (a.negative - a.neutral) / a.reach,
    ),
    Formula(
        "others", "p - w (n - mean of other labels)", "vector",
        lambda a, w: a.positive - w * (a.negative - a.others),
    ),
    Formula(
        "in context", 'p - w (text "p, n" - p)', "vector", lambda a, w: a.positive - w * (a.context - a.positive)
    ),
    Formula("kin", "p - w (n - unit mean of the 100 pictures nearest to p)", "vector",
            lambda a, w: a.positive - w * (a.negative - a.kin)),
    Formula("standardized", "p - w (sd p.x / sd n.x) n", "vector", _standardized),
    Formula(
        "hinge", "p.x - w max(0, n.x - neutral.x)", "score",
        lambda a, w: a.positive - w * np.maximum(0.0, a.negative - a.neutral),
    ),
    Formula("hinge, deviations", "p.x - w sd(p.x) max(0, z(n.x) - 1)", "score", _hinge_deviations),
    Formula(
        "presence, product", "p.x (1 - P(n))", "score",
        lambda a, w: a.positive * (1 - probability(a.logits)), _ONE,
    ),
    Formula("presence, cut", "p.x, P(n) >= threshold last", "score", lambda a, w: _cut(a, a.logits), _ONE),
    Formula(
        "presence, log", "p.x + w log(1 - P(n)) / scale", "score",
        lambda a, w: a.positive + w * log_absent(a.logits) / a.scale,
    ),
    Formula(
        "presence, log, median length", "the same with one length for all pictures", "score",
        lambda a, w: a.positive + w * log_absent(a.median_logits) / a.scale,
    ),
    Formula(
        "presence, log, length 1", "the same from unit vectors alone", "score",
        lambda a, w: a.positive + w * log_absent(a.unit_logits) / a.scale,
    ),
    Formula(
        "presence, cut, length 1", "the cut from unit vectors alone", "score",
        lambda a, w: _cut(a, a.unit_logits), _ONE,
    ),
    Formula('words "without"', 'text "p without n"', "control", lambda a, w: a.without, _ONE),
    Formula('words "but not"', 'text "p but not n"', "control", lambda a, w: a.but_not, _ONE),
    Formula("placebo", "p - w (another negative)", "control", lambda a, w: a.positive - w * a.placebo),
)  # fmt: skip
NAMED = {formula.name: formula for formula in FORMULAS}
