"""Is there anything to cure in search of pictures by pictures and of texts by texts, and what cures it?

    python benchmarks/intra_modal.py --data DATA                 trains the base of scenes, judges, writes the record
    python benchmarks/intra_modal.py --data DATA --split validation   the same on validation, into no record
    python benchmarks/intra_modal.py --write-docs                the tables and the picture of docs/intra-modal.md

DATA holds fashion-products, flowers5, textures10, flickr8k-800 and prompts/imagenet.json. Knobs are set on validation;
the held-out split is judged once with them. Vectors stay in .runs/intra-modal.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.intra_modal_tables import RECORD, write_docs
from benchmarks.intra_modal_tasks import (
    F32,
    Judged,
    NamingTask,
    SearchTask,
    StudyBase,
    everyday_base,
    scenes_base,
)
from benchmarks.lab_runs import CONFIGS, ROOT
from evaluation.metrics import Estimate, mean_estimate, normalize
from evaluation.same_modality import SameModality, search_same
from evaluation.significance import Means, paired_means
from model_store.intra_modal import VectorMaps, centred, isoclip, principal, random_directions
from training.checkpoint import LoadedModel, load_model
from training.inversion import Descent, Inverted, oti, ovi
from training.loop import train
from training.methods.parts.projections import projections_of

RUNS = ROOT / ".runs" / "intra-modal"
RAW, MEAN, ISOCLIP, OTI, OVI = "as it is", "mean", "isoclip", "oti", "ovi"
PICTURE_PCA, RANDOM = "picture pca", "random"
OTHER_START = "oti from another's word"
SEEDS = (0, 1, 2)
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)
TOPS = (0.0, 1 / 16, 1 / 8, 1 / 4)
OVI_STEPS = 300  # of the recipe's 1,000
_TIMED = 2000
VIT = "{width=64,head_width=16,heads=[4,4,4,4],mlp=[128,128,128,128]}"
RECIPE = (
    'name="intra-modal"',
    "model.embed_dim=96",
    "model.image={trunk='clipworks_vit_t',size_px=48,pool='flat'}",
    f"model.slim={{image={VIT}}}",
    "model.text.width=96",
    "data.parts.0.scenes=3000",
    "data.parts.1.scenes=9000",
    "optim.batch_size=48",
    "optim.steps=1500",
    "optim.warmup_steps=100",
    "run.precision=fp32",
    "run.validate_steps=1500",
    "run.checkpoint_steps=300",
)
Maps = tuple[VectorMaps, ...]  # of several seeds, whose outcomes are averaged


@dataclass(frozen=True, kw_only=True)
class MapCell:
    """A way of fitting maps; knobs -> maps."""

    name: str
    tried: Mapping[str, Maps]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--base", choices=("everyday-small", "scenes"), help="one of the two; its part of the record")
    parser.add_argument("--write-docs", action="store_true")
    chosen = parser.parse_args()
    if chosen.data is not None:
        judge(chosen.data, chosen.split, chosen.base)
    if chosen.write_docs:
        write_docs()
    return 0


def judge(data: Path, split: Judged, only: str | None) -> None:
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    opened: dict[str, Callable[[], StudyBase]] = {
        "everyday-small": lambda: everyday_base(data, RUNS / "vectors"),
        "scenes": lambda: scenes_base(trained(), RUNS / "vectors"),
    }
    for name, opening in opened.items():
        if only in (None, name):
            record[name] = judged(opening(), split)
    text = json.dumps(record, indent=1) + "\n"
    (RECORD if split == "test" else RUNS / "validation.json").write_text(text, encoding="utf-8")


def trained() -> Path:
    """The base of scenes, with two towers that end in projections of their own; trained where it is not there."""
    folder = RUNS / "base"
    if not (folder / "finished.json").exists():
        started = time.process_time()
        train(
            CONFIGS / "b1.toml",
            [*RECIPE, f"run.folder={json.dumps(str(folder))}"],
            resume=(folder / "checkpoint.json").exists(),
        )
        (folder / "finished.json").write_text(json.dumps({"core_minutes": (time.process_time() - started) / 60}) + "\n")
    return folder


def cells_of(base: StudyBase) -> list[MapCell]:
    """Every fit of maps."""
    dim = base.pictures.shape[1]
    keeps = sorted({max(1, round(share * dim)) for share in SHARES})
    cells = [MapCell(name=MEAN, tried={"": (centred(base.pictures, base.texts["names"]),)})]
    for source, texts in base.texts.items():
        kept = {f"{keep} kept": (principal(texts, keep=keep),) for keep in keeps}
        cells.append(MapCell(name=f"text pca, {source}", tried=kept))
    if base.checkpoint is not None:
        ends = projections_of(load_model(base.checkpoint).model)
        bands = [(round(top * dim), keep) for top, keep in product(TOPS, keeps) if round(top * dim) + keep <= dim]
        tried = {
            f"{top} left out, {keep} kept": (isoclip(ends.image, ends.text, top=top, keep=keep),) for top, keep in bands
        }
        cells.append(MapCell(name=ISOCLIP, tried=tried))
    shown = {f"{keep} kept": (principal(base.pictures, keep=keep),) for keep in keeps}
    drawn = {f"{keep} kept": tuple(random_directions(dim, keep=keep, seed=seed) for seed in SEEDS) for keep in keeps}
    return [*cells, MapCell(name=PICTURE_PCA, tried=shown), MapCell(name=RANDOM, tried=drawn)]


def judged(base: StudyBase, split: Judged) -> dict[str, Any]:
    """The record of one base on one split, knobs from validation."""
    cells, found = cells_of(base), dict[str, Any]()
    loaded = None if base.checkpoint is None else load_model(base.checkpoint)
    chosen: dict[str, dict[str, Maps]] = {}
    found_words: dict[str, F32] = {}
    for tuned, task in zip(base.search["validation"], base.search[split], strict=True):
        rows: dict[str, Any] = {}
        outcomes = {RAW: searched(task, None)}
        chosen[task.name] = {}
        for cell in cells:
            scores = {knobs: float(searched(tuned, maps).precisions.mean()) for knobs, maps in cell.tried.items()}
            knobs = max(scores, key=lambda each: scores[each])
            chosen[task.name][cell.name] = cell.tried[knobs]
            rows[cell.name] = {"knobs": knobs, "validation": scores[knobs]}
            outcomes[cell.name] = searched(task, cell.tried[knobs])
        if loaded is not None:
            for name, inverted in inversions(loaded, task).items():
                queries = normalize(inverted.vectors.numpy())
                outcomes[name] = _found(task, queries)
                if name == OTI:
                    found_words[task.name] = queries
                rows[name] = {"loss": [float(inverted.losses[0]), float(inverted.losses[-1])]}
        controls = controls_of(base, task)
        control = max(controls, key=lambda name: rows[name]["validation"])
        for name, outcome in outcomes.items():
            rows[name] = rows.get(name, {}) | _numbers(outcome, outcomes[RAW], outcomes[control])
        found[task.name] = {
            "modality": task.modality,
            "chance": outcomes[RAW].chance,
            "controls": controls,
            "control": control,
            "rows": rows,
        }
        print(f"{base.name}: {task.name} judged", flush=True)
    naming = {task.name: named(task, chosen, found_words.get(task.name)) for task in base.naming[split]}
    return {"dim": base.pictures.shape[1], "search": found, "naming": naming, "cost": costs(base, loaded)}


def controls_of(base: StudyBase, task: SearchTask) -> tuple[str, ...]:
    """What a cure has to beat: directions of the searched modality itself, and random ones."""
    own = (PICTURE_PCA,) if task.modality == "image" else tuple(f"text pca, {source}" for source in base.texts)
    return (*own, RANDOM)


def searched(task: SearchTask, maps: Maps | None) -> SameModality:
    """The task through the maps of its modality; outcomes of several maps are averaged query by query."""
    if maps is None:
        return _found(task, task.vectors)
    each: list[SameModality] = []
    for both in maps:
        vectors = (both.image if task.modality == "image" else both.text)(task.vectors)
        each.append(search_same(vectors, vectors, task.labels))
    precisions = np.mean([one.precisions for one in each], axis=0)
    return replace(each[0], precisions=precisions, hits=np.mean([one.hits for one in each], axis=0))


def _found(task: SearchTask, queries: F32) -> SameModality:
    return search_same(queries, task.vectors, task.labels)


def inversions(loaded: LoadedModel, task: SearchTask) -> dict[str, Inverted]:
    """Queries through the other tower, and from another query's pseudo-word on."""
    targets = torch.from_numpy(task.vectors)
    if task.modality == "text":
        return {OVI: ovi(loaded, targets, descent=Descent(steps=OVI_STEPS))}
    own = oti(loaded, targets)
    return {OTI: own, OTHER_START: oti(loaded, targets, start=own.tokens.roll(1, dims=0))}


