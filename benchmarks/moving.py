"""Times the move of a collection from the embedded store to Milvus and back, by `clipworks collections`.

    python benchmarks/moving.py --rows 100000 --milvus http://127.0.0.1:19530

Four steps, each a process of its own: export (parquet), import into Milvus, export from Milvus, import. What comes back
is compared with what left: ids, vectors and metadata of every row. The Milvus has to be one for tests: the collection
`moving` on it is deleted. --milvus FILE.db is milvus-lite.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.retrieval_data import clustered
from model_store.store import Store
from service.retrieval import CollectionSpec, CollectionStore, IndexSpec, RetrievalSettings, StoreItem

CLIPWORKS = Path(sys.executable).with_name("clipworks")
NAME = "moving"
_AT_ONCE = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--milvus", required=True, help="address of a Milvus, or a file of milvus-lite")
    parser.add_argument("--model", default="everyday-small", help="its space and size of vectors (CLIPWORKS_STORE)")
    parser.add_argument("--folder", type=Path, help="for data and exports; a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as made:
        print(json.dumps(measure(Path(made), arguments.rows, arguments.milvus, arguments.model), indent=2))


def measure(folder: Path, rows: int, milvus: str, model: str) -> dict[str, object]:
    there, back = folder / "there.parquet", folder / "back.parquet"
    embedded = {"CLIPWORKS_DATA": str(folder / "data"), "CLIPWORKS_MODEL": model}
    milvus_too = {**embedded, "CLIPWORKS_COLLECTIONS_BACKEND": "milvus", "CLIPWORKS_MILVUS_URI": milvus}
    seconds: dict[str, float] = {"filled": fill(folder / "data", rows, model)}
    subprocess.run([CLIPWORKS, "collections", "delete", NAME, "--yes"], env={**os.environ, **milvus_too}, check=False)
    for step, environment, words in (
        ("export", embedded, ["export", NAME, there]),
        ("import into Milvus", milvus_too, ["import", there]),
        ("export from Milvus", milvus_too, ["export", NAME, back]),
        ("import", embedded, ["import", back, "--name", "back"]),
    ):
        started = time.monotonic()
        subprocess.run([CLIPWORKS, "collections", *map(str, words)], env={**os.environ, **environment}, check=True)
        seconds[step] = time.monotonic() - started
        print(f"{step}: {seconds[step]:.1f} s", file=sys.stderr)
    return {
        "rows": rows,
        "seconds": seconds,
        "rows a second": {step: rows / took for step, took in seconds.items()},
        "export bytes": there.stat().st_size,
        "largest difference of a number": compare(there, back),
    }


def fill(data: Path, rows: int, model: str) -> float:
    """A collection of the model's space, whose vectors are drawn."""
    store_folder = os.environ.get("CLIPWORKS_STORE")
    manifest = Store(Path(store_folder) if store_folder else None).open(model).manifest
    prints = {"image": manifest.fingerprint.image, "text": manifest.fingerprint.text}
    spec = CollectionSpec(
        model=f"{manifest.name}@{manifest.version}",
        space=manifest.space,
        fingerprints={modality: value for modality, value in prints.items() if value is not None},
        dim=manifest.dim,
        index=IndexSpec(kind="auto"),
        metadata_schema={"n": "number"},
    )
    vectors = clustered(rows, spec.dim, seed=1)
    started = time.monotonic()
    with CollectionStore.open(data, settings=RetrievalSettings()) as store:
        collection = store.create(NAME, spec)[0]
        for start in range(0, rows, _AT_ONCE):
            part = vectors[start : start + _AT_ONCE]
            collection.upsert([StoreItem(f"{start + n:09}", row, {"n": start + n}) for n, row in enumerate(part)])
    return time.monotonic() - started


def compare(there: Path, back: Path) -> float:
    """Raises AssertionError: ids or metadata are not the same. Returns the largest difference of a vector's number."""
    worst = 0.0
    for mine, its in zip(
        pq.ParquetFile(there).iter_batches(10_000), pq.ParquetFile(back).iter_batches(10_000), strict=True
    ):
        assert mine["id"].equals(its["id"]), "the ids differ"
        assert mine["metadata"].equals(its["metadata"]), "the metadata differ"
        values = [np.asarray(each["vector"].flatten()) for each in (mine, its)]
        worst = max(worst, float(np.abs(values[0] - values[1]).max()))
    return worst


if __name__ == "__main__":
    main()
