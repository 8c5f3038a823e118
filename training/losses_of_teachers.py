"""Losses of a student whose batch a teacher sees too, as pure functions of tensors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def affinity_loss(
    image: Tensor,
    text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    scale: Tensor | float,
    teacher_scale: Tensor | float,
    rows: slice | None = None,
) -> Tensor:
    """Affinity mimicking, a scalar: the mean of the cross entropies of the student's image-to-text and text-to-image
    softmax against the teacher's (Wu et al., 2023, "TinyCLIP", equations 1 to 3).

    `image`, `text`: unit vectors [B, D] of the student; `teacher_image`, `teacher_text`: [B, D'] of the teacher, which
    gets no gradient; the two spaces may differ. `scale`, `teacher_scale`: what cosines are multiplied with in front of
    each softmax. `rows`: only these pictures and texts choose, among all of the batch; the mean over equal parts of a
    batch is the loss of the whole. At its smallest it is the teacher's mean entropy, not 0.
    """
    rows = rows or slice(None)
    teacher_image, teacher_text = teacher_image.detach(), teacher_text.detach()
    from_image = functional.cross_entropy(
        scale * image[rows] @ text.T, (teacher_scale * teacher_image[rows] @ teacher_text.T).softmax(dim=1)
    )
    from_text = functional.cross_entropy(
        scale * text[rows] @ image.T, (teacher_scale * teacher_text[rows] @ teacher_image.T).softmax(dim=1)
    )
    return (from_image + from_text) / 2
