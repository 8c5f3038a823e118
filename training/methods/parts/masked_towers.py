"""A dual encoder whose transformers are masked: what the gates close has no influence, and could as well be cut off.

A gate multiplies what its unit writes: the weights of the attention's output projection by heads, of the MLP's by
units, both by the block's layer and by the channels they write to, and the stream itself where it enters the blocks.
Norms look at open channels only. With gates of 0 and 1 the outputs are those of the model without the closed units.
"""

# torch gives every submodule the type Tensor | Module.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from training.methods.parts.gates import TowerGates
from training.methods.parts.inheritance import inherited_state, kept_shape
from training.models.tower_plans import Side, TowerPlan, plan_of, shape_of
from training.models.towers import DualEncoder, PixelInput
from training.slim_config import SlimTower


class MaskedLayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis of [..., C], of its open channels only; closed ones come out as 0.

    open: [C], 1 for a channel that counts. With all of them open it is the norm that it was made of.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("open", torch.ones_like(norm.weight, requires_grad=False), persistent=False)
        self.open: Tensor
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.float()
        count = self.open.sum().clamp(min=1)
        mean = (channels * self.open).sum(dim=-1, keepdim=True) / count
        centred = (channels - mean) * self.open
        deviation = (centred.square().sum(dim=-1, keepdim=True) / count + self.eps).sqrt()
        return (centred / deviation * self.weight + self.bias * self.open).to(x.dtype)


class MaskedDualEncoder(DualEncoder):
    """`dense` with gates over one or both of its towers; the model that is left is in `pruned`."""

    def __init__(self, dense: DualEncoder, gates: Mapping[Side, TowerGates]) -> None:
        super().__init__()
        self.plans: dict[Side, TowerPlan] = {side: plan_of(dense, side) for side in gates}
        self.dense = dense
        self.gates = nn.ModuleDict(gates)
        for plan in self.plans.values():
            _prepare(dense, plan)

    @property
    def logit_scale(self) -> nn.Parameter:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.dense.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.dense.logit_bias

    @property
    def pixel_input(self) -> PixelInput:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.dense.pixel_input

    def encode_pixels(self, x: Tensor) -> Tensor:
        return self._call("image", "encode_pixels", x)

    def encode_dense(self, pixels: Tensor) -> Tensor:
        return self._call("image", "encode_dense", pixels)

    def encode_dense_and_pooled(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self._call("image", "encode_dense_and_pooled", pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        return self._call("text", "encode_text", ids)

    def image_parts(self) -> tuple[nn.Module, ...]:
        return self.dense.image_parts()

    def checkpoint_gradients(self) -> None:
        """Raises:
        ValueError: always; what is computed again during backward would not see the masks.
        """
        raise ValueError("run.gradient_checkpointing is not for a run that learns masks: leave it out")

    def tower_gates(self, side: Side) -> TowerGates:
        return self.gates[side]

    def pruned(self) -> tuple[dict[str, Tensor], dict[Side, SlimTower]]:
        """State and shapes of the model without what the gates close, if training ended now."""
        state: dict[str, Tensor] = self.dense.state_dict()
        shapes: dict[Side, SlimTower] = {}
        for side, plan in self.plans.items():
            shape, kept = shape_of(self.dense, plan), self.tower_gates(side).kept()
            state, shapes[side] = inherited_state(state, plan, shape, kept), kept_shape(shape, kept)
        return state, shapes

    def _call(self, side: Side, function: str, x: Tensor) -> Any:
        if side not in self.plans:
            return getattr(self.dense, function)(x)
        masked = {f"model.{name}": tensor for name, tensor in self._masked(side).items()}
        return functional_call(_Function(self.dense, function), masked, (x,), tie_weights=False)

    def _masked(self, side: Side) -> dict[str, Tensor]:
        """The weights and buffers of a tower that its gates change."""
        plan, gates = self.plans[side], self.tower_gates(side).values()
        weights = dict(self.dense.named_parameters())
        stream = gates.channels
        count_open = (stream > 0).to(stream.dtype)
        found = {f"{plan.transformer}.entry": stream}
        found |= {f"{norm}.open": count_open for norm in plan.norms}
        for name in plan.leaks:
            found[name] = weights[name] * stream  # channels are their last axis
        head_width = self.tower_gates(side).shape.head_width
        for at, (layer, heads, mlp) in enumerate(zip(gates.layers, gates.heads, gates.mlp, strict=True)):
            found |= {plan.block_name(at, f"{norm}.open"): count_open for norm in ("ln_1", "ln_2")}
            writes = layer * stream
            for branch, units in (("attn.out_proj", heads.repeat_interleave(head_width)), ("mlp.c_proj", mlp)):
                weight, bias = (plan.block_name(at, f"{branch}.{name}") for name in ("weight", "bias"))
                found[weight] = weights[weight] * writes[:, None] * units
                found[bias] = weights[bias] * writes
        return found


class _Function(nn.Module):
    """A function of a model as a module's forward."""

    def __init__(self, model: nn.Module, function: str) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor) -> Any:
        return getattr(self.model, self.function)(x)


def _prepare(dense: DualEncoder, plan: TowerPlan) -> None:
    """Let a tower's norms look at open channels, and its stream be gated where it enters the blocks."""
    transformer = dense.get_submodule(plan.transformer)
    transformer.register_buffer("entry", torch.ones(plan.blocks(dense)[0].attn.out_proj.weight.shape[0]), False)
    transformer.register_forward_pre_hook(
        lambda module, given: (given[0] * module.entry.to(given[0].dtype), *given[1:])
    )
    for path in plan.norms:
        owner, _, name = path.rpartition(".")
        setattr(dense.get_submodule(owner), name, MaskedLayerNorm(dense.get_submodule(path)))
    for block in plan.blocks(dense):
        block.ln_1, block.ln_2 = MaskedLayerNorm(block.ln_1), MaskedLayerNorm(block.ln_2)
