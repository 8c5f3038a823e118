"""The tables of `clipworks eval`: one line for each row, in sections by probe; tab-separated lines in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipworks.cli import output

if TYPE_CHECKING:
    from evaluation.compare import ComparedRow, Comparison
    from evaluation.probe_results import ProbeResult, ResultRow
    from evaluation.results_file import EvaluationRun

_LONGEST_ROW = 35  # so that everything fits into 100 columns
_MARKS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "yes": ("clear", "green"),
        "partly": ("partly", "green"),
        "texts alone": ("as blind", "yellow"),
        "no": ("at chance", "yellow"),
        "worse": ("worse", "red"),
        "leans": ("biased", "red"),
        "even": ("even", "green"),
        "unknown": ("", ""),
    }
)
_LEGEND = (
    "Scores in %, ties are wrong; in brackets the 95 % interval. prior: the best of some rules that see the texts (or "
    "the pictures) alone; blind: this model without the pictures; bag: a bag of words; truth: the best there can be. "
    "clear: better than chance, prior and blind, 80 % of the way to truth; partly: less of the way; as blind: no "
    "better than blind or prior; at chance: chance lies in the interval; worse: than chance; even, biased: chance lies "
    "in, outside the interval."
)


def title_of(run: EvaluationRun) -> str:
    return f"{run.encoder}, {run.suite}" if run.suite else run.encoder


def print_run(run: EvaluationRun) -> None:
    if not output.is_terminal():
        _print_run_plain(run)
        return
    console = Console()
    table = _table(("row", "n", "score", "95 %", "chance", "prior", "blind", "bag", "truth", ""), first=_LONGEST_ROW)
    for result in run.results:
        table.add_row(f"[bold]{_safe(_title(result))}[/bold]")
        for row in result.rows:
            text, colour = _mark(row)
            table.add_row(
                f"  {_safe(row.name)}",
                str(row.n),
                _score(row.score, row.unit),
                _interval(row.low, row.high, row.unit),
                *(_score(value, row.unit) for value in (row.chance, row.prior, row.blind, row.bag, row.truth)),
                f"[{colour}]{text}[/{colour}]" if text else "",
            )
    console.print(f"[bold]{_safe(title_of(run))}[/bold], seed {run.seed}, pictures {run.size_px} px, {run.date}")
    console.print(table)
    for result in run.results:
        for remark in (result.not_applicable and f"n/a: {result.not_applicable}", *result.notes):
            if remark:
                console.print(f"{_safe(_title(result))}: {_safe(remark)}", highlight=False)
    console.print(f"[dim]{_LEGEND}[/dim]", highlight=False)


def _print_run_plain(run: EvaluationRun) -> None:
    columns = ("probe", "row", "n", "unit", "score", "low", "high", "chance", "blind", "bag", "truth", "mark", "prior")
    rows: list[list[str]] = []
    for result in run.results:
        for row in result.rows:
            numbers = (row.score, row.low, row.high, row.chance, row.blind, row.bag, row.truth)
            plain = ("" if value is None else f"{value:.6g}" for value in numbers)
            prior = "" if row.prior is None else f"{row.prior:.6g}"
            rows.append([_title(result), row.name, str(row.n), row.unit, *plain, _mark(row)[0], prior])
        if result.not_applicable:
            rows.append([_title(result), f"n/a: {result.not_applicable}", *[""] * (len(columns) - 2)])
    output.print_table(columns, rows)
    for result in run.results:
        for note in result.notes:
            output.say(f"{_title(result)}: {note}")


def print_comparison(a: EvaluationRun, b: EvaluationRun, found: Comparison) -> None:
    if output.is_terminal():
        _print_comparison_pretty(a, b, found)
    else:
        columns = ("probe", "row", "n", "unit", "A", "B", "difference", "low", "high", "p", "p Holm", "test", "B is")
        output.print_table(columns, [_plain(row) for row in found.rows])
    unpaired = sum(row.groups is None for row in found.rows)
    if unpaired:
        reasons = ", ".join(dict.fromkeys(row.unpaired for row in found.rows if row.unpaired))
        output.say(f"not paired: {unpaired} of {len(found.rows)} rows ({reasons}), as if other items had been asked")
    for each in found.left_out:
        output.say(f"not compared: {each.probe}{f', {each.row}' if each.row else ''}: {each.reason}")
    if found.same_model:
        output.say("both runs are of one and the same model")


def _print_comparison_pretty(a: EvaluationRun, b: EvaluationRun, found: Comparison) -> None:
    console = Console()
    for name, run in (("A", a), ("B", b)):
        console.print(f"[bold]{name}[/bold]  {_safe(title_of(run))}, {run.date}", highlight=False)
    table = _table(("row", "n", "A", "B", "B - A", "95 %", "p Holm", "B is"), first=_LONGEST_ROW)
    for probe, rows in groupby(found.rows, key=lambda row: row.probe):
        table.add_row(f"[bold]{_safe(probe)}[/bold]")
        for row in rows:
            colour = {"better": "green", "worse": "red"}.get(row.verdict)
            bias = row.better == "at chance"
            table.add_row(
                f"  {_safe(row.row)}{' (d)' if bias else ''}{'' if row.groups else ' (u)'}",
                str(row.n[0]) if row.n[0] == row.n[1] else f"{row.n[0]}/{row.n[1]}",
                _score(row.a, row.unit),
                _score(row.b, row.unit),
                _signed(row.difference, row.unit),
                _interval(row.low, row.high, row.unit),
                f"{row.p_holm:.3f}" if row.p_holm >= 0.001 else "<0.001",
                f"[{colour}]{row.verdict}[/{colour}]" if colour else "-",
            )
    console.print(table)
    counts = [sum(row.verdict == verdict for row in found.rows) for verdict in ("better", "worse")]
    console.print(
        f"of {len(found.rows)} rows B is better in {counts[0]} and worse in {counts[1]}; "
        "-: no difference seen at p < 0.05 after Holm's correction for all rows",
        highlight=False,
    )
    console.print(
        "[dim](d): a bias; the difference is of the distances to chance. (u): not paired. Intervals are not corrected."
        "[/dim]",
        highlight=False,
    )


def comparison_to_json(a: EvaluationRun, b: EvaluationRun, found: Comparison) -> dict[str, Any]:
    def facts(run: EvaluationRun) -> dict[str, Any]:
        return {
            "encoder": run.encoder,
            "fingerprint": run.fingerprint,
            "suite": run.suite,
            "seed": run.seed,
            "date": run.date,
            "clipworks": run.clipworks,
        }

    return {"a": facts(a), "b": facts(b), **asdict(found)}


def _plain(row: ComparedRow) -> list[str]:
    numbers = (row.a, row.b, row.difference, row.low, row.high, row.p, row.p_holm)
    test = f"paired, {row.groups} groups" if row.groups else f"unpaired: {row.unpaired}"
    n = str(row.n[0]) if row.n[0] == row.n[1] else f"{row.n[0]}/{row.n[1]}"
    return [row.probe, row.row, n, row.unit, *(f"{value:.6g}" for value in numbers), test, row.verdict]


def _table(columns: Sequence[str], *, first: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(columns[0], overflow="fold", max_width=first)
    for name in columns[1:-1]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(columns[-1], no_wrap=True)
    return table


def _title(result: ProbeResult) -> str:
    from evaluation.compare import probe_title

    return probe_title(result)


def _mark(row: ResultRow) -> tuple[str, str]:
    """The report's verdict, in a word and a colour."""
    from evaluation.report.verdicts import verdict

    return _MARKS[verdict(row)]


def _safe(text: str) -> str:
    """Text from outside is text, never markup or terminal control codes."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _score(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if unit == "share" else f"{value:.2f}"


def _signed(value: float, unit: str) -> str:
    return f"{100 * value:+.1f}" if unit == "share" else f"{value:+.2f}"


def _interval(low: float | None, high: float | None, unit: str) -> str:
    if low is None or high is None:
        return "-"
    ends = (f"{100 * each:.1f}" if unit == "share" else f"{each:.2f}" for each in (low, high))
    return f"\\[{', '.join(ends)}]"
