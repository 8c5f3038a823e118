"""Measurements of the study's runs: questions on held-out scenes, WiSE-FT's curve, linear probes, bounds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.lab_bounds import bounds
from benchmarks.lab_probe import probed
from benchmarks.lab_records import Record
from benchmarks.lab_runs import StudyRun
from benchmarks.lab_tables import SINGLES
from evaluation.probe_results import ProbeResult, to_json
from evaluation.probes.pool import PoolSize
from evaluation.scenes_report import scenes_report, single_accuracy
from evaluation.suites import Suite, run
from training.checkpoint import WEIGHTS_FILE, load_model, read_checkpoint
from training.config import SceneData
from training.data.scenes import scene_splits
from training.data.source import JUDGED
from training.encoder import TorchEncoder
from training.log import LOG_FILE
from training.opening import open_checkpoint
from training.wise_ft import interpolate, wise_ft_curve

SIZE = PoolSize(compass=64, class_groups=8, squares=8, counts=8, additions=8, spoilt=16)
TOY_SIZE = PoolSize(compass=4, class_groups=1, squares=1, counts=1, additions=1, spoilt=2)
PROBES = ("binding", "place", "relation", "order", "negation")
COMPOSED = ("binding", "relation")
TOY_SINGLES = 50
ALPHAS, TOY_ALPHAS = tuple(round(step / 10, 1) for step in range(11)), (0.0, 1.0)
KEPT = ("name", "n", "score", "low", "high", "chance", "blind", "bag", "truth")
LEARNING = ("binding/colours swapped", "relation/opposite relation")
GAINED = {  # what a fine-tune is for, and what it must not cost
    "negclip": ("binding/colours swapped", "single"),
    "negation-reader": ("negation/four options, recombined words", "single"),
    "one-topic": ("negation/four options, negative", "single"),
}
MOST_LOST = 0.01


def measure(one: StudyRun) -> Record:
    """The numbers of a run that stands here, as plain data."""
    torch.set_num_threads(1)
    match one.measured, one.base:
        case "questions", _:
            return questions(one)
        case "wise-ft", StudyRun() as tuned:
            return wise_ft(tuned)
        case "linear probe", StudyRun() as base:
            return {"questions": probed(base, size=_size(one))}
        case "bounds", StudyRun() as base:
            return {"questions": bounds(base, size=_size(one))}
        case other, _:
            raise ValueError(f"{one.name}: the lab measures no {other}")


def questions(one: StudyRun) -> Record:
    """Naming and the probes on held-out scenes, of trained pairs and of pairs never trained; validation over steps."""
    data = scene_data(one)
    encoder, splits, seed, size = open_checkpoint(one.folder), scene_splits(data), JUDGED["test"], _size(one)
    singles = TOY_SINGLES if one.small else SINGLES
    known = Suite(name="lab", probes=PROBES, size=size, seed=seed, pairs=splits.validation.pairs)
    composed = Suite(name="lab, held-out pairs", probes=COMPOSED, size=size, seed=seed, pairs=splits.heldout.pairs)
    return {
        "single": single_accuracy(encoder, pairs=splits.validation.pairs, seed=seed, count=singles),
        "single, held-out pairs": single_accuracy(encoder, pairs=splits.heldout.pairs, seed=seed, count=singles),
        "known": rows_of(run(encoder, known)),
        "held-out pairs": rows_of(run(encoder, composed)),
        "validation": {name: _validated(one, name) for name in LEARNING},
    }


def rows_of(results: Sequence[ProbeResult]) -> dict[str, list[dict[str, Any]]]:
    """Scores by probe, without examples, figures and outcomes: a record, not a report."""
    found = [to_json(result) for result in results]
    return {each["key"]["probe"]: [{key: row[key] for key in KEPT} for row in each["rows"]] for each in found}


def wise_ft(tuned: StudyRun) -> Record:
    """WiSE-FT between the run's base and the run: alpha is chosen on validation, and judged on the held-out seed beside
    0 and 1."""
    if tuned.base is None:
        raise ValueError(f"{tuned.name} has no base")
    start, end = (load_file(folder / WEIGHTS_FILE) for folder in (tuned.base.folder, tuned.folder))
    loaded, pairs = load_model(tuned.folder), scene_splits(scene_data(tuned)).validation.pairs
    gained, neutral = GAINED[tuned.kind]
    fewer: dict[str, Any] = {"size": TOY_SIZE, "singles": TOY_SINGLES} if tuned.small else {}
    encoder = TorchEncoder(
        loaded.model.encode_image,
        loaded.model.encode_text,
        image_spec=loaded.info.image_spec,
        tokenizer=loaded.tokenizer,
        name=tuned.name,
        fingerprint=tuned.name,
    )

    def judged(alpha: float, seed: int) -> dict[str, Any]:
        state = interpolate(start, end, alpha)
        loaded.model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
        return scenes_report(encoder, pairs=pairs, seed=seed, probes=(gained.split("/")[0],), **fewer)

    alphas = TOY_ALPHAS if tuned.small else ALPHAS
    curve = wise_ft_curve(
        {alpha: judged(alpha, JUDGED["validation"]) for alpha in alphas},
        cure=gained,
        neutral=neutral,
        most_lost=MOST_LOST,
    )
    chosen = curve["chosen"]["alpha"]
    curve["held out"] = {str(alpha): judged(alpha, JUDGED["test"]) for alpha in dict.fromkeys((0.0, chosen, 1.0))}
    return curve


def scene_data(one: StudyRun) -> SceneData:
    """The drawn scenes that the run's checkpoint was trained on.

    Raises:
        ValueError: it was trained on something else.
    """
    data = read_checkpoint(one.folder).config.data
    if not isinstance(data, SceneData):
        raise ValueError(f"{one.name} was not trained on scenes")
    return data


def _size(one: StudyRun) -> PoolSize:
    return TOY_SIZE if one.small else SIZE


def _validated(one: StudyRun, name: str) -> list[tuple[int, float]]:
    """A validation number by step, from the run's log."""
    log = one.folder / LOG_FILE
    if not log.exists():
        return []
    with log.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["series"] == "validation" and line["name"] == name]
    return [(int(line["step"]), float(line["value"])) for line in lines]
