"""Encoded bytes -> upright RGB -> the uint8 array of an ImageSpec: the only decode, resize and crop in the project."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from model_store.errors import ClipworksError, ImageTooLarge, InvalidImage, UnsupportedImage
from model_store.modality.containers import check_structure, isobmff, size_of
from model_store.modality.formats import ALL_FORMATS, DEFAULT_FORMATS, missing_decoder, sniff
from model_store.modality.orientation import orientation_of, upright
from model_store.modality.rgb import to_rgb

if TYPE_CHECKING:  # pydantic costs a decode process as much memory as Pillow
    from model_store.manifest import DenseSpec, ImageSpec

DECODE_BYTES_PER_PIXEL = 16  # the most that `decode` holds at one time, beside what does not grow with a picture
_MIN_CELLS = 2  # of either side, whatever the aspect: one row of cells says nothing of above and below
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_HEADER_PARTS = 1000  # of a file, in which its size is looked for by `declared_pixels`
_large_picture = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What `decode` accepts; everything is checked on the encoded bytes, before pixels are allocated.

    `formats` is an allow-list of Pillow format names (the magic bytes decide, never a declared type).
    The aspect limit bounds the intermediate picture of resize_mode 'shortest'.
    max_scans: of a JPEG; ordinary encoders write up to some thirty. max_parts: segments, chunks, blocks or boxes.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 120_000_000
    max_side_px: int = 65_535
    max_aspect: float = 200.0
    max_scans: int = 100
    max_parts: int = 100_000
    formats: tuple[str, ...] = DEFAULT_FORMATS


DEFAULT_LIMITS = DecodeLimits()
# Files of whoever runs a command: as large as memory allows.
OWN_FILES = DecodeLimits(
    max_bytes=2**31, max_pixels=2**31, max_side_px=2**31, max_aspect=1e9, max_parts=2**31, formats=ALL_FORMATS
)


def decode(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode the first frame of `data` to an upright 8-bit RGB image, in at most DECODE_BYTES_PER_PIXEL for each pixel.

    The orientation of the metadata is applied (EXIF, else XMP); alpha and transparent colours are composited over
    white; 16-bit grey is scaled to 8 bits with rounding; palette, CMYK and grey are converted by Pillow; ICC profiles
    are ignored. JPEG draft mode is never used: its pixels differ from those of a full decode.

    Raises:
        UnsupportedImage: not a format of `limits.formats`, or one that this installation cannot decode.
        ImageTooLarge: over a limit.
        InvalidImage: truncated, corrupt, empty or unreadable for any other reason.
    """
    return upright(*_opened(data, limits, near_px=None))


def decode_preview(data: bytes, side_px: int, limits: DecodeLimits = OWN_FILES) -> Image.Image:
    """What `decode` gives, made to fit into side_px x side_px for the eye: fast, and not the exact pixels."""
    image = upright(*_opened(data, limits, near_px=2 * side_px))
    image.thumbnail((side_px, side_px))
    return image


def declared_pixels(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> int:
    """Width x height as the header says, in microseconds: what decoding will cost. `max_pixels` where it says nothing.

    Raises:
        UnsupportedImage, ImageTooLarge, InvalidImage: as `decode`, as far as the header shows it.
    """
    name = _accepted_format(data, limits)
    size = _checked_size(data, name, limits, max_parts=min(limits.max_parts, _HEADER_PARTS))
    return limits.max_pixels if size is None else size[0] * size[1]


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


def _opened(data: bytes, limits: DecodeLimits, *, near_px: int | None) -> tuple[Image.Image, int]:
    """(RGB as stored, its orientation). near_px: a JPEG may be reduced while it is decoded, to no less than that."""
    name = _accepted_format(data, limits)
    size = _checked_size(data, name, limits, max_parts=limits.max_parts)
    check_structure(data, name, max_parts=limits.max_parts, max_scans=limits.max_scans)
    try:
        with _without_pillows_limit(size), Image.open(BytesIO(_readable(data, name)), formats=(name,)) as image:
            _check_size(image.size, limits)
            if near_px is not None:
                image.draft("RGB", (near_px, near_px))
            return to_rgb(_loaded(image), data), orientation_of(image.info)
    except ClipworksError:
        raise
    except UnidentifiedImageError as error:
        raise InvalidImage(f"the header of this {name} is broken") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(
            f"image has more pixels than the limit of {limits.max_pixels} (CLIPWORKS_MAX_PIXELS)"
        ) from error
    except (Exception, MemoryError) as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, ...
        raise InvalidImage(f"image is truncated or corrupt ({type(error).__name__})") from error


def _accepted_format(data: bytes, limits: DecodeLimits) -> str:
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"image has {len(data)} bytes, the limit is {limits.max_bytes} (CLIPWORKS_MAX_IMAGE_BYTES)")
    if not data:
        raise InvalidImage("image has 0 bytes")
    name, allowed = sniff(data), ", ".join(limits.formats)
    if name is None:
        raise UnsupportedImage(f"not an image of an accepted format ({allowed})")
    if name not in ALL_FORMATS:
        raise UnsupportedImage(f"this is {name}, which is not decoded here: convert it to one of {allowed}")
    if name not in limits.formats:
        raise UnsupportedImage(f"this is {name}; accepted are {allowed} (CLIPWORKS_IMAGE_FORMATS)")
    if (advice := missing_decoder(name)) is not None:
        shown = "HEIC (HEIF)" if name == "HEIF" else name
        raise UnsupportedImage(f"this is {shown}, and this installation cannot decode it: {advice}, or convert it")
    return name


def _checked_size(data: bytes, name: str, limits: DecodeLimits, *, max_parts: int) -> tuple[int, int] | None:
    size = size_of(data, name, max_parts=max_parts)
    if size is not None:
        _check_size(size, limits)
    return size


def _check_size(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidImage(f"image is {width}x{height} px")
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"image is {width}x{height} = {width * height} px, the limit is {limits.max_pixels} (CLIPWORKS_MAX_PIXELS)"
        )
    if max(size) > limits.max_side_px:
        raise ImageTooLarge(f"image side is {max(size)} px, the limit is {limits.max_side_px} (CLIPWORKS_MAX_SIDE_PX)")
    if max(size) > limits.max_aspect * min(size):
        raise ImageTooLarge(
            f"image is {width}x{height} px, the aspect limit is {limits.max_aspect:g}:1 (CLIPWORKS_MAX_ASPECT)"
        )


@contextmanager
def _without_pillows_limit(size: tuple[int, int] | None) -> Generator[None]:
    """Pillow's own limit of pixels is off while a picture is opened whose size has passed ours.

    It is a global of Pillow, so one such picture is decoded at a time; what else is decoded meanwhile has our limits.
    """
    limit: int | None = Image.MAX_IMAGE_PIXELS
    if size is None or limit is None or size[0] * size[1] <= limit:
        yield
        return
    with _large_picture:
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _readable(data: bytes, name: str) -> bytes:
    if name == "AVIF":
        return isobmff.without_exif(data)
    if name == "HEIF":
        import_module("pillow_heif.HeifImagePlugin")  # of the extra `heic`; it registers itself with Pillow
    return data


def _loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels; what the decoder still holds is let go of."""
    image.load()
    vars(image).pop("_decoder", None)  # WebP's and AVIF's: two canvases of the picture's size
    return image


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
