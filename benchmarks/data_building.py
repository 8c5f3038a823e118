"""The study of a balanced data set: equal pairs and steps, rare and frequent concepts, three seeds.

    python benchmarks/data_building.py --run                   # 25 core-minutes; .runs/data-building
    python benchmarks/data_building.py --memory                # some minutes: the command's memory and time
    python benchmarks/data_building.py --near DATA             # copies of photographs, and other photographs
    python benchmarks/data_building.py --near-vectors DATA     # the same with the vectors of everyday-small; 3 minutes
    python benchmarks/data_building.py --write-docs            # the tables and the plot of docs/data-building.md

Pools of drawn scenes with a power-law vocabulary (benchmarks/data_building_pool.py); `clipworks data build` makes three
sets of each: without balance, with WIT's cap, with MetaCLIP's chances. What runs were made with was set on the seed
PILOT and validation scenes; the held-out scenes are opened once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data_building_costs, data_building_tables, data_building_vectors
from benchmarks.data_building_pool import PoolPlan, concepts, scene_of, write_corpus, write_pool
from benchmarks.marked import ROOT
from evaluation.scenes.meaning import What
from evaluation.scenes.phrases import noun, with_article
from evaluation.scenes.rendering import render
from evaluation.standard.shards import shard_samples

FOLDER = ROOT / ".runs" / "data-building"
RECORD = ROOT / "benchmarks" / "lab" / "data-building.json"
POOL, EXPONENT, TOTAL, STEPS = 10_000, 1.5, 2_000, 400
SEEDS, PILOT = (0, 1, 2), 100
ARMS = {"no balance": "none", "WIT": "wit", "MetaCLIP": "metaclip"}
# The claim first, then the control; what was trained stands in FOLDER and is not trained again.
ORDER = [(seed, arm) for arms in (("no balance", "WIT"), ("MetaCLIP",)) for seed in SEEDS for arm in arms]
EACH = 25  # judged pictures of a concept
_RECIPE = """
name = "data-building"
seed = {seed}
method = "base"
[method_options]
loss = "info_nce"
[data]
kind = "webdataset"
folder = "{folder}"
shards = "[0-9]*.tar"
samples = {total}
validation = "{validation}"
validation_samples = 64
cache_px = 32
workers = 0
[augment]
crop_scale = [1.0, 1.0]
word_drop = 0.0
template_share = 0.0
[model]
kind = "small"
embed_dim = 128
[model.image]
trunk = "clipworks_conv_t"
size_px = 32
pool = "mean"
[model.text]
merges = 500
context_length = 24
width = 64
layers = 1
heads = 4
pool = "eos"
[optim]
batch_size = 64
steps = {steps}
rate = 1e-3
warmup_steps = 50
betas = [0.9, 0.98]
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.99
[run]
folder = "{run}"
precision = "bf16"
threads = 1
report = "retrieval"
validate_steps = {steps}
checkpoint_steps = {steps}
"""


def command(*words: object) -> dict[str, Any]:
    """A command of clipworks, with what it prints as JSON."""
    run = [sys.executable, "-m", "clipworks", *map(str, words), "--json"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(run)}: {done.stderr}")
    return json.loads(done.stdout)


def built(seed: int, kind: str) -> dict[str, Any]:
    """The report of the command that makes a set of the seed's pool, which is drawn if it is not there."""
    folder = FOLDER / f"seed-{seed}"
    queries = FOLDER / "queries.tsv"
    if not queries.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_corpus(FOLDER / "corpus.txt", lines=4000)
        command("data", "queries", FOLDER / "corpus.txt", "--least", 20, "--bits", 1, "--out", queries)
    if not (folder / "raw" / "done").is_file():
        write_pool(PoolPlan(pairs=POOL, exponent=EXPONENT, seed=seed), folder / "raw")
        (folder / "raw" / "done").touch()
    options = ["--queries", queries, "--work", folder / "work", "--total", TOTAL, "--seed", seed]
    options += ["--shard-pairs", 1000, "--workers", 1, "--balance", kind, "--out", folder / kind]
    if not (folder / kind / "report.json").is_file():
        command("data", "build", folder / "raw", *options)
    return json.loads((folder / kind / "report.json").read_text(encoding="utf-8"))


