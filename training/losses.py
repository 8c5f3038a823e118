"""Contrastive losses as pure functions of tensors; equal captions count as positives of each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_NEVER = -1e4  # as a logit: no weight in a softmax, and no NaN where everything is left out


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., D] divided by their length, in fp32; zeros stay zeros."""
    return functional.normalize(vectors.float(), dim=-1)


def positive_pairs(ids: Tensor) -> Tensor:
    """Which (row, column) pairs of a batch belong together: bool [B, B] from caption ids int64 [B]."""
    return ids[:, None] == ids[None, :]


def info_nce(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    positives: Tensor | None = None,
    *,
    excused: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """Symmetric InfoNCE, a scalar; with one positive per row it is CLIP's loss (Radford et al., 2021, figure 3).

    `image`, `text`: unit vectors [B, D]. `scale`: the inverse temperature, a scalar. `positives`: bool [B, B] with the
    diagonal set, symmetric; the target of a row is uniform over its positives (Khosla et al., 2020, equation 2), and so
    the matrix need not be a permutation. `rows`: only these pictures and texts choose, among all of the batch; the mean
    over equal parts of a batch is the loss of the whole. `excused`: bool [B, B], pairs (picture, text) that are neither
    right nor wrong and stay out of both choices.
    """
    rows = rows or slice(None)
    if positives is None:
        positives = torch.eye(len(image), dtype=torch.bool, device=image.device)
    targets = positives[rows] / positives[rows].sum(dim=1, keepdim=True)
    from_image, from_text = scale * image[rows] @ text.T, scale * text[rows] @ image.T
    if excused is not None:
        out = excused & ~positives
        from_image, from_text = from_image.masked_fill(out[rows], _NEVER), from_text.masked_fill(out.T[rows], _NEVER)
    return (functional.cross_entropy(from_image, targets) + functional.cross_entropy(from_text, targets)) / 2


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    positives: Tensor | None = None,
    *,
    rows: slice | None = None,
) -> Tensor:
    """Pairwise sigmoid loss, a scalar: the sum over all B x B pairs divided by B (Zhai et al., 2023, algorithm 1).

    `image`, `text`: unit vectors [B, D]; `scale` and `bias`: scalars; `positives`: bool [B, B], default: the diagonal;
    `rows`: only these pictures, as for `info_nce`.
    """
    rows = rows or slice(None)
    if positives is None:
        positives = torch.eye(len(image), dtype=torch.bool, device=image.device)
    logits = scale * image[rows] @ text.T + bias
    signs = torch.where(positives[rows], 1.0, -1.0).to(logits.dtype)
    return -functional.logsigmoid(signs * logits).sum() / len(logits)


def usable_negatives(caption_id: Tensor, negative_id: Tensor, has_negative: Tensor, *, own_only: bool) -> Tensor:
    """Which negative text (column) may count against which image (row): bool [B, B].

    Ids int64 [B] are equal where captions are; has_negative: bool [B]. Left out are negatives that are missing and
    those that are, as text, a true caption of the row. A caption drawn as wrong for one picture may still be right for
    another whose caption says something else; `own_only` keeps each negative to its own picture, where it is known to
    be wrong.
    """
    usable = has_negative[None, :] & (negative_id[None, :] != caption_id[:, None])
    return usable & torch.eye(len(caption_id), dtype=torch.bool, device=usable.device) if own_only else usable


