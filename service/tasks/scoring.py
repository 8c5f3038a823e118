"""Predictions for an image from its scores against class vectors, by a class head or a taught one, best first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.label_vectors import label_scores, logit_scores
from model_store.manifest import Manifest, Presence
from model_store.towers import Activation, OpenedHead
from service.tasks.label_tokens import LabelTokens
from service.teaching.head import TaughtHead


@dataclass(frozen=True)
class ClassMatrix:
    """Unit class vectors, float32 [C, D], in the order of `names`.

    weak: indices of labels of which the model knows nothing; the vector of such a label may be zero.
    """

    names: tuple[str, ...]
    vectors: NDArray[np.float32]
    weak: frozenset[int] = frozenset()

    @property
    def weak_names(self) -> list[str]:
        return [self.names[index] for index in sorted(self.weak)]


@dataclass(frozen=True)
class Scored:
    """`similarity` is the cosine of image and class; None for heads, and where one of the two has no direction.

    weak: the model knows nothing of the label.
    """

    label: str
    score: float
    similarity: float | None
    weak: bool = False


def presence_for(manifest: Manifest, activation: Activation | None, *, is_dense: bool) -> Presence | None:
    """The calibrated presence that rules sigmoid scores of label vectors; None where the logit scale and bias do.

    A presence that looks at positions needs the model's dense encoder.
    """
    presence = manifest.presence
    if presence is None or (activation or manifest.activation) != "sigmoid":
        return None
    return presence if is_dense or presence.aggregation == "pooled" else None


def rank(
    vector: NDArray[np.float32],
    classes: ClassMatrix,
    manifest: Manifest,
    *,
    activation: Activation | None,
    top_k: int | None,
    threshold: float | None,
) -> list[Scored]:
    """Predictions for one unit image vector [D], best first, ties in label order.

    Softmax is over all labels that have a direction; the others score 0.
    """
    similarities = (classes.vectors @ vector).astype(np.float64)
    pointless = _pointless(classes)
    if not pointless:
        scores = label_scores(similarities, manifest, activation)
    else:
        scores = np.zeros(len(similarities))
        known = [index for index in range(len(similarities)) if index not in pointless]
        if known:
            scores[known] = label_scores(similarities[known], manifest, activation)
    return rank_scores(scores, similarities, classes, top_k=top_k, threshold=threshold)


def rank_scores(
    scores: NDArray[np.float64],
    similarities: NDArray[np.float64],
    classes: ClassMatrix,
    *,
    top_k: int | None,
    threshold: float | None,
) -> list[Scored]:
    """Predictions from scores [C] and cosines [C], best first, ties in label order; labels without a direction last."""
    pointless = _pointless(classes)
    places = np.array(scores, dtype=np.float64)
    places[sorted(pointless)] = -np.inf
    order = _best(places, top_k=top_k, threshold=None)
    return [
        Scored(
            classes.names[i],
            float(scores[i]),
            None if i in pointless else float(similarities[i]),
            weak=i in classes.weak,
        )
        for i in order
        if threshold is None or scores[i] >= threshold
    ]


def rank_logits(
    logits: NDArray[np.float32],
    head: OpenedHead,
    *,
    activation: Activation | None,
    top_k: int | None,
    threshold: float | None,
) -> list[Scored]:
    """Predictions of a class head from its logits [C]; as `rank`, but with the head's own activation."""
    scores = head.scores(logits, activation)
    order = _best(scores, top_k=top_k, threshold=threshold)
    return [Scored(head.spec.labels[i], float(scores[i]), None) for i in order]


def rank_conditional(
    logits: NDArray[np.float32],
    labels: LabelTokens,
    manifest: Manifest,
    *,
    activation: Activation | None,
    top_k: int | None,
    threshold: float | None,
) -> list[Scored]:
    """Predictions of a conditional head from the logits of all texts; as `rank`, with the model's own activation."""
    scores = logit_scores(labels.of_labels(logits), manifest, activation)
    order = _best(scores, top_k=top_k, threshold=threshold)
    return [Scored(labels.names[i], float(scores[i]), None, weak=i in labels.weak) for i in order]


def rank_taught(
    vector: NDArray[np.float32],
    head: TaughtHead,
    *,
    activation: Activation | None,
    top_k: int | None,
    threshold: float | None,
) -> list[Scored]:
    """Predictions of a taught head for one unit image vector [D]; as `rank_logits`, softmax by default.

    Raises:
        ValueError: sigmoid of a head that has no curve for it.
    """
    scores = head.scores(head.logits(vector), activation)
    return [Scored(head.names[i], float(scores[i]), None) for i in _best(scores, top_k=top_k, threshold=threshold)]


def _pointless(classes: ClassMatrix) -> frozenset[int]:
    """Labels whose vector is zero."""
    return frozenset(index for index in classes.weak if not classes.vectors[index].any())


def _best(scores: NDArray[np.float64], *, top_k: int | None, threshold: float | None) -> list[int]:
    order: list[int] = np.argsort(-scores, kind="stable")[:top_k].tolist()
    return [i for i in order if threshold is None or scores[i] >= threshold]
