"""The filter language of the HTTP reference, as SQL with bound values.

A filter is `{"field": value}` for equality, `{"field": {"$gt": 3, "$lt": 9}}` for operators, `{"$and": [..]}`,
`{"$or": [..]}` and `{"$not": {..}}`; several keys of one object must all hold. Rules that SQL alone would get wrong:

- A missing field matches only `$ne`, `$not` and `$exists: false`. JSON null is a value, not a missing field.
- A value is compared with values of its own kind only: true is not 1, "1" is not 1; 1 and 1.0 are one number.
- `$gt`, `$gte`, `$lt`, `$lte` order numbers with numbers and strings with strings, the latter by code point.
  `$prefix` takes strings that begin so.
- A field that holds an array matches when one of its elements does, also for ranges; `$ne` is the opposite of equality,
  so no element may be equal. Arrays and objects as a whole are never equal to anything.
- `{"a.b": ..}` is the key "a.b", and in an item without it the key "b" of the object "a"; see paths.py.
- A declared field holds values of one type, so a value of another type is refused: it could match nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from service.retrieval.errors import InvalidFilter
from service.retrieval.paths import parse_path, readings, sql_path
from service.retrieval.records import FieldType
from service.retrieval.truth.field_types import check_wanted
from service.retrieval.truth.filter_limits import check_size, kind_of
from service.retrieval.truth.tables import extract

RANGES: Mapping[str, str] = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_OPERATORS = ("$eq", "$ne", "$in", *RANGES, "$prefix", "$exists")
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Condition:
    """SQL over the columns of a metadata table, with its bound values.

    The SQL may give NULL where it means no. key: equal for equal filters. conditions: how much there is to compare.
    undeclared: fields that no metadata_schema vouches for, with the SQL that says whether a row has them.
    """

    sql: str
    values: tuple[Any, ...]
    key: bytes
    conditions: int
    undeclared: Mapping[str, str]


def compile_filter(filter: Any, schema: Mapping[str, FieldType]) -> Condition:
    """Check a filter and turn it into a condition. Raises InvalidFilter with the place."""
    if not isinstance(filter, dict):
        raise InvalidFilter(f"expected an object, got {kind_of(filter)}", path="filter")
    conditions = check_size(cast("dict[Any, Any]", filter))
    compiler = _Compiler(schema)
    sql = compiler.all_of(cast("dict[Any, Any]", filter), "filter")
    key = hashlib.sha256(json.dumps(filter, sort_keys=True).encode()).digest()
    return Condition(sql, tuple(compiler.values), key, conditions, compiler.undeclared)


class _Compiler:
    """Builds the SQL from left to right, so that `values` are in the order of its question marks."""

    def __init__(self, schema: Mapping[str, FieldType]) -> None:
        self.values: list[Any] = []
        self.undeclared: dict[str, str] = {}
        self._schema = schema

    def all_of(self, filter: dict[Any, Any], path: str) -> str:
        parts = [self._entry(key, value, path) for key, value in filter.items()]
        return _joined(parts, "AND", empty="1")

    def _entry(self, key: Any, value: Any, path: str) -> str:
        if not isinstance(key, str):
            raise InvalidFilter(f"a key must be a string, got {kind_of(key)}", path=path)
        here = f"{path}.{key[:80]}"
        if key in ("$and", "$or"):
            parts = [
                self.all_of(_object(part, f"{here}[{place}]"), f"{here}[{place}]")
                for place, part in enumerate(_list(value, here))
            ]
            return _joined(parts, key[1:].upper(), empty="")
        if key == "$not":
            return f"NOT IFNULL({self.all_of(_object(value, here), here)}, 0)"
        if key.startswith("$"):
            raise InvalidFilter("unknown operator; known here: $and, $or, $not", path=here)
        field = self._field(key, path)
        if not isinstance(value, dict):
            return self._operator(field, "$eq", value, here)
        operators = cast("dict[Any, Any]", value)
        if not operators:
            raise InvalidFilter("an empty object; give a value or an operator", path=here)
        return _joined([self._operator(field, name, wanted, here) for name, wanted in operators.items()], "AND")

    def _field(self, name: str, path: str) -> _Field:
        try:
            parse_path(name)
        except ValueError as error:
            raise InvalidFilter(str(error), path=path) from None
        field = _Field(sql_path(name), extract(name), self._schema.get(name), len(readings(name)) == 1)
        if field.declared is None:
            self.undeclared[name] = f"{field.type} IS NOT NULL"
        return field

    def _operator(self, field: _Field, name: Any, wanted: Any, path: str) -> str:
        here = path if name == "$eq" else f"{path}.{str(name)[:80]}"
        if name not in _OPERATORS:
            raise InvalidFilter(f"unknown operator; known for a field: {', '.join(_OPERATORS)}", path=here)
        if name == "$exists":
            if not isinstance(wanted, bool):
                raise InvalidFilter(f"expected true or false, got {kind_of(wanted)}", path=here)
            return f"{field.type} IS {'NOT ' if wanted else ''}NULL"
        check_wanted(field.declared, name, wanted, here)
        if name in ("$eq", "$ne"):
            equal = self._one_of(field, [_scalar(wanted, here)])
            return equal if name == "$eq" else f"NOT IFNULL({equal}, 0)"
        if name == "$in":
            choices = _list(wanted, here)
            return self._one_of(field, [_scalar(choice, f"{here}[{place}]") for place, choice in enumerate(choices)])
        if name == "$prefix":
            return self._prefix(field, wanted, here)
        return self._range(field, RANGES[name], wanted, here)

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
            raise InvalidFilter(f"expected a number or a string, got {kind_of(wanted)}", path=path)
        kind = "string" if isinstance(value, str) else "number"
        return self._matches(field, kind, lambda operand: f"{operand} {sign} ?", [value])

    def _prefix(self, field: _Field, wanted: Any, path: str) -> str:
        if not isinstance(wanted, str):
            raise InvalidFilter(f"expected a string, got {kind_of(wanted)}", path=path)
        end = after_prefix(wanted)
        if end is None:
            return self._matches(field, "string", lambda operand: f"{operand} >= ?", [wanted])
        return self._matches(field, "string", lambda operand: f"({operand} >= ? AND {operand} < ?)", [wanted, end])

    def _matches(
        self, field: _Field, kind: str, comparison: Callable[[str], str], values: Sequence[str | int | float]
    ) -> str:
        """A comparison of the field itself or, where it may be an array, of its elements."""
        types = "'text'" if kind == "string" else "'integer', 'real'"
        if field.declared in (kind, "date"):
            self.values += values
            # Its type is enforced at the door, so this alone decides and uses the index; but items of before may have
            # a flat key of that name which no door looked at.
            return (
                comparison(field.value)
                if field.is_plain
                else f"({comparison(field.value)} AND {field.type} IN ({types}))"
            )
        self.values += [*values, *values]
        return (
            f"CASE {field.type} WHEN 'array' THEN EXISTS (SELECT 1 FROM json_each(document, {field.path}) AS e"
            f" WHERE e.type IN ({types}) AND {comparison('e.atom')})"
            f" ELSE {field.type} IN ({types}) AND {comparison(field.value)} END"
        )


@dataclass(frozen=True)
class _Field:
    """path, value: SQL. is_plain: its name has one reading."""

    path: str
    value: str
    declared: FieldType | None
    is_plain: bool

    @property
    def type(self) -> str:
        return f"json_type(document, {self.path})"

    def is_of(self, kind: str) -> str:
        """True, false and null have a type of their own each, so the type is the value."""
        if self.declared == "boolean" and self.is_plain:
            return f"{self.value} = {int(kind == 'true')}"
        return (
            f"({self.type} = '{kind}' OR {self.type} = 'array' AND EXISTS"
            f" (SELECT 1 FROM json_each(document, {self.path}) AS e WHERE e.type = '{kind}'))"
        )


def after_prefix(prefix: str) -> str | None:
    """The least string that is behind all that begin with `prefix`, by code point; None: there is none."""
    for place in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[place])
        if code < 0x10FFFF:
            return prefix[:place] + chr(0xE000 if code == 0xD7FF else code + 1)
    return None


def _scalar(value: Any, path: str) -> Scalar:
    if value is None or isinstance(value, (bool, str, int, float)):
        return value
    raise InvalidFilter(f"expected a string, a number, true, false or null, got {kind_of(value)}", path=path)


def _object(value: Any, path: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise InvalidFilter(f"expected an object, got {kind_of(value)}", path=path)
    return cast("dict[Any, Any]", value)


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InvalidFilter(f"expected a list with at least one entry, got {kind_of(value)}", path=path)
    return cast("list[Any]", value)


def _joined(parts: Sequence[str], word: str, *, empty: str = "") -> str:
    return f"({f' {word} '.join(parts)})" if parts else empty


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
