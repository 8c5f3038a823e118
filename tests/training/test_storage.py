"""Weights that are stored smaller: rounded in torch first, so that the graphs still are the model, bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from model_store.errors import ExportRefused
from training.exporting.shared_weights import share_weights, store_smaller
from training.exporting.storage import StoredTable, fold_norms, round_to_half, round_to_int8

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("kind", "bits"), [("fp16", 2**-10), ("int8", 1 / 127)])
def test_a_stored_table_is_near_its_rows(kind: str, bits: float) -> None:
    torch.manual_seed(0)
    rows = torch.randn(40, 16) * torch.logspace(-2, 1, 40)[:, None]
    rows[3] = 0
    table = StoredTable(rows, kind)  # pyright: ignore[reportArgumentType]
    ids = torch.tensor([[0, 3], [39, 7]])
    found = table(ids)
    assert found.dtype == torch.float32
    assert ((found - rows[ids]).abs() <= 0.51 * bits * rows[ids].abs().amax(dim=-1, keepdim=True) + 1e-12).all()
    assert (found - rows[ids]).abs().max() > 0


@pytest.mark.parametrize("name", ["test_efficientnet", "tf_efficientnet_lite0", "test_resnet"])
def test_folded_norms_change_nothing(name: str) -> None:
    torch.manual_seed(0)
    trunk = timm.create_model(name, num_classes=5).eval()
    for key, tensor in trunk.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        if key.endswith(("running_mean", "bn1.bias")):
            tensor.normal_(std=0.2)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = trunk(pixels)
        fold_norms(trunk)
        left = sum(isinstance(part, nn.BatchNorm2d) for part in trunk.modules())
        assert left == (1 if name == "test_resnet" else 0)  # the norm behind its stem of several layers stays
        after = trunk(pixels)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()


def test_numbers_beyond_half_precision_are_refused() -> None:
    layer = nn.Linear(32, 32)
    with torch.no_grad():
        layer.weight[0, 0] = 1e5
    with pytest.raises(ExportRefused, match="beyond half precision"):
        round_to_half(layer)


def graph_of(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"]), onnx.helper.make_node("Add", ["y", "b"], ["z"])]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [onnx.helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def test_only_what_half_precision_holds_is_stored_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(40, 32)).astype(np.float16).astype(np.float32)
    x = rng.normal(size=(3, 40)).astype(np.float32)
    for name, weight, stored in (("exact", exact, 1), ("other", exact + np.float32(1e-6), 0)):
        model = graph_of(weight, rng.normal(size=32).astype(np.float32))
        onnx.save(model, tmp_path / f"{name}.onnx")
        before = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
        assert store_smaller(onnx.load(tmp_path / f"{name}.onnx")) == stored
        share_weights(tmp_path, (f"{name}.onnx",), f"{name}.data", smaller=True)
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"))
        after = ort.InferenceSession(str(tmp_path / f"{name}.onnx")).run(None, {"x": x})[0]
        assert np.array_equal(after, before)
    assert (tmp_path / "exact.data").stat().st_size == exact.size * 2
    assert (tmp_path / "other.data").stat().st_size == exact.size * 4


def test_rounded_matrices_are_near_and_take_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 64)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-3, 1, 64)[:, None])
        layer.weight[5] = 0
    exact = layer.weight.detach().clone()
    round_to_int8(layer)
    rounded = layer.weight.detach()
    most = exact.abs().amax(dim=1, keepdim=True)
    assert ((rounded - exact).abs() <= 0.51 / 127 * most).all()
    assert (rounded - exact).abs().max() > 0
    x = np.random.default_rng(0).normal(size=(3, 96)).astype(np.float32)
    # As the exporter writes it, and the other way round.
    for name, weight in (("columns", rounded.T.numpy()), ("rows", rounded.numpy())):
        fed = x if name == "columns" else x[:, :64]
        path = tmp_path / f"{name}.onnx"
        model = graph_of(np.ascontiguousarray(weight), np.zeros(weight.shape[1], np.float32))
        onnx.save(model, path)
        before = ort.InferenceSession(model.SerializeToString()).run(None, {"x": fed})[0]
        share_weights(tmp_path, (path.name,), f"{name}.data", smaller=True)
        assert np.array_equal(ort.InferenceSession(str(path)).run(None, {"x": fed})[0], before)
        assert (tmp_path / f"{name}.data").stat().st_size == weight.size


def test_outputs_that_are_silent_beside_the_others_become_zero() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, 1)
    with torch.no_grad():
        layer.weight[3] *= 1e-9
        layer.weight[4] *= 1e-4
    round_to_int8(layer)
    assert not layer.weight[3].any()
    assert layer.weight[4].any()


@pytest.mark.parametrize("groups", [1, 24])
def test_rounded_convolutions_take_a_quarter_of_the_bytes(tmp_path: Path, groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 72, 5, groups=groups, bias=False).eval()
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-3, 1, 72)[:, None, None, None])
        layer.weight[5] = 0
    exact = layer.weight.detach().clone()
    round_to_int8(layer)
    most = exact.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert ((layer.weight - exact).abs() <= 0.51 / 127 * most).all()
    assert (layer.weight - exact).abs().max() > 0
    x = np.random.default_rng(0).normal(size=(2, 24, 9, 9)).astype(np.float32)
    torch.onnx.export(layer, (torch.from_numpy(x),), tmp_path / "g.onnx", input_names=["x"], external_data=False)
    before = ort.InferenceSession(str(tmp_path / "g.onnx")).run(None, {"x": x})[0]
    share_weights(tmp_path, ("g.onnx",), "g.data", smaller=True)
    assert np.array_equal(ort.InferenceSession(str(tmp_path / "g.onnx")).run(None, {"x": x})[0], before)
    assert (tmp_path / "g.data").stat().st_size == layer.weight.numel()


def test_graphs_share_equal_arrays(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float16).astype(np.float32)
    for name in ("a.onnx", "b.onnx"):
        onnx.save(graph_of(weight, np.zeros(32, np.float32)), tmp_path / name)
    share_weights(tmp_path, ("a.onnx", "b.onnx"), "both.data", smaller=True)
    assert (tmp_path / "both.data").stat().st_size == weight.size * 2
