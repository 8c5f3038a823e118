"""Where pictures to index come from: folders, webdataset tar files, csv and parquet tables."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from clipworks.cli.embed import IMAGE_SUFFIXES
from clipworks.cli.failures import UsageError
from clipworks.cli.index_tables import Cell, read_csv, read_parquet, typed_cells
from clipworks.errors import UnreadableInput

# What the indexer itself writes into the metadata of an item.
RESERVED = frozenset({"path", "source", "member", "row", "sha256", "size", "mtime"})
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "filepath", "image_path")
_MAX_FILE_BYTES = 256 * 2**20
_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True)
class Loaded:
    data: bytes
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One picture; `load` reads it and what is known about it, and raises OSError or UnreadableInput."""

    id: str
    source: str
    load: Callable[[], Loaded]


@dataclass(frozen=True)
class Problem:
    """Something of a source that cannot be indexed."""

    name: str
    reason: str


@dataclass
class Listing:
    """All pictures of some sources. `complete`: everything could be looked at, so what is not listed is gone."""

    entries: list[Entry] = field(default_factory=list[Entry])
    problems: list[Problem] = field(default_factory=list[Problem])
    sources: set[str] = field(default_factory=set[str])
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How tables are read; `schema` has the declared fields, whose csv cells get their type."""

    image: str | None = None
    id: str | None = None
    root: Path | None = None
    schema: Mapping[str, str] = field(default_factory=dict[str, str])


def list_sources(sources: Iterable[str], columns: Columns, *, prefix: str = "") -> Listing:
    """Every picture once, in order; a second one of the same id is a problem.

    Raises:
        UsageError: a source that is not there, is none of the kinds, or holds no picture.
    """
    listing = Listing()
    seen: set[str] = set()
    for given in sources:
        path = Path(given)
        source = str(path.resolve())
        listing.sources.add(source)
        found = False
        for each in _entries(path, source, columns, listing):
            found = True
            if isinstance(each, Problem):
                listing.problems.append(each)
                continue
            entry = Entry(prefix + each.id, each.source, each.load)
            if entry.id in seen:
                listing.problems.append(Problem(entry.id, "this id was given to an earlier picture already"))
                continue
            seen.add(entry.id)
            listing.entries.append(entry)
        if not found:
            kinds = f" ({', '.join(sorted(IMAGE_SUFFIXES))})" if path.is_dir() or path.suffix == ".tar" else ""
            raise UsageError(f"{given}: no pictures in it{kinds}")
    return listing


def read_picture(metadata: Mapping[str, Any]) -> bytes:
    """The bytes of an item that was indexed on this machine, by its metadata.

    Raises:
        OSError, UnreadableInput: it is not there any more, or was not indexed from a file.
    """
    path = metadata.get("path")
    if not isinstance(path, str):
        raise UnreadableInput("its metadata has no path")
    member, row = metadata.get("member"), metadata.get("row")
    if isinstance(member, str):
        try:
            with tarfile.open(path, "r:") as tar:
                return _member_bytes(path, tar.getmember(member))
        except (KeyError, tarfile.TarError) as error:
            raise UnreadableInput(f"{path}: {member}: {error}") from error
    if isinstance(row, int):
        for each in read_parquet(Path(path)):
            if each.row == row:
                cell = next((c for c in each.cells.values() if isinstance(c, Cell)), None)
                if cell is not None:
                    return cell.read()
        raise UnreadableInput(f"{path}: row {row} has no picture")
    return _file_bytes(Path(path))[0]


def _entries(path: Path, source: str, columns: Columns, listing: Listing) -> Iterator[Entry | Problem]:
    if path.is_dir():
        return _folder(path, source, listing)
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder")
    match path.suffix.lower():
        case ".tar":
            return _tar(path, source)
        case ".csv":
            return _table(path, source, columns, is_csv=True)
        case ".parquet":
            return _table(path, source, columns, is_csv=False)
        case _:
            raise UsageError(f"{path}: expected a folder, a .tar (uncompressed), a .csv or a .parquet file")


def _folder(folder: Path, source: str, listing: Listing) -> Iterator[Entry | Problem]:
    """Ids are paths below the folder, with slashes; hidden files and folders are left out."""
    unread: list[OSError] = []
    for where, folders, names in os.walk(folder, onerror=unread.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Entry(path.relative_to(folder).as_posix(), source, _file_loader(path, source))
    for error in unread:
        listing.complete = False
        yield Problem(str(error.filename), f"this folder cannot be read: {error.strerror}")


def _file_loader(path: Path, source: str, columns: Mapping[str, Any] | None = None) -> Callable[[], Loaded]:
    def load() -> Loaded:
        data, mtime = _file_bytes(path)
        return Loaded(data, {**(columns or {}), "path": os.path.abspath(path), "source": source, "mtime": mtime})

    return load


def _file_bytes(path: Path) -> tuple[bytes, float]:
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        if facts.st_size > _MAX_FILE_BYTES:
            raise UnreadableInput(f"{path}: {facts.st_size} bytes are no picture that a server takes")
        return file.read(), round(facts.st_mtime, 3)


def _tar(path: Path, source: str) -> Iterator[Entry | Problem]:
    """webdataset: members of one key belong together; .txt becomes `caption`, .json becomes `json`."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in tar.getmembers() if member.isreg()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(f"{path}: not a whole, uncompressed tar file: {error}") from error
    sidecars: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in members:
        key, _, suffix = _key(member.name)
        if suffix in ("txt", "json"):
            sidecars.setdefault(key, {})[suffix] = member
    for member in members:
        name = PurePosixPath(member.name)
        if name.suffix.lower() in IMAGE_SUFFIXES and not name.name.startswith("."):
            beside = sidecars.get(_key(member.name)[0], {})
            yield Entry(f"{path.name}/{member.name}", source, _member_loader(path, source, member, beside))


