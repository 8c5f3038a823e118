"""Adapters and class heads on their way: measured alone, and at the end of the whole way from the encoder's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from model_store.artifact import Artifact
from model_store.errors import ExportRefused, GraphError
from model_store.fidelity import measure
from model_store.golden import Goldens, Tolerance, output_key, tolerance_for
from model_store.graph import Graph, open_graph
from model_store.manifest import (
    ADAPTERS,
    ENCODERS,
    PRECISIONS,
    Fidelity,
    GraphSpec,
    HeadSpec,
    Precision,
    Role,
    SkippedVariant,
    TensorSpec,
)
from model_store.precisions.measure import MeasuredRows, Run, in_batches, run_in_child
from model_store.precisions.variants import COSINE_FLOOR, MissedFloor, TowerVariant, build_variant
from model_store.session import SessionSettings
from model_store.towers import OpenedHead, adapt, normalized
from training.exporting.graphs import write_graph
from training.exporting.reference import torch_vectors

# Twice the fp32 floor of an encoder and three times under what every load demands: rounding of two graphs adds up.
CHAIN_FP32_RELATIVE_L2_MAX = 3e-4
HEAD_RELATIVE_L2_MAX = 0.25  # of the logits' spread over the pictures; encoders in int8 measure .02 to .1
_CHUNK = 16
Measured = dict[Precision, NDArray[np.float32]]  # by the encoder's precision


@dataclass(frozen=True, kw_only=True)
class AdapterSource:
    """A module float32 [B, D] -> [B, D'] in eval mode behind an encoder; it is given unit vectors unless said."""

    module: nn.Module
    normalized_input: bool = True


@dataclass(frozen=True, kw_only=True)
class HeadSource:
    """A classifier float32 [B, D] -> logits [B, C] in eval mode on image vectors, unit ones unless said.

    labels: names of the columns. temperature: divides the logits before the activation.
    """

    module: nn.Module
    labels: tuple[str, ...]
    activation: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = 1.0
    normalized_input: bool = True


def linear_head(
    weight: ArrayLike,
    bias: ArrayLike | None,
    labels: Sequence[str],
    *,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    temperature: float = 1.0,
    normalized_input: bool = True,
) -> HeadSource:
    """A head of a closed form: logits = vectors @ weight.T + bias, with weight [C, D] and bias [C].

    Raises:
        ExportRefused: other shapes, or values that are not finite in fp32.
    """
    w = np.asarray(weight, dtype=np.float32)
    b = np.zeros(len(labels), dtype=np.float32) if bias is None else np.asarray(bias, dtype=np.float32)
    if w.ndim != 2 or w.shape[0] != len(labels) or b.shape != (len(labels),):
        raise ExportRefused(
            f"a head of {len(labels)} labels takes weight [{len(labels)}, D] and bias [{len(labels)}], "
            f"got {list(w.shape)} and {list(b.shape)}"
        )
    if not (np.isfinite(w).all() and np.isfinite(b).all()):
        raise ExportRefused("a head's weight or bias is not finite in fp32")
    module = nn.Linear(w.shape[1], w.shape[0])
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(w))
        module.bias.copy_(torch.from_numpy(b))
    return HeadSource(
        module=module.eval(),
        labels=tuple(labels),
        activation=activation,
        temperature=temperature,
        normalized_input=normalized_input,
    )


@dataclass(frozen=True, kw_only=True)
class Way:
    """Un-normalised vectors at one point behind an encoder, the golden inputs' rows first.

    reference: from torch, float32 [N, D] (rows that no torch module is at hand for: the fp32 graph's, whose distance
    from torch its own artifact proves). measured: from the graphs, by the encoder's precision.
    """

    goldens: int
    reference: NDArray[np.float32]
    measured: Measured

    @property
    def dim(self) -> int:
        return self.reference.shape[1]


