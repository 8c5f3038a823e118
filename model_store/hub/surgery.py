"""Changes to a foreign graph that make it an encoder of ours: uint8 pixels or int64 ids in, un-normalised vectors out.

Nodes are put before and behind the graph, none of its own arithmetic is changed: what it gives for normalised pixels is
given, bit for bit, for the pixels themselves. The operators exist in every opset from 7 on.
"""

# pyright: basic
# (onnx comes without types)
from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from model_store.errors import ExportRefused
from model_store.hub.graphs import ForeignGraph, is_image_input
from model_store.manifest import Channels, TextSpec

PIXELS, IDS, IMAGE_EMBEDS, TEXT_EMBEDS = "pixels", "ids", "image_embeds", "text_embeds"
_OWN = "clipworks"  # first part of the names of what is added; ONNX names are free text
_CUMULATIVE_SUM_OPSET = 11
# What lies between a vector and the length that it is divided by, in the graphs that exporters make of x / |x|.
_NORM_KINDS = frozenset(
    [
        "ReduceL2",
        "ReduceSum",
        "ReduceSumSquare",
        "Sqrt",
        "Pow",
        "Mul",
        "Abs",
        "Clip",
        "Max",
        "Add",
        "Expand",
        "Shape",
        "Cast",
        "Constant",
        "Unsqueeze",
        "ConstantOfShape",
        "Identity",
    ]
)
_NORM_DEPTH = 12


def make_room(graph: ForeignGraph, value: str) -> str:
    """Rename whatever the graph calls by a name of ours; returns the name that `value` has now."""
    names = {PIXELS, IDS, IMAGE_EMBEDS, TEXT_EMBEDS}
    inner = graph.model.graph
    fields = (inner.initializer, inner.input, inner.output, inner.value_info)
    for node in inner.node:
        for index, output in enumerate(node.output):
            if output in names:
                node.output[index] = _foreign(output)
    for field in fields:
        for each in field:
            if each.name in names:
                each.name = _foreign(each.name)
    for name in names:
        _rename_uses(inner, name, _foreign(name))
    return _foreign(value) if value in names else value


def _foreign(name: str) -> str:
    return f"{_OWN}.foreign.{name}"


def take_pixels(graph: ForeignGraph, mean: Channels, std: Channels, side_px: tuple[int, int]) -> None:
    """Replace a float NCHW input by `pixels` uint8 [batch, H, W, 3]; a uint8 NHWC input is renamed.

    side_px: (height, width). The arithmetic is torchvision's, in its order: (x / 255 - mean) / std.

    Raises:
        ExportRefused: the input is neither.
    """
    source = next(port for port in graph.inputs if is_image_input(port))
    batch = source.shape[0]
    if source.dtype == "uint8" and source.shape[3] in (3, None):
        _rename_input(graph.model, source.name, PIXELS)
        _set_input(graph.model, PIXELS, TensorProto.UINT8, [batch or "batch", *side_px, 3])
        return
    if source.dtype != "float32" or source.shape[1] not in (3, None):
        raise ExportRefused(
            f"{graph.path.name}: its picture is {source.dtype} {list(source.shape)}; float32 [batch, 3, H, W] or uint8 "
            "[batch, H, W, 3] can be served"
        )
    inner = f"{_OWN}.normalized"
    _rename_input(graph.model, source.name, inner)
    shape = (1, 3, 1, 1)
    constants = {
        f"{_OWN}.levels": np.array(255.0, np.float32),
        f"{_OWN}.mean": np.array(mean, np.float32).reshape(shape),
        f"{_OWN}.std": np.array(std, np.float32).reshape(shape),
    }
    names = list(constants)
    steps = [f"{_OWN}.channels_first", f"{_OWN}.numbers", f"{_OWN}.fractions", f"{_OWN}.centred", inner]
    _prepend(
        graph.model,
        [
            helper.make_node("Transpose", [PIXELS], [steps[0]], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", [steps[0]], [steps[1]], to=TensorProto.FLOAT),
            helper.make_node("Div", [steps[1], names[0]], [steps[2]]),
            helper.make_node("Sub", [steps[2], names[1]], [steps[3]]),
            helper.make_node("Div", [steps[3], names[2]], [steps[4]]),
        ],
        constants,
    )
    _drop_input(graph.model, inner)
    graph.model.graph.input.insert(
        0, helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, [batch or "batch", *side_px, 3])
    )


