"""Unmix's two projectors and how positions become presence, in torch: the formulas of model_store.presence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_store.manifest import Presence
from training.checkpoint import Checkpoint, LoadedModel, load_weights, read_checkpoint
from training.features import dense_source
from training.losses import unit

Norm = Literal["layer", "batch"]
HEADS = "heads."


class TextProjector(nn.Module):
    """Two linear layers without biases around a norm and a ReLU: unit text rows [n, D] -> [n, D'], not normalised.

    Zero rows stay zero. residual (D' = D): what is learnt is added to the row, and is nothing at first.
    """

    def __init__(self, dim: int, hidden: int, out: int, *, norm: Norm, residual: bool) -> None:
        super().__init__()
        if residual and out != dim:
            raise ValueError(f"a residual projector keeps the size: {dim} in, {out} out")
        self.inner = nn.Linear(dim, hidden, bias=False)
        self.norm: nn.Module = nn.LayerNorm(hidden) if norm == "layer" else nn.BatchNorm1d(hidden)
        self.outer = nn.Linear(hidden, out, bias=False)
        self.residual = residual
        self.register_buffer("is_residual", torch.tensor(float(residual)))
        if residual:
            nn.init.zeros_(self.outer.weight)

    def forward(self, text: Tensor) -> Tensor:
        change = self.outer(functional.relu(self.norm(self.inner(text))))
        # A text without a known word is a zero row: it says nothing before the projector and nothing behind it.
        change = change * (text.abs().amax(dim=-1, keepdim=True) > 0).to(change.dtype)
        return text + change if self.residual else change


class UnmixHeads(nn.Module):
    """image: a linear map of positions without a bias, so that the mean of positions stays the pooled vector's image;
    the identity at first where it keeps the size. text: a TextProjector. slope_log, offset: of the logits.
    """

    def __init__(self, dim: int, out: int, hidden: int, *, norm: Norm, residual: bool) -> None:
        super().__init__()
        self.image = nn.Linear(dim, out, bias=False)
        if dim == out:
            nn.init.eye_(self.image.weight)
        self.text = TextProjector(dim, hidden, out, norm=norm, residual=residual)
        self.slope_log = nn.Parameter(torch.zeros(()))
        self.offset = nn.Parameter(torch.zeros(()))


def directions(positive: Tensor, negative: Tensor | None) -> Tensor:
    """What positions are projected on: unit rows [C, D] less their denials, or less the mean of the others."""
    if negative is not None:
        return positive - negative
    return positive - (positive.sum(dim=0) - positive) / max(len(positive) - 1, 1)


def aggregated(positions: Tensor, pooled: Tensor, towards: Tensor, rule: Presence) -> Tensor:
    """`rule.scale` times each label's score in each picture, [B, C], before calibration.

    positions [B, n, D] and pooled [B, D], both behind the image projector; towards [C, D].
    """
    length = pooled.norm(dim=-1).clamp(min=1e-12)
    divided = rule.similarity == "cosine" or rule.divide_by == "pooled_norm"
    if rule.aggregation == "pooled":
        return rule.scale * (pooled @ towards.T) / (length[:, None] if divided else 1.0)
    if rule.similarity == "cosine":
        positions = unit(positions)
    maps = rule.scale * positions @ towards.T
    if rule.similarity == "projection" and divided:
        maps = maps / length[:, None, None]
    if rule.aggregation == "max":
        return maps.amax(dim=1)
    return (maps.softmax(dim=1) * maps).sum(dim=1)


def off_diagonal(rows: Tensor) -> float:
    """Mean |cosine| between different unit rows [C, D]."""
    gram = (rows @ rows.T).abs()
    return float((gram.sum() - gram.diagonal().sum()) / (len(rows) * (len(rows) - 1)))


class UnmixedModel(nn.Module):
    """A frozen base with the heads behind it; the heads are not its submodules, so freezing it leaves them alone."""

    def __init__(self, base: LoadedModel, heads: UnmixHeads) -> None:
        super().__init__()
        self.base, self.dense = base.model, dense_source(base).module
        self._heads = (heads,)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, D']: the pooled vector's image."""
        return self._heads[0].image(self.base.encode_image(pixels).float())

    def encode_text(self, ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, D']."""
        return self._heads[0].text(unit(self.base.encode_text(ids)))

    def encode_dense_and_pooled(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, 3] of a size that the dense role takes -> [B, h, w, D'] and [B, D']."""
        positions, pooled = self.dense(pixels)
        return self._heads[0].image(positions), self._heads[0].image(pooled)


@dataclass(frozen=True, kw_only=True)
class LoadedUnmix:
    """A checkpoint that is heads behind another checkpoint's towers, opened for inference."""

    info: Checkpoint
    heads: UnmixHeads
    presence: Presence

    def behind(self, base: LoadedModel) -> UnmixedModel:
        """Raises:
        ValueError: another base than the one they were fitted on.
        """
        if base.info.weights_sha256 != self.info.base_sha256:
            raise ValueError(f"{base.info.config.name} is not the base that {self.info.config.name} was fitted on")
        return UnmixedModel(base, self.heads).eval()


def load_unmix(folder: Path) -> LoadedUnmix:
    """Rebuild the heads from their stored shapes.

    Raises:
        ValueError: the folder holds no such checkpoint.
    """
    info = read_checkpoint(folder)
    if "text_adapter" not in info.graphs or info.presence is None:
        raise ValueError(f"{folder} is no checkpoint of heads: method {info.config.method} made {sorted(info.graphs)}")
    weights = load_weights(folder)
    state = {name.removeprefix(HEADS): tensor for name, tensor in weights.items() if name.startswith(HEADS)}
    return LoadedUnmix(info=info, heads=heads_of(state), presence=info.presence)


def heads_of(state: dict[str, Tensor]) -> UnmixHeads:
    """In eval mode, without gradients."""
    residual = bool(state["text.is_residual"])
    out, dim = state["image.weight"].shape
    norm: Norm = "batch" if "text.norm.running_mean" in state else "layer"
    heads = UnmixHeads(dim, out, len(state["text.inner.weight"]), norm=norm, residual=residual)
    heads.load_state_dict(state)
    return heads.eval().requires_grad_(False)
