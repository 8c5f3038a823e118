"""Graphs that were exported for one row at a time, changed to take any number.

Exporters write the batch of their example into constants: shapes of Reshape, a class token that is joined to the rows,
the numbers of the rows. Where a batch of one is among them follows from shapes alone: those of a batch of one beside
those of a batch of three, in the order of the graph. Whether every place was found is for the caller to run.
"""

# pyright: basic
# (onnx comes without types)
from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference
from onnxruntime import GraphOptimizationLevel

from model_store.hub.graphs import ForeignGraph
from model_store.session import SessionSettings, open_session, session_options

_ROWS = 3
_SMALL = 64  # values of a constant that may be a shape
_STEM = "clipworks.rows"
Shape = list[int | None]  # of a value; None where an axis is not known


def freed_batch(graph: ForeignGraph, scratch: Path) -> ForeignGraph | None:
    """A copy that takes any number of rows, its weights in `scratch`; None when a place cannot be told.

    Raises:
        GraphError: the graph does not load.
        OSError: no room in `scratch`.
    """
    freed = _folded(graph, scratch)
    inner = freed.model.graph
    source = inner.input[0].name
    del inner.value_info[:]
    changes = _Changes(freed.model, source)
    single = _shapes(freed.model, source, 1)
    several = _shapes(freed.model, source, _ROWS)
    for node in list(inner.node):
        if node.op_type == "Reshape":
            changed = changes.free_reshape(node, single, several)
        elif node.op_type == "Concat":
            changed = changes.repeat_constants(node, several)
        elif node.op_type == "Gather":
            changed = changes.address_rows(node, single, several)
        elif node.op_type == "GatherElements":
            changed = changes.repeat_table(node, several)
        elif node.op_type == "Attention":
            changed = changes.repeat_queries(node, several)
        else:
            changed = False
        changes.follow(node)
        if changed is None:
            return None
        if changed:
            several = _shapes(freed.model, source, _ROWS)
    freed.keep(inner.output[0].name)  # constants that nothing reads any more go
    for value in (inner.input[0], *inner.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return freed


def _folded(graph: ForeignGraph, scratch: Path) -> ForeignGraph:
    """The graph with what does not depend on its input worked out: shapes that it computes become constants."""
    path, folded = scratch / "single.onnx", scratch / "folded.onnx"
    written = graph.save(path)
    if shutil.disk_usage(scratch).free < sum(file.stat().st_size for file in written):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # of which ONNX Runtime would say something else
    options = session_options(SessionSettings())
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)  # pyright: ignore[reportAttributeAccessIssue]
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{folded.name}.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    open_session(str(path), SessionSettings(), graph.path.name, options)
    for file in written:
        file.unlink()
    return ForeignGraph.read(folded)


def _shapes(model: ModelProto, source: str, rows: int) -> dict[str, Shape]:
    """Shapes of all values for `rows` rows; weights are left out, they are large and say nothing."""
    light = ModelProto()
    light.CopyFrom(_without_weights(model))
    light.graph.input[0].type.tensor_type.shape.dim[0].dim_value = rows
    inferred = shape_inference.infer_shapes(light, data_prop=True)
    found: dict[str, Shape] = {tensor.name: list(tensor.dims) for tensor in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info):
        axes = value.type.tensor_type.shape.dim
        found[value.name] = [axis.dim_value if axis.HasField("dim_value") else None for axis in axes]
    return found


def _without_weights(model: ModelProto) -> ModelProto:
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name or "graph"
    light.graph.input.extend(model.graph.input)
    light.graph.node.extend(model.graph.node)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _SMALL and tensor.data_location != TensorProto.EXTERNAL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.initializer.append(
                TensorProto(name=tensor.name, data_type=tensor.data_type, dims=list(tensor.dims))
            )
    return light


