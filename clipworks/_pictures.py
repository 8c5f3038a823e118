"""Pictures in memory (of PIL, of numpy) as lossless PNG files, so that they give the vector of their file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION_TAG = 0x0112
_WRITTEN_AS_THEY_ARE = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
# Where PNG has no such mode: the one with the same colours, and with the alpha. 16-bit orders go through "I", because
# Pillow cuts them to 8 bits on the direct way.
_SAME_IN_PNG: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "La": ("LA",),
        "PA": ("RGBA",),
        "RGBa": ("RGBA",),
        "RGBX": ("RGB",),
        "CMYK": ("RGB",),
        "YCbCr": ("RGB",),
        "HSV": ("RGB",),
        "LAB": ("RGB",),
        "I;16B": ("I", "I;16"),
        "I;16L": ("I", "I;16"),
        "I;16N": ("I", "I;16"),
    }
)
_CHANNELS = (1, 3, 4)


class PictureError(ValueError):
    """An object that is no picture, or a picture that has no exact PNG; says what was expected."""


def axes_of(value: Any) -> int | None:
    """Axes of a numpy array of numbers; None for all else (one of strings or objects, such as paths, is a list)."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    is_array = kind in tuple("biufc") and hasattr(value, "shape") and hasattr(value, "tobytes")
    return len(value.shape) if is_array else None


def png_of(picture: Any) -> bytes:
    """A PIL image of any mode, or a numpy array, as a PNG file.

    Arrays: uint8 [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA); uint16 [H, W] (16-bit grey); bool [H, W].

    Raises:
        PictureError: it is neither, or its pixels have no defined white (floats, 32-bit integers), or it is closed.
    """
    if axes_of(picture) is not None:
        picture = _image_of(picture)
    mode = getattr(picture, "mode", None)
    if not callable(getattr(picture, "save", None)) or not isinstance(mode, str):
        kind = type(picture).__name__
        raise PictureError(
            f"expected a path, bytes, a file opened in binary mode, a PIL image or a numpy array, got {kind}"
        )
    try:
        return _encode(picture, mode)
    except PictureError:
        raise
    except Exception as error:  # a closed or truncated file raises whatever its plugin meets first
        reason = str(error) or f"{type(error).__name__}; is its file closed?"
        raise PictureError(f"this picture cannot be written as PNG: {reason}") from error


def _encode(picture: Image, mode: str) -> bytes:
    from PIL import Image as PilImage

    if mode not in _WRITTEN_AS_THEY_ARE and mode not in _SAME_IN_PNG:
        raise PictureError(f"a picture of mode {mode} does not say what white is; convert it to L, RGB or I;16 first")
    exif = PilImage.Exif()
    # The orientation alone: other tags have no meaning here, and odd ones cannot be written.
    orientation = picture.getexif().get(_ORIENTATION_TAG)
    if isinstance(orientation, int) and 1 < orientation <= 8:
        exif[_ORIENTATION_TAG] = orientation
    for step in _SAME_IN_PNG.get(mode, ()):
        picture = picture.convert(step)
    sink = io.BytesIO()
    picture.save(sink, "PNG", compress_level=1, exif=exif)
    return sink.getvalue()


def _image_of(array: Any) -> Image:
    shape: tuple[int, ...] = tuple(array.shape)
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    flat = len(shape) == 2
    if len(shape) == 3 and shape[0] in _CHANNELS and shape[2] not in _CHANNELS:
        raise PictureError(f"expected [height, width, channels], got {list(shape)}: write array.transpose(1, 2, 0)")
    fits = flat and kind in ("u1", "u2", "b1") or len(shape) == 3 and shape[2] in _CHANNELS and kind == "u1"
    if not fits or not all(shape):
        raise PictureError(
            "expected an array of uint8 [H, W], [H, W, 3] or [H, W, 4], or of uint16 [H, W]; "
            f"got {array.dtype} {list(shape)}"
        )
    try:
        from PIL import Image as PilImage
    except ImportError as error:
        raise PictureError("arrays are sent as PNG, which needs Pillow: pip install Pillow") from error
    return PilImage.fromarray(array[:, :, 0] if not flat and shape[2] == 1 else array)
