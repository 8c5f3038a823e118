"""The study's numbers as Markdown: one line a run, or a group of runs that differ in their seeds only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.lab_records import Record, record_of
from benchmarks.lab_runs import StudyRun, expected
from benchmarks.marked import markdown_table

SINGLES = 2000  # scenes of a single thing that are named
Cell = tuple[str, str]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Records of one kind of run: its replications if there are two or more, else replication 0 and its shufflings."""

    kind: str
    members: tuple[tuple[StudyRun, Record], ...]

    @property
    def records(self) -> list[Record]:
        return [record for _, record in self.members]

    @property
    def says(self) -> str:
        """ "3 replications", "3 shufflings", "1"."""
        count = len(self.members)
        if count == 1:
            return "1"
        return f"{count} {'shufflings' if len({one.replication for one, _ in self.members}) == 1 else 'replications'}"


def groups(runs: Sequence[StudyRun]) -> list[Group]:
    """Of the runs that there are records of, in the order of the first of each kind."""
    found: dict[str, list[tuple[StudyRun, Record]]] = {}
    for one in runs:
        record = record_of(one)
        if record is not None:
            found.setdefault(one.kind, []).append((one, record))
    out: list[Group] = []
    for kind, members in found.items():
        replicated = [each for each in members if each[0].seed == each[0].replication]
        out.append(Group(kind, tuple(replicated if len(replicated) > 1 else members)))
    return out


def found_row(rows: Mapping[str, Sequence[Row]], cell: Cell) -> Row | None:
    return next((row for row in rows.get(cell[0], ()) if row["name"] == cell[1]), None)


def number(value: float | None) -> str:
    """ ".512"; nothing where there is none."""
    return "" if value is None else f"{value:.3f}".removeprefix("0")


def written(rows: Sequence[Row | None]) -> str:
    """ ".512 [.490, .531]": the interval over the items of one run; ".512 (.498 to .540)": the range of several."""
    scored = [row for row in rows if row is not None and row["score"] is not None]
    if not scored:
        return "n/a"
    if len(scored) == 1:
        return f"{number(scored[0]['score'])} [{number(scored[0]['low'])}, {number(scored[0]['high'])}]"
    return mean_and_range([row["score"] for row in scored])


def mean_and_range(values: Sequence[float]) -> str:
    return f"{number(sum(values) / len(values))} ({number(min(values))} to {number(max(values))})"


def spent(group: Group) -> list[str]:
    """Repeats, steps, pairs, core-minutes of a run; what one cost that was cut, or trained elsewhere, is unknown."""
    optim = expected(group.members[0][0]).optim
    minutes = sorted(record["cpu_s"] / 60 for record in group.records if record["cpu_s"] is not None)
    spent_minutes = f"{minutes[len(minutes) // 2]:.0f}" if minutes else "not known"
    return [group.says, f"{optim.steps:,}", f"{optim.steps * optim.batch_size // 1000:,}k", spent_minutes]


def table(chosen: Sequence[Group], cells: Mapping[str, Cell], *, composed: bool = False) -> str:
    """One line a group: repeats, steps, pairs, core-minutes, naming, then the cells; controls below."""
    which, single = ("held-out pairs", "single, held-out pairs") if composed else ("known", "single")
    lines: list[list[str]] = []
    for group in chosen:
        scores = [written([found_row(record[which], cell) for record in group.records]) for cell in cells.values()]
        singles = [float(record[single]) for record in group.records]
        costs = [] if composed else spent(group)
        lines.append([f"`{group.kind}`", *costs, number(sum(singles) / len(singles)), *scores])
    if not chosen:
        return markdown_table(["run"], [["nothing was run"]])
    controls = [found_row(chosen[0].records[0][which], cell) for cell in cells.values()]
    blank = [] if composed else [""] * 4
    lines.append(["n", *blank, f"{SINGLES:,}", *(f"{row['n']:,}" if row else "" for row in controls)])
    for name, key in (("chance", "chance"), ("blind", "blind"), ("bag of words", "bag")):
        lines.append([name, *blank, "", *(number(row[key]) if row else "" for row in controls)])
    costs = [] if composed else ["repeats", "steps", "pairs", "core-min"]
    return markdown_table(["run", *costs, "single", *cells], lines)


