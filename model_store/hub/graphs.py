"""ONNX graphs as other projects export them: what they take and give, and the parts of them that are kept."""

# pyright: basic
# (onnx comes without types)
from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from model_store.errors import ExportRefused

INLINE_BYTES_MAX = 1_500_000_000  # a protobuf file ends at 2 GB
_SMALL_BYTES = 1024  # constants of shapes stay in the graph, where the runtime wants to see them
_ALIGNMENT_BYTES = 64
_DYNAMIC = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_STORED_SMALL = ("QuantizeLinear", "DequantizeLinear", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")
_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
}

# Of one element in a file of weights, of the types whose packing is settled.
_BITS: dict[int, int] = {
    kind: 4 if name in ("INT4", "UINT4", "FLOAT4E2M1") else 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    for name, kind in TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING", "INT2", "UINT2", "FLOAT6E2M3", "FLOAT6E3M2")
}


@dataclass(frozen=True)
class Port:
    """An input or output: `shape` holds None where an axis is free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass
class ForeignGraph:
    """One ONNX file, its weights left on disk when they lie beside it.

    path: the file, which `model` may no longer be equal to once parts of it are replaced.
    """

    path: Path
    model: ModelProto

    @classmethod
    def read(cls, path: Path) -> ForeignGraph:
        """Raises:
        ExportRefused: no ONNX file, or one without weights of its own kind (dynamic or stored quantisation, fp16).
        """
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's DecodeError and OSErrors; nothing of such a file can be used
            raise ExportRefused(f"{path.name} is no ONNX file: {' '.join(str(error).split())[:200]}") from error
        if not model.graph.node:
            raise ExportRefused(f"{path.name} is no ONNX file, or holds no graph")
        graph = cls(path, model)
        graph.refuse_small_weights()
        return graph

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Inputs that are not weights (old exporters list those too)."""
        weights = {tensor.name for tensor in self.model.graph.initializer}
        return tuple(_port(value) for value in self.model.graph.input if value.name not in weights)

    @property
    def outputs(self) -> tuple[Port, ...]:
        return tuple(_port(value) for value in self.model.graph.output)

    @property
    def opset(self) -> int:
        return max((each.version for each in self.model.opset_import if each.domain in ("", "ai.onnx")), default=0)

    def nodes(self) -> Iterator[NodeProto]:
        """Every node, those of inner graphs and functions included."""
        yield from _nodes(self.model.graph.node)
        for function in self.model.functions:
            yield from _nodes(function.node)

    def refuse_small_weights(self) -> None:
        """Raises:
        ExportRefused: the graph is quantised or in half precision.
        """
        kinds = {node.op_type for node in self.nodes()}
        if found := sorted(kinds & set(_DYNAMIC)):
            raise ExportRefused(
                f"{self.path.name} is quantised dynamically ({', '.join(found)}): the vector of a picture would depend "
                "on what else is in its batch. Take the fp32 file; --precision int8 makes int8 without this fault"
            )
        if found := sorted(kinds & set(_STORED_SMALL)):
            raise ExportRefused(
                f"{self.path.name} holds quantised weights ({', '.join(found)}). Take the fp32 file; --precision "
                "int8 makes int8 whose distance from it is measured"
            )
        halves = sum(tensor.data_type == TensorProto.FLOAT16 for tensor in self.model.graph.initializer)
        if halves and any(port.dtype == "float16" for port in (*self.inputs, *self.outputs)):
            raise ExportRefused(f"{self.path.name} is an fp16 graph. Take the fp32 file (the one without a suffix)")
        if halves > len(self.model.graph.initializer) // 2 and self._half_casts():
            raise ExportRefused(f"{self.path.name} computes in fp16. Take the fp32 file (the one without a suffix)")

    def _half_casts(self) -> bool:
        """Whether the input is turned to half precision: weights alone may be stored so, behind a cast of their own."""
        taken = {port.name for port in self.inputs if port.dtype == "float32"}
        return any(
            node.op_type == "Cast" and node.input[0] in taken and _attribute(node, "to") == TensorProto.FLOAT16
            for node in self.model.graph.node
        )

    def keep(self, output: str) -> None:
        """Cut the graph down to what `output` needs: nodes, weights and inputs.

        Raises:
            ExportRefused: there is no such value.
        """
        graph = self.model.graph
        makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
        if output not in makers:
            raise ExportRefused(f"{self.path.name} computes no {output!r}")
        kept: set[int] = set()
        names = {output}
        waiting = [output]
        while waiting:
            index = makers.get(waiting.pop())
            if index is None or index in kept:
                continue
            kept.add(index)
            new = set(_read_names(graph.node[index])) - names
            names |= new
            waiting.extend(new)
        described = {value.name: value for value in (*graph.value_info, *graph.output)}
        last = onnx.ValueInfoProto()
        last.CopyFrom(described.get(output) or onnx.helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
        for index in reversed(range(len(graph.node))):
            if index not in kept:
                del graph.node[index]
        _only(graph.initializer, lambda tensor: tensor.name in names)
        _only(graph.sparse_initializer, lambda tensor: tensor.values.name in names)
        _only(graph.input, lambda value: value.name in names)
        _only(graph.value_info, lambda value: value.name in names and value.name != output)
        del graph.output[:]
        graph.output.append(last)

    @classmethod
    def copy_of(cls, other: ForeignGraph) -> ForeignGraph:
        """The same graph once more, so that a change can be tried."""
        model = ModelProto()
        model.CopyFrom(other.model)
        return cls(other.path, model)

    def give_also(self, name: str) -> None:
        """Make an inner value an output too."""
        if name not in {value.name for value in self.model.graph.output}:
            self.model.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def weights(self) -> Iterator[TensorProto]:
        """Every stored tensor: initialisers, those of inner graphs included, and the values of Constant nodes."""
        yield from self.model.graph.initializer
        for node in self.nodes():
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                for inner in _inner(attribute):
                    yield from inner.initializer

    def check_weights(self) -> None:
        """Compare where weights are said to lie with the files that are there; nothing is read or run.

        Raises:
            ExportRefused: outside the graph's folder, behind the end of a file, or of another size than the tensor.
        """
        with _Sidecars(self.path.parent) as sidecars:
            for tensor in self.weights():
                if tensor.data_location == TensorProto.EXTERNAL:
                    sidecars.find(*_external(tensor))

    def structure(self) -> bytes:
        """The graph without its large weights, as bytes that are equal for equal computations."""
        bare = ModelProto()
        bare.CopyFrom(self.model)
        del bare.graph.value_info[:]
        del bare.metadata_props[:]
        bare.producer_name = bare.producer_version = bare.doc_string = bare.graph.name = bare.graph.doc_string = ""
        for node in bare.graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        for tensor in [
            t for t in bare.graph.initializer if tensor_bytes(t, None) is None or len(t.raw_data) > _SMALL_BYTES
        ]:
            name, shape, kind = tensor.name, list(tensor.dims), tensor.data_type
            tensor.Clear()
            tensor.name, tensor.data_type = name, kind
            tensor.dims.extend(shape)
        return bare.SerializeToString(deterministic=True)

    def save(self, target: Path) -> tuple[Path, ...]:
        """Write the graph as `target`, its large weights as `target`.data when they lay outside or are too big.

        Returns the files written, the graph first.

        Raises:
            ExportRefused: a file of weights is missing, too short, or named outside the graph's own folder.
        """
        total = sum(len(tensor.raw_data) for tensor in self.weights())
        outside = [tensor for tensor in self.weights() if tensor.data_location == TensorProto.EXTERNAL]
        if not outside and total <= INLINE_BYTES_MAX:
            target.write_bytes(self.model.SerializeToString(deterministic=True))
            return (target,)
        data = target.with_name(f"{target.name}.data")
        written = ModelProto()
        written.CopyFrom(self.model)
        copy = ForeignGraph(self.path, written)
        with data.open("wb") as stream, _Sidecars(self.path.parent) as sidecars:
            for tensor in copy.weights():
                content = tensor_bytes(tensor, sidecars)
                if content is None or len(content) <= _SMALL_BYTES:
                    _inline(tensor, content)
                    continue
                stream.write(b"\0" * (-stream.tell() % _ALIGNMENT_BYTES))
                _point(tensor, data.name, stream.tell(), len(content))
                stream.write(content)
        target.write_bytes(written.SerializeToString(deterministic=True))
        return (target, data)

    def sidecars(self) -> tuple[str, ...]:
        """Names of the files beside the graph that hold its weights, as the graph spells them."""
        found = (_external(tensor)[0] for tensor in self.weights() if tensor.data_location == TensorProto.EXTERNAL)
        return tuple(dict.fromkeys(found))


class _Sidecars:
    """Files of weights beside a graph, mapped into memory once each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[str, mmap.mmap | bytes] = {}

    def __enter__(self) -> _Sidecars:
        return self

    def __exit__(self, *_: object) -> None:
        for mapped in self._maps.values():
            if isinstance(mapped, mmap.mmap):
                mapped.close()

    def read(self, location: str, offset: int, length: int) -> bytes:
        return bytes(self.find(location, offset, length)[offset : offset + length])

    def find(self, location: str, offset: int, length: int) -> mmap.mmap | bytes:
        """The file, which has these bytes. Raises ExportRefused."""
        if location not in self._maps:
            self._maps[location] = self._map(location)
        mapped, end = self._maps[location], offset + length
        if offset < 0:
            raise ExportRefused(f"{location[:80]!r}: the graph wants the bytes from {offset} to {end}")
        if end > len(mapped):
            raise ExportRefused(f"{location[:80]!r} has {len(mapped)} bytes, the graph wants {end}: it is cut off")
        return mapped

    def _map(self, location: str) -> mmap.mmap | bytes:
        path = PurePosixPath(location)
        root = self._folder.resolve()
        # A snapshot of the hub's cache holds links to ../../blobs.
        limit = next((each.parents[1] for each in (root, *root.parents) if each.parent.name == "snapshots"), root)
        try:
            inside = path.parts and not path.is_absolute() and ".." not in path.parts and "\0" not in location
            file = (self._folder / location).resolve() if inside else None
            if file is None or not file.is_relative_to(limit):
                raise ExportRefused(f"weights are said to lie in {location[:80]!r}, outside the folder of the graph")
            if file.exists() and not file.is_file():
                raise ExportRefused(f"the graph's weights lie in {location[:80]!r}, which is no plain file")
            with file.open("rb") as stream:
                empty = not stream.read(1)
                return b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            said = error.strerror if isinstance(error, OSError) else error
            raise ExportRefused(f"the graph's weights lie in {location[:80]!r}, which is not there: {said}") from error


def tensor_bytes(tensor: TensorProto, sidecars: _Sidecars | None) -> bytes | None:
    """The tensor's values as little-endian bytes; None when they are kept in a typed field of the file, or outside."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return sidecars.read(*_external(tensor)) if sidecars else None
    return tensor.raw_data if tensor.HasField("raw_data") else None


def weight_arrays(graph: ForeignGraph) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Float initialisers by name, one at a time, as fp32; for digests."""
    with _Sidecars(graph.path.parent) as sidecars:
        for tensor in graph.model.graph.initializer:
            if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
                continue
            full = tensor
            if tensor.data_location == TensorProto.EXTERNAL:
                full = TensorProto()
                full.CopyFrom(tensor)
                _inline(full, tensor_bytes(tensor, sidecars))
            yield tensor.name, onnx.numpy_helper.to_array(full).astype(np.float32)


def _external(tensor: TensorProto) -> tuple[str, int, int]:
    """(file, offset, length) of a tensor that lies outside the graph; a length that is not said follows from its shape.

    Raises:
        ExportRefused: the length said is another one.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    needed = _size_bytes(tensor)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    except ValueError as error:
        raise ExportRefused(f"a place of weights is no number: {str(error)[:80]}") from error
    if length != needed:
        raise ExportRefused(f"the tensor {tensor.name[:80]!r} has {needed} bytes, the place of its weights {length}")
    return entries.get("location", ""), offset, length


def _size_bytes(tensor: TensorProto) -> int:
    """Of the values as they are stored outside of a graph. Raises ExportRefused: the tensor has no such form."""
    elements = prod(tensor.dims)
    if any(extent < 0 for extent in tensor.dims) or tensor.data_type not in _BITS:
        raise ExportRefused(f"the tensor {tensor.name[:80]!r} of type {tensor.data_type} cannot lie outside the graph")
    return (elements * _BITS[tensor.data_type] + 7) // 8


def _inline(tensor: TensorProto, content: bytes | None) -> None:
    if content is not None:
        tensor.raw_data = content
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def _point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    axes = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim)
    return Port(value.name, _TYPES.get(tensor.elem_type, str(tensor.elem_type)), axes)


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in _inner(attribute):
                yield from _nodes(inner.node)


def _inner(attribute: AttributeProto) -> Iterable[GraphProto]:
    return [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs


def _read_names(node: NodeProto) -> Iterator[str]:
    """What a node reads, inside the graphs it holds too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in _inner(attribute):
            for each in inner.node:
                yield from _read_names(each)
            yield from (output.name for output in inner.output)


def _attribute(node: NodeProto, name: str) -> object:
    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), None)


def _only(field: Any, wanted: Callable[[Any], bool]) -> None:
    """Delete the entries of a repeated field that are not wanted, in place: copies of weights would double memory."""
    for index in reversed(range(len(field))):
        if not wanted(field[index]):
            del field[index]


def is_image_input(port: Port) -> bool:
    """A batch of pictures: four axes, numbers or bytes."""
    return len(port.shape) == 4 and port.dtype in ("float32", "uint8", "float16")


def is_token_input(port: Port) -> bool:
    """Token ids or a mask over them: two axes of integers."""
    return len(port.shape) == 2 and port.dtype in ("int32", "int64")
