"""Filters as SQL against a plain evaluator of the same language, and what the language refuses."""

from __future__ import annotations

import json
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.retrieval.errors import InvalidFilter
from service.retrieval.filters import MAX_DEPTH, DeclaredFields, compile_filter
from service.retrieval.tables import extract

MISSING = object()


def lookup(metadata: Any, field: str) -> Any:
    for key in field.split("."):
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


KEYS = ("a", "b", "c", "née", "a b", "x'y")
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
fields = st.lists(st.sampled_from(KEYS), min_size=1, max_size=2).map(".".join)
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
def test_sql_selects_what_the_definition_says(rows: list[dict[str, Any]], filter: dict[str, Any]) -> None:
    assert select(rows, filter, {}) == [place for place, row in enumerate(rows) if matches(row, filter)]


SCHEMA = {"s": "string", "n": "number", "f": "boolean", "a.b": "string", "tags": "string[]"}
declared = st.fixed_dictionaries(
    {},
    optional={
        "s": texts,
        "n": numbers,
        "f": st.booleans(),
        "a": st.fixed_dictionaries({}, optional={"b": texts}),
        "tags": st.lists(texts, max_size=3),
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(declared, max_size=8),
    filter=st.dictionaries(st.sampled_from(sorted(SCHEMA)), scalars | operators, max_size=2),
    negate=st.booleans(),
)
def test_declared_fields_select_the_same(rows: list[dict[str, Any]], filter: dict[str, Any], negate: bool) -> None:
    assert all(DeclaredFields(SCHEMA).problem(row) is None for row in rows)
    wanted = {"$not": filter} if negate else filter
    assert select(rows, wanted, SCHEMA) == [place for place, row in enumerate(rows) if matches(row, wanted)]


@pytest.mark.parametrize(
    "filter", [{"s": "x"}, {"n": {"$gt": 3, "$lt": 9}}, {"f": True}, {"a.b": {"$in": ["x", "y"]}}, {"n": 1, "zz": 2}]
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
        ({'a"b': 1}, "filter", "quote"),
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
