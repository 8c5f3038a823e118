"""Every byte that enters: bodies of all kinds, read under limits and validated; nothing behind it sees raw input.

One route takes JSON, multipart/form-data and a raw image. All become the same request model and a list of files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, NoReturn, TypeVar, cast

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.faults import DeadlinePassed
from service.http.body import read_body
from service.http.body_memory import FREE_BYTES
from service.http.context import context_of, while_connected
from service.http.errors import BodyRefused, Refusal, validation_refusal
from service.http.json_body import check_json, parse_json
from service.http.limits import IngressLimits
from service.http.multipart import FormPart, boundary_of, read_parts
from service.http.options import Options, read_query, typed_options
from service.threads import in_thread
from service.timing import Budget

Place = Literal["append", "fill"]
Body = TypeVar("Body", bound=BaseModel)
_T = TypeVar("_T")

# Parsing more takes long enough to leave the event loop; what takes the time is values, not the length of a string.
# A raw image is not parsed at all.
_INLINE_BYTES = 2**16
_INLINE_VALUES = 2**11
_INLINE_FORM_BYTES = 2**18
_INLINE_PARTS = 8
_CONTENT = frozenset({"text", "image", "image_url", "vector", "item"})


@dataclass(frozen=True)
class Received(Generic[Body]):
    """A validated request; `files` came beside it: index among its inputs -> bytes. head: the file that stands before
    the inputs, where the request has such a place and nothing else is there."""

    body: Body
    files: Mapping[int, bytes] = field(default_factory=dict[int, bytes])
    head: bytes | None = None


async def read_request(
    request: Request,
    model: type[Body],
    limits: IngressLimits,
    *,
    budget: Budget,
    options: Options,
    inputs: str = "inputs",
    place: Place = "append",
    key: str = "id",
    head: str | None = None,
) -> Received[Body]:
    """Read and validate a request to a route that takes images; `options` may also come as fields or in the query.

    place: files stand behind the inputs of the body ("append"), or each in the next object of `inputs` that has no
    content of its own; the option `key` then stands for objects that have nothing but this field ("fill").
    head: a field for one input, which the first file is where the request has no such field; with "append" only.

    Raises:
        Refusal: 400, 408, 413, 415 or 422; see docs/http.md.
        ClientGone: the client closed the connection.
        DeadlinePassed, ServiceOverloaded: many large bodies wait to be parsed.
    """
    media_type, parameters = content_type_of(request)
    if media_type != "application/json" and media_type != "multipart/form-data" and not media_type.startswith("image/"):
        refuse_media_type(request, "application/json, multipart/form-data or image/*")
    raw = await read_body(request, limits)
    query = read_query(request, options, limits)

    parts: Sequence[FormPart] = ()
    texts: Sequence[bytes] = ()
    if media_type == "application/json":
        texts = (raw,)
    elif media_type == "multipart/form-data":
        boundary, max_parts = boundary_of(parameters), 2 * limits.max_items + len(options) + 1
        work = partial(read_parts, raw, boundary, max_parts=max_parts)
        parts = work() if _is_quick_form(raw) else await off_loop(request, work, len(raw), limits, budget)
        texts = [part.data for part in parts if part.name != "image"]

    def read() -> Received[Body]:
        if media_type == "application/json":
            value = parse_json(raw)
            if not query:
                return Received(validate(value, model, limits))
            fields, files = _as_object(value), ()
        elif media_type == "multipart/form-data":
            fields, files = _from_parts(parts, options, limits)
        else:
            fields, files = {}, (raw,)
        repeated = sorted(fields.keys() & query.keys())
        if repeated:
            message = f"{repeated[0]} is given in the query and in the body"
            raise Refusal(422, "invalid_field", message, param=repeated[0])
        if place == "append":
            return _with_files({**fields, **query}, files, model, limits, inputs, head)
        return _with_files_in_objects({**fields, **query}, files, model, limits, inputs, key)

    return await _parse(request, read, texts, limits, budget)


async def read_json(request: Request, model: type[Body], limits: IngressLimits, *, budget: Budget) -> Body:
    """Read and validate the body of a route that takes JSON only. Raises as `read_request`."""
    if content_type_of(request)[0] != "application/json":
        refuse_media_type(request, "application/json")
    raw = await read_body(request, limits)

    def read() -> Body:
        return validate(parse_json(raw), model, limits)

    return await _parse(request, read, (raw,), limits, budget)


async def off_loop(
    request: Request, work: Callable[[], _T], size_bytes: int, limits: IngressLimits, budget: Budget
) -> _T:
    """The result of `work` on this many bytes of a request; in a thread when there are many.

    Raises:
        ServiceOverloaded: too many bodies wait for one.
        DeadlinePassed, ClientGone: while it waited.
    """
    if size_bytes <= _INLINE_BYTES:
        return work()
    async with _turn(request, size_bytes, limits, budget):
        return await in_thread(work)


async def _parse(
    request: Request, work: Callable[[], _T], texts: Sequence[bytes], limits: IngressLimits, budget: Budget
) -> _T:
    """The result of `work`, which parses these texts; in a thread when they are long or hold many values.

    What the values of long ones take is held, beside the texts, until the request is over.
    """

    def check() -> int:
        return sum(check_json(text, max_parsed_bytes=limits.max_parsed_bytes) for text in texts)

    size_bytes = sum(map(len, texts))
    if size_bytes <= _INLINE_BYTES and sum(text.count(b",") for text in texts) <= _INLINE_VALUES:
        check()
        return work()
    async with _turn(request, size_bytes, limits, budget):
        parsed_bytes = await in_thread(check)
        if size_bytes > FREE_BYTES:
            context_of(request.scope).body.hold_values(parsed_bytes)
        return await in_thread(work)


@asynccontextmanager
async def _turn(request: Request, size_bytes: int, limits: IngressLimits, budget: Budget) -> AsyncGenerator[None]:
    """A turn on the parsing threads, for which nobody waits past the deadline or when the client has gone."""
    context = context_of(request.scope)
    turn = limits.parsing.turn(size_bytes, caller=context.caller)
    async with AsyncExitStack() as held:
        try:
            with context.body.idle():
                async with asyncio.timeout(budget.remaining_s()):
                    await while_connected(request, held.enter_async_context(turn))
        except TimeoutError:
            raise DeadlinePassed("the request's deadline passed before its body was parsed") from None
        yield


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
        raise validation_refusal(error) from None


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


def query_options(request: Request, options: Options, model: type[Body], limits: IngressLimits) -> Body:
    """The query of a route without a body, validated. Raises Refusal (400, 422)."""
    return validate(read_query(request, options, limits), model, limits)


def _with_files(
    fields: dict[str, Any],
    files: tuple[bytes, ...],
    model: type[Body],
    limits: IngressLimits,
    inputs: str,
    head: str | None,
) -> Received[Body]:
    """Validate fields that did not come as one JSON text; each file stands as an empty image for that."""
    first: bytes | None = None
    if head is not None and head not in fields and files:
        first, *rest = files
        fields, files = {**fields, head: {"image": ""}}, tuple(rest)
    own = fields.get(inputs, [])
    if isinstance(own, list):
        count = len(own)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        fields = {**fields, inputs: [*own, *({"image": ""} for _ in files)]}
    else:
        count = 0
    return Received(validate(fields, model, limits), dict(enumerate(files, count)), first)


def _with_files_in_objects(
    fields: dict[str, Any], files: tuple[bytes, ...], model: type[Body], limits: IngressLimits, inputs: str, key: str
) -> Received[Body]:
    """As `_with_files`, but each file belongs to an object of `inputs`, which says what else is known about it."""
    fields = dict(fields)
    keys = fields.pop(key, None)
    if keys is not None and inputs in fields:
        raise Refusal(422, "invalid_field", f"give either {inputs} or {key}", param=key)
    if keys is None and inputs not in fields and not files:
        return Received(validate(fields, model, limits))
    given: Any = [{key: each} for each in keys] if keys is not None else _in_a_list(fields.get(inputs, []), key)
    if not isinstance(given, list):
        if files:
            raise Refusal(422, "invalid_field", f"{inputs}: a list, where files belong to its objects", param=inputs)
        return Received(validate(fields, model, limits))
    _check_counts({inputs: given}, limits)
    objects = cast(list[Any], given)
    places = [
        index
        for index, each in enumerate(objects)
        if isinstance(each, dict) and not _CONTENT & cast(dict[str, Any], each).keys()
    ]
    if len(places) != len(files):
        message = f"{inputs}: {len(places)} of them wait for an image, {len(files)} images came; give each its {key}"
        raise Refusal(422, "invalid_field", message, param=inputs)
    filled = dict(zip(places, files, strict=True))
    fields[inputs] = [{**each, "image": ""} if index in filled else each for index, each in enumerate(objects)]
    return Received(validate(fields, model, limits), filled)


def _in_a_list(given: Any, key: str) -> Any:
    """{name: [objects]} as objects that have the name as their `key`; anything else as it is."""
    by_name = cast(dict[str, Any], given) if isinstance(given, dict) else {}
    if not by_name or not all(isinstance(each, list) for each in by_name.values()):
        return cast(Any, given)
    objects = [(name, each) for name, listed in by_name.items() for each in cast(list[Any], listed)]
    if not all(isinstance(each, dict) and key not in each for _, each in objects):
        return cast(Any, given)
    return [{**cast(dict[str, Any], each), key: name} for name, each in objects]


def _is_quick_form(raw: bytes) -> bool:
    """Whether it is cut into its parts at once; what takes time is the headers of many."""
    return len(raw) <= _INLINE_FORM_BYTES and raw.count(b"\r\n--") <= _INLINE_PARTS


def _from_parts(
    parts: Sequence[FormPart], options: Options, limits: IngressLimits
) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    request: dict[str, Any] | None = None
    texts: dict[str, list[str]] = {}
    files: list[bytes] = []
    for part in parts:
        if part.name == "image":
            files.append(part.data)
        elif part.name == "request":
            if request is not None:
                raise Refusal(422, "invalid_field", "the part request came twice", param="request")
            request = _as_object(parse_json(part.data))
        elif part.name in options:
            texts.setdefault(part.name, []).append(part.text())
        else:
            known = ", ".join(["image", "request", *options])
            raise Refusal(422, "invalid_field", f"a part has an unknown name; known are {known}")
    fields = request or {}
    single = typed_options(texts, options, limits)
    repeated = sorted(fields.keys() & single.keys())
    if repeated:
        raise Refusal(422, "invalid_field", f"{repeated[0]} is in the part request and beside it", param=repeated[0])
    return {**fields, **single}, tuple(files)


def _as_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refusal(422, "invalid_field", "the request must be a JSON object")
    return cast(dict[str, Any], value)


def _check_counts(value: Any, limits: IngressLimits) -> None:
    if isinstance(value, dict):
        for name in limits.lists.keys() & cast(dict[str, Any], value).keys():
            found = cast(dict[str, Any], value)[name]
            if isinstance(found, (list, dict)):
                limits.check_list(name, len(cast(list[Any], found)))
