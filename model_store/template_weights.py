"""Weights of prompt templates for a set of labels, from pictures that nobody labelled.

Allingham et al. (2023), "A Simple Zero-shot Prompt Weighting Technique to Improve Prompt Ensembling in Text-Image
Models": a template is good if its prompts answer pictures clearly. Its score is the mean over pictures of the largest
logit over labels. Raw logits would reward words that are frequent in captions and labels that fit everything, so each
prompt's expected logit is taken away first: the mean over these pictures, or the mean of that and of the mean over
reference pictures. A logit is linear in the picture, so that is to take a mean picture away.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model_store.towers import Vectors, normalized

Weighting = Literal["softmax", "select"]
F64 = NDArray[np.float64]
SHARPNESS = 1.0  # of softmax, over scores in logits
THRESHOLD = 0.5  # of a selection, in median absolute deviations above the median
_AS_NORMAL = 1.4826  # a median absolute deviation of normal numbers, times this, is their standard deviation


class TemplateScores:
    """Scores of `templates` templates, from labels that come one after the other: holds N x P numbers, not all texts.

    pictures: unit vectors [N, D]. reference: unit vectors [M, D] of pictures of any kind; None: none.
    scale: the logit scale, exp applied.
    """

    def __init__(
        self, pictures: Vectors, templates: int, *, reference: Vectors | None = None, scale: float = 1.0
    ) -> None:
        expected = pictures.mean(axis=0, dtype=np.float64)
        if reference is not None:
            expected = (expected + reference.mean(axis=0, dtype=np.float64)) / 2
        self._centred = (pictures - expected).astype(np.float32)
        self._largest = np.full((len(pictures), templates), -np.inf, dtype=np.float32)
        self._scale = scale
        self.labels = 0

    def add(self, texts: Vectors) -> None:
        """The unit vectors [P, D] of one label in every template.

        A label of which the model knows nothing, one of whose vectors is zero, says nothing of any template.
        """
        if texts.any(axis=1).all():
            np.maximum(self._largest, self._centred @ texts.T, out=self._largest)
            self.labels += 1

    def scores(self) -> F64:
        """Float64 [P], in logits; zeros before any label that says something."""
        if not self.labels:
            return np.zeros(self._largest.shape[1])
        return self._scale * self._largest.mean(axis=0, dtype=np.float64)


def template_scores(pictures: Vectors, texts: Vectors, *, reference: Vectors | None = None, scale: float = 1.0) -> F64:
    """Scores [P] of templates from the unit vectors [C, P, D] of labels in them; else as TemplateScores."""
    found = TemplateScores(pictures, texts.shape[1], reference=reference, scale=scale)
    for label in texts:
        found.add(label)
    return found.scores()


def template_weights(
    scores: F64, how: Weighting = "softmax", *, sharpness: float = SHARPNESS, threshold: float = THRESHOLD
) -> F64:
    """Weights [P] of templates, which sum to 1.

    softmax: of sharpness x scores. select: equal ones of those whose score is more than `threshold` (normal) median
    absolute deviations above the median, and 0 of the others; the best where that is none, all where all are equal.
    """
    if how == "softmax":
        powers = np.exp(sharpness * (scores - scores.max()))
        return powers / powers.sum()
    distance = scores - np.median(scores)
    deviation = _AS_NORMAL * float(np.median(np.abs(distance)))
    chosen = distance > threshold * deviation
    if not chosen.any():
        chosen = scores == scores.max()
    return chosen / chosen.sum()


def weighted_label_vectors(texts: Vectors, weights: F64) -> Vectors:
    """Unit label vectors float32 [C, D] from unit prompt vectors [C, P, D] and weights [P] of their templates."""
    return normalized(np.einsum("p,cpd->cd", weights, texts.astype(np.float64)))
