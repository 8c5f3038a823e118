"""The orientation that a camera noted in a picture's metadata, read without reading anything else of them.

One odd tag makes a full EXIF reader give up, and a photograph would be seen lying on its side.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image

_TAG = 0x0112
_PREFIX = b"Exif\0\0"
# Sizes in bytes of the whole-number types of TIFF 6.0: BYTE, SHORT, LONG, and their signed kin.
_WHOLE_NUMBERS = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}
_XMP = r'tiff:Orientation(="|>)([0-9])'
_MOVES: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as it was seen; `orientation` as `orientation_of` gives it."""
    move = _MOVES.get(orientation)
    return image if move is None else image.transpose(move)


def orientation_of(info: Mapping[Any, Any]) -> int:
    """1 to 8 (EXIF 2.32, tag 0x0112) from the `info` of an image of Pillow; 1 where nothing is said, or nothing sane.

    XMP counts only where EXIF is silent, as in Pillow's own reader.
    """
    noted = _of_exif(_exif_of(info))
    if noted is None:
        noted = _of_xmp(info)
    return noted if noted is not None and noted in _MOVES else 1


def _exif_of(info: Mapping[Any, Any]) -> bytes:
    exif = info.get("exif")
    if isinstance(exif, bytes):
        return exif
    raw = info.get("Raw profile type exif")  # a PNG by ImageMagick: a text chunk of three lines, then hex
    if not isinstance(raw, str):
        return b""
    try:
        return bytes.fromhex("".join(raw.split("\n")[3:]))
    except ValueError:
        return b""


def _of_exif(exif: bytes) -> int | None:
    """The tag of the first directory; the first one counts where there are several, as in Pillow."""
    while exif.startswith(_PREFIX):
        exif = exif[len(_PREFIX) :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 10:
        return None
    (start,) = struct.unpack_from(order + "L", exif, 4)
    if start + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(order + "H", exif, start)
    for at in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, values = struct.unpack_from(order + "HHL", exif, at)
        if tag == _TAG and values == 1 and kind in _WHOLE_NUMBERS:
            return int.from_bytes(exif[at + 8 : at + 8 + _WHOLE_NUMBERS[kind]], "little" if order == "<" else "big")
    return None


def _of_xmp(info: Mapping[Any, Any]) -> int | None:
    text = info.get("XML:com.adobe.xmp")
    if isinstance(text, str):
        found = re.search(_XMP, text)
        return int(found[2]) if found else None
    packet = info.get("xmp")
    if isinstance(packet, bytes):
        found = re.search(_XMP.encode(), packet)
        return int(found[2]) if found else None
    return None
