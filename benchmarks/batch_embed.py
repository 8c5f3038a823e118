"""Embedding a parquet file of pictures by one process, a pool, Ray and a server; and with a worker killed.

    python benchmarks/batch_embed.py speed --pictures 1000 --rounds 3
    python benchmarks/batch_embed.py killed --pictures 5000

The pictures are drawn here, from a seed: JPEG, 96 to 160 px a side. `speed` runs the ways in turn, each from the
parquet file to parquet files, opening of the model included and the start of Ray's cluster not, and prints their rate
beside one process. `killed` sends SIGKILL to one of two Ray actors in the middle and compares what is written with the
answers of a server. Ray is needed for its ways only.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipworks import Client, RetryPolicy
from clipworks.batch import ColumnEmbedder, Embedder, RemoteEmbedder, as_table

GROUP = 50  # pictures of a row group
BROKEN_EVERY = 250
OBJECT_STORE_BYTES = 300 * 2**20


def draw(path: Path, count: int, *, seed: int = 0) -> None:
    """Columns path and bytes; smooth colours with noise, so that they are encoded and decoded as photographs are."""
    chance = np.random.default_rng(seed)
    names, encoded = [f"{index:06}.jpg" for index in range(count)], list[bytes]()
    for index in range(count):
        if index % BROKEN_EVERY == BROKEN_EVERY - 1:
            encoded.append(b"no picture")
            continue
        height, width = (int(side) for side in chance.integers(96, 161, 2))
        coarse = Image.fromarray(chance.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height))
        noise = chance.integers(-12, 13, (height, width, 3))
        pixels = np.clip(np.asarray(coarse).astype(np.int16) + noise, 0, 255).astype(np.uint8)
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "JPEG", quality=90)
        encoded.append(sink.getvalue())
    pq.write_table(pa.table({"path": names, "bytes": encoded}), path, row_group_size=GROUP)


def run_group(group: int, *, source: Path, target: Path, embed: ColumnEmbedder) -> None:
    rows = pq.ParquetFile(source).read_row_group(group).to_pydict()
    pq.write_table(as_table(embed(rows)), target / f"{group:06}.parquet")


def one_process(source: Path, target: Path, options: dict[str, Any]) -> None:
    embed = Embedder(**options)
    for group in range(pq.ParquetFile(source).num_row_groups):
        run_group(group, source=source, target=target, embed=embed)


def pool(source: Path, target: Path, options: dict[str, Any]) -> None:
    work = partial(run_group, source=source, target=target, embed=Embedder(**options))
    with multiprocessing.get_context("spawn").Pool(2) as started:
        started.map(work, range(pq.ParquetFile(source).num_row_groups), chunksize=1)


def of_server(source: Path, target: Path, url: str, model: str) -> None:
    embed = RemoteEmbedder(url, model=model)
    for group in range(pq.ParquetFile(source).num_row_groups):
        run_group(group, source=source, target=target, embed=embed)


def with_ray(source: Path, target: Path, options: dict[str, Any], *, seen: Path | None = None) -> None:
    """seen: a folder in which each actor writes down the batches that it has done, by its process id."""
    import ray

    class Counted(Embedder):
        def __call__(self, batch: Any) -> dict[str, Any]:
            rows = super().__call__(batch)
            if seen is not None:
                with (seen / str(os.getpid())).open("a") as stream:
                    stream.write(f"{len(batch['path'])}\n")
            return rows

    table = ray.data.read_parquet(str(source), columns=["path", "bytes"])
    blocks = max(4, pq.ParquetFile(source).num_row_groups)
    vectors = table.repartition(blocks).map_batches(
        Counted,
        fn_constructor_kwargs=options,
        batch_size=GROUP,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    vectors.map_batches(as_table).write_parquet(str(target))


@contextmanager
def cluster() -> Iterator[None]:
    """Ray on this machine, as if it had four CPUs: two actors must not hold all of them."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    import ray

    for left in (2, 1, 0):
        try:
            ray.init(num_cpus=4, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False)
            break
        except Exception:  # a plain one: on a busy machine Ray's own processes take longer than the 30 s that it waits
            if not left:
                raise
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def server(options: dict[str, Any]) -> Iterator[str]:
    """`clipworks serve` with the model alone; its address."""
    command = [sys.executable, "-m", "clipworks", "serve", "--port", "0", "--log-level", "warning", "--data", "memory"]
    command += ["--model", options["model"], *(["--store", options["store"]] if options["store"] else [])]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = ""
        for line in started.stdout or ():
            url = line.split()[-1] if "listening on" in line else url
            if "ready" in line:
                break
        yield url
    finally:
        started.terminate()
        started.wait(timeout=60)


