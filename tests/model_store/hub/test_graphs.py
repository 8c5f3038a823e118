"""Foreign graphs: weights in files beside them, precisions that are refused, and cuts that change nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from model_store.errors import ExportRefused
from model_store.hub.folder import FolderRepository
from model_store.hub.graphs import ForeignGraph, weight_arrays
from model_store.hub.pulling import download, plan_pull
from model_store.hub.surgery import before_normalisation

WIDE, ROWS = 32, np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
WEIGHTS = {
    name: np.random.default_rng(index).standard_normal((WIDE, WIDE)).astype(np.float32)
    for index, name in enumerate(("first", "second", "other"))
}


def model_of(
    nodes: list[NodeProto], outputs: tuple[str, ...] = ("out",), opset: int = 17, **weights: NDArray[np.generic]
) -> ModelProto:
    """A graph of `x` float32 [batch, 32]."""
    free = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [free("x", TensorProto.FLOAT, ["batch", WIDE])],
        [free(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def two_layers() -> ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["inner"]),
        helper.make_node("Tanh", ["inner"], ["curved"]),
        helper.make_node("MatMul", ["curved", "second"], ["out"]),
        helper.make_node("MatMul", ["inner", "other"], ["aside"]),
    ]
    return model_of(nodes, ("out", "aside"), **WEIGHTS)


def run(path: Path, output: str = "out") -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([output], {"x": ROWS})[0]


def written(folder: Path, model: ModelProto, *, one_file: bool | None = None) -> ForeignGraph:
    """one_file: all weights in one file beside the graph, or each in its own; None: inside of it."""
    path = folder / "model.onnx"
    if one_file is None:
        onnx.save(model, path)
    else:
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            all_tensors_to_one_file=one_file,
            location="model.onnx_data" if one_file else None,
            size_threshold=1024,
        )
    return ForeignGraph.read(path)


@pytest.mark.parametrize("one_file", [None, True, False])
def test_a_saved_graph_computes_the_same_bits(tmp_path: Path, one_file: bool | None) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "copy").mkdir()
    graph = written(tmp_path / "found", two_layers(), one_file=one_file)
    expected = run(graph.path)
    names = {None: (), True: ("model.onnx_data",), False: ("first", "second", "other")}[one_file]
    assert graph.sidecars() == names
    files = graph.save(tmp_path / "copy" / "image.onnx")
    assert [file.name for file in files] == ["image.onnx", *(["image.onnx.data"] if names else [])]
    for file in (tmp_path / "found").iterdir():
        file.unlink()
    assert np.array_equal(run(files[0]), expected)
    found = dict(weight_arrays(ForeignGraph.read(files[0])))
    assert all(np.array_equal(found[name], value) for name, value in WEIGHTS.items())


@pytest.mark.parametrize("one_file", [None, True, False])
@pytest.mark.parametrize("output", ["out", "inner", "aside"])
def test_a_cut_keeps_the_bits_and_only_what_they_need(tmp_path: Path, output: str, one_file: bool | None) -> None:
    whole = two_layers()
    graph = written(tmp_path, whole, one_file=one_file)
    graph.give_also(output)
    (tmp_path / "whole").mkdir()
    (whole_file, *_) = graph.save(tmp_path / "whole" / "whole.onnx")
    graph.keep(output)
    needed = {"out": {"first", "second"}, "inner": {"first"}, "aside": {"first", "other"}}[output]
    assert {tensor.name for tensor in graph.model.graph.initializer} == needed
    (cut, *data) = graph.save(tmp_path / "cut.onnx")
    assert sum(file.stat().st_size for file in (cut, *data)) < (len(needed) + 0.5) * WEIGHTS["first"].nbytes
    assert np.array_equal(run(cut, output), run(whole_file, output))


def test_a_cut_keeps_what_inner_graphs_read(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "first"], ["inside"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch),
        helper.make_node("MatMul", ["x", "other"], ["aside"]),
    ]
    model = model_of(nodes, ("out", "aside"), yes=np.array(True), first=WEIGHTS["first"], other=WEIGHTS["other"])
    graph = written(tmp_path, model)
    expected = run(graph.path)
    graph.keep("out")
    assert {tensor.name for tensor in graph.model.graph.initializer} == {"yes", "first"}
    assert np.array_equal(run(graph.save(tmp_path / "cut.onnx")[0]), expected)


def test_a_value_that_nothing_computes_cannot_be_kept(tmp_path: Path) -> None:
    graph = written(tmp_path, two_layers())
    for name in ("nowhere", "x", "first", ""):
        with pytest.raises(ExportRefused, match="computes no"):
            graph.keep(name)


def points(model: ModelProto, *, dims: tuple[int, ...] | None = None, kind: int | None = None, **entries: str) -> None:
    """Change where the first external weight is said to lie, or what shape and type it is said to have."""
    tensor = next(each for each in model.graph.initializer if each.external_data)
    if dims:
        tensor.dims[:] = dims
    tensor.data_type = kind or tensor.data_type
    for entry in tensor.external_data:
        entry.value = entries.pop(entry.key, entry.value)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def missing(folder: Path, model: ModelProto) -> None:
    (folder / "model.onnx_data").unlink()


def cut_off(folder: Path, model: ModelProto) -> None:
    os.truncate(folder / "model.onnx_data", 2 * WEIGHTS["first"].nbytes)


def emptied(folder: Path, model: ModelProto) -> None:
    os.truncate(folder / "model.onnx_data", 0)


def a_folder(folder: Path, model: ModelProto) -> None:
    (folder / "model.onnx_data").unlink()
    (folder / "model.onnx_data").mkdir()


def linked_outside(folder: Path, model: ModelProto) -> None:
    outside = folder.parent / f"{folder.name}.secret"
    (folder / "model.onnx_data").rename(outside)
    (folder / "model.onnx_data").symlink_to(outside)


def linked_in_a_circle(folder: Path, model: ModelProto) -> None:
    (folder / "model.onnx_data").unlink()
    (folder / "model.onnx_data").symlink_to("model.onnx_data")


def a_pipe(folder: Path, model: ModelProto) -> None:
    (folder / "model.onnx_data").unlink()
    os.mkfifo(folder / "model.onnx_data")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (missing, "not there"),
        (cut_off, "it is cut off"),
        (emptied, "it is cut off"),
        (a_folder, "model.onnx_data"),
        (linked_in_a_circle, "model.onnx_data"),
        (linked_outside, "outside"),
        (a_pipe, "no plain file"),
        (lambda _, model: points(model, location="../model.onnx_data"), "outside the folder"),
        (lambda _, model: points(model, location="a/../../b"), "outside the folder"),
        (lambda _, model: points(model, location="/etc/passwd"), "outside the folder"),
        (lambda _, model: points(model, location=""), "outside the folder"),
        (lambda _, model: points(model, location="a\0b"), "outside the folder"),
        (lambda _, model: points(model, location="x" * 5000), "not there"),
        (lambda _, model: points(model, offset="-4096"), "bytes from -4096"),
        (lambda _, model: points(model, length="-1"), "bytes"),
        (lambda _, model: points(model, offset=str(10**15)), "it is cut off"),
        (lambda _, model: points(model, offset="many"), "'many'"),
        (lambda _, model: points(model, length="1e3"), "'1e3'"),
        (lambda _, model: points(model, length="9" * 5000), "no number"),
        (lambda _, model: points(model, length="4"), "'first' has 4096 bytes, the place of its weights 4"),
        (lambda _, model: points(model, length=str(WEIGHTS["first"].nbytes + 1)), "'first' has 4096 bytes"),
        (lambda _, model: points(model, dims=(2**40, 2**40)), "the place of its weights 4096"),
        (lambda _, model: points(model, dims=(-1, 200)), "cannot lie outside"),
        (lambda _, model: points(model, kind=TensorProto.STRING), "cannot lie outside"),
    ],
)
def test_weights_that_are_not_where_they_are_said_to_be(
    tmp_path: Path, change: Callable[[Path, ModelProto], None], said: str
) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    graph = written(folder, two_layers(), one_file=True)
    change(folder, graph.model)
    with pytest.raises(ExportRefused, match=said):
        graph.save(tmp_path / "copy.onnx")
    with pytest.raises(ExportRefused, match=said):
        graph.check_weights()
    if graph.model.graph.initializer[0].data_type == TensorProto.FLOAT:
        with pytest.raises(ExportRefused, match=said):
            list(weight_arrays(graph))


@pytest.mark.parametrize("length", [True, False], ids=["length said", "length not said"])
def test_weights_of_inner_graphs_and_of_tensors_without_a_length_are_found(tmp_path: Path, length: bool) -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "own"], ["inside"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(WEIGHTS["first"], "own")],
    )
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["same"])], "other", [], [branch.output[0]])
    other.output[0].name = "same"
    node = helper.make_node("If", ["yes"], ["inner"], then_branch=branch, else_branch=other)
    product = helper.make_node("MatMul", ["inner", "second"], ["out"])
    model = model_of([node, product], yes=np.array(True), second=WEIGHTS["second"])
    found, copy = tmp_path / "found", tmp_path / "copy"
    found.mkdir()
    copy.mkdir()
    expected = run(written(tmp_path, model).path)
    graph = written(found, model, one_file=True)
    (inner,) = (tensor for tensor in graph.weights() if tensor.name == "own")
    assert inner.data_location == TensorProto.EXTERNAL
    if not length:
        for tensor in graph.weights():
            kept = [entry for entry in tensor.external_data if entry.key != "length"]
            del tensor.external_data[:]
            tensor.external_data.extend(kept)
    graph.check_weights()
    assert np.array_equal(run(graph.save(copy / "model.onnx")[0]), expected)
    next(entry for entry in inner.external_data if entry.key == "location").value = "../model.onnx_data"
    with pytest.raises(ExportRefused, match="outside the folder"):
        graph.check_weights()


def test_a_pull_compares_them_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    graph = written(tmp_path / "onnx", two_layers(), one_file=True)
    points(graph.model, offset=str(10**9))
    onnx.save(graph.model, graph.path)
    with pytest.raises(ExportRefused, match="it is cut off"):
        download(plan_pull(FolderRepository(tmp_path)))


def test_a_snapshot_of_the_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    expected = run(written(snapshot, two_layers(), one_file=True).path)
    for file in list(snapshot.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(f"../../blobs/{file.name}")
    assert np.array_equal(run(ForeignGraph.read(snapshot / "model.onnx").save(tmp_path / "copy.onnx")[0]), expected)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_no_graph_or_one(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ExportRefused, match="no ONNX file"):
        ForeignGraph.read(path)


@pytest.mark.parametrize("kind", ["DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"])
def test_dynamic_quantisation_is_refused_with_the_remedy(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ExportRefused, match=f"quantised dynamically .*{kind}.*--precision int8"):
        written(tmp_path, model_of([helper.make_node(kind, ["x"], ["out"])]))


def test_stored_quantisation_is_refused_in_inner_graphs_too(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("DequantizeLinear", ["a", "b"], ["c"])], "inner", [], [])
    node = helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner)
    with pytest.raises(ExportRefused, match="holds quantised weights.*Take the fp32 file"):
        written(tmp_path, model_of([node], yes=np.array(True)))


def halves() -> dict[str, NDArray[np.generic]]:
    return {name: value.astype(np.float16) for name, value in WEIGHTS.items()}


def test_half_precision_is_refused_and_weights_stored_so_are_not(tmp_path: Path) -> None:
    to_half = helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16)
    product = helper.make_node("MatMul", ["h", "first"], ["p"])
    back = helper.make_node("Cast", ["p"], ["out"], to=TensorProto.FLOAT)
    with pytest.raises(ExportRefused, match="computes in fp16. Take the fp32 file"):
        written(tmp_path, model_of([to_half, product, back], first=halves()["first"]))
    ends = model_of([helper.make_node("MatMul", ["x", "first"], ["out"])], first=halves()["first"])
    ends.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(ExportRefused, match="is an fp16 graph"):
        written(tmp_path, ends)
    widened = helper.make_node("Cast", ["first"], ["wide"], to=TensorProto.FLOAT)
    stored = model_of([widened, helper.make_node("MatMul", ["x", "wide"], ["out"])], first=halves()["first"])
    assert written(tmp_path, stored).inputs[0].dtype == "float32"


INT = np.int64
DIVISIONS: dict[str, tuple[list[NodeProto], dict[str, NDArray[np.generic]], int]] = {
    "LpNormalization": ([helper.make_node("LpNormalization", ["v"], ["out"], axis=1, p=2)], {}, 17),
    "ReduceL2, Clip, Expand": (
        [
            helper.make_node("ReduceL2", ["v"], ["l"], axes=[1], keepdims=1),
            helper.make_node("Clip", ["l", "least"], ["c"]),
            helper.make_node("Shape", ["v"], ["s"]),
            helper.make_node("Expand", ["c", "s"], ["e"]),
            helper.make_node("Div", ["v", "e"], ["out"]),
        ],
        {"least": np.float32(1e-12)},
        17,
    ),
    "Sqrt, ReduceSum, Pow": (
        [
            helper.make_node("Pow", ["v", "two"], ["p"]),
            helper.make_node("ReduceSum", ["p", "axis"], ["r"], keepdims=1),
            helper.make_node("Sqrt", ["r"], ["q"]),
            helper.make_node("Div", ["v", "q"], ["out"]),
        ],
        {"two": np.float32(2), "axis": np.array([1], INT)},
        17,
    ),
    "Sqrt, ReduceSum, Mul, behind a Cast": (
        [
            helper.make_node("Mul", ["v", "v"], ["p"]),
            helper.make_node("ReduceSum", ["p", "axis"], ["r"], keepdims=1),
            helper.make_node("Sqrt", ["r"], ["q"]),
            helper.make_node("Div", ["v", "q"], ["d"]),
            helper.make_node("Cast", ["d"], ["i"], to=TensorProto.FLOAT),
            helper.make_node("Identity", ["i"], ["out"]),
        ],
        {"axis": np.array([1], INT)},
        17,
    ),
}


@pytest.mark.parametrize("form", DIVISIONS)
def test_the_vector_before_a_division_by_its_length_is_found(tmp_path: Path, form: str) -> None:
    nodes, weights, opset = DIVISIONS[form]
    product = helper.make_node("MatMul", ["x", "first"], ["v"])
    graph = written(tmp_path, model_of([product, *nodes], opset=opset, first=WEIGHTS["first"], **weights))
    assert before_normalisation(graph, "out") == "v"
    given = run(graph.path)
    graph.keep("v")
    before = run(graph.save(tmp_path / "before.onnx")[0], "v")
    assert np.abs(before / np.linalg.norm(before, axis=1, keepdims=True) - given).max() < 1e-6


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Div", ["v", "two"], ["out"])],
        [helper.make_node("ReduceL2", ["x"], ["l"], axes=[1]), helper.make_node("Div", ["v", "l"], ["out"])],
        [helper.make_node("Softmax", ["v"], ["s"]), helper.make_node("Div", ["v", "s"], ["out"])],
        [helper.make_node("Tanh", ["v"], ["out"])],
        [helper.make_node("Add", ["v", "two"], ["out"])],
    ],
    ids=["a constant", "the length of something else", "a softmax", "no division", "a sum"],
)
def test_other_divisions_are_left_alone(tmp_path: Path, nodes: list[NodeProto]) -> None:
    product = helper.make_node("MatMul", ["x", "first"], ["v"])
    graph = written(tmp_path, model_of([product, *nodes], first=WEIGHTS["first"], two=np.float32(2)))
    assert before_normalisation(graph, "out") is None
