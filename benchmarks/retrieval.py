"""What durability, filters and exact answers cost: search through the store beside raw FAISS, in one interleaved run.

    python benchmarks/retrieval.py --rows 100000 --kinds flat,sq8,ivf_sq8
    python benchmarks/retrieval.py --vectors embeddings.npy --queries text_embeddings.npy

Both sides search the same vectors with an index of the same kind, trained on the same sample, with as many threads.
A ratio is the median over repetitions of the ratio within a repetition, and every second repetition goes backwards.
Recall is the share of the true ten nearest; a speed without it says nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.figures import RESULTS, circumstances, ratio_of_runs, spread, write_record
from service.retrieval import Collection, CollectionSpec, CollectionStore, IndexSpec, Item, RetrievalSettings
from service.retrieval.index import VectorIndex, sample_size

TOP_K = 10
BATCH = 128
UPSERT_ROWS = 1000


def clustered(rows: int, dim: int, *, seed: int, clusters: int = 1000) -> np.ndarray:
    """Unit vectors around random centres of uneven size, as embeddings lie: float32 [rows, dim]."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((clusters, dim)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    weights = rng.pareto(1.5, clusters) + 0.1
    out = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 50_000):
        part = out[start : start + 50_000]
        chosen = rng.choice(clusters, len(part), p=weights / weights.sum())
        part[:] = centres[chosen] + rng.standard_normal((len(part), dim), dtype=np.float32) * np.float32(dim**-0.5)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out


def true_neighbours(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Row numbers [Q, k] of the best inner products, by brute force in blocks."""
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    best_rows = np.zeros((len(queries), k), np.int64)
    for start in range(0, len(vectors), 50_000):
        scores = np.concatenate([best_scores, queries @ vectors[start : start + 50_000].T], axis=1)
        rows = np.concatenate(
            [best_rows, np.tile(np.arange(start, start + scores.shape[1] - k), (len(queries), 1))], axis=1
        )
        order = np.argsort(-scores, axis=1)[:, :k]
        best_scores, best_rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return best_rows


def recall(found: list[set[int]], truth: np.ndarray) -> float:
    return float(np.mean([len(one & set(row.tolist())) / len(row) for one, row in zip(found, truth, strict=True)]))


def rate(work: Callable[[], object], queries: int, *, least_s: float) -> float:
    """Queries a second, over at least that time."""
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < least_s or not calls:
        work()
        calls += 1
    return calls * queries / elapsed


def fill(collection: Collection, vectors: np.ndarray) -> float:
    """Rows a second of upserts in thousands: validated, written, synced, indexed."""
    started = time.perf_counter()
    for start in range(0, len(vectors), UPSERT_ROWS):
        collection.upsert(
            [
                Item(f"r{start + n}", row, {"percent": (start + n) % 100, "plain": (start + n) % 100})
                for n, row in enumerate(vectors[start : start + UPSERT_ROWS])
            ]
        )
    return len(vectors) / (time.perf_counter() - started)


def raw_index(kind: Any, vectors: np.ndarray, *, threads: int) -> VectorIndex:
    """The same kind of index without a store around it."""
    size = sample_size(kind, len(vectors))
    sample = vectors[np.sort(np.random.default_rng(0).choice(len(vectors), size, replace=False))]
    index = VectorIndex.train(kind, sample, dim=vectors.shape[1], rows=len(vectors), nprobe=None, threads=threads)
    index.add(vectors)
    return index


def compare(
    collection: Collection, raw: VectorIndex, queries: np.ndarray, *, repeats: int, least_s: float
) -> dict[str, Any]:
    """Rates of store and raw FAISS in turn, single queries and batches, filters included."""
    turn = iter(range(10**9))

    def one() -> np.ndarray:
        place = next(turn) % len(queries)
        return queries[place : place + 1]

    batch = np.resize(queries, (BATCH, queries.shape[1]))
    indexed, unindexed = {"percent": 7}, {"plain": 7}
    work: dict[str, tuple[Callable[[], object], int]] = {
        "raw 1": (lambda: raw.scan(one(), TOP_K, None), 1),
        "store 1": (lambda: collection.search(one(), top_k=TOP_K), 1),
        f"raw {BATCH}": (lambda: raw.scan(batch, TOP_K, None), BATCH),
        f"store {BATCH}": (lambda: collection.search(batch, top_k=TOP_K), BATCH),
        "filter 1": (lambda: collection.search(one(), top_k=TOP_K, filter=indexed), 1),
        f"filter {BATCH}": (lambda: collection.search(batch, top_k=TOP_K, filter=indexed), BATCH),
    }
    first = {}
    for name, wanted in (("indexed", indexed), ("unindexed", unindexed)):
        started = time.perf_counter()
        collection.search(one(), top_k=TOP_K, filter=wanted)
        first[name] = round(1000 * (time.perf_counter() - started), 2)
    rates: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats):
        for name in list(work)[:: -1 if repeat % 2 else 1]:
            rates[name].append(rate(*work[name], least_s=least_s))
    pairs = [("store 1", "raw 1"), (f"store {BATCH}", f"raw {BATCH}")]
    pairs += [("filter 1", "store 1"), (f"filter {BATCH}", f"store {BATCH}")]
    return {
        "qps": {name: spread(values) for name, values in rates.items()},
        "ratios": {f"{a} / {b}": ratio_of_runs(rates[a], rates[b]) for a, b in pairs},
        "first_filtered_search_ms": first,
    }


def reopen(folder: Path, settings: RetrievalSettings) -> float:
    started = time.perf_counter()
    with CollectionStore.open(folder, settings=settings) as store:
        taken = time.perf_counter() - started
        if store.warnings:
            sys.exit(f"opened with warnings: {store.warnings}")
    return taken


def one_kind(kind: Any, vectors: np.ndarray, queries: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything about one kind of index."""
    settings = RetrievalSettings(threads=arguments.threads)
    folder = Path(tempfile.mkdtemp(prefix="clipworks-bench-", dir=arguments.folder))
    memory = psutil.Process().memory_info
    try:
        with CollectionStore.open(folder, settings=settings) as store:
            spec = CollectionSpec(
                model="bench@1",
                space="bench",
                fingerprints={},
                dim=vectors.shape[1],
                index=IndexSpec(kind=kind),
                metadata_schema={"percent": "number"},
            )
            before = memory().rss
            collection, _ = store.create("bench", spec)
            upserts = fill(collection, vectors)
            started = time.perf_counter()
            collection.compact()
            built = time.perf_counter() - started
            info = collection.describe()
            grown = memory().rss - before
            raw = raw_index(kind, vectors, threads=arguments.threads)
            truth = true_neighbours(vectors, queries, TOP_K)
            found = [{int(hit.id[1:]) for hit in one.hits} for one in collection.search(queries, top_k=TOP_K)]
            raw_found = [set(row.tolist()) for row in raw.scan(queries, TOP_K, None)[1]]
            result = compare(collection, raw, queries, repeats=arguments.repeats, least_s=arguments.seconds)
            count = info.count
        with_snapshot = reopen(folder, settings)
        shutil.rmtree(folder / "indexes")
        without = reopen(folder, settings)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        **result,
        "recall_store": recall(found, truth),
        "recall_raw": recall(raw_found, truth),
        "upserts_per_s": upserts,
        "build_s": built,
        "reopen_s": {"with snapshot": with_snapshot, "without": without},
        "index_bytes_per_vector": info.index_bytes / count,
        "resident_bytes_per_vector": grown / count,
        "disk_bytes_per_vector": info.disk_bytes / count,
    }


