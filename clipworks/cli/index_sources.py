"""Sources of pictures to index: folders, single files, webdataset tar files, csv and parquet tables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clipworks.cli.failures import UsageError
from clipworks.cli.file_names import name_of, text_of
from clipworks.cli.index_entries import RESERVED, EntryProblem, Loaded, PictureEntry, SourceListing
from clipworks.cli.index_tables import Cell, read_csv, read_parquet, typed_cells
from clipworks.cli.index_tar import entries_of_tar, read_member
from clipworks.cli.picture_files import (
    LeftOut,
    PictureFile,
    Selection,
    Unreadable,
    no_pictures,
    picture_suffixes,
    read_file,
    search_folder,
)
from clipworks.errors import UnreadableInput

IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "filepath", "image_path")
_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_KINDS = (".tar", ".csv", ".parquet")
Load = Callable[[Mapping[str, str]], Loaded]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How tables are read."""

    image: str | None = None
    id: str | None = None
    root: Path | None = None


@dataclass(frozen=True)
class Cells:
    """A table's row without its picture. are_texts: of a csv."""

    values: Mapping[str, Any]
    are_texts: bool

    def typed(self, schema: Mapping[str, str]) -> dict[str, Any]:
        """Raises ValueError: a text that has no value of its declared type."""
        return typed_cells(self.values, schema) if self.are_texts else dict(self.values)


def check_sources(sources: Iterable[str], columns: Columns, *, prune: bool) -> None:
    """What can be said without reading anything, before a model is loaded or a collection is made.

    Raises:
        UsageError: a source that is not there, is of no known kind, or cannot be pruned; or a root that is none.
    """
    for given in sources:
        path = Path(given)
        if path.is_dir():
            continue
        if not path.exists():
            raise UsageError(f"{text_of(given)}: no such file or folder")
        suffix = path.suffix.lower()
        if not path.is_file() or suffix not in (*_KINDS, *picture_suffixes()):
            kinds = ", ".join(sorted(picture_suffixes()))
            raise UsageError(
                f"{text_of(given)}: expected a folder, a picture ({kinds}), "
                "a .tar (uncompressed), a .csv or a .parquet file"
            )
        if prune and suffix not in _KINDS:
            raise UsageError(f"{text_of(given)}: --prune removes what is gone from a folder; name the folder")
    if columns.root is not None and not columns.root.is_dir():
        raise UsageError(f"--root {text_of(columns.root)}: no such folder")


def list_sources(
    sources: Iterable[str], columns: Columns, selection: Selection, *, prefix: str = "", may_be_empty: bool = False
) -> SourceListing:
    """Every picture once, in order; a second one of the same id is a problem.

    Raises:
        UsageError: a source that is not there, is none of the kinds, or holds no picture (unless it may be empty).
    """
    listing = SourceListing()
    seen: set[str] = set()
    for given in sources:
        path = Path(given)
        source = text_of(path.resolve())
        found = False
        for each in _entries(path, source, columns, selection, listing):
            found = True
            if isinstance(each, EntryProblem):
                listing.problems.append(each)
                continue
            entry = PictureEntry(prefix + each.id, each.source, each.load, each.place)
            if entry.id in seen:
                listing.problems.append(EntryProblem(entry.id, "this id was given to an earlier picture already"))
                continue
            seen.add(entry.id)
            listing.entries.append(entry)
        if not found and not may_be_empty:
            raise UsageError(no_pictures(given, listing.skipped))
    return listing


def read_picture(metadata: Mapping[str, Any]) -> bytes:
    """The bytes of an item that was indexed on this machine, by its metadata.

    Raises:
        OSError, UnreadableInput: it is not there any more, or was not indexed from a file.
    """
    path = metadata.get("path")
    if not isinstance(path, str):
        raise UnreadableInput("its metadata has no path")
    path = name_of(path)
    member, row = metadata.get("member"), metadata.get("row")
    if isinstance(member, str):
        return read_member(path, member)
    if isinstance(row, int):
        for each in read_parquet(Path(path)):
            if each.row == row:
                cell = next((c for c in each.cells.values() if isinstance(c, Cell)), None)
                if cell is not None:
                    return cell.read()
        raise UnreadableInput(f"{path}: row {row} has no picture")
    return read_file(path)[0]


def _entries(
    path: Path, source: str, columns: Columns, selection: Selection, listing: SourceListing
) -> Iterator[PictureEntry | EntryProblem]:
    if path.is_dir():
        listing.sources.add(source)
        return _folder(path, source, selection, listing)
    match path.suffix.lower():
        case ".tar":
            listing.sources.add(source)
            return _tar(path, source, selection, listing)
        case ".csv" | ".parquet" as kind:
            listing.sources.add(source)
            return _table(path, source, columns, listing, is_csv=kind == ".csv")
        case _:
            return _single(path)


