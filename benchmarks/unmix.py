"""The study of Unmix heads on scenes: trains what is missing, judges it on held-out scenes, writes docs/unmix.md.

    python benchmarks/unmix.py --list                 what there is and what is done
    python benchmarks/unmix.py --run '64px/*'         train and judge the runs of a pattern
    python benchmarks/unmix.py --write-docs           tables and picture of docs/unmix.md from benchmarks/lab/unmix/

A run is training/configs/lab/unmix.toml with overrides; its checkpoint lies in .runs/lab/unmix/NAME. The base is
training/configs/lab/unmix-base.toml, trained once from b0. Records are small JSON files and are kept in git.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from unmix_judge import Judge, of_heads, training_free

from training.checkpoint import load_model
from training.loop import train
from training.methods.parts.unmix import load_unmix

ROOT = Path(__file__).resolve().parents[1]
RUNS, CONFIGS = ROOT / ".runs" / "lab", ROOT / "training" / "configs" / "lab"
BASE, RECORDS = RUNS / "unmix" / "base", ROOT / "benchmarks" / "lab" / "unmix"
SEEDS = (0, 1, 2)
SIDES = (64, 112)
WEIGHTS = {64: (0.0, 1.0, 10.0, 30.0), 112: (0.0, 1.0, 10.0, 30.0)}
SMALLER: dict[int, tuple[str, ...]] = {
    64: (),
    112: ("optim.batch_size=32",),
}  # three times the cells: half the pictures in a batch
FREE = "training-free"
Judges = dict[Literal["validation", "test"], Judge]


@dataclass(frozen=True, kw_only=True)
class UnmixRun:
    """`kind`: what all seeds share; overrides as on the command line."""

    kind: str
    seed: int
    side_px: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}/seed{self.seed}"

    @property
    def folder(self) -> Path:
        return RUNS / "unmix" / self.name

    @property
    def record(self) -> Path:
        return RECORDS / f"{self.name.replace('/', '-')}.json"


def runs() -> list[UnmixRun]:
    """Everything that is trained here: the curve of MFI's weight, and the ablations, at each size of pictures."""
    kinds: dict[str, tuple[int, tuple[str, ...]]] = {}
    for side_px in SIDES:
        for weight in WEIGHTS[side_px]:
            kinds[f"{side_px}px/mfi-{weight:g}"] = side_px, (f"method_options.mfi={weight}",)
        kinds[f"{side_px}px/pooling-kept"] = side_px, ("method_options.pooling_kept=true",)
    for side_px in SIDES:
        cosine = ('method_options.similarity="cosine"', "method_options.slope=1.0")
        kinds[f"{side_px}px/cosine"] = side_px, cosine
    kinds["64px/others"] = 64, ('method_options.templates=["a {}"]',)
    kinds["64px/no-residual"] = 64, ("method_options.residual=false", 'method_options.norm="batch"')
    kinds["64px/sources"] = 64, ('method_options.preset="sources"',)
    return [
        UnmixRun(
            kind=kind,
            seed=seed,
            side_px=side_px,
            overrides=(*overrides, f"method_options.dense_px={side_px}", f"seed={seed}", *SMALLER[side_px]),
        )
        for seed in SEEDS
        for kind, (side_px, overrides) in kinds.items()
    ]


def ensure_base() -> None:
    if not (BASE / "finished.json").exists():
        began_s, cpu_s = time.time(), time.process_time()
        resume = (BASE / "checkpoint.json").exists()
        overrides = [f"base={json.dumps(str(RUNS / 'b0'))}", f"run.folder={json.dumps(str(BASE))}"]
        result = train(CONFIGS / "unmix-base.toml", overrides, resume=resume)
        spent = {"wall_s": time.time() - began_s, "cpu_s": time.process_time() - cpu_s, "step": result.step}
        (BASE / "finished.json").write_text(json.dumps(spent) + "\n", encoding="utf-8")


def ensure(one: UnmixRun, judges: Judges) -> dict[str, Any]:
    """Train and judge the run unless its record stands."""
    if one.record.exists():
        return json.loads(one.record.read_text(encoding="utf-8"))
    cpu_s = time.process_time()
    if not (one.folder / "checkpoint.json").exists():
        places = (f"base={json.dumps(str(BASE))}", f"run.folder={json.dumps(str(one.folder))}")
        features = f"run.features={json.dumps(str(RUNS / 'unmix' / 'features'))}"
        train(CONFIGS / "unmix.toml", [*one.overrides, *places, features])
    trained_s = time.process_time() - cpu_s
    loaded = load_unmix(one.folder)
    found = {
        **judges["test"].scored(of_heads(loaded, judges["test"].base)),
        "validation": judges["validation"].scored(of_heads(loaded, judges["validation"].base)),
        "cpu_s": round(trained_s, 1),
    }
    write(one.record, found)
    return found


def ensure_free(side_px: int, judges: Judges) -> None:
    """Judge the scores of the base without any training."""
    path = RECORDS / f"{side_px}px-{FREE}.json"
    if not path.exists():
        test, validation = judges["test"], judges["validation"]
        found: dict[str, Any] = {}
        for name, bare in training_free(test.base).items():
            each = validation.calibrated(bare)
            found[name] = {**test.scored(each, intervals=True), "validation": validation.scored(each)}
        write(path, found)


def shortly(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in found.items() if isinstance(value, float)}


def write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--run", metavar="PATTERN", action="append", default=[])
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [one for one in runs() if any(fnmatch.fnmatch(one.name, pattern) for pattern in options.run)]
    if options.list or not (chosen or options.write_docs):
        for one in runs():
            print(f"{one.name:28} {'judged' if one.record.exists() else '-'}")
    if chosen:
        ensure_base()
        base = load_model(BASE)
        for side_px in dict.fromkeys(one.side_px for one in chosen):
            judges: Judges = {split: Judge(base, side_px, split) for split in ("validation", "test")}
            ensure_free(side_px, judges)
            for one in (each for each in chosen if each.side_px == side_px):
                print(one.name, json.dumps(shortly(ensure(one, judges))), flush=True)
    if options.write_docs:
        from unmix_tables import write_page

        write_page([one.name for one in runs()], RECORDS, free=FREE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
