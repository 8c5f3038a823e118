"""Values of a metadata field, counted over rows in SQL."""

from __future__ import annotations

from collections.abc import Mapping

import apsw
import numpy as np
from numpy.typing import NDArray

from service.retrieval.paths import readings, sql_path
from service.retrieval.records import FieldType
from service.retrieval.surveys import Facet, FacetValue
from service.retrieval.truth.database import run
from service.retrieval.truth.tables import extract

# Types of json_each that are values; 1 and 1.0 are one number, as in filters.
_KIND = "CASE e.type WHEN 'integer' THEN 'number' WHEN 'real' THEN 'number' ELSE e.type END"
_VALUES = "('text', 'integer', 'real', 'true', 'false', 'null')"


def count_values(
    db: apsw.Connection,
    number: int,
    field: str,
    rids: NDArray[np.int64],
    *,
    schema: Mapping[str, FieldType],
    shown: int,
    is_all: bool,
) -> Facet:
    """The values of `field` among rows of collection `number`, most frequent first, equal counts by value.

    A list counts for each of its values once; an object, and a list inside a list, for nothing.
    is_all: `rids` are all rows that there are.
    """
    if not len(rids):
        return Facet((), 0, 0)
    declared = schema.get(field)
    if is_all and declared in ("string", "number", "boolean", "date") and len(readings(field)) == 1:
        return _by_index(db, number, field, is_boolean=declared == "boolean", shown=shown)
    chosen = apsw.carray(np.ascontiguousarray(rids, dtype=np.int64))  # pyright: ignore
    path = sql_path(field)
    rows = f"carray(?) AS c JOIN metadata_{number} AS m ON m.rid = c.value"
    # Only a list can have a value twice, and telling twice from once costs a table of all values.
    may_repeat = declared in (None, "string[]", "number[]")
    distinct = "DISTINCT m.rid, " if may_repeat else ""
    found = run(
        db,
        f"SELECT kind, atom, count(*) AS n, count(*) OVER () FROM (SELECT {distinct}{_KIND} AS kind, e.atom AS atom"
        f" FROM {rows}, json_each(m.document, {path}) AS e"
        f" WHERE json_type(m.document, {path}) <> 'object' AND e.type IN {_VALUES})"
        " GROUP BY kind, atom ORDER BY n DESC, kind, atom LIMIT ?",
        (chosen, shown),
    )
    [(missing,)] = run(db, f"SELECT count(*) FROM {rows} WHERE json_type(m.document, {path}) IS NULL", (chosen,))
    values = tuple(FacetValue(_value(kind, atom), count) for kind, atom, count, _ in found)
    every = found[0][3] if found else 0
    return Facet(values, every - len(values), missing)


def _by_index(db: apsw.Connection, number: int, field: str, *, is_boolean: bool, shown: int) -> Facet:
    """Of a declared field, which has values of one type and an index: no metadata has to be parsed."""
    value = extract(field)
    found = run(
        db,
        f"SELECT {value} AS v, count(*) AS n, count(*) OVER () FROM metadata_{number} WHERE {value} IS NOT NULL"
        " GROUP BY v ORDER BY n DESC, v LIMIT ?",
        (shown,),
    )
    [(missing,)] = run(db, f"SELECT count(*) FROM metadata_{number} WHERE {value} IS NULL")
    values = tuple(FacetValue(bool(v) if is_boolean else v, count) for v, count, _ in found)
    return Facet(values, (found[0][2] if found else 0) - len(values), missing)


def _value(kind: str, atom: str | float | None) -> str | int | float | bool | None:
    return {"true": True, "false": False, "null": None}.get(kind, atom)