def speed(count: int, rounds: int, options: dict[str, Any]) -> dict[str, Any]:
    """Pictures a second of each way, its ratio to one process in the same round, and the load of the machine."""
    has_ray = importlib.util.find_spec("ray") is not None
    with tempfile.TemporaryDirectory() as name, server(options) as url:
        folder = Path(name)
        draw(folder / "pictures.parquet", count)
        ways: dict[str, Callable[[Path, Path], None]] = {
            "one process": lambda source, target: one_process(source, target, options),
            "pool of 2": lambda source, target: pool(source, target, options),
            "a server": lambda source, target: of_server(source, target, url, options["model"]),
        }
        if has_ray:
            ways["Ray, 2 actors"] = lambda source, target: with_ray(source, target, options)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        with cluster() if has_ray else nullcontext():
            for turn in range(rounds):
                for way in [*ways][turn % len(ways) :] + [*ways][: turn % len(ways)]:
                    target = folder / "vectors"
                    target.mkdir()
                    started = time.perf_counter()
                    ways[way](folder / "pictures.parquet", target)
                    rates[way].append(count / (time.perf_counter() - started))
                    if pq.read_table(target).num_rows != count:
                        raise RuntimeError(f"{way}: {pq.read_table(target).num_rows} rows, expected {count}")
                    shutil.rmtree(target)
                    print(f"round {turn + 1}, {way}: {rates[way][-1]:.1f} pictures/s", flush=True)
        ratios = {way: [rate / one for rate, one in zip(rates[way], rates["one process"], strict=True)] for way in ways}
        return {
            "pictures": count,
            "rates": {way: [round(rate, 1) for rate in each] for way, each in rates.items()},
            "median_ratio": {way: round(statistics.median(each), 2) for way, each in ratios.items()},
            "ratios": {way: [round(ratio, 2) for ratio in each] for way, each in ratios.items()},
            "load_average": os.getloadavg(),
            "cores": os.cpu_count(),
        }


def killed(count: int, options: dict[str, Any]) -> dict[str, Any]:
    """What is written when one of two actors dies by SIGKILL after a third of the batches, beside a server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, target, seen = folder / "pictures.parquet", folder / "vectors", folder / "seen"
        seen.mkdir()
        draw(source, count)
        victims: list[int] = []

        def kill() -> None:
            while sum(len(each.read_text().split()) for each in seen.iterdir()) < count // GROUP // 3:
                time.sleep(0.05)
            victims.append(int(max(seen.iterdir(), key=lambda each: each.stat().st_size).name))
            os.kill(victims[0], signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        with cluster():
            killer.start()
            started = time.perf_counter()
            with_ray(source, target, options, seen=seen)
            seconds = time.perf_counter() - started
        written = pq.read_table(target)
        given = pq.read_table(source).to_pylist()
        with server(options) as url, Client(url, concurrency=1, retry=RetryPolicy(attempts=50)) as client:
            answer = client.embed(images=[row["bytes"] for row in given], on_error="item", model=options["model"])
        at = {row["path"]: index for index, row in enumerate(given)}
        order = [at[path] for path in written["path"].to_pylist()]
        ours = np.array(written["vector"].to_pylist(), dtype=np.float32)
        theirs = answer.vectors[order]
        failed = [bool(text) for text in written["error"].to_pylist()]
        fine = ~np.array(failed)
        return {
            "pictures": count,
            "rows": written.num_rows,
            "different_paths": len(set(order)),
            "errors": sum(failed),
            "errors_of_the_server": len(answer.errors),
            "same_errors": sorted(order[index] for index, bad in enumerate(failed) if bad) == sorted(answer.errors),
            "bit_equal_rows": int((ours[fine] == theirs[fine]).all(axis=1).sum()),
            "largest_difference": float(np.abs(ours[fine] - theirs[fine]).max()),
            "killed": len(victims),
            "batches_by_process": sorted(len(each.read_text().split()) for each in seen.iterdir()),
            "batches": -(-count // GROUP),
            "seconds": round(seconds, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "killed"])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="everyday-small")
    parser.add_argument("--store", default=None)
    given = parser.parse_args()
    options = {"model": given.model, "store": given.store}
    is_speed = given.what == "speed"
    found = speed(given.pictures, given.rounds, options) if is_speed else killed(given.pictures, options)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
