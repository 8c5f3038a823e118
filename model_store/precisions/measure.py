"""Measures a graph: its vectors, their distance from the reference, and whether batch mates change a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.fidelity import measure
from model_store.graph import Graph
from model_store.manifest import Fidelity, GraphSpec, Precision
from model_store.probe import probe
from model_store.session import SessionSettings

Run = Callable[[NDArray[Any]], NDArray[np.float32]]
# A row's unit vector alone and in company may differ by this much and still count as the same answer. Kernels sum in
# another order for another batch size: in fp32 by 5e-7 on one machine and more than 1e-6 on the next, of one file. (A
# quantisation scale over the whole batch moves it by .06.) int8 has no such rounding: where a sum moves at all, a value
# may fall on the next of 256 steps. fp16 rounds every value to 11 bits, so that is its bound.
INVARIANCE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "int8": 1e-6, "fp16": 1e-3}
_SINGLES = 8
_COMPANY = (2, 7)
_CHUNK = 16
_PROBE_TIMEOUT_S = 3600.0  # a large tower on one thread
_PROBE_THREADS = 1


@dataclass(frozen=True, kw_only=True)
class MeasuredRows:
    """The inputs one encoder is measured on.

    `padded` is one array of equal rows (pixels, or ids padded to the context length); `lengths` says where padding
    may be cut (text with free length), else None.
    """

    padded: NDArray[Any]
    lengths: tuple[int, ...] | None = None

    def batch(self, indices: Sequence[int]) -> NDArray[Any]:
        """These rows as serving would stack them: cut at the longest real length."""
        rows = self.padded[list(indices)]
        return rows if self.lengths is None else rows[:, : max(self.lengths[i] for i in indices)]


@dataclass(frozen=True, kw_only=True)
class Measured:
    fidelity: Fidelity
    batch_difference: float
    batch_invariant: bool


def measure_graph(path: Path, spec: GraphSpec, rows: MeasuredRows, reference: NDArray[np.float32]) -> Measured:
    """Open the graph in a child process first, then compare its vectors with `reference` and with themselves.

    fp16 never runs in this process: ONNX Runtime can crash on it on a CPU, and is slow there.

    Raises:
        GraphError: it does not load, crashes, or is not what `spec` says.
    """
    total = len(rows.padded)
    if spec.inputs[0].shape[0] == 1:
        return _measure_singly(path, spec, rows, reference)
    if spec.precision == "fp16":
        run, singles, chunk, sizes = run_in_child(path, spec), 2, total, ()
    else:
        probe(path, spec, feeds={spec.inputs[0].name: rows.batch([0])}, timeout_s=_PROBE_TIMEOUT_S)
        run, singles, chunk, sizes = Graph.open(path, spec), min(_SINGLES, total), _CHUNK, _COMPANY
    vectors = in_batches(run, rows, total, chunk)
    alone = _unit(in_batches(run, rows, singles, 1))
    together = [_unit(vectors[:singles]), *(_unit(in_batches(run, rows, singles, size)) for size in sizes)]
    difference = max(float(np.abs(company - alone).max()) for company in together)
    return Measured(
        fidelity=measure(vectors, reference),
        batch_difference=difference,
        batch_invariant=difference <= INVARIANCE_TOLERANCE[spec.precision],
    )


def _measure_singly(path: Path, spec: GraphSpec, rows: MeasuredRows, reference: NDArray[np.float32]) -> Measured:
    """Of a graph that takes one row: it has no batch that could change a row, and none that could be served."""
    probe(path, spec, feeds={spec.inputs[0].name: rows.batch([0])}, timeout_s=_PROBE_TIMEOUT_S)
    vectors = in_batches(Graph.open(path, spec), rows, len(rows.padded), 1)
    return Measured(fidelity=measure(vectors, reference), batch_difference=0.0, batch_invariant=False)


def in_batches(run: Run, rows: MeasuredRows, count: int, size: int) -> NDArray[np.float32]:
    """Vectors of the first `count` rows, run in batches of `size`."""
    return np.concatenate([run(rows.batch(range(start, min(start + size, count)))) for start in range(0, count, size)])


def run_in_child(path: Path, spec: GraphSpec) -> Run:
    """A graph that may crash, as a function; each call opens it in a process of its own.

    Raises (when called):
        GraphError: it does not load, or the process dies.
    """
    settings = SessionSettings(full_optimization=False, intra_threads=_PROBE_THREADS)

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        feeds = {spec.inputs[0].name: batch}
        outputs = probe(path, spec, settings=settings, feeds=feeds, timeout_s=_PROBE_TIMEOUT_S)
        return outputs[spec.outputs[0].name]

    return run


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return (vectors / norms).astype(np.float32)
