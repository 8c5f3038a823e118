"""Foreign encoders run as they were found, on inputs made here in numpy: the reference for the wrapped graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.errors import ExportRefused
from model_store.hub.graphs import ForeignGraph, is_image_input
from model_store.manifest import ImageSpec, TextSpec
from model_store.probe import probe_outputs
from model_store.session import SessionSettings, first_line, open_session

_CHUNK = 8


@dataclass(frozen=True)
class ForeignRun:
    """One output of a foreign graph, row by row where its batch is fixed; float32 [N, D].

    The session is opened in a child process first: a graph that crashes ONNX Runtime must not take this process along.
    """

    graph: ForeignGraph
    output: str
    session: Any

    @classmethod
    def open(cls, graph: ForeignGraph, output: str, example: Mapping[str, NDArray[Any]]) -> ForeignRun:
        """Raises:
        GraphError: the graph does not load or run.
        """
        probe_outputs(graph.path, [output], example)
        return cls(graph, output, open_session(str(graph.path), SessionSettings(), graph.path.name))

    def __call__(self, feeds: Mapping[str, NDArray[Any]], rows: int) -> NDArray[np.float32]:
        """feeds: arrays [rows, ...] by input."""
        step = 1 if self.fixed_batch else _CHUNK
        chunks = (
            {name: value[start : start + step] for name, value in feeds.items()} for start in range(0, rows, step)
        )
        return np.concatenate([self.once(chunk) for chunk in chunks])

    def once(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """One run, all rows together.

        Raises:
            ExportRefused: the graph does not take them.
        """
        try:
            (vectors,) = self.session.run([self.output], dict(feeds))
        except Exception as error:  # ONNX Runtime's own errors
            raise ExportRefused(f"{self.graph.path.name} does not run: {first_line(error)}") from error
        rows = len(next(iter(feeds.values())))
        if np.shape(vectors)[:1] != (rows,):
            raise ExportRefused(f"{self.graph.path.name} gives shape {list(np.shape(vectors))} for {rows} rows")
        return np.asarray(vectors, dtype=np.float32).reshape(rows, -1)

    @property
    def fixed_batch(self) -> bool:
        return any(port.shape and port.shape[0] == 1 for port in self.graph.inputs)


def picture_feeds(graph: ForeignGraph, pixels: NDArray[np.uint8], spec: ImageSpec) -> dict[str, NDArray[Any]]:
    """Feeds for prepared pixels uint8 [N, H, W, 3]: normalised as torchvision does it, where the graph wants that."""
    return {
        port.name: pixels if port.dtype == "uint8" else normalised(pixels, spec)
        for port in graph.inputs
        if is_image_input(port)
    }


def token_feeds(graph: ForeignGraph, ids: NDArray[np.int64], spec: TextSpec) -> dict[str, NDArray[Any]]:
    """Feeds for padded ids int64 [M, L], with the mask and the token types that the graph asks for."""
    feeds: dict[str, NDArray[Any]] = {}
    for port in graph.inputs:
        if is_image_input(port):
            continue
        if port.name == "attention_mask":
            feeds[port.name] = mask_of(ids, spec).astype(port.dtype)
        elif port.name == "token_type_ids":
            feeds[port.name] = np.zeros(ids.shape, dtype=port.dtype)
        else:
            feeds[port.name] = ids.astype(port.dtype)
    return feeds


def normalised(pixels: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.float32]:
    """float32 [N, 3, H, W], in torchvision's order of operations."""
    shape = (1, 3, 1, 1)
    mean = np.array(spec.mean, np.float32).reshape(shape)
    std = np.array(spec.std, np.float32).reshape(shape)
    fractions = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return (fractions - mean) / std


def mask_of(ids: NDArray[np.int64], spec: TextSpec) -> NDArray[np.int64]:
    """1 for the tokens of a text, 0 for padding: up to the first end token, or wherever an id is not the padding."""
    if spec.end_id is None:
        return (ids != spec.pad_id).astype(np.int64)
    ends = (ids == spec.end_id).astype(np.int64)
    return (np.cumsum(ends, axis=1) - ends == 0).astype(np.int64)