def take_ids(graph: ForeignGraph, spec: TextSpec) -> None:
    """Replace the text inputs by `ids` int64 [batch, length]: int32 behind a cast, a mask and token types derived.

    The mask ends behind the first end token where padding has no id of its own, else before the first padding.

    Raises:
        ExportRefused: an input that cannot be derived from ids.
    """
    inputs = {port.name: port for port in graph.inputs}
    masks = [name for name in inputs if name == "attention_mask"]
    types = [name for name in inputs if name == "token_type_ids"]
    tokens = [name for name in inputs if name not in (*masks, *types)]
    if len(tokens) != 1 or inputs[tokens[0]].dtype not in ("int32", "int64"):
        raise ExportRefused(
            f"{graph.path.name} takes {sorted(inputs)}: from token ids only attention_mask and token_type_ids can be "
            "derived"
        )
    batch = inputs[tokens[0]].shape[0]
    length = "length" if spec.dynamic_length else spec.context_length
    nodes: list[NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    for name in inputs:
        kind = TensorProto.INT32 if inputs[name].dtype == "int32" else TensorProto.INT64
        if name in tokens:
            nodes.append(helper.make_node("Cast", [IDS], [name], to=kind))
        elif name in types:
            constants[f"{_OWN}.zero"] = np.array(0, np.int64)
            nodes += [
                helper.make_node("Mul", [IDS, f"{_OWN}.zero"], [f"{_OWN}.types"]),
                helper.make_node("Cast", [f"{_OWN}.types"], [name], to=kind),
            ]
        else:
            nodes += _mask(graph, spec, name, kind, constants)
        _drop_input(graph.model, name)
    _prepend(graph.model, nodes, constants)
    graph.model.graph.input.insert(0, helper.make_tensor_value_info(IDS, TensorProto.INT64, [batch or "batch", length]))


def _mask(
    graph: ForeignGraph, spec: TextSpec, name: str, kind: int, constants: dict[str, np.ndarray]
) -> list[NodeProto]:
    if spec.end_id is None:
        constants[f"{_OWN}.pad"] = np.array(spec.pad_id, np.int64)
        return [
            helper.make_node("Equal", [IDS, f"{_OWN}.pad"], [f"{_OWN}.padding"]),
            helper.make_node("Not", [f"{_OWN}.padding"], [f"{_OWN}.real"]),
            helper.make_node("Cast", [f"{_OWN}.real"], [name], to=kind),
        ]
    if graph.opset < _CUMULATIVE_SUM_OPSET:
        raise ExportRefused(
            f"{graph.path.name} has opset {graph.opset}; deriving its mask needs {_CUMULATIVE_SUM_OPSET}"
        )
    constants |= {
        f"{_OWN}.end": np.array(spec.end_id, np.int64),
        f"{_OWN}.axis": np.array(1, np.int64),
        f"{_OWN}.none": np.array(0, np.int64),
    }
    return [
        helper.make_node("Equal", [IDS, f"{_OWN}.end"], [f"{_OWN}.ends"]),
        helper.make_node("Cast", [f"{_OWN}.ends"], [f"{_OWN}.ends_count"], to=TensorProto.INT64),
        helper.make_node("CumSum", [f"{_OWN}.ends_count", f"{_OWN}.axis"], [f"{_OWN}.ends_before"], exclusive=1),
        helper.make_node("Equal", [f"{_OWN}.ends_before", f"{_OWN}.none"], [f"{_OWN}.real"]),
        helper.make_node("Cast", [f"{_OWN}.real"], [name], to=kind),
    ]


def before_normalisation(graph: ForeignGraph, output: str) -> str | None:
    """The value that the graph divides by its own length to make `output`; None where it does no such thing.

    Whether it is really the length is for the caller to compare: only the shape of the computation is looked at.
    """
    makers = {name: node for node in graph.model.graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in ("Identity", "Cast"):
        node = makers.get(node.input[0])
    if node is None:
        return None
    if node.op_type == "LpNormalization":
        return node.input[0]
    if node.op_type != "Div":
        return None
    vector, length = node.input
    return vector if _comes_from(length, vector, makers, _NORM_DEPTH) else None


def _comes_from(name: str, vector: str, makers: dict[str, NodeProto], depth: int) -> bool:
    node = makers.get(name)
    if node is None or node.op_type not in _NORM_KINDS or depth == 0:
        return False
    return any(each == vector or _comes_from(each, vector, makers, depth - 1) for each in node.input)


def give(graph: ForeignGraph, source: str, name: str, dim: int) -> None:
    """Make `source` the graph's only output, float32 [batch, dim], under `name`; what is not needed for it goes."""
    batch = graph.inputs[0].shape[0]
    graph.keep(source)
    if source != name:
        _append_identity(graph.model, source, name)
    del graph.model.graph.output[:]
    graph.model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch or "batch", dim]))


