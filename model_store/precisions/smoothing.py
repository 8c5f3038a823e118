"""Make activations easier to quantise without changing the model: even out the channels of layer norms.

A per-tensor int8 scale is set by the loudest channel; trained transformers have a few that are 30 times louder than the
rest, always behind a layer norm. Its gain and bias can be divided per channel, and the weights that read it multiplied.
"""

# pyright: basic
# (onnx and onnxruntime.quantization come without types)
from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

Batches = Mapping[str, Sequence[NDArray[Any]]]
_STRENGTH = 0.5  # how much of the range moves from activations to weights
_MAX_SCALE = 1e4
_SILENT = 4


@dataclass(frozen=True)
class _Norm:
    """A LayerNormalization all of whose readers are products with constant weights."""

    node: onnx.NodeProto
    products: tuple[onnx.NodeProto, ...]


def smooth_layer_norms(model: onnx.ModelProto, batches: Batches) -> int:
    """Rescale every layer norm that feeds weight products, in place; returns how many. One whose vectors are added to
    others too (BERT's, behind its sums) is worked out twice, and its copy for the products is rescaled.

    Scale of channel j: max|x_j| ** .5 / max|W_j| ** .5 over the batches (SmoothQuant, Xiao et al. 2023, eq. 4).
    """
    _split_norms(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    norms = list(_smoothable(model, weights))
    peaks = channel_peaks(model, [norm.node.output[0] for norm in norms], batches)
    readers = _reader_counts(model)
    for norm in norms:
        peak = peaks[norm.node.output[0]]
        peak = np.maximum(peak, peak.max() * 1e-4)  # a channel that was silent here may not be elsewhere
        arrays = [numpy_helper.to_array(weights[product.input[1]]) for product in norm.products]
        loudest = np.max(
            [np.abs(_by_channel(p, a)).max(axis=1) for p, a in zip(norm.products, arrays, strict=True)], axis=0
        )
        scale = (peak**_STRENGTH / np.maximum(loudest, 1e-8) ** (1 - _STRENGTH)).astype(np.float32)
        scale = np.clip(scale / np.exp(np.log(np.maximum(scale, 1e-8)).mean()), 1 / _MAX_SCALE, _MAX_SCALE)
        for position in range(1, len(norm.node.input)):
            _replace(
                model,
                weights,
                readers,
                norm.node,
                position,
                numpy_helper.to_array(weights[norm.node.input[position]]) / scale,
            )
        for product, array in zip(norm.products, arrays, strict=True):
            wide = scale[None, :] if _transposed(product) else scale[:, None]
            _replace(model, weights, readers, product, 1, array * wide)
    return len(norms)


def _split_norms(model: onnx.ModelProto) -> None:
    """Give the weight products behind a layer norm that has other readers a layer norm of their own."""
    constants = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "LayerNormalization":
            continue
        output = node.output[0]
        products = [
            each
            for each in readers.get(output, [])
            if each.op_type in ("MatMul", "Gemm") and each.input[0] == output and each.input[1] in constants
        ]
        if products and len(products) < len(readers[output]):
            twin = onnx.helper.make_node(
                "LayerNormalization", list(node.input), [f"{output}.products"], name=f"{node.name}.products"
            )
            twin.attribute.extend(node.attribute)
            for product in products:
                product.input[0] = twin.output[0]
            nodes.append(twin)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def weight_products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """MatMul and Gemm nodes whose second input is a constant matrix."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in constants]


def channel_peaks(model: onnx.ModelProto, names: Sequence[str], batches: Batches) -> dict[str, NDArray[np.float32]]:
    """max|x| per channel (last axis) of the named tensors over all batches."""
    peaks: dict[str, NDArray[np.float32]] = {}
    for values in _observe(model, names, batches):
        for name, value in values.items():
            peak = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
    return peaks


def peak_ratios(model: onnx.ModelProto, batches: Batches) -> dict[str, float]:
    """Node name -> max|x| / root mean square of a weight product's input: the share of int8 spent on outliers."""
    products = weight_products(model)
    tensors = sorted({node.input[0] for node in products})
    peak = dict.fromkeys(tensors, 0.0)
    square = dict.fromkeys(tensors, 0.0)
    count = 0
    for values in _observe(model, tensors, batches):
        count += 1
        for name, value in values.items():
            peak[name] = max(peak[name], float(np.abs(value).max()))
            square[name] += float(np.square(value, dtype=np.float64).mean())
    return {n.name: peak[n.input[0]] / max((square[n.input[0]] / max(count, 1)) ** 0.5, 1e-12) for n in products}


def _observe(
    model: onnx.ModelProto, names: Sequence[str], batches: Batches
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Values of inner tensors, batch by batch."""
    if not names:
        return
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {output.name for output in watched.graph.output}
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watched.onnx"
        onnx.save(watched, path, save_as_external_data=True, location="watched.data")
        del watched
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for input_name, arrays in batches.items():
            for array in arrays:
                yield dict(zip(names, session.run(list(names), {input_name: array}), strict=True))


def _smoothable(model: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto]) -> Iterator[_Norm]:
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    outputs = {output.name for output in model.graph.output}
    for node in model.graph.node:
        if node.op_type != "LayerNormalization" or any(name not in weights for name in node.input[1:]):
            continue
        products = _products_behind(node.output[0], consumers, weights, outputs)
        if products:
            yield _Norm(node, tuple(products))


def _products_behind(
    name: str,
    consumers: Mapping[str, list[onnx.NodeProto]],
    weights: Mapping[str, onnx.TensorProto],
    outputs: set[str],
) -> list[onnx.NodeProto] | None:
    """Weight products that read `name`, through nodes that keep its last axis; None if anything else reads it."""
    if name in outputs:
        return None
    found: list[onnx.NodeProto] = []
    for node in consumers.get(name, []):
        if node.op_type in ("MatMul", "Gemm") and node.input[0] == name and node.input[1] in weights:
            found.append(node)
        elif _keeps_last_axis(node, name):
            behind = _products_behind(node.output[0], consumers, weights, outputs)
            if behind is None:
                return None
            found.extend(behind)
        else:
            return None
    return found


def _keeps_last_axis(node: onnx.NodeProto, name: str) -> bool:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Transpose":
        permutation = list(attributes.get("perm", []))
        return bool(permutation) and permutation[-1] == len(permutation) - 1
    return node.op_type == "Gather" and node.input[0] == name and attributes.get("axis", 0) in (0, 1)


def _transposed(product: onnx.NodeProto) -> bool:
    """True when a Gemm's weight is stored [out, in]."""
    return product.op_type == "Gemm" and any(a.name == "transB" and a.i for a in product.attribute)


def _by_channel(product: onnx.NodeProto, weight: NDArray[Any]) -> NDArray[Any]:
    return weight.T if _transposed(product) else weight


def _reader_counts(model: onnx.ModelProto) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _replace(
    model: onnx.ModelProto,
    weights: dict[str, onnx.TensorProto],
    readers: dict[str, int],
    node: onnx.NodeProto,
    position: int,
    array: NDArray[Any],
) -> None:
    """Give `node` its own changed copy of a constant (exporters share equal constants between nodes)."""
    old = node.input[position]
    values = np.ascontiguousarray(array, dtype=np.float32)
    if readers[old] == 1:
        weights[old].CopyFrom(numpy_helper.from_array(values, old))
        return
    readers[old] -= 1
    name = f"{old}.{node.name}.smoothed"
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    weights[name] = model.graph.initializer[-1]
    readers[name] = 1
    node.input[position] = name
