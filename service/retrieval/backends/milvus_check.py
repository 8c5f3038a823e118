"""The doctor of a collection in Milvus: every row read back, and searches against brute force."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from service.retrieval.backends.milvus_rows import id_of, is_sound, vector_of
from service.retrieval.index.ranking import exact_scores
from service.retrieval.records import DoctorReport, SearchOutcome, Vector

Block = list[dict[str, Any]]


def examine(
    blocks: Callable[[], Iterable[Block]],
    *,
    count: Callable[[], int],
    search: Callable[..., list[SearchOutcome]],
    exact: bool,
    queries: int,
    recall_at: int,
) -> DoctorReport:
    """Two passes over all rows: checksums and a sample, then the true neighbours of the sample."""
    bad: list[str] = []
    sample: list[Vector] = []
    picker = np.random.default_rng(0)
    before, seen = count(), 0
    for block in blocks():
        sound: Block = [row for row in block if is_sound(row)]
        bad += [id_of(row["key"]) for row in block if not is_sound(row)]
        seen += len(block)
        sample += [vector_of(sound[int(place)]) for place in picker.permutation(len(sound))[:queries]]
    after = count()
    problems: list[str] = []
    if bad:
        problems.append(f"{len(bad)} rows are not what was written; delete them or import an export")
    if before == after != seen:  # else somebody wrote meanwhile
        problems.append(f"{seen} rows can be read, Milvus counts {after}")
    recall, sampled = None, 0
    if sample and not problems:
        chosen = np.stack(sample)[picker.permutation(len(sample))[:queries]]
        found = search(chosen, top_k=recall_at, with_metadata=False)
        recall, sampled = _recall(chosen, found, blocks(), recall_at), len(chosen)
        if exact and recall < 1 and before == count():
            problems.append(f"an exact index found only {recall:.4f} of the true neighbours")
    return DoctorReport(
        rows=seen,
        indexed=after,
        bad_rows=tuple(bad),
        differing_slots=0,
        recall=recall,
        recall_at=recall_at,
        sampled=sampled,
        problems=tuple(problems),
    )


def _recall(queries: Vector, found: list[SearchOutcome], blocks: Iterable[Block], recall_at: int) -> float:
    """Mean share of the true best scores that the searches reach."""
    best = np.full((len(queries), recall_at), -np.inf, np.float32)
    for block in blocks:
        vectors = np.stack([vector_of(row) for row in block])
        for place, query in enumerate(queries):
            both = np.concatenate([best[place], exact_scores(query, vectors)])
            best[place] = -np.sort(-both)[:recall_at]
    shares: list[float] = []
    for place, result in enumerate(found):
        wanted = best[place][np.isfinite(best[place])]
        reached = sum(hit.score >= wanted[-1] for hit in result.hits)
        shares.append(min(1.0, reached / len(wanted)))
    return float(np.mean(shares))
