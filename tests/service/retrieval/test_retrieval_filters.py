"""Filters as SQL against a plain evaluator of the same language, and what the language refuses."""

from __future__ import annotations

import json
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.retrieval.errors import InvalidFilter
from service.retrieval.truth.field_types import DeclaredFields
from service.retrieval.truth.filter_limits import MAX_BYTES, MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES
from service.retrieval.truth.filters import compile_filter
from service.retrieval.truth.tables import extract

MISSING = object()


def lookup(metadata: Any, field: str) -> Any:
    """The flat key goes before the nested one; a name with a backslash is exact."""
    if "\\" not in field and field in metadata:
        return metadata[field]
    # A backslash makes the next character part of the key.
    keys, escaped = [""], False
    for char in field:
        if not escaped and char in "\\.":
            escaped = char == "\\"
            keys += [] if escaped else [""]
        else:
            keys[-1] += char
            escaped = False
    for key in keys:
        if not isinstance(metadata, dict) or key not in metadata:
            return MISSING
        metadata = metadata[key]
    return metadata


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    return {str: "s", int: "n", float: "n", type(None): "null"}.get(type(value), "other")


def compare(sign: str, value: Any, wanted: Any) -> bool:
    if kind(value) != kind(wanted) or kind(value) == "other":
        return False
    if sign == "$eq":
        return value == wanted
    if sign == "$prefix":
        return isinstance(value, str) and value.startswith(wanted)
    return {"$gt": value > wanted, "$gte": value >= wanted, "$lt": value < wanted, "$lte": value <= wanted}[sign]


def matches(metadata: Any, filter: dict[str, Any]) -> bool:
    """The language by its definition: no SQL, no third truth value."""

    def operator(found: Any, name: str, wanted: Any) -> bool:
        if name == "$exists":
            return (found is not MISSING) == wanted
        if name == "$ne":
            return not operator(found, "$eq", wanted)
        if name == "$in":
            return any(operator(found, "$eq", one) for one in wanted)
        if found is MISSING:
            return False
        values = found if isinstance(found, list) else [found]
        return any(compare(name, value, wanted) for value in values)

    def entry(key: str, value: Any) -> bool:
        if key == "$and":
            return all(matches(metadata, part) for part in value)
        if key == "$or":
            return any(matches(metadata, part) for part in value)
        if key == "$not":
            return not matches(metadata, value)
        found = lookup(metadata, key)
        operators = value if isinstance(value, dict) else {"$eq": value}
        return all(operator(found, name, wanted) for name, wanted in operators.items())

    return all(entry(key, value) for key, value in filter.items())


KEYS = ("a", "b", "c", "née", "a b", "x'y", "a.b", "a.b.c", "b\\", 'q"q')
texts = st.sampled_from(["", "x", "X", "1", "true", "null", "[1]", "é", "z\x00z", '"q"', "'", "𝄞"]) | st.text(
    max_size=4
)
numbers = (
    st.integers(-2, 2)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1.0, 0.1, 5e-324, 1e308, 2.0**53, 2**53 + 1])
)
scalars = st.none() | st.booleans() | numbers | texts
metadata_values = st.recursive(
    scalars, lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(st.sampled_from(KEYS), deeper, max_size=3)
)
metadatas = st.dictionaries(st.sampled_from(KEYS), metadata_values, max_size=4)
escaped = st.sampled_from([key.replace("\\", "\\\\").replace(".", "\\.") for key in KEYS])
plain = st.sampled_from([key for key in KEYS if "\\" not in key])
fields = st.lists(plain, min_size=1, max_size=2).map(".".join) | st.lists(escaped, min_size=1, max_size=2).map(".".join)
orderable = numbers | texts
operators = st.fixed_dictionaries(
    {},
    optional={
        "$eq": scalars,
        "$ne": scalars,
        "$in": st.lists(scalars, min_size=1, max_size=3),
        "$gt": orderable,
        "$lte": orderable,
        "$lt": orderable,
        "$gte": orderable,
        "$prefix": texts,
        "$exists": st.booleans(),
    },
).filter(bool)
leaves = st.dictionaries(fields, scalars | operators, max_size=2)
filters = st.recursive(
    leaves,
    lambda deeper: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(deeper, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(deeper, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": deeper}),
    ),
    max_leaves=6,
)


def select(rows: list[dict[str, Any]], filter: dict[str, Any], schema: dict[str, Any]) -> list[int]:
    db = apsw.Connection(":memory:")
    db.execute("CREATE TABLE metadata (rid INTEGER PRIMARY KEY, document TEXT NOT NULL)")
    for place, field in enumerate(schema):
        db.execute(f"CREATE INDEX field_{place} ON metadata ({extract(field)})")
    db.executemany("INSERT INTO metadata VALUES (?, ?)", enumerate(json.dumps(row, ensure_ascii=False) for row in rows))
    condition = compile_filter(filter, schema)
    found = db.execute(f"SELECT rid FROM metadata WHERE {condition.sql} ORDER BY rid", condition.values).fetchall()
    return [rid for (rid,) in found]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(metadatas, max_size=6), filter=filters)
