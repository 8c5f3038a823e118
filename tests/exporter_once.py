"""What torch's exporter does again for every graph, done once a process; tests export some hundred small ones.

It reads the sources of its 500 translations for each, half a second, and then traces the captured graph a second time
to decompose its operators: half of what a small export costs, and for towers that differ in their weights alone the
same every time. Importing this module keeps both. What the exporter is given are the same lists, which it only reads,
and a graph that was decomposed before, with the weights of the program at hand. It also keeps pytest's handlers from
torch's log for its own tools, which writes a stack trace for every tensor as soon as somebody listens.
"""

from __future__ import annotations

import copy
import functools
import logging
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _core, _registration
from tqdm import tqdm

# Nobody here gives it translations of their own, which would be added to the list of all.
_registry = _registration.ONNXRegistry
_registry.from_torchlib = staticmethod(functools.cache(_registry.from_torchlib))  # type: ignore[assignment]
_apis = _registration.onnxscript_apis
_apis.get_torchlib_ops = functools.cache(_apis.get_torchlib_ops)
_trace = logging.getLogger("torch.__trace")
_trace.propagate = True  # pytest adds handlers to each logger that does not
_trace.handlers.clear()  # torch's own would leave at the first record, and hand that on

_decompose = _core._prepare_exported_program_for_export
_decomposed: dict[tuple[str, ...], ExportedProgram] = {}


def _structure(program: ExportedProgram) -> tuple[str, ...]:
    """All that a program is but for the numbers in its weights: code with its literals, shapes, ranges, names."""
    shown = (f"{node.name}: {node.meta.get('val')!r}" for node in program.graph.nodes)
    kept = {**program.state_dict, **program.constants}
    tensors = (f"{name}: {each.dtype} {tuple(each.shape)} {each.stride()}" for name, each in kept.items())
    code, called = program.graph_module.code, str(program.module_call_graph)
    return code, called, str(program.graph_signature), str(program.range_constraints), *shown, *tensors


def _decomposed_once(exported_program: ExportedProgram, *, registry: Any) -> ExportedProgram:
    kept = {**exported_program.state_dict, **exported_program.constants}
    if not all(isinstance(each, torch.Tensor) for each in kept.values()):
        return _decompose(exported_program, registry=registry)
    structure = _structure(exported_program)
    if structure not in _decomposed:
        _decomposed[structure] = _decompose(exported_program, registry=registry)
    found = copy.copy(_decomposed[structure])
    found._state_dict = {name: exported_program.state_dict[name] for name in found.state_dict}
    found._constants = {name: exported_program.constants.get(name, each) for name, each in found.constants.items()}
    return found


_core._prepare_exported_program_for_export = _decomposed_once


def write_first_graph() -> None:
    """Export a layer: what the exporter imports and reads at the first graph is then there for processes that fork."""
    interval, tqdm.monitor_interval = tqdm.monitor_interval, 0  # else it starts a thread
    with torch.no_grad():
        free = {0: torch.export.Dim("batch", min=1, max=64)}
        layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.LayerNorm(4)).eval()
        torch.onnx.export(layer, (torch.ones(2, 4),), dynamo=True, dynamic_shapes=(free,), verbose=False)
    tqdm.monitor_interval = interval
