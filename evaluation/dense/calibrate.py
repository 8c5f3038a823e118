"""Calibration of a presence on labelled pictures: the score from which a label is present, and its probability."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.dense.truth import LabelledPictures
from evaluation.locating import Locator, Looking, label_vectors
from evaluation.probes.rows import F64
from model_store.manifest import Presence
from model_store.platt import fit_platt
from model_store.presence import aggregate_scores, default_presence, score_maps

_DIVIDE: tuple[Literal["pooled_norm", "one"], ...] = ("pooled_norm", "one")
_AGGREGATE: tuple[Literal["max", "pooled"], ...] = ("max", "pooled")
_THRESHOLDS = np.linspace(0.02, 0.98, 97)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """log_loss: of the fitted probabilities, over all pictures and labels. f1: at the presence's threshold."""

    presence: Presence
    log_loss: float
    f1: float


def fit_presence(locator: Locator, pictures: LabelledPictures, looking: Looking | None = None) -> tuple[Fitted, ...]:
    """Training-free presences for the templates of `looking`, the one with the smallest log loss first.

    The highest position and the pooled vector are tried, divided by the pooled vector's length or not. A logistic curve
    (Platt, 1999) makes probabilities of each; the threshold is that of the best F1. Fit on validation pictures.

    Raises:
        ValueError: a picture that cannot be used, or pictures whose labels are all there or all absent.
    """
    looking = looking or Looking()
    plain = default_presence(looking.templates or locator.presence.positive_templates, 1.0)
    tried = [plain.model_copy(update={"divide_by": d, "aggregation": a}) for d, a in product(_DIVIDE, _AGGREGATE)]
    labels = label_vectors(locator.encode_texts, looking.labels(pictures.labels), plain)
    values: list[list[F64]] = []
    there: list[NDArray[np.bool_]] = []
    for index in range(len(pictures)):
        sample = pictures.open(index)
        seen = locator.look(sample.shown, short_px=looking.short_px)
        maps = score_maps(seen.positions, labels, plain)
        values.append([aggregate_scores(maps, seen.pooled, labels, each) for each in tried])
        there.append(np.isin(np.arange(len(pictures.labels)), sample.truth.labels))
    truth, table = np.concatenate(there), np.stack(values)
    found = [_fitted(presence, table[:, at].ravel(), truth) for at, presence in enumerate(tried)]
    return tuple(sorted(found, key=lambda each: each.log_loss))


def _fitted(presence: Presence, values: F64, truth: NDArray[np.bool_]) -> Fitted:
    slope, offset = fit_platt(values, truth)
    chance = 1 / (1 + np.exp(-(slope * values + offset)))
    loss = -float(np.mean(np.log(np.maximum(np.where(truth, chance, 1 - chance), 1e-12))))
    scores = [2 * float(((chance >= t) & truth).sum()) / float((chance >= t).sum() + truth.sum()) for t in _THRESHOLDS]
    best = int(np.argmax(scores))
    calibrated = {
        "calibration_slope": round(slope, 4),
        "calibration_offset": round(offset, 4),
        "threshold": round(float(_THRESHOLDS[best]), 2),
    }
    return Fitted(presence=presence.model_copy(update=calibrated), log_loss=loss, f1=scores[best])
