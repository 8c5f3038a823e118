"""The cost of durability, filters and exact answers: search through the store beside raw FAISS, in one interleaved run.

    OPENBLAS_NUM_THREADS=1 python benchmarks/retrieval.py --rows 100000
    OPENBLAS_NUM_THREADS=1 python benchmarks/retrieval.py --vectors embeddings.npy --noise 0.02 --rows 100000
    python benchmarks/retrieval.py --show RECORD.json ...   (tables; writes them into the page that marks them)

Raw FAISS is the very index that the store searches, asked directly, with as many threads; `refined` is FAISS that takes
as many candidates as the store and scores them in float32 (IndexRefineFlat over vectors in memory), which reaches the
same recall. A ratio is the median over repetitions of the ratio within a repetition, and every second repetition goes
backwards. Rates are of wall time, and of processor time, which other work on the machine disturbs less.
Recall is the share of the true ten nearest; a speed without it says nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import faiss
import numpy as np

from benchmarks.figures import RESULTS, circumstances, ratio_of_runs, spread, write_record
from benchmarks.retrieval_data import clustered, perturbed, true_neighbours
from benchmarks.retrieval_tables import show
from service.retrieval import Collection, CollectionSpec, CollectionStore, IndexSpec, Item, RetrievalSettings
from service.retrieval.database import CHECKSUMS, ensure_checksums
from service.retrieval.index import VectorIndex

TOP_K = 10
BATCH = 128
OVERSAMPLE = 4
UPSERT_ROWS = 1000
SHARES = (64, 32, 16, 8, 4)
ADDED = 5000
Work = dict[str, tuple[Callable[[], object], int]]


def spec_of(kind: Any, dim: int) -> CollectionSpec:
    return CollectionSpec(
        model="bench@1",
        space="bench",
        fingerprints={},
        dim=dim,
        index=IndexSpec(kind=kind, nprobe=None, oversample=OVERSAMPLE),
        metadata_schema={"percent": "number"},
    )


def fill(collection: Collection, vectors: np.ndarray, *, prefix: str = "r") -> dict[str, float]:
    """Rows a second of upserts in thousands: validated, written, synced, indexed."""
    started, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(vectors), UPSERT_ROWS):
        collection.upsert(
            [
                Item(f"{prefix}{start + n}", row, {"percent": (start + n) % 100, "plain": (start + n) % 100})
                for n, row in enumerate(vectors[start : start + UPSERT_ROWS])
            ]
        )
    cpu = time.process_time() - cpu
    return {"wall": len(vectors) / (time.perf_counter() - started), "cpu": len(vectors) / cpu}


def choose_kind(folder: Path, kind: str, dim: int) -> None:
    """Give a closed store's collection another kind of index, so that the rows are written only once."""
    ensure_checksums()
    shutil.rmtree(folder / "indexes", ignore_errors=True)
    database = apsw.Connection(str(folder / "collections.sqlite3"), vfs=CHECKSUMS)
    database.execute("UPDATE collections SET spec = ?", (spec_of(kind, dim).model_dump_json(),))
    database.close()


def anonymous_bytes() -> int:
    """Resident memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def reopen_here(folder: Path, threads: int) -> dict[str, float]:
    """Time and memory of opening, in a process that has done nothing else."""
    CollectionStore.open(None).close()
    before = anonymous_bytes()
    started, cpu = time.perf_counter(), time.process_time()
    with CollectionStore.open(folder, settings=RetrievalSettings(threads=threads)) as store:
        took = {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
        if store.warnings:
            sys.exit(f"opened with warnings: {store.warnings}")
        info = store.get("bench").describe()
        count = info.count or 1
        held = (anonymous_bytes() - before) / count
        return {**took, "anonymous_bytes": held, "index_bytes": (info.index_bytes or 0) / count}


def reopen(folder: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--reopen", str(folder), "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rate(work: Callable[[], object], queries: int, *, least_s: float) -> tuple[float, float]:
    """Queries a second of wall time and of processor time, over at least that much of the latter."""
    calls, started, cpu = 0, time.perf_counter(), time.process_time()
    while time.process_time() - cpu < least_s or not calls:
        work()
        calls += 1
    return calls * queries / (time.perf_counter() - started), calls * queries / (time.process_time() - cpu)


def raw_searches(index: VectorIndex, vectors: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Slots [Q, k] by FAISS alone, and by FAISS with candidates scored in float32."""
    made: Any = faiss
    base = index.faiss
    inner = made.SearchParametersIVF(nprobe=index.nprobe) if index.kind == "ivf_sq8" else None
    found = {"raw": lambda queries: base.search(queries, TOP_K, params=inner)[1]}
    if index.kind != "flat":
        refined = made.IndexRefineFlat(base, made.swig_ptr(vectors))
        outer = made.IndexRefineSearchParameters(k_factor=OVERSAMPLE, base_index_params=inner)
        found["refined"] = lambda queries: refined.search(queries, TOP_K, params=outer)[1]
    return found


