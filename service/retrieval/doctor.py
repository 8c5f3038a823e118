"""Proof that what is stored is what was written, and that the index holds exactly that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.retrieval.index.ranking import exact_scores
from service.retrieval.records import DoctorReport, SearchOutcome, Vector, ViewsSpec
from service.retrieval.searching import Searcher
from service.retrieval.stopping import NEVER, Stop
from service.retrieval.truth.beside import BesideTable
from service.retrieval.truth.database import rows_of
from service.retrieval.truth.log import Log
from service.retrieval.truth.rows import RowTable, row_checksum, vector_checksum

_BLOCK = 4096
_PICTURES = 256  # read at one time
_SHOWN = 5


def examine(
    log: Log,
    rows: RowTable,
    searcher: Searcher,
    search: Callable[..., list[SearchOutcome]],
    *,
    queries: int,
    recall_at: int,
    views: ViewsSpec | None = None,
    stop: Stop = NEVER,
) -> DoctorReport:
    """Compare truth and index block by block; a row that is gone from one of them meanwhile is not looked at.

    views: of rows that hold two vectors: half of the queries are of one view, half of the other, as those of users are.

    Raises:
        Interrupted: `stop` was due.
    """
    problems: list[str] = []
    bad: list[str] = []
    differing = 0
    seen = 0
    last = 0
    exact = searcher.state().kind == "flat"
    before = searcher.state().sequence
    picker = np.random.default_rng(0)
    sample: list[Vector] = []
    while True:
        rids, vectors, damaged, last_seen = _block(log, rows, last, stop)
        bad += damaged
        if last_seen is None:
            break
        last = last_seen
        seen += len(rids)
        differing += searcher.differing(rids, vectors)
        sample += [vectors[place] for place in picker.permutation(len(vectors))[:queries]]
    with log.read(stop) as db:
        counted = len(rows.all_rids(db))
        noted = rows.counters(db).rows
    state = searcher.state()
    for table in rows.beside():
        problems += _problems_beside(log, rows, table, stop)
    if bad:
        problems.append(f"{len(bad)} rows are not what was written; delete them or restore a snapshot")
    if counted != noted:
        problems.append(f"{counted} rows are there, {noted} should be")
    if not searcher.holds_exactly():
        problems.append("the index does not hold exactly the rows that are stored; compact rebuilds it")
    if differing:
        problems.append(f"{differing} vectors of the index are not those stored; compact rebuilds it")
    recall, sampled = None, 0
    if sample and not problems:
        chosen = np.stack(sample)[picker.permutation(len(sample))[:queries]]
        if views is not None:
            chosen[::2, views.place("intra")] = 0
            chosen[1::2, views.place("cross")] = 0
        recall, sampled = _recall(log, rows, search, chosen, recall_at, stop), len(chosen)
        if exact and recall < 1 and searcher.state().sequence == before:
            problems.append(f"an exact index found only {recall:.4f} of the true neighbours")
    return DoctorReport(
        rows=counted,
        indexed=state.live,
        bad_rows=tuple(bad),
        differing_slots=differing,
        recall=recall,
        recall_at=recall_at,
        sampled=sampled,
        problems=tuple(problems),
    )


def _block(log: Log, rows: RowTable, after: int, stop: Stop) -> tuple[NDArray[np.int64], Vector, list[str], int | None]:
    """The next rows: numbers and vectors of the sound ones, names of the damaged ones, the last number looked at."""
    number = rows.number
    sound: list[int] = []
    vectors: list[bytes] = []
    bad: list[str] = []
    last: int | None = None
    statement = (
        f"SELECT i.rid, i.id, i.sequence, i.checksum, m.document, v.checksum, v.vector FROM items_{number} AS i"
        f" LEFT JOIN metadata_{number} AS m ON m.rid = i.rid LEFT JOIN vectors_{number} AS v ON v.rid = i.rid"
        " WHERE i.rid > ? ORDER BY i.rid LIMIT ?"
    )
    with log.read(stop) as db:
        for rid, id, sequence, checksum, document, vector_sum, vector in rows_of(db, statement, (after, _BLOCK)):
            last = rid
            if (
                isinstance(document, str)
                and isinstance(vector, bytes)
                and len(vector) == 4 * rows.dim
                and vector_checksum(rid, vector) == vector_sum
                and row_checksum(rid, id, sequence, vector_sum, document) == checksum
            ):
                sound.append(rid)
                vectors.append(vector)
            else:
                bad.append(id if isinstance(id, str) else f"row {rid}")
    joined = np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), rows.dim).astype(np.float32, copy=False)
    return np.array(sound, dtype=np.int64), joined, bad, last


def _problems_beside(log: Log, rows: RowTable, table: BesideTable, stop: Stop) -> list[str]:
    """What is wrong with what is kept beside the rows, in sentences. It is read in blocks, so number and bytes are held
    against the totals only where nothing was written meanwhile."""
    problems: list[str] = []
    bad: list[int] = []
    last = 0
    with log.read(stop) as db:
        before = rows.counters(db).sequence
    counted = size = 0
    while True:
        with log.read(stop) as db:
            found = list(table.examined_after(db, last, limit=_PICTURES))
        if not found:
            break
        last = found[-1][0]
        counted, size = counted + len(found), size + sum(length for _, length, _ in found)
        bad += [rid for rid, _, is_sound in found if not is_sound]
    with log.read(stop) as db:
        ids = sorted(rows.ids_of(db, np.array(bad, np.int64)).values())
        totals, after = table.totals(db), rows.counters(db).sequence
    if ids:
        shown = ", ".join(map(repr, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
        problems.append(f"{len(ids)} {table.kind.many} are not what was written; store these items again: {shown}")
    if before == after and (counted, size) != (totals.count, totals.bytes):
        problems.append(
            f"{counted} {table.kind.many} of {size} bytes are there, {totals.count} of {totals.bytes} bytes should be"
        )
    return problems


def _recall(
    log: Log, rows: RowTable, search: Callable[..., list[SearchOutcome]], queries: Vector, recall_at: int, stop: Stop
) -> float:
    """Share of the scores of the true best rows that the search reaches, by one pass of brute force over the truth.

    By scores, not ids: which of several equal vectors are found is not a matter of recall.
    """
    best = np.full((len(queries), recall_at), -np.inf, np.float32)
    last = 0
    found = search(queries, top_k=recall_at, with_metadata=False)
    while True:
        with log.read(stop) as db:
            rids, vectors = rows.block_after(db, last, limit=_BLOCK)
        if not len(rids):
            break
        last = int(rids[-1])
        for place, query in enumerate(queries):
            rough = vectors @ query
            top = np.argsort(-rough)[: 2 * recall_at]
            both = np.concatenate([best[place], exact_scores(query, vectors[top])])
            best[place] = -np.sort(-both)[:recall_at]
    shares: list[float] = []
    for place, result in enumerate(found):
        wanted = best[place][np.isfinite(best[place])]
        scores = np.array([hit.score for hit in result.hits], dtype=np.float32)
        reached = int((scores >= wanted[-1]).sum()) if len(wanted) else 0
        shares.append(min(1.0, reached / len(wanted)) if len(wanted) else 1.0)
    return float(np.mean(shares))
