"""Unmix through every door: checkpoint, artifact and HTTP say the same, and no part of the server knows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from clipworks.client import Client
from evaluation.encoder import png
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from model_store.errors import ExportRefused
from model_store.label_vectors import LabelVectors
from model_store.modality.image import prepare_dense
from model_store.presence import presence_of, presence_scores, score_maps
from model_store.session import SessionSettings
from model_store.store import Store
from model_store.towers import normalized, open_dense_tower, open_tower
from training.checkpoint import load_model
from training.loop import train
from training.methods.parts.unmix import load_unmix
from training.publish import publish_checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.long]

SCORE_TOLERANCE = 2e-4  # of a probability
LABELS = ["blue", "green", "red", "white", "red circle"]
PICTURES = [render(sample(seed, SceneConfig()), 200).image[: 200 - 16 * seed] for seed in range(3)]


@pytest.fixture(scope="module")
def unmixed(square_base: Path, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads on the squares: trained just enough to be no identity."""
    folder = tmp_path_factory.mktemp("unmix") / "heads"
    options = ("optim.steps=60", "optim.rate=1e-2", "optim.batch_size=32", "method_options.mfi=0.1")
    given = ("method=unmix", "method_options.label=colour", "method_options.dense_px=16", "method_options.hidden=24")
    paths = (f"base={json.dumps(str(square_base))}", f"run.folder={json.dumps(str(folder))}")
    train(squares, [*given, *options, *paths])
    return folder


@pytest.fixture(scope="module")
def store(unmixed: Path, square_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"), builtin=False)
    with pytest.raises(ExportRefused, match="no artifact of the store is the base"):
        publish_checkpoint(unmixed, "unmixed", store, precisions=("fp32",))
    publish_checkpoint(square_base, "squares", store, precisions=("fp32",))
    publish_checkpoint(unmixed, "unmixed", store, precisions=("fp32",))
    return store


@pytest.fixture(scope="module")
def client(
    store: Store, tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., AbstractContextManager[str]]
) -> Iterator[Client]:
    data = tmp_path_factory.mktemp("data")
    with serving("--store", store.root, "--data", data, "--model", "unmixed") as url, Client(url) as found:
        yield found


def checkpoint_scores(unmixed: Path, square_base: Path, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], ...]:
    """Probabilities [C] and maps [C, h, w] of a prepared picture [1, H, W, 3], by torch and plain numpy."""
    base, loaded = load_model(square_base), load_unmix(unmixed)
    model, rule = loaded.behind(base), loaded.presence
    assert (rule.similarity, rule.divide_by, rule.aggregation) == ("projection", "pooled_norm", "softmax_sum")
    with torch.inference_mode():
        positions, pooled = (
            each[0].double().numpy() for each in model.encode_dense_and_pooled(torch.from_numpy(pixels))
        )
        vectors: list[NDArray[np.float64]] = []
        for template in ("there is a {}", "there is no {}"):
            ids = base.tokenizer.pad([base.tokenizer.encode(template.format(label)) for label in LABELS])
            rows = model.encode_text(torch.from_numpy(ids)).double().numpy()
            vectors.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    maps = np.einsum("hwd,cd->chw", positions, vectors[0] - vectors[1])
    scaled = (rule.scale * maps / np.linalg.norm(pooled)).reshape(len(LABELS), -1)
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    logits = rule.calibration_slope * (weights * scaled).sum(axis=1) + rule.calibration_offset
    return 1 / (1 + np.exp(-logits)), maps


def test_the_artifact_scores_as_the_checkpoint(store: Store, unmixed: Path, square_base: Path) -> None:
    artifact = store.open("unmixed")
    assert artifact.manifest.kind == "derivation"
    assert {graph.role for graph in artifact.manifest.graphs} == {"dense_adapter", "image_adapter", "text_adapter"}
    assert artifact.manifest.space != store.open("squares").manifest.space  # changed towers, no claim of agreement
    rule, spec = presence_of(artifact), artifact.dense_spec
    assert rule == load_unmix(unmixed).presence
    assert spec is not None
    text, tokenizer = open_tower(artifact, "text_encoder", "fp32", SessionSettings()), artifact.tokenizer()
    vectors = [
        normalized(text(tokenizer([t.format(label) for label in LABELS]))) for t in ("there is a {}", "there is no {}")
    ]
    labels = LabelVectors(positive=vectors[0], negative=vectors[1])
    tower = open_dense_tower(artifact, "fp32", SessionSettings())
    for picture in PICTURES:
        pixels = prepare_dense(Image.fromarray(picture), spec)[None]
        found = tower(pixels)
        maps = score_maps(found.positions[0], labels, rule)
        scores, expected_maps = checkpoint_scores(unmixed, square_base, pixels)
        np.testing.assert_allclose(presence_scores(maps, found.pooled[0], labels, rule), scores, atol=SCORE_TOLERANCE)
        np.testing.assert_allclose(maps, expected_maps, atol=2e-4 * np.abs(expected_maps).max())
        # The mean of positions is the pooled vector, behind the adapters too.
        np.testing.assert_allclose(found.positions.mean(axis=(1, 2)), found.pooled, rtol=1e-3, atol=1e-4)


def test_the_server_scores_as_the_checkpoint(client: Client, store: Store, unmixed: Path, square_base: Path) -> None:
    spec = store.open("unmixed").dense_spec
    assert spec is not None
    seen: list[float] = []
    for picture in PICTURES:
        (answer,) = client.localize([png(picture)], labels=LABELS, include=["boxes", "heatmap"])
        scores, maps = checkpoint_scores(unmixed, square_base, prepare_dense(Image.fromarray(picture), spec)[None])
        found = {each.label: each for each in answer.labels}
        np.testing.assert_allclose([found[label].score for label in LABELS], scores, atol=SCORE_TOLERANCE)
        threshold = load_unmix(unmixed).presence.threshold
        assert [found[label].present for label in LABELS] == [score >= threshold for score in scores]
        for label, expected in zip(LABELS, maps, strict=True):
            heat = found[label].heatmap
            assert heat is not None
            np.testing.assert_allclose(heat.values, expected, atol=1e-3 * np.abs(maps).max())  # type: ignore[union-attr]
        seen += scores.tolist()
    assert np.ptp(seen) > 100 * SCORE_TOLERANCE  # not all of one value
