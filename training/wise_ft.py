"""WiSE-FT (Wortsman et al., 2022): between a base and what was tuned from it lie models that keep more of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from training.log import flatten


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha end, by name; equation 1 of the paper.

    Running statistics of norms are interpolated as the weights are; counters are the end's. At 0 and 1 the bytes of
    start and end come back, and between them those of what is equal in both, such as a tower that was not trained.

    Raises:
        ValueError: the two do not hold the same names.
    """
    if start.keys() != end.keys():
        raise ValueError(f"the two models differ in {sorted(start.keys() ^ end.keys())[:5]}")
    if alpha == 0:
        return {name: tensor.clone() for name, tensor in start.items()}
    return {
        name: end[name].clone()
        if alpha == 1 or not tensor.is_floating_point() or torch.equal(tensor, end[name])
        else (1 - alpha) * tensor + alpha * end[name]
        for name, tensor in start.items()
    }


def wise_ft_curve(
    measured: Mapping[float, Mapping[str, Any]], *, cure: str, neutral: str | None, most_lost: float
) -> dict[str, Any]:
    """Which alpha to take: the best `cure` among those that lose at most `most_lost` of alpha 0's `neutral`.

    measured: validation numbers by alpha, 0 among them; `cure` and `neutral` are paths in them, higher is better; no
    neutral: nothing can be lost. A tie goes to the smaller alpha, which is nearer to the base.
    Returns {"cure", "neutral", "most_lost", "curve": [{"alpha", "cure", "neutral"}], "chosen": {"alpha", "metrics"}}; a
    point has no "neutral" where none is named.

    Raises:
        ValueError: no alpha 0, or no such number.
    """
    if 0 not in measured:
        raise ValueError(f"alphas {sorted(measured)} lack 0, the base itself")
    points: list[dict[str, float]] = []
    for alpha in sorted(measured):
        numbers = flatten(dict(measured[alpha]))
        for name in (cure, neutral):
            if name is not None and name not in numbers:
                raise ValueError(f"wise_ft: no validation number {name!r}; there are {', '.join(sorted(numbers))}")
        points.append(
            {"alpha": alpha, "cure": numbers[cure]} | ({} if neutral is None else {"neutral": numbers[neutral]})
        )
    floor = points[0].get("neutral", 0.0) - most_lost
    allowed = [point for point in points if point.get("neutral", 0.0) >= floor - 1e-12]
    best = max(allowed, key=lambda point: (point["cure"], -point["alpha"]))
    return {
        "cure": cure,
        "neutral": neutral,
        "most_lost": most_lost,
        "curve": points,
        "chosen": {"alpha": best["alpha"], "metrics": dict(measured[best["alpha"]])},
    }
