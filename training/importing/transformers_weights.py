"""Names of the weights of transformers' CLIP and SigLIP, and the names that open_clip has for the same weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from model_store.errors import ExportRefused

_LAYER = re.compile(r"(text_model|vision_model)\.encoder\.layers\.([0-9]+)\.(.+)")
# Older versions saved them with the weights.
_BUFFERS = frozenset({"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"})
_ANCHOR = "text_model.embeddings.token_embedding.weight"
_SIGLIP_ANCHOR = "vision_model.head.probe"

_Shape = Callable[[Tensor], Tensor]
_Names = Mapping[str, tuple[str, _Shape]]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _turned(tensor: Tensor) -> Tensor:
    """A Linear's weight [out, in] as the matrix that rows are multiplied with."""
    return tensor.T


def _scalar(tensor: Tensor) -> Tensor:
    return tensor.reshape(())


def _pair(theirs: str, ours: str) -> dict[str, tuple[str, _Shape]]:
    return {f"{theirs}.{part}": (f"{ours}.{part}", _same) for part in ("weight", "bias")}


def _text(ours: str) -> dict[str, tuple[str, _Shape]]:
    return {
        _ANCHOR: (f"{ours}token_embedding.weight", _same),
        "text_model.embeddings.position_embedding.weight": (f"{ours}positional_embedding", _same),
        **_pair("text_model.final_layer_norm", f"{ours}ln_final"),
    }


_CLIP: _Names = MappingProxyType(
    {
        "logit_scale": ("logit_scale", _scalar),
        "text_projection.weight": ("text_projection", _turned),
        "visual_projection.weight": ("visual.proj", _turned),
        "vision_model.embeddings.class_embedding": ("visual.class_embedding", _same),
        "vision_model.embeddings.patch_embedding.weight": ("visual.conv1.weight", _same),
        "vision_model.embeddings.position_embedding.weight": ("visual.positional_embedding", _same),
        **_pair("vision_model.pre_layrnorm", "visual.ln_pre"),  # spelt so
        **_pair("vision_model.post_layernorm", "visual.ln_post"),
        **_text(""),
    }
)
_SIGLIP: _Names = MappingProxyType(
    {
        "logit_scale": ("logit_scale", _scalar),
        "logit_bias": ("logit_bias", _scalar),
        "vision_model.embeddings.position_embedding.weight": ("visual.trunk.pos_embed", lambda table: table[None]),
        _SIGLIP_ANCHOR: ("visual.trunk.attn_pool.latent", _same),
        **_pair("vision_model.embeddings.patch_embedding", "visual.trunk.patch_embed.proj"),
        **_pair("vision_model.post_layernorm", "visual.trunk.norm"),
        **_pair("vision_model.head.attention.out_proj", "visual.trunk.attn_pool.proj"),
        **_pair("vision_model.head.layernorm", "visual.trunk.attn_pool.norm"),
        **_pair("vision_model.head.mlp.fc1", "visual.trunk.attn_pool.mlp.fc1"),
        **_pair("vision_model.head.mlp.fc2", "visual.trunk.attn_pool.mlp.fc2"),
        **_pair("text_model.head", "text.text_projection"),
        **_text("text."),
    }
)
# Parts of a layer; q, k and v are one matrix in both.
_OPEN_CLIP_LAYER = MappingProxyType(
    {
        **{"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"},
        "self_attn.out_proj": "attn.out_proj",
    }
)
_TIMM_LAYER = MappingProxyType(
    {
        **{"layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"},
        "self_attn.out_proj": "attn.proj",
    }
)


def has_transformers_names(state: Mapping[str, Tensor]) -> bool:
    return _ANCHOR in state


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a transformers CLIPModel or SiglipModel under open_clip's names, in open_clip's layout.

    Raises:
        ExportRefused: a weight that is none of theirs, or a layer whose attention is incomplete.
    """
    is_siglip = _SIGLIP_ANCHOR in state
    names = _SIGLIP if is_siglip else _CLIP
    found: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name in _BUFFERS:
            continue
        if name in names:
            target, shape = names[name]
            found[target] = shape(tensor)
            continue
        match = _LAYER.fullmatch(name)
        if match is None:
            if is_siglip and name.startswith("vision_model.head.attention.in_proj_"):
                found |= _pool_attention(name.rpartition("_")[2], tensor)
                continue
            raise ExportRefused(f"{name} is no weight of transformers' {'SigLIP' if is_siglip else 'CLIP'}")
        is_timm = is_siglip and match[1] == "vision_model"
        prefix = _layer_prefix(match[1], match[2], is_siglip)
        part, _, kind = match[3].rpartition(".")
        if part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            fused = f"{prefix}.attn.qkv.{kind}" if is_timm else f"{prefix}.attn.in_proj_{kind}"
            attention.setdefault(fused, {})[part[10]] = tensor
            continue
        ours = (_TIMM_LAYER if is_timm else _OPEN_CLIP_LAYER).get(part)
        if ours is None:
            raise ExportRefused(f"{name} is no weight of transformers' {'SigLIP' if is_siglip else 'CLIP'}")
        found[f"{prefix}.{ours}.{kind}"] = tensor
    for fused, parts in attention.items():
        if parts.keys() != {"q", "k", "v"}:
            raise ExportRefused(f"{fused}: of query, key and value there is only {', '.join(sorted(parts))}")
        found[fused] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return found


def _layer_prefix(tower: str, layer: str, is_siglip: bool) -> str:
    if tower == "text_model":
        return f"{'text.' if is_siglip else ''}transformer.resblocks.{layer}"
    return f"visual.trunk.blocks.{layer}" if is_siglip else f"visual.transformer.resblocks.{layer}"


def _pool_attention(kind: str, fused: Tensor) -> dict[str, Tensor]:
    """torch's MultiheadAttention has query, key and value in one; timm's pooling has the query apart."""
    query, key, value = fused.chunk(3)
    pool = "visual.trunk.attn_pool"
    return {f"{pool}.q.{kind}": query, f"{pool}.kv.{kind}": torch.cat([key, value])}
