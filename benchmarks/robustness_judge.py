"""Measurements for benchmarks/robustness.py: naming clean, corrupted and attacked; binding, retrieval."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab_runs import RUNS
from evaluation.encoder import Encoder
from evaluation.metrics import mean_estimate
from evaluation.probes.readers import said
from evaluation.retrieval import retrieval
from evaluation.robustness.bounds import moved
from evaluation.robustness.classifier import F32, I64, U8, VectorClassifier
from evaluation.robustness.corruptions import all_corrupted
from evaluation.robustness.kinds import JUDGED_KINDS, SEVERITIES
from evaluation.robustness.standard_attack import AttackPlan, attacked
from evaluation.scenes.config import Pair, SceneConfig
from evaluation.scenes.meaning import Enumeration, What
from evaluation.scenes.phrases import noun, with_article
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes_report import scenes_report, single_scenes
from training.checkpoint import load_model, read_checkpoint
from training.config import SceneData
from training.data.scenes import scene_splits
from training.data.source import JUDGED
from training.encoder import TorchEncoder
from training.opening import open_checkpoint

BASE = RUNS / "b0" / "r0"
EPSILONS = (1, 2, 4)
ATTACKED, CORRUPTED, THOROUGH, VALIDATED = 200, 100, 30, 64
SINGLES, TWOS = 512, 400
PLAN, CE_ALONE = AttackPlan(steps=20, targets=1, queries=0), AttackPlan(steps=20, targets=0, queries=0)
FULL = AttackPlan(steps=50, targets=3, queries=300)
QUICK = AttackPlan(steps=20, targets=0, queries=0)
TUNED_AT = 4  # levels: at less, the base itself is hardly misled


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Pictures of single things uint8 [N, 48, 48, 3], the pair that each shows, and the texts of all pairs."""

    pixels: U8
    truth: I64
    texts: tuple[str, ...]

    def first(self, count: int) -> Naming:
        return Naming(pixels=self.pixels[:count], truth=self.truth[:count], texts=self.texts)


def naming(pairs: tuple[Pair, ...], *, seed: int, count: int) -> Naming:
    scenes = single_scenes(pairs=pairs, seed=seed, count=count)
    return Naming(
        pixels=np.stack([render(scene, 48).image for scene in scenes]),
        truth=np.array([pairs.index((scene.things[0].shape, scene.things[0].colour)) for scene in scenes]),
        texts=tuple(with_article(noun(What(shape=shape, colour=colour))) for shape, colour in pairs),
    )


def judged(folder: Path, *, plan: AttackPlan) -> dict[str, Any]:
    """All numbers of a checkpoint on held-out scenes, each as [value, low, high] of its 95 % interval."""
    encoder, pairs = open_checkpoint(folder), pairs_of()
    asked = naming(pairs, seed=JUDGED["test"], count=SINGLES)
    few = asked.first(ATTACKED)
    classes = encoder.encode_texts(asked.texts)
    began_s = time.time()
    found: dict[str, Any] = {
        "clean": _interval(_right(encoder.encode_prepared(asked.pixels), classes, asked.truth)),
        "clean, of those attacked": _interval(_right(encoder.encode_prepared(few.pixels), classes, few.truth)),
        "corruptions": corruption_rows(encoder, classes, asked.first(CORRUPTED)),
    }
    found["corruptions, mean"] = float(np.mean([row["mean"] for row in found["corruptions"].values()]))
    found["attacks"] = attack_rows(encoder, classes, few, plan)
    report = scenes_report(encoder, pairs=pairs, seed=JUDGED["test"], probes=("binding",), singles=8)
    found["binding"] = report["binding"]
    found["retrieval"] = retrieved(encoder, pairs)
    found["found by the base's vectors"] = _across(encoder, open_checkpoint(BASE), asked.pixels)
    return {**found, "judge_wall_s": round(time.time() - began_s, 1)}


def named_under_attack(encoder: TorchEncoder) -> dict[str, float]:
    """Of validation's single things: shares that are named clean, and under a short attack at TUNED_AT."""
    asked = naming(pairs_of(), seed=JUDGED["validation"], count=VALIDATED)
    classes = encoder.encode_texts(asked.texts)
    (found,) = attacked(_classifier(encoder, classes), asked.pixels, asked.truth, epsilons=[TUNED_AT], plan=QUICK)
    right = _right(encoder.encode_prepared(asked.pixels), classes, asked.truth)
    return {"clean": float(right.mean()), "attacked": float(found.named.mean())}