def negclip_loss(
    image: Tensor,
    text: Tensor,
    negative: Tensor,
    scale: Tensor,
    *,
    positives: Tensor,
    usable: Tensor,
    excused: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """InfoNCE with hard negative texts, a scalar (Yuksekgonul et al., 2023, NegCLIP).

    `image`, `text`, `negative`: unit vectors [B, D]; `positives` (symmetric) and `usable`: bool [B, B]. Images choose
    among 2B texts, texts among the B images; negatives belong to no image. Where none is usable it is `info_nce`.
    `rows`: as there. `excused`: bool [B, 2B], as there, the negative texts behind.
    """
    rows = rows or slice(None)
    among = torch.cat([scale * image[rows] @ text.T, scale * image[rows] @ negative.T], dim=1)
    allowed = torch.cat([torch.ones_like(usable), usable], dim=1)
    chosen = scale * text[rows] @ image.T
    if excused is not None:
        allowed = allowed & (~excused | torch.cat([positives, torch.zeros_like(positives)], dim=1))
        chosen = chosen.masked_fill(~allowed[:, : len(text)].T[rows], _NEVER)
    log_p = among.masked_fill(~allowed[rows], _NEVER).log_softmax(dim=1)[:, : len(text)]
    targets = positives[rows] / positives[rows].sum(dim=1, keepdim=True)
    from_text = functional.cross_entropy(chosen, targets)
    return (-(targets * log_p).sum(dim=1).mean() + from_text) / 2


def focal_negative_loss(
    image: Tensor,
    text: Tensor,
    negative: Tensor,
    scale: Tensor,
    *,
    has_negative: Tensor,
    gamma: float = 2.0,
    smoothing: float = 0.02,
    rows: slice | None = None,
) -> Tensor:
    """Each image between its own text and its own hard negative, a scalar (Oh et al., 2024, FSC-CLIP, 3.3).

    Unit vectors [B, D]; has_negative: bool [B], those without are left out; 0 where there is none. A choice that is
    made already weighs little, (1 - p)^gamma, and the target is smoothed, so that texts that are almost right are not
    pushed as far away as strangers: that is what keeps zero-shot. `rows`: as for `info_nce`.
    """
    rows = rows or slice(None)
    own = scale * torch.stack([(image * text)[rows].sum(dim=1), (image * negative)[rows].sum(dim=1)], dim=1)
    log_p = own.log_softmax(dim=1)
    target = torch.tensor([1 - smoothing / 2, smoothing / 2], device=own.device, dtype=own.dtype)
    losses = -(target * (1 - log_p.exp()) ** gamma * log_p).sum(dim=1)
    share = len(losses) / len(has_negative)
    return (losses * has_negative[rows]).sum() / (has_negative.sum().clamp(min=1) * share)


def asymmetric_loss(
    logits: Tensor, present: Tensor, *, gamma_positive: float = 1.0, gamma_negative: float = 4.0, clip: float = 0.05
) -> Tensor:
    """Multi-label loss that forgets easy negatives: summed over labels, mean over pictures (Ridnik et al., 2021, ASL).

    logits [B, C]; present: bool or 0/1 [B, C]. With p = sigmoid(logit) and q = max(p - clip, 0):

        - sum over labels of   present (1 - p)^gamma_positive log p   +   (1 - present) q^gamma_negative log(1 - q)

    The minus in front is missing in descriptions that write it as something to maximise, and it is the probability
    that is shifted by `clip`, not the logit. Gammas 0 and clip 0 give binary cross-entropy.
    """
    logits, truth = logits.float(), present.to(torch.float32)
    if clip:
        negative = (logits.sigmoid() - clip).clamp(min=0)
        log_absent = torch.log1p(-negative)
    else:
        negative, log_absent = logits.sigmoid(), functional.logsigmoid(-logits)
    positive = truth * (1 - logits.sigmoid()) ** gamma_positive * functional.logsigmoid(logits)
    return -(positive + (1 - truth) * negative**gamma_negative * log_absent).sum(dim=1).mean()


def mutual_feature_information(rows: Tensor) -> Tensor:
    """MFI: the mean over all pairs of different rows of their squared dot product, a scalar.

    rows [N, D], N at least 2, unit. Orthonormal rows give 0, equal ones 1. Unmix-CLIP also adds the sum of
    (rows_i . rows_i - 1)^2, as Barlow Twins does for its correlations: that term is 0 for unit rows, whatever they
    are, and so is its gradient; it is left out. A sum over pairs, as the sources write it, is N (N - 1) times this: its
    weight would mean something else for every number of labels.
    """
    gram = rows @ rows.T
    others = gram - torch.diag(gram.diagonal())
    return others.square().sum() / (len(rows) * (len(rows) - 1))


def group_covariance(scores: Tensor, groups: Tensor, classes: Tensor) -> Tensor:
    """How far scores tell the groups of a class apart: the mean over classes and columns of the summed squared
    covariances with the groups' standardised indicators, a scalar; 0 where every group has the class's mean score.

    scores [B, Q]. groups int64 [B], classes int64 [B]; rows with a number below 0 are left out, and so are classes of
    one group. In a class whose share p is of a group with a mean score d above the others', that group's term is
    p (1 - p) d^2.
    """
    known = (groups >= 0) & (classes >= 0)
    scores, groups, classes = scores[known].float(), groups[known], classes[known]
    if not len(groups):
        return scores.sum() * 0.0
    among, of_class = functional.one_hot(groups).float(), functional.one_hot(classes).float()
    sizes = of_class.sum(dim=0).clamp(min=1)[:, None]
    shares = of_class.T @ among / sizes
    apart = scores - of_class @ (of_class.T @ scores / sizes)
    spread = (shares * (1 - shares)).sqrt()
    indicators = (among - of_class @ shares)[:, None, :] / spread.clamp(min=1e-6)[None]
    covariances = torch.einsum("bq,bcg,bc->cqg", apart, indicators, of_class / sizes.T)
    mixed = (spread > 0).any(dim=1)
    return covariances.square().sum(dim=2)[mixed].mean() if bool(mixed.any()) else scores.sum() * 0.0
