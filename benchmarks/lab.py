"""The study of methods on scenes: trains what is missing, judges every checkpoint on held-out scenes, writes the table.

    python benchmarks/lab.py --list                 what there is and what is done
    python benchmarks/lab.py --run 'grid/*'         train and judge the runs of a pattern, one after the other
    python benchmarks/lab.py --write-docs           docs/lab.md's tables and pictures from the judged runs

A run is a recipe with overrides; its checkpoint lies in .runs/lab/NAME and is trained once. Judging writes
`test.json` beside it: scenes of a seed that no validation saw, out of the training pairs, and binding, places and
relations again on pairs that training neither drew nor named.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from evaluation.probe_results import ProbeResult, from_json, to_json
from evaluation.probes.pool import PoolSize
from evaluation.scenes_report import single_accuracy
from evaluation.suites import Suite, run
from training.checkpoint import read_checkpoint
from training.config import SceneData
from training.data.scenes import scene_splits
from training.data.source import JUDGED
from training.loop import train
from training.opening import open_checkpoint

ROOT = Path(__file__).resolve().parents[1]
RUNS, CONFIGS = ROOT / ".runs" / "lab", ROOT / "training" / "configs" / "lab"
SIZE = PoolSize(compass=64, class_groups=8, squares=8, counts=8, additions=8, spoilt=16)
PROBES = ("binding", "place", "relation", "order", "negation")
COMPOSED = ("binding", "relation")
SINGLES = 2000
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class LabRun:
    """`base`: the run that it starts from, by name. Overrides as on the command line."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    base: str | None = None

    @property
    def folder(self) -> Path:
        return RUNS / self.name


def runs() -> list[LabRun]:
    """Everything that the study trains, bases first."""
    out = [LabRun(name="b0", recipe="b0"), LabRun(name="b1", recipe="b1")]
    for head in ("mean", "flat"):
        for captions in ("places", "no-places"):
            pool = f'model.image.pool="{head}"'
            out += [
                LabRun(
                    name=f"grid/{head}-{captions}/seed{seed}",
                    recipe=f"grid-{captions}",
                    overrides=(pool, f"seed={seed}"),
                )
                for seed in SEEDS
            ]
    for tuning in ("control", "negclip", "negclip-focal", "negation", "negation-reader", "labclip"):
        out += [
            LabRun(name=f"{tuning}/seed{seed}", recipe=tuning, overrides=(f"seed={seed}",), base="b0") for seed in SEEDS
        ]
    return out


def ensure(one: LabRun, console: Console) -> None:
    """Train the run unless its checkpoint stands; resume what was cut."""
    finished = one.folder / "finished.json"
    if not finished.exists():
        overrides = [*one.overrides, f"run.folder={json.dumps(str(one.folder))}"]
        if one.base is not None:
            overrides.append(f"base={json.dumps(str(RUNS / one.base))}")
        resume = (one.folder / "checkpoint.json").exists()
        began_s, cpu_s = time.time(), time.process_time()
        result = train(CONFIGS / f"{one.recipe}.toml", overrides, resume=resume, console=console)
        spent = {"wall_s": time.time() - began_s, "cpu_s": time.process_time() - cpu_s, "step": result.step}
        finished.write_text(json.dumps({**spent, "resumed": resume}) + "\n", encoding="utf-8")
    if not (one.folder / "test.json").exists():
        (one.folder / "test.json").write_text(json.dumps(judged(one.folder)) + "\n", encoding="utf-8")


def judged(folder: Path) -> dict[str, Any]:
    """The held-out numbers of a checkpoint, as plain data."""
    torch.set_num_threads(1)
    data = read_checkpoint(folder).config.data
    if not isinstance(data, SceneData):
        raise ValueError(f"{folder} was not trained on scenes")
    encoder, splits, seed = open_checkpoint(folder), scene_splits(data), JUDGED["test"]
    known = Suite(name="lab", probes=PROBES, size=SIZE, seed=seed, pairs=splits.validation.pairs)
    composed = Suite(name="lab, held-out pairs", probes=COMPOSED, size=SIZE, seed=seed, pairs=splits.heldout.pairs)
    return {
        "single": single_accuracy(encoder, pairs=splits.validation.pairs, seed=seed, count=SINGLES),
        "single, held-out pairs": single_accuracy(encoder, pairs=splits.heldout.pairs, seed=seed, count=SINGLES),
        "known": [to_json(result) for result in run(encoder, known)],
        "held-out pairs": [to_json(result) for result in run(encoder, composed)],
    }


def read_judged(one: LabRun) -> tuple[dict[str, Any], list[ProbeResult], list[ProbeResult]] | None:
    """(raw, probes on known pairs, probes on held-out pairs), None if the run is not judged."""
    path = one.folder / "test.json"
    if not path.exists():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    return raw, [from_json(each) for each in raw["known"]], [from_json(each) for each in raw["held-out pairs"]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--run", metavar="PATTERN", action="append", default=[])
    parser.add_argument("--again", action="store_true", help="throw the runs of the pattern away first")
    options = parser.parse_args(arguments)
    for one in runs():
        chosen = any(fnmatch.fnmatch(one.name, pattern) for pattern in options.run)
        if options.list or not options.run:
            print(f"{one.name:24} {'judged' if (one.folder / 'test.json').exists() else '-'}")
        if not chosen:
            continue
        if options.again:
            shutil.rmtree(one.folder, ignore_errors=True)
        print(f"== {one.name}", flush=True)
        ensure(one, Console(stderr=True))
        found = read_judged(one)
        if found is not None:
            raw, known, composed = found
            print(f"   single {raw['single']:.3f}, held-out pairs {raw['single, held-out pairs']:.3f}")
            for result in (*known, *composed):
                for row in result.rows:
                    where = f"{result.key.suite.split(';')[0]}: {result.key.probe}: {row.name}"
                    print(f"   {where} {row.score} [{row.low}, {row.high}] n {row.n}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
