"""One file of weights for the graphs of a tower: the dense graph reads the image encoder's numbers, byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, external_data_helper, numpy_helper

WEIGHTS_FILE = "image_weights.fp32.data"
_LEAST_BYTES = 1024  # shapes and scalars stay in the graph, where the runtime wants to see them
_ALIGNMENT_BYTES = 4096  # so that a memory map can be used as it is
_SMALL_ALIGNMENT_BYTES = 64
_MOVED = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8)
_Key = tuple[int, int, str]


class _Weights:
    """The file being written: where each distinct array of bytes lies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[_Key, tuple[int, int]] = {}
        self._end = 0
        path.write_bytes(b"")

    def place(self, data: bytes, kind: int) -> tuple[int, int]:
        """(offset, length) of `data`, written once however often it is asked for."""
        key = (kind, len(data), hashlib.sha256(data).hexdigest())
        if key not in self._places:
            step = _ALIGNMENT_BYTES if len(data) >= 16 * _ALIGNMENT_BYTES else _SMALL_ALIGNMENT_BYTES
            offset = -(-self._end // step) * step
            with self._path.open("ab") as stream:
                stream.write(b"\0" * (offset - self._end))
                stream.write(data)
            self._places[key] = (offset, len(data))
            self._end = offset + len(data)
        return self._places[key]


def share_weights(
    folder: Path,
    graphs: tuple[str, ...],
    file: str = WEIGHTS_FILE,
    *,
    smaller: bool = False,
) -> str:
    """Move the weights of `graphs` (files of `folder`) into one file beside them, each distinct array once.

    smaller: see store_smaller. Returns that file's name. Graphs are rewritten; external data that they had before is
    removed.
    """
    models = {name: onnx.load(folder / name) for name in graphs}
    for name, model in models.items():
        if smaller:
            store_smaller(model)
        (folder / f"{name}.data").unlink(missing_ok=True)
    weights = _Weights(folder / file)
    for name, model in models.items():
        for tensor in model.graph.initializer:
            _move(tensor, weights, file)
        onnx.save(model, folder / name)
    return file


def store_smaller(model: ModelProto) -> int:
    """Keep float weights that 8 bits and a scale for each row, column or output, or half precision, hold exactly as
    such, with nodes behind them that make the same floats again; returns how many.

    ONNX Runtime works these nodes out once, when it opens the graph.
    """
    graph = model.graph
    made: list[onnx.NodeProto] = []
    count = 0
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        if array.nbytes < _LEAST_BYTES:
            continue
        nodes = _as_int8(graph, tensor, array) or _as_half(tensor, array)
        made += nodes
        count += bool(nodes)
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return count


def _as_int8(graph: onnx.GraphProto, tensor: TensorProto, array: NDArray[np.float32]) -> list[onnx.NodeProto]:
    """Nodes that restore `array` from integers, which take its place; none if they would not be exact."""
    if array.ndim not in (2, 4):
        return []
    # A matrix may lie either way; a convolution's first axis is its outputs.
    for axis in (0, 1) if array.ndim == 2 else ((1, 2, 3),):
        scale = np.abs(array).max(axis=axis, keepdims=True) / np.float32(127)
        scale[scale == 0] = 1
        whole = np.round(array / scale)
        if np.array_equal(whole * scale, array) and np.abs(whole).max() <= 127:
            break
    else:
        return []
    name, stored = tensor.name, f"{tensor.name}.int8"
    tensor.CopyFrom(numpy_helper.from_array(whole.astype(np.int8), stored))
    graph.initializer.append(numpy_helper.from_array(scale, f"{stored}.scale"))
    cast = onnx.helper.make_node("Cast", [stored], [f"{stored}.float"], name=f"{stored}.cast", to=TensorProto.FLOAT)
    return [cast, onnx.helper.make_node("Mul", [f"{stored}.float", f"{stored}.scale"], [name], name=f"{stored}.mul")]


def _as_half(tensor: TensorProto, array: NDArray[np.float32]) -> list[onnx.NodeProto]:
    """A node that restores `array` from half precision, which takes its place; none if that would not be exact."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), array):
        return []
    name, stored = tensor.name, f"{tensor.name}.half"
    tensor.CopyFrom(numpy_helper.from_array(half, stored))
    return [onnx.helper.make_node("Cast", [stored], [name], name=f"{stored}.cast", to=TensorProto.FLOAT)]


def _move(tensor: TensorProto, weights: _Weights, file: str) -> None:
    array = numpy_helper.to_array(tensor)
    if array.nbytes < _LEAST_BYTES or tensor.data_type not in _MOVED:
        return
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    offset, length = weights.place(data, tensor.data_type)
    tensor.ClearField("float_data")
    tensor.ClearField("int32_data")  # where small types lie that are not raw
    tensor.raw_data = b"\0"  # the helper only marks tensors that hold raw data
    external_data_helper.set_external_data(tensor, file, offset=offset, length=length)
    tensor.ClearField("raw_data")
