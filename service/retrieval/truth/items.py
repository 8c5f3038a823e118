"""Checks of items before they are stored: ids, vectors and metadata, one by one."""

from __future__ import annotations

import math
import re
from typing import Any, cast

import numpy as np
import orjson

from service.retrieval.errors import InvalidItem
from service.retrieval.records import CollectionSpec, StoreItem
from service.retrieval.truth.field_types import DeclaredFields
from service.retrieval.truth.positions import problem_of_positions
from service.retrieval.truth.rows import Prepared
from service.retrieval.truth.thumbnails import MAX_THUMBNAIL_BYTES

MAX_ID_BYTES = 512
MAX_METADATA_DEPTH = 32
_LENGTH_TOLERANCE = 1e-3
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class ItemChecks:
    """What an item must fulfil to be stored in one collection: its id, its vector, its declared metadata."""

    def __init__(self, spec: CollectionSpec, *, max_metadata_bytes: int) -> None:
        self._dim = spec.dim
        self._declared = DeclaredFields(spec.metadata_schema)
        self._max_metadata_bytes = max_metadata_bytes
        self._keeps_thumbnails = spec.thumbnails
        self._rerank = spec.rerank

    def prepare(self, item: StoreItem) -> Prepared:
        """The item as it will lie in the file. Raises InvalidItem."""
        check_id(item.id)
        return Prepared(
            item.id,
            self._vector(item.vector),
            self._metadata(item.metadata),
            self._thumbnail(item.thumbnail),
            self._positions(item.positions),
        )

    def _vector(self, vector: Any) -> bytes:
        values = np.asarray(vector)
        if values.dtype != np.float32:
            raise InvalidItem(f"a vector must be of float32, got {values.dtype}")
        if values.shape != (self._dim,):
            raise InvalidItem(f"a vector must have {self._dim} numbers, got shape {list(values.shape)}")
        length = math.sqrt(float(np.dot(values, values)))
        if not abs(length - 1) <= _LENGTH_TOLERANCE:  # also when it is not finite
            raise InvalidItem(f"a vector must have length 1 and finite numbers, got length {length:.6g}")
        return values.astype("<f4", copy=False).tobytes()

    def _thumbnail(self, picture: bytes | None) -> bytes | None:
        """Its form only: it comes from this server's encoder, or from a snapshot whose sum was checked."""
        if picture is None:
            return None
        if not self._keeps_thumbnails:
            raise InvalidItem("this collection keeps no thumbnails")
        if len(picture) > MAX_THUMBNAIL_BYTES or picture[:4] != b"RIFF" or picture[8:12] != b"WEBP":
            raise InvalidItem(f"a thumbnail must be a WebP of at most {MAX_THUMBNAIL_BYTES} bytes")
        return picture

    def _positions(self, positions: bytes | None) -> bytes | None:
        """Its form only, as of a thumbnail."""
        if positions is None:
            return None
        if self._rerank is None:
            raise InvalidItem("this collection keeps no position vectors")
        if problem := problem_of_positions(positions, self._rerank.width):
            raise InvalidItem(problem)
        return positions

    def _metadata(self, metadata: Any) -> str:
        if not isinstance(metadata, dict):
            raise InvalidItem(f"metadata must be an object, got {type(metadata).__name__}")
        _check_value(metadata, 1)
        try:
            text = orjson.dumps(metadata)
        except (orjson.JSONEncodeError, UnicodeEncodeError):
            raise InvalidItem("metadata must be valid Unicode") from None
        if len(text) > self._max_metadata_bytes:
            raise InvalidItem(f"metadata takes {len(text)} bytes as JSON, the limit is {self._max_metadata_bytes}")
        if problem := self._declared.problem(cast(dict[str, Any], metadata)):
            raise InvalidItem(problem)
        return text.decode()


def check_id(id: Any) -> None:
    """Raises InvalidItem."""
    if not isinstance(id, str):
        raise InvalidItem(f"an id must be a string, got {type(id).__name__}")
    try:
        size = len(id.encode())
    except UnicodeEncodeError:
        raise InvalidItem("an id must be valid Unicode") from None
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidItem(f"an id must have 1 to {MAX_ID_BYTES} bytes of UTF-8, got {size}")
    if _CONTROL.search(id):
        raise InvalidItem("an id must have no control characters")


def _check_value(value: Any, depth: int) -> None:
    """JSON that SQLite reads back as the same value: no integer beyond 64 bits, no NaN, keys that are strings."""
    kind: Any = cast(Any, type(value))
    if kind is str or kind is bool or value is None:
        return
    if kind is int:
        if not -(2**63) <= value < 2**63:
            raise InvalidItem("metadata holds an integer beyond 64 bits")
    elif kind is float:
        if not math.isfinite(value):
            raise InvalidItem("metadata holds NaN or Infinity")
    elif depth > MAX_METADATA_DEPTH:
        raise InvalidItem(f"metadata is nested deeper than {MAX_METADATA_DEPTH}")
    elif kind is dict:
        for key, part in cast(dict[Any, Any], value).items():
            if type(key) is not str:
                raise InvalidItem(f"a metadata key must be a string, got {type(key).__name__}")
            _check_value(part, depth + 1)
    elif kind is list:
        for part in cast(list[Any], value):
            _check_value(part, depth + 1)
    else:
        raise InvalidItem(f"metadata holds a {type(value).__name__}, which JSON does not know")
