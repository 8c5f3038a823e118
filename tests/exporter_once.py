"""torch's exporter reads the sources of its 500 translations for every graph, half a second: here once a process.

Importing this module does it. What the exporter is given are the same lists, which it only reads. It also keeps
pytest's handlers from torch's log for its own tools, which writes a stack trace for every tensor as soon as somebody
listens.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch.onnx._internal.exporter import _registration
from tqdm import tqdm

# Nobody here gives it translations of their own, which would be added to the list of all.
_registry = _registration.ONNXRegistry
_registry.from_torchlib = staticmethod(functools.cache(_registry.from_torchlib))  # type: ignore[assignment]
_apis = _registration.onnxscript_apis
_apis.get_torchlib_ops = functools.cache(_apis.get_torchlib_ops)
_trace = logging.getLogger("torch.__trace")
_trace.propagate = True  # pytest adds handlers to each logger that does not
_trace.handlers.clear()  # torch's own would leave at the first record, and hand that on


def write_first_graph() -> None:
    """Export a layer: what the exporter imports and reads at the first graph is then there for processes that fork."""
    interval, tqdm.monitor_interval = tqdm.monitor_interval, 0  # else it starts a thread
    with torch.no_grad():
        free = {0: torch.export.Dim("batch", min=1, max=64)}
        layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.LayerNorm(4)).eval()
        torch.onnx.export(layer, (torch.ones(2, 4),), dynamo=True, dynamic_shapes=(free,), verbose=False)
    tqdm.monitor_interval = interval