def table_rows(graph: ForeignGraph) -> int | None:
    """Rows of the table that token ids are looked up in; None when none is found near the input."""
    tensors = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    reached = {port.name for port in graph.inputs if port.dtype in ("int32", "int64")}
    for node in graph.model.graph.node:
        if node.op_type in ("Cast", "Identity", "Reshape") and node.input[0] in reached:
            reached.add(node.output[0])
        elif node.op_type == "Gather" and node.input[1] in reached:
            table = _table(node.input[0], tensors, graph.model.graph.node)
            if table is not None and len(table.dims) == 2:
                return int(table.dims[0])
    return None


def _table(name: str, tensors: dict[str, TensorProto], nodes: Sequence[NodeProto]) -> TensorProto | None:
    while name not in tensors:
        maker = next((node for node in nodes if name in node.output), None)
        if maker is None or maker.op_type not in ("Cast", "Identity"):
            return None
        name = maker.input[0]
    return tensors[name]


def quick_gelu_nodes(graph: ForeignGraph) -> tuple[int, int]:
    """(QuickGELU, GELU) activations of a graph: x * sigmoid(1.702 x), and those with erf, tanh or of their own kind."""
    constants = dict(_scalars(graph))
    scaled: set[str] = set()
    quick = plain = 0
    for node in graph.nodes():
        if node.op_type == "Mul":
            factors = [constants[name] for name in node.input if name in constants]
            if any(abs(factor - 1.702) < 1e-3 for factor in factors):
                scaled.update(node.output)
        elif (node.op_type == "Sigmoid" and node.input[0] in scaled) or node.op_type == "QuickGelu":
            quick += 1
        elif node.op_type in ("Erf", "Gelu", "FastGelu", "BiasGelu"):
            plain += 1
    return quick, plain


def _scalars(graph: ForeignGraph) -> Iterator[tuple[str, float]]:
    for tensor in graph.model.graph.initializer:
        if _is_scalar(tensor):
            yield tensor.name, float(numpy_helper.to_array(tensor).reshape(-1)[0])
    for node in graph.nodes():
        if node.op_type == "Constant" and node.attribute and _is_scalar(node.attribute[0].t):
            yield node.output[0], float(numpy_helper.to_array(node.attribute[0].t).reshape(-1)[0])


def _is_scalar(tensor: TensorProto) -> bool:
    is_float = tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    return is_float and int(np.prod(tensor.dims)) == 1 and tensor.data_location != TensorProto.EXTERNAL


def scale_of_joint(model: ModelProto) -> tuple[float, float | None] | None:
    """(exp of the logit scale, logit bias) among a joint graph's initialisers; None: it has none of these names."""
    named = {
        tensor.name.rsplit(".", 1)[-1]: float(numpy_helper.to_array(tensor).reshape(-1)[0])
        for tensor in model.graph.initializer
        if _is_scalar(tensor)
    }
    scale = named.get("logit_scale")
    return None if scale is None else (float(np.exp(scale)), named.get("logit_bias"))


def _prepend(model: ModelProto, nodes: Sequence[NodeProto], constants: dict[str, np.ndarray]) -> None:
    for offset, node in enumerate(nodes):
        node.name = node.output[0]
        model.graph.node.insert(offset, node)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())


def _append_identity(model: ModelProto, source: str, name: str) -> None:
    model.graph.node.append(helper.make_node("Identity", [source], [name], name=f"{_OWN}.{name}"))


def _drop_input(model: ModelProto, name: str) -> None:
    for index, value in enumerate(model.graph.input):
        if value.name == name:
            del model.graph.input[index]
            return


def _set_input(model: ModelProto, name: str, kind: int, shape: list[int | str]) -> None:
    _drop_input(model, name)
    model.graph.input.insert(0, helper.make_tensor_value_info(name, kind, shape))


def _rename_input(model: ModelProto, old: str, new: str) -> None:
    for value in model.graph.input:
        if value.name == old:
            value.name = new
    _rename_uses(model.graph, old, new)


def _rename_uses(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename_uses(inner, old, new)
