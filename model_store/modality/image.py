"""Encoded bytes -> upright RGB -> the uint8 array of an ImageSpec: the only decode, resize and crop in the project."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from model_store.errors import ClipworksError, ImageTooLarge, InvalidImage, UnsupportedImage
from model_store.manifest import DenseSpec, ImageSpec

ALL_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
_ORIENTATION_TAG = 0x0112
_MIN_CELLS = 2  # of either side, whatever the aspect: one row of cells says nothing of above and below
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What `decode` accepts; everything is checked on the header, before pixels are allocated.

    `formats` is an allow-list of Pillow format names (the magic bytes decide, never a declared type).
    The aspect limit bounds the intermediate picture of resize_mode 'shortest'.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_side_px: int = 16_384
    max_aspect: float = 100.0
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP")


DEFAULT_LIMITS = DecodeLimits()


def decode(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode the first frame of `data` to an upright 8-bit RGB image.

    EXIF orientation is applied; alpha is composited over white; 16-bit grey is scaled to 8 bits with rounding;
    palette, CMYK and grey are converted by Pillow; ICC profiles are ignored. JPEG draft mode is never used.

    Raises:
        UnsupportedImage: not a format of `limits.formats`.
        ImageTooLarge: over a limit.
        InvalidImage: truncated, corrupt, empty or unreadable for any other reason.
    """
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"image has {len(data)} bytes, the limit is {limits.max_bytes}")
    if not data:
        raise InvalidImage("image has 0 bytes")
    try:
        with Image.open(BytesIO(data), formats=limits.formats) as image:
            _check_size(image.size, limits)
            image.load()
            return _to_rgb(_upright(image))
    except ClipworksError:
        raise
    except UnidentifiedImageError as error:
        allowed = ", ".join(limits.formats)
        raise UnsupportedImage(f"not an image of an accepted format ({allowed}), or its header is broken") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"image has more pixels than the limit of {limits.max_pixels}") from error
    except (Exception, MemoryError) as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, ...
        raise InvalidImage(f"image is truncated or corrupt ({type(error).__name__})") from error


def prepare(image: Image.Image, spec: ImageSpec) -> NDArray[np.uint8]:
    """Resize and crop an RGB image to uint8 [spec.height_px, spec.width_px, 3].

    Bit-equal to open_clip's evaluation transform (torchvision's sizes: long side int(size * long / short), no
    resampling when the size is already right, crop offset int(round(excess / 2)) with Python's half-to-even).
    """
    if image.mode != "RGB":
        raise InvalidImage(f"prepare takes an RGB image, got mode {image.mode}: call decode first")
    target = (spec.width_px, spec.height_px)
    # open_clip ignores the configured interpolation when it resizes to a non-square target by the short side.
    fixed_bicubic = spec.resize_mode == "shortest" and spec.width_px != spec.height_px
    resampling = Image.Resampling.BICUBIC if fixed_bicubic else _RESAMPLING[spec.interpolation]
    size = _resized_size(image.size, spec)
    if min(size) < 1:
        raise InvalidImage(f"image of {image.size[0]}x{image.size[1]} px is too narrow for {target[0]}x{target[1]}")
    if size != image.size:
        image = image.resize(size, resampling)
    if size != target:
        image = _crop_or_pad(image, target, spec.fill)
    return np.array(image, dtype=np.uint8)


def dense_size(width: int, height: int, spec: DenseSpec, *, short_px: int | None = None) -> tuple[int, int]:
    """(width, height) in pixels at which the dense_encoder sees an upright picture of `width` x `height`.

    Multiples of the stride, at least two cells; the short side comes near `short_px` (the spec's by default, rounded
    to cells) unless the long one would pass `max_long_px`. Fixed sizes are what they are, whatever is asked for.

    Raises:
        ValueError: a side is not positive.
    """
    if min(width, height) < 1 or (short_px is not None and short_px < 1):
        raise ValueError(f"got {width}x{height} px and short side {short_px}, expected sides of at least 1 px")
    if spec.width_px is not None and spec.height_px is not None:
        return spec.width_px, spec.height_px
    scale = min((short_px or spec.short_px) / min(width, height), spec.max_long_px / max(width, height))
    cells = [max(_MIN_CELLS, round(side * scale / spec.stride_px)) for side in (width, height)]
    return cells[0] * spec.stride_px, cells[1] * spec.stride_px


def prepare_dense(image: Image.Image, spec: DenseSpec, *, short_px: int | None = None) -> NDArray[np.uint8]:
    """Resize a whole RGB image to uint8 [H, W, 3] for the dense_encoder; nothing is cropped, so cell (r, c) of a
    rows x columns grid covers the same share of the original: heights r / rows to (r + 1) / rows, and so its widths.

    The aspect ratio is kept up to rounding to whole cells (see `dense_size`), or given up when sizes are fixed.
    """
    if image.mode != "RGB":
        raise InvalidImage(f"prepare_dense takes an RGB image, got mode {image.mode}: call decode first")
    size = dense_size(image.width, image.height, spec, short_px=short_px)
    return np.array(image if size == image.size else image.resize(size, _RESAMPLING[spec.interpolation]))


def _check_size(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidImage(f"image is {width}x{height} px")
    if width * height > limits.max_pixels:
        raise ImageTooLarge(f"image is {width}x{height} = {width * height} px, the limit is {limits.max_pixels}")
    if max(size) > limits.max_side_px:
        raise ImageTooLarge(f"image side is {max(size)} px, the limit is {limits.max_side_px}")
    if max(size) > limits.max_aspect * min(size):
        raise ImageTooLarge(f"image is {width}x{height} px, the aspect limit is {limits.max_aspect:g}:1")


def _upright(image: Image.Image) -> Image.Image:
    """Apply EXIF orientation; broken metadata is ignored, never an error: the pixels are what was asked for."""
    try:
        if image.getexif().get(_ORIENTATION_TAG, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _resized_size(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    """(width, height) after resizing, before cropping or padding."""
    width, height = size
    if spec.resize_mode == "squash":
        return spec.width_px, spec.height_px
    if spec.resize_mode == "longest" or spec.width_px != spec.height_px:
        pick = max if spec.resize_mode == "longest" else min
        ratio = float(pick(height / spec.height_px, width / spec.width_px))
        return round(width / ratio), round(height / ratio)
    short, long = sorted(size)
    new_long = int(spec.width_px * long / short)
    return (spec.width_px, new_long) if width <= height else (new_long, spec.width_px)


def _crop_or_pad(image: Image.Image, target: tuple[int, int], fill: int) -> Image.Image:
    """Centre crop; a side that is too short is padded first, the odd pixel on the right or bottom."""
    width, height = target
    padded_size = (max(width, image.width), max(height, image.height))
    if padded_size != image.size:
        canvas = Image.new("RGB", padded_size, (fill, fill, fill))
        canvas.paste(image, (max(width - image.width, 0) // 2, max(height - image.height, 0) // 2))
        image = canvas
    left, top = int(round((image.width - width) / 2.0)), int(round((image.height - height) / 2.0))
    return image.crop((left, top, left + width, top + height))
