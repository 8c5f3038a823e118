"""`clipworks collections doctor | compact | snapshot | restore`: by the server that has them, else on the folder."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import httpx2
import typer

from clipworks.cli import connect, output
from clipworks.cli.failures import FAILED_ITEMS, RefusedError, UsageError
from clipworks.client import Client
from clipworks.schemas import CompactResponse, DoctorResponse
from model_store.files import whole_file

if TYPE_CHECKING:
    from service.retrieval.backends.protocol import Backend

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the collection.")]
TimeoutS = Annotated[float, typer.Option("--timeout-s", min=0.1, help="Limit of one request to a server, in seconds.")]
AdminKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar="CLIPWORKS_API_KEY", help="Admin key of the server.", show_default=False),
]
_DATABASE = "collections.sqlite3"
_SNAPSHOTS = "snapshots"
_LONG_S = 3600.0
_DIGEST_BYTES = 32
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Server:
    """folder: its data folder, where that is on this machine."""

    client: Client
    url: str
    api_key: str | None
    folder: Path | None


def doctor(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="All collections when left out.")] = None,
    queries: Annotated[int, typer.Option(min=1, help="Stored vectors to search for.")] = 100,
    recall_at: Annotated[int, typer.Option(min=1, help="Neighbours of each.")] = 10,
    url: connect.Url = None,
    api_key: AdminKey = None,
    data: connect.DataFolder = None,
    timeout_s: TimeoutS = _LONG_S,
    as_json: connect.AsJson = False,
) -> None:
    """Check every row's checksum, that the index holds exactly the rows, and its recall on your own data."""
    reports: dict[str, DoctorResponse] = {}
    with _place(url, api_key, data, timeout_s) as place:
        if isinstance(place, Server):
            found = place.client.collections()
            for each in [name] if name else [info.name for info in found]:
                reports[each] = place.client.collection(each).doctor(queries=queries, recall_at=recall_at)
            warnings = [f"collection {info.name}: {text}" for info in found for text in info.warnings]
            gone = {loss.collection for loss in place.client.losses()} - {info.name for info in found}
        else:
            from service.http.shown import doctor_response

            for each in [name] if name else [info.name for info in place.list()]:
                reports[each] = doctor_response(place.get(each).doctor(queries=queries, recall_at=recall_at))
            warnings = list(getattr(place, "warnings", ()))
            gone = {loss.collection for loss in place.losses()} - {info.name for info in place.list()}
    if as_json:
        output.print_json({each: report.model_dump() for each, report in reports.items()})
    else:
        rows = [
            [
                each,
                str(report.rows),
                str(report.indexed),
                str(report.bad_count),
                "" if report.recall is None else f"{report.recall:.4f}",
                "healthy" if report.healthy else "; ".join(report.problems),
            ]
            for each, report in reports.items()
        ]
        output.print_table(["collection", "rows", "indexed", "bad rows", f"recall@{recall_at}", "state"], rows)
    for warning in warnings:
        output.say(f"warning: {warning}")
    for each in sorted(gone):
        output.say(f"lost: collection {each} is gone; `clipworks collections acknowledge-loss {each}` ends this line")
    if gone or not all(report.healthy for report in reports.values()):
        raise typer.Exit(FAILED_ITEMS)


def acknowledge_loss(
    name: Name,
    url: connect.Url = None,
    api_key: AdminKey = None,
    data: connect.DataFolder = None,
    timeout_s: TimeoutS = _LONG_S,
) -> None:
    """Say no more of what a damaged store lost of a collection; nothing comes back by it."""
    with _place(url, api_key, data, timeout_s) as place:
        if isinstance(place, Server):
            count = place.client.collection(name).acknowledge_loss()
        else:
            count = place.acknowledge_loss(name)
    output.say(f"{name}: {count} losses acknowledged")


def compact(
    name: Name,
    url: connect.Url = None,
    api_key: AdminKey = None,
    data: connect.DataFolder = None,
    timeout_s: TimeoutS = _LONG_S,
    as_json: connect.AsJson = False,
) -> None:
    """Rebuild the index without deleted rows, train it anew, and give unused disk space back."""
    with _place(url, api_key, data, timeout_s) as place:
        if isinstance(place, Server):
            report = place.client.collection(name).compact()
        else:
            made = place.get(name).compact()
            report = CompactResponse(slots_removed=made.slots_removed, bytes_freed=made.bytes_freed)
    if as_json:
        output.print_json(report.model_dump())
    else:
        freed = megabytes(report.bytes_freed)
        output.say(f"{name}: {report.slots_removed} dead slots removed, {freed} MB freed")


def snapshot(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="It must not exist.")],
    url: connect.Url = None,
    api_key: AdminKey = None,
    data: connect.DataFolder = None,
    timeout_s: TimeoutS = _LONG_S,
    as_json: connect.AsJson = False,
) -> None:
    """Write one collection, as of one moment, into a file with a checksum."""
    if file.exists():
        raise UsageError(f"{file} exists; a snapshot never replaces a file")
    with _place(url, api_key, data, timeout_s) as place:
        if isinstance(place, Server):
            made = place.client.collection(name).snapshot()
            _fetch(place, made.snapshot, file, sha256=made.sha256, timeout_s=timeout_s)
        else:
            made = place.get(name).snapshot(file)
    if as_json:
        facts = {"path": str(file), "sha256": made.sha256, "bytes": made.bytes, "count": made.count}
        output.print_json({**facts, "sequence": made.sequence})
    else:
        output.say(f"{made.count} items in {file} ({megabytes(made.bytes)} MB, sha256 {made.sha256})")


