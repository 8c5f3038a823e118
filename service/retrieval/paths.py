r"""Dotted field names of metadata: one rule for filters and for metadata_schema.

`camera.maker` is the key "camera.maker" of the item itself where it has one (a flattened table has such keys), and else
the key "maker" of the object "camera". A name with a backslash is exact: `\.` is a dot inside a key, `\\` a backslash,
and every other dot descends. So `camera\.maker` is never the object's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

MAX_PATH_CHARS = 256
MAX_SEGMENTS = 16
MISSING = object()
_PARTS = re.compile(r"(?:[^.\\]|\\[.\\])*")

Keys = tuple[str, ...]


def parse_path(field: str) -> Keys:
    """Keys from the outside in, where every dot that is not escaped descends.

    Raises:
        ValueError: empty, too long, or a control character.
    """
    if len(field) > MAX_PATH_CHARS:
        raise ValueError(f"a field name has {len(field)} characters, the limit is {MAX_PATH_CHARS}")
    keys = _split(field)
    if len(keys) > MAX_SEGMENTS:
        raise ValueError(f"a field name has {len(keys)} parts, the limit is {MAX_SEGMENTS}")
    for key in keys:
        if not key:
            raise ValueError(f"field name {field!r} has an empty part")
        if key.startswith("$"):
            raise ValueError(f"field name {field!r} has a part that starts with $, which is kept for operators")
        if any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF for char in key):
            raise ValueError(f"field name {field!r} has a control character or half a surrogate pair")
    return keys


def readings(field: str) -> tuple[Keys, ...]:
    """What a name may stand for; the first that an item has is meant. Raises ValueError as `parse_path`."""
    keys = parse_path(field)
    return (keys,) if len(keys) == 1 or "\\" in field else ((field,), keys)


def value_at(metadata: Mapping[str, Any], field: str) -> Any:
    """The value that a field name stands for in an item; MISSING if it has none."""
    for keys in readings(field):
        found: Any = metadata
        for key in keys:
            found = cast("dict[Any, Any]", found).get(key, MISSING) if isinstance(found, dict) else MISSING
        if found is not MISSING:
            return found
    return MISSING


def sql_path(field: str) -> str:
    """SQL of the JSON path to a field in the column `document`; a fixed text where a name has one reading."""
    paths = [_json_path(keys).replace("'", "''") for keys in readings(field)]
    if len(paths) == 1:
        return f"'{paths[0]}'"
    flat, nested = paths
    return f"CASE WHEN json_type(document, '{flat}') IS NULL THEN '{nested}' ELSE '{flat}' END"


def _json_path(keys: Keys) -> str:
    """SQLite JSON path; its keys are JSON strings."""
    return "$" + "".join(f".{json.dumps(key, ensure_ascii=False)}" for key in keys)


def _split(field: str) -> Keys:
    if "\\" not in field:
        return tuple(field.split("."))
    keys: list[str] = []
    start = 0
    while True:
        part = _PARTS.match(field, start)
        end = part.end() if part else start
        if end < len(field) and field[end] == "\\":
            raise ValueError(f"field name {field!r} has a backslash that is neither \\. nor \\\\")
        keys.append(re.sub(r"\\(.)", r"\1", field[start:end]))
        if end == len(field):
            return tuple(keys)
        start = end + 1
