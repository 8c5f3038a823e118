"""Opens a data folder and compares its database with its witness, to find lost changes."""

from __future__ import annotations

import logging
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import apsw

from service.retrieval.errors import StoreCorrupt
from service.retrieval.records import Loss
from service.retrieval.truth import aliases, witness
from service.retrieval.truth.database import DATABASE, run
from service.retrieval.truth.log import Log
from service.retrieval.truth.losses import LOSSES, create_losses, loss_of, read_losses, seen_of, uncertain
from service.retrieval.truth.positions import POSITIONS
from service.retrieval.truth.tables import (
    NOTHING,
    Tables,
    create_list,
    drop_unready,
    ensure_indexes,
    read_counters,
    read_list,
)
from service.retrieval.truth.thumbnails import THUMBNAILS
from service.retrieval.truth.witness import AcknowledgedState, Testimony

log = logging.getLogger("clipworks.retrieval")
INDEXES = "indexes"


@dataclass(frozen=True)
class Folder:
    """aliases: collections by number. losses: found now, by epoch. known_losses: found before, and not acknowledged."""

    tables: list[Tables]
    aliases: Mapping[str, int]
    losses: Mapping[str, Loss]
    known_losses: Mapping[str, Loss]
    warnings: tuple[str, ...]


def refuse_special_files(folder: Path) -> None:
    """A pipe, a device or a folder in the place of a file would hold up a read of it without end, or fail somewhere.

    Raises:
        StoreCorrupt: it names the file.
    """
    names = [DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", witness.NAME, witness.NOTE]
    for path in [*(folder / name for name in names), *sorted((folder / INDEXES).iterdir())]:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise StoreCorrupt(
                f"{path.relative_to(folder)} is no plain file, and one was expected: move it away, put the file back"
            )


def refuse_lost_database(folder: Path, known: Testimony | None) -> None:
    """A database that is missing or empty, while files beside it say that there were collections, is no new store.

    Raises:
        StoreCorrupt
    """
    path = folder / DATABASE
    log_file = path.with_name(f"{path.name}-wal")
    if path.exists() and path.stat().st_size:
        return
    beside = [each.name for each in (log_file, folder / witness.NOTE) if each.exists() and each.stat().st_size]
    beside += [witness.NAME] if known and (known.seen or known.problem) else []
    beside += [f"{INDEXES}/{each.name}" for each in sorted((folder / INDEXES).iterdir())]
    if beside:
        raise StoreCorrupt(
            f"{path.name} is {'empty' if path.exists() else 'missing'}, but {', '.join(beside[:5])} beside it say that"
            " there were collections: put it back, or use another folder"
        )


def unexplained_start(folder: Path) -> tuple[str, ...]:
    """A warning about a folder that was used before and has no database, where nothing else says that there was one."""
    if (folder / DATABASE).exists():
        return ()
    return (
        f"the data folder was used before, and has no {DATABASE}: it starts empty. If you did not empty it, stop the"
        f" server and put all {Path(DATABASE).stem}.* files back",
    )


def first_seen(source: Log, testimony: Testimony) -> list[AcknowledgedState]:
    """What a new witness says before the folder is read.

    In a folder of before there was a witness that is that nothing is known of its collections. In any other one it is
    nothing: that a collection has no record is then said also after a kill.
    """
    with source.read() as db:
        there = {name for (name,) in run(db, "SELECT name FROM sqlite_schema")}
        listed = read_list(db) if "collections" in there and LOSSES not in there else []
    unknown = [seen_of(each, NOTHING, state="changing") for each in listed if each.epoch not in testimony.seen]
    return [*testimony.seen.values(), *unknown]


def read_folder(source: Log, testimony: Testimony, *, is_new: bool, is_damaged: bool) -> Folder:
    """Read the list of collections, and find what is missing of it.

    is_new: there is no witness. is_damaged: the write-ahead log ends before the place that the witness saw.

    Raises:
        StoreCorrupt: the database does not hold together without the end of its log.
    """

    def list_all(db: apsw.Connection) -> tuple[bool, dict[str, Loss], list[Tables], Mapping[str, int]]:
        create_list(db)
        had_witness = create_losses(db)
        aliases.create_table(db)
        THUMBNAILS.create_totals(db)
        POSITIONS.create_totals(db)
        drop_unready(db)
        listed = read_list(db)
        for each in listed:
            ensure_indexes(db, each.number, each.spec)
        return had_witness, read_losses(db), listed, aliases.read_all(db)

    had_witness, known_losses, tables, named = source.write(list_all)
    with source.read() as db:
        counters = {each.epoch: read_counters(db, each.number) or NOTHING for each in tables}
    names = {each.epoch: each.name for each in tables}
    problem = testimony.problem
    if is_new and had_witness:
        problem = f"{witness.NAME} is missing: changes that were lost would have gone unnoticed"
    said = {loss.collection for loss in known_losses.values()}
    losses: dict[str, Loss] = {
        each.epoch: uncertain(each.name, counters[each.epoch])
        for each in tables
        if had_witness and (problem or each.epoch not in testimony.seen) and each.name not in said
    }
    for epoch, seen in testimony.seen.items():
        loss = loss_of(replace(seen, name=names.get(epoch, seen.name)), counters.get(epoch))
        if loss is not None and epoch not in known_losses:
            losses[epoch] = loss
    if losses or is_damaged:
        _require_integrity(source)
    if is_damaged and not losses:
        losses = {each.epoch: uncertain(each.name, counters[each.epoch]) for each in tables}
    return Folder(tables, named, losses, known_losses, (problem,) if problem else ())


def _require_integrity(source: Log) -> None:
    """What had been moved out of a log that lacks its end must not be mixed with what is left of it."""
    with source.read() as db:
        found = run(db, "PRAGMA integrity_check(1)")
    if found != [("ok",)]:
        log.error("%s: %s", source.path, found)
        raise StoreCorrupt(
            f"{source.path.name} does not hold together, and its write-ahead log was cut, damaged or removed: restore"
            " snapshots into a new folder"
        )
