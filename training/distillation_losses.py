"""Losses of distillation as pure functions: the terms of CLIP-KD (Yang et al., 2024, "CLIP-KD: An Empirical Study of
CLIP Model Distillation"), and TinyCLIP's affinity mimicking.

Student and teacher have vectors of one size, unless a function says otherwise. `scale` is an inverse temperature, a
scalar that multiplies cosines. `positives`: bool [B, B] with the diagonal set, symmetric: which captions
are equal; targets are uniform over them, as in `losses.info_nce`. `rows`: only these rows have a loss, against all
columns; the mean over equal parts of a batch is the loss of the whole.

The paper's released code (github.com/winycg/CLIP-KD, e151019) differs from its formulas, and both from this; each
function says how.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


class PairVectors(NamedTuple):
    """Unit vectors [B, D] of a batch's pictures and of its texts, row i of both about pair i."""

    image: Tensor
    text: Tensor


def feature_distance(student: PairVectors, teacher: PairVectors, *, rows: slice | None = None) -> Tensor:
    """FD: the mean over pairs and coordinates of the squared difference, of pictures and of texts, added.

    The paper's equation sums over coordinates: this is that divided by D, as in its code, to which the weight of 2000
    belongs. MFD is the same of masked pictures.
    """
    image = vector_distance(student.image, teacher.image, rows=rows)
    return image + vector_distance(student.text, teacher.text, rows=rows)


def vector_distance(student: Tensor, teacher: Tensor, *, rows: slice | None = None) -> Tensor:
    """The half of `feature_distance` that is about pictures, or texts: unit vectors [B, D] of both."""
    rows = rows or slice(None)
    return functional.mse_loss(student[rows], teacher[rows])


def interactive_contrast(
    student: PairVectors,
    teacher: PairVectors,
    scale: Tensor,
    *,
    positives: Tensor,
    rows: slice | None = None,
) -> Tensor:
    """ICL: the student's pictures choose among the teacher's texts, its texts among the teacher's pictures; the mean.

    The code multiplies by the parameter that holds log(1/temperature) and takes no exponential of it, a temperature of
    .38 where .07 was meant; `scale` here is the inverse temperature itself.
    """
    rows = rows or slice(None)
    targets = positives[rows] / positives[rows].sum(dim=1, keepdim=True)
    from_image = functional.cross_entropy(scale * student.image[rows] @ teacher.text.T, targets)
    from_text = functional.cross_entropy(scale * student.text[rows] @ teacher.image.T, targets)
    return (from_image + from_text) / 2


def relation_distance(
    student: PairVectors,
    teacher: PairVectors,
    scale: Tensor,
    teacher_scale: Tensor,
    *,
    rows: slice | None = None,
) -> Tensor:
    """CRD: KL(teacher || student) between what pictures make of all texts and texts of all pictures, averaged.

    The paper adds the two directions, its code takes their mean, as here. Vectors of student and teacher may have
    different sizes.
    """
    rows = rows or slice(None)

    def distance(own: Tensor, wanted: Tensor) -> Tensor:
        return functional.kl_div(own.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)

    from_image = distance(
        scale * student.image[rows] @ student.text.T, teacher_scale * teacher.image[rows] @ teacher.text.T
    )
    from_text = distance(
        scale * student.text[rows] @ student.image.T, teacher_scale * teacher.text[rows] @ teacher.image.T
    )
    return (from_image + from_text) / 2


def contrast_gradients(vectors: PairVectors, scale: Tensor, *, positives: Tensor) -> Gradients:
    """What InfoNCE says of unit vectors: the gradients of its two halves, each the mean over the batch's choices.

    With P the softmax of a half and Y its targets, [B, B], the loss moves who chooses by scale/B (P - Y) K and what is
    chosen by scale/B (P - Y)^T Q: no tensor of B x B x D. Answers (pictures choosing, texts chosen, texts choosing,
    pictures chosen), each [B, D].
    """
    image, text = vectors
    targets, share = positives / positives.sum(dim=1, keepdim=True), scale / len(image)
    from_image = (scale * image @ text.T).softmax(dim=1) - targets
    from_text = (scale * text @ image.T).softmax(dim=1) - targets
    return (
        share * from_image @ text,
        share * from_image.T @ image,
        share * from_text @ image,
        share * from_text.T @ text,
    )


def gradient_distance(
    student: PairVectors,
    teacher: PairVectors,
    scale: Tensor,
    teacher_scale: Tensor,
    *,
    positives: Tensor,
    rows: slice | None = None,
) -> Tensor:
    """GD: the mean squared difference between the student's `contrast_gradients` and the teacher's, the four added.

    The code divides by the scale where the loss multiplies, and so needs a weight of 1e8 (the notes' "108"). These
    gradients are not too small: begin with a weight near 1.
    """
    rows = rows or slice(None)
    own = contrast_gradients(student, scale, positives=positives)
    with torch.no_grad():
        wanted = contrast_gradients(teacher, teacher_scale, positives=positives)
    parts = [functional.mse_loss(mine[rows], its[rows]) for mine, its in zip(own, wanted, strict=True)]
    return torch.stack(parts).sum()


def affinity_loss(
    student: PairVectors,
    teacher: PairVectors,
    scale: Tensor | float,
    teacher_scale: Tensor | float,
    *,
    rows: slice | None = None,
) -> Tensor:
    """Affinity mimicking, a scalar: the mean of the cross entropies of the student's image-to-text and text-to-image
    softmax against the teacher's (Wu et al., 2023, "TinyCLIP", equations 1 to 3).

    Vectors of student and teacher may have different sizes; the teacher's get no gradient. At its smallest it is the
    teacher's mean entropy; what it is above that is `relation_distance`.
    """
    rows = rows or slice(None)
    its = PairVectors(teacher.image.detach(), teacher.text.detach())
    from_image = functional.cross_entropy(
        scale * student.image[rows] @ student.text.T, (teacher_scale * its.image[rows] @ its.text.T).softmax(dim=1)
    )
    from_text = functional.cross_entropy(
        scale * student.text[rows] @ student.image.T, (teacher_scale * its.text[rows] @ its.image.T).softmax(dim=1)
    )
    return (from_image + from_text) / 2