@dataclass(frozen=True)
class Replicated:
    """A headline number: the value of each replication, one run's interval over items, shufflings of the first."""

    says: str
    values: Mapping[str, float]
    items: tuple[float | None, float | None]
    shuffled: Sequence[float]


def headline_table(chosen: Sequence[Replicated]) -> str:
    """What a claim rests on: replications one by one, apart from the interval over one run's items."""
    lines = [
        [
            each.says,
            str(len(each.values)),
            number(float(np.mean(list(each.values.values())))),
            ", ".join(f"{name} {number(value)}" for name, value in each.values.items()),
            t_interval(list(each.values.values())),
            "" if each.items[0] is None else f"[{number(each.items[0])}, {number(each.items[1])}]",
            f"{number(min(each.shuffled))} to {number(max(each.shuffled))}" if len(each.shuffled) > 1 else "",
        ]
        for each in chosen
    ]
    head = ["number", "replications", "mean", "each", "t interval, 95 %", "items of one run, 95 %", "shufflings of r0"]
    return markdown_table(head, lines)


def t_interval(values: Sequence[float]) -> str:
    """95 % for the mean of such runs (Student, 1908), three of them at least; shares beyond 0 and 1 are cut."""
    if len(values) < 3:
        return ""
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    mean = float(np.mean(values))
    return f"{number(max(mean - half, 0.0))} to {number(min(mean + half, 1.0))}"


def replicated(
    runs: Sequence[StudyRun], kind: str, says: str, cell: Cell | None = None, *, composed: bool = False
) -> Replicated | None:
    """Of the records of a kind; without a cell it is naming. None without records."""
    which, single = ("held-out pairs", "single, held-out pairs") if composed else ("known", "single")
    found = [(one, record) for one in runs if one.kind == kind and (record := record_of(one)) is not None]
    if not found:
        return None
    values: list[tuple[StudyRun, float]] = []
    items: tuple[float | None, float | None] = None, None
    for one, record in found:
        row = None if cell is None else found_row(record[which], cell)
        values.append((one, float(record[single]) if row is None else float(row["score"])))
        if items[0] is None:
            items = naming_interval(values[-1][1]) if row is None else (row["low"], row["high"])
    return Replicated(
        says,
        {f"r{one.replication}": value for one, value in values if one.seed == one.replication},
        items,
        [value for one, value in values if one.replication == 0],
    )


def naming_interval(share: float) -> tuple[float, float]:
    """95 % over the scenes of a single thing, which are independent: exact (Clopper and Pearson, 1934)."""
    found = stats.binomtest(round(share * SINGLES), SINGLES).proportion_ci()
    return float(found.low), float(found.high)


def wise_ft_table(chosen: Sequence[Group]) -> str:
    """The gain of a fine-tune and its cost at alpha 0, at the chosen alpha and at 1, on the held-out seed."""
    lines: list[list[str]] = []
    for group in chosen:
        for one, curve in group.members:
            alpha = float(curve["chosen"]["alpha"])
            points = [curve["held out"][key] for key in ("0.0", str(alpha), "1.0")]
            numbers = [
                number(value) for point in points for value in (at(point, curve["cure"]), at(point, curve["neutral"]))
            ]
            lines.append([f"`{one.name.removeprefix('wise-ft/')}`", curve["cure"], str(alpha), *numbers])
    spots = [f"{what} at {where}" for where in ("0", "alpha", "1") for what in ("cure", "single")]
    return markdown_table(["run", "cure", "alpha", *spots], lines)


def at(numbers: Mapping[str, Any], path: str) -> float:
    """A value by its path, such as "relation/opposite relation"."""
    found: Any = numbers
    for part in path.split("/"):
        found = found[part]
    return float(found)
