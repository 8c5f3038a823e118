"""CLIPWORKS_PREPACK: weights in a file of their own stay its pages, and answers the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from fastapi import FastAPI

from model_store.session import open_session

onnx = pytest.importorskip("onnx")


def product_graph(folder: Path) -> Path:
    """x @ w, its 4 MB of weights in a file of their own."""
    from onnx import helper, numpy_helper

    weights = numpy_helper.from_array(np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32), "w")
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 1024]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path = folder / "product.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="product.data", size_threshold=0)
    return path


def is_mapped(file: Path) -> bool:
    return str(file) in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps of a process are read from /proc")
def test_weights_stay_pages_of_their_file(make_app: Callable[..., FastAPI], tmp_path: Path) -> None:
    path = product_graph(tmp_path)
    rows = np.random.default_rng(1).standard_normal((3, 1024)).astype(np.float32)
    answers: dict[bool, np.ndarray] = {}
    for prepack in (True, False):
        settings = make_app(prepack=prepack).state.services.registry.settings.session
        session: ort.InferenceSession = open_session(str(path), settings, "product")
        assert is_mapped(tmp_path / "product.data") is not prepack
        answers[prepack] = session.run(None, {"x": rows})[0]
        del session
    np.testing.assert_allclose(answers[False], answers[True], atol=1e-3)
