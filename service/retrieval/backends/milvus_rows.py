"""A collection as Milvus keeps it: its fields, its name there, and rows to and fro."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from service.retrieval.backends.facts import (
    FACT_CHARS,
    MAX_FACTS,
    TEXT_CHARS,
    OrderedField,
    columns_of,
    facts_of,
    ordered_fields,
)
from service.retrieval.errors import InvalidCollection, StoreCorrupt
from service.retrieval.records import BuiltKind, CollectionSpec, Record, Vector
from service.retrieval.truth.items import MAX_ID_BYTES
from service.retrieval.truth.rows import Prepared

if TYPE_CHECKING:
    from pymilvus import CollectionSchema

SPEC = "clipworks.spec"
READY = "clipworks.ready"
MAX_DOCUMENT_BYTES = 65_535  # Milvus' longest VARCHAR
_PREFIX = "clipworks_"
_MAX_FIELDS = 64
_LISTS = 1024
_DEFAULT_PROBES = 64
_ESCAPES = {"_": "__", ".": "_d", "-": "_m", "@": "_a"}


def name_there(name: str) -> str:
    """Milvus takes letters, digits and underscores; distinct names stay distinct."""
    return _PREFIX + "".join(_ESCAPES.get(char, char) for char in name)


def name_here(name: str) -> str | None:
    """None: it is no collection of this project."""
    if not name.startswith(_PREFIX):
        return None
    back = {escape: char for char, escape in _ESCAPES.items()}
    made, rest = "", name.removeprefix(_PREFIX)
    while rest:
        step = 2 if rest[0] == "_" else 1
        if step == 2 and rest[:2] not in back:
            return None
        made, rest = made + back.get(rest[:2] if step == 2 else "", rest[0]), rest[step:]
    return made


def key_of(id: str) -> str:
    """The primary key: hex keeps the order of ids and needs no quoting in an expression."""
    return id.encode().hex()


def id_of(key: str) -> str:
    return bytes.fromhex(key).decode()


def built_kind(spec: CollectionSpec) -> BuiltKind:
    """What the wanted kind becomes: `auto` is the kind for many rows. Raises InvalidCollection: sq8."""
    if spec.index.kind == "sq8":
        raise InvalidCollection("index.kind sq8 is not offered by the milvus backend; it has flat, ivf_sq8 and auto")
    return "flat" if spec.index.kind == "flat" else "ivf_sq8"


def search_params(spec: CollectionSpec) -> dict[str, Any]:
    if built_kind(spec) == "flat":
        return {"metric_type": "IP"}
    return {"metric_type": "IP", "params": {"nprobe": min(spec.index.nprobe or _DEFAULT_PROBES, _LISTS)}}


def index_params(spec: CollectionSpec) -> tuple[str, dict[str, Any]]:
    return ("FLAT", {}) if built_kind(spec) == "flat" else ("IVF_SQ8", {"nlist": _LISTS})


def add_fields(schema: CollectionSchema, spec: CollectionSpec) -> None:
    """Fill a pymilvus schema.

    Raises:
        InvalidCollection: metadata_schema declares more than Milvus has room for.
    """
    from pymilvus import DataType

    columns = [(column, field) for field in ordered_fields(spec.metadata_schema).values() for column in field.columns]
    if len(columns) + 6 > _MAX_FIELDS:
        raise InvalidCollection(
            f"metadata_schema needs {len(columns)} columns in Milvus (two for a list), there are {_MAX_FIELDS - 6}"
        )
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=2 * MAX_ID_BYTES)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=spec.dim)
    schema.add_field(
        "facts", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=MAX_FACTS, max_length=FACT_CHARS
    )
    schema.add_field("document", DataType.VARCHAR, max_length=MAX_DOCUMENT_BYTES)
    schema.add_field("sequence", DataType.INT64)
    schema.add_field("checksum", DataType.INT64)
    for column, field in columns:
        if field.kind == "number":
            schema.add_field(column, DataType.DOUBLE)
        else:
            schema.add_field(column, DataType.VARCHAR, max_length=TEXT_CHARS)


def encode(row: Prepared, fields: Mapping[str, OrderedField], *, sequence: int) -> dict[str, Any]:
    """Raises InvalidItem: metadata that Milvus has no room for."""
    metadata: dict[str, Any] = json.loads(row.metadata)
    return {
        "key": key_of(row.id),
        "vector": np.frombuffer(row.vector, "<f4").astype(np.float32),
        "facts": facts_of(metadata, fields),
        "document": row.metadata,
        "sequence": sequence,
        "checksum": checksum(row.id, row.vector, row.metadata, sequence),
        **columns_of(metadata, fields),
    }


def weight_of(row: Mapping[str, Any]) -> int:
    """Rough bytes of a row on the wire."""
    return 4 * len(row["vector"]) + len(row["document"]) + 24 * len(row["facts"]) + len(row["key"]) + 256


def decode(row: Mapping[str, Any], *, with_vector: bool) -> Record:
    """Raises StoreCorrupt: the row is not what was written."""
    try:
        id = id_of(row["key"])
        vector = vector_of(row) if with_vector else None
        metadata: dict[str, Any] = json.loads(row.get("document", "{}"))
        return Record(id, metadata, int(row.get("sequence", 0)), vector)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(f"a row in Milvus cannot be read: {error}") from None


def vector_of(row: Mapping[str, Any]) -> Vector:
    return np.asarray(row["vector"], dtype=np.float32)


def is_sound(row: Mapping[str, Any]) -> bool:
    """Whether id, vector, metadata and sequence are those that were written together."""
    try:
        data = vector_of(row).astype("<f4").tobytes()
        return checksum(id_of(row["key"]), data, row["document"], row["sequence"]) == row["checksum"]
    except (ValueError, KeyError, TypeError):
        return False


def checksum(id: str, vector: bytes, document: str, sequence: int) -> int:
    parts: Sequence[bytes] = (id.encode(), b"\0", vector, document.encode(), str(sequence).encode())
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return found
