"""open_clip architectures, tags and weight files: resolved, checked, loaded; nothing is unpickled but tensors."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from huggingface_hub import snapshot_download
from open_clip.factory import load_checkpoint
from open_clip.model import set_model_preprocess_cfg
from open_clip.pretrained import (
    download_pretrained,
    download_pretrained_from_hf,
    get_pretrained_cfg,
    list_pretrained_tags_by_model,
)
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from model_store.errors import ExportRefused
from model_store.hub.names import advice, suggestion
from training.importing import transformers_folder
from training.importing.foreign_weights import refuse_damaged, with_plain_file

OpenClipModel = open_clip.CLIP | open_clip.CustomTextCLIP
Activation = Literal["gelu", "quickgelu"]
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
FOLDER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
FOLDER_CONFIG = "open_clip_config.json"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where an import's weights come from: the file, the configuration it is loaded into, and its preprocessing.

    tokenizer: the folder of the model's own, where it brings one.
    """

    file: Path
    config: dict[str, Any]
    architecture: str
    preprocess: dict[str, Any]
    source: str
    declared: bool
    tokenizer: Path | None = None


def find_weights(
    arch: str, pretrained: str | None, *, activation: Activation | None = None, cache_dir: Path | None = None
) -> Weights:
    """Resolve architecture, tag or file, and activation; downloads a tag's or repository's file through open_clip."""
    schema, _, rest = ("local-dir", "", arch) if Path(arch).is_dir() else arch.partition(":")
    if schema in ("local-dir", "hf-hub") and rest:
        if pretrained or activation:
            raise ExportRefused(
                f"{arch} brings its own weights and configuration; give neither pretrained nor activation"
            )
        return _weights_with_config(schema, rest, cache_dir)
    config = open_clip.get_model_config(arch)
    if config is None and (known := suggestion(arch)) is not None:
        # A name from elsewhere says its weights too; a file takes their place.
        arch, pretrained = known.arch, pretrained or known.tag
        config = open_clip.get_model_config(arch)
    if config is None:
        raise ExportRefused(_unknown(arch))
    if not pretrained:
        raise ExportRefused(f"{arch}: say which weights: a tag of {_tags(arch)}, or a file")
    tag = get_pretrained_cfg(arch, pretrained)
    if tag:
        return _tagged(arch, pretrained, dict(tag), config, activation, cache_dir)
    if not Path(pretrained).is_file():
        raise ExportRefused(f"{pretrained!r} is neither a file nor a tag of {arch}; its tags: {_tags(arch)}")
    architecture, config, declared = _with_activation(arch, config, activation)
    return Weights(
        file=Path(pretrained),
        config=config,
        architecture=architecture,
        preprocess=_preprocess_of_file(architecture),
        source=f"local file {Path(pretrained).name}",
        declared=declared,
    )


def _unknown(arch: str) -> str:
    """What to say of a name that is no architecture."""
    close = [known for known in open_clip.list_models() if arch.lower() in known.lower()][:8]
    hint = f"similar: {close}" if close else advice(arch) or "similar: none"
    other = "; a repository of a hub is hf-hub:ORG/NAME, a folder its path" if "/" in arch else ""
    return f"open_clip has no architecture {arch!r}; {hint}{other}"


def load_model(weights: Weights) -> OpenClipModel:
    """Build the open_clip model and load its weights without unpickling anything but tensors; eval mode, fp32."""
    _refuse_unsupported(weights)
    check_weights_file(weights.file)
    config = _with_tuples(weights.config)
    custom_text = bool(config.pop("custom_text", False))
    if weights.config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**config)
    try:
        with_plain_file(weights.file, lambda plain: load_checkpoint(model, str(plain), strict=True, weights_only=True))
    except ExportRefused:
        raise
    except Exception as error:  # shape and key mismatches, truncated files: whatever torch or safetensors raise
        lines = " ".join(str(error).split())[:400]
        raise ExportRefused(f"{weights.file.name} does not fit {weights.architecture}: {lines}") from error
    size = getattr(model.visual, "image_size", None) or weights.preprocess.get("size")
    set_model_preprocess_cfg(model, merge_preprocess_dict(weights.preprocess, {"size": size}))
    return model.float().eval()


