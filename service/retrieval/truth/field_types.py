"""Types of declared metadata fields (metadata_schema), checked in every item and every filter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, cast

from service.retrieval.errors import InvalidFilter
from service.retrieval.paths import MISSING, value_at
from service.retrieval.records import FieldType
from service.retrieval.truth.filter_limits import kind_of

DATE_FORM = "2024-05-31 or 2024-05-31T17:08:00"
# Without fractions and zones, so that the order of texts is the order of time.
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2})?")
_DIGIT, _FORM = re.compile(r"[0-9]"), "0000-00-00T00:00:00"


class DeclaredFields:
    """The types of a metadata_schema, ready to be checked against many items."""

    def __init__(self, schema: Mapping[str, FieldType]) -> None:
        self._schema = dict(schema)

    def problem(self, metadata: Mapping[str, Any]) -> str | None:
        """What is wrong with an item's declared fields, in words; None if all have their types or are missing."""
        for field, kind in self._schema.items():
            found = value_at(metadata, field)
            if found is MISSING:
                continue
            if kind.endswith("[]"):
                right = isinstance(found, list) and all(_is_a(value, kind) for value in cast("list[Any]", found))
            else:
                right = _is_a(found, kind)
            if right:
                continue
            if kind == "date" and isinstance(found, str):
                return f"metadata field {field!r} must be a date such as {DATE_FORM}, got {found[:40]!r}"
            return f"metadata field {field!r} must be of type {kind}, got {kind_of(found)}"
        return None


def check_wanted(declared: FieldType | None, operator: str, wanted: Any, path: str) -> None:
    """Refuse to compare a declared field with what it never holds.

    Raises:
        InvalidFilter: with both types.
    """
    if declared is None:
        return
    choices: list[Any] = [wanted]
    if operator == "$in" and isinstance(wanted, list):
        choices = cast("list[Any]", wanted)
    for place, value in enumerate(choices):
        if value is not None and not isinstance(value, (str, int, float, bool)):
            return  # no value at all: said by whoever reads the filter
        here = f"{path}[{place}]" if operator == "$in" else path
        if declared == "date" and isinstance(value, str):
            partial = operator not in ("$eq", "$ne", "$in")
            if not (_is_date(value) or (partial and _begins_date(value))):
                also = ", or the beginning of one such as 2024-05" if partial else ""
                raise InvalidFilter(f"the field is declared as date: expected {DATE_FORM}{also}", path=here)
        elif not _is_a(value, declared) or (operator == "$prefix" and not isinstance(value, str)):
            raise InvalidFilter(
                f"the field is declared as {declared}, so no item can match {kind_of(value)}", path=here
            )


def _is_a(value: Any, kind: str) -> bool:
    if kind == "date":
        return isinstance(value, str) and _is_date(value)
    if kind.startswith("string"):
        return isinstance(value, str)
    if kind == "boolean":
        return isinstance(value, bool)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _begins_date(text: str) -> bool:
    return _FORM.startswith(_DIGIT.sub("0", text))


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text) if "T" in text else date.fromisoformat(text)
    except ValueError:
        return False
    return True
