"""One model, three doors: the torch checkpoint, its artifact in this process, its artifact over HTTP."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest

from clipworks.client import Client
from evaluation.dense.task import scenes_task
from evaluation.encoder import DenseEncoder, Encoder, open_artifact, open_server
from evaluation.locating import Label
from evaluation.probes.pool import PoolSize
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.suites import Suite, run
from model_store.store import Store
from training.encoder import open_dense_checkpoint
from training.exporting.export import export_checkpoint
from training.loop import train

pytestmark = [pytest.mark.torch, pytest.mark.long]
SCORE_TOLERANCE, VECTOR_TOLERANCE = 0.005, 2e-5
SIZE = PoolSize(compass=3, class_groups=1, squares=2, counts=1, additions=2, spoilt=2)
RECIPE = """
name = "agreeing"
seed = 1
method = "base"
[data]
kind = "scenes"
cache_px = 48
[[data.parts]]
scenes = 256
share = 1.0
count = [1, 2]
mix = {mentions = 1.0}
[model]
kind = "small"
embed_dim = 32
image = {trunk = "clipworks_conv_t", size_px = 48, pool = "flat"}
text = {merges = 2000, context_length = 24, width = 32, layers = 1, heads = 2}
[optim]
batch_size = 32
steps = 30
rate = 2e-3
warmup_steps = 2
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.5
[run]
folder = "unset"
device = "cpu"
threads = 1
validate_steps = 30
report = "scenes"
"""


@pytest.fixture(scope="module")
def encoders(
    tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., AbstractContextManager[str]]
) -> Iterator[dict[str, Encoder]]:
    folder = tmp_path_factory.mktemp("agree")
    recipe, checkpoint, store = folder / "recipe.toml", folder / "run", Store(folder / "store", builtin=False)
    recipe.write_text(RECIPE, encoding="utf-8")
    train(recipe, [f"run.folder={json.dumps(str(checkpoint))}"])
    artifact = export_checkpoint(checkpoint, "agreeing", store, precisions=("fp32",))
    with serving("--store", folder / "store", "--data", folder / "data") as url, Client(url) as client:
        yield {
            "checkpoint": open_dense_checkpoint(checkpoint),
            "artifact": open_artifact(artifact),
            "HTTP": open_server(client),
        }


@pytest.mark.parametrize("door", ["artifact", "HTTP"])
def test_vectors_agree(encoders: dict[str, Encoder], door: str) -> None:
    pictures = [render(sample(seed, SceneConfig()), 64).image for seed in range(9)]  # 64 px: resized by every door
    texts = ["a red circle", "a blue square left of a green star", "there is no cross, or is there?"]
    for name, inputs in (("encode_images", pictures), ("encode_texts", texts)):
        expected = getattr(encoders["checkpoint"], name)(inputs)
        found = getattr(encoders[door], name)(inputs)
        mean = expected.mean(axis=0)  # what all vectors share would hide a difference
        np.testing.assert_allclose(found - mean, expected - mean, atol=VECTOR_TOLERANCE)
        assert np.abs(expected - mean).max() > 100 * VECTOR_TOLERANCE


@pytest.mark.parametrize("door", ["artifact", "HTTP"])
def test_scores_agree(encoders: dict[str, Encoder], door: str) -> None:
    chosen = Suite(name="agreeing", probes=("binding", "relation", "multi-label", "few-shot"), size=SIZE)
    expected, found = run(encoders["checkpoint"], chosen), run(encoders[door], chosen)
    scores = {(r.key.probe, row.name): row.score for r in expected for row in r.rows if row.score is not None}
    assert len(scores) > 8
    assert len({round(score, 3) for score in scores.values()}) > 4  # not all at one value
    for result in found:
        for row in result.rows:
            if row.score is not None:
                assert row.score == pytest.approx(scores[result.key.probe, row.name], abs=SCORE_TOLERANCE), row.name


@pytest.mark.parametrize("door", ["artifact", "HTTP"])
def test_places_agree(encoders: dict[str, Encoder], door: str) -> None:
    """Maps, scores and boxes of single pictures, and what is made of them over some scenes."""
    first, other = encoders["checkpoint"], encoders[door]
    assert isinstance(first, DenseEncoder)
    assert isinstance(other, DenseEncoder)
    pictures = [render(sample(seed, SceneConfig()), 96).image for seed in range(3)]
    labels = [Label(name) for name in ("red circle", "blue square", "green star")]
    for expected, found in zip(first.locate(pictures, labels), other.locate(pictures, labels), strict=True):
        spread = float(np.ptp(expected.maps))
        np.testing.assert_allclose(found.maps, expected.maps, atol=1e-4 * spread)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        for one, same in zip(expected.boxes, found.boxes, strict=True):
            np.testing.assert_allclose(same, one, atol=0.05)
    task = scenes_task(seed=9, pairs="held-out", pictures=4)
    for one, same in zip(task.measure(first).rows, task.measure(other).rows, strict=True):
        assert same.name == one.name
        assert same.score == pytest.approx(one.score, abs=SCORE_TOLERANCE), one.name
        assert same.truth == one.truth