@example(rows=[{"a": True}, {"a": 1}, {"a": "1"}, {"a": [1]}, {"a": "[1]"}, {}], filter={"a": 1})
@example(rows=[{"a": None}, {}], filter={"a": None})
@example(rows=[{"a": []}, {"a": {}}, {}], filter={"a": {"$exists": True, "$ne": 3}})
@example(rows=[{"a.b": 1}, {"a": {"b": 1}}, {"a.b": 2, "a": {"b": 1}}, {"a.b": None, "a": {"b": 1}}], filter={"a.b": 1})
@example(rows=[{"a.b": 1}, {"a": {"b": 1}}], filter={"a\\.b": 1})
@example(rows=[{"a": ["x/y", 3]}, {"a": "x/"}, {"a": "x"}, {"a": "y"}], filter={"a": {"$prefix": "x/"}})
@example(rows=[{"a": "\ud7ff"}, {"a": "\ue000"}, {"a": "\U0010ffff"}], filter={"a": {"$prefix": "\ud7ff"}})
@example(rows=[{"a": "\U0010ffffx"}, {"a": "\ue000"}], filter={"a": {"$prefix": "\U0010ffff"}})
def test_sql_selects_what_the_definition_says(rows: list[dict[str, Any]], filter: dict[str, Any]) -> None:
    assert select(rows, filter, {}) == [place for place, row in enumerate(rows) if matches(row, filter)]


SCHEMA = {"s": "string", "n": "number", "f": "boolean", "a.b": "string", "d": "date", "tags": "string[]"}
DATES = ("1999-12-31", "2024-02-29", "2024-02-29T00:00:00", "2024-02-29T23:59:59", "2024-03-01")
declared = st.fixed_dictionaries(
    {},
    optional={
        "s": texts,
        "n": numbers,
        "f": st.booleans(),
        "a": st.fixed_dictionaries({}, optional={"b": texts}),
        "a.b": texts,
        "d": st.sampled_from(DATES),
        "tags": st.lists(texts, max_size=3),
    },
)


def asked(values: st.SearchStrategy[Any], *ordered: str) -> st.SearchStrategy[Any]:
    """A value, or operators that take such values."""
    optional: dict[str, Any] = {"$eq": values, "$ne": values, "$in": st.lists(values, min_size=1, max_size=3)}
    optional |= dict.fromkeys(ordered, values) | {"$exists": st.booleans()}
    return values | st.fixed_dictionaries({}, optional=optional).filter(bool)


