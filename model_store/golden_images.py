"""Pictures that catch wrong pixels: odd sizes, every mode a decoder meets, and some that must be refused.

They are drawn here, deterministically; an artifact stores their encoded bytes, so other encoders never matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.errors import InvalidImage, UnsupportedImage

_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class GoldenImage:
    """One encoded picture.

    levels: how far a decoded value may be from the stored one (0 for lossless formats; other JPEG and WebP
    libraries round differently).
    raises: the error code that decoding must give, or None.
    """

    id: str
    data: bytes
    levels: int = 0
    raises: str | None = None


@cache
def golden_images() -> tuple[GoldenImage, ...]:
    """All cases, always in the same order; drawn once, as one artifact asks for them five times."""
    rgb = Image.fromarray(_texture(331, 227, seed=1))
    small = _texture(149, 103, seed=6)
    small_rgb = Image.fromarray(small)
    alpha = _ramp(73, 151)
    rgba = Image.fromarray(np.dstack([_texture(73, 151, seed=2), alpha]))
    grey = Image.fromarray(small[:, :, 1])
    deep = Image.fromarray((small[:, :, 0].astype(np.uint16) * 257) ^ 0x5A)
    jpeg = _encode(rgb, "JPEG", quality=92)
    rotated = Image.Exif()
    rotated[_ORIENTATION_TAG] = 6
    return (
        GoldenImage("rgb_png_331x227", _encode(rgb, "PNG")),
        GoldenImage("rgb_png_tall_67x301", _encode(Image.fromarray(_texture(67, 301, seed=3)), "PNG")),
        GoldenImage("rgb_jpeg_331x227", jpeg, levels=2),
        GoldenImage("exif_rotated_jpeg", _encode(small_rgb, "JPEG", quality=92, exif=rotated), levels=2),
        GoldenImage("cmyk_jpeg", _encode(small_rgb.convert("CMYK"), "JPEG", quality=92), levels=2),
        GoldenImage("webp_lossy", _encode(Image.fromarray(_texture(157, 90, seed=4)), "WEBP", quality=90), levels=2),
        GoldenImage("palette_png", _encode(small_rgb.quantize(64), "PNG")),
        GoldenImage("rgba_png_73x151", _encode(rgba, "PNG")),
        GoldenImage("grey_alpha_png", _encode(rgba.convert("LA"), "PNG")),
        GoldenImage("grey_16bit_png", _encode(deep, "PNG")),
        GoldenImage("grey_png", _encode(grey, "PNG")),
        GoldenImage("tiny_png_3x5", _encode(Image.fromarray(_texture(3, 5, seed=5)), "PNG")),
        GoldenImage("truncated_jpeg", jpeg[: len(jpeg) // 2], raises=InvalidImage.code),
        GoldenImage("not_an_image", b"<html>not found</html>", raises=UnsupportedImage.code),
    )


def _texture(width: int, height: int, *, seed: int) -> NDArray[np.uint8]:
    """A busy coloured picture, [height, width, 3]: gradients, a hard-edged disc, stripes and grain.

    No two channels, halves or neighbouring pixels are alike, so a swapped channel, a flip or a 1 px shift shows.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 255 * x / max(width - 1, 1)
    green = 127.5 * (1 + np.sin(2 * np.pi * (y / 17 + x / 29)))
    blue = 255 * (1 - y / max(height - 1, 1))
    picture = np.stack([red, green, blue], axis=-1)
    centre_x, centre_y = width * rng.uniform(0.3, 0.5), height * rng.uniform(0.3, 0.5)
    disc = (x - centre_x) ** 2 + (y - centre_y) ** 2 < (0.22 * min(width, height)) ** 2
    picture[disc] = rng.uniform(0, 255, 3)
    picture += 16 * rng.integers(-1, 2, picture.shape)  # three levels: grain that still compresses
    return picture.clip(0, 255).astype(np.uint8)


def _ramp(width: int, height: int) -> NDArray[np.uint8]:
    row = np.linspace(0, 255, width).astype(np.uint8)
    return np.broadcast_to(row, (height, width)).copy()


def _encode(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()
