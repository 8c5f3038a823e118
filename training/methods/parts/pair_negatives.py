"""Hard negatives of a matching loss: of each pair a picture and a text that the dual encoder takes for right.

Li et al., 2021, "Align before Fuse", section 3.2: drawn from the batch with the probabilities of its own softmax. What
is right, or may be, is never drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.losses import positive_pairs, usable_negatives

_NEVER = -1e4


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """Which pairs of a batch may be called wrong: texts bool [B, T] for each picture, pictures bool [B, B] for each of
    the first B texts."""

    texts: Tensor
    pictures: Tensor


def wrong_pairs(
    caption_id: Tensor,
    *,
    excused: Tensor | None = None,
    negative_id: Tensor | None = None,
    has_negative: Tensor | None = None,
) -> Wrong:
    """The texts are the batch's captions int64 [B] and, where there are any, its own false captions behind them: T is B
    or 2B. excused: bool [B, T], texts that are not plainly false of a picture, by whoever knows. Without it, captions
    that differ count as wrong, and a false caption counts against its own picture only.
    """
    allowed = ~positive_pairs(caption_id)
    if negative_id is not None and has_negative is not None:
        usable = usable_negatives(caption_id, negative_id, has_negative, own_only=excused is None)
        allowed = torch.cat([allowed, usable], dim=1)
    if excused is not None:
        allowed = allowed & ~excused
    return Wrong(texts=allowed, pictures=allowed[:, : len(caption_id)].T)


def draw(logits: Tensor, allowed: Tensor, *, hard: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One allowed column of each row: int64 [N], and bool [N], false where no column is allowed and 0 stands there.

    logits [N, M]: the dual encoder's. hard: by their softmax over the allowed columns; else each is as likely.
    """
    there = allowed.any(dim=1)
    weights = logits.masked_fill(~allowed, _NEVER).softmax(dim=1) if hard else allowed.float()
    # A weight may underflow to nothing; then another allowed column is as good.
    weights = (weights.float() + 1e-30) * allowed
    weights[~there] = 1.0
    drawn = torch.multinomial(weights.cpu(), 1, generator=generator).squeeze(1).to(logits.device)
    return torch.where(there, drawn, torch.zeros_like(drawn)), there


def matching_loss(logits: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
    """Cross-entropy of match logits [N] with truths in [0, 1], the mean over the pairs that count; a scalar."""
    each = functional.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return (each * counts).sum() / counts.sum().clamp(min=1)
