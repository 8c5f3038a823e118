"""Checks of a picture, and its code: 256 bits of which few differ between copies of one picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.errors import ImageTooLarge, InputError
from model_store.modality.formats import sniff
from model_store.modality.image import decode

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # what training reads out of shards
WORDS, WORD_BITS = 4, 64
_SIDE_PX = 72  # a multiple of all cells below
_STEP = 2.0  # grey levels; a flat ground does not flip bits
_TINTS = (8.0, 24.0)  # levels of Cb and Cr off grey


class Unusable(ValueError):
    """A picture that is left out, and as what."""

    def __init__(self, fault: str, why: str) -> None:
        super().__init__(why)
        self.fault = fault


def usable(data: bytes, *, least_px: int, most_aspect: float) -> tuple[Image.Image, str]:
    """The picture as training decodes it, and the extension of its format.

    Raises:
        Unusable: cut, broken, too large for the decoder, another format, a side too small, a shape too long.
    """
    kind = EXTENSIONS.get(sniff(data) or "")
    try:
        image = decode(data)
    except ImageTooLarge as error:
        raise Unusable("too large", str(error)) from error
    except InputError as error:
        raise Unusable("broken picture", str(error)) from error
    if kind is None:
        raise Unusable("other format", f"{sniff(data)}; shards hold {', '.join(EXTENSIONS)}")
    short, long = sorted(image.size)
    if short < least_px:
        raise Unusable("too small", f"{image.width}x{image.height} px, the least side is {least_px}")
    if long > most_aspect * short:
        raise Unusable("too long", f"{image.width}x{image.height} px, the greatest aspect is {most_aspect:g}")
    return image, kind


def picture_code(image: Image.Image) -> bytes:
    """32 bytes: four words that each say something of brightness and of colour.

    128 bits say where brightness rises by more than two levels from a cell to the next: to its right of 9 x 8 cells
    (dHash, Krawetz, 2013), and below it of 8 x 9. 128 say which of 4 x 4 cells are a little and plainly blue or yellow,
    red or green: brightness alone takes a red mug for the blue one in its place.
    """
    small = np.asarray(image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX), dtype=np.float64)
    red, green, blue = small[..., 0], small[..., 1], small[..., 2]
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    right = np.diff(_cells(grey, 8, 9), axis=1) > _STEP
    below = np.diff(_cells(grey, 9, 8), axis=0) > _STEP
    tints = np.stack([_cells(0.564 * (blue - grey), 4, 4), _cells(0.713 * (red - grey), 4, 4)])
    colours = np.stack([signed > least for least in _TINTS for signed in (tints, -tints)], axis=-1)  # [2, 4, 4, 4]
    parts = [right.reshape(WORDS, -1), below.reshape(WORDS, -1), np.moveaxis(colours, 0, 2).reshape(WORDS, -1)]
    return np.packbits(np.concatenate(parts, axis=1)).tobytes()


def _cells(plane: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.float64]:
    """The means of a plane in a grid: [rows, columns]."""
    return plane.reshape(rows, _SIDE_PX // rows, columns, _SIDE_PX // columns).mean(axis=(1, 3))
