"""The collections of one data folder, owned by one process."""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import apsw

from model_store.files import make_folder
from service.retrieval.collection import EmbeddedCollection
from service.retrieval.errors import (
    AliasNotFound,
    CollectionConflict,
    CollectionNotFound,
    InvalidCollection,
    RetrievalError,
    StorageFailed,
    StoreClosed,
    StoreCorrupt,
    TooManyCollections,
)
from service.retrieval.index import cache
from service.retrieval.index.live import LiveIndex, build, catch_up, wanted_kind
from service.retrieval.records import NAME_PATTERN, CollectionDescription, CollectionSpec, Loss, RetrievalSettings
from service.retrieval.truth import aliases, archive, lock, witness
from service.retrieval.truth.database import CHECKSUMS, DATABASE, ensure_checksums
from service.retrieval.truth.log import Log
from service.retrieval.truth.losses import (
    delete_losses,
    insert_loss,
    loss_of,
    rename_losses,
    seen_of,
    sentence,
)
from service.retrieval.truth.opening import (
    INDEXES,
    first_seen,
    read_folder,
    refuse_lost_database,
    refuse_special_files,
    unexplained_start,
)
from service.retrieval.truth.rows import Prepared, RowTable
from service.retrieval.truth.tables import (
    NOTHING,
    Counters,
    Tables,
    drop_collection,
    insert_collection,
    mark_ready,
    read_counters,
    renew_epoch,
)
from service.retrieval.upkeep import StoreUpkeep

log = logging.getLogger("clipworks.retrieval")
_TEMPORARY = "clipworks-collections-"
_RESTORE_ROWS = 2000


