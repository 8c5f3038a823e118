"""The study's pictures: WiSE-FT's curves, and validation over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

_STYLES = ("o-", "s--", "^-.", "v:", "d-", "x--", "P-.")


def draw_curves(curves: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Gain of the fine-tune against what is kept, along alpha."""
    figure, axes = pyplot.subplots(
        1, len(curves), figsize=(4.6 * len(curves), 3.4), squeeze=False, layout="constrained"
    )
    for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
        alphas = [point["alpha"] for point in curve["curve"]]
        for key, style, colour, label in (
            ("cure", "o-", "#0072b2", curve["cure"]),
            ("neutral", "s--", "#d55e00", "naming single things"),
        ):
            axis.plot(alphas, [100 * point[key] for point in curve["curve"]], style, color=colour, label=label)
        axis.axvline(curve["chosen"]["alpha"], color="#888888", linewidth=1, linestyle=":")
        axis.annotate("chosen", (curve["chosen"]["alpha"], 3), rotation=90, fontsize=8, ha="right", color="#555555")
        axis.set(title=name, xlabel="alpha (0: base, 1: tuned)", ylabel="% on validation", ylim=(0, 103))
        axis.legend(fontsize=8, loc="lower right")
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_learning(points: Mapping[str, Sequence[tuple[int, float]]], path: Path, *, label: str, chance: float) -> None:
    """A validation number over optimizer steps, one line a run; points: (step, share) by name."""
    figure, axis = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for number, (name, line) in enumerate(points.items()):
        axis.plot(
            [step for step, _ in line],
            [100 * share for _, share in line],
            _STYLES[number % len(_STYLES)],
            label=name,
            markersize=4,
        )
    axis.axhline(100 * chance, color="#888888", linewidth=1)
    axis.set(xlabel="optimizer steps", ylabel=f"{label}, % on validation", ylim=(0, 103))
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
