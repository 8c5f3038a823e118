"""Pairs a second of this trainer beside open_clip's own: the same architecture, shards and batch, runs in turn.

    pip install --target .runs/open-clip-train --no-deps webdataset==0.2.86 braceexpand    # its trainer imports them
    python benchmarks/trainer_speed.py --out record.json
    python benchmarks/trainer_speed.py --architecture RN50 --batch-size 16 --steps 8

Both train from random weights on the CPU at fp32, with AdamW, clipped gradients and one loader process, and log every
step. The rate of a run is the batch size by the median of its steps' times, without the first three; the ratio that of
two runs one after the other, of which every second pair goes backwards. This trainer keeps an average of the weights
(EMA) beside, open_clip's does not. Whole seconds of a process are kept too: they hold imports, the building of the
model and its saving.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from benchmarks.figures import RESULTS
from benchmarks.stream_memory import write_shard
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.mixing import draw_records
from evaluation.scenes.rendering import render

ROOT = Path(__file__).resolve().parents[1]
EXTRA = ROOT / ".runs" / "open-clip-train"
LEFT_OUT = 3
_SIZE_PX, _QUALITY, _PICTURES, _SHARDS = (341, 256), 90, 256, 2
_RECIPE = """
name = "trainer-speed"
seed = 0
method = "base"
[data]
kind = "webdataset"
folder = {folder}
shards = "train-{{0..{last}}}.tar"
samples = {samples}
validation = "validation.tar"
validation_samples = 2
cache_px = 256
workers = 1
[augment]
crop_scale = [0.9, 1.0]
word_drop = 0.0
template_share = 0.0
[model]
kind = "open_clip"
architecture = {architecture}
[optim]
batch_size = {batch_size}
steps = {steps}
rate = 5e-4
warmup_steps = 100
weight_decay = 0.2
clip_norm = 1.0
ema_decay = 0.999
[run]
folder = {run}
device = "cpu"
precision = "fp32"
threads = {threads}
log_steps = 1
validate_steps = 1000000
checkpoint_steps = 1000000
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="ViT-S-32-alt", help="a name that open_clip knows")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--pairs", type=int, default=5, help="of runs, one of each trainer")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--out", type=Path, help="JSON record")
    options = parser.parse_args()
    if not EXTRA.is_dir():
        parser.error(f"{EXTRA} is missing; this script's first lines say how to make it")
    folder = Path(tempfile.mkdtemp(prefix="trainer-speed-"))
    try:
        write_shards(folder, options.batch_size * options.steps)
        record = measure(folder, options)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_shards(folder: Path, samples: int) -> None:
    """Drawn scenes as JPEG with a caption each: `samples` in shards for training, two for validation."""
    pictures: list[tuple[bytes, bytes]] = []
    for drawn in draw_records(SceneConfig(count=(1, 4)), range(_PICTURES), captions=1):
        out = io.BytesIO()
        square = Image.fromarray(render(drawn.scene, _SIZE_PX[1]).image)
        square.resize(_SIZE_PX).save(out, format="JPEG", quality=_QUALITY)
        pictures.append((out.getvalue(), drawn.captions[0].text.encode()))
    for shard in range(_SHARDS):
        write_shard(folder / f"train-{shard}.tar", pictures, range(shard, samples, _SHARDS))
    write_shard(folder / "validation.tar", pictures, range(2))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    trainers: dict[str, Callable[[Path, argparse.Namespace], list[float]]] = {
        "clipworks": _clipworks,
        "open_clip": _open_clip,
    }
    runs: list[dict[str, Any]] = []
    for turn in range(options.pairs):
        for name in sorted(trainers, reverse=bool(turn % 2)):
            began, idle = time.perf_counter(), psutil.cpu_times()
            used_s = sum(os.times()[2:4])  # of children that have ended
            step_s = trainers[name](folder, options)
            took_s = time.perf_counter() - began
            busy_s = (psutil.cpu_count() or 1) * took_s - (psutil.cpu_times().idle - idle.idle)
            foreign = (busy_s - (sum(os.times()[2:4]) - used_s)) / took_s
            rate = options.batch_size / statistics.median(step_s[LEFT_OUT:])
            runs.append({"trainer": name, "pairs_per_s": rate, "whole_s": took_s, "foreign_cores": foreign})
            print(f"{name:10} {rate:8.2f} pairs/s, {took_s:5.0f} s in all, {foreign:.2f} cores used by others")
    rates = {name: [run["pairs_per_s"] for run in runs if run["trainer"] == name] for name in trainers}
    ratios = [ours / theirs for ours, theirs in zip(rates["clipworks"], rates["open_clip"], strict=True)]
    return {
        "architecture": options.architecture,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "threads": options.threads,
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "open_clip_torch")},
        "pairs_per_s": {name: statistics.median(found) for name, found in rates.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "runs": runs,
    }


def _clipworks(folder: Path, options: argparse.Namespace) -> list[float]:
    """Seconds of each step."""
    run, recipe = folder / "run", folder / "recipe.toml"
    shutil.rmtree(run, ignore_errors=True)
    text = _RECIPE.format(
        folder=json.dumps(str(folder)),
        run=json.dumps(str(run)),
        last=_SHARDS - 1,
        samples=options.batch_size * options.steps,
        architecture=json.dumps(options.architecture),
        batch_size=options.batch_size,
        steps=options.steps,
        threads=options.threads,
    )
    recipe.write_text(text, encoding="utf-8")
    _call([sys.executable, "-m", "training", str(recipe)], options)
    with (run / "log.csv").open(newline="") as file:
        found = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "pairs_per_s"]
    return [options.batch_size / rate for rate in found]


def _open_clip(folder: Path, options: argparse.Namespace) -> list[float]:
    """Seconds of each step, as its log gives them."""
    logs = folder / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    settings = {
        "train-data": f"{folder}/train-{{0..{_SHARDS - 1}}}.tar",
        "train-num-samples": options.batch_size * options.steps,
        "dataset-type": "webdataset",
        "batch-size": options.batch_size,
        "workers": 1,
        "model": options.architecture,
        "device": "cpu",
        "precision": "fp32",
        "epochs": 1,
        "lr": 5e-4,
        "warmup": 100,
        "wd": 0.2,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "grad-clip-norm": 1.0,
        "log-every-n-steps": 1,
        "logs": logs,
        "name": "run",
    }
    given = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    out = _call([sys.executable, "-m", "open_clip_train.main", *given], options, path=EXTRA)
    return [float(each) for each in re.findall(r"Batch \(t\): ([\d.]+)", out)]


def _call(command: list[str], options: argparse.Namespace, *, path: Path | None = None) -> str:
    threads = {"OMP_NUM_THREADS": str(options.threads), "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}
    environment = os.environ | threads | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    log = RESULTS / "logs" / "trainer_speed.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ended with {done.returncode}: see {log}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
