"""Every byte that enters: bodies of all kinds, read under limits and validated; nothing behind it sees raw input.

One route takes JSON, multipart/form-data and a raw image. All become the same request model and a list of files.
"""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NoReturn, TypeVar, cast
from urllib.parse import parse_qsl

import pydantic_core
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from clipworks.schemas import ImageInput, ImageUrlInput, TextInput
from model_store.errors import ClipworksError, ImageTooLarge, InvalidImage
from service.context import ClientGone
from service.errors import BodyRefused, Refusal, UrlFetchDisabled, refuse_validation
from service.faults import TooManyItems
from service.multipart import Part, boundary_of, read_parts
from service.pipeline import FailedItem, ImageItem, Item, TextItem

OptionKind = Literal["text", "flag", "whole", "number", "list", "templates", "texts"]
Place = Literal["append", "fill"]
Options = Mapping[str, OptionKind]
Body = TypeVar("Body", bound=BaseModel)

_MAX_DATA_URI_HEAD = 200
_FLAGS = {"true": True, "false": False}
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?")
_TEMPLATE_NAMES = ("none", "simple", "imagenet")
_CONTENT = frozenset({"text", "image", "image_url", "vector"})


@dataclass(frozen=True, kw_only=True)
class IngressLimits:
    """What one request may bring; `max_list` bounds every list of a body, by the name of its field."""

    max_body_bytes: int
    max_image_bytes: int
    max_items: int
    max_list: Mapping[str, int]
    body_timeout_s: float


@dataclass(frozen=True)
class Received(Generic[Body]):
    """A validated request; `files` came beside it: index among its inputs -> bytes."""

    body: Body
    files: Mapping[int, bytes] = field(default_factory=dict[int, bytes])


async def read_request(
    request: Request,
    model: type[Body],
    limits: IngressLimits,
    *,
    options: Options,
    inputs: str = "inputs",
    place: Place = "append",
) -> Received[Body]:
    """Read and validate a request to a route that takes images; `options` may also come as fields or in the query.

    place: files stand behind the inputs of the body ("append"), or each in the next object of `inputs` that has no
    content of its own; the option `id` then stands for objects that have nothing but an id ("fill").

    Raises:
        Refusal: 400, 408, 413, 415 or 422; see docs/http.md.
        ClientGone: the client closed the connection.
    """
    media_type, parameters = content_type_of(request)
    if media_type != "application/json" and media_type != "multipart/form-data" and not media_type.startswith("image/"):
        refuse_media_type(request, "application/json, multipart/form-data or image/*")
    raw = await read_body(request, limits)
    query = _query_options(request, options)
    if media_type == "application/json":
        if not query:
            return Received(validate(_json_value(raw), model, limits))
        fields, files = _json_object(raw), ()
    elif media_type == "multipart/form-data":
        parts = read_parts(raw, boundary_of(parameters), max_parts=2 * limits.max_items + len(options) + 1)
        fields, files = _from_parts(parts, options)
    else:
        fields, files = {}, (raw,)
    repeated = sorted(fields.keys() & query.keys())
    if repeated:
        raise Refusal(422, "invalid_field", f"{repeated[0]} is given in the query and in the body", param=repeated[0])
    put = _with_files if place == "append" else _with_files_in_objects
    return put({**fields, **query}, files, model, limits, inputs)


async def read_json(request: Request, model: type[Body], limits: IngressLimits) -> Body:
    """Read and validate the body of a route that takes JSON only. Raises as `read_request`."""
    if content_type_of(request)[0] != "application/json":
        refuse_media_type(request, "application/json")
    return validate(_json_value(await read_body(request, limits)), model, limits)


