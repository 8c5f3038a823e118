"""A checkpoint of our own training becomes the artifact it says it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store.errors import ExportRefused
from model_store.fidelity import measure
from model_store.golden import GOLDEN_TEXTS, Goldens
from model_store.graph import open_graph
from model_store.identity import spec_digest
from model_store.manifest import ENCODERS
from model_store.precisions.calibration import CALIBRATION_TEXTS
from model_store.proving import Proof
from model_store.session import SessionSettings
from model_store.store import Store
from model_store.towers import open_dense_tower
from training.checkpoint import load_model, save_checkpoint
from training.config import load_config
from training.data.vocabulary import tokenizer_of
from training.exporting.export import export_checkpoint, fingerprints_of, source_of_checkpoint
from training.models.building import build_model, image_spec

pytestmark = [pytest.mark.torch, pytest.mark.slow]

RECIPE = """
name = "small"
seed = 3
method = "base"
data = {folder = ".", cache_px = 40, split = {modulo = 10, test = [1], validation = [2]}}
[augment]
[model]
kind = "small"
embed_dim = 24
image = {trunk = "clipworks_conv_t", size_px = 32}
text = {merges = 60, context_length = 16, width = 16, layers = 1, heads = 2, pool = "eos+bag"}
[optim]
batch_size = 8
steps = 6
rate = 3e-3
warmup_steps = 2
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.9
[run]
folder = "unset"
"""


def write(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(RECIPE)
    config = load_config(folder / "recipe.toml")
    text_spec, tokenizer = tokenizer_of(config.model)
    torch.manual_seed(0)
    model = build_model(config.model, vocab_size=text_spec.vocab_size, end_id=text_spec.end_id or 0)
    # Untrained, the end token's projection is zero, and so is the vector of an empty text: no direction to compare.
    torch.nn.init.normal_(model.get_parameter("text.projection.weight"), std=0.02)
    pixels = image_spec(config.model)
    info = {
        "config": config.model_dump(mode="json"),
        "image_spec": pixels.model_dump(mode="json"),
        "text_spec": text_spec.model_dump(mode="json"),
        "image_spec_digest": spec_digest(pixels),
        "text_spec_digest": spec_digest(text_spec),
        "data_digest": "0" * 64,
        "git_sha": None,
        "graphs": {"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"},
        "templates": ["{}", "a picture of {}"],
        "metrics": {"validation_loss": 1.5, "by_class": {"red": 1}},
        "tools": {},
        "step": 7,
    }
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(folder, info, weights=weights, state={}, tokenizer=tokenizer)
    return folder


def test_the_artifact_is_the_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint")
    store = Store(tmp_path / "store", builtin=False)
    artifact = export_checkpoint(
        folder,
        "small",
        store,
        precisions=["fp32", "int8"],
        texts=["a text of its own domain"],
        report={"test": {"all": {"r@1": {"value": 0.25, "n": 4}}}},
        licence="Apache-2.0",
        notice="Weights by Ünal.",
    )
    loaded = load_model(folder)
    manifest = artifact.manifest
    assert (artifact.folder / "NOTICE").read_text(encoding="utf-8") == "Weights by Ünal."
    assert "NOTICE" in {each.path for each in manifest.files}
    assert manifest.templates == ("{}", "a picture of {}")
    assert manifest.metrics == {"validation_loss": 1.5, "by_class/red": 1.0, "test/all/r@1/value": 0.25}
    text_graph = manifest.graph("text_encoder", "fp32")
    assert text_graph is not None
    assert text_graph.fidelity is not None
    assert text_graph.fidelity.n == len(GOLDEN_TEXTS) + len(CALIBRATION_TEXTS) + 1
    assert (manifest.image, manifest.text) == (loaded.info.image_spec, loaded.info.text_spec)
    assert manifest.provenance.source_sha256 == loaded.info.weights_sha256
    goldens = Goldens(artifact)
    goldens.check_pixels()
    goldens.check_tokens(artifact.tokenizer())
    for graph in (graph for graph in manifest.graphs if graph.role in ENCODERS):
        goldens.check_vectors(graph.role, graph.precision, open_graph(artifact, graph))
    Proof(artifact).check_dense(open_dense_tower(artifact, "fp32", SessionSettings()))
    assert artifact.dense_spec is not None
    assert (artifact.dense_spec.pooling, artifact.dense_spec.short_px) == ("mean", 112)
    texts = ["red shoes", "a very long title that goes on until it has to be cut off somewhere near the end of the row"]
    found = artifact.graph_spec("text_encoder", "fp32")
    assert found is not None
    graph, tokenizer = open_graph(*found), artifact.tokenizer()
    with torch.inference_mode():
        expected = loaded.model.encode_text(torch.from_numpy(tokenizer(texts))).numpy()
    for text, vector in zip(texts, expected, strict=True):
        cut = graph(tokenizer.pad([tokenizer.encode(text)]))
        assert np.abs(cut[0] - vector).max() <= 1e-5 * np.abs(expected).max()
    assert measure(graph(tokenizer(texts)), expected).cosine_min > 0.999999


def test_each_fingerprint_covers_its_own_tower(tmp_path: Path) -> None:
    folder = write(tmp_path)
    loaded = load_model(folder)
    before = fingerprints_of(source_of_checkpoint(loaded))
    with torch.no_grad():
        loaded.model.get_parameter("text.token_embedding.weight").add_(1)
    text_changed = fingerprints_of(source_of_checkpoint(loaded))
    assert (text_changed.image == before.image, text_changed.text == before.text) == (True, False)
    with torch.no_grad():
        loaded.model.get_parameter("image_projection.weight").add_(1)
    assert fingerprints_of(source_of_checkpoint(loaded)).image != before.image


def test_a_changed_spec_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint")
    path = folder / "checkpoint.json"
    info = json.loads(path.read_text())
    info["image_spec"]["interpolation"] = "bilinear"
    path.write_text(json.dumps(info))
    store = Store(tmp_path / "store", builtin=False)
    with pytest.raises(ExportRefused, match="ImageSpec has digest"):
        export_checkpoint(folder, "small", store)
    with pytest.raises(ExportRefused, match="is not a checkpoint that can be exported"):
        export_checkpoint(tmp_path / "nothing", "small", store)
    assert store.list() == []
