"""int8 and fp16 from a verified graph: what each trick is for, shown on a graph that needs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from model_store.fidelity import measure
from model_store.manifest import TensorSpec
from model_store.precisions.quantize import write_fp16, write_int8
from model_store.precisions.smoothing import peak_ratios, smooth_layer_norms, weight_products
from training.exporting.graphs import write_graph

pytestmark = pytest.mark.torch


class Block(nn.Module):
    """Layer norm, two readers of it, and a projection; `loud` channels have a gain 40 times the others'."""

    def __init__(self, loud: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(24, 64)
        self.norm = nn.LayerNorm(64)
        self.first = nn.Linear(64, 96)
        self.second = nn.Linear(64, 96)
        self.last = nn.Linear(96, 32)
        with torch.no_grad():
            self.norm.weight[:loud] *= 40
            self.first.weight[:, :loud] /= 40
            self.second.weight[:, :loud] /= 40

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.norm(self.embed(pixels.float() / 255))
        return self.last(torch.relu(self.first(x)) * torch.sigmoid(self.second(x))).mean(dim=1)


TENSORS = (
    TensorSpec(name="pixels", dtype="uint8", shape=("batch", 8, 24)),
    TensorSpec(name="image_embeds", dtype="float32", shape=("batch", 32)),
)


def inputs(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 24)).astype(np.uint8)


BATCHES = [row[None] for row in inputs(16, seed=1)]


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = write_graph(Block(loud=3).eval(), TENSORS, tmp_path_factory.mktemp("loud") / "fp32.onnx")
    return path


def run(path: Path, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixels": batch})[0])


def test_smoothing_changes_the_scales_and_not_the_answer(loud: Path, tmp_path: Path) -> None:
    model = onnx.load(loud)
    before = peak_ratios(model, {"pixels": BATCHES})
    assert smooth_layer_norms(model, {"pixels": BATCHES}) == 1
    onnx.save(model, tmp_path / "smoothed.onnx")
    after = peak_ratios(model, {"pixels": BATCHES})
    behind_norm = sorted(before, key=lambda name: before[name])[-2:]
    assert all(after[name] < before[name] / 2 for name in behind_norm)
    same = measure(run(tmp_path / "smoothed.onnx", inputs(8, seed=2)), run(loud, inputs(8, seed=2)))
    assert same.centred_relative_l2 < 1e-5


def test_smoothing_is_what_saves_int8_here(loud: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = run(loud, inputs(64, seed=3))

    def error(name: str) -> float:
        write_int8(loud, tmp_path / name, input_name="pixels", batches=BATCHES)
        return measure(run(tmp_path / name, inputs(64, seed=3)), reference).centred_relative_l2

    smoothed = error("smoothed.onnx")
    monkeypatch.setattr("model_store.precisions.quantize.smooth_layer_norms", lambda model, batches: 0)
    assert smoothed < error("plain.onnx") / 3


def test_int8_is_the_same_alone_and_in_company(loud: Path, tmp_path: Path) -> None:
    (path,) = write_int8(loud, tmp_path / "int8.onnx", input_name="pixels", batches=BATCHES)
    rows = inputs(16, seed=4)
    rows[5] = 255
    together = run(path, rows)
    alone = np.concatenate([run(path, rows[i : i + 1]) for i in range(16)])
    assert np.abs(alone - together).max() <= 1e-6 * np.abs(together).max()


def test_products_kept_in_fp32_are_those_with_the_widest_inputs(loud: Path, tmp_path: Path) -> None:
    model = onnx.load(loud)
    assert len(weight_products(model)) == 4
    write_int8(loud, tmp_path / "all.onnx", input_name="pixels", batches=BATCHES)
    write_int8(loud, tmp_path / "half.onnx", input_name="pixels", batches=BATCHES, keep_fp32=0.5)

    def int8_matrices(path: Path) -> int:
        tensors = onnx.load(path).graph.initializer
        return sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2 for t in tensors)

    assert (int8_matrices(tmp_path / "all.onnx"), int8_matrices(tmp_path / "half.onnx")) == (3, 1)


def test_fp16_halves_the_file_and_keeps_the_interface(loud: Path, tmp_path: Path) -> None:
    (path,) = write_fp16(loud, tmp_path / "fp16.onnx")
    model = onnx.load(path)
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 2]
    assert weights
    assert all(array.dtype == np.float16 for array in weights)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert measure(run(path, inputs(8, seed=5)), run(loud, inputs(8, seed=5))).cosine_min > 0.9999


class Summed(Block):
    """As behind a sum in BERT: what the norm gives is added to what the products behind it give."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.norm(self.embed(pixels.float() / 255))
        y = torch.relu(self.first(x)) * torch.sigmoid(self.second(x))
        return self.last(y + functional.pad(x, (0, 32))).mean(dim=1)


def test_a_norm_whose_vectors_are_added_too_is_smoothed_for_its_products(tmp_path: Path) -> None:
    (path,) = write_graph(Summed(loud=3).eval(), TENSORS, tmp_path / "summed.onnx")
    model, rows = onnx.load(path), inputs(24, seed=2)
    before = ort.InferenceSession(path).run(None, {"pixels": rows})[0]
    assert smooth_layer_norms(model, {"pixels": BATCHES}) == 1
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 2
    onnx.checker.check_model(model)
    after = ort.InferenceSession(model.SerializeToString()).run(None, {"pixels": rows})[0]
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()
    write_int8(path, tmp_path / "int8.onnx", input_name="pixels", batches=BATCHES)
    found = ort.InferenceSession(tmp_path / "int8.onnx").run(None, {"pixels": rows})[0]
    assert measure(found, before).cosine_min > 0.995


class Depthwise(nn.Module):
    """A stem, then three pairs of a plain and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        pairs = [(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)) for _ in range(3)]
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), *(layer for pair in pairs for layer in pair))
        self.last = nn.Linear(8, 16)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.last(self.layers(pixels.permute(0, 3, 1, 2).float() / 255).mean(dim=(2, 3)))


@pytest.mark.parametrize(("share", "kept"), [(0.4, [False, True]), (0.6, [True, True, True, False])])
def test_depthwise_convolutions_stay_first_when_most_stay(tmp_path: Path, share: float, kept: list[bool]) -> None:
    """Which of the convolutions kept in fp32 (behind the stem, in order of size) are depthwise."""
    tensors = (
        TensorSpec(name="pixels", dtype="uint8", shape=("batch", 12, 12, 3)),
        TensorSpec(name="image_embeds", dtype="float32", shape=("batch", 16)),
    )
    (path,) = write_graph(Depthwise().eval(), tensors, tmp_path / "d.onnx")
    rows = np.random.default_rng(0).integers(0, 256, (8, 1, 12, 12, 3)).astype(np.uint8)
    write_int8(path, tmp_path / "int8.onnx", input_name="pixels", batches=list(rows), keep_fp32=share)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    constants = {tensor.name for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    stayed = [node for node in convolutions[1:] if node.input[1] in constants]
    depthwise = [any(each.name == "group" and each.i > 1 for each in node.attribute) for node in stayed]
    assert sorted(depthwise) == sorted(kept)
