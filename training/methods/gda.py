"""Gaussian discriminant analysis beside zero-shot: a class head from a few pictures, in closed form.

Wang et al., 2024, "A Hard-to-Beat Baseline for Training-Free CLIP-based Adaptation".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from training.methods.parts.class_heads import F32, I64, ClassHead
from training.methods.parts.few_shot import HeadMethod, best, checked_grid
from training.methods.parts.linear_heads import gaussian_discriminant, mixed
from training.methods.parts.shots import ShotOptions

MIX = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)


class GdaOptions(ShotOptions):
    """mix: shares of the fitted logits that validation chooses from; 0 is zero-shot alone.

    priors: "equal", or "counts" as the shots have them. shrinkage: see `gaussian_discriminant`.
    """

    mix: Annotated[tuple[float, ...], AfterValidator(checked_grid)] = MIX
    shrinkage: Literal["ledoit_wolf", "ridge"] | Annotated[float, Field(ge=0, le=1)] = "ledoit_wolf"
    priors: Literal["equal", "counts"] = "equal"


def create(options: dict[str, Any]) -> GdaMethod:
    return GdaMethod(GdaOptions.parse(options, method="gda"))


class GdaMethod(HeadMethod):
    knobs = ("mix",)

    def __init__(self, options: GdaOptions) -> None:
        super().__init__(options)
        self.gda = options

    def choose(self, shots: F32, truth: I64, validation: F32, expected: I64) -> tuple[ClassHead, dict[str, Any]]:
        fitted = gaussian_discriminant(
            shots, truth, classes=len(self.classes), shrinkage=self.gda.shrinkage, priors=self.gda.priors
        )
        tried = {share: mixed(self.zero_shot, fitted, share) for share in self.gda.mix}
        share, curve = best(tried, validation, expected)
        return tried[share], {"mix": share, "accuracy_by_mix": curve}
