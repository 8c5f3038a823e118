"""The picture of docs/composed.md: how much a negative should weigh, and how well "no good match" can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib

from benchmarks.marked import ROOT

matplotlib.use("Agg")
from matplotlib import pyplot

PICTURE = ROOT / "docs" / "pictures" / "composed.png"
CURVES = ("plain", "neutral", "others", "kin", "hinge", "presence, log", "placebo")
SIGNALS = ("max cosine", "(max - mean) / sd", "max P", "max P, length 1", "calibrated for searches")


def draw(record: Mapping[str, Any]) -> None:
    """Left: validation, mean mAP of the sets by weight. Right: held out, AUROC of signals with their intervals."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1, 1.2))
    validation = record["negatives"]["validation"]
    for name in CURVES:
        seen = validation[name]
        width, style = (2.2, "-") if name == "plain" else (1.2, ":" if name == "placebo" else "-")
        left.plot(seen["weights"], seen["means"], label=name, linewidth=width, linestyle=style)
    left.axhline(validation["positive alone"]["means"][0], color="black", linestyle="--", linewidth=1)
    left.text(8, validation["positive alone"]["means"][0], "positive alone", ha="right", va="bottom", fontsize=8)
    left.set(xscale="log", xlabel="weight of the negative", ylabel="mAP on validation, mean of five sets")
    left.legend(frameon=False, fontsize=8)
    data = list(record["nothing"])
    for at, signal in enumerate(SIGNALS):
        found = [record["nothing"][each][signal] for each in data]
        places = [place + 0.15 * (at - 2) for place in range(len(data))]
        values = [each["auroc"] for each in found]
        reach = [
            [max(0.0, each["auroc"] - each["interval"][0]) for each in found],
            [max(0.0, each["interval"][1] - each["auroc"]) for each in found],
        ]
        right.errorbar(places, values, yerr=reach, fmt="o", markersize=4, linewidth=1, label=signal)
    right.axhline(0.5, color="black", linestyle=":", linewidth=1)
    right.set_xticks(range(len(data)), [each.replace(", ", ",\n") for each in data], fontsize=8)
    right.set(ylabel="AUROC of a match and none, held out", ylim=(0.1, 1.02))
    right.legend(frameon=False, fontsize=8, loc="lower left")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=100)
    pyplot.close(figure)
