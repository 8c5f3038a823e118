"""Searching one collection while others write it, without ever showing a state that no moment had."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.retrieval.answering import AnswerShape, Candidates, RowVanished, answer, rescore
from service.retrieval.errors import ScanNeeded, StorageFailed
from service.retrieval.index.faiss_index import VectorIndex
from service.retrieval.index.live import Frozen, LiveIndex
from service.retrieval.index.masks import Looked, MaskCache, SlotMask, extended
from service.retrieval.index.ranking import Ranked, rank_flat, rough_candidates
from service.retrieval.index.rwlock import ReadWriteLock
from service.retrieval.index.slots import Bits, count_bits, slots_in
from service.retrieval.records import BuiltKind, IndexSpec, RetrievalSettings, SearchOutcome, Vector
from service.retrieval.stopping import NEVER, Stop
from service.retrieval.truth.database import rows_of, run
from service.retrieval.truth.filters import Condition
from service.retrieval.truth.log import Log
from service.retrieval.truth.rows import Change, RowTable
from service.retrieval.truth.tables import Counters

# Below this many allowed rows comparing with each of them is exact, and no slower than any index.
EXACT_ROWS = 10_000
# Rows x queries of one hold of the lock: a long batch must not keep a write waiting for seconds.
_WORK = 32_000_000
# Candidates whose vectors and ids are in memory at one time.
_CANDIDATES = 100_000
_ATTEMPTS = 3
# Rows x conditions that a search itself looks at for a filter, while the gate keeps writes out: rows that came since
# somebody looked at all of them. At worst, with metadata of 64 KiB, some tenths of a second.
_FEW = 512
_SCANS = 3
# Fields of one filter that are looked for, to say that no row has them.
_LOOKED_FOR = 8
_SAME = 1e-5
_LEAST_COSINE = 0.95


@dataclass(frozen=True)
class IndexQuery:
    """A validated batch. excluded: ids that each query must not return.

    may_scan: False refuses a filter that has to look at many rows first.
    """

    vectors: Vector
    condition: Condition | None
    excluded: Sequence[frozenset[str]]
    shown: AnswerShape
    may_scan: bool = True
    stop: Stop = NEVER


@dataclass(frozen=True)
class State:
    """Numbers of one moment."""

    kind: BuiltKind
    live: int
    dead: int
    sequence: int
    nbytes: int
    trained_rows: int
    broken: bool
    damaged: bool
    vectors_file: str | None


class Searcher:
    """The index of one collection, and the only place that touches it.

    A filter becomes a bitmap over slots once, which is kept; later only rows that came since are looked at.

    `_lock` guards the index itself: searches share it, `apply` and `replace` take it alone.
    The gate (the log's writer holds it from before COMMIT until `apply` is done) makes database and index one moment;
    it is taken before `_lock`, never while waiting for a reading connection of the log is certain to need a writer.
    The mask cache is touched only under the gate. Whoever holds a reading connection waits for neither.

    A search reads the index first and the rows after, and rows may change between. Rows never change their content, so
    the only thing that can go wrong is that one is gone; then it looks again, the last time with the gate held.
    """

    def __init__(
        self,
        log: Log,
        rows: RowTable,
        spec: IndexSpec,
        settings: RetrievalSettings,
        *,
        gate: threading.Lock,
        live: LiveIndex,
    ) -> None:
        self._log = log
        self._rows = rows
        self._spec = spec
        self._gate = gate
        self._lock = ReadWriteLock()
        self._live = live
        self._masks = MaskCache(settings.bitmap_cache_bytes)
        self._broken = False
        self._damaged = False

    def state(self) -> State:
        with self._lock.read():
            live = self._live
            return State(
                live.index.kind,
                live.slots.live,
                live.slots.dead,
                live.counters.sequence,
                live.nbytes,
                live.trained_rows,
                self._broken,
                self._damaged,
                live.mapped.path.name if live.mapped else None,
            )

    def counters(self) -> Counters:
        """How far into the truth it reaches."""
        with self._lock.read():
            return self._live.counters

    @property
    def index(self) -> VectorIndex:
        """For comparisons while nobody writes."""
        return self._live.index

    def apply(self, change: Change) -> None:
        """Show a committed change. The caller (the log's writer) holds the gate."""
        with self._lock.write():
            if self._broken:
                return  # the rebuild that is due reads it from the truth
            try:
                self._live.apply(change)
            except BaseException:
                self._broken = True
                raise

    def replace(self, live: LiveIndex) -> None:
        """Swap in a rebuilt index of the present moment. The caller holds the gate."""
        with self._lock.write():
            before, self._live = self._live, live
            self._broken = self._damaged = False
        before.discard()
        self._masks.clear()

    def discard(self) -> None:
        """Delete what lies on disk for the index: its collection is dropped."""
        with self._lock.write():
            self._live.discard()

    def live_rids(self) -> NDArray[np.int64]:
        """Row numbers of live slots. The caller holds the gate."""
        with self._lock.read():
            return self._live.slots.rids[self._live.slots.live_slots()]

    def holds_exactly(self) -> bool:
        """Whether index and database hold the same rows at one moment."""
        with self._gate:
            with self._log.read() as db:
                truth = self._rows.all_rids(db)
            return np.array_equal(truth, self.live_rids())

    def differing(self, rids: NDArray[np.int64], vectors: Vector) -> int:
        """How many of these rows, as the truth has them, lie in a live slot that holds another vector."""
        with self._gate, self._lock.write():
            slots = self._live.slots.slots_of(rids)
            slots = slots[self._live.slots.is_live(slots)]
            decoded = self._live.index.decoded(slots)
            truth = vectors[np.searchsorted(rids, self._live.slots.rids[slots])]
            expected = self._live.index.rounded(truth)
            exact = self._live.index.kind == "flat"
            mapped = self._live.mapped
        if mapped:
            beside, good = mapped.rows(slots)
            if not good.all() or not np.array_equal(beside, truth):
                return int((~good | (beside != truth).any(axis=1)).sum())
        if exact:
            return int((expected != decoded).any(axis=1).sum())
        near = np.abs(expected - decoded).max(axis=1, initial=0.0) <= _SAME
        # Of two centroids equally near either may have been taken; the vector is then another one, but not far off.
        norms = np.linalg.norm(decoded, axis=1) * np.linalg.norm(truth, axis=1)
        cosine = np.einsum("nd,nd->n", truth, decoded) / np.maximum(norms, 1e-12)
        return int((~near & (cosine < _LEAST_COSINE)).sum())

    def freeze(self) -> Frozen:
        """A copy of the present index for a snapshot; writes wait while it is made."""
        with self._lock.read():
            live = self._live
            return Frozen(
                live.index.kind,
                live.counters,
                live.trained_rows,
                live.slots.rids.copy(),
                live.index.to_bytes() if live.slots.count else np.zeros(0, np.uint8),
                live.mapped,
            )

    def search(self, query: IndexQuery) -> list[SearchOutcome]:
        count = self._live.slots.count  # of some moment, which is enough to choose the size of a step
        rows = self._spec.oversample * (query.shown.hits + max(map(len, query.excluded), default=0))
        step = max(1, min(_WORK // max(1, count), _CANDIDATES // rows))
        if step >= len(query.vectors):
            return self._search_some(query, slice(None))
        found: list[SearchOutcome] = []
        for start in range(0, len(query.vectors), step):
            query.stop.check()
            found += self._search_some(query, slice(start, start + step))
        return found

    def _search_some(self, query: IndexQuery, part: slice) -> list[SearchOutcome]:
        # Without the gate first: a search must not wait for a commit's fsync. Only one that keeps meeting rows that go
        # away waits for the gate, under which none can.
        for _ in range(_ATTEMPTS):
            try:
                return self._attempt(query, part, gated=False)
            except RowVanished:
                with self._gate:
                    pass  # by then the index knows what the database knew
        with self._gate:
            try:
                return self._attempt(query, part, gated=True)
            except RowVanished:
                self._broken = True  # nothing changed meanwhile, so the index is wrong; upkeep rebuilds it
                raise StorageFailed(
                    "the index holds rows that the database does not have; it is being rebuilt"
                ) from None

    def _attempt(self, query: IndexQuery, part: slice, *, gated: bool) -> list[SearchOutcome]:
        vectors, excluded = query.vectors[part], query.excluded[part]
        wanted = [query.shown.hits + len(ids) for ids in excluded]
        with self.entered(query, gated=gated) as (_, allowed):
            exact, found = self._rank(vectors, wanted, allowed)
        # The lock is free before a reading connection is asked for: whoever waits for one of those holds up no write.
        with self._log.read(query.stop) as db:
            if isinstance(found, Candidates):
                found = rescore(db, self._rows, vectors, wanted, found, damaged=self.note_damage)
            return answer(db, self._rows, found, excluded, query.shown, exact=exact)

    def note_damage(self) -> None:
        """The mapped file is not what was written: the index is due to be rebuilt."""
        self._damaged = True

    def reading(self) -> AbstractContextManager[None]:
        """Keeps the index from growing; to be held for the copy of some vectors, not longer."""
        return self._lock.read()

    @contextmanager
    def entered(self, query: IndexQuery, *, gated: bool) -> Generator[tuple[LiveIndex, Bits | None]]:
        """The index of one moment, and the live slots that the query's filter leaves (None: all): locked for reading.

        gated: the caller holds the gate.

        Raises:
            ScanNeeded: the filter has to look at many rows first, and the query may not.
        """
        allowed = self._enter(query, gated=gated)
        try:
            yield self._live, allowed
        finally:
            self._lock.release_read()

    def scan(self, condition: Condition, stop: Stop) -> None:
        """Look at the rows for a filter and remember what was found, so that searches need look at few.

        Raises:
            Interrupted
        """
        for _ in range(_SCANS):
            with self._gate:
                mask, missing = self._remembered(condition)
                if missing * condition.conditions <= _FEW:
                    return
            looked = self._extend(condition, mask, stop)  # may take long: nobody waits for it
            with self._gate:
                if mask is None or mask.generation == self._masks.generation:  # else its slots are no more
                    self._remember(condition, mask, looked)

    def select(self, condition: Condition, stop: Stop) -> Looked:
        """Row numbers that match, as of one moment."""
        first = self._look(condition, stop)
        since = self._look(condition, stop, after=first.last_rid)  # what came during a long look
        return Looked(np.concatenate([first.rids, since.rids]), since.last_rid, ())

    def unknown_fields(self, condition: Condition) -> tuple[str, ...]:
        """Fields of a filter that was searched by lately, and that no row has."""
        mask = self._masks.peek(condition.key) if condition.undeclared else None
        return mask.unknown if mask and self._live.slots.live else ()

    def _enter(self, query: IndexQuery, *, gated: bool) -> Bits | None:
        """Take the lock for reading, with the live slots that the filter leaves; None without a filter.

        Raises:
            ScanNeeded: it would have to look at many rows, and may not.
        """
        condition = query.condition
        if condition is None:
            self._lock.acquire_read()
            self._refuse_broken()
            return None
        if query.may_scan and not gated:
            self.scan(condition, query.stop)
        # From the mask to the lock under one gate: no row may come between what the mask knows and what is searched.
        with nullcontext() if gated else self._gate:
            mask, missing = self._remembered(condition)
            if missing * condition.conditions > _FEW and not query.may_scan:
                raise ScanNeeded("the filter has to look at many rows first")
            if missing or mask is None:
                mask = self._remember(condition, mask, self._extend(condition, mask, query.stop))
            return self._enter_with(mask)

    def _remembered(self, condition: Condition) -> tuple[SlotMask | None, int]:
        """What is known of a filter, and how many rows came since. The caller holds the gate."""
        mask = self._masks.get(condition.key)
        with self._lock.read():
            last_rid = self._live.counters.last_rid
        return mask, last_rid - (mask.last_rid if mask else 0)

    def _remember(self, condition: Condition, mask: SlotMask | None, looked: Looked) -> SlotMask:
        """Extend a mask by what was found since. The caller holds the gate."""
        with self._lock.read():
            fresh = extended(mask, self._live.slots, looked, generation=self._masks.generation)
        self._masks.put(condition.key, fresh)
        return fresh

    def _enter_with(self, mask: SlotMask) -> Bits:
        """With the gate held: no row can come or go before the lock is taken."""
        self._lock.acquire_read()
        self._refuse_broken()
        bits = self._live.slots.bits
        allowed = np.zeros_like(bits)
        np.bitwise_and(bits[: len(mask.bits)], mask.bits[: len(bits)], out=allowed[: len(mask.bits)])
        return allowed

    def _refuse_broken(self) -> None:
        if self._broken:
            self._lock.release_read()
            raise StorageFailed("the index is being rebuilt after a failure; try again soon")

    def _extend(self, condition: Condition, mask: SlotMask | None, stop: Stop) -> Looked:
        if mask:
            return self._look(condition, stop, after=mask.last_rid, missed=mask.unknown)
        return self._look(condition, stop, missed=tuple(condition.undeclared)[:_LOOKED_FOR])

    def _look(self, condition: Condition, stop: Stop, *, after: int = 0, missed: Sequence[str] = ()) -> Looked:
        """Rows above a number that match. missed: fields that no row up to there has."""
        table = f"metadata_{self._rows.number}"
        above = f" AND rid > {after}" if after else ""
        with self._log.read(stop) as db:
            rows = rows_of(db, f"SELECT rid FROM {table} WHERE ({condition.sql}){above}", condition.values)
            rids = np.sort(np.fromiter((rid for (rid,) in rows), np.int64))
            unknown = tuple(
                field
                for field in missed
                if not run(db, f"SELECT 1 FROM {table} WHERE {condition.undeclared[field]}{above} LIMIT 1")
            )
            return Looked(rids, self._rows.counters(db).last_rid, unknown)

    def _rank(self, vectors: Vector, wanted: list[int], allowed: Bits | None) -> tuple[bool, list[Ranked] | Candidates]:
        """Under the lock: whether the answer is exact, and the ranking or the rows that it has to be made of."""
        live = self._live
        index, slots = live.index, live.slots
        count = slots.live if allowed is None else count_bits(allowed)
        rough_rows = 0 if index.kind == "flat" else self._spec.oversample * max(wanted)
        if count <= max(rough_rows, EXACT_ROWS if allowed is not None else 0):
            chosen = slots_in(slots.bits if allowed is None else allowed)
            held = index.vectors_at(chosen) if index.kind == "flat" else None
            return True, Candidates([slots.rids[chosen]], [chosen], True, vectors=held, mapped=live.mapped)
        if index.kind == "flat":
            return True, rank_flat(index, slots, vectors, wanted, allowed)
        rough = rough_candidates(index, slots, vectors, max(wanted), allowed, oversample=self._spec.oversample)
        return False, Candidates([slots.rids[one] for one in rough], rough, False, mapped=live.mapped)