def restore(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Made by `snapshot`; with --url the name of one on the server.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the new collection.")],
    url: connect.Url = None,
    api_key: AdminKey = None,
    data: connect.DataFolder = None,
    timeout_s: TimeoutS = _LONG_S,
) -> None:
    """Make a new collection from a snapshot: all of it or nothing."""
    if not url and not file.is_file():
        raise UsageError(f"{file}: no such file")
    with _place(url, api_key, data, timeout_s, may_be_new=True) as place:
        if isinstance(place, Server):
            with _on_server(place, file) as there:
                count = place.client.collection(name).restore(there).count
        else:
            count = place.restore(file, name=name).describe().count
    output.say(f"restored {name}: {count} items")


def snapshots(
    url: connect.Url = None,
    api_key: AdminKey = None,
    data: connect.DataFolder = None,
    as_json: connect.AsJson = False,
) -> None:
    """Snapshots that lie on a server, or in the folder `snapshots` of a data folder."""
    if url:
        address = f"{url.rstrip('/')}/{_SNAPSHOTS}"
        try:
            answer = httpx2.get(address, headers=_key(api_key), timeout=60)
        except httpx2.HTTPError as error:
            raise RefusedError(f"{address}: {error}") from error
        _check(answer)
        found = [(str(each["snapshot"]), int(each["bytes"])) for each in answer.json()["data"]]
    else:
        folder = connect.data_folder(data) / _SNAPSHOTS
        found = sorted((path.name, path.stat().st_size) for path in folder.glob("*.snapshot"))
    if as_json:
        output.print_json([{"snapshot": name, "bytes": size} for name, size in found])
    else:
        output.print_table(["snapshot", "MB"], [[name, megabytes(size)] for name, size in found])


@contextmanager
def _place(
    url: str | None, api_key: str | None, data: Path | None, timeout_s: float, *, may_be_new: bool = False
) -> Generator[Server | Backend]:
    """The server at `url`, else the one that holds the data folder, else the collections themselves.

    Raises:
        UsageError: there are none.
        RefusedError: another process holds them and serves nothing.
    """
    folder = None
    if not url:
        folder = connect.data_folder(data)
        url = asyncio.run(connect.holder_of(folder))
        if url:
            output.say(f"{folder} is held by the server at {url}: asking it")
    if url:
        try:
            client = Client(url, api_key=api_key, timeout_s=timeout_s)
        except ValueError as error:
            raise UsageError(str(error)) from error
        with client:
            yield Server(client, url.rstrip("/"), api_key, folder)
        return
    opened = _open(folder or connect.data_folder(data), may_be_new=may_be_new)
    try:
        yield opened
    finally:
        opened.close()


def _open(folder: Path, *, may_be_new: bool) -> Backend:
    """The backend that the settings name."""
    from service.collections.backends import embedded
    from service.retrieval import RetrievalSettings
    from service.retrieval.errors import FolderInUse
    from service.services import backend_of
    from service.settings import read_settings

    settings = read_settings({})
    if settings.collections_backend != "embedded":
        return backend_of(settings, RetrievalSettings()).open(None)
    if not may_be_new and not (folder / _DATABASE).is_file():
        raise UsageError(f"{folder}: no collections in this folder; name it with --data or CLIPWORKS_DATA")
    try:
        return embedded(folder, RetrievalSettings()).open(None)
    except FolderInUse as error:
        raise RefusedError(f"{error}: wait for its end, or ask it with --url") from error


def _fetch(server: Server, snapshot: str, file: Path, *, sha256: str, timeout_s: float) -> None:
    """Bring a snapshot here, whole or not at all, and take it off the server.

    Raises:
        RefusedError: what came is not what the server wrote.
    """
    address = f"{server.url}/{_SNAPSHOTS}/{snapshot}"
    try:
        with (
            httpx2.stream("GET", address, headers=_key(server.api_key), timeout=timeout_s) as answer,
            whole_file(file) as stream,
        ):
            _check(answer)
            for chunk in answer.iter_bytes(_CHUNK):
                stream.write(chunk)
            size = stream.tell()
            stream.seek(0)
            if _digest_of(stream, size) != sha256:
                raise RefusedError(f"{address}: what came is not what the server wrote; ask again")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from error
    except httpx2.HTTPError as error:
        raise RefusedError(f"{address}: {error}") from error
    finally:
        with suppress(httpx2.HTTPError):  # it stays there, and `snapshots` lists it
            httpx2.delete(address, headers=_key(server.api_key), timeout=60)


def _digest_of(stream: BinaryIO, size: int) -> str | None:
    """The sha256 of all but the file's last bytes, if those say the same."""
    digest, left = hashlib.sha256(), size - _DIGEST_BYTES
    while left > 0 and (chunk := stream.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest() if stream.read() == digest.digest() else None


@contextmanager
def _on_server(server: Server, file: Path) -> Generator[str]:
    """The name of a snapshot on the server; a file of this machine is put there as long as the block."""
    if server.folder is None:
        if file.name != str(file):
            raise UsageError(f"{file}: with --url name one that lies on the server: clipworks collections snapshots")
        yield file.name
        return
    folder = server.folder / _SNAPSHOTS
    folder.mkdir(parents=True, exist_ok=True)
    there = folder / f"restoring-{os.getpid()}.snapshot"
    shutil.copyfile(file, there)
    try:
        yield there.name
    finally:
        there.unlink(missing_ok=True)


def megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:.1f}"


def _key(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _check(answer: httpx2.Response) -> None:
    """Raises RefusedError with the server's own words."""
    if answer.status_code == 200:
        return
    answer.read()
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {answer.status_code}"
    raise RefusedError(f"{answer.url}: {message}")
