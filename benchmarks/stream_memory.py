"""The memory of training on shards that are larger than it: draws some gigabytes, trains on them once, watches.

    python benchmarks/stream_memory.py                                  # 0.2 GB, about a minute
    python benchmarks/stream_memory.py --gigabytes 20 --out record.json

The shards hold drawn scenes with noise, 448 px, as JPEG; the same few hundred pictures come again under other keys,
which the reader cannot know. A small model is trained on one epoch by `python -m training`, with loader processes, and
the resident memory (RSS) of every process of the run is read twice a second. Every thousandth picture is cut off, and
one shard is. The shards are deleted at the end.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from evaluation.scenes.config import SceneConfig
from evaluation.scenes.mixing import draw_records
from evaluation.scenes.rendering import render

_SIDE_PX, _QUALITY, _NOISE, _PICTURES = 448, 98, 40, 256
_PER_SHARD = 1000
_EVERY_S, _KEPT = 0.5, 100
_GB = 10**9
_RECIPE = """
name = "stream-memory"
seed = 0
method = "base"
[data]
kind = "webdataset"
folder = {folder}
shards = "train-{{000000..{last:06d}}}.tar"
samples = {samples}
validation = "validation.tar"
cache_px = 36
buffer = {buffer}
workers = {workers}
[model]
kind = "small"
embed_dim = 32
image = {{trunk = "clipworks_conv_t", size_px = 32}}
text = {{merges = 1000, context_length = 24, width = 32, layers = 0, heads = 1, pool = "bag"}}
[optim]
batch_size = {batch_size}
steps = {steps}
rate = 1e-3
warmup_steps = 10
weight_decay = 0.1
clip_norm = 10.0
ema_decay = 0.99
[run]
folder = {run}
device = "cpu"
precision = "fp32"
threads = 1
log_steps = 10
validate_steps = 1000000
checkpoint_steps = {checkpoints}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=0.2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--buffer", type=int, default=500, help="samples that each worker shuffles among")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where the shards are put meanwhile; by default a temporary folder")
    parser.add_argument("--out", type=Path, help="JSON record")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="stream-memory-", dir=options.folder))
    try:
        record = measure(
            folder,
            round(options.gigabytes * _GB),
            workers=options.workers,
            buffer=options.buffer,
            batch_size=options.batch_size,
        )
    finally:
        shutil.rmtree(folder)
    text = json.dumps(record)
    print(json.dumps({name: value for name, value in record.items() if name != "series"}, indent=1))
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def measure(folder: Path, size_bytes: int, *, workers: int, buffer: int, batch_size: int) -> dict[str, object]:
    """Write the shards, train on them once, and say what the processes held."""
    began = time.perf_counter()
    shards, samples = write_shards(folder, size_bytes)
    wrote_s = time.perf_counter() - began
    steps = max(1, samples // batch_size)
    recipe, run = folder / "recipe.toml", folder / "run"
    recipe.write_text(
        _RECIPE.format(
            folder=json.dumps(str(folder)),
            run=json.dumps(str(run)),
            last=shards - 1,
            samples=samples,
            steps=steps,
            checkpoints=max(1, steps // 4),
            workers=workers,
            buffer=buffer,
            batch_size=batch_size,
        ),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "training", str(recipe)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1]) as process:
        series = watched(process, began)
    if process.returncode:
        raise SystemExit(f"training ended with {process.returncode}")
    with (run / "log.csv").open(newline="") as file:
        logged = [row for row in csv.DictReader(file) if row["series"] in ("train", "bad_samples")]
    rates = [float(row["value"]) for row in logged if row["name"] == "pairs_per_s"]
    waits = [float(row["value"]) for row in logged if row["name"] == "data_wait_share"]
    return {
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / _GB:.0f} GB",
        "shard_bytes": sum(each.stat().st_size for each in folder.glob("train-*.tar")),
        "shards": shards,
        "samples": samples,
        "steps": steps,
        "workers": workers,
        "buffer": buffer,
        "write_s": round(wrote_s),
        "train_s": round(time.perf_counter() - began),
        "pairs_per_s": round(float(np.median(rates))),
        "data_wait_share": round(float(np.median(waits)), 2),
        "bad_samples": {row["name"]: float(row["value"]) for row in logged if row["series"] == "bad_samples"},
        "rss_mb": flatness(series),
        "series": series[:: max(1, len(series) // _KEPT)],
    }


def write_shards(folder: Path, size_bytes: int) -> tuple[int, int]:
    """`train-*.tar` of together about so many bytes, and `validation.tar`; (shards, samples)."""
    rng = np.random.default_rng(0)
    pictures = []
    for record in draw_records(SceneConfig(count=(1, 4)), range(_PICTURES), captions=1):
        pixels = render(record.scene, _SIDE_PX).image.astype(np.int16)
        noisy = np.clip(pixels + rng.normal(0, _NOISE, pixels.shape).astype(np.int16), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, format="JPEG", quality=_QUALITY)
        pictures.append((out.getvalue(), record.captions[0].text.encode()))
    write_shard(folder / "validation.tar", pictures, range(_PICTURES))
    mean = sum(len(data) for data, _ in pictures) / len(pictures)
    samples = max(2 * _PER_SHARD, round(size_bytes / mean))
    starts = range(0, samples, _PER_SHARD)
    for number, start in enumerate(starts):
        write_shard(
            folder / f"train-{number:06d}.tar", pictures, range(start, min(samples, start + _PER_SHARD)), cut=1000
        )
    last = folder / f"train-{len(starts) - 1:06d}.tar"
    with last.open("r+b") as file:
        file.truncate(last.stat().st_size * 9 // 10)
    return len(starts), samples


def write_shard(path: Path, pictures: list[tuple[bytes, bytes]], keys: range, *, cut: int = 0) -> None:
    """A tar of JPEGs and captions, the pictures again and again under new keys; cut: every so many-th is cut off."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key in keys:
            data, text = pictures[key % len(pictures)]
            if cut and key % cut == cut - 1:
                data = data[: len(data) // 2]
            for name, part in ((f"{key:09d}.jpg", data), (f"{key:09d}.txt", text)):
                entry = tarfile.TarInfo(name)
                entry.size = len(part)
                tar.addfile(entry, io.BytesIO(part))


def watched(process: subprocess.Popen[bytes], began: float) -> list[dict[str, object]]:
    """Seconds since `began`, and the RSS in MB of every process of the tree by its id, until it has ended."""
    series: list[dict[str, object]] = []
    for _ in itertools.count():
        if process.poll() is not None:
            return series
        try:
            root = psutil.Process(process.pid)
            rss = {}
            for each in (root, *root.children(recursive=True)):
                try:
                    rss[each.pid] = round(each.memory_info().rss / 1e6, 1)
                except psutil.NoSuchProcess:
                    continue
            series.append({"s": round(time.perf_counter() - began, 1), "rss_mb": rss})
        except psutil.NoSuchProcess:
            pass
        time.sleep(_EVERY_S)
    return series


def flatness(series: list[dict[str, object]]) -> list[dict[str, float]]:
    """Of each process that lived long: its RSS in MB in the third tenth of its life, in the last, and its peak.

    The first two tenths are left out: buffers fill, and libraries are loaded.
    """
    lives: dict[int, list[float]] = defaultdict(list)
    for moment in series:
        for pid, rss in moment["rss_mb"].items():  # pyright: ignore[reportAttributeAccessIssue]
            lives[pid].append(rss)
    longest = max(len(life) for life in lives.values())
    found = []
    for life in lives.values():
        tenth = len(life) // 10
        if len(life) > longest / 2 and tenth:
            third, last = np.median(life[2 * tenth : 3 * tenth]), np.median(life[-tenth:])
            found.append({"third_tenth": float(third), "last_tenth": float(last), "peak": max(life)})
    return found


if __name__ == "__main__":
    main()