class CollectionStore:
    """Open with `CollectionStore.open`; close it, or use it as a context manager. Safe from any thread.

    Threads: the log's writer (see log.py) and the one of upkeep.py.
    `_changing` guards the dictionary of collections and is held while one is made or dropped, or an alias is moved.
    `_by_name`, where names are looked up, has collections by name and by alias; it is replaced whole, so nobody ever
    sees a name that is between two of them.
    """

    def __init__(
        self, folder: Path, *, owner: lock.FolderLock, settings: RetrievalSettings, temporary: bool, vfs: str
    ) -> None:
        """Use `open`."""
        self._folder = folder
        self._owner = owner
        self._settings = settings
        self._temporary = temporary
        self._changing = threading.Lock()
        self._collections: dict[str, EmbeddedCollection] = {}
        self._aliases: dict[str, EmbeddedCollection] = {}
        self._by_name: dict[str, EmbeddedCollection] = {}
        self._coming: set[str] = set()
        self._closed = False
        self._upkeep = StoreUpkeep(
            indexes=folder / INDEXES,
            settings=settings,
            collections=lambda: list(self._collections.values()),
            sync_witness=self._keep_witness,
        )
        self._warnings: tuple[str, ...] = unexplained_start(folder) if owner.was_used else ()
        self._losses: dict[str, Loss] = {}
        refuse_special_files(folder)
        path = folder / DATABASE
        known = witness.load(folder)
        refuse_lost_database(folder, known)
        self._log = Log(
            path,
            vfs=vfs,
            readers=settings.readers + settings.scanners,
            group_items=settings.group_items,
            checkpoint_s=settings.checkpoint_s,
        )
        try:
            self._load(known)
        except BaseException:
            self._log.close()
            raise
        self._upkeep.start()

    @classmethod
    def open(
        cls,
        folder: Path | None,
        *,
        address: str | None = None,
        settings: RetrievalSettings | None = None,
        vfs: str = CHECKSUMS,
    ) -> CollectionStore:
        """Take the folder, read every collection into memory, and start the writer.

        folder: created if missing; None keeps everything in a temporary folder that is deleted at close.
        address: where the owner can be reached, for whoever tries to open the folder too.
        vfs: SQLite's file layer; one that tests put on top of the checksumming one.

        Raises:
            FolderInUse: another process holds it; the message and `address` say which.
            StoreCorrupt: a file of the truth is damaged; the message names it.
            StorageFull, StorageFailed
        """
        temporary = folder is None
        if folder is None:
            lock.remove_stale(Path(tempfile.gettempdir()), _TEMPORARY)
            folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
        try:
            make_folder(folder)
            make_folder(folder / INDEXES)
        except OSError as error:  # nobody is served yet, so the operator may read the path
            raise StorageFailed(f"{folder} cannot be used: {error.strerror}") from error
        ensure_checksums()
        owner = lock.FolderLock(folder, address)
        try:
            return cls(folder, owner=owner, settings=settings or RetrievalSettings(), temporary=temporary, vfs=vfs)
        except BaseException:
            owner.release()
            raise

    @staticmethod
    def holder(folder: Path) -> str | None:
        """Address of the process that holds the folder now, "" if it wrote none; None if the folder is free."""
        return lock.holder(folder)

    def announce(self, address: str) -> None:
        """Write the owner's address into the lock file, once it is known."""
        self._owner.announce(address)

    def create(self, name: str, spec: CollectionSpec) -> tuple[EmbeddedCollection, bool]:
        """The collection of that name, and whether it is new; an equal specification gives the one that is there.

        Raises:
            InvalidCollection: a name that does not match NAME_PATTERN.
            CollectionConflict: it exists with another specification.
            TooManyCollections: there are settings.max_collections.
        """
        _check_name(name)
        with self._open_for_change():
            if name in self._coming:
                raise CollectionConflict(f"collection {name} is being restored")
            there = self._by_name.get(name)
            if there is not None:
                if there.spec != spec:
                    raise CollectionConflict(
                        f"collection {name} exists and is another: {_difference(there.spec, spec)}"
                    )
                return there, False
            self._require_place()

            def work(db: apsw.Connection) -> Tables:
                made = insert_collection(db, name, spec, epoch=uuid.uuid4().hex, ready=True)
                self._log.note_first(seen_of(made, NOTHING, state="changing"))
                return made

            tables = self._log.write(work, publish=lambda made: self._log.note(seen_of(made, NOTHING)))
            return self._admit(tables, self._build(tables)), True

    def get(self, name: str) -> EmbeddedCollection:
        """By name or alias. Raises CollectionNotFound."""
        found = self._by_name.get(name)
        if self._closed:
            raise StoreClosed("the store is closed")
        if found is None:
            raise CollectionNotFound(f"there is no collection {name[:80]!r}")
        return found

    def list(self) -> list[CollectionDescription]:
        """All collections by name."""
        if self._closed:
            raise StoreClosed("the store is closed")
        found: list[CollectionDescription] = []
        for _, collection in sorted(self._collections.copy().items()):
            with suppress(CollectionNotFound):  # dropped since the copy was made
                found.append(collection.describe())
        return found

    def aliases(self) -> dict[str, str]:
        """Name of the collection by alias."""
        if self._closed:
            raise StoreClosed("the store is closed")
        return {name: target.name for name, target in sorted(self._aliases.copy().items())}

    def set_alias(
        self, name: str, collection: str, *, keep_as: str | None = None, if_sequence: int | None = None
    ) -> bool:
        """Let `name` mean a collection, durably and at once; whether it is new. Searches notice nothing.

        keep_as: the new name of the collection that has `name` as its own, which changes in the same transaction.
        if_sequence: of the collection that `name` means now, which must not have changed since.

        Raises:
            InvalidCollection: a name that cannot be one.
            CollectionNotFound: there is no such collection.
            CollectionConflict: `name` is a collection's own and there is no keep_as, keep_as is taken or not needed, or
                the sequence is another one.
        """
        _check_name(name)
        with self._open_for_change():
            target, holder = self.get(collection), self._collections.get(name)
            if name in self._coming or (keep_as in self._coming if keep_as else False):
                raise CollectionConflict("a collection of this name is being restored")
            if holder is None and keep_as is not None:
                raise CollectionConflict(f"there is no collection {name} to keep as {keep_as}: leave keep_as out")
            if holder is not None and keep_as is None:
                raise CollectionConflict(
                    f"{name} is a collection's own name: say under which one to keep that collection (keep_as)"
                )
            if keep_as is not None:
                _check_name(keep_as)
                if keep_as in self._by_name:
                    raise CollectionConflict(f"keep_as: the name {keep_as} is taken")
            before = self._by_name.get(name)
            renamed = (holder.tables.number, keep_as) if holder and keep_as else None

            def switch(db: apsw.Connection) -> None:
                if if_sequence is not None:
                    now = read_counters(db, before.tables.number) if before else None
                    if now is None or now.sequence != if_sequence:
                        there = f"is at change {now.sequence}" if now else "means no collection"
                        raise CollectionConflict(f"{name} {there}, not at {if_sequence}")
                aliases.point(db, name, target.tables.number, renamed=renamed)
                if renamed:
                    rename_losses(db, name, renamed[1])

            def note(_: None) -> None:
                if holder and keep_as:
                    self._log.note(seen_of(replace(holder.tables, name=keep_as), holder.searcher.counters()))

            self._log.write(switch, publish=note)
            if holder and keep_as:
                holder.rename(keep_as)
                self._losses = {
                    epoch: replace(loss, collection=keep_as) if loss.collection == name else loss
                    for epoch, loss in self._losses.items()
                }
                self._collections[keep_as] = self._collections.pop(name)
            is_new = name not in self._aliases
            self._aliases[name] = target
            self._show_names()
            return is_new

    def delete_alias(self, name: str) -> None:
        """Raises AliasNotFound."""
        with self._open_for_change():
            if name not in self._aliases:
                raise AliasNotFound(f"there is no alias {name[:80]!r}")
            self._log.write(lambda db: aliases.remove(db, name))
            del self._aliases[name]
            self._show_names()

    def drop(self, name: str) -> None:
        """Delete a collection with all its rows, durably.

        Raises:
            CollectionNotFound
            CollectionConflict: the name is an alias, or the collection has one.
        """
        with self._open_for_change():
            if name in self._aliases:
                owner = self._aliases[name].name
                raise CollectionConflict(f"{name} is an alias of {owner}: delete the alias, or {owner} by its own name")
            found = self._collections.get(name)
            if found is None:
                raise CollectionNotFound(f"there is no collection {name[:80]!r}")
            if named := sorted(alias for alias, target in self._aliases.items() if target is found):
                raise CollectionConflict(
                    f"collection {name} has the alias {', '.join(named)}: delete or move that first"
                )
            number = found.tables.number
            now = Counters(found.searcher.state().sequence, 0, 0)

            def work(db: apsw.Connection) -> None:
                self._log.note_first(seen_of(found.tables, now, state="changing"))
                drop_collection(db, number)

            with found.being_dropped():
                self._log.write(
                    work,
                    publish=lambda _: self._log.note(seen_of(found.tables, now, state="dropped")),
                    gate=found.gate,
                )
            del self._collections[name]
            self._show_names()
            self._upkeep.forget(number)
            with suppress(OSError):  # the next start removes it
                cache.path_of(self._folder / INDEXES, found.tables).unlink(missing_ok=True)

    def restore(self, path: Path, *, name: str) -> EmbeddedCollection:
        """A new collection from a file that `EmbeddedCollection.snapshot` wrote; all of it or nothing.

        Raises:
            StoreCorrupt: the file is not complete or not what was written.
            CollectionConflict: the name is taken.
        """
        _check_name(name)
        with self._reserved_name(name), archive.opened(path) as (header, rows):
            hidden = f".restoring-{uuid.uuid4().hex}"
            tables = self._log.write(
                lambda db: insert_collection(db, hidden, header.spec, epoch=uuid.uuid4().hex, ready=False)
            )
            try:
                self._fill(tables, rows)
                live = self._build(tables)
                named = replace(tables, name=name)

                def show(db: apsw.Connection) -> None:
                    mark_ready(db, tables.number, name)
                    self._log.note_first(seen_of(named, NOTHING, state="changing"))

                with self._open_for_change():
                    self._log.write(
                        show,
                        publish=lambda _: self._log.note(seen_of(named, live.counters)),
                    )
                    return self._admit(named, live)
            except BaseException:
                with suppress(StoreClosed):  # the next start drops what is not ready
                    self._log.write(lambda db: drop_collection(db, tables.number))
                raise

    @contextmanager
    def _reserved_name(self, name: str) -> Generator[None]:
        """A name that nobody else may take; other collections come and go meanwhile.

        Raises:
            CollectionConflict: it is taken.
        """
        with self._open_for_change():
            if name in self._by_name or name in self._coming:
                raise CollectionConflict(f"collection {name} exists; restore under another name, or drop it first")
            self._require_place()
            self._coming.add(name)
        try:
            yield
        finally:
            with self._changing:
                self._coming.discard(name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was found wrong at open, and losses that nobody has acknowledged, in words."""
        return (*self._warnings, *map(sentence, self._losses.values()))

    def losses(self) -> tuple[Loss, ...]:
        """Acknowledged changes that were not there at a start, also of collections that are gone."""
        return tuple(self._losses.values())

    def acknowledge_loss(self, name: str) -> int:
        """Say no more of what this collection lost, durably; how many losses there were.

        Raises:
            CollectionNotFound: there is neither such a collection nor a loss of one.
        """
        with self._open_for_change():
            name = self._aliases[name].name if name in self._aliases else name
            found = [epoch for epoch, loss in self._losses.items() if loss.collection == name]
            if not found and name not in self._collections:
                raise CollectionNotFound(f"there is no collection {name[:80]!r}, and none of this name was lost")
            if found:
                self._log.write(lambda db: delete_losses(db, name))
                self._losses = {epoch: loss for epoch, loss in self._losses.items() if epoch not in found}
            return len(found)

    def close(self, timeout_s: float | None = None) -> None:
        """Finish the writes in hand, write index snapshots, truncate the log, release the folder. Twice is no error.

        timeout_s: after half of it what runs is interrupted, after all of it left behind: the folder then stays locked
            until the process ends. What was acknowledged is safe, and indexes that could not be saved are rebuilt.
        """
        with self._changing:
            if self._closed:
                return
            self._closed = True
        until = None if timeout_s is None else time.monotonic() + timeout_s
        self._upkeep.stop()
        is_closed = self._log.close(until=until)
        has_ended = self._upkeep.join(until=until)
        if not self._temporary and has_ended:
            self._upkeep.save_indexes(least_share=0.0, until=until)
        if is_closed and has_ended:
            self._owner.release()
        if self._temporary:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> CollectionStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _open_for_change(self) -> Generator[None]:
        with self._changing:
            if self._closed:
                raise StoreClosed("the store is closed")
            yield

    def _require_place(self) -> None:
        there = len(self._collections) + len(self._coming)
        if there >= self._settings.max_collections:
            raise TooManyCollections(
                f"there are {there} collections, the limit is {self._settings.max_collections}"
                " (CLIPWORKS_MAX_COLLECTIONS); delete one first"
            )

    def _load(self, known: witness.Testimony | None) -> None:
        started = time.monotonic()
        testimony = known or witness.Testimony(witness.load_note(self._folder))
        # A claim on the log holds until something is written: so it is renewed first, or what it shows is stored first.
        # And the first thing written is that there is a witness, so it must be there before.
        is_damaged = not self._log.recovered.reaches(testimony.position)
        if known is None or not (is_damaged or testimony.problem):
            self._attach(first_seen(self._log, testimony) if known is None else list(testimony.seen.values()))

        found = read_folder(self._log, testimony, is_new=known is None, is_damaged=is_damaged)
        self._losses, self._warnings = dict(found.known_losses), (*self._warnings, *found.warnings)
        losses = dict(found.losses)
        for tables in found.tables:
            self._load_one(tables, losses.pop(tables.epoch, None))
        by_number = {held.tables.number: held for held in self._collections.values()}
        self._aliases = {name: by_number[number] for name, number in found.aliases.items()}
        self._show_names()
        for epoch, loss in losses.items():
            self._log.write(lambda db, epoch=epoch, loss=loss: insert_loss(db, epoch, loss))
            self._losses[epoch] = loss
        for warning in self.warnings:
            log.warning("%s", warning)
        self._remove_unknown_indexes()
        there = {tables.epoch for tables in found.tables}
        tombstones = [seen for epoch, seen in testimony.seen.items() if seen.state == "dropped" and epoch not in there]
        self._attach([*tombstones, *self._seen()])
        witness.remove_note(self._folder)
        log.info("%d collections opened in %.2f s", len(found.tables), time.monotonic() - started)

    def _attach(self, seen: Sequence[witness.AcknowledgedState]) -> None:
        try:
            self._log.attach(self._folder, seen)
        except RetrievalError as error:
            log.warning("%s cannot be written, so a loss would go unnoticed: %s", witness.NAME, error)

    def _seen(self) -> list[witness.AcknowledgedState]:
        return [seen_of(each.tables, each.searcher.counters()) for each in self._collections.copy().values()]

    def _keep_witness(self) -> None:
        """Sync it; or make it, where there was no room for it before. Raises OSError."""
        if self._log.has_witness:
            self._log.sync_witness()
        else:
            self._attach(self._seen())

    def _remove_unknown_indexes(self) -> None:
        known = {cache.path_of(self._folder / INDEXES, each.tables).name for each in self._collections.values()}
        known |= {each.searcher.state().vectors_file for each in self._collections.values()}
        for path in (self._folder / INDEXES).iterdir():
            if path.name not in known:
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _load_one(self, tables: Tables, loss: Loss | None) -> None:
        """From the index snapshot if it can be trusted and fits, else from the truth."""
        rows = _rows(tables)
        path = cache.path_of(self._folder / INDEXES, tables)
        with self._log.read() as db:
            now = rows.counters(db)
        found = cache.load(path, tables, tables.spec.index, self._settings)
        warnings: tuple[str, ...] = ()
        if isinstance(found, str):
            warnings = (f"{found}; the index was rebuilt from the truth",)
            found = None
        elif found and (found.counters.sequence > now.sequence or found.counters.last_rid > now.last_rid):
            loss = loss or loss_of(seen_of(tables, found.counters), now)
            found = None
        if warnings or loss:
            # Row numbers of lost changes will be used again, so nothing that was derived from them may ever fit.
            found = None
            path.unlink(missing_ok=True)
            tables = self._renew(tables, loss)
        if found and found.index.kind == wanted_kind(tables.spec.index, now.rows, self._settings, now=found.index.kind):
            self._upkeep.remember(tables.number, found)
            catch_up(self._log, rows, found)
            live = found
        else:
            live = self._build(tables)
        self._admit(tables, live, warnings=warnings)
        self._warnings += tuple(f"collection {tables.name}: {warning}" for warning in warnings)

    def _renew(self, tables: Tables, loss: Loss | None) -> Tables:
        """Under a new epoch; a loss is stored under the old one."""
        renewed = replace(tables, epoch=uuid.uuid4().hex)

        def work(db: apsw.Connection) -> None:
            for each in (tables, renewed):
                self._log.note_first(seen_of(each, NOTHING, state="changing"))
            renew_epoch(db, tables.number, renewed.epoch)
            if loss is not None:
                insert_loss(db, tables.epoch, loss)

        self._log.write(work)
        if loss is not None:
            self._losses[tables.epoch] = loss
        return renewed

    def _fill(self, tables: Tables, rows: Generator[Prepared]) -> None:
        """Write the rows of a snapshot into a collection that nobody sees yet."""
        target = _rows(tables)
        done = 0
        while batch := list(itertools.islice(rows, _RESTORE_ROWS)):
            unique = list({row.id: row for row in batch}.values())
            change = self._log.write(lambda db, unique=unique: target.upsert(db, unique), weight=len(batch))
            done += len(batch)
            if change.counters.rows != done:
                raise StoreCorrupt("the snapshot has an id twice")

    def _build(self, tables: Tables) -> LiveIndex:
        folder = self._folder / INDEXES
        return build(self._log, _rows(tables), tables.spec.index, self._settings, folder=folder, now=None)

    def _admit(self, tables: Tables, live: LiveIndex, *, warnings: tuple[str, ...] = ()) -> EmbeddedCollection:
        made = EmbeddedCollection(
            tables,
            log=self._log,
            settings=self._settings,
            durability="none" if self._temporary else "full",
            live=live,
            folder=self._folder / INDEXES,
            warnings=warnings,
            losses=lambda name: tuple(loss for loss in self._losses.values() if loss.collection == name),
            wake=self._upkeep.wake,
            stop=lambda: self._closed,
        )
        self._collections[tables.name] = made
        self._show_names()
        return made

    def _show_names(self) -> None:
        """The caller holds `_changing`, or is the only one."""
        self._by_name = {**self._collections, **self._aliases}


def _check_name(name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise InvalidCollection(f"a collection's name must match {NAME_PATTERN.pattern}, got {name[:80]!r}")


def _rows(tables: Tables) -> RowTable:
    return RowTable(tables.number, tables.spec)


def _difference(one: CollectionSpec, other: CollectionSpec) -> str:
    """What differs, with both values: of nested fields only the parts that do."""
    has, wants = (
        {**each.model_dump(), "thumbnails": each.thumbnails, "rerank": each.rerank and each.rerank.model}
        for each in (one, other)
    )
    return "; ".join(_differing(has, wants, ""))


def _differing(one: dict[str, Any], other: dict[str, Any], path: str) -> Generator[str]:
    for name in sorted({*one, *other}):
        has, wants = one.get(name), other.get(name)
        if has == wants:
            continue
        if isinstance(has, dict) and isinstance(wants, dict):
            yield from _differing(cast(dict[str, Any], has), cast(dict[str, Any], wants), f"{path}{name}.")
        else:
            yield f"{path}{name}: it has {has!r:.200}, asked for is {wants!r:.200}"
