"""torch's two ONNX exporters as the writers of layouts call them, and files beside graphs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from tests import exporter_once  # noqa: F401

Answer = Callable[..., Tensor | tuple[Tensor, ...]]


@contextmanager
def _answering(model: nn.Module, answer: Answer) -> Iterator[None]:
    """Make `answer` the model's forward: a graph then has the model's own names of its weights, as real exports do."""
    own = model.forward
    model.forward = answer
    try:
        yield
    finally:
        model.forward = own


def export_traced(
    model: nn.Module,
    answer: Answer,
    example: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    *,
    opset: int,
    free_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """Write `answer`, a function that uses the model, with the exporter of most files on the hub."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _answering(model, answer), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation, and shapes that tracing keeps
            torch.onnx.export(
                model,
                tuple(example.values()),
                path,
                input_names=list(example),
                output_names=list(outputs),
                opset_version=opset,
                dynamic_axes=free_axes,
                dynamo=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def export_captured(
    model: nn.Module,
    answer: Answer,
    example: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    *,
    opset: int,
) -> None:
    """Write a graph with the torch.export based exporter; the first axis of every input is free and called `batch`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch")
    with _answering(model, answer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            tuple(example.values()),
            input_names=list(example),
            output_names=list(outputs),
            opset_version=opset,
            dynamic_shapes=tuple({0: batch} for _ in example),
            dynamo=True,
            verbose=False,
        )
    assert program
    program.save(path)


def move_weights(path: Path, sidecar: str) -> None:
    """Move every initialiser of at least 1,024 bytes into the file `sidecar` beside the graph."""
    model = onnx.load(path)
    onnx.save_model(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=sidecar, size_threshold=1024
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
