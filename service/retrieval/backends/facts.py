"""Metadata and filters for an engine whose JSON filters mean something else.

Milvus compares JSON loosely (true equals 1, a missing field makes the whole condition unknown). So each item carries
its facts as short digests in one array: "field year is there", "field year is the number 2024". Equality, `$in`,
`$exists` and their negations then ask only whether the array holds a digest: two-valued, typed, free of quoting. Order
is kept in a column of its own for each field that metadata_schema declares as a number or a string; a range on any
other field is refused.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from service.retrieval.errors import InvalidFilter, InvalidItem
from service.retrieval.paths import MAX_PATH_CHARS, MISSING, Keys, parse_path, value_at
from service.retrieval.records import FieldType
from service.retrieval.truth.filter_limits import MAX_STRING_BYTES
from service.retrieval.truth.filters import after_prefix, compile_filter

MAX_FACTS = 4096  # Milvus' largest array
FACT_CHARS = 20
# A stored string is cut where no filter can see it: one byte behind the longest string that a filter may hold.
_CUT_BYTES = MAX_STRING_BYTES + 1
TEXT_CHARS = 2 * (_CUT_BYTES + 3)
_EXACT_WHOLE = 2**53
ALWAYS = "(sequence >= 0)"
_Order = Literal["number", "string"]
_SIGNS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


@dataclass(frozen=True)
class OrderedField:
    """A declared field that ranges can be asked of; `low` and `high` are one column unless it is a list."""

    path: str
    kind: _Order
    is_list: bool
    low: str
    high: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.low,) if self.low == self.high else (self.low, self.high)


def ordered_fields(schema: Mapping[str, FieldType]) -> dict[str, OrderedField]:
    """By path; column names follow the sorted paths, so an equal schema gives equal names."""
    found: dict[str, OrderedField] = {}
    for place, (path, declared) in enumerate(sorted(schema.items())):
        if declared == "boolean":
            continue
        is_list = declared.endswith("[]")
        low, high = (f"f{place}_low", f"f{place}_high") if is_list else (f"f{place}", f"f{place}")
        kind: _Order = "number" if declared.startswith("number") else "string"
        found[path] = OrderedField(path, kind, is_list, low, high)
    return found


def facts_of(metadata: Mapping[str, Any], fields: Mapping[str, OrderedField]) -> list[str]:
    """Digests of all that a filter can ask about equality and existence.

    Raises:
        InvalidItem: more than MAX_FACTS.
    """
    found = {_fact(path, kind, value) for path, kind, value in _walk(metadata, (), metadata)}
    found |= {_fact(field.path, "ordered", "") for field in fields.values() if _values(metadata, field)}
    if len(found) > MAX_FACTS:
        raise InvalidItem(f"metadata has {len(found)} values to filter by, Milvus takes {MAX_FACTS}")
    return sorted(found)


def columns_of(metadata: Mapping[str, Any], fields: Mapping[str, OrderedField]) -> dict[str, float | str]:
    """Values of the ordered columns; a missing field has a filling that `facts_of` keeps out of every answer.

    Raises:
        InvalidItem: a whole number of a declared field that float64 cannot hold.
    """
    row: dict[str, float | str] = {}
    for field in fields.values():
        values = _values(metadata, field)
        if field.kind == "string":
            texts = cast("Sequence[str]", values) or [""]
            row |= {field.low: _sortable(min(texts)), field.high: _sortable(max(texts))}
        else:
            for value in values:
                if isinstance(value, int) and abs(value) > _EXACT_WHOLE:
                    raise InvalidItem(f"metadata field {field.path!r}: Milvus orders whole numbers up to 2^53 only")
            numbers = [float(value) for value in values] or [0.0]
            row |= {field.low: min(numbers), field.high: max(numbers)}
    return row


def expression_of(filter: Mapping[str, Any], schema: Mapping[str, FieldType]) -> str:
    """A filter of the contract as a Milvus expression.

    Raises:
        InvalidFilter: not of the language, or a range on a field that is not declared; with the place.
    """
    compile_filter(filter, schema)  # its checks are those of the contract, so below everything has its shape
    return _Translator(ordered_fields(schema)).all_of(filter, "filter")


class _Translator:
    def __init__(self, fields: Mapping[str, OrderedField]) -> None:
        self._fields = fields

    def all_of(self, filter: Mapping[str, Any], path: str) -> str:
        return _joined([self._entry(key, value, f"{path}.{key[:80]}") for key, value in filter.items()], "and")

    def _entry(self, key: str, value: Any, here: str) -> str:
        if key in ("$and", "$or"):
            return _joined([self.all_of(part, f"{here}[{n}]") for n, part in enumerate(value)], key[1:])
        if key == "$not":
            return f"(not {self.all_of(value, here)})"
        operators = cast("dict[str, Any]", value) if isinstance(value, dict) else {"$eq": value}
        return _joined([self._operator(key, name, wanted, here) for name, wanted in operators.items()], "and")

    def _operator(self, field: str, name: str, wanted: Any, here: str) -> str:
        if name == "$exists":
            there = _has([_fact(field, "exists", "")])
            return there if wanted else f"(not {there})"
        if name in _SIGNS:
            return self._range(field, name, wanted, f"{here}.{name}")
        if name == "$prefix":
            return self._prefix(field, wanted, f"{here}.{name}")
        facts = [_fact(field, *_typed(each)) for each in (wanted if name == "$in" else [wanted])]
        return f"(not {_has(facts)})" if name == "$ne" else _has(facts)

    def _range(self, path: str, name: str, wanted: Any, here: str) -> str:
        field = self._fields.get(path)
        if field is None:
            raise InvalidFilter(
                "Milvus orders only fields that metadata_schema declares as number, string, number[] or string[]",
                path=here,
            )
        sign, literal = _SIGNS[name], ""
        if isinstance(wanted, str):
            literal = f'"{_sortable(wanted)}"'
        else:
            sign, literal = _bound(sign, wanted)
        column = field.high if sign.startswith(">") else field.low
        return f"({_has([_fact(path, 'ordered', '')])} and {column} {sign} {literal})"

    def _prefix(self, path: str, wanted: str, here: str) -> str:
        field = self._fields.get(path)
        if field is None or field.is_list:
            raise InvalidFilter(
                "Milvus takes $prefix only of fields that metadata_schema declares as string or date", path=here
            )
        end = after_prefix(wanted)
        below = "" if end is None else f' and {field.low} < "{_sortable(end)}"'
        return f'({_has([_fact(path, "ordered", "")])} and {field.low} >= "{_sortable(wanted)}"{below})'


def _bound(sign: str, wanted: int | float) -> tuple[str, str]:
    """The same cut through float64: a whole number between two of them is replaced by the right neighbour."""
    near = float(wanted)
    if int(near) == wanted or not isinstance(wanted, int):
        return sign, repr(near)
    below = near if near < wanted else math.nextafter(near, -math.inf)
    above = near if near > wanted else math.nextafter(near, math.inf)
    return (">", repr(below)) if sign.startswith(">") else ("<", repr(above))


def _walk(metadata: Mapping[str, Any], above: Keys, item: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(name, kind, value) of each field, by every name that a filter can give it; see service/retrieval/paths.py."""
    for key, value in metadata.items():
        keys = (*above, key)
        for name in _names(keys):
            if above and name in item:
                continue  # the flat key of that name goes before it
            yield name, "exists", ""
            for each in cast("list[Any]", value) if isinstance(value, list) else [value]:
                if not isinstance(each, (dict, list)):
                    yield (name, *_typed(each))
        if isinstance(value, dict):
            yield from _walk(cast("dict[str, Any]", value), keys, item)


