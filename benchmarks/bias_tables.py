"""Tables of docs/bias.md from the record of benchmarks/bias.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from benchmarks.marked import ROOT, markdown_table, replace_blocks

matplotlib.use("Agg")
from matplotlib import pyplot

PAGE, PICTURE = ROOT / "docs" / "bias.md", ROOT / "docs" / "pictures" / "bias.png"
Record = Mapping[str, Mapping[str, Any]]
BIAS = {"MaxSkew": "MaxSkew@k", "NDKL": "NDKL", "worst": "shapes, worst of 16 groups"}
USE = {
    "accuracy": "shapes named",
    "mAP": "shapes find their pictures, mAP",
    "colours": "colours named",
    "pairs": "pairs named",
}
_LOGS = ("MaxSkew", "NDKL")


def write(record: Record) -> None:
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_blocks(page, blocks(record)), encoding="utf-8")
    draw(record)
    print(f"written: {PAGE}, {PICTURE}")


def draw(record: Record) -> None:
    """Bias against use: NDKL and shapes named, each cure in each replication, and the mean of these."""
    figure, axis = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
    lines = list(next(iter(record.values())))
    for at, line in enumerate(lines):
        found = [
            (each[line]["test"]["NDKL"]["score"], each[line]["test"]["accuracy"]["score"]) for each in record.values()
        ]
        colour, mark = f"C{at % 10}", "os^Dvp*XPh"[at % 10]
        axis.scatter(*zip(*found, strict=True), color=colour, marker=mark, alpha=0.35, s=25)
        axis.scatter(
            *np.mean(found, axis=0), color=colour, marker=mark, s=80, label=line, edgecolor="black", linewidth=0.6
        )
    even = float(np.mean([each[lines[0]]["test"]["NDKL"]["chance"] for each in record.values()]))
    axis.axvline(even, color="black", linestyle=":", linewidth=1)
    axis.text(even, 0.02, " colours permuted", transform=axis.get_xaxis_transform(), fontsize=8)
    axis.set(xlabel="NDKL of colours (less is better)", ylabel="shapes named (more is better)", xlim=(0, None))
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=100)
    pyplot.close(figure)


def blocks(record: Record) -> dict[str, str]:
    lines = list(next(iter(record.values())))
    found = {"bias-skew": table(record, lines, BIAS), "bias-use": table(record, lines, USE)}
    return {**found, "bias-choices": choices(record, lines)}


def table(record: Record, lines: list[str], columns: Mapping[str, str]) -> str:
    """A cell: the mean over replications, the mean ends of their 95 % intervals over pictures; lowest to highest."""
    rows = [
        [line, *(cell([each[line]["test"][key] for each in record.values()], key) for key in columns)] for line in lines
    ]
    control = [
        _number(float(np.mean([each[lines[0]]["test"][key]["chance"] for each in record.values()])), key)
        for key in columns
    ]
    rows.append(["control", *("" if key == "worst" else found for key, found in zip(columns, control, strict=True))])
    head = ["", *columns.values()]
    if "worst" in columns:  # it depends on how good the model is, so every line has a control of its own
        head.append("the same, groups permuted")
        permuted = [np.mean([each[line]["test"]["worst"]["chance"] for each in record.values()]) for line in lines]
        rows = [[*row, own] for row, own in zip(rows, [*(f"{100 * value:.1f}" for value in permuted), ""], strict=True)]
    return markdown_table(head, rows)


def cell(found: Sequence[Mapping[str, float]], key: str) -> str:
    value, low, high = (float(np.mean([each[end] for each in found])) for end in ("score", "low", "high"))
    scores = [each["score"] for each in found]
    spread = f"; {_number(min(scores), key)} to {_number(max(scores), key)}" if len(scores) > 1 else ""
    return f"{_number(value, key)} [{_number(low, key)}, {_number(high, key)}]{spread}"


def choices(record: Record, lines: list[str]) -> str:
    rows: list[list[str]] = []
    for line in lines:
        best = Counter(each[line]["chosen"] for each in record.values() if each[line]["chosen"])
        tried = len(next(iter(record.values()))[line]["validation"])
        if best:
            rows.append(
                [line, str(tried), "; ".join(f"{name} ({count} of {len(record)})" for name, count in best.items())]
            )
    return markdown_table(("", "candidates", "chosen on validation"), rows)


def _number(value: float, key: str) -> str:
    return f"{value:.3f}" if key in _LOGS else f"{100 * value:.1f}"
