"""Is a picture usable, and what does it look like: 128 bits of which few differ between copies of one picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from model_store.errors import ImageTooLarge, InputError
from model_store.modality.formats import sniff
from model_store.modality.image import decode

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # what training reads out of shards
BITS = 128
_SIZE = (36, 32)  # a multiple of both grids below
_STEP = 2.0  # grey levels; a flat ground does not flip bits
_TINT = 16.0  # levels of Cb and Cr off grey


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
    """16 bytes. Brightness and colour alternate, so that every part of the code says something of both.

    64 bits say where brightness rises from one of 9 x 8 cells to its right neighbour (dHash, Krawetz, 2013), by more
    than two levels. 64 say which of 4 x 4 cells are plainly blue or yellow, red or green: dHash alone takes a red mug
    for the blue one in its place.
    """
    small = np.asarray(image.resize(_SIZE, Image.Resampling.BOX), dtype=np.float64)
    red, green, blue = small[..., 0], small[..., 1], small[..., 2]
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    cells = grey.reshape(8, 4, 9, 4).mean(axis=(1, 3))
    rises = (np.diff(cells, axis=1) > _STEP).reshape(-1)
    tints = [(0.564 * (blue - grey)), (0.713 * (red - grey))]
    means = np.stack([tint.reshape(4, 8, 4, 9).mean(axis=(1, 3)) for tint in tints], axis=-1)  # [4, 4, Cb and Cr]
    colours = np.stack([means > _TINT, means < -_TINT], axis=-1).reshape(-1)
    return np.packbits(np.stack([rises, colours], axis=1).reshape(-1)).tobytes()