def _names(keys: Keys) -> list[str]:
    """The exact name, and for a flat key with a dot the plain one too."""
    exact = ".".join(key.replace("\\", "\\\\").replace(".", "\\.") for key in keys)
    names = {exact, keys[0]} if len(keys) == 1 and "\\" not in keys[0] else {exact}
    return [name for name in sorted(names) if _can_be_named(name)]


def _can_be_named(name: str) -> bool:
    if len(name) > MAX_PATH_CHARS:
        return False
    try:
        parse_path(name)
    except ValueError:
        return False
    return True


def _typed(value: Any) -> tuple[str, str]:
    """Kind and canonical text of a scalar: 1 and 1.0 are equal, true is no number."""
    if value is None:
        return "null", ""
    if isinstance(value, bool):
        return "boolean", str(value)
    if isinstance(value, str):
        return "string", value
    if isinstance(value, float) and not value.is_integer():
        return "number", repr(value)
    return "number", str(int(value))


def _values(metadata: Mapping[str, Any], field: OrderedField) -> list[Any]:
    found = value_at(metadata, field.path)
    if found is MISSING:
        return []
    return cast("list[Any]", found) if field.is_list else [found]


def _sortable(text: str) -> str:
    """Hex of its UTF-8: the order of code points, in characters that need no quoting."""
    data = text.encode()
    if len(data) > _CUT_BYTES:
        end = _CUT_BYTES
        while end < len(data) and data[end] & 0xC0 == 0x80:  # never inside a character
            end += 1
        data = data[:end]
    return data.hex()


def _fact(path: str, kind: str, value: str) -> str:
    digest = hashlib.sha256(f"{path}\0{kind}\0{value}".encode()).digest()
    return base64.urlsafe_b64encode(digest[:15]).decode()


def _has(facts: Sequence[str]) -> str:
    if len(facts) == 1:
        return f'array_contains(facts, "{facts[0]}")'
    listed = ", ".join(f'"{each}"' for each in facts)
    return f"array_contains_any(facts, [{listed}])"


def _joined(parts: Sequence[str], word: str) -> str:
    if not parts:
        return ALWAYS
    return parts[0] if len(parts) == 1 else f"({f' {word} '.join(parts)})"
