"""Vectors of labels from the vectors of their prompts, what a presence compares them with, and scores over labels.

A label's vector is the mean of its unit prompt vectors, normalised again: the prompt ensemble of CLIP (Radford et al.,
2021), section 3.1.4. The service, the evaluation and training call the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.errors import ScaleUnknown
from model_store.manifest import Manifest, Presence
from model_store.towers import Activation, Vectors, activated, normalized


@dataclass(frozen=True, kw_only=True)
class LabelVectors:
    """Unit text vectors, float32: positive [C, D] and, where the presence has such prompts, negative [C, D] (a label's
    denial) and neutral [N, D] (texts that name no label). A zero row is a text without a known word.
    """

    positive: Vectors
    negative: Vectors | None = None
    neutral: Vectors | None = None


def filled(templates: Sequence[str], name: str) -> tuple[str, ...]:
    """The prompts of one label, in the order of the templates."""
    return tuple(template.replace("{}", name) for template in templates)


def label_means(prompts: Iterable[NDArray[np.floating]]) -> Vectors:
    """Label vectors [C, D] from the unit prompt vectors [T, D] of each label; T may differ.

    The mean is taken in the precision of the prompt vectors.
    """
    return normalized(np.stack([vectors.mean(axis=0) for vectors in prompts]).astype(np.float32))


def label_means_of_sums(sums: NDArray[np.float64]) -> Vectors:
    """As `label_means`, from the sums [C, D] of the unit prompt vectors of labels whose prompts come piece by piece."""
    return normalized(sums)


def compared_texts(presence: Presence) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(templates of a label's denial, neutral texts) that LabelVectors need; with denials no neutral texts."""
    return presence.negative_templates, () if presence.negative_templates else presence.neutral_texts


def label_scores(
    similarities: NDArray[np.float64], manifest: Manifest, activation: Activation | None
) -> NDArray[np.float64]:
    """Scores [C] of labels from their cosines [C] with an image; softmax is over all of them.

    The logit scale is the model's, and so are the bias of sigmoid scores and the activation where None is given.

    Raises:
        ScaleUnknown: softmax or sigmoid of a model without a logit scale.
    """
    kind = activation or manifest.activation
    if kind == "none":
        return similarities
    if kind == "sigmoid":
        return activated(known_scale(manifest) * similarities + manifest.logit_bias, "sigmoid")
    return activated(known_scale(manifest) * similarities, "softmax")


def logit_scores(logits: NDArray[np.float64], manifest: Manifest, activation: Activation | None) -> NDArray[np.float64]:
    """Scores [C] of labels from a conditional head's logits [C]: as `label_scores`, with the scale in the logits."""
    kind = activation or manifest.activation
    if kind == "none":
        return logits
    return activated(logits + (manifest.logit_bias if kind == "sigmoid" else 0.0), kind)


def known_scale(manifest: Manifest) -> float:
    """The logit scale, exp applied.

    Raises:
        ScaleUnknown: the weights came without one.
    """
    if manifest.logit_scale is None:
        raise ScaleUnknown(
            f"{manifest.name}@{manifest.version} has no logit scale ({manifest.scale_source}), so its cosines cannot "
            "become "
            'probabilities: use activation "none"'
        )
    return manifest.logit_scale
