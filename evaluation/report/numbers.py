"""Formatting of numbers: a share in per cent, everything else plain."""

from __future__ import annotations

from evaluation.probe_results import ResultRow
from evaluation.probes.rows import Unit
from evaluation.report.markup import Markup, element

NONE = "–"
_PER_CENT = "\u00a0%"  # a line never breaks before the sign


def written(value: float | None, unit: Unit) -> str:
    """ "62.5 %" (with a hard blank), "3.87", "0.647"; a dash where there is no number."""
    if value is None:
        return NONE
    if unit == "share":
        return f"{100 * value:.1f}{_PER_CENT}"
    return f"{value:.2f}" if unit == "count" else f"{value:.3f}"


def interval(row: ResultRow) -> str:
    if row.low is None or row.high is None:
        return NONE
    low, high = written(row.low, row.unit), written(row.high, row.unit)
    return f"{low.removesuffix(_PER_CENT)} to {high}"


def data(value: float | None, unit: Unit) -> Markup:
    """The number with its exact value beside the rounded one."""
    if value is None:
        return element("span", {"class": "none"}, NONE)
    return element("data", {"value": repr(value)}, written(value, unit))
