"""A decoded image of any mode -> 8-bit RGB, strip by strip: a conversion costs one picture more, not three."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from model_store.modality.containers import png

_STRIP_PX = 2**20
_WHITE = (255, 255, 255)
_Convert = Callable[[Image.Image], Image.Image]


def to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """Alpha and transparent colours are composited over white, 16-bit grey is scaled with rounding.

    data: the encoded image, for what Pillow does not keep: the depth of samples, and the lower halves of 16-bit ones.
    """
    if image.mode.startswith("I"):
        return _by_strips(image, _of_sixteen_bits(image.info.get("transparency")))
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else _by_strips(image, lambda strip: strip.convert("RGB"))
    if image.format == "PNG" and image.mode in ("L", "RGB"):
        depth, noted = png.bit_depth(data), image.info["transparency"]
        colour: tuple[int, ...] = (noted,) if isinstance(noted, int) else tuple(noted)
        if depth == 16:
            return _without_colour(image, data, colour)
        # Samples are spread over 0 to 255, the transparent one is noted as it was stored.
        most = 2**depth - 1
        spread = tuple((level & most) * 255 // most for level in colour)
        image.info["transparency"] = spread if image.mode == "RGB" else spread[0]
    return _by_strips(image, _over_white)


def _by_strips(image: Image.Image, convert: _Convert) -> Image.Image:
    whole = Image.new("RGB", image.size)
    for top, bottom in _strips(image):
        whole.paste(convert(image.crop((0, top, image.width, bottom))), (0, top))
    return whole


def _strips(image: Image.Image) -> list[tuple[int, int]]:
    rows = max(1, _STRIP_PX // image.width)
    return [(top, min(top + rows, image.height)) for top in range(0, image.height, rows)]


def _over_white(strip: Image.Image) -> Image.Image:
    rgba = strip.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*_WHITE, 255)), rgba).convert("RGB")


def _of_sixteen_bits(transparent: object) -> _Convert:
    """Grey of 16 bits, of which one level may be transparent."""

    def convert(strip: Image.Image) -> Image.Image:
        levels = np.asarray(strip).astype(np.int64).clip(0, 65535)
        grey = ((levels * 255 + 32767) // 65535).astype(np.uint8)
        if isinstance(transparent, int):
            grey[levels == transparent] = 255
        return Image.fromarray(grey).convert("RGB")

    return convert


def _without_colour(high: Image.Image, data: bytes, colour: tuple[int, ...]) -> Image.Image:
    """Colours of 16 bits, of which one is transparent: it must match in both halves of its samples.

    high: the upper halves, which is what Pillow keeps; it is painted over. The lower ones are unpacked from a second
    decode, as if the samples were stored the other way round.
    """
    with PngImageFile(BytesIO(data)) as low:
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        low.load()
        for top, bottom in _strips(high):
            area = (0, top, high.width, bottom)
            hidden = _equals(high.crop(area), [each >> 8 for each in colour])
            hidden &= _equals(low.crop(area), [each & 0xFF for each in colour])
            high.paste(_WHITE, area, Image.fromarray(hidden.astype(np.uint8) * 255))
    return high


def _equals(strip: Image.Image, levels: list[int]) -> NDArray[np.bool_]:
    return (np.asarray(strip) == np.array(levels)).all(axis=-1)
