"""The rows of a result as a table, and the summary of all results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.probe_results import ProbeResult, ResultRow
from evaluation.report.intervals import plot
from evaluation.report.markup import Markup, element, joined
from evaluation.report.numbers import data, interval
from evaluation.report.verdicts import Finding, Verdict

_GROUPS: Mapping[Verdict, tuple[str, str]] = {
    "yes": ("●", "It can"),
    "partly": ("◐", "It can in part"),
    "texts alone": ("◌", "No better than without the picture"),
    "no": ("○", "It cannot: chance lies within the interval"),
    "worse": ("✕", "Worse than guessing (a tie is wrong)"),
    "leans": ("◣", "It leans"),
    "even": ("▬", "No leaning seen"),
    "unknown": ("?", "Not settled"),
}
_COLUMNS = ("n", "score", "95 % interval", "chance", "prior", "blind", "bag", "truth")


def rows_table(result: ProbeResult) -> Markup:
    """Every row of a result with its interval plot and all its numbers."""
    head = [element("th", {"scope": "col"}, name) for name in ("row", "against chance and controls", *_COLUMNS)]
    body = [element("tr", None, *_cells(row)) for row in result.rows]
    return element(
        "table",
        {"class": "rows"},
        element("caption", {"class": "unseen"}, f"Rows of {result.key.probe}"),
        element("thead", None, element("tr", None, *head)),
        element("tbody", None, *body),
    )


def _cells(row: ResultRow) -> list[Markup]:
    better = {"more": "", "less": "less is better", "at chance": "a bias: best at chance"}[row.better]
    unit = "" if row.unit == "share" else row.unit
    note = ", ".join(part for part in (unit, better) if part)
    name = joined(row.name, element("small", None, note)) if note else joined(row.name)
    numbers = {
        "n": element("data", {"value": str(row.n)}, f"{row.n:,}"),
        "score": data(row.score, row.unit),
        "95 % interval": element("span", {"data-low": repr(row.low), "data-high": repr(row.high)}, interval(row)),
        "chance": data(row.chance, row.unit),
        "prior": _prior(row),
        "blind": data(row.blind, row.unit),
        "bag": data(row.bag, row.unit),
        "truth": data(row.truth, row.unit),
    }
    return [
        element("th", {"scope": "row"}, name),
        element("td", {"class": "drawn"}, plot(row)),
        *(element("td", {"data-name": key}, value) for key, value in numbers.items()),
    ]


def _prior(row: ResultRow) -> Markup:
    """The best rule's score, and which rule it is where somebody points at it."""
    number = data(row.prior, row.unit)
    return element("span", {"title": row.prior_name}, number) if row.prior_name else number


def summary(findings: Sequence[Finding]) -> Markup:
    """The findings by verdict, each with its interval against chance."""
    groups: list[Markup] = []
    for kind, (sign, title) in _GROUPS.items():
        found = [finding for finding in findings if finding.verdict == kind]
        if not found:
            continue
        head = element("h3", None, element("span", {"class": "sign", "aria-hidden": "true"}, sign), title)
        items = [element("li", None, *_line(finding)) for finding in found]
        groups.append(element("div", {"class": f"group {kind.replace(' ', '-')}"}, head, element("ul", None, *items)))
    return element("div", {"class": "groups"}, *groups)


def _line(finding: Finding) -> list[Markup]:
    link = element("a", {"href": f"#{finding.probe}"}, finding.sentence)
    return [
        element("span", {"class": "claim"}, link),
        plot(finding.row, controls=False),
        element("span", {"class": "number"}, data(finding.row.score, finding.row.unit)),
    ]
