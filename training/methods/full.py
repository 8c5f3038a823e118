"""Plain fine-tuning on a few pictures: every weight of the towers moves. It is what the others are measured against.

It forgets most of what the pictures do not show; interpolation with the base gives some of that back (Wortsman et al.,
2022, "Robust fine-tuning of zero-shot models", WiSE-FT, the recipe's table `[wise_ft]`).
"""

from __future__ import annotations

import copy
from typing import Any, Literal

from torch import Tensor, nn

from training.method import Context, ModuleUse, ParamGroup
from training.methods.parts.tower_parameters import lock_the_other, tower_parameters
from training.methods.parts.tuned import TunedOptions, TunedTowers


class FullOptions(TunedOptions):
    """batch_norms: "frozen" keeps their running statistics, which a few pictures would spoil; "train" moves them, and
    norms each batch by itself.
    """

    batch_norms: Literal["frozen", "train"] = "frozen"


def create(options: dict[str, Any]) -> FullMethod:
    return FullMethod(FullOptions.parse(options, method="full"))


class FullMethod(TunedTowers):
    options: FullOptions

    def __init__(self, options: FullOptions) -> None:
        self.options = options

    def setup(self, context: Context) -> None:
        base = context.required_base("full")
        try:
            self._moving = tuple(tower_parameters(base.model, self.options.towers))
        except ValueError as error:
            raise ValueError(f"full: {error}") from error
        self.model = copy.deepcopy(base.model).to(context.device)
        lock_the_other(self.model, self.options.towers)
        for name in self._moving:
            self.model.get_parameter(name).requires_grad_(True)
        if self.options.batch_norms == "frozen":
            self.model.keep_statistics()
        self.see_shots(context, base, self.model)

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {"model": (self.model, "export")}

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup(parameters={f"model.{name}": self.model.get_parameter(name) for name in self._moving})]

    def encoded(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_image(pixels), self.model.encode_text(ids)

    def validated(self) -> dict[str, Any]:
        training = self.model.training
        self.model.eval()
        try:
            return super().validated()
        finally:
            self.model.train(training)