def _numbers(outcome: SameModality, raw: SameModality, control: SameModality) -> dict[str, Any]:
    estimates = {name: _interval(each) for name, each in outcome.estimates().items()}
    return {
        **estimates,
        "minus raw": _difference(raw.precisions, outcome.precisions, outcome.labels),
        "minus control": _difference(control.precisions, outcome.precisions, outcome.labels),
    }


def _interval(found: Estimate) -> list[float]:
    return [round(found.value, 4), round(found.low, 4), round(found.high, 4)]


def _difference(
    before: NDArray[np.float64], after: NDArray[np.float64], groups: NDArray[np.int64]
) -> list[float] | None:
    """after - before of the same queries, with its 95 % interval over groups."""
    at, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    sums = (np.asarray(np.bincount(at, each), dtype=np.float64) for each in (before, after))
    found = paired_means(*(Means(sums=each, sizes=sizes.astype(np.float64)) for each in sums))
    return None if found is None else [round(each, 4) for each in (found.value, found.low, found.high)]


def named(task: NamingTask, chosen: Mapping[str, Mapping[str, Maps]], words: F32 | None) -> dict[str, Any]:
    """Accuracy of naming pictures by texts, both sides through each map as the search of these pictures set it.

    words: unit text vectors that `oti` found for the pictures.
    """
    maps = chosen["products" if task.name == "articles" else task.name]
    right = {RAW: _right(task.vectors, task)}
    for name, several in maps.items():
        right[name] = np.mean(
            [_right(both.image(task.vectors), task, both.text(task.classes)) for both in several], axis=0
        )
    if words is not None:
        right[OTI] = _right(words, task)
    alone = np.arange(len(task.truth))
    return {
        "classes": len(task.classes),
        "rows": {
            name: {"accuracy": _interval(mean_estimate(each)), "minus raw": _difference(right[RAW], each, alone)}
            for name, each in right.items()
        },
    }


