"""Data of the plots beside a probe's rows: confusion of classes, numbers taken for others, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.probes.count import TEN, Counting
from evaluation.probes.examples import chosen
from evaluation.probes.few_shot import FewShot
from evaluation.probes.pool import MOST
from evaluation.probes.questions import Probe
from evaluation.probes.readers import Reader
from evaluation.probes.rows import F64
from evaluation.scenes.meaning import Count

CUSTOMARY_SCALE = 100.0  # where the learnt scale of released CLIP models ends: logits are cosines times 100
_SCALES = np.geomspace(1, 1000, 301)
_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceCounts:
    """counts[true][taken]: how often a label's pictures were given each label; the last column counts ties."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The items whose highest probability lies in [low, high): their number, mean probability and share of right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Calibration of softmax(scale x cosine). scales: one, or one for each half of the items.

    error: the expected calibration error (Guo et al., 2017), the mean over items of |confidence - accuracy| by bin.
    """

    fitted: bool
    scales: tuple[float, ...]
    error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """choices: of class names in `few-shot`, of numbers in `count`. reliability: of the class names."""

    choices: ChoiceCounts | None = None
    reliability: tuple[Reliability, ...] = ()


def figures(probe: Probe, reader: Reader) -> Figures | None:
    """None for a probe whose rows say everything."""
    match probe:
        case FewShot():
            return _naming(probe, reader)
        case Counting():
            return Figures(choices=_numbers(probe, reader))
        case _:
            return None


def calibration(scores: F64, answers: NDArray[np.int64], halves: NDArray[np.int64]) -> tuple[Reliability, ...]:
    """With the scale that makes one half's answers likeliest, applied to the other half; and with the customary scale.

    scores: cosines [N, C]. answers: int [N]. halves: 0 or 1 for each item, so that no item is judged by a scale that
    was fitted to it. An endpoint's own scale is not known, so none of these needs to be the model's.
    """
    fitted = [best_scale(scores[halves != half], answers[halves != half]) for half in (0, 1)]
    return (
        _reliability(scores, answers, np.array(fitted)[halves], tuple(fitted), fitted=True),
        _reliability(scores, answers, np.full(len(scores), CUSTOMARY_SCALE), (CUSTOMARY_SCALE,), fitted=False),
    )


def best_scale(scores: F64, answers: NDArray[np.int64]) -> float:
    """The scale of 1 to 1000 (301 steps of equal ratio) with the highest likelihood of the answers."""
    likelihood = [_log_softmax(scale * scores)[np.arange(len(scores)), answers].mean() for scale in _SCALES]
    return round(float(_SCALES[int(np.argmax(likelihood))]), 2)


def figures_from_json(data: Mapping[str, Any]) -> Figures:
    """The inverse of `asdict`, also after a trip through a file.

    Raises:
        KeyError, TypeError, ValueError: no figures.
    """
    found = data["choices"]
    choices = None
    if found is not None:
        choices = ChoiceCounts(labels=tuple(found["labels"]), counts=tuple(tuple(line) for line in found["counts"]))
        sizes = [len(line) for line in choices.counts]
        if sizes != [len(choices.labels) + 1] * len(choices.labels):
            raise ValueError(f"figures: {len(choices.labels)} labels, but counts of sizes {sizes}")
    reliability = tuple(
        Reliability(
            fitted=each["fitted"],
            scales=tuple(each["scales"]),
            error=each["error"],
            bins=tuple(Bin(**each) for each in each["bins"]),
        )
        for each in data["reliability"]
    )
    return Figures(choices=choices, reliability=reliability)


def _naming(probe: FewShot, reader: Reader) -> Figures:
    """The tests of both halves, as many of each class, named without shots among all classes.

    The halves of the calibration are base and new: they share no class, and every shape and colour is in both.
    """
    shown = [(each, each.label) for each in probe.base_tests]
    shown += [(each, each.label + len(probe.base)) for each in probe.new_tests]
    answers = np.array([label for _, label in shown], dtype=np.int64)
    halves = (answers >= len(probe.base)).astype(np.int64)
    scores = reader.image_vectors([each.picture for each, _ in shown]) @ reader.text_vectors(probe.texts).T
    names = [f"{what.colour} {what.shape}" for what in (*probe.base, *probe.new)]
    order = sorted(range(len(names)), key=lambda at: names[at].split()[::-1])
    places = np.argsort(order)
    choices = _counted([names[at] for at in order], scores[:, order], places[answers])
    return Figures(choices=choices, reliability=calibration(scores, answers, halves))


def _numbers(probe: Counting, reader: Reader) -> ChoiceCounts:
    asked = [each for each in probe.quiz.questions if each.row == TEN]
    scores = reader.scores([(each.picture, option) for each in asked for option in each.options])
    table = np.empty((len(asked), MOST))
    answers = np.empty(len(asked), dtype=np.int64)
    for line, part, each in zip(table, scores.reshape(len(asked), -1), asked, strict=True):
        numbers = [option.meaning.number if isinstance(option.meaning, Count) else 0 for option in each.options]
        line[np.array(numbers) - 1] = part
    for at, each in enumerate(asked):
        answers[at] = len(each.picture.scene.things) - 1
    return _counted([str(number) for number in range(1, MOST + 1)], table, answers)


def _counted(labels: Sequence[str], scores: F64, answers: NDArray[np.int64]) -> ChoiceCounts:
    counts = np.zeros((len(labels), len(labels) + 1), dtype=int)
    for line, answer in zip(scores, answers, strict=True):
        picked = chosen(line)
        counts[answer, picked[0] if len(picked) == 1 else len(labels)] += 1
    return ChoiceCounts(labels=tuple(labels), counts=tuple(tuple(int(n) for n in line) for line in counts))


def _reliability(
    scores: F64, answers: NDArray[np.int64], scale: F64, scales: tuple[float, ...], *, fitted: bool
) -> Reliability:
    probabilities = np.exp(_log_softmax(scale[:, None] * scores))
    confidence = probabilities.max(axis=1)
    right = np.array([chosen(line) == (answer,) for line, answer in zip(scores, answers, strict=True)])
    at = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    bins = tuple(
        Bin(
            low=index / _BINS,
            high=(index + 1) / _BINS,
            n=int((at == index).sum()),
            confidence=round(float(confidence[at == index].mean()), 6),
            accuracy=round(float(right[at == index].mean()), 6),
        )
        for index in range(_BINS)
        if (at == index).any()
    )
    error = sum(each.n * abs(each.confidence - each.accuracy) for each in bins) / len(scores)
    return Reliability(fitted=fitted, scales=scales, error=round(float(error), 6), bins=bins)


def _log_softmax(logits: F64) -> F64:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