@dataclass(frozen=True, kw_only=True)
class Built:
    """A derived graph with its chain, and what the goldens keep of it."""

    graph: GraphSpec
    outputs: NDArray[np.float32]
    tolerances: dict[Precision, Tolerance]
    skipped: tuple[SkippedVariant, ...]
    way: Way


def way_of_tower(tower: TowerVariant, goldens: int, graphs: Sequence[GraphSpec], folder: Path) -> Way:
    """Behind an encoder that was just built in `folder`."""
    measured: Measured = {}
    for graph in graphs:
        measured[graph.precision] = _vectors(_run_of(folder / graph.file, graph), graph, tower.rows)
    return Way(goldens=goldens, reference=tower.reference, measured=measured)


def way_of_base(base: Artifact, role: Role, rows: MeasuredRows) -> Way:
    """Behind the encoder that a derivation inherits; `rows` are the golden inputs of its owner, then others."""
    found = base.graph_spec(role, "fp32")
    owner = base.owner(role)
    if found is None or owner is None:
        raise ExportRefused(f"{base.reference} has no {role}")
    measured: Measured = {}
    for precision in PRECISIONS:
        if graph := base.graph_spec(role, precision):
            path = graph[0].path(graph[1].file)
            run = _run_of(path, graph[1]) if precision == "fp16" else open_graph(*graph)
            measured[precision] = _vectors(run, graph[1], rows)
    stored = Goldens(owner).arrays[output_key(role)]
    reference = np.concatenate([stored, measured["fp32"][len(stored) :]])
    return Way(goldens=len(stored), reference=reference, measured=measured)


def through_base_adapter(way: Way, base: Artifact, role: Role) -> Way:
    """Behind the adapter that follows `role` in the base, or `way` itself where there is none."""
    adapter = base.graph_spec(ADAPTERS[ENCODERS.index(role)], "fp32")
    if adapter is None:
        return way
    owner, spec = adapter
    graph = open_graph(owner, spec, SessionSettings())
    measured: Measured = {p: adapt(graph, v) for p, v in way.measured.items() if p in spec.chain}
    stored = Goldens(owner).arrays[output_key(spec.role)]
    return Way(
        goldens=way.goldens, reference=np.concatenate([stored, measured["fp32"][len(stored) :]]), measured=measured
    )


def build_adapter(source: AdapterSource, role: Role, way: Way, folder: Path) -> Built:
    """Write and measure an adapter behind `way`.

    Raises:
        ExportRefused: its graph is not the module.
    """
    rows = normalized(way.reference) if source.normalized_input else way.reference
    graph, outputs, path = _build(source.module, role, None, rows, folder, normalized_input=source.normalized_input)
    empty = np.linalg.norm(way.reference, axis=1, keepdims=True) < 1e-12
    reference = np.where(empty, np.float32(0), outputs)
    opened = Graph.open(path, graph)
    measured: Measured = {precision: adapt(opened, vectors) for precision, vectors in way.measured.items()}
    return finished(graph, Way(goldens=way.goldens, reference=reference, measured=measured))


def build_head(source: HeadSource, spec: HeadSpec, way: Way, folder: Path) -> Built:
    """Write and measure a class head behind `way`.

    Raises:
        ExportRefused: its graph is not the module, or gives another number of logits than there are labels.
    """
    rows = normalized(way.reference) if source.normalized_input else way.reference
    graph, logits, path = _build(
        source.module, "class_head", spec.name, rows, folder, normalized_input=source.normalized_input
    )
    if logits.shape[1] != len(spec.labels):
        raise ExportRefused(f"head {spec.name} has {len(spec.labels)} labels and gives {logits.shape[1]} logits")
    head = OpenedHead(Graph.open(path, graph), spec)
    measured: Measured = {precision: head(vectors) for precision, vectors in way.measured.items()}
    return finished(graph, Way(goldens=way.goldens, reference=logits, measured=measured))


