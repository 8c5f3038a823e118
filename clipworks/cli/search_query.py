"""Arguments of `clipworks search` -> the query and the filter of a request."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipworks.cli import output
from clipworks.cli.failures import UsageError
from clipworks.cli.file_names import text_of
from clipworks.cli.picture_files import picture_suffixes
from clipworks.schemas import MAX_ID_BYTES

# What --not subtracts: measured in docs/composed.md. Texts lie close together, so in full they would take the better
# half of the query with them; a picture lies far from any text, so little of it is much.
_WORDS_FROM_WORDS, _WORDS_FROM_PICTURES, _PICTURE = 0.3, 1.0, 0.1
_MAX_PARTS = 64
_ONE_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class QueryPart:
    """query: as `Collection.search` takes it. shown: how people know it."""

    query: dict[str, Any]
    shown: str
    weight: float = 1.0


def parts_of(
    text: str | None, images: Sequence[Path], like: Sequence[str], without: Sequence[str], weights: Sequence[float]
) -> list[QueryPart]:
    """What is searched for, in the order text, images, stored items, what to keep away from.

    Raises:
        UsageError: nothing to look for, a file that is not there, something that cannot be an id, or weights that do
            not fit.
    """
    towards = [] if text is None else [_words_or_picture(text, "the text")]
    towards += [_picture(path) for path in images]
    towards += [QueryPart({"id": check_id(id)}, id) for id in like]
    if not towards:
        raise UsageError("nothing to look for: give a text, --image FILE or --like ID")
    away = [_words_or_picture(each, "--not") for each in without]
    count = len(towards) + len(away)
    if count > _MAX_PARTS:
        raise UsageError(f"{count} texts, pictures and items in one search; the server adds up to {_MAX_PARTS}")
    if weights and len(weights) != count:
        shown = ", ".join(part.shown for part in (*towards, *away))
        raise UsageError(f"--weight: {len(weights)} given, expected {count}, one for each of: {shown}")
    if any(not math.isfinite(weight) or weight <= 0 for weight in weights):
        raise UsageError("--weight: expected numbers above 0; what --not gives is subtracted by itself")
    has_words = any("text" in part.query for part in towards)
    words = _WORDS_FROM_WORDS if has_words else _WORDS_FROM_PICTURES
    default = [1.0] * len(towards) + [words if "text" in part.query else _PICTURE for part in away]
    scales = list(weights) or default
    signs = [1.0] * len(towards) + [-1.0] * len(away)
    return [
        QueryPart(part.query, part.shown, sign * scale)
        for part, sign, scale in zip((*towards, *away), signs, scales, strict=True)
    ]


def combined(parts: Sequence[QueryPart]) -> dict[str, Any]:
    if len(parts) == 1:
        return parts[0].query
    return {"combine": [part.query if part.weight == 1 else part.query | {"weight": part.weight} for part in parts]}


def check_id(id: str, *, option: str = "--like") -> str:
    """Raises UsageError for what no item can be called."""
    try:
        size = len(id.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(f"{option}: this id is no UTF-8 text") from None
    if not 1 <= size <= MAX_ID_BYTES:
        raise UsageError(f"{option}: an id has 1 to {MAX_ID_BYTES} bytes, this one {size}")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in id):
        raise UsageError(f"{option}: an id has no control characters")
    return id


def _words_or_picture(given: str, where: str) -> QueryPart:
    """A file's name stands for the picture: nobody looks for the words."""
    if not given.strip():
        raise UsageError(f"{where} is empty")
    if not _ONE_WORD.fullmatch(given) and not os.path.isfile(given):
        return QueryPart({"text": given}, given)
    if os.path.splitext(given)[1].lower() not in picture_suffixes():
        return QueryPart({"text": given}, given)
    if not os.path.isfile(given):
        raise UsageError(f"{text_of(given)}: no such file; a stored item is named with --like")
    output.say(f"{text_of(given)} is a file: looking for pictures like it")
    return _picture(Path(given))


def _picture(path: Path) -> QueryPart:
    if not path.is_file():
        raise UsageError(f"--image {text_of(path)}: {'this is no file' if path.exists() else 'no such file'}")
    return QueryPart({"image": path}, text_of(path.name))


def parse_filter(text: str) -> dict[str, Any]:
    """A filter as it is sent; the server checks its fields and operators.

    Raises:
        UsageError: not a JSON object, a key twice, or NaN and the like.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise UsageError(f"--filter: not JSON at character {error.pos + 1}: {error.msg}{_hint(text)}") from None
    except RecursionError:
        raise UsageError("--filter: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"--filter: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f'--filter: expected an object such as {{"year": 2024}}, got {text[:40]!r}')
    return found  # pyright: ignore[reportUnknownVariableType]


def _hint(text: str) -> str:
    return "; JSON wants double quotes" if "'" in text else ""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The last of two equal keys would win silently."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice; use $and")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