RANGES = ("$gt", "$gte", "$lt", "$lte")
declared_filters = st.fixed_dictionaries(
    {},
    optional={
        "s": asked(texts, *RANGES, "$prefix"),
        "n": asked(numbers, *RANGES),
        "f": asked(st.booleans()),
        "a.b": asked(texts, *RANGES, "$prefix"),
        "d": asked(st.sampled_from(DATES), *RANGES, "$prefix")
        | st.fixed_dictionaries({"$gte": st.sampled_from(["2024", "2024-02", "2024-02-29T12:"])}),
        "tags": asked(texts, *RANGES, "$prefix"),
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(declared, max_size=8),
    filter=declared_filters,
    negate=st.booleans(),
)
def test_declared_fields_select_the_same(rows: list[dict[str, Any]], filter: dict[str, Any], negate: bool) -> None:
    assert all(DeclaredFields(SCHEMA).problem(row) is None for row in rows)
    wanted = {"$not": filter} if negate else filter
    assert select(rows, wanted, SCHEMA) == [place for place, row in enumerate(rows) if matches(row, wanted)]


@pytest.mark.parametrize(
    "filter",
    [{"s": "x"}, {"n": {"$gt": 3, "$lt": 9}}, {"f": True}, {"a.b": {"$in": ["x", "y"]}}, {"n": 1, "zz": 2}]
    + [{"s": {"$prefix": "x"}}, {"d": {"$gte": "2024"}}, {"a.b": "x"}],
)
def test_declared_fields_use_their_index(filter: dict[str, Any]) -> None:
    db = apsw.Connection(":memory:")
    db.execute("CREATE TABLE metadata (rid INTEGER PRIMARY KEY, document TEXT NOT NULL)")
    for place, field in enumerate(SCHEMA):
        db.execute(f"CREATE INDEX field_{place} ON metadata ({extract(field)})")
    condition = compile_filter(filter, SCHEMA)
    plan = db.execute(f"EXPLAIN QUERY PLAN SELECT rid FROM metadata WHERE {condition.sql}", condition.values).fetchall()
    assert "USING INDEX field_" in str(plan) or "USING COVERING INDEX field_" in str(plan)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"s": 1}, "'s' must be of type string, got a number"),
        ({"n": True}, "'n' must be of type number, got a boolean"),
        ({"f": None}, "'f' must be of type boolean, got null"),
        ({"s": ["x"]}, "'s' must be of type string, got a list"),
        ({"tags": "x"}, "'tags' must be of type string[], got a string"),
        ({"tags": ["x", 1]}, "'tags' must be of type string[]"),
        ({"a": {"b": 1}}, "'a.b' must be of type string"),
        ({"a.b": 1, "a": {"b": "x"}}, "'a.b' must be of type string"),
        ({"d": "31.12.1999"}, "'d' must be a date such as 2024-05-31"),
        ({"d": "2023-02-29"}, "'d' must be a date"),
        ({"d": "2024-02-29T12:00:00Z"}, "'d' must be a date"),
        ({"d": 20240229}, "'d' must be of type date, got a number"),
    ],
)
def test_declared_types_are_enforced(metadata: dict[str, Any], problem: str) -> None:
    assert problem in (DeclaredFields(SCHEMA).problem(metadata) or "")


def nested(depth: int) -> dict[str, Any]:
    return {"a": 1} if depth <= 1 else {"$not": nested(depth - 1)}


