"""Items and queries as callers give them -> entries of a request; files are read when it is filled."""

from __future__ import annotations

import base64
import os
import re
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clipworks._bodies import post
from clipworks._exchange import Request
from clipworks._inputs import ImageAddress, ImageBytes, InputSource, Text
from clipworks._json import json_bytes
from clipworks._pictures import axes_of
from clipworks.errors import UnreadableInput

if TYPE_CHECKING:
    from clipworks._inputs import ImageSource
    from clipworks.results import Vector

    VectorLike = Sequence[float] | Vector
    QueryLike = str | os.PathLike[str] | bytes | ImageSource | VectorLike | Mapping[str, Any]

_CONTENT = ("text", "image", "vector")
# One word that ends like the file of a picture: nobody searches for it, many give it for the picture.
_PICTURE_NAME = re.compile(r"\.(?:jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?|avif|heic|heif)$", re.IGNORECASE)
_ASKED = ("text", "image", "vector", "id")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row for `Collection.upsert`: an id, one of text, image and vector, and metadata.

    image: as for `Client.embed`. vector: floats of any length but zero; it is normalised on arrival.
    """

    id: str
    text: str | None = None
    image: ImageSource | None = None
    vector: VectorLike | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Entry:
    """One item or query as it is sent; `file` stands beside the JSON, `weight` is in bytes."""

    body: str | dict[str, Any] | None
    file: bytes | None
    weight: int


@dataclass(frozen=True)
class ItemSource:
    index: int
    item: Item

    def load(self) -> Entry:
        """Raises UnreadableInput: a file that cannot be read, or an id or metadata that JSON cannot hold."""
        item = self.item
        body: dict[str, Any] = {"id": item.id}
        if item.metadata:
            body["metadata"] = dict(item.metadata)
        size = _check_json(body, self.index)
        if item.vector is not None:
            body["vector"] = _vector_text(item.vector, self.index)
            return Entry(body, None, size + len(body["vector"]))
        content, file = content_of({"text": item.text, "image": item.image}, self.index)
        return Entry(body | content, file, size + len(file or b""))


@dataclass(frozen=True)
class QuerySource:
    index: int
    query: Any

    def load(self) -> Entry:
        """Raises UnreadableInput: a file that cannot be read, a text or a vector that cannot be sent."""
        asked = _asked(self.query)
        if "combine" in asked:
            parts = [self._part(_asked(part)) for part in asked["combine"]]
            return Entry({"combine": parts}, None, sum(len(str(part.get("image", ""))) for part in parts))
        body, file = self._one(asked)
        return Entry(None if file is not None else body, file, len(file or b""))

    def _part(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        body, file = self._one(asked)
        if file is not None:
            body = {"image": base64.b64encode(file).decode("ascii")}
        return body | ({"weight": float(asked["weight"])} if "weight" in asked else {})

    def _one(self, asked: Mapping[str, Any]) -> tuple[dict[str, Any], bytes | None]:
        if "id" in asked:
            body = {"id": asked["id"]}
            _check_json(body, self.index)
            return body, None
        if "vector" in asked:
            return {"vector": _vector_text(asked["vector"], self.index)}, None
        return content_of(asked, self.index)


def item_sources(items: Iterable[Item | Mapping[str, Any]]) -> list[ItemSource]:
    """Items in the caller's order.

    Raises:
        TypeError: an entry that is neither an Item nor a mapping.
        ValueError: nothing to store, two items of one id, or not exactly one of text, image and vector.
    """
    found: list[ItemSource] = []
    seen: dict[str, int] = {}
    for index, given in enumerate(items):
        item = _item(given, index)
        if sum(getattr(item, name) is not None for name in _CONTENT) != 1:
            raise ValueError(f"items[{index}]: expected exactly one of {', '.join(_CONTENT)}")
        if (earlier := seen.setdefault(item.id, index)) != index:
            raise ValueError(
                f"items[{earlier}] and items[{index}] have the same id {item.id!r}; which one should stay?"
            )
        found.append(ItemSource(index, item))
    if not found:
        raise ValueError("expected at least one item, got none")
    return found


def query_sources(queries: Iterable[Any]) -> list[QuerySource]:
    """Queries in the caller's order.

    Raises:
        TypeError: one query where several are expected, or something that is none.
        ValueError: no query, or a mapping with other keys than a query has.
    """
    if isinstance(queries, (str, bytes, bytearray, os.PathLike, Mapping)):
        raise TypeError("queries: expected several, got one; write [query]")
    found = [QuerySource(index, query) for index, query in enumerate(queries)]
    if not found:
        raise ValueError("expected at least one query, got none")
    for each in found:
        _check_query(each.query, f"queries[{each.index}]")
    return found


def pack_items(path: str, fields: Mapping[str, Any], entries: Sequence[Entry]) -> Request:
    files = [entry.file for entry in entries if entry.file is not None]
    return post(path, {**fields, "items": [entry.body for entry in entries]}, files)


def pack_queries(path: str, fields: Mapping[str, Any], entries: Sequence[Entry]) -> Request:
    """Files are queries behind those of the body."""
    files = [entry.file for entry in entries if entry.file is not None]
    bodies = [entry.body for entry in entries if entry.file is None]
    return post(path, {**fields, "queries": bodies} if bodies else dict(fields), files)


def is_late_query(entry: Entry) -> bool:
    return entry.file is not None


def weight_of(entry: Entry) -> int:
    return entry.weight


def _item(given: Any, index: int) -> Item:
    if isinstance(given, Mapping):
        unknown = sorted(str(key) for key in given if key not in ("id", "metadata", *_CONTENT))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if unknown:
            raise ValueError(
                f"items[{index}]: unknown {', '.join(unknown)}; known are id, metadata, text, image, vector"
            )
        if "id" not in given:
            raise ValueError(f"items[{index}]: it has no id")
        given = Item(**given)  # pyright: ignore[reportUnknownArgumentType]
    if not isinstance(given, Item):
        raise TypeError(f"items[{index}]: expected an Item or a mapping, got {type(given).__name__}")
    if not isinstance(given.id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"items[{index}].id: expected str, got {type(given.id).__name__}")
    return given


def _asked(query: Any) -> Mapping[str, Any]:
    """A query as a mapping: a str is a text, a list or an array a vector (one of bytes in rows a picture), anything
    else a picture."""
    if isinstance(query, Mapping):
        return query  # pyright: ignore[reportUnknownVariableType]
    if isinstance(query, str):
        return {"text": query}
    if (axes_of(query) or 0) > 1 and query.dtype.kind in "ub":
        return {"image": query}
    return {"vector" if isinstance(query, (list, tuple)) or hasattr(query, "tolist") else "image": query}


def _check_query(query: Any, where: str, *, in_combine: bool = False) -> None:
    if isinstance(query, str) and _PICTURE_NAME.search(query):
        raise ValueError(
            f"{where}: {query!r} is a text here, and looks like a picture's name; write {{'image': {query!r}}} "
            f"(or a Path) for the picture, {{'text': {query!r}}} for the words"
        )
    if not isinstance(query, Mapping):
        return
    keys = {str(key) for key in query}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if "combine" in keys and not in_combine:
        parts: Any = query["combine"]  # pyright: ignore[reportUnknownVariableType]
        if len(keys) > 1 or not isinstance(parts, (list, tuple)) or not parts:
            raise ValueError(f"{where}: expected {{'combine': [a query, ...]}} and nothing beside it")
        for place, part in enumerate(parts):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            _check_query(part, f"{where}.combine[{place}]", in_combine=True)
        return
    if in_combine:
        keys -= {"weight"}
    if len(keys) != 1 or not keys <= set(_ASKED):
        allowed = f"{', '.join(_ASKED)}{' (and weight)' if in_combine else ' or combine'}"
        raise ValueError(f"{where}: expected exactly one of {allowed}; got {', '.join(sorted(keys)) or 'nothing'}")


def content_of(given: Mapping[str, Any], index: int) -> tuple[dict[str, Any], bytes | None]:
    """The JSON of a text or an address, or the bytes of a picture."""
    is_text = given.get("text") is not None
    loaded = InputSource(index, given["text"] if is_text else given["image"], is_text).load()
    match loaded:
        case Text():
            return {"text": loaded.text}, None
        case ImageAddress():
            return {"image_url": loaded.url}, None
        case ImageBytes():
            return {}, loaded.data


def _vector_text(value: Any, index: int) -> str:
    """base64 of little-endian float32."""
    values: Any = value.tolist() if hasattr(value, "tolist") else value
    try:
        numbers = array("f", values)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnreadableInput(f"vector: expected one row of numbers: {error}", index=index) from error
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def _check_json(body: Mapping[str, Any], index: int) -> int:
    """Its size in bytes: one item that JSON or UTF-8 cannot hold must not spoil its whole request."""
    try:
        return len(json_bytes(body))
    except UnicodeEncodeError as error:
        raise UnreadableInput(f"id or metadata holds a lone surrogate at {error.start}", index=index) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise UnreadableInput(f"metadata cannot be written as JSON: {error}", index=index) from error