def thoroughly(folder: Path) -> dict[str, Any]:
    """The same pictures under the attack of the study, and under a longer one, Square with it."""
    encoder, asked = open_checkpoint(folder), naming(pairs_of(), seed=JUDGED["test"], count=THOROUGH)
    classes = encoder.encode_texts(asked.texts)
    return {
        name: attack_rows(encoder, classes, asked, plan, epsilons=(2,))
        for name, plan in (("study", PLAN), ("longer", FULL))
    }


def pairs_of() -> tuple[Pair, ...]:
    """The pairs that the base was trained on."""
    data = read_checkpoint(BASE).config.data
    if not isinstance(data, SceneData):
        raise ValueError("the base was not trained on scenes")
    return scene_splits(data).validation.pairs


def corruption_rows(encoder: TorchEncoder, classes: F32, asked: Naming) -> dict[str, dict[str, Any]]:
    """By kind: the accuracy at each severity, and their mean."""
    rows: dict[str, dict[str, Any]] = {}
    for kind in JUDGED_KINDS:
        right = [
            _right(encoder.encode_prepared(all_corrupted(asked.pixels, kind, severity)), classes, asked.truth).mean()
            for severity in SEVERITIES
        ]
        rows[kind] = {"severities": [round(float(each), 4) for each in right], "mean": round(float(np.mean(right)), 4)}
    return rows


def attack_rows(
    encoder: TorchEncoder, classes: F32, asked: Naming, plan: AttackPlan, epsilons: Sequence[int] = EPSILONS
) -> dict[str, Any]:
    """By epsilon: what is still named, in whole levels and in floats; which part misled; how far pixels moved."""
    began_s, rows = time.time(), dict[str, Any]()
    found = attacked(_classifier(encoder, classes), asked.pixels, asked.truth, epsilons=epsilons, plan=plan)
    for each in found:
        far = moved(asked.pixels, each.pictures)
        misled = far.largest > 0
        rows[f"{each.epsilon:g}"] = {
            "named": _interval(each.named.astype(float)),
            "named, floats": _interval(each.named_as_floats.astype(float)),
            "by": dict(Counter(part for part in each.by if part)),
            "largest step": int(far.largest.max()),
            "values moved": round(float(far.share[misled].mean()), 4) if misled.any() else 0.0,
        }
    return {**rows, "wall_s": round(time.time() - began_s, 1)}


def retrieved(encoder: Encoder, pairs: tuple[Pair, ...]) -> dict[str, list[float]]:
    """Captions of two things find their scenes among 400, and the other way round."""
    kind = SceneConfig(
        count=(2, 2), pairs=pairs, textures=("plain",), differ_in=("shape", "colour"), stream=f"twos/{JUDGED['test']}"
    )
    scenes = [sample(number, kind) for number in range(TWOS)]
    captions = [
        said(Enumeration(tuple(What(shape=thing.shape, colour=thing.colour) for thing in scene.things))).text
        for scene in scenes
    ]
    found = retrieval(
        encoder.encode_images([render(scene, 48).image for scene in scenes]), encoder.encode_texts(captions), captions
    )
    return {name: [round(each, 4) for each in (found[name].value, found[name].low, found[name].high)] for name in KEPT}


KEPT = ("t2i_r@1", "t2i_r@10", "i2t_r@10")


def _across(encoder: TorchEncoder, base: TorchEncoder, pixels: U8) -> float:
    """How often the base's vector of a picture is the one that is nearest to the picture's new vector."""
    new, old = encoder.encode_prepared(pixels), base.encode_prepared(pixels)
    return float(((new @ old.T).argmax(axis=1) == np.arange(len(pixels))).mean())


def _classifier(encoder: TorchEncoder, classes: F32) -> VectorClassifier:
    return VectorClassifier(
        encoder=encoder, classes=classes, scale=float(load_model(BASE).model.logit_scale.exp().reshape(-1)[0])
    )


def _right(images: F32, classes: F32, truth: I64) -> NDArray[np.float64]:
    return ((images @ classes.T).argmax(axis=1) == truth).astype(np.float64)


def _interval(outcomes: NDArray[np.float64]) -> list[float]:
    found = mean_estimate(outcomes)
    return [round(found.value, 4), round(found.low, 4), round(found.high, 4)]
