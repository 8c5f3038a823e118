"""Two graphs of one tower, one file of weights: the dense graph reads the image encoder's numbers, byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
from onnx import TensorProto, external_data_helper

WEIGHTS_FILE = "image_weights.fp32.data"
_LEAST_BYTES = 1024  # shapes and scalars stay in the graph, where the runtime wants to see them
_ALIGNMENT_BYTES = 4096  # so that a memory map can be used as it is
_SMALL_ALIGNMENT_BYTES = 64
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


def share_weights(folder: Path, graphs: tuple[str, ...]) -> str:
    """Move the weights of `graphs` (files of `folder`) into one file beside them, each distinct array once.

    Returns that file's name. Graphs are rewritten; external data they had before is removed.
    """
    models = {name: onnx.load(folder / name) for name in graphs}
    for name in graphs:
        (folder / f"{name}.data").unlink(missing_ok=True)
    weights = _Weights(folder / WEIGHTS_FILE)
    for name, model in models.items():
        for tensor in model.graph.initializer:
            _move(tensor, weights)
        onnx.save(model, folder / name)
    return WEIGHTS_FILE


def _move(tensor: TensorProto, weights: _Weights) -> None:
    array = onnx.numpy_helper.to_array(tensor)
    if array.nbytes < _LEAST_BYTES or tensor.data_type != TensorProto.FLOAT:
        return
    offset, length = weights.place(array.astype("<f4", copy=False).tobytes(), tensor.data_type)
    tensor.ClearField("float_data")
    tensor.raw_data = b"\0"  # the helper only marks tensors that hold raw data
    external_data_helper.set_external_data(tensor, WEIGHTS_FILE, offset=offset, length=length)
    tensor.ClearField("raw_data")
