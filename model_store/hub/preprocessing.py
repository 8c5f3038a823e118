"""Preprocessing files of open_clip and transformers as an ImageSpec, refusing whatever would be guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from model_store.errors import ExportRefused
from model_store.manifest import Channels, ImageSpec

OPEN_CLIP_FILE = "preprocess_cfg.json"
TRANSFORMERS_FILE = "preprocessor_config.json"
_LEAST_STD, _LARGEST = 1e-6, 1e6  # outside, float32 pixels are no numbers any more
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
_OPEN_CLIP_KEYS = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
# Keys of transformers' image processors that change no pixel, or only say again what another key says.
_SILENT_KEYS = {
    "feature_extractor_type", "image_processor_type", "processor_class", "_valid_processor_keys", "data_format",
    "input_data_format", "return_tensors", "device", "disable_grouping", "default_to_square", "do_convert_rgb",
}  # fmt: skip
_READ_KEYS = {
    "size", "crop_size", "resample", "do_resize", "do_center_crop", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "mean", "std", "interpolation", "resize_mode", "fill_color",
}  # fmt: skip


def image_spec_from_open_clip(config: Mapping[str, Any], *, where: str = OPEN_CLIP_FILE) -> ImageSpec:
    """`preprocess_cfg` of open_clip, as it stands in immich's folders and in open_clip_config.json.

    Raises:
        ExportRefused: an unknown key, or a value that this project does not have.
    """
    _refuse_unknown(config, _OPEN_CLIP_KEYS, where)
    if config.get("mode") not in (None, "RGB"):
        raise ExportRefused(f"{where}: mode {config['mode']!r}; only RGB pictures are served")
    height, width = _sides(config.get("size", 224), where)
    return _spec(
        where,
        height_px=height,
        width_px=width,
        resize_mode=config.get("resize_mode") or "shortest",
        interpolation=config.get("interpolation") or "bicubic",
        fill=config.get("fill_color") or 0,
        mean=config.get("mean"),
        std=config.get("std"),
    )


def image_spec_from_transformers(config: Mapping[str, Any], *, where: str = TRANSFORMERS_FILE) -> ImageSpec:
    """`preprocessor_config.json` of transformers' CLIP and SigLIP image processors, and of jina-clip's.

    Its centre crop rounds down where torchvision, with which CLIP was trained, rounds half to even: ours is that of
    torchvision.

    Raises:
        ExportRefused: an unknown key that is set, a crop of another size than the resize, or an unknown value.
    """
    _refuse_unknown(config, _SILENT_KEYS | _READ_KEYS, where)
    for key in ("do_resize", "do_rescale"):
        if config.get(key, True) is False:
            raise ExportRefused(f"{where}: {key} is false: pictures of any size or range cannot be served")
    factor = config.get("rescale_factor") or 1 / 255
    if not isinstance(factor, (int, float)) or not abs(factor - 1 / 255) <= 1e-9:
        raise ExportRefused(f"{where}: rescale_factor {config['rescale_factor']}, expected 1/255")
    size, crop = config.get("size"), config.get("crop_size")
    shortest, sides = _shortest(size, where)
    crops = bool(config.get("do_center_crop", shortest is not None and crop is not None))
    if sides is None:
        wanted = _sides(crop if crops and crop is not None else shortest, where)
        if not crops and "resize_mode" not in config:
            raise ExportRefused(f"{where}: the short side becomes {shortest} px and nothing is cropped: no fixed size")
        if set(wanted) != {shortest}:
            raise ExportRefused(
                f"{where}: pictures are resized to {shortest} px and cropped to {list(wanted)}; only equal sizes can "
                "be served"
            )
        sides, mode = wanted, "shortest"
    else:
        if crops and crop is not None and _sides(crop, where) != sides:
            raise ExportRefused(f"{where}: size {list(sides)} and crop_size {list(_sides(crop, where))} differ")
        mode = "squash"
    normalizes = config.get("do_normalize", True)
    return _spec(
        where,
        height_px=sides[0],
        width_px=sides[1],
        resize_mode=config.get("resize_mode") or mode,
        interpolation=config.get("interpolation") or _resampling(config.get("resample", 3), where),
        fill=config.get("fill_color") or 0,
        mean=(config.get("image_mean") or config.get("mean")) if normalizes else (0.0, 0.0, 0.0),
        std=(config.get("image_std") or config.get("std")) if normalizes else (1.0, 1.0, 1.0),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a repository.

    Raises:
        ExportRefused: no JSON, or no object.
    """
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportRefused(f"{path.name} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ExportRefused(f"{path.name} holds a {type(content).__name__}, expected an object")
    return cast("dict[str, Any]", content)


def _refuse_unknown(config: Mapping[str, Any], known: set[str], where: str) -> None:
    """A key that is null or false sets nothing."""
    if unknown := sorted(key for key, value in config.items() if key not in known and value not in (None, False)):
        raise ExportRefused(
            f"{where} sets {', '.join(unknown)}, which may change pixels in a way this project does not know: export "
            "the model with torch instead (clipworks models import), or take the key out if it is known to do nothing"
        )


def _shortest(size: Any, where: str) -> tuple[int | None, tuple[int, int] | None]:
    """(short side, None) or (None, (height, width)) of transformers' `size`."""
    if isinstance(size, dict):
        values = cast("dict[str, Any]", size)
        if values.keys() == {"shortest_edge"}:
            return _side(values["shortest_edge"], where), None
        if values.keys() == {"height", "width"}:
            return None, (_side(values["height"], where), _side(values["width"], where))
        raise ExportRefused(f"{where}: size {sorted(values)}; expected shortest_edge, or height and width")
    return _side(size, where), None


def _sides(size: Any, where: str) -> tuple[int, int]:
    """(height, width) of a number, a pair, or a mapping of both."""
    if isinstance(size, dict):
        values = cast("dict[str, Any]", size)
        if values.keys() == {"height", "width"}:
            return _side(values["height"], where), _side(values["width"], where)
    if isinstance(size, (list, tuple)):
        pair = list(cast("list[Any]", size))
        if len(pair) == 2:
            return _side(pair[0], where), _side(pair[1], where)
    side = _side(size, where)
    return side, side


def _side(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ExportRefused(f"{where}: {value!r} is no size in pixels")
    return value


def _resampling(value: Any, where: str) -> str:
    if not isinstance(value, int) or value not in _RESAMPLING:
        raise ExportRefused(f"{where}: resample {value!r}; 2 (bilinear) and 3 (bicubic) can be served")
    return _RESAMPLING[value]


def _spec(where: str, *, mean: Any, std: Any, **fields: Any) -> ImageSpec:
    if mean is None or std is None:
        raise ExportRefused(f"{where} names no mean and std")
    try:
        spec = ImageSpec.model_validate({**fields, "mean": _channels(mean), "std": _channels(std)})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ExportRefused(f"{where} is not a preprocessing this project has: {wrong[:300]}") from error
    except (TypeError, ValueError) as error:
        raise ExportRefused(f"{where} is not a preprocessing this project has: {error}") from error
    if min(spec.std) < _LEAST_STD or max(map(abs, (*spec.mean, *spec.std))) > _LARGEST:
        raise ExportRefused(f"{where}: mean {list(spec.mean)}, std {list(spec.std)}: no normalisation of fractions")
    return spec


def _channels(value: Any) -> Channels:
    first, second, third = value
    return float(first), float(second), float(third)
