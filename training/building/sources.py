"""Raw captioned pictures, unit by unit: webdataset shards, and tables beside a folder of pictures."""

from __future__ import annotations

import csv
import glob
import os
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from evaluation.standard.shards import BadSample, streamed_samples
from training.data.shard_urls import local, open_shard, shard_urls, skip_to

_TRIES, _PAUSE_S = 3, 1.0
_TABLES = (".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """Of tables. table: its name in a folder."""

    table: str = "captions.csv"
    image: str = "image"
    caption: str = "caption"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is read in one go: a shard, or some rows of a table.

    at: where its rows begin: a byte of a csv table, a row group of a parquet one. rows: how many.
    mark: size and time of change; "" of an address.
    """

    url: str
    kind: Literal["shard", "csv", "parquet"]
    at: int = 0
    rows: int = 0
    mark: str = ""
    columns: TableColumns = TableColumns()


@dataclass(frozen=True, kw_only=True)
class RawPair:
    """The `index`-th pair of its unit; `fault`, with `why`, says what keeps it from being one.

    at: byte of a shard from which it can be read again.
    """

    index: int
    name: str
    caption: str = ""
    data: bytes = b""
    meta: dict[str, Any] = field(default_factory=dict)
    at: int = 0
    fault: str | None = None
    why: str = ""


def find_units(sources: Sequence[str], columns: TableColumns = TableColumns(), *, rows: int = 10_000) -> list[Unit]:
    """The units of all sources, sorted by name, so that the order of the sources says nothing.

    A source is a pattern of shards (`{0000..0099}`, globs, addresses), a .csv or .parquet table, a folder with a table,
    or a folder with .tar files. rows: of a csv table, in one unit.

    Raises:
        ValueError: nothing is there, one thing is there twice, or a table has not these columns.
    """
    shards: list[str] = []
    units: list[Unit] = []
    for source in sources:
        path = Path(source)
        if local(source) and path.is_dir():
            if (path / columns.table).is_file():
                units += _table_units(path / columns.table, columns, rows)
            else:
                shards.append(os.path.join(glob.escape(source), "*.tar"))
        elif local(source) and path.suffix in _TABLES:
            units += _table_units(path, columns, rows)
        else:
            shards.append(source)
    found = shard_urls(shards) if shards else ()
    units += [Unit(url=os.path.abspath(url) if local(url) else url, kind="shard", mark=_mark(url)) for url in found]
    units.sort(key=lambda unit: (unit.url, unit.at))
    for one, other in zip(units, units[1:], strict=False):
        if (one.url, one.at) == (other.url, other.at):
            raise ValueError(f"{one.url} is named twice: its pairs would be counted twice")
    return units


def raw_pairs(unit: Unit, *, wanted: Container[int] | None = None, index: int = 0, at: int = 0) -> Iterator[RawPair]:
    """Every pair of a unit in order, the bad ones too; of a table only those whose index is `wanted`.

    index, at: of the pair of a shard to begin with.

    Raises:
        OSError: a shard or table cannot be read (an address was tried three times).
        ValueError: a table is no csv any more.
    """
    if unit.kind == "shard":
        yield from _of_shard(unit, index, at)
    else:
        yield from _of_table(unit, wanted)


def _mark(url: str) -> str:
    if not local(url):
        return ""
    found = os.stat(url)
    return f"{found.st_size} {found.st_mtime_ns}"


def _of_shard(unit: Unit, index: int, at: int) -> Iterator[RawPair]:
    shard, tries = unit.url.rpartition("/")[2], 1 if local(unit.url) else _TRIES
    for attempt in range(1, tries + 1):
        try:
            with open_shard(unit.url) as file:
                skip_to(file, at)
                for sample in streamed_samples(file, shard, at=at):
                    if isinstance(sample, BadSample):
                        yield RawPair(index=index, name=f"{shard}#{index}", at=at, fault=sample.fault, why=str(sample))
                    else:
                        yield RawPair(
                            index=index,
                            name=sample.name,
                            caption=sample.caption,
                            data=sample.data,
                            meta=sample.meta,
                            at=sample.at,
                        )
                    index, at = index + 1, sample.end
            return
        except Exception as error:  # a remote file system raises what its own library raises
            if attempt == tries or isinstance(error, FileNotFoundError):
                raise OSError(5, f"{type(error).__name__}: {error}", unit.url) from error
            time.sleep(_PAUSE_S * attempt)


def _of_table(unit: Unit, wanted: Container[int] | None) -> Iterator[RawPair]:
    path = Path(unit.url)
    for index, record in enumerate(_records(unit)):
        if wanted is not None and index not in wanted:
            continue
        image = str(record.get(unit.columns.image) or "")
        caption = str(record.get(unit.columns.caption) or "").strip()
        name = f"{path.name}/{image or index}"
        fault, why, data = None, "", b""
        if not image:
            fault, why = "no picture", f"{path.name}: a row names no picture"
        elif not caption:
            fault, why = "no caption", f"{path.name}: {image} has no caption"
        elif Path(image).is_absolute() or ".." in Path(image).parts:
            fault, why = "no picture", f"{path.name}: image path {image!r} leaves the folder"
        else:
            try:
                data = (path.parent / image).read_bytes()
            except (OSError, ValueError) as error:
                fault, why = "no picture", f"{image}: {getattr(error, 'strerror', None) or error}"
        extra = {key: value for key, value in record.items() if key and _plain(value)}
        yield RawPair(index=index, name=name, caption=caption, data=data, meta=extra, fault=fault, why=why)


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def _table_units(path: Path, columns: TableColumns, most: int) -> list[Unit]:
    mark, url = _mark(str(path)), os.path.abspath(path)
    if path.suffix == ".parquet":
        import pyarrow.parquet  # an optional dependency (extra `parquet`)

        with pyarrow.parquet.ParquetFile(path) as table:
            _check_columns(path, table.schema_arrow.names, columns)
            return [
                Unit(
                    url=url,
                    kind="parquet",
                    at=at,
                    rows=table.metadata.row_group(at).num_rows,
                    mark=mark,
                    columns=columns,
                )
                for at in range(table.num_row_groups)
            ]
    with path.open("rb") as file:
        lines = _CountedLines(file)
        reader = csv.reader(lines)
        try:
            _check_columns(path, next(reader, []), columns)
            units, at, rows = list[Unit](), lines.at, 0
            for row in reader:
                rows += bool(row)
                if rows == most:
                    units.append(Unit(url=url, kind="csv", at=at, rows=rows, mark=mark, columns=columns))
                    at, rows = lines.at, 0
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: not a csv table in UTF-8 ({error})") from error
    return units + [Unit(url=url, kind="csv", at=at, rows=rows, mark=mark, columns=columns)] * bool(rows)


def _check_columns(path: Path, names: Sequence[str], columns: TableColumns) -> None:
    for name in (columns.image, columns.caption):
        if name not in names:
            has = ", ".join(repr(each) for each in names)
            raise ValueError(f"{path.name}: no column {name!r}; it has {has} (columns are separated by commas)")


def _records(unit: Unit) -> Iterator[dict[str, Any]]:
    if unit.kind == "parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(unit.url) as table:
            for batch in table.iter_batches(batch_size=1000, row_groups=[unit.at]):
                yield from batch.to_pylist()
        return
    with open(unit.url, "rb") as file:
        names = next(csv.reader(_CountedLines(file)))
        file.seek(unit.at)
        found = (row for row in csv.reader(_CountedLines(file)) if row)
        for _, row in zip(range(unit.rows), found, strict=False):
            yield dict(zip(names, row, strict=False))


class _CountedLines:
    """The lines of a file in UTF-8, and the byte behind the last one that was taken. Raises UnicodeDecodeError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.at = file, 0

    def __iter__(self) -> _CountedLines:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        first, self.at = self.at == 0, self.at + len(line)
        return line.decode("utf-8-sig" if first else "utf-8")
