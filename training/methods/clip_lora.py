"""CLIP-LoRA: small changes of low rank in both towers are learnt from a few pictures, and merged into the weights.

Zanella and Ben Ayed, 2024, "Low-Rank Few-Shot Adaptation of Vision-Language Models". What ships is a model like its
base, of the same size and speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from training.method import Context, ModuleUse, ParamGroup
from training.methods.parts.low_rank import LowRankChange, LowRankTowers, low_rank_targets
from training.methods.parts.tuned import TunedOptions, TunedTowers


class ClipLoraOptions(TunedOptions):
    """rank and alpha: of the changes, which are multiplied with alpha / rank. dropout: of their input channels."""

    rank: int = Field(default=2, ge=1)
    alpha: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.25, ge=0, lt=1)


def create(options: dict[str, Any]) -> ClipLoraMethod:
    return ClipLoraMethod(ClipLoraOptions.parse(options, method="clip_lora"))


class ClipLoraMethod(TunedTowers):
    options: ClipLoraOptions

    def __init__(self, options: ClipLoraOptions) -> None:
        self.options = options

    def setup(self, context: Context) -> None:
        base, options = context.required_base("clip_lora"), self.options
        model = base.model.to(context.device)
        try:
            targets = low_rank_targets(model, options.towers)
        except ValueError as error:
            raise ValueError(f"clip_lora: {error}") from error
        self.change = LowRankChange(targets, rank=options.rank, alpha=options.alpha, dropout=options.dropout)
        self.change.to(context.device)
        self.model = LowRankTowers(model, self.change)
        self.see_shots(context, base, self.model)

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {"change": (self.change, "train_only"), "model": (self.model, "frozen")}

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup(parameters={f"change.{name}": p for name, p in self.change.named_parameters()})]

    def encoded(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.model.weights(training=True)
        return self.model.encode("encode_image", pixels, weights), self.model.encode("encode_text", ids, weights)

    def between(self, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """The change as a whole times `alpha`: of its two factors one is scaled, and the other is that of the end."""
        return {name: alpha * each if name.startswith("change.up.") else each.clone() for name, each in end.items()}

    def weights(self) -> dict[str, Tensor]:
        """Of the whole model, with the changes in it; what equals the base's has its bytes, the sign of a zero too."""
        with torch.no_grad():
            before, changed = self.model.base.state_dict(), self.model.weights()
        merged = {name: torch.where(each == before[name], before[name], each) for name, each in changed.items()}
        return {f"model.{name}": tensor for name, tensor in {**before, **merged}.items()}
