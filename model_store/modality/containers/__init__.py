"""Containers of image formats, read before anything is decoded: the size, and how much there is to work through.

Pure bytes, no decoder. `size_of` reads a header in bounded steps; `check_structure` walks the whole file once and
refuses what is built to be slow. Both are lenient about damage that a decoder will find by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from model_store.modality.containers import bmp, gif, isobmff, jpeg, png, webp

Size = tuple[int, int]


@dataclass(frozen=True)
class _Container:
    size: Callable[[bytes, int], Size | None]
    check: Callable[[bytes, int, int], None]


_CONTAINERS: Mapping[str, _Container] = MappingProxyType(
    {
        "JPEG": _Container(jpeg.size, jpeg.check),
        "PNG": _Container(png.size, png.check),
        "WEBP": _Container(webp.size, webp.check),
        "AVIF": _Container(isobmff.size, isobmff.check),
        "HEIF": _Container(isobmff.size, isobmff.check),
        "GIF": _Container(gif.size, gif.check),
        "BMP": _Container(bmp.size, bmp.check),
    }
)


def size_of(data: bytes, name: str, *, max_parts: int) -> Size | None:
    """(width, height) in pixels as the header says, before orientation; None if it is not to be found in max_parts."""
    return _CONTAINERS[name].size(data, max_parts)


def check_structure(data: bytes, name: str, *, max_parts: int, max_scans: int) -> None:
    """Walk the parts (segments, chunks, blocks or boxes) of a file.

    Raises:
        ImageTooLarge: more parts than max_parts, or more scans than max_scans.
        InvalidImage: parts that contradict each other.
    """
    _CONTAINERS[name].check(data, max_parts, max_scans)
