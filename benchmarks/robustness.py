"""The study of robust towers: trainings compared under attacks and corruptions that none of them was trained on.

    python benchmarks/robustness.py --tune                  the rate of all, on validation, by FARE at 2/255
    python benchmarks/robustness.py --run ['fare*']         trains and judges what is missing; writes the record
    python benchmarks/robustness.py --thorough base fare-2  a longer attack on fewer pictures
    python benchmarks/robustness.py --write-docs            tables and plot of docs/robustness.md from the record

All start from the base of the laboratory, .runs/lab/b0/r0 (`python benchmarks/lab.py --run b0/r0`), and take as many
steps on the same scenes. The rate is set on validation; the held-out scenes are judged once. Runs lie in
.runs/robustness.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lab_runs import CONFIGS, ROOT
from benchmarks.robustness_judge import BASE, CE_ALONE, PLAN, judged, named_under_attack, thoroughly
from benchmarks.robustness_tables import RECORD, write_docs
from evaluation.robustness.kinds import JUDGED_KINDS
from training.loop import train
from training.opening import open_checkpoint

RUNS = ROOT / ".runs" / "robustness"
STEPS = 100
RATES = (1e-4, 3e-4)
TUNED = "fare-2"
WITH_TARGETS = ("base", "fare-2", "tecoa-2")  # of APGD-T too
MOST_LOST = 0.03  # of clean accuracy, on validation
COMMON = (
    "data.parts.0.scenes=4000",
    "data.parts.1.scenes=4000",
    "optim.batch_size=32",
    "optim.warmup_steps=20",
    "optim.weight_decay=1e-4",
    "optim.ema_decay=0.9",
    "run.precision=fp32",
    "run.validate_steps=1000",
    "run.checkpoint_steps=1000",
)
PLAIN = ("method_options={frozen=['text']}",)


@dataclass(frozen=True)
class Variant:
    method: str
    overrides: tuple[str, ...]


def _attack(epsilon: float, more: str = "") -> str:
    """Three steps that can cross the ball; ten, as the authors take, are three times as dear."""
    return f"method_options={{epsilon={epsilon},attack_steps=3,step_size={max(epsilon / 2, 0.5)}{more}}}"


VARIANTS: Mapping[str, Variant] = {
    "control": Variant("base", PLAIN),
    "corruptions, other kinds": Variant("base", (*PLAIN, "augment.corruption={severities=[1,5]}")),
    "corruptions, the judged kinds": Variant(
        "base", (*PLAIN, f"augment.corruption={{severities=[1,5],kinds={json.dumps(list(JUDGED_KINDS))}}}")
    ),
    "fare-1": Variant("fare", (_attack(1),)),
    "fare-2": Variant("fare", (_attack(2),)),
    "fare-4": Variant("fare", (_attack(4),)),
    "tecoa-0": Variant("tecoa", (_attack(0, ",label='pair',templates=['a {}']"),)),
    "tecoa-2": Variant("tecoa", (_attack(2, ",label='pair',templates=['a {}']"),)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="rates, on validation")
    parser.add_argument("--run", metavar="PATTERN", nargs="?", const="*", help="train and judge what is missing")
    parser.add_argument("--thorough", metavar="NAME", nargs="+", default=[], help="a longer attack")
    parser.add_argument("--write-docs", action="store_true", help="tables and plot from the record")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if chosen.tune:
        record["rate"] = tuned()
        _write(record)
    if chosen.run:
        rows = record.setdefault("rows", {})
        for name in ("base", *VARIANTS):
            if name not in rows and fnmatch.fnmatch(name, chosen.run):
                folder, cost = (BASE, {}) if name == "base" else trained(name, record["rate"]["rate"])
                rows[name] = {**judged(folder, plan=PLAN if name in WITH_TARGETS else CE_ALONE), **cost}
                _write(record)
                print(f"{name}: {json.dumps({k: v for k, v in rows[name].items() if k != 'corruptions'})}", flush=True)
    for name in chosen.thorough:
        folder = BASE if name == "base" else trained(name, record["rate"]["rate"])[0]
        record.setdefault("thorough", {})[name] = thoroughly(folder)
        _write(record)
        print(f"{name}: {record['thorough'][name]}", flush=True)
    if chosen.write_docs:
        write_docs(record)
    return 0


def tuned() -> dict[str, Any]:
    """The rate that keeps most under attack on validation, of those that lose no more than MOST_LOST clean."""
    before = named_under_attack(open_checkpoint(BASE))
    tried: dict[str, Any] = {}
    for rate in RATES:
        folder, cost = trained(TUNED, rate)
        tried[f"{rate:g}"] = {**named_under_attack(open_checkpoint(folder)), **cost}
        print(f"{TUNED} {rate:g}: {tried[f'{rate:g}']}, before {before}", flush=True)
    kept = [rate for rate, found in tried.items() if found["clean"] >= before["clean"] - MOST_LOST]
    best = max(kept or tried, key=lambda rate: tried[rate]["attacked" if kept else "clean"])
    return {"rate": float(best), "tried": tried, "before": before}


def trained(name: str, rate: float) -> tuple[Path, dict[str, float]]:
    """The folder of a run, trained where it is not there, and what it cost."""
    variant, folder = VARIANTS[name], RUNS / f"{name.replace(', ', '-').replace(' ', '-')}-{rate:g}"
    spent = folder / "spent.json"
    if not spent.exists():
        places = [f"run.folder={json.dumps(str(folder))}", f"base={json.dumps(str(BASE))}", f"method={variant.method}"]
        knobs = [f"optim.steps={STEPS}", f"optim.rate={rate:g}", f"run.log_steps={max(1, STEPS // 10)}"]
        began_s, cpu_s = time.time(), time.process_time()
        train(CONFIGS / "b0.toml", [*COMMON, *places, *knobs, *variant.overrides])
        cost = {"train_wall_s": time.time() - began_s, "train_cpu_s": time.process_time() - cpu_s}
        spent.write_text(json.dumps({name: round(value, 1) for name, value in cost.items()}) + "\n", encoding="utf-8")
    return folder, json.loads(spent.read_text(encoding="utf-8"))


def _write(record: Mapping[str, Any]) -> None:
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