def show(results: dict[str, dict[str, Any]]) -> None:
    table = Table(title=f"top {TOP_K}; ratios are medians within repetitions")
    table.add_column("")
    for kind in results:
        table.add_column(kind, justify="right")
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("recall, store", lambda r: f"{r['recall_store']:.4f}"),
        ("recall, raw", lambda r: f"{r['recall_raw']:.4f}"),
    ]
    first = next(iter(results.values()))
    rows += [(f"{name}, queries/s", lambda r, n=name: f"{r['qps'][n]['median']:.1f}") for name in first["qps"]]
    rows += [(name, lambda r, n=name: f"{r['ratios'][n]['median']:.3f}") for name in first["ratios"]]
    rows += [
        ("first filtered search, indexed, ms", lambda r: f"{r['first_filtered_search_ms']['indexed']}"),
        ("first filtered search, unindexed, ms", lambda r: f"{r['first_filtered_search_ms']['unindexed']}"),
        ("upserts/s", lambda r: f"{r['upserts_per_s']:.0f}"),
        ("train and build, s", lambda r: f"{r['build_s']:.2f}"),
        ("reopen with snapshot, s", lambda r: f"{r['reopen_s']['with snapshot']:.2f}"),
        ("reopen without, s", lambda r: f"{r['reopen_s']['without']:.2f}"),
        ("index bytes/vector", lambda r: f"{r['index_bytes_per_vector']:.0f}"),
        ("disk bytes/vector", lambda r: f"{r['disk_bytes_per_vector']:.0f}"),
    ]
    for label, cell in rows:
        table.add_row(label, *(cell(result) for result in results.values()))
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=Path, help=".npy of float32 [Q, D]; default: more vectors of the same kind")
    parser.add_argument("--vectors", type=Path, help=".npy of float32 [N, D] real embeddings instead of synthetic ones")
    parser.add_argument("--kinds", default="flat,sq8,ivf_sq8")
    parser.add_argument("--threads", type=int, default=0, help="of one search, on both sides; 0: one for each core")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of one measurement")
    parser.add_argument("--folder", type=Path, help="where the database is written; default: the temporary folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "retrieval.json")
    arguments = parser.parse_args()
    if arguments.vectors:
        everything = normalised(np.load(arguments.vectors))
        shuffled = np.random.default_rng(0).permutation(len(everything))
        given = normalised(np.load(arguments.queries)) if arguments.queries else everything[shuffled[:BATCH]]
        vectors = everything if arguments.queries else everything[shuffled[BATCH:]]
        queries = given[:1000]
    else:
        vectors = clustered(arguments.rows, arguments.dim, seed=1)
        queries = clustered(BATCH, arguments.dim, seed=2)
    before = circumstances()
    results = {kind: one_kind(kind, vectors, queries, arguments) for kind in arguments.kinds.split(",")}
    show(results)
    record = {
        "rows": len(vectors),
        "dim": vectors.shape[1],
        "source": str(arguments.vectors.name) if arguments.vectors else "synthetic clusters",
        "threads": arguments.threads,
        "before": before,
        "after": circumstances(),
        "kinds": results,
    }
    worst = min(r["ratios"][f"store {n} / raw {n}"]["median"] for r in results.values() for n in (1, BATCH))
    print(f"least of store / raw: {worst:.3f}; record: {write_record(record, arguments.out)}")


def normalised(vectors: np.ndarray) -> np.ndarray:
    values = vectors.astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
