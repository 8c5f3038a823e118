"""Contexts that depend on the picture: what a picture adds to them, the logits that follow, and what they are worth.

Zhou et al., 2022, "Conditional Prompt Learning for Vision-Language Models" (CoCoOp), equation 3 and figure 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model_store.towers import blocks
from training.losses import unit
from training.methods.parts.class_heads import F32, I64, judge_predictions
from training.methods.parts.contexts import PromptedText

TEXTS_AT_ONCE = 512
_ORDER_STREAM = 7


class MetaNet(nn.Module):
    """What a picture adds to every context vector, nothing at first: unit image vectors [B, D] -> [B, W]."""

    def __init__(self, dim: int, width: int, *, hidden: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(dim, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(functional.relu(self.first(images)))

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> MetaNet:
        """One with the weights of a checkpoint."""
        hidden, dim = state["first.weight"].shape
        net = cls(dim, len(state["last.bias"]), hidden=hidden)
        net.load_state_dict(state)
        return net


class ConditionalText(nn.Module):
    """Logits [B, C] of unit image vectors [B, D] and ids int64 [C, L]: every text is read anew for each picture.

    scale: what cosines are multiplied with.
    """

    def __init__(self, prompted: PromptedText, meta_net: MetaNet, *, scale: float) -> None:
        super().__init__()
        self.prompted, self.scale = prompted, scale
        self.meta_net = meta_net  # `meta` is taken by torch's own traced modules

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        return self.scale * (self.texts(images, ids) * images.float()[:, None]).sum(dim=-1)

    def texts(self, given: Tensor, ids: Tensor) -> Tensor:
        """Unit text vectors [B, C, D] as the pictures `given` [B, D] make them."""
        pictures, names = given.shape[0], ids.shape[0]
        vectors = self.prompted.contexts.vectors[None] + self.meta_net(given)[:, None]
        each = vectors[:, None].expand(-1, names, -1, -1).reshape(pictures * names, *vectors.shape[1:])
        rows = ids[None].expand(pictures, -1, -1).reshape(pictures * names, ids.shape[1])
        found = self.prompted.among(rows, each)
        return unit(found).reshape(pictures, names, found.shape[-1])


def logits_in_blocks(head: ConditionalText, images: Tensor, ids: Tensor, *, texts: int) -> Tensor:
    """As `head`, but no more than `texts` texts are in memory: the tower reads a block again when its gradient is due.

    A batch of no more texts than that is read once.
    """
    count, names = len(images), len(ids)
    if count * names <= texts:
        return head(images, ids)
    rows: dict[int, list[Tensor]] = {}
    for pictures, part in blocks(count, names, rows=texts):
        logits: Any = checkpoint(head, images[pictures], ids[part], use_reentrant=False)
        rows.setdefault(pictures.start, []).append(logits)
    return torch.cat([torch.cat(row, dim=1) for row in rows.values()])


def logits_given(head: ConditionalText, images: F32, ids: Tensor, *, given: F32 | None = None) -> F32:
    """Logits [n, C] of unit vectors [n, D], without gradients.

    given: unit vectors [n, D] of other pictures, which make the contexts in place of their own.
    """
    conditions = images if given is None else given
    found = np.empty((len(images), len(ids)), dtype=np.float32)
    device = ids.device
    with torch.no_grad():
        for rows, names in blocks(*found.shape, rows=TEXTS_AT_ONCE):
            shown = torch.from_numpy(images[rows]).to(device)
            texts = head.texts(torch.from_numpy(conditions[rows]).to(device), ids[names])
            found[rows, names] = (head.scale * (texts * shown[:, None]).sum(dim=-1)).float().cpu().numpy()
    return found


def judge_conditions(head: ConditionalText, images: F32, truth: I64, ids: Tensor) -> dict[str, Any]:
    """Accuracy of the classes `ids` on unit vectors [n, D], with two controls of what the condition is worth.

    head: each picture makes its own contexts. given_mean: the mean of all n vectors makes them for every picture.
    given_another: the next picture of one fixed order makes them. Where the three agree, the pictures change nothing
    that matters, and what was learnt is in the contexts.
    """
    mean = unit(torch.from_numpy(images.mean(axis=0, keepdims=True))).numpy()
    order = np.random.default_rng(_ORDER_STREAM).permutation(len(images))
    another = np.empty_like(images)
    another[order] = images[np.roll(order, -1)]
    conditions = {"head": None, "given_mean": np.repeat(mean, len(images), axis=0), "given_another": another}
    return {
        name: judge_predictions(logits_given(head, images, ids, given=given).argmax(axis=1), truth, classes=len(ids))
        for name, given in conditions.items()
    }
