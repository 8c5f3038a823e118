"""One encoder at one precision: written, measured against torch, and accepted or refused by its floor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from model_store.manifest import Fidelity, GraphSpec, Precision, Role, TensorSpec
from training.exporting.graphs import write_graph
from training.exporting.measure import MeasuredRows, measure_graph
from training.exporting.quantize import NothingToQuantise, write_fp16, write_int8

COSINE_FLOOR: dict[Precision, float] = {"fp16": 0.9999, "int8": 0.995}
FP32_RELATIVE_L2_MAX = 1e-4
KEEP_FP32_SHARES = (0.0, 0.15, 0.4)  # int8 is tried with each in turn until it meets its floor


class MissedFloor(Exception):
    """A variant that runs, but is too far from the torch model; the message carries the numbers."""


@dataclass(frozen=True, kw_only=True)
class TowerVariant:
    """One graph on its way: the module, its tensors, and the inputs it is measured and calibrated on."""

    role: Role
    module: nn.Module
    tensors: tuple[TensorSpec, TensorSpec]
    rows: MeasuredRows
    calibration: list[NDArray[Any]]
    reference: NDArray[np.float32]
    normalized_input: bool = False
    head: str | None = None

    @property
    def dim(self) -> int:
        return self.reference.shape[1]


def build_variant(tower: TowerVariant, precision: Precision, path: Path, fp32_files: tuple[Path, ...]) -> GraphSpec:
    """Write and measure one variant; int8 keeps more products in fp32 while it misses its floor."""
    if precision == "fp32":
        return _accept(tower, precision, write_graph(tower.module, tower.tensors, path))
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
        precision=precision,
        file=files[0].name,
        external_files=tuple(path.name for path in files[1:]),
        inputs=tower.tensors[:1],
        outputs=tower.tensors[1:],
        batch_invariant=False,
        batch_difference=0.0,
    )
    measured = measure_graph(files[0], draft, tower.rows, tower.reference)
    _check_floor(precision, measured.fidelity)
    return draft.model_copy(
        update={
            "batch_invariant": measured.batch_invariant,
            "batch_difference": measured.batch_difference,
            "fidelity": measured.fidelity,
        }
    )


def _check_floor(precision: Precision, fidelity: Fidelity) -> None:
    if precision == "fp32":
        if not fidelity.centred_relative_l2 <= FP32_RELATIVE_L2_MAX:
            raise MissedFloor(
                f"the fp32 graph is not the torch model: centred relative L2 {fidelity.centred_relative_l2:.2e}, "
                f"at most {FP32_RELATIVE_L2_MAX:.0e} is allowed"
            )
    elif not fidelity.cosine_min >= COSINE_FLOOR[precision]:
        raise MissedFloor(
            f"min cosine {fidelity.cosine_min:.5f} against torch fp32 over {fidelity.n} inputs, "
            f"the floor is {COSINE_FLOOR[precision]} (mean {fidelity.cosine_mean:.5f}, "
            f"centred min {fidelity.centred_cosine_min:.5f})"
        )