def _build(
    module: nn.Module, role: Role, head: str | None, rows: NDArray[np.float32], folder: Path, *, normalized_input: bool
) -> tuple[GraphSpec, NDArray[np.float32], Path]:
    """(spec without its chain, torch's outputs, file) of a derived graph."""
    if module.training:
        raise ExportRefused(f"{head or role} is in training mode: call eval() first")
    try:
        reference = torch_vectors(module, MeasuredRows(padded=rows))
    except RuntimeError as error:
        raise ExportRefused(f"{head or role} does not take vectors [B, {rows.shape[1]}]: {error}") from error
    if reference.ndim != 2 or len(reference) != len(rows) or not np.isfinite(reference).all():
        raise ExportRefused(f"{head or role} gives shape {list(reference.shape)}, or values that are not finite")
    tensors = (
        TensorSpec(name="vectors", dtype="float32", shape=("batch", rows.shape[1])),
        TensorSpec(name="logits" if head else "adapted", dtype="float32", shape=("batch", reference.shape[1])),
    )
    tower = TowerVariant(
        role=role,
        write_fp32=lambda path: write_graph(module, tensors, path),
        tensors=tensors,
        rows=MeasuredRows(padded=rows),
        calibration=[],
        reference=reference,
        normalized_input=normalized_input,
        head=head,
    )
    path = folder / f"{role}{f'.{head}' if head else ''}.fp32.onnx"
    try:
        return build_variant(tower, "fp32", path, ()), reference, path
    except (GraphError, MissedFloor) as error:
        raise ExportRefused(f"{head or role}: {error}") from error


def finished(graph: GraphSpec, way: Way) -> Built:
    """Judge the chain at each precision of the encoder; what is too far from torch is not served with it."""
    chain: dict[Precision, Fidelity] = {}
    skipped: list[SkippedVariant] = []
    name = f"head {graph.head}" if graph.head else graph.role
    for precision, outputs in way.measured.items():
        fidelity = measure(outputs, way.reference)
        if problem := _too_far(graph, precision, fidelity):
            if precision == "fp32":
                raise ExportRefused(f"{name}: {problem}")
            reason = f"{name} behind the encoder in {precision}: {problem}; the encoder is served in fp32"
            skipped.append(SkippedVariant(role=graph.role, precision=precision, reason=reason))
        else:
            chain[precision] = fidelity
    return Built(
        graph=graph.model_copy(update={"chain": chain}),
        outputs=way.reference[: way.goldens],
        tolerances={precision: tolerance_for(precision, fidelity) for precision, fidelity in chain.items()},
        skipped=tuple(skipped),
        way=Way(goldens=way.goldens, reference=way.reference, measured={p: way.measured[p] for p in chain}),
    )


def _too_far(graph: GraphSpec, precision: Precision, fidelity: Fidelity) -> str | None:
    if precision == "fp32" or graph.role in ("class_head", "conditional_head"):
        bound = CHAIN_FP32_RELATIVE_L2_MAX if precision == "fp32" else HEAD_RELATIVE_L2_MAX
        got = fidelity.centred_relative_l2
        return None if got <= bound else f"centred relative L2 {got:.2e} against torch, at most {bound:g} is allowed"
    floor = COSINE_FLOOR[precision]
    return None if fidelity.cosine_min >= floor else f"min cosine {fidelity.cosine_min:.5f}, the floor is {floor}"


def _run_of(path: Path, spec: GraphSpec) -> Run:
    return run_in_child(path, spec) if spec.precision == "fp16" else Graph.open(path, spec)


def _vectors(run: Run, spec: GraphSpec, rows: MeasuredRows) -> NDArray[np.float32]:
    """All rows through an encoder graph, as it is served: alone where company would change them."""
    size = len(rows.padded) if spec.precision == "fp16" else _CHUNK if spec.batch_invariant else 1
    return in_batches(run, rows, len(rows.padded), size)