@pytest.mark.parametrize(
    ("filter", "place", "reason"),
    [
        (["a"], "filter", "expected an object, got a list"),
        ({"a": {"$regex": "x"}}, "filter.a.$regex", "unknown operator"),
        ({"$nor": []}, "filter.$nor", "unknown operator"),
        ({"$and": []}, "filter.$and", "at least one"),
        ({"$or": [{"a": 1}, 3]}, "filter.$or[1]", "expected an object, got a number"),
        ({"a": {}}, "filter.a", "empty object"),
        ({"a": [1]}, "filter.a", "got a list"),
        ({"a": {"$gt": True}}, "filter.a.$gt", "got a boolean"),
        ({"a": {"$gt": None}}, "filter.a.$gt", "got null"),
        ({"a": {"$in": "x"}}, "filter.a.$in", "expected a list"),
        ({"a": {"$in": [1, {}]}}, "filter.a.$in[1]", "got an object"),
        ({"a": {"$in": list(range(1001))}}, "filter.a.$in", "1001 choices"),
        ({"a": {"$exists": 1}}, "filter.a.$exists", "true or false"),
        ({"a": float("nan")}, "filter.a", "NaN"),
        ({"a": 2**63}, "filter.a", "64 bits"),
        ({"a": "\ud800"}, "filter.a", "Unicode"),
        ({"a": "x" * 5000}, "filter.a", "5000 bytes"),
        ({"a..b": 1}, "filter", "empty part"),
        ({"a\nb": 1}, "filter", "control"),
        ({"a\\b": 1}, "filter", "backslash"),
        ({"a\\": 1}, "filter", "backslash"),
        ({"x" * 257: 1}, "filter", "257 characters"),
        ({"a": {"$prefix": 1}}, "filter.a.$prefix", "expected a string, got a number"),
        ({"$or": [{}] * 1100}, "filter.$or[128]", f"more than {MAX_CONDITIONS} conditions"),
        (
            {"$and": [{"s": {"$in": [*range(1000)]}} for _ in range(120)]},
            "filter.$and[10].s.$in[0]",
            f"{MAX_VALUES} values",
        ),
        (
            {"$and": [{"s": {"$in": [f"{n}{'x' * 4000}" for n in range(1000)]}}]},
            "filter.$and[0].s.$in[261]",
            f"{MAX_BYTES}",
        ),
        ({"a.$b": 1}, "filter", "starts with $"),
        ({"": 1}, "filter", "empty part"),
        ({"$or": [{"a": n} for n in range(129)]}, "filter.$or[128].a", "128 conditions"),
        (nested(MAX_DEPTH + 1), "filter" + ".$not" * MAX_DEPTH, "deeper"),
    ],
)
def test_refusals_name_the_place(filter: Any, place: str, reason: str) -> None:
    with pytest.raises(InvalidFilter, match=r".") as refused:
        compile_filter(filter, {})
    assert refused.value.path == place
    assert reason in str(refused.value)


def test_the_deepest_allowed_filter_compiles() -> None:
    assert select([{"a": 1}], nested(MAX_DEPTH), {}) == ([0] if MAX_DEPTH % 2 else [])


DECLARED = {"s": "string", "n": "number", "f": "boolean", "d": "date", "tags": "string[]", "sizes": "number[]"}


@pytest.mark.parametrize(
    ("filter", "place", "reason"),
    [
        ({"n": "3"}, "filter.n", "declared as number, so no item can match a string"),
        ({"n": {"$gt": "3"}}, "filter.n.$gt", "declared as number"),
        ({"n": {"$in": [1, "2"]}}, "filter.n.$in[1]", "declared as number"),
        ({"n": {"$ne": True}}, "filter.n.$ne", "a boolean"),
        ({"n": {"$prefix": "1"}}, "filter.n.$prefix", "declared as number"),
        ({"s": None}, "filter.s", "null"),
        ({"f": 1}, "filter.f", "declared as boolean"),
        ({"tags": 1}, "filter.tags", "declared as string[]"),
        ({"sizes": "x"}, "filter.sizes", "declared as number[]"),
        ({"d": "2024-05"}, "filter.d", "declared as date: expected 2024-05-31"),
        ({"d": {"$gte": "May"}}, "filter.d.$gte", "beginning of one"),
        ({"d": {"$lt": 2024}}, "filter.d.$lt", "declared as date"),
    ],
)
def test_a_declared_field_is_compared_with_its_type_only(filter: Any, place: str, reason: str) -> None:
    with pytest.raises(InvalidFilter, match=r".") as refused:
        compile_filter(filter, DECLARED)  # type: ignore[arg-type]
    assert refused.value.path == place
    assert reason in str(refused.value)


def test_the_largest_filters_run() -> None:
    """SQLite takes whatever the limits let through."""
    long = ".".join("k" * 15 for _ in range(15))
    wide = {"$and": [{"s": {"$in": [f"{n}-{m}" for m in range(1000)]}} for n in range(10)]}
    many = {"$or": [{f"{long}{n}": {"$prefix": "x"}} for n in range(MAX_CONDITIONS)]}
    empty = {"$or": [{}] * MAX_CONDITIONS}
    assert select([{"s": "3-7"}, {"s": 1}], wide, {}) == []
    assert select([{f"{long}7": "xy"}, {}], many, {}) == [0]
    assert select([{}], empty, {}) == [0]
