"""The study of a reranker on scenes: trains what is missing behind B0, judges it on held-out scenes, writes the page.

    python benchmarks/rerank.py --list                the runs, and whether they stand here
    python benchmarks/rerank.py --run '*'             train and judge the runs of a pattern
    python benchmarks/rerank.py --speed               publish base and reranker, and time a pair on this machine
    python benchmarks/rerank.py --write-docs          tables and picture of docs/rerank.md, from the record

The record is benchmarks/lab/rerank.json. A run is training/configs/lab/rerank.toml with overrides; its checkpoint lies
in .runs/lab/rerank/NAME, its base is .runs/lab/b0/r0 (benchmarks/lab.py trains it).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import platform
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.lab_judge import SIZE
from benchmarks.lab_runs import CONFIGS, RECORDS, RUNS
from benchmarks.rerank_judge import judged, latency
from benchmarks.rerank_tables import write_docs
from model_store.reranking import open_reranker
from model_store.session import SessionSettings
from model_store.store import Store
from model_store.towers import open_dense_tower, open_tower
from training.checkpoint import read_checkpoint
from training.config import SceneData
from training.data.scenes import scene_splits
from training.data.source import JUDGED
from training.encoder import encoder_of
from training.loop import train
from training.method import create
from training.methods.parts.rerank_run import RerankRun
from training.methods.rerank import RerankMethod
from training.publish import publish_checkpoint
from training.saved import SavedRun
from training.shipped.regrid import change_size

RECORD = RECORDS / "rerank.json"
FOLDER, BASE = RUNS / "rerank", RUNS / "b0" / "r0"
MAIN = "longer"
# Two layers, and captions that name relations but no places: what the first runs and their controls had.
NO_PLACES = (
    "method_options.layers=2",
    "optim.steps=1000",
    "optim.rate=2e-3",
    "data.parts=["
    "{scenes = 3000, share = 0.2, count = [1, 1], mix = {mentions = 0.7, attributes = 0.3}}, "
    '{scenes = 9000, share = 0.8, count = [2, 2], differ_in = ["shape", "colour"], decided_pair = true, '
    "mix = {mentions = 0.5, relations = 0.5}}]",
)
RUN_OVERRIDES: dict[str, tuple[str, ...]] = {
    MAIN: (),
    "longer-s1": ("seed=1",),
    "longer-s2": ("seed=2",),
    "places": ("optim.steps=2500",),
    "places-s1": ("optim.steps=2500", "seed=1"),
    "places-s2": ("optim.steps=2500", "seed=2"),
    "hard-s0": NO_PLACES,
    "hard-s1": (*NO_PLACES, "seed=1"),
    "hard-s2": (*NO_PLACES, "seed=2"),
    "pooled": (*NO_PLACES, 'method_options.looks="pooled"'),
    "random": (*NO_PLACES, 'method_options.negatives="random"', "method_options.own_negatives=false"),
    "in-batch": (*NO_PLACES, "method_options.own_negatives=false"),
    "no-words": (*NO_PLACES, "method_options.words=false"),
    "distill": (*NO_PLACES, "method_options.distill=0.4"),
}
SINGLES, DEPTH, REPEATS = 512, 100, 40


def opened(name: str) -> RerankRun:
    folder = FOLDER / name
    info = read_checkpoint(folder)
    method = create("rerank", dict(info.config.method_options))
    if not isinstance(method, RerankMethod):
        raise SystemExit(f"{folder} is no reranker")
    return method.opened(SavedRun(folder=folder, info=info))


def trained(name: str) -> None:
    """Train a run if it does not stand here; what it spent stands beside it."""
    folder = FOLDER / name
    if (folder / "checkpoint.json").exists():
        return
    before = resource.getrusage(resource.RUSAGE_SELF)
    places = (f"run.folder={json.dumps(str(folder))}", f"base={json.dumps(str(BASE))}")
    train(CONFIGS / "rerank.toml", [*places, *RUN_OVERRIDES[name]])
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (folder / "spent.json").write_text(json.dumps({"core_minutes": round(spent / 60, 2)}), encoding="utf-8")


def measured(name: str) -> dict[str, Any]:
    run = opened(name)
    info, data = run.run.info, run.run.info.config.data
    if not isinstance(data, SceneData):
        raise SystemExit(f"{name} was not trained on scenes")
    splits, spent = scene_splits(data), FOLDER / name / "spent.json"
    return {
        "overrides": list(RUN_OVERRIDES[name]),
        "steps": info.step,
        "core_minutes": json.loads(spent.read_text())["core_minutes"] if spent.exists() else None,
        "validation": info.metrics.get("validation", {}),
        "held out": judged(
            run.reranker,
            encoder_of(run.base, name="base"),
            known=splits.validation.pairs,
            unseen=splits.heldout.pairs,
            seed=JUDGED["test"],
            size=SIZE,
            singles=SINGLES,
        ),
    }


def timed() -> dict[str, Any]:
    """On one thread, of artifacts that are made for it."""
    settings = SessionSettings(intra_threads=1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), builtin=False)
        run = opened(MAIN)
        side = run.reranker.dense.spec.short_px
        base = publish_checkpoint(BASE, "base", store, precisions=("fp32",))
        change_size(base, side)
        artifact = publish_checkpoint(FOLDER / MAIN, "reranked", store, precisions=("fp32",))
        spec = artifact.image_spec
        found = latency(
            open_reranker(artifact, settings),
            open_dense_tower(artifact, "fp32", settings),
            open_tower(artifact, "image_encoder", "fp32", settings),
            side=side,
            own=spec.height_px if spec else side,
            k=DEPTH,
            repeats=REPEATS,
        )
        sizes = {
            graph.role: sum(artifact.entry(each).size_bytes for each in graph.files)
            for graph in artifact.manifest.graphs
        }
    return {"milliseconds": found, "bytes": sizes, "processor": platform.processor() or platform.machine()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--run", metavar="PATTERN", nargs="*", default=[])
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {"runs": {}}
    for name in RUN_OVERRIDES if chosen.list else ():
        here = "stands here" if (FOLDER / name / "checkpoint.json").exists() else "absent"
        sys.stdout.write(f"{name}: {here}{', recorded' if name in record['runs'] else ''}\n")
    for name in RUN_OVERRIDES:
        if any(fnmatch.fnmatch(name, pattern) for pattern in chosen.run):
            trained(name)
            record["runs"][name] = measured(name)
            record["base"] = read_checkpoint(BASE).weights_sha256
            _keep(record)
            sys.stdout.write(f"{name}: {json.dumps(record['runs'][name]['validation'])}\n")
    if chosen.speed:
        record["speed"] = timed()
        _keep(record)
        sys.stdout.write(f"{json.dumps(record['speed'], indent=1)}\n")
    if chosen.write_docs:
        write_docs(record)


def _keep(record: dict[str, Any]) -> None:
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
