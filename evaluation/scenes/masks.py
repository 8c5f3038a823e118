"""COCO's three ways to write a mask: polygons, run lengths, and run lengths packed into a string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_LARGEST_PX = 50_000_000


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """bool [H, W] -> {"size": [H, W], "counts": [...]}: run lengths down the columns, the first one of zeros."""
    flat = np.asfortranarray(mask).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = [0, *edges.tolist(), flat.size]
    counts = [after - before for before, after in zip(bounds[:-1], bounds[1:], strict=True)]
    if flat.size and flat[0]:
        counts.insert(0, 0)
    return {"size": [int(side) for side in mask.shape], "counts": counts}


def decode_segmentation(
    segmentation: Sequence[Sequence[float]] | Mapping[str, Any], *, height: int, width: int
) -> NDArray[np.bool_]:
    """The `segmentation` field of a COCO annotation -> bool [height, width].

    Polygons are filled by Pillow, whose border pixels can differ by one from pycocotools'.

    Raises:
        ValueError: not one of the three forms, or it does not fit the picture.
    """
    if not 0 < height * width <= _LARGEST_PX:
        raise ValueError(f"a mask of {height} x {width} is empty or over {_LARGEST_PX} pixels")
    if isinstance(segmentation, Mapping):
        return _decode_rle(segmentation, height, width)
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon needs three or more x, y pairs, got {len(polygon)} numbers")
        draw.polygon([float(value) for value in polygon], fill=1, outline=1)
    return np.asarray(canvas, dtype=bool)


def _decode_rle(rle: Mapping[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    if list(rle.get("size", [])) != [height, width]:
        raise ValueError(f"run lengths are for size {rle.get('size')}, the picture is {[height, width]}")
    raw = rle.get("counts")
    counts = _unpack(raw) if isinstance(raw, str) else raw
    if not isinstance(counts, list) or any(not isinstance(n, int) or n < 0 for n in counts):
        raise ValueError("run lengths must be a list of whole numbers from 0, or COCO's packed string")
    if sum(counts) != height * width:
        raise ValueError(f"run lengths add up to {sum(counts)}, the picture has {height * width} pixels")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def _unpack(text: str) -> list[int]:
    """Five bits per character from code 48, low bits first, bit 5 says "more"; from the fourth run on, differences to
    the run two before, with sign."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"{character!r} does not occur in packed run lengths")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError("packed run lengths end in the middle of a number")
    return counts
