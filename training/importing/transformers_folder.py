"""A folder that transformers' save_pretrained wrote: its CLIP or SigLIP as an open_clip configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from model_store.errors import ExportRefused
from training.models.siglip_vit import SiglipVit, register

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What an import of a folder reads, and so all that a hub repository has to give.
FILES = (
    *(CONFIG, "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "vocab.json", "merges.txt"),
)
_ACTS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
_LEGACY_EOS = 2  # a wrong number that transformers' old CLIP configurations carry, and its model knows
# Cleaning before the tokenizer: transformers' CLIP tokenizer lowers by itself, its SigLIP one also takes punctuation
# away, in Python code that tokenizer.json does not have. SigLIP 2 was trained on lower-case text.
_CLEAN = {
    **{"CLIPTokenizer": "whitespace", "CLIPTokenizerFast": "whitespace", "SiglipTokenizer": "canonicalize"},
    **{"SiglipTokenizerFast": "canonicalize", "Siglip2Tokenizer": "lower", "GemmaTokenizer": "lower"},
    "GemmaTokenizerFast": "lower",
}
_CLEAN_OF_KIND = {"clip": "whitespace", "siglip": "canonicalize"}


def is_transformers_folder(folder: Path) -> bool:
    """Whether its config.json says that transformers wrote it."""
    return (folder / CONFIG).is_file() and "model_type" in _json(folder / CONFIG)


def config_of(folder: Path) -> dict[str, Any]:
    """The model as open_clip's configuration.

    Raises:
        ExportRefused: another model than CLIP or SigLIP, or one that open_clip cannot compute.
    """
    config = _json(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in ("clip", "siglip"):
        raise ExportRefused(
            f"{folder.name} is a {kind!r} of transformers; its CLIP and SigLIP of fixed size can be imported "
            "(model_type clip or siglip)"
        )
    text, vision = _towers(config)
    if vision.get("num_channels", 3) != 3:
        raise ExportRefused(f"{folder.name}: its pictures have {vision['num_channels']} channels, 3 are known here")
    made = _clip(config, text, vision) if kind == "clip" else _siglip(text, vision)
    made["text_cfg"] |= {"hf_tokenizer_name": "transformers", "tokenizer_kwargs": {"clean": _clean_of(folder, kind)}}
    return made


def preprocess_of(folder: Path, size_px: int) -> dict[str, Any]:
    """The image processor as open_clip's preprocessing of pictures of `size_px`.

    Raises:
        ExportRefused: there is none, or it does something else than resizing, cropping and normalising.
    """
    settings = _image_processor(folder)
    where = f"{folder.name}: its image processor"
    unknown = sorted(settings.keys() - _KNOWN_KEYS)
    if unknown:
        raise ExportRefused(f"{where} has {', '.join(unknown)}, which is not known here")
    for name in ("do_resize", "do_rescale"):
        if not settings.get(name, True):
            raise ExportRefused(f"{where} has {name} false: pictures must be resized and divided by 255")
    factor = settings.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise ExportRefused(f"{where} has rescale_factor {factor}, 1/255 is known here")
    if settings.get("resample", 3) not in _INTERPOLATIONS:
        raise ExportRefused(f"{where} has resample {settings['resample']}; 2 (bilinear) and 3 (bicubic) are known here")
    side, mode = _side_and_mode(settings, where)
    if side != size_px:
        raise ExportRefused(f"{where} gives {side} px, the model takes {size_px}")
    normalizes = settings.get("do_normalize", True)
    return {
        "size": size_px,
        "mean": tuple(settings["image_mean"]) if normalizes else (0.0, 0.0, 0.0),
        "std": tuple(settings["image_std"]) if normalizes else (1.0, 1.0, 1.0),
        "interpolation": _INTERPOLATIONS[settings.get("resample", 3)],
        "resize_mode": mode,
    }


def weights_in(folder: Path) -> Path:
    """Raises ExportRefused: there are none, or they are in several files."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    if (folder / "model.safetensors.index.json").is_file():
        raise ExportRefused(
            f"{folder.name} has its weights in several files: write them as one, "
            'model.save_pretrained(folder, max_shard_size="100GB")'
        )
    raise ExportRefused(f"{folder.name} has neither {' nor '.join(WEIGHTS)}")


def _clip(config: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    acts = {_act(text), _act(vision)}
    if len(acts) == 2 and "quick_gelu" in acts:
        raise ExportRefused("its towers have different activations, of which one is quick_gelu; open_clip has one flag")
    eos = text.get("eos_token_id", _LEGACY_EOS)
    # Where the end is the highest id, as in CLIP's vocabulary, its first place is that of the highest.
    by_highest = eos in (_LEGACY_EOS, text["vocab_size"] - 1)
    return {
        "embed_dim": config["projection_dim"],
        "quick_gelu": "quick_gelu" in acts,
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            **_norm_and_act(vision, 1e-5),
        },
        "text_cfg": {**_text_tower(text, 1e-5), **({} if by_highest else {"pool_type": "eos", "eos_id": eos})},
    }


