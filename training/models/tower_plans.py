"""The transformer towers of a model: where they are, and which axes of their weights are channels, heads and units."""

# torch gives every submodule the type Tensor | Module; open_clip builds on that.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import open_clip
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
from torch import nn

from training.models.slim_blocks import SlimBlock
from training.models.towers import AttentionHead, DualEncoder, OpenClipDualEncoder, SmallDualEncoder, TextTower
from training.models.trunks import VitTrunk
from training.slim_config import SlimTower

Side = Literal["image", "text"]
Axis = Literal["channels", "packed", "heads", "mlp"]
SIDES: tuple[Side, ...] = ("image", "text")
# Axes of a block's weights. packed: query, key and value of every head; heads: head_width columns of each.
BLOCK_AXES: dict[str, tuple[Axis, ...]] = {
    "ln_1.weight": ("channels",),
    "ln_1.bias": ("channels",),
    "attn.in_proj_weight": ("packed", "channels"),
    "attn.in_proj_bias": ("packed",),
    "attn.out_proj.weight": ("channels", "heads"),
    "attn.out_proj.bias": ("channels",),
    "ls_1.gamma": ("channels",),
    "ln_2.weight": ("channels",),
    "ln_2.bias": ("channels",),
    "mlp.c_fc.weight": ("mlp", "channels"),
    "mlp.c_fc.bias": ("mlp",),
    "mlp.c_proj.weight": ("channels", "mlp"),
    "mlp.c_proj.bias": ("channels",),
    "ls_2.gamma": ("channels",),
}


@dataclass(frozen=True, kw_only=True)
class TowerPlan:
    """The transformer of one tower and what lies around it, as paths in the model.

    around: weights outside of the blocks -> their axis of channels. norms: LayerNorms outside of the blocks. leaks:
    weights of `around` that no norm keeps apart from a masked channel: they read the embeddings themselves, or are
    added behind the last norm. sines: the trunk whose positions are sines of its channels. fixed_width: why the number
    of channels cannot change, if it cannot.
    """

    side: Side
    transformer: str
    around: dict[str, int]
    norms: tuple[str, ...]
    leaks: tuple[str, ...] = ()
    sines: str | None = None
    fixed_width: str | None = None

    def blocks(self, model: nn.Module) -> list[ResidualAttentionBlock | SlimBlock]:
        return list(model.get_submodule(self.transformer).resblocks)

    def block_name(self, layer: int, weight: str) -> str:
        return f"{self.transformer}.resblocks.{layer}.{weight}"


def plan_of(model: DualEncoder, side: Side) -> TowerPlan:
    """Raises:
    ValueError: this tower is no transformer of blocks that are known here.
    """
    plan: TowerPlan | None = None
    if isinstance(model, SmallDualEncoder):
        plan = _small_image(model) if side == "image" else _small_text(model.text)
        kind = type(model.trunk if side == "image" else model.text).__name__
    elif isinstance(model, OpenClipDualEncoder):
        plan, kind = _openclip_image(model.clip.visual) if side == "image" else _openclip_text(model.clip)
    else:
        kind = f"tower of a {type(model).__name__}"
    if plan is None:
        raise ValueError(
            f"the {side} tower, a {kind}, cannot shrink: only transformers can, of clipworks_vit_*, of a small text "
            "tower with layers, and of open_clip's ViTs and text towers"
        )
    transformer, blocks = model.get_submodule(plan.transformer), plan.blocks(model)
    odd = {type(block).__name__ for block in blocks if type(block) not in (ResidualAttentionBlock, SlimBlock)}
    if odd or not isinstance(transformer, Transformer) or not transformer.batch_first or not blocks:
        form = ", ".join(sorted(odd)) or "of another form"
        raise ValueError(f"the {side} tower cannot shrink: its blocks are {form}")
    return plan


