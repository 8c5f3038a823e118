"""What is searched: an index, its slots, and how far into the truth they reach."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.retrieval.errors import StoreCorrupt
from service.retrieval.index import VectorIndex, sample_size
from service.retrieval.log import Log
from service.retrieval.records import BuiltKind, IndexSpec, RetrievalSettings, Vector
from service.retrieval.rows import Change, Rows
from service.retrieval.slots import Slots
from service.retrieval.tables import Counters

_BLOCK_ROWS = 8192


class LiveIndex:
    """The live rows at `counters.sequence`, by slot. The collection's lock guards it.

    trained_rows: rows there were at training, so that an index that has outgrown its sample can be trained anew.
    """

    def __init__(self, index: VectorIndex, slots: Slots, counters: Counters, *, trained_rows: int) -> None:
        self.index = index
        self.slots = slots
        self.counters = counters
        self.trained_rows = trained_rows

    def apply(self, change: Change) -> None:
        self.slots.kill(change.removed)
        self.append(change.added, change.vectors)
        self.counters = change.counters

    def append(self, rids: NDArray[np.int64], vectors: Vector) -> None:
        self.index.add(vectors)
        self.slots.append(rids)

    @property
    def nbytes(self) -> int:
        return self.index.nbytes + self.slots.nbytes


def wanted_kind(spec: IndexSpec, rows: int, settings: RetrievalSettings, *, now: BuiltKind | None = None) -> BuiltKind:
    """The kind for that many rows; `auto` steps back only when far below a threshold, so it does not flutter."""
    if spec.kind != "auto":
        return spec.kind if rows >= settings.train_min_rows else "flat"
    if rows > settings.sq8_max_rows or (now == "ivf_sq8" and rows > settings.sq8_max_rows // 2):
        return "ivf_sq8"
    if rows > settings.flat_max_rows or (now in ("sq8", "ivf_sq8") and rows > settings.flat_max_rows // 2):
        return "sq8"
    return "flat"


def build(log: Log, rows: Rows, spec: IndexSpec, settings: RetrievalSettings, *, now: BuiltKind | None) -> LiveIndex:
    """A fresh index from the truth, trained on a random sample of it.

    It holds the rows of some moments between start and end of this call, so the caller catches up (`catch_up`).

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
    index = VectorIndex.train(kind, sample, dim=rows.dim, rows=len(rids), nprobe=spec.nprobe, threads=settings.threads)
    live = LiveIndex(index, Slots(), Counters(counters.sequence, 0, 0), trained_rows=len(rids))
    catch_up(log, rows, live)
    return live


def catch_up(log: Log, rows: Rows, live: LiveIndex, *, alive: NDArray[np.int64] | None = None) -> None:
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
                f"{log.path} counts {now.rows} rows, but has {len(alive)} items and {live.slots.live} of their vectors"
            )
        live.counters = now
        return
