"""An aligned model trained on squares, by steps and on cached features, then published small."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load_file

from model_store.golden import Goldens
from model_store.graph import open_graph
from model_store.manifest import ENCODERS
from model_store.store import Artifact, Store
from training.checkpoint import WEIGHTS_FILE, load_model, read_checkpoint
from training.loop import train
from training.methods.parts import trunk_features as features_module
from training.models.aligned import AlignedDualEncoder
from training.publish import publish_checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.long]

HEADS = ['method="aligned"', "optim.steps=40", "optim.rate=0.01", "optim.warmup_steps=2", "run.validate_steps=40"]


def run(recipe: Path, folder: Path, *overrides: str, resume: bool = False) -> Path:
    train(recipe, [f"run.folder={json.dumps(str(folder))}", *overrides], resume=resume)
    return folder


@pytest.fixture(scope="module")
def heads(aligned_squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligned") / "heads"
    options = "method_options={flip = true, keep_classes = 0.1, decay_head = 0.01, templates = ['a photo of a {}.']}"
    return run(aligned_squares, folder, *HEADS, options, "model.text.table='int8'", "model.storage='fp16'")


def test_frozen_parts_stay(aligned_squares: Path, tmp_path: Path) -> None:
    """LiT by steps: batch norms of a locked trunk keep their statistics too."""
    frozen = "method_options.frozen=['trunk', 'text', 'class_map']"
    folder = run(aligned_squares, tmp_path / "run", frozen, "optim.steps=3")
    weights = load_file(folder / WEIGHTS_FILE)
    other = run(aligned_squares, tmp_path / "other", frozen, "optim.steps=1", "optim.warmup_steps=0")
    before = load_file(other / WEIGHTS_FILE)
    moved = {name for name, tensor in weights.items() if not torch.equal(tensor, before[name])}
    assert moved == {"model.head.out.weight", "model.head.out.bias", "model.logit_scale"}


def test_a_part_that_there_is_not_is_refused(aligned_squares: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no part 'trunks'; it has: pixel_input, trunk, head, class_map, text"):
        run(aligned_squares, tmp_path / "run", "method_options.frozen=['trunks']")


def test_heads_learn_the_colours(heads: Path, aligned_squares: Path, tmp_path: Path) -> None:
    """Random sources know no colour; the head learns the four from features alone."""
    metrics = read_checkpoint(heads).metrics["validation"]["all"]
    before = run(aligned_squares, tmp_path / "untrained", *HEADS[:1], "optim.steps=1", "optim.rate=1e-12")
    untrained = read_checkpoint(before).metrics["validation"]["all"]
    assert metrics["i2t_r@1"]["value"] > untrained["i2t_r@1"]["value"] + 0.1


def test_features_are_worked_out_once(heads: Path, aligned_squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second head on the same data does not look at a picture again; other pictures are looked at."""

    def looked(*_: object, **__: object) -> np.ndarray:
        raise AssertionError("looked at the pictures again")

    monkeypatch.setattr(features_module, "_image_features", looked)
    again = [*HEADS[:1], "optim.steps=2", "method_options={flip = true}", "model.image.head='mlp'"]
    stored = ["model.text.table='int8'", "model.storage='fp16'"]
    run(aligned_squares, heads.parent / "mlp", *again, *stored)
    with pytest.raises(AssertionError, match="again"):
        run(aligned_squares, heads.parent / "unflipped", *again[:2], *stored)


