"""The report of a build: counts of each step, reasons, queries before and after; JSON, a page, a plot."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.files import write_whole
from training.building.balance import effective

_EXAMPLES, _TOP = 3, 15
_NAMES = {"raw": "of all pairs", "clean": "of clean pairs", "kept": "of kept pairs"}


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """stages: pairs that are left after each step. dropped: reason -> pairs; with `kept` they sum to all pairs.

    counts: matches of each query, int64 [queries], of all pairs with a picture, of clean ones, and of kept ones.
    """

    plan: Mapping[str, Any]
    stages: Mapping[str, int]
    kept: int
    dropped: Mapping[str, int]
    examples: Mapping[str, Sequence[Mapping[str, str]]]
    least_score: float | None
    most: int | None
    queries: Mapping[str, Any]
    counts: Mapping[str, NDArray[np.int64]] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "plan": self.plan,
            "stages": self.stages,
            "kept": self.kept,
            "dropped": self.dropped,
            "least_score": self.least_score,
            "most": self.most,
            "queries": self.queries,
            "examples": self.examples,
        }


def examples(db: sqlite3.Connection, facts: Sequence[Path], reasons: Sequence[str] | Mapping[str, int]) -> Any:
    """reason -> the first few pairs that were left out for it: name, caption, why, and the name of its twin."""
    found: dict[str, list[dict[str, str]]] = {}
    for reason in reasons:
        rows = db.execute(
            "SELECT pairs.unit, pairs.place, other.unit, other.place FROM pairs LEFT JOIN pairs AS other"
            " ON other.id = pairs.twin WHERE pairs.state = ? ORDER BY pairs.id LIMIT ?",
            (reason, _EXAMPLES),
        ).fetchall()
        found[reason] = [_example(facts, *row) for row in rows]
    return found


def _example(
    facts: Sequence[Path], unit: int, place: int, other_unit: int | None, other_place: int | None
) -> dict[str, str]:
    fact = _fact(facts[unit], place)
    example = {"name": fact["name"], "caption": fact["said"]} | ({"why": fact["why"]} if "why" in fact else {})
    if other_unit is not None and other_place is not None:
        example["twin"] = _fact(facts[other_unit], other_place)["name"]
    return example


def _fact(path: Path, place: int) -> dict[str, Any]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if number == place:
                return json.loads(line)
    raise ValueError(f"{path} has no line {place + 1}")


def query_figures(
    texts: Sequence[str],
    raw: NDArray[np.int64],
    clean: NDArray[np.int64],
    kept: NDArray[np.int64],
    chosen: NDArray[np.int64],
) -> dict[str, Any]:
    """How even the queries are before and after, and those that come most often and least often."""
    figures: dict[str, Any] = {"all": len(texts)}
    for name, counts in (("raw", raw), ("clean", clean), ("kept", kept)):
        ranked = np.sort(counts)[::-1]
        head = max(1, round(0.01 * len(texts)))
        figures[name] = {
            "matched": int((counts > 0).sum()),
            "matches": int(counts.sum()),
            "share_of_top_percent": float(ranked[:head].sum() / max(1, counts.sum())),
            "median_of_matched": float(np.median(counts[counts > 0])) if counts.any() else 0.0,
            "effective": effective(counts),
        }
    figures["most_chosen_of_a_query"] = int(chosen.max(initial=0))
    order = np.argsort(-clean, kind="stable")
    rare = [number for number in order[::-1] if clean[number]][:_TOP]
    for name, numbers in (("head", order[:_TOP]), ("tail", rare)):
        figures[name] = [
            {"query": texts[number], "raw": int(raw[number]), "clean": int(clean[number]), "kept": int(kept[number])}
            for number in numbers
            if clean[number]
        ]
    return figures


def write_report(folder: Path, report: BuildReport, *, plot: bool) -> None:
    """report.json, report.md, and report.png where matplotlib is installed. Raises OSError."""
    drawn = plot and bool(report.counts["raw"].any()) and _draw(folder / "report.png", report)
    write_whole(folder / "report.md", page(report, plot=drawn).encode("utf-8", "backslashreplace"))
    write_whole(folder / "report.json", json.dumps(report.to_json(), indent=2).encode() + b"\n")


def page(report: BuildReport, *, plot: bool) -> str:
    """The report as Markdown."""
    parts = ["# What was built", "", *_table(("step", "pairs left"), report.stages.items())]
    total = report.stages["pairs"]
    left_out = [(name, count, f"{count / max(1, total):.1%}") for name, count in report.dropped.items()]
    parts += ["", "## Left out", "", *_table(("reason", "pairs", "of all"), left_out)]
    parts += ["", f"{report.kept:,} kept + {sum(report.dropped.values()):,} left out = {total:,} pairs."]
    if report.least_score is not None:
        parts += ["", f"The least score that stays is {report.least_score:.4f}."]
    if report.most is not None:
        parts += ["", f"A query chooses {report.most:,} pairs ({report.plan['balance']})."]
    parts += ["", "## Queries", ""]
    rows = [
        (
            label,
            report.queries[name]["matched"],
            report.queries[name]["matches"],
            f"{report.queries[name]['share_of_top_percent']:.1%}",
            f"{report.queries[name]['effective']:.1f}",
        )
        for name, label in _NAMES.items()
    ]
    parts += _table(("", "queries found", "matches", "in the top 1 %", "even as so many"), rows)
    if plot:
        parts += ["", "![Matches of each query, before and after](report.png)"]
    for name, title in (("head", "Most frequent queries"), ("tail", "Rarest queries that were found")):
        found = [(row["query"], row["raw"], row["clean"], row["kept"]) for row in report.queries[name]]
        parts += ["", f"## {title}", "", *_table(("query", "all", "clean", "kept"), found)]
    parts += ["", "## Examples of what was left out", ""]
    for reason, shown in report.examples.items():
        rows = [(each["name"], each["caption"], each.get("twin", each.get("why", ""))) for each in shown]
        parts += [f"### {reason}", "", *_table(("pair", "caption", "copy of, or why"), rows), ""]
    return "\n".join(parts).rstrip() + "\n"


def _table(head: Sequence[str], rows: Any) -> list[str]:
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _draw(path: Path, report: BuildReport) -> bool:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, label in _NAMES.items():
        ranked = np.sort(report.counts[name][report.counts[name] > 0])[::-1]
        axes.plot(np.arange(1, len(ranked) + 1), ranked, label=label, marker="." if len(ranked) < 100 else None)
    axes.set(xscale="log", yscale="log", xlabel="queries, most frequent first", ylabel="pairs that contain it")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True
