"""Tables and plot of docs/robustness.md from the record of benchmarks/robustness.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.marked import ROOT, markdown_table, replace_blocks
from evaluation.robustness.kinds import JUDGED_KINDS

PAGE, RECORD = ROOT / "docs" / "robustness.md", ROOT / "benchmarks" / "lab" / "robustness.json"
PLOT = ROOT / "docs" / "pictures" / "robustness.png"
_STYLES = ("k-", "o-", "s--", "^-.", "v:", "d-", "x--", "P-.", "*:")
_BINDING = {"colours swapped": "binding, colours swapped", "things exchanged": "binding, things exchanged"}
_ACROSS = "found by the base's vectors"
_RETRIEVAL = {"t2i_r@1": "caption finds scene, R@1", "t2i_r@10": "R@10"}


def write_docs(record: Mapping[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_blocks(page, blocks(record)), encoding="utf-8")
    draw(record)
    print(f"written: {PAGE} and {PLOT}")


def blocks(record: Mapping[str, Any]) -> dict[str, str]:
    """Text of the page by the name of its marker."""
    rows = record["rows"]
    return {
        "robustness": main_table(rows),
        "robustness-kinds": kinds_table(rows),
        "robustness-use": use_table(rows),
        "robustness-rate": rate_table(record["rate"]),
    }


def main_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    epsilons = levels(rows)
    head = ("", "clean", "15 corruptions", *(f"attacked, {epsilon}/255" for epsilon in epsilons))
    lines = [
        [
            f"`{name}`" if "-" in name else name,
            share(row["clean"]),
            f"{100 * row['corruptions, mean']:.1f}",
            *(share(row["attacks"][epsilon]["named"]) for epsilon in epsilons),
            f"{kept(row):.0f} %",
            f"{row['train_cpu_s']:.0f}" if "train_cpu_s" in row else "",
        ]
        for name, row in rows.items()
    ]
    return markdown_table((*head, "kept of clean at 1/255", "core-seconds"), lines)


def kept(row: Mapping[str, Any]) -> float:
    """Per cent of the accuracy on the attacked pictures, clean, that is left at 1/255."""
    return 100 * row["attacks"]["1"]["named"][0] / row["clean, of those attacked"][0]


def levels(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [name for name in next(iter(rows.values()))["attacks"] if name != "wall_s"]


def kinds_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        [kind.replace("_", " "), *(f"{100 * row['corruptions'][kind]['mean']:.0f}" for row in rows.values())]
        for kind in JUDGED_KINDS
    ]
    return markdown_table(("", *rows), lines)


def use_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    binding = [name for name in _BINDING if all(name in row["binding"] for row in rows.values())]
    head = ("", *(_BINDING[name] for name in binding), *_RETRIEVAL.values(), "found among the base's vectors")
    lines = [
        [
            name,
            *(f"{100 * row['binding'][each]:.1f}" for each in binding),
            *(share(row["retrieval"][each]) for each in _RETRIEVAL),
            f"{100 * row[_ACROSS]:.1f}",
        ]
        for name, row in rows.items()
    ]
    return markdown_table(head, lines)


def rate_table(found: Mapping[str, Any]) -> str:
    before = found["before"]
    lines = [["before", f"{100 * before['clean']:.1f}", f"{100 * before['attacked']:.1f}"]]
    for rate, row in found["tried"].items():
        lines.append([rate, f"{100 * row['clean']:.1f}", f"{100 * row['attacked']:.1f}"])
    return markdown_table(("rate", "clean", "under a short attack at 4/255"), lines)


def share(found: Sequence[float]) -> str:
    value, low, high = (100 * each for each in found)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def draw(record: Mapping[str, Any]) -> None:
    """Accuracy by the radius of the attack, a line for each row."""
    figure, axis = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for style, (name, row) in zip(_STYLES, record["rows"].items(), strict=False):
        epsilons = levels(record["rows"])
        named = [row["clean, of those attacked"][0], *(row["attacks"][each]["named"][0] for each in epsilons)]
        axis.plot([0, *map(float, epsilons)], [100 * each for each in named], style, label=name, markersize=4)
    axis.set(xlabel="radius of the attack, levels of 255", ylabel="named, % of held-out pictures", ylim=(0, 103))
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, dpi=110)
    pyplot.close(figure)
