"""The weights of an open_clip model in transformers' CLIPModel and SiglipModel."""

from __future__ import annotations

from typing import Any

import torch
from open_clip import CLIP
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, SiglipConfig, SiglipImageProcessor, SiglipModel

from tests.model_store.hub.layouts.source_models import SourceModel

_PILLOW_RESAMPLING = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def transformers_model(source: SourceModel) -> CLIPModel | SiglipModel:
    """The same model in transformers' own class, in eval mode."""
    if isinstance(source.model, CLIP):
        return _clip(source)
    return _siglip(source)


def image_processor(source: SourceModel) -> CLIPImageProcessor | SiglipImageProcessor:
    """transformers' preprocessing of a source; its `save_pretrained` writes preprocessor_config.json."""
    config, size = source.preprocess, source.size_px
    shared: dict[str, Any] = {
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "resample": _PILLOW_RESAMPLING[config.interpolation],
    }
    if config.resize_mode == "squash":
        return SiglipImageProcessor(size={"height": size, "width": size}, **shared)
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **shared)


def _clip(source: SourceModel) -> CLIPModel:
    vision, text = source.config["vision_cfg"], source.config["text_cfg"]
    activation = "quick_gelu" if source.config.get("quick_gelu") else "gelu"
    start, end = source.hub_tokenizer.bos_token_id, source.hub_tokenizer.eos_token_id
    config = CLIPConfig(
        projection_dim=source.config["embed_dim"],
        text_config={
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": activation,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": activation,
        },
    )
    state = source.model.state_dict()
    weights: dict[str, Tensor] = {
        "logit_scale": state["logit_scale"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_projection.weight": state["text_projection"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "visual_projection.weight": state["visual.proj"].T,
        **_affine(state, "ln_final", "text_model.final_layer_norm"),
        **_affine(state, "visual.ln_pre", "vision_model.pre_layrnorm"),
        **_affine(state, "visual.ln_post", "vision_model.post_layernorm"),
        **_openclip_blocks(state, "transformer", "text_model", text["layers"]),
        **_openclip_blocks(state, "visual.transformer", "vision_model", vision["layers"]),
    }
    return _filled(CLIPModel(config), weights)


def _siglip(source: SourceModel) -> SiglipModel:
    vision, text = source.config["vision_cfg"], source.config["text_cfg"]
    state = source.model.state_dict()
    patch = state["visual.trunk.patch_embed.proj.weight"]
    width, depth = patch.shape[0], len(source.model.visual.trunk.blocks)
    config = SiglipConfig(
        text_config={
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": "gelu",
            "bos_token_id": None,
            "eos_token_id": source.hub_tokenizer.eos_token_id,
            "pad_token_id": source.hub_tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": depth,
            "num_attention_heads": source.model.visual.trunk.blocks[0].attn.num_heads,
            "image_size": vision["image_size"],
            "patch_size": patch.shape[-1],
            "hidden_act": "gelu",
        },
    )
    trunk, head = "visual.trunk", "vision_model.head"
    pool = f"{trunk}.attn_pool"
    weights: dict[str, Tensor] = {
        "logit_scale": state["logit_scale"].reshape(1),
        "logit_bias": state["logit_bias"].reshape(1),
        "text_model.embeddings.token_embedding.weight": state["text.token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["text.positional_embedding"],
        "vision_model.embeddings.position_embedding.weight": state[f"{trunk}.pos_embed"][0],
        f"{head}.probe": state[f"{pool}.latent"],
        f"{head}.attention.in_proj_weight": torch.cat([state[f"{pool}.q.weight"], state[f"{pool}.kv.weight"]]),
        f"{head}.attention.in_proj_bias": torch.cat([state[f"{pool}.q.bias"], state[f"{pool}.kv.bias"]]),
        **_affine(state, "text.ln_final", "text_model.final_layer_norm"),
        **_affine(state, "text.text_projection", "text_model.head"),
        **_affine(state, f"{trunk}.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
        **_affine(state, f"{trunk}.norm", "vision_model.post_layernorm"),
        **_affine(state, f"{pool}.proj", f"{head}.attention.out_proj"),
        **_affine(state, f"{pool}.norm", f"{head}.layernorm"),
        **_affine(state, f"{pool}.mlp.fc1", f"{head}.mlp.fc1"),
        **_affine(state, f"{pool}.mlp.fc2", f"{head}.mlp.fc2"),
        **_openclip_blocks(state, "text.transformer", "text_model", text["layers"]),
    }
    for index in range(depth):
        old, new = f"{trunk}.blocks.{index}", f"vision_model.encoder.layers.{index}"
        weights |= _attention(state[f"{old}.attn.qkv.weight"], state[f"{old}.attn.qkv.bias"], new)
        weights |= _affine(state, f"{old}.attn.proj", f"{new}.self_attn.out_proj")
        weights |= _affine(state, f"{old}.norm1", f"{new}.layer_norm1")
        weights |= _affine(state, f"{old}.norm2", f"{new}.layer_norm2")
        weights |= _affine(state, f"{old}.mlp.fc1", f"{new}.mlp.fc1")
        weights |= _affine(state, f"{old}.mlp.fc2", f"{new}.mlp.fc2")
    return _filled(SiglipModel(config), weights)


def _openclip_blocks(state: dict[str, Tensor], old: str, new: str, layers: int) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for index in range(layers):
        block, layer = f"{old}.resblocks.{index}", f"{new}.encoder.layers.{index}"
        weights |= _attention(state[f"{block}.attn.in_proj_weight"], state[f"{block}.attn.in_proj_bias"], layer)
        weights |= _affine(state, f"{block}.attn.out_proj", f"{layer}.self_attn.out_proj")
        weights |= _affine(state, f"{block}.ln_1", f"{layer}.layer_norm1")
        weights |= _affine(state, f"{block}.ln_2", f"{layer}.layer_norm2")
        weights |= _affine(state, f"{block}.mlp.c_fc", f"{layer}.mlp.fc1")
        weights |= _affine(state, f"{block}.mlp.c_proj", f"{layer}.mlp.fc2")
    return weights


def _attention(weight: Tensor, bias: Tensor, layer: str) -> dict[str, Tensor]:
    parts = zip(("q", "k", "v"), weight.chunk(3), bias.chunk(3), strict=True)
    return {
        f"{layer}.self_attn.{part}_proj.{kind}": tensor
        for part, rows, offsets in parts
        for kind, tensor in (("weight", rows), ("bias", offsets))
    }


def _affine(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {f"{new}.{kind}": state[f"{old}.{kind}"] for kind in ("weight", "bias")}


def _filled(model: Any, weights: dict[str, Tensor]) -> Any:
    loaded = model.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, strict=False)
    buffers = {name for name, _ in model.named_buffers()}
    if loaded.unexpected_keys or set(loaded.missing_keys) - buffers:
        raise ValueError(f"missing {loaded.missing_keys}, unexpected {loaded.unexpected_keys}")
    return model.eval().requires_grad_(False)