def _right(vectors: F32, task: NamingTask, classes: F32 | None = None) -> NDArray[np.float64]:
    named_as = (vectors @ (task.classes if classes is None else classes).T).argmax(axis=1)
    return (named_as == task.truth).astype(np.float64)


def costs(base: StudyBase, loaded: LoadedModel | None) -> dict[str, Any]:
    """Seconds of one query: a map of half of the directions, and inversions alone and among others."""
    dim = base.pictures.shape[1]
    mapping, vector = principal(base.texts["names"], keep=dim // 2).image, base.pictures[:1]
    started = time.perf_counter()
    for _ in range(_TIMED):
        mapping(vector)
    found = {"map": (time.perf_counter() - started) / _TIMED}
    if loaded is not None:
        targets = torch.from_numpy(base.pictures[:64])
        runs: dict[str, Callable[[torch.Tensor], Inverted]] = {
            OTI: lambda each: oti(loaded, each),
            OVI: lambda each: ovi(loaded, each, descent=Descent(steps=OVI_STEPS)),
        }
        for (name, run), count in product(runs.items(), (1, 64)):
            started = time.perf_counter()
            run(targets[:count])
            found[f"{name}, {count} at once"] = (time.perf_counter() - started) / count
    return found


if __name__ == "__main__":
    sys.exit(main())
