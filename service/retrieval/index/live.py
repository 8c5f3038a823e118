"""The index that is searched now: its slots, and the sequence number up to which it holds the database's rows."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.retrieval.errors import StoreCorrupt
from service.retrieval.index.faiss_index import VectorIndex, sample_size
from service.retrieval.index.mapped import MappedVectors
from service.retrieval.index.slots import Slots
from service.retrieval.records import BuiltKind, IndexSpec, RetrievalSettings, Vector
from service.retrieval.truth.log import Log
from service.retrieval.truth.rows import Change, RowTable
from service.retrieval.truth.tables import Counters

notes = logging.getLogger("clipworks.retrieval")
_BLOCK_ROWS = 8192
MAPPED_END = ".vectors"


@dataclass(frozen=True)
class Frozen:
    """An index as bytes: rids by slot, dead slots included, what FAISS writes of itself, and the vectors beside it."""

    kind: BuiltKind
    counters: Counters
    trained_rows: int
    rids: NDArray[np.int64]
    index: NDArray[np.uint8]
    mapped: MappedVectors | None


class LiveIndex:
    """The live rows at `counters.sequence`, by slot. The collection's lock guards it.

    trained_rows: rows there were at training, so that an index that has outgrown its sample can be trained anew.
    mapped: float32 vectors by slot beside an index that does not keep them; None makes the truth answer, slower.
    """

    def __init__(
        self,
        index: VectorIndex,
        slots: Slots,
        counters: Counters,
        *,
        trained_rows: int,
        mapped: MappedVectors | None = None,
    ) -> None:
        self.index = index
        self.slots = slots
        self.counters = counters
        self.trained_rows = trained_rows
        self.mapped = mapped

    def apply(self, change: Change) -> None:
        self.slots.kill(change.removed)
        self.append(change.added, change.vectors)
        self.counters = change.counters

    def append(self, rids: NDArray[np.int64], vectors: Vector) -> None:
        if self.mapped:
            try:
                self.mapped.append(vectors)
            except OSError as error:
                # Only a copy, so a full disk is no reason to fail what is already committed.
                notes.warning("%s cannot grow, so vectors are read from the database: %s", self.mapped.path, error)
                self.discard()
        self.index.add(vectors)
        self.slots.append(rids)

    def discard(self) -> None:
        """Delete what lies on disk for this index; searches that have begun with it may end with it."""
        if self.mapped:
            self.mapped.delete()
            self.mapped = None

    @property
    def nbytes(self) -> int:
        return self.index.nbytes + self.slots.nbytes + (self.mapped.nbytes if self.mapped else 0)


def wanted_kind(spec: IndexSpec, rows: int, settings: RetrievalSettings, *, now: BuiltKind | None = None) -> BuiltKind:
    """The kind for that many rows; `auto` steps back only when far below a threshold, so it does not flutter."""
    if spec.kind != "auto":
        return spec.kind if rows >= settings.train_min_rows else "flat"
    if rows > settings.sq8_max_rows or (now == "ivf_sq8" and rows > settings.sq8_max_rows // 2):
        return "ivf_sq8"
    if rows > settings.flat_max_rows or (now in ("sq8", "ivf_sq8") and rows > settings.flat_max_rows // 2):
        return "sq8"
    return "flat"


def build(
    log: Log,
    rows: RowTable,
    spec: IndexSpec,
    settings: RetrievalSettings,
    *,
    folder: Path,
    now: BuiltKind | None,
    stop: Callable[[], bool] = lambda: False,
) -> LiveIndex:
    """A fresh index from the truth, trained on a random sample of it.

    It holds the rows of some moments between start and end of this call, so the caller catches up (`catch_up`).
    folder: for the mapped vectors. stop: asked during long trainings; if it says so, StoreClosed is raised.

    Raises:
        StoreCorrupt: a vector is not what was written.
    """
    with log.read() as db:
        counters = rows.counters(db)
        rids = rows.all_rids(db)
        kind = wanted_kind(spec, len(rids), settings, now=now)
        size = sample_size(kind, len(rids))
        chosen = np.random.default_rng(0).choice(rids, size, replace=False) if size else rids[:0]
        _, sample = rows.vectors_of(db, np.sort(chosen))
    index = VectorIndex.train(
        kind, sample, dim=rows.dim, rows=len(rids), nprobe=spec.nprobe, threads=settings.threads, stop=stop
    )
    del sample
    index.reserve(len(rids))
    mapped = None if kind == "flat" else _new_mapped(folder, rows)
    empty = Counters(counters.sequence, 0, 0)
    live = LiveIndex(index, Slots(), empty, trained_rows=len(rids), mapped=mapped)
    try:
        catch_up(log, rows, live)
    except BaseException:
        live.discard()
        raise
    index.tighten()
    return live


def _new_mapped(folder: Path, rows: RowTable) -> MappedVectors | None:
    path = folder / f"{rows.number}-{uuid.uuid4().hex[:12]}{MAPPED_END}"
    try:
        return MappedVectors(path, rows.dim)
    except OSError as error:
        notes.warning("%s cannot be written, so vectors are read from the database: %s", path, error)
        return None


def catch_up(log: Log, rows: RowTable, live: LiveIndex, *, alive: NDArray[np.int64] | None = None) -> None:
    """Append the rows that a fresh index lacks, and mark those that are gone, until both are of one moment.

    Searches must not see `live` yet. Short transactions, so that the write-ahead log is not pinned meanwhile.
    alive: all live row numbers, where the caller holds the gate and knows them; else they are read.

    Raises:
        StoreCorrupt: a vector is not what was written, or rows are missing.
    """
    while True:
        with log.read() as db:
            rids, vectors = rows.block_after(db, live.counters.last_rid, limit=_BLOCK_ROWS)
            now = rows.counters(db)
            last = len(rids) < _BLOCK_ROWS
            if last and alive is None:
                alive = rows.all_rids(db)
        live.append(rids, vectors)
        if not last or alive is None:
            live.counters = Counters(live.counters.sequence, live.slots.live, int(rids[-1]))
            continue
        held = live.slots.rids[live.slots.live_slots()]
        live.slots.kill(held[~np.isin(held, alive, assume_unique=True)])
        if live.slots.live != now.rows or len(alive) != now.rows:
            raise StoreCorrupt(
                f"{log.path.name} counts {now.rows} rows, but has {len(alive)} items"
                f" and {live.slots.live} of their vectors"
            )
        live.counters = now
        return