def _single(path: Path) -> Iterator[PictureEntry]:
    """As if its folder were read, of which only this file is wanted: the same id, the same source."""
    folder = text_of(path.parent.resolve())
    name = text_of(path.name)
    yield PictureEntry(name, folder, _file_loader(path, folder), place=name)


def _folder(
    folder: Path, source: str, selection: Selection, listing: SourceListing
) -> Iterator[PictureEntry | EntryProblem]:
    """Ids are paths below the folder, with slashes."""
    for found in search_folder(folder, selection):
        below = text_of(found.below)
        match found:
            case PictureFile():
                yield PictureEntry(below, source, _file_loader(found.path, source), place=below)
            case LeftOut():
                listing.leave_out(source, LeftOut(below, found.reason), shown=text_of(folder / found.below))
            case Unreadable():
                listing.complete = False
                yield EntryProblem(text_of(folder / found.below), found.why)


def _tar(path: Path, source: str, selection: Selection, listing: SourceListing) -> Iterator[PictureEntry]:
    for each in entries_of_tar(path, source, selection):
        if isinstance(each, PictureEntry):
            yield each
        else:
            below = text_of(f"{path.name}/{each.below}")
            listing.leave_out(source, LeftOut(below, each.reason), shown=text_of(f"{path}/{each.below}"))


def _file_loader(path: Path, source: str, cells: Cells | None = None) -> Load:
    def load(schema: Mapping[str, str]) -> Loaded:
        metadata = cells.typed(schema) if cells else {}
        data, facts = read_file(path)
        place = {"path": text_of(os.path.abspath(path)), "source": source, "mtime": round(facts.st_mtime, 3)}
        return Loaded(data, metadata | place)

    return load


def _table(
    path: Path, source: str, columns: Columns, listing: SourceListing, *, is_csv: bool
) -> Iterator[PictureEntry | EntryProblem]:
    """One picture a row: its path (below --root, or beside the table) or its bytes; other columns are metadata."""
    root = columns.root or path.parent
    image: str | None = None
    for row in read_csv(path) if is_csv else read_parquet(path):
        if image is None:
            image = _image_column(path, list(row.cells), columns)
            listing.columns |= row.cells.keys() - {image}
        name = f"{path.name}, row {row.row + 1}"
        if row.problem:
            yield EntryProblem(name, row.problem)
            continue
        cell = row.cells.get(image)
        others = {key: value for key, value in row.cells.items() if key != image and value not in (None, "")}
        cells = Cells({key: value for key, value in others.items() if not isinstance(value, (bytes, Cell))}, is_csv)
        id = str(others.get(columns.id, "")) if columns.id else ""
        if columns.id and not id:
            yield EntryProblem(name, f"no value in the id column {columns.id!r}")
        elif isinstance(cell, Cell):
            yield PictureEntry(id or f"{path.name}#{row.row}", source, _cell_loader(path, source, row.row, cell, cells))
        elif not isinstance(cell, str) or not cell:
            yield EntryProblem(name, f"no picture in the column {image!r}")
        elif _ADDRESS.match(cell):
            yield EntryProblem(name, "an address, not a file; fetch it first")
        else:
            file = root / cell
            place = PurePosixPath(cell).as_posix()
            yield PictureEntry(id or place, source, _file_loader(file, source, cells), place=place)


def _image_column(path: Path, names: list[str], columns: Columns) -> str:
    """Raises UsageError: no such column, or a column that would hide what the indexer writes."""
    image = columns.image or next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None or image not in names:
        wanted = f"no column {image!r}" if image else f"none of the columns {', '.join(IMAGE_COLUMNS)}"
        raise UsageError(f"{path}: {wanted}; it has {', '.join(names)}: name one with --image-column")
    if columns.id and columns.id not in names:
        raise UsageError(f"{path}: no column {columns.id!r} for --id-column; it has {', '.join(names)}")
    if taken := sorted(RESERVED.intersection(names) - {image}):
        raise UsageError(f"{path}: rename the column {taken[0]!r}: the indexer keeps a field of that name")
    return image


def _cell_loader(path: Path, source: str, row: int, cell: Cell, cells: Cells) -> Load:
    def load(schema: Mapping[str, str]) -> Loaded:
        facts = {"path": text_of(os.path.abspath(path)), "source": source}
        facts |= {"row": row, "mtime": round(path.stat().st_mtime, 3)}
        return Loaded(cell.read(), cells.typed(schema) | facts)

    return load