async def read_body(request: Request, limits: IngressLimits) -> bytes:
    """The body, refused as soon as it is over its limit, encoded, or too slow."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise BodyRefused(415, "unsupported_encoding", "send the body without Content-Encoding")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:19]) > limits.max_body_bytes:
        _refuse_length(limits)
    whole = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk: bytes = message.get("body", b"")
                more: bool = message.get("more_body", False)
                if len(whole) + len(chunk) > limits.max_body_bytes:
                    if more:
                        _refuse_length(limits)
                    raise _too_long(limits)
                if not more and not whole:
                    return chunk
                whole += chunk
                if not more:
                    return bytes(whole)
    except TimeoutError:
        seconds = f"{limits.body_timeout_s:g}"
        raise BodyRefused(408, "body_timeout", f"the body did not arrive within {seconds} s") from None


def validate(value: Any, model: type[Body], limits: IngressLimits) -> Body:
    """Validate a parsed body; strict, so that "1" is no number and 1 is no truth.

    Parsed first and validated then, because pydantic is twenty times slower on long base64 when it does both at once,
    and because lists can be counted before their elements are looked at: a million labels must not cost a second.

    Raises:
        Refusal: 422.
        TooManyItems: 413.
    """
    _check_counts(value, limits)
    try:
        return model.model_validate(value, strict=True)
    except ValidationError as error:
        raise refuse_validation(error) from None


def content_type_of(request: Request) -> tuple[str, str]:
    """(media type in lower case, its parameters)."""
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    return media_type.strip().lower(), parameters


def refuse_media_type(request: Request, accepted: str) -> NoReturn:
    """Raise 415 with the remedy."""
    given = "no Content-Type" if not request.headers.get("content-type") else "a Content-Type that is not taken here"
    remedy = "with curl: -H 'Content-Type: application/json' -d '{...}'"
    if "multipart" in accepted:
        remedy += ", or -F image=@photo.jpg, or -H 'Content-Type: image/jpeg' --data-binary @photo.jpg"
    raise BodyRefused(415, "unsupported_media_type", f"{given}; this route takes {accepted} ({remedy})")


def items_of(received: Received[Any], inputs: Sequence[Any], limits: IngressLimits) -> list[Item]:
    """Inputs and files as pipeline items; one that is refused here keeps its place as a FailedItem."""
    files = received.files
    return [ImageItem(files[index]) if index in files else item_of(each, limits) for index, each in enumerate(inputs)]


def query_options(request: Request, options: Options, model: type[Body], limits: IngressLimits) -> Body:
    """The query of a route without a body, validated. Raises Refusal (400, 422)."""
    return validate(_query_options(request, options), model, limits)


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
    """Bytes of an `image` field: base64, or a data: URI with base64.

    Raises:
        ImageTooLarge: before decoding, from its length; what is over the limit by less, the decoder refuses.
        InvalidImage: not base64.
    """
    payload = text
    if text[:5].lower() == "data:":
        head, comma, payload = text.partition(",")
        if not comma or len(head) > _MAX_DATA_URI_HEAD or not head.lower().endswith(";base64"):
            raise InvalidImage("a data: URI must have the form data:image/...;base64,...")
    if len(payload) > 4 * (limits.max_image_bytes // 3 + 1):
        raise ImageTooLarge(f"the image is larger than {limits.max_image_bytes} bytes (CLIPWORKS_MAX_IMAGE_BYTES)")
    try:
        if len(payload) % 4 == 0:  # strict_mode lets a surplus "=" pass
            return binascii.a2b_base64(payload, strict_mode=True)
    except ValueError:
        pass  # the same answer as for a wrong length
    raise InvalidImage("image is not base64: standard alphabet with padding, no line breaks (base64 -w0)")


def item_of(each: Any, limits: IngressLimits) -> Item:
    """One input of a body as a pipeline item."""
    try:
        match each:
            case str():
                return TextItem(each)
            case TextInput():
                return TextItem(each.text)
            case ImageInput():
                return ImageItem(decode_image_field(each.image, limits))
            case _:
                raise UrlFetchDisabled("image_url is refused: this server fetches nothing; send the bytes as image")
    except ClipworksError as error:
        return FailedItem(error)


def _with_files(
    fields: dict[str, Any], files: tuple[bytes, ...], model: type[Body], limits: IngressLimits, inputs: str
) -> Received[Body]:
    """Validate fields that did not come as one JSON text; each file stands as an empty image for that."""
    own = fields.get(inputs, [])
    if isinstance(own, list):
        count = len(own)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        fields = {**fields, inputs: [*own, *({"image": ""} for _ in files)]}
    else:
        count = 0
    return Received(validate(fields, model, limits), dict(enumerate(files, count)))


def _with_files_in_objects(
    fields: dict[str, Any], files: tuple[bytes, ...], model: type[Body], limits: IngressLimits, inputs: str
) -> Received[Body]:
    """As `_with_files`, but each file belongs to an object of `inputs`, which says what else is known about it."""
    fields = dict(fields)
    ids = fields.pop("id", None)
    if ids is not None and inputs in fields:
        raise Refusal(422, "invalid_field", f"give either {inputs} or id", param="id")
    given: Any = [{"id": each} for each in ids] if ids is not None else fields.get(inputs, [])
    if not isinstance(given, list):
        return Received(validate(fields, model, limits))
    _check_counts({inputs: given}, limits)
    objects = cast(list[Any], given)
    places = [
        index
        for index, each in enumerate(objects)
        if isinstance(each, dict) and not _CONTENT & cast(dict[str, Any], each).keys()
    ]
    if len(places) != len(files):
        message = f"{inputs}: {len(places)} of them wait for an image, {len(files)} images came; give each its id"
        raise Refusal(422, "invalid_field", message, param=inputs)
    filled = dict(zip(places, files, strict=True))
    fields[inputs] = [{**each, "image": ""} if index in filled else each for index, each in enumerate(objects)]
    return Received(validate(fields, model, limits), filled)


def _from_parts(parts: Sequence[Part], options: Options) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    fields: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    files: list[bytes] = []
    for part in parts:
        if part.name == "image":
            files.append(part.data)
        elif part.name == "request":
            if fields:
                raise Refusal(422, "invalid_field", "the part request came twice", param="request")
            fields = _json_object(part.data)
        elif part.name in options:
            texts.setdefault(part.name, []).append(part.text())
        else:
            known = ", ".join(["image", "request", *options])
            raise Refusal(422, "invalid_field", f"a part has an unknown name; known are {known}")
    single = _typed_options(texts, options)
    repeated = sorted(fields.keys() & single.keys())
    if repeated:
        raise Refusal(422, "invalid_field", f"{repeated[0]} is in the part request and beside it", param=repeated[0])
    return {**fields, **single}, tuple(files)


def _query_options(request: Request, options: Options) -> dict[str, Any]:
    query: bytes = request.scope["query_string"]
    if not query:
        return {}
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=1000)
    except ValueError:
        raise Refusal(400, "invalid_query", "the query is not percent-encoded UTF-8, or has too many fields") from None
    texts: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in options:
            raise Refusal(422, "invalid_field", f"unknown query parameter; known are {', '.join(options)}")
        texts.setdefault(name, []).append(value)
    return _typed_options(texts, options)


def _typed_options(texts: Mapping[str, list[str]], options: Options) -> dict[str, Any]:
    """Options that came as text -> values of JSON; what does not fit stays text, and validation refuses it."""
    typed: dict[str, Any] = {}
    for name, values in texts.items():
        kind = options[name]
        if kind == "list" or (kind == "templates" and values[0] not in _TEMPLATE_NAMES):
            typed[name] = [piece.strip() for value in values for piece in value.split(",")]
        elif kind == "texts":
            typed[name] = values
        elif len(values) > 1:
            raise Refusal(422, "invalid_field", f"{name} is given more than once", param=name)
        else:
            typed[name] = _typed(values[0], kind)
    return typed


def _typed(text: str, kind: OptionKind) -> Any:
    if kind == "flag":
        return _FLAGS.get(text.lower(), text)
    if kind == "whole" and _WHOLE.fullmatch(text):
        return int(text)
    if kind == "number" and _NUMBER.fullmatch(text):
        return float(text)
    return text


def _json_value(raw: bytes) -> Any:
    try:
        return pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, "invalid_json", f"the body is not valid JSON: {error}") from None


def _json_object(raw: bytes) -> dict[str, Any]:
    value = _json_value(raw)
    if not isinstance(value, dict):
        raise Refusal(422, "invalid_field", "the request must be a JSON object")
    return value  # pyright: ignore[reportUnknownVariableType]


def _check_counts(value: Any, limits: IngressLimits) -> None:
    for name, limit in limits.max_list.items():
        found = value.get(name) if isinstance(value, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(found, list) and len(found) > limit:  # pyright: ignore[reportUnknownArgumentType]
            remedy = "; store more labels with PUT /label-sets/{name}" if name == "labels" else ""
            message = f"{name} has {len(found)} elements, the limit is {limit}{remedy}"  # pyright: ignore[reportUnknownArgumentType]
            raise TooManyItems(message)


def _refuse_length(limits: IngressLimits) -> NoReturn:
    error = _too_long(limits)
    raise BodyRefused(error.status, error.code, str(error))


def _too_long(limits: IngressLimits) -> Refusal:
    message = f"the body is larger than {limits.max_body_bytes} bytes (CLIPWORKS_MAX_BODY_BYTES)"
    return Refusal(413, "body_too_large", message)