def shape_of(model: nn.Module, plan: TowerPlan) -> SlimTower:
    """The tower as it is."""
    blocks = plan.blocks(model)
    width, inner = blocks[0].attn.out_proj.weight.shape
    channels = None
    if plan.sines is not None:
        channels = model.get_submodule(plan.sines).position_channels or tuple(range(width))
    return SlimTower(
        width=width,
        head_width=inner // blocks[0].attn.num_heads,
        heads=tuple(block.attn.num_heads for block in blocks),
        mlp=tuple(block.mlp.c_fc.weight.shape[0] for block in blocks),
        position_channels=channels,
    )


def _norm(path: str) -> dict[str, int]:
    return {f"{path}.weight": 0, f"{path}.bias": 0}


def _small_image(model: SmallDualEncoder) -> TowerPlan | None:
    if not isinstance(model.trunk, VitTrunk):
        return None
    around = {"trunk.patches.weight": 0, "trunk.patches.bias": 0, **_norm("trunk.norm")}
    leaks: tuple[str, ...] = ()
    if isinstance(model.image_projection, AttentionHead):
        leaks = ("image_projection.position",)
        around |= {f"image_projection.{name}": 1 for name in ("position", "query.weight", "key.weight", "value.weight")}
    else:
        around["image_projection.weight"] = 1
    return TowerPlan(
        side="image",
        transformer="trunk.transformer",
        around=around,
        norms=("trunk.norm",),
        leaks=leaks,
        sines="trunk",
    )


def _small_text(text: TextTower) -> TowerPlan | None:
    if text.pool == "bag":
        return None
    around = {"text.token_embedding.weight": 1, "text.positional_embedding": 1, **_norm("text.ln_final")}
    around["text.projection.weight"] = 1
    leaks: tuple[str, ...] = ()
    fixed = None
    if text.pool == "eos+bag" and isinstance(text.bag_projection, nn.Linear):
        around["text.bag_projection.weight"] = 1
        leaks = ("text.bag_projection.weight",)
    elif text.pool == "eos+bag":
        fixed = "its token vectors are the embedding (bag_projection = false)"
    return TowerPlan(
        side="text",
        transformer="text.transformer",
        around=around,
        norms=("text.ln_final",),
        leaks=leaks,
        fixed_width=fixed,
    )


def _openclip_image(visual: nn.Module) -> tuple[TowerPlan | None, str]:
    if not isinstance(visual, VisionTransformer):
        return None, type(visual).__name__
    if visual.attn_pool is not None:
        return None, "ViT that pools by attention of its own"
    path = "clip.visual"
    around = {f"{path}.conv1.weight": 0, f"{path}.class_embedding": 0, f"{path}.positional_embedding": 1}
    norms = tuple(name for name in ("ln_pre", "ln_post") if isinstance(getattr(visual, name), nn.LayerNorm))
    for name in norms:
        around |= _norm(f"{path}.{name}")
    if visual.proj is not None:
        around[f"{path}.proj"] = 0
    plan = TowerPlan(
        side="image",
        transformer=f"{path}.transformer",
        around=around,
        norms=tuple(f"{path}.{name}" for name in norms),
    )
    return plan, "VisionTransformer"


def _openclip_text(clip: nn.Module) -> tuple[TowerPlan | None, str]:
    whole = isinstance(clip, open_clip.CLIP)
    tower, path = (clip, "clip") if whole else (clip.text, "clip.text")
    if not whole and not isinstance(tower, TextTransformer):
        return None, type(tower).__name__
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        return None, "text tower with a class token or a mask of padding"
    around = {f"{path}.token_embedding.weight": 1, f"{path}.positional_embedding": 1, **_norm(f"{path}.ln_final")}
    if isinstance(tower.text_projection, nn.Linear):
        around[f"{path}.text_projection.weight"] = 1
    elif tower.text_projection is not None:
        around[f"{path}.text_projection"] = 0
    plan = TowerPlan(side="text", transformer=f"{path}.transformer", around=around, norms=(f"{path}.ln_final",))
    return plan, "TextTransformer"