class _Changes:
    """Edits of one graph."""

    def __init__(self, model: ModelProto, source: str) -> None:
        self._graph = model.graph
        self._source = source
        # Of a value whose batch shares an axis with something else: how much of that stands before the batch.
        self._parts: dict[str, int] = {}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self._constants[node.output[0]] = node.attribute[0].t

    def follow(self, node: NodeProto) -> None:
        """What reshapes nothing leaves the order inside an axis as it is."""
        if node.output[0] in self._parts:
            return
        part = max((self._parts.get(name, 1) for name in node.input), default=1)
        if part > 1:
            self._parts.update(dict.fromkeys(node.output, part))

    def free_reshape(self, node: NodeProto, single: dict[str, Shape], several: dict[str, Shape]) -> bool | None:
        """Free the axis of a constant shape that holds the batch. None: it cannot be told which."""
        shape = self._value(node.input[1])
        if shape is None:
            return False  # worked out in the graph: it follows by itself
        before, after = single.get(node.input[0]), several.get(node.input[0])
        result = single.get(node.output[0])
        if not before or not after or not result or None in (*before, *after, *result):
            return None
        if before == after:
            return False
        one, many, to = ([axis or 0 for axis in shape] for shape in (before, after, result))
        moved = moved_axis(one, many)
        if moved is None:
            return None
        outer = prod(one[:moved]) * self._parts.get(node.input[0], 1)
        axis, self._parts[node.output[0]] = batch_axis(to, outer)
        freed = np.array(to, np.int64)
        freed[axis] = -1
        self._set(node, 1, freed)
        return True

    def repeat_constants(self, node: NodeProto, several: dict[str, Shape]) -> bool:
        """Repeat for every row what is joined to the rows but does not depend on them, such as a class token."""
        shapes = [several.get(name) or [] for name in node.input]
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
        if not any(shape[:1] == [_ROWS] for shape in shapes) or any(len(shape) < 2 for shape in shapes):
            return False
        if axis % len(shapes[0]) == 0:
            return False
        alone = [index for index, shape in enumerate(shapes) if shape[0] == 1]
        for index in alone:
            self._repeat(node, index, len(shapes[index]))
        return bool(alone)

    def address_rows(self, node: NodeProto, single: dict[str, Shape], several: dict[str, Shape]) -> bool:
        """Let a Gather from the tokens of all rows, laid end to end, find each row's own: its index counts from 0.

        With one row the number of that row is 0, and exporters leave its product with the length out. Indices are one
        for each row (where the end token is), or the same for all of them behind a first axis of 1 (a mask's).
        """
        data, indices = node.input
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
        tokens, all_tokens = single.get(data), several.get(data)
        if axis != 0 or not tokens or not all_tokens or self._parts.get(data, 1) != 1:
            return False
        wanted = several.get(indices) or []
        for_all = len(wanted) > 1 and wanted[0] == 1
        if tokens[0] in (None, 1) or all_tokens[0] != tokens[0] * _ROWS or not (wanted == [_ROWS] or for_all):
            return False
        length = tokens[0]

        def nodes(stem: str, batch: str, result: str) -> list[NodeProto]:
            self._constant(f"{stem}.one", np.ones(1, np.int64))
            self._constant(f"{stem}.axis", np.array(0, np.int64))
            self._constant(f"{stem}.length", np.array(length, np.int64))
            self._constant(f"{stem}.axes", np.array([-1] + [1] * (len(wanted) - 1), np.int64))
            return [  # not by Range, whose size no inference of shapes can tell
                helper.make_node("Expand", [f"{stem}.one", batch], [f"{stem}.ones"]),
                helper.make_node("CumSum", [f"{stem}.ones", f"{stem}.axis"], [f"{stem}.numbers"], exclusive=1),
                helper.make_node("Mul", [f"{stem}.numbers", f"{stem}.length"], [f"{stem}.starts"]),
                helper.make_node("Reshape", [f"{stem}.starts", f"{stem}.axes"], [f"{stem}.shaped"]),
                helper.make_node("Add", [indices, f"{stem}.shaped"], [result]),
            ]

        self._insert(node, 1, nodes)
        return True

    def repeat_table(self, node: NodeProto, several: dict[str, Shape]) -> bool:
        """Repeat for every row the table that a GatherElements reads, which unlike Gather wants one for each."""
        table, indices = (several.get(name) or [None] for name in node.input)
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
        if table[0] != 1 or indices[0] != _ROWS or axis % len(table) == 0:
            return False
        self._repeat(node, 0, len(table))
        return True

    def repeat_queries(self, node: NodeProto, several: dict[str, Shape]) -> bool:
        """Repeat for every row the learnt query of a pool of attention: Attention wants one for each."""
        shapes = [several.get(name) or [None] for name in node.input[:3]]  # query, key, value
        alone = [index for index, shape in enumerate(shapes) if shape[0] == 1]
        if not any(shape[0] == _ROWS for shape in shapes):
            return False
        for index in alone:
            self._repeat(node, index, len(shapes[index]))
        return bool(alone)

    def _repeat(self, node: NodeProto, index: int, rank: int) -> None:
        def nodes(stem: str, batch: str, result: str) -> list[NodeProto]:
            self._constant(f"{stem}.ones", np.ones(rank - 1, np.int64))
            return [
                helper.make_node("Concat", [batch, f"{stem}.ones"], [f"{stem}.shape"], axis=0),
                helper.make_node("Expand", [node.input[index], f"{stem}.shape"], [result]),
            ]

        self._insert(node, index, nodes)

    def _insert(self, node: NodeProto, index: int, nodes) -> None:
        """Put nodes before `node` whose result becomes its input `index`; they may read the batch, int64 [1]."""
        stem = f"{_STEM}.{node.output[0]}.{index}"
        self._constant(f"{stem}.first", np.array([0], np.int64))
        added = [
            helper.make_node("Shape", [self._source], [f"{stem}.all"]),
            helper.make_node("Gather", [f"{stem}.all", f"{stem}.first"], [f"{stem}.batch"], axis=0),
        ]
        added += nodes(stem, f"{stem}.batch", f"{stem}.value")
        place = next(i for i, each in enumerate(self._graph.node) if each.output[0] == node.output[0])
        for offset, each in enumerate(added):
            self._graph.node.insert(place + offset, each)
        self._graph.node[place + len(added)].input[index] = f"{stem}.value"

    def _constant(self, name: str, value: np.ndarray) -> None:
        self._graph.initializer.append(numpy_helper.from_array(value, name))

    def _set(self, node: NodeProto, index: int, value: np.ndarray) -> None:
        name = f"{_STEM}.{node.output[0]}.{index}"
        self._constant(name, value)
        place = next(i for i, each in enumerate(self._graph.node) if each.output[0] == node.output[0])
        self._graph.node[place].input[index] = name

    def _value(self, name: str) -> np.ndarray | None:
        tensor = self._constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL or prod(tensor.dims) > _SMALL:
            return None
        return numpy_helper.to_array(tensor)


def batch_axis(result: Sequence[int], outer: int) -> tuple[int, int]:
    """(axis, part) of a Reshape's `result`, given for one row, where a batch goes that `outer` elements stand before.

    Reshaping keeps the order of the elements, so the batch stays behind as many of them as before: at an axis of size
    1 that begins there, else in front of the axis that does, unless that is the last one, which weights are multiplied
    with; then it joins the axis before. part: how much of the axis stands before the batch.
    """
    starts = [prod(result[:index]) for index in range(len(result))]
    exact = [index for index, start in enumerate(starts) if start == outer]
    for index in exact:
        if result[index] == 1:
            return index, 1
    if exact and exact[-1] < len(result) - 1:
        return exact[-1], 1
    index = max(index for index, start in enumerate(starts) if start < outer or index == 0)
    return index, outer // starts[index]


def moved_axis(before: Sequence[int], after: Sequence[int]) -> int | None:
    """The axis whose size follows the batch, from a shape for one row and for several; None: none, or more than one."""
    moved = [index for index, (one, many) in enumerate(zip(before, after, strict=True)) if one != many]
    return moved[0] if len(moved) == 1 else None
