"""Tables of captioned pictures: the records of a .csv or .parquet file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path


def table_records(path: Path) -> list[Mapping[str, object]]:
    """One mapping per row, column -> value.

    Raises:
        ValueError: another extension, or a csv that is no UTF-8 text.
        ModuleNotFoundError: a .parquet table without pyarrow (extra `parquet`).
    """
    if path.suffix == ".csv":
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                return list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path.name}: not a csv table in UTF-8 ({error})") from error
    if path.suffix == ".parquet":
        import pyarrow.parquet  # an optional dependency (extra `parquet`)

        return pyarrow.parquet.read_table(path).to_pylist()
    raise ValueError(f"{path.name}: expected a .csv or .parquet table")


def table_captions(
    path: Path, *, image_column: str = "image", caption_column: str = "caption"
) -> list[tuple[str, str, Mapping[str, object]]]:
    """(image, caption, record) of every row; image paths stay relative to the table's folder.

    Raises:
        ValueError: as `table_records`; a missing column, an empty caption, an image path that leaves the folder.
    """
    found: list[tuple[str, str, Mapping[str, object]]] = []
    records = table_records(path)
    for name in (image_column, caption_column):
        if records and name not in records[0]:
            columns = ", ".join(repr(column) for column in records[0])
            raise ValueError(f"{path.name}: no column {name!r}; it has {columns} (columns are separated by commas)")
    for number, record in enumerate(records, start=1):
        missing = [name for name in (image_column, caption_column) if record.get(name) is None]
        if missing:
            raise ValueError(f"{path.name} row {number}: no value for {', '.join(missing)}")
        image, caption = str(record[image_column]), str(record[caption_column]).strip()
        if not caption:
            raise ValueError(f"{path.name} row {number}: empty caption")
        if not image or Path(image).is_absolute() or ".." in Path(image).parts:
            raise ValueError(f"{path.name} row {number}: image path {image!r} leaves the folder")
        found.append((image, caption, record))
    return found
