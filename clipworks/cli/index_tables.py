"""Rows of csv and parquet files; bytes in a parquet file are read when they are wanted."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clipworks.cli.arrow import arrow, parquet
from clipworks.cli.failures import UsageError

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_BATCH = 1000


@dataclass(frozen=True)
class Cell:
    """A picture inside a table."""

    read: Callable[[], bytes]


@dataclass(frozen=True)
class TableRow:
    """`row` counts from 0, without the header; `problem` says why the row is none."""

    row: int
    cells: dict[str, Any]
    problem: str | None = None


def read_csv(path: Path) -> Iterator[TableRow]:
    """Cells as text, by the names of the first line. Lines without any cell are left out.

    Raises:
        UsageError: not UTF-8, no usable first line, or not csv.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.reader(file, strict=True)
            names = next(reader, list[str]())
            _check_names(path, names)
            number = -1
            for cells in reader:
                if not cells:
                    continue
                number += 1
                problem = None
                if len(cells) != len(names):
                    problem = f"{len(cells)} cells, the first line names {len(names)} columns"
                yield TableRow(number, dict(zip(names, cells, strict=False)), problem)
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not UTF-8 text (byte {error.start} of a block)") from error
        except csv.Error as error:
            raise UsageError(f"{path}: not csv: {error}") from error


def typed_cells(cells: Mapping[str, Any], schema: Mapping[str, str]) -> dict[str, Any]:
    """Texts as they are, except those of declared fields, which get their declared type.

    Raises:
        ValueError: a text that has no value of the type.
    """
    return {name: _typed(name, cell, schema.get(name, "string")) for name, cell in cells.items()}


def read_parquet(path: Path) -> Iterator[TableRow]:
    """Values as they are; dates as ISO text. Pictures are bytes, or `{"bytes", "path"}`.

    Raises:
        UsageError: not parquet.
    """
    pa, pq = arrow(), parquet()

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path}: not parquet: {error}") from error
    _check_names(path, schema.names)
    pictures: list[str] = [field.name for field in schema if _holds_bytes(field.type)]
    plain: list[str] = [name for name in schema.names if name not in pictures]
    groups = _Groups(file)
    number = 0
    for group in range(file.num_row_groups):
        inside = 0
        for _ in range(file.metadata.row_group(group).num_rows) if not plain else ():
            yield TableRow(number, {name: Cell(partial(groups.read, name, group, inside)) for name in pictures})
            inside, number = inside + 1, number + 1
        if not plain:
            continue
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=plain):
            for values in batch.to_pylist():
                cells: dict[str, Any] = {name: Cell(partial(groups.read, name, group, inside)) for name in pictures}
                problem = None
                try:
                    cells |= {name: plain_value(value) for name, value in values.items()}
                except ValueError as error:
                    problem = str(error)
                yield TableRow(number, {name: cells[name] for name in schema.names if name in cells}, problem)
                inside, number = inside + 1, number + 1


class _Groups:
    """The row group that was read last; the readers of pictures go through a file in order."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._key: tuple[str, int] | None = None
        self._column: Any = None

    def read(self, name: str, group: int, row: int) -> bytes:
        """Raises OSError when the cell is empty or the file cannot be read."""
        with self._lock:
            if self._key != (name, group):
                self._column = self._file.read_row_group(group, columns=[name]).column(name)
                self._key = (name, group)
            value = self._column[row].as_py()
        found: Any = value.get("bytes") if isinstance(value, dict) else value  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if not isinstance(found, bytes) or not found:
            raise OSError(f"no picture in the column {name!r}")
        return found


def _holds_bytes(kind: Any) -> bool:
    pa = arrow()

    if pa.types.is_struct(kind):
        return any(each.name == "bytes" and _holds_bytes(each.type) for each in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _check_names(path: Path, names: list[str]) -> None:
    if not names or any(not name.strip() for name in names):
        raise UsageError(f"{path}: the first line must name every column")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{path}: two columns are called {twice!r}")


def _typed(name: str, text: str, kind: str) -> Any:
    match kind:
        case "number":
            return _number(name, text)
        case "boolean":
            if text.strip().lower() not in ("true", "false"):
                raise ValueError(f"{name}: expected true or false, got {text[:40]!r}")
            return text.strip().lower() == "true"
        case "string[]" | "number[]":
            try:
                found = json.loads(text)
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, list):
                raise ValueError(f'{name}: expected a list such as ["a", "b"], got {text[:40]!r}')
            return found  # pyright: ignore[reportUnknownVariableType]
        case _:
            return text


def _number(name: str, text: str) -> int | float:
    stripped = text.strip()
    if _WHOLE.fullmatch(stripped):
        return int(stripped)
    try:
        value = float(stripped) if "_" not in stripped else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a number, got {text[:40]!r}")
    return value


def plain_value(value: Any) -> Any:
    """What JSON can hold. Raises ValueError for what it cannot."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                return None
            return value
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal():
            return str(value)
        case list():
            return [plain_value(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
        case dict():
            return {str(key): plain_value(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case _:
            raise ValueError(f"a value of type {type(value).__name__} has no place in metadata")
