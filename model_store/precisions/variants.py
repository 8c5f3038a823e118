"""An encoder at each precision: written, measured against its reference, and accepted or refused by a floor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.errors import ExportRefused, GraphError
from model_store.golden import Tolerance, dense_tolerance, tolerance_for
from model_store.manifest import Fidelity, GraphSpec, Precision, Role, SkippedVariant, TensorSpec
from model_store.precisions.measure import MeasuredRows, measure_graph
from model_store.precisions.quantize import NothingToQuantise, write_fp16, write_int8

Progress = Callable[[str], None]
ALL_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
COSINE_FLOOR: dict[Precision, float] = {"fp16": 0.9999, "int8": 0.995}
FP32_RELATIVE_L2_MAX = 1e-4
KEEP_FP32_SHARES = (0.0, 0.15, 0.4, 0.6)  # int8 is tried with each in turn until it meets its floor


class MissedFloor(Exception):
    """A variant that runs, but is too far from the reference; the message carries the numbers."""


@dataclass(frozen=True, kw_only=True)
class TowerVariant:
    """One graph on its way: how it is written, its tensors, and the inputs it is measured and calibrated on.

    write_fp32: writes the fp32 graph to a path and returns its files, the graph first. reference: float32 [N, D], what
    the model that is exported gives for `rows`; `reference_name` names it in errors ("the torch model").
    """

    role: Role
    write_fp32: Callable[[Path], tuple[Path, ...]]
    tensors: tuple[TensorSpec, TensorSpec]
    rows: MeasuredRows
    calibration: list[NDArray[Any]]
    reference: NDArray[np.float32]
    normalized_input: bool = False
    head: str | None = None
    reference_name: str = "the torch model"
    normalized_output: bool = False

    @property
    def dim(self) -> int:
        return self.reference.shape[1]


def build_tower(
    tower: TowerVariant, wanted: Iterable[Precision], folder: Path, say: Progress
) -> tuple[list[GraphSpec], list[SkippedVariant]]:
    """Write and measure an encoder at each precision, fp32 first; what misses its floor is skipped with the reason.

    Raises:
        ExportRefused: the fp32 graph is not the reference, or does not run.
    """
    graphs: list[GraphSpec] = []
    skipped: list[SkippedVariant] = []
    fp32_files: tuple[Path, ...] = ()
    for precision in wanted:
        say(f"{tower.role} {precision}")
        path = folder / f"{tower.role}.{precision}.onnx"
        try:
            graph = build_variant(tower, precision, path, fp32_files)
        except (GraphError, MissedFloor) as error:
            if precision == "fp32":
                raise ExportRefused(f"{tower.role}: {error}") from error
            remove_variant(path)
            skipped.append(SkippedVariant(role=tower.role, precision=precision, reason=str(error)))
        else:
            graphs.append(graph)
            fp32_files = fp32_files or tuple(folder / file for file in graph.files)
    return graphs, skipped


def fp32_first(precisions: Iterable[Precision]) -> list[Precision]:
    """The order in which variants are built: fp32 always, as the others are made of it."""
    chosen = tuple(precisions)
    return ["fp32", *(precision for precision in ALL_PRECISIONS if precision != "fp32" and precision in chosen)]


def tolerances_of(graphs: Iterable[GraphSpec]) -> dict[Role, dict[Precision, Tolerance]]:
    """Golden tolerances of encoder graphs, from what was measured."""
    tolerances: dict[Role, dict[Precision, Tolerance]] = {}
    for graph in graphs:
        tolerance = dense_tolerance() if graph.role == "dense_encoder" else None
        tolerances.setdefault(graph.role, {})[graph.precision] = tolerance or tolerance_for(
            graph.precision, graph.fidelity
        )
    return tolerances


def build_variant(tower: TowerVariant, precision: Precision, path: Path, fp32_files: tuple[Path, ...]) -> GraphSpec:
    """Write and measure one variant; int8 keeps more products in fp32 while it misses its floor."""
    if precision == "fp32":
        return _accept(tower, precision, tower.write_fp32(path))
    if precision == "fp16":
        return _accept(tower, precision, write_fp16(fp32_files[0], path))
    missed: list[str] = []
    for share in KEEP_FP32_SHARES:
        remove_variant(path)
        try:
            files = write_int8(
                fp32_files[0], path, input_name=tower.tensors[0].name, batches=tower.calibration, keep_fp32=share
            )
        except NothingToQuantise as error:
            raise MissedFloor(str(error)) from error
        try:
            return _accept(tower, precision, files)
        except MissedFloor as error:
            missed.append(f"{share:.0%} of the products kept in fp32: {error}")
    raise MissedFloor("; ".join(missed))


def remove_variant(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".data").unlink(missing_ok=True)


def _accept(tower: TowerVariant, precision: Precision, files: tuple[Path, ...]) -> GraphSpec:
    """Measure a written graph and return its manifest entry, or raise MissedFloor."""
    draft = GraphSpec(
        role=tower.role,
        head=tower.head,
        normalized_input=tower.normalized_input,
        normalized_output=tower.normalized_output,
        precision=precision,
        file=files[0].name,
        external_files=tuple(path.name for path in files[1:]),
        inputs=tower.tensors[:1],
        outputs=tower.tensors[1:],
        batch_invariant=False,
        batch_difference=0.0,
    )
    measured = measure_graph(files[0], draft, tower.rows, tower.reference)
    _check_floor(precision, measured.fidelity, tower.reference_name)
    return draft.model_copy(
        update={
            "batch_invariant": measured.batch_invariant,
            "batch_difference": measured.batch_difference,
            "fidelity": measured.fidelity,
        }
    )


def _check_floor(precision: Precision, fidelity: Fidelity, reference_name: str) -> None:
    if precision == "fp32":
        if not fidelity.centred_relative_l2 <= FP32_RELATIVE_L2_MAX:
            raise MissedFloor(
                f"the fp32 graph is not {reference_name}: centred relative L2 {fidelity.centred_relative_l2:.2e}, "
                f"at most {FP32_RELATIVE_L2_MAX:.0e} is allowed"
            )
    elif not fidelity.cosine_min >= COSINE_FLOOR[precision]:
        raise MissedFloor(
            f"min cosine {fidelity.cosine_min:.5f} against {reference_name} over {fidelity.n} inputs, "
            f"the floor is {COSINE_FLOOR[precision]} (mean {fidelity.cosine_mean:.5f}, "
            f"centred min {fidelity.centred_cosine_min:.5f})"
        )
