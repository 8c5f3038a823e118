"""A short report on drawn scenes for models in training: single things named, and the probes that methods aim at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.encoder import Encoder
from evaluation.probes.pool import PoolSize
from evaluation.scenes.config import Pair, SceneConfig
from evaluation.scenes.meaning import What
from evaluation.scenes.phrases import noun, with_article
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Scene
from evaluation.suites import Suite, picture_px, run

PROBES = ("binding", "place", "relation", "negation")
SIZE = PoolSize(compass=40, class_groups=3, squares=3, counts=3, additions=3, spoilt=16)
_SINGLES = 512


def scenes_report(
    encoder: Encoder,
    *,
    pairs: tuple[Pair, ...],
    seed: int,
    probes: Sequence[str] = PROBES,
    size: PoolSize = SIZE,
    singles: int = _SINGLES,
) -> dict[str, Any]:
    """`{"single": accuracy of naming one thing out of all pairs, "<probe>": {row: score}}`; higher is better.

    seed: choose one for validation and another for the final table, no scene is in both.
    """
    out: dict[str, Any] = {"single": single_accuracy(encoder, pairs=pairs, seed=seed, count=singles)}
    chosen = Suite(name="study", probes=tuple(probes), size=size, seed=seed, pairs=pairs)
    for result in run(encoder, chosen):
        out[result.key.probe] = {row.name: row.score for row in result.rows}
    return out


def single_scenes(*, pairs: tuple[Pair, ...], seed: int, count: int = _SINGLES) -> list[Scene]:
    """Scenes of one plain thing; equal arguments give equal scenes."""
    config = SceneConfig(count=(1, 1), pairs=pairs, textures=("plain",), stream=f"single/{seed}")
    return [sample(number, config) for number in range(count)]


def single_accuracy(encoder: Encoder, *, pairs: tuple[Pair, ...], seed: int, count: int = _SINGLES) -> float:
    """Share of pictures of one thing whose nearest text out of "a {colour} {shape}", one per pair, is its own.

    Chance is 1 / len(pairs). A tie goes to none of the tied.
    """
    scenes = single_scenes(pairs=pairs, seed=seed, count=count)
    images = encoder.encode_images([render(scene, picture_px(encoder)).image for scene in scenes])
    texts = encoder.encode_texts([with_article(noun(What(shape=shape, colour=colour))) for shape, colour in pairs])
    scores = images @ texts.T
    answers = np.array([pairs.index((scene.things[0].shape, scene.things[0].colour)) for scene in scenes])
    right = scores[np.arange(count), answers]
    scores[np.arange(count), answers] = -np.inf
    return float((right > scores.max(axis=1)).mean())
