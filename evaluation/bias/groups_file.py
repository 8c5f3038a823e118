"""Pictures with a group each, and a label if they have one: a .csv or .json file of a user's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from evaluation.standard.photographs import Photograph, named_file, photograph
from evaluation.standard.tables import table_records

FORM = "a .csv table with the columns path, group and, if there is one, label; or a .json list of such objects"
_FIELDS = ("path", "group", "label")


@dataclass(frozen=True)
class GroupedPictures:
    """One group name for each photograph; labels: likewise, None where the file names none."""

    photographs: tuple[Photograph, ...]
    groups: tuple[str, ...]
    labels: tuple[str, ...] | None


def read_groups(path: Path) -> GroupedPictures:
    """Paths are relative to the file's folder, or to `images/` in it; further columns are left alone.

    Raises:
        ValueError: no such file, none of FORM, a row without a value, a picture that is missing or comes twice, labels
            in some rows only, or fewer than two groups.
    """
    if path.suffix.lower() not in (".csv", ".json") or not path.is_file():
        raise ValueError(f"{path}: {'no such file' if not path.is_file() else 'another form'}; expected {FORM}")
    try:
        records = _json_records(path) if path.suffix.lower() == ".json" else table_records(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if not records:
        raise ValueError(f"{path.name}: no rows; expected {FORM}")
    rows = [_row(record, f"{path.name} row {number}") for number, record in enumerate(records, start=1)]
    labels = [label for _, _, label in rows if label is not None]
    if labels and len(labels) < len(rows):
        bare = next(number for number, row in enumerate(rows, start=1) if row[2] is None)
        raise ValueError(f"{path.name} row {bare}: no label, and {len(labels)} other rows have one; give all or none")
    groups = tuple(group for _, group, _ in rows)
    if len(set(groups)) < 2:
        raise ValueError(f"{path.name}: one group, {groups[0]!r}; expected two or more to compare")
    return GroupedPictures(_photographs(path, [name for name, _, _ in rows]), groups, tuple(labels) or None)


def _row(record: Mapping[str, object], where: str) -> tuple[str, str, str | None]:
    """(path, group, label) of one record."""
    if None in record:  # what csv.DictReader calls cells behind the last column
        raise ValueError(f"{where}: more cells than columns")
    path, group, label = (_text(record, name, where) for name in _FIELDS)
    if path is None or group is None:
        missing = "path" if path is None else "group"
        known = ", ".join(repr(name) for name in record)
        raise ValueError(f"{where}: no {missing}; it has {known or 'nothing'}, expected path, group and perhaps label")
    return path, group, label


def _text(record: Mapping[str, object], name: str, where: str) -> str | None:
    """A cell without its outer spaces; whole numbers are names too; None where it is empty."""
    value = record.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {type(value).__name__}, expected a text")
    return (value or "").strip() or None


def _json_records(path: Path) -> Sequence[Mapping[str, object]]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8
        raise ValueError(f"{path.name}: not JSON in UTF-8 ({error})") from error
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in cast("list[object]", found)):
        raise ValueError(f"{path.name}: expected a list of objects with path, group and perhaps label")
    return cast("list[Mapping[str, object]]", found)


def _photographs(table: Path, names: Sequence[str]) -> tuple[Photograph, ...]:
    seen: dict[str, int] = {}
    found: list[Photograph] = []
    missing: list[str] = []
    for number, name in enumerate(names, start=1):
        first = seen.setdefault(name, number)
        if first != number:
            raise ValueError(f"{table.name} row {number}: {name!r} stands in row {first} already")
        try:
            path = named_file(table.parent, name)
        except (ValueError, OSError) as error:
            raise ValueError(f"{table.name} row {number}: {error}") from error
        if path is None:
            missing.append(name)
        else:
            found.append(photograph(path, name))
    if missing:
        where = f"{table.parent} or {table.parent / 'images'}"
        raise ValueError(f"{table.name}: {len(missing)} of {len(names)} pictures are not in {where}: {missing[0]!r}")
    return tuple(found)