def _siglip(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    if not vision.get("vision_use_head", True):
        raise ExportRefused("its image tower has no pooling head, so it gives no vector for a picture")
    eps, act = vision.get("layer_norm_eps", 1e-6), _act(vision)
    if eps != 1e-6 or act == "quick_gelu":
        raise ExportRefused(f"its image tower has layer_norm_eps {eps} and {act}; 1e-6 and a plain GELU are known here")
    tower = SiglipVit(
        width=vision["hidden_size"],
        depth=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        mlp=vision["intermediate_size"],
        patch_px=vision["patch_size"],
        size_px=vision["image_size"],
        act="gelu_tanh" if act == "gelu_tanh" else "gelu",
    )
    dim = vision["hidden_size"]
    if text.get("projection_size", dim) != dim:
        raise ExportRefused(f"its texts have {text['projection_size']} numbers, its pictures {dim}")
    return {
        "embed_dim": dim,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": vision["image_size"],
            "timm_model_name": register(tower),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **_text_tower(text, 1e-6),
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": text.get("layer_norm_eps", 1e-6)},
        },
    }


def _text_tower(text: Mapping[str, Any], eps: float) -> dict[str, Any]:
    return {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "width": text["hidden_size"],
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
        "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        **_norm_and_act(text, eps),
    }


def _norm_and_act(tower: Mapping[str, Any], usual_eps: float) -> dict[str, Any]:
    eps = tower.get("layer_norm_eps", usual_eps)
    made: dict[str, Any] = {} if eps == 1e-5 else {"norm_kwargs": {"eps": eps}}
    return {**made, "act_kwargs": {"approximate": "tanh"}} if _act(tower) == "gelu_tanh" else made


def _act(tower: Mapping[str, Any]) -> Literal["quick_gelu", "gelu", "gelu_tanh"]:
    found = _ACTS.get(tower["hidden_act"])
    if found is None:
        raise ExportRefused(f"activation {tower['hidden_act']!r}; known are {', '.join(_ACTS)}")
    return cast(Literal["quick_gelu", "gelu", "gelu_tanh"], found)


def _towers(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of texts and pictures. What a file leaves out has transformers' own default."""
    from transformers import CLIPConfig, SiglipConfig

    whole: Any = (CLIPConfig if config["model_type"] == "clip" else SiglipConfig).from_dict(config)
    return whole.text_config.to_dict(), whole.vision_config.to_dict()


def _clean_of(folder: Path, kind: str) -> str:
    file = folder / "tokenizer_config.json"
    name = _json(file).get("tokenizer_class") if file.is_file() else None
    return _CLEAN.get(str(name), _CLEAN_OF_KIND[kind])


_KNOWN_KEYS = frozenset(
    {
        *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
        *("do_normalize", "image_mean", "image_std", "do_convert_rgb"),
        # What says nothing of the pixels of one picture.
        *("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "data_format"),
        *("device", "input_data_format", "return_tensors", "disable_grouping", "default_to_square", "auto_map"),
    }
)


def _image_processor(folder: Path) -> dict[str, Any]:
    """Its settings, without those that are null."""
    alone, joint = folder / "preprocessor_config.json", folder / "processor_config.json"
    found = _json(alone) if alone.is_file() else _json(joint).get("image_processor") if joint.is_file() else None
    if not found:
        raise ExportRefused(
            f"{folder.name} has no preprocessor_config.json, so nobody knows how its pictures are prepared: "
            "save the model's processor into it (AutoProcessor.from_pretrained(...).save_pretrained(folder))"
        )
    return {key: value for key, value in found.items() if value is not None}


def _side_and_mode(settings: Mapping[str, Any], where: str) -> tuple[int, Literal["shortest", "squash"]]:
    size = settings.get("size", 224)
    size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
    crops = settings.get("do_center_crop", False)
    if size.keys() == {"height", "width"} and size["height"] == size["width"] and not crops:
        return size["height"], "squash"
    crop = settings.get("crop_size", size.get("shortest_edge"))
    sides = {crop} if isinstance(crop, int) else set(crop.values()) if isinstance(crop, dict) else set()
    if size.keys() == {"shortest_edge"} and crops and sides == {size["shortest_edge"]}:
        return size["shortest_edge"], "shortest"
    raise ExportRefused(
        f"{where} resizes to {size} and crops {crop if crops else 'nothing'}; known are a square without a crop, and a "
        "shortest edge with a crop of the same size"
    )


def _json(file: Path) -> dict[str, Any]:
    """Raises ExportRefused: it is no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportRefused(f"{file.name} of {file.parent.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ExportRefused(f"{file.name} of {file.parent.name} is no JSON object")
    return cast(dict[str, Any], content)
