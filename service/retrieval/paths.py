"""Dotted field names of metadata: one rule for filters and for metadata_schema."""

from __future__ import annotations

MAX_PATH_CHARS = 256
MAX_SEGMENTS = 16


def parse_path(field: str) -> tuple[str, ...]:
    """Keys from the outside in. A dot always descends into an object; a key that holds a dot cannot be named.

    Raises:
        ValueError: empty, too long, or a character that has no place in an SQLite JSON path.
    """
    if len(field) > MAX_PATH_CHARS:
        raise ValueError(f"a field name has {len(field)} characters, the limit is {MAX_PATH_CHARS}")
    keys = tuple(field.split("."))
    if len(keys) > MAX_SEGMENTS:
        raise ValueError(f"a field name has {len(keys)} parts, the limit is {MAX_SEGMENTS}")
    for key in keys:
        if not key:
            raise ValueError(f"field name {field!r} has an empty part")
        if key.startswith("$"):
            raise ValueError(f"field name {field!r} has a part that starts with $, which is kept for operators")
        if '"' in key or "\\" in key or any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF for char in key):
            raise ValueError(f"field name {field!r} has a quote, a backslash or a control character")
    return keys


def json_path(keys: tuple[str, ...]) -> str:
    """SQLite JSON path, every key quoted."""
    return "$" + "".join(f'."{key}"' for key in keys)
