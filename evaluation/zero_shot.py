"""Classification by comparing images with the texts of their possible labels, next to chance and majority."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import TIE, Estimate, class_mean_accuracy, majority_share, mean_estimate, normalize
from model_store.label_vectors import filled, label_means

EncodeTexts = Callable[[Sequence[str]], NDArray[np.floating]]


@dataclass(frozen=True, kw_only=True)
class ZeroShotReport:
    """Accuracy over all cases and averaged over classes; `chance` is 1 / classes."""

    accuracy: Estimate
    class_mean: float
    majority: float
    chance: float


def class_matrix(encode: EncodeTexts, labels: Sequence[str], templates: Sequence[str]) -> NDArray[np.float32]:
    """Unit class vectors [C, D] (see model_store.label_vectors), the mean taken in float32.

    Every template holds one `{}`.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"template {template!r} must hold exactly one {{}}")
    prompts = [prompt for label in labels for prompt in filled(templates, label)]
    return label_means(normalize(encode(prompts)).reshape(len(labels), len(templates), -1))


def zero_shot(
    images: NDArray[np.floating], truth: NDArray[np.integer], classes: NDArray[np.floating]
) -> ZeroShotReport:
    """Judge `images` [N, D] against unit `classes` [C, D]; `truth` int [N] indexes rows of `classes`.

    Classes that fit best alike (cosines closer than TIE) are no answer, so a model that sees nothing scores 0.
    """
    scores = normalize(images) @ classes.T
    best = scores >= scores.max(axis=1, keepdims=True) - TIE
    predicted = np.where(best.sum(axis=1) == 1, scores.argmax(axis=1), -1)
    return ZeroShotReport(
        accuracy=mean_estimate(predicted == truth),
        class_mean=class_mean_accuracy(predicted, truth),
        majority=majority_share(truth),
        chance=1 / len(classes),
    )
