"""Logistic regression on frozen image vectors: a class head that knows no texts (Radford et al., 2021, A.3)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from training.methods.parts.class_heads import F32, I64, ClassHead, LinearHead
from training.methods.parts.few_shot import HeadMethod, best, checked_grid
from training.methods.parts.linear_heads import logistic_probe
from training.methods.parts.shots import ShotOptions

C_GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)


class ProbeOptions(ShotOptions):
    """c: inverse penalties that validation chooses from. steps: at most so many of the solver, which says if it had
    to stop."""

    c: Annotated[tuple[Annotated[float, Field(gt=0)], ...], AfterValidator(checked_grid)] = C_GRID
    steps: int = Field(default=2000, ge=1)


def create(options: dict[str, Any]) -> LinearProbeMethod:
    return LinearProbeMethod(ProbeOptions.parse(options, method="linear_probe"))


class LinearProbeMethod(HeadMethod):
    knobs = ("c",)

    def __init__(self, options: ProbeOptions) -> None:
        super().__init__(options)
        self.probe = options

    def choose(self, shots: F32, truth: I64, validation: F32, expected: I64) -> tuple[ClassHead, dict[str, Any]]:
        tried: dict[float, ClassHead] = {}
        stopped: list[float] = []
        for c in self.probe.c:
            (weight, bias), converged = logistic_probe(
                shots, truth, classes=len(self.classes), c=c, steps=self.probe.steps
            )
            tried[c] = LinearHead(weight=weight.astype("float32"), bias=bias.astype("float32"))
            stopped += [] if converged else [c]
        c, curve = best(tried, validation, expected)
        return tried[c], {"c": c, "accuracy_by_c": curve, "not_converged": stopped}
