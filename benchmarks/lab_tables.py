"""The study's numbers as Markdown: one line a run, or a group of runs that differ in their seed only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab import LabRun, read_judged
from marked import markdown_table

from evaluation.probe_results import ProbeResult, ResultRow
from training.checkpoint import read_checkpoint

Cell = tuple[str, str]


@dataclass(frozen=True)
class Group:
    """Runs of one name that differ in their seed only, each judged."""

    name: str
    runs: tuple[LabRun, ...]


def groups(runs: Sequence[LabRun]) -> list[Group]:
    """By the name without its seed, in the order of the first."""
    found: dict[str, list[LabRun]] = {}
    for one in runs:
        found.setdefault(one.name.rsplit("/seed", 1)[0], []).append(one)
    return [Group(name, tuple(members)) for name, members in found.items()]


def found_row(results: Sequence[ProbeResult], cell: Cell) -> ResultRow | None:
    for result in results:
        if result.key.probe == cell[0]:
            return next((row for row in result.rows if row.name == cell[1]), None)
    return None


def number(value: float | None) -> str:
    """ ".512"; nothing where there is none."""
    return "" if value is None else f"{value:.3f}".removeprefix("0")


def written(rows: Sequence[ResultRow | None]) -> str:
    """ ".512 [.490, .531]" with the bootstrap interval of one run; ".512 (.498 to .540)" with the range of several."""
    scores = [row.score for row in rows if row is not None and row.score is not None]
    if not scores:
        return "n/a"
    if len(scores) == 1:
        (row,) = (row for row in rows if row is not None)
        return f"{number(row.score)} [{number(row.low)}, {number(row.high)}]"
    return f"{number(sum(scores) / len(scores))} ({number(min(scores))} to {number(max(scores))})"


def spent(group: Group) -> list[str]:
    """Seeds, steps, pairs and core-minutes of a run; a resumed run does not know its first part's time."""
    facts = [json.loads((one.folder / "finished.json").read_text(encoding="utf-8")) for one in group.runs]
    batch = read_checkpoint(group.runs[0].folder).config.optim.batch_size
    minutes = sorted(each["cpu_s"] / 60 for each in facts if not each["resumed"])
    spent_minutes = f"{minutes[len(minutes) // 2]:.0f}" if minutes else "resumed"
    step = facts[0]["step"]
    return [str(len(facts)), f"{step:,}", f"{step * batch // 1000:,}k", spent_minutes]


def table(chosen: Sequence[Group], cells: Mapping[str, Cell], *, composed: bool = False) -> str:
    """One line a group: seeds, steps, pairs, core-minutes, naming, then the cells; controls below."""
    lines: list[list[str]] = []
    first: list[ProbeResult] = []
    for group in chosen:
        judged = [found for one in group.runs if (found := read_judged(one)) is not None]
        if not judged:
            continue
        picked = [held if composed else known for _, known, held in judged]
        first = first or picked[0]
        singles = [float(raw["single, held-out pairs" if composed else "single"]) for raw, _, _ in judged]
        scores = [written([found_row(results, cell) for results in picked]) for cell in cells.values()]
        costs = [] if composed else spent(group)
        lines.append([f"`{group.name}`", *costs, number(sum(singles) / len(singles)), *scores])
    controls = [found_row(first, cell) for cell in cells.values()]
    blank = [] if composed else [""] * 4
    lines += [
        ["n", *blank, "2,000", *(f"{row.n:,}" if row else "" for row in controls)],
        ["chance", *blank, "", *(number(row.chance) if row else "" for row in controls)],
        ["bag of words", *blank, "", *(number(row.bag) if row else "" for row in controls)],
    ]
    costs = [] if composed else ["seeds", "steps", "pairs", "core-min"]
    return markdown_table(["run", *costs, "single", *cells], lines)


def wise_ft_table(curves: Mapping[str, dict[str, Any]]) -> str:
    """The gain of a fine-tune and its cost at alpha 0, at the chosen alpha and at 1, on the held-out seed."""
    lines: list[list[str]] = []
    for name, curve in curves.items():
        alpha = float(curve["chosen"]["alpha"])
        points = [curve["held out"][key] for key in ("0.0", str(alpha), "1.0")]
        numbers = [number(value) for point in points for value in (at(point, curve["cure"]), point["single"])]
        lines.append([f"`{name}`", curve["cure"], str(alpha), *numbers])
    spots = [f"{what} at {where}" for where in ("0", "alpha", "1") for what in ("cure", "single")]
    return markdown_table(["run", "cure", "alpha", *spots], lines)


def at(numbers: Mapping[str, Any], path: str) -> float:
    """A value by its path, such as "relation/opposite relation"."""
    found: Any = numbers
    for part in path.split("/"):
        found = found[part]
    return float(found)