def _key(name: str) -> tuple[str, str, str]:
    """webdataset's rule: up to the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    key, dot, suffix = last.partition(".")
    return folder + slash + key, dot, suffix.lower()


def _member_loader(
    path: Path, source: str, member: tarfile.TarInfo, beside: Mapping[str, tarfile.TarInfo]
) -> Callable[[], Loaded]:
    def load() -> Loaded:
        metadata: dict[str, Any] = {}
        if "txt" in beside:
            metadata["caption"] = _member_text(path, beside["txt"]).strip()
        if "json" in beside:
            try:
                metadata["json"] = json.loads(_member_text(path, beside["json"]))
            except (ValueError, RecursionError) as error:
                raise UnreadableInput(f"{beside['json'].name}: not JSON: {error}") from error
        facts = {"path": os.path.abspath(path), "source": source, "member": member.name, "mtime": member.mtime}
        return Loaded(_member_bytes(path, member), metadata | facts)

    return load


def _member_text(path: str | Path, member: tarfile.TarInfo) -> str:
    try:
        return _member_bytes(path, member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{member.name}: not UTF-8 text") from error


def _member_bytes(path: str | Path, member: tarfile.TarInfo) -> bytes:
    if member.size > _MAX_FILE_BYTES or member.issparse():
        raise UnreadableInput(f"{member.name}: too large, or sparse")
    with open(path, "rb") as file:
        file.seek(member.offset_data)
        data = file.read(member.size)
    if len(data) != member.size:
        raise UnreadableInput(f"{member.name}: the tar file ends inside it")
    return data


def _table(path: Path, source: str, columns: Columns, *, is_csv: bool) -> Iterator[Entry | Problem]:
    """One picture a row: its path (below --root, or beside the table) or its bytes; other columns are metadata."""
    root = columns.root or path.parent
    image: str | None = None
    for row in read_csv(path) if is_csv else read_parquet(path):
        if image is None:
            image = _image_column(path, list(row.cells), columns)
        name = f"{path.name}, row {row.row + 1}"
        if row.problem:
            yield Problem(name, row.problem)
            continue
        cell = row.cells.get(image)
        others = {key: value for key, value in row.cells.items() if key != image and value not in (None, "")}
        try:
            metadata = typed_cells(others, columns.schema) if is_csv else others
        except ValueError as error:
            yield Problem(name, str(error))
            continue
        bytes_elsewhere = [key for key, value in metadata.items() if isinstance(value, (bytes, Cell))]
        for key in bytes_elsewhere:
            del metadata[key]
        id = str(others.get(columns.id, "")) if columns.id else ""
        if columns.id and not id:
            yield Problem(name, f"no value in the id column {columns.id!r}")
        elif isinstance(cell, Cell):
            yield Entry(id or f"{path.name}#{row.row}", source, _cell_loader(path, source, row.row, cell, metadata))
        elif not isinstance(cell, str) or not cell:
            yield Problem(name, f"no picture in the column {image!r}")
        elif _ADDRESS.match(cell):
            yield Problem(name, "an address, not a file; fetch it first")
        else:
            file = root / cell
            yield Entry(id or PurePosixPath(cell).as_posix(), source, _file_loader(file, source, metadata))


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


def _cell_loader(path: Path, source: str, row: int, cell: Cell, columns: Mapping[str, Any]) -> Callable[[], Loaded]:
    def load() -> Loaded:
        facts = {"path": os.path.abspath(path), "source": source, "row": row, "mtime": round(path.stat().st_mtime, 3)}
        return Loaded(cell.read(), {**columns, **facts})

    return load
