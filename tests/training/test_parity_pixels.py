"""Pixels against open_clip's own evaluation transform: bit-equal on RGB, stated differences elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from model_store.manifest import ImageSpec
from model_store.modality.image import decode, prepare
from training.models.pixels import PixelNormalize

pytestmark = pytest.mark.torch

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# (resize mode, (height, width)) of every rule open_clip has.
RULES = {
    "shortest, square": ("shortest", (48, 48)),
    "shortest, wide target": ("shortest", (40, 56)),
    "longest with fill": ("longest", (48, 48)),
    "longest, wide target": ("longest", (40, 56)),
    "squash": ("squash", (48, 48)),
    "squash, wide target": ("squash", (40, 56)),
}
SIDES = (37, 48, 49, 61, 83, 95, 131, 187)
SIZES = [(w, h) for w in SIDES for h in SIDES if w != h] + [
    (48, 47),
    (97, 48),
    (48, 97),
    (1, 3),
    (3, 1),
    (7, 640),
    (2001, 53),
]


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 10_007 + height)
    coarse = rng.integers(0, 256, (max(height // 5, 1), max(width // 5, 1), 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    return Image.fromarray((smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8))


def both(rule: str, interpolation: str) -> tuple[ImageSpec, Callable[[Image.Image], torch.Tensor]]:
    """Our spec and open_clip's transform for the same rule."""
    mode, (height, width) = RULES[rule]
    spec = ImageSpec(
        height_px=height,
        width_px=width,
        resize_mode=mode,  # pyright: ignore[reportArgumentType]
        interpolation=interpolation,  # pyright: ignore[reportArgumentType]
        fill=114 if mode == "longest" else 0,
        mean=MEAN,
        std=STD,
    )
    config = PreprocessCfg(
        size=height if height == width else (height, width),
        mean=MEAN,
        std=STD,
        interpolation=interpolation,
        resize_mode=mode,
        fill_color=spec.fill,
    )
    transform: Any = image_transform_v2(config, is_train=False)
    return spec, transform


