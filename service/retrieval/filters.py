"""The filter language of the HTTP reference, as SQL with bound values.

A filter is `{"field": value}` for equality, `{"field": {"$gt": 3, "$lt": 9}}` for operators, `{"$and": [..]}`,
`{"$or": [..]}` and `{"$not": {..}}`; several keys of one object must all hold. Rules that SQL alone would get wrong:

- A missing field matches only `$ne`, `$not` and `$exists: false`. JSON null is a value, not a missing field.
- A value is compared with values of its own kind only: true is not 1, "1" is not 1; 1 and 1.0 are one number.
- `$gt`, `$gte`, `$lt`, `$lte` order numbers with numbers and strings with strings, the latter by code point.
- A field that holds an array matches when one of its elements does, also for ranges; `$ne` is the opposite of equality,
  so no element may be equal. Arrays and objects as a whole are never equal to anything.
- `{"a.b": ..}` descends into objects, never into arrays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from service.retrieval.errors import InvalidFilter
from service.retrieval.paths import json_path, parse_path
from service.retrieval.records import FieldType
from service.retrieval.tables import extract

MAX_DEPTH = 8
MAX_CONDITIONS = 128
MAX_CHOICES = 1000
MAX_STRING_BYTES = 4096
_RANGES = MappingProxyType({"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="})
_OPERATORS = ("$eq", "$ne", "$in", *_RANGES, "$exists")
_MISSING = object()
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Condition:
    """SQL over the columns of a metadata table, with its bound values; `key` is equal for equal filters.

    The SQL may give NULL where it means no.
    """

    sql: str
    values: tuple[Any, ...]
    key: str


def compile_filter(filter: Any, schema: Mapping[str, FieldType]) -> Condition:
    """Check a filter and turn it into a condition. Raises InvalidFilter with the place."""
    if not isinstance(filter, dict):
        raise InvalidFilter(f"expected an object, got {_kind(filter)}", path="filter")
    compiler = _Compiler(schema)
    sql = compiler.all_of(cast(dict[Any, Any], filter), "filter", depth=1)
    return Condition(sql, tuple(compiler.values), json.dumps(filter, sort_keys=True))


class _Compiler:
    """Builds the SQL from left to right, so that `values` are in the order of its question marks."""

    def __init__(self, schema: Mapping[str, FieldType]) -> None:
        self.values: list[Any] = []
        self._schema = schema
        self._conditions = 0

    def all_of(self, filter: dict[Any, Any], path: str, *, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise InvalidFilter(f"nested deeper than {MAX_DEPTH}", path=path)
        parts = [self._entry(key, value, path, depth) for key, value in filter.items()]
        return _joined(parts, "AND", empty="1")

    def _entry(self, key: Any, value: Any, path: str, depth: int) -> str:
        if not isinstance(key, str):
            raise InvalidFilter(f"a key must be a string, got {_kind(key)}", path=path)
        here = f"{path}.{key[:80]}"
        if key in ("$and", "$or"):
            parts = [
                self.all_of(_object(part, f"{here}[{place}]"), f"{here}[{place}]", depth=depth + 1)
                for place, part in enumerate(_list(value, here))
            ]
            return _joined(parts, key[1:].upper(), empty="")
        if key == "$not":
            return f"NOT IFNULL({self.all_of(_object(value, here), here, depth=depth + 1)}, 0)"
        if key.startswith("$"):
            raise InvalidFilter("unknown operator; known here: $and, $or, $not", path=here)
        try:
            keys = parse_path(key)
        except ValueError as error:
            raise InvalidFilter(str(error), path=path) from None
        field = _Field(json_path(keys).replace("'", "''"), extract(key), self._schema.get(key))
        if not isinstance(value, dict):
            return self._operator(field, "$eq", value, here)
        operators = cast(dict[Any, Any], value)
        if not operators:
            raise InvalidFilter("an empty object; give a value or an operator", path=here)
        return _joined([self._operator(field, name, wanted, here) for name, wanted in operators.items()], "AND")

    def _operator(self, field: _Field, name: Any, wanted: Any, path: str) -> str:
        here = path if name == "$eq" else f"{path}.{str(name)[:80]}"
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidFilter(f"more than {MAX_CONDITIONS} conditions", path=here)
        if name in ("$eq", "$ne"):
            equal = self._one_of(field, [_scalar(wanted, here)])
            return equal if name == "$eq" else f"NOT IFNULL({equal}, 0)"
        if name == "$in":
            choices = _list(wanted, here)
            if len(choices) > MAX_CHOICES:
                raise InvalidFilter(f"{len(choices)} choices, the limit is {MAX_CHOICES}", path=here)
            return self._one_of(field, [_scalar(choice, f"{here}[{place}]") for place, choice in enumerate(choices)])
        if name in _RANGES:
            return self._range(field, _RANGES[name], wanted, here)
        if name == "$exists":
            if not isinstance(wanted, bool):
                raise InvalidFilter(f"expected true or false, got {_kind(wanted)}", path=here)
            return f"{field.type} IS {'NOT ' if wanted else ''}NULL"
        raise InvalidFilter(f"unknown operator; known for a field: {', '.join(_OPERATORS)}", path=here)

    def _one_of(self, field: _Field, wanted: Sequence[Scalar]) -> str:
        """The field, or one element of it, equals one of the values."""
        texts = [value for value in wanted if isinstance(value, str)]
        numbers = [value for value in wanted if isinstance(value, (int, float)) and not isinstance(value, bool)]
        parts: list[str] = []
        if texts:
            parts.append(self._matches(field, "string", lambda value: f"{value} IN ({_marks(texts)})", texts))
        if numbers:
            parts.append(self._matches(field, "number", lambda value: f"{value} IN ({_marks(numbers)})", numbers))
        for value, kind in ((True, "true"), (False, "false"), (None, "null")):
            if any(choice is value for choice in wanted):
                parts.append(field.is_of(kind))
        return _joined(parts, "OR", empty="0")

    def _range(self, field: _Field, sign: str, wanted: Any, path: str) -> str:
        value = _scalar(wanted, path)
        if isinstance(value, bool) or value is None:
            raise InvalidFilter(f"expected a number or a string, got {_kind(wanted)}", path=path)
        kind = "string" if isinstance(value, str) else "number"
        return self._matches(field, kind, lambda operand: f"{operand} {sign} ?", [value])

    def _matches(
        self, field: _Field, kind: str, comparison: Callable[[str], str], values: Sequence[str | int | float]
    ) -> str:
        """A comparison of the field itself or, where it may be an array, of its elements."""
        if field.declared == kind:
            self.values += values
            return comparison(field.value)  # its type is enforced at the door, so this alone decides and uses the index
        types = "'text'" if kind == "string" else "'integer', 'real'"
        self.values += [*values, *values]
        return (
            f"CASE {field.type} WHEN 'array' THEN EXISTS (SELECT 1 FROM json_each(document, '{field.path}') AS e"
            f" WHERE e.type IN ({types}) AND {comparison('e.atom')})"
            f" ELSE {field.type} IN ({types}) AND {comparison(field.value)} END"
        )


@dataclass(frozen=True)
class _Field:
    path: str
    value: str
    declared: FieldType | None

    @property
    def type(self) -> str:
        return f"json_type(document, '{self.path}')"

    def is_of(self, kind: str) -> str:
        """True, false and null have a type of their own each, so the type is the value."""
        if self.declared == "boolean" and kind != "null":
            return f"{self.value} = {int(kind == 'true')}"
        return (
            f"({self.type} = '{kind}' OR {self.type} = 'array' AND EXISTS"
            f" (SELECT 1 FROM json_each(document, '{self.path}') AS e WHERE e.type = '{kind}'))"
        )


class DeclaredFields:
    """The types of a metadata_schema, ready to be checked against many items."""

    def __init__(self, schema: Mapping[str, FieldType]) -> None:
        self._fields = [(field, parse_path(field), kind) for field, kind in schema.items()]

    def problem(self, metadata: Mapping[str, Any]) -> str | None:
        """What is wrong with an item's declared fields, in words; None if all have their types or are missing."""
        for field, keys, kind in self._fields:
            found: Any = metadata
            for key in keys:
                found = cast(dict[Any, Any], found).get(key, _MISSING) if isinstance(found, dict) else _MISSING
            if found is _MISSING:
                continue
            if kind.endswith("[]"):
                right = isinstance(found, list) and all(_is_a(value, kind) for value in cast(list[Any], found))
            else:
                right = _is_a(found, kind)
            if not right:
                return f"metadata field {field!r} must be of type {kind}, got {_kind(found)}"
        return None


def _is_a(value: Any, kind: str) -> bool:
    if kind.startswith("string"):
        return isinstance(value, str)
    if kind == "boolean":
        return isinstance(value, bool)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scalar(value: Any, path: str) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise InvalidFilter("a string that is not valid Unicode", path=path) from None
        if size > MAX_STRING_BYTES:
            raise InvalidFilter(f"a string of {size} bytes, the limit is {MAX_STRING_BYTES}", path=path)
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InvalidFilter("an integer beyond 64 bits", path=path)
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidFilter("NaN and Infinity are no values", path=path)
        return value
    raise InvalidFilter(f"expected a string, a number, true, false or null, got {_kind(value)}", path=path)


def _object(value: Any, path: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise InvalidFilter(f"expected an object, got {_kind(value)}", path=path)
    return cast(dict[Any, Any], value)


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InvalidFilter(f"expected a list with at least one entry, got {_kind(value)}", path=path)
    return cast(list[Any], value)


def _joined(parts: Sequence[str], word: str, *, empty: str = "") -> str:
    return f"({f' {word} '.join(parts)})" if parts else empty


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else "something else"