def searches(collection: Collection, raw: dict[str, Any], queries: np.ndarray) -> Work:
    """What is measured, by name, and how many queries each call answers."""
    turn = iter(range(10**12))
    batches = [queries[start : start + BATCH] for start in range(0, len(queries) - BATCH + 1, BATCH)]

    def one() -> np.ndarray:
        place = next(turn) % len(queries)
        return queries[place : place + 1]

    def many() -> np.ndarray:
        return batches[next(turn) % len(batches)]

    wanted = {"percent": 7}
    work: Work = {}
    for name, ask in raw.items():
        work[f"{name} 1"] = (lambda ask=ask: ask(one()), 1)
        work[f"{name} {BATCH}"] = (lambda ask=ask: ask(many()), BATCH)
    work["store 1"] = (lambda: collection.search(one(), top_k=TOP_K), 1)
    work[f"store {BATCH}"] = (lambda: collection.search(many(), top_k=TOP_K), BATCH)
    work["filtered 1"] = (lambda: collection.search(one(), top_k=TOP_K, filter=wanted), 1)
    work[f"filtered {BATCH}"] = (lambda: collection.search(many(), top_k=TOP_K, filter=wanted), BATCH)
    return work


def compare(work: Work, *, repeats: int, least_s: float) -> dict[str, Any]:
    """Rates in turn, and ratios of wall and of processor time."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for repeat in range(repeats):
        for name in list(work)[:: -1 if repeat % 2 else 1]:
            rates[name].append(rate(*work[name], least_s=least_s))
    pairs = [
        (f"{one} {n}", f"{other} {n}")
        for n in (1, BATCH)
        for one, other in (("store", "raw"), ("store", "refined"), ("filtered", "store"))
        if f"{other} {n}" in work
    ]
    return {
        "qps": {
            name: {"wall": spread([w for w, _ in r]), "cpu": spread([c for _, c in r])} for name, r in rates.items()
        },
        "ratios": {
            f"{a} / {b}": {
                clock: ratio_of_runs([r[place] for r in rates[a]], [r[place] for r in rates[b]])
                for place, clock in enumerate(("wall", "cpu"))
            }
            for a, b in pairs
        },
    }


def first_filtered(collection: Collection, queries: np.ndarray) -> dict[str, float]:
    """Milliseconds of a search with a filter that was not asked before: median of several values."""
    took: dict[str, float] = {}
    for field in ("percent", "plain"):
        times = []
        for value in range(10, 15):
            started = time.perf_counter()
            collection.search(queries[:1], top_k=TOP_K, filter={field: value})
            times.append(1000 * (time.perf_counter() - started))
        took[field] = float(np.median(times))
    return took


def recall(found: Iterator[set[int]], truth: np.ndarray) -> float:
    return float(np.mean([len(one & set(row.tolist())) / len(row) for one, row in zip(found, truth, strict=True)]))


def probing(index: VectorIndex, collection: Collection, queries: np.ndarray, truth: np.ndarray) -> list[dict[str, Any]]:
    """What looking into fewer or more lists costs and finds, rescoring included."""
    rows = []
    for share in SHARES:
        index.probe(max(1, index.faiss.nlist // share))
        hits = [{int(hit.id[1:]) for hit in one.hits} for one in collection.search(queries, top_k=TOP_K)]
        wall, cpu = rate(lambda: collection.search(queries[:BATCH], top_k=TOP_K), BATCH, least_s=0.5)
        rows.append({"share": f"1/{share}", "lists": index.nprobe, "recall": recall(iter(hits), truth), "cpu_qps": cpu})
    index.probe(None)
    return rows


def one_kind(
    kind: Any, folder: Path, vectors: np.ndarray, queries: np.ndarray, truth: np.ndarray, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Everything about one kind of index over rows that are stored already."""
    choose_kind(folder, kind, vectors.shape[1])
    result: dict[str, Any] = {"reopen": {"without": reopen(folder, arguments.threads)}}
    result["reopen"]["with"] = reopen(folder, arguments.threads)
    with CollectionStore.open(folder, settings=RetrievalSettings(threads=arguments.threads)) as store:
        collection = store.get("bench")
        index = collection.searcher.index
        if index.kind != kind:
            sys.exit(f"the index is {index.kind}, not {kind}")
        raw = raw_searches(index, vectors)
        judged = queries[: len(truth)]
        stored = [{int(hit.id[1:]) for hit in one.hits} for one in collection.search(judged, top_k=TOP_K)]
        result["recall"] = {"store": recall(iter(stored), truth)}
        for name, ask in raw.items():
            result["recall"][name] = recall((set(row.tolist()) for row in ask(judged)), truth)
        result["first_filtered_ms"] = first_filtered(collection, queries)
        result |= compare(searches(collection, raw, queries), repeats=arguments.repeats, least_s=arguments.seconds)
        if kind == "ivf_sq8":
            result["probing"] = probing(index, collection, judged, truth)
        result["upserts_per_s"] = fill(collection, vectors[:ADDED], prefix="again")
        result["disk_bytes"] = sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file()) / len(vectors)
        collection.delete([f"again{n}" for n in range(ADDED)])
    return result


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.vectors:
        vectors, queries, source = perturbed(arguments)
    else:
        vectors = clustered(arguments.rows, arguments.dim, seed=1)
        queries, source = clustered(4096, arguments.dim, seed=2), "synthetic clusters"
    before = circumstances()
    truth = true_neighbours(vectors, queries[:512], TOP_K)
    folder = Path(tempfile.mkdtemp(prefix="clipworks-bench-", dir=arguments.folder))
    try:
        with CollectionStore.open(folder, settings=RetrievalSettings(threads=arguments.threads)) as store:
            loaded = fill(store.create("bench", spec_of("flat", vectors.shape[1]))[0], vectors)
        kinds = {
            kind: one_kind(kind, folder, vectors, queries, truth, arguments) for kind in arguments.kinds.split(",")
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "rows": len(vectors),
        "dim": vectors.shape[1],
        "source": source,
        "threads": arguments.threads,
        "before": before,
        "after": circumstances(),
        "loaded_per_s": loaded,
        "kinds": kinds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--vectors", type=Path, help=".npy of float32 [N, D], instead of synthetic vectors")
    parser.add_argument(
        "--noise", type=float, default=0.0, help="repeat real rows up to --rows, with noise of that length"
    )
    parser.add_argument("--kinds", default="flat,sq8,ivf_sq8")
    parser.add_argument("--threads", type=int, default=1, help="of one search, on both sides; 0: one for each core")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="least processor time of one measurement")
    parser.add_argument("--folder", type=Path, help="where the database is written; default: the temporary folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "retrieval.json")
    parser.add_argument("--reopen", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--show", type=Path, nargs="+", help="print records, and write them into the page")
    arguments = parser.parse_args()
    if arguments.reopen:
        print(json.dumps(reopen_here(arguments.reopen, arguments.threads)))
    elif arguments.show:
        show(arguments.show)
    else:
        print(f"record: {write_record(measure(arguments), arguments.out)}")
        show([arguments.out], publish=False)


if __name__ == "__main__":
    main()