def normalised(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return PixelNormalize(MEAN, STD)(torch.from_numpy(pixels)[None])[0]


def levels_apart(pixels: NDArray[np.uint8], reference: torch.Tensor) -> NDArray[np.int16]:
    """Absolute difference in grey levels, after undoing open_clip's normalisation."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    levels = ((reference * std + mean) * 255).round().permute(1, 2, 0).numpy().astype(np.int16)
    return np.abs(levels - pixels.astype(np.int16))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("rule", RULES)
def test_rgb_is_bit_equal_at_every_size(rule: str, interpolation: str) -> None:
    assert len(SIZES) >= 60
    spec, transform = both(rule, interpolation)
    wrong: list[str] = []
    for width, height in SIZES:
        image = picture(width, height)
        try:
            expected = transform(image)
        except (ValueError, ZeroDivisionError, RuntimeError):
            continue  # a side that rounds to 0 px: open_clip has no answer, ours is an error (tested in model_store)
        if not torch.equal(normalised(prepare(image, spec)), expected):
            wrong.append(f"{width}x{height}")
    assert not wrong


def bgr(image: Image.Image, spec: ImageSpec) -> torch.Tensor:
    return normalised(np.ascontiguousarray(prepare(image, spec)[:, :, ::-1]))


def shifted(image: Image.Image, spec: ImageSpec) -> torch.Tensor:
    """The crop taken one pixel further along the long side."""
    wide = image.width > image.height
    resized = _resize(image, spec, Image.Resampling.BICUBIC, int)
    left, top = (int(round((s - t) / 2)) for s, t in zip(resized.size, (spec.width_px, spec.height_px), strict=True))
    left, top = (left + 1, top) if wide else (left, top + 1)
    return normalised(np.array(resized.crop((left, top, left + spec.width_px, top + spec.height_px))))


def floored_crop(image: Image.Image, spec: ImageSpec) -> torch.Tensor:
    resized = _resize(image, spec, Image.Resampling.BICUBIC, int)
    left, top = ((s - t) // 2 for s, t in zip(resized.size, (spec.width_px, spec.height_px), strict=True))
    return normalised(np.array(resized.crop((left, top, left + spec.width_px, top + spec.height_px))))


def rounded_long_side(image: Image.Image, spec: ImageSpec) -> torch.Tensor:
    resized = _resize(image, spec, Image.Resampling.BICUBIC, round)
    left, top = (int(round((s - t) / 2)) for s, t in zip(resized.size, (spec.width_px, spec.height_px), strict=True))
    return normalised(np.array(resized.crop((left, top, left + spec.width_px, top + spec.height_px))))


def bilinear(image: Image.Image, spec: ImageSpec) -> torch.Tensor:
    return normalised(prepare(image, spec.model_copy(update={"interpolation": "bilinear"})))


def not_normalised(image: Image.Image, spec: ImageSpec) -> torch.Tensor:
    return torch.from_numpy(prepare(image, spec)).permute(2, 0, 1) / 255


def other_std(image: Image.Image, spec: ImageSpec) -> torch.Tensor:
    return PixelNormalize(MEAN, (0.229, 0.224, 0.225))(torch.from_numpy(prepare(image, spec))[None])[0]


def _resize(
    image: Image.Image, spec: ImageSpec, resampling: Image.Resampling, rounding: Callable[[float], int]
) -> Image.Image:
    short, long = sorted(image.size)
    long_px = rounding(spec.width_px * long / short)
    return image.resize(
        (spec.width_px, long_px) if image.width <= image.height else (long_px, spec.width_px), resampling
    )


# Each mistake, and at how many of the 61 sizes it shows at least. Some are invisible at some sizes (no resampling where
# the short side is right already, nothing to round where the excess is even): that is why there are many sizes.
MISTAKES = {
    "BGR": (bgr, 61),
    "crop shifted by 1 px": (shifted, 61),
    "floor instead of round (crop)": (floored_crop, 20),
    "round instead of int (long side)": (rounded_long_side, 15),
    "bilinear for bicubic": (bilinear, 45),
    "missing normalisation": (not_normalised, 61),
    "ImageNet std": (other_std, 61),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_sees_each_mistake(mistake: str) -> None:
    broken, at_least = MISTAKES[mistake]
    spec, transform = both("shortest, square", "bicubic")
    images = [picture(width, height) for width, height in SIZES if min(width, height) > 3]
    assert len(images) == 61
    seen = sum(not torch.equal(broken(image, spec), transform(image)) for image in images)
    assert seen >= at_least, f"{mistake} is visible at {seen} of {len(images)} sizes"


def encoded(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_open_clip_ignores_it(orientation: int) -> None:
    """All eight: ours equals open_clip's answer for the upright picture; for the file its answer is another."""
    upright = picture(83, 61)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, exif=exif)
    spec, transform = both("shortest, square", "bicubic")
    ours = normalised(prepare(decode(data), spec))
    assert torch.equal(ours, transform(upright))
    assert torch.equal(ours, transform(Image.open(BytesIO(data)))) == (orientation == 1)


def odd_mode(mode: str) -> bytes:
    base = picture(131, 83)
    ramp = Image.fromarray(np.broadcast_to(np.linspace(0, 255, 131).astype(np.uint8), (83, 131)).copy())
    if mode == "palette":
        return encoded(base.quantize(32))
    if mode == "RGBA":
        return encoded(Image.merge("RGBA", (*base.split(), ramp)))
    if mode == "LA":
        return encoded(Image.merge("LA", (base.convert("L"), ramp)))
    if mode == "CMYK":
        return encoded(base.convert("CMYK"), "JPEG", quality=95)
    if mode == "L":
        return encoded(base.convert("L"))
    return encoded(Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257))


# What differs from open_clip by design, in grey levels of the prepared picture: (mean, largest), measured here.
# open_clip converts to RGB after resizing: palettes are resized as colour numbers, alpha is dropped instead of being
# laid over white, CMYK is resized in four channels, 16 bits are clipped to white.
ODD_MODES = {
    "L": (0.0, 0),
    "CMYK": (0.0, 1),
    "palette": (11.2, 75),
    "RGBA": (61.6, 202),
    "LA": (60.8, 165),
    "16-bit": (121.9, 225),
}


@pytest.mark.parametrize("mode", ODD_MODES)
def test_odd_modes_differ_from_open_clip_as_documented(mode: str) -> None:
    spec, transform = both("shortest, square", "bicubic")
    data = odd_mode(mode)
    apart = levels_apart(prepare(decode(data), spec), transform(Image.open(BytesIO(data))))
    mean, largest = ODD_MODES[mode]
    assert apart.mean() == pytest.approx(mean, abs=0.5)
    assert apart.max() == pytest.approx(largest, abs=2)
    # And the rule itself: the same picture converted first gives open_clip's pixels exactly.
    assert levels_apart(prepare(decode(data), spec), transform(decode(data))).max() == 0