def test_a_resumed_run_is_an_uninterrupted_one(
    aligned_squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*HEADS[:1], "optim.steps=6", "run.checkpoint_steps=4", "model.image.dropout=0.2"]
    whole = load_file(run(aligned_squares, tmp_path / "whole", *overrides) / WEIGHTS_FILE)
    draw = features_module.PairBatches.__call__

    def torn(batches: features_module.PairBatches, step: int) -> dict[str, torch.Tensor]:
        if step == 5:
            raise RuntimeError("the power went")
        return draw(batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(features_module.PairBatches, "__call__", torn)
        with pytest.raises(RuntimeError, match="power"):
            run(aligned_squares, tmp_path / "part", *overrides)
    assert read_checkpoint(tmp_path / "part").step == 4
    found = load_file(run(aligned_squares, tmp_path / "part", *overrides, resume=True) / WEIGHTS_FILE)
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


def test_ridge_is_the_least_squares_solution(aligned_squares: Path, tmp_path: Path) -> None:
    start = ["optim.steps=1", "optim.rate=1e-12", "method_options={ridge = 0.001}"]
    folder = run(aligned_squares, tmp_path / "run", *HEADS[:1], *start)
    model = load_model(folder).model
    assert isinstance(model, AlignedDualEncoder)
    held = features_module._read(next((tmp_path / "features").glob("trunk-*.npz")))
    assert held is not None
    x, y = held.image[held.picture].astype(np.float64), held.text / np.linalg.norm(held.text, axis=1, keepdims=True)
    weight, bias = model.head.out.weight.double().numpy(), model.head.out.bias.double().numpy()

    def loss(weight: np.ndarray, bias: np.ndarray) -> float:
        spread = np.square(x - x.mean(axis=0)).sum(axis=1).mean() / x.shape[1]
        return float(np.square(x @ weight.T + bias - y).sum(axis=1).mean() + 0.001 * spread * np.square(weight).sum())

    best, rng = loss(weight, bias), np.random.default_rng(0)
    for _ in range(5):
        away = rng.normal(scale=1e-3, size=weight.shape)
        assert loss(weight + away, bias) > best
        assert loss(weight, bias + away[:, 0]) > best


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.image.head='none'"], "head is none"),
        (["model.image.head='mlp'", "method_options={ridge = 0.1}"], "linear"),
        (["optim.batch_size=600"], "do not fill one batch of 600"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    aligned_squares: Path, tmp_path: Path, overrides: Sequence[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run(aligned_squares, tmp_path / "run", *HEADS[:1], *overrides)


def test_another_kind_of_model_is_refused(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="models of kind aligned, not small"):
        run(squares, tmp_path / "run", 'method="aligned"')


@pytest.fixture(scope="module")
def published(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = Store(tmp_path_factory.mktemp("published"), builtin=False)
    return publish_checkpoint(heads, "aligned", store, precisions=["fp32", "int8"])


@pytest.mark.slow
def test_it_is_published_small_and_is_the_checkpoint(heads: Path, published: Artifact) -> None:
    manifest = published.manifest
    assert manifest.skipped == ()
    assert {(graph.role, graph.precision) for graph in manifest.graphs} == {
        ("image_encoder", "fp32"),
        ("image_encoder", "int8"),
        ("text_encoder", "fp32"),
        ("text_encoder", "int8"),
        ("dense_encoder", "fp32"),
    }
    files = {graph.external_files for graph in manifest.graphs if graph.role == "text_encoder"}
    assert files == {("text_weights.data",)}
    goldens = Goldens(published)
    goldens.check_pixels()
    goldens.check_tokens(published.tokenizer())
    for graph in (graph for graph in manifest.graphs if graph.role in ENCODERS):
        goldens.check_vectors(graph.role, graph.precision, open_graph(published, graph))
    # Rounded weights move the trained model by little.
    loaded, tokenizer = load_model(heads), published.tokenizer()
    ids = tokenizer.pad([tokenizer.encode(text) for text in ("a red shirt", "cat")])
    text = manifest.graph("text_encoder", "fp32")
    assert text is not None
    found = open_graph(published, text)(ids)
    expected = loaded.model.encode_text(torch.from_numpy(ids)).numpy()
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.slow
def test_weights_lie_once_and_in_half_precision(published: Artifact) -> None:
    stored = {name: external(published, f"text_encoder.{name}.onnx") for name in ("fp32", "int8")}
    assert {kind for kind, _, _ in stored["fp32"]} == {TensorProto.INT8, TensorProto.FLOAT16}
    rows = published.manifest.text.vocab_size if published.manifest.text else 0
    tables = [[each for each in found if each[1] == (rows, 32)] for found in stored.values()]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 1


def external(artifact: Artifact, file: str) -> list[tuple[int, tuple[int, ...], str]]:
    """Type, shape and offset of the arrays of a graph that lie in another file."""
    graph = onnx.load(artifact.path(file), load_external_data=False).graph
    return [
        (tensor.data_type, tuple(tensor.dims), next(e.value for e in tensor.external_data if e.key == "offset"))
        for tensor in graph.initializer
        if tensor.external_data
    ]


def test_mirrored_pictures_belong_to_their_captions(heads: Path) -> None:
    held = features_module._read(next((heads.parent / "features").glob("trunk-*.npz")))
    assert held is not None
    assert held.mirrored.tolist() == [False] * (len(held.image) // 2) + [True] * (len(held.image) // 2)
    batches = features_module.PairBatches(held, batch_size=32, seed=5)
    batch = batches(3)
    assert all(torch.equal(batch[name], batches(3)[name]) for name in batch)
    own = {row.tobytes() for row in held.image[: len(held.image) // 2]}
    mirrored = [row.numpy().tobytes() not in own for row in batch["features"]]
    assert 4 < sum(mirrored) < 28
    assert batch["positives"].diagonal().all()
    assert torch.equal(batch["positives"], batch["positives"].T)


def test_equal_pictures_are_one() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    pixels[3] = pixels[1]
    first, numbers = features_module.distinct(pixels)
    assert first == [0, 1, 2, 4]
    assert numbers.tolist() == [0, 1, 2, 1, 3]
