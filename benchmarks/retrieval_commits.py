"""Acknowledged writes a second, with one writer and with sixteen.

    python benchmarks/retrieval_commits.py --against ../other-checkout --rounds 5

runs this checkout and the other one in turn, each in a process of its own, and prints medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WRITERS = (1, 16)


def measure(seconds: float) -> dict[str, float]:
    """Commits of one item of 512 numbers each; requests that wait together share a commit, as they do in a server."""
    import numpy as np

    from service.retrieval import CollectionSpec, CollectionStore, StoreItem

    vectors = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rates: dict[str, float] = {}
    for writers in WRITERS:
        with tempfile.TemporaryDirectory() as folder, CollectionStore.open(Path(folder)) as store:
            spec = CollectionSpec(model="m@1", space="s", fingerprints={}, dim=512)
            write = _writer(store.create("commits", spec)[0].upsert, StoreItem, vectors, time.perf_counter() + seconds)
            started = time.perf_counter()
            with ThreadPoolExecutor(writers) as pool:
                rates[str(writers)] = sum(pool.map(write, range(writers))) / (time.perf_counter() - started)
    return rates


def _writer(upsert: Any, make: Any, vectors: Any, end: float) -> Callable[[int], int]:
    def write(writer: int) -> int:
        count = 0
        while time.perf_counter() < end:
            upsert([make(f"{writer}-{count % 1000}", vectors[count % 256], {"n": count})])
            count += 1
        return count

    return write


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--once", action="store_true", help="measure what is imported, and print it as JSON")
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(measure(arguments.seconds)))
        return
    trees = {"this": ROOT} | ({"other": arguments.against.resolve()} if arguments.against else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(arguments.rounds):
        for name, tree in trees.items():
            command = [sys.executable, __file__, "--once", "--seconds", str(arguments.seconds)]
            environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
            found[name].append(json.loads(done.stdout))
    for writers in map(str, WRITERS):
        medians = {name: statistics.median(each[writers] for each in rounds) for name, rounds in found.items()}
        line = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in medians.items())
        pairs = zip(found["this"], found.get("other", []), strict=False)
        ratios = [mine[writers] / other[writers] for mine, other in pairs]
        print(f"{writers} writers: {line}" + (f", median ratio {statistics.median(ratios):.3f}" if ratios else ""))


if __name__ == "__main__":
    main()
