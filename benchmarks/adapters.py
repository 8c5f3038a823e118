"""The study of adapters: trains what is missing, judges it on held-out pictures, writes the page.

    python benchmarks/adapters.py --data DATA --list                      what there is, and what was run here
    python benchmarks/adapters.py --data DATA --tune 'drawings/*'         set rates on validation, once
    python benchmarks/adapters.py --data DATA --run 'drawings/*/16/*'     train and judge runs of a pattern
    python benchmarks/adapters.py --write-docs                            tables and plots of docs/adapters.md

A run is TASK/METHOD/SHOTS/SEED, or TASK/METHOD/16xTIMES/SEED with so many times the passes. DATA holds
fashion-products, flowers5, textures10 and flickr8k-800; drawings want none.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.adapters_judge import (
    ALPHAS,
    Answered,
    ConditionalScores,
    EncoderScores,
    Scores,
    base_answers,
    base_scores,
    conditions,
    harmonic,
    numbers,
    prompt_spread,
    wise_ft,
)
from benchmarks.adapters_tasks import SEEDS, SHOTS, STUDY, TASKS, AdapterTask, Judging, recipe, task
from benchmarks.lab_runs import RECORDS
from training import method as methods
from training.checkpoint import load_model, load_state, read_checkpoint
from training.encoder import encoder_of
from training.few_shot import CONTROLS
from training.loop import train
from training.methods.parts.conditional_run import ConditionalRun
from training.methods.parts.few_shot import HeadMethod, scale_of
from training.methods.parts.shots import ShotOptions
from training.opening import open_checkpoint
from training.saved import SavedRun
from training.wise_ft import interpolate

RUNS, FOUND = STUDY / "runs", STUDY / "found"
ZERO_SHOT = "zero-shot"
HEADS = ("gda", "linear_probe", "tip_adapter", "tip_adapter_f", "clip_adapter")
LONGER = (0.25, 4.0)  # times the passes, at the most shots of drawings
_FEW_STEPS = 24


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """passes: over the shots, of photographs fewer where there are `photograph_passes`. rates: of which validation
    chooses. options: of the method; of photographs, `photographs` too."""

    passes: int
    rates: tuple[float, ...]
    options: Mapping[str, Any] | None = None
    photographs: Mapping[str, Any] | None = None
    batch_size: int = 32
    weight_decay: float = 0.0
    photograph_passes: int | None = None
    drawings_only: bool = False

    def passes_of(self, of: AdapterTask) -> int:
        return self.passes if of.name == "drawings" or self.photograph_passes is None else self.photograph_passes


STEPPED = {
    "coop": StepPlan(passes=50, photograph_passes=20, rates=(2e-3, 1e-2, 3e-2), options={"n_ctx": 4}),
    "cocoop": StepPlan(passes=10, photograph_passes=2, rates=(2e-3, 1e-2), options={"n_ctx": 4}),
    "vpt": StepPlan(passes=20, rates=(2e-3, 1e-2, 3e-2), drawings_only=True),
    "ivlp": StepPlan(passes=20, rates=(2e-3, 1e-2, 3e-2), drawings_only=True),
    "maple": StepPlan(passes=20, rates=(2e-3, 1e-2, 3e-2), drawings_only=True),
    "promptsrc": StepPlan(passes=20, rates=(2e-3, 1e-2, 3e-2), photographs={"towers": "text"}),
    "clip_lora": StepPlan(passes=20, rates=(1e-3, 5e-3, 2e-2), weight_decay=1e-2),
    "full": StepPlan(passes=10, rates=(3e-5, 3e-4, 3e-3), weight_decay=1e-2),
}
CONDITIONAL = "cocoop"
WHOLE = ("clip_lora", "full")  # they ship a whole model, whose weights can be mixed with the base's


@dataclass(frozen=True, kw_only=True)
class AdapterRun:
    task: str
    method: str
    shots: int
    seed: int
    longer: float = 1.0

    @property
    def name(self) -> str:
        times = "" if self.longer == 1 else f"x{self.longer:g}"
        return f"{self.task}/{self.method}/{self.shots}{times}/{self.seed}"

    @property
    def found(self) -> Path:
        return FOUND / f"{self.name.replace('/', '-')}.json"


def runs() -> list[AdapterRun]:
    """Everything, in an order in which the first part is worth something alone: many shots first."""
    out: list[AdapterRun] = []
    for name in TASKS:
        out.append(AdapterRun(task=name, method=ZERO_SHOT, shots=0, seed=0))
        for shots in reversed(SHOTS):
            for seed in SEEDS:
                for method in (*CONTROLS, *HEADS, *STEPPED):
                    if name == "drawings" or method not in STEPPED or not STEPPED[method].drawings_only:
                        out.append(AdapterRun(task=name, method=method, shots=shots, seed=seed))
    for longer in LONGER:
        out += [
            AdapterRun(task=TASKS[0], method=method, shots=max(SHOTS), seed=seed, longer=longer)
            for seed in SEEDS
            for method in STEPPED
        ]
    return out


def measure(one: AdapterRun, of: AdapterTask) -> dict[str, Any]:
    """Train and judge; nothing of it is kept but the numbers."""
    before = base_scores(of)
    if one.method == ZERO_SHOT:
        spread = {name: prompt_spread(of, before, name) for name in ("base", "new")}
        return {**_judged(of, base_answers(of)), "templates": spread}
    if one.method not in STEPPED:
        return _head(one, of)
    return _stepped(one, of, rate=rate_of(one, of))


def _judged(of: AdapterTask, answered: Mapping[Judging, Answered]) -> dict[str, Any]:
    return {split: numbers(answered[split], asked) for split, asked in of.asked.items()}


def _head(one: AdapterRun, of: AdapterTask) -> dict[str, Any]:
    base, _ = of.classes
    options = {"label": of.label, "shots": one.shots, "shots_seed": one.seed, "only": list(base)}
    if one.method in CONTROLS:
        made: Any = CONTROLS[one.method](ShotOptions.parse(options, method=one.method))
    else:
        made = methods.create(one.method, options)
    assert isinstance(made, HeadMethod)
    features, began_s = of.features, time.process_time()
    opened = of.opened
    made.setup(
        methods.Context(
            model=opened.info.config.model,
            tokenizer=opened.tokenizer,
            source=of.source,
            batch_size=32,
            device="cpu",
            seed=one.seed,
            base=opened,
            features=features,
        )
    )
    made.fit(features)
    spent_s = time.process_time() - began_s
    assert made.classes == base, "the task's classes are those of the head, in its order"
    answered: dict[Judging, Answered] = {
        split: each.with_head(made.head, of.asked[split]) for split, each in base_answers(of).items()
    }
    report = made.report()
    numbers_of = sum(array.size for array in made.head.arrays().values())
    return {
        **_judged(of, answered),
        "chosen": {knob: report["tried"][knob] for knob in made.knobs},
        "cpu_s": spent_s,
        "parameters": numbers_of,
        "pictures": report["shots"]["pictures"],
    }


def _stepped(one: AdapterRun, of: AdapterTask, *, rate: float, whole: bool = True) -> dict[str, Any]:
    """whole: at the most shots alphas too, and wordings of the first seed."""
    folder = RUNS / one.name.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    plan, (base, _) = STEPPED[one.method], of.classes
    options = {"label": of.label, "shots": one.shots, "shots_seed": one.seed, "only": list(base)}
    options |= {**(plan.options or {}), **((plan.photographs or {}) if of.name != "drawings" else {})}
    pictures = len(base) * one.shots
    batch_size = min(plan.batch_size, pictures)
    steps = max(_FEW_STEPS, math.ceil(plan.passes_of(of) * one.longer * pictures / batch_size))
    optim = {
        "batch_size": batch_size,
        "steps": steps,
        "rate": rate,
        "warmup_steps": 2,
        "weight_decay": plan.weight_decay,
        "clip_norm": 1.0,
        "ema_decay": 0.0,
    }
    places = {"folder": str(folder), "features": str(STUDY / "features"), "device": "cpu", "threads": 1}
    places |= {"checkpoint_steps": steps, "validate_steps": steps, "log_steps": steps, "seed": one.seed}
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".toml")
    path.write_text(recipe(of, one.method, options, optim, places), encoding="utf-8")
    if methods.create(one.method, options).needs.level == "features":
        _ = of.features  # worked out once, before the clock runs
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory from here on
    began_s, cpu_s, held_mib = time.time(), time.process_time(), _memory_mib("VmRSS")
    train(path)
    trained = read_checkpoint(folder).labels  # a whole model has none
    assert one.method in WHOLE or trained == base, "what was trained are the classes of the first half"
    cost = {
        "wall_s": time.time() - began_s,
        "cpu_s": time.process_time() - cpu_s,
        "memory_mib": _memory_mib("VmHWM") - held_mib,
        "steps": steps,
        "rate": rate,
        "parameters": _moved(folder, steps),
        "pictures": pictures,
    }
    scores = scores_of(one.method, folder, of)
    after: dict[Judging, Answered] = {split: Answered.of(scores, asked) for split, asked in of.asked.items()}
    found = _judged(of, after)
    if whole and one.longer == 1 and one.shots == max(SHOTS):
        origin = base_answers(of)
        if one.method in WHOLE:
            found["wise_ft"] = wise_ft(of.asked, lambda alpha: _between(folder, of, alpha), (0.0, 0.25, 0.5, 0.75, 1.0))
        else:
            found["wise_ft"] = wise_ft(
                of.asked, lambda alpha: {split: origin[split].mixed(after[split], alpha) for split in origin}, ALPHAS
            )
        if isinstance(scores, ConditionalScores):
            found["conditions"] = {name: conditions(of, scores, name) for name in ("base", "new")}
        if one.seed == SEEDS[0] and isinstance(scores, EncoderScores):
            found["templates"] = {name: prompt_spread(of, scores, name) for name in ("base", "new")}
    shutil.rmtree(folder)
    return {**found, **cost}


def scores_of(method: str, folder: Path, of: AdapterTask) -> Scores:
    """What a checkpoint answers, through the method that made it."""
    info = read_checkpoint(folder)
    if method == CONDITIONAL:
        run = ConditionalRun.of(SavedRun(folder=folder, info=info), position="end")
        return ConditionalScores(base=base_scores(of), run=run)
    keeps_images = "image_encoder" in info.inherited
    return EncoderScores(
        encoder=open_checkpoint(folder), templates=info.templates, scale=scale_of(of.opened), keeps_images=keeps_images
    )


def _between(folder: Path, of: AdapterTask, alpha: float) -> dict[Judging, Answered]:
    """The model whose weights are (1 - alpha) of the base and alpha of the tuned one."""
    tuned = load_model(folder)
    mixed = interpolate(of.opened.model.state_dict(), tuned.model.state_dict(), alpha)
    tuned.model.load_state_dict(mixed)
    scores = EncoderScores(
        encoder=encoder_of(tuned, name="between"),
        templates=tuned.info.templates,
        scale=scale_of(of.opened),
        keeps_images=False,
    )
    return {split: Answered.of(scores, asked) for split, asked in of.asked.items()}


def rate_of(one: AdapterRun, of: AdapterTask) -> float:
    """The rate that was best on validation at 16 shots of seed 0: as tuned here, else as recorded.

    Raises:
        ValueError: nothing was tuned for this task and method.
    """
    path = FOUND / f"rate-{of.name}-{one.method}.json"
    if not path.exists():
        records = json.loads((RECORDS / "adapters.json").read_text(encoding="utf-8"))
        if recorded := records.get(AdapterRun(task=of.name, method=one.method, shots=max(SHOTS), seed=0).name):
            return recorded["rate"]
        raise ValueError(f"no rate of {of.name}/{one.method}: --tune '{of.name}/{one.method}' sets it on validation")
    return json.loads(path.read_text(encoding="utf-8"))["rate"]


def tune(of: AdapterTask, method: str) -> dict[str, Any]:
    """Every rate once, judged by the harmonic mean of base and new classes of validation."""
    one = AdapterRun(task=of.name, method=method, shots=max(SHOTS), seed=0)
    tried: dict[str, float] = {}
    for rate in STEPPED[method].rates:
        found = _stepped(one, of, rate=rate, whole=False)["validation"]
        tried[f"{rate:g}"] = harmonic(found["base"]["value"], found["new"]["value"])
        print(f"   {of.name}/{method} {rate:g}: {tried[f'{rate:g}']:.3f}", flush=True)
    best = max(tried, key=lambda rate: tried[rate])
    return {"rate": float(best), "tried": tried}


def _moved(folder: Path, steps: int) -> int:
    """How many numbers the optimizer moved."""
    state = load_state(folder / "checkpoints" / f"step-{steps:08}")
    return sum(tensor.numel() for name, tensor in state.items() if name.endswith("exp_avg"))


def _memory_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def _chosen(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    return {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the photographs' sets")
    parser.add_argument("--list", action="store_true", help="what there is, and what was run here")
    parser.add_argument("--tune", metavar="TASK/METHOD", action="append", default=[], help="set a rate on validation")
    parser.add_argument("--run", metavar="PATTERN", action="append", default=[], help="train and judge what is not yet")
    parser.add_argument("--again", action="store_true", help="with --run and --tune: what was done too")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th run from I: for several processes")
    parser.add_argument("--write-docs", action="store_true", help="tables and plots from what was run here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    FOUND.mkdir(parents=True, exist_ok=True)
    every = runs()
    known = {name: name.split("/")[0] for name in dict.fromkeys(f"{one.task}/{one.method}" for one in every)}
    tasks: dict[str, AdapterTask] = {}
    part, parts = map(int, options.part.split("/"))

    def opened(name: str) -> AdapterTask:
        return tasks.setdefault(name, task(name, data=options.data)) if name not in tasks else tasks[name]

    try:
        wanted = sorted(_chosen([name for name in known if name.split("/")[1] in STEPPED], options.tune))
        for name in wanted[part::parts]:
            path = FOUND / f"rate-{name.replace('/', '-')}.json"
            if options.again or not path.exists():
                path.write_text(json.dumps(tune(opened(known[name]), name.split("/")[1])) + "\n", encoding="utf-8")
        chosen = _chosen([one.name for one in every], options.run)
        for one in [one for one in every if one.name in chosen][part::parts]:
            if options.again or not one.found.exists():
                began_s = time.time()
                found = measure(one, opened(one.task))
                one.found.write_text(json.dumps({"run": one.name, **found}) + "\n", encoding="utf-8")
                shown = " ".join(f"{name} {each['value']:.3f}" for name, each in found["test"].items())
                print(f"{one.name}: {shown} ({time.time() - began_s:.0f} s)", flush=True)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if options.list:
        for name in known:
            done = sum(one.found.exists() for one in every if f"{one.task}/{one.method}" == name)
            print(f"{name:28} {done} of {sum(f'{one.task}/{one.method}' == name for one in every)}")
    if options.write_docs:
        from benchmarks import adapters_plots, adapters_tables

        adapters_plots.draw(adapters_tables.write())
    return 0


if __name__ == "__main__":
    sys.exit(main())
