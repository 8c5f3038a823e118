"""Tables and the picture of docs/intra-modal.md, from the record of the study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import matplotlib

from benchmarks.marked import ROOT, markdown_table, replace_blocks

matplotlib.use("Agg")
from matplotlib import pyplot

RECORD = ROOT / "benchmarks" / "lab" / "intra-modal.json"
PAGE, PICTURE = ROOT / "docs" / "intra-modal.md", ROOT / "docs" / "pictures" / "lab" / "intra-modal.png"
INVERSIONS = ("oti", "ovi")
NEEDED = 0.03  # of mAP, above every control
Record = Mapping[str, Any]


def write_docs() -> None:
    """Fill the page's blocks and draw its picture."""
    record = read_record()
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_blocks(page, blocks(record)), encoding="utf-8")
    draw(record)


def read_record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def blocks(record: Record) -> dict[str, str]:
    """Every table of the page, by the name of its block."""
    found = {"intra-modal-summary": summary(record), "intra-modal-naming": naming(record)}
    for base, judged in record.items():
        found[f"intra-modal-{base}"] = search(judged)
    return {**found, "intra-modal-cost": cost(record)}


def search(judged: Record) -> str:
    """Each task's rows."""
    lines: list[list[str]] = []
    for task, found in judged["search"].items():
        for name, row in found["rows"].items():
            lines.append(
                [
                    task,
                    f"{name} (control)" if name in found["controls"] else name,
                    row.get("knobs", ""),
                    interval(row["mAP"]),
                    number(row["r@1"][0]),
                    number(row["r@10"][0]),
                    "" if name == "as it is" else signed(row["minus raw"]),
                    "" if name == found["control"] else signed(row["minus control"]),
                ]
            )
        lines.append([task, "a random order", "", number(found["chance"][0]), number(found["chance"][1]), "", "", ""])
    head = ["task", "vectors", "knobs", "mAP", "R@1", "R@10", "mAP against as it is", "mAP against the best control"]
    return markdown_table(head, lines)


def summary(record: Record) -> str:
    """The best cure of each task, chosen on validation, and whether it is needed."""
    lines: list[list[str]] = []
    for base, judged in record.items():
        for task, found in judged["search"].items():
            rows = found["rows"]
            cures = {name: row for name, row in rows.items() if "validation" in row and name not in found["controls"]}
            best = max(cures, key=lambda name: cures[name]["validation"])
            gain, margin = rows[best]["minus raw"], rows[best]["minus control"]
            lines.append(
                [
                    base,
                    task,
                    number(rows["as it is"]["mAP"][0]),
                    f"{best}{', ' + rows[best]['knobs'] if rows[best]['knobs'] else ''}",
                    signed(gain),
                    signed(margin),
                    verdict(gain, margin),
                ]
            )
    head = ["base", "task", "mAP as it is", "best cure on validation", "gain", "above the best control", "verdict"]
    return markdown_table(head, lines)


def verdict(*gains: list[float]) -> str:
    """Of differences [value, low, high] to what a cure has to beat."""
    if min(value for value, _, _ in gains) < NEEDED:
        return "not needed"
    return "helps" if min(low for _, low, _ in gains) > 0 else "not shown"


def naming(record: Record) -> str:
    """Accuracy of naming through each map."""
    lines: list[list[str]] = []
    for base, judged in record.items():
        for task, found in judged["naming"].items():
            for name, row in found["rows"].items():
                away = "" if name == "as it is" else signed(row["minus raw"])
                lines.append([base, f"{task} ({found['classes']})", name, interval(row["accuracy"]), away])
    return markdown_table(["base", "task (classes)", "vectors", "accuracy", "against as it is"], lines)


def cost(record: Record) -> str:
    """Time of a query and size of a vector."""
    lines: list[list[str]] = []
    for base, judged in record.items():
        for name, seconds in judged["cost"].items():
            took = f"{1e6 * seconds:.0f} us" if seconds < 1e-3 else f"{1e3 * seconds:.0f} ms"
            lines.append([base, "a map to half of the directions" if name == "map" else name, took])
    return markdown_table(["base", "what a query costs more", "time"], lines)


def draw(record: Record) -> None:
    """Change of mAP of each cell, a panel for each task."""
    panels = [(base, task, found) for base, judged in record.items() for task, found in judged["search"].items()]
    columns = 4
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.9 * columns, 3.1 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (base, task, found) in zip(axes.flat, panels, strict=False):
        names = [name for name in found["rows"] if name != "as it is"]
        for at, name in enumerate(names):
            value, low, high = (100 * each for each in found["rows"][name]["minus raw"])
            colour = (
                "tab:grey" if name in found["controls"] else "tab:red" if name.startswith(INVERSIONS) else "tab:blue"
            )
            axis.errorbar(value, at, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=2)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_title(f"{base}: {task}\nmAP as it is {100 * found['rows']['as it is']['mAP'][0]:.1f}", fontsize=9)
        axis.set_xlabel("change of mAP, points")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=80)
    pyplot.close(figure)


def number(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if 0 <= value < 1 else f"{value:.3f}"


def interval(found: list[float]) -> str:
    value, low, high = (number(each) for each in found)
    return f"{value} [{low}, {high}]"


def signed(found: list[float] | None) -> str:
    if found is None:
        return ""
    value, low, high = (f"{each:+.3f}".replace("0.", ".") for each in found)
    return f"{value} [{low}, {high}]"
