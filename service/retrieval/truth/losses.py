"""Acknowledged changes that were not there at a start: kept in the database, and said until acknowledged."""

from __future__ import annotations

import time

import apsw

from service.retrieval.records import Loss, LossKind
from service.retrieval.truth.database import run
from service.retrieval.truth.tables import Counters, Tables
from service.retrieval.truth.witness import AcknowledgedState, State

LOSSES = "losses"
_CAUSE = "the write-ahead log was cut, damaged or removed, or older files were put in place"
_UNCERTAIN_CAUSE = "collections.witness or the write-ahead log was cut, damaged or removed"


def seen_of(tables: Tables, counters: Counters, *, state: State = "live") -> AcknowledgedState:
    """What the witness shall know of a collection."""
    return AcknowledgedState(tables.epoch, tables.name, counters.sequence, counters.rows, state)


def loss_of(seen: AcknowledgedState, now: Counters | None) -> Loss | None:
    """What the witness knows and the database does not; None where they agree. now: None if it is not there."""
    if now is None:
        return _loss(seen, "collection", found=0, items=0) if seen.state == "live" else None
    if seen.state == "dropped":
        return _loss(seen, "deletion", found=now.sequence, items=now.rows)
    if now.sequence < seen.sequence:
        return _loss(seen, "changes", found=now.sequence, items=now.rows)
    return None


def uncertain(name: str, now: Counters) -> Loss:
    """No sequence is behind, but the log was damaged while it was being moved, or the witness does not say enough."""
    return _loss(AcknowledgedState("", name, now.sequence, now.rows), "uncertain", found=now.sequence, items=now.rows)


def sentence(loss: Loss) -> str:
    """One line for people, with what to do about it."""
    name, changes = loss.collection, loss.reached - loss.found
    before = "" if loss.items_before is None else f" with {loss.items_before} items"
    cause = _CAUSE
    match loss.kind:
        case "collection":
            what = f"collection {name} is gone{before} after {changes} acknowledged changes"
        case "deletion":
            what = (
                f"collection {name} is here again, with {loss.items_after} items, though its deletion was acknowledged"
            )
        case "uncertain":
            what = f"collection {name} may have lost acknowledged changes; the rows that it has are sound"
            cause = _UNCERTAIN_CAUSE
        case _:
            what = (
                f"collection {name} lost {changes} acknowledged changes: it is at change {loss.found} with"
                f" {loss.items_after} items, and had reached {loss.reached}{before}"
            )
    return f"{what} ({cause}). Restore a snapshot or store the items again, then acknowledge the loss"


def create_losses(db: apsw.Connection) -> bool:
    """Make the table unless it is there; whether it was, which is so in every folder that has had a witness."""
    if run(db, "SELECT 1 FROM sqlite_schema WHERE name = 'losses'"):
        return True
    run(
        db,
        "CREATE TABLE losses (epoch TEXT PRIMARY KEY, collection TEXT NOT NULL, kind TEXT NOT NULL,"
        " reached INTEGER NOT NULL, found INTEGER NOT NULL, items_before INTEGER,"
        " items_after INTEGER NOT NULL, noticed_at INTEGER NOT NULL) WITHOUT ROWID",
    )
    return False


def read_losses(db: apsw.Connection) -> dict[str, Loss]:
    """By the epoch that the collection had before."""
    statement = (
        "SELECT epoch, collection, kind, reached, found, items_before, items_after, noticed_at"
        " FROM losses ORDER BY noticed_at, collection"
    )
    return {epoch: Loss(*values) for epoch, *values in run(db, statement)}


def insert_loss(db: apsw.Connection, epoch: str, loss: Loss) -> None:
    run(
        db,
        "INSERT OR REPLACE INTO losses VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            epoch,
            loss.collection,
            loss.kind,
            loss.reached,
            loss.found,
            loss.items_before,
            loss.items_after,
            loss.noticed_at,
        ),
    )


def rename_losses(db: apsw.Connection, name: str, new: str) -> None:
    run(db, "UPDATE losses SET collection = ? WHERE collection = ?", (new, name))


def delete_losses(db: apsw.Connection, name: str) -> None:
    run(db, "DELETE FROM losses WHERE collection = ?", (name,))


def _loss(seen: AcknowledgedState, kind: LossKind, *, found: int, items: int) -> Loss:
    return Loss(seen.name, kind, seen.sequence, found, seen.items, items, int(time.time()))
