"""Settings files beside foreign graphs as one record: preprocessing, texts, activation, kind of loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from model_store.errors import ExportRefused
from model_store.hub.preprocessing import (
    OPEN_CLIP_FILE,
    TRANSFORMERS_FILE,
    image_spec_from_open_clip,
    image_spec_from_transformers,
    read_json,
)
from model_store.hub.repository import plain_text
from model_store.hub.tokenizing import Clean
from model_store.manifest import ImageSpec

_CLEAN: dict[str, Clean] = {"canonicalize": "canonicalize", "lower": "lower", "whitespace": "whitespace"}
# transformers' tokenizers of these models change texts before the words are looked up.
_CLEAN_BY_TYPE: dict[str, Clean] = {"siglip": "canonicalize", "siglip2": "lower"}
_QUICK, _PLAIN = ("quick_gelu",), ("gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """None where the files say nothing.

    embed_dim: size of the joint space. sigmoid: trained with SigLIP's loss. pooled_is_projected: the towers have no
    projection, so `pooler_output` is the vector. folders: where the tokenizer may lie, the nearest first.
    """

    image: ImageSpec
    clean: Clean | None
    context_length: int | None
    activations: frozenset[Literal["gelu", "quickgelu"]]
    embed_dim: int | None
    sigmoid: bool | None
    pooled_is_projected: bool
    architecture: str
    tokenizer_folder: Path


def read_settings_files(files: Sequence[Path], *, has_text: bool = True) -> ModelSettings:
    """Read them; of files of one name the first is taken.

    Raises:
        ExportRefused: no preprocessing, or one that this project does not have.
    """
    found = {path.name: path for path in reversed(files)}
    config = read_json(found["config.json"]) if "config.json" in found else {}
    open_clip = read_json(found["open_clip_config.json"]) if "open_clip_config.json" in found else {}
    model = _table(open_clip, "model_cfg") or (config if "vision_cfg" in config else {})
    tokenizer = [path.parent for name, path in found.items() if name in ("tokenizer.json", "vocab.json")]
    if has_text and not tokenizer:
        raise ExportRefused("there is no tokenizer.json, and no pair of vocab.json and merges.txt")
    kind = str(config.get("model_type") or "")
    return ModelSettings(
        image=_image(found, open_clip),
        clean=_clean(model, kind),
        context_length=_context(model, config),
        activations=_activations(model, config),
        embed_dim=_integer(model.get("embed_dim")) or _integer(config.get("projection_dim")),
        sigmoid=True if kind in _CLEAN_BY_TYPE or "init_logit_bias" in model else None,
        pooled_is_projected=kind in _CLEAN_BY_TYPE,
        architecture=_architecture(model, config, kind),
        tokenizer_folder=tokenizer[0] if tokenizer else files[0].parent,
    )


def _image(found: Mapping[str, Path], open_clip: Mapping[str, Any]) -> ImageSpec:
    """open_clip's file is exact; transformers' says the same in other words."""
    if OPEN_CLIP_FILE in found:
        return image_spec_from_open_clip(read_json(found[OPEN_CLIP_FILE]))
    if preprocess := _table(open_clip, "preprocess_cfg"):
        vision = _table(_table(open_clip, "model_cfg"), "vision_cfg")
        size = preprocess.get("size") or vision.get("image_size") or 224
        return image_spec_from_open_clip({**preprocess, "size": size}, where="open_clip_config.json")
    if TRANSFORMERS_FILE in found:
        return image_spec_from_transformers(read_json(found[TRANSFORMERS_FILE]))
    raise ExportRefused(
        f"there is neither {OPEN_CLIP_FILE} nor {TRANSFORMERS_FILE}: how pictures are prepared is not known"
    )


def _clean(model: Mapping[str, Any], kind: str) -> Clean | None:
    options = _table(_table(model, "text_cfg"), "tokenizer_kwargs")
    if strange := sorted(key for key, value in options.items() if key != "clean" and value not in (None, False)):
        raise ExportRefused(f"config.json changes token ids by {', '.join(strange)}: not supported")
    clean = options.get("clean")
    if clean is None:
        return _CLEAN_BY_TYPE.get(kind)
    if not isinstance(clean, str) or clean not in _CLEAN:
        raise ExportRefused(f"config.json cleans texts by {clean!r}; {', '.join(_CLEAN)} can be served")
    return _CLEAN[clean]


def _context(model: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    if model:
        return _integer(_table(model, "text_cfg").get("context_length")) or 77
    return _integer(_table(config, "text_config").get("max_position_embeddings"))


def _activations(model: Mapping[str, Any], config: Mapping[str, Any]) -> frozenset[Literal["gelu", "quickgelu"]]:
    if model.get("quick_gelu"):
        return frozenset(("quickgelu",))
    named = {str(_table(config, part).get("hidden_act") or "") for part in ("vision_config", "text_config")}
    found: set[Literal["gelu", "quickgelu"]] = set()
    if named & set(_QUICK):
        found.add("quickgelu")
    if named & set(_PLAIN):
        found.add("gelu")
    return frozenset(found)


def _architecture(model: Mapping[str, Any], config: Mapping[str, Any], kind: str) -> str:
    named = config.get("architectures")
    if isinstance(named, list) and named:
        return plain_text(str(cast("list[Any]", named)[0]))
    vision = _table(model, "vision_cfg")
    if vision:
        trunk = vision.get("timm_model_name") or f"layers {vision.get('layers')}, width {vision.get('width')}"
        return plain_text(f"open_clip, {trunk}, {model.get('embed_dim')} dimensions")
    return plain_text(kind) or "not stated"


def _table(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
