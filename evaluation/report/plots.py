"""The plots, by matplotlib: each is drawn on axes in a palette, so that one drawing serves paper, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.probe_results import ProbeResult, ResultRow
from evaluation.probes.figures import ChoiceCounts, Reliability
from evaluation.report.numbers import written

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """Okabe and Ito's colours (2008), told apart by people who see fewer; marks differ in form as well."""

    ink: str = "#1b1f24"
    faint: str = "#c9ced6"
    paper: str = "#ffffff"
    blue: str = "#0072b2"
    orange: str = "#d55e00"


def interval_lines(axes: Axes, rows: Sequence[ResultRow], names: Sequence[str], palette: Palette) -> None:
    """Rows from top to bottom: score with interval, chance as a bar, the blind control as a circle."""
    for at, row in enumerate(rows):
        if row.chance is not None:
            axes.plot([row.chance] * 2, [at - 0.32, at + 0.32], color=palette.orange, lw=2, solid_capstyle="butt")
        if row.blind is not None:
            axes.plot([row.blind], [at], "o", ms=7, mfc="none", mec=palette.ink, mew=1)
        if row.score is None or row.low is None or row.high is None:
            axes.text(0.02, at, "not settled", va="center", color=palette.ink, style="italic")
            continue
        axes.plot([row.low, row.high], [at, at], color=palette.blue, lw=4, alpha=0.45, solid_capstyle="butt")
        axes.plot([row.score], [at], "o", ms=6, color=palette.blue)
    axes.set_yticks(range(len(rows)), list(names))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.grid(axis="x", color=palette.faint, lw=0.6)


def interval_bars(axes: Axes, rows: Sequence[ResultRow], names: Sequence[str], palette: Palette) -> None:
    """Bars from the left: score, its interval as a whisker, chance as a dash across."""
    for at, row in enumerate(rows):
        if row.chance is not None:
            axes.plot([at - 0.42, at + 0.42], [row.chance] * 2, color=palette.orange, lw=2, solid_capstyle="butt")
        if row.score is None or row.low is None or row.high is None:
            axes.text(at, 0.04, "not\nsettled", ha="center", va="bottom", color=palette.ink, style="italic")
            continue
        axes.bar(at, row.score, width=0.62, color=palette.blue, alpha=0.55)
        axes.plot([at, at], [row.low, row.high], color=palette.ink, lw=1.4)
        axes.plot([at, at], [row.low, row.high], "_", color=palette.ink, ms=7)
    axes.set_xticks(range(len(rows)), list(names))
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.grid(axis="y", color=palette.faint, lw=0.6)
    axes.set_axisbelow(True)


def choices(axes: Axes, found: ChoiceCounts, palette: Palette, *, block: int = 0, numbers: bool = False) -> None:
    """Rows are the truth, columns what was chosen; the fuller a cell, the more often. block: a line after so many."""
    size = len(found.labels)
    for edge in range(block, size, block) if block else ():
        axes.plot([edge - 0.5] * 2, [-0.5, size - 0.5], color=palette.faint, lw=0.8)
        axes.plot([-0.5, size - 0.5], [edge - 0.5] * 2, color=palette.faint, lw=0.8)
    for true, line in enumerate(found.counts):
        total = sum(line) or 1
        for taken, count in enumerate(line):
            x = taken + (0.4 if taken == size else 0)
            share = count / total
            if count:
                axes.fill([x - 0.5, x + 0.5, x + 0.5, x - 0.5], [true - 0.5] * 2 + [true + 0.5] * 2, color=palette.blue,
                          alpha=0.12 + 0.88 * share, lw=0)  # fmt: skip
            if count and numbers:
                colour = palette.paper if share > 0.5 else palette.ink
                axes.text(x, true, str(count), ha="center", va="center_baseline", color=colour)
        axes.plot([true - 0.5, true + 0.5, true + 0.5, true - 0.5, true - 0.5],
                  [true - 0.5, true - 0.5, true + 0.5, true + 0.5, true - 0.5], color=palette.orange, lw=1)  # fmt: skip
    turn = 90 if max(len(label) for label in found.labels) > 3 else 0
    axes.set_xticks([*range(size), size + 0.4], [*found.labels, "tie"], rotation=turn)
    axes.set_yticks(range(size), found.labels)
    axes.set_xlim(-0.55, size + 0.95)
    axes.set_ylim(size - 0.45, -0.55)
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.set_xlabel("chosen")
    axes.set_ylabel("true")


def reliability(axes: Axes, found: Sequence[Reliability], palette: Palette) -> None:
    """Share of right answers against probability; a mark's area grows with its number of items."""
    axes.plot([0, 1], [0, 1], color=palette.faint, lw=1.5)
    looks = {True: ("o", palette.blue), False: ("s", palette.orange)}
    for each in found:
        marker, colour = looks[each.fitted]
        total = sum(part.n for part in each.bins)
        x, y = [part.confidence for part in each.bins], [part.accuracy for part in each.bins]
        scales = " and ".join(f"{scale:g}" for scale in each.scales)
        name = f"scale {'fitted: ' if each.fitted else ''}{scales}, error {100 * each.error:.1f} %"
        axes.plot(x, y, color=colour, lw=1.2, alpha=0.6)
        areas = [18 + 240 * part.n / total for part in each.bins]
        axes.scatter(x, y, s=areas, marker=marker, color=colour, alpha=0.75, label=name, lw=0)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    ticks = ([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.set_xticks(*ticks)
    axes.set_yticks(*ticks)
    axes.set_xlabel("mean probability of the chosen name")
    axes.set_ylabel("share of right answers")
    axes.grid(color=palette.faint, lw=0.6)
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, handletextpad=0.4)
    for handle in legend.legend_handles:
        handle.set_sizes([36])  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def rows_of(results: Sequence[ProbeResult], probe: str) -> Mapping[str, ResultRow]:
    return {row.name: row for result in results if result.key.probe == probe for row in result.rows}


def spoken(rows: Mapping[str, ResultRow]) -> str:
    """The rows in words, for those who do not see the plot."""
    return "; ".join(
        f"{name}: {written(row.score, row.unit)} (chance {written(row.chance, row.unit)})" for name, row in rows.items()
    )