def ranks(folder: Path) -> list[int]:
    """How many pairs of a set show each concept, the most frequent of the pool first."""
    found = np.zeros(len(concepts(0)), dtype=np.int64)
    for shard in sorted(folder.glob("*.tar")):
        for sample in shard_samples(shard):
            found[sample.meta["rank"]] += 1
    return found.tolist()


def trained(seed: int, kind: str) -> Path:
    from rich.console import Console

    from training import loop

    folder, run = FOLDER / f"seed-{seed}" / kind, FOLDER / f"seed-{seed}" / f"run-{kind}"
    if not (run / "done").is_file():
        recipe = FOLDER / f"seed-{seed}" / f"{kind}.toml"
        validation = FOLDER / f"seed-{seed}" / "raw" / "raw-0000.tar"
        recipe.write_text(
            _RECIPE.format(seed=seed, folder=folder, total=TOTAL, validation=validation, steps=STEPS, run=run)
        )
        shutil.rmtree(run, ignore_errors=True)  # one that was cut begins anew
        loop.train(recipe, [], console=Console(stderr=True))
        (run / "done").touch()
    return run


def named(run: Path, seed: int, stream: str) -> list[float]:
    """Share of EACH pictures of every concept that are named right among all concepts; ties are wrong."""
    from training.opening import open_checkpoint

    pairs, encoder = concepts(seed), open_checkpoint(run)
    texts = encoder.encode_texts([with_article(noun(What(shape=shape, colour=colour))) for shape, colour in pairs])
    found: list[float] = []
    for place, pictures in enumerate(_judged(seed, stream)):
        scores = encoder.encode_images(pictures) @ texts.T
        right = scores[:, place].copy()
        scores[:, place] = -np.inf
        found.append(float((right > scores.max(axis=1)).mean()))
    return found


@lru_cache(maxsize=1)
def _judged(seed: int, stream: str) -> list[list[np.ndarray]]:
    """EACH pictures of every concept."""
    return [
        [render(scene_of(pair, number, f"{stream}/{seed}"), 48).image for number in range(EACH)]
        for pair in concepts(seed)
    ]


def measured(seed: int, arm: str, stream: str) -> dict[str, Any]:
    """One set of one pool: built, trained on, judged."""
    kind = ARMS[arm]
    report = built(seed, kind)
    row = {
        "seed": seed,
        "arm": arm,
        "kept": report["kept"],
        "most": report["most"],
        "pairs": ranks(FOLDER / f"seed-{seed}" / kind),
        "named": [round(value, 4) for value in named(trained(seed, kind), seed, stream)],
        "stages": report["stages"],
        "dropped": report["dropped"],
        "queries": {name: report["queries"][name] for name in ("raw", "clean", "kept")},
    }
    print(seed, arm, report["kept"], data_building_tables.bands(row["named"]), flush=True)
    return row


def _write(record: dict[str, Any]) -> None:
    RECORD.write_text(json.dumps(record) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pilot", action="store_true", help="one pool, judged on validation scenes")
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--near", type=Path, metavar="DATA")
    parser.add_argument("--near-vectors", type=Path, metavar="DATA")
    parser.add_argument("--write-docs", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.pilot:
        for arm in ARMS:
            measured(PILOT, arm, "validation")
        return 0
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    if chosen.run:
        plan = {"pool": POOL, "exponent": EXPONENT, "total": TOTAL, "steps": STEPS, "each": EACH}
        record |= {"plan": plan, "runs": []}
        for seed, arm in ORDER:
            record["runs"].append(measured(seed, arm, "held-out"))
            _write(record)
    if chosen.memory:
        record["memory"] = data_building_costs.memory(FOLDER / "memory")
    if chosen.near is not None:
        record["near"] = data_building_costs.near(chosen.near)
    if chosen.near_vectors is not None:
        record["vectors"] = data_building_vectors.measure(chosen.near_vectors)
    _write(record)
    if chosen.write_docs:
        data_building_tables.publish(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
