"""Options that come as text, in a query or as fields of a form -> values of JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl

from starlette.requests import Request

from model_store.templates import NAMES as TEMPLATE_NAMES
from service.http.errors import Refusal
from service.http.json_body import check_json, parse_json
from service.http.limits import MAX_QUERY_FIELDS, IngressLimits

OptionKind = Literal["text", "flag", "whole", "number", "list", "templates", "texts"]
Options = Mapping[str, OptionKind]

_FLAGS = {"true": True, "false": False}
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?")
_LINE_BREAK = re.compile(r"\r\n|\n|\r")
_BOM = "\ufeff"
_OF_JSON = ("[", "{")


def read_query(request: Request, options: Options, limits: IngressLimits) -> dict[str, Any]:
    """The options of a query, typed. Raises Refusal (400, 422), TooManyItems."""
    query: bytes = request.scope["query_string"]
    if not query:
        return {}
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
        )
    except ValueError:
        raise Refusal(400, "invalid_query", "the query is not percent-encoded UTF-8, or has too many fields") from None
    texts: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in options:
            raise Refusal(422, "invalid_field", f"unknown query parameter; known are {', '.join(options)}")
        texts.setdefault(name, []).append(value)
    return typed_options(texts, options, limits)


def typed_options(texts: Mapping[str, list[str]], options: Options, limits: IngressLimits) -> dict[str, Any]:
    """What does not fit its kind stays text, and validation refuses it.

    Raises:
        Refusal: 422, an option that takes one value came twice, or a list that begins as JSON is none.
        TooManyItems: a list is longer than its limit.
    """
    typed: dict[str, Any] = {}
    for name, values in texts.items():
        kind = options[name]
        if kind == "list" or (kind == "templates" and values[0].strip() not in TEMPLATE_NAMES):
            typed[name] = _list(name, values, limits)
        elif kind == "texts":
            typed[name] = values
        elif len(values) > 1:
            raise Refusal(422, "invalid_field", f"{name} is given more than once", param=name)
        else:
            typed[name] = _typed(values[0], kind)
    return typed


def _list(name: str, values: list[str], limits: IngressLimits) -> Any:
    """Each value is a list of its own: JSON, one element a line, or elements between commas."""
    cleaned = [value.removeprefix(_BOM).strip() for value in values]
    if len(cleaned) == 1 and cleaned[0].startswith(_OF_JSON):
        return _json(name, cleaned[0], limits)
    found: list[Any] = []
    for value in cleaned:
        if value.startswith(_OF_JSON):
            part = _json(name, value, limits)
            found += part if isinstance(part, list) else [part]
        else:
            found += _split(name, value, len(found), limits)
        limits.check_list(name, len(found))
    return found


def _split(name: str, value: str, before: int, limits: IngressLimits) -> list[str]:
    """Counted before, or while, the pieces are made; lines without anything in them are no elements."""
    if "\n" in value or "\r" in value:
        limit = limits.lists.get(name)
        lines = _LINE_BREAK.split(value, maxsplit=4 * limit.most if limit else 0)
        return [line.strip() for line in lines if line.strip()]
    limits.check_list(name, before + value.count(",") + 1)
    return [piece.strip() for piece in value.split(",")]


def _json(name: str, value: str, limits: IngressLimits) -> Any:
    try:
        text = value.encode()
        check_json(text, max_parsed_bytes=limits.max_parsed_bytes)
        return parse_json(text)
    except Refusal:
        message = f'{name}: it begins as a JSON list, and is none; write ["a", "b"], or a, b, or one of them a line'
        raise Refusal(422, "invalid_field", message, param=name) from None


def _typed(text: str, kind: OptionKind) -> Any:
    if kind == "flag":
        return _FLAGS.get(text.lower(), text)
    if kind == "whole" and _WHOLE.fullmatch(text):
        return int(text)
    if kind == "number" and _NUMBER.fullmatch(text):
        return float(text)
    return text
