"""Plots of docs/adapters.md, from the records of the study."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.adapters import HEADS, LONGER, STEPPED, ZERO_SHOT
from benchmarks.adapters_judge import elsewhere
from benchmarks.adapters_tables import METHODS, MOST, Group, Groups, difference, points_of
from benchmarks.adapters_tasks import SHOTS, TASKS
from benchmarks.lab_runs import ROOT
from training.few_shot import CONTROLS

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

PICTURES = ROOT / "docs" / "pictures" / "lab"


def draw(found: Groups) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    draw_shots(found, PICTURES / "adapters-shots.png")
    draw_base_new(found, PICTURES / "adapters-base-new.png")
    draw_forgetting(found, PICTURES / "adapters-forgetting.png")


def draw_shots(found: Groups, path: Path) -> None:
    """Accuracy on base classes against shots, a panel for each task."""
    tasks = [task for task in TASKS if (task, ZERO_SHOT, "0") in found]
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 4.4), layout="constrained", squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        zero = found[task, ZERO_SHOT, "0"][0]["test"]["base"]["value"]
        axis.axhline(100 * zero, color="black", linewidth=1, linestyle=":", label=ZERO_SHOT)
        for method in METHODS:
            points = [
                (shots, 100 * statistics.mean(record["test"]["base"]["value"] for record in group))
                for shots in SHOTS
                if (group := found.get((task, method, str(shots)))) is not None
            ]
            if points:
                axis.plot(*zip(*points, strict=True), label=method, **_style(method))
        axis.set_xscale("log", base=2)
        axis.set_xticks(SHOTS, [str(each) for each in SHOTS])
        axis.set(title=task, xlabel="pictures a class")
    axes[0][0].set_ylabel("accuracy on base classes, %")
    _legend(figure, axes[0])
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def draw_base_new(found: Groups, path: Path) -> None:
    """Accuracy on new classes against that on base classes, each to zero-shot's, a panel for each task."""
    tasks = [task for task in TASKS if any((task, method, str(MOST)) in found for method in STEPPED)]
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 4.4), layout="constrained", squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        zero = found[task, ZERO_SHOT, "0"][0]["test"]
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.axvline(0, color="grey", linewidth=0.8)
        for method in STEPPED:
            if (group := found.get((task, method, str(MOST)))) is None:
                continue
            across, up = difference(group, zero, "base"), difference(group, zero, "new")
            if across is None or up is None:
                continue
            style = _style(method)
            axis.errorbar(
                100 * across.value,
                100 * up.value,
                xerr=[[100 * (across.value - across.low)], [100 * (across.high - across.value)]],
                yerr=[[100 * (up.value - up.low)], [100 * (up.high - up.value)]],
                fmt=style["marker"],
                color=style["color"],
                label=method,
                linewidth=1,
            )
        axis.set(title=f"{task}, {MOST} shots", xlabel="base classes, points to zero-shot")
    axes[0][0].set_ylabel("new classes, points to zero-shot")
    _legend(figure, axes[0])
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def draw_forgetting(found: Groups, path: Path) -> None:
    """What is lost elsewhere against shots, against passes over them, and against alpha; drawings."""
    task = TASKS[0]
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.4), layout="constrained", sharey=True)
    zero = elsewhere(found[task, ZERO_SHOT, "0"][0]["test"])

    def lost(group: Group) -> float:
        return 100 * (statistics.mean(elsewhere(record["test"]) for record in group) - zero)

    for method in STEPPED:
        shots = [(each, lost(found[task, method, str(each)])) for each in SHOTS if (task, method, str(each)) in found]
        factors = {factor: found.get((task, method, f"{MOST}x{factor:g}")) for factor in LONGER}
        factors[1.0] = found.get((task, method, str(MOST)))
        passes = [(factor, lost(group)) for factor, group in sorted(factors.items()) if group]
        for axis, points in zip(axes, (shots, passes), strict=False):
            if points:
                axis.plot(*zip(*points, strict=True), label=method, **_style(method))
        if group := found.get((task, method, str(MOST))):
            curves = [points_of(record)[0] for record in group]
            alphas = [point["alpha"] for point in group[0]["wise_ft"]["curve"]]
            whole = [100 * statistics.mean(curve[at]["elsewhere"] - curve[0]["elsewhere"] for curve in curves)
                     for at in range(len(alphas))]  # fmt: skip
            axes[2].plot(alphas, whole, **_style(method))
    labels = ("pictures a class", f"passes, times those of the recipe ({MOST} shots)", "alpha of WiSE-FT")
    for axis, label in zip(axes, labels, strict=True):
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_xlabel(label)
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks(SHOTS, [str(each) for each in SHOTS])
    axes[1].set_xscale("log", base=2)
    axes[0].set_ylabel("elsewhere, points to the base")
    _legend(figure, axes)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _style(method: str) -> dict[str, Any]:
    number = METHODS.index(method)
    return {
        "color": pyplot.get_cmap("tab20")((number * 2 + number // 10) % 20),
        "marker": "osD^v<>PX*hpd8.12"[number],
        "linestyle": ":" if method in CONTROLS else "--" if method in HEADS else "-",
        "linewidth": 1,
        "markersize": 5,
    }


def _legend(figure: Any, axes: Sequence[Axes]) -> None:
    """One for all panels, with everything that any of them shows."""
    shown = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside right center", frameon=False)
