"""Inputs of a request -> items of the pipeline; one that is refused here keeps its place as a FailedItem."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, assert_never

from starlette.requests import Request

from clipworks.schemas import CombineQuery, ImageInput, ImageUrlInput, TextInput
from model_store.errors import ClipworksError, ImageTooLarge, InvalidImage, InvalidText
from service.base64_text import NotBase64, decode_base64, is_data_uri
from service.http.errors import UrlFetchDisabled
from service.http.ingress import Received, off_loop
from service.http.limits import IngressLimits
from service.tasks.pipeline import FailedItem, ImageItem, Input, TextItem
from service.timing import Budget

# How base64 of a JPEG, PNG, GIF, WebP or BMP begins: no text of people begins so and goes on without a space.
_PICTURE_IN_BASE64 = re.compile(r"(/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-3])[A-Za-z0-9+/=_\r\n-]{60}")


async def items_of(
    request: Request, received: Received[Any], inputs: Sequence[Any], limits: IngressLimits, budget: Budget
) -> list[Input]:
    """Inputs and files, in order. Raises as `off_loop`."""
    files = received.files

    def read() -> list[Input]:
        return [
            ImageItem(files[index]) if index in files else item_of(each, limits) for index, each in enumerate(inputs)
        ]

    return await off_loop(request, read, encoded_bytes(inputs), limits, budget)


def encoded_bytes(inputs: Sequence[Any]) -> int:
    """Characters of base64 among inputs, items or queries: what decoding them costs."""
    combined = [part for each in inputs if isinstance(each, CombineQuery) for part in each.combine]
    return sum(len(each.image) for each in (*inputs, *combined) if isinstance(each, ImageInput))


def item_of(each: str | TextInput | ImageInput | ImageUrlInput, limits: IngressLimits) -> Input:
    """One input of a body as a pipeline item."""
    try:
        match each:
            case str():
                return TextItem(_sentence(each))
            case TextInput():
                return TextItem(_sentence(each.text))
            case ImageInput():
                return ImageItem(decode_image_field(each.image, limits))
            case ImageUrlInput():
                raise UrlFetchDisabled("image_url is refused: this server fetches nothing; send the bytes as image")
            case _:
                assert_never(each)  # a new kind of input needs a case of its own
    except ClipworksError as error:
        return FailedItem(error)


def param_of(inputs: Sequence[Any], index: int, *, name: str = "inputs") -> str:
    """Where an item stands in the request, such as inputs[3].image."""
    match inputs[index]:
        case TextInput():
            field = ".text"
        case ImageInput():
            field = ".image"
        case ImageUrlInput():
            field = ".image_url"
        case _:
            field = ""
    return f"{name}[{index}]{field}"


def decode_image_field(text: str, limits: IngressLimits) -> bytes:
    """Bytes of an `image` field: base64 of any dialect, or a data: URI with base64.

    Raises:
        ImageTooLarge: before decoding, from its length; what is over the limit by less, the decoder refuses.
        InvalidImage: not base64.
    """
    if len(text) > 2 * limits.max_image_bytes + 1000:  # wrapped and percent-encoded base64 is longer than it need be
        raise ImageTooLarge(f"the image is larger than {limits.max_image_bytes} bytes (CLIPWORKS_MAX_IMAGE_BYTES)")
    try:
        return decode_base64(text)
    except NotBase64 as error:
        raise InvalidImage(f"image is not base64: {error}") from None


def _sentence(text: str) -> str:
    """Raises InvalidText for a picture in the place of a text: its vector would be that of nonsense."""
    if is_data_uri(text) or _PICTURE_IN_BASE64.match(text):
        raise InvalidText('this text is an encoded picture: send it as {"image": "..."}, not as a text')
    return text
