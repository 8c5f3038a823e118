"""A decoded picture -> a small WebP for people to look at. Runs in decode processes, where Pillow is loaded already."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

SIDE_PX = 256  # of the longer side, at most; a smaller picture keeps its size
_QUALITY = 80
_METHOD = 2  # of 0 (fast) to 6 (small): half of the default's time for 3 % more bytes


def encode_thumbnail(image: Image.Image) -> bytes:
    """The WebP of an upright RGB picture, made smaller where it is; `image` itself may be changed by it.

    Nothing but pixels gets into it: no EXIF, XMP or colour profile of the original.
    """
    image.thumbnail((SIDE_PX, SIDE_PX))
    image.info.clear()
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY, method=_METHOD)
    return buffer.getvalue()
