"""Score maps of labels over a picture, and the calibrated probability that a label is in it.

Pure numpy. The service, the evaluation and training call the same functions, so that a threshold set in one holds in
the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.label_vectors import LabelVectors, known_scale
from model_store.manifest import Presence
from model_store.towers import Vectors, activated, normalized

_TINY = 1e-12


def directions(labels: LabelVectors, presence: Presence) -> Vectors:
    """What a position is projected on, float32 [C, D]: each label's vector minus what it is compared with.

    That is its own denial where `presence` has negative templates, else the mean of the other texts (the request's
    other labels and the neutral ones). Because (N - 1) / N of "minus the mean of the others" is "minus the mean of
    all", maps rank as with the plain mean, but keep their scale when labels are added to a request; and for one
    label without neutral texts there are no others, so nothing is subtracted instead of everything.

    Zero rows (no known word) stay zero and take no part in the mean.

    Raises:
        ValueError: shapes do not fit, or negative vectors are missing.
    """
    positive = np.asarray(labels.positive, dtype=np.float64)
    for name, other in (("negative", labels.negative), ("neutral", labels.neutral)):
        if positive.ndim != 2 or (other is not None and (other.ndim != 2 or other.shape[1] != positive.shape[1])):
            raise ValueError(f"positive {positive.shape} and {name} {other if other is None else other.shape}: [n, D]")
    known = np.linalg.norm(positive, axis=1) > _TINY
    if presence.negative_templates:
        if labels.negative is None or labels.negative.shape != positive.shape:
            raise ValueError("the presence has negative templates, so each label needs a negative vector")
        found = positive - labels.negative
    else:
        found = positive - _mean_of_others(positive, known, labels.neutral)
    return np.where(known[:, None], found, 0.0).astype(np.float32)


def score_maps(positions: Vectors, labels: LabelVectors, presence: Presence) -> NDArray[np.float32]:
    """Score of each label at each position, float32 [C, rows, columns], of un-normalised positions [rows, columns, D].

    Projections are not divided by a position's length: where nothing is, vectors are short, and cosines of short
    vectors are noise (on a convolutional trunk normalising turned .85 pointing into .04).
    """
    rows, columns, dim = positions.shape
    cells = positions.reshape(-1, dim)
    if presence.similarity == "cosine":
        cells = normalized(cells)
    return (directions(labels, presence) @ cells.T).reshape(-1, rows, columns)


def presence_scores(
    maps: NDArray[np.float32], pooled: Vectors, labels: LabelVectors, presence: Presence
) -> NDArray[np.float64]:
    """Calibrated probabilities [C] that each label is in the picture: maps [C, rows, columns], its pooled vector [D].

    Compare them with `presence.threshold`. A zero row (no known word) scores 0: the calibration says nothing of it.
    """
    aggregates = aggregate_scores(maps, pooled, labels, presence)
    known = np.any(labels.positive, axis=1)
    length = float(np.linalg.norm(pooled.astype(np.float64)))
    logits = presence_logits(aggregates, presence, asked=max(int(known.sum()), 1), length=length)
    return np.where(known, activated(logits, "sigmoid"), 0.0)


def presence_logits(
    aggregates: NDArray[np.float64],
    presence: Presence,
    *,
    asked: int | NDArray[np.int64],
    length: float | NDArray[np.float64],
) -> NDArray[np.float64]:
    """The calibration before the sigmoid, [n], of aggregates [n].

    asked: how many labels were asked together, 1 or more; length: of the picture's pooled vector; one, or [n].
    """
    logits = presence.calibration_slope * aggregates + presence.calibration_count * np.log(asked)
    return logits + presence.calibration_length * length + presence.calibration_offset


def aggregate_scores(
    maps: NDArray[np.float32], pooled: Vectors, labels: LabelVectors, presence: Presence
) -> NDArray[np.float64]:
    """One number for each label [C], scaled but not calibrated: what a calibration is fitted on."""
    length = max(float(np.linalg.norm(pooled.astype(np.float64))), _TINY)
    unit = presence.similarity == "cosine" or presence.divide_by == "pooled_norm"
    if presence.aggregation == "pooled":
        values = directions(labels, presence).astype(np.float64) @ pooled.astype(np.float64)
        return presence.scale * values / (length if unit else 1.0)
    divisor = length if presence.similarity == "projection" and presence.divide_by == "pooled_norm" else 1.0
    scaled = presence.scale * maps.reshape(len(maps), -1).astype(np.float64) / divisor
    if presence.aggregation == "max":
        return scaled.max(axis=1)
    # DualCoOp (Sun et al., 2022), equation 4: positions weigh by the softmax of their own scores.
    return (activated(scaled, "softmax") * scaled).sum(axis=1)


def default_presence(templates: Sequence[str], logit_scale: float) -> Presence:
    """Training-free and uncalibrated: the artifact's own prompts against the other labels and the empty prompts.

    An empty prompt (a template without its label) says what all labels share, and gives a single label something to
    be compared with. The scale is the model's own, so scores rank labels within a picture, but 0.5 means only that the
    best position is as near to a label as to the others: a threshold that means more needs a presence whose slope and
    offset were fitted on pictures whose labels are known.
    """
    return Presence(
        positive_templates=tuple(templates),
        neutral_texts=tuple(dict.fromkeys(" ".join(t.replace("{}", " ").split()) for t in templates)),
        scale=logit_scale,
        aggregation="max",
    )


def presence_of(artifact: Artifact) -> Presence:
    """The artifact's own presence, or the training-free default for its templates and logit scale.

    Raises:
        ScaleUnknown: it has neither a presence nor a scale.
    """
    manifest = artifact.manifest
    return manifest.presence or default_presence(manifest.templates, known_scale(manifest))


def _mean_of_others(
    positive: NDArray[np.float64], known: NDArray[np.bool_], neutral: Vectors | None
) -> NDArray[np.float64]:
    """For each label the mean over all other known texts, [C, D]; zero where there are none."""
    total, count = positive[known].sum(axis=0), int(known.sum())
    if neutral is not None and len(neutral):
        kept = neutral[np.linalg.norm(neutral, axis=1) > _TINY].astype(np.float64)
        total, count = total + kept.sum(axis=0), count + len(kept)
    return (total - positive) / max(count - 1, 1)