def _with_tuples(config: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; open_clip wants the two sides of a picture as a tuple."""
    vision = dict(config["vision_cfg"])
    if isinstance(vision.get("image_size"), list):
        vision["image_size"] = tuple(vision["image_size"])
    return {**config, "vision_cfg": vision}


def check_weights_file(path: Path) -> None:
    """Refuse a file that only full unpickling, or running its code, could read.

    Raises:
        ExportRefused: with the conversion command for TorchScript archives; also for a file that is cut off.
    """
    if path.suffix not in _WEIGHT_SUFFIXES:
        raise ExportRefused(f"{path.name}: weights must be one of {', '.join(_WEIGHT_SUFFIXES)}")
    refuse_damaged(path)
    if path.suffix == ".safetensors":
        return
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(entry.endswith("/constants.pkl") or "/code/" in entry for entry in names):
            raise ExportRefused(
                f"{path.name} is a TorchScript archive: loading it runs code that it carries. If you trust its origin, "
                "convert it once: python -c \"import torch, safetensors.torch as s; m = torch.jit.load('"
                f"{path.name}', map_location='cpu'); s.save_file({{k: v.float().contiguous() for k, v in "
                "m.state_dict().items() if k not in ('input_resolution', 'context_length', 'vocab_size')}, "
                f"'{path.stem}.safetensors')\""
            )
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, ...: the file decides
        raise ExportRefused(
            f"{path.name} is no checkpoint that torch can read, or holds more than tensors ({type(error).__name__}, "
            "weights_only=True): that is not loaded, as it could run code; save its state_dict as .safetensors where "
            "it comes from"
        ) from error


def _weights_with_config(schema: str, rest: str, cache_dir: Path | None) -> Weights:
    """Weights of a folder or hub repository that carries its own configuration, which therefore decides."""
    folder = Path(rest)
    if schema == "hf-hub":
        folder = _from_hub(rest, [FOLDER_CONFIG, *transformers_folder.FILES], cache_dir)
    label = rest if schema == "hf-hub" else folder.name
    source = f"hub repository {label}" if schema == "hf-hub" else f"local folder {label}"
    config_file = folder / FOLDER_CONFIG
    if not config_file.is_file() and transformers_folder.is_transformers_folder(folder):
        if schema == "hf-hub":
            folder = _from_hub(rest, [*transformers_folder.FILES, *transformers_folder.WEIGHTS], cache_dir)
        return _of_transformers(folder, label, source)
    if not config_file.is_file():
        raise ExportRefused(
            f"{schema}:{rest} has neither open_clip's {FOLDER_CONFIG} nor the config.json of a transformers model"
        )
    content = json.loads(config_file.read_text(encoding="utf-8"))
    if "model_cfg" not in content:
        raise ExportRefused(f"{FOLDER_CONFIG} of {schema}:{rest} has no model_cfg")
    return Weights(
        file=_downloaded(rest, cache_dir) if schema == "hf-hub" else _weights_in(folder),
        config=content["model_cfg"],
        architecture=label,
        preprocess=merge_preprocess_dict(asdict(PreprocessCfg()), content.get("preprocess_cfg") or {}),
        source=source,
        declared=False,
    )


def _of_transformers(folder: Path, label: str, source: str) -> Weights:
    config = transformers_folder.config_of(folder)
    return Weights(
        file=transformers_folder.weights_in(folder),
        config=config,
        architecture=label,
        preprocess=merge_preprocess_dict(
            asdict(PreprocessCfg()), transformers_folder.preprocess_of(folder, config["vision_cfg"]["image_size"])
        ),
        source=source,
        declared=False,
        tokenizer=folder,
    )


def _from_hub(repository: str, patterns: list[str], cache_dir: Path | None) -> Path:
    """The folder with those files that the repository has. Raises ExportRefused: it cannot be reached."""
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, cache_dir=cache_dir))
    except Exception as error:  # hub errors of several libraries; the import cannot go on after any of them
        raise ExportRefused(_unreachable(repository, error)) from error


def _downloaded(repository: str, cache_dir: Path | None) -> Path:
    """The file of open_clip weights of a repository. Raises ExportRefused."""
    try:
        return Path(download_pretrained_from_hf(repository, cache_dir=str(cache_dir) if cache_dir else None))
    except Exception as error:
        raise ExportRefused(_unreachable(repository, error)) from error


def _unreachable(repository: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return (
        f"hub repository {repository} cannot be downloaded here, and is not in the local cache ({reason}): download it "
        f"where there is a connection (hf download {repository}) and import its folder"
    )


def _weights_in(folder: Path) -> Path:
    for name in FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.glob("*") if p.suffix in _WEIGHT_SUFFIXES)
    if len(found) != 1:
        raise ExportRefused(f"{folder.name}: expected {FOLDER_WEIGHTS[0]} or one weights file, found {len(found)}")
    return found[0]


def _tagged(
    arch: str,
    tag: str,
    tag_config: dict[str, Any],
    config: dict[str, Any],
    activation: Activation | None,
    cache_dir: Path | None,
) -> Weights:
    """Weights of a published tag, which knows its own activation and preprocessing."""
    if activation:
        raise ExportRefused(f"tag {tag!r} records its activation; --activation is for local files")
    of_tag, of_arch = bool(tag_config.get("quick_gelu")), bool(config.get("quick_gelu"))
    if of_tag != of_arch:
        twin = _twin(config)
        raise ExportRefused(
            f"tag {tag!r} was trained with {_form(of_tag)}, {arch} computes {_form(of_arch)}: "
            + (f"import {twin} instead" if twin else "no architecture of open_clip fits both")
        )
    try:
        file = download_pretrained(tag_config, cache_dir=str(cache_dir) if cache_dir else None)
    except Exception as error:  # hub errors of several libraries; the import cannot go on after any of them
        reason = " ".join(str(error).split())[:300]
        raise ExportRefused(f"cannot download {arch} {tag!r}: {reason}") from error
    if not file:
        raise ExportRefused(f"open_clip has no file for {arch} {tag!r}")
    return Weights(
        file=Path(file),
        config=config,
        architecture=arch,
        preprocess=merge_preprocess_dict(asdict(PreprocessCfg()), tag_config),
        source=f"open_clip tag {arch} {tag}",
        declared=False,
    )


def _with_activation(
    arch: str, config: dict[str, Any], activation: Activation | None
) -> tuple[str, dict[str, Any], bool]:
    """(architecture, config, declared) for a local file: weights do not show which GELU they were trained with."""
    twin = _twin(config)
    form = _form(bool(config.get("quick_gelu")))
    if twin is None:
        if activation not in (None, form):
            raise ExportRefused(f"{arch} exists only with {form}, got --activation {activation}")
        return arch, config, False
    if activation is None:
        raise ExportRefused(
            f"{arch} exists with gelu and with quickgelu ({twin} is the other), and a file does not show which one it "
            "was trained with: say --activation gelu or --activation quickgelu (OpenAI's and DFN's weights: quickgelu)"
        )
    if activation == form:
        return arch, config, True
    if config.get("quick_gelu"):
        raise ExportRefused(f"{arch} computes quickgelu, got --activation {activation}: import {twin} instead")
    twin_config = open_clip.get_model_config(twin)
    if twin_config is None:
        raise ExportRefused(f"open_clip lost its architecture {twin}")
    return twin, twin_config, True


def _twin(config: dict[str, Any]) -> str | None:
    """The architecture that differs in nothing but quick_gelu."""

    def rest(candidate: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in candidate.items() if key != "quick_gelu"}

    for name in open_clip.list_models():
        other = open_clip.get_model_config(name)
        if other and rest(other) == rest(config) and bool(other.get("quick_gelu")) != bool(config.get("quick_gelu")):
            return name
    return None


def _form(quick_gelu: bool) -> Activation:
    return "quickgelu" if quick_gelu else "gelu"


def _preprocess_of_file(arch: str) -> dict[str, Any]:
    """Preprocessing for a bare file: what all published tags of the architecture agree on, else open_clip's default.

    open_clip itself gives every local file OpenAI's mean and a centre crop, which is wrong for SigLIP's weights.
    """
    keys = ("mean", "std", "interpolation", "resize_mode")
    seen = [
        {key: config.get(key) for key in keys if config.get(key) is not None}
        for config in (get_pretrained_cfg(arch, tag) for tag in list_pretrained_tags_by_model(arch))
    ]
    agreed = seen[0] if seen and all(entry == seen[0] for entry in seen) else {}
    return merge_preprocess_dict(asdict(PreprocessCfg()), agreed)


def _refuse_unsupported(weights: Weights) -> None:
    config = weights.config
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    if "multimodal_cfg" in config or text.get("embed_cls"):
        raise ExportRefused(f"{weights.architecture} is a CoCa: its caption decoder and class token are not supported")
    if text.get("hf_model_name"):
        raise ExportRefused(
            f"{weights.architecture} has a text tower of the transformers library ({text['hf_model_name']}): its code "
            "needs that library and its own configuration from a hub; not supported"
        )
    if "naflex" in str(vision.get("timm_model_name", "")) or vision.get("use_naflex"):
        raise ExportRefused(
            f"{weights.architecture} is a NaFlex tower: it takes patches of pictures of any aspect, not a fixed square"
        )


def _tags(arch: str) -> str:
    tags = list_pretrained_tags_by_model(arch)
    return ", ".join(tags[:8]) + (", ..." if len(tags) > 8 else "") if tags else "(none)"
