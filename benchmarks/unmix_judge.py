"""Judging of Unmix heads on held-out scenes: which labels are there, where, and how alike texts are.

Everything goes through model_store.presence, the formulas that are served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.lab_records import Record
from benchmarks.lab_runs import StudyRun
from evaluation.probes.localisation import best_overlap, centres, enlarged, overlap, pointing
from evaluation.probes.ranking import average_precision
from evaluation.scenes.config import Pair
from evaluation.scenes.rendering import Rendered, render
from evaluation.scenes.scene import Scene
from model_store.label_vectors import LabelVectors
from model_store.manifest import Presence
from model_store.presence import aggregate_scores, score_maps
from model_store.regions import refine
from model_store.towers import activated, normalized
from training.checkpoint import LoadedModel, load_model
from training.config import SceneData
from training.data.scenes import scene_splits, several_scenes
from training.data.source import JUDGED
from training.features import dense_source
from training.methods.parts.presence_calibration import calibrate
from training.methods.parts.unmix import LoadedUnmix, load_unmix, off_diagonal

Stream = Literal["validation", "test"]
COUNTS: dict[Stream, int] = {"validation": 200, "test": 400}
TOY_COUNT = 60
# The lab's held-out stream was seen while the judge was being written, so these tables are of another, opened once.
STREAMS: dict[Stream, int] = {"validation": JUDGED["validation"], "test": 3_000}
_RESAMPLES = 100
F32, F64, Bools = NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]


def measure(one: StudyRun, *, side_px: int) -> Record:
    """The numbers of heads that stand here, or, under "scores", of the ways to score their base without any.

    Raises:
        ValueError: the run has no base.
    """
    if one.base is None:
        raise ValueError(f"{one.name} has no base")
    torch.set_num_threads(1)
    test, validation = (_judge(one.base.folder, side_px, stream, one.small) for stream in ("test", "validation"))
    if one.measured == "heads":
        heads = of_heads(load_unmix(one.folder), test.base)
        return {**test.scored(heads, intervals=True), "validation": validation.scored(heads)}
    scores: Record = {}
    for name, bare in training_free(test.base).items():
        each = validation.calibrated(bare)
        scores[name] = {**test.scored(each, intervals=True), "validation": validation.scored(each)}
    return {"scores": scores}


@lru_cache(maxsize=2)
def _judge(base: Path, side_px: int, stream: Stream, small: bool) -> SceneJudge:
    """Pictures go through a base once for all its heads."""
    return SceneJudge(load_model(base), side_px, stream, count=TOY_COUNT if small else COUNTS[stream])


@dataclass(frozen=True, kw_only=True)
class WayToScore:
    """A way to score: rule, and what it makes of prompts, and of positions or pooled vectors, [..., D] -> [..., D']."""

    rule: Presence
    text: Callable[[Sequence[str]], F32]
    image: Callable[[F32], F32]

    def labels(self, names: Sequence[str]) -> LabelVectors:
        rule = self.rule
        denied = [rule.negative_templates[0].format(name) for name in names] if rule.negative_templates else None
        return LabelVectors(
            positive=self.text([rule.positive_templates[0].format(name) for name in names]),
            negative=None if denied is None else self.text(denied),
        )


def training_free(base: LoadedModel) -> dict[str, WayToScore]:
    """The base's own vectors, scored in four ways."""
    plain: dict[str, Any] = {"positive_templates": ("a {}",), "scale": float(base.model.logit_scale.exp())}
    denied = {"positive_templates": ("there is a {}",), "negative_templates": ("there is no {}",), "scale": 20.0}
    rules = {
        "pooled": Presence(**plain, aggregation="pooled"),
        "projection, max": Presence(**plain, aggregation="max"),
        "cosine, max": Presence(**plain, similarity="cosine", aggregation="max"),
        "projection, denials": Presence(**denied, aggregation="softmax_sum"),
        "cosine, denials": Presence(**denied, similarity="cosine", aggregation="softmax_sum"),
    }
    return {
        name: WayToScore(rule=rule, text=lambda texts: base_rows(base, texts), image=lambda vectors: vectors)
        for name, rule in rules.items()
    }


def of_heads(loaded: LoadedUnmix, base: LoadedModel) -> WayToScore:
    """Trained heads behind the base."""
    heads = loaded.heads

    def text(texts: Sequence[str]) -> F32:
        with torch.inference_mode():
            return normalized(heads.text(torch.from_numpy(base_rows(base, texts))).numpy())

    weight = heads.image.weight.numpy()
    return WayToScore(rule=loaded.presence, text=text, image=lambda vectors: vectors @ weight.T)


def base_rows(base: LoadedModel, texts: Sequence[str]) -> F32:
    """Unit text vectors [n, D]."""
    ids = base.tokenizer.pad([base.tokenizer.encode(text) for text in texts])
    with torch.inference_mode():
        return normalized(base.model.encode_text(torch.from_numpy(ids)).numpy())


@dataclass(frozen=True, eq=False)
class Shown:
    """Scenes through the base: positions [n, h, w, D], pooled [n, D]; which of `pairs` are there, bool [n, C]."""

    scenes: Sequence[Scene]
    pairs: tuple[Pair, ...]
    positions: F32
    pooled: F32
    present: Bools
    drawn: Sequence[Rendered]

    @property
    def names(self) -> list[str]:
        return [f"{colour} {shape}" for shape, colour in self.pairs]


class SceneJudge:
    """Scenes of a stream, through the base once: of trained pairs only, and of all pairs.

    On validation, where every knob was set, pairs that are held out do not count: there, all is about trained pairs.
    """

    def __init__(self, base: LoadedModel, side_px: int, stream: Stream, *, count: int) -> None:
        data = base.info.config.data
        if not isinstance(data, SceneData):
            raise ValueError("the base was not trained on scenes")
        parts, seed = scene_splits(data), STREAMS[stream]
        self.base, self.side_px = base, side_px
        self._trained = len(parts.train.pairs)
        self._known = _shown(base, parts.train.pairs, side_px, seed=seed, count=count)
        every = (*parts.train.pairs, *parts.heldout.pairs)
        self._all = _shown(base, every, side_px, seed=seed, count=count) if stream == "test" else None

    def scored(self, candidate: WayToScore, *, intervals: bool = False) -> dict[str, Any]:
        """mAP by labels and scenes, pointing and mIoU with the grid's bounds, and the texts' mean |cosine|."""
        known, trained = self._maps(candidate, self._known), slice(0, self._trained)
        tables = {"mAP": (known.scores, self._known.present)}
        rows = torch.from_numpy(candidate.labels(self._known.names).positive)
        found: dict[str, Any] = {
            "text cosine": off_diagonal(rows),
            **_decided(known.scores, self._known.present, candidate.rule),
            **self._places(known.maps, self._known, trained),
        }
        if self._all is not None:
            every, unseen = self._maps(candidate, self._all), slice(self._trained, None)
            tables["mAP, trained labels among all pairs"] = every.scores[:, trained], self._all.present[:, trained]
            tables["mAP, labels never trained"] = every.scores[:, unseen], self._all.present[:, unseen]
            places = self._places(every.maps, self._all, unseen)
            found |= {f"{name}, never trained": value for name, value in places.items()}
        found |= {name: mean_average_precision(*table) for name, table in tables.items()}
        if intervals:
            found["95 %"] = {name: _interval(*table) for name, table in tables.items()}
        return found

    def calibrated(self, candidate: WayToScore) -> WayToScore:
        """With slope, offset and threshold fitted on these scenes, as heads have them from their own validation."""
        found = calibrate(self._maps(candidate, self._known).scores, self._known.present)
        return replace(candidate, rule=candidate.rule.model_copy(update=found.settings()))

    def _maps(self, candidate: WayToScore, shown: Shown) -> _Scored:
        labels = candidate.labels(shown.names)
        positions, pooled = candidate.image(shown.positions), candidate.image(shown.pooled)
        maps = np.stack([score_maps(each, labels, candidate.rule) for each in positions])
        scores = [aggregate_scores(*each, labels, candidate.rule) for each in zip(maps, pooled, strict=True)]
        return _Scored(np.stack(scores), maps)

    def _places(self, maps: F32, shown: Shown, chosen: slice) -> dict[str, float]:
        """Of every thing that is the only one of its label, and whose label is among the chosen."""
        numbers = set(range(len(shown.pairs))[chosen])
        points: list[float] = []
        overlaps: list[float] = []
        bounds: list[tuple[float, float]] = []
        for row, scene in enumerate(shown.scenes):
            labels = [shown.pairs.index((thing.shape, thing.colour)) for thing in scene.things]
            for at, label in enumerate(labels):
                if label not in numbers or labels.count(label) > 1:
                    continue
                heat = maps[row, label].astype(np.float64)
                outline, mask = shown.drawn[row].outlines[at], shown.drawn[row].masks[at]
                points.append(pointing(heat, outline))
                overlaps.append(overlap(enlarged(marked(heat), self.side_px), mask))
                bounds.append((float(centres(outline, *heat.shape).any()), best_overlap(mask, *heat.shape)))
        point_bound, overlap_bound = (float(each) for each in np.mean(bounds, axis=0))
        return {
            "pointing": float(np.mean(points)),
            "pointing bound": point_bound,
            "mIoU": float(np.mean(overlaps)),
            "mIoU bound": overlap_bound,
        }


@dataclass(frozen=True, eq=False)
class _Scored:
    """scores [n, C], before calibration: as probabilities many would be 1 and tie; maps [n, C, h, w]."""

    scores: F64
    maps: F32


def marked(heat: F64) -> Bools:
    """What `/localize` would put in boxes: the refined map from halfway between its median and its peak on."""
    ground, fine = np.median(heat), refine(heat.astype(np.float32))
    return fine >= (ground + fine.max()) / 2


def mean_average_precision(scores: F64, present: Bools) -> float:
    """Over the labels that occur."""
    kept = np.flatnonzero(present.any(axis=0))
    return float(np.mean([average_precision(scores[:, at], present[:, at]) for at in kept]))


def _decided(scores: F64, present: Bools, rule: Presence) -> Mapping[str, float]:
    """F1 of "present from the threshold on", and the Brier score, over all pictures and labels."""
    p = activated(rule.calibration_slope * scores + rule.calibration_offset, "sigmoid")
    said = p >= rule.threshold
    return {
        "F1": float(2 * (said & present).sum() / max(int(said.sum() + present.sum()), 1)),
        "Brier": float(np.square(p - present).mean()),
    }


def _interval(scores: F64, present: Bools) -> list[float]:
    """95 % of the bootstrap over pictures."""
    rng = np.random.default_rng(0)
    picks = [rng.integers(len(scores), size=len(scores)) for _ in range(_RESAMPLES)]
    found = [mean_average_precision(scores[each], present[each]) for each in picks]
    return [float(each) for each in np.percentile(found, [2.5, 97.5])]


def _shown(base: LoadedModel, pairs: tuple[Pair, ...], side_px: int, *, seed: int, count: int) -> Shown:
    scenes = several_scenes(pairs=pairs, seed=seed, count=count)
    drawn = [render(scene, side_px) for scene in scenes]
    module = dense_source(base).module
    found: list[tuple[F32, F32]] = []
    with torch.inference_mode():
        for at in range(0, len(scenes), 50):
            pixels = np.stack([each.image for each in drawn[at : at + 50]])
            positions, pooled = module(torch.from_numpy(pixels))
            found.append((positions.numpy(), pooled.numpy()))
    shown = [{(thing.shape, thing.colour) for thing in scene.things} for scene in scenes]
    return Shown(
        scenes,
        pairs,
        np.concatenate([each[0] for each in found]),
        np.concatenate([each[1] for each in found]),
        np.array([[pair in some for pair in pairs] for some in shown]),
        drawn,
    )
